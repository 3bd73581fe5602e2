"""Rollups give the answers that events give, in whatever order these arrive; they are refreshed, dropped and remade."""

import hashlib
import os
import random
import shutil
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import numpy as np
import polars
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kanalony.aggregate import rollup_writer
from kanalony.aggregate.compact import Compaction
from kanalony.aggregate.delta import Table
from kanalony.aggregate.enrich import Enricher
from kanalony.aggregate.limits import Limits
from kanalony.aggregate.measures import touched_hours
from kanalony.aggregate.rollup_writer import RollupWriter
from kanalony.aggregate.rollups import DIRECTORY, ROLLUPS, ReadOnlyRollup
from kanalony.errors import FormatError, StorageError
from kanalony.events import DIMENSIONS, METRICS, TIME_DIMENSIONS
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.directory import DataDirectory
from kanalony.units import HOUR
from tests.aggregate.lakes import KEEP, MEMORY, SECOND, Sent, compact, roll_up, seal
from tests.reports.asking import PLAY, VIEW, ask, at, event, one, rows, session, store
from tests.tools import examples

NOON = "2026-06-01T12:00:00"
METRIC_NAMES = [metric.name for metric in METRICS]
ALL = " ".join(METRIC_NAMES)
DIMENSION_NAMES = [*(dimension.name for dimension in DIMENSIONS), *TIME_DIMENSIONS]


def contents(data: DataDirectory) -> dict[str, list[dict[str, Any]]]:
    """The rows of every rollup, sorted; sketches and lists as they are."""
    found = {}
    for rollup in ROLLUPS:
        table = polars.read_delta(str(data.lake / DIRECTORY / rollup.name))
        order = ["time", *rollup.dimensions]
        found[rollup.name] = table.sort(order).with_columns(table.sort(order)["joinTimes"].list.sort()).to_dicts()
    return found


def without_rollups(data: DataDirectory, root: Path) -> DataDirectory:
    bare = DataDirectory.writable(root / "bare")
    bare.lake.mkdir(exist_ok=True)
    if not (bare.lake / "events").exists():
        (bare.lake / "events").symlink_to(data.lake / "events")
    return bare


# The property: answers with and without rollups are the same, whatever is sent and queried.

START = at("2026-03-28T21:00:00")
sent_events = st.builds(
    lambda seconds, kind, session, index, entry, more: event(
        START + seconds * SECOND // 4, kind, sessionId=session, eventIndex=index, entryId=entry, **more
    ),
    st.integers(0, 4 * 3600 * 6),
    st.sampled_from([1, 2, 3, 3, 6, 11, 98, 99, 99, 99]),
    st.sampled_from(["", "s", "t", "u"]),
    st.integers(1, 12),
    st.sampled_from(["", "e", "f"]),
    st.fixed_dictionaries(
        {},
        optional={
            "playTimeSum": st.integers(0, 100),
            "bufferTime": st.floats(0, 5),
            "joinTime": st.floats(-1, 9),
            "actualBitrate": st.integers(1, 9000),
            "userId": st.sampled_from(["", "u", "v"]),
            "playbackType": st.sampled_from(["vod", "live"]),
            "partnerId": st.sampled_from(["1", "2", "x"]),
            "customVar1": st.sampled_from(["a", "b", "Unknown"]),
        },
    ),
)


@st.composite
def bursts(draw: st.DrawFn) -> list[Sent]:
    """A session's events that overtake each other at the end of an hour.

    Some are lost, some are repeated, and the counter may start again.
    """
    first = START + draw(st.integers(1, 5)) * HOUR - draw(st.integers(5, 40)) * SECOND
    numbers = draw(st.permutations(range(1, 10))) + draw(st.permutations(range(draw(st.sampled_from([1, 10])), 19)))
    numbers = [number for number in numbers for _ in range(draw(st.sampled_from([0, 1, 1, 1, 1, 2])))]
    gaps = draw(st.lists(st.sampled_from([0, 1, 2, 4, 30]), min_size=len(numbers), max_size=len(numbers)))
    sums = draw(st.sets(st.integers(0, 18)))
    name = draw(st.sampled_from(["s", "v", "w"]))
    return [
        event(
            first + sum(gaps[:place]) * SECOND,
            VIEW,
            sessionId=name,
            eventIndex=number,
            position=place,
            **({"playTimeSum": number * 7} if number in sums else {}),
        )
        for place, number in enumerate(numbers)
    ]


