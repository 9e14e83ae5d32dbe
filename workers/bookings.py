"""Events into rows: `booking_events`, `bookings` and `booking_changes`, always in the caller's transaction.

What several deliveries say is put on one *sheet*: every booking that is touched is locked, in a fixed order, and then
its events are read, all in a few statements; the telling itself happens in memory, one delivery after the other; what
came out is written set-wise. So two workers that meet in one booking take turns, what comes out is the fold of all
events that there are, and a batch leaves what the same deliveries would have left one by one.

Knows no provider's words and no delivery's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from itertools import chain
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import Connection, Select, and_, delete, or_, select
from sqlalchemy import Row as SqlRow

from schemas.booking import COLUMNS, from_json, to_json
from schemas.delivery import RawDelivery
from workers.errors import AwaitingBooking, Overtaken
from workers.fold import Row, Said, difference, fold, kind_of_change
from workers.provider import Event, Recall
from workers.rows import among, inserted, updated
from workers.tables import bookings, changes, events

Place = tuple[UUID, int]
"""Where an event was told: the delivery, and the place in its body."""
Order = tuple[str, datetime, UUID, int]


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

OURS: Final = ("first_seen_at", "changed_at", "delivery_id")
"""The columns of a booking that are ours, and follow from its events as well."""
IDENTITY: Final = ("id", "provider", "endpoint", "external_id")
MAKE: Final = inserted(bookings, [*IDENTITY, *OURS]).on_conflict_do_nothing().returning(bookings.c.id)
SHOW: Final = updated(bookings, [*COLUMNS, *OURS])
TELL: Final = inserted(
    events, ["booking_id", "delivery_id", "position", "version", "received_at", "same_as", "event", "parser"]
)
NOTE: Final = inserted(changes, ["booking_id", "delivery_id", "kind", "diff"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Telling:
    """What one delivery says, with the place in the body; and what it asked of our memory, with the answers."""

    raw: RawDelivery
    provider: str
    said: Sequence[tuple[int, Event]]
    parser: int
    recalled: Sequence[tuple[Recall, Any]] = ()


@dataclass(frozen=True, slots=True)
class _Told:
    """An event of a booking, as it stands on the sheet."""

    said: Said
    same_as: str | None
    id: int | None = None
    """In the table; None: it has just been told."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """How a new one is written."""


@dataclass(slots=True)
class _Page:
    """A locked booking: what it shows now, and all that was told of it."""

    row: SqlRow[Any]
    columns: Mapping[str, Any] | None
    """None: it has just been made, and shows nothing yet."""
    ours: tuple[Any, ...]
    told: dict[Place, _Told] = field(default_factory=dict)
    folded: Row | None = None
    """What all of `told` adds up to, where that has been computed."""
    newest: Order | None = None

    def add(self, place: Place, one: _Told) -> None:
        """Tells it, on top of the rest where it is newer than all of it."""
        self.told[place] = one
        on_top = self.folded is not None and self.newest is not None and one.said.order > self.newest
        self.folded = fold([one.said], onto=self.folded) if on_top else None
        self.newest = one.said.order if on_top else None

    def drop(self, place: Place) -> None:
        """Takes it back."""
        del self.told[place]
        self.folded = self.newest = None

    def fold(self) -> Row | None:
        """The row that comes out."""
        if self.folded is None and self.told:
            self.folded = fold(one.said for one in self.told.values())
            self.newest = max(one.said.order for one in self.told.values())
        return self.folded


class Sheet:
    """The bookings that some deliveries speak of, until the end of the transaction."""

    def __init__(self, connection: Connection, tellings: Sequence[Telling]) -> None:
        self._connection = connection
        self._spoken = self._spoken_before([telling.raw.id for telling in tellings])
        self._pages = self._opened(tellings)
        self._removed: list[int] = []
        self._changes: list[dict[str, Any]] = []

    # --- telling, in memory ---

    def tell(self, telling: Telling) -> list[Effect]:
        """Replaces what this delivery said before, and folds every booking that is touched; one effect per event.

        Raises, before anything has changed: AwaitingBooking where an event names, by its code, a booking that is not
        there; Overtaken where what was recalled is not all any more.
        """
        if any(self.near(telling.raw, recall) != answer for recall, answer in telling.recalled):
            raise Overtaken
        meant = self._meant(telling)
        touched = sorted(self._spoken.get(telling.raw.id, set()) | meant.keys())
        for identity in touched:
            page = self._pages[identity]
            for place in [place for place in page.told if place[0] == telling.raw.id]:
                self._drop(page, place)
        effects: dict[int, Effect] = {}
        for identity in touched:
            effects |= self._told(self._pages[identity], telling, meant.get(identity, []))
        return [effects[position] for position, _ in telling.said]

    def refold(self) -> bool:
        """Folds every booking again from its events; whether a row shows something else now."""
        changed = False
        for page in self._pages.values():
            after = page.fold()
            changed |= after is None or bool(self._shows(page, after, after.delivery_id))
        return changed

    def near(self, raw: RawDelivery, recall: Recall) -> list[dict[str, Any]]:
        """What other deliveries said about these bookings near this one, in order of receipt."""
        names = {booking_id(raw.endpoint, name): name for name in recall.external_ids}
        told = [
            (one.said, names[identity])
            for identity in names.keys() & self._pages.keys()
            for one in self._pages[identity].told.values()
        ]
        return near(raw, recall, told)

    def _meant(self, telling: Telling) -> dict[UUID, list[tuple[int, Event]]]:
        """The events by the booking that each of them means: by its id, or by its code, here or in the table."""
        endpoint = telling.raw.endpoint
        told = {event.said.get("reference"): event.external_id for _, event in telling.said}
        meant: dict[UUID, list[tuple[int, Event]]] = {}
        for position, event in telling.said:
            name = event.external_id
            if name is None:
                name = told.get(event.reference) or self._named(endpoint, event.reference)
            meant.setdefault(booking_id(endpoint, name), []).append((position, event))
        return meant

    def _named(self, endpoint: str, code: str | None) -> str:
        pages = [
            (page.ours[0], page.row.id, page.row.external_id)
            for page in self._pages.values()
            if page.columns is not None and page.columns["reference"] == code and page.row.endpoint == endpoint
        ]
        if code is None or not pages:
            raise AwaitingBooking
        return str(min(pages)[-1])

    def _told(self, page: _Page, telling: Telling, own: Sequence[tuple[int, Event]]) -> dict[int, Effect]:
        """Adds a delivery's events to one booking; effects by place."""
        written: dict[int, Said] = {}
        for position, event in own:
            one = _from_event(page.row.id, telling, position, event)
            if not self._repeats(page, one):
                page.add((telling.raw.id, position), one)
                written[position] = one.said
        after = page.fold()
        if after is None:
            page.columns = None
            return {}
        changed = self._shows(page, after, telling.raw.id)
        assert page.newest is not None
        return {position: _effect(written.get(position), page.newest, changed=changed) for position, _ in own}

    def _repeats(self, page: _Page, one: _Told) -> bool:
        """Whether the same event was told before. Of two tellings the first received stays, whoever ran first."""
        if one.same_as is None:
            return False
        place = next((place for place, other in page.told.items() if other.same_as == one.same_as), None)
        if place is None:
            return False
        if _receipt(page.told[place].said) <= _receipt(one.said):
            return True
        self._drop(page, place)
        return False

    def _drop(self, page: _Page, place: Place) -> None:
        known = page.told[place].id
        if known is not None:
            self._removed.append(known)
        page.drop(place)

    def _shows(self, page: _Page, after: Row, delivery_id: UUID) -> Set[str]:
        """Lets a booking show this row, and notes what that changes; the columns that do."""
        diff = difference(page.columns, after.columns)
        kind = kind_of_change(page.columns, after.columns)
        page.columns, page.ours = after.columns, (after.first_seen_at, after.changed_at, after.delivery_id)
        if not diff:
            return frozenset()
        old, new = (to_json({column: pair[side] for column, pair in diff.items()}) for side in (0, 1))
        changed = {column: [old[column], new[column]] for column in diff}
        self._changes.append(
            {"booking_id": str(page.row.id), "delivery_id": str(delivery_id), "kind": kind, "diff": changed}
        )
        return diff.keys()

    # --- reading and locking ---

    def _opened(self, tellings: Sequence[Telling]) -> dict[UUID, _Page]:
        """A page for every booking that may be touched: locked, always in the same order, so that nobody waits in a
        ring; one that is not there yet is made, and filled before anybody else can see it."""
        named = self._ids_of_codes(tellings)
        recalled = {
            booking_id(telling.raw.endpoint, name)
            for telling in tellings
            for recall, _ in telling.recalled
            for name in recall.external_ids
        }
        fresh, meant = self._made(tellings)
        spoken = set(chain.from_iterable(self._spoken.values()))
        return self._locked(meant | named | recalled | spoken, fresh)

    def _locked(self, identities: Set[UUID], fresh: Set[UUID]) -> dict[UUID, _Page]:
        chosen = select(bookings).where(among(bookings.c.id)).order_by(bookings.c.id).with_for_update()
        pages = {
            row.id: _Page(
                row=row,
                columns=None if row.id in fresh else {column: getattr(row, column) for column in COLUMNS},
                ours=tuple(getattr(row, name) for name in OURS),
            )
            for row in self._read(chosen, identities)
        }
        for row in self._read(select(events).where(among(events.c.booking_id)), pages.keys() - fresh):
            pages[row.booking_id].told[(row.delivery_id, row.position)] = _from_row(row)
        return pages

    def _made(self, tellings: Sequence[Telling]) -> tuple[set[UUID], set[UUID]]:
        """Makes a row to lock where there is none; the new ones, and all that are meant."""
        rows: dict[UUID, dict[str, Any]] = {}
        for telling in tellings:
            raw = telling.raw
            for _, event in telling.said:
                if event.external_id is None:
                    continue
                identity = booking_id(raw.endpoint, event.external_id)
                rows.setdefault(
                    identity,
                    {
                        "id": str(identity),
                        "provider": telling.provider,
                        "endpoint": raw.endpoint,
                        "external_id": event.external_id,
                        "first_seen_at": raw.received_at.isoformat(),
                        "changed_at": raw.received_at.isoformat(),
                        "delivery_id": str(raw.id),
                    },
                )
        made = self._connection.execute(MAKE, {"rows": [rows[identity] for identity in sorted(rows)]}) if rows else ()
        return {row.id for row in made}, set(rows)

    def _ids_of_codes(self, tellings: Sequence[Telling]) -> set[UUID]:
        """The bookings whose code is all that some event says."""
        codes: dict[str, set[str]] = {}
        for telling in tellings:
            for _, event in telling.said:
                if event.external_id is None and event.reference is not None:
                    codes.setdefault(telling.raw.endpoint, set()).add(event.reference)
        if not codes:
            return set()
        wanted = or_(
            *(
                and_(bookings.c.endpoint == endpoint, bookings.c.reference.in_(sorted(named)))
                for endpoint, named in sorted(codes.items())
            )
        )
        return set(self._connection.execute(select(bookings.c.id).where(wanted)).scalars())

    def _spoken_before(self, delivery_ids: Sequence[UUID]) -> dict[UUID, set[UUID]]:
        """The bookings that these deliveries spoke of before."""
        told = select(events.c.delivery_id, events.c.booking_id).where(among(events.c.delivery_id)).distinct()
        spoken: dict[UUID, set[UUID]] = {}
        for row in self._read(told, delivery_ids):
            spoken.setdefault(row.delivery_id, set()).add(row.booking_id)
        return spoken

    def _read(self, query: Select[Any], ids: Iterable[UUID]) -> Sequence[SqlRow[Any]]:
        wanted = sorted(ids)
        return self._connection.execute(query, {"ids": wanted}).all() if wanted else []

    # --- writing ---

    def write(self) -> None:
        """What is on the sheet stands in the tables; a row that no event speaks of any more is removed."""
        pages = self._pages.values()
        gone = [page.row.id for page in pages if not page.told]
        shown = [_plain(page) for page in pages if page.told and _differs(page)]
        fresh = [one.row for page in pages for one in page.told.values() if one.id is None]
        if self._removed:
            self._connection.execute(delete(events).where(among(events.c.id)), {"ids": self._removed})
        if gone:
            self._connection.execute(delete(bookings).where(among(bookings.c.id)), {"ids": gone})
        for statement, rows in ((SHOW, shown), (TELL, fresh), (NOTE, self._changes)):
            if rows:
                self._connection.execute(statement, {"rows": rows})

    @classmethod
    def of(cls, connection: Connection, identity: UUID) -> Sheet:
        """The sheet of one booking, if it is there."""
        sheet = cls(connection, ())
        sheet._pages = sheet._locked({identity}, frozenset())
        return sheet


