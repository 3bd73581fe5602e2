"""`kanalony report`: what it prints, for people and for programs."""

import csv
import io
import json
import os
import pty
import re
import subprocess
from datetime import UTC, date, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow.parquet as pq
import pytest

from kanalony.errors import WrongUse
from kanalony.reports.clock import read_period
from kanalony.segments.names import DataDirectory
from tests.reports.asking import ask, event, store
from tests.serving import KANALONY, run

NOON = "2026-06-01T12:00:00"


@pytest.fixture
def small(data: DataDirectory) -> DataDirectory:
    plays = [event(NOON, 3, entryId="a", eventIndex=n, joinTime=1.25) for n in range(1200)]
    store(data, *plays, event("2026-06-02T12:00:00", 1, entryId="b\x1b[31m"), event(NOON, 99, entryId="a" * 100))
    return data


def report(data: DataDirectory, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return run("report", "--data", data.root, *arguments, cwd=data.root)


def printed(data: DataDirectory, *arguments: str) -> str:
    done = report(data, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_table_is_aligned_with_units_and_totals_and_steers_no_terminal(small: DataDirectory) -> None:
    shown = printed(small, "--metrics", "play,playRatio,averageJoinTime", "--dimensions", "entry").splitlines()
    assert re.sub(" +", " ", shown[0]) == "entry play playRatio averageJoinTime (s)"
    assert shown[2].split() == ["a", "1,200", "1.25"], "nothing to divide by"
    assert shown[3].split() == ["a" * 59 + "…", "0"]
    assert shown[4].split() == ["b\ufffd[31m", "0", "0.0"]
    assert shown[5].strip() == ""
    assert shown[6].split() == ["total", "1,200", "1,200.0", "1.25"]
    assert shown[0].index(" play ") + 5 == shown[2].index(" 1,200 ") + 6, "aligned to the right"


def test_pages_say_how_many_rows_there_are(small: DataDirectory) -> None:
    shown = printed(small, "--metrics", "play", "--dimensions", "entry", "--limit", "1", "--page", "2")
    assert "1 of 3 rows; the total is of all" in shown
    beyond = printed(small, "--metrics", "play", "--dimensions", "entry", "--limit", "1", "--page", "9")
    assert beyond == "There is no such page: there are 3 rows.\n"


def test_csv_and_json_have_everything_in_full(small: DataDirectory) -> None:
    arguments = ["--metrics", "play,playRatio", "--dimensions", "entry,day", "--order", "entry"]
    found = list(csv.reader(io.StringIO(printed(small, *arguments, "--format", "csv"))))
    assert found == [
        ["entry", "day", "play", "playRatio"],
        ["a", "2026-06-01", "1200", ""],
        ["a" * 100, "2026-06-01", "0", ""],
        ["b\x1b[31m", "2026-06-02", "0", "0.0"],
    ]
    told = json.loads(printed(small, *arguments, "--format", "json"))
    assert told == ask(small, "play playRatio", "entry day", order=(("entry", False),))
    assert told["rows"][0] == {"entry": "a", "day": "2026-06-01", "play": 1200, "playRatio": None}


def test_parquet_has_dates_times_and_numbers(small: DataDirectory, tmp_path: Path) -> None:
    command = [*KANALONY, "report", "--data", str(small.root), "--metrics", "play,playRatio", "--format", "parquet"]
    done = subprocess.run([*command, "--dimensions", "day,hour", "--timezone", "Europe/Paris"], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    table = pq.read_table(io.BytesIO(done.stdout))
    assert table.to_pylist()[0] == {
        "day": date(2026, 6, 1),
        "hour": datetime(2026, 6, 1, 14, tzinfo=ZoneInfo("Europe/Paris")),
        "play": 1200,
        "playRatio": None,
    }


def test_parquet_is_not_for_terminals(small: DataDirectory) -> None:
    ours, theirs = pty.openpty()
    try:
        command = [*KANALONY, "report", "--data", str(small.root), "--metrics", "play", "--format", "parquet"]
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr == "Error: Parquet is not for terminals (write it to a file: > report.parquet)\n"
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_chart_over_time_and_bars_otherwise(small: DataDirectory) -> None:
    over_time = printed(small, "--metrics", "play", "--dimensions", "day", "--chart")
    assert "play" in over_time.splitlines()[0]
    assert re.search(r"2026-06-01 +2026-06-02", over_time)
    assert re.search(r"[\u2801-\u28ff]", over_time), "braille"
    bars = printed(small, "--metrics", "play", "--dimensions", "entry", "--chart")
    assert re.search(r"^a +▇+ 1200$", bars, re.M)
    assert "\x1b" not in over_time + bars
    backwards = printed(small, "--metrics", "play", "--dimensions", "day", "--chart", "--order", "-day")
    assert backwards == over_time
    assert "a chart needs a dimension" in report(small, "--metrics", "play", "--chart").stderr


@pytest.mark.parametrize("form", ["table", "chart", "csv", "json"])
def test_an_empty_result_says_so_and_is_no_error(small: DataDirectory, form: str) -> None:
    arguments = ["--metrics", "play", "--dimensions", "day", "--to", "2020"]
    shown = printed(small, *arguments, *(["--chart"] if form == "chart" else ["--format", form]))
    expected = {"csv": "day,play\n", "table": "There are no events that answer this.\n"}
    expected["chart"] = expected["table"]
    assert json.loads(shown)["rows"] == [] if form == "json" else shown == expected[form]


def test_a_data_directory_without_a_lake_has_no_events(data: DataDirectory) -> None:
    assert "no events" in printed(data, "--metrics", "play")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--metrics", "plya"], ["no metric 'plya'", "did you mean play"]),
        (["--metrics", ","], ["no metric is asked for"]),
        (["--metrics", "play", "--dimensions", "contry"], ["no dimension 'contry'", "country"]),
        (["--metrics", "play", "--filter", "partner"], ["--filter is 'partner'", "partner=585231"]),
        (["--metrics", "play", "--filter", "hour=1"], ["hour cannot be filtered"]),
        (["--metrics", "play", "--order", "-view"], ["cannot order by 'view'", "there are play"]),
        (["--metrics", "play", "--from", "lately"], ["'lately' is no time", "-24h"]),
        (["--metrics", "play", "--from", "2026-13"], ["'2026-13' is no time", "month must be in 1..12"]),
        (["--metrics", "play", "--from", "today", "--to", "yesterday"], ["after its end", "swap them"]),
        (["--metrics", "play", "--chart", "--format", "csv"], ["--chart draws", "leave one out"]),
        (["--metrics", "play", "--filter", "entry=\udcff"], ["is no text in UTF-8"]),
        (["--metrics", "play", "--from", "2026-07", "--to", "2026-05"], ["after its end", "swap them"]),
        (["--metrics", "play", "--timezone", "Paris"], ["no time zone 'Paris'", "Europe/Paris"]),
        (["--metrics", "play", "--timezone", "../../etc/passwd"], ["no time zone"]),
        (["--metrics", "play", "--page", "2"], ["--page needs --limit"]),
        (["--metrics", "play", "--format", "xml"], ["'xml' is not one of"]),
        ([], ["Missing option '--metrics'"]),
    ],
)
def test_a_mistake_is_told_in_one_line(data: DataDirectory, arguments: list[str], texts: list[str]) -> None:
    done = report(data, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert all(text in done.stderr for text in texts), done.stderr


def test_registered_names_come_from_the_settings_file(data: DataDirectory) -> None:
    store(data, event(NOON, 201, utm_campaign="spring"))
    (data.root / "kanalony.toml").write_text(
        '[custom_events]\nquizAnswered = 201\n[custom_dimensions]\ncampaign = "utm_campaign"\n'
    )
    shown = printed(data, "--metrics", "quizAnswered", "--dimensions", "campaign", "--format", "csv")
    assert shown == "campaign,quizAnswered\nspring,1\n"
    for line, texts in (
        ("play = 201", ["'play' is a metric or dimension already", "kanalony.toml"]),
        ('quiz = "x"', ["custom_events", "integer"]),
        ("quiz = -1", ["custom_events", "greater than or equal to 0"]),
        ('"a b" = 1', ["custom_events", "letters, digits"]),
        ("Play = 201", ["'Play' is a metric or dimension already"]),
        ("good = 1\nquiz = 'x'", ["custom_events.quiz"]),
        ('[custom_dimensions]\ntoken = "ks"', ["custom_dimensions.token", "credential"]),
        ("[x]", ["unknown option 'x'"]),
    ):
        (data.root / "kanalony.toml").write_text(f"[custom_events]\n{line}\n")
        done = report(data, "--metrics", "play")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert all(text in done.stderr for text in texts), done.stderr


NOW = datetime(2026, 6, 15, 22, 30, 15, tzinfo=UTC)
PARIS = ZoneInfo("Europe/Paris")


@pytest.mark.parametrize(
    ("text", "first", "end"),
    [
        ("-24h", "2026-06-14T22:30:15", None),
        ("-15m", "2026-06-15T22:15:15", None),
        ("-2w", "2026-06-01T22:30:15", None),
        ("now", "2026-06-15T22:30:15", None),
        ("today", "2026-06-15T22:00", "2026-06-16T22:00"),
        ("yesterday", "2026-06-14T22:00", "2026-06-15T22:00"),
        ("2026-06", "2026-05-31T22:00", "2026-06-30T22:00"),
        ("2026-12", "2026-11-30T23:00", "2026-12-31T23:00"),
        ("2026", "2025-12-31T23:00", "2026-12-31T23:00"),
        ("2026-03-29", "2026-03-28T23:00", "2026-03-29T22:00"),
        ("2026-06-01T13:00", "2026-06-01T11:00", None),
        ("2026-06-01 13:00:30", "2026-06-01T11:00:30", None),
        ("2026-06-01T13:00Z", "2026-06-01T13:00", None),
        ("2026-06-01T13:00-02:00", "2026-06-01T15:00", None),
    ],
)
def test_periods_are_those_of_the_time_zone(text: str, first: str, end: str | None) -> None:
    expected = tuple(datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in (first, end or first))
    assert read_period(text, PARIS, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "-24", "24h", "-5y", "26-06-01", "2026-6-1", "2026-02-30", "0000", "9999", "-999999w"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(WrongUse):
        read_period(text, UTC, NOW)
