"""Mutated segments, journals and bodies through the compiled readers, which `make fuzz-readers` builds with sanitizers.

Reading a damaged file must cause no memory error and return no request that was not written. Forged records get valid
checksums, so that their bytes reach the code behind the checksums; reading them may return anything.
"""

import argparse
import ctypes
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import kanalony.core.journal
from kanalony.aggregate.columns import Columns
from kanalony.bodies import read_body, read_events
from kanalony.core.frames import OTHER_TYPE, build_prefix, crc32c
from kanalony.core.journal import HEADER_SIZE, scan_block
from kanalony.core.json import members
from kanalony.core.querystring import event_type, parse, tokenize
from kanalony.core.redact import Redactor
from kanalony.errors import FormatError
from kanalony.segments.check import check_paths
from kanalony.segments.directory import DataDirectory
from kanalony.segments.reader import Request, decode_records
from kanalony.segments.writer import compress
from tests.files import COLLECT_QUERY, JournalFile, SegmentFile, fields, journal_file, record_bounds, segment_file

_BODIES = (
    b'{"eventType": 3, "title": "\\u00dcn\\ud83d\\ude00", "a": [1, {"b": null}], "ks": "c2VjcmV0"}',
    b'[{"eventType": 3}, {"eventType": 99, "position": 1.5e3}]',
    b'{"a": 1}\n{"b": 2}\n[{"c": "\\n"}]\n',
    b"eventType=3&event%3AentryId=0_a&ks=secret&a=%zz&=&b",
)


