"""Fixtures of the tests of the offline half."""

from pathlib import Path

import pytest

from kanalony.segments.directory import DataDirectory


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    return DataDirectory.writable(tmp_path / "data")
