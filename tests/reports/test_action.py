"""The query action over HTTP: parameters, answers, refusals, turns. Most tests use the real server."""

import csv
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from urllib.parse import urlencode

import pytest
import uvicorn

from harness.server import run
from kanalony.errors import StorageError, UsageError
from kanalony.events import TIME_DIMENSIONS
from kanalony.reports.api.app import create_app
from kanalony.reports.api.limits import Limits
from kanalony.reports.execution import Reports
from kanalony.reports.parsing import read_action
from kanalony.reports.planner import Snapshot
from kanalony.reports.query import Query, Selection
from kanalony.reports.result import Result
from kanalony.reports.statement import Statement
from kanalony.reports.vocabulary import Vocabulary
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import seal
from tests.reports.asking import ask, event, store
from tests.reports.commands import invoke_text
from tests.reports.conftest import dashboard

ACTION = {"service": "analytics", "action": "query"}


def call(
    address: str, parameters: dict[str, Any], *, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    """Sends a request, a POST when there is a body; returns the status and text of the answer."""
    url = f"{address}/api_v3/index.php?{urlencode(parameters)}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers or {}), timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def query(address: str, **parameters: Any) -> dict[str, Any]:
    status, text = call(address, {**ACTION, **parameters})
    assert status == 200, text
    answer: dict[str, Any] = json.loads(text)
    return answer


def test_the_answer_is_that_of_the_command(address: str, lake: DataDirectory) -> None:
    found = query(address, metrics="play,playRatio,peakView", dimensions="entry", orderBy="-play,entry", pageSize=3)
    order = (("play", True), ("entry", False))
    assert found == ask(lake, "play playRatio peakView", "entry", order=order, limit=3)
    assert len(found["rows"]) == 3


def test_get_form_and_json_are_the_same(address: str) -> None:
    filters = json.dumps([{"dimension": "entry", "values": ["0_1", "0_2"]}])
    expected = query(address, metrics="view", dimensions="entry", filters=filters, partnerId=1)
    form = {**ACTION, "metrics": "view", "dimensions": "entry", "filters": filters, "partnerId": "1"}
    values = {**ACTION, "metrics": ["view"], "dimensions": ["entry"], "filters": json.loads(filters), "partnerId": 1}
    json_type = {"Content-Type": "application/json"}
    assert call(address, {}, body=urlencode(form).encode()) == (200, json.dumps(expected, separators=(",", ":")))
    assert json.loads(call(address, {}, body=json.dumps(values).encode(), headers=json_type)[1]) == expected
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
    expected = query(address, metrics="play", dimensions="partner")["rows"]
    assert list(csv.DictReader(io.StringIO(text))) == [
        {name: str(value) for name, value in row.items()} for row in expected
    ]


def test_a_value_cannot_add_a_row_to_csv(data: DataDirectory) -> None:
    values = ["a\rplanted", "b\rplanted,9", 'say "x", please']
    store(data, *(event("2026-06-01T12:00:00", 3, entryId=value) for value in values))
    with served(data) as address:
        status, text = call(address, {**ACTION, "metrics": "play", "dimensions": "entry", "format": "csv"})
    assert status == 200
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows == [["entry", "play"], *([value, "1"] for value in sorted(values))]


def test_times_follow_the_offset_or_the_zone() -> None:
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
        ({}, "badRequest", ["no metrics"]),
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
        ({"metrics": "play", "metric": "view"}, "badRequest", ["unknown parameter 'metric'"]),
        ({"metrics": "play", "orderBy": "view"}, "badRequest", ["cannot order by"]),
        ({"metrics": "play", "format": "xml"}, "badRequest", ["xml"]),
        (
            {"metrics": "play", "startDate": "06/02/2026 00:00", "endDate": "06/01/2026 00:00"},
            "badRequest",
            ["after its end"],
        ),
    ],
)
def test_a_wrong_parameter_is_reported_with_its_kind(
    address: str, parameters: dict[str, Any], kind: str, texts: list[str]
) -> None:
    status, text = call(address, {**ACTION, **parameters})
    problem = json.loads(text)
    assert (status, problem["kind"]) == (400, kind)
    assert set(problem) == {"kind", "data"}
    assert all(part in json.dumps(problem["data"]) for part in texts)


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


