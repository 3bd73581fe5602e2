"""Cost of one event between the HTTP server and the disk: tokenize, append, seal."""

import mmap
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from itertools import islice
from pathlib import Path

from benchmarks.outcome import Outcome, workspace
from kanalony.core.frames import crc32c
from kanalony.core.journal import HEADER_SIZE, Blocks
from kanalony.core.querystring import tokenize
from kanalony.segments.check import check_data
from kanalony.segments.directory import DataDirectory
from kanalony.segments.store import Store
from kanalony.segments.writer import compress
from kanalony.settings.serving import ServeSettings
from kanalony.simulate.viewers import simulate

USER_AGENT = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
REFERER = "http://abc.go.com/shows/the-bachelorette"
BATCH = 10_000
EVERYDAY = 574  # bytes of the query in the API's own example
LENGTHS = (100, 250, 500, 1000, 2000, 4000, 8000)  # meinheld takes 8,192
COUNTED = (100, 1000, 8000)  # lengths whose instructions are counted too, which is slow
DISTINCT = 1000
AIM = 1000  # ns
CAVEATS = """\
caveats   Without the HTTP server. Queries of a length are cut from concatenated simulated queries. `append` is the part
          that a request waits for: copy, checksum, commit. `CRC` is the checksum alone: its time is that of the query,
          called from Python; its instructions are those of the whole record, within `append`. Compression runs in
          another thread, tokenizing in the aggregator. Instructions are counted by valgrind's callgrind, as for a
          processor without AVX-512, and are the same in every run, whatever else the machine does."""

# The outermost C function of each step, and the module it is in.
_FUNCTIONS = {
    "append": r"\b__pyx_pw_\w*Blocks_\d+append\b.*/journal\.",
    "CRC": r"\bcrc32c_by_instruction\b.*/journal\.",
    "compress": r"\bLZ4F_compressFrame_usingCDict\b",
    "tokenize": r"\b__pyx_pw_\w*_1tokenize\b",
}
_DRIVE = "import sys; from benchmarks.append import drive; drive(int(sys.argv[1]))"


