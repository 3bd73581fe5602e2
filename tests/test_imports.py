"""The two halves meet only at the segment files: neither may load the other's libraries."""

import subprocess
import sys

import pytest

OFFLINE_ONLY = (
    *("pyarrow", "duckdb", "deltalake", "numpy", "polars", "ua_parser", "cryptography", "tabulate", "datasketches"),
    *("plotext", "starlette", "uvicorn"),
)
SERVING_ONLY = ("falcon", "meinheld", "gunicorn")


@pytest.mark.parametrize(
    ("modules", "banned"),
    [
        ("kanalony.collector.app, kanalony.collector.server", OFFLINE_ONLY),
        ("kanalony.cli, kanalony.segments.check, kanalony.segments.recovery, kanalony.aggregate.run", SERVING_ONLY),
        ("kanalony.reports.api, kanalony.reports.table", SERVING_ONLY),
    ],
)
def test_a_half_does_not_load_the_other_halfs_libraries(modules: str, banned: tuple[str, ...]) -> None:
    code = f"import sys, {modules}; print([name for name in {banned!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
