/* record.h and crc32c.h: written records are read back whole, cut or changed records never, and any bytes can be searched. */
#include "record.h"

#include "check.h"

#define WORKER 0x0123456789abcdefu

/* Splits the input into the fields of a record. The first bytes are their sizes; 0xFF is an absent field. */
static size_t split_fields(const uint8_t *data, size_t size, span fields[FIELD_COUNT]) {
    size_t left = size < FIELD_COUNT ? 0 : size - FIELD_COUNT;
    const uint8_t *p = data + FIELD_COUNT;
    for (int i = 0; i < FIELD_COUNT; i++) {
        fields[i] = (span){NULL, 0};
        if (size < FIELD_COUNT || data[i] == 0xFF) continue;
        size_t n = i == FIELD_COUNT - 1 || data[i] * 4u > left ? left : data[i] * 4u;
        fields[i] = (span){p, (uint32_t)n};
        p += n;
        left -= n;
    }
    return record_size(fields);
}

/* The search finds the same first record as reading at every offset: the written one or, since the fuzzer learns to forge
 * checksums, one before it. */
static void first_valid_is_found(const uint8_t *block, size_t size, size_t written, uint32_t seed) {
    record r;
    size_t budget = 64 * size, first = 0;
    while (first < written && !(record_read(block + first, size - first, seed, &r) && r.sequence > 6)) first++;
    CHECK(record_find(block, 0, size, seed, 6, &budget, &r) == first);
}

static void written_is_read_back(const uint8_t *data, size_t size) {
    span fields[FIELD_COUNT];
    record r;
    uint32_t seed = record_seed(WORKER);
    size_t length = split_fields(data, size, fields);
    size_t before = size % 61, after = size % 13;
    uint8_t *block = calloc(1, before + length + after);
    CHECK(block);
    memcpy(block, data, before < size ? before : size);
    record_write(block + before, length, seed, 7, 11, fields);
    CHECK(!record_read(block + before, length + after, seed, &r)); /* not committed */
    record_commit(block + before);
    CHECK(record_read(block + before, length + after, seed, &r));
    CHECK(r.length == length && r.sequence == 7 && r.received_at == 11);
    for (int i = 0; i < FIELD_COUNT; i++) {
        CHECK(!r.fields[i].data == !fields[i].data && r.fields[i].size == fields[i].size);
        CHECK(!fields[i].size || !memcmp(r.fields[i].data, fields[i].data, fields[i].size));
    }
    CHECK(!record_read(block + before, length - 1, seed, &r));
    CHECK(!record_read(block + before, length, record_seed(WORKER + 1), &r));
    first_valid_is_found(block, before + length + after, before, seed);
    block[before + size % length] ^= (uint8_t)(1 + size % 255);
    CHECK(!record_read(block + before, length, seed, &r));
    free(block);
}

/* The input as a record with a valid checksum: anyone who knows the format and the worker id can write such bytes. */
static void forged_is_split_within_bounds(const uint8_t *data, size_t size) {
    if (size < RECORD_HEADER) return;
    record r;
    uint32_t seed = record_seed(WORKER);
    uint8_t *forged = exact_copy(data, size);
    put_u32(forged, RECORD_MARK);
    put_u32(forged + RECORD_LENGTH, (uint32_t)size);
    put_u32(forged + RECORD_CHECKSUM, crc32c(seed, forged + RECORD_LENGTH, size - RECORD_LENGTH));
    if (record_read(forged, size, seed, &r))
        for (int i = 0; i < FIELD_COUNT; i++)
            CHECK(!r.fields[i].data || (r.fields[i].data > forged && r.fields[i].data + r.fields[i].size <= forged + size));
    free(forged);
}

static void any_bytes_may_be_searched(const uint8_t *data, size_t size) {
    record r;
    size_t budget = 64 * size;
    uint8_t *copy = exact_copy(data, size);
    for (size_t at = 0; at < size; at++) {
        at = record_find(copy, at, size, record_seed(WORKER), 0, &budget, &r);
        CHECK(at == size || r.length <= size - at);
    }
    free(copy);
}

static void checksums_agree(const uint8_t *data, size_t size) {
    uint32_t whole = crc32c(0, data, size);
    size_t half = size / 3;
    CHECK(whole == crc32c(crc32c(0, data, half), data + half, size - half));
    CHECK(whole == ~crc32c_by_table(~0u, data, size));
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc, (void)argv;
    crc32c_setup();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    written_is_read_back(data, size);
    forged_is_split_within_bounds(data, size);
    any_bytes_may_be_searched(data, size);
    checksums_agree(data, size);
    return 0;
}
