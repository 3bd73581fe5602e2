# cython: language_level=3, boundscheck=False, wraparound=False
"""JSON bodies for Python callers: json.h."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t

from kanalony.core.headers cimport (
    cursor, json_next_member, json_next_object, json_objects, json_text, json_unescape, query_pair,
)


def split(body, Py_ssize_t limit):
    cdef Py_buffer view
    cdef json_objects objects
    cdef const uint8_t *start
    cdef const uint8_t *end
    cdef list spans = []
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        objects.c.p = <const uint8_t *>view.buf
        objects.c.end = objects.c.p + view.len
        objects.place = objects.lines = objects.mistakes = 0
        while json_next_object(&objects, &start, &end):
            if len(spans) == limit:
                return spans, False
            spans.append((start - <const uint8_t *>view.buf, end - <const uint8_t *>view.buf))
    finally:
        PyBuffer_Release(&view)
    return spans, objects.mistakes == 0


cdef inline bytes _text(const uint8_t *p, const uint8_t *end, bint is_name):
    cdef bytes room = PyBytes_FromStringAndSize(NULL, end - p)
    cdef uint8_t *dst = <uint8_t *>PyBytes_AS_STRING(room)
    cdef size_t size = json_unescape(p, end, dst) if is_name else json_text(p, end, dst)
    return room if size == <size_t>(end - p) else room[:size]


def members(body, size_t start, size_t end):
    cdef Py_buffer view
    cdef query_pair pair
    cdef cursor c
    cdef list pairs = []
    PyObject_GetBuffer(body, &view, PyBUF_SIMPLE)
    try:
        if not start < end <= <size_t>view.len:
            raise ValueError(f"object [{start}, {end}) is not within {view.len} bytes")
        c.p = <const uint8_t *>view.buf + start + 1
        c.end = <const uint8_t *>view.buf + end
        while json_next_member(&c, &pair):
            pairs.append((_text(pair.name, pair.name_end, True), _text(pair.value, pair.value_end, False)))
    finally:
        PyBuffer_Release(&view)
    return pairs