questions = st.tuples(
    st.lists(st.sampled_from(DIMENSION_NAMES), max_size=3, unique=True),
    st.sampled_from([UTC, ZoneInfo("Europe/Paris"), ZoneInfo("Asia/Kolkata"), ZoneInfo("Australia/Lord_Howe")]),
    st.none() | st.integers(0, 4 * 3600 * 6),
    st.none() | st.integers(0, 4 * 3600 * 6),
    st.dictionaries(
        st.sampled_from(["entry", "userId", "playbackType"]),
        st.sampled_from([("e",), ("Unknown", "u"), ("vod", "f")]),
        max_size=1,
    ),
)


@settings(max_examples=examples(25), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(sent_events, min_size=1, max_size=80),
    st.lists(bursts(), max_size=3),
    st.randoms(use_true_random=False),
    st.lists(questions, min_size=4, max_size=4),
)
def test_with_rollups_and_without_every_answer_is_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    sent: list[Sent],
    more: list[list[Sent]],
    rng: random.Random,
    asked: list[Any],
) -> None:
    root = tmp_path_factory.mktemp("property")
    data = DataDirectory.writable(root / "data")
    parts: list[list[list[Sent]]] = [[[], []] for _ in range(3)]  # runs, and in each what a worker received
    for once in [*sent, *(once for burst in more for once in burst)]:
        rng.choice(rng.choice(parts)).append(once)
    for number, workers in enumerate(parts):
        for worker, received in enumerate(workers):
            if received:
                seal(data, [received], worker=number * 2 + worker + 1)
        roll_up(data)
    bare = without_rollups(data, root)
    for dimensions, zone, first, end, filters in asked:
        period: dict[str, Any] = {
            name: None if offset is None else datetime.fromtimestamp(START / 1e6 + offset / 4, UTC).isoformat()
            for name, offset in (("start", first), ("end", end))
        }
        question = (ALL, " ".join(dimensions))
        rolled = ask(data, *question, zone=zone, filters=filters, **period)
        raw = ask(bare, *question, zone=zone, filters=filters, **period)
        assert rolled["rows"] == raw["rows"]
        assert rolled["totals"] == raw["totals"]
        assert set(raw["tables"]) <= {"events"}


def test_events_compacted_in_parts_or_at_once_give_the_same_rows(tmp_path: Path) -> None:
    watched = [*session("2026-06-01T11:57:00", 40, name="a"), *session("2026-06-01T12:30:00", 300, name="b")]
    parts, whole = DataDirectory.writable(tmp_path / "parts"), DataDirectory.writable(tmp_path / "whole")
    store(whole, *watched)
    for part in (watched[5::3], watched[3:5], watched[6::3], watched[7::3], watched[:3]):
        store(parts, *part)
    assert contents(parts) == contents(whole)


def test_places_of_the_events_before_a_period_are_known_in_it(data: DataDirectory, tmp_path: Path) -> None:
    """The event of 13:00 has its place 24 s earlier, and more than ten minutes after that of the event with number 15,
    which arrived 16 s later than the event that overtook it.
    """
    numbers = {"12:49:34": 20, "12:49:50": 15, "12:59:36": 18, "13:00:00": 17}
    store(data, *[event(f"2026-06-01T{time}", VIEW, eventIndex=index) for time, index in numbers.items()])
    for answering in (data, without_rollups(data, tmp_path)):
        assert rows(answering, "lossRate view", "hour", start="2026-06-01T13:00:00+00:00") == [
            ("2026-06-01T13:00+00:00", 0, 1)
        ]


# Refreshing.


def test_only_the_hours_that_were_touched_are_computed(data: DataDirectory) -> None:
    assert store(data, *session("2026-06-01T08:00:00", 3), *session("2026-06-01T12:00:00", 3, name="b")) == 2
    assert store(data) == 0
    assert store(data, event("2026-06-01T12:10:00", VIEW)) == 1
    store(data, event("2026-06-01T11:30:00", VIEW), event("2026-06-01T13:30:00", VIEW))
    assert store(data, event("2026-06-01T12:59:00", VIEW)) == 2, "that hour, and the next one: sequences continue there"
    assert store(data, event("2026-06-01T12:00:10", VIEW, eventIndex=1)) == 2, "and the one before: events overtake"
    assert one(data, "view") == 11


