"""The output of `kanalony report`: tables, charts, and formats for programs."""

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

import duckdb
import polars
import pyarrow.parquet as pq
import pytest

from harness.server import KANALONY, run
from kanalony.aggregate.manifest import FILE_NAME
from kanalony.core.frames import TRAILER_SIZE
from kanalony.errors import UsageError
from kanalony.reports.clock import read_period
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import seal
from tests.files import fields, journal_file
from tests.reports.asking import ask, event, store
from tests.reports.commands import invoke, invoke_text
from tests.reports.conftest import MakeLake

NOON = "2026-06-01T12:00:00"


@pytest.fixture(scope="module")
def small(lake_of: MakeLake) -> DataDirectory:
    """Three entries on two days."""
    plays = [event(NOON, 3, entryId="a", eventIndex=n, joinTime=1.25) for n in range(1200)]
    return lake_of(*plays, event("2026-06-02T12:00:00", 1, entryId="b\x1b[31m"), event(NOON, 99, entryId="a" * 100))


def report(data: DataDirectory, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return invoke_text("report", "--data", data.root, *arguments, cwd=data.root)


def printed(data: DataDirectory, *arguments: str) -> str:
    done = report(data, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_table_is_aligned_with_units_and_totals_and_has_no_control_characters(small: DataDirectory) -> None:
    arguments = ["--metrics", "play,playRatio,averageJoinTime", "--dimensions", "entry"]
    done = run("report", "--data", small.root, *arguments, cwd=small.root)
    assert (done.returncode, done.stderr) == (0, "")
    shown = done.stdout.splitlines()
    assert re.sub(" +", " ", shown[0]) == "entry play playRatio averageJoinTime (s)"
    assert shown[2].split() == ["a", "1,200", "1.25"], "nothing to divide by"
    assert shown[3].split() == ["a" * 59 + "…", "0"]
    assert shown[4].split() == ["b\ufffd[31m", "0", "0.0"]
    assert shown[5].strip() == ""
    assert shown[6].split() == ["total", "1,200", "1,200.0", "1.25"]
    assert shown[0].index(" play ") + 5 == shown[2].index(" 1,200 ") + 6, "aligned to the right"


def test_pages_show_the_number_of_all_rows(small: DataDirectory) -> None:
    shown = printed(small, "--metrics", "play", "--dimensions", "entry", "--limit", "1", "--page", "2")
    assert "1 of 3 rows; the total is of all" in shown
    beyond = printed(small, "--metrics", "play", "--dimensions", "entry", "--limit", "1", "--page", "9")
    assert beyond == "There is no such page: the report has 3 rows.\n"


def test_csv_and_json_have_everything_in_full(small: DataDirectory) -> None:
    arguments = ["--metrics", "play,playRatio", "--dimensions", "entry,day", "--order", "entry"]
    found = list(csv.reader(io.StringIO(printed(small, *arguments, "--format", "csv"))))
    assert found == [
        ["entry", "day", "play", "playRatio"],
        ["a", "2026-06-01", "1200", ""],
        ["a" * 100, "2026-06-01", "0", ""],
        ["b\x1b[31m", "2026-06-02", "0", "0.0"],
    ]
    answer = json.loads(printed(small, *arguments, "--format", "json"))
    assert answer == ask(small, "play playRatio", "entry day", order=(("entry", False),))
    assert answer["rows"][0] == {"entry": "a", "day": "2026-06-01", "play": 1200, "playRatio": None}


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


COMPACT = (
    "to be compacted: keep `kanalony compact --every 60s` running, and allow two minutes. "
    "After a crash, start the collector or run `kanalony recover`."
)


@pytest.mark.parametrize("form", ["table", "chart", "csv", "json", "parquet"])
@pytest.mark.parametrize("has_lake", [True, False])
def test_an_empty_report_explains_itself_where_it_spoils_no_output(
    data: DataDirectory, has_lake: bool, form: str
) -> None:
    reasons = ["No events have arrived yet.", "Point players at the collector, or try `kanalony simulate`."]
    if has_lake:
        store(data, event(NOON, 3))
        newest = "The newest event was received at 2026-06-01 12:00:00 UTC."
        reasons = ["No events match this query.", newest]
    chosen = ["--chart"] if form == "chart" else ["--format", form]
    arguments = ["--metrics", "play", "--dimensions", "day", "--to", "2020", *chosen]
    done = invoke("report", "--data", data.root, *arguments, cwd=data.root)
    assert done.returncode == 0
    if form in ("table", "chart"):
        assert (done.stdout.decode().splitlines(), done.stderr) == (reasons, b"")
        return
    assert done.stderr.decode() == " ".join(reasons) + "\n"
    if form == "csv":
        assert done.stdout == b"day,play\n"
    elif form == "json":
        assert json.loads(done.stdout)["rows"] == []
    else:
        assert pq.read_table(io.BytesIO(done.stdout)).num_rows == 0


def add_waiting(place: str, data: DataDirectory) -> None:
    """Adds three requests that no compaction has read."""
    if place == "journal":
        journal_file(data, [fields(number) for number in range(3)])
        return
    path = seal(data, [[event(NOON, 3), event(NOON, 3), event(NOON, 3)]])
    if place == "open segment":
        path.write_bytes(path.read_bytes()[:-TRAILER_SIZE])
        path.rename(data.open / path.name)


@pytest.mark.parametrize("place", ["sealed segment", "open segment", "journal"])
@pytest.mark.parametrize("form", ["table", "csv"])
def test_requests_that_wait_to_be_compacted_are_counted_wherever_they_are(
    data: DataDirectory, place: str, form: str
) -> None:
    add_waiting(place, data)
    done = report(data, "--metrics", "play", "--format", form)
    message = done.stdout if form == "table" else done.stderr
    assert message.split() == f"No events have been compacted yet. 3 requests wait {COMPACT}".split()
    if form == "csv":
        assert done.stdout == "play\n"


def test_old_numbers_come_with_the_count_of_waiting_requests(data: DataDirectory) -> None:
    store(data, event(NOON, 3, eventIndex=1), event(NOON, 3, eventIndex=2))
    add_waiting("sealed segment", data)
    shown = printed(data, "--metrics", "play").splitlines()
    assert shown[2].split() == ["2"]
    assert shown[-1] == f"3 requests wait {COMPACT}"
    assert printed(data, "--metrics", "play", "--format", "csv") == "play\n2\n"
    elsewhere = printed(data, "--metrics", "play", "--to", "2020").splitlines()
    assert elsewhere[0] == "No events match this query."
    assert elsewhere[-1] == f"3 requests wait {COMPACT}"


def test_waiting_requests_are_not_counted_without_the_record_of_the_lake(data: DataDirectory) -> None:
    store(data, event(NOON, 3))
    (data.lake / FILE_NAME).unlink()
    done = report(data, "--metrics", "play")
    assert (done.returncode, done.stdout.split()[-1]) == (0, "1")
    assert "cannot count the requests that wait to be compacted" in done.stderr
    assert "requests wait" not in done.stdout


def test_numbers_are_shown_though_waiting_requests_cannot_be_counted(data: DataDirectory) -> None:
    store(data, event(NOON, 3))
    record = data.lake / FILE_NAME
    record.write_text(f"no entry\n{record.read_text()}")  # the last line is what a report needs
    done = report(data, "--metrics", "play")
    assert (done.returncode, done.stdout.split()[-1]) == (0, "1")
    assert "cannot count the requests that wait to be compacted" in done.stderr
    done = report(data, "--metrics", "play", "--to", "2020")
    assert done.returncode == 0
    assert "No events match this query." in done.stdout


def test_a_missing_data_directory_is_reported(tmp_path: Path) -> None:
    for command in (["report", "--metrics", "play"], ["dashboard", "--port", "0"]):
        done = run(*command, "--data", tmp_path / "none", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert f"{tmp_path / 'none'} is not a kanalony data directory" in done.stderr


HOSTILE = ["a\rplanted,9", "a\nb", 'say "x"', "a,b", "\r", "\r\n", '"', "=1+1", "plain", "\u2028", " x "]


def test_csv_has_every_value_as_it_was_sent_and_no_further_row(data: DataDirectory) -> None:
    store(data, *(event(NOON, 3, entryId=value) for value in HOSTILE))
    command = [*KANALONY, "report", "--data", str(data.root), "--metrics", "play", "--format", "csv"]
    done = subprocess.run([*command, "--dimensions", "entry"], capture_output=True, check=True)
    expected = sorted((value, 1) for value in HOSTILE)
    rows = list(csv.reader(io.StringIO(done.stdout.decode(), newline="")))
    assert rows[0] == ["entry", "play"]
    assert sorted((entry, int(play)) for entry, play in rows[1:]) == expected
    assert sorted(polars.read_csv(done.stdout, schema_overrides={"entry": polars.String}).rows()) == expected
    assert sorted(read_with_duckdb(done.stdout, data.root / "report.csv")) == expected
    outside = re.sub(rb'"(""|[^"])*"', b"", done.stdout)  # what is quoted, by RFC 4180
    assert b"\r" not in outside
    assert outside.count(b"\n") == len(HOSTILE) + 1


def read_with_duckdb(content: bytes, path: Path) -> list[tuple[str, int]]:
    path.write_bytes(content)
    with duckdb.connect() as engine:
        options = "header = true, auto_detect = false, columns = {'entry': 'VARCHAR', 'play': 'BIGINT'}"
        return engine.execute(f"SELECT * FROM read_csv($path, {options})", {"path": str(path)}).fetchall()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--metrics", "plya"], ["unknown metric 'plya'", "did you mean play"]),
        (["--metrics", ","], ["no metrics are given"]),
        (["--metrics", "play", "--dimensions", "contry"], ["unknown dimension 'contry'", "country"]),
        (["--metrics", "play", "--filter", "partner"], ["--filter is 'partner'", "partner=585231"]),
        (["--metrics", "play", "--filter", "hour=1"], ["cannot filter by hour"]),
        (["--metrics", "play", "--order", "-view"], ["cannot order by 'view'", "choose from play"]),
        (["--metrics", "play", "--from", "lately"], ["'lately' is not a time", "-24h"]),
        (["--metrics", "play", "--from", "2026-13"], ["'2026-13' is not a time", "month must be in 1..12"]),
        (["--metrics", "play", "--from", "today", "--to", "yesterday"], ["after its end", "swap them"]),
        (["--metrics", "play", "--chart", "--format", "csv"], ["--chart draws", "leave one out"]),
        (["--metrics", "play", "--filter", "entry=\udcff"], ["is not valid UTF-8"]),
        (["--metrics", "play", "--from", "2026-07", "--to", "2026-05"], ["after its end", "swap them"]),
        (["--metrics", "play", "--timezone", "Paris"], ["unknown time zone 'Paris'", "Europe/Paris"]),
        (["--metrics", "play", "--timezone", "../../etc/passwd"], ["unknown time zone"]),
        (["--metrics", "play", "--page", "2"], ["--page needs --limit"]),
        (["--metrics", "play", "--format", "xml"], ["'xml' is not one of"]),
        ([], ["Missing option '--metrics'"]),
    ],
)
def test_a_mistake_is_reported_in_one_line(data: DataDirectory, arguments: list[str], texts: list[str]) -> None:
    done = report(data, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert all(text in done.stderr for text in texts), done.stderr


def test_an_argument_that_is_not_utf_8_is_refused_by_the_process(data: DataDirectory) -> None:
    done = run("report", "--data", data.root, "--metrics", "play", "--filter", "entry=\udcff", cwd=data.root)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "is not valid UTF-8" in done.stderr


def test_registered_names_come_from_the_settings_file(data: DataDirectory) -> None:
    store(data, event(NOON, 201, utm_campaign="spring"))
    (data.root / "kanalony.toml").write_text(
        '[custom_events]\nquizAnswered = 201\n[custom_dimensions]\ncampaign = "utm_campaign"\n'
    )
    shown = printed(data, "--metrics", "quizAnswered", "--dimensions", "campaign", "--format", "csv")
    assert shown == "campaign,quizAnswered\nspring,1\n"
    (data.root / "kanalony.toml").write_text('[custom_dimensions]\ncampaign = "event:utm_campaign"\n')
    assert (
        printed(data, "--metrics", "201", "--dimensions", "campaign", "--format", "csv") == "campaign,201\nspring,1\n"
    )
    for line, texts in (
        ("play = 201", ["'play' is already a metric or dimension", "kanalony.toml"]),
        ('quiz = "x"', ["custom_events", "integer"]),
        ("quiz = -1", ["custom_events", "greater than or equal to 0"]),
        ('"a b" = 1', ["custom_events", "letters, digits"]),
        ("Play = 201", ["'Play' is already a metric or dimension"]),
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
def test_periods_follow_the_time_zone(text: str, first: str, end: str | None) -> None:
    expected = tuple(datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in (first, end or first))
    assert read_period(text, PARIS, NOW) == expected


@pytest.mark.parametrize(
    "text", ["", "-24", "24h", "-5y", "26-06-01", "2026-6-1", "2026-02-30", "0000", "9999", "-999999w"]
)
def test_an_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_period(text, UTC, NOW)
