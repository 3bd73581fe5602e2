/* A record is one request: docs/segment-format.md, section 2. Written, checked and found here and nowhere else. */
#ifndef KANALONY_RECORD_H
#define KANALONY_RECORD_H

#include "bytes.h"
#include "crc32c.h"

/* Persisted numbers: never renumber or reuse one. */
#define RECORD_MARK 0x56454E4Bu /* "KNEV" */
#define RECORD_HEADER (4 + 4 + 4 + 8 + 8)
enum {
    FIELD_METHOD = 1,
    FIELD_PATH = 2,
    FIELD_REMOTE_ADDR = 3,
    FIELD_FORWARDED_FOR = 4,
    FIELD_USER_AGENT = 5,
    FIELD_REFERER = 6,
    FIELD_QUERY = 7,
    FIELD_BODY = 8,
    FIELD_CONTENT_TYPE = 9,
    FIELD_CONTENT_ENCODING = 10,
    FIELD_ADDRESS_TOKEN = 11,
    FIELD_COUNT = 11,
};

/* One part of a request; data is NULL when the request had none. */
typedef struct {
    const uint8_t *data;
    uint32_t size;
} span;

/* A checked record. fields[tag - 1] belongs to tag. */
typedef struct {
    uint32_t length;
    uint64_t sequence;
    uint64_t received_at;
    span fields[FIELD_COUNT];
} record;

/* What every checksum of a worker's records begins with: see "Forgery" in the format. */
static inline uint32_t record_seed(uint64_t worker_id) {
    uint8_t id[8];
    put_u64(id, worker_id);
    return crc32c(0, id, 8);
}

static inline size_t record_size(const span fields[FIELD_COUNT]) {
    size_t size = RECORD_HEADER;
    for (int i = 0; i < FIELD_COUNT; i++)
        if (fields[i].data) size += 1 + varint_size(fields[i].size) + fields[i].size;
    return size;
}

/* Write all of a record but its mark. `size` is record_size(fields); dst has room for it. */
static inline void record_write(uint8_t *dst, size_t size, uint32_t seed, uint64_t sequence, uint64_t received_at,
                                const span fields[FIELD_COUNT]) {
    put_u32(dst + 8, (uint32_t)size);
    put_u64(dst + 12, sequence);
    put_u64(dst + 20, received_at);
    uint8_t *p = dst + RECORD_HEADER;
    for (int i = 0; i < FIELD_COUNT; i++)
        if (fields[i].data) {
            *p++ = (uint8_t)(i + 1);
            p = put_varint(p, fields[i].size);
            memcpy(p, fields[i].data, fields[i].size);
            p += fields[i].size;
        }
    put_u32(dst + 4, crc32c(seed, dst + 8, size - 8));
}

/* The acknowledgement: the record counts from this store on. */
static inline void record_commit(uint8_t *dst) { put_u32_release(dst, RECORD_MARK); }

/* The record at p filled in, when its fields are valid; its length and checksum are known to be. */
static inline int record_split(const uint8_t *p, record *out) {
    out->length = get_u32(p + 8);
    out->sequence = get_u64(p + 12);
    out->received_at = get_u64(p + 20);
    for (int i = 0; i < FIELD_COUNT; i++) { /* as memset it would become an instruction that is slow to start */
        out->fields[i].data = NULL;
        out->fields[i].size = 0;
    }
    cursor c = {p + RECORD_HEADER, p + out->length};
    while (c.p < c.end) {
        uint8_t tag = *c.p++;
        span value;
        if (!cursor_varint(&c, &value.size) || !cursor_take(&c, value.size, &value.data)) return 0;
        if (tag >= 1 && tag <= FIELD_COUNT) {
            if (out->fields[tag - 1].data) return 0;
            out->fields[tag - 1] = value;
        }
    }
    return 1;
}

/* 1 and the record filled in when a valid one stands at p; `room` bytes may be looked at. The caller checks the sequence number. */
static inline int record_read(const uint8_t *p, size_t room, uint32_t seed, record *out) {
    if (room < RECORD_HEADER || get_u32(p) != RECORD_MARK) return 0;
    uint32_t length = get_u32(p + 8);
    if (length < RECORD_HEADER || length > room) return 0;
    return get_u32(p + 4) == crc32c(seed, p + 8, length - 8) && record_split(p, out);
}

/* The offset in [from, size) of the next valid record with a sequence number above `after`; `size` when there is none, or
 * when more than `budget` bytes of would-be records had to be looked at, which only bytes made for it bring about. */
static inline size_t record_find(const uint8_t *base, size_t from, size_t size, uint32_t seed, uint64_t after, size_t *budget,
                                 record *out) {
    static const uint8_t mark[4] = {'K', 'N', 'E', 'V'};
    while (from + RECORD_HEADER <= size) {
        const uint8_t *hit = memmem(base + from, size - from, mark, 4);
        if (!hit) break;
        from = (size_t)(hit - base);
        if (size - from >= RECORD_HEADER && get_u64(hit + 12) > after) {
            uint32_t length = get_u32(hit + 8);
            if (length <= size - from) {
                if (length > *budget) break;
                *budget -= length;
                if (record_read(hit, size - from, seed, out)) return from;
            }
        }
        from++;
    }
    return size;
}

#endif
