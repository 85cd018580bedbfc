#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "session.h"

#define MARK 16 /* hexadecimal digits in front of a text, which tell its request */

struct sessions sessions;

static char *filler;

/* What goes wrong is counted; what went wrong first is told. */
static void count(int64_t *which, const char *what, const char *more, size_t len)
{
    char *sample = sessions.counts.sample;
    ++*which;
    if (sample[0] != 0)
        return;
    snprintf(sample, sizeof sessions.counts.sample, "%s: %.*s", what, (int)(len > 140 ? 140 : len),
             more);
    for (; *sample != 0; sample++)
        if (*sample == '"' || *sample == '\\' || (unsigned char)*sample < 32
            || (unsigned char)*sample > 126)
            *sample = '\'';
}

static void die(struct session *session)
{
    if (!session->alive)
        return;
    session->alive = session->ready = 0;
    sessions.calls->dead(session);
}

static void fail(struct slot *slot)
{
    enum purpose purpose = slot->purpose;
    slot->purpose = IDLE;
    if (purpose == CALL)
        sessions.calls->failed(slot);
    else if (purpose != IDLE)
        die(slot->session);
}

/* Sending. */

/* The head, and the body in three parts: `body`, `text` bytes of filler, and the slot's tail. */
static int slot_post(struct slot *slot, enum purpose purpose, struct fields *fields,
                     const char *body, size_t len, size_t text, size_t tail)
{
    struct session *session = slot->session;
    struct iovec pieces[MAX_PIECES];
    enum wire wire = purpose == DELETE     ? MCP_DELETE
                     : sessions.modern     ? MODERN_POST
                     : sessions.streamable ? MCP_POST
                                           : SSE_POST;
    size_t head;
    int count_of = 1;
    fields->path = session->path;
    fields->session_id = session->id;
    fields->number = (uint64_t)slot->id;
    fields->length = len + text + tail;
    fields->port = net_port();
    head = client_head(slot->head, sizeof slot->head, client_of(session->index), wire, fields);
    if (head + len > sizeof slot->head)
        exit(3);
    memcpy(slot->head + head, body, len);
    head += len;
    pieces[0].iov_base = slot->head;
    if (head + text + tail <= sizeof slot->head) {
        memcpy(slot->head + head, filler, text);
        memcpy(slot->head + head + text, slot->tail, tail);
        head += text + tail;
    } else {
        pieces[1].iov_base = filler;
        pieces[1].iov_len = text;
        pieces[2].iov_base = slot->tail;
        pieces[2].iov_len = tail;
        count_of = 3;
    }
    pieces[0].iov_len = head;
    slot->purpose = purpose;
    slot->posted = slot->answered = 0;
    slot->wants_answer = purpose == INITIALIZE || purpose == CALL;
    slot->sent_at = now_ns();
    if (slot->conn.fd < 0 && slot->used)
        sessions.counts.reconnects++;
    slot->used = 1;
    if (conn_send(&slot->conn, pieces, count_of) < 0) {
        count(&sessions.counts.connect_errors, "connect", "", 0);
        fail(slot);
        return -1;
    }
    return 0;
}

/* Ids tell their slot, and never repeat. */
static void next_id(struct slot *slot)
{
    slot->id += (int64_t)sessions.count * sessions.slots_each;
    client_id(slot->name, slot->session->index, slot->id);
}

/* Differs from one request to the next, as Content-Length does with real clients. */
static size_t text_size(int64_t number, size_t bytes)
{
    double part = (double)(((uint64_t)number * 0x9e3779b97f4a7c15u) >> 40) / (double)(1 << 24);
    double size = (double)bytes * (1 + sessions.spread * (2 * part - 1));
    return size < MARK ? MARK : (size_t)size;
}

