// meter: clocks and the memory of another process. Seconds are doubles; nothing here allocates.
#ifndef METER_H
#define METER_H
#include <stddef.h>
#include <sys/types.h>

double wall_s(void);                   // monotonic time
double own_cpu_s(void);                // CPU time of this process
double process_cpu_s(pid_t pid);       // CPU time of another process, all its threads; exits if there is none
long process_memory_kib(pid_t pid);    // anonymous pages: heap, stacks, written data; no pages of files
void sort_doubles(double *values, size_t n);
double quantile(const double *sorted, size_t n, double q);

#endif
