"""Events into rows: `booking_events`, `bookings` and `booking_changes`, always in the caller's transaction.

Every booking that is touched is locked, in a fixed order, before its events are read; so two workers that meet in one
booking take turns, and what comes out is the fold of all events that there are. Knows no provider's words and no
delivery's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime
from enum import Enum
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import Connection, delete, insert, select, update
from sqlalchemy import Row as SqlRow
from sqlalchemy.dialects.postgresql import insert as upsert

from schemas.booking import COLUMNS, from_json, to_json
from schemas.delivery import RawDelivery
from workers.errors import AwaitingBooking
from workers.fold import Row, Said, difference, fold, kind_of_change
from workers.provider import Event
from workers.tables import bookings, changes, events

Place = tuple[UUID, int]
"""Where an event was told: the delivery, and the place in its body."""


def booking_id(endpoint: str, external_id: str) -> UUID:
    """Our id of a booking: computed, so that a rebuild on an empty database gives it again."""
    return uuid5(NAMESPACE_URL, f"reservoir:{endpoint}/{external_id}")


class Effect(Enum):
    """What one event did to its row."""

    CHANGED = "changed"
    NAMED = "named"
    """Changed, and its code became known: what waits for a booking of that code can go on."""
    KNOWN = "known"
    """The same event was told before."""
    OLDER = "older"
    """There is a newer one, and the row stays as it is."""
    NOTHING = "nothing"
    """The newest one, and the row shows that already."""


CHANGING: Final = frozenset({Effect.CHANGED, Effect.NAMED})


def write_events(
    connection: Connection, raw: RawDelivery, provider: str, said: Sequence[tuple[int, Event]], *, parser: int
) -> list[Effect]:
    """Replaces what this delivery said by `said`, and folds every booking that is touched.

    Raises AwaitingBooking where an event names, by its code, a booking that is not there.
    """
    told = {event.said.get("reference"): event.external_id for _, event in said if event.external_id is not None}
    meant: dict[UUID, list[tuple[int, Event]]] = {}
    names: dict[UUID, str] = {}
    for position, event in said:
        name = _named(connection, raw.endpoint, event, told)
        identity = booking_id(raw.endpoint, name)
        names[identity] = name
        meant.setdefault(identity, []).append((position, event))
    before = _spoken_of(connection, raw.id)
    fresh = {identity for identity in sorted(names) if _made(connection, identity, raw, provider, names[identity])}
    touched = _locked(connection, before | names.keys())
    connection.execute(delete(events).where(events.c.delivery_id == raw.id))
    effects: dict[int, Effect] = {}
    for identity, row in touched.items():
        shown = None if identity in fresh else _columns(row)
        effects |= _told(connection, row, shown, raw, meant.get(identity, []), parser=parser)
    return [effects[position] for position, _ in said]


def refold(connection: Connection, identity: UUID) -> bool:
    """Folds one booking again from its events; whether its row shows something else now.

    A row that no event speaks of any more is removed.
    """
    row = _locked(connection, [identity]).get(identity)
    if row is None:
        return False
    after = fold(said for said, _ in _known(connection, identity).values())
    if after is None:
        _remove(connection, identity)
        return True
    return bool(_write(connection, row, _columns(row), after, after.delivery_id))


# --- finding and locking ---------------------------------------------------------------------------------------


def _named(connection: Connection, endpoint: str, event: Event, told: Mapping[str | None, str]) -> str:
    """The external id that an event means: its own, or that of the booking with its code, here or in the table."""
    if event.external_id is not None:
        return event.external_id
    if event.reference in told:
        return told[event.reference]
    found = connection.execute(
        select(bookings.c.external_id)
        .where(bookings.c.endpoint == endpoint, bookings.c.reference == event.reference)
        .order_by(bookings.c.first_seen_at)
        .limit(1)
    ).scalar_one_or_none()
    if found is None:
        raise AwaitingBooking
    return str(found)


def _spoken_of(connection: Connection, delivery_id: UUID) -> set[UUID]:
    """The bookings that this delivery spoke of before."""
    told = select(events.c.booking_id).where(events.c.delivery_id == delivery_id).distinct()
    return set(connection.execute(told).scalars())


def _made(connection: Connection, identity: UUID, raw: RawDelivery, provider: str, external_id: str) -> bool:
    """Makes a row to lock, where there is none; the fold fills it before anybody else can see it."""
    made = connection.execute(
        upsert(bookings)
        .values(
            id=identity,
            provider=provider,
            endpoint=raw.endpoint,
            external_id=external_id,
            first_seen_at=raw.received_at,
            changed_at=raw.received_at,
            delivery_id=raw.id,
        )
        .on_conflict_do_nothing()
        .returning(bookings.c.id)
    )
    return made.first() is not None


def _locked(connection: Connection, identities: Iterable[UUID]) -> dict[UUID, SqlRow[Any]]:
    """The rows, held until the end of the transaction; always in the same order, so that nobody waits in a ring."""
    chosen = select(bookings).where(bookings.c.id.in_(list(identities))).order_by(bookings.c.id)
    return {row.id: row for row in connection.execute(chosen.with_for_update())}


def _known(connection: Connection, identity: UUID) -> dict[Place, tuple[Said, str | None]]:
    """What was told of a booking so far, with the sameness keys."""
    rows = connection.execute(select(events).where(events.c.booking_id == identity))
    return {(row.delivery_id, row.position): (_from_row(row), row.same_as) for row in rows}


# --- telling ---------------------------------------------------------------------------------------------------


def _told(
    connection: Connection,
    row: SqlRow[Any],
    shown: Mapping[str, Any] | None,
    raw: RawDelivery,
    own: Sequence[tuple[int, Event]],
    *,
    parser: int,
) -> dict[int, Effect]:
    """Adds a delivery's events to one locked booking and writes the row that comes out; effects by place."""
    known = _known(connection, row.id)
    written: dict[int, Said] = {}
    for position, event in own:
        one = _from_event(raw, position, event)
        if not _repeats(connection, known, one, event.same_as):
            _insert(connection, row.id, one, event, parser=parser)
            known[(raw.id, position)] = (one, event.same_as)
            written[position] = one
    after = fold(said for said, _ in known.values())
    if after is None:
        _remove(connection, row.id)
        return {}
    changed = _write(connection, row, shown, after, raw.id)
    newest = max(said.order for said, _ in known.values())
    return {position: _effect(written.get(position), newest, changed=changed) for position, _ in own}


