from collections.abc import Callable, Sequence

from typing_extensions import Buffer

KINDS: dict[str, int]

REQUEST_COLUMNS: tuple[tuple[str, str], ...]
"""(name, kind) of the columns that an event has from its request."""

EventColumn = tuple[int, int, Buffer, Buffer, Buffer, int, int, Buffer]
"""(rows, rows that are not null, validity bitmap, 64-bit values or 32-bit offsets, bytes, values that did not fit,
words, offsets of words), the buffers as the Arrow columnar format has them, not copied. Text is told as words, each
once, with 32-bit indices instead of offsets; the bytes are those of the words then."""

def release_memory() -> None:
    """Give freed memory back to the system: what the allocator keeps of one batch, the next does not always find."""

class EventTable:
    """Events as columns, built up request by request."""

    def __init__(
        self, parameters: Sequence[tuple[str, str]], spellings: Sequence[tuple[str, str]], session: str
    ) -> None:
        """`parameters` are (name, kind) of those with a column of their own, `spellings` (other name, name). Events
        whose `session` parameter is missing or empty get no fingerprint. Raises ValueError for too many names.
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
        read_body: Callable[
            [bytes, bytes, bytes, int, int],
            tuple[bytes, list[tuple[int, int]], tuple[int, int] | None, str | None],
        ],
        limit: int,
    ) -> tuple[int, int, int] | None:
        """Add the events of records with sequence numbers in [begin, end), until `weight` has reached the limit.
        (sequence number behind the last one, events added, bodies that could not be read), or None, with nothing added,
        unless content is just `count` valid records of this worker, numbered from first_sequence. `worker` goes into
        the column of that name; `read_body` is kanalony.bodies.read_body, given the bytes of the request's other parts
        and the number of its query's parameters.
        """

    def finish(self) -> tuple[dict[str, EventColumn], list[EventColumn]]:
        """The columns of all events added, by name, and begin anew. And six that make up lists: for each row where its
        keys end, the keys, for each key where its values end, the values; for each row where the names of its
        conflicting parameters end, and these.
        """
