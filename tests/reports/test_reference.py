"""The reference itself: examples of docs/reports.md, with expected values computed by hand."""

import random
from datetime import UTC
from itertools import permutations
from pathlib import Path
from re import findall
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest

from tests.reports import reference
from tests.reports.reference import Event, Group
from tests.reports.sessions import random_sessions

NOON = 1_767_268_800  # 2026-01-01T12:00:00Z, in seconds
MINUTE = 60
DOCUMENT = Path(__file__).parents[2] / "docs" / "reports.md"
Request = tuple[int, str, dict[str, str | None]]
PLAYING = 4  # resume: an event that is no view
VIEW = 99


def sent(at: float, number: object = None, kind: object = VIEW, **parameters: object) -> Request:
    """Returns a request of one partner, session and entry, `at` seconds after noon."""
    values = {"eventType": kind, "partnerId": 5, "entryId": "0_a", "sessionId": "s", "eventIndex": number, **parameters}
    query = urlencode({name: value for name, value in values.items() if value is not None})
    return round((NOON + at) * 1e6), query, {}


def received(numbers: list[int], every: float = 1) -> list[Event]:
    """Returns events that are no views, with these numbers in order of receipt."""
    return reference.read([sent(i * every, number, PLAYING, n=i) for i, number in enumerate(numbers)])


def loss(events: list[Event]) -> tuple[int, int]:
    """Returns (missing, expected)."""
    return sum(event.missing for event in events), sum(event.expected for event in events)


def seconds_watched(events: list[Event]) -> list[float]:
    """Returns what each event adds to the time watched, in order of receipt."""
    return [event.watched / 1e6 for event in events]


def sequences(events: list[Event]) -> list[list[int | None]]:
    return [[event.number for event in sequence] for sequence in reference.play_sequences(events)]


# lossRate


def test_one_of_six_is_missing_when_2_1_3_4_6_arrive() -> None:
    events = received([2, 1, 3, 4, 6])
    assert sequences(events) == [[1, 2, 3, 4, 6]]
    assert loss(events) == (1, 6)
    assert reference.metrics(Group(events))["lossRate"] == pytest.approx(1 / 6)


def test_what_is_missing_belongs_to_the_event_after_the_gap() -> None:
    events = received([1, 2, 6, 7])
    assert [(event.missing, event.expected) for event in events] == [(0, 1), (0, 1), (3, 4), (0, 1)]


def test_numbers_missing_before_the_first_and_after_the_last_are_not_seen() -> None:
    assert loss(received([5, 6, 7])) == (0, 3)


def test_a_repeated_number_adds_nothing() -> None:
    events = received([1, 2, 2, 2, 4])
    assert sequences(events) == [[1, 2, 2, 2, 4]]
    assert [(event.missing, event.expected) for event in events] == [(0, 1), (0, 1), (0, 0), (0, 0), (1, 2)]


def test_a_repeat_that_arrives_out_of_order_adds_nothing() -> None:
    # The second 3 is overtaken by 4 and 5, so it stands right behind the first 3.
    events = received([1, 2, 3, 4, 5, 3, 6])
    assert sequences(events) == [[1, 2, 3, 3, 4, 5, 6]]
    assert loss(events) == (0, 6)


def test_the_counter_that_starts_again_starts_a_sequence() -> None:
    # Stopped for 30 seconds after number 20: nothing is missing, before or after.
    events = reference.read([*(sent(i, i, PLAYING) for i in range(11, 21)), *(sent(20 + 30 + i, i) for i in (1, 2, 3))])
    assert sequences(events) == [[*range(11, 21)], [1, 2, 3]]
    assert loss(events) == (0, 10 + 3)


def test_a_gap_of_more_than_ten_minutes_starts_a_sequence() -> None:
    later = 10 * MINUTE
    assert loss(reference.read([sent(0, 1, PLAYING), sent(later, 5, PLAYING)])) == (3, 5)
    assert loss(reference.read([sent(0, 1, PLAYING), sent(later + 1e-6, 5, PLAYING)])) == (0, 2)


