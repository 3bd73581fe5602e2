"""Each way of serving withstands hostile clients among honest ones. `python -m benchmarks abuse` repeats more."""

import pytest

from benchmarks.abuse import run_attacks
from benchmarks.attacks import ATTACKS
from benchmarks.target import WAYS
from tests.tools import tool


@pytest.mark.slow
@pytest.mark.serial  # honest clients wait three seconds for an answer
@pytest.mark.parametrize("way", WAYS)
def test_no_attack_ends_the_service_or_costs_an_acknowledged_event(way: str) -> None:
    if way == "nginx":
        tool("nginx")
    verdicts, acknowledged, missing = run_attacks(
        way, {name: attack.shortened(count=20, seconds=1.5) for name, attack in ATTACKS.items()}
    )
    assert [verdict.attack for verdict in verdicts] == list(ATTACKS)
    assert acknowledged > 0
    assert missing == 0
    if way != "meinheld":  # which is documented to die of some
        assert [str(verdict) for verdict in verdicts if verdict.complaint or verdict.deaths or verdict.failed] == []


def test_headers_that_nginx_joins_or_repeats_neither_kill_a_worker_nor_leak() -> None:
    tool("nginx")
    names = ("two X-Forwarded-For of 8,000 bytes", "three other headers of 8,000 bytes")
    attacks = {name: ATTACKS[name].shortened(count=300, seconds=30) for name in names}
    verdicts, acknowledged, missing = run_attacks("nginx", attacks)
    assert [verdict.attempts for verdict in verdicts] == [attacks[name].count for name in names]
    assert [str(verdict) for verdict in verdicts] == ["withstood"] * 2
    assert acknowledged > 0
    assert missing == 0