def test_an_overtaken_event_changes_the_hour_before_its_own(data: DataDirectory, tmp_path: Path) -> None:
    full = "2026-06-01T13:00:00+00:00"
    numbers = [(-15, 4, 10), (-5, 6, 30), (1, 7, 40), (5, 5, 20)]
    *prompt, late = [
        event(at(full) + seconds * SECOND, VIEW, eventIndex=index, playTimeSum=played)
        for seconds, index, played in numbers
    ]
    store(data, *prompt)
    assert rows(data, "lossRate minutesWatched", "hour") == [
        ("2026-06-01T12:00+00:00", 1 / 3, 20 / 60),
        ("2026-06-01T13:00+00:00", 0, 10 / 60),
    ]
    store(data, late)
    expected = [("2026-06-01T12:00+00:00", 0, 10 / 60), ("2026-06-01T13:00+00:00", 0, 20 / 60)]
    for answering in (data, without_rollups(data, tmp_path)):
        assert rows(answering, "lossRate minutesWatched", "hour") == expected
        assert rows(answering, "lossRate minutesWatched", "hour", end=full) == expected[:1]
        assert rows(answering, "lossRate minutesWatched", "hour", start=full) == expected[1:]


def test_recomputing_gives_the_same_rows(data: DataDirectory) -> None:
    store(data, *session(NOON, 30), *session("2026-06-02T12:00:00", 30, name="b"))
    before = contents(data)
    store(data, event("2026-06-01T12:20:00", PLAY, entryId="new"))
    after = contents(data)
    for name, found in before.items():
        assert [row for row in after[name] if row["entry"] != "new"] == found


