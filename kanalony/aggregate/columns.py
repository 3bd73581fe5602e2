"""Events as Arrow columns: one typed column for each parameter of the vocabulary, all others in a map."""

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
    pass

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
        added = self._table.add(content, worker_id, first_sequence, count, begin, end, worker, _read_body, self._limit)
        return added and Added(*added)

    def finish(self) -> tuple[pa.RecordBatch, Counter[str]]:
        """Returns all events, and the number of cast failures by column; the columns are empty afterwards.

        A cast failure is a value that does not fit the type of its column.
        """
        columns_by_name, lists = self._table.finish()
        columns = {name: _Column(*column) for name, column in columns_by_name.items()}
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
        lists_of_keys, keys, lists_of_values, values, lists_of_conflicts, conflicts = (
            _Column(*column) for column in lists
        )
        items = pa.ListArray.from_arrays(_offsets(lists_of_values), _plain(pa.string(), values))
        arrays["parameters"] = pa.MapArray.from_arrays(_offsets(lists_of_keys), _plain(pa.string(), keys), items).cast(
            _MAP
        )
        arrays["conflicts"] = pa.ListArray.from_arrays(_offsets(lists_of_conflicts), _plain(pa.string(), conflicts))
        return pa.record_batch([arrays[name] for name in SCHEMA.names], names=SCHEMA.names), cast_failures


class _Column(NamedTuple):
    """An `EventColumn` by name. Buffers have the Arrow columnar format."""

    rows: int
    not_null: int
    validity: Buffer
    fixed: Buffer
    """Values of 64 bits, or offsets of 32 bits; for text, indices of words."""
    data: Buffer
    cast_failures: int
    words: int
    word_offsets: Buffer

    @property
    def null_count(self) -> int:
        """Rows that are null."""
        return self.rows - self.not_null

    @property
    def buffers(self) -> list[pa.Buffer | None]:
        """The buffers of validity and of fixed size."""
        return [pa.py_buffer(self.validity) if self.null_count else None, pa.py_buffer(self.fixed)]


def decompress(frame: Frame) -> pa.Buffer | None:
    """Decompresses the records of a frame, with the results of `Frame.records`; None when they are damaged.

    pyarrow's allocator uses memory again: new memory for each frame takes longer than the work on it.
    """
    try:
        return _LZ4.decompress(frame.compressed, frame.prefix.content_length) if frame.is_sized else None
    except (OSError, MemoryError):
        return None


def _read_body(body: bytes, content_type: bytes, content_encoding: bytes, repeated: int, parameters: int) -> Body:
    return read_body(body, content_type, content_encoding, event_limit(repeated, parameters))


def _array(kind: pa.DataType, column: _Column) -> pa.Array:
    """Converts a column; text becomes a dictionary."""
    if not pa.types.is_string(kind):
        return _plain(kind, column)
    buffers = [None, pa.py_buffer(column.word_offsets), pa.py_buffer(column.data)]
    texts = pa.Array.from_buffers(kind, column.words, buffers)
    return pa.DictionaryArray.from_buffers(WORDS, column.rows, column.buffers, texts, column.null_count)


def _plain(kind: pa.DataType, column: _Column) -> pa.Array:
    buffers = column.buffers
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        buffers.append(pa.py_buffer(column.data))
    return pa.Array.from_buffers(kind, column.rows, buffers, column.null_count)


def _offsets(ends: _Column) -> pa.Array:
    """Converts a column of the ends of lists to their offsets."""
    return pa.array(np.concatenate([[0], np.frombuffer(memoryview(ends.fixed), np.int64)]), pa.int32())


assert set(KINDS) == set(_ARROW_TYPES)
