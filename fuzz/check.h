/* Shared by all targets: properties that must hold for any bytes. A broken one aborts, which libFuzzer reports. */
#ifndef KANALONY_FUZZ_CHECK_H
#define KANALONY_FUZZ_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

/* Returns a copy of exactly this size, so that the address sanitizer reports even a read of one byte beyond it. */
static inline uint8_t *exact_copy(const uint8_t *data, size_t size) {
    uint8_t *copy = malloc(size ? size : 1);
    CHECK(copy);
    if (size) memcpy(copy, data, size);
    return copy;
}

#endif
