"""The answer to a query."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from kanalony.errors import UsageError
from kanalony.events import Metric

_SILENCE = timedelta(minutes=5)


@dataclass
class Result:
    """Rows, totals, and where they come from.

    Attributes:
        metrics: The metrics, in order.
        dimensions: The names of the dimensions, in order.
        table: A column for each dimension (text, time or date), then for each metric (numbers; null where a ratio
            has nothing to divide by).
        latest: When the newest event in the lake was received.
        count: Rows of all pages.
        totals: The metrics of all rows together.
        estimated: Names of metrics that sketches estimate.
        tables: Names of the tables that were read.
    """

    metrics: list[Metric]
    dimensions: list[str]
    table: pa.Table
    latest: datetime | None
    count: int = 0
    totals: dict[str, Any] = field(default_factory=dict)
    estimated: list[str] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)

    @property
    def is_behind(self) -> bool:
        """Whether events may be missing from the lake: no rows, or no event received in the last five minutes."""
        return not self.table.num_rows or self.latest is None or datetime.now(UTC) - self.latest > _SILENCE


def answer_too_large(most: int) -> UsageError:
    """Returns the error for an answer of more than `most` bytes."""
    return UsageError(
        f"the answer has more than {most:,} bytes",
        "ask for smaller pages (pageSize), or for fewer metrics and dimensions",
    )
