"""A day of 200,000 simulated events: every metric by every dimension is what a second, simpler program makes of what
was sent, from rollups, from events, and from both together.
"""

import random
from collections.abc import Iterator
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
from kanalony.reports.query import Query, Reports
from kanalony.reports.table import as_object
from kanalony.segments.names import DataDirectory
from kanalony.simulate.viewers import REFERRERS, START, USER_AGENTS, simulate
from tests.aggregate.lakes import Sent, roll_up, seal
from tests.reports import reference

pytestmark = pytest.mark.slow

EVENTS = 200_000
VIEWERS = 35  # at whose pace that many take a day
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
    """A query with other values of parameters, or without them (None)."""
    if not changes:
        return query
    parameters = {**dict(parse_qsl(query, keep_blank_values=True)), **changes}
    return urlencode({name: value for name, value in parameters.items() if value is not None})


def traffic() -> list[tuple[Sent, dict[str, Any]]]:
    """What is sent, and what headers and address say: simulated, with all that goes wrong on the way."""
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
        elif kind == 3 and index > 20:  # stopped for a while: the counter begins anew
            at += 40
            changes["eventIndex"] = str(index - 20)
        elif kind == 4 and index % 9 == 0:
            at += 0.7  # overtaken by the next one, or nearly so
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
        told = {"browser": browser, "operatingSystem": system, "device": device, "country": country}
        told |= {"region": region, "city": city, "syndicationDomain": domain, "referrer": page}
        if "partnerId" in changes:
            told["partner"] = None
        once = Sent(int(at * 1e6), query, user_agent=event.user_agent.encode(), address=bytes([203, 0, 113, address]))
        sent.append((once, told))
        if rng.random() < 0.01:  # sent again by somebody between
            sent.append((Sent(once.at + rng.randrange(300_000_000), query, b"", once.user_agent, once.address), told))
    return sent


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataDirectory, list[reference.Event]]:
    """The lake of that day, which came in three parts, the last one late; and the reference's events."""
    root = tmp_path_factory.mktemp("golden")
    database = MMDBWriter(4, "Test", languages=["en"])
    for last, (country, region, city) in PLACES.items():
        place = {"country": {"names": {"en": country}}, "city": {"names": {"en": city}}}
        database.insert_network(IPSet([f"203.0.113.{last}/32"]), {**place, "subdivisions": [{"names": {"en": region}}]})
    database.to_db_file(str(root / "places.mmdb"))
    sent = traffic()
    in_order = sorted((once for once, _ in sent), key=lambda once: once.at)
    is_late = {
        once.query for once in in_order[50_000:60_000:7]
    }  # with what is sent again: the first that comes is kept
    late = [once for once in in_order if once.query in is_late]
    prompt = [once for once in in_order if once.query not in is_late]
    data = DataDirectory.writable(root / "data")
    with maxminddb.open_database(root / "places.mmdb") as geoip:
        for worker, part in ((1, prompt[:120_000]), (2, prompt[120_000:]), (3, late)):
            seal(data, (part[start : start + 2000] for start in range(0, len(part), 2000)), worker=worker)
            assert roll_up(data, geoip=geoip, memory=512 << 20)
    return data, reference.read([(once.at, once.query.decode(), told) for once, told in sent])


def differences(told: dict[str, Any], expected: dict[str, float | None]) -> dict[str, tuple[Any, Any]]:
    """Metrics that are not the same, but for the last digits of a division: (told, expected)."""
    found = {}
    for name, value in expected.items():
        other = told[name]
        same = other is value if None in (other, value) else isclose(other, value or 0, rel_tol=1e-12)
        if not same:
            found[name] = (other, value)
    return found


