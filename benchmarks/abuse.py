"""Hostile clients against each way of serving: what each withstands, and that no acknowledged event is lost to them.

Every attack is bounded in count and time and goes to 127.0.0.1 only.
"""

import contextlib
import gzip
import json
import os
import random
import resource
import shutil
import socket
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import free_port
from benchmarks.outcome import Outcome
from benchmarks.server import KANALONY, Server, serving, started

WAYS = ("meinheld", "granian", "nginx")
GET = b"GET /collect?sessionId=abuse HTTP/1.1\r\nHost: t\r\n"
POST = b"POST /collect?sessionId=abuse HTTP/1.1\r\nHost: t\r\n"
HEARTBEAT = 2  # seconds: the default of 30 would only make this slower


@dataclass
class Target:
    """A way of serving. `port` is where clients connect: the collector's own, or that of nginx in front of it."""

    server: Server
    port: int

    def connect(self, timeout: float = 5) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def send(self, content: bytes, *, read: bool = True, timeout: float = 5) -> bytes:
        """Send bytes on a connection of their own; the answer's first piece, or nothing, whatever goes wrong."""
        with contextlib.suppress(OSError), self.connect(timeout) as connection:
            connection.sendall(content)
            return connection.recv(65536) if read else b""
        return b""

    def track(self, key: str) -> bool:
        """Send one event as an honest client; whether it was acknowledged."""
        request = f"GET /collect?sessionId={key}&eventIndex=1 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
        return self.send(request.encode(), timeout=3).startswith(b"HTTP/1.1 200")


