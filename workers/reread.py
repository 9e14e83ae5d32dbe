"""Reads stored deliveries again with today's code, and tells their events anew: the core of a rebuild and of a replay.

Nobody is asked again: what the providers' APIs answered stands in `deliveries.lookup`. The transaction is the caller's.
In it a delivery is held first and its bookings after it, as its worker does, so it is safe beside running workers.

Left alone is

- what has just been received: its worker will come;
- what nobody has read yet, and so nobody has checked: `reservoir deliveries retry` takes it the whole way;
- what today's code cannot read where the code before could: a booking that was told stays told.

Knows no delivery's state but `received`, and changes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, FromClause, and_, or_, select, tuple_
from sqlalchemy import Row as SqlRow

from schemas.delivery import State
from schemas.endpoints import Config
from workers.bookings import Effect, Sheet, Telling, booking_id
from workers.errors import AwaitingBooking, BadSignature, DeliveryError, Park, UnknownEndpoint
from workers.pipeline import look_up, understand
from workers.provider import Answer, Call, Element, Event, Failed, Ignored, Incoming, Provider, Recall
from workers.rows import among
from workers.statements import Plain
from workers.store import job_of
from workers.tables import bookings, deliveries, events

BATCH: Final = 64
"""Deliveries in one transaction."""
RECEIPT: Final = (deliveries.c.received_at, deliveries.c.id)
"""The order in which deliveries are read again."""


class NotKept(DeliveryError):
    """The answer to a lookup is not kept, and nobody is asked again."""

    reason = "lookup-not-kept"


class NeverRead(DeliveryError):
    """Nobody has read it yet; `reservoir deliveries retry` takes it the whole way."""

    reason = "never-read"


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What one stored delivery says to today's code."""

    row: SqlRow[Any]
    telling: Telling
    elements: Sequence[Element]

    @property
    def failures(self) -> list[Park]:
        """The errors of the elements that cannot be read."""
        return [element.error for element in self.elements if isinstance(element, Failed)]

    @property
    def ignored(self) -> str | None:
        """Why all of it is of no interest; None where something is."""
        reasons = [element.reason for element in self.elements if isinstance(element, Ignored)]
        return reasons[0] if reasons and len(reasons) == len(self.elements) else None


