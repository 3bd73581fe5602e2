/* The query-string tokenizer: spans over the string's own bytes, without copies. It splits as the URL standard's
 * application/x-www-form-urlencoded parser: pairs end at '&', a name ends at the first '=', empty pairs are left out. */
#ifndef KANALONY_QUERYSTRING_H
#define KANALONY_QUERYSTRING_H

#include "bytes.h"
#include "layout.h"

typedef struct {
    const uint8_t *name, *name_end;
    const uint8_t *value, *value_end; /* without '=' empty, at name_end */
} query_pair;

/* Finds the next pair. Returns 0 at the end. */
static inline int query_next(cursor *c, query_pair *out) {
    while (c->p < c->end && *c->p == '&') c->p++;
    if (c->p == c->end) return 0;
    const uint8_t *p = c->p; /* byte by byte: names are short, and a call takes longer */
    while (p < c->end && *p != '=' && *p != '&') p++;
    out->name = c->p;
    out->name_end = p;
    if (p < c->end && *p == '=') {
        out->value = p + 1;
        p = memchr(p, '&', (size_t)(c->end - p));
        if (!p) p = c->end;
    } else {
        out->value = p;
    }
    out->value_end = p;
    c->p = p;
    return 1;
}

static inline int hex_digit(uint8_t c) {
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Returns 1 when query_decode would change [p, end). */
static inline int query_is_escaped(const uint8_t *p, const uint8_t *end) {
    const uint64_t ones = 0x0101010101010101u, high = 0x8080808080808080u;
    for (; end - p >= 8; p += 8) { /* a byte is zero where the subtraction borrows from its high bit */
        uint64_t percent = get_u64(p) ^ '%' * ones, plus = get_u64(p) ^ '+' * ones;
        if (((percent - ones) & ~percent & high) | ((plus - ones) & ~plus & high)) return 1;
    }
    for (; p < end; p++)
        if (*p == '%' || *p == '+') return 1;
    return 0;
}

/* Percent-decodes [p, end) and returns the size of the result. dst has room for as many bytes. '+' is a space; an invalid
 * escape stays as it is, as in urllib.parse.unquote_plus. */
static inline size_t query_decode(const uint8_t *p, const uint8_t *end, uint8_t *dst) {
    uint8_t *out = dst;
    while (p < end) {
        uint8_t c = *p++;
        if (c == '+') {
            c = ' ';
        } else if (c == '%' && end - p >= 2) {
            int high = hex_digit(p[0]), low = hex_digit(p[1]);
            if (high >= 0 && low >= 0) {
                c = (uint8_t)(high << 4 | low);
                p += 2;
            }
        }
        *out++ = c;
    }
    return (size_t)(out - dst);
}

/* The rule for `event:`: players may send parameter x as `x` or as `event:x`. Returns the size of the prefix of a decoded
 * name. "event:" alone is a name. */
static inline size_t name_prefix(const uint8_t *name, size_t size) { return size > 6 && !memcmp(name, "event:", 6) ? 6 : 0; }

/* The same for a name before it is decoded, in the two spellings that frame prefixes know: `event:` and `event%3A`. */
static inline size_t sent_name_prefix(const uint8_t *name, size_t size) {
    if (size > 8 && (!memcmp(name, "event%3A", 8) || !memcmp(name, "event%3a", 8))) return 8;
    return name_prefix(name, size);
}

/* Returns the event type that frame prefixes count a query as: the first eventType when it is 0 to 254 in one to three
 * digits. Statistics, not validation. */
static inline int query_event_type(const uint8_t *p, size_t size) {
    cursor c = {p, p + size};
    query_pair pair;
    while (query_next(&c, &pair)) {
        size_t n = (size_t)(pair.name_end - pair.name), prefix = sent_name_prefix(pair.name, n);
        if (n - prefix != 9 || memcmp(pair.name + prefix, "eventType", 9)) continue;
        size_t digits = (size_t)(pair.value_end - pair.value);
        int type = 0;
        if (digits < 1 || digits > 3) return EVENT_TYPE_OTHER;
        for (size_t i = 0; i < digits; i++) {
            if (pair.value[i] < '0' || pair.value[i] > '9') return EVENT_TYPE_OTHER;
            type = type * 10 + (pair.value[i] - '0');
        }
        return type <= EVENT_TYPE_MAX ? type : EVENT_TYPE_OTHER;
    }
    return EVENT_TYPE_OTHER;
}

/* Returns the number of pairs in a query. */
static inline size_t query_count(const uint8_t *p, size_t size) {
    cursor c = {p, p + size};
    query_pair pair;
    size_t count = 0;
    while (query_next(&c, &pair)) count++;
    return count;
}

#endif
