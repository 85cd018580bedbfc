#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#ifdef WITH_TLS
#include <openssl/ssl.h>
#endif

#include "net.h"

#define READ_SIZE (256u << 10)
#define MAX_HEAD (32u << 10)
/* A buffer above this is given back when it is empty. */
#define KEEP_SIZE (64u << 10)

enum phase { HEAD, LENGTH, CHUNK_SIZE, CHUNK, CHUNK_END, TRAILER, UNTIL_EOF };

static int loop_fd, server_port;
static char read_buffer[READ_SIZE];

/* Descriptors tell in the low bit of their pointer what they are. */
#define IS_WATCH 1u

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* TLS: the same reads and writes as on a socket. */

#ifdef WITH_TLS
static SSL_CTX *tls_context;

static void tls_start(void)
{
    tls_context = SSL_CTX_new(TLS_client_method());
    if (tls_context == NULL)
        exit(3);
    SSL_CTX_set_verify(tls_context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(tls_context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

static void tls_open(struct conn *conn)
{
    if (tls_context == NULL)
        return;
    conn->tls = SSL_new(tls_context);
    if (conn->tls == NULL || SSL_set_fd(conn->tls, conn->fd) != 1)
        exit(3);
    SSL_set_connect_state(conn->tls);
}

static void tls_close(struct conn *conn)
{
    SSL_free(conn->tls);
    conn->tls = NULL;
}

/* As of recv and send: -1 with errno, 0 at the end. */
static ssize_t tls_result(struct conn *conn, int n)
{
    if (n > 0)
        return n;
    switch (SSL_get_error(conn->tls, n)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        errno = EAGAIN;
        return -1;
    case SSL_ERROR_ZERO_RETURN:
        return 0;
    default:
        errno = ECONNRESET;
        return -1;
    }
}

static int tls_handshake(struct conn *conn)
{
    return conn->tls == NULL ? 1 : (int)tls_result(conn, SSL_do_handshake(conn->tls));
}

static ssize_t read_some(struct conn *conn, char *data, size_t size)
{
    if (conn->tls == NULL)
        return recv(conn->fd, data, size, 0);
    return tls_result(conn, SSL_read(conn->tls, data, (int)size));
}

static ssize_t write_some(struct conn *conn, const struct iovec *piece)
{
    if (conn->tls == NULL)
        return send(conn->fd, piece->iov_base, piece->iov_len, MSG_NOSIGNAL);
    return tls_result(conn, SSL_write(conn->tls, piece->iov_base, (int)piece->iov_len));
}
#else
static void tls_start(void)
{
    fprintf(stderr, "compiled without TLS\n");
    exit(2);
}

static void tls_open(struct conn *conn)
{
    (void)conn;
}

static void tls_close(struct conn *conn)
{
    (void)conn;
}

static int tls_handshake(struct conn *conn)
{
    (void)conn;
    return 1;
}

static ssize_t read_some(struct conn *conn, char *data, size_t size)
{
    return recv(conn->fd, data, size, 0);
}

static ssize_t write_some(struct conn *conn, const struct iovec *piece)
{
    return send(conn->fd, piece->iov_base, piece->iov_len, MSG_NOSIGNAL);
}
#endif

void net_start(int port, int tls)
{
    server_port = port;
    loop_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop_fd < 0) {
        perror("epoll_create1");
        exit(2);
    }
    if (tls)
        tls_start();
}

int net_port(void)
{
    return server_port;
}

static void buffer_append(struct buffer *buffer, const char *data, size_t len)
{
    if (buffer->len + len > buffer->size) {
        size_t size = buffer->size != 0 ? buffer->size : 512;
        while (size < buffer->len + len)
            size *= 2;
        buffer->data = realloc(buffer->data, size);
        if (buffer->data == NULL) {
            fprintf(stderr, "out of memory\n");
            exit(3);
        }
        buffer->size = size;
    }
    memcpy(buffer->data + buffer->len, data, len);
    buffer->len += len;
}

static void buffer_clear(struct buffer *buffer)
{
    buffer->len = 0;
    if (buffer->size > KEEP_SIZE) {
        free(buffer->data);
        buffer->data = NULL;
        buffer->size = 0;
    }
}

void conn_init(struct conn *conn, const struct conn_calls *calls, void *owner)
{
    memset(conn, 0, sizeof *conn);
    conn->fd = -1;
    conn->calls = calls;
    conn->owner = owner;
}

int conn_open(struct conn *conn)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server_port)};
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET};
    int one = 1;
    if (conn->fd >= 0)
        return 0;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (conn->fd < 0)
        return -1;
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    event.data.u64 = (uint64_t)(uintptr_t)conn;
    conn->connected = conn->paused = conn->waiting = conn->outs = 0;
    conn->phase = HEAD;
    conn->head.len = conn->body.len = conn->scanned = 0;
    if ((connect(conn->fd, (struct sockaddr *)&address, sizeof address) < 0
         && errno != EINPROGRESS)
        || epoll_ctl(loop_fd, EPOLL_CTL_ADD, conn->fd, &event) < 0) {
        close(conn->fd);
        conn->fd = -1;
        return -1;
    }
    tls_open(conn);
    return 0;
}

