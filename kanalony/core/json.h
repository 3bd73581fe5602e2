/* JSON (RFC 8259) in request bodies: validated spans over the body's own bytes, without copies or recursion. */
#ifndef KANALONY_JSON_H
#define KANALONY_JSON_H

#include "bytes.h"
#include "querystring.h"

#define JSON_DEPTH 64 /* deeper nesting is a mistake: json_skip has one bit for each level */

static inline void json_space(cursor *c) {
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\n' || *c->p == '\r' || *c->p == '\t')) c->p++;
}

static inline int json_take(cursor *c, uint8_t wanted) {
    if (c->p == c->end || *c->p != wanted) return 0;
    c->p++;
    return 1;
}

static inline int json_digits(cursor *c) {
    const uint8_t *start = c->p;
    while (c->p < c->end && *c->p >= '0' && *c->p <= '9') c->p++;
    return c->p > start;
}

static inline int json_number(cursor *c) {
    json_take(c, '-');
    if (!json_take(c, '0') && !json_digits(c)) return 0;
    if (json_take(c, '.') && !json_digits(c)) return 0;
    if (json_take(c, 'e') || json_take(c, 'E')) {
        if (!json_take(c, '+')) json_take(c, '-');
        return json_digits(c);
    }
    return 1;
}

static inline int json_literal(cursor *c, const char *word, size_t n) {
    const uint8_t *found;
    return cursor_take(c, n, &found) && !memcmp(found, word, n);
}

static inline int json_string(cursor *c) {
    if (!json_take(c, '"')) return 0;
    while (c->p < c->end) {
        uint8_t b = *c->p++;
        if (b == '"') return 1;
        if (b < 0x20) return 0;
        if (b != '\\') continue;
        if (c->p == c->end) return 0;
        b = *c->p++;
        if (b == 'u') {
            for (int i = 0; i < 4; i++)
                if (c->p == c->end || hex_digit(*c->p++) < 0) return 0;
        } else if (!b || !strchr("\"\\/bfnrt", b)) {
            return 0;
        }
    }
    return 0;
}

static inline int json_name(cursor *c) {
    json_space(c);
    if (!json_string(c)) return 0;
    json_space(c);
    return json_take(c, ':');
}

/* Skips the next value. Returns 1 when it is valid. */
static inline int json_skip(cursor *c) {
    uint64_t objects = 0; /* a bit for each level, the lowest for the innermost: 1 in an object, 0 in an array */
    int depth = 0;
    for (;;) {
        json_space(c);
        if (c->p == c->end) return 0;
        switch (*c->p) {
        case '{':
        case '[':
            if (depth++ == JSON_DEPTH) return 0;
            objects = objects << 1 | (*c->p++ == '{');
            json_space(c);
            if (c->p < c->end && *c->p == (objects & 1 ? '}' : ']')) break; /* empty: the loop below closes it */
            if (objects & 1 && !json_name(c)) return 0;
            continue;
        case '"':
            if (!json_string(c)) return 0;
            break;
        case 't':
            if (!json_literal(c, "true", 4)) return 0;
            break;
        case 'f':
            if (!json_literal(c, "false", 5)) return 0;
            break;
        case 'n':
            if (!json_literal(c, "null", 4)) return 0;
            break;
        default:
            if (!json_number(c)) return 0;
        }
        for (;;) {
            if (depth == 0) return 1;
            json_space(c);
            if (json_take(c, ',')) {
                if (objects & 1 && !json_name(c)) return 0;
                break;
            }
            if (!json_take(c, objects & 1 ? '}' : ']')) return 0;
            objects >>= 1;
            depth--;
        }
    }
}

/* The objects of a body: objects and arrays of objects one after another, as on the lines of NDJSON. */
typedef struct {
    cursor c;
    enum { JSON_OUTSIDE, JSON_ARRAY_START, JSON_BEFORE_ELEMENT, JSON_AFTER_ELEMENT } place;
    const uint8_t *top; /* start of the current outermost value */
    int lines;          /* an object or array has ended its line, so the body is NDJSON */
    int mistakes;       /* lines skipped, and 1 for a rest that was given up */
} json_objects;

static inline int json_ends_line(const cursor *c) {
    const uint8_t *p = c->p;
    while (p < c->end && (*p == ' ' || *p == '\t' || *p == '\r')) p++;
    return p < c->end && *p == '\n';
}

/* Finds the next valid object. Returns 0 at the end.
 *
 * After a mistake the rest is given up. In NDJSON only the line is skipped, when the mistake is within it. A value that spans
 * lines is never resumed: the next line may be inside of it. */
