"""Simulated traffic of the past, as the segments that a collector would have written at that time."""

import secrets
from collections.abc import Iterable
from ipaddress import ip_address
from itertools import islice

from kanalony.core.journal import ACK_LEVELS, build_record
from kanalony.paths import COLLECT_PATH
from kanalony.segments.directory import DataDirectory
from kanalony.segments.writer import SegmentWriter
from kanalony.simulate.viewers import SimulatedEvent

_FRAME = 2000  # requests
_SEGMENT = 200_000  # requests
_ACK_WRITTEN = ACK_LEVELS.index("written")


def past_record(event: SimulatedEvent, worker: int, sequence: int) -> bytes:
    """Builds the record of an event, received by GET at its simulated time.

    Args:
        event: The event.
        worker: Id of the worker.
        sequence: Sequence number of the request.
    """
    return build_record(
        worker,
        sequence,
        int(event.time * 1_000_000),
        "GET",
        COLLECT_PATH,
        ip_address(event.address).packed,
        None,
        event.user_agent,
        event.referer.encode(),
        event.query,
    )


def write_past(data: DataDirectory, events: Iterable[SimulatedEvent]) -> int:
    """Writes and seals segments of events that were received at their simulated times.

    Args:
        data: The data directory.
        events: The events, in order of time.

    Returns:
        The number of events.

    Raises:
        OSError: The disk refuses.
    """
    worker = secrets.randbits(64)
    sequence = 0
    remaining = iter(events)
    while segment := list(islice(remaining, _SEGMENT)):
        writer = SegmentWriter(
            data, "past", worker, _ACK_WRITTEN, sequence + 1, created_at=int(segment[0].time * 1_000_000)
        )
        for start in range(0, len(segment), _FRAME):
            records = [
                past_record(event, worker, sequence + number)
                for number, event in enumerate(segment[start : start + _FRAME], 1)
            ]
            writer.add(b"".join(records), sequence + 1)
            sequence += len(records)
        writer.seal()
    return sequence
