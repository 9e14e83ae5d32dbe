"""What the workers are given: days at simulated venues, recorded as the requests that they send.

The venues are the simulators, and nobody answers them over a network: each request is noted as if it had just come in.
Their ledger knows what the table must show when all of it is applied. They take part in equal numbers, and have no API:
every request says all that there is to know. Lockme has no part in it: its requests are empty, and how fast they
are worked on is up to Lockme's API.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any, Final

from sqlalchemy import Engine, select

from ingest.inbox import Inbox
from ingest.nudge import Nudge
from ingest.waiting import GROUP, Row
from schemas.booking import to_json
from schemas.delivery import RawDelivery, new_id, now
from schemas.endpoints import Config, Endpoint
from simulators.clock import Clock
from simulators.ledger import Ledger, Outcome, Verdict
from simulators.sender import Manner, Reply, Request, Sender
from simulators.server import discover
from simulators.venue import Venue, Weather
from workers.tables import bookings

Switches = Mapping[str, Mapping[str, Any]]

SWITCHES: Final[Switches] = {
    "reservekit": {"with_key": False},
    "synthesisvr": {"api": False},
    "timekit": {"signing": "off", "party_size": None},
    "checkfront": {"api": False, "party_size": None, "statuses": {}},
}
"""How a provider's venue is, so that its endpoint needs neither settings nor secrets."""
WITHOUT_PAYMENTS: Final[Switches] = {
    **SWITCHES,
    "checkfront": {**SWITCHES["checkfront"], "events": ("modified", "status", "item", "rate")},
}
"""The same where nothing has to wait for another request: a payment may come before its booking."""
WEATHER: Final = Weather(duplicate=0.1, reorder=0.1)
DAY: Final = 5000
"""Requests of one day at one venue at most."""
DAY_SECONDS: Final = 1.0
"""What a day takes at least; it is mostly work."""
PATIENCE: Final = 10.0
"""Seconds for one group commit: nobody waits for it."""


@dataclass(frozen=True, kw_only=True)
class Stuff:
    """Requests in the order of their receipt, and what comes of them."""

    deliveries: Sequence[RawDelivery]
    ledger: Ledger
    config: Config

    @property
    def booked(self) -> int:
        """How many the table must show."""
        return len(self.ledger.truth)

    def verdict(self, engine: Engine) -> Verdict:
        """How the table compares with what the venues know. What was there before is left out."""
        began = min(delivery.received_at for delivery in self.deliveries)
        with engine.connect() as connection:
            rows = connection.execute(select(bookings).where(bookings.c.first_seen_at >= began))
            return self.ledger.compare([to_json(row._asdict()) for row in rows])


def recorded(config: Config, deliveries: int, *, switches: Switches = SWITCHES, seed: int = 1) -> Stuff:
    """Whole days at the venues of this configuration, until there are at least so many requests."""
    ledger = Ledger()
    players = [_venue(one, ledger, switches, seed) for one in config if one.provider in switches]
    return Stuff(deliveries=asyncio.run(_sent(players, deliveries)), ledger=ledger, config=config)


async def _sent(players: Sequence[Venue], deliveries: int) -> list[RawDelivery]:
    notes: list[RawDelivery] = []
    async with AsyncExitStack() as stack:
        for venue in players:
            await stack.enter_async_context(venue)
        share = -(-deliveries // len(players))
        await asyncio.gather(*(_lived(venue, share, notes) for venue in players))
    return notes


async def _lived(venue: Venue, share: int, notes: list[RawDelivery]) -> None:
    """Days of one venue, until it has sent its share."""
    sent = venue._sender = _Notes(venue.endpoint, notes)
    while (left := share - sent.taken) > 0:
        await venue.live(min(left, DAY), DAY_SECONDS)


def secrets(config: Config) -> dict[str, str]:
    """What a worker must find in its environment to start: an endpoint of Lockme has no content without a token."""
    return {one.variable("access_token"): "nobody-asks" for one in config if one.provider == "lockme"}


def _venue(endpoint: Endpoint, ledger: Ledger, switches: Switches, seed: int) -> Venue:
    return discover()[endpoint.provider](
        endpoint=endpoint.name,
        hook_url="http://reservoir.example/hooks",
        ledger=ledger,
        clock=Clock(datetime.now(UTC).replace(microsecond=0)),
        rng=Random(f"{seed} {endpoint.name}"),  # noqa: S311  seeded chance is the point
        weather=WEATHER,
        timezone=endpoint.timezone,
        **switches[endpoint.provider],
    )


class _Notes(Sender):
    """In place of a network: every request is noted, and answered 200 at once."""

    def __init__(self, endpoint: str, notes: list[RawDelivery]) -> None:
        super().__init__()
        self.taken = 0
        self._endpoint, self._notes = endpoint, notes

    async def send(self, request: Request, *, deadline: float, manner: Manner = Manner.PLAIN) -> Reply:
        self.taken += 1
        headers = [("host", "reservoir.example"), *request.headers.items(), ("content-length", str(len(request.body)))]
        self._notes.append(
            RawDelivery(
                id=new_id(),
                endpoint=self._endpoint,
                method=request.method,
                received_at=now(),
                headers=tuple(headers),
                body=request.body,
            )
        )
        return Reply(Outcome.ANSWERED, 200, 0.0)


# --- into the inbox --------------------------------------------------------------------------------------------


def fill(redis_url: str, stuff: Stuff) -> None:
    """Puts all of it into the inbox with its nudges, as the receiver does in a burst: by its own group commits."""
    asyncio.run(_filled(redis_url, stuff))


async def _filled(redis_url: str, stuff: Stuff) -> None:
    inbox = Inbox(redis_url, Nudge(), PATIENCE)
    queues = {endpoint.name: endpoint.provider for endpoint in stuff.config}
    try:
        for start in range(0, len(stuff.deliveries), GROUP):
            group = stuff.deliveries[start : start + GROUP]
            await inbox.put_behind([Row(str(one.id), queues[one.endpoint], one.pack()) for one in group])
    finally:
        await inbox.aclose()
