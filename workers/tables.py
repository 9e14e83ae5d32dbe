"""The tables. Their names and columns are public: users write SQL against `bookings`, `deliveries` and the rest.

Knows no provider and no query. A change here needs a migration in `workers/migrations/versions/`.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    Numeric,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    literal_column,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP, TSVECTOR
from sqlalchemy.dialects.postgresql import UUID as PG_UUID
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from schemas.booking import Status
from schemas.delivery import State


class Base(DeclarativeBase):
    """Text, instants with time zone, exact money, jsonb: one mapping for all tables."""

    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy's own form)
        str: Text,
        UUID: PG_UUID(as_uuid=True),
        dt.datetime: TIMESTAMP(timezone=True),
        Decimal: Numeric,
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        bytes: LargeBinary,
    }


def _one_of(column: str, words: type[Status] | type[State]) -> str:
    listed = ", ".join(f"'{word.value}'" for word in words)
    return f"{column} IN ({listed})"


class Delivery(Base):
    """One request as it came, and what became of it."""

    __tablename__ = "deliveries"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    endpoint: Mapped[str]
    provider: Mapped[str]
    origin: Mapped[str] = mapped_column(server_default=text("'webhook'"))
    received_at: Mapped[dt.datetime]
    method: Mapped[str]
    headers: Mapped[list[Any]]
    body: Mapped[bytes]
    message_id: Mapped[str | None]
    """The provider's own id of the message, where it has one."""
    state: Mapped[str] = mapped_column(server_default=text("'received'"))
    reason: Mapped[str | None]
    error: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    next_attempt_at: Mapped[dt.datetime | None]
    """When somebody must look at it again: the retry of a `retrying` one, the end of a worker's lease."""
    nudged_at: Mapped[dt.datetime | None]
    """When the sweeper last put it back into its queue."""
    lookup: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    """Not jsonb, which forgets the order of names: a rebuild must read what the API answered."""
    parser: Mapped[int | None] = mapped_column(SmallInteger)
    applied_at: Mapped[dt.datetime | None]
    acknowledge_at: Mapped[dt.datetime | None]
    """When the provider must be told that it is safe; null where nothing is owed."""
    acknowledge_attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    acknowledged_at: Mapped[dt.datetime | None]
    replayed_at: Mapped[dt.datetime | None]
    """When an operator last had it run again; sameness does not stop it from then on."""

    __table_args__ = (
        CheckConstraint(_one_of("state", State), name="deliveries_state"),
        CheckConstraint("origin IN ('webhook', 'poll', 'replay')", name="deliveries_origin"),
        # What the sweeper looks for is a sliver of the table, however long its history.
        Index("deliveries_due", "next_attempt_at", postgresql_where=text("next_attempt_at IS NOT NULL")),
        Index("deliveries_owed", "acknowledge_at", postgresql_where=text("acknowledge_at IS NOT NULL")),
        # What a person asks for by state or reason, the newest first. Most deliveries are applied, and have no reason.
        Index("deliveries_state", "state", "received_at", "id", postgresql_where=text("state <> 'applied'")),
        Index("deliveries_reason", "reason", "received_at", "id", postgresql_where=text("reason IS NOT NULL")),
        Index("deliveries_received", "received_at"),
        Index("deliveries_endpoint", "endpoint", "received_at"),
        Index("deliveries_message", "endpoint", "message_id", postgresql_where=text("message_id IS NOT NULL")),
    )


class Booking(Base):
    """One booking at a provider: the fold of its events."""

    __tablename__ = "bookings"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    provider: Mapped[str]
    endpoint: Mapped[str]
    external_id: Mapped[str]
    reference: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default=text("'unknown'"))
    provider_status: Mapped[str | None]
    date: Mapped[dt.date | None]
    starts_at: Mapped[dt.datetime | None]
    ends_at: Mapped[dt.datetime | None]
    timezone: Mapped[str | None]
    resource_id: Mapped[str | None]
    resource_name: Mapped[str | None]
    party_size: Mapped[int | None]
    quantity: Mapped[int | None]
    items: Mapped[list[Any]] = mapped_column(server_default=text("'[]'::jsonb"))
    customer_id: Mapped[str | None]
    customer_name: Mapped[str | None]
    customer_email: Mapped[str | None]
    customer_phone: Mapped[str | None]
    currency: Mapped[str | None]
    total: Mapped[Decimal | None]
    paid: Mapped[Decimal | None]
    note: Mapped[str | None]
    source: Mapped[str | None]
    cancel_reason: Mapped[str | None]
    details: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))
    provider_created_at: Mapped[dt.datetime | None]
    provider_updated_at: Mapped[dt.datetime | None]
    first_seen_at: Mapped[dt.datetime]
    changed_at: Mapped[dt.datetime]
    delivery_id: Mapped[UUID]

    __table_args__ = (
        UniqueConstraint("endpoint", "external_id", name="bookings_identity"),
        CheckConstraint(_one_of("status", Status), name="bookings_status"),
        Index("bookings_reference", "endpoint", "reference", postgresql_where=text("reference IS NOT NULL")),
        Index("bookings_date", "date", "endpoint"),
    )


class BookingEvent(Base):
    """What one delivery said about one booking, in our words: only the fields that it carried."""

    __tablename__ = "booking_events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    booking_id: Mapped[UUID] = mapped_column(ForeignKey("bookings.id", ondelete="CASCADE"))
    delivery_id: Mapped[UUID] = mapped_column(ForeignKey("deliveries.id", ondelete="CASCADE"))
    position: Mapped[int]
    version: Mapped[str | None] = mapped_column(Text(collation="C"))
    """The provider's order: sorted by code points, in whatever language the database sorts."""
    received_at: Mapped[dt.datetime]
    """When it was true as far as we know: the delivery's time of receipt, or when a read-back was asked."""
    same_as: Mapped[str | None]
    event: Mapped[dict[str, Any]]
    parser: Mapped[int] = mapped_column(SmallInteger)

    __table_args__ = (
        UniqueConstraint("delivery_id", "position", name="booking_events_place"),
        Index(
            "booking_events_sameness",
            "booking_id",
            "same_as",
            unique=True,
            postgresql_where=text("same_as IS NOT NULL"),
        ),
    )


