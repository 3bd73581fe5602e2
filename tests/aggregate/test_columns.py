"""Requests become columns: every value in the column of its parameter, all others in the map, none lost."""

import itertools
import json
import resource
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from kanalony.aggregate.columns import SCHEMA, Columns
from kanalony.core.columns import release_memory
from kanalony.events import PARAMETERS
from kanalony.segments.directory import DataDirectory
from kanalony.simulate.viewers import simulate
from tests.aggregate import reference
from tests.aggregate.lakes import NOON, Sent
from tests.files import Fields, new_journal
from tests.tools import examples

NAMES = [
    *reference.KINDS,
    *reference.SPELLINGS,
    "event:partnerId",
    "event%3AentryId",
    "event:",
    "callback",
    "_",
    "é",
    "",
]
NUMBERS = [
    "0",
    "-1",
    "007",
    "1.50",
    "1e3",
    "-2.5E-3",
    "",
    ".5",
    "5.",
    "+1",
    "0x1",
    "inf",
    "nan",
    " 1",
    "9" * 18,
    "9" * 19,
]
VALUES = st.sampled_from(NUMBERS) | st.text(max_size=12) | st.floats().map(str) | st.integers().map(str)


def post(body: bytes, query: bytes | None = None, content_type: bytes = b"application/json") -> Fields:
    return (b"POST", b"/collect", None, None, None, None, query, body, content_type, None, None)


def get(query: bytes | None) -> Fields:
    return (b"GET", b"/collect", None, None, None, None, query, None, None, None, None)


def batch_of(data: DataDirectory, requests: Iterable[Fields]) -> tuple[pa.RecordBatch, Counter[str], int]:
    """Returns (events of the requests, cast failures, bodies that could not be read)."""
    journal = new_journal(data, block_size=1 << 20, block_count=2)
    requests = list(requests)
    for request in requests:
        assert journal.blocks.append(*request)
    journal.blocks.hand_over(0)
    block = journal.blocks.full_block(0)
    assert block
    columns = Columns(1 << 30)
    with block[0] as records:
        content = bytes(records)
        added = columns.add(content, journal.worker_id, 1, len(requests), 0, 1 << 62)
    assert added
    batch, cast_failures = columns.finish()
    batch.validate(full=True)
    assert batch.num_rows == added.events
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            assert len(column.dictionary.unique()) == len(column.dictionary), "each text is in the dictionary once"
    journal.remove()
    return batch, cast_failures, added.unread


def assert_row(row: dict[str, Any], pairs: list[tuple[str, str]]) -> list[str]:
    """Asserts that a row has the reference's columns. Returns the names of its cast failures."""
    typed, rest, conflicts, cast_failures = reference.row(pairs)
    assert {name: row[name] for name in reference.KINDS if row[name] is not None} == typed
    assert {name: list(map(nested, values)) for name, values in row["parameters"]} == {
        name: list(map(nested, values)) for name, values in rest.items()
    }
    assert row["conflicts"] == conflicts
    return cast_failures


def nested(value: str) -> Any:
    """Parses values nested in JSON, so that white space in them does not count."""
    try:
        return json.loads(value) if value[:1] in "[{" else value
    except ValueError:
        return value


def test_every_parameter_of_the_vocabulary_has_the_column_of_the_reference() -> None:
    assert {parameter.name: parameter.kind for parameter in PARAMETERS} == reference.KINDS
    assert {s: p.name for p in PARAMETERS for s in p.spellings} == reference.SPELLINGS
    assert len(set(SCHEMA.names)) == len(SCHEMA.names)


