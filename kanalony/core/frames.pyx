# cython: language_level=3, boundscheck=False, wraparound=False
"""Builds and parses the parts of segments: header, prefix, trailer and records.

docs/segment-format.md, sections 2 and 3, has the layout. Parsers return None for bytes that are not valid; the caller
decides what to do about damage.
"""

from typing import NamedTuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from kanalony.core.headers cimport (
    EVENTS_MAX_EXPANDED, EVENT_TYPE_MAX, EVENT_TYPE_OTHER, FIELD_COUNT, FIELD_NAMES as _FIELD_NAMES, FIELD_QUERY,
    FORMAT_VERSION, HEADER_ACK, HEADER_CREATED_AT, HEADER_FIRST_SEQUENCE, HEADER_HOST, HEADER_HOST_SIZE, HEADER_MAX_HOST,
    HEADER_SIZE, HEADER_VERSION, HEADER_WORKER, PREFIX_CONTENT_LENGTH, PREFIX_FIRST_RECEIVED, PREFIX_FIRST_SEQUENCE,
    PREFIX_FRAME_CRC, PREFIX_FRAME_LENGTH, PREFIX_LAST_RECEIVED, PREFIX_REQUEST_COUNT, PREFIX_SIZE, PREFIX_TYPES,
    PREFIX_TYPE_COUNT, PREFIX_TYPE_SIZE, PREFIX_WORKER, SEGMENT_CRC, SEGMENT_KIND, SEGMENT_MAGIC,
    TRAILER_CONTENT_LENGTH, TRAILER_FIRST_RECEIVED, TRAILER_FIRST_SEQUENCE, TRAILER_FRAME_COUNT, TRAILER_LAST_RECEIVED,
    TRAILER_REQUEST_COUNT, TRAILER_SIZE as _TRAILER_SIZE, TRAILER_WORKER, crc32c_by_table, crc32c_setup, events_limit,
    extend_crc32c, get_u16, get_u32, get_u64, put_u16, put_u32, put_u64, query_event_type, record, record_read, record_seed,
    span,
)

crc32c_setup()

VERSION = FORMAT_VERSION
HEADER_SIZE_MAX = HEADER_SIZE + HEADER_MAX_HOST
PREFIX_SIZE_MAX = PREFIX_SIZE + (EVENT_TYPE_MAX + 2) * PREFIX_TYPE_SIZE
TRAILER_SIZE = _TRAILER_SIZE
PREFIX_START = (<uint32_t>SEGMENT_MAGIC).to_bytes(4, "little")
OTHER_TYPE = EVENT_TYPE_OTHER
FIELD_NAMES = tuple([_FIELD_NAMES[i].decode() for i in range(FIELD_COUNT)])
MAX_EXPANDED = EVENTS_MAX_EXPANDED


class Header(NamedTuple):
    size: int
    version: int
    ack: int
    host: str
    worker_id: int
    first_sequence: int
    created_at: int


class Prefix(NamedTuple):
    size: int
    frame_length: int
    frame_crc: int
    content_length: int
    request_count: int
    worker_id: int
    first_sequence: int
    first_received: int
    last_received: int
    types: dict


class Trailer(NamedTuple):
    frame_count: int
    worker_id: int
    first_sequence: int
    request_count: int
    content_length: int
    first_received: int
    last_received: int


def crc32c(data, uint32_t previous=0, *, bint by_table=False):
    cdef Py_buffer view
    cdef uint32_t crc
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        with nogil:
            if by_table:
                crc = ~crc32c_by_table(~previous, <const uint8_t *>view.buf, view.len)
            else:
                crc = extend_crc32c(previous, <const uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return crc


cdef bytes _new_skippable(Py_ssize_t size, const char *kind):
    cdef bytes frame = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame)
    memset(p, 0, size)
    put_u32(p, SEGMENT_MAGIC)
    put_u32(p + 4, <uint32_t>(size - 8))
    memcpy(p + SEGMENT_KIND, kind, 4)
    return frame


cdef bytes _finish_skippable(bytes frame):
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame)
    cdef size_t size = len(frame)
    put_u32(p + size - SEGMENT_CRC, extend_crc32c(0, p, size - SEGMENT_CRC))
    return frame


cdef size_t _check_skippable(const uint8_t *p, size_t room, const char *kind, size_t minimum) noexcept nogil:
    """Returns the size of the skippable frame of this kind at p, or 0 when it is not complete and valid."""
    cdef size_t size
    if room < minimum or get_u32(p) != SEGMENT_MAGIC or memcmp(p + SEGMENT_KIND, kind, 4) != 0:
        return 0
    size = <size_t>get_u32(p + 4) + 8
    if size < minimum or size > room or get_u32(p + size - SEGMENT_CRC) != extend_crc32c(0, p, size - SEGMENT_CRC):
        return 0
    return size


