/* The modes that open and end sessions. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "load.h"

static int opened;

/* open: connect until initialize is answered, `lanes` at a time. */

static int keep, started, finished_opens, deletes;
static uint64_t last_opened;
static struct histogram *parts;
#define PARTS 10

static void open_next(struct session *session)
{
    if (started < options.total) {
        started++;
        session_open(session);
    }
}

static void end_session(struct session *session)
{
    if (sessions.streamable && strcmp(options.close, "delete") == 0) {
        deletes++;
        session_delete(session);
        return;
    }
    session_close(session, strcmp(options.close, "rst") == 0);
    open_next(session);
}

static void open_initialized(struct session *session)
{
    last_opened = now_ns();
    histogram_add(&latency, last_opened - session->opened_at);
    histogram_add(&parts[(int64_t)opened * PARTS / options.total], last_opened - session->opened_at);
    opened++;
    if (!keep) {
        finished_opens++;
        end_session(session);
    }
}

static void open_ready(struct session *session)
{
    (void)session;
    finished_opens++;
    if (keep && started < options.total) {
        session = &sessions.all[started];
        open_next(session);
    }
}

static void open_done(struct slot *slot, uint64_t elapsed)
{
    (void)elapsed;
    deletes--;
    session_close(slot->session, 0);
    open_next(slot->session);
}

static void open_failed(struct slot *slot)
{
    (void)slot;
}

static void open_dead(struct session *session)
{
    dead++;
    finished_opens++;
    session_close(session, 0);
    if (keep && started < options.total)
        session = &sessions.all[started];
    else if (keep)
        return;
    open_next(session);
}

static const struct mode_calls open_calls = {open_initialized, open_ready, open_done, open_failed,
                                             open_dead};

int mode_open(void)
{
    int lanes = options.lanes < options.total ? options.lanes : options.total;
    uint64_t start;
    double seconds, server_cpu = process_cpu(options.pid);
    keep = strcmp(options.after, "keep") == 0;
    parts = calloc(PARTS, sizeof *parts);
    if (parts == NULL)
        return 3;
    sessions_start(keep ? options.total : lanes, 1, 16, &open_calls);
    start = last_opened = now_ns();
    for (int i = 0; i < lanes; i++)
        open_next(&sessions.all[i]);
    while (in_time() && (finished_opens < options.total || deletes > 0))
        net_turn(deadline);
    seconds = (double)((keep ? last_opened : now_ns()) - start) / SECOND;
    server_cpu = process_cpu(options.pid) - server_cpu;
    if (keep)
        hold();
    print_begin();
    printf(", \"opened\": %d, \"lanes\": %d, \"kept\": %s, \"seconds\": %.4f, \"rate\": %.2f"
           ", \"server_cpu_us\": %.1f, \"parts_p50_ms\": [",
           opened, lanes, keep ? "true" : "false", seconds, (double)opened / seconds,
           opened ? server_cpu * 1e6 / opened : 0);
    for (int i = 0; i < PARTS; i++)
        printf("%s%.4f", i ? ", " : "", histogram_at(&parts[i], 0.5));
    printf("]");
    print_histogram("latency_ms", &latency);
    print_end();
    return 0;
}

/* close: the client is gone; until its backend is. */

struct ending {
    struct watch watch; /* first: the loop gives it back */
    struct session *session;
    int pid;
    uint64_t gone_at;
};

static struct histogram reaped;
static struct ending *endings;
static int ended, never, survivors[1000], never_reaped;
static const char *how;

static void close_next(struct session *session)
{
    if (started < options.total) {
        started++;
        session_open(session);
    }
}

static void wait_reaped(struct ending *ending)
{
    uint64_t stop = now_ns() + SECOND / 2;
    while (kill(ending->pid, 0) == 0) {
        if (now_ns() > stop) {
            never_reaped++;
            return;
        }
        poll(NULL, 0, 0);
    }
    histogram_add(&reaped, now_ns() - ending->gone_at);
}

static void backend_gone(struct watch *watch)
{
    struct ending *ending = (struct ending *)watch;
    histogram_add(&latency, now_ns() - ending->gone_at);
    if (options.lanes == 1)
        wait_reaped(ending);
    watch_remove(watch);
    close(watch->fd);
    watch->fd = -1;
    ended++;
    /* The answer to a DELETE may still be under way. */
    session_close(ending->session, 0);
    close_next(ending->session);
}

