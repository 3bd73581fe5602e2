"""Hostile clients against each way of serving, among honest ones.

Each attack is repeated while honest clients go on sending. Workers (deaths, anonymous memory), the disk that journals
take and the fate of every honest request are watched; at the end every acknowledged event must be stored. All of
it is bounded in count and time and goes to 127.0.0.1 only.
"""

import contextlib
import itertools
import json
import re
import resource
import subprocess
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.attacks import ATTACKS, Attack, prepare
from benchmarks.outcome import Outcome
from benchmarks.target import WAYS, WORKERS, Target, target_of
from harness.server import KANALONY, Server

HONEST_CLIENTS = 4
HONEST_INTERVAL = 0.1  # seconds between two requests of an honest client
SMALL_GROWTH = 1_024  # bytes per attempt, and
SMALL_TOTAL = 512 << 10  # bytes in all that a worker may grow by: allocators keep spare memory
PATIENCE = 10  # seconds after which an attack that has killed no worker ends


@dataclass
class Verdict:
    """Effects of an attack.

    Attributes:
        attack: Its name.
        attempts: Attempts made.
        deaths: Workers that died.
        replaced: Workers that were replaced because they had grown.
        fates: Honest requests by outcome.
        growth: Growth of a worker's anonymous memory, bytes per attempt; None: the worker changed, or the attempts were
            too few.
        journal_bytes: Peak of the disk that journals took.
        back: Seconds from the end to the first answer to an honest client.
        complaint: Error that an attempt itself found.
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
            parts.append(f"{self.deaths} workers died, answers again after {self.back:.1f} s")
        if self.replaced:
            parts.append(f"{self.replaced} workers replaced because they had grown")
        if self.failed:
            fates = ", ".join(f"{count} {fate}" for fate, count in self.fates.items() if fate != "acknowledged")
            parts.append(
                f"{self.failed / self.fates.total():.0%} of {self.fates.total()} honest requests failed ({fates})"
            )
        if self.grew:
            parts.append(f"memory grew by {(self.growth or 0) / 1000:.1f} KB each")
        return "; ".join(parts) or "withstood"


class Honest:
    """Clients that send at a steady rate until the end of the `with`.

    Each request has its own key and its own connection. `acknowledged` holds the keys answered with 200.
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
        """Returns the outcomes of requests since the last call."""
        with self._lock:
            fates, self._fates = self._fates, Counter()
        return fates


class Watch:
    """Watches workers and journals until the end of the `with`.

    Attributes:
        ended: Process ids of workers that have ended.
        journal_bytes: Peak of the disk that journals took.
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
    """Returns workers that had grown too large, and end with their connections."""
    return {int(pid) for pid in re.findall(r"worker (\d+) has grown", server.log.read_text())}


def _memory(server: Server) -> dict[int, int]:
    """Returns anonymous memory of each worker in bytes: allocations, without the pages of the journal."""
    found = {}
    for pid in set(server.workers()) - _replaced(server):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("RssAnon:"):
                    found[pid] = int(line.split()[1]) << 10
    return found


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
            assert time.monotonic() - end < 30, f"no answer 30 s after: {name}"
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
    """Returns growth in bytes per attempt, from the minimum of the second quarter to the minimum of the last.

    Memory that is allocated once or given back does not count. None: too few attempts.
    """
    quarter = len(memories) // 4
    if quarter < 3:
        return None
    return (min(memories[-quarter:]) - min(memories[quarter : 2 * quarter])) / (2 * quarter)


def run_attacks(way: str, attacks: dict[str, Attack], *arguments: str) -> tuple[list[Verdict], int, int]:
    """Runs attacks against one way of serving.

    Args:
        way: One of `WAYS`.
        attacks: Attacks by name.
        arguments: Further arguments of `kanalony serve`.

    Returns:
        The verdicts, the number of events acknowledged to honest clients, and how many of them are missing.
    """
    prepare()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    try:
        with tempfile.TemporaryDirectory() as temporary, target_of(way, Path(temporary), *arguments) as target:
            with Honest(target, way) as honest:
                # Allocations that a worker makes once are no leak.
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
    """Runs some of the attacks against every way of serving."""
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