def mutated(rng: random.Random, content: bytes) -> bytes:
    """The content with one to eight changes: flipped bits, ranges cut, doubled, zeroed or copied, boundary numbers."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 9)):
        if not data:
            break
        at, size = rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 40, 300))
        kind = rng.randrange(6)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size]
        elif kind == 3:
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == 4:
            other = rng.randrange(len(data))
            data[at : at + size] = data[other : other + size]
        else:
            data[at : at + 4] = rng.choice((0, 1, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)).to_bytes(4, "little")
    return bytes(data)


def exactly(content: bytes) -> "ctypes.Array[ctypes.c_ubyte]":
    """The content without the zero byte that Python keeps behind bytes, so that a read of one byte more is reported."""
    return (ctypes.c_ubyte * len(content)).from_buffer_copy(content)


def forged(rng: random.Random, record: bytes, worker: int) -> bytes:
    """A record with other fields and a length and checksum to match: docs/segment-format.md, section 2."""
    record = record[:28] + mutated(rng, record[28:])
    covered = len(record).to_bytes(4, "little") + record[12:]
    checksum = crc32c(covered, crc32c(worker.to_bytes(8, "little")))
    return record[:4] + checksum.to_bytes(4, "little") + covered


class Readers:
    """Reads mutations of one segment, one journal and some bodies. `read` counts successful reads by kind."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        data = DataDirectory.writable(directory / "data")
        self._rng = rng
        self._segment: SegmentFile = segment_file(data, [[fields(n) for n in range(f, f + 9)] for f in range(0, 36, 9)])
        self._journal: JournalFile = journal_file(data, [fields(n) for n in range(12)])
        self._written = {request.fields for request in self._segment.read(self._segment.content, sealed=True)[0]}
        self._journaled = {request.fields for request in self._journal.read(self._journal.content)[0]}
        self._columns = Columns(1 << 20)
        self._redactor = Redactor(("ks",), b"redacted")
        self.read: Counter[str] = Counter()

    def segment(self) -> None:
        """A damaged segment."""
        requests, segment = self._segment.read(mutated(self._rng, self._segment.content), sealed=True)
        assert {request.fields for request in requests} <= self._written, (
            "a segment returned a request that was never written"
        )
        self.read["requests of damaged segments"] += len(requests)
        for request in requests:
            self._events(request)
        check_paths([segment.path])

    def journal(self) -> None:
        """A damaged journal."""
        try:
            requests, _ = self._journal.read(mutated(self._rng, self._journal.content))
        except FormatError:
            return  # its header
        assert {request.fields for request in requests} <= self._journaled, (
            "a journal returned a request that was never written"
        )
        self.read["requests of damaged journals"] += len(requests)

    def records(self) -> None:
        """Requests with mutated parts."""
        rng = self._rng
        parts = [mutated(rng, part) if part and rng.random() < 0.7 else part for part in fields(rng.randrange(99))]
        body = mutated(rng, rng.choice(_BODIES))
        parts[6:9] = mutated(rng, COLLECT_QUERY), body, rng.choice((None, b"application/json", b"text/plain"))
        parts[9] = rng.choice((None, None, b"gzip", b"deflate"))
        with tempfile.TemporaryDirectory() as directory:
            journal = journal_file(DataDirectory.writable(Path(directory) / "d"), [tuple(parts)], block_size=1 << 16)
            requests, _ = journal.read(journal.content)
        assert [request.fields for request in requests] == [tuple(part or None for part in parts)]
        self._events(requests[0])
        self.read["mutated requests"] += 1

    def forged(self) -> None:
        """Records with valid checksums and mutated fields."""
        worker = int(self._journal.path.stem, 16)
        for start, end in record_bounds(self._journal):
            record = forged(self._rng, self._journal.content[start:end], worker)
            sequence = int.from_bytes(record[12:20], "little")
            decoded = decode_records(exactly(record), worker, sequence)
            scan_block(exactly(record), 0, len(record), worker, 0)
            added = self._columns.add(exactly(record), worker, sequence, 1, sequence, sequence + 1)
            assert (decoded is None) == (added is None)
            if decoded and added and added.end > sequence:  # the columns have room
                assert added.events == sum(1 for _ in read_events(decoded[0]).parameters)
            self.read["forged records"] += decoded is not None

    def columns(self) -> None:
        """Records, mutated or not, into columns."""
        content = self._journal.content[HEADER_SIZE:]
        content = mutated(self._rng, content) if self._rng.random() < 0.5 else content
        worker = int(self._journal.path.stem, 16)
        runs, _ = scan_block(content, 0, len(content), worker, 0)
        for start, end, first, count in runs:
            records = content[start:end]
            assert decode_records(records, worker, first) is not None
            build_prefix(records, worker, first, compress(records))
            added = self._columns.add(records, worker, first, count, first, first + count)
            assert added, "scan_block returned records that are not valid"
            wrong = self._columns.add(mutated(self._rng, records), worker, first, count, first, first + count)
            self.read["events in columns"] += added.events + (wrong.events if wrong else 0)
        if self._columns.rows > 200:
            batch, _ = self._columns.finish()
            batch.validate(full=True)

    def bodies(self) -> None:
        """Bodies and queries outside of files."""
        rng = self._rng
        text = mutated(rng, rng.choice((*_BODIES, COLLECT_QUERY)))
        body = read_body(text, b"", b"")
        for start, end in body.objects:
            redacted = self._redactor.json(body.text, start, end)
            values = [value for name, value in members(redacted, 0, len(redacted)) if name == b"ks"]
            assert set(values) <= {b"", b"redacted"}
        assert len(parse(text)) == len(tokenize(text))
        redacted = self._redactor.query(text)
        assert {value for name, value in parse(redacted) if name == b"ks"} <= {b"", b"redacted"}
        assert self._redactor.query(redacted) == redacted
        assert 0 <= event_type(text) <= 254 or event_type(text) == OTHER_TYPE
        self.read["bodies"] += 1

    def _events(self, request: Request) -> None:
        self.read["events"] += sum(1 for _ in read_events(request).parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="how long (60)")
    parser.add_argument("--seed", type=int, help="repeat a run that failed; printed at the start")
    arguments = parser.parse_args()
    seed = random.randrange(1 << 32) if arguments.seed is None else arguments.seed
    module = Path(kanalony.core.journal.__file__)
    if b"__asan_report" not in module.read_bytes():
        sys.exit(f"{module} is built without sanitizers: run this by make fuzz-readers")
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        readers = Readers(Path(directory), random.Random(seed))
        steps = (readers.segment, readers.journal, readers.records, readers.forged, readers.columns, readers.bodies)
        end = time.monotonic() + arguments.seconds
        rounds = 0
        while time.monotonic() < end:
            for step in steps:
                step()
            rounds += 1
    print(f"{rounds:,} rounds: " + ", ".join(f"{count:,} {name}" for name, count in readers.read.items()))
    sys.exit(0 if all(readers.read.values()) else 1)


if __name__ == "__main__":
    main()
