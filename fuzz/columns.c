/* event_table.h: for any events the columns are valid for Arrow: growing offsets, indices of existing words, UTF-8. */
#include "event_table.h"

#include <errno.h>

#include "check.h"

static const struct {
    const char *name;
    int kind;
} NAMES[] = {
    {"eventType", COLUMN_INT}, {"position", COLUMN_FLOAT}, {"entryId", COLUMN_WORDS}, {"sessionId", COLUMN_WORDS},
    {"a", COLUMN_INT},         {"b", COLUMN_FLOAT},        {"c", COLUMN_WORDS},
};
enum { COUNT = sizeof NAMES / sizeof *NAMES };

static void free_column(column *c) {
    free(c->valid.data);
    free(c->fixed.data);
    free(c->data.data);
    free(c->ends.data);
    free(c->slots.data);
}

static void offsets_grow_to(const uint8_t *offsets, size_t count, size_t end) {
    uint32_t last = 0;
    for (size_t i = 0; i <= count; i++) {
        uint32_t offset = get_u32(offsets + 4 * i);
        CHECK(i ? offset >= last : offset == 0);
        last = offset;
    }
    CHECK(last == end);
}

static void is_valid_for_arrow(column *c, size_t rows) {
    CHECK(c->rows <= rows && c->set <= c->rows);
    CHECK(column_fill(c, rows) && c->rows == rows && c->valid.size == (rows + 7) / 8);
    size_t set = 0;
    for (size_t row = 0; row < rows; row++) set += c->valid.data[row / 8] >> row % 8 & 1;
    CHECK(set == c->set);
    if (c->kind == COLUMN_WORDS) {
        CHECK(c->fixed.size == 4 * rows);
        for (size_t row = 0; row < rows; row++)
            if (c->valid.data[row / 8] >> row % 8 & 1) CHECK(get_u32(c->fixed.data + 4 * row) < c->words);
        if (!c->words) return;
        offsets_grow_to(c->ends.data, c->words, c->data.size);
        for (uint32_t i = 0; i < c->words; i++) {
            uint32_t start = get_u32(c->ends.data + 4 * i);
            CHECK(utf8_valid(c->data.data + start, get_u32(c->ends.data + 4 * i + 4) - start));
        }
    } else if (c->kind >= COLUMN_BINARY) {
        offsets_grow_to(c->fixed.data, rows, c->data.size);
    } else {
        CHECK(c->fixed.size == 8 * rows);
    }
}

/* Rows separated by newlines: JSON objects or query strings. */
static void rows_become_columns(const uint8_t *data, size_t size) {
    static event_table t;
    column columns[COUNT] = {{0}};
    uint64_t seen[COUNT] = {0}, clashed[COUNT] = {0};
    sent_value first[COUNT];
    memset(&t, 0, sizeof t);
    t.count = COUNT, t.columns = columns, t.seen = seen, t.clashed = clashed, t.first = first, t.stock.seed = 42;
    t.map_keys.kind = t.map_values.kind = t.conflict_names.kind = COLUMN_TEXT;
    for (int i = 0; i < COUNT; i++) {
        columns[i].kind = NAMES[i].kind;
        table_name(&t, (const uint8_t *)NAMES[i].name, (uint32_t)strlen(NAMES[i].name), i);
    }
    for (const uint8_t *p = data, *end = data + size; p < end;) {
        const uint8_t *line_end = memchr(p, '\n', (size_t)(end - p));
        size_t length = (size_t)((line_end ? line_end : end) - p);
        uint8_t *row = exact_copy(p, length);
        cursor c = {row, row + length};
        if (length && *row == '{' && json_skip(&c)) CHECK(table_add_members(&t, row, c.p));
        else CHECK(table_add_pairs(&t, row, row + length));
        CHECK(table_end_row(&t));
        free(row); /* the table must not point there any more */
        p += length + 1;
    }
    for (int i = 0; i < COUNT; i++) is_valid_for_arrow(&columns[i], t.row);
    CHECK(t.map_lists.rows == t.row && t.conflicts.rows == t.row && t.map_value_lists.rows == t.map_keys.rows);
    column *lists[] = {&t.map_lists, &t.map_keys, &t.map_values, &t.map_value_lists, &t.conflicts, &t.conflict_names};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; i++) {
        if (lists[i]->data.size) CHECK(utf8_valid(lists[i]->data.data, lists[i]->data.size));
        is_valid_for_arrow(lists[i], lists[i]->rows);
        free_column(lists[i]);
    }
    for (int i = 0; i < COUNT; i++) free_column(&columns[i]);
    free(t.extras.data), free(t.names.data), free(t.scratch.data), free(t.name.data);
}

static void numbers_are_those_of_the_c_library(const uint8_t *data, size_t size) {
    char text[64];
    if (size >= sizeof text || memchr(data, 0, size)) return;
    memcpy(text, data, size);
    text[size] = 0;
    int64_t whole;
    double real;
    char *end;
    errno = 0;
    if (parse_int(data, size, &whole)) CHECK(strtoll(text, &end, 10) == whole && !*end && !errno);
    if (parse_float(data, size, &real)) CHECK(strtod(text, &end) == real && !*end);
}

static void text_becomes_utf8(const uint8_t *data, size_t size) {
    uint8_t *repaired = malloc(3 * size + 1);
    CHECK(repaired);
    size_t n = utf8_repair(data, size, repaired), high = 0;
    CHECK(n <= 3 * size && utf8_valid(repaired, n));
    if (utf8_valid(data, size)) CHECK(n == size && (!size || !memcmp(data, repaired, n)));
    for (size_t i = 0; i < size; i++) high += data[i] >= 0x80;
    CHECK(count_high(data, size) == high && n <= size + 2 * high);
    free(repaired);
    if (size >= 4) {
        char text[16], expected[16];
        size_t length = ipv4_text(data, text);
        CHECK((int)length == snprintf(expected, sizeof expected, "%d.%d.%d.%d", data[0], data[1], data[2], data[3]));
        CHECK(!memcmp(text, expected, length));
    }
    uint64_t lanes[2] = {0, 0}, shorter[2] = {0, 0};
    fingerprint(data, size, lanes);
    if (size) fingerprint(data, size - 1, shorter);
    CHECK(!size || lanes[0] != shorter[0] || lanes[1] != shorter[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *copy = exact_copy(data, size);
    rows_become_columns(copy, size);
    numbers_are_those_of_the_c_library(copy, size);
    text_becomes_utf8(copy, size);
    free(copy);
    return 0;
}