@dataclass(frozen=True, slots=True)
class Readings:
    """What some deliveries say, in order of receipt; and what was left alone, with the reason."""

    read: list[Reading] = field(default_factory=list)
    unread: dict[UUID, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """What came of telling readings anew."""

    effects: dict[UUID, list[Effect]] = field(default_factory=dict)
    """By delivery."""
    waiting: list[UUID] = field(default_factory=list)
    """Deliveries that name, by its code, a booking that is not there; nothing of them was written."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Today's code, as far as a delivery is read with it."""

    config: Config
    providers: Mapping[str, Provider]

    def read(self, connection: Connection, ids: Sequence[UUID], *, hold: bool = True) -> Readings:
        """What these deliveries say; unless it is only looked at, they are held until the end of the transaction."""
        chosen = select(deliveries).where(among(deliveries.c.id)).order_by(deliveries.c.id)
        rows = connection.execute(chosen.with_for_update() if hold else chosen, {"ids": sorted(ids)}).all()
        before = _places(connection, ids)
        found = Readings()
        for row in sorted(rows, key=lambda row: (row.received_at, row.id)):
            if row.state == State.RECEIVED:
                continue
            try:
                found.read.append(self._read(row, before.get(row.id, frozenset())))
            except DeliveryError as error:
                found.unread[row.id] = error.reason
        return found

    def _read(self, row: SqlRow[Any], before: frozenset[int]) -> Reading:
        """Raises DeliveryError where it is left alone; `before`: the places in its body that were told once."""
        if row.reason == BadSignature.reason:
            raise BadSignature  # whatever today's secret says of yesterday's signature
        endpoint = self.config.endpoints.get(row.endpoint)
        if endpoint is None:
            raise UnknownEndpoint
        if row.parser is None:
            raise NeverRead(reason=row.reason)
        job, provider = job_of(row), self.providers[endpoint.provider]
        incoming = Incoming(delivery=job.raw, endpoint=endpoint, answers=job.answers)
        answers, trouble, enough = look_up(provider, incoming, _ask_nobody)
        if trouble is not None and not enough:
            raise trouble
        elements = understand(provider, replace(incoming, answers=answers))
        said = [(place, element) for place, element in enumerate(elements) if isinstance(element, Event)]
        telling = Telling(raw=job.raw, provider=provider.name, said=said, parser=provider.parser)
        reading = Reading(row=row, telling=telling, elements=elements)
        if reading.failures and not before.issubset(place for place, _ in said):
            raise reading.failures[0]
        return reading


def tell_again(connection: Connection, readings: Sequence[Reading]) -> Told:
    """Each reading takes the place of what its delivery said before, and the bookings are folded anew."""
    told = Told()
    if not readings:
        return told
    sheet = Sheet(Plain(connection), [reading.telling for reading in readings])
    for reading in readings:
        try:
            told.effects[reading.row.id] = sheet.tell(reading.telling)
        except AwaitingBooking:
            told.waiting.append(reading.row.id)
    sheet.write()
    return told


def spoken_of(connection: Connection, ids: Sequence[UUID], events: FromClause = events) -> set[UUID]:
    """The bookings that these deliveries have told of so far."""
    told = select(events.c.booking_id).where(events.c.delivery_id.in_(sorted(ids))).distinct()
    return set(connection.execute(told).scalars())


def named_in(connection: Connection, readings: Sequence[Reading], bookings: FromClause = bookings) -> set[UUID]:
    """The bookings that these readings name, by the id or by the code."""
    found: set[UUID] = set()
    codes: dict[str, set[str]] = {}
    for reading in readings:
        endpoint = reading.row.endpoint
        for _, event in reading.telling.said:
            if event.external_id is not None:
                found.add(booking_id(endpoint, event.external_id))
            elif event.reference is not None:
                codes.setdefault(endpoint, set()).add(event.reference)
    if codes:
        wanted = or_(
            *(
                and_(bookings.c.endpoint == endpoint, bookings.c.reference.in_(sorted(named)))
                for endpoint, named in sorted(codes.items())
            )
        )
        found.update(connection.execute(select(bookings.c.id).where(wanted)).scalars())
    return found


def pages(
    connect: Callable[[], AbstractContextManager[Connection]],
    order: Sequence[Any],
    where: Sequence[Any] = (),
    size: int = BATCH,
) -> Iterator[Sequence[SqlRow[Any]]]:
    """The rows of a table by these columns, in their order, a page at a time."""
    last: SqlRow[Any] | None = None
    while True:
        query = select(*order).where(*where).order_by(*order).limit(size)
        if last is not None:
            query = query.where(tuple_(*order) > tuple_(*last))
        with connect() as connection:
            page = connection.execute(query).all()
        if not page:
            return
        yield page
        last = page[-1]


def batches(ids: Sequence[UUID], size: int = BATCH) -> Iterator[Sequence[UUID]]:
    """So many at a time."""
    return (ids[start : start + size] for start in range(0, len(ids), size))


def _places(connection: Connection, ids: Sequence[UUID]) -> dict[UUID, frozenset[int]]:
    """The places in its body that each delivery has told."""
    query = select(events.c.delivery_id, events.c.position).where(among(events.c.delivery_id))
    places: dict[UUID, frozenset[int]] = {}
    for row in connection.execute(query, {"ids": sorted(ids)}):
        places[row.delivery_id] = places.get(row.delivery_id, frozenset()) | {row.position}
    return places


def _ask_nobody(question: Call | Recall) -> Answer:
    raise NotKept
