#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "stats.h"

static unsigned bucket_of(uint64_t ns)
{
    unsigned doubling;
    if (ns < STEPS)
        return (unsigned)ns;
    doubling = 63u - (unsigned)__builtin_clzll(ns) - 5u;
    if (doubling >= DOUBLINGS)
        return DOUBLINGS * STEPS - 1;
    /* ns >> (doubling - 1) lies between STEPS and 2 * STEPS. */
    return doubling * STEPS + (unsigned)(ns >> (doubling - 1)) - STEPS;
}

static double middle_of(unsigned bucket)
{
    unsigned doubling = bucket / STEPS;
    double width;
    if (doubling == 0)
        return bucket;
    width = (double)(1ull << (doubling - 1));
    return ((double)(bucket % STEPS) + STEPS + 0.5) * width;
}

void histogram_add(struct histogram *histogram, uint64_t ns)
{
    histogram->counts[bucket_of(ns)]++;
    histogram->total++;
    if (ns > histogram->max)
        histogram->max = ns;
}

double histogram_at(const struct histogram *histogram, double part)
{
    uint64_t wanted = (uint64_t)(part * (double)histogram->total), seen = 0;
    if (histogram->total == 0)
        return 0;
    if (wanted >= histogram->total)
        wanted = histogram->total - 1;
    for (unsigned i = 0; i < DOUBLINGS * STEPS; i++) {
        seen += histogram->counts[i];
        if (seen > wanted) {
            double ns = middle_of(i);
            return (ns > (double)histogram->max ? (double)histogram->max : ns) / 1e6;
        }
    }
    return (double)histogram->max / 1e6;
}

void histogram_print(FILE *file, const struct histogram *histogram)
{
    fprintf(file,
            "{\"count\": %llu, \"p50\": %.4f, \"p90\": %.4f, \"p99\": %.4f, \"p999\": %.4f, "
            "\"max\": %.4f}",
            (unsigned long long)histogram->total, histogram_at(histogram, 0.5),
            histogram_at(histogram, 0.9), histogram_at(histogram, 0.99),
            histogram_at(histogram, 0.999), (double)histogram->max / 1e6);
}

double process_cpu(int pid)
{
    char path[64], text[1024];
    unsigned long user, system;
    const char *behind;
    FILE *file;
    size_t len;
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    file = fopen(path, "r");
    if (file == NULL)
        return -1;
    len = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[len] = 0;
    behind = strrchr(text, ')');
    if (behind == NULL
        || sscanf(behind + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                  &system) != 2)
        return -1;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

double own_cpu(void)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec)
        + (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

long process_rss(int pid)
{
    char path[64], line[256];
    long kib = -1;
    FILE *file;
    snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
    file = fopen(path, "r");
    if (file == NULL)
        return -1;
    while (fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, "Rss: %ld kB", &kib) == 1)
            break;
    fclose(file);
    return kib;
}
