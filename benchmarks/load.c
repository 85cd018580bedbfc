/* The load generator.
 *
 * load MODE --port N [--NAME VALUE ...]; prints one JSON object.  See
 * README.md for the modes and their options.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "load.h"

struct options options = {
    .sessions = 1, .outstanding = 1, .lanes = 8, .total = 100, .count = 100000,
    .connections = 4, .length = 0, .seconds = 2, .warmup = 0.3, .timeout = 60, .patience = 5,
    .bytes = 32, .close = "fin", .after = "close", .path = "/nothing", .tool = "pid",
};

struct histogram latency;
uint64_t deadline;
int ready, dead, sending, measuring, realtime;
int64_t requests, late;
static int opened, next_session, opening;

static void arm_deadline(void)
{
    deadline = now_ns() + (uint64_t)(options.timeout * (double)SECOND);
}

int in_time(void)
{
    return now_ns() < deadline;
}

void run_until(uint64_t when)
{
    if (when > deadline)
        when = deadline;
    while (now_ns() < when)
        net_turn(when);
}

uint64_t after(double seconds)
{
    return now_ns() + (uint64_t)(seconds * (double)SECOND);
}

/* Printing. */

void print_begin(void)
{
    printf("{\"mode\": \"%s\", \"transport\": \"%s\"", options.mode,
           sessions.modern ? "modern" : sessions.streamable ? "streamable" : "sse");
}

void print_end(void)
{
    const struct counts *c = &sessions.counts;
    printf(", \"leaks\": %" PRId64 ", \"reconnects\": %" PRId64 ", \"dead_sessions\": %d"
           ", \"errors\": {\"connect\": %" PRId64 ", \"http\": %" PRId64 ", \"rpc\": %" PRId64
           ", \"payload\": %" PRId64 ", \"lost\": %" PRId64 ", \"stream\": %" PRId64
           ", \"unexpected\": %" PRId64 ", \"order\": %" PRId64 "}, \"sample\": \"%s\""
           ", \"timed_out\": %s}\n",
           c->leaks, c->reconnects, dead, c->connect_errors, c->http_errors, c->rpc_errors,
           c->payload_errors, c->lost, c->streams_ended, c->unexpected, c->order_errors,
           c->sample, in_time() ? "false" : "true");
    fflush(stdout);
}

void print_histogram(const char *name, const struct histogram *histogram)
{
    printf(", \"%s\": ", name);
    histogram_print(stdout, histogram);
}

/* What most modes share: open all sessions, `lanes` of them at a time. */

static void open_more(void)
{
    while (opening < options.lanes && next_session < options.sessions) {
        opening++;
        session_open(&sessions.all[next_session++]);
    }
}

void on_initialized(struct session *session)
{
    (void)session;
    opened++;
}

static void on_ready(struct session *session)
{
    (void)session;
    ready++;
    opening--;
    open_more();
}

void on_dead(struct session *session)
{
    (void)session;
    dead++;
    if (opening > 0 && ready < options.sessions)
        opening--;
    open_more();
}

int open_all(void)
{
    open_more();
    while (in_time() && ready + dead < options.sessions)
        net_turn(deadline);
    return ready == options.sessions;
}

/* A timer for what is paced. */

static struct watch ticker;
static void (*on_tick)(void);

static void tick(struct watch *watch)
{
    uint64_t times;
    if (read(watch->fd, &times, sizeof times) == sizeof times && on_tick != NULL)
        on_tick();
}

void start_ticks(double seconds, void (*call)(void))
{
    uint64_t ns = (uint64_t)(seconds * (double)SECOND);
    struct itimerspec spec = {{(time_t)(ns / SECOND), (long)(ns % SECOND)},
                              {(time_t)(ns / SECOND), (long)(ns % SECOND)}};
    ticker.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    ticker.ready = tick;
    on_tick = call;
    timerfd_settime(ticker.fd, 0, &spec, NULL);
    watch_add(&ticker);
}

double tick_seconds(double rate)
{
    double seconds = rate > 0 ? 1 / rate : 0.001;
    return seconds < 0.0005 ? 0.0005 : seconds;
}

