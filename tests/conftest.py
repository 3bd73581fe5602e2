from pathlib import Path

import pytest

from kanalony.segments.directory import DataDirectory


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """An empty data directory."""
    return DataDirectory.writable(tmp_path / "data")