static void close_ready(struct session *session)
{
    slot_call(&session->slots[0], options.tool, "{}");
}

static void leave(struct ending *ending)
{
    struct session *session = ending->session;
    ending->gone_at = now_ns();
    if (strcmp(how, "delete") == 0)
        session_delete(session);
    else
        session_close(session, strcmp(how, "rst") == 0);
}

static void close_done(struct slot *slot, uint64_t elapsed)
{
    struct session *session = slot->session;
    struct ending *ending = &endings[session->index];
    (void)elapsed;
    if (ending->watch.fd >= 0) {
        /* the DELETE is answered */
        session_close(session, 0);
        return;
    }
    ending->session = session;
    ending->pid = (int)session->number;
    ending->watch.fd = (int)syscall(SYS_pidfd_open, ending->pid, 0);
    ending->watch.ready = backend_gone;
    if (ending->watch.fd < 0 || watch_add(&ending->watch) < 0) {
        sessions.counts.unexpected++;
        ended++;
        return;
    }
    if (options.pause > 0)
        run_until(after(options.pause));
    leave(ending);
}

static void close_failed(struct slot *slot)
{
    (void)slot;
    ended++;
}

static void close_dead(struct session *session)
{
    (void)session;
    dead++;
    ended++;
}

static const struct mode_calls close_calls = {on_initialized, close_ready, close_done,
                                              close_failed, close_dead};

static void give_up(int lanes)
{
    uint64_t now = now_ns();
    for (int i = 0; i < lanes; i++) {
        struct ending *ending = &endings[i];
        if (ending->watch.fd < 0 || ending->gone_at == 0
            || now - ending->gone_at < (uint64_t)(options.patience * (double)SECOND))
            continue;
        if (never < (int)(sizeof survivors / sizeof *survivors))
            survivors[never] = ending->pid;
        never++;
        ended++;
        watch_remove(&ending->watch);
        close(ending->watch.fd);
        ending->watch.fd = -1;
        session_close(ending->session, 0);
        close_next(ending->session);
    }
}

int mode_close(void)
{
    int lanes = options.lanes < options.total ? options.lanes : options.total;
    how = options.close;
    endings = calloc((size_t)lanes, sizeof *endings);
    if (endings == NULL)
        return 3;
    for (int i = 0; i < lanes; i++)
        endings[i].watch.fd = -1;
    sessions_start(lanes, 1, 16, &close_calls);
    for (int i = 0; i < lanes; i++)
        close_next(&sessions.all[i]);
    while (in_time() && ended < options.total) {
        net_turn(after(0.05));
        give_up(lanes);
    }
    print_begin();
    printf(", \"how\": \"%s\", \"gone\": %d, \"never\": %d, \"never_reaped\": %d, \"patience\": "
           "%.1f, \"survivors\": [",
           how, (int)latency.total, never, never_reaped, options.patience);
    for (int i = 0; i < never && i < (int)(sizeof survivors / sizeof *survivors); i++)
        printf("%s%d", i ? ", " : "", survivors[i]);
    printf("]");
    print_histogram("gone_ms", &latency);
    print_histogram("reaped_ms", &reaped);
    print_end();
    return 0;
}

/* exit: how long a backend itself needs from end of file to its exit. */

int mode_exit(char **command)
{
    for (int i = 0; i < options.total; i++) {
        int to[2], from[2];
        pid_t pid;
        uint64_t start;
        struct pollfd poll_exit = {.events = POLLIN};
        char line[] = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}\n", answer[256];
        if (pipe(to) < 0 || pipe(from) < 0 || (pid = fork()) < 0)
            return 3;
        if (pid == 0) {
            dup2(to[0], 0);
            dup2(from[1], 1);
            close(to[0]), close(to[1]), close(from[0]), close(from[1]);
            execv(command[0], command);
            _exit(127);
        }
        close(to[0]);
        close(from[1]);
        if (write(to[1], line, sizeof line - 1) < 0 || read(from[0], answer, sizeof answer) <= 0)
            return 3;
        poll_exit.fd = (int)syscall(SYS_pidfd_open, pid, 0);
        start = now_ns();
        close(to[1]);
        poll(&poll_exit, 1, 5000);
        histogram_add(&latency, now_ns() - start);
        close(poll_exit.fd);
        close(from[0]);
        waitpid(pid, NULL, 0);
    }
    printf("{\"mode\": \"exit\"");
    print_histogram("gone_ms", &latency);
    printf("}\n");
    return 0;
}
