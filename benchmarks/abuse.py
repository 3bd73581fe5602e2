"""Hostile clients against each way of serving, among honest ones.

Each attack is repeated while honest clients go on sending. Watched are the workers (deaths, anonymous memory), the disk
that journals take, and what happens to every honest request; at the end every acknowledged event must be stored. All of
it is bounded in count and time and goes to 127.0.0.1 only.
"""

import contextlib
import functools
import gzip
import itertools
import json
import os
import random
import re
import resource
import shutil
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.load import free_port
from benchmarks.outcome import Outcome
from harness.server import KANALONY, Server, serving, started

WAYS = ("meinheld", "granian", "nginx")
GET = b"GET /collect?sessionId=abuse HTTP/1.1\r\nHost: t\r\n"
POST = b"POST /collect?sessionId=abuse HTTP/1.1\r\nHost: t\r\n"
HEARTBEAT = 2  # seconds: the default of 30 would only make this slower
WORKERS = 1
HONEST_CLIENTS = 4
HONEST_INTERVAL = 0.1  # seconds between two requests of an honest client
PIECE = 1_400  # bytes that a network passes on at a time
PIECE_INTERVAL = 0.001  # seconds between two of the first pieces
PIECES = 32  # of what is sent at a time, as many as the largest headers have
SMALL_GROWTH = 1_024  # bytes per attempt, and
SMALL_TOTAL = 512 << 10  # bytes in all that a worker may grow by: allocators keep what they may need
PATIENCE = 10  # seconds after which an attack that has killed no worker ends


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

    def track(self, key: str) -> str:
        """Send one event as an honest client: "acknowledged", or what happened to it instead."""
        request = f"GET /collect?sessionId={key}&eventIndex=1 HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n"
        try:
            with self.connect(3) as connection:
                connection.sendall(request.encode())
                answer = connection.recv(65536)
        except TimeoutError:
            return "timed out"
        except OSError:
            return "reset"
        if answer.startswith(b"HTTP/1.1 200"):
            return "acknowledged"
        return f"answered {answer[9:12].decode('latin-1')}" if answer else "reset"


