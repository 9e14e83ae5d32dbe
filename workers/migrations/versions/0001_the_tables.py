"""The tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "booking_changes",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("delivery_id", sa.UUID(), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("diff", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.CheckConstraint("kind IN ('created', 'updated', 'cancelled', 'restored')", name="booking_changes_kind"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("booking_changes_booking", "booking_changes", ["booking_id", "id"], unique=False)
    op.create_table(
        "bookings",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), server_default=sa.text("'unknown'"), nullable=False),
        sa.Column("provider_status", sa.Text(), nullable=True),
        sa.Column("date", sa.Date(), nullable=True),
        sa.Column("starts_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("ends_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("timezone", sa.Text(), nullable=True),
        sa.Column("resource_id", sa.Text(), nullable=True),
        sa.Column("resource_name", sa.Text(), nullable=True),
        sa.Column("party_size", sa.Integer(), nullable=True),
        sa.Column("quantity", sa.Integer(), nullable=True),
        sa.Column(
            "items", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'::jsonb"), nullable=False
        ),
        sa.Column("customer_id", sa.Text(), nullable=True),
        sa.Column("customer_name", sa.Text(), nullable=True),
        sa.Column("customer_email", sa.Text(), nullable=True),
        sa.Column("customer_phone", sa.Text(), nullable=True),
        sa.Column("currency", sa.Text(), nullable=True),
        sa.Column("total", sa.Numeric(), nullable=True),
        sa.Column("paid", sa.Numeric(), nullable=True),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("cancel_reason", sa.Text(), nullable=True),
        sa.Column(
            "details", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'{}'::jsonb"), nullable=False
        ),
        sa.Column("provider_created_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("provider_updated_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("first_seen_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("changed_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("delivery_id", sa.UUID(), nullable=False),
        sa.CheckConstraint(
            "status IN ('hold', 'pending', 'confirmed', 'completed', 'cancelled', 'unknown')", name="bookings_status"
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("endpoint", "external_id", name="bookings_identity"),
    )
    op.create_index("bookings_date", "bookings", ["date", "endpoint"], unique=False)
    op.create_index(
        "bookings_reference",
        "bookings",
        ["endpoint", "reference"],
        unique=False,
        postgresql_where=sa.text("reference IS NOT NULL"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.UUID(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("origin", sa.Text(), server_default=sa.text("'webhook'"), nullable=False),
        sa.Column("received_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), server_default=sa.text("'received'"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("next_attempt_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("nudged_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("lookup", sa.JSON(), nullable=True),
        sa.Column("parser", sa.SmallInteger(), nullable=True),
        sa.Column("applied_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("acknowledge_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.Column("acknowledge_attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("acknowledged_at", postgresql.TIMESTAMP(timezone=True), nullable=True),
        sa.CheckConstraint("origin IN ('webhook', 'poll', 'replay')", name="deliveries_origin"),
        sa.CheckConstraint(
            "state IN ('received', 'applied', 'duplicate', 'stale', 'ignored', 'retrying', 'parked')",
            name="deliveries_state",
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["next_attempt_at"],
        unique=False,
        postgresql_where=sa.text("next_attempt_at IS NOT NULL"),
    )
    op.create_index("deliveries_endpoint", "deliveries", ["endpoint", "received_at"], unique=False)
    op.create_index(
        "deliveries_message",
        "deliveries",
        ["endpoint", "message_id"],
        unique=False,
        postgresql_where=sa.text("message_id IS NOT NULL"),
    )
    op.create_index(
        "deliveries_open",
        "deliveries",
        ["state", "reason"],
        unique=False,
        postgresql_where=sa.text("state IN ('retrying', 'parked')"),
    )
    op.create_index(
        "deliveries_owed",
        "deliveries",
        ["acknowledge_at"],
        unique=False,
        postgresql_where=sa.text("acknowledge_at IS NOT NULL"),
    )
    op.create_index("deliveries_received", "deliveries", ["received_at"], unique=False)
    op.create_table(
        "tokens",
        sa.Column("endpoint", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("endpoint"),
    )
    op.create_table(
        "booking_events",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("booking_id", sa.UUID(), nullable=False),
        sa.Column("delivery_id", sa.UUID(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("version", sa.Text(), nullable=True),
        sa.Column("received_at", postgresql.TIMESTAMP(timezone=True), nullable=False),
        sa.Column("same_as", sa.Text(), nullable=True),
        sa.Column("event", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("parser", sa.SmallInteger(), nullable=False),
        sa.ForeignKeyConstraint(["booking_id"], ["bookings.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("delivery_id", "position", name="booking_events_place"),
    )
    op.create_index("booking_events_booking", "booking_events", ["booking_id"], unique=False)
    op.create_index(
        "booking_events_sameness",
        "booking_events",
        ["booking_id", "same_as"],
        unique=True,
        postgresql_where=sa.text("same_as IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index(
        "booking_events_sameness", table_name="booking_events", postgresql_where=sa.text("same_as IS NOT NULL")
    )
    op.drop_index("booking_events_booking", table_name="booking_events")
    op.drop_table("booking_events")
    op.drop_table("tokens")
    op.drop_index("deliveries_received", table_name="deliveries")
    op.drop_index("deliveries_owed", table_name="deliveries", postgresql_where=sa.text("acknowledge_at IS NOT NULL"))
    op.drop_index(
        "deliveries_open", table_name="deliveries", postgresql_where=sa.text("state IN ('retrying', 'parked')")
    )
    op.drop_index("deliveries_message", table_name="deliveries", postgresql_where=sa.text("message_id IS NOT NULL"))
    op.drop_index("deliveries_endpoint", table_name="deliveries")
    op.drop_index("deliveries_due", table_name="deliveries", postgresql_where=sa.text("next_attempt_at IS NOT NULL"))
    op.drop_table("deliveries")
    op.drop_index("bookings_reference", table_name="bookings", postgresql_where=sa.text("reference IS NOT NULL"))
    op.drop_index("bookings_date", table_name="bookings")
    op.drop_table("bookings")
    op.drop_index("booking_changes_booking", table_name="booking_changes")
    op.drop_table("booking_changes")
