/* Events become Arrow columns here: names looked up, values decoded and typed, straight into the columns' own buffers.
 *
 * A column is laid out as the Arrow columnar format has it: validity bitmap, 64-bit values, 32-bit indices or 32-bit offsets,
 * bytes. Rows that were not set are null, and cost nothing until the next value is. Functions that may run out of memory answer
 * 0 then. */
#ifndef KANALONY_COLUMNS_H
#define KANALONY_COLUMNS_H

#include <malloc.h>
#include <stdlib.h>

#include "json.h"
#include "querystring.h"
#include "record.h"

typedef struct {
    uint8_t *data;
    size_t size, room;
} bytes_buffer;

static inline uint8_t *buffer_extend(bytes_buffer *b, size_t more) {
    if (!b->data || b->room - b->size < more) {
        size_t room = b->room + b->room / 2 + more + 256;
        uint8_t *data = realloc(b->data, room);
        if (!data) return NULL;
        b->data = data;
        b->room = room;
    }
    return b->data + b->size;
}

/* In order of their layout: 64-bit values, then indices, then offsets. COLUMN_WORDS is text, each value once, and for each row
 * which one it is, as Arrow's dictionary arrays have it; COLUMN_TEXT that of lists, one after another. */
enum { COLUMN_INT, COLUMN_FLOAT, COLUMN_WORDS, COLUMN_BINARY, COLUMN_TEXT };

typedef struct {
    int kind;
    size_t rows;       /* filled so far, nulls included */
    size_t set;        /* that are not null */
    uint64_t misfits;  /* values that did not fit the kind */
    bytes_buffer valid, fixed, data;
    uint32_t words;    /* in `data`, one after another */
    bytes_buffer ends; /* 0, and where each of them ends */
    bytes_buffer slots; /* word_slot, a power of two of them, at most half full */
} column;

/* Nulls up to `rows`. */
static inline int column_fill(column *c, size_t rows) {
    int has_offsets = c->kind >= COLUMN_BINARY;
    size_t width = c->kind >= COLUMN_WORDS ? 4 : 8;
    size_t fixed = (rows + (size_t)has_offsets) * width, bits = (rows + 7) / 8;
    uint8_t *p = buffer_extend(&c->fixed, fixed > c->fixed.size ? fixed - c->fixed.size : 0);
    if (!p) return 0;
    if (has_offsets) {
        for (; c->fixed.size < fixed; c->fixed.size += 4, p += 4) put_u32(p, (uint32_t)c->data.size);
    } else if (c->fixed.size < fixed) {
        memset(p, 0, fixed - c->fixed.size);
        c->fixed.size = fixed;
    }
    if (c->valid.size < bits) {
        p = buffer_extend(&c->valid, bits - c->valid.size);
        if (!p) return 0;
        memset(p, 0, bits - c->valid.size);
        c->valid.size = bits;
    }
    if (rows > c->rows) c->rows = rows;
    return 1;
}

/* The row after those filled exists and is not null; its value comes next. */
static inline int column_begin(column *c, size_t row) {
    if (c->rows < row && !column_fill(c, row)) return 0;
    if (c->kind >= COLUMN_BINARY && c->fixed.size == 0) { /* the first offset */
        if (!buffer_extend(&c->fixed, 4)) return 0;
        put_u32(c->fixed.data, 0);
        c->fixed.size = 4;
    }
    if (row / 8 >= c->valid.size) {
        uint8_t *p = buffer_extend(&c->valid, 1);
        if (!p) return 0;
        *p = 0;
        c->valid.size++;
    }
    c->valid.data[row / 8] |= (uint8_t)(1 << row % 8);
    c->rows = row + 1;
    c->set++;
    return 1;
}

static inline int column_put_u64(column *c, size_t row, uint64_t value) {
    if (!column_begin(c, row)) return 0;
    uint8_t *p = buffer_extend(&c->fixed, 8);
    if (!p) return 0;
    put_u64(p, value);
    c->fixed.size += 8;
    return 1;
}

/* The bytes that were written behind the column's data, `size` of them, are the row's value. */
static inline int column_end_bytes(column *c, size_t size) {
    c->data.size += size;
    uint8_t *p = buffer_extend(&c->fixed, 4);
    if (!p) return 0;
    put_u32(p, (uint32_t)c->data.size);
    c->fixed.size += 4;
    return 1;
}