int slot_echo(struct slot *slot, size_t bytes)
{
    char body[512];
    int client = client_of(slot->session->index);
    struct fields fields = {.id = slot->name, .method = "tools/call", .name = "echo"};
    size_t len, tail;
    next_id(slot);
    slot->verify = text_size(slot->id, bytes);
    len = client_call_before(body, sizeof body, client, sessions.modern, &fields);
    len += (size_t)snprintf(body + len, sizeof body - len, "{\"text\":\"%0*" PRIx64, MARK,
                            (uint64_t)slot->id);
    memcpy(slot->tail, "\"}", 2);
    fields.number = (uint64_t)slot->id;
    tail = 2 + client_call_after(slot->tail + 2, sizeof slot->tail - 2, client, sessions.modern,
                                 &fields);
    return slot_post(slot, CALL, &fields, body, len, slot->verify - MARK, tail);
}

int slot_call(struct slot *slot, const char *tool, const char *arguments)
{
    char body[1024];
    struct fields fields = {
        .id = slot->name, .method = "tools/call", .name = tool, .arguments = arguments};
    size_t len;
    next_id(slot);
    slot->verify = 0;
    len = client_call(body, sizeof body, client_of(slot->session->index), sessions.modern, &fields);
    return slot_post(slot, CALL, &fields, body, len, 0, 0);
}

/* `initialize`, or what takes its place in 2026-07-28. */
static void initialize(struct session *session)
{
    struct slot *slot = &session->slots[0];
    struct fields fields = {.id = slot->name, .method = "server/discover", .name = ""};
    char body[1024];
    size_t len;
    next_id(slot);
    slot->verify = 0;
    len = client_opening(body, sizeof body, client_of(session->index), sessions.modern, &fields);
    slot_post(slot, INITIALIZE, &fields, body, len, 0, 0);
}

static void confirm(struct slot *slot)
{
    struct fields fields = {.id = ""};
    const char *body = client_initialized(client_of(slot->session->index));
    slot_post(slot, INITIALIZED, &fields, body, strlen(body), 0, 0);
}

static void path_of(const struct session *session, char path[MAX_PATH], const char *end)
{
    if (sessions.servers > 1)
        snprintf(path, MAX_PATH, "%s/s%d%s", sessions.base, session->index % sessions.servers, end);
    else
        snprintf(path, MAX_PATH, "%s%s", sessions.base, end);
}

static void get_stream(struct session *session)
{
    char path[MAX_PATH];
    struct fields fields = {.path = path, .session_id = session->id, .port = net_port()};
    struct iovec piece;
    /* The stream's request lies in the head of the last slot, which is idle. */
    struct slot *slot = &session->slots[sessions.slots_each - 1];
    path_of(session, path, sessions.streamable ? sessions.mcp_path : sessions.sse_path);
    piece.iov_len = client_head(slot->head, sizeof slot->head, client_of(session->index),
                                sessions.streamable ? MCP_GET : SSE_GET, &fields);
    piece.iov_base = slot->head;
    if (conn_send(&session->stream, &piece, 1) < 0) {
        count(&sessions.counts.connect_errors, "connect", "", 0);
        die(session);
    }
}

/* Receiving. */

static void advance(struct slot *slot)
{
    struct session *session = slot->session;
    uint64_t elapsed, opened_at = session->opened_at;
    if (!slot->posted || (slot->wants_answer && !slot->answered))
        return;
    elapsed = now_ns() - slot->sent_at;
    switch (slot->purpose) {
    case INITIALIZE:
        slot->purpose = IDLE;
        sessions.calls->initialized(session);
        /* unless it was closed there, and maybe opened again */
        if (!session->alive || session->opened_at != opened_at || slot->purpose != IDLE)
            break;
        if (!sessions.modern) {
            confirm(slot);
            break;
        }
        session->ready = 1;
        sessions.calls->ready(session);
        break;
    case INITIALIZED:
        slot->purpose = IDLE;
        if (sessions.streamable && sessions.with_get) {
            get_stream(session);
            break;
        }
        session->ready = 1;
        sessions.calls->ready(session);
        break;
    case CALL:
    case DELETE:
        slot->purpose = IDLE;
        sessions.calls->done(slot, elapsed);
        break;
    case IDLE:
        break;
    }
}

