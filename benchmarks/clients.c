#define _GNU_SOURCE
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "clients.h"

/* In a template, $ and a letter stand for:
 *
 * $P path            $H host and port     $L length of the body
 *                    and behind it, with a token, the header Authorization
 * $S the headers Mcp-Session-Id and MCP-Protocol-Version, once there is a session
 * $N the headers Mcp-Method and Mcp-Name  $T a traceparent
 * $I id   $M method   $C name of the tool   $A arguments of the call
 */

struct client {
    const char *version;
    const char *heads[WIRES];
    /* initialize, tools/call */
    const char *initialize, *initialized, *call;
    /* the same in 2026-07-28 */
    const char *discover, *modern_call;
    int string_ids;
};

#define PY_COMMON                                                                                  \
    "Host: $H\r\n"                                                                                 \
    "Accept-Encoding: gzip, deflate\r\n"                                                           \
    "Connection: keep-alive\r\n"                                                                   \
    "User-Agent: python-httpx/0.28.1\r\n"
#define PY_MCP                                                                                     \
    PY_COMMON                                                                                      \
    "accept: application/json, text/event-stream\r\n"                                              \
    "content-type: application/json\r\n"

#define TS_END                                                                                     \
    "accept-language: *\r\n"                                                                       \
    "sec-fetch-mode: cors\r\n"                                                                     \
    "user-agent: node\r\n"
#define TS_START                                                                                   \
    "host: $H\r\n"                                                                                 \
    "connection: keep-alive\r\n"
#define TS_POST_END TS_END "accept-encoding: gzip, deflate\r\ncontent-length: $L\r\n\r\n"

/* java.net.http, and the trace of OpenTelemetry's agent. */
#define JAVA_COMMON                                                                                \
    "Host: $H\r\n"                                                                                 \
    "User-Agent: Java-http-client/21.0.5\r\n"
#define JAVA_MCP                                                                                   \
    JAVA_COMMON                                                                                    \
    "Accept: application/json, text/event-stream\r\n"                                              \
    "Content-Type: application/json\r\n"
#define TRACE "traceparent: $T\r\n"

#define META(client, capabilities, more)                                                           \
    "\"_meta\":{\"io.modelcontextprotocol/protocolVersion\":\"2026-07-28\","                       \
    "\"io.modelcontextprotocol/clientInfo\":{" client "},"                                         \
    "\"io.modelcontextprotocol/clientCapabilities\":{" capabilities "}" more "}"

#define PY_INFO "\"name\":\"mcp\",\"version\":\"0.1.0\""
#define TS_INFO "\"name\":\"agent\",\"version\":\"1.12.3\""
#define JAVA_INFO "\"name\":\"Java SDK MCP Client\",\"version\":\"1.0.0\""
#define TS_CAPABILITIES "\"elicitation\":{\"form\":{}}"
#define JAVA_CAPABILITIES "\"roots\":{\"listChanged\":true},\"sampling\":{}"
#define JAVA_TRACE ",\"traceparent\":\"$T\""

