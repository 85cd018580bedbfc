/* MCP sessions of clients, over HTTP+SSE or Streamable HTTP; in 2026-07-28, the
 * clients themselves, which have no sessions.
 *
 * A session has slots: connections on which one request at a time is
 * outstanding.  A slot is done when its POST is answered and, wherever that
 * comes, the answer to its message is there.
 */
#ifndef SESSION_H
#define SESSION_H

#include "clients.h"
#include "net.h"

#define MAX_PATH 512

enum purpose { IDLE, INITIALIZE, INITIALIZED, CALL, DELETE };

struct session;

struct slot {
    struct conn conn;
    struct session *session;
    enum purpose purpose;
    int posted, answered, wants_answer, used;
    int64_t id;
    size_t verify; /* bytes of echoed text to verify; 0: none */
    uint64_t sent_at;
    char name[ID_SIZE]; /* the id, as JSON */
    char head[2048], tail[512];
};

struct session {
    int index;
    int alive, ready;
    struct conn stream;
    struct slot *slots;
    char path[MAX_PATH];
    char id[MAX_SESSION_ID];
    uint64_t opened_at;
    int64_t notifications, expected_number;
    long number; /* what the last answer's text says, as a number */
    void *owner;
};

/* What a mode does with what happens. */
struct mode_calls {
    void (*initialized)(struct session *session); /* the answer to initialize is there */
    void (*ready)(struct session *session);       /* and the client has confirmed it */
    void (*done)(struct slot *slot, uint64_t elapsed);
    void (*failed)(struct slot *slot); /* this request is over, its session lives */
    void (*dead)(struct session *session);
};

struct counts {
    int64_t connect_errors, http_errors, rpc_errors, payload_errors, lost, streams_ended;
    int64_t leaks, unexpected, order_errors, reconnects;
    char sample[200];
};

struct sessions {
    struct session *all;
    int count, slots_each, streamable, with_get, modern;
    int servers; /* more than one: at /s0, /s1, ..., for which sessions take turns */
    double spread; /* texts are by this part shorter or longer than asked for */
    const char *base, *sse_path, *mcp_path;
    const struct mode_calls *calls;
    struct counts counts;
};

extern struct sessions sessions;

void sessions_start(int count, int slots_each, size_t bytes, const struct mode_calls *calls);
void session_open(struct session *session);
/* Closes at once; `reset`: with RST. */
void session_close(struct session *session, int reset);
/* Ends a streamable session; `done` is called for the slot. */
void session_delete(struct session *session);
/* Echoes a text of about so many bytes: their mean, uniformly spread. */
int slot_echo(struct slot *slot, size_t bytes);
int slot_call(struct slot *slot, const char *tool, const char *arguments);

#endif
