"""A day of 200,000 simulated events: every metric by every dimension equals that of the reference.

The reference is a second, simpler program that computes metrics from what was sent. Answers come from rollups, from
events, and from both together.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from math import isclose
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

import maxminddb
import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from kanalony.events import DIMENSIONS, METRICS
from kanalony.reports.execution import Reports
from kanalony.reports.query import Query
from kanalony.reports.renderer import as_object
from kanalony.segments.directory import DataDirectory
from kanalony.simulate.viewers import REFERRERS, START, USER_AGENTS, simulate
from tests.aggregate.lakes import Sent, roll_up, seal
from tests.reports import reference
from tests.tools import examples

VIEWERS = examples(35)
EVENTS = VIEWERS * 200_000 // 35  # of one day: 45,714 in `make test`
METRIC_NAMES = tuple(metric.name for metric in METRICS)
PLACES = {
    7: ("Germany", "Berlin", "Berlin"),
    8: ("France", "Île-de-France", "Paris"),
    9: ("Brazil", "São Paulo", "São Paulo"),
}
AGENTS = dict(
    zip(
        [agent for agent, _ in USER_AGENTS],
        [
            ("Chrome", "Windows", "Desktop"),
            ("Chrome Mobile", "Android", "Pixel 8"),
            ("Mobile Safari", "iOS", "iPhone"),
            ("Firefox", "Linux", "Desktop"),
            ("Samsung Internet", "Tizen", "Samsung SMART-TV"),
            ("Googlebot", "Unknown", "Spider"),
        ],
        strict=True,
    )
)
PAGES = dict(
    zip(
        [referrer for referrer, _ in REFERRERS],
        [
            ("abc.go.com", "abc.go.com/shows/the-bachelorette/video/most-recent/vdka0_lawz79v7"),
            ("news.example.org", "news.example.org/élections/2026"),
            ("video.example.com", "video.example.com/watch"),
            (None, None),
            (None, None),
        ],
        strict=True,
    )
)
FIRST, SECOND = ZoneInfo("Europe/Paris"), ZoneInfo("Asia/Kolkata")


def changed(query: str, changes: dict[str, str | None]) -> str:
    """Returns a query with other values of parameters, or without them (None)."""
    if not changes:
        return query
    parameters = {**dict(parse_qsl(query, keep_blank_values=True)), **changes}
    return urlencode({name: value for name, value in parameters.items() if value is not None})


def traffic() -> list[tuple[Sent, dict[str, Any]]]:
    """Returns requests, with faults added, and the dimensions of their headers and address."""
    rng = random.Random(1)
    sent = []
    for event in islice(simulate(VIEWERS, "golden"), EVENTS):
        session, number = event.key.split()
        index = int(number)
        kind = int(session[:4], 16) % 20
        changes: dict[str, str | None] = {}
        at = event.time
        if rng.random() < 0.01:
            continue  # lost on the way: a gap in eventIndex
        if kind == 1:
            changes["playTimeSum"] = None
        elif kind == 2:
            changes["sessionId"] = ""
        elif kind == 3 and index > 20:  # stopped for a while: the counter starts again
            at += 40
            changes["eventIndex"] = str(index - 20)
        elif kind == 4 and index % 9 == 0:
            at += 0.7  # overtaken by the next one, or almost
        elif kind == 5 and index % 30 == 0:
            changes |= {"eventType": "6", "eventIndex": "what"}
        elif kind == 6:
            changes |= {"bufferTime": rng.choice(["1e300", "-1", "nan", "0.25"]), "joinTime": "", "partnerId": "x"}
        elif kind == 7 and index == 10:
            changes["eventIndex"] = str(10**15)
        query = changed(event.query, changes).encode()
        address = rng.choice([*PLACES, 50]) if kind == 8 else 7 + kind % 4
        browser, system, device = AGENTS[event.user_agent]
        domain, page = PAGES[event.referer]
        country, region, city = PLACES.get(address, (None, None, None))
        derived = {"browser": browser, "operatingSystem": system, "device": device, "country": country}
        derived |= {"region": region, "city": city, "syndicationDomain": domain, "referrer": page}
        if "partnerId" in changes:
            derived["partner"] = None
        once = Sent(int(at * 1e6), query, user_agent=event.user_agent.encode(), address=bytes([203, 0, 113, address]))
        sent.append((once, derived))
        if rng.random() < 0.01:  # sent again on the way
            sent.append(
                (Sent(once.at + rng.randrange(300_000_000), query, b"", once.user_agent, once.address), derived)
            )
    return sent


@dataclass
class Day:
    """A lake, the reference's events, and its metrics of all of them."""

    data: DataDirectory
    events: list[reference.Event]
    totals: dict[str, float | None]


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    """The lake of that day, compacted in three parts, the last one late."""
    root = tmp_path_factory.mktemp("golden")
    database = MMDBWriter(4, "Test", languages=["en"])
    for last, (country, region, city) in PLACES.items():
        place = {"country": {"names": {"en": country}}, "city": {"names": {"en": city}}}
        database.insert_network(IPSet([f"203.0.113.{last}/32"]), {**place, "subdivisions": [{"names": {"en": region}}]})
    database.to_db_file(str(root / "places.mmdb"))
    sent = traffic()
    in_order = sorted((once for once, _ in sent), key=lambda once: once.at)
    is_late = {
        once.query for once in in_order[EVENTS // 4 : EVENTS * 3 // 10 : 7]
    }  # including what is sent again: the first to arrive is kept
    late = [once for once in in_order if once.query in is_late]
    prompt = [once for once in in_order if once.query not in is_late]
    data = DataDirectory.writable(root / "data")
    with maxminddb.open_database(root / "places.mmdb") as geoip:
        for worker, part in ((1, prompt[: EVENTS * 3 // 5]), (2, prompt[EVENTS * 3 // 5 :]), (3, late)):
            seal(data, (part[start : start + 2000] for start in range(0, len(part), 2000)), worker=worker)
            assert roll_up(data, geoip=geoip, memory=512 << 20)
    events = reference.read([(once.at, once.query.decode(), derived) for once, derived in sent])
    return Day(data, events, reference.metrics(reference.Group(events)))


def differences(found: dict[str, Any], expected: dict[str, float | None]) -> dict[str, tuple[Any, Any]]:
    """Returns metrics that differ, as (found, expected). The last digits of a division may differ."""
    different = {}
    for name, value in expected.items():
        other = found[name]
        same = other is value if None in (other, value) else isclose(other, value or 0, rel_tol=1e-12)
        if not same:
            different[name] = (other, value)
    return different


def check(day: Day, query: Query, data: DataDirectory | None = None) -> list[str]:
    """Checks an answer against the reference, and returns the tables it came from.

    Args:
        day: The day.
        query: The query.
        data: Another data directory with the same events.
    """
    answer = as_object(Reports(data or day.data).run(query))
    chosen, totals = chosen_by(query, day)
    expected = reference.report(chosen, query.dimensions, query.timezone)
    rows = {tuple(row[name] for name in query.dimensions): row for row in answer["rows"]}
    assert rows.keys() == expected.keys()
    for key, metrics in expected.items():
        assert differences(rows[key], metrics) == {}, key
    assert differences(answer["totals"], totals) == {}
    return list(answer["tables"])


def chosen_by(query: Query, day: Day) -> tuple[list[reference.Event], dict[str, float | None]]:
    """The events of a query's period and filters, and the metrics of all of them."""
    if not (query.start or query.end or query.filters):
        return day.events, day.totals
    begin = reference_micros(query.start) if query.start else 0
    end = reference_micros(query.end) if query.end else 1 << 62
    chosen = [
        event
        for event in day.events
        if begin <= event.at < end and all(event.dimensions[name] in values for name, values in query.filters.items())
    ]
    return chosen, reference.metrics(reference.Group(chosen))


def reference_micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def combinations() -> Iterator[tuple[str, ...]]:
    names = [dimension.name for dimension in DIMENSIONS]
    yield ()
    yield from ((name,) for name in names)
    yield from (("day",), ("hour",), ("minute",), ("hour", "partner", "device"), ("day", "entry"))
    yield from (("country", "browser", "playbackType", "customVar1"), ("tenSeconds", "partner"))


def test_the_day_has_the_cases_it_should_test(day: Day) -> None:
    events, total = day.events, day.totals
    assert 20 < (events[-1].at - events[0].at) / 3.6e9 < 28, "hours"
    assert 0.975 * EVENTS < len(events) < EVENTS
    assert all(value is not None for value in total.values())
    assert 0 < (total["lossRate"] or 0) < 0.05
    assert any(event.place not in (None, event.at) for event in events), "some arrived in another order"
    assert events[0].at >= START * 1e6


@pytest.mark.parametrize("dimensions", list(combinations()), ids=" ".join)
def test_every_metric_equals_that_of_the_reference(day: Day, dimensions: tuple[str, ...]) -> None:
    check(day, Query(METRIC_NAMES, dimensions))


@pytest.mark.parametrize("zone", [FIRST, SECOND], ids=str)
@pytest.mark.parametrize("dimension", ["day", "hour", "minute"])
def test_days_and_hours_follow_the_time_zone(day: Day, zone: ZoneInfo, dimension: str) -> None:
    check(day, Query(METRIC_NAMES, (dimension,), timezone=zone))


@pytest.mark.parametrize("dimensions", [(), ("partner",), ("city", "hour")], ids=" ".join)
def test_a_period_with_arbitrary_ends_is_composed_from_several_tables(day: Day, dimensions: tuple[str, ...]) -> None:
    start = datetime(2026, 1, 1, 3, 17, 41, 123456, tzinfo=UTC)
    query = Query(METRIC_NAMES, dimensions, start=start, end=start + timedelta(hours=5, seconds=77))
    tables = check(day, query)
    assert {"hour", "events"} <= set(tables)


def test_filters_select_events(day: Day) -> None:
    filters = {"country": ("Germany", "Unknown"), "browser": ("Chrome", "Chrome Mobile")}
    check(day, Query(METRIC_NAMES, ("partner", "playbackType"), filters))


def test_without_rollups_the_events_give_the_same(day: Day, tmp_path: Path) -> None:
    bare = DataDirectory.writable(tmp_path / "bare")
    bare.lake.mkdir()
    (bare.lake / "events").symlink_to(day.data.lake / "events")
    for dimensions in ((), ("hour", "country"), ("entry",)):
        assert check(day, Query(METRIC_NAMES, dimensions), bare) == ["events"]


def test_reports_of_hours_read_the_hours_rollup_alone(day: Day) -> None:
    one_table = tuple(name for name in METRIC_NAMES if name not in ("peakView", "uniqueSessions"))
    for dimensions in (("hour",), ("entry", "city"), ("day", "userId")):
        assert Reports(day.data).run(Query(one_table, dimensions)).tables == ["hour"]
    assert Reports(day.data).run(Query(("peakView", "view"), ("entry",))).tables == ["hour", "tenSeconds"]
