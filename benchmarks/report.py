"""How long reports take: ten typical questions, of the rollups and of the events themselves."""

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from zoneinfo import ZoneInfo

from benchmarks.outcome import Outcome, workspace
from benchmarks.server import run
from kanalony.reports.query import Query, Reports
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.names import DataDirectory
from kanalony.simulate.past import write_past
from kanalony.simulate.viewers import SimulatedEvent, simulate

VIEWERS = 350
SIMULATED = 500_000  # events that are made up anew, some eight hours of traffic
ROUNDS = 3
HOURS_AIM = 1.0  # seconds
EVENTS_AIM = 5.0
CAVEATS = """\
caveats   Simulated traffic: 250 videos, sessions of 50 events, no places. The files are in the page cache. Fastest of
          3 rounds, in one process; a start of `kanalony report` takes half a second more."""

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
    """So many events: after some hours the same people come again, in other sessions."""
    simulated = list(itertools.islice(simulate(VIEWERS, "1"), min(events, SIMULATED)))
    length = simulated[-1].time - simulated[0].time
    for number in range(events):
        again, place = divmod(number, len(simulated))
        event = simulated[place]
        query = event.query.replace("sessionId=", f"sessionId={again}x") if again else event.query
        yield replace(event, time=event.time + again * length, query=query)


def measure(outcome: Outcome, events: int, directory: Path | None) -> None:
    """Make a lake with its rollups, and ask."""
    with workspace(directory) as work:
        data = DataDirectory.writable(work / "data")
        write_past(data, traffic(events))
        keep = ("--keep-ten-seconds", "forever", "--keep-minutes", "forever")
        done = run("compact", "--data", data.root, *keep, timeout=3600)
        if done.returncode:
            raise RuntimeError(done.stderr)
        reports = Reports(data, Vocabulary({}, FLAVOUR))
        outcome.figure("events", reports.run(Query(("events",))).totals["events"], events)
        for name, aim, query in QUESTIONS:
            seconds = []
            for _ in range(ROUNDS):
                start = time.perf_counter()
                result = reports.run(query)
                seconds.append(time.perf_counter() - start)
            outcome.time(f"{name}", min(seconds), aim, f"{result.count:,} rows of {', '.join(result.tables)}")
