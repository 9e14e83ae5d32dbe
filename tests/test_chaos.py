"""The fault ledger against real processes: a short run loses nothing, and a system with a part taken out does lose.

What of it is pure is in `test_chaos_plan.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import pytest
from rich.console import Console

from chaos.cast import Role
from chaos.run import Asked, Run, play
from chaos.sabotage import WITHOUT
from chaos.schedule import Planned
from chaos.screen import Screen

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]

ARCADE: Final = Role(name="arcade", provider="synthesisvr", share=1.0, switches={"api": False})
ROOMS: Final = Role(name="rooms", provider="lockme", share=1.0, switches={"least_gap": 30.0})
SHORT: Final = Asked(seed=7, minutes=0.3, events=900, patience=90.0)

TARGETS: Final[Mapping[str, Asked]] = {
    # What is taken out → the fault that it was there for.
    "spool": Asked(
        without="spool",
        minutes=0.08,
        events=60,
        roles=[ARCADE],
        plan=[Planned(at=0.5, name="redis stopped", lane="durability", lasts=3.0)],
        patience=10.0,
        balanced=False,
        workers=1,
    ),
    "sweeper": Asked(
        without="sweeper",
        minutes=0.06,
        events=40,
        roles=[ROOMS],
        plan=[Planned(at=0.2, name="api down", lane="providers", lasts=3.0)],
        patience=6.0,
        balanced=False,
        workers=1,
    ),
    "commit-first": Asked(
        without="commit-first",
        minutes=0.1,
        events=60,
        roles=[ROOMS],
        plan=[Planned(at=1.0 + at, name="worker's child killed", lane="workers", lasts=0.2) for at in range(5)],
        patience=25.0,
        balanced=False,
        workers=1,
    ),
}


def run(asked: Asked) -> Run:
    return asyncio.run(play(asked, Screen(Console(stderr=True))))


def test_a_short_run_with_all_kinds_of_faults_loses_nothing() -> None:
    """Nothing lost, nothing wrong, no answer late; venues of all five providers took part."""
    short = run(SHORT)
    assert short.account.differences == []
    assert short.last_line.endswith(f"lost=0 wrong=0 late=0 max_ack_ms={short.account.total.ack(1.0):.0f}")
    assert len(short.told["timeline"]) >= 10
    assert {line.name for line in short.account.providers if line.acked} == {
        "checkfront",
        "lockme",
        "reservekit",
        "synthesisvr",
        "timekit",
    }


TRACES: Final = {"spool": "no delivery holds it", "sweeper": "never settled", "commit-first": "parked as"}
"""What is taken out → how its losses are told: refused for good, waiting for ever, asked for when it was gone."""
QUICK: Final = "spool"
"""One of them shows that the ledger can fail; the others cost an installation each."""


def test_every_part_that_can_be_taken_out_is_taken_out() -> None:
    assert TARGETS.keys() == TRACES.keys() == WITHOUT.keys()


@pytest.mark.parametrize(
    "part", [QUICK, *(pytest.param(part, marks=pytest.mark.long) for part in WITHOUT if part != QUICK)]
)
def test_the_ledger_can_fail(part: str) -> None:
    """With a part taken out, the fault that it was there for ends in losses told in words, and in exit code 1."""
    spoiled = run(TARGETS[part])
    assert spoiled.account.total.lost + spoiled.account.total.wrong > 0, spoiled.last_line
    assert not spoiled.good
    assert TRACES[part] in "\n".join(one.text for one in spoiled.account.differences)
