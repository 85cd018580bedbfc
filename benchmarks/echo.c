/* A stdio MCP server that costs next to nothing, to measure bridges with.
 *
 * echo [--cpu N] [--fifo] [--modern] [--grandchild] [--stubborn] [--mute]
 *
 * Tools: `echo` returns its `text`; `stream` sends `count` notifications and
 * then answers; `pid` tells the process id, `grandchild` that of its child.  Answers are written when all
 * lines of a read are handled, or 1 MiB of them waits.  Ends at end of file.
 *
 * --cpu N     runs on that core, wherever it was started
 * --fifo      has real-time priority, where that is allowed
 * --grandchild  starts a child that lives until it gets a signal
 * --modern    speaks 2026-07-28 as well; without it, only `initialize` begins
 * --stubborn  stays after end of file, and ignores SIGTERM
 * --mute      never reads
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "scan.h"

#define FLUSH_AT (1u << 20)
#define READ_AT_LEAST (64u << 10)

struct buffer {
    char *data;
    size_t len, size;
};

static struct buffer in, out;
static int modern, grandchild;

static void reserve(struct buffer *buffer, size_t more)
{
    if (buffer->len + more <= buffer->size)
        return;
    if (buffer->size == 0)
        buffer->size = 4096;
    while (buffer->size < buffer->len + more)
        buffer->size *= 2;
    buffer->data = realloc(buffer->data, buffer->size);
    if (buffer->data == NULL)
        _exit(3);
}

static void put(const char *data, size_t len)
{
    reserve(&out, len);
    memcpy(out.data + out.len, data, len);
    out.len += len;
}

static void puts_out(const char *text)
{
    put(text, strlen(text));
}

static void flush(void)
{
    size_t done = 0;
    while (done < out.len) {
        ssize_t n = write(STDOUT_FILENO, out.data + done, out.len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            _exit(0);
        done += (size_t)n;
    }
    out.len = 0;
}

static void begin(struct span id)
{
    puts_out("{\"jsonrpc\":\"2.0\",\"id\":");
    put(id.at, id.len);
}

/* `members`: those of the result, each with a comma in front of it. */
static void answer(struct span id, const char *members)
{
    begin(id);
    puts_out(modern ? ",\"result\":{\"resultType\":\"complete\"" : ",\"result\":{");
    puts_out(modern || members[0] == 0 ? members : members + 1);
    puts_out("}}\n");
}

static void answer_text(struct span id, struct span quoted)
{
    begin(id);
    puts_out(modern ? ",\"result\":{\"resultType\":\"complete\",\"content\":["
                    : ",\"result\":{\"content\":[");
    puts_out("{\"type\":\"text\",\"text\":");
    put(quoted.at, quoted.len);
    puts_out("}]}}\n");
}

static void initialize(struct span id, struct span params)
{
    static const char *const names[] = {"protocolVersion"};
    struct span version;
    scan_object(params, names, &version, 1);
    begin(id);
    puts_out(",\"result\":{\"protocolVersion\":");
    if (version.at != NULL && version.len <= 32)
        put(version.at, version.len);
    else
        puts_out("\"2024-11-05\"");
    puts_out(",\"capabilities\":{\"tools\":{},\"logging\":{}},"
             "\"serverInfo\":{\"name\":\"echo\",\"version\":\"1\"}}}\n");
}

static void stream(struct span id, struct span count)
{
    static const char before[] = "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\","
                                 "\"params\":{\"level\":\"info\",\"data\":\"";
    long n = count.at != NULL ? strtol(count.at, NULL, 10) : 0;
    struct span done = {"\"done\"", 6};
    for (long i = 0; i < n; i++) {
        char number[16];
        int len = snprintf(number, sizeof number, "%09ld", i);
        put(before, sizeof before - 1);
        put(number, (size_t)len);
        put("\"}}\n", 4);
        if (out.len >= FLUSH_AT / 16)
            flush();
    }
    answer_text(id, done);
}

static void call(struct span id, struct span params)
{
    static const char *const names[] = {"name", "arguments"};
    static const char *const arguments[] = {"text", "count"};
    struct span found[2], given[2];
    scan_object(params, names, found, 2);
    scan_object(found[1], arguments, given, 2);
    if (span_is(found[0], "\"echo\"") && given[0].at != NULL) {
        answer_text(id, given[0]);
    } else if (span_is(found[0], "\"stream\"")) {
        stream(id, given[1]);
    } else if (span_is(found[0], "\"pid\"") || span_is(found[0], "\"grandchild\"")) {
        char text[32];
        struct span quoted = {text, 0};
        int pid = span_is(found[0], "\"pid\"") ? (int)getpid() : grandchild;
        quoted.len = (size_t)snprintf(text, sizeof text, "\"%d\"", pid);
        answer_text(id, quoted);
    } else {
        begin(id);
        puts_out(",\"error\":{\"code\":-32602,\"message\":\"no such tool\"}}\n");
    }
}