def _chunked_trailer(target: Target) -> None:
    target.send(GET + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nFoo: bar\r\n\r\n")


def _header_in_pieces(target: Target) -> None:
    with contextlib.suppress(OSError), target.connect() as connection:
        connection.sendall(GET + b"X-Long: ")
        for _ in range(40):
            connection.sendall(b"x" * 500)
            time.sleep(0.002)
        connection.sendall(b"\r\n\r\n")
        connection.recv(4096)


def _pipeline_unread(target: Target) -> None:
    with contextlib.suppress(OSError), target.connect(timeout=3) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall((GET + b"\r\n") * 36_000)
        time.sleep(1)


def _pipeline(target: Target) -> None:
    with contextlib.suppress(OSError), target.connect(timeout=3) as connection:
        connection.sendall((GET + b"\r\n") * 1_500)
        answers = 0
        while answers < 1_500 and (piece := connection.recv(65536)):
            answers += piece.count(b"HTTP/1.1 ")


def _upgrade(target: Target) -> None:
    target.send(GET + b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
    target.send(b"CONNECT t:443 HTTP/1.1\r\nHost: t:443\r\n\r\n")


def _slow(target: Target, start: bytes) -> None:
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        connections = [stack.enter_context(target.connect()) for _ in range(50)]
        for connection in connections:
            connection.sendall(start)
        for _ in range(3):
            for connection in connections:
                connection.sendall(b"x")
            time.sleep(0.5)
            assert target.track(f"during-slow-{time.monotonic_ns()}"), "an honest client had to wait for slow ones"


def _idle(target: Target, count: int = 5_000) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(target.connect())
        assert target.track(f"during-idle-{time.monotonic_ns()}"), "idle connections kept an honest client out"


def _oversized(target: Target) -> None:
    target.send(b"GET /collect?" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: t\r\n\r\n")
    target.send(GET + b"X-Big: " + b"x" * 200_000 + b"\r\n\r\n")
    target.send(GET + b"".join(b"X-%d: y\r\n" % n for n in range(5_000)) + b"\r\n")
    target.send(POST + b"Content-Length: 99999999999\r\n\r\n" + b"x" * 1_000_000)
    target.send(POST + b"Content-Length: 99999999999999999999999999\r\n\r\n")
    target.send(b"X" * 100_000 + b" / HTTP/1.1\r\n\r\n")


def _hostile_bodies(target: Target) -> None:
    """Bodies that are small, or of the largest size, and that readers could be led to make a lot of."""
    bomb = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bodies = {
        b"a gigabyte, compressed": b"".join(bomb.compress(bytes(1 << 20)) for _ in range(1 << 10)) + bomb.flush(),
        b"compressed again": gzip.compress(gzip.compress(bytes(1 << 27))),
        b"a million events, compressed": gzip.compress(b"[" + b"{}," * 1_000_000 + b"{}]"),
        b"compressed anew without end": gzip.compress(b"") * 50_000,
    }
    plain = {
        b"as deep as it is long": b"[" * 1_000_000,
        b"objects in objects": b'{"a":' * 200_000,
        b"many names": b"&".join(b"%x" % n for n in range(170_000)),
        b"one name": b"{" + b",".join([b'"a":1'] * 170_000) + b"}",
        b"one long string": b'{"a": "' + b"\\u0000" * 170_000 + b'"}',
    }
    for encoding, named in ((b"gzip", bodies), (b"identity", plain)):
        for name, body in named.items():
            head = POST + b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
            # A body may be larger than the limit, but nothing may go wrong.
            status = target.send(head + body).partition(b" ")[2][:3]
            assert status in (b"200", b"413"), f"{name.decode()}: {status.decode() or 'no answer'}"


def _other_protocols(target: Target) -> None:
    target.send(bytes.fromhex("16030100c8010000c40303") + bytes(190))  # a TLS ClientHello
    target.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
    target.send(bytes(range(256)) * 20)
    target.send(b"\r\n" * 1000)


def mutated(count: int) -> Callable[[Target], None]:
    """An attack of so many requests, each with some bytes changed, dropped, doubled or moved; the same every time."""

    def attack(target: Target) -> None:
        rng = random.Random(7)
        for _ in range(count):
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

    return attack


ATTACKS: dict[str, Callable[[Target], None]] = {
    "chunked body with a trailer": _chunked_trailer,
    "20 KB header in small pieces": _header_in_pieces,
    "36,000 pipelined requests, never read": _pipeline_unread,
    "1,500 pipelined requests": _pipeline,
    "Upgrade: h2c, CONNECT": _upgrade,
    "50 slow headers": lambda target: _slow(target, GET + b"X-Slow: "),
    "50 slow bodies": lambda target: _slow(target, GET + b"Content-Length: 1000\r\n\r\n"),
    "5,000 idle connections": _idle,
    "oversized everything": _oversized,
    "bombs and other hostile bodies": _hostile_bodies,
    "TLS, HTTP/2 and noise": _other_protocols,
    "mutated requests": mutated(20_000),
}


@dataclass
class Verdict:
    """What an attack did. `died` when a worker was replaced; `seconds` and `failed` requests until an honest client was
    answered again; `complaint` when one was kept waiting during it."""

    attack: str
    died: bool
    seconds: float
    failed: int
    complaint: str

    def __str__(self) -> str:
        told = [self.complaint] if self.complaint else []
        told += [f"worker replaced, back in {self.seconds:.1f} s"] if self.died else []
        told += [f"{self.failed} honest requests failed"] if self.failed else []
        return ", ".join(told) or "withstood"


@contextlib.contextmanager
def target_of(way: str, work: Path) -> Iterator[Target]:
    """A collector served in one of the ways. For nginx, docs/nginx.conf is used with other ports and directories."""
    arguments = ["--heartbeat", str(HEARTBEAT), "--trusted-proxy", "127.0.0.1/32"]
    if way == "granian":
        arguments += ["--server", "granian"]
    with serving(work / "data", *arguments) as server:
        if way != "nginx":
            yield Target(server, server.port)
            return
        nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert nginx, "install nginx (Debian package nginx-light)"
        port = free_port()
        text = (Path(__file__).parent.parent / "docs" / "nginx.conf").read_text()
        text = text.replace("listen 80 ", f"listen 127.0.0.1:{port} ").replace(
            "127.0.0.1:8000", f"127.0.0.1:{server.port}"
        )
        (work / "nginx.conf").write_text(text)
        command = [nginx, "-p", str(work), "-c", str(work / "nginx.conf"), "-e", "error.log", "-g", "daemon off;"]
        with started(command, stderr=subprocess.DEVNULL):
            target = Target(server, port)
            server.wait_for(lambda: target.track("nginx-is-up"))
            yield target


def run_attacks(way: str, attacks: dict[str, Callable[[Target], None]]) -> tuple[list[Verdict], int, int]:
    """(verdicts, events acknowledged to honest clients, how many of them are missing)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    verdicts: list[Verdict] = []
    acknowledged = set()
    try:
        with tempfile.TemporaryDirectory() as temporary, target_of(way, Path(temporary)) as target:
            for name, attack in attacks.items():
                for number in range(20):
                    key = f"{way}-{len(verdicts)}-{number}"
                    if target.track(key):
                        acknowledged.add(key)
                before = set(target.server.workers())
                complaint = ""
                try:
                    attack(target)
                except (AssertionError, OSError) as error:
                    complaint = str(error)
                start = time.monotonic()
                failed = 0
                while not target.track("again"):
                    failed += 1
                    assert time.monotonic() - start < 30, f"{way} does not answer any more after: {name}"
                    time.sleep(0.02)
                seconds = time.monotonic() - start
                died = before != set(target.server.workers())
                verdicts.append(Verdict(name, died, seconds, failed, complaint))
            target.server.stop()
            printed = subprocess.run(
                [*KANALONY, "cat", "--data", str(target.server.data)], capture_output=True, text=True, check=True
            ).stdout
            stored = {str(json.loads(line)["params"].get("sessionId")) for line in printed.splitlines()}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return verdicts, len(acknowledged), sum(key not in stored for key in acknowledged)


def measure(count: int) -> Outcome:
    """Every attack against every way of serving, so many mutated requests among them."""
    outcome = Outcome()
    attacks = {**ATTACKS, "mutated requests": mutated(count)}
    for way in WAYS:
        verdicts, acknowledged, missing = run_attacks(way, attacks)
        outcome.lines += [f"{way:<10}{verdict.attack:<40}{verdict}" for verdict in verdicts]
        outcome.figure(f"{way}: acknowledged, honest", acknowledged)
        outcome.figure(f"{way}: acknowledged but missing", missing, 0)
    return outcome
