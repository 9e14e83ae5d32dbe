"""Deliveries run again at an operator's word: dead letters after their cause is gone, or what was read wrongly.

Writes rows only, so it needs no Redis: a row that is due is nudged by the sweeper, and from there it goes the way of
all deliveries. What it said before is replaced, so its events are not doubled; sameness does not stop it. Knows no
provider's words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Engine, and_, not_, null, select, update

from schemas.delivery import OPEN, State
from workers.store import LEASE
from workers.tables import deliveries

BATCH: Final = 500


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Which deliveries: these, or all that are as described."""

    ids: Sequence[UUID] = ()
    state: State | None = None
    reason: str | None = None
    endpoint: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """As SQL has it."""
        columns = deliveries.c
        wanted = ((columns.state, self.state), (columns.reason, self.reason), (columns.endpoint, self.endpoint))
        equal = [column == value for column, value in wanted if value is not None]
        return [*equal, columns.id.in_(self.ids)] if self.ids else equal


@dataclass
class Replayed:
    """What became of a wish to run deliveries again."""

    again: list[UUID] = field(default_factory=list)
    held: list[UUID] = field(default_factory=list)
    """Left as they are: a worker has them in hand now, or will within seconds."""


def chosen(engine: Engine, choice: Choice) -> list[UUID]:
    """The deliveries that there are of the chosen ones, in order of receipt."""
    query = select(deliveries.c.id).where(*choice.conditions()).order_by(deliveries.c.received_at, deliveries.c.id)
    with engine.connect() as connection:
        return list(connection.execute(query).scalars())


def replay(engine: Engine, ids: Sequence[UUID], now: datetime, *, ask_again: bool = False) -> Replayed:
    """Makes these deliveries due as if they had just come in.

    What a provider's API answered is kept, so that a message which the provider has forgotten meanwhile can still be
    read; with `ask_again` it is forgotten, and the API is asked anew.
    """
    fresh: dict[str, Any] = {
        "state": State.RECEIVED,
        "reason": None,
        "error": None,
        "attempts": 0,
        "next_attempt_at": now,
        "nudged_at": None,
        "replayed_at": now,
        **({"lookup": null()} if ask_again else {}),
    }
    done = Replayed()
    for batch in _batches(ids):
        free = update(deliveries).where(deliveries.c.id.in_(batch), not_(_held(now)))
        with engine.begin() as connection:
            again = set(connection.execute(free.values(fresh).returning(deliveries.c.id)).scalars())
        done.again += [each for each in batch if each in again]
        done.held += [each for each in batch if each not in again]
    return done


def _held(now: datetime) -> ColumnElement[bool]:
    """A lease and the end of a short backoff look the same; whichever it is, the row is not to be touched now."""
    columns = deliveries.c
    return and_(columns.state.in_(OPEN), columns.next_attempt_at > now, columns.next_attempt_at <= now + LEASE)


def _batches(ids: Sequence[UUID]) -> Iterator[Sequence[UUID]]:
    return (ids[start : start + BATCH] for start in range(0, len(ids), BATCH))
