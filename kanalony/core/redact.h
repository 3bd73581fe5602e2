/* Redaction: compares decoded names with the secret ones, and marks the values to replace. */
#ifndef KANALONY_REDACT_H
#define KANALONY_REDACT_H

#include <stdlib.h>

#include "bytes.h"
#include "json.h"
#include "querystring.h"

/* A range [start, end) of a text to replace. Ranges are in order. */
typedef struct {
    size_t start, end;
} redact_span;

typedef struct {
    redact_span *items;
    size_t count, room;
} redact_spans;

/* Returns 0 when out of memory. */
static inline int redact_mark(redact_spans *spans, size_t start, size_t end) {
    if (spans->count == spans->room) {
        size_t room = spans->room ? 2 * spans->room : 64;
        redact_span *items = realloc(spans->items, room * sizeof *items);
        if (!items) return 0;
        spans->items = items;
        spans->room = room;
    }
    spans->items[spans->count++] = (redact_span){start, end};
    return 1;
}

static inline uint8_t redact_lower(uint8_t c) { return c >= 'A' && c <= 'Z' ? c | 0x20 : c; }

/* Percent-decodes [p, end) repeatedly, until no escape is left, makes ASCII letters lower-case, and returns the size of the
 * result. dst has room for as many bytes and may be p. Each escape takes two bytes away, so time is linear in the length. */
static inline size_t redact_plain(const uint8_t *p, const uint8_t *end, uint8_t *dst) {
    uint8_t *out = dst;
    while (p < end) {
        *out++ = redact_lower(*p++);
        while (out - dst >= 3 && out[-3] == '%') {
            int high = hex_digit(out[-2]), low = hex_digit(out[-1]);
            if (high < 0 || low < 0) break;
            out -= 2;
            out[-1] = redact_lower((uint8_t)(high << 4 | low));
        }
    }
    return (size_t)(out - dst);
}

static inline int redact_is_word(uint8_t c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-'; }

/* Returns 1 when a secret name is a word of a decoded one: ks of event:ks, 1:ks, event[ks], ks[0]. `names` has the secret
 * names, each behind its size (two bytes). */
static inline int redact_is_secret(cursor names, const uint8_t *p, size_t size) {
    for (size_t i = 0; i < size; i++) {
        if (i && redact_is_word(p[i - 1])) continue;
        for (const uint8_t *name = names.p; name < names.end; name += 2 + get_u16(name)) {
            size_t n = get_u16(name);
            if (n <= size - i && p[i] == name[2] && !memcmp(p + i, name + 2, n) && (n == size - i || !redact_is_word(p[i + n])))
                return 1;
        }
    }
    return 0;
}

/* Marks every value in pairs [p, end) whose name is secret. A name ends at any '=', so names are also found in pairs with
 * another separator than '&'; a value ends at '&'. `scratch` has room for the longest name. Returns 0 when out of memory. */
static inline int redact_query(const uint8_t *base, const uint8_t *p, const uint8_t *end, cursor names, uint8_t *scratch,
                               redact_spans *spans) {
    const uint8_t *name = p;
    for (; p < end; p++) {
        if (*p == '&') {
            name = p + 1;
        } else if (*p == '=') {
            if (redact_is_secret(names, scratch, redact_plain(name, p, scratch))) {
                const uint8_t *value = p + 1;
                p = memchr(value, '&', (size_t)(end - value));
                if (!p) p = end;
                if (value < p && !redact_mark(spans, (size_t)(value - base), (size_t)(p - base))) return 0;
            }
            name = p + 1;
        }
    }
    return 1;
}

/* The same for every member of the valid objects in [p, end), at any depth, except null and "". Returns -1 when an object is
 * not valid. */
static inline int redact_json(const uint8_t *base, const uint8_t *p, const uint8_t *end, cursor names, uint8_t *scratch,
                              redact_spans *spans) {
    cursor c = {p, end};
    while (c.p < c.end) {
        /* In a valid object a quote outside of strings begins a string, and only a name has a colon behind it. */
        if (*c.p != '"') {
            c.p++;
            continue;
        }
        const uint8_t *name = c.p + 1;
        if (!json_string(&c)) return -1;
        const uint8_t *name_end = c.p - 1;
        json_space(&c);
        if (c.p == c.end || *c.p != ':') continue;
        size_t size = json_unescape(name, name_end, scratch);
        if (!redact_is_secret(names, scratch, redact_plain(scratch, scratch + size, scratch))) continue;
        c.p++;
        json_space(&c);
        const uint8_t *value = c.p;
        if (!json_skip(&c)) return -1;
        if (*value != 'n' && !(*value == '"' && c.p - value == 2) &&
            !redact_mark(spans, (size_t)(value - base), (size_t)(c.p - base)))
            return 0;
    }
    return 1;
}

#endif