static int text_is_right(struct slot *slot, struct span result)
{
    const char *at = result.at, *end = result.at + result.len;
    char mark[MARK + 1];
    struct span text = {NULL, 0};
    while ((at = memmem(at, (size_t)(end - at), "\"text\"", 6)) != NULL) {
        const char *stop;
        at = scan_space(at + 6, end);
        if (at == end || *at != ':')
            continue;
        at = scan_space(at + 1, end);
        if (at < end && *at == '"' && (stop = scan_string(at, end)) != NULL) {
            text.at = at + 1;
            text.len = (size_t)(stop - 1 - text.at);
        }
        break;
    }
    if (text.at == NULL)
        return slot->verify == 0;
    if (slot->verify == 0) {
        slot->session->number = strtol(text.at, NULL, 10);
        return 1;
    }
    snprintf(mark, sizeof mark, "%0*" PRIx64, MARK, (uint64_t)slot->id);
    return text.len == slot->verify && memcmp(text.at, mark, MARK) == 0
        && memcmp(text.at + MARK, filler, text.len - MARK) == 0;
}

static void answered(struct session *session, struct span id, struct span result,
                     struct span data)
{
    int64_t number = client_id_number(id.at, id.len);
    int total = sessions.count * sessions.slots_each;
    int index = (int)(number % total);
    struct slot *slot;
    if (number <= 0) {
        count(&sessions.counts.unexpected, "an unknown id", data.at, data.len);
        return;
    }
    if (index / sessions.slots_each != session->index) {
        sessions.counts.leaks++;
        return;
    }
    slot = &session->slots[index % sessions.slots_each];
    if (!span_is(id, slot->name) || slot->answered || slot->purpose == IDLE) {
        count(&sessions.counts.unexpected, "not asked for", data.at, data.len);
        return;
    }
    slot->answered = 1;
    if (result.at == NULL) {
        count(&sessions.counts.rpc_errors, "an error", data.at, data.len);
        fail(slot);
        return;
    }
    if (!text_is_right(slot, result))
        count(&sessions.counts.payload_errors, "a wrong text", data.at, data.len);
    advance(slot);
}

static void notified(struct session *session, struct span data)
{
    /* Numbered by the backend: none may be missing, doubled or out of order. */
    const char *at = memmem(data.at, data.len, "\"data\":\"", 8);
    if (at == NULL)
        return;
    if (strtol(at + 8, NULL, 10) != session->expected_number)
        sessions.counts.order_errors++;
    session->expected_number++;
    session->notifications++;
}

static void message(struct session *session, struct span data)
{
    static const char *const names[] = {"id", "method", "result"};
    struct span found[3];
    if (scan_object(data, names, found, 3) < 0) {
        count(&sessions.counts.unexpected, "no JSON object", data.at, data.len);
        return;
    }
    if (found[1].at != NULL) {
        if (span_is(found[1], "\"notifications/message\""))
            notified(session, data);
    } else if (found[0].at != NULL) {
        answered(session, found[0], found[2], data);
    }
}

/* The connection of the stream. */

static void stream_head(struct conn *conn)
{
    struct session *session = conn->owner;
    char text[40];
    if (conn->status != 200) {
        snprintf(text, sizeof text, "stream: status %d", conn->status);
        count(&sessions.counts.http_errors, text, "", 0);
        conn_close(conn, 0);
        die(session);
    } else if (sessions.streamable && !session->ready) {
        session->ready = 1;
        sessions.calls->ready(session);
    }
}

static void stream_message(struct conn *conn, struct span type, struct span data)
{
    struct session *session = conn->owner;
    if (type.len == 8 && memcmp(type.at, "endpoint", 8) == 0) {
        const char *at = data.at;
        size_t len = data.len;
        if (len > 7 && memcmp(at, "http://", 7) == 0) {
            const char *slash = memchr(at + 7, '/', len - 7);
            len -= slash != NULL ? (size_t)(slash - at) : 0;
            at = slash != NULL ? slash : at;
        }
        if (session->path[0] == 0) {
            snprintf(session->path, sizeof session->path, "%.*s", (int)len, at);
            initialize(session);
        }
        return;
    }
    message(session, data);
}

