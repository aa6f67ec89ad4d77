#define _GNU_SOURCE
#include "meter.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double read_clock(clockid_t clock) {
    struct timespec t;
    if (clock_gettime(clock, &t)) { perror("clock_gettime"); exit(1); }
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

double wall_s(void) { return read_clock(CLOCK_MONOTONIC); }

double own_cpu_s(void) { return read_clock(CLOCK_PROCESS_CPUTIME_ID); }

double process_cpu_s(pid_t pid) {
    clockid_t clock;
    if (clock_getcpuclockid(pid, &clock)) { fprintf(stderr, "no process %d\n", (int)pid); exit(1); }
    return read_clock(clock);
}

long process_memory_kib(pid_t pid) {
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", (int)pid);
    FILE *file = fopen(path, "r");
    if (!file) { perror(path); exit(1); }
    long kib = -1;
    while (kib < 0 && fgets(line, sizeof line, file)) sscanf(line, "Anonymous: %ld kB", &kib);
    fclose(file);
    return kib;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void sort_doubles(double *values, size_t n) { qsort(values, n, sizeof *values, by_value); }

double quantile(const double *sorted, size_t n, double q) {
    if (n == 0) return 0;
    size_t i = (size_t)(q * (double)(n - 1) + 0.5);
    return sorted[i];
}
