"""Every read and write of `deliveries` on the way of one. Leases and states make repetition harmless.

Knows no provider's words, no queue, no HTTP. How events become rows is `workers.bookings`; what an error means for a
delivery is `workers.retry`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine, and_, func, or_, select, update
from sqlalchemy import Row as SqlRow
from sqlalchemy.dialects.postgresql import insert as upsert

from schemas.delivery import OPEN, RawDelivery, State
from workers.bookings import CHANGING, Effect, booking_id, write_events
from workers.errors import AwaitingBooking, Overtaken
from workers.job import Findings, Job, Landing, Verdict
from workers.provider import Answer, Recall
from workers.tables import bookings, deliveries, events

LEASE: Final = timedelta(seconds=90)
"""How long a worker may hold a delivery before somebody else looks at it: longer than a task's time limit."""


class Store:
    """The tables, as the few things that a worker does with them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    # --- landing and holding ---

    def land(self, landings: Sequence[Landing], now: datetime) -> None:
        """Puts raw requests into `deliveries`, due now; one that is there already is left as it is."""
        if not landings:
            return
        rows = [
            {
                "id": landing.raw.id,
                "endpoint": landing.raw.endpoint,
                "provider": landing.provider,
                "origin": landing.origin,
                "received_at": landing.raw.received_at,
                "method": landing.raw.method,
                "headers": [list(pair) for pair in landing.raw.headers],
                "body": landing.raw.body,
                "message_id": landing.message_id,
                "next_attempt_at": now,
            }
            for landing in landings
        ]
        with self.engine.begin() as connection:
            connection.execute(upsert(deliveries).on_conflict_do_nothing(), rows)

    def claim(self, delivery_id: UUID, now: datetime) -> Job | None:
        """Takes hold of a delivery that is due; None when it is not due, is held, is done, or is not there.

        The hold is a lease: `next_attempt_at` moves behind it, so that a worker that dies is noticed.
        """
        one = update(deliveries).where(deliveries.c.id == delivery_id).returning(deliveries)
        to_do = one.where(deliveries.c.state.in_(OPEN), deliveries.c.next_attempt_at <= now).values(
            attempts=deliveries.c.attempts + 1, next_attempt_at=now + LEASE
        )
        to_tell = one.where(deliveries.c.state.not_in(OPEN), deliveries.c.acknowledge_at <= now).values(
            acknowledge_attempts=deliveries.c.acknowledge_attempts + 1, acknowledge_at=now + LEASE
        )
        with self.engine.begin() as connection:
            row = connection.execute(to_do).one_or_none() or connection.execute(to_tell).one_or_none()
        return job_of(row) if row is not None else None

    # --- questions ---

    def told_before(self, job: Job) -> dict[str, Answer] | None:
        """The answers of another delivery of this endpoint that brought the same message and is settled for good.

        None where there is none. What this delivery itself applied before does not count: a replay is never stopped
        by sameness.
        """
        if job.message_id is None or job.applied:
            return None
        done = or_(
            deliveries.c.state.in_([State.APPLIED, State.STALE, State.IGNORED]),
            and_(deliveries.c.state == State.PARKED, deliveries.c.reason == "unsupported-action"),
        )
        with self.engine.connect() as connection:
            found = connection.execute(
                select(deliveries.c.lookup)
                .where(
                    deliveries.c.endpoint == job.raw.endpoint,
                    deliveries.c.message_id == job.message_id,
                    deliveries.c.id != job.raw.id,
                    done,
                )
                .limit(1)
            ).first()
        return answers_from_json(found.lookup or {}) if found is not None else None

    def recall(self, job: Job, recall: Recall) -> list[dict[str, Any]]:
        """What other deliveries said about these bookings near this one, in order of receipt."""
        with self.engine.connect() as connection:
            return _recall(connection, job, recall)

    # --- the save ---

    def save(self, job: Job, found: Findings, verdict: Verdict, *, parser: int, now: datetime) -> State | None:
        """Events, rows, changes and the delivery's state in one transaction; the state that came out.

        What was found takes the place of what the delivery said before; where nothing was read, that stays. The result
        is None where somebody else settled it meanwhile and nothing was written.

        Raises, after rolling back: AwaitingBooking where an event names a booking that is not there; Overtaken where
        what was recalled is not all any more, so that of two workers who meet in a booking the second one knows of the
        first.
        """
        with self.engine.begin() as connection:
            state = connection.execute(
                select(deliveries.c.state).where(deliveries.c.id == job.raw.id).with_for_update()
            ).scalar_one()
            if State(state) not in OPEN:
                return None
            said = found.said
            effects = [] if said is None else write_events(connection, job.raw, job.provider, said, parser=parser)
            if any(_recall(connection, job, recall) != found.answers[recall.name].body for recall in found.recalled):
                raise Overtaken
            applied = job.applied or not CHANGING.isdisjoint(effects)
            final = verdict.state or _state_of(effects, applied)
            connection.execute(
                update(deliveries)
                .where(deliveries.c.id == job.raw.id)
                .values(
                    provider=job.provider,
                    state=final,
                    reason=verdict.reason,
                    error=verdict.error,
                    next_attempt_at=verdict.next_attempt_at,
                    lookup=answers_to_json(found.answers) or None,
                    parser=deliveries.c.parser if said is None else parser,
                    applied_at=func.coalesce(deliveries.c.applied_at, now) if applied else None,
                    acknowledge_at=now + LEASE if verdict.acknowledge else None,
                    acknowledge_attempts=1 if verdict.acknowledge else 0,
                )
            )
        if Effect.NAMED in effects:
            self._wake_waiting(job.raw.endpoint, now)
        return final

    def _wake_waiting(self, endpoint: str, now: datetime) -> None:
        """Makes due what waits for a booking of this endpoint; rows that somebody writes at this moment are left out.

        In a transaction of its own: the save holds a delivery and its bookings, and who waits may hold the other way.
        Who began to wait a moment too late to be seen here comes back by its own schedule. Being woken is no attempt
        of theirs: a busy hour must not use up their 24 hours.
        """
        waiting = (
            select(deliveries.c.id)
            .where(
                deliveries.c.state == State.RETRYING,
                deliveries.c.reason == AwaitingBooking.reason,
                deliveries.c.endpoint == endpoint,
                deliveries.c.next_attempt_at > now,
            )
            .with_for_update(skip_locked=True)
        )
        with self.engine.begin() as connection:
            connection.execute(
                update(deliveries)
                .where(deliveries.c.id.in_(waiting))
                .values(next_attempt_at=now, attempts=deliveries.c.attempts - 1)
            )

    # --- telling the provider ---

    def acknowledged(self, job: Job, now: datetime) -> None:
        """The provider knows that the delivery is safe."""
        with self.engine.begin() as connection:
            connection.execute(
                update(deliveries).where(deliveries.c.id == job.raw.id).values(acknowledge_at=None, acknowledged_at=now)
            )

    def acknowledge_again(self, job: Job, at: datetime | None) -> None:
        """The provider could not be told; `at` None: it is given up, the provider's repeats have ended too."""
        with self.engine.begin() as connection:
            connection.execute(update(deliveries).where(deliveries.c.id == job.raw.id).values(acknowledge_at=at))

    # --- what was left behind ---

    def due(self, now: datetime, *, patience: timedelta, limit: int) -> list[tuple[UUID, str, int]]:
        """(id, endpoint, attempts) of deliveries that somebody must look at, and notes that they are nudged now.

        One that was nudged less than `patience` ago is left out: its message is still in the queue.
        """
        looked_for = or_(deliveries.c.next_attempt_at <= now, deliveries.c.acknowledge_at <= now)
        impatient = or_(
            deliveries.c.nudged_at.is_(None),
            deliveries.c.nudged_at < now - patience,
            deliveries.c.nudged_at < func.least(deliveries.c.next_attempt_at, deliveries.c.acknowledge_at),
        )
        chosen = (
            select(deliveries.c.id)
            .where(looked_for, impatient)
            .order_by(func.least(deliveries.c.next_attempt_at, deliveries.c.acknowledge_at))
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        with self.engine.begin() as connection:
            rows = connection.execute(
                update(deliveries)
                .where(deliveries.c.id.in_(chosen))
                .values(nudged_at=now)
                .returning(deliveries.c.id, deliveries.c.endpoint, deliveries.c.attempts)
            ).all()
        return [(row.id, row.endpoint, row.attempts) for row in rows]


def _recall(connection: Connection, job: Job, recall: Recall) -> list[dict[str, Any]]:
    ids = [booking_id(job.raw.endpoint, external_id) for external_id in recall.external_ids]
    near = events.c.received_at.between(job.raw.received_at - recall.within, job.raw.received_at + recall.within)
    rows = connection.execute(
        select(
            bookings.c.external_id,
            events.c.event["said"]["provider_status"].astext,
            events.c.received_at,
            events.c.delivery_id,
        )
        .join(bookings, bookings.c.id == events.c.booking_id)
        .where(events.c.booking_id.in_(ids), near, events.c.delivery_id != job.raw.id)
        .order_by(events.c.received_at, events.c.delivery_id, events.c.position)
    )
    return [
        {
            "external_id": external_id,
            "provider_status": word,
            "received_at": received_at.isoformat(),
            "delivery_id": str(delivery_id),
        }
        for external_id, word, received_at, delivery_id in rows
    ]


def job_of(row: SqlRow[Any]) -> Job:
    """A row of `deliveries` as a worker holds it."""
    raw = RawDelivery(
        id=row.id,
        endpoint=row.endpoint,
        method=row.method,
        received_at=row.received_at,
        headers=tuple((name, value) for name, value in row.headers),
        body=row.body,
    )
    return Job(
        raw=raw,
        provider=row.provider,
        state=State(row.state),
        attempt=row.attempts,
        message_id=row.message_id,
        answers=answers_from_json(row.lookup or {}),
        applied=row.applied_at is not None,
        acknowledged=row.acknowledged_at is not None,
        acknowledge_attempt=max(1, row.acknowledge_attempts),
    )


def _state_of(effects: Sequence[Effect], applied: bool) -> State:
    """A delivery whose events all came late is stale; one that brought nothing new otherwise is a duplicate."""
    if applied:
        return State.APPLIED
    return State.STALE if effects and set(effects) == {Effect.OLDER} else State.DUPLICATE


def answers_to_json(answers: Mapping[str, Answer]) -> dict[str, Any]:
    """As they stand in `deliveries.lookup`."""
    return {
        name: {
            "status": answer.status,
            "at": answer.at.isoformat(),
            "body": answer.body,
            **({"recalled": True} if answer.recalled else {}),
        }
        for name, answer in answers.items()
    }


def answers_from_json(lookup: Mapping[str, Any]) -> dict[str, Answer]:
    """The inverse of `answers_to_json`."""
    return {
        name: Answer(
            status=answer["status"],
            at=datetime.fromisoformat(answer["at"]),
            body=answer["body"],
            recalled=answer.get("recalled", False),
        )
        for name, answer in lookup.items()
    }
