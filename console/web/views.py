"""What the console shows of the tables. Only reads, in transactions that cannot write.

A page asks for as much as it shows, however long the history is: lists go on from where the page before ended, and what
would have to be counted is counted up to a limit, or estimated. Knows no HTML.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import (
    Boolean,
    ColumnElement,
    Connection,
    Engine,
    Executable,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal,
    select,
    text,
    tuple_,
    type_coerce,
    union_all,
)
from sqlalchemy.dialects.postgresql import TIMESTAMP, TSQUERY

from console.web.filters import BookingFilter, BookingPlace, DeliveryFilter, DeliveryPlace, identity
from schemas.booking import Status
from schemas.delivery import State
from workers.tables import BOOKING_WORDS, HAS_WORDS, audit, bookings, changes, deliveries, events, incidents

Row = Mapping[str, Any]

PAGE: Final = 50
MANY: Final = 10_000
"""Up to here things are counted."""
FOUND: Final = 500
"""So many bookings of a search are followed to their deliveries, and so many deliveries are found by it."""
READ: Final = 1000
"""So many of the latest deliveries that wait or need somebody are searched through, body and all."""
TOLD: Final = 200
"""Changes and events of one booking that are shown, the latest."""

_LISTED: Final = tuple(
    deliveries.c[name]
    for name in (
        *("id", "received_at", "endpoint", "provider", "origin", "method", "message_id", "state", "reason", "error"),
        *("attempts", "next_attempt_at", "applied_at", "replayed_at"),
    )
)


@dataclass(frozen=True)
class Page:
    """Some rows of a list, and where the next page begins, if there is one."""

    rows: Sequence[Row]
    next: str | None = None


@dataclass(frozen=True)
class Count:
    """How many there are: exactly, or about, or more than one wants to count."""

    number: int
    how: str = ""
    """`about`, `more than`, or nothing."""


class Views:
    """The tables, as the pages show them."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine.execution_options(postgresql_readonly=True)

    def _reading(self) -> AbstractContextManager[Connection]:
        return self._engine.connect()

    # --- overview ---

    def endpoints(self) -> dict[str, Row]:
        """The endpoints that have ever sent something: the provider, and when the last delivery came."""
        with self._reading() as connection:
            return {row["endpoint"]: row for row in _rows(connection, _ENDPOINTS)}

    def by_hour(self, endpoints: Collection[str], since: datetime) -> dict[str, dict[int, int]]:
        """How many deliveries each endpoint sent in which hour, counted from `since`."""
        found: dict[str, dict[int, int]] = {}
        with self._reading() as connection:
            for row in connection.execute(_BY_HOUR, {"endpoints": sorted(endpoints), "since": since}):
                found.setdefault(row.endpoint, {})[row.hour] = row.deliveries
        return found

    def troubled(self) -> dict[tuple[str, str], int]:
        """Deliveries by endpoint and state, of those that wait or need somebody."""
        columns = deliveries.c
        query = (
            select(columns.endpoint, columns.state, func.count().label("deliveries"))
            .where(columns.state.in_([State.PARKED, State.RETRYING]), *_SETTLED)
            .group_by(columns.endpoint, columns.state)
        )
        with self._reading() as connection:
            return {(row.endpoint, row.state): row.deliveries for row in connection.execute(query)}

    def unread(self) -> tuple[Count, datetime | None]:
        """Deliveries that no worker has looked at yet, and since when the oldest waits."""
        columns = deliveries.c
        waiting = select(columns.received_at).where(columns.state == State.RECEIVED).order_by(columns.received_at)
        some = waiting.limit(MANY + 1).subquery()
        with self._reading() as connection:
            row = connection.execute(select(func.count(), func.min(some.c.received_at)).select_from(some)).one()
        return _counted(row[0]), row[1]

    def visits(self, around: date) -> dict[tuple[str, date], int]:
        """Bookings that are not cancelled, by endpoint and day, for this day and those beside it."""
        columns = bookings.c
        days = columns.date.between(around - timedelta(days=1), around + timedelta(days=1))
        query = (
            select(columns.endpoint, columns.date, func.count().label("bookings"))
            .where(days, columns.status != Status.CANCELLED)
            .group_by(columns.endpoint, columns.date)
        )
        with self._reading() as connection:
            return {(row.endpoint, row.date): row.bookings for row in connection.execute(query)}

    def totals(self) -> dict[str, Count]:
        """Rows of the two tables that people ask for."""
        return {name: self._about(name) for name in ("deliveries", "bookings")}

    def _about(self, table: str) -> Count:
        """As PostgreSQL remembers it, where counting would take long."""
        with self._reading() as connection:
            number = connection.execute(
                text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:t)"), {"t": table}
            )
            about = int(number.scalar_one())
            if about > MANY:
                return Count(about, "about")
            source = deliveries if table == "deliveries" else bookings
            some = select(literal(1)).select_from(source).limit(MANY + 1).subquery()
            return _counted(connection.execute(select(func.count()).select_from(some)).scalar_one())

    def incidents(self, at: datetime) -> Sequence[Row]:
        """What the alarms hold for wrong, once it has lasted until people are told; the latest first."""
        columns = incidents.c
        query = select(columns.kind, columns.title, columns.detail, columns.opened_at).where(
            columns.closed_at.is_(None), columns.tell_at <= at
        )
        with self._reading() as connection:
            return _rows(connection, query.order_by(columns.opened_at.desc(), columns.id).limit(PAGE))

    # --- deliveries ---

    def deliveries(self, wanted: DeliveryFilter, behind: DeliveryPlace | None = None) -> Page:
        """The newest first, with the bookings that each one told of."""
        with self._reading() as connection:
            listed = select(*_LISTED, func.octet_length(deliveries.c.body).label("bytes"))
            query, order = _chosen(connection, listed, wanted, behind)
            rows = _rows(connection, query.order_by(*(each.desc() for each in order)).limit(PAGE + 1))
            told = _told_of(connection, [row["id"] for row in rows[:PAGE]])
        shown = [{**row, "bookings": told.get(row["id"], [])} for row in rows[:PAGE]]
        more = str(DeliveryPlace(shown[-1]["received_at"], shown[-1]["id"])) if len(rows) > PAGE else None
        return Page(shown, more)

    def chosen(self, wanted: DeliveryFilter) -> list[UUID]:
        """The ids, in order of receipt; one more than MANY says that there are more."""
        with self._reading() as connection:
            query, order = _chosen(connection, select(deliveries.c.id), wanted)
            return list(connection.execute(query.order_by(*order).limit(MANY + 1)).scalars())

    def delivery(self, delivery_id: UUID) -> Row | None:
        """One delivery, whole."""
        with self._reading() as connection:
            return next(iter(_rows(connection, select(deliveries).where(deliveries.c.id == delivery_id))), None)

    def told_by(self, delivery_id: UUID) -> Sequence[Row]:
        """The bookings that a delivery told of, with the place in its body and what it said."""
        query = (
            select(
                *(bookings.c[name] for name in _BOOKING),
                events.c.position,
                events.c.event,
                events.c.version,
            )
            .join(bookings, bookings.c.id == events.c.booking_id)
            .where(events.c.delivery_id == delivery_id)
            .order_by(events.c.position)
            .limit(TOLD)
        )
        with self._reading() as connection:
            return _rows(connection, query)

    def told_of(self, delivery_ids: Sequence[UUID]) -> Mapping[UUID, Sequence[Row]]:
        """The bookings that each of these deliveries told of, by their names."""
        with self._reading() as connection:
            return _told_of(connection, delivery_ids)

    def changed_by(self, delivery_id: UUID, touched: Collection[UUID]) -> Sequence[Row]:
        """What a delivery changed in the bookings that it told of."""
        query = (
            select(changes)
            .where(changes.c.booking_id.in_(sorted(touched)), changes.c.delivery_id == delivery_id)
            .order_by(changes.c.id)
            .limit(TOLD)
        )
        with self._reading() as connection:
            return _rows(connection, query) if touched else []

    def parked(self) -> Sequence[Row]:
        """Deliveries that need a person, by reason and endpoint: how many, and from when to when."""
        columns = deliveries.c
        query = (
            select(
                columns.reason,
                columns.endpoint,
                func.count().label("deliveries"),
                func.min(columns.received_at).label("oldest"),
                func.max(columns.received_at).label("newest"),
            )
            .where(columns.state == State.PARKED, *_SETTLED)
            .group_by(columns.reason, columns.endpoint)
            .order_by(func.count().desc(), columns.reason, columns.endpoint)
        )
        with self._reading() as connection:
            return _rows(connection, query)

    # --- bookings ---

    def bookings(self, wanted: BookingFilter, behind: BookingPlace | None = None) -> Page:
        """In the order of the visits, forwards or backwards; those without a day last, the latest first."""
        rows: list[Row] = []
        with self._reading() as connection:
            query = _wanted(connection, wanted)
            if not wanted.undated and (behind is None or behind.day is not None):
                rows = _rows(connection, _dated(query, wanted, behind).limit(PAGE + 1))
            if len(rows) <= PAGE and (wanted.undated or wanted.is_everything):
                rows += _rows(connection, _undated(query, behind).limit(PAGE + 1 - len(rows)))
        return Page(rows[:PAGE], _place(rows[PAGE - 1]) if len(rows) > PAGE else None)

    def undated(self) -> Count:
        """How many bookings have no day."""
        some = select(literal(1)).select_from(bookings).where(bookings.c.date.is_(None)).limit(MANY + 1).subquery()
        with self._reading() as connection:
            return _counted(connection.execute(select(func.count()).select_from(some)).scalar_one())

    def day(self, day: date, endpoint: str | None) -> Sequence[Row]:
        """All bookings of one day."""
        query = select(*(bookings.c[name] for name in _BOOKING)).where(bookings.c.date == day)
        if endpoint is not None:
            query = query.where(bookings.c.endpoint == endpoint)
        order = bookings.c.endpoint, bookings.c.resource_name, bookings.c.starts_at, bookings.c.external_id
        with self._reading() as connection:
            return _rows(connection, query.order_by(*order).limit(MANY))

    def booking(self, booking_id: UUID) -> Row | None:
        with self._reading() as connection:
            return next(iter(_rows(connection, select(bookings).where(bookings.c.id == booking_id))), None)

    def changes_of(self, booking_id: UUID) -> Sequence[Row]:
        """What the table showed of a booking and when, the latest first."""
        query = select(changes).where(changes.c.booking_id == booking_id).order_by(changes.c.id.desc()).limit(TOLD)
        with self._reading() as connection:
            return _rows(connection, query)

    def events_of(self, booking_id: UUID) -> Sequence[Row]:
        """What was told of a booking, the latest in the provider's order first, with the deliveries' states."""
        order = func.coalesce(events.c.version, text("''")), events.c.received_at, events.c.delivery_id
        query = (
            select(events, deliveries.c.state, deliveries.c.received_at.label("delivered_at"))
            .join(deliveries, deliveries.c.id == events.c.delivery_id)
            .where(events.c.booking_id == booking_id)
            .order_by(*(each.desc() for each in (*order, events.c.position)))
            .limit(TOLD)
        )
        with self._reading() as connection:
            return _rows(connection, query)

    # --- audit ---

    def audit(self, behind: int | None = None) -> Page:
        """What was done through the console, the latest first."""
        shown = func.coalesce(func.array_length(audit.c.deliveries, 1), 0).label("number")
        first = audit.c.deliveries[1:20].label("first")
        columns = [column for column in audit.c if column.name != "deliveries"]
        query = select(*columns, shown, first).order_by(audit.c.id.desc()).limit(PAGE + 1)
        with self._reading() as connection:
            rows = _rows(connection, query if behind is None else query.where(audit.c.id < behind))
        return Page(rows[:PAGE], str(rows[PAGE - 1]["id"]) if len(rows) > PAGE else None)

    def noted(self, audit_id: int, session: str) -> Row | None:
        """A line of the audit, for the session that it is about."""
        query = select(audit.c.action, audit.c.chosen, audit.c.outcome)
        query = query.where(audit.c.id == audit_id, audit.c.session == session)
        with self._reading() as connection:
            return next(iter(_rows(connection, query)), None)


