"""Metrics and dimensions in cases made by hand; the parts of a query."""

import random
from collections.abc import Iterable
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kanalony.errors import UsageError
from kanalony.events import METRICS
from kanalony.reports.vocabulary import UnknownName, Vocabulary
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import SECOND, Sent
from tests.reports.asking import ERROR, IMPRESSION, PLAY, REQUESTED, VIEW, ask, at, event, one, rows, session, store
from tests.reports.conftest import MakeLake

NOON = "2026-06-01T12:00:00"
PARIS = ZoneInfo("Europe/Paris")
ALL = " ".join(metric.name for metric in METRICS)


def views(*times: str) -> list[Sent]:
    return [event(when, VIEW, eventIndex=number) for number, when in enumerate(times)]


# Ratios.


def test_ratios_without_plays_are_empty_not_zero(data: DataDirectory) -> None:
    store(data, event(NOON, ERROR))
    names = (
        "playRatio averageViewDropOff averageViewDuration averageActualBitrate averageJoinTime joinTimeP50 joinTimeP95"
    )
    assert rows(data, f"{names} errorRate lossRate rebufferRatio") == [(None,) * 10]
    assert rows(data, "play peakView uniqueVideos minutesWatched bufferingTime") == [(0, 0, 1, 0.0, 0.0)]


def test_play_ratio_and_drop_off(data: DataDirectory) -> None:
    plays = [event(NOON, PLAY, eventIndex=number) for number in range(4)]
    impressions = [event(NOON, IMPRESSION, eventIndex=number) for number in range(5)]
    reached = [event(NOON, kind, eventIndex=50 + kind) for kind in (11, 12, 13, 14, 15)]
    store(data, *plays, *impressions, *reached, event(NOON, 11))
    assert rows(data, "playRatio averageViewDropOff") == [(0.8, (0.5 + 0.25 + 0.25 + 0.25) / 4)]


def test_the_total_is_of_all_rows_not_their_mean(data: DataDirectory) -> None:
    store(
        data,
        *[event(NOON, IMPRESSION, eventIndex=number) for number in range(10)],
        event(NOON, PLAY),
        event(NOON, IMPRESSION, entryId="f"),
        event(NOON, PLAY, entryId="f"),
    )
    found = ask(data, "playRatio uniqueSessions", "entry")
    assert found["rows"] == [
        {"entry": "f", "playRatio": 1.0, "uniqueSessions": 1},
        {"entry": "e", "playRatio": 0.1, "uniqueSessions": 1},
    ]
    assert found["totals"] == {"playRatio": 2 / 11, "uniqueSessions": 1}


# Peaks.


def test_peak_view_is_the_most_views_in_ten_seconds(data: DataDirectory) -> None:
    watching = [*session(NOON, 3, name="a"), *session(at(NOON) + 11 * SECOND, 2, name="b")]
    store(data, *watching, *session("2026-06-01T13:00:00", 4, name="c"))
    assert one(data, "peakView") == 2
    assert rows(data, "peakView view", "hour") == [
        ("2026-06-01T12:00+00:00", 2, 5),
        ("2026-06-01T13:00+00:00", 1, 4),
    ]


def test_peaks_of_entries_do_not_add_up(data: DataDirectory) -> None:
    one_after_the_other = (("e", NOON), ("f", "2026-06-01T12:00:10"))
    store(
        data, *[event(when, VIEW, entryId=entry, eventIndex=n) for entry, when in one_after_the_other for n in (1, 2)]
    )
    found = ask(data, "peakView", "entry")
    assert found["rows"] == [{"entry": "e", "peakView": 2}, {"entry": "f", "peakView": 2}]
    assert found["totals"] == {"peakView": 2}


def test_a_period_without_views_has_a_peak_of_zero(data: DataDirectory) -> None:
    store(data, event(NOON, PLAY))
    assert rows(data, "peakView view", "entry") == [("e", 0, 0)]


# Time watched.


