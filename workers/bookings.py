"""Events into rows: `booking_events`, `bookings` and `booking_changes`, always in the caller's transaction.

What several deliveries say is put on one *sheet*: every booking that is touched is locked, in a fixed order, and then
what is needed of its events is read, all in a few statements; the telling itself happens in memory, one delivery after
the other; what came out is written set-wise. So two workers that meet in one booking take turns, what comes out is the
fold of all events that there are, and a batch leaves what the same deliveries would have left one by one.

A booking's row is the fold of its events, so what is newer than all of them is folded onto the row. All of them are
read only where something comes late or is taken back.

Knows no provider's words and no delivery's state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from typing import Any, Final
from uuid import NAMESPACE_URL, UUID, uuid5

from sqlalchemy import TIMESTAMP, Connection, Text, Uuid, and_, delete, select, union_all

from schemas.booking import COLUMNS, as_kept, from_json
from schemas.delivery import RawDelivery
from workers.errors import AwaitingBooking, Overtaken
from workers.fold import Row, Said, difference, fold, kind_of_change
from workers.provider import Event, Recall
from workers.rows import among, inserted, newest, sought, updated
from workers.statements import Asked, Plain, Session, Statement
from workers.tables import ORDER, bookings, changes, events
from workers.writing import as_json

Place = tuple[UUID, int]
Order = tuple[str, datetime, UUID, int]


@lru_cache(maxsize=1024)  # a batch asks for each of its own several times
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

_SHOWN: Final = attrgetter(*COLUMNS)
_OURS: Final = attrgetter(*OURS)
"""Of the row of a booking."""

CODES: Final = sought("codes", endpoint=Text(), reference=Text())
NAMED: Final = Statement(
    select(bookings.c.id, bookings.c.endpoint, bookings.c.reference).join(
        CODES, and_(bookings.c.endpoint == CODES.c.endpoint, bookings.c.reference == CODES.c.reference)
    )
)
"""The bookings of which only the code is told."""
SPOKEN: Final = Statement(
    select(events.c.delivery_id, events.c.booking_id).where(among(events.c.delivery_id)).distinct()
)
"""Those that deliveries spoke of before."""
MAKE: Final = Statement(
    inserted(bookings, [*IDENTITY, *OURS]).on_conflict_do_nothing().returning(bookings.c.id),
)
LOCK: Final = Statement(
    select(*bookings.c).where(among(bookings.c.id)).order_by(bookings.c.id).with_for_update(),
)
"""After this, and not before, what is read of their events is all that there is."""

_SEEN: Final = select(
    *(events.c[name] for name in ("id", "booking_id", "delivery_id", "position", "version", "received_at", "same_as")),
    events.c.event["said"]["provider_status"].astext.label("word"),
)
"""Of an event where it stands in the order, and what a Recall asks for; not the rest of what it says."""
AGAIN: Final = sought("again", booking_id=Uuid(), same_as=Text())
NEAR: Final = sought("near", booking_id=Uuid(), since=TIMESTAMP(timezone=True), until=TIMESTAMP(timezone=True))
GLANCE: Final = Statement(
    union_all(
        newest(_SEEN, events.c.booking_id, ORDER),
        _SEEN.join(AGAIN, and_(events.c.booking_id == AGAIN.c.booking_id, events.c.same_as == AGAIN.c.same_as)),
        _SEEN.join(
            NEAR,
            and_(events.c.booking_id == NEAR.c.booking_id, events.c.received_at.between(NEAR.c.since, NEAR.c.until)),
        ),
    )
)
"""The newest event of each booking, and those that are told again or that a Recall asks for: no more of a long history
than of a short one."""
ALL: Final = Statement(select(*events.c).where(among(events.c.booking_id)))

REMOVE: Final = Statement(delete(events).where(among(events.c.id)))
FORGET: Final = Statement(delete(bookings).where(among(bookings.c.id)))
_SHOWING: Final = updated(bookings, [*COLUMNS, *OURS], rows="shown")
_TELLING: Final = inserted(
    events,
    ["booking_id", "delivery_id", "position", "version", "received_at", "same_as", "event", "parser"],
    rows="told",
)
_NOTING: Final = inserted(changes, ["booking_id", "delivery_id", "kind", "diff"], rows="noted")
WRITE: Final = Statement(_NOTING.add_cte(_SHOWING.cte("showing"), _TELLING.cte("telling")))
"""What bookings show now, what was told of them, and what that changed: nothing of it needs the rest of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Telling:
    """What one delivery says, with the place in the body; and what it asked of our memory, with the answers."""

    raw: RawDelivery
    provider: str
    said: Sequence[tuple[int, Event]]
    parser: int
    recalled: Sequence[tuple[Recall, Any]] = ()
    first: bool = False
    """The delivery has said nothing before."""


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
    """A locked booking: what it shows now, and what was told of it."""

    row: Any
    columns: Mapping[str, Any] | None
    """None: it has just been made, and shows nothing yet."""
    ours: tuple[Any, ...]
    told: dict[Place, _Told] = field(default_factory=dict)
    """All events; with a `base` all new ones, and of those in the table the newest and whatever was sought."""
    base: Row | None = None
    """What the events in the table add up to, where they have not all been read."""
    folded: Row | None = None
    """What all events add up to, where that has been computed."""
    newest: Order | None = None

    def same(self, same_as: str | None) -> _Told | None:
        """The same event, if it was told before."""
        if same_as is None:
            return None
        return next((one for one in self.told.values() if one.same_as == same_as), None)

    def lacks(self, said: Said, same_as: str | None) -> bool:
        """Whether telling this, before anything else is told, takes events that have not been read: it comes late,
        or takes the place of one that was received later."""
        same = self.same(same_as)
        if same is not None:
            return _receipt(said) < _receipt(same.said)
        return any(said.order < one.said.order for one in self.told.values())

    def take(self, one: _Told) -> None:
        """An event that stands in the table."""
        self.told[one.said.place] = one

    def add(self, one: _Told) -> None:
        """Tells it, on top of the rest where it is newer than all of it."""
        self.told[one.said.place] = one
        on_top = self.folded is not None and self.newest is not None and one.said.order > self.newest
        self.folded = fold([one.said], onto=self.folded) if on_top else None
        self.newest = one.said.order if on_top else None

    def drop(self, one: _Told) -> None:
        """Takes it back."""
        del self.told[one.said.place]
        self.folded = self.newest = None

    def fold(self) -> Row | None:
        """The row that comes out."""
        if self.folded is None and self.told:
            above = (one.said for one in self.told.values() if self.base is None or one.id is None)
            self.folded = fold(above, onto=self.base)
            self.newest = max(one.said.order for one in self.told.values())
        return self.folded


