"""The tables. Their names and columns are public: users write SQL against `bookings`, `deliveries` and the rest.

Knows no provider and no query. A change here needs a migration in `workers/migrations/versions/`.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID

from sqlalchemy import (
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
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
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
