"""Who may read the files of a data directory, and that no other user can hold its locks."""

import asyncio
import contextlib
import fcntl
import grp
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.server import run, serving
from kanalony import durable
from kanalony.errors import StorageError, UsageError
from kanalony.segments.directory import DataDirectory
from kanalony.segments.locks import open_lock
from tests.files import fields, journal_file, segment_file
from tests.tools import tool

NOBODY = 65534
GROUP = grp.getgrgid(os.getegid()).gr_name
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(root: Path) -> dict[str, int]:
    """The modes of a directory and everything below it except links. Files may vanish meanwhile."""
    found = {}
    for path in (root, *root.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode):
                found[str(path.relative_to(root))] = stat.S_IMODE(mode)
    return found


def assert_private(root: Path) -> None:
    for path, mode in modes(root).items():
        assert mode == (0o700 if (root / path).is_dir() else 0o600), path


def assert_shared(root: Path) -> None:
    """The group can list directories and read files, except locked ones and keys."""
    for path, mode in modes(root).items():
        place = root / path
        closed = {root / "journal", root / "segments" / "open", root / "address-keys"}
        if place.is_dir():
            assert mode == (0o2700 if place in closed else 0o2750), path
        elif not closed & set(place.parents):  # the group cannot reach these
            assert mode == (0o600 if place.suffix == ".lock" else 0o640), path


@pytest.mark.parametrize("server", ["meinheld", "granian"])
def test_files_of_collector_and_compact_are_private_to_their_user(tmp_path: Path, server: str) -> None:
    data = tmp_path / "made" / "data"
    data.parent.mkdir()
    options = ["--anonymize-ip", "hmac", "--server", server, "--spool", str(tmp_path / "spool" / "deep")]
    with serving(data, *options) as running:
        assert b" 200 " in running.get("/collect?eventType=3")
        assert_private(data)
        running.stop()
    assert run("compact", "--data", data).returncode == 0
    assert {"lake/compact.lock", "recovery.lock", "address-keys"} <= set(modes(data))
    assert any(path.endswith(".parquet") for path in modes(data))
    assert_private(data)
    assert_private(tmp_path / "spool")


@pytest.mark.parametrize("server", ["meinheld", "granian"])
def test_a_group_may_read_what_is_sealed_and_lock_nothing(tmp_path: Path, server: str) -> None:
    data = tmp_path / "data"
    options = ["--group", GROUP, "--anonymize-ip", "hmac", "--server", server, "--spool", str(tmp_path / "spool")]
    with serving(data, *options) as running:
        assert b" 200 " in running.get("/collect?eventType=3")
        running.stop()
    for command in ("compact", "recover"):  # without --group
        assert run(command, "--data", data).returncode == 0
    assert any(path.endswith(".parquet") for path in modes(data))
    assert {"lake/compact.lock", "recovery.lock", "address-keys"} <= set(modes(data))
    assert_shared(data)
    assert_shared(tmp_path / "spool")


def test_a_data_directory_with_other_modes_gets_the_right_ones_at_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "data"
    data = DataDirectory.writable(root)
    segment_file(data, [[fields(1)]])
    journal_file(data, [fields(2)])
    (root / "recovery.lock").touch()
    for path in [root, *root.rglob("*")]:
        path.chmod(0o777 if path.is_dir() else 0o666)
    DataDirectory.for_collector(root, [], None)
    assert_private(root)
    assert f"changed the mode of {root} from 777 to 700" in caplog.text
    DataDirectory.for_collector(root, [], GROUP)
    assert_shared(root)
    DataDirectory.for_collector(root, [], None)
    assert_private(root)


def test_a_segment_that_was_open_when_the_group_was_set_is_readable_once_it_is_sealed(tmp_path: Path) -> None:
    data = DataDirectory.for_collector(tmp_path / "data", [], None)
    (data.open / "segment.lz4").touch(mode=0o600)
    DataDirectory.for_collector(data.root, [], GROUP)
    (data.open / "segment.lz4").rename(data.sealed / "segment.lz4")
    assert_shared(data.root)


def test_a_data_directory_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data").mkdir()
    for group, assert_modes in ((GROUP, assert_shared), (None, assert_private)):
        DataDirectory.for_collector(tmp_path / "link", [], group)
        assert_modes(tmp_path / "data")


