"""Simulated traffic of the past, as the segments that a collector would have written then."""

import secrets
from collections.abc import Iterable
from ipaddress import ip_address
from itertools import islice

from kanalony.core.journal import ACK_LEVELS, build_record
from kanalony.segments.names import DataDirectory
from kanalony.segments.writer import SegmentWriter
from kanalony.simulate.viewers import SimulatedEvent

_FRAME = 2000  # requests
_SEGMENT = 200_000
_ACK_WRITTEN = ACK_LEVELS.index("written")


def past_record(event: SimulatedEvent, worker: int, sequence: int) -> bytes:
    """The record of an event that was received, by GET, at its simulated time."""
    return build_record(
        worker,
        sequence,
        int(event.time * 1_000_000),
        "GET",
        "/collect",
        ip_address(event.address).packed,
        None,
        event.user_agent,
        event.referer.encode(),
        event.query,
    )


def write_past(data: DataDirectory, events: Iterable[SimulatedEvent]) -> int:
    """Seal segments of events that were received at their simulated times; how many that were. Raises OSError."""
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
