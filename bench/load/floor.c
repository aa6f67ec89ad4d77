// floor: the limit to hold a server against. The least that a WebSocket server can do, in bare C: one epoll, one
// recv() per readable socket, and one send() of a finished frame per subscriber.
//
//   floor            listens on a free port of 127.0.0.1 and prints "ready PORT"
//
// Connections that ask for /echo get their own messages back; those of any other path form one channel, in which
// every message goes to everybody, its sender included. It is a yardstick and no server: it trusts its clients
// (every key is that of loadgen, every frame is whole and short) and ends the program when one breaks that trust.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_FDS = 1 << 17, EVENTS = 1024 };
enum role { NEW, ECHO, MEMBER };

static uint8_t role[MAX_FDS];
static int place[MAX_FDS];              // of a member's descriptor in members
static int members[MAX_FDS], member_count;
static uint8_t input[1 << 18], output[(1 << 16) + 4];

static void fail(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void send_frame(int fd, size_t len) {
    if (send(fd, output, len, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)len && errno != EPIPE && errno != ECONNRESET)
        fail("a client reads too slowly for a server without buffers");
}

static void upgrade(int fd, ssize_t got) {
    static const char response[] =
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
    if (got < 9 || memcmp(input, "GET /", 5)) fail("not an upgrade request");
    role[fd] = memcmp(input + 4, "/echo", 5) ? MEMBER : ECHO;
    if (role[fd] == MEMBER) members[place[fd] = member_count++] = fd;
    if (send(fd, response, sizeof response - 1, MSG_NOSIGNAL) < 0) fail("send");
}

static void forget(int fd) {
    if (role[fd] == MEMBER) {
        int last = members[--member_count];
        place[members[place[fd]] = last] = place[fd];
    }
    role[fd] = NEW;
    close(fd);
}

static void serve(int fd) {
    ssize_t got = recv(fd, input, sizeof input, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { forget(fd); return; }
    if (role[fd] == NEW) { upgrade(fd, got); return; }
    for (const uint8_t *p = input, *end = input + got; p < end;) {
        if (end - p < 6) fail("a frame was cut");
        size_t len = p[1] & 0x7f, header = 2;
        if (len == 126) { len = (size_t)p[2] << 8 | p[3]; header = 4; }
        if (len > 65535 || end - p < (ssize_t)(header + 4 + len)) fail("a frame was cut");
        const uint8_t *mask = p + header, *payload = mask + 4;
        output[0] = 0x81;
        output[1] = p[1] & 0x7f;
        if (header == 4) memcpy(output + 2, p + 2, 2);
        for (size_t i = 0; i < len; i++) output[header + i] = payload[i] ^ mask[i & 3];
        if (role[fd] == ECHO) send_frame(fd, header + len);
        else for (int i = 0; i < member_count; i++) send_frame(members[i], header + len);
        p = payload + len;
    }
}

int main(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t address_len = sizeof address;
    if (bind(listener, (struct sockaddr *)&address, address_len) || listen(listener, 1024) ||
        getsockname(listener, (struct sockaddr *)&address, &address_len))
        fail("listen");
    printf("ready %d\n", ntohs(address.sin_port));
    fflush(stdout);

    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd != listener) { serve(fd); continue; }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
                if (fd >= MAX_FDS) fail("too many descriptors");
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
                event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
                epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}