def test_deep_nesting_and_long_values_are_refused_with_a_short_message(address: str) -> None:
    for parameters in ({"filters": "[" * 5000}, {"pager": "{" * 5000}, {"pageSize": "9" * 5000}):
        status, text = call(address, {**ACTION, "metrics": "play", **parameters})
        assert status == 400
        assert len(text) < 500


def test_other_actions_and_pages_are_not_found(address: str) -> None:
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


OWN, OTHER = "http://{host}", "https://evil.example"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),  # another port of this machine
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),  # typed into the address bar
        ({"Origin": OTHER}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[x"}, 403),
        ({"Origin": OWN}, 200),
        ({"Origin": "https://reports.example", "Sec-Fetch-Site": "same-origin"}, 200),  # behind a proxy
        ({"Origin": OTHER, "Sec-Fetch-Site": "cross-site", "Authorization": "Bearer x"}, 403),
    ],
)
@pytest.mark.parametrize("body", [None, b""])
def test_pages_of_other_sites_start_no_query(
    address: str, headers: dict[str, str], status: int, body: bytes | None
) -> None:
    headers = {name: value.format(host=address.removeprefix("http://")) for name, value in headers.items()}
    for action in ("query", "waiting"):
        found, text = call(address, {**ACTION, "action": action, "metrics": "play"}, body=body, headers=headers)
        assert found == status
        assert status == 200 or json.loads(text)["kind"] == "forbidden"


def test_a_link_from_another_site_opens_the_page(address: str) -> None:
    link = urllib.request.Request(address, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"})
    with urllib.request.urlopen(link, timeout=60) as page:
        assert page.status == 200


def filtered(count: int, values: int) -> str:
    names = [name for name in Vocabulary().dimensions if name not in TIME_DIMENSIONS]
    names += [f"extra{number}" for number in range(count - len(names))]
    return json.dumps([{"dimension": name, "values": [str(n) for n in range(values)]} for name in names[:count]])


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"metrics": ",".join(map(str, range(101)))}, "101 metrics"),
        ({"metrics": ",".join(map(str, range(11_000)))}, "11,000 metrics"),
        ({"metrics": ["play"] * 101}, "101 metrics"),
        ({"metrics": "play", "dimensions": ["entry"] * 21}, "21 dimensions"),
        ({"metrics": "play", "orderBy": ",".join(["play"] * 121)}, "121 names to order by"),
        ({"metrics": "play", "filters": filtered(21, 1)}, "21 filters"),
        ({"metrics": "play", "filters": filtered(1, 1001)}, "1,001 values"),
        ({"metrics": "play", "filters": filtered(11, 100)}, "1,100 values"),
    ],
)
def test_a_query_has_a_bounded_number_of_names_and_values(address: str, parameters: dict[str, Any], text: str) -> None:
    body = json.dumps({**ACTION, **parameters}).encode()
    status, answer = call(address, {}, body=body, headers={"Content-Type": "application/json"})
    problem = json.loads(answer)
    assert (status, problem["kind"]) == (400, "badRequest")
    assert text in problem["data"]["message"]


