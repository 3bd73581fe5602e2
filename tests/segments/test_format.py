"""docs/segment-format.md against the code: the example is built from the tables alone, and the code reads it."""

import re
import struct
from pathlib import Path

import lz4.frame

from kanalony.segments.names import SegmentName
from kanalony.segments.reader import Segment

DOCUMENT = (Path(__file__).parents[2] / "docs" / "segment-format.md").read_text()
WORKER = 0x0123456789ABCDEF
RECEIVED = 1_767_225_600_000_001  # 2026-01-01T00:00:00.000001Z


def crc(data: bytes) -> int:
    """CRC-32C, bit by bit."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def skippable(kind: bytes, payload: bytes) -> bytes:
    frame = struct.pack("<II", 0x184D2A5A, 4 + len(payload) + 4) + kind + payload
    return frame + struct.pack("<I", crc(frame))


def example(data: bytes) -> dict[str, bytes]:
    """The parts of the example segment by the tables of the document.

    The compressed data is the document's own: its compression level is not promised.
    """
    fields = b"".join(
        bytes([tag, len(value)]) + value
        for tag, value in [(1, b"GET"), (2, b"/collect"), (3, b"\x7f\0\0\1"), (7, b"eventType=3&partnerId=5")]
    )
    rest = struct.pack("<IQQ", 28 + len(fields), 1, RECEIVED) + fields
    record = b"KNEV" + struct.pack("<I", crc(struct.pack("<Q", WORKER) + rest)) + rest
    header = struct.pack("<HBBQQQ", 1, 0, 5, WORKER, 1, RECEIVED) + b"web-1"
    prefix = struct.pack("<IIIIHHQQQQ", len(data), crc(data), len(record), 1, 1, 0, WORKER, 1, RECEIVED, RECEIVED)
    trailer = struct.pack("<IQQQQQQ", 1, WORKER, 1, 1, len(record), RECEIVED, RECEIVED)
    return {
        "header": skippable(b"KSEG", header),
        "prefix": skippable(b"KFRM", prefix + struct.pack("<HI", 3, 1)),
        "data": data,
        "trailer": skippable(b"KEND", trailer),
        "record": record,
    }


def documented() -> dict[str, bytes]:
    """The parts as printed in the document: lines of name, offset and hex digits; further lines have no name."""
    block = DOCUMENT.split("## 5. A worked example")[1].split("```")[1]
    parts: dict[str, bytes] = {}
    name = ""
    for line in block.strip().splitlines():
        match = re.fullmatch(r"([a-z]*)\s+([0-9a-f]{4})  ([0-9a-f ]+?)", line)
        assert match, line
        name = match[1] or name
        assert int(match[2], 16) == len(parts.get(name, b"")), line
        parts[name] = parts.get(name, b"") + bytes.fromhex(match[3])
    return parts


def test_the_documents_example_follows_its_tables() -> None:
    parts = documented()
    assert parts == example(parts["data"])
    assert lz4.frame.decompress(parts["data"]) == parts["record"]


def test_the_code_reads_the_documents_example(tmp_path: Path) -> None:
    parts = documented()
    path = tmp_path / str(SegmentName(RECEIVED, "web-1", WORKER, 1))
    path.write_bytes(b"".join(parts[name] for name in ("header", "prefix", "data", "trailer")))
    with Segment(path, sealed=True) as segment:
        (event,) = segment.requests()
    assert segment.damaged == []
    assert segment.header
    assert segment.header.host == "web-1"
    assert (event.worker_id, event.sequence, event.received_at) == (WORKER, 1, RECEIVED)
    assert (event.method, event.path, event.address) == (b"GET", b"/collect", "127.0.0.1")
    assert event.query == b"eventType=3&partnerId=5"