def test_minutes_watched_are_differences_of_play_time_sum(data: DataDirectory) -> None:
    times = [0, 10.5, 21, 31.25]
    watched = [
        event(at(NOON) + number * 10 * SECOND, VIEW, eventIndex=number + 1, playTimeSum=seconds)
        for number, seconds in enumerate(times)
    ]
    store(data, *watched)
    assert rows(data, "minutesWatched estimatedMinutesWatched") == [(31.25 / 60, 4 / 6)]


def test_play_time_sums_count_in_the_order_of_their_numbers(data: DataDirectory) -> None:
    received = [(1, 10), (3, 30), (2, 20), (4, 40)]
    store(
        data,
        *[
            event(at(NOON) + n * SECOND, VIEW, eventIndex=index, playTimeSum=seconds)
            for n, (index, seconds) in enumerate(received)
        ],
    )
    assert one(data, "minutesWatched") == 30 / 60


def test_a_play_time_sum_of_another_sequence_is_not_subtracted(data: DataDirectory) -> None:
    received = [(1, 10), (2, 20), (1, 25), (2, 31)]  # the second sequence begins 30 s later
    store(
        data,
        *[
            event(at(NOON) + (n + n // 2 * 30) * SECOND, VIEW, eventIndex=index, playTimeSum=seconds)
            for n, (index, seconds) in enumerate(received)
        ],
    )
    assert one(data, "minutesWatched") == (10 + 6) / 60


def test_a_view_counts_ten_seconds_unless_a_play_time_sum_before_it_counts_its_time(data: DataDirectory) -> None:
    after_views = [event(at(NOON) + n * 10 * SECOND, VIEW, eventIndex=n) for n in range(1, 4)]
    sums = {"sessionId": "t", "playTimeSum": 7}
    after_sums = [
        event(NOON, PLAY, eventIndex=1, **sums),
        event(at(NOON) + 10 * SECOND, VIEW, eventIndex=2, sessionId="t"),
        event(at(NOON) + 20 * SECOND, VIEW, eventIndex=3, sessionId="t"),
        event(at(NOON) + 595 * SECOND, VIEW, eventIndex=4, sessionId="t"),
        event(at(NOON) + 605 * SECOND, VIEW, eventIndex=5, sessionId="t"),  # eleven minutes after the sum, nearly
    ]
    store(data, *after_views, *after_sums)
    assert one(data, "minutesWatched") == (20 + 10) / 60


def test_a_view_that_arrives_twice_counts_once(data: DataDirectory) -> None:
    store(data, *[event(at(NOON) + n * SECOND, VIEW, eventIndex=i, position=n) for n, i in enumerate((1, 2, 2, 3, 2))])
    assert one(data, "minutesWatched") == 20 / 60


def test_minutes_of_shorter_times_add_up_to_the_total(data: DataDirectory) -> None:
    watched = session("2026-06-01T12:58:00", 30, playTimeSum=None)
    sums = [
        event(
            at("2026-06-01T12:59:30") + n * 10 * SECOND, VIEW, sessionId="t", eventIndex=n ^ 1, playTimeSum=(n ^ 1) * 9
        )
        for n in range(20)
    ]
    store(data, *watched, *sums)
    for dimension in ("tenSeconds", "minute", "hour", "day"):
        by_time = rows(data, "minutesWatched", dimension)
        assert sum(minutes for _, minutes in by_time) == pytest.approx((290 + 19 * 9) / 60)


def test_without_play_time_sum_the_first_view_of_a_sequence_counts_nothing(data: DataDirectory) -> None:
    store(data, *session(NOON, 7))
    assert rows(data, "minutesWatched averageViewDuration") == [(1.0, 1.0)]


def test_views_without_a_session_count_ten_seconds_each(data: DataDirectory) -> None:
    store(data, *[event(at(NOON) + n * SECOND, VIEW, sessionId="", eventIndex=n) for n in range(6)])
    assert one(data, "minutesWatched") == 1.0


def test_a_play_time_sum_that_falls_or_leaps_adds_nothing(data: DataDirectory) -> None:
    times = [100, 110, 5, 15, 5000, 5010, "nan", "1e400", -3]
    watched = [
        event(at(NOON) + number * 10 * SECOND, VIEW, eventIndex=number + 1, playTimeSum=seconds)
        for number, seconds in enumerate(times)
    ]
    store(data, *watched)
    assert one(data, "minutesWatched") == 30 / 60


def test_a_sequence_that_continues_in_the_next_hour_is_one_sequence(data: DataDirectory) -> None:
    store(data, *session("2026-06-01T12:59:35", 7))
    assert rows(data, "minutesWatched lossRate", "hour") == [
        ("2026-06-01T12:00+00:00", 20 / 60, 0.0),
        ("2026-06-01T13:00+00:00", 40 / 60, 0.0),
    ]


# Loss.


def test_missing_numbers_inside_a_sequence_are_loss(data: DataDirectory) -> None:
    store(data, *[event(at(NOON) + n * SECOND, VIEW, eventIndex=n) for n in (3, 4, 7, 10)])
    assert one(data, "lossRate") == 4 / 8


def arrival(indices: Iterable[int], start: str = NOON, **more: Any) -> list[Sent]:
    """Views with these numbers, one a second."""
    return [event(at(start) + n * SECOND, VIEW, eventIndex=i, position=n, **more) for n, i in enumerate(indices)]


LOSSES = {
    (1, 2, 4, 3, 5): 0,
    (2, 1, 3, 4, 5): 0,
    (1, 2, 3, 5, 4): 0,
    (1, 2, 2, 3, 4, 5): 0,
    (9, 8, 7, 6, 5, 4, 3, 2, 1): 0,
    (2, 1, 3, 4, 6): 1 / 6,
    (2, 1, 3, 3, 4, 6, 4, 2): 1 / 6,
    (2, 1, 6, 3, 4): 1 / 6,
    (1, 2, 2002, 2003): 0,
}


def as_name(indices: tuple[int, ...]) -> str:
    return " ".join(map(str, indices))


@pytest.fixture(scope="module")
def arrivals(lake_of: MakeLake) -> DataDirectory:
    """Each of LOSSES as an entry with its own session."""
    return lake_of(*(sent for indices in LOSSES for sent in arrival(indices, entryId=as_name(indices))))


@pytest.mark.parametrize(("indices", "loss"), LOSSES.items(), ids=map(as_name, LOSSES))
def test_neither_order_nor_repeats_change_the_loss(
    arrivals: DataDirectory, indices: tuple[int, ...], loss: float
) -> None:
    assert one(arrivals, "lossRate", filters={"entry": (as_name(indices),)}) == loss


@pytest.mark.parametrize("share", [0, 0.05])
def test_in_a_long_sequence_with_swapped_neighbours_the_loss_is_exact(data: DataDirectory, share: float) -> None:
    rng = random.Random(3)
    numbers = [n for n in range(1, 3001) if n in (1, 3000) or rng.random() >= share]
    lost = 3000 - len(numbers)
    place = 0
    while place < len(numbers) - 1:
        if rng.random() < 0.03:
            numbers[place : place + 2] = reversed(numbers[place : place + 2])
            place += 1
        place += 1
    assert numbers != sorted(numbers)
    store(data, *arrival(numbers))
    assert one(data, "lossRate") == lost / 3000


blocks = st.lists(st.permutations(range(9)), min_size=1, max_size=4)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(blocks, st.sets(st.integers(1, 34)), st.sets(st.integers(0, 35))), min_size=10, max_size=40))
def test_any_order_of_nine_neighbours_gives_the_same_result(
    tmp_path_factory: pytest.TempPathFactory, cases: list[tuple[list[list[int]], set[int], set[int]]]
) -> None:
    data = DataDirectory.writable(tmp_path_factory.mktemp("order") / "data")
    sent = []
    for case, (orders, lost, played) in enumerate(cases):
        shuffled = [9 * block + n for block, order in enumerate(orders) for n in order]
        for application, numbers in (("sorted", sorted(shuffled)), ("shuffled", shuffled)):
            session = {"sessionId": f"{application}{case}", "application": application, "userId": case}
            for place, number in enumerate(number for number in numbers if number not in lost):
                more = {"playTimeSum": number * 3} if number in played else {}
                sent.append(event(at(NOON) + place * SECOND, VIEW, eventIndex=number, **session, **more))
    store(data, *sorted(sent, key=lambda once: once.at))
    results = [
        ask(data, "minutesWatched lossRate view", "userId", filters={"application": (application,)})["rows"]
        for application in ("sorted", "shuffled")
    ]
    by_user = [sorted(result, key=lambda row: row["userId"]) for result in results]
    assert by_user[0] == by_user[1]