def test_a_query_of_the_most_names_and_values_is_answered(address: str) -> None:
    dimensions = [*Vocabulary().dimensions][:20]
    body = {
        **ACTION,
        "metrics": ",".join(map(str, range(100))),
        "dimensions": dimensions,
        "orderBy": [*map(str, range(100)), *dimensions],
        "filters": filtered(18, 50),
    }
    status, text = call(address, {}, body=json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    assert status == 200, text


@pytest.mark.parametrize("form", ["json", "csv"])
def test_an_answer_has_a_bounded_size_and_smaller_pages_fit(data: DataDirectory, form: str) -> None:
    long = [f"{number:02}{'x' * 900}" for number in range(40)]
    store(data, *(event("2026-06-01T12:00:00", 3, entryId=entry) for entry in long))
    short = [f"s{number}" for number in range(200)]
    store(data, *(event("2026-07-01T12:00:00", 3, customVar1=name) for name in short))
    reports = Reports(data, text_bytes=20_000)
    with served(data, reports=reports, limits=Limits(answer_bytes=20_000)) as address:

        def asked(**parameters: Any) -> tuple[int, str]:
            return call(address, {**ACTION, "metrics": "play", "format": form, **parameters})

        by_name = {"dimensions": "customVar1", "startDate": "07/01/2026 00:00"}
        for wanted in (
            {"dimensions": "entry", "endDate": "06/30/2026 00:00"},  # long values
            {**by_name, "metrics": ",".join(["events", *map(str, range(90))])},  # many numbers
        ):
            status, text = asked(**wanted)
            problem = json.loads(text)
            assert (status, problem["kind"]) == (400, "badRequest")
            assert "20,000 bytes" in problem["data"]["message"]
            assert "pageSize" in problem["data"]["hint"]
            status, text = asked(**wanted, pageSize=5)
            assert status == 200
            assert len(text) <= 20_000
        assert asked(**by_name)[0] == 200


class Endless(Reports):
    """Reports in which every query for the metric `view` is endless.

    Attributes:
        running: Endless queries that run.
        ended: Endless queries that have ended.
    """

    def __init__(self, data: DataDirectory) -> None:
        super().__init__(data)
        self.running = self.ended = 0
        self._lock = threading.Lock()

    def run(self, query: Query, cancel: threading.Event | None = None) -> Result:
        if query.metrics != ("view",):
            return super().run(query, cancel)
        with self._lock:
            self.running += 1
        try:
            return super().run(query, cancel)
        finally:
            with self._lock:
                self.running -= 1
                self.ended += 1

    def build(self, snapshot: Snapshot, query: Query, selection: Selection) -> Statement | None:
        if query.metrics != ("view",):
            return super().build(snapshot, query, selection)
        numbers = "range(1_000_000_000) a(x), range(1_000_000_000) b(y)"
        sql = f"SELECT count(*) AS m0, true AS is_total, 1 AS position FROM {numbers} WHERE (x * y) % 7 = 3"
        return Statement(sql, {}, [])


@pytest.fixture
def endless(lake: DataDirectory) -> Endless:
    return Endless(lake)


@contextmanager
def served(
    data: DataDirectory, *keys: str, reports: Reports | None = None, limits: Limits | None = None
) -> Iterator[str]:
    """The address of the application in this process, with its own reports and limits."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        app = create_app(data, reports or Reports(data), keys, limits=limits)
        server = uvicorn.Server(uvicorn.Config(app, loop="asyncio", http="h11", log_config=None, access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def asking(address: str, **parameters: Any) -> Iterator[None]:
    """Sends a query as a client that hangs up at the end."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), 30) as connection:
        query = urlencode({**ACTION, **parameters})
        connection.sendall(f"GET /api_v3/index.php?{query} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        yield


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def test_a_query_ends_and_frees_its_turn_when_its_client_hangs_up(lake: DataDirectory, endless: Endless) -> None:
    with served(lake, reports=endless) as address:
        with asking(address, metrics="view"), asking(address, metrics="view"):
            wait_for(lambda: endless.running == 2)
            with asking(address, metrics="view"):  # waits for its turn, and hangs up
                pass
            assert (endless.running, endless.ended) == (2, 0)
        wait_for(lambda: endless.ended == 2)
        assert query(address, metrics="play")["count"] == 1
        assert (endless.running, endless.ended) == (0, 2), "a query that is cancelled while it waits never runs"


def test_a_partner_leaves_a_turn_to_others(lake: DataDirectory, endless: Endless) -> None:
    with served(lake, "1=first-key", "2=second-key", reports=endless) as address:
        with (
            asking(address, metrics="view", apiKey="first-key"),
            asking(address, metrics="view", apiKey="first-key"),
        ):
            wait_for(lambda: endless.running == 1)
            assert query(address, metrics="play", apiKey="second-key")["count"] == 1
            assert query(address, metrics="play", apiKey="second-key")["count"] == 1
            assert (endless.running, endless.ended) == (1, 0)
        wait_for(lambda: endless.ended == 1)


def test_a_partner_whose_queries_fill_the_queue_does_not_block_others(lake: DataDirectory, endless: Endless) -> None:
    keys = ("1=first-key", "2=second-key")
    with served(lake, *keys, reports=endless, limits=Limits(queued=2)) as address, ExitStack() as clients:
        for _ in range(3):
            clients.enter_context(asking(address, metrics="view", apiKey="first-key"))
        busy = {**ACTION, "metrics": "play", "apiKey": "first-key"}
        wait_for(lambda: endless.running == 1)
        wait_for(lambda: call(address, busy)[0] == 503)
        assert query(address, metrics="play", apiKey="second-key")["count"] == 1
        clients.close()
        wait_for(lambda: endless.running == 0)
        assert query(address, metrics="play", apiKey="first-key")["count"] == 1


def test_the_number_of_waiting_requests_is_hidden_from_single_partners(data: DataDirectory) -> None:
    seal(data, [[event("2026-06-01T12:00:00", 3), event("2026-06-01T12:00:00", 3)]])
    action = {"service": "analytics", "action": "waiting"}
    with served(data, "1=first-key", "*=master-key") as address:
        assert call(address, action)[0] == 401
        assert call(address, {**action, "apiKey": "first-key"}) == (200, '{"requests":null}')
        assert call(address, {**action, "apiKey": "master-key"}) == (200, '{"requests":2}')


def test_a_removed_data_directory_is_not_taken_for_an_empty_one(data: DataDirectory) -> None:
    with served(data) as address:
        data.root.rename(data.root.with_name("elsewhere"))
        status, text = call(address, {"service": "analytics", "action": "waiting"})
        assert (status, json.loads(text)["kind"]) == (503, "unavailable")
        assert "is not a kanalony data directory" in text


def test_pages_of_other_sites_cannot_read_answers(address: str) -> None:
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
        nobody = '[{"dimension": "partner", "values": []}]'
        own_filter, others_filter = nobody.replace("[]}", '["1"]}'), nobody.replace("[]}", '["2"]}')
        for contradiction in (
            {"filters": nobody},
            {"partnerId": "1", "filters": others_filter},
            {"partnerId": "2", "filters": own_filter},
        ):
            for key in ("first-key", "master-key"):
                assert asked(key, **contradiction)[1]["rows"] == [], "no more than the query selects"
        for other in ({"partnerId": "2"}, {"filters": '[{"dimension": "partner", "values": ["1", "2"]}]'}):
            status, problem = asked("first-key", **other)
            assert (status, problem["kind"]) == (404, "unknownPartner")
        status, text = call(address, {**ACTION, "metrics": "events", "apiKey": "first-key"})
        assert json.loads(text)["totals"] == own["totals"]


@pytest.fixture
def unserved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a dashboard in this process fail instead of serving, which would not end."""

    def run(*_: Any, **__: Any) -> None:
        raise AssertionError("the dashboard serves")

    monkeypatch.setattr(uvicorn.Server, "run", run)


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--host", "0.0.0.0"], ["would see all reports", "--api-key"]),
        (["--host", "no such host"], ["unknown host 'no such host'", "--host"]),
        (["--host", "x" * 80], ["unknown host 'xxx"]),
        (["--api-key", "0585231=long-enough"], ["--api-key", "585231=KEY"]),
        (["--api-key", "secret"], ["--api-key", "585231=KEY"]),
        (["--api-key", "1=short"], ["--api-key", "8 characters"]),
        (
            ["--api-key", "1=the-same-key", "--api-key", "3=another-key", "--api-key", "27=the-same-key"],
            ["--api-key", "1 and 27 have the same"],
        ),
        (["--port", "70000"], ["--port", "65535"]),
        (["--data", "/nonexistent"], ["/nonexistent"]),
    ],
)
def test_a_wrong_option_of_the_dashboard_is_reported_in_one_line(
    lake: DataDirectory, arguments: list[str], texts: list[str], unserved: None
) -> None:
    done = invoke_text("dashboard", "--data", lake.root, "--port", "0", *arguments, cwd=lake.root)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert all(text in done.stderr for text in texts), done.stderr


def test_a_taken_port_is_reported(lake: DataDirectory, address: str) -> None:
    done = run("dashboard", "--data", lake.root, "--port", address.rpartition(":")[2])
    assert done.returncode == 2
    assert "Address already in use (is another dashboard running? Choose another --port)" in done.stderr


def test_a_key_is_not_repeated_when_it_is_wrong(lake: DataDirectory, unserved: None) -> None:
    for keys in (["1=first"], ["1=first-key", "2=first-key"]):
        options = [part for key in keys for part in ("--api-key", key)]
        done = invoke_text("dashboard", "--data", lake.root, *options, cwd=lake.root)
        assert done.returncode == 2
        assert "--api-key" in done.stderr
        assert "first" not in done.stdout + done.stderr


def test_latest_is_the_newest_event_of_the_partner_of_a_key(data: DataDirectory) -> None:
    store(data, event("2026-06-01T12:00:00", 3, partnerId=1), event("2026-06-01T12:00:01", 3, partnerId=2))
    with served(data, *(f"{partner}=the-key-of-{partner}" for partner in "123*")) as address:

        def latest(partner: str) -> Any:
            parameters = {**ACTION, "metrics": "play", "apiKey": f"the-key-of-{partner}"}
            return json.loads(call(address, parameters)[1])["latest"]

        before = {partner: latest(partner) for partner in "123*"}
        store(data, event("2026-06-03T12:00:00", 3, partnerId=3))
        store(data, event("2026-06-02T12:00:00", 3, partnerId=1))
        after = {partner: latest(partner) for partner in "123*"}
    noon = "2026-06-0{}T12:00:0{}.000000Z"
    assert before == {"1": noon.format(1, 0), "2": noon.format(1, 1), "3": None, "*": noon.format(1, 1)}
    assert after == {"1": noon.format(2, 0), "2": noon.format(1, 1), "3": noon.format(3, 0), "*": noon.format(3, 0)}


def test_values_of_a_wrong_type_are_refused() -> None:
    wrongs: list[dict[str, Any]] = [{"metrics": 5}, {"metrics": ["play", 5]}]
    dates: tuple[Any, ...] = (5, 0, False, [])
    wrongs += [{"metrics": "play", name: value} for name in ("startDate", "endDate") for value in dates]
    for wrong in wrongs:
        with pytest.raises(UsageError):
            read_action(wrong)


def test_a_query_that_takes_too_long_is_ended(lake: DataDirectory) -> None:
    with pytest.raises(StorageError, match=r"takes longer than 0\.001 s"):
        Reports(lake, seconds=0.001).run(Query(tuple(Vocabulary().metrics), ("tenSeconds", "userId")))


def test_a_query_that_takes_too_much_memory_is_refused(lake: DataDirectory) -> None:
    with pytest.raises(StorageError, match="takes too much memory"):
        Reports(lake, memory=1 << 20).run(Query(("play", "lossRate"), ("tenSeconds", "userId", "referrer")))


def test_text_that_is_too_long_does_not_leave_the_engine(lake: DataDirectory) -> None:
    query = Query(("play",), ("entry",), limit=100)
    with pytest.raises(UsageError, match="more than 20 bytes"):
        Reports(lake, text_bytes=20).run(query)
    assert Reports(lake, text_bytes=200).run(query).table == Reports(lake).run(query).table
