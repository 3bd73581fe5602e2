/* UTF-8: validation and repair of bytes from any sender. */
#ifndef KANALONY_UTF8_H
#define KANALONY_UTF8_H

#include "bytes.h"

/* Returns the size of the UTF-8 character at p, 1 to 4. Returns 0 for no character: *bad is the number of bytes that one U+FFFD
 * stands for then, the longest beginning of a character (the Unicode standard, section 3.9; Python and browsers do the same). */
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

/* Copies text with U+FFFD for invalid bytes, and returns the size of the copy. dst has room for 3 times as many bytes. */
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

/* Returns the number of bytes that are not ASCII. Repaired text is longer by at most twice this number. */
static inline size_t count_high(const uint8_t *p, size_t size) {
    size_t count = 0;
    while (size >= 8) {
        uint64_t counts = 0; /* one count for each of eight bytes, below 256 */
        size_t words = size / 8 < 255 ? size / 8 : 255;
        for (size_t i = 0; i < words; i++) counts += get_u64(p + 8 * i) >> 7 & 0x0101010101010101u;
        for (; counts; counts >>= 8) count += counts & 0xFF;
        p += 8 * words;
        size -= 8 * words;
    }
    for (; size; p++, size--) count += *p >> 7;
    return count;
}

#endif