void change_ticks(void (*call)(void))
{
    on_tick = call;
}

static int told_to_go;

static void told(struct watch *watch)
{
    char byte;
    if (read(watch->fd, &byte, 1) <= 0 || byte == '\n') {
        told_to_go = 1;
        watch_remove(watch);
    }
}

void hold(void)
{
    static struct watch input = {STDIN_FILENO, told};
    printf("holding\n");
    fflush(stdout);
    if (watch_add(&input) < 0)
        return;
    while (in_time() && !told_to_go)
        net_turn(deadline);
}

/* echo: S sessions with K requests outstanding; latency is its case 1 × 1. */

static uint64_t pace_start;
static int64_t paced;
/* All that were answered, also before and after the time that is measured. */
static int64_t answered;

static void echo_done(struct slot *slot, uint64_t elapsed)
{
    answered++;
    if (measuring) {
        requests++;
        histogram_add(&latency, elapsed);
    }
    if (sending && options.pace == 0 && slot->session->alive)
        slot_echo(slot, (size_t)options.bytes);
}

static void echo_failed(struct slot *slot)
{
    if (sending && options.pace == 0 && slot->session->alive)
        slot_echo(slot, (size_t)options.bytes);
}

void pace_echo(void)
{
    int64_t due = (int64_t)((double)(now_ns() - pace_start) / (double)SECOND * options.pace);
    int slots = options.sessions * options.outstanding;
    if (!sending)
        return;
    for (; paced < due; paced++) {
        int tried = 0;
        for (; tried < slots; tried++) {
            int index = options.pick++ % slots;
            struct session *session = &sessions.all[index / options.outstanding];
            struct slot *slot = &session->slots[index % options.outstanding];
            if (session->alive && slot->purpose == IDLE) {
                slot_echo(slot, (size_t)options.bytes);
                break;
            }
        }
        if (tried == slots)
            late++;
    }
}

const struct mode_calls echo_calls = {on_initialized, on_ready, echo_done, echo_failed,
                                             on_dead};

static int unanswered(void)
{
    int left = 0;
    for (int i = 0; i < options.sessions; i++)
        for (int k = 0; k < options.outstanding; k++)
            left += sessions.all[i].slots[k].purpose == CALL;
    return left;
}

void start_echo(void)
{
    sending = 1;
    if (options.pace > 0) {
        pace_start = now_ns();
        start_ticks(tick_seconds(options.pace), pace_echo);
        return;
    }
    for (int i = 0; i < options.sessions; i++)
        for (int k = 0; k < options.outstanding; k++)
            if (sessions.all[i].alive)
                slot_echo(&sessions.all[i].slots[k], (size_t)options.bytes);
}

/* As clients do when they are done; what is not answered in time is left. */
static void delete_all(void)
{
    uint64_t stop = after(options.patience);
    int left;
    for (int i = 0; i < options.sessions; i++)
        if (sessions.all[i].alive && sessions.all[i].id[0] != 0
            && sessions.all[i].slots[0].purpose == IDLE)
            session_delete(&sessions.all[i]);
    for (;;) {
        left = 0;
        for (int i = 0; i < options.sessions; i++)
            left += sessions.all[i].slots[0].purpose == DELETE;
        if (left == 0 || now_ns() >= stop)
            return;
        net_turn(stop);
    }
}

