# cython: language_level=3
"""The way that most events take through the application: a GET, from the server's dictionary to the journal and back,
without a line of Python in between. Whatever is not as plain as that is left to those who know it all."""

from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_GET_LENGTH
from libc.stdint cimport int64_t

cdef extern from "Python.h":
    const void *PyUnicode_1BYTE_DATA(object text)
    int PyUnicode_KIND(object text)
    int PyUnicode_1BYTE_KIND

cdef extern from "<string.h>":
    const void *memmem(const void *text, size_t length, const void *part, size_t part_length) nogil

# What a request does not have when nothing but its query, its address and three headers is stored of it. The two with a
# space are what meinheld makes of a header whose name has one behind it.
cdef tuple _BODY = ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_LENGTH ", "HTTP_TRANSFER_ENCODING ")


cdef bint _has(PyObject *text, const char *part, size_t length):
    """Whether a part stands in a text that may be absent; also when it is no text of one-byte characters at all."""
    if text is NULL or <object>text is None:
        return False
    if not isinstance(<object>text, str) or PyUnicode_KIND(<object>text) != PyUnicode_1BYTE_KIND:
        return True
    return memmem(PyUnicode_1BYTE_DATA(<object>text), PyUnicode_GET_LENGTH(<object>text), part, length) is not NULL


cdef inline object _get(dict environ, object name):
    cdef PyObject *found = PyDict_GetItem(environ, name)
    return <object>found if found is not NULL else None


cdef class _Route:
    """A tracking path: its resource, and what that answers in a second."""

    cdef object resource
    cdef bint is_pixel
    cdef int64_t second
    cdef object status
    cdef list headers
    cdef object body


cdef class FastPath:
    cdef dict _routes
    cdef tuple _not_plain
    cdef object _intake, _otherwise

    def __init__(self, resources, intake, otherwise):
        self._routes = {}
        self._intake = intake
        self._otherwise = otherwise
        # The same answer is everybody's but theirs who are told their origin.
        self._not_plain = _BODY + tuple(intake.cors.decides_by)
        cdef _Route route
        for path, resource in resources.items():
            route = _Route()
            route.resource = resource
            route.is_pixel = resource.is_pixel
            route.second = -1
            self._routes[path] = route

    def __call__(self, dict environ, start_response):
        cdef PyObject *found = PyDict_GetItem(self._routes, environ["PATH_INFO"])
        if found is NULL or environ["REQUEST_METHOD"] != "GET":
            return self._otherwise(environ, start_response)
        for name in self._not_plain:
            if PyDict_GetItem(environ, name) is not NULL:
                return self._otherwise(environ, start_response)
        cdef _Route route = <_Route>found
        query = _get(environ, "QUERY_STRING")
        # Perhaps it wants to be answered in JSON.
        if not route.is_pixel and (
            _has(<PyObject *>query, b"format=json", 11) or _has(PyDict_GetItem(environ, "HTTP_ACCEPT"), b"json", 4)
        ):
            return self._otherwise(environ, start_response)
        cdef int64_t received_at = 0
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
        if received_at // 1_000_000 != route.second:
            status, headers, body = route.resource.answer_at(received_at // 1_000_000)
            route.status, route.headers, route.body = status, headers, body
            route.second = received_at // 1_000_000
        body = route.body  # the one that the headers are of, whatever another thread does meanwhile
        start_response(route.status, route.headers[:])  # servers may add to the list
        return [body]
