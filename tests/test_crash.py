"""kill -9 under load: what was answered with 200 is there, once."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.serving import Load, Server, cat, keys_of, run, serving


def assert_kept(data: Path, load: Load) -> None:
    """Every acknowledged event is there once, and nothing that was never sent."""
    counted = keys_of(cat(data))
    assert load.acked, "the load never got through"
    assert load.acked - set(counted) == set(), "acknowledged but missing"
    assert {key for key, times in counted.items() if times > 1} == set(), "stored twice"
    assert set(counted) <= load.sent


@pytest.mark.parametrize("round_number", range(3))
def test_a_200_survives_kill_9_of_everything_under_load(tmp_path: Path, round_number: int) -> None:
    data = tmp_path / "data"
    with serving(data, "--workers", "2") as server:
        load = Load(server)
        time.sleep(0.7 + 0.35 * round_number)
        server.kill()
        load.stop()
    assert_kept(data, load)  # as the crash left it
    with serving(data, "--workers", "2") as server:
        assert b" 200 " in server.get("/collect?sessionId=after")
        load.sent.add("after")
        assert server.stop() == 0
    assert_kept(data, load)  # adopted by the next start
    verified = run("verify", "--data", data)
    assert verified.returncode == 0, verified.stderr
    assert list((data / "journal").iterdir()) == []


def test_recover_seals_what_a_crash_left(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server:
        load = Load(server, limit=500)
        load.wait()
    assert len(load.acked) == 2000
    done = run("recover", "--data", data)
    assert done.returncode == 0, done.stderr
    assert "1 dead workers adopted, 0 journals in use" in done.stdout
    assert_kept(data, load)
    assert list((data / "journal").iterdir()) == []
    assert run("recover", "--data", data).stdout == "0 dead workers adopted, 0 journals in use by running workers\n"


def worker_of(server: Server) -> int:
    (pid,) = server.workers()
    return pid


def test_a_worker_killed_alone_is_replaced_and_its_journal_adopted_while_serving(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server:
        load = Load(server)
        for _ in range(3):
            time.sleep(0.5)
            victim = worker_of(server)
            os.kill(victim, signal.SIGKILL)
            server._await(lambda victim=victim: server.workers() and worker_of(server) != victim)
            server._await(server._answers)
        time.sleep(0.5)
        load.stop()
        assert_kept(data, load)
        # Three dead workers' journals go, the live one's stays.
        server._await(lambda: len(list((data / "journal").iterdir())) == 1)
        assert server.stop() == 0
    assert_kept(data, load)


def test_cat_shows_every_acknowledged_event_at_once_while_serving(tmp_path: Path) -> None:
    with serving(tmp_path / "data", "--workers", "2") as server:
        load = Load(server)
        for _ in range(4):
            before = set(load.acked)
            counted = keys_of(cat(server.data))
            assert before - set(counted) == set()
            assert max(counted.values(), default=1) == 1
        load.stop()