void conn_close(struct conn *conn, int reset)
{
    if (conn->fd < 0)
        return;
    if (reset) {
        struct linger linger = {.l_onoff = 1, .l_linger = 0};
        setsockopt(conn->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }
    tls_close(conn);
    close(conn->fd);
    conn->fd = -1;
    conn->generation++;
    conn->waiting = conn->outs = 0;
    conn->scanned = 0;
    buffer_clear(&conn->head);
    buffer_clear(&conn->body);
}

void conn_free(struct conn *conn)
{
    conn_close(conn, 0);
    free(conn->head.data);
    free(conn->body.data);
    memset(&conn->head, 0, sizeof conn->head);
    memset(&conn->body, 0, sizeof conn->body);
}

static void lose(struct conn *conn, const char *why)
{
    conn_close(conn, 0);
    conn->calls->lost(conn, why);
}

static void flush(struct conn *conn)
{
    while (conn->outs > 0) {
        ssize_t n = conn->outs == 1 || conn->tls != NULL
            ? write_some(conn, &conn->out[0])
            : writev(conn->fd, conn->out, conn->outs);
        size_t done;
        int i = 0;
        if (n < 0) {
            if (errno == EINTR)
                continue;
            /* A reset shows when reading, behind what was answered before it. */
            if (errno != EAGAIN)
                conn->outs = 0;
            return;
        }
        for (done = (size_t)n; i < conn->outs && done >= conn->out[i].iov_len; i++)
            done -= conn->out[i].iov_len;
        conn->outs -= i;
        memmove(conn->out, conn->out + i, (size_t)conn->outs * sizeof conn->out[0]);
        if (conn->outs > 0) {
            conn->out[0].iov_base = (char *)conn->out[0].iov_base + done;
            conn->out[0].iov_len -= done;
        }
    }
}

int conn_send(struct conn *conn, const struct iovec *pieces, int count)
{
    if (conn_open(conn) < 0)
        return -1;
    memcpy(conn->out, pieces, (size_t)count * sizeof *pieces);
    conn->outs = count;
    conn->waiting = 1;
    if (conn->connected)
        flush(conn);
    return 0;
}

/* The response's head. */

static int header_is(const char *line, size_t len, const char *name, struct span *value)
{
    size_t name_len = strlen(name);
    if (len <= name_len || line[name_len] != ':' || strncasecmp(line, name, name_len) != 0)
        return 0;
    value->at = scan_space(line + name_len + 1, line + len);
    value->len = (size_t)(line + len - value->at);
    return 1;
}

static int starts(struct span value, const char *text)
{
    return value.len >= strlen(text) && strncasecmp(value.at, text, strlen(text)) == 0;
}

static void parse_head(struct conn *conn, const char *head, size_t len)
{
    const char *at = head, *end = head + len;
    int chunked = 0, sized = 0;
    conn->status = len > 12 ? atoi(head + 9) : 0;
    conn->event_stream = conn->closing = conn->retry_after = 0;
    conn->left = 0;
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        size_t line_len = (size_t)((newline != NULL ? newline : end) - at);
        struct span value;
        if (line_len > 0 && at[line_len - 1] == '\r')
            line_len--;
        if (header_is(at, line_len, "content-length", &value)) {
            conn->left = strtoul(value.at, NULL, 10);
            sized = 1;
        } else if (header_is(at, line_len, "transfer-encoding", &value)) {
            chunked = starts(value, "chunked");
        } else if (header_is(at, line_len, "content-type", &value)) {
            conn->event_stream = starts(value, "text/event-stream");
        } else if (header_is(at, line_len, "connection", &value)) {
            conn->closing = starts(value, "close");
        } else if (header_is(at, line_len, "retry-after", &value)) {
            conn->retry_after = 1;
        } else if (header_is(at, line_len, "mcp-session-id", &value)
                   && value.len < sizeof conn->session_id) {
            memcpy(conn->session_id, value.at, value.len);
            conn->session_id[value.len] = 0;
        }
        at += line_len;
        while (at < end && *at != '\n')
            at++;
        at++;
    }
    if (chunked)
        conn->phase = CHUNK_SIZE;
    else if (sized || conn->status == 204 || conn->status == 304)
        conn->phase = LENGTH;
    else
        conn->phase = UNTIL_EOF;
}

