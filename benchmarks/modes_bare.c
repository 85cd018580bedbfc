/* The modes that ask for what no session is needed for. */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "load.h"

/* Bare requests: refusals, and a probe of the event loop. */

struct asker {
    struct conn conn;
    uint64_t sent_at;
    int asking;
};

static struct asker *askers;
static char ask_text[1024];
static size_t ask_len;
static int ask_status, asking_on;
static int64_t asked, expected, others_seen;
static struct histogram asks, latency_before;

static void ask(struct asker *asker)
{
    struct iovec piece = {ask_text, ask_len};
    asker->asking = 1;
    asker->sent_at = now_ns();
    if (conn_send(&asker->conn, &piece, 1) < 0) {
        sessions.counts.connect_errors++;
        asker->asking = 0;
    }
}

static void asker_head(struct conn *conn)
{
    /* An endless stream is no refusal. */
    if (conn->status == 200 && conn->event_stream) {
        struct asker *asker = conn->owner;
        others_seen++;
        asker->asking = 0;
        conn_close(conn, 0);
    }
}

static void asker_message(struct conn *conn, struct span type, struct span data)
{
    (void)conn;
    (void)type;
    (void)data;
}

static void asker_complete(struct conn *conn)
{
    struct asker *asker = conn->owner;
    asker->asking = 0;
    asked++;
    if (conn->status == ask_status || ask_status == 0)
        expected++;
    else
        others_seen++;
    histogram_add(&asks, now_ns() - asker->sent_at);
    if (asking_on && options.refusals <= 0)
        ask(asker);
}

static void asker_lost(struct conn *conn, const char *why)
{
    struct asker *asker = conn->owner;
    (void)why;
    if (asker->asking) {
        sessions.counts.lost++;
        asker->asking = 0;
        if (asking_on && options.refusals <= 0)
            ask(asker);
    }
}

static const struct conn_calls asker_calls = {asker_head, asker_message, asker_complete,
                                              asker_lost};

static int make_askers(const char *method, const char *path, const char *body)
{
    ask_len = (size_t)snprintf(ask_text, sizeof ask_text,
                               "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                               "Accept: application/json, text/event-stream\r\n",
                               method, path, net_port());
    if (body[0] != 0)
        ask_len += (size_t)snprintf(ask_text + ask_len, sizeof ask_text - ask_len,
                                    "Content-Type: application/json\r\nContent-Length: %zu\r\n",
                                    strlen(body));
    ask_len += (size_t)snprintf(ask_text + ask_len, sizeof ask_text - ask_len, "\r\n%s", body);
    askers = calloc((size_t)options.connections, sizeof *askers);
    if (askers == NULL)
        return -1;
    for (int i = 0; i < options.connections; i++)
        conn_init(&askers[i].conn, &asker_calls, &askers[i]);
    return 0;
}

static uint64_t ask_start;
static int64_t ask_paced, ask_late;
static int ask_pick;

static void pace_asks(double rate)
{
    int64_t due = (int64_t)((double)(now_ns() - ask_start) / (double)SECOND * rate);
    for (; asking_on && ask_paced < due; ask_paced++) {
        int tried = 0;
        for (; tried < options.connections; tried++) {
            struct asker *asker = &askers[ask_pick++ % options.connections];
            if (!asker->asking) {
                ask(asker);
                break;
            }
        }
        if (tried == options.connections)
            ask_late++;
    }
}

static void refuse_tick(void)
{
    if (options.refusals > 0)
        pace_asks(options.refusals);
    pace_echo();
}

static double refuse_for(double seconds)
{
    int64_t before = expected;
    uint64_t start = now_ns();
    ask_start = start;
    ask_paced = 0;
    asking_on = 1;
    if (options.refusals <= 0)
        for (int i = 0; i < options.connections; i++)
            ask(&askers[i]);
    run_until(after(seconds));
    asking_on = 0;
    seconds = (double)(now_ns() - start) / SECOND;
    run_until(after(0.1));
    return (double)(expected - before) / seconds;
}

/* refuse: the limit is reached; refusals, and what live sessions feel of them. */
int mode_refuse(void)
{
    static const char body[] =
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{\"protocolVersion\":"
        "\"2025-06-18\",\"capabilities\":{},\"clientInfo\":{\"name\":\"x\",\"version\":\"1\"}}}";
    char path[256];
    double rate = 0, most;
    int64_t served;
    ask_status = 429;
    if (options.pace <= 0)
        options.pace = 500;
    snprintf(path, sizeof path, "%s%s", sessions.base,
             sessions.streamable ? sessions.mcp_path : sessions.sse_path);
    sessions_start(options.sessions, options.outstanding, (size_t)options.bytes, &echo_calls);
    if (make_askers(sessions.streamable ? "POST" : "GET", path, sessions.streamable ? body : "")
        < 0)
        return 3;
    print_begin();
    if (open_all()) {
        start_echo();
        change_ticks(refuse_tick);
        run_until(after(options.warmup));
        measuring = 1;
        run_until(after(options.seconds));
        measuring = 0;
        latency_before = latency;
        memset(&latency, 0, sizeof latency);
        served = requests;
        if (options.refusals > 0) {
            measuring = 1;
            rate = refuse_for(options.seconds);
            measuring = 0;
        }
        options.refusals = 0;
        most = refuse_for(options.seconds);
        sending = 0;
        run_until(after(0.2));
        printf(", \"live\": %d, \"before\": %" PRId64 ", \"during\": %" PRId64
               ", \"refused_rate\": %.1f, \"most_rate\": %.1f, \"other_answers\": %" PRId64
               ", \"late\": %" PRId64,
               ready, served, requests - served, rate, most, others_seen, late + ask_late);
    }
    print_histogram("before_ms", &latency_before);
    print_histogram("during_ms", &latency);
    print_end();
    return 0;
}

static void probe_tick(void)
{
    pace_asks(options.pace);
}

/* probe: how long a request that the server answers by itself must wait. */
int mode_probe(void)
{
    if (options.pace <= 0)
        options.pace = 500;
    options.refusals = 1;
    if (make_askers("GET", options.path, "") < 0)
        return 3;
    asking_on = 1;
    ask_start = now_ns();
    start_ticks(tick_seconds(options.pace), probe_tick);
    run_until(after(options.seconds));
    asking_on = 0;
    run_until(after(0.2));
    print_begin();
    printf(", \"realtime\": %s, \"asked\": %" PRId64 ", \"late\": %" PRId64,
           realtime ? "true" : "false", asked, ask_late);
    print_histogram("latency_ms", &asks);
    print_end();
    return 0;
}

/* connections: idle ones, held. */
int mode_connections(void)
{
    int made = 0;
    if (make_askers("GET", "/", "") < 0)
        return 3;
    for (int i = 0; i < options.connections; i++) {
        made += conn_open(&askers[i].conn) == 0;
        net_turn(0);
    }
    run_until(after(0.3));
    hold();
    print_begin();
    printf(", \"made\": %d", made);
    print_end();
    return 0;
}
