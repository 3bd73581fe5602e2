import pytest
from hypothesis import given
from hypothesis import strategies as st

from kanalony.core.frames import crc32c

# RFC 3720, appendix B.4, and the usual check value.
VECTORS = [
    (b"123456789", 0xE3069283),
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(reversed(range(32))), 0x113FDB5C),
    (b"", 0),
]


@pytest.mark.parametrize(("data", "crc"), VECTORS)
@pytest.mark.parametrize("by_table", [False, True])
def test_published_values_come_out(data: bytes, crc: int, by_table: bool) -> None:
    assert crc32c(data, by_table=by_table) == crc


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_both_implementations_agree_and_continue(first: bytes, second: bytes) -> None:
    whole = crc32c(first + second)
    assert crc32c(first + second, by_table=True) == whole
    assert crc32c(second, crc32c(first)) == whole
    assert crc32c(second, crc32c(first, by_table=True), by_table=True) == whole
