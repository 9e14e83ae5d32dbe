"""One run: an installation of real processes, venues that live through their day, faults as they are planned, and at
the end a comparison of what was promised with what is there.

Knows how a run goes, and no single fault.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import psycopg

from chaos import report, sabotage
from chaos.balancer import Balancer, program
from chaos.books import Account, Kept, Line, Span, account, away, owed, slowest
from chaos.cast import ROLES, Happenings, Role, venues
from chaos.faults import BY_NAME, FAULTS
from chaos.ground import Ground
from chaos.injector import Injector
from chaos.kept import Standing, kept, standing
from chaos.schedule import Planned, schedule
from chaos.screen import Screen
from console.trial import Trial, folder
from simulators.ledger import Outcome
from simulators.venue import Venue

REDIS_AWAY: Final = frozenset({"redis killed", "redis stopped", "redis restarted", "redis full"})
REDIS_HUNG: Final = frozenset({"redis stopped"})
KNOWN_TO_BE_AWAY: Final = 0.6
"""Seconds after which nobody asks a hung Redis any more."""
REQUESTS_EACH: Final = 1.3
"""A venue is asked for so many requests for each event that shall happen: repeats and notices of payments are none."""
BUSY: Final = 1.2
"""The venues' day is so much longer than the faults are on, because towards its end little happens."""
LOOK_EVERY: Final = 0.5
SLOWEST: Final = 10
"""Answers that the report tells of one by one."""
MISSED: Final = 20.0
"""Seconds after which nobody waits any longer for what is owed and not there, when nothing else waits."""
STEADY: Final = 1.5
"""Seconds that everything must have been settled for, before that is believed."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a run is to be."""

    seed: int = 1
    minutes: float = 3.0
    events: int = 20_000
    without: str | None = None
    """What is taken out of the system: `spool`, `sweeper` or `commit-first`."""
    faults: Sequence[str] = ()
    """Only these; empty: all of them."""
    roles: Sequence[Role] = ROLES
    plan: Sequence[Planned] | None = None
    """In place of a schedule from the seed."""
    patience: float = 180.0
    """Seconds that everything may take to settle, once the faults are over."""
    balanced: bool = field(default_factory=lambda: program() is not None)
    workers: int = 2
    keep_log: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """How it was."""

    account: Account
    told: Mapping[str, Any]
    last_line: str
    settled_after: float
    """Seconds from the end of the last fault until everything was settled, what senders sent later included."""
    caught_up_after: float | None
    """Seconds from the end of the last fault until all that had come by then was there, and nothing waited."""

    @property
    def good(self) -> bool:
        return self.account.good


async def play(asked: Asked, screen: Screen) -> Run:
    """The whole run. Raises TrialFailed where the installation does not start."""
    ledger = Happenings()
    players = venues(ledger, asked.seed, asked.roles)
    with folder() as place:
        trial = _trial(asked, players, ledger, Path(place))
        screen.tell("starting PostgreSQL, Redis, the receivers, the workers and beat")
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(trial)
                if asked.balanced:
                    _put_in_front(stack.enter_context(Balancer(trial.urls, Path(place))), trial, players)
                return await _Day(asked, trial, players, ledger, screen).lived()
        finally:
            if asked.keep_log and trial.log.exists():
                shutil.copy(trial.log, asked.keep_log)


def _trial(asked: Asked, players: Sequence[Venue], ledger: Happenings, place: Path) -> Trial:
    scale = {"web": 2 if asked.balanced else 1, "worker": asked.workers, "flower": 0, "metrics": 0}
    leavings = place / "tmp"  # what is killed cannot clean up behind itself
    leavings.mkdir()
    environment = {"TMPDIR": str(leavings)}
    if asked.without is not None:
        more_scale, more_environment = sabotage.WITHOUT[asked.without](place)
        scale |= more_scale
        environment |= more_environment
    return Trial(players, ledger, place, scale=scale, environment=environment)


def _put_in_front(balancer: Balancer, trial: Trial, players: Sequence[Venue]) -> None:
    for venue in players:
        venue.hook_url = venue.hook_url.replace(trial.url, balancer.url)


