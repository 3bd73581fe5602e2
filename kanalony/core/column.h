/* One Arrow column while it is built.
 *
 * The buffers are laid out as in the Arrow columnar format: validity bitmap, 64-bit values, 32-bit indices or 32-bit offsets,
 * bytes. Rows that were not set are null, and take no time until the next value. Functions that may run out of memory return
 * 0 then. */
#ifndef KANALONY_COLUMN_H
#define KANALONY_COLUMN_H

#include <malloc.h>
#include <stdlib.h>

#include "bytes.h"

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

/* Ordered by layout: 64-bit values, then indices, then offsets. COLUMN_WORDS is text as in Arrow's dictionary arrays: each
 * value once, and its number for each row. COLUMN_TEXT is the text of lists. */
enum { COLUMN_INT, COLUMN_FLOAT, COLUMN_WORDS, COLUMN_BINARY, COLUMN_TEXT };

typedef struct {
    int kind;
    size_t rows;            /* filled so far, with nulls */
    size_t set;             /* rows that are not null */
    uint64_t cast_failures; /* values that did not fit the kind */
    bytes_buffer valid, fixed, data;
    uint32_t words;     /* number of words in `data` */
    bytes_buffer ends;  /* 0 and the end of each word in `data` */
    bytes_buffer slots; /* word_slot: a power of two of them, at most half full */
} column;

/* Fills the column with nulls up to `rows`. */
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

/* Starts a row that is not null. The caller appends its value. */
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

/* Ends a row whose `size` bytes the caller has written behind the column's data. */
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

/* Gives freed memory back to the system: the allocator keeps half of it otherwise, batch after batch of large buffers. */
static inline void give_back_memory(void) {
#ifdef __GLIBC__
    malloc_trim(0);
#endif
}

#endif