static inline int column_put_bytes(column *c, size_t row, const uint8_t *p, size_t size) {
    if (!column_begin(c, row)) return 0;
    uint8_t *dst = buffer_extend(&c->data, size);
    if (!dst) return 0;
    memcpy(dst, p, size);
    return column_end_bytes(c, size);
}

/* Bytes of the UTF-8 character at p: 1 to 4; or 0, and *bad is how many bytes one U+FFFD stands for: the longest beginning of
 * a character that is there (the Unicode standard, section 3.9, as Python and browsers do it). */
static inline int utf8_length(const uint8_t *p, const uint8_t *end, int *bad) {
    uint8_t low = 0x80, high = 0xBF, b = *p;
    int more;
    *bad = 1;
    if (b < 0x80) return 1;
    if (b < 0xC2 || b > 0xF4) return 0;
    more = b < 0xE0 ? 1 : b < 0xF0 ? 2 : 3;
    if (b == 0xE0) low = 0xA0;
    if (b == 0xED) high = 0x9F;
    if (b == 0xF0) low = 0x90;
    if (b == 0xF4) high = 0x8F;
    for (int i = 1; i <= more; i++) {
        if (p + i == end || p[i] < low || p[i] > high) {
            *bad = i;
            return 0;
        }
        low = 0x80;
        high = 0xBF;
    }
    return more + 1;
}

static inline int utf8_valid(const uint8_t *p, size_t size) {
    const uint8_t *end = p + size;
    int bad;
    while (p < end) {
        while (end - p >= 8 && !(get_u64(p) & 0x8080808080808080u)) p += 8;
        if (p == end) break;
        int n = utf8_length(p, end, &bad);
        if (!n) return 0;
        p += n;
    }
    return 1;
}

/* Copy with U+FFFD for what is no character; dst has room for 3 times as much. How many bytes came out. */
static inline size_t utf8_repair(const uint8_t *p, size_t size, uint8_t *dst) {
    const uint8_t *end = p + size;
    uint8_t *out = dst;
    while (p < end) {
        int bad, n = utf8_length(p, end, &bad);
        if (n) {
            memcpy(out, p, (size_t)n);
            out += n;
            p += n;
        } else {
            memcpy(out, "\xEF\xBF\xBD", 3);
            out += 3;
            p += bad;
        }
    }
    return (size_t)(out - dst);
}

/* Where in the data a word stands, and which one it is; found by a hash that nobody outside can foresee. */
typedef struct {
    uint32_t hash, start, size, number; /* number + 1; 0 in a slot that is free */
} word_slot;

/* Of all columns of words. */
typedef struct {
    uint64_t seed;  /* of their hashes */
    uint64_t count; /* of the words they have */
} word_stock;

static inline uint64_t fold(uint64_t a, uint64_t b) {
    return a * b ^ (uint64_t)((__uint128_t)a * b >> 64);
}

static inline uint32_t word_hash(const uint8_t *p, size_t size, uint64_t seed) {
    uint64_t h = seed ^ size;
    for (; size > 8; p += 8, size -= 8) h = fold(h ^ get_u64(p), 0xe7037ed1a0b428dbull);
    h = fold(h ^ get_up_to_8(p, size), 0x8ebc6af09c88c6e3ull);
    return (uint32_t)(h ^ h >> 32);
}

static inline int words_grow(column *c) {
    size_t slots = c->slots.size ? 2 * c->slots.size / sizeof(word_slot) : 64;
    bytes_buffer grown = {calloc(slots, sizeof(word_slot)), slots * sizeof(word_slot), slots * sizeof(word_slot)};
    if (!grown.data) return 0;
    word_slot *to = (word_slot *)grown.data, *from = (word_slot *)c->slots.data;
    for (size_t i = 0; i < c->slots.size / sizeof(word_slot); i++) {
        if (!from[i].number) continue;
        size_t at = from[i].hash & (slots - 1);
        while (to[at].number) at = (at + 1) & (slots - 1);
        to[at] = from[i];
    }
    free(c->slots.data);
    c->slots = grown;
    return 1;
}

