# The declarations of the C headers beside this file, for all compiled modules.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "bytes.h":
    ctypedef struct cursor:
        const uint8_t *p
        const uint8_t *end
    uint16_t get_u16(const uint8_t *p) noexcept nogil
    uint32_t get_u32(const uint8_t *p) noexcept nogil
    uint64_t get_u64(const uint8_t *p) noexcept nogil
    void put_u16(uint8_t *p, uint16_t v) noexcept nogil
    void put_u32(uint8_t *p, uint32_t v) noexcept nogil
    void put_u64(uint8_t *p, uint64_t v) noexcept nogil

cdef extern from "crc32c.h":
    void crc32c_setup() noexcept nogil
    uint32_t extend_crc32c "crc32c"(uint32_t previous, const uint8_t *p, size_t n) noexcept nogil
    uint32_t crc32c_by_table(uint32_t crc, const uint8_t *p, size_t n) noexcept nogil

cdef extern from "layout.h":
    enum:
        FORMAT_VERSION
        ACK_WRITTEN
        ACK_SYNCED
        EVENT_TYPE_MAX
        EVENT_TYPE_OTHER
        JOURNAL_HEADER
        JOURNAL_WATERMARK_A
        JOURNAL_WATERMARK_B
        JOURNAL_BLOCK_UNIT
        JOURNAL_MAX_BLOCKS
        SEGMENT_MAGIC
        SEGMENT_KIND
        SEGMENT_FIELDS
        SEGMENT_CRC
        HEADER_VERSION
        HEADER_ACK
        HEADER_HOST_SIZE
        HEADER_WORKER
        HEADER_FIRST_SEQUENCE
        HEADER_CREATED_AT
        HEADER_HOST
        HEADER_SIZE
        HEADER_MAX_HOST
        PREFIX_FRAME_LENGTH
        PREFIX_FRAME_CRC
        PREFIX_CONTENT_LENGTH
        PREFIX_REQUEST_COUNT
        PREFIX_TYPE_COUNT
        PREFIX_WORKER
        PREFIX_FIRST_SEQUENCE
        PREFIX_FIRST_RECEIVED
        PREFIX_LAST_RECEIVED
        PREFIX_TYPES
        PREFIX_SIZE
        PREFIX_TYPE_SIZE
        TRAILER_FRAME_COUNT
        TRAILER_WORKER
        TRAILER_FIRST_SEQUENCE
        TRAILER_REQUEST_COUNT
        TRAILER_CONTENT_LENGTH
        TRAILER_FIRST_RECEIVED
        TRAILER_LAST_RECEIVED
        TRAILER_SIZE

# record.h has the table of fields; here are only those that compiled modules use by name.
cdef extern from "record.h":
    enum:
        RECORD_LENGTH
        RECORD_RECEIVED_AT
        FIELD_QUERY
        FIELD_BODY
        FIELD_CONTENT_TYPE
        FIELD_CONTENT_ENCODING
        FIELD_COUNT
        FIELD_TEXT
        FIELD_BINARY
        FIELD_ADDRESS
    const char *const FIELD_NAMES[FIELD_COUNT]
    const uint8_t FIELD_KINDS[FIELD_COUNT]
    const uint8_t FIELD_OF_COLUMN[FIELD_COUNT]
    ctypedef struct span:
        const uint8_t *data
        uint32_t size
    ctypedef struct record:
        uint32_t length
        uint64_t sequence
        uint64_t received_at
        span fields[FIELD_COUNT]
    uint32_t record_seed(uint64_t worker_id) noexcept nogil
    size_t record_size(const span *fields) noexcept nogil
    void record_write(uint8_t *dst, size_t size, uint32_t seed, uint64_t sequence, uint64_t received_at,
                      const span *fields) noexcept nogil
    void record_commit(uint8_t *dst) noexcept nogil
    int record_split(const uint8_t *p, record *out) noexcept nogil
    int record_read(const uint8_t *p, size_t room, uint32_t seed, record *out) noexcept nogil
    size_t record_find(const uint8_t *base, size_t start, size_t size, uint32_t seed, uint64_t after, size_t *budget,
                       record *out) noexcept nogil

