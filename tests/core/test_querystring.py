from urllib.parse import parse_qsl

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kanalony.core.frames import OTHER_TYPE
from kanalony.core.querystring import bare_name, event_type, parse, tokenize
from tests.files import API_QUERY

# Arbitrary text, and text made of the characters that matter.
QUERIES = st.text(max_size=80) | st.text(alphabet="&=+%;aé0Ff:/#? \x00", max_size=80)


@given(QUERIES)
@example(API_QUERY.decode())
@example("a=1&a=2&&b&c=&=d&%zz=%4&e=%&f=%C3%A9&g=%ff&h=a+b%2B&i==&&")
def test_names_and_values_are_those_of_urllib(query: str) -> None:
    try:
        raw = query.encode()
    except UnicodeEncodeError:
        return  # a lone surrogate is not text that a client can send
    pairs = [(name.decode(errors="replace"), value.decode(errors="replace")) for name, value in parse(raw)]
    assert pairs == parse_qsl(query, keep_blank_values=True, errors="replace")


@given(st.binary(max_size=200))
def test_spans_tile_any_bytes(query: bytes) -> None:
    rest = query
    offset = 0
    for name, name_end, value, value_end in tokenize(query):
        assert offset <= name <= name_end <= value <= value_end <= len(query)
        assert set(query[offset:name]) <= {ord("&")}
        assert query[name_end:value] in (b"=", b"")
        assert b"=" not in query[name:name_end]
        assert b"&" not in query[name:value_end]
        offset = value_end
    assert set(query[offset:]) <= {ord("&")}
    assert rest == query


def test_spans_point_into_the_string_itself() -> None:
    assert tokenize(memoryview(b"a=%20b&&c&=d&e==")) == [(0, 1, 2, 6), (8, 9, 9, 9), (10, 10, 11, 12), (13, 14, 15, 16)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"eventType=3", 3),
        (b"a=b&eventType=99&eventType=3", 99),
        (b"event:eventType=11", 11),
        (b"event%3AeventType=12", 12),
        (b"event%3aeventType=12", 12),
        (b"eventType=254", 254),
        (b"eventType=255", OTHER_TYPE),
        (b"eventType=0003", OTHER_TYPE),
        (b"eventType=", OTHER_TYPE),
        (b"eventType", OTHER_TYPE),
        (b"eventType=-1", OTHER_TYPE),
        (b"xeventType=3", OTHER_TYPE),
        (b"eventtype=3", OTHER_TYPE),
        (b"", OTHER_TYPE),
    ],
)
def test_event_type_is_the_first_in_at_most_three_digits(query: bytes, expected: int) -> None:
    assert event_type(query) == expected


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("event:ks", "ks"),
        ("ks", "ks"),
        ("event:", "event:"),
        ("event:é", "é"),
        ("event:\udcff", "\udcff"),
        ("event:event:ks", "event:ks"),
        ("Event:ks", "Event:ks"),
        ("", ""),
    ],
)
def test_a_name_loses_one_event_prefix(name: str, bare: str) -> None:
    assert bare_name(name) == bare
    assert bare_name(name.encode(errors="surrogateescape")) == bare.encode(errors="surrogateescape")