def test_a_leap_of_more_than_a_thousand_starts_a_sequence() -> None:
    assert loss(received([1, 2, 1002])) == (999, 1002)
    assert loss(received([1, 2, 1003, 1004])) == (0, 2 + 2)


def test_partners_sessions_and_entries_have_sequences_of_their_own() -> None:
    others: list[dict[str, object]] = [{}, {"partnerId": 6}, {"sessionId": "t"}, {"entryId": "0_b"}]
    events = reference.read(
        [sent(i * 4 + j, 2 * i, PLAYING, **other) for i in (1, 2) for j, other in enumerate(others)]
    )
    assert sequences(events) == [[2, 4]] * 4
    assert loss(events) == (4, 12)


def test_events_without_session_or_number_have_no_sequence() -> None:
    events = reference.read(
        [
            sent(0, 1, PLAYING, sessionId=""),
            sent(1, 4, PLAYING, sessionId=None),
            sent(2, None, PLAYING),
            sent(3, "x", PLAYING),
        ]
    )
    assert sequences(events) == []
    assert loss(events) == (0, 0)
    assert reference.metrics(Group(events))["lossRate"] is None


# Place and order


def test_an_event_overtaken_by_9_seconds_takes_the_place_of_the_one_before() -> None:
    events = reference.read([sent(0, 1), sent(10, 3), sent(19, 2)])
    assert [event.place for event in events] == [(NOON + at) * 1_000_000 for at in (0, 10, 10)]
    assert sequences(events) == [[1, 2, 3]]
    assert loss(events) == (0, 3)


def test_an_event_25_seconds_late_was_not_overtaken() -> None:
    # Just below 25 seconds it is; at 25 seconds 2 comes after 3, is smaller, and so starts a sequence: 1 3 | 2.
    assert loss(reference.read([sent(0, 1), sent(10, 3), sent(34.999999, 2)])) == (0, 3)
    events = reference.read([sent(0, 1), sent(10, 3), sent(35, 2)])
    assert sequences(events) == [[1, 3], [2]]
    assert loss(events) == (1, 3 + 1)


def test_an_event_is_overtaken_by_numbers_larger_by_8_but_not_by_9() -> None:
    assert sequences(received([9, 1])) == [[1, 9]]
    assert sequences(received([10, 1])) == [[10], [1]]


def test_an_event_is_overtaken_by_the_8_events_before_it_but_not_by_the_ninth() -> None:
    # 50 overtakes 45 while at most seven others are received between them.
    assert sequences(received([50, *range(1, 8), 45])) == [[45, 50], [*range(1, 8)]]
    assert sequences(received([50, *range(1, 9), 45])) == [[50], [*range(1, 9), 45]]


def test_the_place_is_that_of_the_earliest_event_that_overtook() -> None:
    events = received([4, 2, 3, 1])
    assert [event.place for event in events] == [NOON * 1_000_000] * 4
    assert sequences(events) == [[1, 2, 3, 4]]


@pytest.mark.parametrize("count", [2, 5, 6])
def test_every_permutation_of_neighbours_is_sorted(count: int) -> None:
    for numbers in permutations(range(1, count + 1)):
        assert sequences(received(list(numbers))) == [sorted(numbers)]


def test_permutations_of_nine_neighbours_within_25_seconds_are_sorted() -> None:
    rng = random.Random(2)
    for _ in range(500):
        numbers = rng.sample(range(1, 10), 9)
        assert sequences(received(numbers, every=3.1)) == [sorted(numbers)]  # the ninth after 24.8 seconds


def random_events() -> list[Event]:
    return reference.read([(sent.at, sent.query.decode(), {}) for sent in random_sessions(3, 300, NOON * 1_000_000)])