/* The slot of a word, or the free one where it belongs. */
static inline word_slot *words_find(column *c, const uint8_t *p, size_t size, uint32_t hash) {
    word_slot *slots = (word_slot *)c->slots.data;
    size_t mask = c->slots.size / sizeof(word_slot) - 1;
    size_t at = hash & mask;
    for (; slots[at].number; at = (at + 1) & mask)
        if (slots[at].hash == hash && slots[at].size == size && bytes_equal(c->data.data + slots[at].start, p, size)) break;
    return &slots[at];
}

static inline int column_put_word(column *c, size_t row, const uint8_t *p, size_t size, word_stock *stock) {
    if (2 * (c->words + 1) * sizeof(word_slot) > c->slots.size && !words_grow(c)) return 0;
    uint32_t hash = word_hash(p, size, stock->seed);
    word_slot *slot = words_find(c, p, size, hash);
    if (!slot->number) {
        /* All that are in are UTF-8, so only new ones have to be looked at. */
        int valid = utf8_valid(p, size);
        uint8_t *dst = buffer_extend(&c->data, valid ? size : 3 * size);
        if (!dst) return 0;
        if (valid) {
            memcpy(dst, p, size);
        } else {
            size = utf8_repair(p, size, dst);
            hash = word_hash(dst, size, stock->seed);
            slot = words_find(c, dst, size, hash);
        }
        if (!slot->number) {
            if (!c->words) {
                if (!buffer_extend(&c->ends, 4)) return 0;
                put_u32(c->ends.data, 0);
                c->ends.size = 4;
            }
            uint8_t *end = buffer_extend(&c->ends, 4);
            if (!end) return 0;
            *slot = (word_slot){hash, (uint32_t)c->data.size, (uint32_t)size, ++c->words};
            c->data.size += size;
            put_u32(end, (uint32_t)c->data.size);
            c->ends.size += 4;
            stock->count++;
        }
    }
    uint32_t number = slot->number - 1;
    if (!column_begin(c, row)) return 0;
    uint8_t *fixed = buffer_extend(&c->fixed, 4);
    if (!fixed) return 0;
    put_u32(fixed, number);
    c->fixed.size += 4;
    return 1;
}

/* 1 when the row has no word, or an empty one. */
static inline int column_has_no_word(const column *c, size_t row) {
    if (c->rows <= row) return 1;
    const uint8_t *end = c->ends.data + 4 * get_u32(c->fixed.data + 4 * row);
    return get_u32(end) == get_u32(end + 4);
}

/* An IPv4 address as text: inet_ntop prints it by way of sprintf, which shows. */
static inline size_t ipv4_text(const uint8_t address[4], char *dst) {
    char *out = dst;
    for (int i = 0; i < 4; i++) {
        uint8_t b = address[i];
        if (i) *out++ = '.';
        if (b >= 100) *out++ = (char)('0' + b / 100);
        if (b >= 10) *out++ = (char)('0' + b / 10 % 10);
        *out++ = (char)('0' + b % 10);
    }
    return (size_t)(out - dst);
}

/* How many bytes are no ASCII: as many times two more may it take when they are no UTF-8 either. */
static inline size_t count_high(const uint8_t *p, size_t size) {
    size_t count = 0;
    while (size >= 8) {
        uint64_t counts = 0; /* of eight columns of bytes, each below 256 */
        size_t words = size / 8 < 255 ? size / 8 : 255;
        for (size_t i = 0; i < words; i++) counts += get_u64(p + 8 * i) >> 7 & 0x0101010101010101u;
        for (; counts; counts >>= 8) count += counts & 0xFF;
        p += 8 * words;
        size -= 8 * words;
    }
    for (; size; p++, size--) count += *p >> 7;
    return count;
}

/* A value as it was sent: percent-encoded, or a JSON value. Decoded it is never longer. */
typedef struct {
    const uint8_t *p, *end;
    int is_json;
} sent_value;

static inline size_t value_decode(const sent_value *v, uint8_t *dst) {
    return v->is_json ? json_text(v->p, v->end, dst) : query_decode(v->p, v->end, dst);
}

