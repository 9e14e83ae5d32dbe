"""`make bench-growth`: what a long history costs. A worker's rate with it and without, and how much of it is looked at.

Three databases on one server: an empty one, one with the whole history, and one with a hundredth of it. A burst is
drained in the empty one and in the full one in turns. Then every statement that workers, the sweeper and the lists send
is explained in the full one and in the small one: what reads a table from end to end, or ever more pages, is not fit to
grow old. `growth-plans.txt` keeps the plans.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from sqlalchemy import make_url

from bench.ground import Ground, GroundFailed
from bench.history import TABLES, History
from bench.machine import facts, facts_of
from bench.plans import Explained
from bench.probes import probed, read_whole
from bench.stuff import Stuff, recorded
from bench.worker import drained, emptied
from console.services import ServiceError
from schemas.delivery import now
from workers.database import engine

BYTES_EACH: Final = 3000
"""Of the disk for each delivery of the history, with its events, its indexes and what is written on the way."""
SMALL: Final = 100
"""The small history is this part of the long one."""
RATIO: Final = 0.85
"""The share of the rate on an empty database that is wanted."""
FULL_NAME: Final = "history"
SMALL_NAME: Final = "small"

Say = Callable[[str], None]


class NoRoom(Exception):
    """The disk is too small, in a line that says what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What one piece of work looks at."""

    work: str
    statements: int
    small: int
    """Pages that it looks at with the small history."""
    full: int
    """The same with the whole."""
    full_ms: float
    read_whole: Sequence[str]
    """Tables that a statement reads from end to end."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where a table is read from end to end, or the rate is below RATIO."""
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description="What a long history costs.")
    parser.add_argument("--deliveries", type=int, default=10_000_000, help="of the history (default: 10 million)")
    parser.add_argument("--bookings", type=int, help="of the history (default: a fifth of the deliveries)")
    parser.add_argument("--burst", type=int, default=20_000, help="deliveries that are drained (default: 20000)")
    parser.add_argument("--rounds", type=int, default=3, help="of each database (default: 3)")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be used (default: the temporary one)")
    parser.add_argument("--report", type=Path, default=Path("growth-report"), help="path without its ending")
    words = parser.parse_args(arguments)
    until = now()
    try:
        check_room(words.folder or Path(tempfile.gettempdir()), words.deliveries)
        with (
            tempfile.TemporaryDirectory(prefix="reservoir-growth-", dir=words.folder) as place,
            Ground(Path(place)) as ground,
        ):
            bookings = words.bookings or max(1, words.deliveries // 5)
            told = _measured(ground, words.deliveries, bookings, words.burst, words.rounds, until)
    except (GroundFailed, NoRoom, ServiceError) as error:
        say(f"growth: {error}")
        return 1
    _keep(words.report, told)
    say(as_markdown(told))
    sys.stdout.write(f"{told['last_line']}\n")
    return 0 if told["good"] else 1


def check_room(folder: Path, deliveries: int) -> None:
    """Raises NoRoom."""
    needed, free = deliveries * BYTES_EACH, shutil.disk_usage(folder).free
    if needed > free:
        raise NoRoom(
            f"a history of {deliveries:,} deliveries takes about {needed / 1e9:.0f} GB below {folder}, where "
            f"{free / 1e9:.0f} GB are free; give --folder on another disk, or fewer --deliveries"
        )


def _measured(
    ground: Ground, deliveries: int, bookings: int, burst: int, rounds: int, until: datetime
) -> dict[str, Any]:
    endpoints = list(ground.config)
    full = History.of(endpoints, deliveries, bookings, until)
    small = History.of(endpoints, max(1, deliveries // SMALL), max(1, bookings // SMALL), until)
    urls = {name: _made(ground, name, history) for name, history in ((SMALL_NAME, small), (FULL_NAME, full))}
    size = _size(urls[FULL_NAME])
    say(f"growth: {size / 1e9:.1f} GB, {size / full.deliveries:.0f} bytes a delivery")
    rates = _drains(ground, urls[FULL_NAME], recorded(ground.config, burst), rounds, until)
    plans = {name: _plans(urls[name], history) for name, history in ((SMALL_NAME, small), (FULL_NAME, full))}
    return summary(full, size, rates, plans) | facts() | facts_of(ground)


def _made(ground: Ground, name: str, history: History) -> str:
    """A database with that history; its URL."""
    template = make_url(ground.database_url).database
    with psycopg.connect(_url(ground, "postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    with psycopg.connect(_url(ground, name), autocommit=True) as connection:
        history.make(connection, say)
    return _url(ground, name)


def _url(ground: Ground, name: str) -> str:
    return make_url(ground.database_url).set(database=name).render_as_string(hide_password=False)


def _size(url: str) -> int:
    with psycopg.connect(url) as connection:
        ((size,),) = connection.execute("SELECT pg_database_size(current_database())").fetchall()
    return int(size)


# --- the rate --------------------------------------------------------------------------------------------------


def _drains(ground: Ground, full: str, stuff: Stuff, rounds: int, until: datetime) -> list[tuple[float, float]]:
    """Deliveries a second in the empty and in the full database, round by round."""
    rates = []
    for number in range(1, rounds + 1):
        found = {}
        for url in (ground.database_url, full) if number % 2 else (full, ground.database_url):
            if url == full:
                _forgotten(url, until)
            else:
                emptied(url)
            found[url] = drained(ground, stuff, url).per_second
        rates.append((found[ground.database_url], found[full]))
        say(f"growth: round {number}: {rates[-1][0]:.0f} a second without a history, {rates[-1][1]:.0f} with it")
    _forgotten(full, until)
    with psycopg.connect(full, autocommit=True) as connection:
        connection.execute(f"VACUUM (ANALYZE, INDEX_CLEANUP ON) {', '.join(TABLES)}")  # of the bursts nothing is left
    return rates


def _forgotten(url: str, since: datetime) -> None:
    """The history is as it was before a burst was drained on it."""
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            "DELETE FROM booking_changes WHERE at >= %(since)s",
            "DELETE FROM bookings WHERE first_seen_at >= %(since)s",  # and their events with them
            "DELETE FROM deliveries WHERE received_at >= %(since)s",
            "CHECKPOINT",
        ):
            connection.execute(statement, {"since": since} if "since" in statement else None)


# --- the plans -------------------------------------------------------------------------------------------------


def _plans(url: str, history: History) -> dict[str, list[Explained]]:
    opened = engine(url, patience="0")
    try:
        return probed(opened, history)
    finally:
        opened.dispose()


def costs(plans: Mapping[str, Mapping[str, Sequence[Explained]]]) -> list[Cost]:
    """What each piece of work costs, by the plans in the small and in the full database."""
    small, full = plans[SMALL_NAME], plans[FULL_NAME]
    return [
        Cost(
            work=work,
            statements=len(seen),
            small=sum(one.buffers for one in small[work]),
            full=sum(one.buffers for one in seen),
            full_ms=round(sum(one.plan["Actual Total Time"] for one in seen), 2),
            read_whole=sorted({table for one in seen for table in read_whole(work, one)} & set(TABLES)),
        )
        for work, seen in full.items()
    ]


def summary(
    history: History,
    size: int,
    rates: Sequence[tuple[float, float]],
    plans: Mapping[str, Mapping[str, Sequence[Explained]]],
) -> dict[str, Any]:
    """What there is to tell of a run."""
    found = costs(plans)
    ratio = median(full / empty for empty, full in rates)
    scans = sum(bool(cost.read_whole) for cost in found)
    return {
        "deliveries": history.deliveries,
        "bookings": history.bookings,
        "bytes": size,
        "rates": [{"empty": empty, "full": full} for empty, full in rates],
        "ratio": round(ratio, 3),
        "costs": [asdict(cost) for cost in found],
        "good": ratio >= RATIO and not scans,
        "last_line": (
            f"growth: deliveries={history.deliveries} bookings={history.bookings} gb={size / 1e9:.1f} "
            f"drain_ratio={ratio:.2f} scans={scans}"
        ),
        "plans": {
            work: [{"statement": one.statement, "plan": one.text} for one in seen]
            for work, seen in plans[FULL_NAME].items()
        },
    }


# --- what is left behind ---------------------------------------------------------------------------------------


def as_markdown(told: Mapping[str, Any]) -> str:
    """The rates, and a row for each piece of work."""
    rows = [
        f"| {cost['work']} | {cost['statements']} | {cost['small']:,} | {cost['full']:,} | {cost['full_ms']:,} | "
        f"{', '.join(cost['read_whole']) or 'none'} |"
        for cost in told["costs"]
    ]
    small = f"pages with {told['deliveries'] // SMALL:,} deliveries"
    full = f"with {told['deliveries']:,}"
    return "\n".join(
        [
            *(
                f"A burst on an empty database: {one['empty']:,.0f} a second; with the history: {one['full']:,.0f}."
                for one in told["rates"]
            ),
            "",
            f"| work | statements | {small} | {full} | ms | tables read whole |",
            "| --- | ---: | ---: | ---: | ---: | --- |",
            *rows,
            "",
        ]
    )


def _keep(path: Path, told: Mapping[str, Any]) -> None:
    """A summary for programs, the table for people, and the plans."""
    kept = {name: value for name, value in told.items() if name != "plans"}
    path.with_suffix(".json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(as_markdown(told), encoding="utf-8")
    pages = [
        f"-- {work}\n{one['statement']}\n\n{one['plan']}\n" for work, seen in told["plans"].items() for one in seen
    ]
    path.with_name("growth-plans.txt").write_text("\n".join(pages), encoding="utf-8")


def say(line: str) -> None:
    """For whoever watches; stdout is for the last line."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
