/* A record is one request: docs/segment-format.md, section 2. This file alone writes, checks and finds records. */
#ifndef KANALONY_RECORD_H
#define KANALONY_RECORD_H

#include "bytes.h"
#include "crc32c.h"

/* Stored in journals and segments: never change, renumber or reuse one of these numbers. */
#define RECORD_MARK 0x56454E4Bu /* "KNEV" */
/* Offsets in a record. */
enum {
    RECORD_CHECKSUM = 4,
    RECORD_LENGTH = RECORD_CHECKSUM + 4,
    RECORD_SEQUENCE = RECORD_LENGTH + 4,
    RECORD_RECEIVED_AT = RECORD_SEQUENCE + 8,
    RECORD_HEADER = RECORD_RECEIVED_AT + 8, /* size; the fields follow */
};

/* Kinds of fields: text and IP addresses become columns of text, the others columns of bytes. */
enum { FIELD_TEXT, FIELD_BINARY, FIELD_ADDRESS };

/* The fields of a request: X(tag, NAME, name, kind, column). This table is their only list.
 *
 * `name` is the name in Python, and in camelCase that of the column in the lake. Tags count from 1 without a gap, and `append`
 * takes the values in this order. `column` is the position among the columns of fields; it never changes, since lakes exist.
 *
 * To add a field, append a row with the next tag and the next column, and pass the value to `append` in kanalony/collector.
 * tests/core/test_fields.py fails until segments/reader.py (Request) and docs/segment-format.md have the field, too. */
#define REQUEST_FIELDS(X) \
    X(1, METHOD, method, FIELD_TEXT, 1) \
    X(2, PATH, path, FIELD_TEXT, 2) \
    X(3, REMOTE_ADDR, remote_addr, FIELD_ADDRESS, 0) \
    X(4, FORWARDED_FOR, forwarded_for, FIELD_TEXT, 4) \
    X(5, USER_AGENT, user_agent, FIELD_TEXT, 5) \
    X(6, REFERER, referer, FIELD_TEXT, 6) \
    X(7, QUERY, query, FIELD_BINARY, 7) \
    X(8, BODY, body, FIELD_BINARY, 8) \
    X(9, CONTENT_TYPE, content_type, FIELD_TEXT, 9) \
    X(10, CONTENT_ENCODING, content_encoding, FIELD_TEXT, 10) \
    X(11, ADDRESS_TOKEN, address_token, FIELD_BINARY, 3)

#define FIELD_TAG_OF(tag, NAME, name, kind, column) FIELD_##NAME = tag,
#define FIELD_NAME_OF(tag, NAME, name, kind, column) [tag - 1] = #name,
#define FIELD_KIND_OF(tag, NAME, name, kind, column) [tag - 1] = kind,
#define FIELD_COLUMN_OF(tag, NAME, name, kind, column) [column] = tag,
#define FIELD_ONE(...) +1
#define FIELD_TAG_BIT(tag, NAME, name, kind, column) | 1u << (tag - 1)
#define FIELD_COLUMN_BIT(tag, NAME, name, kind, column) | 1u << column

enum { REQUEST_FIELDS(FIELD_TAG_OF) FIELD_COUNT = REQUEST_FIELDS(FIELD_ONE) };
static const char *const FIELD_NAMES[FIELD_COUNT] = {REQUEST_FIELDS(FIELD_NAME_OF)};
static const uint8_t FIELD_KINDS[FIELD_COUNT] = {REQUEST_FIELDS(FIELD_KIND_OF)};
static const uint8_t FIELD_OF_COLUMN[FIELD_COUNT] = {REQUEST_FIELDS(FIELD_COLUMN_OF)}; /* tag by column */

_Static_assert((0u REQUEST_FIELDS(FIELD_TAG_BIT)) == (1u << FIELD_COUNT) - 1, "each tag from 1 on once");
_Static_assert((0u REQUEST_FIELDS(FIELD_COLUMN_BIT)) == (1u << FIELD_COUNT) - 1, "each column from 0 on once");

/* The bytes of one field; data is NULL when the request does not have it. */
typedef struct {
    const uint8_t *data;
    uint32_t size;
} span;

/* A valid record. fields[tag - 1] has the value of the field. */
typedef struct {
    uint32_t length;
    uint64_t sequence;
    uint64_t received_at;
    span fields[FIELD_COUNT];
} record;

/* Returns the start of every checksum of a worker's records: "Forgery" in the format explains why. */
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

/* Writes all of a record except its mark. `size` is record_size(fields), and dst has room for it. */
static inline void record_write(uint8_t *dst, size_t size, uint32_t seed, uint64_t sequence, uint64_t received_at,
                                const span fields[FIELD_COUNT]) {
    put_u32(dst + RECORD_LENGTH, (uint32_t)size);
    put_u64(dst + RECORD_SEQUENCE, sequence);
    put_u64(dst + RECORD_RECEIVED_AT, received_at);
    uint8_t *p = dst + RECORD_HEADER;
    for (int i = 0; i < FIELD_COUNT; i++)
        if (fields[i].data) {
            *p++ = (uint8_t)(i + 1);
            p = put_varint(p, fields[i].size);
            memcpy(p, fields[i].data, fields[i].size);
            p += fields[i].size;
        }
    put_u32(dst + RECORD_CHECKSUM, crc32c(seed, dst + RECORD_LENGTH, size - RECORD_LENGTH));
}

/* Acknowledges the record: from this store on it counts. */
static inline void record_commit(uint8_t *dst) { put_u32_release(dst, RECORD_MARK); }

/* Fills in the record at p, whose length and checksum are valid. Returns 0 when its fields are not. */
static inline int record_split(const uint8_t *p, record *out) {
    out->length = get_u32(p + RECORD_LENGTH);
    out->sequence = get_u64(p + RECORD_SEQUENCE);
    out->received_at = get_u64(p + RECORD_RECEIVED_AT);
    for (int i = 0; i < FIELD_COUNT; i++) { /* not memset: it would become an instruction that is slow to start */
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

/* Fills in the record at p, of whose bytes `room` may be read. Returns 0 when it is not valid. The caller checks the sequence
 * number. */
static inline int record_read(const uint8_t *p, size_t room, uint32_t seed, record *out) {
    if (room < RECORD_HEADER || get_u32(p) != RECORD_MARK) return 0;
    uint32_t length = get_u32(p + RECORD_LENGTH);
    if (length < RECORD_HEADER || length > room) return 0;
    return get_u32(p + RECORD_CHECKSUM) == crc32c(seed, p + RECORD_LENGTH, length - RECORD_LENGTH) && record_split(p, out);
}

/* Returns the offset in [from, size) of the next valid record with a sequence number above `after`, or `size` when there is
 * none. Gives up after more than `budget` bytes of candidates, which only happens with bytes made for this purpose. */
static inline size_t record_find(const uint8_t *base, size_t from, size_t size, uint32_t seed, uint64_t after, size_t *budget,
                                 record *out) {
    static const uint8_t mark[4] = {'K', 'N', 'E', 'V'};
    while (from + RECORD_HEADER <= size) {
        const uint8_t *hit = memmem(base + from, size - from, mark, 4);
        if (!hit) break;
        from = (size_t)(hit - base);
        if (size - from >= RECORD_HEADER && get_u64(hit + RECORD_SEQUENCE) > after) {
            uint32_t length = get_u32(hit + RECORD_LENGTH);
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