@dataclass(frozen=True)
class Attack:
    """`send` is one attempt, which gets its number. It is repeated `count` times, or for so many `seconds`, with an
    `interval` (seconds) between the starts of two.
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
    """Nginx passes the two on as one."""
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
    """(name, encoding, bytes) of bodies that are small, or of the largest size, and that readers could be led to make a
    lot of.
    """
    bomb = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bodies = {
        "a gigabyte, compressed": b"".join(bomb.compress(bytes(1 << 20)) for _ in range(1 << 10)) + bomb.flush(),
        "compressed again": gzip.compress(gzip.compress(bytes(1 << 27))),
        "a million events, compressed": gzip.compress(b"[" + b"{}," * 1_000_000 + b"{}]"),
        "compressed anew without end": gzip.compress(b"") * 50_000,
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
    """A request with some bytes changed, dropped, doubled or moved; the same for the same number."""
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


@dataclass
class Verdict:
    """What an attack did in `attempts`, among honest requests with their `fates`.

    `deaths` of workers; how many were `replaced` since they had grown; `growth` of a worker's anonymous memory, bytes
    per attempt, None when it was not one worker all the time or the attempts were too few; `journal_bytes` is the most
    disk that journals took; `back` the seconds until an honest client was answered after the end; `complaint` what an
    attempt itself found wrong.
    """

    attack: str
    attempts: int = 0
    deaths: int = 0
    replaced: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    growth: float | None = None
    journal_bytes: int = 0
    back: float = 0
    complaint: str = ""

    @property
    def failed(self) -> int:
        return self.fates.total() - self.fates["acknowledged"]

    @property
    def grew(self) -> bool:
        growth = self.growth or 0
        return growth > SMALL_GROWTH and growth * self.attempts / 2 > SMALL_TOTAL

    def __str__(self) -> str:
        parts = [self.complaint] if self.complaint else []
        if self.deaths:
            parts.append(f"{self.deaths} workers died, back after {self.back:.1f} s")
        if self.replaced:
            parts.append(f"{self.replaced} workers replaced since they had grown")
        if self.failed:
            fates = ", ".join(f"{count} {fate}" for fate, count in self.fates.items() if fate != "acknowledged")
            parts.append(
                f"{self.failed / self.fates.total():.0%} of {self.fates.total()} honest requests failed ({fates})"
            )
        if self.grew:
            parts.append(f"memory grew by {(self.growth or 0) / 1000:.1f} KB each")
        return "; ".join(parts) or "withstood"


class Honest:
    """Clients that go on sending at a steady rate until the end of the `with`, each request with a key of its own on a
    connection of its own. `acknowledged` are the keys that were answered with 200.
    """

    def __init__(self, target: Target, way: str) -> None:
        self.acknowledged: set[str] = set()
        self._target = target
        self._fates: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._keys = (f"{way}-{number}" for number in itertools.count())
        self._threads = [threading.Thread(target=self._send) for _ in range(HONEST_CLIENTS)]

    def __enter__(self) -> "Honest":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def _send(self) -> None:
        while not self._stopping.wait(HONEST_INTERVAL):
            with self._lock:
                key = next(self._keys)
            fate = self._target.track(key)
            with self._lock:
                self._fates[fate] += 1
                if fate == "acknowledged":
                    self.acknowledged.add(key)

    def take(self) -> Counter[str]:
        """What happened to the requests since the last call."""
        with self._lock:
            fates, self._fates = self._fates, Counter()
        return fates


class Watch:
    """Looks at workers and journals until the end of the `with`: workers that have `ended`, and `journal_bytes`, the
    most that journals took.
    """

    def __init__(self, server: Server) -> None:
        self.ended: set[int] = set()
        self.journal_bytes = 0
        self._server = server
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(30)

    def _look(self) -> None:
        known: set[int] = set()
        while True:
            last = self._stopping.is_set()
            running = set(self._server.workers())
            self.ended |= known - running
            known = running
            sizes = []
            for path in (self._server.data / "journal").iterdir():
                with contextlib.suppress(FileNotFoundError):
                    sizes.append(path.stat().st_blocks * 512)
            self.journal_bytes = max(self.journal_bytes, sum(sizes))
            if last:
                return
            self._stopping.wait(0.02)


def _replaced(server: Server) -> set[int]:
    """Workers that had grown too large, and end when their connections do."""
    return {int(pid) for pid in re.findall(r"worker (\d+) has grown", server.log.read_text())}


def _memory(server: Server) -> dict[int, int]:
    """Anonymous memory of each worker, bytes: what was allocated, without the journal's pages."""
    found = {}
    for pid in set(server.workers()) - _replaced(server):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    found[pid] = int(line.split()[1]) << 10
    return found


