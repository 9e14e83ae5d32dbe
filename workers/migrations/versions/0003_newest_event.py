"""The newest event of a booking is found without reading the others."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("booking_events", "version", type_=sa.Text(collation="C"))
    order: list[Any] = [
        "booking_id",
        sa.literal_column("coalesce(version, '')"),
        "received_at",
        "delivery_id",
        "position",
    ]
    op.create_index("booking_events_order", "booking_events", order, unique=False)
    op.drop_index("booking_events_booking", table_name="booking_events")


def downgrade() -> None:
    op.create_index("booking_events_booking", "booking_events", ["booking_id"], unique=False)
    op.drop_index("booking_events_order", table_name="booking_events")
    op.alter_column("booking_events", "version", type_=sa.Text(collation="default"))