/* The response's body: events one by one, anything else whole. */

static void dispatch(struct conn *conn, const char *event, size_t len)
{
    const char *at = event, *end = event + len;
    struct span type = {"message", 7}, data = {NULL, 0};
    while (at < end) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        const char *stop = newline != NULL ? newline : end;
        const char *last = stop > at && stop[-1] == '\r' ? stop - 1 : stop;
        size_t line = (size_t)(last - at);
        if (line >= 5 && memcmp(at, "data:", 5) == 0) {
            data.at = at + 5 + (line > 5 && at[5] == ' ');
            data.len = (size_t)(last - data.at);
        } else if (line >= 6 && memcmp(at, "event:", 6) == 0) {
            type.at = at + 6 + (line > 6 && at[6] == ' ');
            type.len = (size_t)(last - type.at);
        }
        at = stop + 1;
    }
    if (data.at != NULL && data.len > 0)
        conn->calls->message(conn, type, data);
}

/* Dispatches the whole events in `data`; the length of what they took.  What
 * lies before `*scanned`, the start of a line, was looked at before. */
static size_t split_events(struct conn *conn, const char *data, size_t len, size_t *scanned)
{
    unsigned generation = conn->generation;
    size_t start = 0, line = *scanned;
    const char *newline;
    while ((newline = memchr(data + line, '\n', len - line)) != NULL) {
        size_t stop = (size_t)(newline - data);
        int empty = stop == line || (stop == line + 1 && data[line] == '\r');
        line = stop + 1;
        if (empty) {
            if (stop > start)
                dispatch(conn, data + start, stop - start);
            if (conn->generation != generation)
                return len;
            start = line;
        }
    }
    *scanned = line - start;
    return start;
}

static void body_piece(struct conn *conn, const char *data, size_t len)
{
    unsigned generation = conn->generation;
    size_t taken;
    if (!conn->event_stream) {
        buffer_append(&conn->body, data, len);
        return;
    }
    if (conn->body.len == 0) {
        taken = split_events(conn, data, len, &conn->scanned);
        if (conn->generation == generation && taken < len)
            buffer_append(&conn->body, data + taken, len - taken);
        return;
    }
    buffer_append(&conn->body, data, len);
    taken = split_events(conn, conn->body.data, conn->body.len, &conn->scanned);
    if (conn->generation != generation || taken == 0)
        return;
    if (taken == conn->body.len) {
        buffer_clear(&conn->body);
    } else {
        memmove(conn->body.data, conn->body.data + taken, conn->body.len - taken);
        conn->body.len -= taken;
    }
}

static void complete(struct conn *conn)
{
    unsigned generation = conn->generation;
    int closing = conn->closing;
    if (!conn->event_stream && conn->body.len > 0 && conn->status == 200) {
        struct span type = {"message", 7}, data = {conn->body.data, conn->body.len};
        conn->calls->message(conn, type, data);
        if (conn->generation != generation)
            return;
    }
    conn->phase = HEAD;
    conn->waiting = 0;
    conn->scanned = 0;
    /* The owner may send the next request at once: on a new connection then. */
    if (closing)
        conn_close(conn, 0);
    conn->calls->complete(conn);
    if (conn->generation == generation && conn->phase == HEAD)
        buffer_clear(&conn->body);
}