# --- overview --------------------------------------------------------------------------------------------------

# From one name to the next by the index, at the last delivery of each: as many steps as there are endpoints.
_ENDPOINTS: Final = text(
    """
    WITH RECURSIVE latest AS (
        (
            SELECT endpoint, provider, received_at FROM deliveries
            ORDER BY endpoint DESC, received_at DESC LIMIT 1
        )
        UNION ALL
        SELECT before.*
        FROM latest
        CROSS JOIN LATERAL (
            SELECT endpoint, provider, received_at FROM deliveries WHERE deliveries.endpoint < latest.endpoint
            ORDER BY endpoint DESC, received_at DESC LIMIT 1
        ) AS before
    )
    SELECT * FROM latest
    """
)
# Endpoint by endpoint, so that each is read from its index alone.
_BY_HOUR: Final = text(
    """
    SELECT names.endpoint, hours.hour, hours.deliveries
    FROM unnest(CAST(:endpoints AS text[])) AS names(endpoint)
    CROSS JOIN LATERAL (
        SELECT CAST(floor(extract(epoch FROM received_at - :since) / 3600) AS integer) AS hour, count(*) AS deliveries
        FROM deliveries WHERE deliveries.endpoint = names.endpoint AND received_at >= :since
        GROUP BY 1
    ) AS hours
    """
).bindparams(bindparam("since", type_=TIMESTAMP(timezone=True)))

