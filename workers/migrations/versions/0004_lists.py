"""The lists of deliveries by state or reason read as much as they show, however long the history is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NOT_APPLIED = sa.text("state <> 'applied'")
WITH_REASON = sa.text("reason IS NOT NULL")
OPEN = sa.text("state IN ('retrying', 'parked')")


def upgrade() -> None:
    order = ["received_at", "id"]
    op.create_index("deliveries_state", "deliveries", ["state", *order], unique=False, postgresql_where=NOT_APPLIED)
    op.create_index("deliveries_reason", "deliveries", ["reason", *order], unique=False, postgresql_where=WITH_REASON)
    op.drop_index("deliveries_open", table_name="deliveries", postgresql_where=OPEN)


def downgrade() -> None:
    op.create_index("deliveries_open", "deliveries", ["state", "reason"], unique=False, postgresql_where=OPEN)
    op.drop_index("deliveries_reason", table_name="deliveries", postgresql_where=WITH_REASON)
    op.drop_index("deliveries_state", table_name="deliveries", postgresql_where=NOT_APPLIED)