class _Relay(socketserver.BaseRequestHandler):
    """A network between nginx and the collector: what is longer than a piece arrives in pieces."""

    upstream = 0

    def handle(self) -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.upstream)) as upstream:
            upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._give_back, args=(upstream,), daemon=True)
            back.start()
            with contextlib.suppress(OSError):
                while content := self.request.recv(65536):
                    for start in range(0, len(content), PIECE):
                        if 0 < start < PIECES * PIECE:
                            time.sleep(PIECE_INTERVAL)
                        upstream.sendall(content[start : start + PIECE])
            with contextlib.suppress(OSError):
                upstream.shutdown(socket.SHUT_RDWR)
            back.join(10)

    def _give_back(self, upstream: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := upstream.recv(65536):
                self.request.sendall(content)
        with contextlib.suppress(OSError):
            self.request.shutdown(socket.SHUT_RDWR)


class _RelayServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024


@contextlib.contextmanager
def relayed(port: int) -> Iterator[int]:
    """A port of this machine that leads to the other one as over a network."""
    handler = type("Relay", (_Relay,), {"upstream": port})
    with _RelayServer(("127.0.0.1", 0), handler) as relay:
        thread = threading.Thread(target=relay.serve_forever, daemon=True)
        thread.start()
        try:
            yield int(relay.server_address[1])
        finally:
            relay.shutdown()
            thread.join(10)


@contextlib.contextmanager
def target_of(way: str, work: Path, *arguments: str) -> Iterator[Target]:
    """A collector served in one of the ways. For nginx, docs/nginx.conf is used with other ports and directories, and
    the collector is a network away.
    """
    arguments = (
        *("--heartbeat", str(HEARTBEAT), "--workers", str(WORKERS), "--trusted-proxy", "127.0.0.1/32"),
        *("--journal-blocks", "32", *arguments),
    )
    if way == "granian":
        arguments += ("--server", "granian")
    with serving(work / "data", *arguments) as server:
        if way != "nginx":
            yield Target(server, server.port)
            return
        nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        assert nginx, "install nginx (Debian package nginx-light)"
        port = free_port()
        with relayed(server.port) as upstream:
            text = (Path(__file__).parent.parent / "docs" / "nginx.conf").read_text()
            text = text.replace("listen 80 ", f"listen 127.0.0.1:{port} ").replace(
                "127.0.0.1:8000", f"127.0.0.1:{upstream}"
            )
            (work / "nginx.conf").write_text(text)
            command = [nginx, "-p", str(work), "-c", str(work / "nginx.conf"), "-e", "error.log", "-g", "daemon off;"]
            with started(command, stderr=subprocess.DEVNULL):
                target = Target(server, port)
                server.wait_for(lambda: target.track("nginx-is-up") == "acknowledged")
                yield target


def _run(name: str, attack: Attack, target: Target, honest: Honest) -> Verdict:
    verdict = Verdict(name)
    memories = [_memory(target.server)]
    replaced = _replaced(target.server)
    honest.take()
    with Watch(target.server) as watch:
        start = time.monotonic()
        while verdict.attempts < attack.count and (passed := time.monotonic() - start) < attack.seconds:
            if passed > PATIENCE and not watch.ended:
                break
            time.sleep(max(0, start + verdict.attempts * attack.interval - time.monotonic()))
            try:
                attack.send(target, verdict.attempts)
            except (AssertionError, OSError) as error:
                verdict.complaint = str(error)
            verdict.attempts += 1
            memories.append(_memory(target.server))
        end = time.monotonic()
        while target.track("again") != "acknowledged":
            assert time.monotonic() - end < 30, f"it does not answer any more after: {name}"
            time.sleep(0.02)
        verdict.back = time.monotonic() - end
        target.server.wait_for(lambda: len(_memory(target.server)) == WORKERS, 30)
    verdict.fates = honest.take()
    verdict.journal_bytes = watch.journal_bytes
    verdict.deaths = len(watch.ended - _replaced(target.server))
    verdict.replaced = len(_replaced(target.server) - replaced)
    if all(memory.keys() == memories[0].keys() for memory in memories):
        verdict.growth = _growth([sum(memory.values()) for memory in memories])
    return verdict


def _growth(memories: list[int]) -> float | None:
    """Bytes per attempt from the least in the second quarter to the least in the last: what is allocated once, or given
    back, is no growth. None when the attempts are too few to tell.
    """
    quarter = len(memories) // 4
    if quarter < 3:
        return None
    return (min(memories[-quarter:]) - min(memories[quarter : 2 * quarter])) / (2 * quarter)


def run_attacks(way: str, attacks: dict[str, Attack], *arguments: str) -> tuple[list[Verdict], int, int]:
    """(verdicts, events acknowledged to honest clients, how many of them are missing). `arguments` are further ones of
    `kanalony serve`.
    """
    _bodies()  # which takes seconds
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    try:
        with tempfile.TemporaryDirectory() as temporary, target_of(way, Path(temporary), *arguments) as target:
            with Honest(target, way) as honest:
                # What a worker allocates once is no leak.
                for number in range(200):
                    target.track(f"warm-{number}")
                verdicts = [_run(name, attack, target, honest) for name, attack in attacks.items()]
            target.server.stop()
            printed = subprocess.run(
                [*KANALONY, "cat", "--data", str(target.server.data)], capture_output=True, text=True, check=True
            ).stdout
            stored = {str(json.loads(line)["params"].get("sessionId")) for line in printed.splitlines()}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return verdicts, len(honest.acknowledged), len(honest.acknowledged - stored)


def measure(names: tuple[str, ...]) -> Outcome:
    """Some of the attacks against every way of serving."""
    outcome = Outcome()
    for way in WAYS:
        attacks = {name: attack for name, attack in ATTACKS.items() if name in names}
        verdicts, acknowledged, missing = run_attacks(way, attacks)
        for verdict in verdicts:
            growth = "" if verdict.growth is None else f"{verdict.growth / 1000:8.2f} KB"
            outcome.lines.append(
                f"{way:<10}{verdict.attack:<40}{verdict.attempts:>6}{growth:>12}"
                f"{verdict.journal_bytes >> 20:>5} MiB   {verdict}"
            )
        outcome.figure(f"{way}: acknowledged, honest", acknowledged)
        outcome.figure(f"{way}: acknowledged but missing", missing, 0)
    return outcome
