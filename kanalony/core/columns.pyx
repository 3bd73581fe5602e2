# cython: language_level=3, boundscheck=False, wraparound=False
"""Turns records into Arrow columns of events, one frame at a time; event_table.h fills the columns of parameters."""

from os import urandom
from typing import NamedTuple

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memset

cdef extern from "arpa/inet.h":
    const char *inet_ntop(int family, const void *source, char *target, uint32_t size) noexcept nogil
    int AF_INET6

cdef extern from "string.h":
    size_t strlen(const char *) noexcept nogil

from kanalony.core.headers cimport (
    COLUMN_BINARY, COLUMN_FLOAT, COLUMN_INT, COLUMN_TEXT, COLUMN_WORDS, FIELD_ADDRESS, FIELD_BINARY, FIELD_BODY,
    FIELD_CONTENT_ENCODING, FIELD_CONTENT_TYPE, FIELD_COUNT, FIELD_KINDS, FIELD_NAMES, FIELD_OF_COLUMN, FIELD_QUERY, NAME_SLOTS,
    bytes_buffer, column, column_fill, column_has_no_word, column_put_bytes, column_put_u64, column_put_word, count_high,
    crc32c_setup, event_table, events_limit, fingerprint, give_back_memory, ipv4_text, record, record_read, record_seed,
    record_split, repeated_size, sent_value, span, table_add_members, table_add_pairs, table_end_row, table_name, word_slot,
)

crc32c_setup()

KINDS = {"int": COLUMN_INT, "float": COLUMN_FLOAT, "text": COLUMN_WORDS, "binary": COLUMN_BINARY}

# The columns of a request, in this order; those of its fields come last.
cdef enum:
    _RECEIVED_AT
    _WORKER
    _SEQUENCE
    _INDEX
    _FINGERPRINT
    _FIELDS
    _REQUEST_COLUMNS = _FIELDS + FIELD_COUNT

cdef enum:
    _EVENT_WEIGHT = 600  # bytes of an event beyond those that were sent: 8 for each of most columns
    _MAP_ENTRY_WEIGHT = 48
    _WORD_WEIGHT = 64  # up to four slots, and the end


def _column_of(int tag):
    """(name, kind) of a field's column: `remote_addr` is remoteAddr."""
    first, *others = FIELD_NAMES[tag - 1].decode().split("_")
    return first + "".join([word.capitalize() for word in others]), "binary" if FIELD_KINDS[tag - 1] == FIELD_BINARY else "text"


REQUEST_COLUMNS = (
    ("receivedAt", "int"),
    ("worker", "int"),
    ("sequence", "int"),
    ("index", "int"),
    ("fingerprint", "binary"),
    *[_column_of(FIELD_OF_COLUMN[i]) for i in range(FIELD_COUNT)],
)


class EventColumn(NamedTuple):
    rows: int
    not_null: int
    validity: object
    fixed: object
    data: object
    cast_failures: int
    words: int
    word_ends: object


class EventLists(NamedTuple):
    key_ends: EventColumn
    keys: EventColumn
    value_ends: EventColumn
    values: EventColumn
    conflict_ends: EventColumn
    conflicts: EventColumn


cdef uint64_t _LAST_TIME = 253402300799999999  # the end of the year 9999, where many tools' calendars end


cdef inline void _free(column *c) noexcept nogil:
    free(c.valid.data)
    free(c.fixed.data)
    free(c.data.data)
    free(c.ends.data)
    free(c.slots.data)


@cython.no_gc
cdef class _Buffer:
    """Memory taken from a column, without a copy.

    It returns to the column together with the last array that uses it: touching new memory takes as long as all the work
    on it here. It does not when most of it was unused, since later batches may need less. Only the thread that adds events
    may drop that array: the column must not change while this thread adds without the GIL.
    """
    cdef EventTable _table
    cdef bytes_buffer *_home
    cdef bytes_buffer _taken

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._taken.data, self._taken.size, 1, flags)

    def __dealloc__(self):
        if 4 * self._taken.size >= self._taken.room and self._home.data == NULL:
            self._home[0] = self._taken
            self._home.size = 0
        else:
            free(self._taken.data)


cdef _taken(EventTable table, bytes_buffer *b):
    cdef _Buffer taken
    if b.size == 0:
        free(b.data)
        memset(b, 0, sizeof(bytes_buffer))
        return b""  # Arrow rejects a buffer at address 0
    taken = _Buffer()
    taken._table = table
    taken._home = b
    taken._taken = b[0]
    memset(b, 0, sizeof(bytes_buffer))
    return taken


cdef inline bytes _part(span *part):
    return b"" if part.data == NULL else PyBytes_FromStringAndSize(<const char *>part.data, part.size)


def release_memory():
    give_back_memory()


