// loadgen: loads a WebSocket server and says what the server paid for it. One thread, epoll, closed loop.
//
//   loadgen fanout   N connections; one sends BURST messages, all receive them all, then again
//   loadgen echo     N connections, each keeps PIPELINE messages in flight
//   loadgen rooms    N connections in ROOMS rooms; messages to random rooms, PIPELINE of them in flight
//   loadgen fairness N connections in a broadcast while ECHO_CLIENTS others echo: the echo that waited longest
//   loadgen connect  opens N connections, IN_FLIGHT at a time
//   loadgen idle     the same, then the memory that the server holds for them
//
// Options: --port --server-pid --senders --path --echo-path --connections --echo-clients --rooms --size --message TEXT
// --hello TEXT --ping TEXT --pong TEXT --burst --pipeline --seconds --rounds --in-flight --spin 1. Prints one JSON
// object.
// `server_us` is the CPU time of the server's process (clock_getcpuclockid, user and system, all threads) per message
// delivered, `load_us` that of this program: a figure whose load_us is above its server_us measures the wrong program.
//
// With --spin it never sleeps: waking it up is work of the kernel that would be the server's, and only of a server that
// is slower than the load. Then its load_us says nothing.
//
// --port may be given once for each node: then client i is on node i % NODES, and broadcasts come from each node in
// turn; nodes that are apart have one each at once: --senders. --server-pid is that of the first node, whose server_us
// is per message that it delivered itself.
//
// Client i is in room i % ROOMS, whose number stands for %d in a message or a hello. Hellos are for protocols on top of
// WebSocket: a client sends the first one when the server has said something, the next one when it has said something
// more, and is open when the last one is answered. A message as long as --ping is a ping, answered with --pong.
#define _GNU_SOURCE
#include "client.h"
#include "meter.h"

#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { EVENTS = 4096, READ_BYTES = 1 << 18, MAX_ROUNDS = 1 << 20, HELLOS = 4, NODES = 8 };
static const double WARM_UP_S = 0.3;
static const double STALL_S = 20;

static struct {
    int ports[NODES], nodes, connections, echo_clients, rooms, size, burst, pipeline, rounds, in_flight, hellos, spin;
    int senders;
    pid_t server;
    const char *path, *echo_path, *message, *hello[HELLOS], *ping, *pong;
    double seconds;
} opt = {.connections = 1000, .senders = 1, .echo_clients = 10, .rooms = 1, .size = 128, .burst = 1, .pipeline = 1,
         .rounds = 10, .in_flight = 64, .path = "/", .echo_path = "/echo", .seconds = 2};

typedef struct { uint8_t *bytes; size_t len; } Frame;

static Client *clients;             // opt.connections of them, then those of the fairness load that echo
static Frame *messages;             // what a client sends, by room
static Frame *hellos[HELLOS];       // what it sends before, by room
static Frame pong;
static uint8_t read_buffer[READ_BYTES];
static uint64_t bytes_in;

static void fail(const char *what) {
    fprintf(stderr, "loadgen: %s\n", what);
    exit(1);
}

static void watch(int epoll, int operation, Client *client, uint32_t events) {
    struct epoll_event event = {.events = events | EPOLLET, .data.ptr = client};
    if (epoll_ctl(epoll, operation, client->fd, &event)) fail(strerror(errno));
}

static int node_of(const Client *client) { return (int)(client - clients) % opt.nodes; }

static int room_of(const Client *client) { return (int)(client - clients) % opt.rooms; }

static void send_frame(Client *client, Frame frame) { client_send(client, frame.bytes, frame.len); }

// The text as it travels, with the number of the room for each %d.
static Frame make_frame(const char *text, int room) {
    size_t size = strlen(text) + 1;
    for (const char *p = text; (p = strstr(p, "%d")); p += 2) size += 10;
    char *filled = malloc(size), *end = filled;
    while (*text) {
        if (strncmp(text, "%d", 2)) { *end++ = *text++; continue; }
        end += sprintf(end, "%d", room);
        text += 2;
    }
    Frame frame = {.bytes = malloc(size + 14)};
    frame.len = client_frame(frame.bytes, filled, (size_t)(end - filled));
    free(filled);
    return frame;
}

