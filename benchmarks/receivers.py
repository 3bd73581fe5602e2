"""Receivers of events, kanalony and its alternatives: how each starts, and how its stored events are counted."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.server import KANALONY
from kanalony.segments.check import check_data
from kanalony.segments.directory import DataDirectory
from kanalony.segments.reader import decode_records

_PEERS = Path(__file__).parent / "peers"


@dataclass(frozen=True)
class Receiver:
    """A server that takes events.

    Attributes:
        name: Its name in results.
        promise: Where an event is when its 200 is sent.
        command: Returns the command that starts it in a directory of its own, on a port of 127.0.0.1.
        stored: Returns the number of events in that directory after its end, and their bytes; None: it stores none.
    """

    name: str
    promise: str
    command: Callable[[Path, int], list[str]]
    stored: Callable[[Path], tuple[int, int]] | None


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if not found:
        raise RuntimeError(f"{name} is not installed; .ci/run installs it")
    return found


def check_programs() -> None:
    """Checks before the first round that all programs are installed.

    Raises:
        RuntimeError: A program is missing.
    """
    for name in ("wrk", "gcc", "nginx", "node"):
        _program(name)


def _bare(work: Path, port: int) -> list[str]:
    return [sys.executable, str(_PEERS / "bare.py"), str(port)]


def kanalony(*options: str) -> Callable[[Path, int], list[str]]:
    """Returns the `command` of a collector of one worker with these options."""

    def command(work: Path, port: int) -> list[str]:
        return [*KANALONY, "serve", "--workers", "1", "--port", str(port), "--data", str(work / "data"), *options]

    return command


def _nginx(buffer: str) -> Callable[[Path, int], list[str]]:
    def command(work: Path, port: int) -> list[str]:
        text = (_PEERS / "nginx.conf").read_text().replace("@PORT@", str(port)).replace("@BUFFER@", buffer)
        (work / "nginx.conf").write_text(text)
        return [_program("nginx"), "-p", str(work), "-c", "nginx.conf", "-e", "error.log", "-g", "daemon off;"]

    return command


def _prototype(work: Path, port: int) -> list[str]:
    program = work / "prototype"
    options = ["-O3", "-D_GNU_SOURCE", f"-I{_PEERS.parent.parent / 'kanalony' / 'core'}", "-o", str(program)]
    subprocess.run([_program("gcc"), *options, str(_PEERS / "prototype.c")], check=True)
    return [str(program), str(port), "records"]


def _node(work: Path, port: int) -> list[str]:
    return [_program("node"), str(_PEERS / "receiver.js"), str(port), "events.json"]


def _uvicorn(work: Path, port: int) -> list[str]:
    options = ["--port", str(port), "--no-access-log", "--backlog", "4096"]
    return [sys.executable, "-m", "uvicorn", "--app-dir", str(_PEERS), *options, "fastapi_receiver:app"]


def _gunicorn(work: Path, port: int) -> list[str]:
    options = ["--bind", f"127.0.0.1:{port}", "--threads", "8", "--keep-alive", "75", "--no-control-socket"]
    return [sys.executable, "-m", "gunicorn", "--pythonpath", str(_PEERS), *options, "flask_receiver:app"]


def _segments(work: Path) -> tuple[int, int]:
    """Counts events and bytes of segments; every frame is read and checked."""
    data = DataDirectory(work / "data")
    kept = check_data(data)
    if kept.damaged:
        raise RuntimeError(f"damaged segments: {kept}")
    return kept.events, sum(path.stat().st_size for path in data.sealed.iterdir())


def _records(work: Path) -> tuple[int, int]:
    content = (work / "records").read_bytes()
    requests = decode_records(content, 1, 1)
    if requests is None:
        raise RuntimeError("the prototype's records are damaged")
    return len(requests), len(content)


def _lines(work: Path) -> tuple[int, int]:
    lines = size = 0
    with (work / "events.json").open("rb") as file:
        while part := file.read(1 << 20):
            lines += part.count(b"\n")
            size += len(part)
    return lines, size


BARE = Receiver("bare meinheld", "nowhere", _bare, None)
WRITTEN = Receiver("kanalony, meinheld, written", "in the kernel's memory", kanalony(), _segments)
SYNCED = Receiver("kanalony, meinheld, synced", "on the disk", kanalony("--ack", "synced"), _segments)
GRANIAN = Receiver("kanalony, granian, written", "in the kernel's memory", kanalony("--server", "granian"), _segments)
BUFFERED = Receiver("nginx, log buffered", "in its own memory", _nginx("buffer=64k flush=1s"), _lines)
FLUSHED = Receiver("nginx, log flushed", "in the kernel's memory", _nginx(""), _lines)
NODE = Receiver("Node, NDJSON", "in the kernel's memory", _node, _lines)
FASTAPI = Receiver("uvicorn + FastAPI, NDJSON", "in the kernel's memory", _uvicorn, _lines)
FLASK = Receiver("gunicorn + Flask, NDJSON", "in the kernel's memory", _gunicorn, _lines)
PROTOTYPE = Receiver("prototype in C, no segments", "in the kernel's memory", _prototype, _records)
ALL = (BARE, WRITTEN, SYNCED, GRANIAN, PROTOTYPE, BUFFERED, FLUSHED, NODE, FASTAPI, FLASK)
