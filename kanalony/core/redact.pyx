# cython: language_level=3, boundscheck=False, wraparound=False
"""Redaction for Python callers: redact.h."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from kanalony.core.headers cimport cursor, redact_json, redact_query, redact_spans


cdef bytes _replaced(bytes text, size_t start, size_t end, redact_spans *spans, bytes replacement):
    """Returns the part [start, end) of a text with a replacement for each span."""
    cdef size_t n = len(replacement)
    cdef size_t size = end - start
    cdef size_t i
    cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(text)
    if not spans.count and size == <size_t>len(text):
        return text
    for i in range(spans.count):
        size += n - (spans.items[i].end - spans.items[i].start)
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t *dst = <uint8_t *>PyBytes_AS_STRING(result)
    for i in range(spans.count):
        memcpy(dst, p + start, spans.items[i].start - start)
        dst += spans.items[i].start - start
        memcpy(dst, PyBytes_AS_STRING(replacement), n)
        dst += n
        start = spans.items[i].end
    memcpy(dst, p + start, end - start)
    return result


cdef class Redactor:
    cdef bytes _names, _replacement, _json_replacement

    def __init__(self, names, replacement):
        cdef list parts = []
        for name in sorted(names):
            text = name.encode().lower()
            parts.append(len(text).to_bytes(2, "little") + text)
        self._names = b"".join(parts)
        self._replacement = replacement
        self._json_replacement = b'"%b"' % replacement

    cdef bytes _redact(self, bytes text, size_t start, size_t end, bint is_json):
        cdef const uint8_t *base = <const uint8_t *>PyBytes_AS_STRING(text)
        cdef redact_spans spans
        cdef cursor names
        cdef int done
        if not start <= end <= <size_t>len(text):
            raise ValueError(f"[{start}, {end}) is not within {len(text)} bytes")
        names.p = <const uint8_t *>PyBytes_AS_STRING(self._names)
        names.end = names.p + len(self._names)
        spans.items = NULL
        spans.count = spans.room = 0
        cdef uint8_t *scratch = <uint8_t *>malloc(end - start + 1)
        if scratch is NULL:
            raise MemoryError
        try:
            if is_json:
                done = redact_json(base, base + start, base + end, names, scratch, &spans)
            else:
                done = redact_query(base, base + start, base + end, names, scratch, &spans)
            if done < 0:
                raise ValueError("not a valid object")
            if not done:
                raise MemoryError
            return _replaced(text, start, end, &spans, self._json_replacement if is_json else self._replacement)
        finally:
            free(scratch)
            free(spans.items)

    def query(self, bytes text):
        return self._redact(text, 0, len(text), False)

    def json(self, bytes text, size_t start, size_t end):
        return self._redact(text, start, end, True)