def test_a_counter_that_starts_again_after_thirty_seconds_starts_a_sequence(data: DataDirectory) -> None:
    store(data, *arrival((1, 2, 3, 5)), *arrival((1, 2, 4), "2026-06-01T12:00:33", seek="again"))
    assert one(data, "lossRate") == 2 / (5 + 4)


def test_a_counter_that_starts_again_is_no_loss(data: DataDirectory) -> None:
    first = [event(at(NOON) + n * 10 * SECOND, VIEW, eventIndex=n) for n in range(1, 21)]
    again = [event(at(NOON) + (250 + n * 10) * SECOND, VIEW, eventIndex=n, position=200 + n) for n in range(1, 11)]
    other = [event(at(NOON) + n * 10 * SECOND, VIEW, eventIndex=n, entryId="f") for n in range(1, 11)]
    late = [event(at(NOON) + 3600 * SECOND, VIEW, eventIndex=500)]
    store(data, *first, *again, *other, *late)
    assert rows(data, "lossRate minutesWatched") == [(0, (190 + 90 + 90) / 60)]


# Quality.


def test_quality_is_of_the_events_that_have_it(data: DataDirectory) -> None:
    plays = [event(NOON, PLAY, eventIndex=n, joinTime=time, bufferTime=0.5) for n, time in enumerate((1, 2, 4))]
    views = [event(NOON, VIEW, eventIndex=10 + n, actualBitrate=rate) for n, rate in enumerate((500, 1500))]
    others = [event(NOON, 43, eventIndex=20, actualBitrate=9999, joinTime=99), event(NOON, PLAY, eventIndex=30)]
    wrong = [event(NOON, PLAY, eventIndex=40 + n, joinTime=time) for n, time in enumerate((-1, 1e9, "nan", "x"))]
    store(data, *plays, *views, *others, *wrong, event(NOON, REQUESTED), event(NOON, ERROR))
    found = ask(data, "averageJoinTime joinTimeP50 joinTimeP95 bufferingTime averageActualBitrate errorRate")
    assert found["rows"] == [
        {
            "averageJoinTime": pytest.approx(7 / 3),
            "joinTimeP50": 2.0,
            "joinTimeP95": pytest.approx(3.8),
            "bufferingTime": 1.5,
            "averageActualBitrate": 1000.0,
            "errorRate": 1.0,
        }
    ]
    assert found["units"] == {
        "averageJoinTime": "s",
        "joinTimeP50": "s",
        "joinTimeP95": "s",
        "bufferingTime": "s",
        "averageActualBitrate": "kbps",
    }