def build_header(uint64_t worker_id, str host, int ack, uint64_t first_sequence, uint64_t created_at):
    cdef bytes name = host.encode("ascii")
    if len(name) > HEADER_MAX_HOST:
        raise ValueError(f"host name of {len(name)} characters exceeds {HEADER_MAX_HOST}")
    cdef bytes frame = _new_skippable(HEADER_SIZE + len(name), b"KSEG")
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame)
    put_u16(p + HEADER_VERSION, FORMAT_VERSION)
    p[HEADER_ACK] = <uint8_t>ack
    p[HEADER_HOST_SIZE] = <uint8_t>len(name)
    put_u64(p + HEADER_WORKER, worker_id)
    put_u64(p + HEADER_FIRST_SEQUENCE, first_sequence)
    put_u64(p + HEADER_CREATED_AT, created_at)
    memcpy(p + HEADER_HOST, PyBytes_AS_STRING(name), len(name))
    return _finish_skippable(frame)


def parse_header(buffer):
    cdef Py_buffer view
    cdef const uint8_t *p
    cdef size_t size
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *>view.buf
        size = _check_skippable(p, view.len, b"KSEG", HEADER_SIZE)
        if size == 0 or size != <size_t>HEADER_SIZE + p[HEADER_HOST_SIZE]:
            return None
        return Header(
            size,
            get_u16(p + HEADER_VERSION),
            p[HEADER_ACK],
            p[HEADER_HOST:HEADER_HOST + p[HEADER_HOST_SIZE]].decode("ascii", "replace"),
            get_u64(p + HEADER_WORKER),
            get_u64(p + HEADER_FIRST_SEQUENCE),
            get_u64(p + HEADER_CREATED_AT),
        )
    finally:
        PyBuffer_Release(&view)


def build_prefix(content, uint64_t worker_id, uint64_t first_sequence, frame):
    cdef Py_buffer view, frame_view
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef uint32_t counts[EVENT_TYPE_MAX + 2]  # the last one: every other type
    cdef uint32_t seed = record_seed(worker_id), count = 0, frame_crc
    cdef uint64_t first_received = ~<uint64_t>0, last_received = 0
    cdef record r
    cdef bint sound = True
    cdef int kinds = 0, i, kind
    cdef span query
    memset(counts, 0, sizeof(counts))
    PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(frame, &frame_view, PyBUF_SIMPLE)
        try:
            p = <const uint8_t *>view.buf
            end = p + view.len
            with nogil:
                while p < end:
                    if not record_read(p, end - p, seed, &r) or r.sequence != first_sequence + count:
                        sound = False
                        break
                    if r.received_at < first_received:
                        first_received = r.received_at
                    if r.received_at > last_received:
                        last_received = r.received_at
                    query = r.fields[FIELD_QUERY - 1]
                    kind = query_event_type(query.data, query.size) if query.data != NULL else EVENT_TYPE_OTHER
                    counts[min(kind, EVENT_TYPE_MAX + 1)] += 1
                    count += 1
                    p += r.length
                frame_crc = extend_crc32c(0, <const uint8_t *>frame_view.buf, frame_view.len)
            if not sound or count == 0:
                raise ValueError(
                    f"no valid record with sequence number {first_sequence + count} at offset {p - <const uint8_t *>view.buf}"
                )
            frame_length = frame_view.len
        finally:
            PyBuffer_Release(&frame_view)
        content_length = view.len
    finally:
        PyBuffer_Release(&view)
    for i in range(EVENT_TYPE_MAX + 2):
        kinds += counts[i] != 0
    cdef bytes prefix = _new_skippable(PREFIX_SIZE + kinds * PREFIX_TYPE_SIZE, b"KFRM")
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(prefix)
    put_u32(out + PREFIX_FRAME_LENGTH, frame_length)
    put_u32(out + PREFIX_FRAME_CRC, frame_crc)
    put_u32(out + PREFIX_CONTENT_LENGTH, content_length)
    put_u32(out + PREFIX_REQUEST_COUNT, count)
    put_u16(out + PREFIX_TYPE_COUNT, kinds)
    put_u64(out + PREFIX_WORKER, worker_id)
    put_u64(out + PREFIX_FIRST_SEQUENCE, first_sequence)
    put_u64(out + PREFIX_FIRST_RECEIVED, first_received)
    put_u64(out + PREFIX_LAST_RECEIVED, last_received)
    out += PREFIX_TYPES
    for i in range(EVENT_TYPE_MAX + 2):
        if counts[i]:
            put_u16(out, i if i <= EVENT_TYPE_MAX else EVENT_TYPE_OTHER)
            put_u32(out + 2, counts[i])
            out += PREFIX_TYPE_SIZE
    return _finish_skippable(prefix)


