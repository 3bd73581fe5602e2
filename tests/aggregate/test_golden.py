"""A lake of 10,000 simulated events, sent in all formats: each column has the value that Python's parsers find."""

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

import pytest

from kanalony.aggregate.lake import SCHEMA
from kanalony.segments.directory import DataDirectory
from kanalony.simulate.viewers import simulate
from tests.aggregate import reference
from tests.aggregate.lakes import NOON, Sent, compact, rows, seal

EVENTS = 10_000
AGENTS = {  # by a part of the user agent: browser, operating system, device, why it is a bot
    "Windows NT 10.0": ("Chrome", "Windows", "Desktop", None),
    "Pixel 8": ("Chrome Mobile", "Android", "Pixel 8", None),
    "iPhone": ("Mobile Safari", "iOS", "iPhone", None),
    "Firefox/127.0": ("Firefox", "Linux", "Desktop", None),
    "Tizen": ("Samsung Internet", "Tizen", "Samsung SMART-TV", None),
    "Googlebot": ("Googlebot", None, "Spider", "crawler: Googlebot"),
}


def requests() -> Iterator[tuple[Sent, list[list[tuple[str, str]]]]]:
    """Yields (request, names and values of each of its events): mostly GETs; also JSON, forms and batches."""
    rng = random.Random(1)
    events = iter(list(itertools.islice(simulate(300, "7"), EVENTS)))
    at = NOON
    for event in events:
        at += rng.randrange(1, 2_000_000)
        agent = event.user_agent.encode()
        pairs = parse_qsl(event.query, keep_blank_values=True)
        way = rng.random()
        if way < 0.7:
            yield Sent(at, event.query.encode(), user_agent=agent), [pairs]
        elif way < 0.8:  # the player of today: some in the query, the rest as JSON
            body = json.dumps(dict(pairs[4:]), ensure_ascii=rng.random() < 0.5)
            yield Sent(at, urlencode(pairs[:4]).encode(), body.encode(), agent), [pairs]
        elif way < 0.9:  # an old one
            legacy = urlencode([(f"event:{name}", value) for name, value in pairs])
            yield (
                Sent(at, b"service=stats&action=collect", legacy.encode(), agent),
                [[("service", "stats"), ("action", "collect"), *pairs]],
            )
        else:
            more = [pairs, *(parse_qsl(e.query, keep_blank_values=True) for e in itertools.islice(events, 3))]
            batch = json.dumps([dict(event) for event in more]).encode()
            yield Sent(at, b"partnerId=5", batch, agent), [[("partnerId", "5"), *event] for event in more]


def enriched(sent: Sent, typed: dict[str, Any]) -> dict[str, Any]:
    (agent,) = [agent for part, agent in AGENTS.items() if part in sent.user_agent.decode()]
    url = typed.get("referrer")
    while url and "%3A" in url[:12]:
        url = unquote(url)
    parts = urlsplit(url) if url and url != "null" else None
    names = ("browser", "operatingSystem", "device", "botReason")
    return dict(zip(names, agent, strict=True)) | {
        "isBot": agent[3] is not None,
        "syndicationDomain": parts and parts.netloc,
        "referrerPage": parts and (parts.netloc + parts.path).lower(),
    }


def test_every_column_of_every_row_has_the_value_that_was_sent(tmp_path: Path) -> None:
    data = DataDirectory.writable(tmp_path / "data")
    all_sent = list(requests())
    frames = [[sent for sent, _ in all_sent[start : start + 700]] for start in range(0, len(all_sent), 700)]
    seal(data, frames, worker=0xB0B)
    assert compact(data).events == EVENTS
    expected: list[dict[str, Any]] = []
    for sequence, (sent, events) in enumerate(all_sent, 1):
        for index, pairs in enumerate(events):
            typed, rest, conflicts, cast_failures = reference.row(pairs)
            assert cast_failures == []
            row: dict[str, Any] = dict.fromkeys(SCHEMA.names)
            row |= typed | enriched(sent, typed)
            row |= {"worker": f"{0xB0B:016x}", "sequence": sequence, "index": index, "remoteAddr": "203.0.113.7"}
            row |= {"method": "POST" if sent.body else "GET", "path": "/collect", "query": sent.query}
            row |= {"body": sent.body or None if index == 0 else None, "userAgent": sent.user_agent.decode()}
            row |= {"parameters": rest, "conflicts": conflicts, "receivedAt": sent.at}
            expected.append(row)
    stored = rows(data)
    assert len(stored) == len(expected) == EVENTS
    for row, wanted in zip(stored, expected, strict=True):
        assert row.pop("fingerprint") is not None
        row["receivedAt"] = row["receivedAt"].timestamp() * 1_000_000
        assert str(row.pop("date")) == str(_day(wanted["receivedAt"]))
        wanted = {name: value for name, value in wanted.items() if name not in ("fingerprint", "date")}
        assert row["receivedAt"] == pytest.approx(wanted.pop("receivedAt"), abs=1)
        row.pop("receivedAt")
        assert row == wanted


def _day(microseconds: int) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d")
