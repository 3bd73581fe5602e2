"""What one event costs between the HTTP server and the disk: tokenize, append, seal."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kanalony._querystring import event_type, tokenize
from kanalony.segments.check import check_data
from kanalony.segments.names import DataDirectory
from kanalony.segments.store import Store
from kanalony.settings import Settings

QUERY = (
    "kalsig=1ebb5aea0c5f253fd8c578febe6a752f&clientTag=kdp%3Av3%2E9%2E2&sessionId=C90BFCFC%2D2EBF%2D5893%2D892D%2D2121162F"
    "414A&eventIndex=3&eventType=2&referrer=http%253A%2F%2Fabc%2Ego%2Ecom%2Fshows%2Fthe%2Dbachelorette%2Fvideo%2Fmost%2Dre"
    "cent%2FVDKA0%5Flawz79v7&entryId=0_n5nbuy6i&ks=YjdlZTNkMGUzZDYxMzY0OGJjZDVjOTYzOWVkMjFlNTg2ZmMyZDRlOXw1ODUyMzE7NTg1MjM"
    "xOzE0MzUxNjA2NzY7MDsxNDM1MDc0Mjc2Ljc2MTk7MDt2aWV3Oiosd2lkZ2V0OjE7Ow%3D%3D&sessionStartTime=1435075182567&uiConfId=235"
    "21211&partnerId=585231&position=18&clientVer=3%2E0%3Av3%2E9%2E2&playbackContext=sports&customVar1=Finnance"
)
USER_AGENT = (
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36"
)
REFERER = "http://abc.go.com/shows/the-bachelorette"
BATCH = 10_000
AIM_US = 1.0
CAVEATS = """\
caveats   One repeated query: it is always in the cache, and compresses far better than traffic does, so `seal` is too
          low here. The HTTP server is left out. `append` is what a request waits for; `seal` is another thread's."""


def measure(events: int, directory: Path | None) -> str:
    """Append that many events to a store in a temporary directory (below `directory`), seal them, count them again.

    Returns a table of µs per event: minimum, median and maximum over batches. Raises RuntimeError when an event is
    missing.
    """
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        data = DataDirectory.writable(Path(temporary) / "data")
        store = Store(data, Settings(data=data.root))
        append_times, accepted, seal_cpu = _append(store, events)
        store.close()
        kept = check_data(data)
        if kept.damaged or kept.requests != accepted:
            raise RuntimeError(f"{accepted:,} events accepted, {kept}")
    query = QUERY.encode()
    rows = [
        ("tokenize", _repeat(lambda: tokenize(query), events), "every pair, as Python offsets"),
        ("event type", _repeat(lambda: event_type(query), events), "for frame statistics, by the sealer thread"),
        ("append", append_times, f"copy, checksum, commit; the aim is {AIM_US} µs"),
    ]
    lines = [f"events    {accepted:,} accepted, {kept.requests:,} read back, query of {len(query)} bytes", ""]
    lines.append(f"{'µs per event':<14}{'min':>8}{'median':>8}{'max':>8}")
    for name, times, what in rows:
        lines.append(f"{name:<14}{min(times):8.3f}{statistics.median(times):8.3f}{max(times):8.3f}   {what}")
    lines.append(f"{'seal':<14}{'':>8}{seal_cpu:8.3f}{'':>8}   CPU: check, statistics, compress, write, sync")
    return "\n".join(lines)


def _append(store: Store, events: int) -> tuple[list[float], int, float]:
    """(µs per event of each batch, events accepted, CPU µs per event spent outside this thread)."""
    append = store.append
    times = []
    accepted = 0
    cpu = time.process_time() - time.thread_time()
    while accepted < events:
        while store.journal.blocks.full_blocks > 8:
            time.sleep(0.001)  # not timed: the sealer catches up
        start = time.perf_counter_ns()
        for _ in range(BATCH):
            if not append("GET", "/collect", b"\x7f\0\0\1", None, USER_AGENT, REFERER, QUERY, None):
                raise RuntimeError("the journal was full, which the wait above should rule out")
        times.append((time.perf_counter_ns() - start) / BATCH / 1000)
        accepted += BATCH
    while store.journal.blocks.full_blocks:
        time.sleep(0.001)
    return times, accepted, (time.process_time() - time.thread_time() - cpu) / accepted * 1e6


def _repeat(call: Callable[[], object], events: int) -> list[float]:
    """µs per call, of each batch."""
    times = []
    for _ in range(max(1, min(events, 200_000) // BATCH)):
        start = time.perf_counter_ns()
        for _ in range(BATCH):
            call()
        times.append((time.perf_counter_ns() - start) / BATCH / 1000)
    return times