class BookingChange(Base):
    """Append-only: what the table showed, and when."""

    __tablename__ = "booking_changes"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    booking_id: Mapped[UUID]
    delivery_id: Mapped[UUID]
    at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))
    kind: Mapped[str]
    diff: Mapped[dict[str, Any]]

    __table_args__ = (
        CheckConstraint("kind IN ('created', 'updated', 'cancelled', 'restored')", name="booking_changes_kind"),
        Index("booking_changes_booking", "booking_id", "id"),
    )


class Token(Base):
    """An endpoint's OAuth tokens, sealed with the installation's secret."""

    __tablename__ = "tokens"

    endpoint: Mapped[str] = mapped_column(primary_key=True)
    sealed: Mapped[bytes]
    updated_at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))


deliveries, bookings, events, changes, tokens = (
    cast(Table, table.__table__) for table in (Delivery, Booking, BookingEvent, BookingChange, Token)
)
"""The same tables for SQL that speaks of sets rather than objects."""

ORDER: Final = (
    func.coalesce(events.c.version, literal_column("''")),
    events.c.received_at,
    events.c.delivery_id,
    events.c.position,
)
"""Which event of a booking is newer, as `workers.fold.Said.order` has it."""
Index("booking_events_order", events.c.booking_id, *ORDER)


class Incident(Base):
    """Something that a person should know, or should have known: from when to when, and who was told."""

    __tablename__ = "incidents"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    kind: Mapped[str]
    subject: Mapped[str]
    """What of its kind: an endpoint, a provider, a worker, a machine; empty where there is only one."""
    title: Mapped[str]
    detail: Mapped[str]
    opened_at: Mapped[dt.datetime]
    last_seen_at: Mapped[dt.datetime]
    closed_at: Mapped[dt.datetime | None]
    tell_at: Mapped[dt.datetime]
    """When people are told, if it lasts until then."""
    notified_at: Mapped[dt.datetime | None]
    """When they were told last; null: not of this opening."""
    times: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    """How often it has opened: what comes again within a day is the same incident."""
    amount: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    latest: Mapped[dt.datetime | None]
    """How much of it people know, and up to when, where more of it is news."""

    __table_args__ = (
        Index("incidents_open", "kind", "subject", unique=True, postgresql_where=text("closed_at IS NULL")),
        Index("incidents_seen", "last_seen_at"),
    )


class Notice(Base):
    """One notice over one channel, and what became of it."""

    __tablename__ = "notices"

    id: Mapped[UUID] = mapped_column(primary_key=True)
    incident_id: Mapped[UUID] = mapped_column(ForeignKey("incidents.id", ondelete="CASCADE"))
    channel: Mapped[str]
    content: Mapped[dict[str, Any]]
    created_at: Mapped[dt.datetime]
    due_at: Mapped[dt.datetime | None]
    """When it is tried next, or the end of a sender's lease; null: it was sent, or given up."""
    attempts: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    sent_at: Mapped[dt.datetime | None]
    error: Mapped[str | None]

    __table_args__ = (
        Index("notices_due", "channel", "due_at", postgresql_where=text("due_at IS NOT NULL")),
        Index("notices_incident", "incident_id"),
    )


incidents, notices = (cast(Table, table.__table__) for table in (Incident, Notice))

# --- what the console asks for -----------------------------------------------------------------------------------

Index(
    "deliveries_settled",
    deliveries.c.state,
    deliveries.c.endpoint,
    deliveries.c.received_at,
    deliveries.c.id,
    postgresql_include=["reason"],
    postgresql_where=text("state <> 'received' AND state <> 'applied'"),
)
"""How many of an endpoint need somebody, and the list of them. Most deliveries never enter it."""
Index(
    "bookings_undated",
    bookings.c.first_seen_at,
    bookings.c.id,
    postgresql_where=text("date IS NULL"),
)
BOOKING_WORDS: Final = func.booking_words(
    bookings.c.customer_name, bookings.c.customer_email, bookings.c.reference, type_=TSVECTOR
)
"""The words by which a person looks for a booking: any of them can be typed from its beginning.

The function is ours (migration 0005). It splits at blanks only, so `KMVQ-060314` stays in one piece.
"""
HAS_WORDS: Final = func.coalesce(bookings.c.customer_name, bookings.c.customer_email, bookings.c.reference).is_not(None)
"""A booking is made without them, in the moment before it is filled in; the index need not know it then."""
Index("bookings_words", BOOKING_WORDS, postgresql_using="gin", postgresql_where=HAS_WORDS)


class Audit(Base):
    """What was done through the console. Written before it is done, and again with what came of it."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[dt.datetime] = mapped_column(server_default=text("now()"))
    session: Mapped[str]
    """The beginning of the session's id."""
    address: Mapped[str]
    action: Mapped[str]
    """`login`, `login-refused`, `logout`, `retry`."""
    chosen: Mapped[str | None]
    """How the deliveries were chosen, in words."""
    deliveries: Mapped[list[UUID]] = mapped_column(ARRAY(PG_UUID(as_uuid=True)), server_default=text("'{}'::uuid[]"))
    outcome: Mapped[str | None]
    """Null: it was begun, and its end was not written."""


audit = cast(Table, Audit.__table__)