# Distinct counts.


def test_distinct_counts_leave_out_the_unknown_and_keep_partners_apart(data: DataDirectory) -> None:
    viewers = [("a", "u", "e", 1), ("a", "u", "f", 1), ("b", "u", "e", 2), ("", "v", "", 1), ("", "", "e", 1)]
    sent = [
        event(at(NOON) + n, VIEW, sessionId=s, userId=u, entryId=entry, partnerId=p)
        for n, (s, u, entry, p) in enumerate(viewers)
    ]
    store(data, *sent)
    assert rows(data, "uniqueSessions uniqueKnownUsers uniqueVideos events") == [(2, 3, 3, 5)]


def test_sessions_of_many_events_are_estimated_and_marked(data: DataDirectory) -> None:
    sent = [event(at(NOON) + n * SECOND, VIEW, sessionId=f"s{n % 6000}", eventIndex=n) for n in range(9000)]
    store(data, *sent)
    exact = ask(data, "uniqueSessions", "hour")
    estimate = ask(data, "uniqueSessions", "hour", exact_events=1000)
    assert exact["totals"] == {"uniqueSessions": 6000}
    assert exact["estimated"] == []
    assert estimate["estimated"] == ["uniqueSessions"]
    assert estimate["tables"] == ["hour"]
    assert estimate["totals"]["uniqueSessions"] == pytest.approx(6000, rel=0.05)
    assert estimate["totals"]["uniqueSessions"] != 6000
    assert [row["uniqueSessions"] for row in estimate["rows"]] == [3600, 3600, 1800], "exact up to 4,096"