/* Takes bytes until they are used up or the connection is closed. */
static void take(struct conn *conn, const char *data, size_t len)
{
    unsigned generation = conn->generation;
    while (conn->generation == generation && (len > 0 || (conn->phase == LENGTH && !conn->left))) {
        size_t piece = len;
        const char *stop;
        switch (conn->phase) {
        case HEAD: {
            const char *head = data;
            size_t head_len = len, before = conn->head.len;
            if (before > 0) {
                buffer_append(&conn->head, data, len);
                head = conn->head.data;
                head_len = conn->head.len;
            }
            stop = memmem(head, head_len, "\r\n\r\n", 4);
            if (stop == NULL) {
                if (before == 0)
                    buffer_append(&conn->head, data, len);
                if (conn->head.len > MAX_HEAD)
                    lose(conn, "the head is too long");
                return;
            }
            parse_head(conn, head, (size_t)(stop - head));
            piece = (size_t)(stop - head) + 4 - before;
            conn->head.len = 0;
            conn->body.len = 0;
            conn->calls->head(conn);
            break;
        }
        case LENGTH:
            if (piece > conn->left)
                piece = conn->left;
            if (piece > 0)
                body_piece(conn, data, piece);
            if (conn->generation != generation)
                return;
            conn->left -= piece;
            if (conn->left == 0)
                complete(conn);
            if (len == piece)
                return;
            break;
        case UNTIL_EOF:
            body_piece(conn, data, len);
            break;
        case CHUNK_SIZE:
        case CHUNK_END:
        case TRAILER:
            stop = memchr(data, '\n', len);
            if (stop == NULL) {
                buffer_append(&conn->head, data, len);
                return;
            }
            piece = (size_t)(stop - data) + 1;
            buffer_append(&conn->head, data, piece);
            buffer_append(&conn->head, "", 1);
            if (conn->phase == CHUNK_SIZE) {
                conn->left = strtoul(conn->head.data, NULL, 16);
                conn->phase = conn->left > 0 ? CHUNK : TRAILER;
                conn->head.len = 0;
            } else if (conn->phase == CHUNK_END) {
                conn->phase = CHUNK_SIZE;
                conn->head.len = 0;
            } else {
                int last = conn->head.len <= 3;
                conn->head.len = 0;
                if (last)
                    complete(conn);
            }
            break;
        case CHUNK:
            if (piece > conn->left)
                piece = conn->left;
            body_piece(conn, data, piece);
            if (conn->generation != generation)
                return;
            conn->left -= piece;
            if (conn->left == 0)
                conn->phase = CHUNK_END;
            break;
        }
        data += piece;
        len -= piece;
    }
}

static void receive(struct conn *conn)
{
    unsigned generation = conn->generation;
    while (conn->generation == generation && !conn->paused) {
        ssize_t n = read_some(conn, read_buffer, sizeof read_buffer);
        if (n > 0) {
            conn->received += (uint64_t)n;
            take(conn, read_buffer, (size_t)n);
            /* A record of TLS is shorter than the buffer, and more may wait behind it. */
            if (conn->generation != generation
                || ((size_t)n < sizeof read_buffer && conn->tls == NULL))
                return;
        } else if (n == 0) {
            if (conn->phase == UNTIL_EOF) {
                conn->closing = 1;
                complete(conn);
            } else {
                lose(conn, "closed by the server");
            }
            return;
        } else if (errno != EINTR) {
            if (errno != EAGAIN)
                lose(conn, strerror(errno));
            return;
        }
    }
}

void conn_resume(struct conn *conn)
{
    conn->paused = 0;
    if (conn->fd >= 0)
        receive(conn);
}

/* The loop. */

int watch_add(struct watch *watch)
{
    struct epoll_event event = {.events = EPOLLIN};
    event.data.u64 = (uint64_t)(uintptr_t)watch | IS_WATCH;
    return epoll_ctl(loop_fd, EPOLL_CTL_ADD, watch->fd, &event);
}

void watch_remove(struct watch *watch)
{
    epoll_ctl(loop_fd, EPOLL_CTL_DEL, watch->fd, NULL);
}

static void conn_ready(struct conn *conn, uint32_t events)
{
    unsigned generation = conn->generation;
    if (!conn->connected && (conn->tls != NULL || events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        int error = 0;
        socklen_t len = sizeof error;
        getsockopt(conn->fd, SOL_SOCKET, SO_ERROR, &error, &len);
        if (error != 0) {
            lose(conn, strerror(error));
            return;
        }
        if (tls_handshake(conn) != 1) {
            if (errno != EAGAIN)
                lose(conn, "no TLS");
            return;
        }
        conn->connected = 1;
        events |= EPOLLOUT;
    }
    if (events & EPOLLOUT && conn->outs > 0)
        flush(conn);
    if (conn->generation == generation && events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        receive(conn);
    /* A short read may have had the end of file right behind it. */
    if (conn->generation == generation && events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
        receive(conn);
}

void net_turn(uint64_t deadline)
{
    struct epoll_event events[128];
    uint64_t now = now_ns();
    uint64_t left = deadline > now ? deadline - now : 0;
    struct timespec timeout = {(time_t)(left / 1000000000u), (long)(left % 1000000000u)};
    int n = epoll_pwait2(loop_fd, events, 128, &timeout, NULL);
    for (int i = 0; i < n; i++) {
        uint64_t data = events[i].data.u64;
        if (data & IS_WATCH) {
            struct watch *watch = (struct watch *)(uintptr_t)(data & ~(uint64_t)IS_WATCH);
            watch->ready(watch);
        } else {
            struct conn *conn = (struct conn *)(uintptr_t)data;
            /* Closed by what came before it in this turn; a connection that
             * was opened again since then is told again. */
            if (conn->fd >= 0)
                conn_ready(conn, events[i].events);
        }
    }
}