static Frame *make_frames(const char *text) {
    Frame *frames = malloc((size_t)opt.rooms * sizeof *frames);
    for (int room = 0; room < opt.rooms; room++) frames[room] = make_frame(text, room);
    return frames;
}

// Reads what one client has; a read that does not fill the buffer has emptied the socket.
static unsigned drain(Client *client) {
    unsigned frames = 0;
    for (;;) {
        ssize_t got = recv(client->fd, read_buffer, sizeof read_buffer, 0);
        if (got < 0 && errno == EAGAIN) return frames;
        if (got <= 0) fail(got == 0 ? "the server hung up" : strerror(errno));
        bytes_in += (uint64_t)got;
        frames += client_scan(client, read_buffer, (size_t)got);
        for (; client->pings; client->pings--) send_frame(client, pong);
        if (got < READ_BYTES) return frames;
    }
}

// Opens clients[first .. first + n), in_flight at a time, and leaves them watched for input.
static void open_clients(int epoll, int first, int n, const char *path) {
    static char requests[NODES][2048];
    size_t request_len[NODES];
    struct sockaddr_in servers[NODES];
    for (int node = 0; node < opt.nodes; node++) {
        int port = opt.ports[node];
        request_len[node] = client_request(requests[node], sizeof requests[node], path, port);
        servers[node] = (struct sockaddr_in){
            .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    }
    struct epoll_event events[256];
    int started = 0, open = 0;
    while (open < n) {
        for (; started < n && started - open < opt.in_flight; started++) {
            Client *client = &clients[first + started];
            client_connect(client, &servers[node_of(client)], (unsigned)(first + started));
            watch(epoll, EPOLL_CTL_ADD, client, EPOLLIN | EPOLLOUT);
        }
        int ready = epoll_wait(epoll, events, 256, (int)(STALL_S * 1000));
        if (ready == 0) fail("the server stopped answering opening handshakes");
        for (int i = 0; i < ready; i++) {
            Client *client = events[i].data.ptr;
            unsigned before = client->frames, now;
            bool was_open = client->state == OPEN;
            if (was_open) drain(client);
            else client_continue_opening(client, requests[node_of(client)], request_len[node_of(client)]);
            if (client->state != OPEN) continue;
            if (!was_open) watch(epoll, EPOLL_CTL_MOD, client, EPOLLIN);
            now = client->frames;
            for (unsigned k = before; k < now && k < (unsigned)opt.hellos; k++)
                send_frame(client, hellos[k][room_of(client)]);
            unsigned last = opt.hellos ? (unsigned)opt.hellos + 1 : 0;     // with this frame it is open
            if (now >= last && (was_open ? before < last : true)) open++;
        }
    }
}

static int wait_for_input(int epoll, struct epoll_event *events, int timeout_ms) {
    if (!opt.spin) return epoll_wait(epoll, events, EVENTS, timeout_ms);
    double deadline = wall_s() + timeout_ms * 1e-3;
    int ready;
    do ready = epoll_wait(epoll, events, EVENTS, 0);
    while (ready == 0 && wall_s() < deadline);
    return ready;
}

// One wait and everything that it found. Returns the number of data frames; -1 if nothing came in time.
static int64_t pump(int epoll, int timeout_ms, void (*on_frames)(Client *, unsigned)) {
    static struct epoll_event events[EVENTS];
    int ready = wait_for_input(epoll, events, timeout_ms);
    if (ready == 0) return -1;
    int64_t total = 0;
    for (int i = 0; i < ready; i++) {
        unsigned frames = drain(events[i].data.ptr);
        total += frames;
        if (on_frames && frames) on_frames(events[i].data.ptr, frames);
    }
    return total;
}

// Throws away what a server says on joining.
static void settle(int epoll) {
    while (pump(epoll, 200, NULL) >= 0) {}
}

typedef struct { double wall, server, own; uint64_t bytes; } Reading;

static Reading read_meters(void) {
    return (Reading){.wall = wall_s(), .server = process_cpu_s(opt.server), .own = own_cpu_s(), .bytes = bytes_in};
}

static void print_costs(Reading from, uint64_t messages) {
    Reading to = read_meters();
    double n = (double)messages;
    printf("\"messages\": %llu, \"per_second\": %.0f, \"server_us\": %.4f, \"load_us\": %.4f, "
           "\"bytes_per_message\": %.1f",
           (unsigned long long)messages, n / (to.wall - from.wall), (to.server - from.server) * 1e6 / n * opt.nodes,
           (to.own - from.own) * 1e6 / n, (double)(to.bytes - from.bytes) / n);
}

static void fan_out_once(int epoll, Frame burst) {
    static unsigned turn;
    int64_t missing = (int64_t)opt.connections * opt.burst;
    for (int i = 0; i < opt.senders; i++) send_frame(&clients[turn++ % (unsigned)opt.nodes], burst);
    while (missing > 0) {
        int64_t frames = pump(epoll, (int)(STALL_S * 1000), NULL);
        if (frames < 0) fail("messages of a broadcast did not arrive");
        missing -= frames;
    }
    if (missing < 0) fail("more messages than were broadcast");
}

static void run_fanout(int epoll) {
    open_clients(epoll, 0, opt.connections, opt.path);
    settle(epoll);
    Frame message = messages[0], burst = {.len = message.len * (size_t)opt.burst};
    burst.bytes = malloc(burst.len);
    for (int i = 0; i < opt.burst; i++) memcpy(burst.bytes + (size_t)i * message.len, message.bytes, message.len);
    for (double end = wall_s() + WARM_UP_S; wall_s() < end;) fan_out_once(epoll, burst);

    double *took = malloc(MAX_ROUNDS * sizeof *took);
    size_t rounds = 0;
    Reading start = read_meters();
    for (double end = start.wall + opt.seconds; rounds < MAX_ROUNDS && (rounds < 5 || wall_s() < end); rounds++) {
        double began = wall_s();
        fan_out_once(epoll, burst);
        took[rounds] = wall_s() - began;
    }
    print_costs(start, (uint64_t)rounds * (uint64_t)opt.connections * (uint64_t)opt.burst);
    sort_doubles(took, rounds);
    printf(", \"rounds\": %zu, \"round_ms_p50\": %.3f, \"round_ms_p99\": %.3f", rounds,
           quantile(took, rounds, 0.5) * 1e3, quantile(took, rounds, 0.99) * 1e3);
}

static void answer(Client *client, unsigned frames) {
    while (frames--) send_frame(client, messages[room_of(client)]);
}

// Reads what is still on its way, so that no server is left writing to clients that went away.
static void collect(int epoll, int64_t missing) {
    while (missing > 0) {
        int64_t frames = pump(epoll, (int)(STALL_S * 1000), NULL);
        if (frames < 0) fail("echoes were lost");
        missing -= frames;
    }
}

static void run_echo(int epoll) {
    open_clients(epoll, 0, opt.connections, opt.path);
    settle(epoll);
    for (int i = 0; i < opt.connections; i++) answer(&clients[i], (unsigned)opt.pipeline);
    for (double end = wall_s() + WARM_UP_S; wall_s() < end;)
        if (pump(epoll, (int)(STALL_S * 1000), answer) < 0) fail("echoes did not arrive");
    uint64_t messages = 0;
    Reading start = read_meters();
    for (double end = start.wall + opt.seconds; wall_s() < end;) {
        int64_t frames = pump(epoll, (int)(STALL_S * 1000), answer);
        if (frames < 0) fail("echoes did not arrive");
        messages += (uint64_t)frames;
    }
    print_costs(start, messages);
    collect(epoll, (int64_t)opt.connections * opt.pipeline);
}

// xorshift64*, from the same seed in every run: the same rooms in the same order for every server.
static unsigned next_random(unsigned below) {
    static uint64_t state = 0x9e3779b97f4a7c15;
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (unsigned)((state * 0x2545f4914f6cdd1d >> 33) % below);
}

// Everybody in a room gets its messages, whoever sent one too. Afterwards each client must have exactly as many as
// were sent to its room.
static void run_rooms(int epoll) {
    if (opt.connections % opt.rooms) fail("--connections must be a multiple of --rooms");
    open_clients(epoll, 0, opt.connections, opt.path);
    settle(epoll);
    for (int i = 0; i < opt.connections; i++) clients[i].frames = 0;
    unsigned *sent = calloc((size_t)opt.rooms, sizeof *sent), members = (unsigned)(opt.connections / opt.rooms);
    int64_t missing = 0;
    uint64_t delivered = 0;
    double end = wall_s() + WARM_UP_S;
    Reading start = {0};
    for (bool warm = false;;) {
        if (wall_s() >= end) {
            if (warm) break;
            warm = true;
            delivered = 0;
            start = read_meters();
            end = start.wall + opt.seconds;
        }
        for (; missing <= (int64_t)members * (opt.pipeline - 1); missing += members) {
            unsigned room = next_random((unsigned)opt.rooms), member = next_random(members);
            send_frame(&clients[room + member * (unsigned)opt.rooms], messages[room]);
            sent[room]++;
        }
        int64_t frames = pump(epoll, (int)(STALL_S * 1000), NULL);
        if (frames < 0) fail("messages to a room did not arrive");
        missing -= frames;
        delivered += (uint64_t)frames;
    }
    print_costs(start, delivered);
    collect(epoll, missing);
    settle(epoll);
    for (int i = 0; i < opt.connections; i++)
        if (clients[i].frames != sent[i % opt.rooms]) fail("a client got more or fewer messages than its room");
}

static struct { double broadcast_end, worst_quiet, worst_busy; uint64_t quiet, busy; } fair;

// An echo counts as busy if any part of its way fell into a broadcast.
static void time_echo(Client *client, unsigned frames) {
    if (frames != 1) fail("an echo client got more than its echo");
    double now = wall_s(), waited = now - client->sent_at;
    if (client->sent_at < fair.broadcast_end) {
        fair.busy++;
        if (waited > fair.worst_busy) fair.worst_busy = waited;
    } else {
        fair.quiet++;
        if (waited > fair.worst_quiet) fair.worst_quiet = waited;
    }
    client->sent_at = now;
    send_frame(client, messages[0]);
}

// The echo clients have an epoll of their own, looked at after every few broadcast frames: what they wait for
// is the server, not this program.
static int64_t pump_fair(int broadcast_epoll, int echo_epoll, int both, int timeout_ms) {
    struct epoll_event events[32];
    if (epoll_wait(both, events, 2, timeout_ms) == 0) return -1;
    int64_t frames = 0;
    int ready;
    do {
        pump(echo_epoll, 0, time_echo);
        ready = epoll_wait(broadcast_epoll, events, 32, 0);
        for (int i = 0; i < ready; i++) frames += drain(events[i].data.ptr);
    } while (ready == 32);
    return frames;
}

static void run_fairness(void) {
    int broadcast_epoll = epoll_create1(0), echo_epoll = epoll_create1(0), both = epoll_create1(0);
    struct epoll_event readable = {.events = EPOLLIN};
    epoll_ctl(both, EPOLL_CTL_ADD, broadcast_epoll, &readable);
    epoll_ctl(both, EPOLL_CTL_ADD, echo_epoll, &readable);
    open_clients(broadcast_epoll, 0, opt.connections, opt.path);
    open_clients(echo_epoll, opt.connections, opt.echo_clients, opt.echo_path);
    settle(broadcast_epoll);
    double *took = calloc((size_t)opt.rounds, sizeof *took), *worst = calloc((size_t)opt.rounds, sizeof *worst);
    double *ratio = calloc((size_t)opt.rounds, sizeof *ratio), worst_quiet = 0;
    double *alone = calloc((size_t)opt.rounds, sizeof *alone);
    for (int round = -1; round < opt.rounds; round++) {     // one to warm up; without echoes, for comparison
        double began = wall_s();
        fan_out_once(broadcast_epoll, messages[0]);
        if (round >= 0) alone[round] = wall_s() - began;
        usleep(20000);
    }
    for (int i = 0; i < opt.echo_clients; i++) {
        Client *client = &clients[opt.connections + i];
        client->sent_at = wall_s();
        send_frame(client, messages[0]);
    }
    for (int round = 0; round < opt.rounds; round++) {
        for (double end = wall_s() + 0.1; wall_s() < end;) pump_fair(broadcast_epoll, echo_epoll, both, 1000);
        fair.worst_busy = 0;
        fair.broadcast_end = 1e300;
        double began = wall_s();
        send_frame(&clients[0], messages[0]);
        for (int64_t missing = opt.connections; missing > 0;) {
            int64_t frames = pump_fair(broadcast_epoll, echo_epoll, both, (int)(STALL_S * 1000));
            if (frames < 0) fail("messages of a broadcast did not arrive");
            missing -= frames;
        }
        fair.broadcast_end = wall_s();
        for (double end = wall_s() + 0.1; wall_s() < end;) pump_fair(broadcast_epoll, echo_epoll, both, 1000);
        took[round] = fair.broadcast_end - began;
        worst[round] = fair.worst_busy;
        ratio[round] = worst[round] / took[round];
        if (round == 0) worst_quiet = fair.worst_quiet;
    }
    collect(echo_epoll, opt.echo_clients);
    size_t n = (size_t)opt.rounds;
    sort_doubles(alone, n), sort_doubles(took, n), sort_doubles(worst, n), sort_doubles(ratio, n);
    printf("\"rounds\": %zu, \"fanout_ms\": %.3f, \"fanout_alone_ms\": %.3f, \"worst_echo_ms\": %.3f, "
           "\"worst_echo_ms_max\": %.3f, \"ratio\": %.4f, \"ratio_max\": %.4f, \"quiet_worst_echo_ms\": %.3f, "
           "\"busy_echoes\": %llu, \"quiet_echoes\": %llu",
           n, quantile(took, n, 0.5) * 1e3, quantile(alone, n, 0.5) * 1e3, quantile(worst, n, 0.5) * 1e3,
           worst[n - 1] * 1e3, quantile(ratio, n, 0.5), ratio[n - 1], worst_quiet * 1e3,
           (unsigned long long)fair.busy, (unsigned long long)fair.quiet);
}

static void run_connect(int epoll, bool idle) {
    long before = idle ? process_memory_kib(opt.server) : 0;
    Reading start = read_meters();
    open_clients(epoll, 0, opt.connections, opt.path);
    print_costs(start, (uint64_t)opt.connections);
    if (!idle) return;
    settle(epoll);
    sleep(2);
    long grown = process_memory_kib(opt.server) - before;
    printf(", \"kib_before\": %ld, \"kib_grown\": %ld, \"bytes_per_connection\": %.0f", before, grown,
           (double)grown * 1024 / opt.connections);
}

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"port", 1, NULL, 'p'}, {"server-pid", 1, NULL, 'S'}, {"path", 1, NULL, 'u'}, {"echo-path", 1, NULL, 'U'},
        {"connections", 1, NULL, 'n'}, {"echo-clients", 1, NULL, 'e'}, {"size", 1, NULL, 's'},
        {"message", 1, NULL, 'm'}, {"burst", 1, NULL, 'b'}, {"pipeline", 1, NULL, 'l'}, {"seconds", 1, NULL, 't'},
        {"rounds", 1, NULL, 'r'}, {"in-flight", 1, NULL, 'f'}, {"rooms", 1, NULL, 'R'}, {"hello", 1, NULL, 'h'},
        {"ping", 1, NULL, 'i'}, {"pong", 1, NULL, 'o'}, {"spin", 1, NULL, 'w'},
        {"senders", 1, NULL, 'd'}, {NULL, 0, NULL, 0}};
    for (int c; (c = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (c) {
        case 'p':
            if (opt.nodes == NODES) fail("too many nodes");
            opt.ports[opt.nodes++] = atoi(optarg);
            break;
        case 'S': opt.server = atoi(optarg); break;
        case 'u': opt.path = optarg; break;
        case 'U': opt.echo_path = optarg; break;
        case 'n': opt.connections = atoi(optarg); break;
        case 'e': opt.echo_clients = atoi(optarg); break;
        case 's': opt.size = atoi(optarg); break;
        case 'm': opt.message = optarg; break;
        case 'b': opt.burst = atoi(optarg); break;
        case 'l': opt.pipeline = atoi(optarg); break;
        case 't': opt.seconds = atof(optarg); break;
        case 'r': opt.rounds = atoi(optarg); break;
        case 'f': opt.in_flight = atoi(optarg); break;
        case 'R': opt.rooms = atoi(optarg); break;
        case 'h':
            if (opt.hellos == HELLOS) fail("too many hellos");
            opt.hello[opt.hellos++] = optarg;
            break;
        case 'i': opt.ping = optarg; break;
        case 'o': opt.pong = optarg; break;
        case 'd': opt.senders = atoi(optarg); break;
        case 'w': opt.spin = atoi(optarg); break;
        default: fail("see the head of loadgen.c");
        }
    }
    if (!opt.ping != !opt.pong) fail("--ping and --pong go together");
    if (!opt.nodes || opt.server <= 0) fail("--port and --server-pid are needed");
    for (int node = 0; node < opt.nodes; node++)
        if (opt.ports[node] <= 0) fail("--port is no number");
    if (opt.connections % opt.nodes) fail("--connections must be a multiple of the nodes");
    if (opt.connections < 1 || opt.senders < 1 || opt.echo_clients < 1 || opt.rooms < 1 || opt.size < 0 ||
        opt.burst < 1 || opt.pipeline < 1 || opt.rounds < 1 || opt.in_flight < 1)
        fail("a count below one");
}

int main(int argc, char **argv) {
    if (argc < 2) fail("see the head of loadgen.c");
    const char *mode = argv[1];
    parse_options(argc - 1, argv + 1);
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);

    clients = calloc((size_t)(opt.connections + opt.echo_clients), sizeof *clients);
    char *filler = calloc((size_t)opt.size + 1, 1);
    memset(filler, 'x', (size_t)opt.size);
    messages = make_frames(opt.message ? opt.message : filler);
    for (int k = 0; k < opt.hellos; k++) hellos[k] = make_frames(opt.hello[k]);
    if (opt.ping) {
        client_ping_len = strlen(opt.ping);
        pong = make_frame(opt.pong, 0);
    }

    int epoll = epoll_create1(0);
    printf("{");
    if (!strcmp(mode, "fanout")) run_fanout(epoll);
    else if (!strcmp(mode, "echo")) run_echo(epoll);
    else if (!strcmp(mode, "rooms")) run_rooms(epoll);
    else if (!strcmp(mode, "fairness")) run_fairness();
    else if (!strcmp(mode, "connect")) run_connect(epoll, false);
    else if (!strcmp(mode, "idle")) run_connect(epoll, true);
    else fail("no such mode");
    printf("}\n");
    return 0;
}
