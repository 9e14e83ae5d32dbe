"""The deliveries in PostgreSQL that somebody must look at, as one statement. Knows no queue, only which are busy.

A row is told when it has become due, once: so it has its place in the line, however long that is. It is told again when
nothing has come of that for `patience`, and only where its endpoint is not busy: elsewhere its nudge still waits.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ARRAY, Engine, and_, any_, func, or_, select, update

from schemas.delivery import State
from workers.tables import deliveries


@dataclass(frozen=True, kw_only=True, slots=True)
class Overdue:
    """A delivery that is due, with what its nudge says."""

    id: UUID
    endpoint: str
    attempts: int


def overdue(
    engine: Engine, now: datetime, *, settled: timedelta, patience: timedelta, busy: Collection[str], limit: int
) -> list[Overdue]:
    """What must be nudged, longest due first; notes that it is nudged now. Two who ask at once share the rows.

    A row that has never been tried is left to who has just landed it for as long as `settled`.
    """
    due = func.least(deliveries.c.next_attempt_at, deliveries.c.acknowledge_at)
    looked_for = or_(deliveries.c.next_attempt_at <= now, deliveries.c.acknowledge_at <= now)
    tried = or_(
        deliveries.c.state != State.RECEIVED,
        deliveries.c.attempts > 0,
        deliveries.c.replayed_at.is_not(None),
        deliveries.c.next_attempt_at <= now - settled,
    )
    untold = or_(deliveries.c.nudged_at.is_(None), deliveries.c.nudged_at < due)
    again = and_(deliveries.c.nudged_at < now - patience, deliveries.c.endpoint.not_in(busy))
    chosen = (
        select(deliveries.c.id)
        .where(looked_for, tried, or_(untold, again))
        .order_by(due)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    # As an array, not as a join: it is chosen exactly once, and each row is found by its key, however many there are.
    ids = func.array(chosen.scalar_subquery(), type_=ARRAY(deliveries.c.id.type))
    with engine.begin() as connection:
        rows = connection.execute(
            update(deliveries)
            .where(deliveries.c.id == any_(ids))
            .values(nudged_at=now)
            .returning(deliveries.c.id, deliveries.c.endpoint, deliveries.c.attempts, due.label("due"))
        ).all()
    return [
        Overdue(id=row.id, endpoint=row.endpoint, attempts=row.attempts)
        for row in sorted(rows, key=lambda row: (row.due, row.id))
    ]