def parse_prefix(buffer):
    cdef Py_buffer view
    cdef const uint8_t *p
    cdef size_t size
    cdef int i
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *>view.buf
        size = _check_skippable(p, view.len, b"KFRM", PREFIX_SIZE)
        if size == 0 or size != PREFIX_SIZE + <size_t>get_u16(p + PREFIX_TYPE_COUNT) * PREFIX_TYPE_SIZE:
            return None
        types = {}
        for i in range(get_u16(p + PREFIX_TYPE_COUNT)):
            types[get_u16(p + PREFIX_TYPES + i * PREFIX_TYPE_SIZE)] = get_u32(p + PREFIX_TYPES + i * PREFIX_TYPE_SIZE + 2)
        if list(types) != sorted(types) or 0 in types.values() or sum(types.values()) != get_u32(p + PREFIX_REQUEST_COUNT):
            return None
        return Prefix(
            size,
            get_u32(p + PREFIX_FRAME_LENGTH),
            get_u32(p + PREFIX_FRAME_CRC),
            get_u32(p + PREFIX_CONTENT_LENGTH),
            get_u32(p + PREFIX_REQUEST_COUNT),
            get_u64(p + PREFIX_WORKER),
            get_u64(p + PREFIX_FIRST_SEQUENCE),
            get_u64(p + PREFIX_FIRST_RECEIVED),
            get_u64(p + PREFIX_LAST_RECEIVED),
            types,
        )
    finally:
        PyBuffer_Release(&view)


def build_trailer(trailer):
    cdef bytes frame = _new_skippable(_TRAILER_SIZE, b"KEND")
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame)
    put_u32(p + TRAILER_FRAME_COUNT, trailer.frame_count)
    put_u64(p + TRAILER_WORKER, trailer.worker_id)
    put_u64(p + TRAILER_FIRST_SEQUENCE, trailer.first_sequence)
    put_u64(p + TRAILER_REQUEST_COUNT, trailer.request_count)
    put_u64(p + TRAILER_CONTENT_LENGTH, trailer.content_length)
    put_u64(p + TRAILER_FIRST_RECEIVED, trailer.first_received)
    put_u64(p + TRAILER_LAST_RECEIVED, trailer.last_received)
    return _finish_skippable(frame)


def parse_trailer(buffer):
    cdef Py_buffer view
    cdef const uint8_t *p
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *>view.buf
        if _check_skippable(p, view.len, b"KEND", _TRAILER_SIZE) != _TRAILER_SIZE:
            return None
        return Trailer(
            get_u32(p + TRAILER_FRAME_COUNT),
            get_u64(p + TRAILER_WORKER),
            get_u64(p + TRAILER_FIRST_SEQUENCE),
            get_u64(p + TRAILER_REQUEST_COUNT),
            get_u64(p + TRAILER_CONTENT_LENGTH),
            get_u64(p + TRAILER_FIRST_RECEIVED),
            get_u64(p + TRAILER_LAST_RECEIVED),
        )
    finally:
        PyBuffer_Release(&view)


def read_records(content, uint64_t worker_id, uint64_t first_sequence):
    cdef Py_buffer view
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef uint32_t seed = record_seed(worker_id)
    cdef uint64_t expected = first_sequence
    cdef record r
    cdef int i, valid
    cdef list requests = []
    PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *>view.buf
        end = p + view.len
        while p < end:
            with nogil:
                valid = record_read(p, end - p, seed, &r)
            if not valid or r.sequence != expected:
                return None
            fields = [r.sequence, r.received_at]
            for i in range(FIELD_COUNT):
                fields.append(None if r.fields[i].data == NULL
                              else PyBytes_FromStringAndSize(<const char *>r.fields[i].data, r.fields[i].size))
            requests.append(tuple(fields))
            expected += 1
            p += r.length
    finally:
        PyBuffer_Release(&view)
    return requests


def event_limit(values):
    cdef span fields[FIELD_COUNT]
    cdef Py_ssize_t i
    cdef tuple parts = tuple(values)
    if len(parts) > FIELD_COUNT:
        raise TypeError(f"{len(parts)} values for the {FIELD_COUNT} fields of a request")
    memset(fields, 0, sizeof(fields))
    for i in range(len(parts)):
        if parts[i]:
            fields[i].data = <const uint8_t *>PyBytes_AS_STRING(parts[i])
            fields[i].size = <uint32_t>len(parts[i])
    return events_limit(fields)