static inline int json_next_object(json_objects *o, const uint8_t **start, const uint8_t **end) {
    cursor *c = &o->c;
    const uint8_t *begin;
    for (;;) {
        json_space(c);
        begin = c->p;
        if (o->place == JSON_OUTSIDE) o->top = begin;
        if (c->p == c->end) {
            o->mistakes += o->place != JSON_OUTSIDE;
            o->place = JSON_OUTSIDE;
            return 0;
        }
        if (o->place == JSON_AFTER_ELEMENT && json_take(c, ',')) {
            o->place = JSON_BEFORE_ELEMENT;
        } else if ((o->place == JSON_AFTER_ELEMENT || o->place == JSON_ARRAY_START) && json_take(c, ']')) {
            o->place = JSON_OUTSIDE;
            o->lines |= json_ends_line(c);
        } else if (o->place == JSON_OUTSIDE && json_take(c, '[')) {
            o->place = JSON_ARRAY_START;
        } else if (o->place != JSON_AFTER_ELEMENT && *c->p == '{' && json_skip(c)) {
            if (o->place == JSON_OUTSIDE) o->lines |= json_ends_line(c);
            else o->place = JSON_AFTER_ELEMENT;
            *start = begin;
            *end = c->p;
            return 1;
        } else {
            const uint8_t *line_end = memchr(o->top, '\n', (size_t)(c->end - o->top));
            o->mistakes++;
            o->place = JSON_OUTSIDE;
            c->p = o->lines && line_end && c->p <= line_end ? line_end : c->end;
        }
    }
}

/* Finds the next member of a valid object; the cursor starts behind the brace. Returns 0 at the end. The name is without
 * quotes, the value as it is in the body. */
static inline int json_next_member(cursor *c, query_pair *out) {
    json_space(c);
    json_take(c, ',');
    json_space(c);
    out->name = c->p + 1;
    if (!json_string(c)) return 0;
    out->name_end = c->p - 1;
    json_space(c);
    if (!json_take(c, ':')) return 0;
    json_space(c);
    out->value = c->p;
    if (!json_skip(c)) return 0;
    out->value_end = c->p;
    return 1;
}

static inline uint32_t json_hex4(const uint8_t *p) {
    return (uint32_t)(hex_digit(p[0]) << 12 | hex_digit(p[1]) << 8 | hex_digit(p[2]) << 4 | hex_digit(p[3]));
}

/* Undoes the escapes in the inside [p, end) of a valid string, and returns the size of the result. dst has room for as many
 * bytes. Half of a surrogate pair becomes U+FFFD, since UTF-8 cannot encode it. */
static inline size_t json_unescape(const uint8_t *p, const uint8_t *end, uint8_t *dst) {
    static const char escapes[] = "\"\"\\\\//b\bf\fn\nr\rt\t";
    uint8_t *out = dst;
    while (p < end) {
        uint8_t b = *p++;
        if (b != '\\') {
            *out++ = b;
            continue;
        }
        b = *p++;
        if (b != 'u') {
            const char *escape = escapes;
            while ((uint8_t)*escape != b) escape += 2;
            *out++ = (uint8_t)escape[1];
            continue;
        }
        uint32_t code = json_hex4(p);
        p += 4;
        if (code >= 0xD800 && code < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u') {
            uint32_t low = json_hex4(p + 2);
            if (low >= 0xDC00 && low < 0xE000) {
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                p += 6;
            }
        }
        if (code >= 0xD800 && code < 0xE000) code = 0xFFFD;
        if (code < 0x80) {
            *out++ = (uint8_t)code;
        } else if (code < 0x800) {
            *out++ = (uint8_t)(0xC0 | code >> 6);
            *out++ = (uint8_t)(0x80 | (code & 0x3F));
        } else if (code < 0x10000) {
            *out++ = (uint8_t)(0xE0 | code >> 12);
            *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
            *out++ = (uint8_t)(0x80 | (code & 0x3F));
        } else {
            *out++ = (uint8_t)(0xF0 | code >> 18);
            *out++ = (uint8_t)(0x80 | (code >> 12 & 0x3F));
            *out++ = (uint8_t)(0x80 | (code >> 6 & 0x3F));
            *out++ = (uint8_t)(0x80 | (code & 0x3F));
        }
    }
    return (size_t)(out - dst);
}

/* Writes a value as the text of a parameter: a string without quotes and escapes, nothing for null, else the value itself.
 * dst has room for as many bytes. */
static inline size_t json_text(const uint8_t *p, const uint8_t *end, uint8_t *dst) {
    if (*p == '"') return json_unescape(p + 1, end - 1, dst);
    if (*p == 'n') return 0;
    memcpy(dst, p, (size_t)(end - p));
    return (size_t)(end - p);
}

#endif
