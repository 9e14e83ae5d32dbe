"""When which fault comes: drawn from a seed, and pure.

A round is every fault once; a minute has one round. Faults that would spoil each other share a lane and never overlap;
those of different lanes overlap as chance has it. A run that is too short for a whole round takes the faults in turn:
the next seed begins one later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

LEAD: Final = 2.0
"""Seconds of fair weather at the start."""
APART: Final = 1.5
"""Seconds at least between two faults of one lane: time to come back."""
ROUND: Final = 60.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What the schedule must know of a fault."""

    name: str
    lane: str
    least: float
    most: float
    """Seconds that it lasts."""


@dataclass(frozen=True, kw_only=True, order=True)
class Planned:
    """One fault of a run."""

    at: float
    """Seconds after the start."""
    name: str
    lane: str
    lasts: float

    @property
    def over(self) -> float:
        return self.at + self.lasts


def schedule(seed: int, minutes: float, kinds: Sequence[Kind]) -> list[Planned]:
    """The faults of a run, in the order in which they begin."""
    window = minutes * 60 - LEAD
    rounds = max(1, int(minutes))
    length = window / rounds
    chance = Random(f"chaos {seed}")  # noqa: S311  seeded chance is the point
    plan: list[Planned] = []
    for number in range(rounds):
        begins = LEAD + number * length
        turn = seed * rounds + number
        for faults in _lanes(kinds).values():
            plan += _spread(chance, _as_many_as_fit(chance, faults, length, turn), begins, length)
    return sorted(plan)


def _lanes(kinds: Iterable[Kind]) -> Mapping[str, list[Kind]]:
    lanes: dict[str, list[Kind]] = {}
    for kind in kinds:
        lanes.setdefault(kind.lane, []).append(kind)
    return lanes


def _as_many_as_fit(chance: Random, faults: list[Kind], length: float, turn: int) -> list[tuple[Kind, float]]:
    """Faults with how long each lasts; where the time is short, those whose turn it is, one at least."""
    chosen: list[tuple[Kind, float]] = []
    left = length
    for place in range(len(faults)):
        kind = faults[(turn + place) % len(faults)]
        lasts = chance.uniform(kind.least, kind.most)
        if lasts + APART <= left:
            chosen.append((kind, lasts))
            left -= lasts + APART
    return chosen


def _spread(chance: Random, faults: list[tuple[Kind, float]], begins: float, length: float) -> list[Planned]:
    """The faults one after the other, with what time is left as gaps of chance between them."""
    chance.shuffle(faults)
    spare = length - sum(lasts + APART for _, lasts in faults)
    cuts = sorted(chance.uniform(0, spare) for _ in faults)
    planned, at, passed = [], begins, 0.0
    for (kind, lasts), cut in zip(faults, cuts, strict=True):
        at += cut - passed
        planned.append(Planned(at=at, name=kind.name, lane=kind.lane, lasts=lasts))
        at, passed = at + lasts + APART, cut
    return planned
