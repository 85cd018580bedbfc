/* An HTTP/1.1 client on epoll: one request at a time on a connection.
 *
 * Knows bytes, responses and server-sent events; must not know MCP.
 */
#ifndef NET_H
#define NET_H

#include <stdint.h>
#include <sys/uio.h>

#include "scan.h"

#define MAX_PIECES 3
#define MAX_SESSION_ID 256

struct buffer {
    char *data;
    size_t len, size;
};

struct conn;

/* What a connection tells its owner.  Each of them may close it. */
struct conn_calls {
    void (*head)(struct conn *conn);                       /* status and headers are known */
    void (*message)(struct conn *conn, struct span type, struct span data);
    void (*complete)(struct conn *conn);                   /* the response is whole */
    void (*lost)(struct conn *conn, const char *why);      /* it is closed, not by us */
};

struct conn {
    int fd; /* -1: closed */
    int connected, paused, waiting; /* waiting: for a response */
    struct ssl_st *tls;
    unsigned generation;
    const struct conn_calls *calls;
    void *owner;
    struct iovec out[MAX_PIECES];
    int outs;
    /* the response */
    int phase, status, event_stream, closing, retry_after;
    size_t left;
    char session_id[MAX_SESSION_ID];
    struct buffer head, body;
    size_t scanned;
    uint64_t received;
};

/* Anything else that epoll watches: its first member is a descriptor. */
struct watch {
    int fd;
    void (*ready)(struct watch *watch);
};

uint64_t now_ns(void);
/* `tls`: every connection uses TLS, and trusts any certificate.  Ends the program where that was
 * not compiled in. */
void net_start(int port, int tls);
int net_port(void);

void conn_init(struct conn *conn, const struct conn_calls *calls, void *owner);
/* Opens the connection unless it is open; -1 where that fails at once. */
int conn_open(struct conn *conn);
/* Sends a request; the pieces must stay where they are until it is answered. */
int conn_send(struct conn *conn, const struct iovec *pieces, int count);
void conn_close(struct conn *conn, int reset);
void conn_resume(struct conn *conn);
/* Closed for good. */
void conn_free(struct conn *conn);

int watch_add(struct watch *watch);
void watch_remove(struct watch *watch);

/* One turn of the loop, waiting no longer than until `deadline`. */
void net_turn(uint64_t deadline);

#endif
