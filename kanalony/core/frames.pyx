# cython: language_level=3, boundscheck=False, wraparound=False
"""Segment building blocks: header, prefix and trailer built and parsed, records decoded, prefixes found after damage.

The layout is docs/segment-format.md, sections 2 and 3. Parsers answer None for bytes that are not what they look for:
what to do about damage is their caller's business.
"""

from typing import NamedTuple

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from kanalony.core.headers cimport (
    EVENT_TYPE_OTHER, FIELD_COUNT, FIELD_QUERY, crc32c_by_table, crc32c_setup, extend_crc32c, get_u16, get_u32, get_u64, put_u16,
    put_u32, put_u64, query_event_type, record, record_read, record_seed,
)

crc32c_setup()

# Persisted numbers, as docs/segment-format.md has them. Sizes include magic and CRC.
VERSION = 1
cdef enum:
    _SKIPPABLE = 0x184D2A5A
    _HEADER_SIZE = 4 + 4 + 4 + 2 + 1 + 1 + 8 + 8 + 8 + 4
    _PREFIX_SIZE = 4 + 4 + 4 + 4 + 4 + 4 + 4 + 2 + 2 + 8 + 8 + 8 + 8 + 4
    _TRAILER_SIZE = 4 + 4 + 4 + 4 + 8 + 8 + 8 + 8 + 8 + 8 + 4
    _TYPE_SIZE = 2 + 4
    _MAX_HOST = 63
    _OTHER_TYPE = 0xFFFF
HEADER_SIZE_MAX = _HEADER_SIZE + _MAX_HOST
PREFIX_SIZE_MAX = _PREFIX_SIZE + 256 * _TYPE_SIZE
TRAILER_SIZE = _TRAILER_SIZE
OTHER_TYPE = _OTHER_TYPE
PREFIX_START = b"\x5A\x2A\x4D\x18"


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
    put_u32(p, _SKIPPABLE)
    put_u32(p + 4, <uint32_t>(size - 8))
    memcpy(p + 8, kind, 4)
    return frame


cdef bytes _finish_skippable(bytes frame):
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame)
    cdef size_t size = len(frame)
    put_u32(p + size - 4, extend_crc32c(0, p, size - 4))
    return frame


cdef size_t _check_skippable(const uint8_t *p, size_t room, const char *kind, size_t minimum) noexcept nogil:
    """Size of the skippable frame of this kind at p, or 0 when none is complete and right there."""
    cdef size_t size
    if room < minimum or get_u32(p) != _SKIPPABLE or memcmp(p + 8, kind, 4) != 0:
        return 0
    size = <size_t>get_u32(p + 4) + 8
    if size < minimum or size > room or get_u32(p + size - 4) != extend_crc32c(0, p, size - 4):
        return 0
    return size


def build_header(uint64_t worker_id, str host, int ack, uint64_t first_sequence, uint64_t created_at):
    cdef bytes name = host.encode("ascii")
    if len(name) > _MAX_HOST:
        raise ValueError(f"host name of {len(name)} characters exceeds {_MAX_HOST}")
    cdef bytes frame = _new_skippable(_HEADER_SIZE + len(name), b"KSEG")
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame)
    put_u16(p + 12, VERSION)
    p[14] = <uint8_t>ack
    p[15] = <uint8_t>len(name)
    put_u64(p + 16, worker_id)
    put_u64(p + 24, first_sequence)
    put_u64(p + 32, created_at)
    memcpy(p + 40, PyBytes_AS_STRING(name), len(name))
    return _finish_skippable(frame)


def parse_header(buffer):
    cdef Py_buffer view
    cdef const uint8_t *p
    cdef size_t size
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *>view.buf
        size = _check_skippable(p, view.len, b"KSEG", _HEADER_SIZE)
        if size == 0 or size != <size_t>_HEADER_SIZE + p[15]:
            return None
        return Header(size, get_u16(p + 12), p[14], p[40:40 + p[15]].decode("ascii", "replace"),
                      get_u64(p + 16), get_u64(p + 24), get_u64(p + 32))
    finally:
        PyBuffer_Release(&view)


