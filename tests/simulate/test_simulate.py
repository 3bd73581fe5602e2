"""Simulated viewers: the same for the same seed, realistic, with exact counts of acknowledged events."""

import socket
from collections import defaultdict
from itertools import islice
from pathlib import Path

from harness.load import cat
from harness.server import run, serving
from kanalony.core.querystring import parse
from kanalony.simulate.viewers import SimulatedEvent, simulate


def parameters(event: SimulatedEvent) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in parse(event.query.encode())}


def test_the_same_seed_gives_the_same_events() -> None:
    first = list(islice(simulate(20, "7/0"), 2000))
    assert list(islice(simulate(20, "7/0"), 2000)) == first
    assert list(islice(simulate(20, "8/0"), 2000)) != first


def test_keys_are_unique_and_indexes_grow_by_one() -> None:
    sessions: dict[str, list[dict[str, str]]] = defaultdict(list)
    for event in islice(simulate(50, "1"), 20_000):
        values = parameters(event)
        assert event.key == f"{values['sessionId']} {values['eventIndex']}"
        sessions[values["sessionId"]].append(values)
    for events in sessions.values():
        assert [int(values["eventIndex"]) for values in events] == list(range(1, len(events) + 1))
        assert len({(values["partnerId"], values["entryId"]) for values in events}) == 1
        assert "sessionStartTime" not in events[0]
        assert len({values["sessionStartTime"] for values in events[1:]}) <= 1


def test_sessions_run_as_players_run_them() -> None:
    kinds: dict[str, list[int]] = defaultdict(list)
    popularity: dict[str, int] = defaultdict(int)
    agents, partners, referrers = set(), set(), set()
    for event in islice(simulate(100, "1"), 50_000):
        values = parameters(event)
        kinds[values["sessionId"]].append(int(values["eventType"]))
        popularity[values["entryId"]] += values["eventType"] == "3"
        agents.add(event.user_agent)
        partners.add(values["partnerId"])
        referrers.add(values["referrer"])
    for order in kinds.values():
        assert order[0] == 1
        assert order.count(1) == 1
        assert order[1:2] in ([], [2])
        assert order[2:4] in ([], [3], [3, 99], [98])
        quartiles = [kind for kind in order if kind in (11, 12, 13, 14)]
        assert quartiles == sorted(quartiles)
        assert order.count(33) - order.count(4) in (0, 1)
    everything = [kind for order in kinds.values() for kind in order]
    assert set(everything) >= {1, 2, 3, 4, 11, 12, 13, 14, 15, 33, 35, 45, 46, 98, 99}
    assert everything.count(99) > len(everything) / 2, "views are most of the traffic"
    ranked = sorted(popularity.values(), reverse=True)
    assert ranked[0] > 5 * ranked[len(ranked) // 2], "few entries are popular, many are rare"
    assert len(agents) > 3
    assert len(partners) == 4
    assert len(referrers) > 3


def test_every_acknowledged_key_is_in_the_file_and_in_the_data(tmp_path: Path) -> None:
    acked = tmp_path / "acked.txt"
    with serving(tmp_path / "data") as server:
        url = f"http://127.0.0.1:{server.port}"
        done = run("simulate", "--url", url, "--events", "1003", "--viewers", "30", "--acked", acked)
        assert done.returncode == 0, done.stderr
        assert "acknowledged  1,003 in" in done.stdout
        assert "lost          0\n" in done.stdout
        assert "p99" in done.stdout
        stored = [f"{event['params']['sessionId']} {event['params']['eventIndex']}" for event in cat(server.data)]
    assert sorted(acked.read_text().splitlines()) == sorted(stored)
    assert len(set(stored)) == 1003


def test_lost_events_are_counted_and_set_the_exit_code(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        acked = tmp_path / "acked.txt"
        done = run("simulate", "--url", url, "--events", "20", "--acked", acked)
    assert done.returncode == 1
    assert "acknowledged  0" in done.stdout
    assert "lost          20; ConnectionRefusedError: 20" in done.stdout
    assert acked.read_text() == ""


def test_an_invalid_address_is_reported() -> None:
    for url in ("ftp://example.org", "127.0.0.1:8000", "http://a:99999", "http://"):
        done = run("simulate", "--url", url)
        assert done.returncode == 2
        assert "is not an http address" in done.stderr
