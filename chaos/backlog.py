"""`make backlog`: the inbox is filled through the real receivers while no worker runs; then the workers start, and
what counts is whether they are as fast at the end as at the beginning, and how often a delivery is processed.

Only venues whose API is not asked take part: their day does not wait for a worker, and no provider's API limits the
rate.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Final

import psycopg
from rich.console import Console

from chaos.balancer import Balancer, NoBalancer, program
from chaos.books import Account, account
from chaos.cast import ROLES, Happenings, venues
from chaos.ground import Ground
from chaos.kept import kept
from console.trial import Trial, TrialFailed, folder
from schemas.delivery import INBOX, OPEN
from simulators.venue import Venue

AS_FAST: Final = 0.8
"""The last tenth must be drained at this share of the first tenth's rate at least."""
ATTEMPTS: Final = 1.05
"""How often a delivery may be processed on average."""
FILL_RATE: Final = 700.0
"""Requests per second that the venues are asked for; what comes of it is up to the machine."""
DAY: Final = 5000
"""Requests of one day: the backlog holds many short days, so that its end is of the same stuff as its beginning."""
IDLE: Final = frozenset({"reservekit-no-key", "synthesisvr-no-key", "timekit", "checkfront-no-keys"})
WAITING: Final = 0.01
"""Share of the deliveries that may wait for others by then, and so say nothing about the rate of the last tenth."""
STALLED: Final = 120.0
"""Seconds without progress after which nobody waits any longer."""
LOOK_EVERY: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Drain:
    """How it went."""

    deliveries: int
    seconds: float
    first: float
    last: float
    """Deliveries per second in the first and in the last tenth."""
    account: Account

    @property
    def good(self) -> bool:
        return self.account.good and self.last >= AS_FAST * self.first and self.account.attempts <= ATTEMPTS

    @property
    def last_line(self) -> str:
        total = self.account.total
        return (
            f"backlog: deliveries={self.deliveries} drained_s={self.seconds:.1f} first_tenth_per_s={self.first:.0f} "
            f"last_tenth_per_s={self.last:.0f} attempts={self.account.attempts:.3f} lost={total.lost} "
            f"wrong={total.wrong} late={total.late}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only where nothing was lost or wrong, and the end as fast as the beginning."""
    parser = argparse.ArgumentParser(prog="python -m chaos.backlog", description="Drains a long backlog.")
    parser.add_argument("--deliveries", type=int, default=100_000, help="in the inbox, at least (default: 100000)")
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args(arguments)
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    try:
        with folder() as place:
            drain = asyncio.run(filled_and_drained(words.deliveries, words.seed, Path(place), say))
    except (TrialFailed, NoBalancer) as error:
        console.print(str(error), style="red", markup=False)
        return 1
    for one in drain.account.differences[:20]:
        say(f"{one.kind}: {one.text}")
    sys.stdout.write(f"{drain.last_line}\n")
    return 0 if drain.good else 1


async def filled_and_drained(deliveries: int, seed: int, place: Path, say: Callable[[str], None]) -> Drain:
    """Two installations over one state directory, one after the other: receivers without workers, then all of it."""
    ledger = Happenings()
    players = venues(ledger, seed, [role for role in ROLES if role.name in IDLE])
    receivers = Trial(players, ledger, place, scale=_scale(worker=0, beat=0))
    waiting = await _fill(deliveries, receivers, place, players, say)
    say(f"{waiting} deliveries wait in the inbox; now the workers start")
    async with Trial(players, ledger, place, scale=_scale(worker=2)) as trial:
        ground = Ground(trial, players, Random(seed))  # noqa: S311
        marks = await _drain(ground, waiting, say)
        rows = await asyncio.to_thread(kept, ground)
        found = account(
            ledger.sent,
            rows,
            await trial.compare(),
            [],
            balanced=program() is not None,
            forgiven=ledger.excused | ledger.given_up,
        )
    return Drain(
        deliveries=waiting,
        seconds=marks[-1][0] - marks[0][0],
        first=rate(marks, 0.0, 0.1),
        last=rate(marks, 0.9 - WAITING, 1.0 - WAITING),
        account=found,
    )


def _scale(**more: int) -> dict[str, int]:
    return {"web": 2 if program() else 1, "flower": 0, "metrics": 0, **more}


async def _fill(
    deliveries: int, trial: Trial, place: Path, players: Sequence[Venue], say: Callable[[str], None]
) -> int:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(trial)
        if program():
            balancer = stack.enter_context(Balancer(trial.urls, place))
            for venue in players:
                venue.hook_url = venue.hook_url.replace(trial.url, balancer.url)
        ground = Ground(trial, players, Random(1))  # noqa: S311
        while (there := await asyncio.to_thread(_inbox, ground)) < deliveries:
            more = min(max(50 * len(players), deliveries - there), DAY)
            say(f"{there} deliveries in the inbox; the venues send about {more} more")
            each = more // len(players) + 1
            await asyncio.gather(*(venue.live(each, more / FILL_RATE) for venue in players))
            await asyncio.sleep(1.0)  # the spool, where something went there, is drained within a moment
        return there


def _inbox(ground: Ground) -> int:
    with ground.redis(timeout=10.0) as client:
        return int(client.hlen(INBOX))


async def _drain(ground: Ground, wanted: int, say: Callable[[str], None]) -> list[tuple[float, int]]:
    """(when, how many had settled), from our first look on; gives up where nothing moves any more.

    The workers are ready a moment before we look, so the first mark is not 0.
    """
    marks = [(time.monotonic(), await asyncio.to_thread(_settled, ground))]
    told = moved = time.monotonic()
    while marks[-1][1] < wanted and time.monotonic() - moved < STALLED:
        await asyncio.sleep(LOOK_EVERY)
        settled = await asyncio.to_thread(_settled, ground)
        now = time.monotonic()
        if settled == 0:
            marks = [(now, 0)]
        elif settled > marks[-1][1]:
            marks.append((now, settled))
            moved = now
        if now - told > 5.0:
            told = now
            say(f"{settled} of {wanted} settled")
    return marks


def _settled(ground: Ground) -> int:
    with suppress(psycopg.Error), ground.database() as connection:
        row = connection.execute("SELECT count(*) FROM deliveries WHERE state <> ALL(%s)", [sorted(OPEN)]).fetchone()
        return int(row[0]) if row else 0
    return 0


def rate(marks: Sequence[tuple[float, int]], begin: float, end: float) -> float:
    """Per second, between two shares of all that was drained while we looked."""
    already = marks[0][1]
    total = marks[-1][1] - already
    seconds = _when(marks, already + end * total) - _when(marks, already + begin * total)
    return (end - begin) * total / seconds if seconds > 0 else 0.0


def _when(marks: Sequence[tuple[float, int]], count: float) -> float:
    """The moment at which so many had settled, on a straight line between two looks."""
    for (before, low), (after, high) in pairwise(marks):
        if low <= count <= high and high > low:
            return before + (after - before) * (count - low) / (high - low)
    return marks[-1][0]


if __name__ == "__main__":
    sys.exit(main())
