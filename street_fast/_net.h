/* Socket calls of the flush, and clocks: no Python, safe without the GIL. A negative result is -errno. */
#ifndef STREET_FAST_NET_H
#define STREET_FAST_NET_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

typedef struct {
    const char *data;
    size_t size;
    int64_t taken; /* out: bytes that the kernel took, or -errno */
    int fd;
} sf_job;

#ifdef _WIN32
/* No direct writes on Windows: its transports own their handles through overlapped I/O. */
#include <windows.h>
#define SF_DIRECT 0
#define SF_IOV_MAX 1
typedef struct { void *iov_base; size_t iov_len; } sf_iovec;
static inline int64_t sf_send(int fd, const void *data, size_t size) { (void)fd; (void)data; (void)size; return -EINVAL; }
static inline int64_t sf_writev(int fd, sf_iovec *parts, int count) { (void)fd; (void)parts; (void)count; return -EINVAL; }
static inline void sf_user_timeout(int fd, unsigned ms) { (void)fd; (void)ms; }
static inline double sf_now(void) {
    LARGE_INTEGER count, per_second;
    QueryPerformanceCounter(&count);
    QueryPerformanceFrequency(&per_second);
    return (double)count.QuadPart / (double)per_second.QuadPart;
}
static inline double sf_now_coarse(void) { return sf_now(); }
#else
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/uio.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif
#define SF_DIRECT 1
#define SF_IOV_MAX 64
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 /* macOS; Python ignores SIGPIPE */
#endif
typedef struct iovec sf_iovec;

static inline int64_t sf_send(int fd, const void *data, size_t size) {
    ssize_t n;
#ifdef SYS_sendto
    /* glibc's send() is a cancellation point, which costs a few per cent of it once there are threads. */
    do n = syscall(SYS_sendto, fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL, NULL, 0);
#else
    do n = send(fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
#endif
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

static inline int64_t sf_writev(int fd, sf_iovec *parts, int count) {
    struct msghdr message = {0};
    ssize_t n;
    message.msg_iov = parts;
    message.msg_iovlen = count;
    do n = sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : n;
}

/* RFC 5482: how long sent data may stay unacknowledged before the kernel gives up. */
static inline void sf_user_timeout(int fd, unsigned ms) {
#ifdef TCP_USER_TIMEOUT
    (void)setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &ms, sizeof ms);
#else
    (void)fd;
    (void)ms;
#endif
}

static inline double sf_clock(clockid_t id) {
    struct timespec t;
    clock_gettime(id, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
static inline double sf_now(void) { return sf_clock(CLOCK_MONOTONIC); }
/* A few milliseconds coarse and several times cheaper; on the same scale as sf_now(). */
static inline double sf_now_coarse(void) {
#ifdef CLOCK_MONOTONIC_COARSE
    return sf_clock(CLOCK_MONOTONIC_COARSE);
#else
    return sf_now();
#endif
}
#endif

/* Milliseconds since 1970. */
static inline int64_t sf_unix_ms(void) {
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static inline int sf_would_block(int64_t taken) { return taken == -EAGAIN || taken == -EWOULDBLOCK; }

/* Sends each job once, until the clock passes `deadline`. Returns the number of jobs done. */
static inline int sf_run(sf_job *jobs, int count, double deadline) {
    int i;
    for (i = 0; i < count; i++) {
        if ((i & 15) == 15 && sf_now() >= deadline) break;
        jobs[i].taken = sf_send(jobs[i].fd, jobs[i].data, jobs[i].size);
    }
    return i;
}

#endif
