"""The ways of serving that abuse is tried on: meinheld, granian, and nginx in front."""

import contextlib
import os
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import free_port
from harness.server import Server, serving, started

WAYS = ("meinheld", "granian", "nginx")
HEARTBEAT = 2  # seconds: the default of 30 would only make a run slower
WORKERS = 1
PIECE = 1_400  # bytes that a network passes on at a time
PIECE_INTERVAL = 0.001  # seconds between two of the first pieces
PIECES = 32  # pieces with an interval: as many as the largest headers have


@dataclass
class Target:
    """A way of serving. Clients connect to `port`: that of the collector, or of nginx in front of it."""

    server: Server
    port: int

    def connect(self, timeout: float = 5) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def send(self, content: bytes, *, read: bool = True, timeout: float = 5) -> bytes:
        """Sends bytes on a connection of their own, and returns the first piece of the answer; empty after an error."""
        with contextlib.suppress(OSError), self.connect(timeout) as connection:
            connection.sendall(content)
            return connection.recv(65536) if read else b""
        return b""

    def track(self, key: str) -> str:
        """Sends one event as an honest client. Returns "acknowledged", or the failure."""
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


class _Relay(socketserver.BaseRequestHandler):
    """A network between nginx and the collector: longer messages arrive in pieces."""

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
    """Returns a port of this machine that leads to another port as over a network."""
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
    """Serves a collector in one of the ways. nginx runs docs/nginx.conf with other ports and directories.

    Args:
        way: One of `WAYS`.
        work: Directory for data and configuration.
        arguments: Further arguments of `kanalony serve`.
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
