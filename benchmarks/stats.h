/* Histograms of durations, and what a process has used of the machine. */
#ifndef STATS_H
#define STATS_H

#include <stdint.h>
#include <stdio.h>

/* Log-linear, in nanoseconds: 64 steps for each doubling, so 1.6 % wide. */
#define STEPS 64
#define DOUBLINGS 36

struct histogram {
    uint64_t counts[DOUBLINGS * STEPS];
    uint64_t total, max;
};

void histogram_add(struct histogram *histogram, uint64_t ns);
/* In milliseconds; 0 of an empty one. */
double histogram_at(const struct histogram *histogram, double part);
/* As a JSON object of milliseconds. */
void histogram_print(FILE *file, const struct histogram *histogram);

/* Seconds of CPU that a process has used, all its threads; -1: unknown. */
double process_cpu(int pid);
double own_cpu(void);
/* KiB of memory, exactly; -1: unknown. */
long process_rss(int pid);

#endif
