// client: one WebSocket client connection, reduced to what a load needs.
//
// It opens without blocking, counts the data frames that arrive, and keeps no payload. It is strict where a
// wrong server would spoil a figure: a status other than 101, a masked frame, or a close ends the program.
// Pings of WebSocket are counted as nothing and not answered: no load runs as long as a pong timeout. Pings of a
// protocol on top of it are texts; they are known by their length, and left to whoever drives the load to answer.
#ifndef CLIENT_H
#define CLIENT_H
#include <netinet/in.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum client_state { CONNECTING, UPGRADING, OPEN };

typedef struct {
    int fd;
    uint8_t state;
    uint8_t header_have;        // bytes of an unfinished frame header
    uint8_t header[10];
    uint64_t payload_left;      // bytes of the current frame that are still to come
    bool ping;                  // the current frame is a ping of that protocol
    unsigned pings;             // of them not yet answered
    unsigned frames;            // data frames since somebody last set it to zero
    double sent_at;             // for loads that time single messages
} Client;

// How long a text ping is; 0: there is none. No message of a load may be of that length.
extern size_t client_ping_len;

// Starts to connect. Source addresses differ, so that ports last for many runs against one server.
void client_connect(Client *client, const struct sockaddr_in *server, unsigned index);

// Goes on with the opening handshake after an event; the rest of the read is already counted. Returns the
// number of data frames that came right behind the response.
unsigned client_continue_opening(Client *client, const char *request, size_t request_len);

// Counts the data frames that end within these bytes.
unsigned client_scan(Client *client, const uint8_t *bytes, size_t n);

// Sends everything, waiting for the kernel where it must.
void client_send(Client *client, const uint8_t *bytes, size_t n);

// A masked text frame as it travels from client to server. Returns its length; `out` needs n + 14 bytes.
size_t client_frame(uint8_t *out, const void *payload, size_t n);

// The upgrade request. Every client sends the same key: the answer is then known.
size_t client_request(char *out, size_t size, const char *path, int port);

#endif