_Coming = tuple[UUID, Said, str | None]
"""An event that is about to be told: its booking, where it stands in the order, and its sameness."""
_Window = tuple[UUID, datetime, datetime]
"""A booking, and the times of receipt between which a Recall asks for its events."""


class Sheet:
    """The bookings that some deliveries speak of, until the end of the transaction."""

    def __init__(self, session: Session, tellings: Sequence[Telling]) -> None:
        self._session = session
        self._spoken: dict[UUID, set[UUID]] = {}
        """Delivery → the bookings that it spoke of before."""
        self._foreseen: Set[tuple[UUID, Place]] = frozenset()
        """Which events were expected for which bookings when it was decided what to read."""
        self._pages = self._opened(tellings) if tellings else {}
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
            for one in [one for one in page.told.values() if one.said.delivery_id == telling.raw.id]:
                self._drop(page, one)
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
            if page.base is not None and (page.row.id, one.said.place) not in self._foreseen:
                self._complete([page])
            if not self._repeats(page, one):
                page.add(one)
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
        same = page.same(one.same_as)
        if same is None:
            return False
        if _receipt(same.said) <= _receipt(one.said):
            return True
        self._drop(page, same)
        return False

    def _drop(self, page: _Page, one: _Told) -> None:
        if one.id is not None:
            self._removed.append(one.id)
        page.drop(one)

    def _shows(self, page: _Page, after: Row, delivery_id: UUID) -> Set[str]:
        """Lets a booking show this row, and notes what that changes; the columns that do."""
        diff = difference(page.columns, after.columns)
        kind = kind_of_change(page.columns, after.columns)
        page.columns, page.ours = after.columns, (after.first_seen_at, after.changed_at, after.delivery_id)
        if not diff:
            return frozenset()
        self._changes.append({"booking_id": page.row.id, "delivery_id": delivery_id, "kind": kind, "diff": diff})
        return diff.keys()

    # --- reading and locking ---

    def _opened(self, tellings: Sequence[Telling]) -> dict[UUID, _Page]:
        """A page for every booking that may be touched: locked, always in the same order, so that nobody waits in a
        ring; one that is not there yet is made, and filled before anybody else can see it.

        One round trip, after another one where it must be asked which bookings those are.
        """
        named = self._named_before(tellings)
        spoken = set(chain.from_iterable(self._spoken.values()))
        windows, coming = _windows(tellings), _coming(tellings, named)
        meant = {identity for identity, _, _ in coming} | {identity for identity, _, _ in windows}
        missing = _identities(tellings)
        made = self._session.send(MAKE(rows=as_json(missing))) if missing else ()
        locked = self._session.send(LOCK(ids=sorted(meant | spoken)))
        seen = self._session.send(_glance(meant - spoken, coming, windows))
        fresh = {row.id for row in made}
        pages = {row.id: _page(row, fresh=row.id in fresh) for row in locked}
        for row in seen:
            if row.booking_id in pages:  # else it was made after we had asked for it
                pages[row.booking_id].take(_from_row(row, {"provider_status": row.word}))
        for identity, page in pages.items():
            if not page.told and identity not in spoken:
                page.base = None
        late = {
            identity for identity, said, same_as in coming if identity in pages and pages[identity].lacks(said, same_as)
        }
        self._complete(pages[identity] for identity in late | spoken if identity in pages)
        self._foreseen = {(identity, said.place) for identity, said, _ in coming}
        return pages

    def _named_before(self, tellings: Sequence[Telling]) -> Mapping[tuple[str, str], Set[UUID]]:
        """The bookings by endpoint and code, where a code is all that is told; and what was spoken of before."""
        again = sorted(telling.raw.id for telling in tellings if not telling.first)
        spoken = self._session.send(SPOKEN(ids=again)) if again else ()
        codes = _codes(tellings)
        found: dict[tuple[str, str], set[UUID]] = {}
        if codes:
            endpoints, references = zip(*codes, strict=True)
            for row in self._session.send(NAMED(codes_endpoint=list(endpoints), codes_reference=list(references))):
                found.setdefault((row.endpoint, row.reference), set()).add(row.id)
        for row in spoken:
            self._spoken.setdefault(row.delivery_id, set()).add(row.booking_id)
        return found

    def _complete(self, pages: Iterable[_Page]) -> None:
        """Reads all events of these bookings."""
        short = {page.row.id: page for page in pages if page.base is not None}
        if short:
            for row in self._session.send(ALL(ids=sorted(short))):
                payments = tuple(row.event.get("payments", ()))
                short[row.booking_id].take(_from_row(row, from_json(row.event["said"]), payments))
        for page in short.values():
            page.base = page.folded = page.newest = None

    # --- writing ---

    def write(self) -> None:
        """What is on the sheet stands in the tables; a row that no event speaks of any more is removed."""
        pages = self._pages.values()
        gone = [page.row.id for page in pages if not page.told]
        shown = [_plain(page) for page in pages if page.told and _differs(page)]
        fresh = [one.row for page in pages for one in page.told.values() if one.id is None]
        for statement, ids in ((REMOVE, self._removed), (FORGET, gone)):
            if ids:
                self._session.send(statement(ids=ids))
        if shown or fresh or self._changes:
            written = WRITE(shown=as_json(shown), told=as_json(fresh), noted=as_json(self._changes))
            self._session.send(written)

    @classmethod
    def of(cls, session: Session, identity: UUID) -> Sheet:
        """The sheet of one booking, if it is there."""
        sheet = cls(session, ())
        sheet._pages = {row.id: _page(row, fresh=False) for row in session.send(LOCK(ids=[identity]))}
        sheet._complete(sheet._pages.values())
        return sheet