def _effect(one: Said | None, newest: tuple[str, datetime, UUID, int], *, changed: Set[str]) -> Effect:
    if one is None:
        return Effect.KNOWN
    if changed:
        return Effect.NAMED if "reference" in changed else Effect.CHANGED
    return Effect.NOTHING if one.order == newest else Effect.OLDER


def _repeats(
    connection: Connection, known: dict[Place, tuple[Said, str | None]], one: Said, same_as: str | None
) -> bool:
    """Whether the same event was told before. Of two tellings the first received stays, whoever ran first."""
    if same_as is None:
        return False
    place = next((place for place, (_, key) in known.items() if key == same_as), None)
    if place is None:
        return False
    if _receipt(known[place][0]) <= _receipt(one):
        return True
    del known[place]
    connection.execute(delete(events).where(events.c.delivery_id == place[0], events.c.position == place[1]))
    return False


def _receipt(said: Said) -> tuple[datetime, UUID, int]:
    return (said.received_at, said.delivery_id, said.position)


def _from_event(raw: RawDelivery, position: int, event: Event) -> Said:
    return Said(
        delivery_id=raw.id,
        position=position,
        received_at=event.as_of or raw.received_at,
        version=event.version,
        said=from_json(to_json(event.said)),
        payments=tuple(event.payments),
    )


def _from_row(row: SqlRow[Any]) -> Said:
    return Said(
        delivery_id=row.delivery_id,
        position=row.position,
        received_at=row.received_at,
        version=row.version,
        said=from_json(row.event["said"]),
        payments=tuple(row.event.get("payments", ())),
    )


def _insert(connection: Connection, identity: UUID, one: Said, event: Event, *, parser: int) -> None:
    document: dict[str, Any] = {"said": to_json(event.said)}
    if event.payments:
        document["payments"] = [dict(payment) for payment in event.payments]
    connection.execute(
        insert(events).values(
            booking_id=identity,
            delivery_id=one.delivery_id,
            position=one.position,
            version=one.version,
            received_at=one.received_at,
            same_as=event.same_as,
            event=document,
            parser=parser,
        )
    )


# --- the row ---------------------------------------------------------------------------------------------------


def _columns(row: SqlRow[Any]) -> dict[str, Any]:
    return {column: getattr(row, column) for column in COLUMNS}


def _remove(connection: Connection, identity: UUID) -> None:
    connection.execute(delete(bookings).where(bookings.c.id == identity))


def _write(
    connection: Connection, row: SqlRow[Any], shown: Mapping[str, Any] | None, after: Row, delivery_id: UUID
) -> Set[str]:
    """Writes what is new in the row and, where it shows something else than before, the change; the columns that do."""
    ours = {"first_seen_at": after.first_seen_at, "changed_at": after.changed_at, "delivery_id": after.delivery_id}
    diff = difference(shown, after.columns)
    if diff or any(getattr(row, name) != value for name, value in ours.items()):
        connection.execute(update(bookings).where(bookings.c.id == row.id).values(**after.columns, **ours))
    if not diff:
        return frozenset()
    old, new = (to_json({column: pair[side] for column, pair in diff.items()}) for side in (0, 1))
    connection.execute(
        insert(changes).values(
            booking_id=row.id,
            delivery_id=delivery_id,
            kind=kind_of_change(shown, after.columns),
            diff={column: [old[column], new[column]] for column in diff},
        )
    )
    return diff.keys()
