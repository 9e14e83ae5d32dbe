"""Who plays: venues of all five providers, with API keys and without, and how much each of them has to do.

Knows nothing of the faults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.server import discover
from simulators.venue import Venue, Weather


@dataclass(frozen=True, kw_only=True)
class Role:
    """One venue."""

    name: str
    provider: str
    share: float
    """Of all events."""
    switches: Mapping[str, Any] = field(default_factory=dict)


ROLES: Final[Sequence[Role]] = (
    # A message that is acknowledged is gone: whoever acknowledges before it is safe shall feel it.
    Role(
        name="lockme",
        provider="lockme",
        share=0.18,
        switches={"gone_after_ack": True, "method": "mixed", "least_gap": 15.0},
    ),
    Role(name="reservekit", provider="reservekit", share=0.12, switches={"plan": "growth"}),
    Role(name="reservekit-no-key", provider="reservekit", share=0.14, switches={"with_key": False}),
    Role(name="synthesisvr", provider="synthesisvr", share=0.10),
    Role(name="synthesisvr-no-key", provider="synthesisvr", share=0.20, switches={"api": False}),
    Role(name="timekit", provider="timekit", share=0.14),
    Role(name="checkfront", provider="checkfront", share=0.06),
    Role(name="checkfront-no-keys", provider="checkfront", share=0.06, switches={"api": False}),
)


class Happenings(Ledger):
    """A ledger that also counts what happened at the venues: each change of a booking that the table must show."""

    happened: int = 0

    def expect(self, endpoint: str, external_id: str, **columns: Any) -> None:
        self.happened += 1
        super().expect(endpoint, external_id, **columns)

    def expect_anew(self, endpoint: str, external_id: str, **columns: Any) -> None:
        self.happened += 1
        super().expect_anew(endpoint, external_id, **columns)


def venues(ledger: Ledger, seed: int, roles: Sequence[Role] = ROLES) -> list[Venue]:
    """The venues, on one clock."""
    clock, kinds = Clock(datetime.now(UTC).replace(microsecond=0)), discover()
    return [
        kinds[role.provider](
            endpoint=role.name,
            hook_url="",
            ledger=ledger,
            clock=clock,
            rng=Random(f"{seed} {role.name}"),  # noqa: S311  seeded chance is the point
            weather=Weather(duplicate=0.1, reorder=0.1),
            **role.switches,
        )
        for role in roles
    ]
