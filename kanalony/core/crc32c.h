/* CRC-32C (Castagnoli, RFC 3720 appendix B.4): by processor instruction if there is one, else by table. */
#ifndef KANALONY_CRC32C_H
#define KANALONY_CRC32C_H

#include "bytes.h"

#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

static uint32_t crc32c_table[8][256];

/* Slicing by eight: eight bytes a step, with a table for each. */
static inline uint32_t crc32c_by_table(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t low = get_u32(p) ^ crc, high = get_u32(p + 4);
        crc = crc32c_table[7][low & 255] ^ crc32c_table[6][(low >> 8) & 255] ^ crc32c_table[5][(low >> 16) & 255] ^
              crc32c_table[4][low >> 24] ^ crc32c_table[3][high & 255] ^ crc32c_table[2][(high >> 8) & 255] ^
              crc32c_table[1][(high >> 16) & 255] ^ crc32c_table[0][high >> 24];
    }
    for (; n; n--, p++) crc = crc32c_table[0][(crc ^ *p) & 255] ^ (crc >> 8);
    return crc;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t wide = crc;
    for (; n >= 8; n -= 8, p += 8) wide = __builtin_ia32_crc32di(wide, get_u64(p));
    crc = (uint32_t)wide;
    for (; n; n--, p++) crc = __builtin_ia32_crc32qi(crc, *p);
    return crc;
}
static inline int crc32c_has_instruction(void) { return __builtin_cpu_supports("sse4.2"); }
#elif defined(__aarch64__)
__attribute__((target("+crc"))) static uint32_t crc32c_by_instruction(uint32_t crc, const uint8_t *p, size_t n) {
    for (; n >= 8; n -= 8, p += 8) crc = __builtin_aarch64_crc32cx(crc, get_u64(p));
    for (; n; n--, p++) crc = __builtin_aarch64_crc32cb(crc, *p);
    return crc;
}
static inline int crc32c_has_instruction(void) { return (getauxval(AT_HWCAP) & (1 << 7)) != 0; /* HWCAP_CRC32 */ }
#else
#define crc32c_by_instruction crc32c_by_table
static inline int crc32c_has_instruction(void) { return 0; }
#endif

static uint32_t (*crc32c_update)(uint32_t, const uint8_t *, size_t) = crc32c_by_table;

/* Fills the table and chooses the implementation. Call it before any other function. */
static inline void crc32c_setup(void) {
    for (int i = 0; i < 256; i++) {
        uint32_t crc = (uint32_t)i;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0x82F63B78u & (0u - (crc & 1)));
        crc32c_table[0][i] = crc;
    }
    for (int i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc32c_table[k][i] = (crc32c_table[k - 1][i] >> 8) ^ crc32c_table[0][crc32c_table[k - 1][i] & 255];
    if (crc32c_has_instruction()) crc32c_update = crc32c_by_instruction;
}

/* Returns the CRC of n bytes that continue those of the CRC `previous`; 0 starts a CRC. */
static inline uint32_t crc32c(uint32_t previous, const uint8_t *p, size_t n) { return ~crc32c_update(~previous, p, n); }

#endif
