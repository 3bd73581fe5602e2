"""The query action over HTTP, with the real server: what it takes, answers and refuses."""

import csv
import io
import json
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlencode

import pytest

from kanalony.errors import StorageError, WrongUse
from kanalony.reports.query import Query, Reports
from kanalony.reports.request import read_action
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.names import DataDirectory
from tests.reports.asking import ask
from tests.reports.conftest import dashboard
from tests.serving import run

ACTION = {"service": "analytics", "action": "query"}


def call(
    address: str, parameters: dict[str, Any], *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Status and text of an answer; a POST when there is a body."""
    url = f"{address}/api_v3/index.php?{urlencode(parameters)}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def query(address: str, **parameters: Any) -> dict[str, Any]:
    status, text = call(address, {**ACTION, **parameters})
    assert status == 200, text
    told: dict[str, Any] = json.loads(text)
    return told


def test_it_answers_as_the_command_does(address: str, lake: DataDirectory) -> None:
    found = query(address, metrics="play,playRatio,peakView", dimensions="entry", orderBy="-play,entry", pageSize=3)
    order = (("play", True), ("entry", False))
    assert found == ask(lake, "play playRatio peakView", "entry", order=order, limit=3)
    assert len(found["rows"]) == 3


def test_get_form_and_json_are_the_same(address: str) -> None:
    filters = json.dumps([{"dimension": "entry", "values": ["0_1", "0_2"]}])
    expected = query(address, metrics="view", dimensions="entry", filters=filters, partnerId=1)
    form = {**ACTION, "metrics": "view", "dimensions": "entry", "filters": filters, "partnerId": "1"}
    told = {**ACTION, "metrics": ["view"], "dimensions": ["entry"], "filters": json.loads(filters), "partnerId": 1}
    json_type = {"Content-Type": "application/json"}
    assert call(address, {}, body=urlencode(form).encode()) == (200, json.dumps(expected, separators=(",", ":")))
    assert json.loads(call(address, {}, body=json.dumps(told).encode(), headers=json_type)[1]) == expected
    assert [row["entry"] for row in expected["rows"]] == ["0_1", "0_2"] or expected["count"] == 2


def test_pages_by_any_spelling(address: str) -> None:
    pages = [
        query(address, metrics="view", dimensions="entry", orderBy="entry", **pager)
        for pager in (
            {"pageSize": 2, "pageIndex": 2},
            {"pager[pageSize]": 2, "pager[pageIndex]": 2},
            {"pager:pageSize": 2, "pager:pageIndex": 2},
            {"pager": '{"pageSize": 2, "pageIndex": 2}'},
        )
    ]
    assert all(page == pages[0] for page in pages)
    everything = query(address, metrics="view", dimensions="entry", orderBy="entry")
    assert pages[0]["rows"] == everything["rows"][2:4]
    assert pages[0]["count"] == everything["count"]


def test_csv(address: str) -> None:
    status, text = call(address, {**ACTION, "metrics": "play", "dimensions": "partner", "format": "csv"})
    assert status == 200
    told = query(address, metrics="play", dimensions="partner")["rows"]
    assert list(csv.DictReader(io.StringIO(text))) == [
        {name: str(value) for name, value in row.items()} for row in told
    ]


def test_times_are_of_the_offset_or_the_zone() -> None:
    start = {"metrics": "play", "startDate": "06/01/2026 12:00", "endDate": "06/01/2026 13:30"}
    query = read_action({**start, "timezoneOffset": "-330"})
    assert query.start == datetime(2026, 6, 1, 17, 30, tzinfo=UTC)
    assert query.end == datetime(2026, 6, 1, 19, 0, tzinfo=UTC)
    assert query.timezone == timezone(timedelta(minutes=-330))
    assert read_action({**start, "timezone": "Europe/Paris"}).start == datetime(2026, 6, 1, 10, tzinfo=UTC)


@pytest.mark.parametrize(
    ("parameters", "kind", "texts"),
    [
        ({"metrics": "plya"}, "unknownMetric", ["plya", "play"]),
        ({"metrics": "play", "dimensions": "contry"}, "unknownDimension", ["contry", "country"]),
        ({}, "badRequest", ["no metric"]),
        (
            {"metrics": "play", "startDate": "2026-06-01"},
            "badRequest",
            ["startDate is '2026-06-01'", "MM/dd/yyyy HH:mm"],
        ),
        ({"metrics": "play", "timezoneOffset": "7"}, "badRequest", ["timezoneOffset", "15"]),
        ({"metrics": "play", "timezone": "X", "timezoneOffset": 0}, "badRequest", ["both"]),
        ({"metrics": "play", "filters": "entry"}, "badRequest", ["filters is not JSON"]),
        ({"metrics": "play", "filters": "{}"}, "badRequest", ["filters"]),
        ({"metrics": "play", "filters": '[{"dimension": "hour", "values": ["1"]}]'}, "badRequest", ["hour"]),
        ({"metrics": "play", "filters": '[{"dimension": "nope", "values": ["1"]}]'}, "unknownDimension", ["nope"]),
        ({"metrics": "play", "pageSize": "0"}, "badRequest", ["pageSize", "from 1"]),
        ({"metrics": "play", "pageSize": "100000"}, "badRequest", ["pageSize", "10,000"]),
        ({"metrics": "play", "pager": "[]"}, "badRequest", ["pager"]),
        ({"metrics": "play", "metric": "view"}, "badRequest", ["no parameter 'metric'"]),
        ({"metrics": "play", "orderBy": "view"}, "badRequest", ["cannot order by"]),
        ({"metrics": "play", "format": "xml"}, "badRequest", ["xml"]),
        (
            {"metrics": "play", "startDate": "06/02/2026 00:00", "endDate": "06/01/2026 00:00"},
            "badRequest",
            ["after its end"],
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_kind(
    address: str, parameters: dict[str, Any], kind: str, texts: list[str]
) -> None:
    status, text = call(address, {**ACTION, **parameters})
    told = json.loads(text)
    assert (status, told["kind"]) == (400, kind)
    assert set(told) == {"kind", "data"}
    assert all(part in json.dumps(told["data"]) for part in texts)


@pytest.mark.parametrize(
    "body",
    [
        *(b"[1]", b"{", b'{"a":' * 9999, b"\xff", b"x" * 70_000),
        *(b'{"metrics": ["\\ud800"]}', b'{"metrics": "play", "dimensions": ["\\ud800"]}'),
        *(b'{"metrics": "play", "partnerId": "\\ud800"}', b'{"metrics": "play", "partnerId": [1]}'),
        b'{"metrics": "play", "filters": [{"dimension": "entry", "values": ["\\ud800"]}]}',
    ],
)
def test_a_body_that_cannot_be_read_is_refused(address: str, body: bytes) -> None:
    status, text = call(address, ACTION, body=body, headers={"Content-Type": "application/json"})
    assert status == 400
    assert json.loads(text)["kind"] in ("badRequest", "unknownMetric", "unknownDimension")


def test_deep_nesting_and_long_values_are_refused_shortly(address: str) -> None:
    for parameters in ({"filters": "[" * 5000}, {"pager": "{" * 5000}, {"pageSize": "9" * 5000}):
        status, text = call(address, {**ACTION, "metrics": "play", **parameters})
        assert status == 400
        assert len(text) < 500


def test_other_actions_and_pages_are_not_there(address: str) -> None:
    assert call(address, {"service": "analytics", "action": "trackEvent"})[0] == 404
    status, text = call(address, {"service": "stats"})
    assert (status, json.loads(text)["kind"]) == (404, "notFound")
    for path in (
        "/nothing",
        "/static/nothing.js",
        "/static/..%2fapi.py",
        "/static/index.html/",
        "/api_v3/",
        "/static/" + "a" * 300,
    ):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(address + path, timeout=60)
        assert raised.value.code == 404
        assert json.load(raised.value)["kind"] == "notFound"


def test_pages_of_other_sites_cannot_read_it(address: str) -> None:
    status, _ = call(address, {**ACTION, "metrics": "play"}, headers={"Host": "evil.example"})
    assert status == 400
    with urllib.request.urlopen(address, timeout=60) as page:
        assert "default-src 'self'" in page.headers["Content-Security-Policy"]
        assert page.headers["Access-Control-Allow-Origin"] is None


def test_a_key_shows_the_rows_of_its_partner_alone(lake: DataDirectory) -> None:
    with dashboard(lake.root, "--api-key", "1=first-key", "--api-key", "*=master-key") as address:

        def asked(key: str, **parameters: Any) -> tuple[int, Any]:
            headers = {"Authorization": f"Bearer {key}"}
            status, text = call(address, {**ACTION, "metrics": "events", **parameters}, headers=headers)
            return status, json.loads(text)

        for parameters in ({"metrics": "events"}, {"metrics": "nothing of this is read"}, {"apiKey": "\u2603"}):
            status, text = call(address, {**ACTION, **parameters})
            assert (status, json.loads(text)["kind"]) == (401, "unauthorized")
        assert asked("wrong-key")[0] == 401
        assert asked("")[0] == 401
        everything = asked("master-key", dimensions="partner")[1]
        assert {row["partner"] for row in everything["rows"]} == {"1", "2"}
        own = asked("first-key", dimensions="partner")[1]
        assert own["rows"] == [row for row in everything["rows"] if row["partner"] == "1"]
        assert own["totals"] == {"events": own["rows"][0]["events"]}
        assert asked("first-key", partnerId="1")[1]["totals"] == own["totals"]
        for other in ({"partnerId": "2"}, {"filters": '[{"dimension": "partner", "values": ["1", "2"]}]'}):
            status, told = asked("first-key", **other)
            assert (status, told["kind"]) == (404, "unknownPartner")
        status, text = call(address, {**ACTION, "metrics": "events", "apiKey": "first-key"})
        assert json.loads(text)["totals"] == own["totals"]


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--host", "0.0.0.0"], ["others would see everything", "--api-key"]),
        (["--host", "no such host"], ["no host 'no such host'", "--host"]),
        (["--host", "x" * 80], ["no host 'xxx"]),
        (["--api-key", "0585231=long-enough"], ["--api-key", "585231=KEY"]),
        (["--api-key", "secret"], ["--api-key", "585231=KEY"]),
        (["--api-key", "1=short"], ["--api-key", "8 signs"]),
        (["--port", "70000"], ["--port", "65535"]),
        (["--data", "/nonexistent"], ["/nonexistent"]),
    ],
)
def test_a_wrong_option_of_the_dashboard_is_told_in_one_line(
    lake: DataDirectory, arguments: list[str], texts: list[str]
) -> None:
    done = run("dashboard", "--data", lake.root, "--port", "0", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(text in done.stderr for text in texts), done.stderr


def test_a_port_that_is_taken_is_told(lake: DataDirectory, address: str) -> None:
    done = run("dashboard", "--data", lake.root, "--port", address.rpartition(":")[2])
    assert done.returncode == 2
    assert "Address already in use (is another one running? Name another --port)" in done.stderr


def test_a_key_is_not_repeated_when_it_is_wrong(lake: DataDirectory) -> None:
    assert "first" not in run("dashboard", "--data", lake.root, "--api-key", "1=first").stderr


def test_values_of_a_wrong_type_are_refused() -> None:
    wrongs: list[dict[str, Any]] = [{"metrics": 5}, {"metrics": ["play", 5]}, {"metrics": "play", "startDate": 5}]
    for wrong in wrongs:
        with pytest.raises(WrongUse):
            read_action(wrong)


def test_a_query_that_takes_too_long_is_given_up(lake: DataDirectory) -> None:
    with pytest.raises(StorageError, match=r"takes longer than 0\.001 s"):
        Reports(lake, seconds=0.001).run(Query(tuple(Vocabulary().metrics), ("tenSeconds", "userId")))


def test_a_query_that_takes_too_much_memory_is_told(lake: DataDirectory) -> None:
    with pytest.raises(StorageError, match="takes too much memory"):
        Reports(lake, memory=1 << 20).run(Query(("play", "lossRate"), ("tenSeconds", "userId", "referrer")))
