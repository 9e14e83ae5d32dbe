"""Deliveries run again at an operator's word: dead letters after their cause is gone, or what was read wrongly.

Two ways:

- `replay` makes them due. A row that is due is nudged by the sweeper, and from there it goes the way of all deliveries.
- `Renewal` reads them again with today's code, asks nobody, and lets the bookings follow: for a trial (`planned`), or
  in earnest (`apply`). Both take the same steps, the trial over copies, so what was planned is what is done.

What a delivery said before is replaced, so its events are not doubled; sameness does not stop it. Writes rows only, and
needs no Redis. Knows no provider's words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol
from uuid import UUID

from sqlalchemy import ColumnElement, Connection, Engine, and_, exists, func, not_, null, select, update
from sqlalchemy.exc import DBAPIError

from schemas.booking import COLUMNS
from schemas.delivery import OPEN, State
from schemas.delivery import now as clock
from workers import reread
from workers.bookings import CHANGING, OURS, Effect
from workers.errors import AwaitingBooking
from workers.fold import kind_of_change
from workers.reading import clean
from workers.rehearsal import REAL_BOOKINGS, REAL_EVENTS, Stage, rehearsal
from workers.reread import RECEIPT, Reader, Reading, batches, named_in, pages, spoken_of, tell_again
from workers.rows import among, updated
from workers.store import LEASE
from workers.tables import bookings, deliveries, events

BATCH: Final = 500

# --- which ones --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which deliveries: these, or all that are as described."""

    ids: Sequence[UUID] = ()
    state: State | None = None
    reason: str | None = None
    endpoint: str | None = None
    since: datetime | None = None
    """Received then or later."""
    until: datetime | None = None
    """Received before."""
    parser_before: int | None = None
    """Read by a parser older than this one."""

    def conditions(self) -> list[ColumnElement[bool]]:
        """As SQL has it."""
        columns = deliveries.c
        asked = (
            (self.state, columns.state.__eq__),
            (self.reason, columns.reason.__eq__),
            (self.endpoint, columns.endpoint.__eq__),
            (self.since, columns.received_at.__ge__),
            (self.until, columns.received_at.__lt__),
            (self.parser_before, columns.parser.__lt__),
        )
        described: list[ColumnElement[bool]] = [meets(value) for value, meets in asked if value is not None]
        return [*described, columns.id.in_(self.ids)] if self.ids else described


def chosen(engine: Engine, choice: Choice) -> list[UUID]:
    """The deliveries that there are of the chosen ones, in order of receipt."""
    query = select(deliveries.c.id).where(*choice.conditions()).order_by(deliveries.c.received_at, deliveries.c.id)
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def counted(engine: Engine, choice: Choice) -> int:
    """How many they are."""
    with engine.connect() as connection:
        query = select(func.count()).select_from(deliveries).where(*choice.conditions())
        return int(connection.execute(query).scalar_one())


# --- the way of all deliveries -----------------------------------------------------------------------------------


@dataclass
class Replayed:
    """What became of a wish to run deliveries again."""

    again: list[UUID] = field(default_factory=list)
    held: list[UUID] = field(default_factory=list)
    """Left as they are: a worker has them in hand now, or will within seconds."""


def replay(engine: Engine, ids: Sequence[UUID], now: datetime, *, ask_again: bool = False) -> Replayed:
    """Makes these deliveries due as if they had just come in.

    What a provider's API answered is kept, so that a message which the provider has forgotten meanwhile can still be
    read; with `ask_again` it is forgotten, and the API is asked anew.
    """
    fresh: dict[str, Any] = {
        "state": State.RECEIVED,
        "reason": None,
        "error": None,
        "attempts": 0,
        "next_attempt_at": now,
        "nudged_at": None,
        "replayed_at": now,
        **({"lookup": null()} if ask_again else {}),
    }
    done = Replayed()
    for batch in batches(ids, BATCH):
        free = update(deliveries).where(deliveries.c.id.in_(batch), not_(_held(now)))
        with engine.begin() as connection:
            again = set(connection.execute(free.values(fresh).returning(deliveries.c.id)).scalars())
        done.again += [each for each in batch if each in again]
        done.held += [each for each in batch if each not in again]
    return done


def _held(now: datetime) -> ColumnElement[bool]:
    """A lease and the end of a short backoff look the same; whichever it is, the row is not to be touched now."""
    columns = deliveries.c
    return and_(columns.state.in_(OPEN), columns.next_attempt_at > now, columns.next_attempt_at <= now + LEASE)


# --- with today's code, for a trial or in earnest ----------------------------------------------------------------

Row = Mapping[str, Any]