def write_events(
    connection: Connection, raw: RawDelivery, provider: str, said: Sequence[tuple[int, Event]], *, parser: int
) -> list[Effect]:
    """Replaces what one delivery said. Raises AwaitingBooking."""
    telling = Telling(raw=raw, provider=provider, said=said, parser=parser)
    sheet = Sheet(connection, [telling])
    effects = sheet.tell(telling)
    sheet.write()
    return effects


def refold(connection: Connection, identity: UUID) -> bool:
    """Folds one booking again from its events; whether its row shows something else now.

    A row that no event speaks of any more is removed.
    """
    sheet = Sheet.of(connection, identity)
    changed = sheet.refold()
    sheet.write()
    return changed


def near(raw: RawDelivery, recall: Recall, told: Iterable[tuple[Said, str]]) -> list[dict[str, Any]]:
    """What a Recall is answered, of these events with the external ids of their bookings."""
    found = [
        (said, name)
        for said, name in told
        if said.delivery_id != raw.id and abs(said.received_at - raw.received_at) <= recall.within
    ]
    return [
        {
            "external_id": name,
            "provider_status": said.said.get("provider_status"),
            "received_at": said.received_at.astimezone(UTC).isoformat(),
            "delivery_id": str(said.delivery_id),
        }
        for said, name in sorted(found, key=lambda pair: _receipt(pair[0]))
    ]


