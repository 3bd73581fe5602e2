"""Redaction: every spelling of a secret name loses its value, and every other byte stays."""

import json
import re
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kanalony.core.json import split
from kanalony.core.querystring import parse
from kanalony.core.redact import Redactor
from tests.core.test_json import OBJECTS, spread

KS = Redactor(["ks"], b"-")
SECRET = "djJ8c2VjcmV0"


def is_secret(name: str) -> bool:
    """Whether `ks` is a word of a name: the rule of docs/requests.md."""
    raw, decoded = b"", name.encode()
    while raw != decoded:
        raw, decoded = decoded, unquote_to_bytes(decoded)
    return re.search(rb"(?i)(?<![a-z0-9_-])ks(?![a-z0-9_-])", raw) is not None


@st.composite
def spellings(draw: st.DrawFn) -> str:
    """`ks` with a context, capitals and percent-encoding of a sender's choice."""
    before = draw(st.sampled_from(["", "event:", "1:", "2:filter:", "event[", "a.", ";", "x;", " ", "\u00e9 "]))
    after = draw(st.sampled_from(["", "[]", "[0]", "]", "[a][b]", ":value", ".0", ";", " "]))
    name = "".join(draw(st.sampled_from([letter, letter.upper()])) for letter in "ks")
    text = before + name + after
    for _ in range(draw(st.integers(0, 4))):
        text = "".join(
            quote_from_bytes(sign.encode(), safe="")
            if sign in "%&=" or not sign.isascii() or draw(st.booleans())
            else sign
            for sign in text
        )
        text = "".join(f"%{ord(sign):02x}" if sign.isalnum() and draw(st.booleans()) else sign for sign in text)
    return text


ENDS = st.sampled_from(["", "%", "=", "=x", "+"])


@given(
    spellings(), st.lists(st.tuples(st.text("ab;=%[]:?", max_size=5), st.text("cd;=%:?", max_size=5)), max_size=3), ENDS
)
def test_no_spelling_of_a_name_keeps_its_value_in_a_query(name: str, others: Any, end: str) -> None:
    assert is_secret(name)
    pairs = [f"{one}={other}" for one, other in others]
    for query in (
        "&".join([*pairs, f"{name}={SECRET}{end}", *pairs]),
        "a=1;" + f"{name}={SECRET}{end}",
        "a=1, https://b.example/?" + f"{name}={SECRET}{end}",
    ):
        redacted = KS.query(query.encode())
        assert SECRET.encode() not in redacted
        assert redacted.startswith("&".join(pairs).encode() if query.startswith("&".join(pairs)) else b"a=1")


@given(spellings(), st.booleans(), st.integers(0, 2))
def test_no_spelling_of_a_name_keeps_its_value_in_json(name: str, escaped: bool, depth: int) -> None:
    written = "".join(f"\\u{ord(sign):04x}" for sign in name) if escaped else json.dumps(name)[1:-1]
    inner = f'{{"a": 1, "{written}" : [{{"b": "{SECRET}"}}], "c": "{written}"}}'
    text = ('{"x": [' * depth + inner + "]}" * depth).encode()
    redacted = KS.json(text, 0, len(text))
    assert redacted == text.replace(f'[{{"b": "{SECRET}"}}]'.encode(), b'"-"')


@given(st.lists(st.tuples(st.text("ksKS_-1%:[].5b6", max_size=8), st.text("ks1%;.", max_size=4)), max_size=5))
def test_a_query_is_redacted_by_the_rule(pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={value}" for name, value in pairs).encode()
    expected = "&".join(f"{name}={'-' if value and is_secret(name) else value}" for name, value in pairs).encode()
    assert KS.query(query) == expected


@given(st.binary(max_size=80) | st.text("ks=&;%2536b7[", max_size=60).map(str.encode))
def test_any_bytes_keep_every_pair_that_is_not_secret(query: bytes) -> None:
    before, after = parse(query), parse(KS.query(query))
    assert [name for name, _ in before] == [name for name, _ in after]
    for (name, value), (_, kept) in zip(before, after, strict=True):
        if kept != value:
            assert re.search(rb"(?i)ks", unquote_to_bytes(unquote_to_bytes(unquote_to_bytes(name + b"=" + value))))


@given(OBJECTS, st.integers())
def test_json_keeps_every_value_of_other_names(value: dict[str, Any], seed: int) -> None:
    def hide(node: Any) -> Any:
        if isinstance(node, dict):
            return {
                name: "-" if is_secret(_valid(name)) and inner not in ("", None) else hide(inner)
                for name, inner in node.items()
            }
        return [hide(inner) for inner in node] if isinstance(node, list) else node

    inners: list[Any] = [value, "", "x", None, False, "n", 0, [], {}]
    value = {**value, "ks": value, "deep": [{"ks": inner} for inner in inners]}
    body = spread(json.dumps(value), seed)
    assert json.loads(KS.json(body, 0, len(body))) == hide(value)
    assert Redactor([], b"-").json(body, 0, len(body)) == body


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def test_a_name_is_secret_with_any_escapes() -> None:
    body = b'{"\\u006bs" : "secret", "a": "ks", "ks":[1,{"x":2}] }'
    assert KS.json(body, 0, len(body)) == b'{"\\u006bs" : "-", "a": "ks", "ks":"-" }'


@pytest.mark.parametrize("name", ["xks", "ksx", "my_ks", "ks-id", "k", "s", "k:s", "", "ks2"])
def test_other_names_keep_their_values(name: str) -> None:
    assert KS.query(f"{name}=1".encode()) == f"{name}=1".encode()
    text = json.dumps({name: "1"}).encode()
    assert KS.json(text, 0, len(text)) == text


def test_names_may_hold_signs_and_letters_of_any_alphabet() -> None:
    redactor = Redactor(["user.id", "größe", "$ks", "Token"], b"-")
    text = b"event:User.Id=1&gr%C3%B6%C3%9Fe=2&$ks=3&token=4&user=5&x$ks=6"
    assert redactor.query(text) == b"event:User.Id=-&gr%C3%B6%C3%9Fe=-&$ks=-&token=-&user=5&x$ks=6"


@given(st.binary(max_size=100) | st.text(alphabet='{}[]"\\:,\n1a', max_size=200).map(str.encode))
def test_any_object_can_be_redacted_and_anything_else_raises(body: bytes) -> None:
    for start, end in split(body, 100)[0]:
        Redactor(["a"], b"0").json(body, start, end)
    with pytest.raises(ValueError, match="not within"):
        KS.json(body, 0, len(body) + 1)
    with pytest.raises(ValueError, match="not a valid object"):
        KS.json(b'{"ks": nonsense', 0, 15)