_ABOUT: Final = text("SELECT reltuples FROM pg_class WHERE oid = to_regclass(:name)")
_SETTLED: Final = (deliveries.c.state != State.RECEIVED, deliveries.c.state != State.APPLIED)
"""As the index `deliveries_settled` has it."""


def _counted(number: int) -> Count:
    return Count(MANY, "more than") if number > MANY else Count(number)


# --- deliveries ------------------------------------------------------------------------------------------------


def _chosen(
    connection: Connection, query: Select[Any], wanted: DeliveryFilter, behind: DeliveryPlace | None = None
) -> tuple[Select[Any], Sequence[ColumnElement[Any]]]:
    """The query, with what is asked for; and the order of receipt, as an index has it.

    What leads in that index is said by bounds, not by `=`: else PostgreSQL may go through all that came since, in the
    hope of soon meeting what one asks for, and meet an endpoint that has been silent for months.
    """
    columns = deliveries.c
    asked = {name: value for name in ("state", "endpoint", "reason") if (value := getattr(wanted, name)) is not None}
    lead = () if wanted.text is not None else _lead(asked)
    query = query.where(*(columns[name] == value for name, value in asked.items() if name not in lead))
    order = [*(columns[name] for name in lead), columns.received_at, columns.id]
    values = [literal(asked[name], columns[name].type) for name in lead]
    since = _NEVER_BEFORE if wanted.since is None else literal(wanted.since, columns.received_at.type)
    until = _NEVER if wanted.until is None else literal(wanted.until, columns.received_at.type)
    if lead or wanted.since is not None:
        query = query.where(tuple_(*order[:-1]) >= tuple_(*values, since))
    if lead or wanted.until is not None:
        query = query.where(tuple_(*order[:-1]) < tuple_(*values, until))
    if behind is not None:
        place = literal(behind.received_at, columns.received_at.type), literal(behind.id, columns.id.type)
        query = query.where(tuple_(*order) < tuple_(*values, *place))
    # As the index has it that holds some rows only.
    if "reason" in lead:
        query = query.where(columns.reason.is_not(None))
    if "state" in lead:
        query = query.where(*(_SETTLED if "endpoint" in lead else _SETTLED[1:]))
    if wanted.text is not None:
        query = query.where(columns.id.in_(_about(connection, wanted.text)))
    return query, order