def write_events(
    connection: Connection, raw: RawDelivery, provider: str, said: Sequence[tuple[int, Event]], *, parser: int
) -> list[Effect]:
    """Replaces what one delivery said. Raises AwaitingBooking."""
    telling = Telling(raw=raw, provider=provider, said=said, parser=parser)
    sheet = Sheet(Plain(connection), [telling])
    effects = sheet.tell(telling)
    sheet.write()
    return effects


def refold(connection: Connection, identity: UUID) -> bool:
    """Folds one booking again from its events; whether its row shows something else now.

    A row that no event speaks of any more is removed.
    """
    sheet = Sheet.of(Plain(connection), identity)
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


def _page(row: Any, *, fresh: bool) -> _Page:
    """A booking as its row shows it, which is what its events add up to; one that is fresh has none."""
    ours = _OURS(row)
    if fresh:
        return _Page(row=row, columns=None, ours=ours)
    columns = _columns(row)
    return _Page(row=row, columns=columns, ours=ours, base=Row(columns=columns, **dict(zip(OURS, ours, strict=True))))


def _columns(row: Any) -> dict[str, Any]:
    """What a booking's row shows."""
    return dict(zip(COLUMNS, _SHOWN(row), strict=True))


def _identities(tellings: Sequence[Telling]) -> list[Mapping[str, Any]]:
    """A row for every booking that is told of by its id, in the order of our ids: to be made where there is none."""
    rows: dict[UUID, Mapping[str, Any]] = {}
    for telling in tellings:
        raw = telling.raw
        for _, event in telling.said:
            if event.external_id is None:
                continue
            identity = booking_id(raw.endpoint, event.external_id)
            rows.setdefault(
                identity,
                {
                    "id": identity,
                    "provider": telling.provider,
                    "endpoint": raw.endpoint,
                    "external_id": event.external_id,
                    "first_seen_at": raw.received_at,
                    "changed_at": raw.received_at,
                    "delivery_id": raw.id,
                },
            )
    return [rows[identity] for identity in sorted(rows)]


