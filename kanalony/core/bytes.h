/* Little-endian integers and a bounded cursor: the only way in which this extension reads and writes integers. */
#ifndef KANALONY_BYTES_H
#define KANALONY_BYTES_H

#include <endian.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t get_u16(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return le16toh(v);
}
static inline uint32_t get_u32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return le32toh(v);
}
static inline uint64_t get_u64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return le64toh(v);
}
static inline void put_u16(uint8_t *p, uint16_t v) {
    v = htole16(v);
    memcpy(p, &v, 2);
}
static inline void put_u32(uint8_t *p, uint32_t v) {
    v = htole32(v);
    memcpy(p, &v, 4);
}
static inline void put_u64(uint8_t *p, uint64_t v) {
    v = htole64(v);
    memcpy(p, &v, 8);
}

/* Up to eight bytes as a number. For equal sizes, equal numbers mean equal bytes. */
static inline uint64_t get_up_to_8(const uint8_t *p, size_t size) {
    if (size == 8) return get_u64(p);
    if (size >= 4) return get_u32(p) | (uint64_t)get_u32(p + size - 4) << 8 * (size - 4);
    return size ? p[0] | (uint64_t)p[size / 2] << 8 * (size / 2) | (uint64_t)p[size - 1] << 8 * (size - 1) : 0;
}

/* Faster than memcmp for short ranges, which most are: memcmp is a call. */
static inline int bytes_equal(const uint8_t *a, const uint8_t *b, size_t size) {
    if (size > 32) return !memcmp(a, b, size);
    for (; size > 8; a += 8, b += 8, size -= 8)
        if (get_u64(a) != get_u64(b)) return 0;
    return get_up_to_8(a, size) == get_up_to_8(b, size);
}

/* A store with release order: memory has everything written before it when another process sees it. */
static inline void put_u32_release(uint8_t *p, uint32_t v) {
    __atomic_thread_fence(__ATOMIC_RELEASE);
    put_u32(p, v);
    __atomic_thread_fence(__ATOMIC_RELEASE);
}

/* The rest of a buffer. Taking more bytes than are left fails (0) and moves the cursor to the end: a failed cursor
 * stays failed. */
typedef struct {
    const uint8_t *p;
    const uint8_t *end;
} cursor;

static inline int cursor_take(cursor *c, size_t n, const uint8_t **out) {
    if ((size_t)(c->end - c->p) < n) {
        c->p = c->end;
        return 0;
    }
    *out = c->p;
    c->p += n;
    return 1;
}

/* Reads an unsigned LEB128 number below 2^32, at most five bytes. */
static inline int cursor_varint(cursor *c, uint32_t *out) {
    uint64_t v = 0;
    const uint8_t *b;
    for (int shift = 0; shift <= 28; shift += 7) {
        if (!cursor_take(c, 1, &b)) return 0;
        v |= (uint64_t)(*b & 0x7F) << shift;
        if (!(*b & 0x80)) {
            *out = (uint32_t)v;
            return v <= UINT32_MAX;
        }
    }
    c->p = c->end;
    return 0;
}

static inline size_t varint_size(uint32_t v) {
    size_t n = 1;
    while (v >= 0x80) {
        v >>= 7;
        n++;
    }
    return n;
}

static inline uint8_t *put_varint(uint8_t *p, uint32_t v) {
    while (v >= 0x80) {
        *p++ = (uint8_t)(v | 0x80);
        v >>= 7;
    }
    *p++ = (uint8_t)v;
    return p;
}

#endif