SHOWN: Final = (*COLUMNS, *OURS)
"""What a booking shows: all that can differ between before and after."""
BLANK: Final[Row] = {**dict.fromkeys(SHOWN), "items": [], "details": {}}
READ: Final = frozenset({State.APPLIED, State.DUPLICATE, State.STALE})
"""What was read well, and is as it was where it changes nothing today."""
PASSING: Final = frozenset({"40P01", "40001", "55P03"})
"""SQLSTATEs of two who stood in each other's way: it is done again."""
PATIENCE: Final = (0.1, 0.5, 2.0)
"""Seconds before each further try."""
SETTLE: Final = updated(deliveries, ["state", "reason", "error", "parser", "applied_at"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What one booking shows before and after."""

    booking_id: UUID
    endpoint: str
    external_id: str
    kind: str
    """`created`, `updated`, `cancelled`, `restored` or `removed`."""
    fields: Mapping[str, tuple[Any, Any]]
    """Column → (old, new)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """A delivery that comes to be something else than it was: state, and the reason where it has one."""

    delivery_id: UUID
    endpoint: str
    was: tuple[str, str | None]
    now: tuple[str, str | None]


@dataclass
class Outcome:
    """What reading deliveries again changes, or would change."""

    deliveries: int = 0
    """Looked at."""
    read: int = 0
    """Read to the end, with whatever they say."""
    unread: dict[UUID, str] = field(default_factory=dict)
    """Left as they are, with the reason."""
    turns: list[Turn] = field(default_factory=list)
    _rows: dict[UUID, tuple[Row | None, Row | None]] = field(default_factory=dict, repr=False)

    @property
    def differences(self) -> list[Difference]:
        """The bookings that show something else, in the order of endpoint and external id."""
        found = [difference(identity, *rows) for identity, rows in self._rows.items()]
        return sorted(filter(None, found), key=lambda one: (one.endpoint, one.external_id))

    def compare(self, before: Mapping[UUID, Row], after: Mapping[UUID, Row]) -> None:
        """One more step: the first `before` and the last `after` of a booking count."""
        for identity in before.keys() | after.keys():
            old, new = before.get(identity), after.get(identity)
            if old != new:
                self._rows[identity] = (self._rows.get(identity, (old, None))[0], new)


def difference(identity: UUID, before: Row | None, after: Row | None) -> Difference | None:
    """None where both show the same."""
    old, new = before or BLANK, after or BLANK
    fields = {column: (old[column], new[column]) for column in SHOWN if old[column] != new[column]}
    known = after or before
    if known is None or not fields:
        return None
    return Difference(
        booking_id=identity,
        endpoint=known["endpoint"],
        external_id=known["external_id"],
        kind="removed" if after is None else kind_of_change(before, after),
        fields=fields,
    )


class _Ground(Protocol):
    """Where the steps are taken."""

    hold: bool

    def connect(self) -> AbstractContextManager[Connection]:
        """For looking."""

    def step(self) -> AbstractContextManager[Connection]:
        """One transaction, or a part of one."""

    def reads(self, connection: Connection, ids: Sequence[UUID]) -> None:
        """Before these deliveries are read."""

    def tells(self, connection: Connection, readings: Sequence[Reading]) -> None:
        """Before these are told."""

    def settle(self, connection: Connection, rows: Sequence[Row]) -> None:
        """What the deliveries have come to be."""


class _Earnest:
    """The tables themselves; each step is a transaction of its own, so a stop in the middle leaves whole steps."""

    hold = True

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def connect(self) -> AbstractContextManager[Connection]:
        return self._engine.connect()

    def step(self) -> AbstractContextManager[Connection]:
        return self._engine.begin()

    def reads(self, connection: Connection, ids: Sequence[UUID]) -> None:
        pass

    def tells(self, connection: Connection, readings: Sequence[Reading]) -> None:
        pass

    def settle(self, connection: Connection, rows: Sequence[Row]) -> None:
        if rows:
            connection.execute(SETTLE, {"rows": rows})


class _Trial:
    """Copies of the bookings, in one snapshot that is rolled back."""

    hold = False

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def connect(self) -> AbstractContextManager[Connection]:
        return nullcontext(self._stage.connection)

    step = connect

    def reads(self, connection: Connection, ids: Sequence[UUID]) -> None:
        self._stage.bring(spoken_of(connection, ids, REAL_EVENTS))

    def tells(self, connection: Connection, readings: Sequence[Reading]) -> None:
        self._stage.bring(named_in(connection, readings, REAL_BOOKINGS))

    def settle(self, connection: Connection, rows: Sequence[Row]) -> None:
        pass


def _silent(done: int) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """Reads deliveries again with today's code, in order of receipt."""

    engine: Engine
    reader: Reader
    choice: Choice
    progress: Callable[[int], None] = _silent
    """Told after each step how many were looked at so far."""
    batch: int = reread.BATCH
    """Deliveries in one step."""
    outcome: Outcome = field(default_factory=Outcome)
    """Grows step by step: who stops it in the middle finds here what was done."""

    def planned(self) -> Outcome:
        """What `apply` would do now. Nothing is written, and nobody who writes is held up."""
        with rehearsal(self.engine) as stage:
            return self._through(_Trial(stage))

    def apply(self) -> Outcome:
        """Does it. Can be stopped at any time, and run again: what is done twice changes nothing the second time."""
        return self._through(_Earnest(self.engine))

    def _through(self, ground: _Ground) -> Outcome:
        """What waits for a booking that came later is read once more at the end."""
        waiting: list[UUID] = []
        for page in pages(ground.connect, RECEIPT, self.choice.conditions(), self.batch):
            waiting += self._step(ground, [row.id for row in page])
            self.outcome.deliveries += len(page)
            self.progress(self.outcome.deliveries)
        for batch in batches(waiting, self.batch):
            left = self._step(ground, batch)
            self.outcome.unread |= dict.fromkeys(left, AwaitingBooking.reason)
        return self.outcome

    def _step(self, ground: _Ground, ids: Sequence[UUID]) -> list[UUID]:
        """Those that wait for a booking."""
        for pause in PATIENCE:
            try:
                return self._try(ground, ids)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) not in PASSING:
                    raise
            time.sleep(pause)
        return self._try(ground, ids)

    def _try(self, ground: _Ground, ids: Sequence[UUID]) -> list[UUID]:
        with ground.step() as connection:
            ground.reads(connection, ids)
            found = self.reader.read(connection, ids, hold=ground.hold)
            ground.tells(connection, found.read)
            met = spoken_of(connection, ids) | named_in(connection, found.read)
            before = _shown(connection, met)
            told = tell_again(connection, found.read)
            after = _shown(connection, met)
            settled = [
                (one, _settled(one, told.effects[one.row.id])) for one in found.read if one.row.id in told.effects
            ]
            ground.settle(connection, [row for one, row in settled if row != _as_it_is(one)])
        self.outcome.read += len(settled)
        self.outcome.unread |= found.unread
        self.outcome.turns += [turn for one, row in settled if (turn := _turn(one, row)) is not None]
        self.outcome.compare(before, after)
        return told.waiting


def planned(engine: Engine, reader: Reader, choice: Choice, progress: Callable[[int], None] = _silent) -> Outcome:
    """What reading these deliveries again would change. Writes nothing."""
    return Renewal(engine=engine, reader=reader, choice=choice, progress=progress).planned()


def apply(engine: Engine, reader: Reader, choice: Choice, progress: Callable[[int], None] = _silent) -> Outcome:
    """Reads these deliveries again, and what that changed."""
    return Renewal(engine=engine, reader=reader, choice=choice, progress=progress).apply()


def _shown(connection: Connection, identities: set[UUID]) -> dict[UUID, Row]:
    """What bookings show, but for those of which there is no event."""
    if not identities:
        return {}
    spoken_of = exists().where(events.c.booking_id == bookings.c.id)
    rows = connection.execute(select(bookings).where(among(bookings.c.id), spoken_of), {"ids": sorted(identities)})
    return {row.id: row._asdict() for row in rows}


def _settled(reading: Reading, effects: Sequence[Effect]) -> dict[str, Any]:
    """A delivery's row after its reading."""
    state, reason, error = _verdict(reading, effects)
    row = reading.row
    applied_at = row.applied_at or (clock() if _changes(effects) and state in READ else None)
    return {
        "id": str(row.id),
        "state": state,
        "reason": reason,
        "error": error,
        "parser": reading.telling.parser,
        "applied_at": applied_at.isoformat() if applied_at else None,
    }


def _as_it_is(reading: Reading) -> dict[str, Any]:
    row = reading.row
    return {
        "id": str(row.id),
        "state": row.state,
        "reason": row.reason,
        "error": row.error,
        "parser": row.parser,
        "applied_at": row.applied_at.isoformat() if row.applied_at else None,
    }


def _verdict(reading: Reading, effects: Sequence[Effect]) -> tuple[State, str | None, str | None]:
    """State, reason and error. What still comes back by itself does; what was read well and changes nothing today keeps
    the word that it had."""
    row = reading.row
    was = State(row.state)
    if was in OPEN:
        return was, row.reason, row.error
    if reading.failures:
        told = "\n".join(clean(str(error)) for error in reading.failures)
        return State.PARKED, reading.failures[0].reason, told
    if reading.ignored is not None:
        return State.IGNORED, reading.ignored, None
    if _changes(effects) or row.applied_at is not None:
        return State.APPLIED, None, None
    return (was if was in READ else State.DUPLICATE), None, None


def _changes(effects: Sequence[Effect]) -> bool:
    return not CHANGING.isdisjoint(effects)


def _turn(reading: Reading, row: Mapping[str, Any]) -> Turn | None:
    was, now = (reading.row.state, reading.row.reason), (str(row["state"]), row["reason"])
    if was == now:
        return None
    return Turn(delivery_id=reading.row.id, endpoint=reading.row.endpoint, was=was, now=now)
