"""Benchmarks print a figure only when all the work was done, and measure every receiver alike."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from benchmarks import append, ingest, load, report
from benchmarks.__main__ import main
from benchmarks.compact import PEERS, write_log
from benchmarks.outcome import Measurement, Outcome, interleaved
from benchmarks.receivers import ALL, BARE, BUFFERED, WRITTEN, Receiver
from benchmarks.traffic import to_get, to_json, to_post, traffic, write_requests
from harness.server import started
from kanalony.simulate.viewers import simulate
from tests.tools import tool

ROOT = Path(__file__).parents[2]


def catalogue(*arguments: str) -> Result:
    """Runs a benchmark in this process."""
    result = CliRunner().invoke(main, arguments, prog_name="python -m benchmarks")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture(scope="module")
def programs() -> None:
    for name in ("wrk", "nginx", "node", "gcc"):
        tool(name)


@pytest.fixture(scope="module")
def requests(programs: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("requests") / "requests"
    write_requests(path, map(to_get, islice(traffic(500), 3000)))
    return path


def test_the_catalogue_lists_every_benchmark() -> None:
    done = catalogue()
    assert done.exit_code == 0
    for name in ("ingest", "append", "replay", "segments", "compact", "report", "connections", "crash"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.slow
def test_a_benchmark_prints_where_it_ran_and_writes_every_value(tmp_path: Path) -> None:
    results, chart = tmp_path / "out.json", tmp_path / "out.png"
    command = [sys.executable, "-m", "benchmarks", "append", "--events", "2000", "--no-instructions"]
    done = subprocess.run(
        [*command, "--json", str(results), "--chart", str(chart)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": ""},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("machine ")
    found = json.loads(results.read_text())
    assert found["command"].startswith("python -m benchmarks append --events 2000")
    assert "caveats" in found["caveats"]
    assert "python" in found["environment"]
    (stored,) = [
        one for one in found["measurements"] if one["subject"].startswith("store") and one["quantity"] == "append"
    ]
    assert all(value > 0 for value in stored["values"])
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("missing", ["ingest", "append"])
def test_a_program_that_is_not_installed_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    options = ["--events", "1000"] if missing == "append" else ["--rounds", "1", "--seconds", "1"]
    done = catalogue(missing, *options)
    assert done.exit_code == 1
    assert "is not installed" in done.stderr


def test_an_event_acknowledged_but_not_stored_is_an_error_instead_of_a_figure(tmp_path: Path, requests: Path) -> None:
    liar = replace(WRITTEN, stored=lambda work: (0, 0))
    with pytest.raises(RuntimeError, match="acknowledged, 0 stored"):
        ingest.ask(liar, tmp_path / "at", requests, 1)


def test_events_stored_twice_are_an_error_instead_of_a_figure(tmp_path: Path, requests: Path) -> None:
    liar = replace(WRITTEN, stored=lambda work: (3001 + 2 * load.CONNECTIONS, 0))
    with pytest.raises(RuntimeError, match="3,129 stored"):
        ingest.ask(liar, tmp_path / "at", requests, 1)


def test_a_server_that_refuses_is_an_error_instead_of_a_figure(tmp_path: Path, requests: Path) -> None:
    with pytest.raises(RuntimeError, match=r"failed=[1-9]"):
        ingest.ask(replace(BUFFERED, command=_closed), tmp_path / "at", requests, 1)


def _closed(work: Path, port: int) -> list[str]:
    command = BUFFERED.command(work, port)
    settings = work / "nginx.conf"
    settings.write_text(settings.read_text().replace('return 200 "1767225600"', "return 503"))
    return command


def test_requests_that_run_out_are_an_error_where_the_seconds_count(tmp_path: Path, requests: Path) -> None:
    with pytest.raises(RuntimeError, match="the requests ran out"):
        ingest.take(Outcome(), BARE, tmp_path / "at", requests, 1)


@pytest.mark.parametrize(
    "receiver",
    [
        pytest.param(one, id=one.name, marks=[] if one in (WRITTEN, BUFFERED) else pytest.mark.slow)
        for one in ALL
        if one.stored
    ],
)
def test_every_receiver_stores_every_request_that_is_sent_once(
    tmp_path: Path, programs: None, receiver: Receiver
) -> None:
    path = tmp_path / "requests"
    write_requests(path, map(to_get, islice(traffic(100), 150)))
    answers, _, stored, size = ingest.ask(receiver, tmp_path / "at", path, 1)
    assert 150 - load.CONNECTIONS <= answers.answered <= stored <= 150 + load.CONNECTIONS
    assert answers.ended
    assert size > 50 * stored


def test_simulated_requests_are_all_different_and_of_the_length_they_say() -> None:
    events = list(islice(traffic(100, ks=True), 2000))
    assert len({to_get(event) for event in events}) == 2000
    assert len({event.user_agent for event in events}) > 20
    assert all("&ks=djJ8" in event.query for event in events)
    post = to_post(events[0], [to_json(event) for event in events[:10]])
    head, _, body = post.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert [event["sessionId"] for event in json.loads(body)] == [event.key.split()[0] for event in events[:10]]


@pytest.mark.slow
def test_instructions_are_those_of_one_event() -> None:
    tool("valgrind")
    outcome = Outcome()
    append._count_instructions(outcome, 100)
    counted = {known.quantity: known.median for known in outcome.measurements}
    # A checksum by instruction takes a word of eight bytes in two or three; the record has some 300 bytes.
    assert 50 < counted["CRC"] < counted["append"] < 5000
    assert counted["tokenize"] > 100
    assert counted["compress"] > 100


@pytest.mark.parametrize("length", append.LENGTHS)
def test_queries_of_a_length_have_it_and_are_different(length: int) -> None:
    assert {len(query) for query in append.queries(length)} == {length}
    assert len(set(append.queries(length))) == append.DISTINCT


def test_the_peers_of_the_compaction_read_what_was_sent(tmp_path: Path) -> None:
    sent = list(islice(simulate(50, "1"), 2000))
    write_log(tmp_path / "log", sent)
    rows = {}
    for script in PEERS.values():
        output = tmp_path / f"{script}.parquet"
        subprocess.run([sys.executable, ROOT / "benchmarks/peers" / script, tmp_path / "log", output], check=True)
        table = pq.read_table(output).sort_by([("sessionId", "ascending"), ("eventIndex", "ascending")])
        rows[script] = table.select(["sessionId", "eventIndex", "eventType", "position", "referrer"]).to_pylist()
    one, other = rows.values()
    assert one == other
    assert sorted(f"{row['sessionId']} {row['eventIndex']}" for row in one) == sorted(event.key for event in sent)


def test_another_answer_of_the_peer_of_reports_is_an_error_instead_of_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "QUESTIONS", ())
    name, query, sql = report.PEER_QUESTIONS[0]
    monkeypatch.setattr(report, "PEER_QUESTIONS", ((name, query, sql.replace("'3'", "'4'")),))
    with pytest.raises(RuntimeError, match="plays by hour: kanalony says"):
        report.measure((5000,), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["ingest", "--json", "/nowhere/out.json"], "/nowhere is no writable directory"),
        (["ingest", "--chart", "out.txt"], "name a file that ends in .png"),
        (["compact", "--events", "1000", "--rounds", "1", "--memory", "abc"], "--memory is 'abc'"),
        (["crash", "--directory", "/nowhere"], "/nowhere"),
    ],
)
def test_a_usage_error_is_one_message_without_a_traceback(options: list[str], message: str) -> None:
    done = catalogue(*options)
    assert done.exit_code in (1, 2)
    assert message in done.stderr


def test_a_process_is_ended_also_when_the_interrupt_comes_while_it_starts(tmp_path: Path) -> None:
    def interrupt() -> None:
        os.kill(os.getppid(), signal.SIGINT)

    # What a shell starts in the background ignores SIGINT, and the tests may be that.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), started(["sleep", "600"], cwd=tmp_path, preexec_fn=interrupt):
            raise AssertionError("the interrupt was lost")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert not _processes_of(tmp_path)


# `ingest` first makes 500,000 requests, which takes a busy machine a minute; `crash` starts its server at once.
@pytest.mark.parametrize("arguments", [["crash"], pytest.param(["ingest", "--seconds", "1"], marks=pytest.mark.slow)])
def test_interrupting_a_benchmark_leaves_no_server_behind(arguments: list[str], tmp_path: Path, programs: None) -> None:
    command = [sys.executable, "-m", "benchmarks", *arguments, "--directory", str(tmp_path)]
    with started(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            _wait_for(lambda: _processes_of(tmp_path) - {process.pid}, 300)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    _wait_for(lambda: not _processes_of(tmp_path))
    assert list(tmp_path.iterdir()) == []


def _processes_of(directory: Path) -> set[int]:
    """Returns the ids of processes that work in a directory or name it in their command line."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            named = bytes(directory) in (process / "cmdline").read_bytes()
            if named or (process / "cwd").readlink().is_relative_to(directory):
                found.add(int(process.name))
    return found


