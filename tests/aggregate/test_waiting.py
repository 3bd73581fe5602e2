"""The count of requests that wait to be compacted: the files that it reads, and the requests that it must not miss."""

import shutil

import pytest

from kanalony.aggregate.compact import Compaction
from kanalony.aggregate.enrich import Enricher
from kanalony.aggregate.ledger import read_ledger
from kanalony.aggregate.manifest import FILE_NAME
from kanalony.aggregate.waiting import Waiting
from kanalony.errors import FormatError
from kanalony.segments.directory import DataDirectory
from kanalony.segments.reader import Segment
from tests.aggregate.lakes import MEMORY, compact, seal, sent


def test_requests_that_a_compacted_segment_claims_wait_nowhere_else(data: DataDirectory) -> None:
    path = seal(data, [[sent(1), sent(2)], [sent(3), sent(4)]])
    time, _, worker, first = path.name.split("_")
    shutil.copy(path, path.with_name(f"{time}_copy_{worker}_{first}"))
    content = bytearray(path.read_bytes())
    content[content.index(b"KFRM") + 120] ^= 0x55
    path.write_bytes(content)
    with Compaction(data, memory=MEMORY, keep_segments=1e9, enricher=Enricher(None, None)) as compaction:
        compaction.run([path], lambda _: None, lambda: False)
    assert Waiting(data).count() == read_ledger(data).pending == 0


def test_a_count_reads_only_new_entries_of_the_manifest(data: DataDirectory) -> None:
    seal(data, [[sent(1), sent(2)]])
    compact(data)
    waiting = Waiting(data)
    assert waiting.count() == 0
    with (data.lake / FILE_NAME).open("r+b") as file:
        file.write(b"no entry")  # it would be refused
    seal(data, [[sent(3)]], worker=2)
    assert waiting.count() == 1
    with pytest.raises(FormatError, match="no entry"):
        Waiting(data).count()


def test_a_segment_that_is_sealed_during_the_count_is_found(
    data: DataDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = seal(data, [[sent(n) for n in range(10)]])
    opened = path.rename(data.open / path.name)
    real = Segment.__enter__

    def enter(self: Segment) -> Segment:
        if opened.exists():
            opened.rename(path)
        return real(self)

    monkeypatch.setattr(Segment, "__enter__", enter)
    assert Waiting(data).count() == 10