static const struct client clients[CLIENTS] = {
    /* the Python SDK, 1.30 and 2.3 */
    {.version = "2025-11-25",
     .heads =
         {
             [SSE_GET] = "GET $P HTTP/1.1\r\n" PY_COMMON
                         "Accept: text/event-stream\r\nCache-Control: no-store\r\n\r\n",
             [SSE_POST] = "POST $P HTTP/1.1\r\nHost: $H\r\nAccept: */*\r\n"
                          "Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
                          "User-Agent: python-httpx/0.28.1\r\nContent-Length: $L\r\n"
                          "Content-Type: application/json\r\n\r\n",
             [MCP_GET] = "GET $P HTTP/1.1\r\n" PY_COMMON "Cache-Control: no-store\r\n"
                         "accept: application/json, text/event-stream\r\n"
                         "content-type: application/json\r\n$S\r\n",
             [MCP_POST] = "POST $P HTTP/1.1\r\n" PY_MCP "$SContent-Length: $L\r\n\r\n",
             [MCP_DELETE] = "DELETE $P HTTP/1.1\r\n" PY_MCP "$S\r\n",
             [MODERN_POST] = "POST $P HTTP/1.1\r\n" PY_MCP
                             "mcp-protocol-version: 2026-07-28\r\n$NContent-Length: $L\r\n\r\n",
         },
     .initialize = "{\"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-11-25\","
                   "\"capabilities\":{},\"clientInfo\":{" PY_INFO "}},\"jsonrpc\":\"2.0\","
                   "\"id\":$I}",
     .initialized = "{\"method\":\"notifications/initialized\",\"jsonrpc\":\"2.0\"}",
     .call = "{\"method\":\"tools/call\",\"params\":{\"name\":\"$C\",\"arguments\":$A},"
             "\"jsonrpc\":\"2.0\",\"id\":$I}",
     .discover = "{\"jsonrpc\":\"2.0\",\"id\":$I,\"method\":\"server/discover\",\"params\":{"
                 META(PY_INFO, "", "") "}}",
     .modern_call = "{\"jsonrpc\":\"2.0\",\"id\":$I,\"method\":\"tools/call\",\"params\":{"
                    "\"name\":\"$C\",\"arguments\":$A," META(PY_INFO, "", "") "}}"},
    /* the TypeScript SDK, 1.32 and 2.4, on Node's fetch */
    {.version = "2025-11-25",
     .heads =
         {
             [SSE_GET] = "GET $P HTTP/1.1\r\n" TS_START "Accept: text/event-stream\r\n" TS_END
                         "pragma: no-cache\r\ncache-control: no-cache\r\n"
                         "accept-encoding: gzip, deflate\r\n\r\n",
             [SSE_POST] = "POST $P HTTP/1.1\r\n" TS_START
                          "content-type: application/json\r\naccept: */*\r\n" TS_POST_END,
             [MCP_GET] = "GET $P HTTP/1.1\r\n" TS_START "$SAccept: text/event-stream\r\n" TS_END
                         "accept-encoding: gzip, deflate\r\n\r\n",
             [MCP_POST] = "POST $P HTTP/1.1\r\n" TS_START "$Scontent-type: application/json\r\n"
                          "accept: application/json, text/event-stream\r\n" TS_POST_END,
             [MCP_DELETE] = "DELETE $P HTTP/1.1\r\n" TS_START "$Saccept: */*\r\n" TS_END
                            "accept-encoding: gzip, deflate\r\n\r\n",
             [MODERN_POST] = "POST $P HTTP/1.1\r\n" TS_START
                             "mcp-protocol-version: 2026-07-28\r\n$N"
                             "content-type: application/json\r\n"
                             "accept: application/json, text/event-stream\r\n" TS_POST_END,
         },
     .initialize = "{\"method\":\"initialize\",\"params\":{\"protocolVersion\":\"2025-11-25\","
                   "\"capabilities\":{" TS_CAPABILITIES "},\"clientInfo\":{" TS_INFO "}},"
                   "\"jsonrpc\":\"2.0\",\"id\":$I}",
     .initialized = "{\"method\":\"notifications/initialized\",\"jsonrpc\":\"2.0\"}",
     .call = "{\"method\":\"tools/call\",\"params\":{\"name\":\"$C\",\"arguments\":$A},"
             "\"jsonrpc\":\"2.0\",\"id\":$I}",
     .discover = "{\"jsonrpc\":\"2.0\",\"id\":$I,\"method\":\"server/discover\",\"params\":{"
                 META(TS_INFO, TS_CAPABILITIES, "") "}}",
     .modern_call = "{\"method\":\"tools/call\",\"params\":{\"name\":\"$C\",\"arguments\":$A,"
                    META(TS_INFO, TS_CAPABILITIES, "") "},\"jsonrpc\":\"2.0\",\"id\":$I}"},
    /* the Java SDK with tracing: its ids are strings, and no two heads are equal */
    {.version = "2025-06-18",
     .heads =
         {
             [SSE_GET] = "GET $P HTTP/1.1\r\n" JAVA_COMMON "Accept: text/event-stream\r\n"
                         "Cache-Control: no-cache\r\n" TRACE "\r\n",
             [SSE_POST] = "POST $P HTTP/1.1\r\nContent-Length: $L\r\n" JAVA_COMMON
                          "Content-Type: application/json\r\n" TRACE "\r\n",
             [MCP_GET] = "GET $P HTTP/1.1\r\n" JAVA_COMMON "Accept: text/event-stream\r\n"
                         "Cache-Control: no-cache\r\n$S" TRACE "\r\n",
             [MCP_POST] = "POST $P HTTP/1.1\r\nContent-Length: $L\r\n" JAVA_MCP
                          "Cache-Control: no-cache\r\n$S" TRACE "\r\n",
             [MCP_DELETE] = "DELETE $P HTTP/1.1\r\n" JAVA_COMMON "$S" TRACE "\r\n",
             [MODERN_POST] = "POST $P HTTP/1.1\r\nContent-Length: $L\r\n" JAVA_MCP
                             "MCP-Protocol-Version: 2026-07-28\r\n$N" TRACE "\r\n",
         },
     .initialize = "{\"jsonrpc\":\"2.0\",\"method\":\"initialize\",\"id\":$I,\"params\":{"
                   "\"protocolVersion\":\"2025-06-18\",\"capabilities\":{" JAVA_CAPABILITIES "},"
                   "\"clientInfo\":{" JAVA_INFO "}}}",
     .initialized = "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/initialized\"}",
     .call = "{\"jsonrpc\":\"2.0\",\"method\":\"tools/call\",\"id\":$I,\"params\":{"
             "\"name\":\"$C\",\"arguments\":$A}}",
     .discover = "{\"jsonrpc\":\"2.0\",\"method\":\"server/discover\",\"id\":$I,\"params\":{"
                 META(JAVA_INFO, JAVA_CAPABILITIES, JAVA_TRACE) "}}",
     .modern_call = "{\"jsonrpc\":\"2.0\",\"method\":\"tools/call\",\"id\":$I,\"params\":{"
                    "\"name\":\"$C\",\"arguments\":$A,"
                    META(JAVA_INFO, JAVA_CAPABILITIES, JAVA_TRACE) "}}",
     .string_ids = 1},
};

