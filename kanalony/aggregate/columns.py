"""Events as Arrow columns: one typed column for each parameter of the vocabulary, all others in a map."""

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
"""Text with each value once: the type in which text columns leave this module."""

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
"""Events before enrichment. Text may be dictionary-encoded."""


class Added(NamedTuple):
    """What `Columns.add` did.

    Attributes:
        end: The requests before this sequence number were added.
        events: Events in them.
        unread: Bodies that could not be read.
    """

    end: int
    events: int
    unread: int


class Columns:
    """Collects requests, frame by frame, and returns their events as one Arrow batch."""

    def __init__(self, limit: int) -> None:
        """Creates empty columns.

        Args:
            limit: Bytes that a batch may take, about. One request always fits.
        """
        self._limit = limit
        self._table = EventTable(
            [(parameter.name, parameter.kind) for parameter in PARAMETERS],
            [(spelling, parameter.name) for parameter in PARAMETERS for spelling in parameter.spellings],
            "sessionId",
        )
        self._workers: dict[int, int] = {}

    @property
    def rows(self) -> int:
        """Events that were added since `finish`."""
        return self._table.rows

    @property
    def is_full(self) -> bool:
        """Whether the limit is reached."""
        return self._table.weight >= self._limit

    def add(
        self, content: Buffer, worker_id: int, first_sequence: int, count: int, begin: int, end: int
    ) -> Added | None:
        """Adds the events of some requests of a frame, until the limit is reached.

        Args:
            content: The frame's records, decompressed.
            worker_id: The worker that wrote them.
            first_sequence: Sequence number of the first record.
            count: Number of records in the frame.
            begin: Sequence number of the first request to add.
            end: Sequence number behind the last request to add.

        Returns:
            What was added. None, with nothing added, when the content is not `count` valid records of this worker.
        """
        worker = self._workers.setdefault(worker_id, len(self._workers))
        added = self._table.add(content, worker_id, first_sequence, count, begin, end, worker, read_body, self._limit)
        return added and Added(*added)

    def finish(self) -> tuple[pa.RecordBatch, Counter[str]]:
        """Returns all events, and the number of cast failures by column; the columns are empty afterwards.

        A cast failure is a value that does not fit the type of its column.
        """
        columns, lists = self._table.finish()
        cast_failures = Counter(
            {name: column.cast_failures for name, column in columns.items() if column.cast_failures}
        )
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
        return pa.record_batch([arrays[name] for name in SCHEMA.names], names=SCHEMA.names), cast_failures


def decompress(frame: Frame) -> pa.Buffer | None:
    """Decompresses the records of a frame, with the results of `Frame.records`; None when they are damaged.

    pyarrow's allocator uses memory again: new memory for each frame takes longer than the work on it.
    """
    try:
        return _LZ4.decompress(frame.compressed, frame.prefix.content_length) if frame.is_sized else None
    except (OSError, MemoryError):
        return None


def _array(kind: pa.DataType, column: "EventColumn") -> pa.Array:
    """Converts a column; text becomes a dictionary."""
    if not pa.types.is_string(kind):
        return _plain(kind, column)
    texts = pa.Array.from_buffers(kind, column.words, [None, pa.py_buffer(column.word_ends), pa.py_buffer(column.data)])
    nulls = column.rows - column.not_null
    return pa.DictionaryArray.from_buffers(WORDS, column.rows, _buffers(column), texts, nulls)


def _plain(kind: pa.DataType, column: "EventColumn") -> pa.Array:
    buffers = _buffers(column)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        buffers.append(pa.py_buffer(column.data))
    return pa.Array.from_buffers(kind, column.rows, buffers, column.rows - column.not_null)


def _buffers(column: "EventColumn") -> list[pa.Buffer | None]:
    """Returns the buffers before the data: validity, when rows are null, and the fixed-size values."""
    return [pa.py_buffer(column.validity) if column.not_null < column.rows else None, pa.py_buffer(column.fixed)]


def _offsets(ends: "EventColumn") -> pa.Array:
    """Converts a column of the ends of lists to their offsets."""
    return pa.array(np.concatenate([[0], np.frombuffer(memoryview(ends.fixed), np.int64)]), pa.int32())


assert set(KINDS) == set(_ARROW_TYPES)