class _Day:
    """A run between the installation's start and its end."""

    def __init__(
        self, asked: Asked, trial: Trial, players: Sequence[Venue], ledger: Happenings, screen: Screen
    ) -> None:
        self.asked, self.trial, self.players, self.ledger, self.screen = asked, trial, players, ledger, screen
        self.ground = Ground(trial, players, Random(f"ground {asked.seed}"))  # noqa: S311
        chosen = [fault for fault in FAULTS if not asked.faults or fault.name in asked.faults]
        plan = asked.plan
        if plan is None:
            plan = schedule(asked.seed, asked.minutes, [fault.kind for fault in chosen])
        self.injector = Injector(self.ground, plan, BY_NAME, screen.tell)
        self.standing = Standing()
        self._over: tuple[float, int] | None = None
        """When the last fault was over (monotonic), and how many requests had been acknowledged by then."""
        self._caught_up: float | None = None

    async def lived(self) -> Run:
        seconds = self.asked.minutes * 60
        day = asyncio.gather(
            *(
                venue.live(max(1, round(self.asked.events * REQUESTS_EACH * role.share)), seconds * BUSY)
                for venue, role in zip(self.players, self.asked.roles, strict=True)
            )
        )
        faults = asyncio.create_task(self.injector.run())
        watching = asyncio.create_task(self._watch())
        try:
            await faults
            self.screen.tell("all faults are over; what is left settles")
            over = time.monotonic()
            self._over = over, self._acked
            took = await self._settled(day, over + self.asked.patience) - over
        finally:
            for task in (faults, watching, day):
                task.cancel()
            await asyncio.gather(faults, watching, day, return_exceptions=True)
        return await self._compared(took)

    # --- while it goes on ---

    async def _watch(self) -> None:
        while True:
            self.standing = await asyncio.to_thread(standing, self.ground)
            if self._over and self._caught_up is None and self.standing.settled:
                since, owed_then = self._over
                if (self.standing.rows or 0) >= owed_then:
                    self._caught_up = time.monotonic() - since
            self.screen.show(self._counts, self.injector.under_way)
            await asyncio.sleep(LOOK_EVERY)

    def _counts(self) -> str:
        sent = sum(one.sent for one in self.ledger.counted.values())
        late = sum(one.late for one in self.ledger.counted.values())
        slowest = max((one.slowest for one in self.ledger.counted.values()), default=0.0)
        came = f"events={self.ledger.happened} sent={sent} acked={self._acked} late={late}"
        return f"{came} slowest={slowest * 1000:.0f} ms {self.standing}"

    @property
    def _acked(self) -> int:
        return sum(one.acked for one in self.ledger.counted.values())

    async def _settled(self, day: asyncio.Future[Any], deadline: float) -> float:
        """When the day was over, nothing waited any more and all that is owed was there; the deadline at the latest."""
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(day), max(0.0, deadline - time.monotonic()))
        since: float | None = None
        while time.monotonic() < deadline:
            await asyncio.sleep(LOOK_EVERY)
            since = (since or time.monotonic()) if self.standing.settled else None
            quiet = time.monotonic() - since if since else 0.0
            if since and (quiet > MISSED or (quiet > STEADY and await self._all_there())):
                return since
        return time.monotonic()

    async def _all_there(self) -> bool:
        with suppress(psycopg.Error):
            there = {row.request for row in await asyncio.to_thread(kept, self.ground)}
            return all(one.request in there for one in self.ledger.sent if self._owed(one))
        return False

    def _owed(self, one: Any) -> bool:
        return owed(one, balanced=self.asked.balanced)

    # --- the end ---

    async def _compared(self, took: float) -> Run:
        rows = await asyncio.to_thread(kept, self.ground)
        self._excuse(rows)
        verdict = await self.trial.compare()
        spans = sorted(self.injector.spans, key=lambda span: span.began)
        found = account(
            self.ledger.sent,
            rows,
            verdict,
            spans,
            balanced=self.asked.balanced,
            forgiven=self.ledger.excused | self.ledger.given_up,
        )
        for venue in self.players:
            if venue.hook_off:
                found.lose(f"{venue.endpoint}: {venue.provider} has switched its webhook off")
        return Run(
            account=found,
            told=self._told(found, spans, took),
            last_line=self._last_line(found, spans),
            settled_after=took,
            caught_up_after=self._caught_up,
        )

    def _excuse(self, rows: Sequence[Kept]) -> None:
        """Without a balancer nobody can know what was in flight in a killed receiver and is never sent again."""
        there = {row.request for row in rows}
        for one in self.ledger.sent:
            if one.outcome is Outcome.CUT and one.request not in there and not self._owed(one):
                self.ledger.excuse(one.endpoint, one.bookings)

    def _told(self, found: Account, spans: Sequence[Span], took: float) -> dict[str, Any]:
        facts = {
            "seeds": [self.asked.seed],
            "minutes": self.asked.minutes,
            "events": self.ledger.happened,
            "faults_in_all": len(spans),
            "balanced": self.asked.balanced,
            "without": self.asked.without,
            "settled_after_seconds": round(took, 1),
            "redis_away": self._acks(spans, REDIS_AWAY, 0.0),
            "breaker_open": self._acks(spans, REDIS_HUNG, KNOWN_TO_BE_AWAY),
            "slowest": slowest(self.ledger.sent, spans, SLOWEST),
            "load": os.getloadavg()[1],
        }
        return report.as_json(found, spans, facts)

    def _acks(self, spans: Sequence[Span], names: frozenset[str], settling: float) -> dict[str, float]:
        line = Line(name="", acks=away(self.ledger.sent, spans, names, settling))
        return {name: round(line.ack(share), 1) for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}

    def _last_line(self, found: Account, spans: Sequence[Span]) -> str:
        total = found.total
        return (
            f"chaos: seed={self.asked.seed} faults={len(spans)} sent={total.sent} acked={total.acked} "
            f"lost={total.lost} wrong={total.wrong} late={total.late} max_ack_ms={total.ack(1.0):.0f}"
        )
