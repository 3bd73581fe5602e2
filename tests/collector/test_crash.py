"""kill -9 under load: every request answered with 200 is stored, once."""

import os
import shutil
import signal
from pathlib import Path

import pytest

import kanalony
from harness.load import Load, cat, keys_of
from harness.server import run, serving


def assert_kept(data: Path, load: Load) -> None:
    """Asserts that every acknowledged event is stored once, and nothing that was never sent."""
    counted = keys_of(cat(data))
    assert load.acked, "the load never got through"
    assert load.acked - set(counted) == set(), "acknowledged but missing"
    assert {key for key, times in counted.items() if times > 1} == set(), "stored twice"
    assert set(counted) <= load.sent


@pytest.mark.parametrize("round_number", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_200_survives_kill_9_of_everything_under_load(tmp_path: Path, round_number: int) -> None:
    data = tmp_path / "data"
    with serving(data, "--workers", "2") as server:
        load = Load(server)
        load.until(300 * (round_number + 1))
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


def test_a_worker_killed_alone_is_replaced_and_its_journal_adopted_while_serving(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server:
        load = Load(server)
        for _ in range(3):
            load.until(len(load.acked) + 300)
            victim = server.worker()
            os.kill(victim, signal.SIGKILL)
            server.wait_for(lambda victim=victim: set(server.workers()) - {victim})
            server.wait_for(server.answers)
        load.until(len(load.acked) + 300)
        load.stop()
        assert_kept(data, load)
        # Three dead workers' journals go, the live one's stays.
        server.wait_for(lambda: len(list((data / "journal").iterdir())) == 1)
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


def test_reload_under_load_loses_and_refuses_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, "--workers", "2") as server:
        before = set(server.workers())
        load = Load(server, limit=20_000)
        load.until(300)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: len(server.workers()) == 2 and not before & set(server.workers()))
        load.stop()
        assert load.errors == {}
        assert load.acked == load.sent
        assert server.stop() == 0
    assert_kept(data, load)


def test_sigterm_under_load_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, "--workers", "2") as server:
        load = Load(server, limit=20_000)
        load.until(300)
        assert server.stop() == 0
        load.stop()
    assert_kept(data, load)
    assert list((data / "journal").iterdir()) == []


def test_reload_reads_the_settings_again_and_keeps_the_old_ones_when_they_are_wrong(tmp_path: Path) -> None:
    config = tmp_path / "kanalony.toml"
    config.write_text("workers = 1\n")
    with serving(tmp_path / "data", "--config", str(config)) as server:
        config.write_text("workers = 3\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: len(server.workers()) == 3)
        config.write_text("wokers = 1\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "unknown option 'wokers'; the old ones stay in force" in server.log.read_text())
        server.wait_for(lambda: len(server.workers()) == 3)
        assert server.answers()


def test_a_hung_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data, "--heartbeat", "2") as server:
        assert b" 200 " in server.get("/collect?sessionId=before")
        victim = server.worker()
        os.kill(victim, signal.SIGSTOP)
        server.wait_for(lambda: set(server.workers()) - {victim})
        server.wait_for(server.answers)
        server.wait_for(lambda: len(list((data / "journal").iterdir())) == 1)
        assert keys_of(cat(data)) == {"before": 1}


def test_a_data_directory_deleted_under_a_worker_is_made_again(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server:
        server.get("/collect?sessionId=before")
        victim = server.worker()
        gone = data.rename(tmp_path / "gone")  # at once: a worker that sees it half deleted makes files in it again
        shutil.rmtree(gone)
        server.wait_for(lambda: set(server.workers()) - {victim})
        server.wait_for(server.answers)
        assert b" 200 " in server.get("/collect?sessionId=after")
        assert keys_of(cat(data)) == {"after": 1}
        assert "was deleted" in server.log.read_text()


@pytest.mark.slow
def test_cat_and_verify_run_while_segments_are_sealed(tmp_path: Path) -> None:
    config = tmp_path / "kanalony.toml"
    config.write_text('segment_age = 1\nsegment_size = "64KiB"\nsync_interval = 0.1\n')
    data = tmp_path / "data"
    with serving(data, "--workers", "2", "--config", str(config)) as server:
        load = Load(server, limit=20_000)
        for _ in range(4):
            before = set(load.acked)
            assert before <= set(keys_of(cat(data)))
            done = run("verify", "--data", data)
            assert (done.returncode, done.stderr) == (0, "")
        load.stop()
        assert server.stop() == 0
    assert_kept(data, load)
    assert len(list((data / "segments" / "sealed").iterdir())) > 3


def test_an_idle_connection_keeps_neither_reload_nor_stop_waiting(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with serving(data) as server, server.connect(60) as idle, server.connect(60) as probe:
        idle.sendall(b"GET /collect?sessionId=idle-1 HTTP/1.1\r\nHost: t\r\n\r\n")
        assert b" 200 " in idle.recv(4096)

        def is_retiring() -> bool:
            probe.sendall(b"GET /robots.txt HTTP/1.1\r\nHost: t\r\n\r\n")
            return b"Connection: close" in probe.recv(4096)

        assert not is_retiring()
        (before,) = server.workers()
        server.process.send_signal(signal.SIGHUP)
        (replaced,) = server.wait_for(lambda: set(server.workers()) - {before})
        server.wait_for(lambda: len(list((data / "journal").glob("*.journal"))) == 2)
        server.wait_for(is_retiring)
        # The one that retires still answers its connection, and is no reason not to replace one that dies.
        os.kill(replaced, signal.SIGKILL)
        server.wait_for(lambda: set(server.workers()) - {before, replaced})
        assert b" 200 " in server.get("/collect?sessionId=new")
        idle.sendall(b"GET /collect?sessionId=idle-2 HTTP/1.1\r\nHost: t\r\n\r\n")
        answer = idle.recv(4096)
        assert b" 200 " in answer
        assert b"Connection: close" in answer
        server.wait_for(lambda: before not in server.workers())
        assert server.stop() == 0
    assert keys_of(cat(data)) == {"idle-1": 1, "new": 1, "idle-2": 1}


def test_a_reload_that_cannot_start_leaves_the_old_workers_serving(tmp_path: Path) -> None:
    config = tmp_path / "kanalony.toml"
    config.write_text("workers = 1\n")
    (tmp_path / "taken").write_text("a file")
    with serving(tmp_path / "data", "--config", str(config)) as server:
        for text, problem in [("workers = 0\n", "workers"), (f'spool = ["{tmp_path}/taken"]\n', "taken is a file")]:
            config.write_text(text)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for(lambda problem=problem: problem in server.log.read_text())
            server.wait_for(server.answers)
        assert b" 200 " in server.get("/collect?sessionId=still")


def test_reload_brings_new_code_and_broken_code_leaves_the_old_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path(kanalony.__file__).parent
    shutil.copytree(package, tmp_path / "code" / "kanalony")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "code"))
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # not the package in the current directory
    responses = tmp_path / "code" / "kanalony" / "collector" / "responses.py"
    original = responses.read_text()
    with serving(tmp_path / "data") as server:
        assert b"no-store" in server.get("/collect?sessionId=first")
        (first,) = server.workers()
        responses.write_text(original.replace('"no-store"', '"no-store, v2"'))
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: b"no-store, v2" in server.get("/collect?sessionId=second"))
        responses.write_text("this is no Python\n")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for(lambda: "worker not started" in server.log.read_text())
        server.wait_for(lambda: first not in server.workers())
        assert b"no-store, v2" in server.get("/collect?sessionId=third")
