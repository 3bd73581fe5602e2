"""Converts nginx's JSON log to Parquet in plain Python: urllib and pyarrow. Usage: python_compact.py LOG OUT"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.parquet as pq

TYPES: dict[str, tuple[Callable[[str], object], pa.DataType]] = {
    "eventType": (int, pa.int32()),
    "partnerId": (int, pa.int64()),
    "entryId": (str, pa.string()),
    "sessionId": (str, pa.string()),
    "eventIndex": (int, pa.int64()),
    "position": (float, pa.float64()),
    "playTimeSum": (float, pa.float64()),
    "bufferTime": (float, pa.float64()),
    "actualBitrate": (float, pa.float64()),
    "deliveryType": (str, pa.string()),
    "playbackType": (str, pa.string()),
    "userId": (str, pa.string()),
    "referrer": (str, pa.string()),
}
HEADERS = ("remote_addr", "user_agent", "referer", "query")


def typed(name: str, text: str | None) -> object:
    try:
        return None if text is None else TYPES[name][0](text)
    except ValueError:
        return None


log, output = sys.argv[1:]
columns: dict[str, list[object]] = {name: [] for name in ("receivedAt", *HEADERS, *TYPES, "params")}
with Path(log).open(encoding="utf-8") as file:
    for line in file:
        event = json.loads(line)
        params = dict(parse_qsl(event["query"], keep_blank_values=True))
        columns["receivedAt"].append(int(float(event["time"]) * 1e6))
        for name in HEADERS:
            columns[name].append(event[name])
        for name in TYPES:
            columns[name].append(typed(name, params.get(name)))
        columns["params"].append(list(params.items()))
schema = {"receivedAt": pa.timestamp("us", "UTC"), **dict.fromkeys(HEADERS, pa.string())}
schema |= {name: kind for name, (_, kind) in TYPES.items()} | {"params": pa.map_(pa.string(), pa.string())}
table = pa.table({name: pa.array(values, schema[name]) for name, values in columns.items()})
table = table.sort_by([(name, "ascending") for name in ("partnerId", "entryId", "sessionId", "receivedAt")])
pq.write_table(table, output, compression="zstd")
