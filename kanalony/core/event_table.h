/* Events as columns: looks names up, decodes values and converts them, straight into the columns' buffers. */
#ifndef KANALONY_EVENT_TABLE_H
#define KANALONY_EVENT_TABLE_H

#include <stdlib.h>

#include "column.h"
#include "json.h"
#include "numbers.h"
#include "querystring.h"
#include "utf8.h"
#include "words.h"

/* A value as it was sent: percent-encoded or JSON. Decoding never makes it longer. */
typedef struct {
    const uint8_t *p, *end;
    int is_json;
} sent_value;

static inline size_t value_decode(const sent_value *v, uint8_t *dst) {
    return v->is_json ? json_text(v->p, v->end, dst) : query_decode(v->p, v->end, dst);
}

/* Appends a value's text, as UTF-8, to a column. */
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

/* A parameter without a column, or a further value of a parameter with one. */
typedef struct {
    size_t name; /* offset of the decoded name in `names` */
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
    int count; /* number of parameters with a column */
    column *columns;
    uint64_t *seen;    /* row + 1 of the last row with this parameter */
    uint64_t *clashed; /* row + 1 of the last row with two values for it */
    uint64_t kept;     /* number of map entries */
    sent_value *first; /* the parameter's first value in that row */
    name_slot slots[NAME_SLOTS];
    word_stock stock;
    size_t row;
    column map_lists, map_keys, map_values, map_value_lists, conflicts, conflict_names; /* for lists, where each ends */
    bytes_buffer extras, names, scratch, name;
} event_table;

/* Hashes only both ends of a name: most events have two dozen names. */
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
    /* Repairs a name before names are compared: a map has each name once. */
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

/* Stores one parameter of the row. `name` is decoded, and i is its column as table_find returns it. */
static inline int table_put(event_table *t, const uint8_t *name, size_t size, int i, const sent_value *value) {
    if (i < 0) return table_keep(t, name, size, value);
    column *c = &t->columns[i];
    if (t->seen[i] == t->row + 1) {
        /* A conflict is noted once. Equal values are about equally long, so comparing takes time in proportion to the request. */
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
    t->first[i].p = value->p; /* one by one: setup.py explains why */
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
    if (!n) return 1; /* no value was sent */
    int64_t whole;
    double real;
    if (c->kind == COLUMN_INT && parse_int(text, n, &whole)) return column_put_u64(c, t->row, (uint64_t)whole);
    if (c->kind == COLUMN_FLOAT && parse_float(text, n, &real)) {
        uint64_t bits;
        memcpy(&bits, &real, 8);
        return column_put_u64(c, t->row, bits);
    }
    c->cast_failures++;
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

/* Ends the row: parameters without a column become map entries, sorted by name, values in the order of arrival. */
static inline int table_end_row(event_table *t) {
    size_t count = t->extras.size / sizeof(extra);
    extra *extras = (extra *)t->extras.data;
    if (count > 1) qsort_r(extras, count, sizeof *extras, extra_compare, t->names.data);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *name = t->names.data + extras[i].name;
        if (i == 0 || extras[i].name_size != extras[i - 1].name_size ||
            memcmp(name, t->names.data + extras[i - 1].name, extras[i].name_size)) {
            /* a new key, whose list begins with this value */
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

/* Stores one parameter as it was sent. Its name may have escapes; names of columns have none. */
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

#endif