@given(st.lists(st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=8), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(150))
def test_queries_and_json_bodies_become_the_columns_of_the_reference(
    data: DataDirectory, events: list[list[tuple[str, str]]]
) -> None:
    from urllib.parse import quote_plus

    requests, expected = [], []
    for number, pairs in enumerate(events):
        clean = [(n, v.encode("utf-8", "replace").decode()) for n, v in pairs]
        query = "&".join(f"{n if '%' in n else quote_plus(n)}={quote_plus(v)}" for n, v in clean).encode()
        members = ",".join(f"{json.dumps(n)}:{json.dumps(v)}" for n, v in clean)
        body = f"{{{members}}}".encode()
        if number % 3 == 0:
            requests.append(get(query))
            expected.append(reference.query_pairs(query))
        elif number % 3 == 1:
            requests.append(post(body, b"partnerId=5&entryId=x"))
            expected.append([("partnerId", "5"), ("entryId", "x"), *reference.json_pairs(body.decode())])
        else:
            requests.append(post(query or b"a", None, b"application/x-www-form-urlencoded"))
            expected.append(reference.query_pairs(query or b"a"))
    batch, cast_failures, unread = batch_of(data, requests)
    failed = [name for row, pairs in zip(batch.to_pylist(), expected, strict=True) for name in assert_row(row, pairs)]
    assert cast_failures == Counter(failed)
    assert unread == 0


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
@example([b"entryId=\xff\xc3%28&\xf0\x9f%98=%ed%a0%80&a=%f4%90%80%80&b=%e2%82&b=%e2%82a"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(150))
def test_any_bytes_in_a_query_become_valid_columns(data: DataDirectory, queries: list[bytes]) -> None:
    batch, _, _ = batch_of(data, map(get, queries))
    for row, query in zip(batch.to_pylist(), queries, strict=True):
        assert_row(row, reference.query_pairs(query))
        assert row["query"] == (query or None)


def test_names_that_are_the_same_once_repaired_are_one_key(data: DataDirectory) -> None:
    batch, _, _ = batch_of(data, [get(b"%ff=1&%fe=2&a=3")])
    assert batch.to_pylist()[0]["parameters"] == [("a", ["3"]), ("\ufffd", ["1", "2"])]


def test_a_conflict_is_listed_once_however_often_it_is_sent(data: DataDirectory) -> None:
    batch, _, _ = batch_of(data, [get(b"partnerId=1&partnerId=1&partnerId=2&partnerId=3&event:partnerId=4&entryId=x")])
    row = batch.to_pylist()[0]
    assert (row["conflicts"], row["partnerId"]) == (["partnerId"], 1)
    assert row["parameters"] == [("partnerId", ["1", "2", "3", "4"])]


def test_text_is_in_the_dictionary_once_however_it_was_encoded(data: DataDirectory) -> None:
    spellings = [
        b"entryId=a%20b",
        b"entryId=a+b",
        b"entryId=%61+b",
        b"entryId=a%ff",
        b"entryId=a%fe",
        b"entryId=",
        b"x",
    ]
    batch, _, _ = batch_of(data, [*map(get, spellings), post(b'{"entryId":"a\\u0020b"}'), post(b'{"entryId":""}')])
    entries = batch.column("entryId")
    assert entries.dictionary.to_pylist() == ["a b", "a\ufffd", ""]
    assert entries.to_pylist() == ["a b", "a b", "a b", "a\ufffd", "a\ufffd", "", None, "a b", ""]


@pytest.mark.parametrize("size", range(0, 40))
def test_texts_that_differ_in_one_byte_are_not_taken_for_each_other(data: DataDirectory, size: int) -> None:
    texts = [b"a" * size, *(b"a" * at + b"b" + b"a" * (size - at - 1) for at in range(size)), b"a" * (size + 1)]
    batch, _, _ = batch_of(data, [get(b"entryId=" + text) for text in texts])
    assert batch.column("entryId").to_pylist() == [text.decode() for text in texts]


@pytest.mark.parametrize("escape", [b"%20", b"+"])
def test_an_escape_is_seen_wherever_in_a_value_it_stands(data: DataDirectory, escape: bytes) -> None:
    values = [b"a" * at + escape + b"a" * (size - at) for size in range(20) for at in range(size + 1)]
    batch, _, _ = batch_of(data, [get(b"entryId=" + value) for value in values])
    assert batch.column("entryId").to_pylist() == [value.replace(escape, b" ").decode() for value in values]


def test_batches_stay_unchanged_while_others_reuse_freed_memory() -> None:
    def batch(columns: Columns, number: int) -> pa.RecordBatch:
        for at in range(1, 301):
            query = f"entryId=e{number * at}&userId=u{number}&eventIndex={at}&x={'y' * (at * number % 50)}"
            columns.add(Sent(NOON + at, query.encode()).record(number, at), number, at, 1, 0, 1 << 62)
        return columns.finish()[0]

    expected = [batch(Columns(1 << 30), number).to_pylist() for number in range(1, 9)]
    columns = Columns(1 << 30)
    kept: dict[int, pa.RecordBatch] = {}
    for number in range(1, 9):
        made = batch(columns, number)
        kept[number] = made.slice(100, 100) if number % 2 else made
        del made
        if number % 3 == 0:  # their memory goes back to the columns, some of which have new memory by now
            del kept[number - 1], kept[number - 2]
    del columns
    assert set(kept) == {3, 6, 7, 8}
    for number, batch_kept in kept.items():
        assert batch_kept.to_pylist() == (expected[number - 1][100:200] if number % 2 else expected[number - 1])


def test_memory_that_one_batch_needed_and_the_next_does_not_is_given_back() -> None:
    def resident() -> int:
        release_memory()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    names = [parameter.name.encode() for parameter in PARAMETERS if parameter.kind == "text"]
    columns = Columns(1 << 30)
    before = resident()
    for number, name in enumerate(names, 1):
        query = b"sessionId=1&" + name + b"=" + b"x" * (16 << 20)
        columns.add(Sent(NOON, query).record(7, number), 7, number, 1, 0, 1 << 62)
        columns.finish()
    assert resident() - before < 6 * (16 << 20), f"{len(names)} columns had {16 << 20} bytes each"


def test_a_request_from_a_clock_that_is_far_off_is_a_row(data: DataDirectory) -> None:
    columns = Columns(1 << 30)
    record = Sent((1 << 63) + 5, b"a=1").record(7, 1)
    assert columns.add(record, 7, 1, 1, 0, 1 << 62)
    batch, _ = columns.finish()
    assert str(batch["receivedAt"][0].as_py()).startswith("9999-12-31 23:59:59")


def test_the_weight_of_a_batch_is_about_the_size_of_its_columns(data: DataDirectory) -> None:
    kinds = {
        "plain": Sent(NOON, b"eventType=3&partnerId=5&entryId=0_abc&x=" + b"y" * 400),
        "no UTF-8": Sent(NOON, b"entryId=" + b"\xff" * 4000 + b"&" + b"\xfe" * 2000, user_agent=b"\xff" * 8000),
        "many names": Sent(NOON, b"&".join(b"%d" % n for n in range(2000))),
        "long body": Sent(NOON, b"", json.dumps({"x": "a" * 50_000, "é": "é" * 5000}).encode()),
        "batch": Sent(NOON, b"eventType=3&x=" + b"y" * 900, b"[" + b",".join([b'{"a":1}'] * 200) + b"]"),
        "all different": Sent(NOON, b"&".join(name.encode() + b"=N" for name in reference.KINDS)),
    }
    for name, sent in kinds.items():
        columns = Columns(1 << 30)
        for number in range(1, 101):
            different = replace(sent, query=sent.query.replace(b"N", b"%d" % number))
            columns.add(different.record(7, number), 7, number, 1, 0, 1 << 62)
        weight = columns._table.weight
        batch, _ = columns.finish()
        taken = sum(buffer.size for column in batch.columns for buffer in column.buffers() if buffer)
        words = [column.dictionary for column in batch.columns if pa.types.is_dictionary(column.type)]
        taken += sum(buffer.size for column in words for buffer in column.buffers() if buffer)
        assert taken < 1.2 * weight, name


def test_parts_of_the_request_stand_with_each_of_its_events(data: DataDirectory) -> None:
    body = b'[{"eventType":3},{"eventType":99}]'
    request = (b"POST", b"/e", b"\x7f\0\0\1", b"10.0.0.1", b"\xffagent", b"http://a/", b"partnerId=5", body, b"text/x")
    address = bytes.fromhex("20010db8000100020003000400050006")
    batch, _, unread = batch_of(
        data, [(*request, b"identity", b"t" * 16), (b"GET", b"/collect", address, *[None] * 8), post(b"{", b"a=1")]
    )
    first, second, third, fourth = batch.to_pylist()
    assert unread == 1
    assert [row["index"] for row in (first, second, third, fourth)] == [0, 1, 0, 0]
    assert [row["sequence"] for row in (first, second, third, fourth)] == [1, 1, 2, 3]
    assert (first["body"], second["body"], fourth["body"]) == (body, None, b"{")
    assert third["remoteAddr"] == "2001:db8:1:2:3:4:5:6"
    for row in (first, second):
        assert row["remoteAddr"] == "127.0.0.1"
        assert (row["method"], row["path"], row["forwardedFor"], row["referer"]) == (
            "POST",
            "/e",
            "10.0.0.1",
            "http://a/",
        )
        assert (row["userAgent"], row["contentType"], row["contentEncoding"]) == ("\ufffdagent", "text/x", "identity")
        assert (row["addressToken"], row["query"], row["partnerId"]) == (b"t" * 16, b"partnerId=5", 5)


def test_the_same_payload_has_the_same_fingerprint_and_no_session_has_none(data: DataDirectory) -> None:
    same = b"sessionId=s&eventIndex=1&x=%20"
    batch, _, _ = batch_of(
        data,
        [
            get(same),
            get(same),
            get(same + b"&"),
            get(b"sessionId=&eventIndex=1"),
            get(b"eventIndex=1"),
            post(b'[{"i":1},{"i":2},{"i":1}]', b"sessionId=s"),
            post(b'{"i":1}', b"sessionId=s"),
            post(b'{"sessionId":"","i":1}'),
        ],
    )
    prints = batch.column("fingerprint").to_pylist()
    assert prints[0] == prints[1] != prints[2]
    assert prints[3] is prints[4] is prints[9] is None
    assert prints[5] == prints[7] == prints[8] != prints[6]
    assert all(len(value) == 16 for value in prints if value)


def test_fingerprints_never_change_since_they_are_stored(data: DataDirectory) -> None:
    batch, _, _ = batch_of(data, [get(b"sessionId=s&eventIndex=1"), post(b'{"a":"0123456789"}', b"sessionId=s")])
    found = [value.hex() for value in batch.column("fingerprint").to_pylist()]
    assert found == ["b333c4b2fae5e1276d2e917c762e6a9c", "8968783ff76b0256eec1969bb7e135b5"]


def test_simulated_traffic_is_decoded_as_by_hand(data: DataDirectory) -> None:
    events = list(itertools.islice(simulate(50, "7"), 1000))
    batch, cast_failures, _ = batch_of(data, [get(event.query.encode()) for event in events])
    assert cast_failures == Counter()
    for row, event in zip(batch.to_pylist(), events, strict=True):
        assert_row(row, reference.query_pairs(event.query.encode()))
