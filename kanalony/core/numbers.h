/* Conversions between numbers, addresses and text. */
#ifndef KANALONY_NUMBERS_H
#define KANALONY_NUMBERS_H

#include <stdlib.h>

#include "bytes.h"

/* Parses a decimal integer of at most 18 digits, all of which fit. Returns 0 for any other text. */
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

/* Parses a decimal number: digits, which may have a point among or after them, and an exponent. The result is correctly
 * rounded. Returns 0 for any other text. */
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
    if (simple && digits <= 15 && after <= 22) { /* both operands are exact, so there is one rounding only (Clinger 1990) */
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

/* Writes an IPv4 address as text: inet_ntop uses sprintf, which takes noticeably longer. */
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

#endif
