"""Distinct counts by theta sketches (Apache DataSketches), as a function of the SQL engine."""

import duckdb
import pyarrow as pa
from datasketches import compact_theta_sketch, theta_union

from kanalony.aggregate.rollups import SKETCH_SIZE, sketch_of

ESTIMATE = "kanalony_distinct"
"""The SQL function: (sketches BLOB[], ids VARCHAR[]) -> BIGINT."""


def register(engine: duckdb.DuckDBPyConnection) -> None:
    """Makes the function ESTIMATE known to an engine."""
    # mypy: duckdb's stubs name the types of `type` and `null_handling` differently from release to release.
    engine.create_function(  # type: ignore[call-overload]
        ESTIMATE, _estimate, ["BLOB[]", "VARCHAR[]"], "BIGINT", type="arrow", null_handling="special"
    )


def _estimate(sketches: pa.Array, ids: pa.Array) -> pa.Array:
    """Estimates, row by row, the number of distinct texts in the sketches and the list of ids together."""
    found = []
    for row in range(len(sketches)):
        union = theta_union(SKETCH_SIZE)
        for sketch in sketches[row].as_py() or ():
            union.update(compact_theta_sketch.deserialize(sketch))
        union.update(compact_theta_sketch.deserialize(sketch_of(ids[row].as_py() or [])))
        found.append(round(union.get_result().get_estimate()))
    return pa.array(found, pa.int64())
