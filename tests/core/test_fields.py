"""Every list of a request's fields agrees with the table in kanalony/core/record.h."""

import re
from pathlib import Path

from kanalony.core.columns import REQUEST_COLUMNS
from kanalony.core.frames import FIELD_NAMES
from kanalony.core.journal import build_record
from kanalony.segments.directory import DataDirectory
from kanalony.segments.reader import Request, decode_records
from tests.files import journal_file, new_journal

ROOT = Path(__file__).parents[2]
VALUES = tuple(name.encode() for name in FIELD_NAMES)
REQUEST = dict(zip(FIELD_NAMES, VALUES, strict=True))


def test_request_has_the_fields_in_order_of_their_tags() -> None:
    assert Request._fields == ("worker_id", "sequence", "received_at", *FIELD_NAMES)
    assert Request(1, 2, 3, *VALUES).fields == VALUES


def test_append_stores_every_value_in_its_field(data: DataDirectory) -> None:
    journal = journal_file(data, [VALUES])
    (request,), _ = journal.read(journal.content)
    assert request.fields == VALUES


def test_append_takes_the_fields_of_a_body_by_name(data: DataDirectory) -> None:
    journal = new_journal(data)
    named = {name: REQUEST[name] for name in ("body", "content_type", "content_encoding")}
    assert journal.blocks.append(*[None] * 7, **named)


def test_a_built_record_has_every_value_in_its_field() -> None:
    decoded = decode_records(build_record(1, 2, 3, *VALUES), 1, 2)
    assert decoded == [Request(1, 2, 3, *VALUES)]


def test_every_field_is_a_column_of_the_lake() -> None:
    columns = {re.sub(r"[A-Z]", lambda capital: "_" + capital[0].lower(), name) for name, _ in REQUEST_COLUMNS}
    assert columns >= set(FIELD_NAMES)


def test_the_format_document_lists_every_field_with_its_tag() -> None:
    document = (ROOT / "docs" / "segment-format.md").read_text()
    section = document[document.index("| tag | field |") :].split("\n\n")[0]
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", section, re.M)
    assert rows == [(str(tag), name) for tag, name in enumerate(FIELD_NAMES, 1)]