def measure(events: int, directory: Path | None, *, instructions: bool) -> Outcome:
    """Appends events of everyday length to a store, seals and counts them; then times each step alone, by length.

    Args:
        events: Number of events.
        directory: Where to make a temporary directory; None: the default place.
        instructions: Whether to count instructions, too.

    Raises:
        RuntimeError: An event is missing, or valgrind is.
    """
    outcome = Outcome()
    if instructions and not shutil.which("valgrind"):
        raise RuntimeError("valgrind is not installed (Debian package valgrind); --no-instructions runs without it")
    subject = f"store, query of {EVERYDAY} bytes"
    with workspace(directory) as work:
        data = DataDirectory.writable(work / "data")
        store = Store(data, ServeSettings(data=data.root))
        times, sealing = _append_to(store, events)
        store.close()
        kept = check_data(data)
        if kept.damaged or kept.requests != events:
            raise RuntimeError(f"{events:,} events accepted, {kept}")
    outcome.measure(subject, "append", "ns", *times)
    outcome.measure(subject, "seal (CPU)", "ns", sealing)
    for length in LENGTHS:
        _time_steps(outcome, length, max(2, min(events, 100_000) // DISTINCT))
    if instructions:
        for length in COUNTED:
            _count_instructions(outcome, length)
    outcome.below("append, median", statistics.median(times), AIM, "ns")
    return outcome


def _append_to(store: Store, events: int) -> tuple[list[float], float]:
    """Returns ns per event of each batch, and CPU ns per event of other threads."""
    append = store.append
    times = []
    accepted = 0
    cpu = time.process_time_ns() - time.thread_time_ns()
    while accepted < events:
        while store.journal.blocks.full_blocks > 8:
            time.sleep(0.001)  # not timed, so that the sealer catches up
        batch = (queries(EVERYDAY) * (BATCH // DISTINCT))[: events - accepted]
        start = time.perf_counter_ns()
        for query in batch:
            if not append("GET", "/collect", b"\x7f\0\0\1", None, USER_AGENT, REFERER, query, None):
                raise RuntimeError("the journal was full in spite of the wait above")
        times.append((time.perf_counter_ns() - start) / len(batch))
        accepted += len(batch)
    while store.journal.blocks.full_blocks:
        time.sleep(0.001)
    return times, (time.process_time_ns() - time.thread_time_ns() - cpu) / accepted


@cache
def queries(length: int) -> list[str]:
    """Returns distinct queries of `length` bytes."""
    source = simulate(2000, "1")
    parts: list[str] = []
    while sum(map(len, parts)) < DISTINCT * length:
        parts += [event.query for event in islice(source, DISTINCT)]
    text = "&".join(parts)
    pieces = [text[start : start + length] for start in range(0, DISTINCT * length, length)]
    return [f"n={number:03}&{piece}"[:length] for number, piece in enumerate(pieces)]


class _Steps:
    """One thousand events of a length, and each step on all of them.

    Attributes:
        block: Records of one block, the unit of compression.
        in_a_block: Number of these records.
    """

    def __init__(self, length: int) -> None:
        self.text = queries(length)
        self.encoded = [query.encode() for query in self.text]
        size, count = 1 << 20, 16
        self._blocks = Blocks(mmap.mmap(-1, HEADER_SIZE + size * count), size, count, 1, False, lambda: None)
        self.append()
        self._blocks.hand_over(0)
        found = [self._blocks.full_block(place) for place in range(self._blocks.full_blocks)]
        starts = [block[1] for block in found if block] + [DISTINCT + 1]
        self.in_a_block = starts[1] - starts[0]
        assert found[0]
        self.block = bytes(found[0][0])
        for block in found:
            if block:
                block[0].release()
        self.free()

    def append(self) -> None:
        append = self._blocks.append
        for query in self.text:
            append("GET", "/collect", b"\x7f\0\0\1", None, USER_AGENT, REFERER, query, None)

    def free(self) -> None:
        """Frees the blocks for the next events."""
        if self._blocks.full_blocks:
            self._blocks.free(self._blocks.full_blocks)

    def crc(self) -> None:
        for query in self.encoded:
            crc32c(query)

    def tokenize(self) -> None:
        for query in self.encoded:
            tokenize(query)

    def compress(self) -> None:
        compress(self.block)


def _time_steps(outcome: Outcome, length: int, rounds: int) -> None:
    steps = _Steps(length)
    subject = f"query of {length:,} bytes"
    for _ in range(rounds):
        outcome.measure(subject, "append", "ns", _ns(steps.append) / DISTINCT)
        steps.free()
        outcome.measure(subject, "CRC", "ns", _ns(steps.crc) / DISTINCT)
        outcome.measure(subject, "compress", "ns", _ns(steps.compress) / steps.in_a_block)
        outcome.measure(subject, "tokenize", "ns", _ns(steps.tokenize) / DISTINCT)


def _ns(step: Callable[[], None]) -> int:
    start = time.perf_counter_ns()
    step()
    return time.perf_counter_ns() - start


def drive(length: int) -> None:
    """Runs every step once, for callgrind. `_Steps` itself appends."""
    steps = _Steps(length)
    steps.compress()
    steps.tokenize()


def _count_instructions(outcome: Outcome, length: int) -> None:
    """Counts the instructions of each step.

    Raises:
        RuntimeError: callgrind does not see a step.
    """
    with workspace(None) as work:
        counted = work / "counted"
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={counted}", sys.executable, "-c", _DRIVE]
        subprocess.run([*command, str(length)], check=True, capture_output=True, timeout=600)
        annotated = subprocess.run(
            ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(counted)],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    for step, function in _FUNCTIONS.items():
        found = re.search(rf"^ *([\d,]+) .*{function}", annotated, re.M)
        if not found:
            raise RuntimeError(f"callgrind did not see {step}; was the extension stripped?")
        events = _Steps(length).in_a_block if step == "compress" else DISTINCT
        total = int(found[1].replace(",", ""))
        outcome.measure(f"query of {length:,} bytes", step, "instructions", total / events)