cdef class EventTable:
    cdef event_table _table
    cdef column _request[_REQUEST_COLUMNS]
    cdef int _session
    cdef size_t _weight
    cdef list _names, _kinds

    def __cinit__(self, parameters, spellings, session):
        cdef int i
        memset(&self._table, 0, sizeof(self._table))
        memset(self._request, 0, sizeof(self._request))
        self._names = [name.encode() for name, _ in parameters]
        self._kinds = [kind for _, kind in parameters]
        if len(parameters) + len(spellings) > NAME_SLOTS // 4:
            raise ValueError(f"{len(parameters)} parameters and {len(spellings)} spellings exceed {NAME_SLOTS // 4}")
        self._table.count = len(parameters)
        self._table.columns = <column *>PyMem_Calloc(len(parameters), sizeof(column))
        self._table.seen = <uint64_t *>PyMem_Calloc(len(parameters), sizeof(uint64_t))
        self._table.clashed = <uint64_t *>PyMem_Calloc(len(parameters), sizeof(uint64_t))
        self._table.first = <sent_value *>PyMem_Calloc(len(parameters), sizeof(sent_value))
        if not (self._table.columns and self._table.seen and self._table.clashed and self._table.first):
            raise MemoryError
        for i in range(len(parameters)):
            self._table.columns[i].kind = KINDS[self._kinds[i]]
            self._name(self._names[i], i)
        for spelling, name in spellings:
            other = spelling.encode()
            self._names.append(other)
            self._name(other, self._names.index(name.encode()))
        for i in range(_REQUEST_COLUMNS):
            self._request[i].kind = KINDS[REQUEST_COLUMNS[i][1]]
        self._table.stock.seed = int.from_bytes(urandom(8))
        self._session = self._names.index(session.encode())
        self._table.map_lists.kind = self._table.map_value_lists.kind = self._table.conflicts.kind = COLUMN_INT
        self._table.map_keys.kind = self._table.map_values.kind = self._table.conflict_names.kind = COLUMN_TEXT

    cdef void _name(self, bytes name, int i):
        table_name(&self._table, <const uint8_t *>PyBytes_AS_STRING(name), len(name), i)

    def __dealloc__(self):
        cdef int i
        cdef event_table *t = &self._table
        if t.columns:
            for i in range(t.count):
                _free(&t.columns[i])
        for i in range(_REQUEST_COLUMNS):
            _free(&self._request[i])
        for c in range(6):
            _free(self._list_column(c))
        free(t.extras.data)
        free(t.names.data)
        free(t.scratch.data)
        free(t.name.data)
        PyMem_Free(t.columns)
        PyMem_Free(t.seen)
        PyMem_Free(t.clashed)
        PyMem_Free(t.first)

    cdef column *_list_column(self, int number) noexcept:
        cdef event_table *t = &self._table
        if number == 0:
            return &t.map_lists
        if number == 1:
            return &t.map_keys
        if number == 2:
            return &t.map_value_lists
        if number == 3:
            return &t.map_values
        if number == 4:
            return &t.conflicts
        return &t.conflict_names

    @property
    def rows(self):
        return self._table.row

    @property
    def weight(self):
        return self._size()

    cdef inline size_t _size(self) noexcept nogil:
        return self._weight + _MAP_ENTRY_WEIGHT * self._table.kept + _WORD_WEIGHT * self._table.stock.count

    cdef int _end_event(self, record *r, uint64_t worker, uint64_t index, const uint8_t *payload, size_t size) noexcept nogil:
        """Completes an event whose parameters are in the table. Returns 0 when out of memory."""
        cdef size_t row = self._table.row
        cdef span *field
        cdef const uint8_t *data
        cdef int i, tag
        cdef char text[64]
        cdef uint64_t lanes[2]
        if not (column_put_u64(&self._request[_RECEIVED_AT], row, min(r.received_at, _LAST_TIME))
                and column_put_u64(&self._request[_WORKER], row, worker)
                and column_put_u64(&self._request[_SEQUENCE], row, r.sequence)
                and column_put_u64(&self._request[_INDEX], row, index)):
            return 0
        # Some players send an empty session; without a fingerprint such events never count as duplicates.
        if not column_has_no_word(&self._table.columns[self._session], row):
            lanes[0] = lanes[1] = 0
            field = &r.fields[FIELD_QUERY - 1]
            fingerprint(field.data, field.size if field.data != NULL else 0, lanes)
            fingerprint(payload, size, lanes)
            if not column_put_bytes(&self._request[_FINGERPRINT], row, <const uint8_t *>lanes, 16):
                return 0
        for i in range(FIELD_COUNT):
            tag = FIELD_OF_COLUMN[i]
            field = &r.fields[tag - 1]
            if field.data == NULL or (tag == FIELD_BODY and index > 0):
                continue
            data = field.data
            size = field.size
            if FIELD_KINDS[tag - 1] == FIELD_ADDRESS:
                if size == 4:
                    size = ipv4_text(data, text)
                elif size == 16:
                    inet_ntop(AF_INET6, data, text, sizeof(text))
                    size = strlen(text)
                else:
                    continue
                data = <const uint8_t *>text
            if self._request[_FIELDS + i].kind == COLUMN_WORDS:
                if not column_put_word(&self._request[_FIELDS + i], row, data, size, &self._table.stock):
                    return 0
            elif not column_put_bytes(&self._request[_FIELDS + i], row, data, size):
                return 0
        return table_end_row(&self._table)

    def add(self, content, uint64_t worker_id, uint64_t first_sequence, uint64_t count, uint64_t begin, uint64_t end,
            uint64_t worker, read_body, size_t limit):
        cdef Py_buffer view
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            return self._add(<const uint8_t *>view.buf, view.len, worker_id, first_sequence, count, begin, end, worker, read_body,
                             limit)
        finally:
            PyBuffer_Release(&view)

    cdef _add(self, const uint8_t *records, size_t length, uint64_t worker_id, uint64_t first_sequence, uint64_t count,
              uint64_t begin, uint64_t end, uint64_t worker, read_body, size_t limit):
        cdef const uint8_t *p = records
        cdef const uint8_t *stop = p + length
        cdef const uint8_t *text
        cdef const uint8_t *payload
        cdef uint32_t seed = record_seed(worker_id)
        cdef uint64_t expected = first_sequence, index
        cdef record r
        cdef span query
        cdef bint sound = True, memory = True, has_body = False, members
        cdef size_t unread = 0, common, size
        cdef size_t rows = self._table.row
        with nogil:
            while p < stop:
                if not record_read(p, stop - p, seed, &r) or r.sequence != expected:
                    sound = False
                    break
                expected += 1
                p += r.length
        if not sound or expected != first_sequence + count:
            return None
        p = records
        expected = first_sequence
        while p < stop and expected < end and self._size() < limit:
            with nogil:
                has_body = False
                while p < stop and expected < end and self._size() < limit:
                    record_split(p, &r)  # checked above
                    p += r.length
                    expected += 1
                    if r.sequence < begin:
                        continue
                    has_body = r.fields[FIELD_BODY - 1].data != NULL
                    if has_body:
                        break
                    query = r.fields[FIELD_QUERY - 1]
                    memory = ((query.data == NULL or table_add_pairs(&self._table, query.data, query.data + query.size))
                              and self._end_event(&r, worker, 0, NULL, 0))
                    if not memory:
                        break
                    self._weight += _EVENT_WEIGHT + r.length + query.size + 2 * count_high(p - r.length, r.length)
            if not memory:
                raise MemoryError
            if not has_body:
                continue
            query = r.fields[FIELD_QUERY - 1]
            body, spans, is_json, problem = read_body(
                _part(&r.fields[FIELD_BODY - 1]), _part(&r.fields[FIELD_CONTENT_TYPE - 1]),
                _part(&r.fields[FIELD_CONTENT_ENCODING - 1]), events_limit(r.fields))
            unread += problem is not None
            text = <const uint8_t *>PyBytes_AS_STRING(body)
            members = is_json
            index = 0
            self._weight += r.length
            common = repeated_size(r.fields) + query.size
            common += 2 * count_high(p - r.length, r.length - r.fields[FIELD_BODY - 1].size)
            for start, finish in spans:
                if query.data != NULL and not table_add_pairs(&self._table, query.data, query.data + query.size):
                    raise MemoryError
                payload = text + <size_t>start
                size = <size_t>finish - <size_t>start
                if not (table_add_members(&self._table, payload, payload + size) if members
                        else table_add_pairs(&self._table, payload, payload + size)):
                    raise MemoryError
                self._weight += _EVENT_WEIGHT + common + size + 2 * count_high(payload, size)
                if size == 0:
                    # A body without parameters is the payload itself: such bodies are equal only byte for byte.
                    payload = r.fields[FIELD_BODY - 1].data
                    size = r.fields[FIELD_BODY - 1].size
                if not self._end_event(&r, worker, index, payload, size):
                    raise MemoryError
                index += 1
        return expected, self._table.row - rows, unread

    def finish(self):
        cdef int i
        cdef event_table *t = &self._table
        cdef column *c
        columns = {}
        for i in range(_REQUEST_COLUMNS):
            columns[REQUEST_COLUMNS[i][0]] = self._take(&self._request[i], t.row)
        for i in range(t.count):
            columns[self._names[i].decode()] = self._take(&t.columns[i], t.row)
            t.seen[i] = t.clashed[i] = 0
        lists = []
        for i in range(6):
            c = self._list_column(i)
            lists.append(self._take(c, c.rows))
        t.row = t.kept = t.stock.count = 0
        self._weight = 0
        return columns, EventLists(*lists)

    cdef _take(self, column *c, size_t rows):
        if not column_fill(c, rows):
            raise MemoryError
        taken = EventColumn(
            c.rows, c.set, _taken(self, &c.valid), _taken(self, &c.fixed), _taken(self, &c.data), c.cast_failures, c.words,
            _taken(self, &c.ends),
        )
        if 8 * c.words * sizeof(word_slot) >= c.slots.size:
            if c.slots.data != NULL:
                memset(c.slots.data, 0, c.slots.size)
        else:
            free(c.slots.data)
            memset(&c.slots, 0, sizeof(bytes_buffer))
        c.rows = c.set = c.cast_failures = c.words = 0
        return taken