def test_the_sums_by_event_are_those_of_the_sets_of_numbers() -> None:
    events = random_events()
    divided = reference.play_sequences(events)
    in_sequences = [event for sequence in divided for event in sequence]
    assert set(in_sequences) == {event for event in events if event.number is not None}
    assert len(in_sequences) == len(set(in_sequences))
    repeats = 0
    for sequence in divided:
        missing, expected = reference.missing_numbers(sequence), reference.expected_numbers(sequence)
        numbers = {reference.number_of(event) for event in sequence}
        assert loss(sequence) == (len(missing), len(expected))
        assert len(expected) == max(numbers) - min(numbers) + 1 == len(missing) + len(numbers)
        assert all(0 <= event.missing <= event.expected for event in sequence)
        repeats += len(sequence) - len(numbers)
    overtaken = sum(event.place != event.at for event in in_sequences)
    assert min(repeats, overtaken, loss(events)[0], len(divided) - 300) > 100, (
        "the sessions have the cases they should test"
    )


# minutesWatched


def test_thirty_seconds_were_watched_when_10_30_20_40_arrive() -> None:
    events = reference.read(
        [sent(at, n, playTimeSum=s) for at, n, s in ((10, 1, 10), (30, 3, 30), (31, 2, 20), (40, 4, 40))]
    )
    # By number: 10, 20 (+10), 30 (+10), 40 (+10).
    assert seconds_watched(events) == [0, 10, 10, 10]
    assert reference.metrics(Group(events))["minutesWatched"] == 0.5


def test_the_extra_view_at_first_play_adds_nothing() -> None:
    # A view at the first play, and one after 10, 20 and 30 seconds: 30 seconds, where view ÷ 6 is 40.
    events = reference.read([sent(0, 3, 3), sent(0, 4), sent(10, 5), sent(20, 6), sent(30, 7)])
    assert seconds_watched(events) == [0, 0, 10, 10, 10]
    assert reference.metrics(Group(events))["estimatedMinutesWatched"] == pytest.approx(4 / 6)
    assert reference.metrics(Group(events))["averageViewDuration"] == 0.5


def test_a_repeated_view_without_play_time_sum_adds_nothing() -> None:
    assert seconds_watched(reference.read([sent(0, 1), sent(10, 2), sent(11, 2, n=1), sent(20, 3)])) == [0, 10, 0, 10]


def test_a_repeated_view_with_play_time_sum_adds_nothing() -> None:
    events = reference.read([sent(0, 1, playTimeSum=0), *(sent(10 + n, 2, playTimeSum=10, n=n) for n in (0, 1))])
    assert seconds_watched(events) == [0, 10, 0]


def test_a_lost_view_adds_nothing_without_play_time_sum_and_its_time_with_it() -> None:
    assert seconds_watched(reference.read([sent(0, 1), sent(20, 3)])) == [0, 10]
    assert seconds_watched(reference.read([sent(0, 1, playTimeSum=0), sent(20, 3, playTimeSum=20)])) == [0, 20]


def test_a_restart_adds_nothing_at_its_first_view() -> None:
    events = reference.read([sent(0, 1), sent(10, 2), sent(50, 1, n=1), sent(60, 2, n=1)])
    assert seconds_watched(events) == [0, 10, 0, 10]
    sums = ((0, 1, 0), (10, 2, 10), (50, 1, 13), (60, 2, 23))
    events = reference.read([sent(at, n, playTimeSum=total) for at, n, total in sums])
    assert seconds_watched(events) == [0, 10, 0, 10]


def test_time_across_more_than_ten_minutes_is_not_counted() -> None:
    def watched_after(pause: float, total: object) -> list[float]:
        return seconds_watched(reference.read([sent(0, 1, playTimeSum=total and 0), sent(pause, 2, playTimeSum=total)]))

    assert watched_after(600, None) == [0, 10]
    assert watched_after(600.000001, None) == [0, 0]
    assert watched_after(600, 600) == [0, 600]
    assert watched_after(600.000001, 600) == [0, 0]


def test_the_ten_minutes_are_those_between_the_two_events_not_between_neighbours() -> None:
    # The sequence goes on by an event between, but the playTimeSum before is 15 minutes away.
    events = reference.read([sent(0, 1, playTimeSum=0), sent(500, 2, PLAYING), sent(900, 3, playTimeSum=100)])
    assert seconds_watched(events) == [0, 0, 0]
    assert loss(events) == (0, 3)
    assert seconds_watched(reference.read([sent(0, 1), sent(500, 2, PLAYING), sent(900, 3)])) == [0, 0, 0]