/* A value's text behind a column's data, as UTF-8. */
static inline int column_put_text(column *c, size_t row, const sent_value *v, bytes_buffer *scratch) {
    if (!column_begin(c, row)) return 0;
    uint8_t *dst = buffer_extend(&c->data, (size_t)(v->end - v->p));
    if (!dst) return 0;
    size_t size = value_decode(v, dst);
    if (!utf8_valid(dst, size)) {
        scratch->size = 0;
        uint8_t *copy = buffer_extend(scratch, size);
        if (!copy) return 0;
        memcpy(copy, dst, size);
        dst = buffer_extend(&c->data, 3 * size);
        if (!dst) return 0;
        size = utf8_repair(copy, size, dst);
    }
    return column_end_bytes(c, size);
}

/* 1 when all of it is a decimal integer of at most 18 digits: any of those fits. */
static inline int parse_int(const uint8_t *p, size_t size, int64_t *out) {
    const uint8_t *end = p + size;
    int negative = size && *p == '-';
    p += negative;
    if (p == end || end - p > 18) return 0;
    int64_t value = 0;
    for (; p < end; p++) {
        if (*p < '0' || *p > '9') return 0;
        value = value * 10 + (*p - '0');
    }
    *out = negative ? -value : value;
    return 1;
}

/* 1 when all of it is a decimal number: digits with a point among or after them, maybe an exponent. Correctly rounded. */
static inline int parse_float(const uint8_t *p, size_t size, double *out) {
    static const double powers[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};
    const uint8_t *start = p, *end = p + size;
    int negative = size && *p == '-', digits = 0, after = 0, simple = 1;
    uint64_t mantissa = 0;
    p += negative;
    for (; p < end && *p >= '0' && *p <= '9'; p++, digits++) mantissa = mantissa * 10 + (uint64_t)(*p - '0');
    if (!digits) return 0;
    if (p < end && *p == '.') {
        for (p++; p < end && *p >= '0' && *p <= '9'; p++, digits++, after++) mantissa = mantissa * 10 + (uint64_t)(*p - '0');
        if (!after) return 0;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        simple = 0;
        p++;
        if (p < end && (*p == '+' || *p == '-')) p++;
        const uint8_t *exponent = p;
        while (p < end && *p >= '0' && *p <= '9') p++;
        if (p == exponent) return 0;
    }
    if (p != end) return 0;
    if (simple && digits <= 15 && after <= 22) { /* both are exact, so one rounding only (Clinger 1990) */
        double value = (double)mantissa / powers[after];
        *out = negative ? -value : value;
        return 1;
    }
    char text[400];
    if (size >= sizeof text) return 0;
    memcpy(text, start, size);
    text[size] = 0;
    *out = strtod(text, NULL);
    return *out <= 1.7976931348623157e308 && *out >= -1.7976931348623157e308;
}

/* A parameter without a column, or a further value of one that has: where its decoded name and its value are. */
typedef struct {
    size_t name;       /* offset in `names` */
    uint32_t name_size;
    uint32_t order;
    sent_value value;
} extra;

#define NAME_SLOTS 1024 /* a power of two, several times the number of names */

typedef struct {
    const uint8_t *name;
    uint32_t size;
    int column;
} name_slot;

typedef struct {
    int count;          /* parameters with a column */
    column *columns;
    uint64_t *seen;     /* row + 1 in which a parameter was met last */
    uint64_t *clashed;  /* row + 1 in which it had two values last */
    uint64_t kept;      /* entries of the map */
    sent_value *first;  /* and its value */
    name_slot slots[NAME_SLOTS];
    word_stock stock;
    size_t row;
    column map_lists, map_keys, map_values, map_value_lists, conflicts, conflict_names; /* of lists: where each ends */
    bytes_buffer extras, names, scratch, name;
} event_table;

/* Of both ends of a name, whatever is between: most events have two dozen names. */
static inline uint32_t name_hash(const uint8_t *p, size_t size) {
    uint64_t a = 0, b = 0;
    if (size >= 8) a = get_u64(p), b = get_u64(p + size - 8);
    else if (size >= 4) a = get_u32(p), b = get_u32(p + size - 4);
    else if (size) a = p[0], b = (uint64_t)p[size / 2] << 8 | p[size - 1];
    uint64_t h = (a ^ b * 0x9e3779b97f4a7c15u ^ size) * 0xd6e8feb86659fd93u;
    return (uint32_t)(h >> 40) & (NAME_SLOTS - 1);
}

