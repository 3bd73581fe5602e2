"""The data directory: what may become one, and the order in which its places are tried."""

import errno
from pathlib import Path

import pytest

from kanalony.errors import UsageError
from kanalony.segments.damage import Damage
from kanalony.segments.directory import MARKER, DataDirectory, in_some_place
from kanalony.segments.quarantine import quarantine


def places(tmp_path: Path) -> list[DataDirectory]:
    data = DataDirectory.writable(tmp_path / "data")
    data.add_spools([tmp_path / "first", tmp_path / "second"])
    return data.places()


@pytest.mark.parametrize("name", [f".{MARKER}.123", f"{MARKER}-123-0a1b2c3d.young", "lost+found", "journal"])
def test_a_directory_with_leftovers_of_another_start_becomes_a_data_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch() if MARKER in name else (tmp_path / name).mkdir()
    DataDirectory.writable(tmp_path)
    assert DataDirectory.existing(tmp_path).root == tmp_path


@pytest.mark.parametrize("name", [f"{MARKER}-notes", "thesis.young", "photos"])
def test_a_directory_with_other_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match="holds files that are not kanalony's"):
        DataDirectory.writable(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_first_place_that_accepts_a_step_ends_the_search(tmp_path: Path) -> None:
    data, first, second = places(tmp_path)
    refusals: list[tuple[DataDirectory, str | None]] = []

    def step(place: DataDirectory) -> Path:
        if place.root == data.root:
            raise OSError(errno.ENOSPC, "no space left")
        return place.root

    found = in_some_place([data, first, second], step, lambda place, error: refusals.append((place, error.strerror)))
    assert found == first.root
    assert refusals == [(data, "no space left")]


def test_when_every_place_refuses_the_last_error_is_raised(tmp_path: Path) -> None:
    tried: list[Path] = []

    def step(place: DataDirectory) -> None:
        tried.append(place.root)
        raise OSError(errno.EIO, str(place.root))

    every = places(tmp_path)
    with pytest.raises(OSError, match=str(every[-1].root)):
        in_some_place(every, step)
    assert tried == [place.root for place in every]


def test_a_spool_directory_belongs_to_one_data_directory(tmp_path: Path) -> None:
    data, *_ = places(tmp_path)
    data.add_spools([tmp_path / "first"])  # again, as at each start
    other = DataDirectory.writable(tmp_path / "other")
    with pytest.raises(UsageError, match=f"is the spool directory of {data.root}"):
        other.add_spools([tmp_path / "first"])


def test_quarantine_may_be_repeated(data: DataDirectory) -> None:
    damage = Damage(data.open / "segment.lz4", 10, 13, "garbage")
    for _ in range(2):
        quarantine(data, damage, b"abc")
    quarantine(data, Damage(data.open / "segment.lz4", 20, 20, "a gap"), b"")
    (copy,) = data.quarantine.iterdir()
    assert (copy.name, copy.read_bytes()) == ("segment.lz4.10-13", b"abc")