def test_the_ten_minutes_are_those_between_places_not_between_times_of_receipt() -> None:
    # Received 605 seconds after number 1, but overtaken by number 3: its place is 590 seconds after.
    for total, seconds in ((None, 10), (590, 590)):
        first, late = sent(0, 1, playTimeSum=total and 0), sent(605, 2, playTimeSum=total)
        assert seconds_watched(reference.read([first, sent(590, 3, PLAYING), late])) == [0, 0, seconds]


def test_differences_below_0_and_above_ten_minutes_are_not_counted() -> None:
    sums = (100, 40, 50, 651, 700)  # the last but one is 601 seconds more
    events = reference.read([sent(10 * n, n, playTimeSum=total) for n, total in enumerate(sums, 1)])
    assert seconds_watched(events) == [0, 0, 10, 0, 49]


def test_events_of_every_type_count_by_their_play_time_sum() -> None:
    events = reference.read([sent(0, 1, playTimeSum=0), sent(4, 2, 33, playTimeSum=4.25), sent(10, 3, playTimeSum=10)])
    assert seconds_watched(events) == [0, 4.25, 5.75]


def test_a_view_without_play_time_sum_adds_nothing_after_an_event_that_has_one() -> None:
    # The view at 10 s has none; the one at 20 s counts the whole time.
    events = reference.read([sent(0, 1, playTimeSum=0), sent(10, 2), sent(20, 3, playTimeSum=20)])
    assert seconds_watched(events) == [0, 0, 20]
    events = reference.read([sent(0, 1, PLAYING, playTimeSum=0), sent(1, 2), sent(11, 3)])
    assert seconds_watched(events) == [0, 0, 0]


def test_a_view_counts_again_ten_minutes_after_the_last_play_time_sum() -> None:
    events = reference.read([sent(0, 1, playTimeSum=0), sent(595, 2), sent(600, 3), sent(610, 4)])
    assert seconds_watched(events) == [0, 0, 0, 10]


def test_views_without_session_or_number_always_add_ten_seconds() -> None:
    events = reference.read(
        [sent(0, 1, sessionId=""), sent(0, 1, sessionId=""), sent(1, None), sent(2, "x"), sent(3, None, playTimeSum=99)]
    )
    assert seconds_watched(events) == [10] * 5
    assert seconds_watched(reference.read([sent(0, None, PLAYING, playTimeSum=99)])) == [0]


def test_what_an_event_adds_belongs_to_its_own_time_and_dimensions() -> None:
    # Received at 11:59:55, 12:00:05 and 12:00:06; the last one was overtaken.
    events = reference.read(
        [
            sent(-5, 1, playTimeSum=0, customVar1="a"),
            sent(5, 3, playTimeSum=20, customVar1="b"),
            sent(6, 2, playTimeSum=12, customVar1="c"),
        ]
    )
    rows = reference.report(events, ("hour", "customVar1"))
    before, after = "2026-01-01T11:00+00:00", "2026-01-01T12:00+00:00"
    assert {row: values["minutesWatched"] for row, values in rows.items()} == {
        (before, "a"): 0,
        (after, "b"): 8 / 60,
        (after, "c"): 12 / 60,
    }


def test_sums_over_rows_are_the_sum_over_all() -> None:
    events = random_events()
    by_hour = reference.report(events, ("hour",)).values()
    watched = sum(row["minutesWatched"] or 0 for row in by_hour)
    assert watched == pytest.approx(reference.metrics(Group(events))["minutesWatched"])


# Other metrics


def test_the_reference_has_every_metric_of_the_document() -> None:
    table = DOCUMENT.read_text().split("## Metrics")[1].split("A ratio with nothing")[0]
    names = [
        name for line in table.splitlines() for name in findall(r"`(\w+)`", line.split("|")[1] if "|" in line else "")
    ]
    assert sorted(names) == sorted([*reference.metrics(Group()), "6"])


