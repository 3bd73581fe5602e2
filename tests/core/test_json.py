"""JSON bodies: the same values as from Python's parser, for any bytes."""

import json
import random
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kanalony.core.json import members, split

TEXT = st.text(max_size=20) | st.text(alphabet='"\\/\x1f\x7f\u2028é\ud800\U0001f3ac{}[]:, ', max_size=20)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=12
)
OBJECTS = st.dictionaries(TEXT, VALUES, max_size=6)


def found(body: bytes) -> tuple[list[bytes], bool]:
    """Returns the bytes of each object, and whether the body holds nothing else."""
    spans, sound = split(body, 1000)
    return [body[start:end] for start, end in spans], sound


def as_text(value: Any) -> Any:
    """The value of a parameter; a nested value stays as it is, for comparison as JSON."""
    if isinstance(value, str):
        return "".join(
            "\ufffd" if 0xD800 <= ord(character) < 0xE000 else character  # half of a pair
            for character in value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        )
    return "" if value is None else value


def spread(text: str, seed: int) -> bytes:
    """JSON with white space added where it is allowed."""
    chance = random.Random(seed)
    parts = []
    in_string = escaped = False
    for character in text:
        if not in_string and character in '{}[]:,"':
            parts.append(chance.choice(["", "", " ", "\n", "\t\r\n"]))
        parts.append(character)
        if character == '"' and not escaped:
            in_string = not in_string
        escaped = character == "\\" and not escaped
    return "".join(parts).encode("utf-8", "replace")


@given(st.lists(OBJECTS, max_size=4), st.booleans(), st.booleans(), st.integers())
def test_objects_and_members_are_those_of_pythons_parser(
    objects: list[dict[str, Any]], in_array: bool, ascii_only: bool, seed: int
) -> None:
    if not ascii_only:
        # Half a pair has no UTF-8.
        objects = json.loads(re.sub(r"\\ud800(?!\\ud[c-f])", "x", json.dumps(objects)))
    texts = [json.dumps(value, ensure_ascii=ascii_only) for value in objects]
    body = spread("[" + ",".join(texts) + "]" if in_array else "\n".join(texts), seed)
    spans, sound = split(memoryview(body), 1000)
    assert sound
    assert len(spans) == len(objects)
    for (start, end), value in zip(spans, objects, strict=True):
        assert json.loads(body[start:end]) == value
        pairs = members(body, start, end)
        assert [name.decode() for name, _ in pairs] == [as_text(name) for name in value]
        for (_, text), expected in zip(pairs, value.values(), strict=True):
            if isinstance(expected, str) or expected is None:
                assert text.decode() == as_text(expected)
            else:
                assert json.loads(text) == expected


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,\\u0e+-. tfn\n', max_size=40).map(str.encode))
@example(b'{"a":01}')
@example(b'{"a":1.}')
@example(b'{"a":-}')
@example(b'{"a":1e}')
@example(b'{"a":tru}')
@example(b'{"a":"\\x"}')
@example(b'{"a":"\\u12g4"}')
@example(b'{"a":"\\')
@example(b'{"a":1,}')
@example(b'{"a":[1,]}')
@example(b'{"a"}')
@example(b'{"a":1]')
@example(b"{" * 100)
def test_an_object_is_valid_if_pythons_parser_accepts_it(body: bytes) -> None:
    spans, sound = split(b"{" + body, 1000)
    one = sound and len(spans) == 1 and spans[0][0] == 0
    try:
        text = (b"{" + body).decode("utf-8", "replace")
        value = json.loads(text, parse_constant=lambda _: 1 / 0)
        expected = isinstance(value, dict)
    except (ValueError, ZeroDivisionError):
        expected = False
    assert one == expected


@given(st.binary(max_size=300) | st.text(alphabet='{}[]"\\:,\n1a', max_size=200).map(str.encode), st.integers(0, 3))
def test_any_bytes_give_spans_in_order(body: bytes, limit: int) -> None:
    spans, _ = split(body, limit)
    assert len(spans) <= limit
    last = 0
    for start, end in spans:
        assert last <= start < end <= len(body)
        assert (body[start], body[end - 1]) == (ord("{"), ord("}"))
        members(body, start, end)
        last = end


@pytest.mark.parametrize(
    ("body", "objects", "sound"),
    [
        (b'{"a":1}\n{"a":2}\r\n{"a":3}', 3, True),
        (b'[{"a":1}]\n[{"a":2},{"a":3}]', 3, True),
        (b'{"a":1}{"a":2}', 2, True),
        (b"[]", 0, True),
        (b"", 0, True),
        (b" \n", 0, True),
        (b'{"a":1}\n{"a":}\n{"a":3}\n', 2, False),
        (b'{"a":1}\n[{"a":2},\n{"a":3}', 3, False),
        (b'{"a":1}\n[{"a":2},x\n{"a":3}', 3, False),
        (b'{"a":1}\n{"a":\n{"b":2}\n', 1, False),  # the next line may be inside of the object
        (b'{"a":1}\n{"a": [\n{"b":2}\n], "c": }', 1, False),
        (b'{"a":1}\n{"a":"x\n{"b":2}\n', 1, False),
        (b'{"a":1}\n[\n{"a":2},\nx,\n{"a":3}]', 2, False),
        (b'[{"a":1}]\nnonsense\n{"a":3}', 2, False),
        (b'{"a":\n{"a":2}', 0, False),
        (b'[{"a":1},{"a":2},{"a":', 2, False),
        (b'[{"a":1}', 1, False),
        (b'[{"a":1},]', 1, False),
        (b'[{"a":1} {"a":2}]', 1, False),
        (b'[,{"a":1}]', 0, False),
        (b"[1]", 0, False),
        (b"[[]]", 0, False),
        (b'{"a":1}x{"a":2}', 1, False),
        (b'"text"', 0, False),
        (b"{" + b'"a":{' * 63 + b"}" * 64, 1, True),
        (b"{" + b'"a":{' * 64 + b"}" * 65, 0, False),
    ],
)
def test_objects_before_a_mistake_and_on_other_lines_are_kept(body: bytes, objects: int, sound: bool) -> None:
    spans, is_all = found(body)
    assert (len(spans), is_all) == (objects, sound)


def test_no_more_objects_than_the_limit() -> None:
    assert split(b"[{},{},{}]", 3) == ([(1, 3), (4, 6), (7, 9)], True)
    assert split(b"[{},{},{}]", 2) == ([(1, 3), (4, 6)], False)


def test_numbers_and_nested_values_are_text_as_sent() -> None:
    body = b'{"n": 1.50, "big": 123456789012345678901, "e": 1E+2, "no": null, "yes": true, "in": [1, {"a": "\\n"}]}'
    assert members(body, 0, len(body)) == [
        (b"n", b"1.50"),
        (b"big", b"123456789012345678901"),
        (b"e", b"1E+2"),
        (b"no", b""),
        (b"yes", b"true"),
        (b"in", b'[1, {"a": "\\n"}]'),
    ]