def _lead(asked: Mapping[str, Any]) -> Sequence[str]:
    """What stands before the time of receipt in the index that fits best: see `workers.tables`."""
    if "reason" in asked:
        return ("reason",)
    if asked.get("state", State.APPLIED) == State.APPLIED:
        return ("endpoint",) if "endpoint" in asked else ()
    both = "endpoint" in asked and asked["state"] != State.RECEIVED
    return ("state", "endpoint") if both else ("state",)


def _about(connection: Connection, said: str) -> list[UUID]:
    """The deliveries that a person may mean: by its id, by a booking's id or words, by the provider's id of a message,
    or by a piece of the body, of those that wait or need somebody."""
    columns = deliveries.c
    named = identity(said)
    found = {named} if named else set()
    names = [row["endpoint"] for row in _rows(connection, _ENDPOINTS)]
    ids = _named(connection, said, names)
    if not ids:
        ids = connection.execute(select(bookings.c.id).where(*_words(said)).limit(FOUND)).scalars().all()
    if ids:
        told = select(events.c.delivery_id).where(events.c.booking_id.in_(ids))
        found.update(connection.execute(told.order_by(events.c.received_at.desc()).limit(FOUND)).scalars())
    same = select(columns.id).where(columns.endpoint.in_(names), columns.message_id == said).limit(FOUND)
    found.update(connection.execute(same).scalars())
    waits = [State.PARKED, State.RETRYING]
    latest = select(columns.id, columns.body).where(columns.state.in_(waits)).order_by(columns.received_at.desc())
    some = latest.limit(READ).subquery()
    needle = type_coerce(said.encode(), columns.body.type)
    found.update(connection.execute(select(some.c.id).where(func.position(needle.op("IN")(some.c.body)) > 0)).scalars())
    return sorted(found)


