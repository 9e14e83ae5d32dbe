"""`reservoir replay`: deliveries read again with today's code, shown field by field, and then done.

`rehearse` and `perform` are for a page, which must not take long: some deliveries, for some seconds. How it is done is
`workers.replay`.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import Engine

from console import show
from console.context import CommandError
from schemas.booking import to_json
from schemas.endpoints import Config
from workers.registry import discover
from workers.replay import Choice, Difference, Outcome, Renewal, Turn, chosen, counted
from workers.reread import Reader

FIELDS: Final = ("endpoint", "external_id", "kind", "field", "old", "new")
STATES: Final = ("delivery", "endpoint", "was", "now")
STOPPED: Final = 130
"""The exit code after Ctrl-C."""
AT_ONCE: Final = 300
"""So many deliveries are read again for one page."""
SECONDS: Final = 3.0
"""So long a page waits for that; what is not done by then is left out."""
STEP: Final = 25
"""Deliveries after which one looks at the clock."""


def choice_of(*, dry_run: bool, in_earnest: bool, **described: Any) -> Choice:
    """Which deliveries; raises CommandError where it is not said what is wanted."""
    if dry_run == in_earnest:
        raise CommandError("say which: --dry-run shows what would change, --apply does it")
    if described["since"] is None and described["parser_before"] is None:
        raise CommandError("say which deliveries: --since 7d, or --parser-before 2 for what older code has read")
    return Choice(**described)


def planned(engine: Engine, config: Config, choice: Choice, seconds: float | None = None) -> Outcome:
    """What reading these deliveries again would change, as far as so many seconds tell; writes nothing."""
    return _within(seconds, Renewal.planned, engine, config, choice)


def apply(engine: Engine, config: Config, choice: Choice, seconds: float | None = None) -> Outcome:
    """Reads these deliveries again; what that changed. After so many seconds the rest of them is left as it is."""
    return _within(seconds, Renewal.apply, engine, config, choice)


class _OutOfTime(Exception):
    """Ends it between two steps."""


def _within(
    seconds: float | None, way: Callable[[Renewal], Outcome], engine: Engine, config: Config, choice: Choice
) -> Outcome:
    began = time.monotonic()

    def look_at_the_clock(done: int) -> None:
        if seconds is not None and done < len(choice.ids) and time.monotonic() - began > seconds:
            raise _OutOfTime

    renewal = _renewal(engine, config, choice, progress=look_at_the_clock, batch=STEP)
    with suppress(_OutOfTime):
        way(renewal)
    return renewal.outcome


def _renewal(engine: Engine, config: Config, choice: Choice, **how: Any) -> Renewal:
    return Renewal(engine=engine, reader=Reader(config=config, providers=discover()), choice=choice, **how)


# --- for a page --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Showing:
    """What reading these deliveries again would change, or has changed, for somebody to look at."""

    ids: Sequence[UUID] = ()
    """In order of receipt."""
    outcome: Outcome
    in_earnest: bool = False

    @property
    def done(self) -> Sequence[UUID]:
        """Those for which there was time."""
        return self.ids[: self.outcome.deliveries]

    @property
    def left(self) -> Sequence[UUID]:
        """The others."""
        return self.ids[self.outcome.deliveries :]

    @property
    def fingerprint(self) -> str:
        """The same for two that show the same."""
        told = json.dumps([list(map(str, self.ids)), document(self.outcome, in_earnest=False)], default=str)
        return hashlib.sha256(told.encode()).hexdigest()


def rehearse(engine: Engine, config: Config, ids: Sequence[UUID]) -> Showing:
    """What reading these deliveries again would change; writes nothing."""
    there = chosen(engine, Choice(ids=ids)) if ids else []
    if not there:  # a choice of no ids is one of all
        return Showing(outcome=Outcome())
    return Showing(ids=there, outcome=planned(engine, config, Choice(ids=there), SECONDS))


def perform(engine: Engine, config: Config, shown: Showing) -> Showing:
    """Does what was shown, and shows what was done."""
    outcome = apply(engine, config, Choice(ids=shown.ids), SECONDS) if shown.ids else Outcome()
    return Showing(ids=shown.ids, outcome=outcome, in_earnest=True)


def command(asked: Mapping[str, str]) -> str:
    """The command that looks at all deliveries that are so: `since`, `state` and so on."""
    options = (word for name, value in asked.items() for word in (f"--{name}", value))
    return shlex.join(["reservoir", "replay", *options, "--dry-run"])


# --- on a terminal -----------------------------------------------------------------------------------------------


def run(engine: Engine, config: Config, choice: Choice, *, in_earnest: bool, as_json: bool, limit: int) -> None:
    """The command. Ctrl-C ends it between two steps of the database: what is done stays done."""
    with _progress(counted(engine, choice)) as tick:
        renewal = _renewal(engine, config, choice, progress=tick)
        try:
            outcome = renewal.apply() if in_earnest else renewal.planned()
        except KeyboardInterrupt:
            done = renewal.outcome.deliveries
            typer.echo(f"reservoir: {_stopped(done, in_earnest=in_earnest)}", err=True)
            raise SystemExit(STOPPED) from None
    if as_json:
        typer.echo(show.as_json(document(outcome, in_earnest=in_earnest), indent=2))
    else:
        _tables(outcome, limit)
        typer.echo(summary(outcome, in_earnest=in_earnest))


def _stopped(done: int, *, in_earnest: bool) -> str:
    if not in_earnest:
        return "stopped; nothing was written"
    return f"stopped after {done} deliveries, which stay as they are now; run it again to go on"


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on stderr, where somebody sees it."""
    columns = TextColumn("reading again"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def _tables(outcome: Outcome, limit: int) -> None:
    fields = [line for difference in outcome.differences for line in lines(difference)]
    if fields:
        show.table(fields, FIELDS, limit)
        typer.echo()
    if outcome.turns:
        show.table(map(_turn, outcome.turns), STATES, limit)
        typer.echo()


def summary(outcome: Outcome, *, in_earnest: bool) -> str:
    """One line, and one more where something was left as it is."""
    line, *left = counts(outcome)
    if not in_earnest:
        line += " (a dry run: nothing was written; --apply does it)"
    return "\n".join([f"replay: {line}", *left])


def counts(outcome: Outcome) -> list[str]:
    """How much there was of what; and, where something was left as it is, for which reasons."""
    kinds = Counter(difference.kind for difference in outcome.differences)
    told = {
        "deliveries": outcome.deliveries,
        "read": outcome.read,
        "bookings": kinds.total(),
        **dict(sorted(kinds.items())),
        "states": len(outcome.turns),
    }
    said = [" ".join(f"{name}={count}" for name, count in told.items())]
    if outcome.unread:
        reasons = Counter(outcome.unread.values())
        said.append("left as they are: " + " ".join(f"{reason}={count}" for reason, count in sorted(reasons.items())))
    return said


def lines(difference: Difference) -> list[dict[str, Any]]:
    """A line for each field; of `details` one for each key that differs."""
    fields: dict[str, tuple[Any, Any]] = {}
    for column, (old, new) in difference.fields.items():
        if column != "details":
            fields[column] = (old, new)
            continue
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                fields[f"details.{key}"] = (old.get(key), new.get(key))
    return [
        {
            "endpoint": difference.endpoint,
            "external_id": difference.external_id,
            "kind": difference.kind,
            "field": name,
            "old": _plain(old),
            "new": _plain(new),
        }
        for name, (old, new) in fields.items()
    ]


def _plain(value: Any) -> Any:
    (plain,) = to_json({"": value}).values()
    return json.dumps(plain, ensure_ascii=False) if isinstance(plain, dict | list) else plain


def _turn(turn: Turn) -> dict[str, str]:
    return {
        "delivery": str(turn.delivery_id),
        "endpoint": turn.endpoint,
        "was": _state(turn.was),
        "now": _state(turn.now),
    }


def _state(pair: tuple[str, str | None]) -> str:
    state, reason = pair
    return f"{state} ({reason})" if reason else state


# --- for programs ------------------------------------------------------------------------------------------------


def document(outcome: Outcome, *, in_earnest: bool) -> dict[str, Any]:
    """All of it, as JSON has it."""
    return {
        "applied": in_earnest,
        "deliveries": outcome.deliveries,
        "read": outcome.read,
        "bookings": [as_json(difference) for difference in outcome.differences],
        "states": [_as_dict(turn) for turn in outcome.turns],
        "unread": {str(identity): reason for identity, reason in outcome.unread.items()},
    }


def as_json(difference: Difference) -> dict[str, Any]:
    """One booking's."""
    old, new = (to_json({name: pair[side] for name, pair in difference.fields.items()}) for side in (0, 1))
    return {
        "booking_id": str(difference.booking_id),
        "endpoint": difference.endpoint,
        "external_id": difference.external_id,
        "kind": difference.kind,
        "fields": {name: [old[name], new[name]] for name in difference.fields},
    }


def _as_dict(turn: Turn) -> dict[str, Any]:
    return {
        "delivery_id": str(turn.delivery_id),
        "endpoint": turn.endpoint,
        "was": {"state": turn.was[0], "reason": turn.was[1]},
        "now": {"state": turn.now[0], "reason": turn.now[1]},
    }
