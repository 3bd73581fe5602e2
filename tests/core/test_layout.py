"""The constants of kanalony/core/layout.h agree with docs/segment-format.md and with the settings."""

import re
from pathlib import Path
from typing import get_args

from kanalony.core import frames, journal
from kanalony.settings.serving import ServeSettings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "segment-format.md").read_text()


def test_the_journal_header_is_as_documented() -> None:
    size = re.search(r"journal = header \((\d+) bytes\)", DOCUMENT)
    assert size
    assert int(size[1]) == journal.HEADER_SIZE
    offsets = tuple(int(offset) for offset in re.findall(r"^\| (\d+) \| 16 \| watermark [AB] \|", DOCUMENT, re.M))
    assert offsets == journal.WATERMARK_OFFSETS


def test_offsets_in_a_record_are_as_documented() -> None:
    for name, offset in [("length", journal.LENGTH_OFFSET), ("received_at", journal.RECEIVED_AT_OFFSET)]:
        assert re.search(rf"^\| {offset} \| [48] \| {name} \|", DOCUMENT, re.M)


def test_sizes_in_a_segment_are_as_documented() -> None:
    header, prefix, count, trailer = (
        int(number)
        for pattern in (
            r"\*\*header\*\*, (\d+) \+ n bytes",
            r"\*\*prefix\*\*, (\d+) \+ \d k bytes",
            r"\*\*prefix\*\*, \d+ \+ (\d) k bytes",
            r"\*\*trailer\*\*, (\d+) bytes",
        )
        for number in re.findall(pattern, DOCUMENT)
    )
    assert header + 63 == frames.HEADER_SIZE_MAX
    assert prefix + count * 256 == frames.PREFIX_SIZE_MAX
    assert trailer == frames.TRAILER_SIZE


def test_ack_levels_are_as_documented_and_those_of_the_setting() -> None:
    levels = ", ".join(f"{number} {name}" for number, name in enumerate(journal.ACK_LEVELS))
    assert levels in DOCUMENT
    assert get_args(ServeSettings.model_fields["ack"].annotation) == journal.ACK_LEVELS
