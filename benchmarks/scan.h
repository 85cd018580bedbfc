/* Finding members of a JSON object without building anything.
 *
 * Trusts its input to be JSON: both sides of the benchmark are known.  A scan
 * is linear, and inside strings runs at the speed of memchr.
 */
#ifndef SCAN_H
#define SCAN_H

#include <stddef.h>
#include <string.h>

struct span {
    const char *at; /* NULL: not there */
    size_t len;
};

static inline const char *scan_space(const char *at, const char *end)
{
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\r' || *at == '\n'))
        at++;
    return at;
}

/* Behind the string that starts at the quote `at`; NULL if it does not end. */
static inline const char *scan_string(const char *at, const char *end)
{
    for (at++; at < end; at++) {
        const char *quote = memchr(at, '"', (size_t)(end - at));
        const char *back = quote;
        if (quote == NULL)
            return NULL;
        while (back > at && back[-1] == '\\')
            back--;
        if (((quote - back) & 1) == 0)
            return quote + 1;
        at = quote;
    }
    return NULL;
}

/* Behind the value that starts at `at`; NULL if it does not end. */
static inline const char *scan_value(const char *at, const char *end)
{
    int depth = 0;
    while (at < end) {
        switch (*at) {
        case '"':
            at = scan_string(at, end);
            if (at == NULL || depth == 0)
                return at;
            continue;
        case '{':
        case '[':
            depth++;
            break;
        case '}':
        case ']':
            if (depth == 0)
                return at;
            if (--depth == 0)
                return at + 1;
            break;
        case ',':
            if (depth == 0)
                return at;
            break;
        default:
            break;
        }
        at++;
    }
    return depth == 0 ? at : NULL;
}

/* The values of the members `names` of the object `object`, each whole and
 * with its quotes.  Returns -1 for what is no object. */
static inline int scan_object(struct span object, const char *const *names, struct span *values,
                       int count)
{
    const char *at = object.at, *end = object.at + object.len;
    for (int i = 0; i < count; i++)
        values[i].at = NULL, values[i].len = 0;
    if (at == NULL)
        return -1;
    at = scan_space(at, end);
    if (at == end || *at++ != '{')
        return -1;
    for (;;) {
        const char *name, *stop, *value;
        at = scan_space(at, end);
        if (at == end)
            return -1;
        if (*at == '}')
            return 0;
        if (*at == ',') {
            at++;
            continue;
        }
        if (*at != '"' || (stop = scan_string(at, end)) == NULL)
            return -1;
        name = at + 1;
        value = scan_space(stop, end);
        if (value == end || *value != ':')
            return -1;
        value = scan_space(value + 1, end);
        at = scan_value(value, end);
        if (at == NULL)
            return -1;
        for (int i = 0; i < count; i++) {
            size_t len = strlen(names[i]);
            if ((size_t)(stop - 1 - name) == len && memcmp(name, names[i], len) == 0) {
                const char *last = at;
                while (last > value && (last[-1] == ' ' || last[-1] == '\t'))
                    last--;
                values[i].at = value;
                values[i].len = (size_t)(last - value);
            }
        }
    }
}

static inline int span_is(struct span span, const char *text)
{
    size_t len = strlen(text);
    return span.at != NULL && span.len == len && memcmp(span.at, text, len) == 0;
}

#endif
