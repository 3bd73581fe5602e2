"""Hypothesis profiles, and the data directory that most tests begin with."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from kanalony.segments.directory import DataDirectory

# `make test` runs the fast profile, everything else the full one. Tests that set a number of examples take it from
# tests.tools.examples. Without deadlines: on a busy machine any example may take long. CI takes the same examples each
# time, as Hypothesis's own profile for CI does: it fails for what a change did.
settings.register_profile("full", max_examples=100, deadline=None, derandomize="CI" in os.environ)
settings.register_profile("fast", max_examples=25, deadline=None)
settings.load_profile("full")


@pytest.fixture
def data(tmp_path: Path) -> DataDirectory:
    """An empty data directory."""
    return DataDirectory.writable(tmp_path / "data")