def test_links_in_a_data_directory_are_not_followed(tmp_path: Path) -> None:
    data = DataDirectory.writable(tmp_path / "data")
    (tmp_path / "mine").touch()
    (tmp_path / "mine").chmod(0o644)
    (data.quarantine / "link").symlink_to(tmp_path / "mine")
    data.root.chmod(0o755)
    DataDirectory.for_collector(data.root, [], GROUP)
    assert stat.S_IMODE((tmp_path / "mine").stat().st_mode) == 0o644


def test_a_missing_group_is_an_error(tmp_path: Path) -> None:
    done = run("serve", "--group", "no-such-group", "--port", "0", "--data", tmp_path / "data")
    assert done.returncode == 2
    assert "there is no group 'no-such-group'" in done.stderr


@as_root
def test_a_stranger_holds_no_lock_and_reads_nothing(tmp_path: Path) -> None:
    data, locks = _with_a_dead_worker(tmp_path, None)
    for path in locks:
        assert "Permission denied" in _as_nobody(os.getegid() + 1, tool("flock"), "-n", path, "true").stderr
    assert "Permission denied" in _as_nobody(os.getegid() + 1, "ls", data.root).stderr


@as_root
def test_a_member_of_the_group_reads_what_is_sealed_and_holds_no_lock(tmp_path: Path) -> None:
    data, locks = _with_a_dead_worker(tmp_path, GROUP)
    for path in locks:
        assert "Permission denied" in _as_nobody(os.getegid(), tool("flock"), "-n", path, "true").stderr
    (sealed,) = data.sealed.iterdir()
    assert _as_nobody(os.getegid(), "cp", sealed, "/dev/null").stderr == ""


def _with_a_dead_worker(tmp_path: Path, group: str | None) -> tuple[DataDirectory, list[Path]]:
    """A data directory, and the files in it that processes lock."""
    for parent in (tmp_path, *tmp_path.parents):
        if parent.owner() == "root" and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o011)
    data = DataDirectory.for_collector(tmp_path / "data", [], group)
    segment_file(data, [[fields(1)]])
    journal = journal_file(data, [fields(2)])
    (data.open / "segment.lz4").touch()
    open_lock(data.recovery_lock).close()
    return data, [data.recovery_lock, journal.path, data.open / "segment.lz4"]


def _as_nobody(group: int, *command: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, user=NOBODY, group=group, extra_groups=[], capture_output=True, text=True, timeout=30
    )


def test_a_user_who_may_not_list_the_journals_gets_an_error(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(StorageError, match=r"only the user of the collector can read .*journal"):
        data.journals()
    with pytest.raises(StorageError, match="only the user of the collector can read"):
        data.segments()


def test_files_that_cannot_be_given_to_the_group_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(UsageError, match=f"cannot be given to the group {GROUP}"):
        DataDirectory.for_collector(tmp_path / "data", [], GROUP)
    assert_private(tmp_path / "data")


def test_a_directory_that_the_group_cannot_reach_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    DataDirectory.for_collector(tmp_path / "shut" / "data", [], GROUP)
    (tmp_path / "shut").chmod(0o700)
    gid = (tmp_path / "shut").stat().st_gid
    assert gid == os.getegid()
    assert f"allow it with chmod o+x {tmp_path / 'shut'}" in caplog.text


def test_a_created_lock_file_can_be_locked(tmp_path: Path) -> None:
    with open_lock(tmp_path / "a.lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert stat.S_IMODE((tmp_path / "a.lock").stat().st_mode) == 0o600


def test_every_directory_that_is_created_for_the_data_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = durable.sync_directory

    def record(directory: Path) -> None:
        sync(directory)
        synced.append(directory)

    monkeypatch.setattr(durable, "sync_directory", record)
    data = DataDirectory.writable(tmp_path / "a" / "b" / "data")
    made = (data.root, data.root.parent, data.root.parent.parent, data.journal, data.open)
    assert {path.parent for path in made} <= set(synced)


def test_a_member_of_the_group_gets_no_count_of_waiting_requests(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    backlog = pytest.importorskip("kanalony.reports.api.backlog")
    limits = pytest.importorskip("kanalony.reports.api.limits").Limits()

    def refuse(_: Path) -> Iterator[Path]:
        raise PermissionError

    assert asyncio.run(backlog.Backlog(data, limits).count()) == 0
    monkeypatch.setattr(Path, "iterdir", refuse)
    assert asyncio.run(backlog.Backlog(data, limits).count()) is None