static inline void table_name(event_table *t, const uint8_t *name, uint32_t size, int column) {
    uint32_t at = name_hash(name, size);
    while (t->slots[at].name) at = (at + 1) & (NAME_SLOTS - 1);
    t->slots[at] = (name_slot){name, size, column};
}

static inline int table_find(const event_table *t, const uint8_t *name, size_t size) {
    if (size > 40) return -1;
    for (uint32_t at = name_hash(name, size); t->slots[at].name; at = (at + 1) & (NAME_SLOTS - 1))
        if (t->slots[at].size == size && bytes_equal(t->slots[at].name, name, size)) return t->slots[at].column;
    return -1;
}

static inline int table_keep(event_table *t, const uint8_t *name, size_t size, const sent_value *value) {
    int valid = utf8_valid(name, size);
    uint8_t *dst = buffer_extend(&t->names, valid ? size : 3 * size);
    uint8_t *slot = buffer_extend(&t->extras, sizeof(extra));
    if (!dst || !slot) return 0;
    /* Repaired before they are compared: a map has each name once. */
    if (valid) memcpy(dst, name, size);
    else size = utf8_repair(name, size, dst);
    extra e = {t->names.size, (uint32_t)size, (uint32_t)(t->extras.size / sizeof(extra)), *value};
    memcpy(slot, &e, sizeof e);
    t->names.size += size;
    t->extras.size += sizeof e;
    return 1;
}

static inline int values_equal(event_table *t, const sent_value *a, const sent_value *b) {
    t->scratch.size = 0;
    uint8_t *left = buffer_extend(&t->scratch, (size_t)(a->end - a->p) + (size_t)(b->end - b->p));
    if (!left) return -1;
    size_t size = value_decode(a, left);
    uint8_t *right = left + (a->end - a->p);
    return size == value_decode(b, right) && !memcmp(left, right, size);
}

/* One parameter of the row, with the column of its name, as table_find tells it. `name` is decoded. */
static inline int table_put(event_table *t, const uint8_t *name, size_t size, int i, const sent_value *value) {
    if (i < 0) return table_keep(t, name, size, value);
    column *c = &t->columns[i];
    if (t->seen[i] == t->row + 1) {
        /* Told once; and values that are equal are about as long, so this takes no longer than what was sent. */
        if (t->clashed[i] != t->row + 1) {
            int equal = values_equal(t, &t->first[i], value);
            if (equal < 0) return 0;
            if (!equal) {
                t->clashed[i] = t->row + 1;
                if (!column_put_bytes(&t->conflict_names, t->conflict_names.rows, name, size)) return 0;
            }
        }
        return table_keep(t, name, size, value);
    }
    t->seen[i] = t->row + 1;
    t->first[i].p = value->p; /* one by one: see setup.py */
    t->first[i].end = value->end;
    t->first[i].is_json = value->is_json;
    const uint8_t *text = value->p;
    size_t n = (size_t)(value->end - text);
    if (value->is_json || query_is_escaped(text, value->end)) {
        t->scratch.size = 0;
        uint8_t *decoded = buffer_extend(&t->scratch, n);
        if (!decoded) return 0;
        n = value_decode(value, decoded);
        text = decoded;
    }
    if (c->kind == COLUMN_WORDS) return column_put_word(c, t->row, text, n, &t->stock);
    if (!n) return 1; /* sent without a value */
    int64_t whole;
    double real;
    if (c->kind == COLUMN_INT && parse_int(text, n, &whole)) return column_put_u64(c, t->row, (uint64_t)whole);
    if (c->kind == COLUMN_FLOAT && parse_float(text, n, &real)) {
        uint64_t bits;
        memcpy(&bits, &real, 8);
        return column_put_u64(c, t->row, bits);
    }
    c->misfits++;
    return table_keep(t, name, size, value);
}

