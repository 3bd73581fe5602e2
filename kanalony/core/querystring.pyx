# cython: language_level=3, boundscheck=False, wraparound=False
"""Query strings for Python callers: querystring.h, which all compiled modules share."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t

from kanalony.core.headers cimport cursor, name_prefix, query_decode, query_event_type, query_next, query_pair


cdef bytes _decode(const uint8_t *p, const uint8_t *end):
    cdef bytes room = PyBytes_FromStringAndSize(NULL, end - p)
    cdef size_t size = query_decode(p, end, <uint8_t *>PyBytes_AS_STRING(room))
    return room if size == <size_t>(end - p) else room[:size]


def tokenize(query):
    cdef Py_buffer view
    cdef query_pair pair
    cdef cursor c
    cdef list spans = []
    PyObject_GetBuffer(query, &view, PyBUF_SIMPLE)
    try:
        c.p = <const uint8_t *>view.buf
        c.end = c.p + view.len
        while query_next(&c, &pair):
            spans.append((pair.name - <const uint8_t *>view.buf, pair.name_end - <const uint8_t *>view.buf,
                          pair.value - <const uint8_t *>view.buf, pair.value_end - <const uint8_t *>view.buf))
    finally:
        PyBuffer_Release(&view)
    return spans


def parse(query):
    cdef Py_buffer view
    cdef query_pair pair
    cdef cursor c
    cdef list pairs = []
    PyObject_GetBuffer(query, &view, PyBUF_SIMPLE)
    try:
        c.p = <const uint8_t *>view.buf
        c.end = c.p + view.len
        while query_next(&c, &pair):
            pairs.append((_decode(pair.name, pair.name_end), _decode(pair.value, pair.value_end)))
    finally:
        PyBuffer_Release(&view)
    return pairs


def event_type(query):
    cdef Py_buffer view
    PyObject_GetBuffer(query, &view, PyBUF_SIMPLE)
    try:
        return query_event_type(<const uint8_t *>view.buf, view.len)
    finally:
        PyBuffer_Release(&view)


def bare_name(name):
    cdef bytes text = name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name
    cdef size_t prefix = name_prefix(<const uint8_t *>PyBytes_AS_STRING(text), len(text))
    return name[prefix:] if prefix else name