static int mode_echo(void)
{
    double cpu, server_cpu, seconds;
    uint64_t start, drained;
    long rss = process_rss(options.pid);
    int all;
    sessions_start(options.sessions, options.outstanding, (size_t)options.bytes, &echo_calls);
    start = now_ns();
    all = open_all();
    seconds = (double)(now_ns() - start) / SECOND;
    /* Memory of idle sessions is looked at when all have settled. */
    if (options.pause > 0)
        run_until(after(options.pause));
    print_begin();
    printf(", \"opened\": %d, \"open_seconds\": %.4f, \"rss_before_kib\": %ld, \"rss_open_kib\": %ld"
           ", \"realtime\": %s",
           ready, seconds, rss, process_rss(options.pid), realtime ? "true" : "false");
    if (all) {
        start_echo();
        run_until(after(options.warmup));
        cpu = own_cpu();
        server_cpu = process_cpu(options.pid);
        measuring = 1;
        start = now_ns();
        run_until(after(options.seconds));
        measuring = 0;
        seconds = (double)(now_ns() - start) / SECOND;
        cpu = own_cpu() - cpu;
        server_cpu = process_cpu(options.pid) - server_cpu;
        sending = 0;
        for (drained = after(options.patience); now_ns() < drained && unanswered() > 0;)
            net_turn(drained);
        printf(", \"sessions\": %d, \"outstanding\": %d, \"bytes\": %ld, \"seconds\": %.4f"
               ", \"requests\": %" PRId64 ", \"rate\": %.2f, \"late\": %" PRId64
               ", \"answered\": %" PRId64 ", \"unanswered\": %d, \"own_cpu_us\": %.3f, \"server_cpu_us\": %.3f"
               ", \"own_load\": %.3f, \"server_load\": %.3f",
               options.sessions, options.outstanding, options.bytes, seconds, requests,
               (double)requests / seconds, late, answered, unanswered(),
               requests ? cpu * 1e6 / (double)requests : 0,
               requests ? server_cpu * 1e6 / (double)requests : 0, cpu / seconds,
               server_cpu / seconds);
    }
    print_histogram("latency_ms", &latency);
    print_end();
    delete_all();
    return 0;
}

/* stream: notifications per second to a client that reads. */

int stream_over;

static void stream_done(struct slot *slot, uint64_t elapsed)
{
    (void)slot;
    (void)elapsed;
    stream_over = 1;
}

static void stream_failed(struct slot *slot)
{
    (void)slot;
    stream_over = 1;
}

const struct mode_calls stream_calls_of_mode = {on_initialized, on_ready, stream_done,
                                              stream_failed, on_dead};

void ask_for_stream(struct session *session)
{
    char arguments[40];
    snprintf(arguments, sizeof arguments, "{\"count\": %d}", options.count);
    stream_over = 0;
    session->expected_number = 0;
    slot_call(&session->slots[0], "stream", arguments);
}

static int mode_stream(void)
{
    struct session *session;
    double cpu, server_cpu, seconds;
    uint64_t start, stop, quiet;
    int64_t sent = 0, seen;
    sessions.with_get = 1;
    sessions_start(1, 1, 16, &stream_calls_of_mode);
    session = &sessions.all[0];
    options.sessions = 1;
    print_begin();
    if (open_all()) {
        cpu = own_cpu();
        server_cpu = process_cpu(options.pid);
        start = now_ns();
        stop = after(options.seconds);
        while (in_time() && session->alive && now_ns() < stop) {
            ask_for_stream(session);
            sent += options.count;
            while (in_time() && session->alive && !stream_over)
                net_turn(deadline);
            /* The answer may overtake them where it has a stream of its own. */
            seen = session->notifications;
            for (quiet = after(0.5); session->notifications < sent && now_ns() < quiet;) {
                net_turn(quiet);
                if (session->notifications > seen) {
                    seen = session->notifications;
                    quiet = after(0.5);
                }
            }
            if (session->notifications < sent)
                break;
        }
        seconds = (double)(now_ns() - start) / SECOND;
        cpu = own_cpu() - cpu;
        server_cpu = process_cpu(options.pid) - server_cpu;
        printf(", \"sent\": %" PRId64 ", \"notifications\": %" PRId64 ", \"seconds\": %.4f"
               ", \"rate\": %.1f, \"server_cpu_us\": %.3f, \"own_load\": %.3f, \"server_load\": %.3f",
               sent, session->notifications, seconds, (double)session->notifications / seconds,
               session->notifications ? server_cpu * 1e6 / (double)session->notifications : 0,
               cpu / seconds, server_cpu / seconds);
    }
    print_end();
    delete_all();
    return 0;
}

/* The command line. */

