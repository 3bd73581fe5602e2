/* Columns of text as Arrow's dictionary arrays: each word once, and its number for each row. */
#ifndef KANALONY_WORDS_H
#define KANALONY_WORDS_H

#include "column.h"
#include "hash.h"
#include "utf8.h"

/* A word's place in `data` and its number. Senders cannot predict the hash, so they cannot make collisions. */
typedef struct {
    uint32_t hash, start, size, number; /* number + 1; 0 in a free slot */
} word_slot;

/* All columns of words together. */
typedef struct {
    uint64_t seed;  /* of the hashes */
    uint64_t count; /* number of words */
} word_stock;

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

/* Returns the slot of a word, or the free slot for it. */
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
        /* Stored words are UTF-8, so only a new one needs a check. */
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

/* Returns 1 when the row has no word or an empty one. */
static inline int column_has_no_word(const column *c, size_t row) {
    if (c->rows <= row) return 1;
    const uint8_t *end = c->ends.data + 4 * get_u32(c->fixed.data + 4 * row);
    return get_u32(end) == get_u32(end + 4);
}

#endif
