/* The multiply-and-fold step of wyhash, and the fingerprints of events. */
#ifndef KANALONY_HASH_H
#define KANALONY_HASH_H

#include "bytes.h"

static inline uint64_t fold(uint64_t a, uint64_t b) { return a * b ^ (uint64_t)((__uint128_t)a * b >> 64); }

/* Continues a 128-bit fingerprint of a payload, which identifies events that were sent twice: two lanes of multiply and
 * fold, as in wyhash. Not cryptographic. Fingerprints are stored: never change this function. */
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

#endif
