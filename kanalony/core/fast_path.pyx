# cython: language_level=3
"""The fast path: plain GETs, stored and answered without a line of Python in between.

Every other request takes the general path, kanalony.collector.resources. A property test compares the two.
"""

# PyDict_GetItem would save and restore the pending error in each call: a GET without the journal takes 7,020 instructions
# instead of 7,400 (callgrind).
from cpython.dict cimport PyDict_GetItemWithError
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_GET_LENGTH
from libc.stdint cimport int64_t

cdef extern from "Python.h":
    const void *PyUnicode_1BYTE_DATA(object text)
    int PyUnicode_KIND(object text)
    int PyUnicode_1BYTE_KIND

cdef extern from "<string.h>":
    const void *memmem(const void *text, size_t length, const void *part, size_t part_length) nogil

# A request with one of these may have a body. The two that end in a space are what meinheld makes of a header whose name
# is followed by one.
cdef tuple _BODY = ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_LENGTH ", "HTTP_TRANSFER_ENCODING ")


cdef bint _may_contain(PyObject *text, const char *part, size_t length) except -1:
    """Whether a string contains a part; True also for what is not a string of one-byte characters."""
    if text is NULL or <object>text is None:
        return False
    if not isinstance(<object>text, str) or PyUnicode_KIND(<object>text) != PyUnicode_1BYTE_KIND:
        return True
    return memmem(PyUnicode_1BYTE_DATA(<object>text), PyUnicode_GET_LENGTH(<object>text), part, length) is not NULL


cdef inline object _get(dict environ, object name):
    cdef PyObject *value = PyDict_GetItemWithError(environ, name)
    return <object>value if value is not NULL else None


cdef class ResponseCache:
    cdef object _compose
    cdef Py_ssize_t _size
    cdef int64_t _second
    cdef dict _responses

    def __init__(self, compose, size=256):
        self._compose = compose
        self._size = size
        self._second = -1
        self._responses = {}

    def get(self, int64_t second, origin):
        return self._find(second, origin)

    cdef tuple _find(self, int64_t second, object origin):
        cdef dict responses
        cdef PyObject *cached
        cdef tuple response
        if second != self._second:
            responses = {}
            # No other thread runs between these two lines: neither calls Python.
            self._responses = responses
            self._second = second
        cached = PyDict_GetItemWithError(self._responses, origin)
        if cached is not NULL:
            return <tuple>cached
        responses = self._responses
        response = self._compose(second, origin)  # another thread may replace self._responses meanwhile
        if len(responses) < self._size:
            responses[origin] = response
        return response


cdef class _Route:
    """A tracking path."""

    cdef object resource
    cdef bint is_pixel
    cdef ResponseCache responses


cdef class FastPath:
    cdef dict _routes
    cdef tuple _not_plain
    cdef object _intake, _general

    def __init__(self, resources, intake, general, deciding_headers):
        cdef _Route route
        self._routes = {}
        self._intake = intake
        self._general = general
        self._not_plain = _BODY + tuple(deciding_headers)
        for path, resource in resources.items():
            route = _Route()
            route.resource = resource
            route.is_pixel = resource.is_pixel
            route.responses = resource.responses
            self._routes[path] = route

    def __call__(self, dict environ, start_response):
        cdef PyObject *found = PyDict_GetItemWithError(self._routes, environ["PATH_INFO"])
        cdef _Route route
        cdef int64_t received_at = 0
        if found is NULL or environ["REQUEST_METHOD"] != "GET":
            return self._general(environ, start_response)
        for name in self._not_plain:
            if PyDict_GetItemWithError(environ, name) is not NULL:
                return self._general(environ, start_response)
        route = <_Route>found
        query = _get(environ, "QUERY_STRING")
        # The response may have to be JSON.
        if not route.is_pixel and (
            _may_contain(<PyObject *>query, b"format=json", 11)
            or _may_contain(PyDict_GetItemWithError(environ, "HTTP_ACCEPT"), b"json", 4)
        ):
            return self._general(environ, start_response)
        error = None
        try:
            received_at = self._intake.append(
                "GET", environ["PATH_INFO"], self._intake.address(environ), _get(environ, "HTTP_X_FORWARDED_FOR"),
                _get(environ, "HTTP_USER_AGENT"), _get(environ, "HTTP_REFERER"), query,
            )
        except (OverflowError, ValueError, OSError) as raised:
            error = raised
        if received_at == 0:
            status, headers, body = route.resource.refuse(environ, error)
            start_response(status, headers)
            return [body]
        status, headers, body = route.responses._find(received_at // 1_000_000, None)
        start_response(status, (<list>headers)[:])  # servers may append to the list
        return [body]