def _codes(tellings: Sequence[Telling]) -> list[tuple[str, str]]:
    """Endpoint and code, of bookings whose code is all that some event says."""
    return sorted(
        {
            (telling.raw.endpoint, event.reference)
            for telling in tellings
            for _, event in telling.said
            if event.external_id is None and event.reference is not None
        }
    )


def _coming(tellings: Sequence[Telling], named: Mapping[tuple[str, str], Set[UUID]]) -> list[_Coming]:
    """What is about to be told. Which booking a code means may turn out otherwise, where it changes meanwhile, or by
    a telling before it."""
    coming: list[_Coming] = []
    for telling in tellings:
        endpoint = telling.raw.endpoint
        for position, event in telling.said:
            if event.external_id is not None:
                meant: Iterable[UUID] = [booking_id(endpoint, event.external_id)]
            else:
                meant = named.get((endpoint, event.reference or ""), ())
            coming += [(identity, _said(telling, position, event), event.same_as) for identity in meant]
    return coming


def _glance(identities: Set[UUID], coming: Iterable[_Coming], windows: Iterable[_Window]) -> Asked:
    again = [(identity, same_as) for identity, _, same_as in coming if identity in identities and same_as is not None]
    near = [window for window in windows if window[0] in identities]
    return GLANCE(
        ids=sorted(identities),
        again_booking_id=[identity for identity, _ in again],
        again_same_as=[same_as for _, same_as in again],
        near_booking_id=[identity for identity, _, _ in near],
        near_since=[since for _, since, _ in near],
        near_until=[until for _, _, until in near],
    )


def _windows(tellings: Sequence[Telling]) -> list[_Window]:
    return [
        (
            booking_id(telling.raw.endpoint, name),
            telling.raw.received_at - recall.within,
            telling.raw.received_at + recall.within,
        )
        for telling in tellings
        for recall, _ in telling.recalled
        for name in recall.external_ids
    ]


def _said(telling: Telling, position: int, event: Event, **what: Any) -> Said:
    """Where an event stands in the order, and what it says."""
    return Said(
        delivery_id=telling.raw.id,
        position=position,
        received_at=event.as_of or telling.raw.received_at,
        version=event.version,
        **what,
    )


def _from_event(identity: UUID, telling: Telling, position: int, event: Event) -> _Told:
    document: dict[str, Any] = {"said": as_kept(event.said)}
    payments = tuple(dict(payment) for payment in event.payments)
    if payments:
        document["payments"] = payments
    said = _said(telling, position, event, said=document["said"], payments=payments)
    return _Told(
        said=said,
        same_as=event.same_as,
        row={
            "booking_id": identity,
            "delivery_id": telling.raw.id,
            "position": position,
            "version": event.version,
            "received_at": said.received_at,
            "same_as": event.same_as,
            "event": document,
            "parser": telling.parser,
        },
    )


def _from_row(row: Any, said: Mapping[str, Any], payments: tuple[Mapping[str, Any], ...] = ()) -> _Told:
    one = Said(
        delivery_id=row.delivery_id,
        position=row.position,
        received_at=row.received_at,
        version=row.version,
        said=said,
        payments=payments,
    )
    return _Told(said=one, same_as=row.same_as, id=row.id)


def _differs(page: _Page) -> bool:
    """Whether the table shows something else than the sheet."""
    assert page.columns is not None
    return _OURS(page.row) != page.ours or _columns(page.row) != page.columns


def _plain(page: _Page) -> dict[str, Any]:
    assert page.columns is not None
    return {"id": page.row.id, **page.columns, **dict(zip(OURS, page.ours, strict=True))}
