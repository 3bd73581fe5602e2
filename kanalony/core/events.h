/* How many events a request may hold. kanalony/bodies.py says which: it reads the body, for `cat` and `verify` as for `compact`.
 */
#ifndef KANALONY_EVENTS_H
#define KANALONY_EVENTS_H

#include "querystring.h"
#include "record.h"

enum {
    EVENTS_MAX_EXPANDED = 16 << 20, /* bytes: a body decompressed, and what its events have in common times their number */
    EVENTS_COST = 256,              /* bytes that an event counts for beyond what it repeats */
    EVENTS_PAIR_COST = 64,          /* the same for each parameter of the query */
};

/* Bytes of the fields that each event of a request repeats: all but the body. */
static inline size_t repeated_size(const span fields[FIELD_COUNT]) {
    size_t size = 0;
    for (int i = 0; i < FIELD_COUNT; i++)
        if (i != FIELD_BODY - 1 && fields[i].data) size += fields[i].size;
    return size;
}

/* Without a limit a small request could become any amount of data. */
static inline uint64_t events_limit(const span fields[FIELD_COUNT]) {
    const span *query = &fields[FIELD_QUERY - 1];
    size_t parameters = query->data ? query_count(query->data, query->size) : 0;
    return 1 + EVENTS_MAX_EXPANDED / (repeated_size(fields) + EVENTS_PAIR_COST * parameters + EVENTS_COST);
}

#endif
