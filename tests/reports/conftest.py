"""Lakes that several tests read, and the dashboard over one of them."""

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.server import KANALONY
from kanalony.segments.directory import DataDirectory
from kanalony.units import HOUR
from tests.aggregate.lakes import SECOND, Sent
from tests.reports.asking import PLAY, event, session, store

MakeLake = Callable[..., DataDirectory]


@pytest.fixture(scope="session")
def lake_of(tmp_path_factory: pytest.TempPathFactory) -> MakeLake:
    """Makes a data directory with the given events in its lake and rollups, for tests that only read it."""

    def make(*sent: Sent) -> DataDirectory:
        data = DataDirectory.writable(tmp_path_factory.mktemp("lake") / "data")
        store(data, *sent)
        return data

    return make


@pytest.fixture(scope="session")
def lake(lake_of: MakeLake) -> DataDirectory:
    """Two partners' events of the last hours, up to now."""
    now = time.time_ns() // 1000
    sent: list[Sent] = []
    for number in range(60):
        start = now - 3 * HOUR + number * 170 * SECOND
        partner, entry = (1, f"0_{number % 7}") if number % 3 else (2, f"1_{number % 5}")
        more = {"playbackType": "live"} if number % 4 == 0 else {}
        watched = session(start, 3 + number % 30, name=f"s{number}", entryId=entry, partnerId=partner, **more)
        sent += [once for once in watched if once.at < now]
    sent += [event(now - HOUR, PLAY, entryId="<b>&amp;'\"</b>", sessionId="x", joinTime=1.5, bufferTime=2)]
    sent += [event(now - SECOND, 98, entryId="0_1", sessionId="y")]
    return lake_of(*sorted(sent, key=lambda once: once.at))


@contextmanager
def dashboard(data: Path, *arguments: str) -> Iterator[str]:
    """Runs `kanalony dashboard` in a process of its own; yields its address."""
    log = data.parent / "dashboard.log"
    with log.open("wb") as file:
        command = [*KANALONY, "dashboard", "--data", str(data), "--port", "0", *arguments]
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=data.parent)
    try:
        end = time.monotonic() + 60
        while "dashboard on " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield log.read_text().split("dashboard on ")[1].split()[0]
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text()
        assert "Traceback" not in log.read_text()


@pytest.fixture(scope="session")
def address(lake: DataDirectory) -> Iterator[str]:
    """The address of a dashboard over `lake`."""
    with dashboard(lake.root) as address:
        yield address
