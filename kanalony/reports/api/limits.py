"""Limits of the query action."""

import os
from dataclasses import dataclass, field

_MEMORY_SHARE = 0.6  # of the machine's


def _default_memory() -> int:
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _MEMORY_SHARE)


@dataclass(frozen=True)
class Limits:
    """What one server allows its clients to take.

    Attributes:
        body_bytes: Size of a POST's body.
        answer_bytes: Size of an answer.
        running: Queries that run at a time; each takes all cores.
        queued: Queries of one partner that wait for their turn; 503 beyond.
        seconds: Time that a query may take.
        memory: Bytes that all running queries may take together.
        count_interval: Least seconds between two counts of the requests that wait to be compacted.
        count_share: Largest share of the time that these counts take.
    """

    body_bytes: int = 64 << 10
    answer_bytes: int = 16 << 20
    running: int = 2
    queued: int = 30
    seconds: float = 60.0
    memory: int = field(default_factory=_default_memory)
    count_interval: float = 10.0
    count_share: float = 0.1