const char *client_token = "";
int client_unsampled;

int client_of(int index)
{
    return index % CLIENTS;
}

void client_id(char id[ID_SIZE], int index, int64_t number)
{
    if (clients[client_of(index)].string_ids)
        snprintf(id, ID_SIZE, "\"%08" PRIx32 "-%" PRId64 "\"", ((uint32_t)index + 1) * 2654435761u,
                 number);
    else
        snprintf(id, ID_SIZE, "%" PRId64, number);
}

int64_t client_id_number(const char *id, size_t len)
{
    if (len > 11 && id[0] == '"' && id[9] == '-')
        return strtoll(id + 10, NULL, 10);
    return len > 0 && id[0] >= '0' && id[0] <= '9' ? strtoll(id, NULL, 10) : -1;
}

/* Filling in. */

struct output {
    char *at, *end;
};

static void put(struct output *output, const char *text, size_t len)
{
    if ((size_t)(output->end - output->at) <= len) {
        fprintf(stderr, "a request is too long\n");
        exit(3);
    }
    memcpy(output->at, text, len);
    output->at += len;
}

static void put_text(struct output *output, const char *text)
{
    put(output, text, strlen(text));
}

static void put_number(struct output *output, size_t number)
{
    char digits[24], *at = digits + sizeof digits;
    do
        *--at = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    put(output, at, (size_t)(digits + sizeof digits - at));
}

