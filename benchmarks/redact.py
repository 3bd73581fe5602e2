"""Cost of one body with `--redact`: hostile bodies beside honest ones."""

import gzip
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from benchmarks.outcome import Outcome
from benchmarks.traffic import to_json, traffic
from kanalony.collector.counts import Counts
from kanalony.collector.privacy import private
from kanalony.segments.directory import DataDirectory
from kanalony.settings.serving import ServeSettings

MAX_BODY = 1 << 20
AIM = 8  # times the time of the slowest honest body
CAVEATS = """\
caveats   CPU time between the HTTP server and the journal, of bodies as large as the default --max-body allows. The
          player waits for it, and so do all other clients of the same worker."""

Body = tuple[bytes, str, str | None]
"""(body, content type, content encoding)"""


def honest() -> dict[str, Body]:
    """Returns the largest batch of events that is accepted, each with the ks of its session."""
    objects: list[bytes] = []
    size = 2
    for event in traffic(500, ks=True):
        object_ = to_json(event)
        size += len(object_) + 1
        if size > MAX_BODY:
            break
        objects.append(object_)
    body = b"[" + b",".join(objects) + b"]"
    few = b"[" + b",".join(islice(objects, 30)) + b"]"
    json = "application/json"
    return {
        f"{len(objects):,} events": (body, json, None),
        f"{len(objects):,} events, gzip": (gzip.compress(body), json, "gzip"),
        "30 events, gzip": (gzip.compress(few), json, "gzip"),
    }


def hostile() -> dict[str, Body]:
    """Returns bodies, small or of the largest size, that cost much work per byte."""
    json, form = "application/json", "application/x-www-form-urlencoded"

    def fill(unit: bytes, start: bytes = b"", end: bytes = b"", size: int = MAX_BODY) -> bytes:
        return start + unit * ((size - len(start) - len(end)) // len(unit)) + end

    shapes = {
        "empty objects": (fill(b"{},", b"[", b"{}]"), json),
        "objects of one secret": (fill(b'{"ks":1}\n'), json),
        "one object of secrets": (fill(b'"ks":1,', b"{", b'"a":1}'), json),
        "one object of escaped names": (fill(b'"\\u0061":1,', b"{", b'"ks":1}'), json),
        "60 levels": (fill(b'{"a":[' + b"[" * 60 + b"]" * 60 + b"]}\n"), json),
        "broken at its end": (fill(b'{"ks":1,"b":2}\n', b"", b"{"), json),
        "form of secrets": (fill(b"ks=1&"), form),
        "form of names": (fill(b"a=1&", b"", b"ks=1"), form),
        "form of percent signs": (fill(b"%25", b"a=", b"=1&ks=1"), form),
        "secrets of twice the size": (fill(b'"ks":1,', b"{", b'"a":1}', 2 * MAX_BODY), json),
    }
    bodies: dict[str, Body] = {}
    for name, (body, kind) in shapes.items():
        packed = gzip.compress(body, 9)
        bodies[f"{name}, gzip of {len(packed):,} bytes"] = packed, kind, "gzip"
        if len(body) <= MAX_BODY:
            bodies[name] = body, kind, None
    nothing = empty_blocks(MAX_BODY // 12)
    bodies["gzip blocks that hold nothing"] = nothing, json, "gzip"
    bodies["the same, compressed again"] = gzip.compress(nothing), json, "gzip, gzip"
    quarter = empty_blocks(MAX_BODY // 48) + gzip.compress(shapes["form of secrets"][0])
    bodies["a quarter of them, then a form of secrets"] = quarter, form, "gzip"
    return bodies


def empty_blocks(count: int) -> bytes:
    """Returns an empty gzip file of deflate blocks with their own Huffman codes: the slowest input per byte.

    Args:
        count: Number of blocks, a multiple of 8.
    """
    # The lengths of codes 18 and 1 are one bit. Then the lengths of literals: 138 and 118 zeros, 1 for the end of the
    # block; and of one distance. Then the end.
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)
    lengths = [(int(symbol in (18, 1)), 3) for symbol in order]
    block = [(2, 2), (0, 5), (0, 5), (14, 4), *lengths, (1, 1), (127, 7), (1, 1), (107, 7), (0, 1), (0, 1), (0, 1)]
    deflated = _bits([(0, 1), *block] * 8) * (count // 8) + _bits([(1, 1), *block])
    return gzip.compress(b"")[:10] + deflated + bytes(8)


def _bits(fields: list[tuple[int, int]]) -> bytes:
    """Packs (number, size in bits) from the lowest bit on."""
    value = length = 0
    for number, size in fields:
        value |= number << length
        length += size
    return value.to_bytes(-(-length // 8), "little")


def measure(rounds: int) -> Outcome:
    """Measures the least CPU time of each body over all rounds, and the ratio of the slowest two."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as work:
        settings = ServeSettings(data=Path(work) / "data", redact=("ks",), max_body=MAX_BODY)
        store = private(lambda *_: 1, DataDirectory.writable(settings.data), settings, Counts())
        slowest = {}
        for kind, bodies in (("honest", honest()), ("hostile", hostile())):
            times = {name: min(_milliseconds(store, body) for _ in range(rounds)) for name, body in bodies.items()}
            for name, time_ in times.items():
                outcome.figure(f"{kind}: {name}", f"{time_:.1f} ms")
            slowest[kind] = max(times.values())
    outcome.below("hostile, times honest", slowest["hostile"] / slowest["honest"], AIM, "times")
    return outcome


def _milliseconds(store: Callable[..., int], body: Body) -> float:
    start = time.process_time_ns()
    store("POST", "/collect", None, None, None, None, None, *body)
    return (time.process_time_ns() - start) / 1e6