def test_estimates_of_a_period_take_its_edges_from_events(data: DataDirectory) -> None:
    store(data, *[event(at(NOON) + n * 60 * SECOND, VIEW, sessionId=f"s{n}") for n in range(240)])
    found = ask(
        data, "uniqueSessions", exact_events=1, start="2026-06-01T12:30:00+00:00", end="2026-06-01T15:15:00+00:00"
    )
    assert found["rows"] == [{"uniqueSessions": 165}]
    assert found["estimated"] == ["uniqueSessions"]


# Dimensions.


def test_missing_values_are_one_visible_value(data: DataDirectory) -> None:
    store(data, event(NOON, VIEW), event(NOON, VIEW, partnerId=None), event(NOON, VIEW, partnerId="x", userId=""))
    assert rows(data, "view", "partner userId") == [("Unknown", "Unknown", 2), ("1", "Unknown", 1)]


def test_category_is_what_playback_context_holds(data: DataDirectory) -> None:
    store(data, event(NOON, VIEW, playbackContext="12"))
    assert rows(data, "view", "category playbackContext") == [("12", "12", 1)]


def test_types_without_a_name_are_reported_under_their_number(data: DataDirectory) -> None:
    store(data, event(NOON, 6), event(NOON, 6, eventIndex=2), event(NOON, 201), event(NOON, "what"), event(NOON, PLAY))
    assert ask(data, "6 201 7 3 events")["rows"] == [{"6": 2, "201": 1, "7": 0, "3": 1, "events": 5}]
    assert ask(data, "6")["tables"] == ["hour"]


def test_registered_event_types_and_parameters_are_metrics_and_dimensions(data: DataDirectory) -> None:
    store(
        data,
        event(NOON, 201, campaign="spring"),
        event(NOON, 201, campaign="spring", eventIndex=2),
        event(NOON, 201, errorCode="12"),
        event(NOON, PLAY, campaign=""),
    )
    vocabulary = Vocabulary({"quizAnswered": 201}, {"campaign": "campaign", "fault": "errorCode"})
    assert rows(data, "quizAnswered play", "campaign fault", vocabulary=vocabulary) == [
        ("spring", "Unknown", 2, 0),
        ("Unknown", "12", 1, 0),
        ("Unknown", "Unknown", 0, 1),
    ]
    chosen = ask(data, "quizAnswered", filters={"campaign": ("spring",)}, vocabulary=vocabulary)
    assert chosen["rows"] == [{"quizAnswered": 2}]
    for events, parameters in (({"play": 201}, {}), ({}, {"Hour": "h"}), ({"quiz": 1}, {"quiz": "q"})):
        with pytest.raises(UsageError, match="is already a metric or dimension"):
            Vocabulary(events, parameters)


