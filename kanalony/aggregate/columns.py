"""Events as Arrow columns: one typed column for each parameter of the vocabulary, the rest in a map."""

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from typing_extensions import Buffer

from kanalony.bodies import read_body
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
        added = self._table.add(content, worker_id, first_sequence, count, begin, end, worker, read_body, self._limit)
        return added and Added(*added)

    def finish(self) -> tuple[pa.RecordBatch, Counter[str]]:
        """All events added, and how many values did not fit their column, by column; begins anew."""
        columns, lists = self._table.finish()
        misfits = Counter({name: column.misfits for name, column in columns.items() if column.misfits})
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
        items = pa.ListArray.from_arrays(_offsets(lists.value_ends), _plain(pa.string(), lists.values))
        keys = _plain(pa.string(), lists.keys)
        arrays["parameters"] = pa.MapArray.from_arrays(_offsets(lists.key_ends), keys, items).cast(_MAP)
        conflicts = _plain(pa.string(), lists.conflicts)
        arrays["conflicts"] = pa.ListArray.from_arrays(_offsets(lists.conflict_ends), conflicts)
        return pa.record_batch([arrays[name] for name in SCHEMA.names], names=SCHEMA.names), misfits


def decompress(frame: Frame) -> pa.Buffer | None:
    """The records of a frame, as `Frame.records` tells them, in memory that is used again: new memory for each frame
    takes longer than what is done with it here.
    """
    try:
        return _LZ4.decompress(frame.compressed, frame.prefix.content_length) if frame.is_sized else None
    except (OSError, MemoryError):
        return None


def _array(kind: pa.DataType, column: "EventColumn") -> pa.Array:
    """Of an event's column: text comes as a dictionary."""
    if not pa.types.is_string(kind):
        return _plain(kind, column)
    texts = pa.Array.from_buffers(kind, column.words, [None, pa.py_buffer(column.word_ends), pa.py_buffer(column.data)])
    nulls = column.rows - column.not_null
    buffers = [pa.py_buffer(column.validity) if nulls else None, pa.py_buffer(column.fixed)]
    return pa.DictionaryArray.from_buffers(WORDS, column.rows, buffers, texts, nulls)


def _plain(kind: pa.DataType, column: "EventColumn") -> pa.Array:
    nulls = column.rows - column.not_null
    buffers = [pa.py_buffer(column.validity) if nulls else None, pa.py_buffer(column.fixed)]
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        buffers.append(pa.py_buffer(column.data))
    return pa.Array.from_buffers(kind, column.rows, buffers, nulls)


def _offsets(ends: "EventColumn") -> pa.Array:
    """Offsets of lists, from where each ends."""
    return pa.array(np.concatenate([[0], np.frombuffer(memoryview(ends.fixed), np.int64)]), pa.int32())


assert set(KINDS) == set(_ARROW_TYPES)
