"""Measures of play sequences equal those of the reference for sessions with many faults."""

from math import isclose
from pathlib import Path
from typing import Any

import pytest

from kanalony.reports.execution import Reports
from kanalony.reports.query import Query
from kanalony.reports.renderer import as_object
from kanalony.segments.directory import DataDirectory
from tests.aggregate.lakes import NOON, roll_up, seal
from tests.reports import reference
from tests.reports.sessions import random_sessions

METRICS = ("events", "view", "minutesWatched", "averageViewDuration", "rebufferRatio", "lossRate")
DIMENSIONS: list[tuple[str, ...]] = [(), ("hour",), ("minute",), ("tenSeconds", "entry"), ("day", "partner")]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> tuple[DataDirectory, list[reference.Event]]:
    """A lake of 400 sessions, received by two workers and compacted one after the other; and the reference's events."""
    data = DataDirectory.writable(tmp_path_factory.mktemp("sessions") / "data")
    requests = random_sessions(1, 400, NOON)
    parts = [requests[0::3] + requests[1::3], requests[2::3]]
    parts = [sorted(part, key=lambda request: request.at) for part in parts]
    for worker, part in enumerate(parts, 1):
        seal(data, [part], worker=worker)
        assert roll_up(data)
    return data, reference.read([(sent.at, sent.query.decode(), {}) for part in parts for sent in part])


def differences(data: DataDirectory, events: list[reference.Event], dimensions: tuple[str, ...]) -> dict[Any, Any]:
    """Returns the metrics of rows that differ, as (report, reference)."""
    report = as_object(Reports(data).run(Query(METRICS, dimensions)))
    rows = {tuple(row[name] for name in dimensions): row for row in report["rows"]}
    expected = reference.report(events, dimensions)
    assert rows.keys() == expected.keys()
    return {
        (*row, name): (rows[row][name], values[name])
        for row, values in expected.items()
        for name in METRICS
        if not same(rows[row][name], values[name])
    }


def same(one: float | None, other: float | None) -> bool:
    """Whether two values are equal, except for the last digits of a division."""
    return one is other if one is None or other is None else isclose(one, other, rel_tol=1e-12)


@pytest.mark.parametrize("dimensions", DIMENSIONS, ids=" ".join)
def test_rollups_have_the_measures_of_the_reference(
    lake: tuple[DataDirectory, list[reference.Event]], dimensions: tuple[str, ...]
) -> None:
    assert differences(*lake, dimensions) == {}


@pytest.mark.parametrize("dimensions", DIMENSIONS, ids=" ".join)
def test_events_have_the_measures_of_the_reference(
    lake: tuple[DataDirectory, list[reference.Event]], dimensions: tuple[str, ...], tmp_path: Path
) -> None:
    data, events = lake
    bare = DataDirectory.writable(tmp_path / "bare")
    bare.lake.mkdir()
    (bare.lake / "events").symlink_to(data.lake / "events")
    assert differences(bare, events, dimensions) == {}
