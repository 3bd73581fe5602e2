"""`kanalony compact` keeps to `--memory` for hostile values, and every hour gets its rollups."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from harness.server import KANALONY
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import NOON, SECOND, Sent, assert_balanced, seal
from tests.reports.asking import ask

MEMORY = 512 << 20
"""The minimum of `--memory`."""

HUGE = 2_000_000  # characters of a value: an event may have 2 MiB
DIMENSIONS = ("entryId", "userId", "application", "playbackContext", "customVar1", "customVar2", "customVar3")

MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:]).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def batch(number: int, events: int, **values: str) -> Sent:
    """Returns a gzipped POST of events whose values have a suffix of their own."""
    sent = [
        {"eventType": 99, "partnerId": 5, "sessionId": f"{number}-{k}", "eventIndex": 1}
        | {name: f"{value}{number}-{k}" for name, value in values.items()}
        for k in range(events)
    ]
    body = gzip.compress(json.dumps(sent).encode(), 1)
    return Sent(NOON + number * SECOND, b"", body, content_encoding=b"gzip")


def one_huge_value(name: str, requests: int) -> Iterator[Sent]:
    return (batch(number, 8, **{name: "x" * HUGE}) for number in range(requests))


def values_of_their_own(events: int) -> Iterator[Sent]:
    for number in range(0, events, 50):
        yield batch(number, 50, **dict.fromkeys(DIMENSIONS, "y" * 700), referrer=f"http://{number}.example/")


def names_of_their_own(requests: int) -> Iterator[Sent]:
    for number in range(requests):
        body = "&".join(f"{number}{k:x}=" for k in range(170_000)).encode()
        yield Sent(NOON + number * SECOND, b"eventType=99&partnerId=5&sessionId=s", body)


def huge_agents(requests: int) -> Iterator[Sent]:
    for number in range(requests):
        agent = b"Mozilla/5.0 %d " % number + "é".encode() * (HUGE // 2)
        yield Sent(NOON + number * SECOND, b"eventType=99&partnerId=5&sessionId=a%d" % number, user_agent=agent)


def types_of_their_own(requests: int) -> Iterator[Sent]:
    """Yields small events, each of a type of its own without a name."""
    for number in range(requests):
        types = range(number * 30_000 + 1000, (number + 1) * 30_000 + 1000)
        body = gzip.compress(json.dumps([{"eventType": kind} for kind in types]).encode(), 1)
        query = b"partnerId=5&sessionId=t%d" % number
        yield Sent(NOON + number * SECOND, query, body, content_encoding=b"gzip")


def everything() -> Iterator[Sent]:
    for name in ("entryId", "sessionId", "userId", "ks", "other"):
        yield from one_huge_value(name, 1)
    yield from values_of_their_own(2_000)
    yield from names_of_their_own(2)
    yield from huge_agents(6)


LOADS: dict[str, Callable[[], Iterator[Sent]]] = {
    # Twelve requests of 16 KB each, which once ended all rollups for good.
    "entryId": lambda: one_huge_value("entryId", 12),
    "sessionId": lambda: one_huge_value("sessionId", 8),
    "referrer": lambda: one_huge_value("referrer", 8),
    "ks": lambda: one_huge_value("ks", 8),
    "unknown parameter": lambda: one_huge_value("whatever", 8),
    "user agent": lambda: huge_agents(30),
    "every value its own": lambda: values_of_their_own(8_000),
    "every type its own": lambda: types_of_their_own(20),
    "170,000 names": lambda: names_of_their_own(6),
    "an hour of everything": everything,
}


def compact(data: DataDirectory) -> tuple[int, str]:
    """Runs `kanalony compact`. Returns its peak memory in bytes, and its log."""
    command = [*KANALONY, "compact", "--data", str(data.root), "--memory", f"{MEMORY >> 20}MiB"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")
    }  # takes memory
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) << 10, done.stderr


def count(sent: Sent) -> int:
    return len(json.loads(gzip.decompress(sent.body))) if sent.content_encoding else 1


QUICK = ("referrer", "every value its own")


@pytest.mark.parametrize(
    "load", [load if load in QUICK else pytest.param(load, marks=pytest.mark.slow) for load in LOADS]
)
def test_hostile_values_take_no_more_memory_than_is_given(data: DataDirectory, load: str) -> None:
    events = 0

    def counted() -> Iterator[list[Sent]]:
        nonlocal events
        for sent in LOADS[load]():
            events += count(sent)
            yield [sent]

    seal(data, counted())
    most, log = compact(data)
    assert most <= MEMORY
    assert "WARNING" not in log
    assert_balanced(data, rows=events)
    asked = ask(data, "events uniqueVideos", "hour partner")
    assert (asked["totals"]["events"], asked["tables"]) == (events, ["hour"])
