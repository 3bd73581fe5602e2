from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

from typing_extensions import Buffer, disjoint_base

KINDS: dict[str, int]
"""The kinds of columns: int, float, text, binary."""

REQUEST_COLUMNS: tuple[tuple[str, str], ...]
"""(name, kind) of the columns that every event has from its request."""

class EventColumn(NamedTuple):
    """A column; its buffers are laid out as in the Arrow columnar format and not copied.

    `fixed` has 64-bit values, 32-bit offsets in `data`, or in a column of text 32-bit indices of words: `data` has each
    word once then, and `word_ends` the offsets of the words. `cast_failures` counts values that did not fit the kind.
    """

    rows: int
    not_null: int
    validity: Buffer
    fixed: Buffer
    data: Buffer
    cast_failures: int
    words: int
    word_ends: Buffer

class EventLists(NamedTuple):
    """The columns that lists are made of.

    `key_ends` has for each row where its keys end in `keys`, `value_ends` for each key where its values end in
    `values`; `conflict_ends` has for each row where the names of its conflicting parameters end in `conflicts`.
    """

    key_ends: EventColumn
    keys: EventColumn
    value_ends: EventColumn
    values: EventColumn
    conflict_ends: EventColumn
    conflicts: EventColumn

def release_memory() -> None:
    """Gives freed memory back to the system: the next batch does not always find what the allocator keeps."""

@disjoint_base
class EventTable:
    """Events as columns, built up request by request."""

    def __new__(cls, parameters: Sequence[tuple[str, str]], spellings: Sequence[tuple[str, str]], session: str) -> Self:
        """Starts without events.

        Args:
            parameters: (name, kind) of the parameters with a column of their own.
            spellings: (other name, name) of the same parameters.
            session: events whose parameter of this name is missing or empty get no fingerprint.

        Raises:
            ValueError: too many names.
        """

    @property
    def rows(self) -> int:
        """Events added since `finish`."""

    @property
    def weight(self) -> int:
        """About how many bytes the events added since `finish` take."""

    def add(
        self,
        content: Buffer,
        worker_id: int,
        first_sequence: int,
        count: int,
        begin: int,
        end: int,
        worker: int,
        read_body: Callable[[bytes, bytes, bytes, int], tuple[bytes, list[tuple[int, int]], bool, str | None]],
        limit: int,
    ) -> tuple[int, int, int] | None:
        """Adds the events of records with sequence numbers in [begin, end), until `weight` has reached the limit.

        Args:
            content: the records of a frame.
            worker_id: the worker that received them.
            first_sequence: the sequence number of the first record.
            count: the number of records.
            begin: the first sequence number to add.
            end: the sequence number behind the last one to add.
            worker: the value for the column of that name.
            read_body: kanalony.bodies.read_body.
            limit: bytes.

        Returns:
            (sequence number behind the last one added, events added, bodies that could not be read). None, with nothing
            added, unless `content` is exactly `count` valid records of this worker, numbered from first_sequence.
        """

    def finish(self) -> tuple[dict[str, EventColumn], EventLists]:
        """Returns the columns of all events added, by name, and starts again without events."""
