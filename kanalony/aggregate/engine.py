"""The SQL engine (DuckDB) that reads the lake: for rollups, and for reports."""

from collections.abc import Iterable
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from kanalony.aggregate.delta import PARTITION
from kanalony.aggregate.lake import SCHEMA
from kanalony.aggregate.parquet import LakeFile


def connect(
    memory: int | None = None, threads: int | None = None, spill: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """Opens an engine that reads nothing from the network and needs no extension.

    Args:
        memory: Limit in bytes; DuckDB's own, four fifths of the machine's memory, when None.
        threads: Threads for a query; one per core when None.
        spill: Directory for what exceeds the memory; DuckDB's own when None.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": False,
        "allocator_flush_threshold": "8MiB",  # freed memory that the allocator keeps; 128 MiB by default
    }
    if memory is not None:
        config["memory_limit"] = f"{memory}B"
    if threads is not None:
        config["threads"] = threads
    if spill is not None:
        config["temp_directory"] = str(spill)
    engine = duckdb.connect(config=config)
    engine.execute("SET TimeZone = 'UTC'")
    return engine


def with_all_columns(files: Iterable[LakeFile], directory: Path) -> list[str]:
    """Lists files of the lake for `read_parquet`, and one without rows that has every column of the current schema.

    Files of older versions lack columns; `union_by_name` takes them from the file without rows.

    Args:
        files: Files of the table of events.
        directory: Where the file without rows is written, once.
    """
    empty = directory / "no-rows.parquet"
    if not empty.exists():
        fields = [field for field in SCHEMA if field.name != PARTITION]
        pq.write_table(pa.schema(fields).empty_table(), empty)
    return [str(empty), *(str(file.path) for file in files)]