cdef extern from "querystring.h":
    ctypedef struct query_pair:
        const uint8_t *name
        const uint8_t *name_end
        const uint8_t *value
        const uint8_t *value_end
    int query_next(cursor *c, query_pair *out) noexcept nogil
    size_t query_decode(const uint8_t *p, const uint8_t *end, uint8_t *dst) noexcept nogil
    size_t name_prefix(const uint8_t *name, size_t size) noexcept nogil
    int query_event_type(const uint8_t *p, size_t size) noexcept nogil

cdef extern from "events.h":
    enum:
        EVENTS_MAX_EXPANDED
    size_t repeated_size(const span *fields) noexcept nogil
    uint64_t events_limit(const span *fields) noexcept nogil

cdef extern from "json.h":
    ctypedef struct json_objects:
        cursor c
        int place
        int lines
        int mistakes
    int json_next_object(json_objects *o, const uint8_t **start, const uint8_t **end) noexcept nogil
    int json_next_member(cursor *c, query_pair *out) noexcept nogil
    size_t json_unescape(const uint8_t *p, const uint8_t *end, uint8_t *dst) noexcept nogil
    size_t json_text(const uint8_t *p, const uint8_t *end, uint8_t *dst) noexcept nogil

cdef extern from "redact.h":
    ctypedef struct redact_span:
        size_t start
        size_t end
    ctypedef struct redact_spans:
        redact_span *items
        size_t count
        size_t room
    int redact_query(const uint8_t *base, const uint8_t *p, const uint8_t *end, cursor names, uint8_t *scratch,
                     redact_spans *spans) noexcept nogil
    int redact_json(const uint8_t *base, const uint8_t *p, const uint8_t *end, cursor names, uint8_t *scratch,
                    redact_spans *spans) noexcept nogil

cdef extern from "utf8.h":
    size_t count_high(const uint8_t *p, size_t size) noexcept nogil

cdef extern from "numbers.h":
    size_t ipv4_text(const uint8_t *address, char *dst) noexcept nogil

cdef extern from "hash.h":
    void fingerprint(const uint8_t *p, size_t size, uint64_t *lanes) noexcept nogil

cdef extern from "column.h":
    enum:
        COLUMN_INT
        COLUMN_FLOAT
        COLUMN_WORDS
        COLUMN_BINARY
        COLUMN_TEXT
    ctypedef struct bytes_buffer:
        uint8_t *data
        size_t size
        size_t room
    ctypedef struct column:
        int kind
        size_t rows
        size_t set
        uint64_t cast_failures
        bytes_buffer valid
        bytes_buffer fixed
        bytes_buffer data
        uint32_t words
        bytes_buffer ends
        bytes_buffer slots
    void give_back_memory() noexcept nogil
    int column_fill(column *c, size_t rows) noexcept nogil
    int column_put_u64(column *c, size_t row, uint64_t value) noexcept nogil
    int column_put_bytes(column *c, size_t row, const uint8_t *p, size_t size) noexcept nogil

cdef extern from "words.h":
    ctypedef struct word_slot:
        pass
    ctypedef struct word_stock:
        uint64_t seed
        uint64_t count
    int column_put_word(column *c, size_t row, const uint8_t *p, size_t size, word_stock *stock) noexcept nogil
    int column_has_no_word(const column *c, size_t row) noexcept nogil

cdef extern from "event_table.h":
    enum:
        NAME_SLOTS
    ctypedef struct sent_value:
        pass
    ctypedef struct event_table:
        int count
        column *columns
        uint64_t *seen
        uint64_t *clashed
        uint64_t kept
        sent_value *first
        word_stock stock
        size_t row
        column map_lists
        column map_keys
        column map_values
        column map_value_lists
        column conflicts
        column conflict_names
        bytes_buffer extras
        bytes_buffer names
        bytes_buffer scratch
        bytes_buffer name
    void table_name(event_table *t, const uint8_t *name, uint32_t size, int column) noexcept nogil
    int table_add_pairs(event_table *t, const uint8_t *p, const uint8_t *end) noexcept nogil
    int table_add_members(event_table *t, const uint8_t *start, const uint8_t *end) noexcept nogil
    int table_end_row(event_table *t) noexcept nogil
