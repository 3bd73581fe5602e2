"""A small language for tests of the lake: seal segments with chosen times, compact them, read rows back."""

import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars

from kanalony.aggregate.compact import Compaction, Result
from kanalony.aggregate.enrich import Enricher
from kanalony.aggregate.ledger import read_ledger
from kanalony.aggregate.limits import DEFAULT, Limits
from kanalony.aggregate.rollup_writer import RollupWriter
from kanalony.core.frames import FIELD_NAMES, crc32c
from kanalony.segments.directory import DataDirectory
from kanalony.segments.writer import SegmentWriter

NOON = 1_767_268_800_000_000  # 2026-01-01T12:00:00Z, in µs
SECOND = 1_000_000
MEMORY = 256 << 20
SMALL_BATCHES = Limits(batch_share=MEMORY // (128 << 10))  # some 70 events each

TAGS = {name: tag for tag, name in enumerate(FIELD_NAMES, 1)}


@dataclass(frozen=True)
class Sent:
    """A request of a player, and its time of receipt in µs since 1970."""

    at: int
    query: bytes
    body: bytes = b""
    user_agent: bytes = b"Mozilla/5.0"
    address: bytes = b"\xcb\x00q\x07"
    content_encoding: bytes = b""

    def record(self, worker: int, sequence: int) -> bytes:
        """Encodes the request as a record of docs/segment-format.md."""
        parts = {"method": b"POST" if self.body else b"GET", "path": b"/collect", "remote_addr": self.address}
        parts |= {"user_agent": self.user_agent, "query": self.query, "body": self.body}
        parts |= {"content_encoding": self.content_encoding}
        fields = b"".join(bytes([TAGS[name]]) + varint(len(value)) + value for name, value in parts.items() if value)
        rest = struct.pack("<IQQ", 28 + len(fields), sequence, self.at) + fields
        return b"KNEV" + struct.pack("<I", crc32c(struct.pack("<Q", worker) + rest)) + rest


class Killed(BaseException):
    """Stands for the death of a process: no code under test catches it."""


def varint(number: int) -> bytes:
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F)
    return bytes([*(digit | 0x80 for digit in digits[:-1]), digits[-1]])


def seal(data: DataDirectory, frames: Iterable[Iterable[Sent]], *, worker: int = 0xA1, first: int = 1) -> Path:
    """Seals a segment of one worker, whose requests have the sequence numbers from `first` on."""
    writer = SegmentWriter(data, "test", worker, 0, first)
    for frame in map(list, frames):
        records = b"".join(sent.record(worker, first + number) for number, sent in enumerate(frame))
        writer.add(records, first)
        first += len(frame)
    writer.seal()
    return data.sealed / writer.name


def compact(
    data: DataDirectory,
    *,
    memory: int = MEMORY,
    keep_segments: float = float("inf"),
    stopping: Callable[[], bool] = lambda: False,
    limits: Limits = DEFAULT,
) -> Result:
    enricher = Enricher(None, None)
    with Compaction(data, memory=memory, keep_segments=keep_segments, enricher=enricher, limits=limits) as compaction:
        return compaction.run(compaction.waiting(), lambda _: None, stopping)


KEEP = {"hour": float("inf"), "minute": float("inf"), "tenSeconds": float("inf")}


def roll_up(
    data: DataDirectory,
    keep: dict[str, float] = KEEP,
    *,
    memory: int = MEMORY,
    geoip: Any = None,
    limits: Limits = DEFAULT,
) -> int:
    """Compacts, and refreshes the rollups. Returns the number of hours that were recomputed."""
    enricher = Enricher(None, geoip)
    with Compaction(data, memory=memory, keep_segments=float("inf"), enricher=enricher, limits=limits) as compaction:
        rollups = RollupWriter(data.lake, compaction.lake, memory=memory, keep=keep, limits=limits)
        compaction.run(compaction.waiting(), lambda _: None, lambda: False)
        return rollups.refresh(compaction.lake, compaction.manifest)


def rows(data: DataDirectory) -> list[dict[str, Any]]:
    """Reads the rows of the lake with polars, in order of receipt."""
    table = polars.read_delta(str(data.lake / "events")).sort("worker", "sequence", "index")
    return table.sort("receivedAt", maintain_order=True).to_dicts()


def queries(data: DataDirectory) -> Counter[bytes]:
    return Counter(row["query"] for row in rows(data))


def sent(number: int, *, at: int = 0, session: str = "s") -> Sent:
    return Sent(NOON + at * SECOND, f"eventType=3&partnerId=5&sessionId={session}&eventIndex={number}".encode())


def assert_balanced(data: DataDirectory, **expected: int) -> None:
    """Asserts that the ledger balances, with these sums."""
    ledger = read_ledger(data)
    assert [account for account in ledger.accounts if not account.balanced] == []
    assert ledger.balanced
    assert {name: getattr(ledger.total, name) for name in expected} == expected


def tree(root: Path) -> dict[str, bytes]:
    """Reads all files of a directory, except the lock."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "compact.lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}
