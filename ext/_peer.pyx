# cython: language_level=3
"""Who is at the other end of a request's connection."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from libc.string cimport memcmp

cdef extern from "netinet/in.h":
    ctypedef unsigned int socklen_t
    ctypedef unsigned short sa_family_t
    int AF_INET
    int AF_INET6
    struct sockaddr:
        pass
    struct in_addr:
        pass
    struct in6_addr:
        unsigned char s6_addr[16]
    struct sockaddr_in:
        in_addr sin_addr
    struct sockaddr_in6:
        in6_addr sin6_addr
    struct sockaddr_storage:
        sa_family_t ss_family

cdef extern from "<arpa/inet.h>":
    int inet_pton(int family, const char *text, void *address) nogil

cdef extern from "sys/socket.h":
    int getpeername(int fd, sockaddr *address, socklen_t *size) noexcept nogil


cdef bytes _packed_v6(const char *address):
    if memcmp(address, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:  # an IPv4 client on a dual-stack socket
        return PyBytes_FromStringAndSize(address + 12, 4)
    return PyBytes_FromStringAndSize(address, 16)


cdef bytes _of_socket(int fd):
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(address)
    if getpeername(fd, <sockaddr *>&address, &size) != 0:
        return None
    if address.ss_family == AF_INET:
        return PyBytes_FromStringAndSize(<const char *>&(<sockaddr_in *>&address).sin_addr, 4)
    if address.ss_family == AF_INET6:
        return _packed_v6(<const char *>(<sockaddr_in6 *>&address).sin6_addr.s6_addr)
    return None


cdef bytes _of_text(str told):
    cdef char address[16]
    text = told.encode("utf-8", "replace")
    if inet_pton(AF_INET, text, address) == 1:
        return PyBytes_FromStringAndSize(address, 4)
    if inet_pton(AF_INET6, text, address) == 1:
        return _packed_v6(address)
    return None  # a Unix socket, say


def remote_address(dict environ):
    cdef PyObject *client = PyDict_GetItem(environ, "meinheld.client")
    if client is not NULL:
        return _of_socket((<object>client).get_fd())
    return _of_text(environ.get("REMOTE_ADDR") or "")