def _effect(one: Said | None, newest: Order, *, changed: Set[str]) -> Effect:
    if one is None:
        return Effect.KNOWN
    if changed:
        return Effect.NAMED if "reference" in changed else Effect.CHANGED
    return Effect.NOTHING if one.order == newest else Effect.OLDER


def _receipt(said: Said) -> tuple[datetime, UUID, int]:
    return (said.received_at, said.delivery_id, said.position)


def _from_event(identity: UUID, telling: Telling, position: int, event: Event) -> _Told:
    document: dict[str, Any] = {"said": to_json(event.said)}
    payments = tuple(dict(payment) for payment in event.payments)
    if payments:
        document["payments"] = payments
    received_at = event.as_of or telling.raw.received_at
    return _Told(
        said=Said(
            delivery_id=telling.raw.id,
            position=position,
            received_at=received_at,
            version=event.version,
            said=from_json(document["said"]),
            payments=payments,
        ),
        same_as=event.same_as,
        row={
            "booking_id": str(identity),
            "delivery_id": str(telling.raw.id),
            "position": position,
            "version": event.version,
            "received_at": received_at.isoformat(),
            "same_as": event.same_as,
            "event": document,
            "parser": telling.parser,
        },
    )


def _from_row(row: SqlRow[Any]) -> _Told:
    said = Said(
        delivery_id=row.delivery_id,
        position=row.position,
        received_at=row.received_at,
        version=row.version,
        said=from_json(row.event["said"]),
        payments=tuple(row.event.get("payments", ())),
    )
    return _Told(said=said, same_as=row.same_as, id=row.id)


def _differs(page: _Page) -> bool:
    """Whether the table shows something else than the sheet."""
    assert page.columns is not None
    ours = tuple(getattr(page.row, name) for name in OURS)
    return ours != page.ours or any(getattr(page.row, column) != page.columns[column] for column in COLUMNS)


def _plain(page: _Page) -> dict[str, Any]:
    assert page.columns is not None
    first_seen_at, changed_at, delivery_id = page.ours
    ours = {
        "first_seen_at": first_seen_at.isoformat(),
        "changed_at": changed_at.isoformat(),
        "delivery_id": str(delivery_id),
    }
    return {"id": str(page.row.id), **to_json(page.columns), **ours}