def _wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_rounds_go_back_and_forth() -> None:
    order: list[str] = []
    interleaved(3, [lambda: order.append("a"), lambda: order.append("b")])
    assert "".join(order) == "abbaab"


def test_ratios_are_of_the_same_round_and_their_aims_are_judged_by_the_median() -> None:
    outcome = Outcome()
    outcome.measure("ours", "CPU", "µs", 10, 30, 20)
    outcome.measure("theirs", "CPU", "µs", 10, 20, 10)
    ours, theirs = outcome.get("ours", "CPU"), outcome.get("theirs", "CPU")
    outcome.ratio("fine", ours, theirs, at_most=1.5)
    outcome.ratio("too much", ours, theirs, at_most=1.4)
    outcome.ratio("too little", ours, theirs, at_least=1.6)
    outcome.ratio("no aim", ours, theirs)
    assert outcome.slow == ["too much", "too little"]
    assert outcome.figures["fine"] == 1.5
    assert "1.50 (1.00 to 2.00)" in str(outcome)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((0.0,), "0"),
        ((0.01234,), "0.0123"),
        ((9.876,), "9.88"),
        ((12_345.6,), "12,346"),
        ((1, 3, 2), "2.00 (1.00 to 3.00)"),
    ],
)
def test_measurements_have_three_digits_and_their_spread(values: tuple[float, ...], text: str) -> None:
    assert str(Measurement("s", "q", "u", values)) == text
