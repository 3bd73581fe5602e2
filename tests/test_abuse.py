"""Hostile clients: what each way of serving withstands. `python -m benchmarks abuse` sends more and prints a table."""

import pytest

from benchmarks.abuse import ATTACKS, WAYS, mutated, run_attacks
from tests.serving import tool


@pytest.mark.parametrize("way", WAYS)
def test_no_attack_ends_the_service_or_costs_an_acknowledged_event(way: str) -> None:
    if way == "nginx":
        tool("nginx")
    verdicts, acknowledged, missing = run_attacks(way, {**ATTACKS, "mutated requests": mutated(500)})
    assert [verdict.attack for verdict in verdicts] == list(ATTACKS)
    assert acknowledged == 20 * len(ATTACKS)
    assert missing == 0
    assert [verdict.complaint for verdict in verdicts if verdict.complaint] == []
    if way != "meinheld":  # which is documented to die of some
        assert [verdict.attack for verdict in verdicts if verdict.died or verdict.failed] == []
