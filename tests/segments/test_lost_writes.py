"""What remains after a power loss, at every step of write, rename and seal: only what was synced."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kanalony.collector.app import create_app
from kanalony.segments.check import check_data
from kanalony.segments.directory import DataDirectory
from kanalony.segments.recovery import adopt_journals
from kanalony.segments.requests import read_data
from kanalony.settings.serving import ServeSettings
from tests.collector.wsgi import SMALL, call

BLOCKS = 4096  # where the blocks of a journal begin


class Disk:
    """Records what is durable below a directory: file contents as of their last fsync, names as of their directory's.

    It wraps os.fsync and os.fdatasync. A synced append calls msync from C: the test reports it with `synced_append`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        self._kept_open: list[int] = []  # so that no inode number is used twice
        self.steps = 0
        self.on_step: Callable[[], object] = lambda: None

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, self._listen(getattr(os, name)))
        for owner, name in ((os, "write"), (Path, "rename"), (Path, "unlink")):
            patch.setattr(owner, name, self._step(getattr(owner, name)))

    def _step(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            result = real(*arguments, **options)
            self.steps += 1
            self.on_step()
            return result

        return call

    def _listen(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def sync(fd: int) -> None:
            real(fd)
            self._remember(Path(f"/proc/self/fd/{fd}").readlink(), fd)

        return self._step(sync)

    def _remember(self, path: Path, fd: int) -> None:
        if path.is_dir():
            self._names[path] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        else:
            inode = os.fstat(fd).st_ino
            if inode not in self._contents:
                self._kept_open.append(os.dup(fd))
            self._contents[inode] = Path(f"/proc/self/fd/{fd}").read_bytes()

    def synced_append(self, journal: Path) -> None:
        """Msync has made the blocks durable; the header, with the watermark, is as of the last fsync."""
        inode = journal.stat().st_ino
        self._contents[inode] = self._contents[inode][:BLOCKS] + journal.read_bytes()[BLOCKS:]

    def image(self, target: Path) -> Path:
        """Writes what the disk would hold after a power loss now to a directory."""
        shutil.rmtree(target, ignore_errors=True)
        for directory, names in self._names.items():
            if directory.is_relative_to(self.root):
                copy = target / directory.relative_to(self.root)
                copy.mkdir(parents=True, exist_ok=True)
                for name, inode in names.items():
                    if not (directory / name).is_dir():
                        (copy / name).write_bytes(self._contents.get(inode, b""))
        return target

    def close(self) -> None:
        for fd in self._kept_open:
            os.close(fd)


@pytest.mark.parametrize("ack", ["synced", "written"])
def test_a_power_loss_costs_at_most_what_the_ack_level_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ack: str
) -> None:
    """After every step that changes the disk, a copy of what is durable is recovered and compared.

    With `synced` nothing acknowledged may be missing, with `written` nothing that is older than sync_interval.
    """
    sync_interval = 1.0
    settings = ServeSettings(data=tmp_path / "data", ack=ack, sync_interval=sync_interval, segment_age=1, **SMALL)
    disk = Disk(settings.data)
    acknowledged: dict[bytes, float] = {}
    images: list[tuple[Path, set[bytes]]] = []

    def lose_power() -> None:
        now = time.monotonic()
        owed = {key for key, when in list(acknowledged.items()) if ack == "synced" or now - when > sync_interval}
        images.append((disk.image(tmp_path / f"image-{len(images)}"), owed))

    with monkeypatch.context() as patch:
        disk.install(patch)
        app = create_app(settings)
        journal = app._store.journal.path  # type: ignore[union-attr]
        disk.on_step = lose_power
        for number in range(400):
            key = b"n=%d" % number
            assert call(app, QUERY_STRING=key.decode())[0] == "200 OK"
            if ack == "synced":
                disk.synced_append(journal)
            acknowledged[key] = time.monotonic()
            time.sleep(0.01)
        app.close()
        disk.on_step = lambda: None
    disk.close()
    assert len(images) > 20, "too few steps were checked"
    assert any(owed for _, owed in images)
    for number, (image, owed) in enumerate(images):
        data = DataDirectory.writable(image)
        list(adopt_journals(data))
        found = [event.query for event in read_data(data, lambda _: None)]
        assert owed - set(found) == set(), f"image {number}: acknowledged but missing"
        assert len(found) == len(set(found)), f"image {number}: stored twice"
        assert check_data(data).damaged == [], f"image {number}"
    assert len(images[-1][1]) > 200, "the last steps should owe nearly everything"
