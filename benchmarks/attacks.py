"""The attacks of `python -m benchmarks abuse`: bounded in count and time, each repeated among honest requests."""

import contextlib
import functools
import gzip
import random
import socket
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from benchmarks.target import Target

GET = b"GET /collect?sessionId=abuse HTTP/1.1\r\nHost: t\r\n"
POST = b"POST /collect?sessionId=abuse HTTP/1.1\r\nHost: t\r\n"


@dataclass(frozen=True)
class Attack:
    """An attack, repeated until `count` attempts or `seconds` are reached.

    Attributes:
        send: Makes one attempt, given its number.
        count: Most attempts.
        seconds: Time limit.
        interval: Seconds between the starts of two attempts.
    """

    send: Callable[[Target, int], None]
    count: int = 200
    seconds: float = 5
    interval: float = 0.01

    def shortened(self, count: int, seconds: float) -> "Attack":
        return replace(self, count=min(count, self.count), seconds=min(seconds, self.seconds))


TRAILER = GET + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nFoo: bar\r\n\r\n"


def _chunked_trailer(target: Target, _: int) -> None:
    target.send(TRAILER)


def _killers(target: Target, _: int) -> None:
    target.send(TRAILER, read=False)


def _header_in_pieces(target: Target, _: int) -> None:
    with contextlib.suppress(OSError), target.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(GET + b"X-Long: ")
        for _ in range(20):
            connection.sendall(b"x" * 1_000)
            time.sleep(0.001)
        connection.sendall(b"\r\n\r\n")
        connection.recv(4096)


def _joined_headers(target: Target, _: int) -> None:
    """Sends two headers that nginx joins."""
    target.send(GET + 2 * (b"X-Forwarded-For: " + b"1" * 8_000 + b"\r\n") + b"\r\n")


def _repeated_headers(target: Target, _: int) -> None:
    target.send(GET + 3 * (b"X-Note: " + b"1" * 8_000 + b"\r\n") + b"\r\n")


def _many_headers(target: Target, _: int) -> None:
    target.send(GET + b"".join(b"X-%d: y\r\n" % n for n in range(400)) + b"\r\n")


