"""Load from wrk against one server at a time, each on a core of its own, and what that cost the server."""

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
SETTLED = 1.5  # seconds after which every receiver has at least begun to write what it holds back
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Answers:
    """What wrk saw: requests answered with a status below 400, those that were not, seconds, and latencies in ms.
    `ended`: the requests did not last for the seconds, which then mean nothing.
    """

    answered: int
    failed: int
    seconds: float
    p50: float
    p99: float
    p999: float
    ended: bool


def cores() -> tuple[int, int]:
    """The core for servers and the one for clients; the same one when there is no other."""
    known = sorted(os.sched_getaffinity(0))
    return known[-1], known[0]


def send(port: int, requests: Path, seconds: int, connections: int = CONNECTIONS) -> Answers:
    """Send the requests of a file (each ends with a NUL), each once, over keep-alive connections, as fast as they are
    answered, for so many seconds at most; at its end every connection sends the last one again. Raises RuntimeError
    when wrk fails.
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
    told = json.loads(done.stdout.splitlines()[-1])
    return Answers(**told | {"ended": bool(told["ended"])})


def _on_client_core() -> None:
    os.sched_setaffinity(0, {cores()[1]})


def _on_server_core() -> None:
    os.sched_setaffinity(0, {cores()[0]})
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Process:
    """A server with all its descendants, on the server's core. `cpu` and `memory` are of all of them."""

    def __init__(self, process: "subprocess.Popen[bytes]", name: str, port: int, log: Path) -> None:
        """Returns when it answers. Raises RuntimeError when it does not."""
        self._process = process
        end = time.monotonic() + 30
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} did not start: {log.read_text()}")
            time.sleep(0.05)
        time.sleep(0.5)  # what a server still does once it listens

    def _tree(self) -> Iterator[int]:
        found = [self._process.pid]
        while found:
            pid = found.pop()
            yield pid
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(FileNotFoundError):  # a thread that ends meanwhile
                    found += [int(child) for child in (task / "children").read_text().split()]

    def cpu(self) -> float:
        """Seconds of processor time so far, user and system, also of descendants that ended."""
        ticks = 0
        for pid in self._tree():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
        return ticks / _TICKS

    def memory(self) -> int:
        """Bytes resident, of anonymous memory."""
        total = 0
        for pid in self._tree():
            status = Path(f"/proc/{pid}/status").read_text()
            total += sum(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon:"))
        return total * 1024

    def stop(self) -> None:
        """End it as an operator would. Raises RuntimeError when it does not end."""
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            raise RuntimeError("the server did not end 30 s after SIGTERM") from None

    def settled_cpu(self) -> float:
        """The same when it has written what it held back: it has used none for half a second."""
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
    """Whether it answers a request that is no event: a port may be open long before."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as probe:
            probe.sendall(b"GET /robots.txt HTTP/1.1\r\nHost: t\r\nConnection: close\r\n\r\n")
            return bool(probe.recv(1))
    except OSError:
        return False


@contextmanager
def running(command: list[str], port: int, log: Path) -> Iterator[Process]:
    """A server that is ended at the end."""
    with (
        log.open("wb") as output,
        started(command, cwd=log.parent, stdout=output, stderr=output, preexec_fn=_on_server_core) as process,
    ):
        yield Process(process, command[0], port, log)