@pytest.fixture(scope="module")
def weather(lake_of: MakeLake) -> DataDirectory:
    """An event of type 202 with the parameter `weather`, and a view."""
    return lake_of(event(NOON, 202, weather="sun"), event(NOON, VIEW, eventIndex=2))


@pytest.mark.parametrize("name", ["position", "t", "rows", "events_", "is_total", "d0", "m0", "select", "eventType"])
def test_registered_names_may_be_any_word(weather: DataDirectory, name: str) -> None:
    metric = Vocabulary({name: 202})
    assert rows(weather, f"view {name}", "entry", vocabulary=metric, order=((name, True),)) == [("e", 1, 1)]
    dimension = Vocabulary({}, {name: "weather"})
    chosen = rows(weather, "events", f"hour {name}", vocabulary=dimension, filters={name: ("sun",)})
    assert chosen == [("2026-06-01T12:00+00:00", "sun", 1)]


def test_a_registered_parameter_may_be_spelled_as_players_do_and_have_any_value(data: DataDirectory) -> None:
    store(data, event(NOON, VIEW, socialNetwrok="x"), event(NOON, VIEW, tabMode="abc"), event(NOON, VIEW, tabMode="2"))
    vocabulary = Vocabulary({}, {"net": "socialNetwrok", "tab": "tabMode"})
    assert sorted(rows(data, "view", "net tab", vocabulary=vocabulary)) == [
        ("Unknown", "2", 1),
        ("Unknown", "abc", 1),
        ("x", "Unknown", 1),
    ]


# Time.


def test_a_day_is_the_time_zones(data: DataDirectory) -> None:
    store(data, event("2026-06-01T21:30:00", PLAY), event("2026-06-01T22:30:00", VIEW))
    assert rows(data, "play view", "day", zone=PARIS) == [("2026-06-01", 1, 0), ("2026-06-02", 0, 1)]
    assert rows(data, "play view", "day") == [("2026-06-01", 1, 1)]
    assert rows(data, "play view", "hour", zone=ZoneInfo("Asia/Kathmandu")) == [
        ("2026-06-02T03:00+05:45", 1, 0),
        ("2026-06-02T04:00+05:45", 0, 1),
    ]


def test_the_hour_that_comes_twice_in_autumn_is_two_hours(data: DataDirectory) -> None:
    store(data, *views("2026-10-24T22:00", "2026-10-25T00:30", "2026-10-25T01:30", "2026-10-25T22:59:59"))
    assert rows(data, "view", "hour", zone=PARIS) == [
        ("2026-10-25T00:00+02:00", 1),
        ("2026-10-25T02:00+02:00", 1),
        ("2026-10-25T02:00+01:00", 1),
        ("2026-10-25T23:00+01:00", 1),
    ]
    assert rows(data, "view", "day", zone=PARIS) == [("2026-10-25", 4)], "25 hours"


def test_the_day_without_its_second_hour_in_spring_has_23(data: DataDirectory) -> None:
    store(data, *views("2026-03-28T22:59:59", "2026-03-28T23:00", "2026-03-29T21:59:59", "2026-03-29T22:00"))
    assert rows(data, "view", "day", zone=PARIS) == [("2026-03-28", 1), ("2026-03-29", 2), ("2026-03-30", 1)]


def test_an_hour_that_is_cut_by_half_an_hour_of_summer_time_is_two(data: DataDirectory) -> None:
    store(data, *views("2026-10-03T15:10", "2026-10-03T15:40", "2026-10-03T16:10"))
    assert rows(data, "view", "hour", zone=ZoneInfo("Australia/Lord_Howe")) == [
        ("2026-10-04T01:00+10:30", 1),
        ("2026-10-04T02:30+11:00", 1),
        ("2026-10-04T03:00+11:00", 1),
    ]