static void stream_complete(struct conn *conn)
{
    struct session *session = conn->owner;
    if (session->alive)
        count(&sessions.counts.streams_ended, "the stream ended", "", 0);
    conn_close(conn, 0);
    die(session);
}

static void stream_lost(struct conn *conn, const char *why)
{
    struct session *session = conn->owner;
    if (session->alive)
        count(&sessions.counts.streams_ended, "the stream was lost", why, strlen(why));
    die(session);
}

static const struct conn_calls stream_calls = {stream_head, stream_message, stream_complete,
                                               stream_lost};

/* The connection of a slot. */

static void slot_head(struct conn *conn)
{
    struct slot *slot = conn->owner;
    if (slot->purpose == INITIALIZE && conn->session_id[0] != 0)
        memcpy(slot->session->id, conn->session_id, sizeof slot->session->id);
}

static void slot_message(struct conn *conn, struct span type, struct span data)
{
    struct slot *slot = conn->owner;
    (void)type;
    /* HTTP+SSE has no answers here; some servers send a body nevertheless. */
    if (sessions.streamable)
        message(slot->session, data);
}

static void slot_complete(struct conn *conn)
{
    struct slot *slot = conn->owner;
    if (conn->status < 200 || conn->status > 299) {
        char text[40];
        snprintf(text, sizeof text, "status %d", conn->status);
        count(&sessions.counts.http_errors, text, conn->body.data, conn->body.len);
        fail(slot);
        return;
    }
    slot->posted = 1;
    if (sessions.streamable && slot->wants_answer && !slot->answered && slot->purpose != IDLE) {
        count(&sessions.counts.lost, "answered without an answer", "", 0);
        fail(slot);
        return;
    }
    advance(slot);
}

static void slot_lost(struct conn *conn, const char *why)
{
    struct slot *slot = conn->owner;
    if (slot->purpose == IDLE || (slot->posted && !sessions.streamable))
        return;
    count(&sessions.counts.lost, "the connection was lost", why, strlen(why));
    fail(slot);
}

static const struct conn_calls slot_calls = {slot_head, slot_message, slot_complete, slot_lost};

/* Sessions. */

void sessions_start(int count_of, int slots_each, size_t bytes, const struct mode_calls *calls)
{
    size_t most;
    sessions.count = count_of;
    sessions.slots_each = slots_each;
    sessions.calls = calls;
    sessions.all = calloc((size_t)count_of, sizeof *sessions.all);
    most = (size_t)((double)bytes * (1 + sessions.spread)) + 1;
    filler = malloc(most);
    if (sessions.all == NULL || filler == NULL)
        exit(3);
    for (size_t i = 0; i < most; i++)
        filler[i] = (char)('a' + i % 26);
    for (int i = 0; i < count_of; i++) {
        struct session *session = &sessions.all[i];
        session->index = i;
        conn_init(&session->stream, &stream_calls, session);
        session->slots = calloc((size_t)slots_each, sizeof *session->slots);
        if (session->slots == NULL)
            exit(3);
        for (int k = 0; k < slots_each; k++) {
            struct slot *slot = &session->slots[k];
            conn_init(&slot->conn, &slot_calls, slot);
            slot->session = session;
            slot->id = (int64_t)i * slots_each + k;
        }
    }
}

void session_open(struct session *session)
{
    session->alive = 1;
    session->ready = 0;
    session->path[0] = session->id[0] = 0;
    session->notifications = session->expected_number = 0;
    session->opened_at = now_ns();
    if (sessions.streamable) {
        path_of(session, session->path, sessions.mcp_path);
        initialize(session);
    } else {
        get_stream(session);
    }
}

void session_close(struct session *session, int reset)
{
    session->alive = session->ready = 0;
    conn_close(&session->stream, reset);
    for (int i = 0; i < sessions.slots_each; i++) {
        session->slots[i].purpose = IDLE;
        conn_close(&session->slots[i].conn, reset);
        session->slots[i].used = 0;
        session->slots[i].conn.session_id[0] = 0;
    }
}

void session_delete(struct session *session)
{
    struct fields fields = {.id = ""};
    slot_post(&session->slots[0], DELETE, &fields, "", 0, 0, 0);
}
