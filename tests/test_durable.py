"""Durable files: what is on the disk after each function, and what a refusing disk leaves."""

import errno
import os
from pathlib import Path

import pytest

from kanalony import durable


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files and directories that were synced, in order."""
    found: list[Path] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        real(descriptor)
        found.append(Path(f"/proc/self/fd/{descriptor}").readlink())

    monkeypatch.setattr(os, "fsync", fsync)
    return found


@pytest.mark.parametrize("mode", ["xb", "wb", "ab"])
def test_an_opened_file_and_its_name_are_durable(tmp_path: Path, synced: list[Path], mode: str) -> None:
    """Also when the file exists: the process that created it may have died before it synced the directory."""
    path = tmp_path / "file"
    if mode != "xb":
        path.write_bytes(b"old")
    with durable.opened(path, mode) as file:
        file.write(b"new")
    assert synced == [path, tmp_path]
    assert path.read_bytes() == {"xb": b"new", "wb": b"new", "ab": b"oldnew"}[mode]


def test_a_published_file_is_durable_before_its_name(tmp_path: Path, synced: list[Path]) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    durable.publish(path, b"new")
    young, directory = synced
    assert (young.parent, young.suffix, directory) == (tmp_path, durable.YOUNG, tmp_path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"new")]


def test_a_published_file_has_its_mode_and_all_parts_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.publish(path, (b"%d" % number for number in range(3)), mode=0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"012", 0o600)


def test_a_published_link_never_replaces_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.publish(path, b"first", rename=os.link)
    with pytest.raises(FileExistsError):
        durable.publish(path, b"second", rename=os.link)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"first")]


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="no space left"):
        durable.publish(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]


def test_a_removed_file_stays_removed(tmp_path: Path, synced: list[Path]) -> None:
    (tmp_path / "file").touch()
    durable.remove(tmp_path / "file")
    assert synced == [tmp_path]
    with pytest.raises(FileNotFoundError):
        durable.remove(tmp_path / "file")


def test_what_a_dead_writer_left_unpublished_is_removed_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("file", "other-1-0a.young", "file.young")]
    left = [tmp_path / "file-1-0a.young", tmp_path / "file-22-ff00.young"]
    for path in kept + left:
        path.touch()
    durable.remove_unpublished(tmp_path / "file")
    assert sorted(tmp_path.iterdir()) == sorted(kept)