def _long_url(target: Target, _: int) -> None:
    target.send(b"GET /collect?" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n")


def _long_header(target: Target, _: int) -> None:
    target.send(GET + b"X-Long: " + b"x" * 9_000 + b"\r\n\r\n")


def _pipeline_unread(target: Target, _: int) -> None:
    with contextlib.suppress(OSError), target.connect(timeout=3) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall((GET + b"\r\n") * 36_000)
        time.sleep(0.2)


def _pipeline(target: Target, _: int) -> None:
    with contextlib.suppress(OSError), target.connect(timeout=3) as connection:
        connection.sendall((GET + b"\r\n") * 1_500)
        answers = 0
        while answers < 1_500 and (piece := connection.recv(65536)):
            answers += piece.count(b"HTTP/1.1 ")


def _upgrade(target: Target, _: int) -> None:
    target.send(GET + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
    target.send(b"CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\n")


def _slow(start: bytes) -> Callable[[Target, int], None]:
    def attack(target: Target, _: int) -> None:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            connections = [stack.enter_context(target.connect()) for _ in range(50)]
            for connection in connections:
                connection.sendall(start)
            for _ in range(3):
                for connection in connections:
                    connection.sendall(b"x")
                time.sleep(0.1)

    return attack


def _idle(target: Target, _: int) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(5_000):
            stack.enter_context(target.connect())
        time.sleep(0.5)


def _oversized(target: Target, _: int) -> None:
    target.send(b"GET /collect?" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n", timeout=0.3)
    target.send(GET + b"X-Big: " + b"x" * 200_000 + b"\r\n\r\n", timeout=0.3)
    target.send(GET + b"".join(b"X-%d: y\r\n" % n for n in range(5_000)) + b"\r\n", timeout=0.3)
    target.send(POST + b"Content-Length: 99999999999\r\n\r\n" + b"x" * 1_000_000, timeout=0.3)
    target.send(POST + b"Content-Length: 99999999999999999999999999\r\n\r\n", timeout=0.3)
    target.send(b"X" * 100_000 + b" / HTTP/1.1\r\n\r\n", timeout=0.3)


@functools.cache
def _bodies() -> list[tuple[str, bytes, bytes]]:
    """Returns (name, encoding, bytes) of bodies that may make a reader use much memory."""
    bomb = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bodies = {
        "a gigabyte, compressed": b"".join(bomb.compress(bytes(1 << 20)) for _ in range(1 << 10)) + bomb.flush(),
        "compressed again": gzip.compress(gzip.compress(bytes(1 << 27))),
        "a million events, compressed": gzip.compress(b"[" + b"{}," * 1_000_000 + b"{}]"),
        "endless gzip members": gzip.compress(b"") * 50_000,
    }
    plain = {
        "as deep as it is long": b"[" * 1_000_000,
        "objects in objects": b'{"a":' * 200_000,
        "many names": b"&".join(b"%x" % n for n in range(170_000)),
        "one name": b"{" + b",".join([b'"a":1'] * 170_000) + b"}",
        "one long string": b'{"a": "' + b"\\u0000" * 170_000 + b'"}',
    }
    found = [(name, b"gzip", body) for name, body in bodies.items()]
    return found + [(name, b"identity", body) for name, body in plain.items()]


def _hostile_body(target: Target, number: int) -> None:
    name, encoding, body = _bodies()[number % len(_bodies())]
    head = POST + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
    # A body may be larger than the limit, but nothing may go wrong.
    status = target.send(head + body).partition(b" ")[2][:3]
    assert status in (b"200", b"413"), f"{name}: {status.decode() or 'no answer'}"


def _other_protocols(target: Target, _: int) -> None:
    target.send(bytes.fromhex("16030100c8010000c40303") + bytes(190), timeout=0.3)  # a TLS ClientHello
    target.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"), timeout=0.3)
    target.send(bytes(range(256)) * 20, timeout=0.3)
    target.send(b"\r\n" * 1000, timeout=0.3)


def _mutated(target: Target, number: int) -> None:
    """Sends a request with some bytes changed, dropped, doubled or moved; the same for the same number."""
    rng = random.Random(number)
    head = rng.choice([GET, POST]) + b"User-Agent: a\r\nX-Forwarded-For: 1.2.3.4\r\nOrigin: http://a\r\n"
    head += rng.choice([b"", b"Accept: application/json\r\n", b"Content-Encoding: gzip\r\n"])
    request = bytearray(head + b'Content-Length: 21\r\n\r\n[{"a":1},{"b":"\\n2"}]')
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(request))
        kind = rng.randrange(4)
        if kind == 0:
            request[at] = rng.randrange(256)
        elif kind == 1:
            del request[at : at + rng.randrange(1, 10)]
        elif kind == 2:
            request[at:at] = request[at : at + 20]
        else:
            request[at:at] = rng.choice([b"\r\n", b"\0", b":", b"%", b"\xff", b" ", b"HTTP/1.1", b"?"])
    target.send(bytes(request), read=False, timeout=2)


ATTACKS = {
    "chunked body with a trailer": Attack(_chunked_trailer, count=20),
    "20 KB header in pieces": Attack(_header_in_pieces),
    "two X-Forwarded-For of 8,000 bytes": Attack(_joined_headers, count=1_000),
    "three other headers of 8,000 bytes": Attack(_repeated_headers, count=1_000),
    "400 headers": Attack(_many_headers, count=1_000),
    "URL of 9,000 bytes": Attack(_long_url, count=1_000),
    "header of 9,000 bytes": Attack(_long_header, count=1_000),
    "36,000 pipelined requests, never read": Attack(_pipeline_unread, count=20),
    "1,500 pipelined requests": Attack(_pipeline, count=50),
    "Upgrade: h2c, CONNECT": Attack(_upgrade),
    "50 slow headers": Attack(_slow(GET + b"X-Slow: "), count=20),
    "50 slow bodies": Attack(_slow(GET + b"Content-Length: 1000\r\n\r\n"), count=20),
    "5,000 idle connections": Attack(_idle, count=20),
    "oversized everything": Attack(_oversized),
    "bombs and other hostile bodies": Attack(_hostile_body),
    "TLS, HTTP/2 and noise": Attack(_other_protocols),
    "mutated requests": Attack(_mutated, count=10_000, seconds=20, interval=0),
    # Last, since for ten seconds after it connections that wait may be dropped.
    "20 chunked trailers a second for a minute": Attack(_killers, count=1_200, seconds=60, interval=0.05),
}


def prepare() -> None:
    """Makes the hostile bodies, which takes seconds, before the clock of an attack runs."""
    _bodies()