def test_an_event_of_a_wrong_clock_does_not_stop_local_hours(data: DataDirectory) -> None:
    store(data, *views("1970-01-01T00:00:01", NOON, "2150-01-01T00:00"))
    assert [views for _, views in rows(data, "view", "hour", zone=ZoneInfo("Asia/Kathmandu"))] == [1, 1, 1]
    assert [views for _, views in rows(data, "view", "day", zone=PARIS)] == [1, 1, 1]


def test_a_day_that_begins_at_one_o_clock_begins_there(data: DataDirectory) -> None:
    # Havana puts its clocks forward at midnight: 2026-03-08 begins at 01:00, which is 05:00 UTC.
    store(data, event("2026-03-08T04:59:59", VIEW), event("2026-03-08T05:00:00", PLAY))
    assert rows(data, "view play", "day", zone=ZoneInfo("America/Havana")) == [
        ("2026-03-07", 1, 0),
        ("2026-03-08", 0, 1),
    ]


def test_minutes_and_ten_seconds(data: DataDirectory) -> None:
    store(data, *views(*(f"2026-06-01T12:00:{second}" for second in ("09.999", "10", "19.999", "50"))))
    assert rows(data, "view", "minute") == [("2026-06-01T12:00+00:00", 4)]
    assert rows(data, "view", "tenSeconds", zone=PARIS) == [
        ("2026-06-01T14:00+02:00", 1),
        ("2026-06-01T14:00:10+02:00", 2),
        ("2026-06-01T14:00:50+02:00", 1),
    ]


@pytest.fixture(scope="module")
def four_hours(lake_of: MakeLake) -> DataDirectory:
    """A view every minute for four hours from noon."""
    return lake_of(*(event(at(NOON) + n * 60 * SECOND, VIEW, eventIndex=n) for n in range(240)))


@pytest.mark.parametrize(
    ("start", "end", "views"),
    [
        (None, None, 240),
        ("2026-06-01T12:00:01+00:00", None, 239),
        ("2026-06-01T12:30:00+00:00", "2026-06-01T14:00:00+00:00", 90),
        ("2026-06-01T12:30:30+00:00", "2026-06-01T15:00:00.000001+00:00", 150),
        ("2026-06-01T14:30:00+02:00", "2026-06-01T12:31:00+00:00", 1),
        ("2020-01-01T00:00:00+00:00", "2030-01-01T00:00:00+00:00", 240),
    ],
)
def test_a_period_includes_its_first_moment_and_excludes_its_end(
    four_hours: DataDirectory, start: str | None, end: str | None, views: int
) -> None:
    assert rows(four_hours, "view peakView uniqueSessions", start=start, end=end) == [(views, 1, 1)]


def test_late_events_enter_the_hours_they_belong_to(data: DataDirectory) -> None:
    store(data, *session("2026-06-01T12:58:00", 3, name="a"), *session("2026-06-01T15:00:00", 2, name="b"))
    missing = session("2026-06-01T12:59:00", 10, name="c")
    store(data, *missing[4:])
    assert one(data, "lossRate") == 0
    store(data, *missing[:3])
    assert rows(data, "view minutesWatched peakView lossRate", "hour") == [
        ("2026-06-01T12:00+00:00", 8, (20 + 50 - 10) / 60, 1, 1 / 15),
        ("2026-06-01T13:00+00:00", 4, 40 / 60, 1, 0.0),
        ("2026-06-01T15:00+00:00", 2, 10 / 60, 1, 0.0),
    ]


# Queries.


