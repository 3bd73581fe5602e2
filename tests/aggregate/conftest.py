"""What the tests of aggregation begin with."""

from pathlib import Path

import pytest

from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import MEMORY


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory.writable(tmp_path / "data")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kanalony.aggregate.compact._BATCH_SHARE", MEMORY // (128 << 10))  # some 70 events each
