/* What the modes of the load generator share. */
#ifndef LOAD_H
#define LOAD_H

#include "session.h"
#include "stats.h"

#define SECOND 1000000000ull

struct options {
    int port, sessions, outstanding, lanes, total, count, pid, fifo, connections, length;
    int pick, tls;
    double seconds, warmup, timeout, pace, refusals, patience, pause;
    long bytes;
    const char *close, *after, *path, *mode, *tool;
};

extern struct options options;
extern struct histogram latency;
extern uint64_t deadline;
extern int ready, dead, sending, measuring, realtime;
extern int64_t requests, late;
extern const struct mode_calls echo_calls, stream_calls_of_mode;
extern int stream_over;

int in_time(void);
uint64_t after(double seconds);
void run_until(uint64_t when);
void print_begin(void);
void print_end(void);
void print_histogram(const char *name, const struct histogram *histogram);

/* Opens all sessions, `lanes` at a time; 0 where that fails. */
int open_all(void);
/* Calls again and again. */
void start_ticks(double seconds, void (*call)(void));
void change_ticks(void (*call)(void));
double tick_seconds(double rate);
/* Says that all is in place, and stays until a line comes or the time is over. */
void hold(void);

void start_echo(void);
void pace_echo(void);
void ask_for_stream(struct session *session);
void on_initialized(struct session *session);
void on_dead(struct session *session);

/* The modes. */
int mode_open(void);
int mode_close(void);
int mode_exit(char **command);
int mode_refuse(void);
int mode_probe(void);
int mode_connections(void);
int mode_slow_reader(void);
int mode_slow_backend(void);

#endif
