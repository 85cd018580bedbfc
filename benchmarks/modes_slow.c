/* The modes in which one side does not read. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

/* slow-reader: a client that sleeps while its backend sends. */

static long rss_before, rss_most;

static void look_at_rss(void)
{
    long now = process_rss(options.pid);
    if (now > rss_most)
        rss_most = now;
}

int mode_slow_reader(void)
{
    struct session *session;
    uint64_t received;
    int64_t early;
    sessions.with_get = 1;
    sessions_start(1, 1, 16, &stream_calls_of_mode);
    session = &sessions.all[0];
    print_begin();
    if (open_all()) {
        int count = options.count;
        /* Warm first: what a short stream needs is no growth. */
        options.count = 1000;
        ask_for_stream(session);
        while (in_time() && session->alive && !stream_over)
            net_turn(deadline);
        options.count = count;
        rss_before = rss_most = process_rss(options.pid);
        session->notifications = 0;
        ask_for_stream(session);
        session->stream.paused = 1;
        received = session->stream.received;
        start_ticks(0.02, look_at_rss);
        run_until(after(options.seconds));
        early = session->notifications;
        received = session->stream.received - received;
        /* Awake again: nothing may be missing. */
        if (strcmp(options.after, "keep") == 0)
            conn_resume(&session->stream);
        while (!session->stream.paused && in_time() && session->alive && !stream_over)
            net_turn(deadline);
        printf(", \"count\": %d, \"read_while_asleep\": %" PRId64 ", \"bytes_while_asleep\": %" PRIu64
               ", \"notifications\": %" PRId64 ", \"bytes\": %" PRIu64
               ", \"rss_kib\": %ld, \"rss_most_kib\": %ld",
               count, early, received, session->notifications, session->stream.received,
               rss_before, rss_most);
    }
    print_end();
    return 0;
}

/* slow-backend: one that does not read; posts until they are refused. */

static int refused_status, refused_retry, asking;
static int64_t accepted;

static void flood_start(struct session *session)
{
    (void)session;
}

static void nothing_done(struct slot *slot, uint64_t elapsed)
{
    (void)slot;
    (void)elapsed;
}

static void nothing_failed(struct slot *slot)
{
    (void)slot;
}

static const struct mode_calls flood_calls = {flood_start, flood_start, nothing_done, nothing_failed,
                                              on_dead};
static void flood_answered(struct conn *conn)
{
    asking = 0;
    if (conn->status != 202 && conn->status != 200) {
        refused_status = conn->status;
        refused_retry = conn->retry_after;
        return;
    }
    accepted++;
}

static void flood_head(struct conn *conn)
{
    (void)conn;
}

static void flood_message(struct conn *conn, struct span type, struct span data)
{
    (void)conn;
    (void)type;
    (void)data;
}

static void flood_lost(struct conn *conn, const char *why)
{
    (void)conn;
    (void)why;
    sessions.counts.lost++;
    asking = 0;
}

static const struct conn_calls flood_conn = {flood_head, flood_message, flood_answered,
                                             flood_lost};

int mode_slow_backend(void)
{
    struct session *session;
    struct conn conn;
    struct iovec piece;
    char *text;
    int head;
    size_t size = (size_t)options.bytes;
    uint64_t stop;
    sessions_start(1, 1, 16, &flood_calls);
    session = &sessions.all[0];
    text = malloc(size + 1200);
    if (text == NULL)
        return 3;
    session_open(session);
    while (in_time() && session->path[0] == 0)
        net_turn(deadline);
    conn_init(&conn, &flood_conn, NULL);
    head = snprintf(text, 1200,
                    "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                    "Content-Length: %zu\r\n\r\n{\"jsonrpc\":\"2.0\",\"method\":\"x\",\"params\":"
                    "{\"a\":\"",
                    session->path, net_port(), size);
    {
        const char *body = strstr(text, "\r\n\r\n") + 4;
        size_t before = (size_t)(text + head - body);
        memset(text + head, 'a', size - before - 3);
        memcpy(text + head + size - before - 3, "\"}}", 3);
        piece.iov_base = text;
        piece.iov_len = (size_t)(body - text) + size;
    }
    run_until(after(0.3));
    rss_before = rss_most = process_rss(options.pid);
    stop = after(options.seconds);
    while (in_time() && now_ns() < stop && refused_status == 0 && accepted < options.total) {
        asking = 1;
        if (conn_send(&conn, &piece, 1) < 0)
            break;
        while (in_time() && now_ns() < stop && asking)
            net_turn(stop);
        if ((accepted & 15) == 0)
            look_at_rss();
    }
    look_at_rss();
    print_begin();
    printf(", \"bytes\": %ld, \"accepted\": %" PRId64 ", \"refused_status\": %d"
           ", \"retry_after\": %s, \"rss_kib\": %ld, \"rss_most_kib\": %ld",
           options.bytes, accepted, refused_status, refused_retry ? "true" : "false", rss_before,
           rss_most);
    print_end();
    return 0;
}
