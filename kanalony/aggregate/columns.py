"""Events as Arrow columns: one typed column for each parameter of the vocabulary, the rest in a map."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from typing_extensions import Buffer

from kanalony._columns import KINDS, REQUEST_COLUMNS, EventTable
from kanalony.bodies import Body, event_limit, read_body
from kanalony.events import PARAMETERS
from kanalony.segments.names import worker_name

_ARROW_TYPES = {"int": pa.int64(), "float": pa.float64(), "text": pa.string(), "binary": pa.binary()}
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
"""Events before enrichment."""


class Added(NamedTuple):
    """What became of records: those before sequence number `end` are in; how many events they were, and how many bodies
    could not be read."""

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
        self, content: bytes, worker_id: int, first_sequence: int, count: int, begin: int, end: int
    ) -> Added | None:
        """Add the events of a frame's `count` records, decompressed, with sequence numbers in [begin, end), as far as
        there is room. None, with nothing added, when the content is not what it should be."""
        worker = self._workers.setdefault(worker_id, len(self._workers))
        added = self._table.add(content, worker_id, first_sequence, count, begin, end, worker, _read_body, self._limit)
        return added and Added(*added)

    def finish(self) -> tuple[pa.RecordBatch, Counter[str]]:
        """All events added, and how many values did not fit their column, by column; begins anew."""
        columns, lists = self._table.finish()
        misfits = Counter({name: column[5] for name, column in columns.items() if column[5]})
        arrays = {}
        for field in SCHEMA:
            if field.name in columns and field.name != "worker":
                arrays[field.name] = _array(field.type, *columns[field.name][:5])
        workers = pa.array(map(worker_name, self._workers), pa.string())
        indices = _array(pa.int64(), *columns["worker"][:5]).cast(pa.int32())
        arrays["worker"] = workers.take(indices)
        self._workers = {}
        lists_of_keys, keys, lists_of_values, values, lists_of_conflicts, conflicts = lists
        values_array = _array(pa.string(), *values[:5])
        keys_array = _array(pa.string(), *keys[:5])
        items = pa.ListArray.from_arrays(_offsets(lists_of_values), values_array)
        arrays["parameters"] = pa.MapArray.from_arrays(_offsets(lists_of_keys), keys_array, items).cast(_MAP)
        names = _array(pa.string(), *conflicts[:5])
        arrays["conflicts"] = pa.ListArray.from_arrays(_offsets(lists_of_conflicts), names)
        return pa.RecordBatch.from_arrays([arrays[name] for name in SCHEMA.names], schema=SCHEMA), misfits


def _read_body(body: bytes, content_type: bytes, content_encoding: bytes, repeated: int, parameters: int) -> Body:
    return read_body(body, content_type, content_encoding, event_limit(repeated, parameters))


def _array(kind: pa.DataType, rows: int, not_null: int, valid: Buffer, fixed: Buffer, data: Buffer) -> pa.Array:
    buffers = [pa.py_buffer(valid) if not_null < rows else None, pa.py_buffer(fixed)]
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        buffers.append(pa.py_buffer(data))
    return pa.Array.from_buffers(kind, rows, buffers, rows - not_null)


def _offsets(ends: tuple[int, int, Buffer, Buffer, Buffer, int]) -> pa.Array:
    """Offsets of lists, from where each ends."""
    return pa.array(np.concatenate([[0], np.frombuffer(memoryview(ends[3]), np.int64)]), pa.int32())


assert set(KINDS) == set(_ARROW_TYPES)
