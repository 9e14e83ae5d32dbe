"""What the console asks for, and what was done through it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

SETTLED = sa.text("state <> 'received' AND state <> 'applied'")
UNDATED = sa.text("date IS NULL")
WORDS = sa.text("booking_words(customer_name, customer_email, reference)")
HAS_WORDS = sa.text("coalesce(customer_name, customer_email, reference) IS NOT NULL")
# Never raises, whatever a guest typed: a word may be long, but not too long for a lexeme.
FUNCTION = """
CREATE FUNCTION booking_words(name text, email text, reference text) RETURNS tsvector
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT array_to_tsvector(array_remove(string_to_array(lower(
        left(coalesce(name, ''), 200) || ' ' || left(coalesce(email, ''), 200) || ' ' ||
        left(coalesce(reference, ''), 200)
    ), ' '), ''))
$$
"""


def upgrade() -> None:
    op.create_index(
        "deliveries_settled",
        "deliveries",
        ["state", "endpoint", "received_at", "id"],
        unique=False,
        postgresql_include=["reason"],
        postgresql_where=SETTLED,
    )
    op.create_index("bookings_undated", "bookings", ["first_seen_at", "id"], unique=False, postgresql_where=UNDATED)
    op.execute(FUNCTION)
    op.create_index(
        "bookings_words", "bookings", [WORDS], unique=False, postgresql_using="gin", postgresql_where=HAS_WORDS
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("at", postgresql.TIMESTAMP(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("chosen", sa.Text(), nullable=True),
        sa.Column("deliveries", postgresql.ARRAY(sa.UUID()), server_default=sa.text("'{}'::uuid[]"), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_index("bookings_words", table_name="bookings", postgresql_using="gin", postgresql_where=HAS_WORDS)
    op.execute("DROP FUNCTION booking_words(text, text, text)")
    op.drop_index("bookings_undated", table_name="bookings", postgresql_where=UNDATED)
    op.drop_index("deliveries_settled", table_name="deliveries", postgresql_where=SETTLED)
