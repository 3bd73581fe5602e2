/* The most events that a request may hold. kanalony/bodies.py finds the events, for every command. */
#ifndef KANALONY_EVENTS_H
#define KANALONY_EVENTS_H

#include "querystring.h"
#include "record.h"

enum {
    EVENTS_MAX_EXPANDED = 16 << 20, /* bytes of a decompressed body, and of what its events have in common times their number */
    EVENTS_COST = 256,              /* bytes that each event counts for besides */
    EVENTS_PAIR_COST = 64,          /* bytes that each parameter of the query counts for, in each event */
};

/* Returns the bytes of the fields that every event of a request repeats: all but the body. */
static inline size_t repeated_size(const span fields[FIELD_COUNT]) {
    size_t size = 0;
    for (int i = 0; i < FIELD_COUNT; i++)
        if (i != FIELD_BODY - 1 && fields[i].data) size += fields[i].size;
    return size;
}

/* Returns the limit for a request. Without one a small request could become any amount of data. */
static inline uint64_t events_limit(const span fields[FIELD_COUNT]) {
    const span *query = &fields[FIELD_QUERY - 1];
    size_t parameters = query->data ? query_count(query->data, query->size) : 0;
    return 1 + EVENTS_MAX_EXPANDED / (repeated_size(fields) + EVENTS_PAIR_COST * parameters + EVENTS_COST);
}

#endif