static inline int extra_compare(const void *left, const void *right, void *names) {
    const extra *a = left, *b = right;
    size_t n = a->name_size < b->name_size ? a->name_size : b->name_size;
    int order = memcmp((uint8_t *)names + a->name, (uint8_t *)names + b->name, n);
    if (order) return order;
    if (a->name_size != b->name_size) return a->name_size < b->name_size ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

/* The row is complete: what has no column goes to the map, by name, values in the order they came. */
static inline int table_end_row(event_table *t) {
    size_t count = t->extras.size / sizeof(extra);
    extra *extras = (extra *)t->extras.data;
    if (count > 1) qsort_r(extras, count, sizeof *extras, extra_compare, t->names.data);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *name = t->names.data + extras[i].name;
        if (i == 0 || extras[i].name_size != extras[i - 1].name_size ||
            memcmp(name, t->names.data + extras[i - 1].name, extras[i].name_size)) {
            /* a new key: its list begins with this value */
            if (!column_put_bytes(&t->map_keys, t->map_keys.rows, name, extras[i].name_size)) return 0;
            if (i && !column_put_u64(&t->map_value_lists, t->map_value_lists.rows, t->map_values.rows)) return 0;
        }
        if (!column_put_text(&t->map_values, t->map_values.rows, &extras[i].value, &t->scratch)) return 0;
    }
    if (count && !column_put_u64(&t->map_value_lists, t->map_value_lists.rows, t->map_values.rows)) return 0;
    t->kept += count;
    t->extras.size = t->names.size = 0;
    t->row++;
    return column_put_u64(&t->map_lists, t->map_lists.rows, t->map_keys.rows) &&
           column_put_u64(&t->conflicts, t->conflicts.rows, t->conflict_names.rows);
}

/* What of a name does not belong to it. */
static inline size_t name_prefix(const uint8_t *name, size_t size) { return size > 6 && !memcmp(name, "event:", 6) ? 6 : 0; }

/* One parameter of the row as it was sent: its name may have escapes, which those of columns have not. */
static inline int table_put_sent(event_table *t, const query_pair *pair, int is_json) {
    const uint8_t *name = pair->name;
    size_t size = (size_t)(pair->name_end - name), prefix = name_prefix(name, size);
    sent_value value = {pair->value, pair->value_end, is_json};
    int i = table_find(t, name + prefix, size - prefix);
    if (i < 0 && (is_json ? memchr(name, '\\', size) != NULL : query_is_escaped(name, pair->name_end))) {
        uint8_t *decoded = buffer_extend(&t->name, size);
        if (!decoded) return 0;
        size = is_json ? json_unescape(name, pair->name_end, decoded) : query_decode(name, pair->name_end, decoded);
        name = decoded;
        prefix = name_prefix(name, size);
        i = table_find(t, name + prefix, size - prefix);
    }
    return table_put(t, name + prefix, size - prefix, i, &value);
}

static inline int table_add_pairs(event_table *t, const uint8_t *p, const uint8_t *end) {
    cursor c = {p, end};
    query_pair pair;
    while (query_next(&c, &pair))
        if (!table_put_sent(t, &pair, 0)) return 0;
    return 1;
}

static inline int table_add_members(event_table *t, const uint8_t *start, const uint8_t *end) {
    cursor c = {start + 1, end};
    query_pair pair;
    while (json_next_member(&c, &pair))
        if (!table_put_sent(t, &pair, 1)) return 0;
    return 1;
}

/* 128 bits that tell one payload from another, for finding what was sent twice: two lanes of multiply and fold, as wyhash has
 * them. Not for secrets. Stored, so never to be changed. */
static inline void fingerprint(const uint8_t *p, size_t size, uint64_t lanes[2]) {
    uint64_t a = lanes[0] ^ fold(size ^ 0xa0761d6478bd642full, 0xe7037ed1a0b428dbull);
    uint64_t b = lanes[1] ^ fold(size ^ 0x8ebc6af09c88c6e3ull, 0x589965cc75374cc3ull);
    while (size) {
        uint64_t word = 0;
        size_t n = size < 8 ? size : 8;
        if (n == 8) word = get_u64(p);
        else memcpy(&word, p, n), word = le64toh(word);
        a = fold(a ^ word ^ 0xa0761d6478bd642full, 0xe7037ed1a0b428dbull);
        b = fold(b ^ word ^ 0x8ebc6af09c88c6e3ull, 0x589965cc75374cc3ull);
        p += n;
        size -= n;
    }
    lanes[0] = a;
    lanes[1] = b;
}

/* Give back what was freed: batch after batch of large buffers would leave half of it in the allocator's hands. */
static inline void give_back_memory(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

#endif
