"""`make demo`: five simulated venues live through one busy day against a real Reservoir, and the result is checked.

The day is sent over HTTP, with the manners of the providers; beside it runs what a user runs: `reservoir up`.
At the end the table `bookings` is compared, column by column, with what the simulators know to be true.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, Final

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from sqlalchemy import Engine, func, select

from console.trial import SETTLED, Trial, TrialFailed, folder
from simulators.clock import Clock
from simulators.ledger import Ledger, Verdict
from simulators.server import discover
from simulators.venue import Venue, Weather
from workers.database import engine
from workers.tables import bookings, changes, deliveries

SPEED: Final = 2000.0
"""Simulated seconds in one second: the busy hours of a day take a few seconds."""
STALLED: Final = 20.0
"""Seconds without a change in any delivery's state after which nobody waits any longer."""
SHOWN: Final = 9
STATES: Final = (*SETTLED, "retrying", "received")
COLUMNS: Final = {
    "applied": (("applied",), "green"),
    "same": (("duplicate", "stale"), ""),
    "ignored": (("ignored",), ""),
    "parked": (("parked",), "red"),
    "open": (("received", "retrying"), "yellow"),
}
"""Heading → the states that are counted below it, and their colour."""


@dataclass
class Seen:
    """What the tables show at one moment."""

    states: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(endpoint, state) → deliveries."""
    rows: Counter[str] = field(default_factory=Counter)
    """endpoint → bookings."""
    latest: list[tuple[datetime, str, str, str, str]] = field(default_factory=list)
    """(when, endpoint, kind of change, booking, status) of the newest changes."""

    def total(self, *states: str) -> int:
        return sum(count for (_, state), count in self.states.items() if state in states)


def look(database: Engine) -> Seen:
    """Three small questions to the tables."""
    with database.connect() as connection:
        states = connection.execute(
            select(deliveries.c.endpoint, deliveries.c.state, func.count()).group_by(
                deliveries.c.endpoint, deliveries.c.state
            )
        ).all()
        rows = connection.execute(select(bookings.c.endpoint, func.count()).group_by(bookings.c.endpoint)).all()
        latest = connection.execute(
            select(
                changes.c.at,
                bookings.c.endpoint,
                changes.c.kind,
                func.coalesce(bookings.c.reference, bookings.c.external_id),
                bookings.c.status,
            )
            .join(bookings, bookings.c.id == changes.c.booking_id)
            .order_by(changes.c.id.desc())
            .limit(SHOWN)
        ).all()
    return Seen(
        states=Counter({(endpoint, state): count for endpoint, state, count in states}),
        rows=Counter(dict(tuple(row) for row in rows)),
        latest=[tuple(row) for row in latest],
    )


# --- the picture -----------------------------------------------------------------------------------------------


def picture(venues: list[Venue], ledger: Ledger, seen: Seen, title: str) -> Group:
    """Deliveries coming in, and bookings settling."""
    return Group(_counts(venues, ledger, seen, title), _latest(ledger, seen))


def _counts(venues: list[Venue], ledger: Ledger, seen: Seen, title: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("venue", no_wrap=True)
    for name in ("sent", "acked", "slowest", *COLUMNS, "rows"):
        table.add_column(name, justify="right", no_wrap=True)
    for venue in venues:
        counted = ledger.counted[venue.endpoint]
        counts = [str(counted.sent), str(counted.acked), f"{counted.slowest * 1000:.0f} ms"]
        settled = [_count(seen, venue, states, colour) for states, colour in COLUMNS.values()]
        table.add_row(venue.provider, *counts, *settled, str(seen.rows[venue.endpoint]))
    return table


def _count(seen: Seen, venue: Venue, states: tuple[str, ...], colour: str) -> Text:
    count = sum(seen.states[venue.endpoint, state] for state in states)
    return Text(str(count), style=colour) if count else Text("·", style="dim")


def _latest(ledger: Ledger, seen: Seen) -> Table:
    """What came in last, and what it did to the bookings."""
    both = Table.grid(expand=True)
    both.add_column(ratio=1)
    both.add_column(ratio=1)
    came = Table.grid(padding=(0, 1), expand=True)
    came.add_column(no_wrap=True, width=11)
    came.add_column(no_wrap=True, ratio=1)
    came.add_column(no_wrap=True, justify="right", width=7)
    for one in reversed(ledger.sent[-SHOWN:]):
        came.add_row(one.provider, one.about, f"{one.seconds * 1000:.0f} ms" if one.acked else f"{one.status or '—'}")
    settled = Table.grid(padding=(0, 1), expand=True)
    settled.add_column(no_wrap=True, ratio=1)
    settled.add_column(no_wrap=True, width=9)
    settled.add_column(no_wrap=True, width=9)
    for _, endpoint, kind, name, status in seen.latest:
        settled.add_row(f"{endpoint.removesuffix('-venue')} {name}", kind, status)
    both.add_row(Panel(came, title="deliveries", height=SHOWN + 2), Panel(settled, title="bookings", height=SHOWN + 2))
    return both


# --- the day ---------------------------------------------------------------------------------------------------


def venues_of_the_day(ledger: Ledger, seed: int) -> list[Venue]:
    """One venue at each provider, with duplicates and overtaking in the weather."""
    clock = Clock(datetime.now(UTC).replace(microsecond=0), SPEED)
    return [
        kind(
            endpoint=f"{name}-venue",
            hook_url="",
            ledger=ledger,
            clock=clock,
            rng=Random(f"{seed} {name}"),  # noqa: S311  seeded chance is the point
            weather=Weather(duplicate=0.1, reorder=0.1),
        )
        for name, kind in discover().items()
    ]


async def play(venues: list[Venue], ledger: Ledger, *, each: int, console: Console) -> tuple[Seen, Verdict]:
    """The day, watched; then the settling; then the comparison."""
    with folder() as place:
        console.print("starting PostgreSQL, Redis, the receiver, the worker, beat and Flower …")
        async with Trial(venues, ledger, Path(place)) as trial:
            database = engine(trial.database_url())
            try:
                return await _watched(trial, venues, database, each=each, console=console)
            finally:
                database.dispose()


async def _watched(
    trial: Trial, venues: list[Venue], database: Engine, *, each: int, console: Console
) -> tuple[Seen, Verdict]:
    seen, began = Seen(), time.monotonic()
    day = asyncio.gather(*(venue.busy_day(each) for venue in venues))
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        while not day.done():
            seen = await asyncio.to_thread(look, database)
            live.update(picture(venues, trial.ledger, seen, f"a busy day, at {trial.url}"))
            await asyncio.sleep(0.15)
        await day
        moved = time.monotonic()
        while not _settled(seen, trial.ledger) and time.monotonic() - moved < STALLED:
            await asyncio.sleep(0.15)
            before, seen = seen, await asyncio.to_thread(look, database)
            live.update(picture(venues, trial.ledger, seen, "the day is over; what is left settles"))
            if seen.states != before.states:
                moved = time.monotonic()
    console.print(picture(venues, trial.ledger, seen, f"the day took {time.monotonic() - began:.1f} s"))
    return seen, await trial.compare()


def _settled(seen: Seen, ledger: Ledger) -> bool:
    """Everything that was acknowledged is in the table, and nothing waits."""
    return seen.total(*SETTLED) == seen.total(*STATES) >= sum(one.acked for one in ledger.sent)


# --- the result ------------------------------------------------------------------------------------------------


def unpaid(venues: list[Venue], rows: list[dict[str, Any]]) -> int:
    """Payments that the venues made and the rows do not tell of, or tell of twice."""
    told = {row["reference"]: [payment["id"] for payment in row["details"].get("payments", [])] for row in rows}
    known = {code: ids for venue in venues for code, ids in getattr(venue, "payments", {}).items()}
    return sum(sorted(told.get(code, [])) != sorted(ids) for code, ids in known.items())


def _unkept(ledger: Ledger, seen: Seen) -> int:
    """Acknowledged requests that stand in no row of `deliveries`, endpoint by endpoint."""
    acked = Counter(one.endpoint for one in ledger.sent if one.acked)
    kept = {endpoint: sum(seen.states[endpoint, state] for state in STATES) for endpoint in acked}
    return sum(max(0, count - kept[endpoint]) for endpoint, count in acked.items())


def report(console: Console, ledger: Ledger, seen: Seen, verdict: Verdict) -> int:
    """The differences, if there are any, and the last line; the exit code."""
    for wrong in verdict.wrong[:20]:
        console.print(
            f"wrong: {wrong.endpoint} {wrong.external_id} {wrong.column}: expected {wrong.expected!r}, "
            f"the row shows {wrong.found!r}",
            style="red",
            markup=False,
        )
    acked = sum(one.acked for one in ledger.sent)
    lost = len(verdict.lost) + _unkept(ledger, seen) + seen.total("received", "retrying")
    wrong_rows = {(wrong.endpoint, wrong.external_id) for wrong in verdict.wrong} | set(verdict.invented)
    late = sum(one.late for one in ledger.sent)
    console.print(f"checked {verdict.checked} bookings against what the venues know; answers past a deadline: {late}")
    sys.stdout.write(
        f"demo: sent={len(ledger.sent)} acked={acked} applied={seen.total('applied')} "
        f"duplicate={seen.total('duplicate', 'stale')} parked={seen.total('parked')} "
        f"bookings={seen.rows.total()} wrong={len(wrong_rows)} lost={lost}\n"
    )
    return 1 if wrong_rows or lost else 0


def main() -> int:
    """The demo; exit code 1 where a booking is wrong or lost."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--bookings", type=int, default=25, help="per venue, about")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same day")
    asked = parser.parse_args()
    console, ledger = Console(), Ledger()
    venues = venues_of_the_day(ledger, asked.seed)
    try:
        seen, verdict = asyncio.run(play(venues, ledger, each=asked.bookings, console=console))
    except TrialFailed as error:
        console.print(str(error), style="red", markup=False)
        return 1
    return report(console, ledger, seen, verdict)


if __name__ == "__main__":
    sys.exit(main())