static const struct {
    const char *name;
    int *number;
    double *real;
    long *size;
    const char **text;
} names[] = {
    {"--port", &options.port, NULL, NULL, NULL},
    {"--pid", &options.pid, NULL, NULL, NULL},
    {"--sessions", &options.sessions, NULL, NULL, NULL},
    {"--outstanding", &options.outstanding, NULL, NULL, NULL},
    {"--lanes", &options.lanes, NULL, NULL, NULL},
    {"--total", &options.total, NULL, NULL, NULL},
    {"--count", &options.count, NULL, NULL, NULL},
    {"--connections", &options.connections, NULL, NULL, NULL},
    {"--fifo", &options.fifo, NULL, NULL, NULL},
    {"--servers", &sessions.servers, NULL, NULL, NULL},
    {"--tls", &options.tls, NULL, NULL, NULL},
    {"--unsampled", &client_unsampled, NULL, NULL, NULL},
    {"--streamable", &sessions.streamable, NULL, NULL, NULL},
    {"--modern", &sessions.modern, NULL, NULL, NULL},
    {"--spread", NULL, &sessions.spread, NULL, NULL},
    {"--seconds", NULL, &options.seconds, NULL, NULL},
    {"--warmup", NULL, &options.warmup, NULL, NULL},
    {"--timeout", NULL, &options.timeout, NULL, NULL},
    {"--patience", NULL, &options.patience, NULL, NULL},
    {"--pause", NULL, &options.pause, NULL, NULL},
    {"--pace", NULL, &options.pace, NULL, NULL},
    {"--refusals", NULL, &options.refusals, NULL, NULL},
    {"--bytes", NULL, NULL, &options.bytes, NULL},
    {"--close", NULL, NULL, NULL, &options.close},
    {"--after", NULL, NULL, NULL, &options.after},
    {"--tool", NULL, NULL, NULL, &options.tool},
    {"--path", NULL, NULL, NULL, &options.path},
    {"--base", NULL, NULL, NULL, &sessions.base},
    {"--sse-path", NULL, NULL, NULL, &sessions.sse_path},
    {"--mcp-path", NULL, NULL, NULL, &sessions.mcp_path},
    {"--token", NULL, NULL, NULL, &client_token},
};

static int usage(void)
{
    fprintf(stderr, "usage: load MODE --port N [--NAME VALUE ...]\n");
    return 2;
}

static char **read_options(int argc, char **argv)
{
    for (int i = 2; i < argc; i += 2) {
        size_t k = 0;
        if (strcmp(argv[i], "--") == 0)
            return argv + i + 1;
        while (k < sizeof names / sizeof *names && strcmp(argv[i], names[k].name) != 0)
            k++;
        if (k == sizeof names / sizeof *names || i + 1 == argc)
            exit(usage());
        if (names[k].number != NULL)
            *names[k].number = atoi(argv[i + 1]);
        else if (names[k].real != NULL)
            *names[k].real = atof(argv[i + 1]);
        else if (names[k].size != NULL)
            *names[k].size = atol(argv[i + 1]);
        else
            *names[k].text = argv[i + 1];
    }
    return NULL;
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        int (*run)(void);
    } modes[] = {
        {"echo", mode_echo},           {"stream", mode_stream},
        {"open", mode_open},           {"close", mode_close},
        {"refuse", mode_refuse},       {"probe", mode_probe},
        {"connections", mode_connections}, {"slow-reader", mode_slow_reader},
        {"slow-backend", mode_slow_backend},
    };
    struct rlimit files;
    char **command;
    if (argc < 2)
        return usage();
    options.mode = argv[1];
    sessions.base = "";
    sessions.sse_path = "/sse";
    sessions.mcp_path = "/mcp";
    sessions.spread = 0.25;
    command = read_options(argc, argv);
    /* 2026-07-28 is served where Streamable HTTP is. */
    sessions.streamable |= sessions.modern;
    if (options.sessions < 1 || options.outstanding < 1 || options.total < 1 || options.lanes < 1
        || options.connections < 1 || options.bytes < 16)
        return usage();
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN);
    if (options.fifo) {
        struct sched_param priority = {.sched_priority = 10};
        realtime = sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
    }
    net_start(options.port, options.tls);
    arm_deadline();
    if (strcmp(options.mode, "exit") == 0)
        return command != NULL && command[0] != NULL ? mode_exit(command) : usage();
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (strcmp(options.mode, modes[i].name) == 0)
            return modes[i].run();
    return usage();
}