static void list(struct span id)
{
    answer(id,
           ",\"ttlMs\":3600000,\"cacheScope\":\"public\",\"tools\":[{\"name\":\"echo\",\"description\":\"returns its text\",\"inputSchema\":"
           "{\"type\":\"object\",\"properties\":{\"text\":{\"type\":\"string\"}}}},"
           "{\"name\":\"stream\",\"description\":\"sends notifications\",\"inputSchema\":"
           "{\"type\":\"object\",\"properties\":{\"count\":{\"type\":\"integer\"}}}},"
           "{\"name\":\"pid\",\"description\":\"tells the process id\",\"inputSchema\":"
           "{\"type\":\"object\"}}]");
}

static void discover(struct span id)
{
    answer(id, ",\"supportedVersions\":[\"2026-07-28\"],\"capabilities\":{\"tools\":{}},"
               "\"ttlMs\":3600000,\"cacheScope\":\"public\",\"_meta\":{"
               "\"io.modelcontextprotocol/serverInfo\":{\"name\":\"echo\",\"version\":\"1\"}}");
}

static void handle(const char *line, size_t len)
{
    static const char *const names[] = {"id", "method", "params"};
    struct span message = {line, len}, found[3];
    struct span id, method;
    if (scan_object(message, names, found, 3) < 0)
        return;
    id = found[0];
    method = found[1];
    if (id.at == NULL || method.at == NULL)
        return;
    if (span_is(method, "\"tools/call\"")) {
        call(id, found[2]);
    } else if (span_is(method, "\"initialize\"")) {
        initialize(id, found[2]);
    } else if (modern && span_is(method, "\"server/discover\"")) {
        discover(id);
    } else if (span_is(method, "\"tools/list\"")) {
        list(id);
    } else if (span_is(method, "\"ping\"") || span_is(method, "\"logging/setLevel\"")) {
        answer(id, "");
    } else {
        begin(id);
        puts_out(",\"error\":{\"code\":-32601,\"message\":\"no such method\"}}\n");
    }
    if (out.len >= FLUSH_AT)
        flush();
}

static void wait_for_ever(void)
{
    for (;;)
        pause();
}

static void start_grandchild(void)
{
    grandchild = (int)fork();
    if (grandchild != 0)
        return;
    close(STDIN_FILENO);
    close(STDOUT_FILENO);
    wait_for_ever();
}

int main(int argc, char **argv)
{
    struct sched_param priority = {.sched_priority = 10};
    int stubborn = 0, mute = 0;
    size_t scanned = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--modern") == 0) {
            modern = 1;
        } else if (strcmp(argv[i], "--fifo") == 0) {
            sched_setscheduler(0, SCHED_FIFO, &priority);
        } else if (strcmp(argv[i], "--grandchild") == 0) {
            start_grandchild();
        } else if (strcmp(argv[i], "--stubborn") == 0) {
            stubborn = 1;
        } else if (strcmp(argv[i], "--mute") == 0) {
            mute = 1;
        } else if (strcmp(argv[i], "--cpu") == 0 && i + 1 < argc) {
            cpu_set_t cpus;
            CPU_ZERO(&cpus);
            CPU_SET(atoi(argv[++i]), &cpus);
            sched_setaffinity(0, sizeof cpus, &cpus);
        } else {
            fprintf(stderr, "usage: echo [--cpu N] [--fifo] [--modern] [--grandchild] [--stubborn] [--mute]\n");
            return 2;
        }
    }
    if (stubborn)
        signal(SIGTERM, SIG_IGN);
    if (mute)
        wait_for_ever();
    for (;;) {
        char *newline;
        size_t start = 0;
        ssize_t n;
        reserve(&in, READ_AT_LEAST);
        n = read(STDIN_FILENO, in.data + in.len, in.size - in.len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        in.len += (size_t)n;
        while ((newline = memchr(in.data + scanned, '\n', in.len - scanned)) != NULL) {
            size_t stop = (size_t)(newline - in.data);
            handle(in.data + start, stop - start);
            start = scanned = stop + 1;
        }
        memmove(in.data, in.data + start, in.len - start);
        in.len -= start;
        scanned = in.len;
        flush();
    }
    if (stubborn)
        wait_for_ever();
    return 0;
}
