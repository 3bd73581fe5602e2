# cython: language_level=3
"""The address of the other end of a request's connection."""

from ipaddress import ip_address

from cpython.bytes cimport PyBytes_FromStringAndSize
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

cdef extern from "sys/socket.h":
    int getpeername(int fd, sockaddr *address, socklen_t *size) noexcept nogil


cdef bytes _of_socket(int fd):
    cdef sockaddr_storage address
    cdef socklen_t size = sizeof(address)
    cdef const char *v6
    if getpeername(fd, <sockaddr *>&address, &size) != 0:
        return None
    if address.ss_family == AF_INET:
        return PyBytes_FromStringAndSize(<const char *>&(<sockaddr_in *>&address).sin_addr, 4)
    if address.ss_family == AF_INET6:
        v6 = <const char *>(<sockaddr_in6 *>&address).sin6_addr.s6_addr
        if memcmp(v6, b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:  # an IPv4 client on a dual-stack socket
            return PyBytes_FromStringAndSize(v6 + 12, 4)
        return PyBytes_FromStringAndSize(v6, 16)
    return None


def remote_address(environ):
    client = environ.get("meinheld.client")
    if client is not None:
        return _of_socket(client.get_fd())
    try:
        address = ip_address(environ.get("REMOTE_ADDR", ""))
    except ValueError:
        return None  # for example a Unix socket
    return (getattr(address, "ipv4_mapped", None) or address).packed