def test_order_and_pages(data: DataDirectory) -> None:
    sent = [event(NOON, VIEW, entryId=entry, eventIndex=n) for n, entry in enumerate("aabbbc")]
    store(data, *sent, event(NOON, PLAY, entryId="c"))
    assert rows(data, "view", "entry") == [("b", 3), ("a", 2), ("c", 1)]
    assert rows(data, "view", "entry", order=(("entry", False),)) == [("a", 2), ("b", 3), ("c", 1)]
    assert rows(data, "view play", "entry", order=(("play", True), ("view", False))) == [
        ("c", 1, 1),
        ("a", 2, 0),
        ("b", 3, 0),
    ]
    second = ask(data, "view", "entry", limit=2, offset=2)
    assert second["rows"] == [{"entry": "c", "view": 1}]
    assert (second["count"], second["totals"]) == (3, {"view": 6})
    beyond = ask(data, "view", "entry", limit=2, offset=10)
    assert (beyond["rows"], beyond["count"]) == ([], 3)
    assert ask(data, "view", limit=1, offset=1)["rows"] == []


def test_empty_ratios_come_last_in_either_order(data: DataDirectory) -> None:
    store(data, event(NOON, PLAY, entryId="a"), *session(NOON, 1, entryId="b"), event(NOON, IMPRESSION, entryId="c"))
    assert [entry for entry, _ in rows(data, "playRatio", "entry")] == ["b", "c", "a"]
    assert [entry for entry, _ in rows(data, "playRatio", "entry", order=(("playRatio", False),))] == ["c", "b", "a"]


def test_filters_are_values_of_a_dimension_or_another(data: DataDirectory) -> None:
    store(data, *[event(NOON, VIEW, entryId=entry, partnerId=p, eventIndex=p) for entry in "ab'" for p in (1, 2, 3)])
    assert one(data, "view", filters={"entry": ("a", "'"), "partner": ("1", "3")}) == 4
    assert rows(data, "view", "entry", filters={"entry": ("' OR 1=1 --",)}) == []
    assert rows(data, "view", "partner", filters={"entry": ("'",)}) == [("1", 1), ("2", 1), ("3", 1)]


def test_an_empty_lake_answers_with_no_rows(data: DataDirectory) -> None:
    assert ask(data, ALL, "hour entry", zone=PARIS)["rows"] == []
    assert ask(data, "play")["count"] == 0
    assert ask(data, "play")["latest"] is None


def test_a_period_without_events_has_no_rows(data: DataDirectory) -> None:
    store(data, event(NOON, PLAY))
    periods: list[dict[str, Any]] = [{"end": "2026-05-31T00:00:00+00:00"}, {"start": "2026-07-01T00:00:00+00:00"}]
    for period in periods:
        assert ask(data, ALL, **period)["rows"] == []
        assert ask(data, ALL, "day", **period)["rows"] == []
    hole: dict[str, Any] = {"start": "2026-06-01T12:00:01+00:00", "end": "2026-06-01T12:00:02+00:00"}
    assert ask(data, ALL, **hole)["rows"] == []


@pytest.mark.parametrize(
    ("metrics", "dimensions", "more", "message", "near"),
    [
        ("plya", "", {}, "unknown metric 'plya'", ["play"]),
        ("playthrough25", "", {}, "unknown metric 'playthrough25'", ["playThrough25"]),
        ("watched", "", {}, "unknown metric 'watched'", ["minutesWatched"]),
        ("play", "contry", {}, "unknown dimension 'contry'", ["country"]),
        ("play", "", {"filters": {"Entry": ("a",)}}, "unknown dimension 'Entry'", ["entry"]),
    ],
)
def test_an_unknown_name_is_refused_with_similar_ones(
    data: DataDirectory, metrics: str, dimensions: str, more: dict[str, Any], message: str, near: list[str]
) -> None:
    with pytest.raises(UnknownName, match=message) as raised:
        ask(data, metrics, dimensions, **more)
    assert raised.value.near[: len(near)] == near
    assert near[0] in raised.value.hint


@pytest.mark.parametrize(
    ("metrics", "more", "message"),
    [
        ("", {}, "no metrics are given"),
        ("play", {"order": (("view", True),)}, "cannot order by 'view'"),
        ("play", {"filters": {"hour": ("12",)}}, "cannot filter by hour"),
    ],
)
def test_an_invalid_query_is_refused(data: DataDirectory, metrics: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ask(data, metrics, **more)
