"""Load from wrk against one server at a time, each on its own core, and the CPU that the server used."""

import json
import os
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.server import started

SCRIPT = Path(__file__).parent / "wrk.lua"
CONNECTIONS = 64
MAX_OPEN_FILES = 1 << 16  # for servers
SETTLED = 1.5  # seconds after which every receiver has at least begun to write its buffers
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Answers:
    """Results of wrk.

    Attributes:
        answered: Requests answered with a status below 400.
        failed: All other requests.
        seconds: Duration.
        p50: Median latency, ms.
        p99: 99th percentile of latency, ms.
        p999: 99.9th percentile of latency, ms.
        ended: Whether the file of requests ended before the time: `seconds` then means nothing.
    """

    answered: int
    failed: int
    seconds: float
    p50: float
    p99: float
    p999: float
    ended: bool


def cores() -> tuple[int, int]:
    """Returns the core for servers and the core for clients; the same one when there is only one."""
    known = sorted(os.sched_getaffinity(0))
    return known[-1], known[0]


def send(port: int, requests: Path, seconds: int, connections: int = CONNECTIONS) -> Answers:
    """Sends the requests of a file, each once, over keep-alive connections, as fast as they are answered.

    At the end of the file every connection sends its last request again.

    Args:
        port: Port of the server on 127.0.0.1.
        requests: The file. Each request ends with a NUL.
        seconds: Time limit.
        connections: Connections at a time.

    Raises:
        RuntimeError: wrk failed or is not installed.
    """
    wrk = shutil.which("wrk")
    if not wrk:
        raise RuntimeError("wrk is not installed; .ci/run installs it")
    command = [wrk, "-t1", f"-c{connections}", f"-d{seconds}s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}"]
    done = subprocess.run(
        [*command, "--", str(requests)],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        preexec_fn=_on_client_core,
    )
    if done.returncode:
        raise RuntimeError(f"wrk failed: {done.stdout}{done.stderr}")
    answers = json.loads(done.stdout.splitlines()[-1])
    return Answers(**answers | {"ended": bool(answers["ended"])})


def _on_client_core() -> None:
    os.sched_setaffinity(0, {cores()[1]})


def _on_server_core() -> None:
    os.sched_setaffinity(0, {cores()[0]})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Process:
    """A running server with all its descendants, on the core for servers. `cpu` and `memory` count all of them."""

    def __init__(self, process: "subprocess.Popen[bytes]", name: str, port: int, log: Path) -> None:
        """Waits until the server answers on `port`.

        Raises:
            RuntimeError: The server ended, or did not answer in time.
        """
        self._process = process
        end = time.monotonic() + 60
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start: {log.read_text()}")
            time.sleep(0.05)
        time.sleep(0.5)  # for work that a server does after it began to listen

    def _tree(self) -> Iterator[int]:
        found = [self._process.pid]
        while found:
            pid = found.pop()
            yield pid
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(FileNotFoundError):  # a thread that ends meanwhile
                    found += [int(child) for child in (task / "children").read_text().split()]

    def cpu(self) -> float:
        """Returns seconds of CPU time so far, user and system, also of descendants that ended."""
        ticks = 0
        for pid in self._tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
        return ticks / _TICKS

    def memory(self) -> int:
        """Returns resident anonymous memory in bytes."""
        total = 0
        for pid in self._tree():
            status = Path(f"/proc/{pid}/status").read_text()
            total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
        return total * 1024

    def stop(self) -> None:
        """Stops the server with SIGTERM, as an operator would.

        Raises:
            RuntimeError: The server did not end in 30 s.
        """
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            raise RuntimeError("the server did not end 30 s after SIGTERM") from None

    def settled_cpu(self) -> float:
        """Returns `cpu` once the server has written its buffers: it has used no CPU for half a second."""
        time.sleep(SETTLED)
        before = self.cpu()
        for _ in range(60):
            time.sleep(0.5)
            now = self.cpu()
            if now - before < 0.02:
                return now
            before = now
        raise RuntimeError("the server was still busy 30 s after the last request")


def _answers(port: int) -> bool:
    """Whether a server answers a request that is no event: a port may be open long before that."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            probe.sendall(b"GET /robots.txt HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            return bool(probe.recv(1))
    except OSError:
        return False


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[Process]:
    """Runs a server, and kills it at the end of the `with`."""
    with (
        log.open("wb") as output,
        started(command, cwd=log.parent, stdout=output, stderr=output, preexec_fn=_on_server_core) as process,
    ):
        yield Process(process, command[0], port, log)