static void put_trace(struct output *output, uint64_t number)
{
    char text[64];
    uint64_t mixed = (number + 1) * 0x9e3779b97f4a7c15u;
    int len = snprintf(text, sizeof text, "00-%016" PRIx64 "%016" PRIx64 "-%016" PRIx64 "-%s", mixed,
                       mixed ^ 0x5851f42d4c957f2du, mixed * 0x2545f4914f6cdd1du,
                       client_unsampled ? "00" : "01");
    put(output, text, (size_t)len);
}

static void put_field(struct output *output, const struct client *client, char field,
                      const struct fields *fields)
{
    switch (field) {
    case 'P':
        put_text(output, fields->path);
        break;
    case 'H':
        put_text(output, "127.0.0.1:");
        put_number(output, (size_t)fields->port);
        if (client_token[0] != 0) {
            put_text(output, "\r\nAuthorization: Bearer ");
            put_text(output, client_token);
        }
        break;
    case 'L':
        put_number(output, fields->length);
        break;
    case 'S':
        if (fields->session_id[0] != 0) {
            put_text(output, "mcp-session-id: ");
            put_text(output, fields->session_id);
            put_text(output, "\r\nmcp-protocol-version: ");
            put_text(output, client->version);
            put_text(output, "\r\n");
        }
        break;
    case 'N':
        put_text(output, "mcp-method: ");
        put_text(output, fields->method);
        if (fields->name[0] != 0) {
            put_text(output, "\r\nmcp-name: ");
            put_text(output, fields->name);
        }
        put_text(output, "\r\n");
        break;
    case 'T':
        put_trace(output, fields->number);
        break;
    case 'I':
        put_text(output, fields->id);
        break;
    case 'C':
        put_text(output, fields->name);
        break;
    case 'A':
        put_text(output, fields->arguments);
        break;
    default:
        put(output, &field, 1);
    }
}

static size_t fill(char *out, size_t size, const struct client *client, const char *template,
                   const char *end, const struct fields *fields)
{
    struct output output = {out, out + size};
    while (template < end) {
        const char *dollar = memchr(template, '$', (size_t)(end - template));
        if (dollar == NULL) {
            put(&output, template, (size_t)(end - template));
            break;
        }
        put(&output, template, (size_t)(dollar - template));
        put_field(&output, client, dollar[1], fields);
        template = dollar + 2;
    }
    *output.at = 0;
    return (size_t)(output.at - out);
}

static size_t fill_all(char *out, size_t size, int client, const char *template,
                       const struct fields *fields)
{
    return fill(out, size, &clients[client], template, template + strlen(template), fields);
}

size_t client_head(char *out, size_t size, int client, enum wire wire, const struct fields *fields)
{
    return fill_all(out, size, client, clients[client].heads[wire], fields);
}

size_t client_opening(char *out, size_t size, int client, int modern, const struct fields *fields)
{
    const struct client *it = &clients[client];
    return fill_all(out, size, client, modern ? it->discover : it->initialize, fields);
}

static const char *call_of(int client, int modern)
{
    return modern ? clients[client].modern_call : clients[client].call;
}

size_t client_call(char *out, size_t size, int client, int modern, const struct fields *fields)
{
    return fill_all(out, size, client, call_of(client, modern), fields);
}

size_t client_call_before(char *out, size_t size, int client, int modern,
                          const struct fields *fields)
{
    const char *call = call_of(client, modern);
    return fill(out, size, &clients[client], call, strstr(call, "$A"), fields);
}

size_t client_call_after(char *out, size_t size, int client, int modern,
                         const struct fields *fields)
{
    return fill_all(out, size, client, strstr(call_of(client, modern), "$A") + 2, fields);
}

const char *client_initialized(int client)
{
    return clients[client].initialized;
}