def test_ratios_with_nothing_to_divide_by_are_empty_and_counts_are_0() -> None:
    values = reference.metrics(Group())
    empty = {"playRatio", "averageViewDropOff", "averageViewDuration", "rebufferRatio", "averageActualBitrate"}
    empty |= {"averageJoinTime", "joinTimeP50", "joinTimeP95", "errorRate", "lossRate"}
    assert {name for name, value in values.items() if value is None} == empty
    assert {value for name, value in values.items() if name not in empty} == {0}


def test_a_small_audience_has_the_metrics_that_come_out_by_hand() -> None:
    def alone(at: float, kind: int, viewer: int, **parameters: object) -> Request:
        return sent(at, None, kind, **{"sessionId": f"s{viewer}", "userId": f"u{viewer % 2}"} | parameters)

    events = reference.read(
        [
            *(alone(viewer, 1, viewer) for viewer in range(4)),  # four impressions
            *(alone(viewer, 2, viewer) for viewer in range(4)),
            alone(5, 3, 0, joinTime=1, bufferTime=0.5, actualBitrate=1),
            alone(5, 3, 1, joinTime=3, bufferTime=-1),
            alone(6, 3, 2, joinTime=90_000),
            alone(20, 99, 0, actualBitrate=800, bufferTime=2),
            alone(29.9, 99, 1, actualBitrate=401),
            alone(30, 99, 0, actualBitrate=20_000_000, bufferTime=86_401),
            alone(31, 11, 0),
            alone(32, 11, 1),
            alone(33, 12, 0),
            alone(34, 98, 3, entryId="", userId=""),
        ]
    )
    expected = {
        "events": 4 + 4 + 3 + 3 + 3 + 1,
        "play": 3,
        "playRatio": 3 / 4,
        "averageViewDropOff": 0.25,  # (2 + 1) / 4 of 3
        "estimatedMinutesWatched": 0.5,
        "minutesWatched": 0.5,  # views without number
        "averageViewDuration": 0.5 / 3,
        "peakView": 2,  # from :20 to :30
        "bufferingTime": 2.5,
        "rebufferRatio": 2.5 / 32.5,
        "averageActualBitrate": 600.5,
        "averageJoinTime": 2,
        "joinTimeP50": 2,
        "joinTimeP95": 2.9,
        "errorRate": 1 / 4,
        "uniqueSessions": 4,
        "uniqueKnownUsers": 2,
        "uniqueVideos": 1,
    }
    values = reference.metrics(Group(events))
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_users_and_entries_of_each_partner_are_their_own() -> None:
    events = reference.read([sent(0, 1, partnerId=partner, userId="u") for partner in (5, 6, "x")])
    values = reference.metrics(Group(events))
    assert (values["uniqueKnownUsers"], values["uniqueVideos"], values["uniqueSessions"]) == (3, 3, 1)


def test_the_same_query_within_ten_minutes_is_one_event_if_it_has_a_session() -> None:
    assert len(reference.read([sent(0, 1), sent(600, 1), sent(600.000001, 1)])) == 2
    assert len(reference.read([sent(0, 1, sessionId="")] * 2)) == 2


def test_an_hour_comes_twice_in_autumn_with_different_offsets() -> None:
    midnight = 1_792_886_400  # 2026-10-25T00:00Z
    hours = [(midnight + hour * 3600) * 1_000_000 for hour in range(3)]
    labels = [reference.time_label(hour, "hour", ZoneInfo("Europe/Paris")) for hour in hours]
    assert labels == ["2026-10-25T02:00+02:00", "2026-10-25T02:00+01:00", "2026-10-25T03:00+01:00"]


def test_seconds_are_written_where_they_are_not_0() -> None:
    labels = [reference.time_label(NOON * 1_000_000 + at, "tenSeconds", UTC) for at in (9_999_999, 10_000_000)]
    assert labels == ["2026-01-01T12:00+00:00", "2026-01-01T12:00:10+00:00"]
