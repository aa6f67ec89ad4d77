#define _GNU_SOURCE
#include "client.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

// The example of RFC 6455, section 1.3.
static const char KEY[] = "dGhlIHNhbXBsZSBub25jZQ==";
static const char ACCEPT[] = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

size_t client_ping_len;

static void die(const char *format, ...) {
    va_list args;
    va_start(args, format);
    vfprintf(stderr, format, args);
    va_end(args);
    fputc('\n', stderr);
    exit(1);
}

void client_connect(Client *client, const struct sockaddr_in *server, unsigned index) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    if (fd < 0) die("socket: %s", strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK + 1 + index % 16)};
    if (bind(fd, (struct sockaddr *)&from, sizeof from)) die("bind: %s", strerror(errno));
    if (connect(fd, (const struct sockaddr *)server, sizeof *server) && errno != EINPROGRESS)
        die("connect: %s", strerror(errno));
    *client = (Client){.fd = fd, .state = CONNECTING};
}

unsigned client_continue_opening(Client *client, const char *request, size_t request_len) {
    if (client->state == CONNECTING) {
        int error = 0;
        socklen_t len = sizeof error;
        getsockopt(client->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        if (error) die("connect: %s", strerror(error));
        ssize_t sent = send(client->fd, request, request_len, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == ENOTCONN)) return 0;      // not yet connected
        if (sent != (ssize_t)request_len) die("upgrade request: %s", strerror(errno));
        client->state = UPGRADING;
    }
    char head[4096];
    ssize_t have = recv(client->fd, head, sizeof head - 1, MSG_PEEK);
    if (have < 0 && errno == EAGAIN) return 0;
    if (have <= 0) die("the server closed during the opening handshake");
    head[have] = 0;
    char *end = strstr(head, "\r\n\r\n");
    if (!end) {
        if (have == sizeof head - 1) die("response head too long");
        return 0;
    }
    if (strncmp(head, "HTTP/1.1 101", 12) || !strstr(head, ACCEPT)) die("refused: %.*s", (int)(end - head), head);
    client->state = OPEN;
    recv(client->fd, head, (size_t)(end + 4 - head), 0);
    ssize_t more = recv(client->fd, head, sizeof head, 0);
    return more > 0 ? client_scan(client, (uint8_t *)head, (size_t)more) : 0;
}

static unsigned finish_frame(Client *client) {
    client->header_have = 0;
    if (client->ping) client->pings++;
    return (client->header[0] & 0x0f) < 8 && !client->ping;
}

unsigned client_scan(Client *client, const uint8_t *p, size_t n) {
    unsigned frames = 0;
    const uint8_t *end = p + n;
    while (p < end) {
        if (client->payload_left) {
            uint64_t take = (uint64_t)(end - p) < client->payload_left ? (uint64_t)(end - p) : client->payload_left;
            p += take;
            client->payload_left -= take;
            if (!client->payload_left) frames += finish_frame(client);
            continue;
        }
        client->header[client->header_have++] = *p++;
        if (client->header_have < 2) continue;
        unsigned length7 = client->header[1];
        if (length7 & 0x80) die("masked frame from the server");
        unsigned header_len = length7 < 126 ? 2 : length7 == 126 ? 4 : 10;
        if (client->header_have < header_len) continue;
        if ((client->header[0] & 0x0f) == 8) die("the server closed a connection");
        uint64_t length = length7;
        if (header_len > 2) {
            length = 0;
            for (unsigned i = 2; i < header_len; i++) length = length << 8 | client->header[i];
        }
        client->payload_left = length;
        client->ping = length && length == client_ping_len;
        if (!length) frames += finish_frame(client);
    }
    client->frames += frames;
    return frames;
}

void client_send(Client *client, const uint8_t *bytes, size_t n) {
    while (n) {
        ssize_t sent = send(client->fd, bytes, n, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) die("send: %s", strerror(errno));
            poll(&(struct pollfd){.fd = client->fd, .events = POLLOUT}, 1, 1000);
            continue;
        }
        bytes += sent;
        n -= (size_t)sent;
    }
}

size_t client_frame(uint8_t *out, const void *payload, size_t n) {
    static const uint8_t mask[4] = {0x37, 0xfa, 0x21, 0x3d};
    size_t at = 0;
    out[at++] = 0x81;
    if (n < 126) {
        out[at++] = (uint8_t)(0x80 | n);
    } else if (n < 65536) {
        out[at++] = 0x80 | 126;
        out[at++] = (uint8_t)(n >> 8);
        out[at++] = (uint8_t)n;
    } else {
        out[at++] = 0x80 | 127;
        for (int shift = 56; shift >= 0; shift -= 8) out[at++] = (uint8_t)(n >> shift);
    }
    memcpy(out + at, mask, sizeof mask);
    at += sizeof mask;
    for (size_t i = 0; i < n; i++) out[at + i] = ((const uint8_t *)payload)[i] ^ mask[i & 3];
    return at + n;
}

size_t client_request(char *out, size_t size, const char *path, int port) {
    int n = snprintf(out, size,
                     "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                     "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n",
                     path, port, KEY);
    if (n < 0 || (size_t)n >= size) die("path too long");
    return (size_t)n;
}
