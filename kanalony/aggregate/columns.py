"""Events as Arrow columns: one typed column for each parameter of the vocabulary, the rest in a map."""

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from typing_extensions import Buffer

from kanalony.bodies import Body, event_limit, read_body
from kanalony.core.columns import KINDS, REQUEST_COLUMNS, EventTable
from kanalony.events import PARAMETERS
from kanalony.segments.names import worker_name
from kanalony.segments.reader import Frame

if TYPE_CHECKING:
    from kanalony.core.columns import EventColumn

_ARROW_TYPES = {"int": pa.int64(), "float": pa.float64(), "text": pa.string(), "binary": pa.binary()}
WORDS = pa.dictionary(pa.int32(), pa.string())
"""Text, each value once: as which it comes from here."""

_LZ4 = pa.Codec("lz4")
_MAP = pa.map_(pa.string(), pa.list_(pa.field("item", pa.string(), nullable=False)))

SCHEMA = pa.schema(
    [
        ("receivedAt", pa.timestamp("us", "UTC")),
        ("worker", pa.string()),
        *((name, _ARROW_TYPES[kind]) for name, kind in REQUEST_COLUMNS[2:]),
        *((parameter.name, _ARROW_TYPES[parameter.kind]) for parameter in PARAMETERS),
        ("parameters", _MAP),
        ("conflicts", pa.list_(pa.string())),
    ]
)
"""Events before enrichment; text may be dictionary-encoded."""


class Added(NamedTuple):
    """What became of records: those before sequence number `end` are in; how many events they were, and how many bodies
    could not be read.
    """

    end: int
    events: int
    unread: int


class Columns:
    """Collects requests, frame by frame, and hands their events out as one Arrow batch."""

    def __init__(self, limit: int) -> None:
        """`limit` is about how many bytes a batch may take; one request is always taken."""
        self._limit = limit
        self._table = EventTable(
            [(parameter.name, parameter.kind) for parameter in PARAMETERS],
            [(spelling, parameter.name) for parameter in PARAMETERS for spelling in parameter.spellings],
            "sessionId",
        )
        self._workers: dict[int, int] = {}

    @property
    def rows(self) -> int:
        """Events added and not yet handed out."""
        return self._table.rows

    @property
    def is_full(self) -> bool:
        return self._table.weight >= self._limit

    def add(
        self, content: Buffer, worker_id: int, first_sequence: int, count: int, begin: int, end: int
    ) -> Added | None:
        """Add the events of a frame's `count` records, decompressed, with sequence numbers in [begin, end), as far as
        there is room. None, with nothing added, when the content is not what it should be.
        """
        worker = self._workers.setdefault(worker_id, len(self._workers))
        added = self._table.add(content, worker_id, first_sequence, count, begin, end, worker, _read_body, self._limit)
        return added and Added(*added)

    def finish(self) -> tuple[pa.RecordBatch, Counter[str]]:
        """All events added, and how many values did not fit their column, by column; begins anew."""
        columns, lists = self._table.finish()
        cast_failures = Counter({name: column[5] for name, column in columns.items() if column[5]})
        arrays = {
            field.name: _array(field.type, columns[field.name])
            for field in SCHEMA
            if field.name in columns and field.name != "worker"
        }
        workers = pa.array(map(worker_name, self._workers), pa.string())
        arrays["worker"] = pa.DictionaryArray.from_arrays(
            _array(pa.int64(), columns["worker"]).cast(pa.int32()), workers
        )
        self._workers = {}
        lists_of_keys, keys, lists_of_values, values, lists_of_conflicts, conflicts = lists
        items = pa.ListArray.from_arrays(_offsets(lists_of_values), _plain(pa.string(), values))
        arrays["parameters"] = pa.MapArray.from_arrays(_offsets(lists_of_keys), _plain(pa.string(), keys), items).cast(
            _MAP
        )
        arrays["conflicts"] = pa.ListArray.from_arrays(_offsets(lists_of_conflicts), _plain(pa.string(), conflicts))
        return pa.record_batch([arrays[name] for name in SCHEMA.names], names=SCHEMA.names), cast_failures


def decompress(frame: Frame) -> pa.Buffer | None:
    """The records of a frame, as `Frame.records` tells them, in memory that is used again: new memory for each frame
    takes longer than what is done with it here.
    """
    try:
        return _LZ4.decompress(frame.compressed, frame.prefix.content_length) if frame.is_sized else None
    except (OSError, MemoryError):
        return None


def _read_body(body: bytes, content_type: bytes, content_encoding: bytes, repeated: int, parameters: int) -> Body:
    return read_body(body, content_type, content_encoding, event_limit(repeated, parameters))


def _array(kind: pa.DataType, column: "EventColumn") -> pa.Array:
    """Of an event's column: text comes as a dictionary."""
    if not pa.types.is_string(kind):
        return _plain(kind, column)
    rows, not_null, valid, fixed, data, _, words, ends = column
    texts = pa.Array.from_buffers(kind, words, [None, pa.py_buffer(ends), pa.py_buffer(data)])
    buffers = [pa.py_buffer(valid) if not_null < rows else None, pa.py_buffer(fixed)]
    return pa.DictionaryArray.from_buffers(WORDS, rows, buffers, texts, rows - not_null)


def _plain(kind: pa.DataType, column: "EventColumn") -> pa.Array:
    rows, not_null, valid, fixed, data, *_ = column
    buffers = [pa.py_buffer(valid) if not_null < rows else None, pa.py_buffer(fixed)]
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        buffers.append(pa.py_buffer(data))
    return pa.Array.from_buffers(kind, rows, buffers, rows - not_null)


def _offsets(ends: "EventColumn") -> pa.Array:
    """Offsets of lists, from where each ends."""
    return pa.array(np.concatenate([[0], np.frombuffer(memoryview(ends[3]), np.int64)]), pa.int32())


assert set(KINDS) == set(_ARROW_TYPES)
