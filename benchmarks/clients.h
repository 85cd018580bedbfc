/* What real clients send: the bytes of their requests.
 *
 * Knows three clients by their templates, taken from the SDKs on the wire: the
 * order and case of their headers, the order of the members of their messages,
 * their ids.  Must not know connections.
 */
#ifndef CLIENTS_H
#define CLIENTS_H

#include <stddef.h>
#include <stdint.h>

#define ID_SIZE 40
#define CLIENTS 3

/* What a request is, and of which protocol. */
enum wire { SSE_GET, SSE_POST, MCP_GET, MCP_POST, MCP_DELETE, MODERN_POST, WIRES };

/* What the templates are filled with. */
struct fields {
    const char *path, *session_id; /* "": no session yet */
    const char *method, *name;     /* of the message, for the headers of 2026-07-28 */
    const char *arguments;         /* JSON of a call's arguments */
    const char *id;                /* JSON of the id */
    uint64_t number;               /* differs for each request, for its trace */
    size_t length;                 /* of the body */
    int port;
};

/* The bearer token of all clients; empty: none. */
extern const char *client_token;
/* The traces of clients are not recorded. */
extern int client_unsampled;

/* The client that session number `index` is. */
int client_of(int index);
/* The id with that number, as this session's client writes it: an integer or a string. */
void client_id(char id[ID_SIZE], int index, int64_t number);
/* The number in an id of any client, or -1. */
int64_t client_id_number(const char *id, size_t len);

/* Each writes to `out` and returns the length; ends the program where it does not fit. */
size_t client_head(char *out, size_t size, int client, enum wire wire, const struct fields *fields);
/* The body of a request without arguments: `initialize` or `server/discover`. */
size_t client_opening(char *out, size_t size, int client, int modern, const struct fields *fields);
size_t client_call(char *out, size_t size, int client, int modern, const struct fields *fields);
/* A call's body up to the arguments, and from behind them. */
size_t client_call_before(char *out, size_t size, int client, int modern,
                          const struct fields *fields);
size_t client_call_after(char *out, size_t size, int client, int modern,
                         const struct fields *fields);
const char *client_initialized(int client);

#endif