def _told_of(connection: Connection, delivery_ids: Sequence[UUID]) -> dict[UUID, list[Row]]:
    """The bookings that each delivery told of."""
    query = (
        select(
            events.c.delivery_id, bookings.c.id, bookings.c.reference, bookings.c.external_id, bookings.c.customer_name
        )
        .join(bookings, bookings.c.id == events.c.booking_id)
        .where(events.c.delivery_id.in_(delivery_ids))
        .order_by(events.c.delivery_id, events.c.position)
    )
    told: dict[UUID, list[Row]] = {}
    for row in _rows(connection, query) if delivery_ids else ():
        if all(row["id"] != known["id"] for known in told.setdefault(row["delivery_id"], [])):
            told[row["delivery_id"]].append(row)
    return told


# --- bookings --------------------------------------------------------------------------------------------------

_BOOKING: Final = (
    *("id", "endpoint", "provider", "external_id", "reference", "status", "provider_status", "date", "starts_at"),
    *("ends_at", "timezone", "resource_id", "resource_name", "party_size", "quantity", "customer_name"),
    *("customer_email", "currency", "total", "paid", "first_seen_at", "changed_at"),
)
_NEVER, _NEVER_BEFORE = (cast(literal(end, Text), TIMESTAMP(timezone=True)) for end in ("infinity", "-infinity"))


def _like(said: str) -> str:
    """The words of a search, each of them the beginning of a word, as PostgreSQL writes them."""
    words = (word.replace("\\", "\\\\").replace("'", "''") for word in said.split())
    return " & ".join(f"'{word}':*" for word in words)


def _words(said: str) -> Sequence[ColumnElement[bool]]:
    """In small letters as the database makes them."""
    query = cast(func.lower(literal(_like(said), Text)), TSQUERY)
    return BOOKING_WORDS.op("@@", return_type=Boolean())(query), HAS_WORDS


def _named(connection: Connection, said: str, endpoints: Collection[str]) -> Sequence[UUID]:
    """The bookings that have this id, ours or the provider's."""
    columns = bookings.c
    theirs = select(columns.id).where(columns.endpoint.in_(sorted(endpoints)), columns.external_id == said)
    ours = select(columns.id).where(columns.id == identity(said))
    return connection.execute(union_all(theirs, ours)).scalars().all()


def _wanted(connection: Connection, wanted: BookingFilter) -> Select[Any]:
    columns = bookings.c
    query = select(*(columns[name] for name in _BOOKING))
    equal = ((columns.endpoint, wanted.endpoint), (columns.status, wanted.status))
    query = query.where(*(column == value for column, value in equal if value is not None))
    if wanted.text is not None:
        names = [row["endpoint"] for row in _rows(connection, _ENDPOINTS)]
        named = _named(connection, wanted.text, names)
        query = query.where(columns.id.in_(named)) if named else query.where(*_words(wanted.text))
    return query


def _dated(query: Select[Any], wanted: BookingFilter, behind: BookingPlace | None) -> Select[Any]:
    columns = bookings.c
    query = query.where(columns.date.is_not(None))
    if wanted.since is not None:
        query = query.where(columns.date >= wanted.since)
    if wanted.until is not None:
        query = query.where(columns.date <= wanted.until)
    moment = func.coalesce(columns.starts_at, _NEVER)
    if behind is not None and behind.day is not None:
        here = tuple_(columns.date, moment, columns.id)
        place = tuple_(literal(behind.day), behind.moment or _NEVER, literal(behind.id))
        query = query.where(
            and_(columns.date <= behind.day, here < place)
            if wanted.backwards
            else and_(columns.date >= behind.day, here > place)
        )
    order = (columns.date, moment, columns.id)
    return query.order_by(*(each.desc() for each in order) if wanted.backwards else order)


def _undated(query: Select[Any], behind: BookingPlace | None) -> Select[Any]:
    """Days are not asked for."""
    columns = bookings.c
    query = query.where(columns.date.is_(None))
    if behind is not None and behind.day is None and behind.moment is not None:
        query = query.where(tuple_(columns.first_seen_at, columns.id) < tuple_(behind.moment, behind.id))
    return query.order_by(columns.first_seen_at.desc(), columns.id.desc())


def _place(row: Row) -> str:
    return str(BookingPlace(row["date"], row["first_seen_at" if row["date"] is None else "starts_at"], row["id"]))


def _rows(connection: Connection, query: Executable) -> list[Row]:
    return [row._asdict() for row in connection.execute(query)]
