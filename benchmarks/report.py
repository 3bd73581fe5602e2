"""Time of typical reports, from rollups and from events."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

import duckdb

from benchmarks.compact import write_log
from benchmarks.outcome import Outcome, workspace
from harness.server import run
from kanalony.reports.execution import Reports
from kanalony.reports.query import Query
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.directory import DataDirectory
from kanalony.simulate.past import write_past
from kanalony.simulate.viewers import SimulatedEvent, simulate

VIEWERS = 350
SIMULATED = 500_000  # distinct events, some eight hours of traffic
ROUNDS = 3
HOURS_AIM = 1.0  # seconds
EVENTS_AIM = 5.0
AIMED_AT = 10_000_000  # events up to which the aims hold
PEER_EVENTS = 1_000_000  # most events for DuckDB: it reads the whole log for each question
CAVEATS = """\
caveats   Simulated traffic: 250 videos, sessions of 50 events, no places. The files are in the page cache. Median and
          range of 3 rounds, in one process; a start of `kanalony report` takes half a second more. DuckDB answers the
          same questions from nginx's JSON log, of a million events at most, and must return the same; its time grows
          with the log. kanalony answers from tables that `kanalony compact` made before, once for all questions."""

PARIS = ZoneInfo("Europe/Paris")
FLAVOUR = {"flavour": "flavourId"}
SUMS = tuple(name for name in Vocabulary().metrics if name not in ("peakView", "uniqueSessions"))

QUESTIONS: tuple[tuple[str, float, Query], ...] = (
    ("every sum of all", HOURS_AIM, Query(SUMS)),
    ("plays and minutes by hour", HOURS_AIM, Query(("play", "minutesWatched"), ("hour",))),
    ("top ten entries", HOURS_AIM, Query(("play", "averageViewDropOff"), ("entry",), limit=10)),
    ("every sum by hour, country, device", HOURS_AIM, Query(SUMS, ("hour", "country", "device"))),
    ("quality by day of Paris", HOURS_AIM, Query(("joinTimeP95", "rebufferRatio"), ("day",), timezone=PARIS)),
    ("users and videos by partner", HOURS_AIM, Query(("uniqueKnownUsers", "uniqueVideos"), ("partner",))),
    ("peak by hour", HOURS_AIM, Query(("peakView",), ("hour",))),
    ("sessions by day, exactly", HOURS_AIM, Query(("uniqueSessions",), ("day",))),
    ("events: plays by city and minute", EVENTS_AIM, Query(("play", "error"), ("city", "minute"))),
    ("events: peak by country", EVENTS_AIM, Query(("peakView",), ("country",))),
    ("events: loss by city and minute", EVENTS_AIM, Query(("lossRate",), ("city", "minute"))),
    ("events: minutes by city and minute", EVENTS_AIM, Query(("minutesWatched",), ("city", "minute"))),
    ("events: every sum by a parameter", EVENTS_AIM, Query(SUMS, ("flavour",))),
)


def traffic(events: int) -> Iterator[SimulatedEvent]:
    """Yields simulated events. After some hours the same viewers return in other sessions."""
    simulated = list(itertools.islice(simulate(VIEWERS, "1"), min(events, SIMULATED)))
    length = simulated[-1].time - simulated[0].time
    for number in range(events):
        again, place = divmod(number, len(simulated))
        event = simulated[place]
        query = event.query.replace("sessionId=", f"sessionId={again}x") if again else event.query
        yield replace(event, time=event.time + again * length, query=query)


_ALL = """(
    SELECT time, query
    FROM read_json($log, format = 'newline_delimited', columns = {time: 'DOUBLE', query: 'VARCHAR'})
)"""


def _parameter(name: str) -> str:
    return f"url_decode(regexp_extract(query, '(?:^|&){name}=([^&]*)', 1))"


_TYPE = _parameter("eventType")
# Questions for DuckDB: (name, query of kanalony, SQL with the same rows).
PEER_QUESTIONS: tuple[tuple[str, Query, str], ...] = (
    (
        "plays by hour",
        Query(("play",), ("hour",)),
        f"SELECT count(*) FROM {_ALL} WHERE {_TYPE} = '3' GROUP BY floor(time / 3600)",
    ),
    (
        "plays by entry",
        Query(("play",), ("entry",), limit=10),
        f"SELECT count(*) FROM {_ALL} WHERE {_TYPE} = '3' GROUP BY {_parameter('entryId')} ORDER BY 1 DESC LIMIT 10",
    ),
    (
        "sessions by partner",
        Query(("uniqueSessions",), ("partner",)),
        f"SELECT count(DISTINCT {_parameter('sessionId')}) FROM {_ALL} GROUP BY {_parameter('partnerId')}",
    ),
)


def measure(sizes: Sequence[int], directory: Path | None) -> Outcome:
    """For each size, makes a lake with its rollups and times the questions."""
    outcome = Outcome()
    for events in sorted(sizes):
        with workspace(directory) as work:
            data = DataDirectory.writable(work / "data")
            write_past(data, traffic(events))
            keep = ("--keep-ten-seconds", "forever", "--keep-minutes", "forever", "--keep-segments", "0")
            done = run("compact", "--data", data.root, *keep, timeout=7200)
            if done.returncode:
                raise RuntimeError(done.stderr)
            reports = Reports(data, Vocabulary({}, FLAVOUR))
            total = reports.run(Query(("events",))).totals["events"]
            outcome.figure(f"{events:,} events: in reports", total, events)
            for name, aim, query in QUESTIONS:
                subject = f"{name}, aim {aim:g} s"
                for _ in range(ROUNDS):
                    outcome.measure(subject, f"{events:,} events", "s", _seconds(reports, query))
                median = outcome.get(subject, f"{events:,} events").median
                if events <= AIMED_AT and median > aim:
                    outcome.slow.append(f"{name} ({events:,} events)")
            if events == min(sizes) and events <= PEER_EVENTS:
                _ask_peer(outcome, reports, work / "events.json", events)
    return outcome


def _seconds(reports: Reports, query: Query) -> float:
    start = time.perf_counter()
    reports.run(query)
    return time.perf_counter() - start


def _ask_peer(outcome: Outcome, reports: Reports, log: Path, events: int) -> None:
    """Times DuckDB on the log of nginx.

    Raises:
        RuntimeError: DuckDB returns other rows than kanalony.
    """
    write_log(log, traffic(events))
    for name, query, sql in PEER_QUESTIONS:
        ours = sorted(filter(None, reports.run(query).table.column(query.metrics[0]).to_pylist()))
        for _ in range(ROUNDS):
            outcome.measure(name, "kanalony", "s", _seconds(reports, query))
            start = time.perf_counter()
            theirs = sorted(row[0] for row in duckdb.execute(sql, {"log": str(log)}).fetchall())
            outcome.measure(name, "DuckDB on the JSON log", "s", time.perf_counter() - start)
        if ours != theirs:
            raise RuntimeError(f"{name}: kanalony says {ours}, DuckDB {theirs}")
        peer = outcome.get(name, "DuckDB on the JSON log")
        outcome.ratio(f"DuckDB to kanalony, {name}", peer, outcome.get(name, "kanalony"))