def test_days_that_are_over_have_one_file_and_todays_hours_one_each(data: DataDirectory) -> None:
    now = time.time_ns() // 1000
    today = now // (24 * HOUR) * 24 * HOUR
    days = [today - 2 * 24 * HOUR, today - 24 * HOUR]
    for hour in (1, 5, 9):
        store(data, *(event(day + hour * HOUR, VIEW, eventIndex=hour) for day in days))
    hours = sorted({min(now, today + n * HOUR) // HOUR for n in range(3)})
    store(data, *(event(hour * HOUR, VIEW, eventIndex=100 + n) for n, hour in enumerate(hours)))
    files = ReadOnlyRollup(data.lake, ROLLUPS[0]).files
    assert sorted(file.first // HOUR for file in files if file.first >= today) == hours
    assert sum(file.first < today for file in files) == 2
    assert one(data, "view") == 6 + len(hours)


def test_types_without_a_name_are_in_rollups_up_to_999_and_larger_ones_are_counted_from_the_events(
    data: DataDirectory,
) -> None:
    kinds = [6, 6, 999, 1000, 1000, 1000, 10**17]
    store(data, *(event(START + n * SECOND, kind, eventIndex=n) for n, kind in enumerate(kinds)))
    for names, tables in (("6 999 view", ["hour"]), ("1000", ["events"]), (f"6 999 1000 {10**17}", ["events"])):
        answer = ask(data, names)
        assert answer["tables"] == tables
        assert list(answer["totals"].values()) == [kinds.count(int(n)) if n != "view" else 0 for n in names.split()]


def test_rollups_of_earlier_versions_are_removed_once_there_are_new_ones(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(data)  # makes the directories
    earlier, later = data.lake / "rollups-1", data.lake / "rollups-99"
    for directory in (earlier, later):
        (directory / "hour").mkdir(parents=True)
        (directory / "hour" / "rows.parquet").write_bytes(b"PAR1")
    seal(data, [session(NOON, 3)])
    with monkeypatch.context() as patch:
        patch.setattr(RollupWriter, "_load", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            roll_up(data)
    assert earlier.exists()
    roll_up(data)
    assert not earlier.exists()
    assert later.exists()
    assert ask(data, "view")["tables"] == ["hour"]


def test_a_record_without_touched_hours_has_every_hour_recomputed(data: DataDirectory) -> None:
    """An earlier version recorded the hours of events, not those they change."""
    store(data, *session("2026-06-01T08:00:00", 3), *session(NOON, 3, name="b"))
    seal(data, [[event("2026-06-01T14:00:00", VIEW)]], worker=7)
    compact(data)
    record = data.lake / "segments.ndjson"
    record.write_text(record.read_text().replace('"touched"', '"hours"'))
    assert roll_up(data) == 3


@pytest.mark.parametrize(
    ("seconds", "hours"),
    [(-651, [11]), (-650, [11, 12]), (-1, [11, 12]), (0, [11, 12]), (24.9, [11, 12]), (25, [12]), (2000, [12])],
)
def test_events_touch_the_hours_whose_sums_they_can_change(seconds: float, hours: list[int]) -> None:
    received = at(NOON) + round(seconds * SECOND)
    assert [hour % 24 for hour in touched_hours(np.array([received]))] == hours


def test_a_lake_without_rollups_gets_them(data: DataDirectory) -> None:
    seal(data, [session(NOON, 30)])
    compact(data)
    assert ask(data, "view")["tables"] == ["events"]
    assert store(data) == 1
    assert ask(data, "view")["tables"] == ["hour"]


@pytest.mark.parametrize("step", ["write_file", "commit", "_sync_log"])
def test_a_refresh_that_dies_is_completed_by_the_next(
    data: DataDirectory, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a crash between the commits of lake and rollups answers are right at once, and cheap after the next run."""
    store(data, *session(NOON, 12))
    seal(data, [session("2026-06-01T12:30:00", 12, name="b")], worker=77)
    compact(data)
    real = getattr(Table, step)
    for survived in range(4):
        calls = 0

        def die(*arguments: Any, survived: int = survived, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > survived + (3 + 1 if step == "_sync_log" else 0):  # each table syncs its log when it is opened
                raise KeyboardInterrupt
            return real(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Table, step, die)
            try:
                roll_up(data)
            except KeyboardInterrupt:
                assert rows(data, "view minutesWatched peakView") == [(24, 220 / 60, 1)]
    roll_up(data)
    assert ask(data, "view minutesWatched")["tables"] == ["hour"]
    assert rows(data, "view minutesWatched peakView") == [(24, 220 / 60, 1)]


def test_a_rollup_that_lags_behind_the_lake_is_not_used(data: DataDirectory) -> None:
    store(data, *session(NOON, 3))
    seal(data, [[event("2026-06-01T12:10:00", VIEW)]], worker=5)
    compact(data)
    assert ask(data, "view")["tables"] == ["events"]
    assert one(data, "view") == 4


def test_a_full_disk_is_reported_and_the_next_refresh_completes(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal(data, [session(NOON, 3)])
    compact(data)

    def full(_: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        real = os.fsync
        patch.setattr("kanalony.durable.os.fsync", lambda fd: full(fd) if is_parquet(fd) else real(fd))
        with pytest.raises(StorageError, match="No space left on device"):
            roll_up(data)
    assert one(data, "view") == 3
    roll_up(data)
    assert ask(data, "view")["tables"] == ["hour"]


def is_parquet(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").readlink().suffix == ".parquet"


def test_refreshing_again_and_again_leaves_no_old_files(data: DataDirectory) -> None:
    limits = Limits(rollup_retention_hours=0, rollup_vacuum_commits=2)
    for number in range(8):
        store(data, event(at(NOON) + number * SECOND, VIEW, eventIndex=number), limits=limits)
    root = data.lake / DIRECTORY / "hour"
    assert len(list(root.rglob("date=*/*.parquet"))) <= 2
    assert one(data, "view") == 8


def test_hours_that_exceed_the_memory_are_computed_in_smaller_parts(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []
    real = RollupWriter._load

    def load(*arguments: Any) -> None:
        tries.append(arguments)
        real(*arguments)
        if len(tries) == 1:
            raise duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate")

    monkeypatch.setattr(RollupWriter, "_load", load)
    seal(data, [session(NOON, 6)])
    roll_up(data)
    assert ask(data, "view")["tables"] == ["hour"]
    assert one(data, "view") == 6


@pytest.mark.parametrize(
    ("problem", "remedy"),
    [
        ("failed to allocate data of size 1.0 MiB (9.0 MiB/9.0 MiB used)", "give more with --memory"),
        ("failed to offload data block of size 256.0 KiB (36.3 MiB/36.5 MiB used).", "make room for"),
    ],
)
def test_an_hour_that_is_left_out_is_logged_with_the_remedy(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, problem: str, remedy: str
) -> None:
    def load(*_: Any) -> None:
        raise duckdb.OutOfMemoryException(f"Out of Memory Error: {problem}")

    monkeypatch.setattr(RollupWriter, "_load", load)
    store(data, *session(NOON, 6))
    assert remedy in caplog.text


def hours_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, *hours: str) -> None:
    """Every attempt to compute one of these hours takes more memory than there is; late, when others have rows."""
    real = rollup_writer._aggregate

    def aggregate(engine: Any, rollup: Any, since: int) -> Any:
        yield from real(engine, rollup, since)
        if rollup is ROLLUPS[-1]:
            ((found,),) = engine.execute(f"SELECT list(DISTINCT t // {HOUR}) FROM facts").fetchall()
            if {at(hour) // HOUR for hour in hours}.intersection(found or ()):
                raise duckdb.OutOfMemoryException("Out of Memory Error: failed to allocate")

    monkeypatch.setattr(rollup_writer, "_aggregate", aggregate)


EVERY_HOUR = [f"2026-06-01T{hour:02}:10:00" for hour in range(10, 15)]


@pytest.mark.slow
def test_an_hour_that_does_not_fit_in_the_memory_does_not_affect_others(
    data: DataDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched = [sent for number, hour in enumerate(EVERY_HOUR) for sent in session(hour, 7, name=f"s{number}")]
    with monkeypatch.context() as patch:
        hours_that_do_not_fit(patch, NOON)
        store(data, *watched)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "2026-06-01T12:00Z" in record.message
    assert [row["time"].hour for row in contents(data)["hour"]] == [10, 11, 13, 14]
    bare = without_rollups(data, tmp_path)
    for dimensions in ("", "hour", "entry", "minute", "tenSeconds", "device hour"):
        assert ask(data, ALL, dimensions)["totals"] == ask(bare, ALL, dimensions)["totals"]
        assert rows(data, ALL, dimensions) == rows(bare, ALL, dimensions)
    assert set(ask(data, "view", "hour")["tables"]) == {"hour", "events"}
    assert ask(data, "view", start="2026-06-01T13:00Z", end="2026-06-01T15:00Z")["tables"] == ["hour"]
    assert ask(data, "view", start="2026-06-01T12:00Z", end="2026-06-01T13:00Z")["tables"] == ["events"]
    # Of the minutes before and after it, too, though its edges are within a query's.
    found = ask(data, "view", "minute", start="2026-06-01T11:10:30Z", end="2026-06-01T13:10:30Z")
    assert sum(row["view"] for row in found["rows"]) == 4 + 7 + 3


def test_an_hour_that_was_left_out_is_tried_again_by_the_next_start(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        hours_that_do_not_fit(patch, NOON)
        store(data, *(sent for hour in EVERY_HOUR for sent in session(hour, 7, name=hour)))
        assert roll_up(data) > 0, "tried again, in vain"
    assert set(ask(data, "view")["tables"]) == {"hour", "events"}
    store(data)
    assert (one(data, "view"), ask(data, "view")["tables"]) == (35, ["hour"])
    assert store(data) == 0


def test_a_running_process_tries_a_left_out_hour_again_after_an_hour_and_not_before(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("kanalony.aggregate.rollup_writer.time.monotonic", lambda: now)
    seal(data, [session(NOON, 7)], worker=1)
    with Compaction(data, memory=MEMORY, keep_segments=float("inf"), enricher=Enricher(None, None)) as compaction:
        tables = RollupWriter(data.lake, compaction.lake, memory=MEMORY, keep=KEEP)

        def round_of(hour: str, worker: int) -> int:
            seal(data, [session(hour, 2, name=f"s{worker}")], worker=worker)
            compaction.run(compaction.waiting(), lambda _: None, lambda: False)
            return tables.refresh(compaction.lake, compaction.manifest)

        with monkeypatch.context() as patch:
            hours_that_do_not_fit(patch, NOON)
            round_of(EVERY_HOUR[0], 2)
        for worker, hour in enumerate((EVERY_HOUR[4], NOON), 3):  # the second would change the hour itself
            round_of(hour, worker)
            assert set(ask(data, "view")["tables"]) == {"hour", "events"}
            assert one(data, "view") == 7 + 2 * (worker - 1)
        assert tables.refresh(compaction.lake, compaction.manifest) == 0
        now = 3601.0
        assert tables.refresh(compaction.lake, compaction.manifest) > 0
    assert (one(data, "view"), ask(data, "view")["tables"]) == (13, ["hour"])


# Long values.

LONGEST = "é" * 512  # 1,024 bytes of UTF-8
LONG = "é" * 200 + "x" * 700


def shortened(value: str) -> str:
    """Returns a long value as docs/reports.md describes it."""
    return f"{value[:200]}…{hashlib.sha256(value.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("dimension", "parameter"),
    [
        ("entry", "entryId"),
        ("userId", "userId"),
        ("application", "application"),
        ("customVar1", "customVar1"),
        ("mine", "mine"),
        ("label", "clientTag"),
        ("place", "position"),
    ],
)
def test_a_value_is_kept_whole_up_to_a_kibibyte_and_beyond_as_its_beginning_and_its_hash(
    data: DataDirectory, tmp_path: Path, dimension: str, parameter: str
) -> None:
    vocabulary = Vocabulary({}, {"mine": "mine", "label": "clientTag", "place": "position"})
    others = [f"{LONG}{end}" for end in "ab"]  # alike but for the last character
    values = [LONGEST, f"{LONGEST}x", *others]
    store(data, *(event(at(NOON) + n * SECOND, PLAY, **{parameter: value}) for n, value in enumerate(values)))
    for lake in (data, without_rollups(data, tmp_path)):
        asked = partial(ask, lake, "play", dimension, vocabulary=vocabulary)
        found = [row[dimension] for row in asked()["rows"]]
        assert sorted(found) == sorted([LONGEST, *map(shortened, values[1:])])
        assert max(len(value.encode()) for value in found) <= 1024
        for value in (*values, *map(shortened, values[1:])):
            assert asked(filters={dimension: (value,)})["totals"] == {"play": 1}
    column = parameter if parameter not in ("mine", "position") else None
    if column:
        assert sorted(polars.read_delta(str(data.lake / "events"))[column].to_list()) == sorted(values)


def test_sessions_users_and_videos_with_long_names_are_counted_apart(data: DataDirectory, tmp_path: Path) -> None:
    for name in ("sessionId", "userId", "entryId"):
        store(data, *(event(at(NOON) + n * SECOND, VIEW, **{name: f"{LONG}{n % 3}"}) for n in range(6)))
    for lake in (data, without_rollups(data, tmp_path)):
        for exact_events in (1 << 60, 0):
            asked = rows(lake, "uniqueSessions uniqueKnownUsers uniqueVideos", exact_events=exact_events)
            assert asked == [(4, 3, 4)]


def test_a_restored_or_new_lake_gets_other_rollups(data: DataDirectory, tmp_path: Path) -> None:
    store(data, *session(NOON, 6))
    backup = tmp_path / "backup"
    shutil.copytree(data.lake, backup, ignore=shutil.ignore_patterns("rollups-*"))
    for number in range(2):
        store(data, event(at(NOON) + number * SECOND, VIEW, eventIndex=50 + number))
    assert one(data, "view") == 8
    for path in sorted(data.sealed.iterdir())[-2:]:
        path.unlink()
    for name in ("events", "segments.ndjson"):
        shutil.rmtree(data.lake / name, ignore_errors=True)
    shutil.copytree(backup, data.lake, dirs_exist_ok=True)
    assert one(data, "view") == 6
    store(data)
    assert (one(data, "view"), ask(data, "view")["tables"]) == (6, ["hour"])
    shutil.rmtree(data.lake / "events")  # and once more from segments that lost one
    (data.lake / "segments.ndjson").unlink()
    store(data, event(NOON, PLAY, eventIndex=99))
    assert rows(data, "view play") == [(6, 2)]
    assert ask(data, "view")["tables"] == ["hour"]


@pytest.mark.parametrize("size", [0, 100])
def test_a_damaged_rollup_is_logged_and_the_events_answer(
    data: DataDirectory, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    store(data, *session(NOON, 6))
    for path in (data.lake / DIRECTORY / "hour").rglob("date=*/*.parquet"):
        os.truncate(path, size)
    found = ask(data, "view play", "hour")
    assert (found["totals"], found["tables"]) == ({"view": 6, "play": 1}, ["events"])
    assert "a rollup cannot be read" in caplog.text
    seal(data, [[event("2026-06-01T20:00:00", VIEW)]], worker=6)
    with pytest.raises(FormatError, match="cannot be read") as raised:
        roll_up(data)
    assert f"move the directory {DIRECTORY}" in raised.value.hint
    assert one(data, "view") == 7
    shutil.rmtree(data.lake / DIRECTORY)
    roll_up(data)
    assert (one(data, "view"), ask(data, "view")["tables"]) == (7, ["hour"])
    for path in (data.lake / "events").rglob("date=*/*.parquet"):
        os.truncate(path, size)
    with pytest.raises(FormatError, match=r"events/.*parquet cannot be read"):
        ask(data, "view", "customVar1 minute")
    shutil.rmtree(data.lake / DIRECTORY)
    with pytest.raises(FormatError, match="cannot be read"):
        roll_up(data)


# Retention.


def test_old_rows_leave_one_rollup_and_answers_stay(data: DataDirectory) -> None:
    now = time.time_ns() // 1000 // HOUR * HOUR
    old, young = now - 30 * 24 * HOUR, now - 2 * HOUR
    keep = {**KEEP, "tenSeconds": 7 * 86400.0}
    store(data, *session(old, 5, name="a"), *session(young, 5, name="b"), keep=keep)
    firsts = {rollup.name: min(file.first for file in ReadOnlyRollup(data.lake, rollup).files) for rollup in ROLLUPS}
    assert firsts["hour"] == firsts["minute"] == old
    assert firsts["tenSeconds"] == young
    assert one(data, "peakView") == 1
    assert set(ask(data, "peakView")["tables"]) >= {"tenSeconds", "events"}
    late = event(old + 60 * SECOND, VIEW, eventIndex=50)
    store(data, late, keep=keep)
    assert min(file.first for file in ReadOnlyRollup(data.lake, ROLLUPS[2]).files) == young
    yesterday = datetime.fromtimestamp(now / 1e6 - 86400, UTC).isoformat()
    assert rows(data, "view peakView", "tenSeconds", end=yesterday)[-1][1:] == (1, 1)
    # Kept for longer from now on: what is gone is not taken to be there.
    store(data, event(young, PLAY, eventIndex=60))
    assert one(data, "view") == 11
    assert len(rows(data, "view", "tenSeconds")) == 11


def test_old_rows_are_dropped_even_if_no_event_arrives(data: DataDirectory) -> None:
    now = time.time_ns() // 1000 // HOUR * HOUR
    store(data, event(now - 50 * HOUR, VIEW), event(now - 2 * HOUR, PLAY))
    roll_up(data, keep={**KEEP, "minute": 40 * 3600.0})
    assert [file.first for file in ReadOnlyRollup(data.lake, ROLLUPS[1]).files] == [now - 2 * HOUR]
    assert rows(data, "view play", "minute", filters={"partner": ("1",)})[0][1:] == (1, 0)


def test_a_clock_that_was_wrong_once_costs_no_rollup(data: DataDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    keep = {**KEEP, "minute": 86400.0}
    now = time.time_ns() // 1000 // HOUR * HOUR
    with monkeypatch.context() as patch:
        patch.setattr("kanalony.aggregate.rollup_writer.time.time", lambda: now / 1e6 + 1e9)
        store(data, *session(now - 2 * HOUR, 3), keep=keep)
        assert ReadOnlyRollup(data.lake, ROLLUPS[1]).files == []
    store(data, keep=keep)
    assert ask(data, "view", "minute")["tables"] == ["minute"]


# Cost.


@pytest.mark.slow
def test_memory_is_bounded_by_computing_hours_in_parts(
    data: DataDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(rollup_row_size=1 << 22, rollup_least_sizes=(1 << 22,))
    loads = []
    load = RollupWriter._load

    def counted(*arguments: Any) -> None:
        loads.append(arguments[-3:])
        load(*arguments)

    monkeypatch.setattr(RollupWriter, "_load", counted)
    watched = [sent for hour in range(6) for sent in session(f"2026-06-01T{10 + hour}:55:00", 60, name=f"s{hour}")]
    store(data, *watched, limits=limits)
    assert len(loads) > 3
    assert any(part.endswith("= 1") for _, _, part in loads), "an hour in parts"
    bare = without_rollups(data, tmp_path)
    for dimensions in ("hour", "entry", "tenSeconds"):
        assert rows(data, ALL, dimensions) == rows(bare, ALL, dimensions)