def build_prefix(content, uint64_t worker_id, uint64_t first_sequence, frame):
    cdef Py_buffer view, frame_view
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef uint32_t counts[256]
    cdef uint32_t seed = record_seed(worker_id), count = 0, frame_crc
    cdef uint64_t first_received = ~<uint64_t>0, last_received = 0
    cdef record r
    cdef bint sound = True
    cdef int kinds = 0, i
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
                    counts[query_event_type(r.fields[FIELD_QUERY - 1].data, r.fields[FIELD_QUERY - 1].size)
                           if r.fields[FIELD_QUERY - 1].data != NULL else EVENT_TYPE_OTHER] += 1
                    count += 1
                    p += r.length
                frame_crc = extend_crc32c(0, <const uint8_t *>frame_view.buf, frame_view.len)
            if not sound or count == 0:
                raise ValueError(f"no valid record with sequence number {first_sequence + count} at offset {p - <const uint8_t *>view.buf}")
            frame_length = frame_view.len
        finally:
            PyBuffer_Release(&frame_view)
        content_length = view.len
    finally:
        PyBuffer_Release(&view)
    for i in range(256):
        kinds += counts[i] != 0
    cdef bytes prefix = _new_skippable(_PREFIX_SIZE + kinds * _TYPE_SIZE, b"KFRM")
    cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(prefix)
    put_u32(out + 12, frame_length)
    put_u32(out + 16, frame_crc)
    put_u32(out + 20, content_length)
    put_u32(out + 24, count)
    put_u16(out + 28, kinds)
    put_u64(out + 32, worker_id)
    put_u64(out + 40, first_sequence)
    put_u64(out + 48, first_received)
    put_u64(out + 56, last_received)
    out += 64
    for i in range(256):
        if counts[i]:
            put_u16(out, _OTHER_TYPE if i == EVENT_TYPE_OTHER else i)
            put_u32(out + 2, counts[i])
            out += _TYPE_SIZE
    return _finish_skippable(prefix)


def parse_prefix(buffer):
    cdef Py_buffer view
    cdef const uint8_t *p
    cdef size_t size
    cdef int i
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *>view.buf
        size = _check_skippable(p, view.len, b"KFRM", _PREFIX_SIZE)
        if size == 0 or size != _PREFIX_SIZE + <size_t>get_u16(p + 28) * _TYPE_SIZE:
            return None
        types = {}
        for i in range(get_u16(p + 28)):
            types[get_u16(p + 64 + i * _TYPE_SIZE)] = get_u32(p + 64 + i * _TYPE_SIZE + 2)
        if list(types) != sorted(types) or 0 in types.values() or sum(types.values()) != get_u32(p + 24):
            return None
        return Prefix(size, get_u32(p + 12), get_u32(p + 16), get_u32(p + 20), get_u32(p + 24), get_u64(p + 32), get_u64(p + 40),
                      get_u64(p + 48), get_u64(p + 56), types)
    finally:
        PyBuffer_Release(&view)


def build_trailer(trailer):
    cdef bytes frame = _new_skippable(_TRAILER_SIZE, b"KEND")
    cdef uint8_t *p = <uint8_t *>PyBytes_AS_STRING(frame)
    put_u32(p + 12, trailer.frame_count)
    put_u64(p + 16, trailer.worker_id)
    put_u64(p + 24, trailer.first_sequence)
    put_u64(p + 32, trailer.request_count)
    put_u64(p + 40, trailer.content_length)
    put_u64(p + 48, trailer.first_received)
    put_u64(p + 56, trailer.last_received)
    return _finish_skippable(frame)


def parse_trailer(buffer):
    cdef Py_buffer view
    cdef const uint8_t *p
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *>view.buf
        if _check_skippable(p, view.len, b"KEND", _TRAILER_SIZE) != _TRAILER_SIZE:
            return None
        return Trailer(get_u32(p + 12), get_u64(p + 16), get_u64(p + 24), get_u64(p + 32), get_u64(p + 40), get_u64(p + 48),
                       get_u64(p + 56))
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
