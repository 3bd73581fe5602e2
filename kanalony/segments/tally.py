"""The sums of a segment: its writer puts them in the trailer, its reader compares them with the trailer."""

from dataclasses import dataclass

from kanalony.core.frames import Prefix, Trailer


@dataclass
class Tally:
    """Sums over the frames added so far, in bytes and µs since 1970."""

    first_sequence: int
    frame_count: int = 0
    request_count: int = 0
    content_length: int = 0
    first_received: int = (1 << 64) - 1
    last_received: int = 0

    @property
    def next_sequence(self) -> int:
        """The sequence number that the next frame must begin with."""
        return self.first_sequence + self.request_count

    def add(self, prefix: Prefix) -> None:
        """Adds a frame."""
        self.frame_count += 1
        self.request_count += prefix.request_count
        self.content_length += prefix.content_length
        self.first_received = min(self.first_received, prefix.first_received)
        self.last_received = max(self.last_received, prefix.last_received)

    def trailer(self, worker_id: int) -> Trailer:
        """Returns the sums as the trailer of a worker's segment."""
        return Trailer(
            self.frame_count,
            worker_id,
            self.first_sequence,
            self.request_count,
            self.content_length,
            self.first_received,
            self.last_received,
        )
