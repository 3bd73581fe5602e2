/* The layout of journals and segments: docs/segment-format.md, sections 3 and 4. Python reads these constants from
 * kanalony.core.journal and kanalony.core.frames.
 *
 * Stored in files: never change, renumber or reuse one of these numbers. */
#ifndef KANALONY_LAYOUT_H
#define KANALONY_LAYOUT_H

enum { FORMAT_VERSION = 1 };

/* What a 200 means. */
enum { ACK_WRITTEN = 0, ACK_SYNCED = 1 };

/* The event type in frame prefixes for every query that names no type from 0 to EVENT_TYPE_MAX. */
enum { EVENT_TYPE_MAX = 254, EVENT_TYPE_OTHER = 0xFFFF };

enum {
    JOURNAL_HEADER = 4096,
    JOURNAL_WATERMARK_A = 128,
    JOURNAL_WATERMARK_B = 192,
    JOURNAL_BLOCK_UNIT = 4096, /* block sizes are multiples of a page */
    JOURNAL_MAX_BLOCKS = 1024,
};

/* Offsets and sizes of header, prefix and trailer, which are skippable LZ4 frames. HEADER_SIZE is without the host name,
 * PREFIX_SIZE without the counts by event type. */
enum {
    SEGMENT_MAGIC = 0x184D2A5A,
    SEGMENT_KIND = 4 + 4, /* behind magic number and size */
    SEGMENT_FIELDS = SEGMENT_KIND + 4,
    SEGMENT_CRC = 4, /* size, at the end of each frame */

    HEADER_VERSION = SEGMENT_FIELDS,
    HEADER_ACK = HEADER_VERSION + 2,
    HEADER_HOST_SIZE = HEADER_ACK + 1,
    HEADER_WORKER = HEADER_HOST_SIZE + 1,
    HEADER_FIRST_SEQUENCE = HEADER_WORKER + 8,
    HEADER_CREATED_AT = HEADER_FIRST_SEQUENCE + 8,
    HEADER_HOST = HEADER_CREATED_AT + 8,
    HEADER_SIZE = HEADER_HOST + SEGMENT_CRC,
    HEADER_MAX_HOST = 63,

    PREFIX_FRAME_LENGTH = SEGMENT_FIELDS,
    PREFIX_FRAME_CRC = PREFIX_FRAME_LENGTH + 4,
    PREFIX_CONTENT_LENGTH = PREFIX_FRAME_CRC + 4,
    PREFIX_REQUEST_COUNT = PREFIX_CONTENT_LENGTH + 4,
    PREFIX_TYPE_COUNT = PREFIX_REQUEST_COUNT + 4,
    PREFIX_WORKER = PREFIX_TYPE_COUNT + 2 + 2,
    PREFIX_FIRST_SEQUENCE = PREFIX_WORKER + 8,
    PREFIX_FIRST_RECEIVED = PREFIX_FIRST_SEQUENCE + 8,
    PREFIX_LAST_RECEIVED = PREFIX_FIRST_RECEIVED + 8,
    PREFIX_TYPES = PREFIX_LAST_RECEIVED + 8,
    PREFIX_SIZE = PREFIX_TYPES + SEGMENT_CRC,
    PREFIX_TYPE_SIZE = 2 + 4, /* an event type and its number of requests */

    TRAILER_FRAME_COUNT = SEGMENT_FIELDS,
    TRAILER_WORKER = TRAILER_FRAME_COUNT + 4,
    TRAILER_FIRST_SEQUENCE = TRAILER_WORKER + 8,
    TRAILER_REQUEST_COUNT = TRAILER_FIRST_SEQUENCE + 8,
    TRAILER_CONTENT_LENGTH = TRAILER_REQUEST_COUNT + 8,
    TRAILER_FIRST_RECEIVED = TRAILER_CONTENT_LENGTH + 8,
    TRAILER_LAST_RECEIVED = TRAILER_FIRST_RECEIVED + 8,
    TRAILER_SIZE = TRAILER_LAST_RECEIVED + 8 + SEGMENT_CRC,
};

#endif