def check(data: DataDirectory, events: list[reference.Event], query: Query) -> list[str]:
    """That a query's answer is the reference's; the tables it came from."""
    found = as_object(Reports(data).run(query))
    begin = reference_micros(query.start) if query.start else 0
    end = reference_micros(query.end) if query.end else 1 << 62
    chosen = [
        event
        for event in events
        if begin <= event.at < end and all(event.dimensions[name] in values for name, values in query.filters.items())
    ]
    expected = reference.report(chosen, query.dimensions, query.timezone)
    rows = {tuple(row[name] for name in query.dimensions): row for row in found["rows"]}
    assert rows.keys() == expected.keys()
    for key, metrics in expected.items():
        assert differences(rows[key], metrics) == {}, key
    assert differences(found["totals"], reference.metrics(reference.Group(chosen))) == {}
    return list(found["tables"])


def reference_micros(moment: datetime) -> int:
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def combinations() -> Iterator[tuple[str, ...]]:
    names = [dimension.name for dimension in DIMENSIONS]
    yield ()
    yield from ((name,) for name in names)
    yield from (("day",), ("hour",), ("minute",), ("hour", "partner", "device"), ("day", "entry"))
    yield from (("country", "browser", "playbackType", "customVar1"), ("tenSeconds", "partner"))


def test_the_day_has_what_it_should_test(day: tuple[DataDirectory, list[reference.Event]]) -> None:
    _, events = day
    total = reference.metrics(reference.Group(events))
    assert 20 < (events[-1].at - events[0].at) / 3.6e9 < 28, "hours"
    assert 195_000 < len(events) < 200_000
    assert all(value is not None for value in total.values())
    assert 0 < (total["lossRate"] or 0) < 0.05
    assert any(event.place not in (None, event.at) for event in events), "some came in another order"
    assert events[0].at >= START * 1e6


@pytest.mark.parametrize("dimensions", list(combinations()), ids=" ".join)
def test_every_metric_is_that_of_the_reference(
    day: tuple[DataDirectory, list[reference.Event]], dimensions: tuple[str, ...]
) -> None:
    check(*day, Query(METRIC_NAMES, dimensions))


@pytest.mark.parametrize("zone", [FIRST, SECOND], ids=str)
@pytest.mark.parametrize("dimension", ["day", "hour", "minute"])
def test_days_and_hours_are_those_of_the_time_zone(
    day: tuple[DataDirectory, list[reference.Event]], zone: ZoneInfo, dimension: str
) -> None:
    check(*day, Query(METRIC_NAMES, (dimension,), timezone=zone))


@pytest.mark.parametrize("dimensions", [(), ("partner",), ("city", "hour")], ids=" ".join)
def test_a_period_that_begins_and_ends_anywhere_is_put_together_from_several_tables(
    day: tuple[DataDirectory, list[reference.Event]], dimensions: tuple[str, ...]
) -> None:
    start = datetime(2026, 1, 1, 3, 17, 41, 123456, tzinfo=UTC)
    query = Query(METRIC_NAMES, dimensions, start=start, end=start + timedelta(hours=5, seconds=77))
    tables = check(*day, query)
    assert {"hour", "events"} <= set(tables)


def test_filters_choose_rows(day: tuple[DataDirectory, list[reference.Event]]) -> None:
    filters = {"country": ("Germany", "Unknown"), "browser": ("Chrome", "Chrome Mobile")}
    check(*day, Query(METRIC_NAMES, ("partner", "playbackType"), filters))


def test_without_rollups_the_events_give_the_same(
    day: tuple[DataDirectory, list[reference.Event]], tmp_path: Path
) -> None:
    data, events = day
    bare = DataDirectory.writable(tmp_path / "bare")
    bare.lake.mkdir()
    (bare.lake / "events").symlink_to(data.lake / "events")
    for dimensions in ((), ("hour", "country"), ("entry",)):
        assert check(bare, events, Query(METRIC_NAMES, dimensions)) == ["events"]


def test_reports_of_hours_read_the_hours_rollup_alone(day: tuple[DataDirectory, list[reference.Event]]) -> None:
    data, _ = day
    one_table = tuple(name for name in METRIC_NAMES if name not in ("peakView", "uniqueSessions"))
    for dimensions in (("hour",), ("entry", "city"), ("day", "userId")):
        assert Reports(data).run(Query(one_table, dimensions)).tables == ["hour"]
    assert Reports(data).run(Query(("peakView", "view"), ("entry",))).tables == ["hour", "tenSeconds"]
