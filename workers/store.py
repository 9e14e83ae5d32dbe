"""Every read and write of `deliveries` on their way: set-wise, each in one transaction. Leases and states make
repetition harmless, so a transaction that met a dead connection is simply done once more.

Knows no provider's words, no queue, no HTTP. How events become rows is `workers.bookings`; what an error means for a
delivery is `workers.retry`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any, Final, TypeVar
from uuid import UUID

from sqlalchemy import (
    TIMESTAMP,
    Engine,
    Text,
    and_,
    any_,
    bindparam,
    case,
    func,
    literal_column,
    not_,
    null,
    or_,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY

from schemas.delivery import OPEN, RawDelivery, State
from schemas.logs import log
from workers import database
from workers.bookings import CHANGING, Effect, Sheet, Telling, booking_id, near
from workers.errors import AwaitingBooking, DeliveryError, Overtaken
from workers.fold import Said
from workers.job import Entry, Job, Landing, Saved, fresh_job
from workers.provider import Answer, Recall
from workers.rows import among, given, inserted, one_of, updated
from workers.statements import Asked, Session, Statement, alone, transaction
from workers.tables import bookings, deliveries, events
from workers.writing import as_json

T = TypeVar("T")

PIECE: Final = 8 * 2**20
"""Bytes of bodies in one statement, about: PostgreSQL takes them in well before a statement's time is over."""
LEASE: Final = timedelta(seconds=25)
"""How long a worker may hold a delivery before somebody else looks at it. Asking and saving fit into it."""

NOW: Final = bindparam("now", type_=TIMESTAMP(timezone=True))
LEASED: Final = bindparam("leased", type_=TIMESTAMP(timezone=True))
REASONS: Final = bindparam("reasons", type_=ARRAY(Text()))
ENDPOINT: Final = bindparam("endpoint", type_=Text())
ENDPOINTS: Final = bindparam("endpoints", type_=ARRAY(Text()))

LAND: Final = Statement(
    inserted(
        deliveries,
        [
            *("id", "endpoint", "provider", "origin", "received_at", "method", "headers", "body"),
            *("message_id", "attempts", "next_attempt_at"),
        ],
    )
    .on_conflict_do_nothing()
    .returning(deliveries.c.id)
)

_SETTLING: Final = [
    *("provider", "state", "reason", "error", "attempts", "next_attempt_at", "lookup", "parser"),
    *("applied_at", "acknowledge_at", "acknowledge_attempts"),
]
ARRIVE: Final = Statement(
    inserted(deliveries, ["id", "endpoint", "received_at", "method", "headers", "body", "message_id", *_SETTLING])
)
"""Fails where one of them has landed: then all of it is undone."""

# Held in the order of their ids: two workers may have been sent the same ones.
_LOCKED: Final = select(deliveries.c.id).where(among(deliveries.c.id)).order_by(deliveries.c.id).with_for_update()
_TAKEN: Final = update(deliveries).where(deliveries.c.id.in_(select(_LOCKED.cte("held").c.id))).returning(*deliveries.c)
CLAIM: Final = Statement(
    _TAKEN.where(one_of(deliveries.c.state, OPEN), deliveries.c.next_attempt_at <= NOW).values(
        attempts=deliveries.c.attempts + 1, next_attempt_at=LEASED
    )
)
CLAIM_TO_TELL: Final = Statement(
    _TAKEN.where(not_(one_of(deliveries.c.state, OPEN)), deliveries.c.acknowledge_at <= NOW).values(
        acknowledge_attempts=deliveries.c.acknowledge_attempts + 1, acknowledge_at=LEASED
    )
)
LET_GO: Final = Statement(
    update(deliveries)
    .where(among(deliveries.c.id), one_of(deliveries.c.state, OPEN))
    .values(
        attempts=func.greatest(deliveries.c.attempts - 1, 0),
        state=State.RETRYING,
        reason=bindparam("why", type_=Text()),
        error=bindparam("told", type_=Text()),
        next_attempt_at=NOW,
    )
)
GIVE_BACK: Final = Statement(
    update(deliveries)
    .where(among(deliveries.c.id), one_of(deliveries.c.state, OPEN))
    .values(attempts=func.greatest(deliveries.c.attempts - 1, 0), next_attempt_at=NOW)
)

TOLD_BEFORE: Final = Statement(
    select(deliveries.c.id, deliveries.c.endpoint, deliveries.c.message_id, deliveries.c.lookup)
    .where(
        deliveries.c.endpoint == any_(ENDPOINTS),
        among(deliveries.c.message_id),
        or_(
            one_of(deliveries.c.state, [State.APPLIED, State.STALE, State.IGNORED]),
            and_(deliveries.c.state == State.PARKED, deliveries.c.reason == "unsupported-action"),
        ),
    )
    .order_by(deliveries.c.id)
)
RECALL: Final = Statement(
    select(
        bookings.c.endpoint,
        bookings.c.external_id,
        events.c.event["said"]["provider_status"].astext.label("word"),
        events.c.received_at,
        events.c.delivery_id,
        events.c.position,
    )
    .join(bookings, bookings.c.id == events.c.booking_id)
    .where(
        among(events.c.booking_id),
        events.c.received_at.between(
            bindparam("earliest", type_=TIMESTAMP(timezone=True)), bindparam("latest", type_=TIMESTAMP(timezone=True))
        ),
    )
)

HOLD: Final = Statement(
    select(deliveries.c.id, deliveries.c.state, deliveries.c.replayed_at)
    .where(among(deliveries.c.id))
    .order_by(deliveries.c.id)
    .with_for_update()
)
SETTLED: Final = given(deliveries, ["id", *_SETTLING])
SETTLE: Final = Statement(
    update(deliveries)
    .where(deliveries.c.id == SETTLED.c.id)
    .values(
        {
            **{column.name: column for column in SETTLED.c if column.name != "id"},
            "attempts": func.greatest(deliveries.c.attempts - SETTLED.c.attempts, 0),  # less what was none
            "parser": func.coalesce(SETTLED.c.parser, deliveries.c.parser),
            "applied_at": case(
                (SETTLED.c.applied_at.is_(None), null()),
                else_=func.coalesce(deliveries.c.applied_at, SETTLED.c.applied_at),
            ),
        }
    )
)
WAKE: Final = Statement(
    update(deliveries)
    .where(
        deliveries.c.id.in_(
            select(deliveries.c.id)
            .where(
                deliveries.c.state == literal_column(f"'{State.RETRYING}'"),  # or no plan could use the index for it
                deliveries.c.reason == any_(REASONS),
                deliveries.c.endpoint == ENDPOINT,
                deliveries.c.next_attempt_at > NOW,
            )
            .with_for_update(skip_locked=True)
        )
    )
    .values(next_attempt_at=NOW, attempts=func.greatest(deliveries.c.attempts - 1, 0))
    .returning(deliveries.c.id)
)

ACKNOWLEDGED: Final = Statement(
    update(deliveries).where(among(deliveries.c.id)).values(acknowledge_at=None, acknowledged_at=NOW)
)
OWE: Final = Statement(updated(deliveries, ["acknowledge_at"]))


class Store:
    """The tables, as the few things that a worker does with them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def reachable(self) -> bool:
        """Whether PostgreSQL takes connections now; answers within a second."""
        return database.reachable(self.engine)

    def _run(self, asked: Asked) -> list[Any]:
        """One statement, committed; its rows. Raises DeliveryError."""
        with database.told():
            return alone(self.engine, asked)

    def _transaction(self, work: Callable[[Session], T]) -> T:
        """Does it in one transaction. Raises DeliveryError."""
        with database.told():
            return transaction(self.engine, work)

    # --- landing and holding ---

    def land(self, landings: Sequence[Landing], now: datetime, *, attempts: int = 0) -> set[UUID]:
        """Puts raw requests into `deliveries`, due now, begun so often; one that is there already is left as it is. The
        ids of those that were not."""
        return self._landed(landings, attempts=attempts, due=now)

    def take(self, landings: Sequence[Landing], delivery_ids: Sequence[UUID], now: datetime) -> list[Job]:
        """Puts raw requests into `deliveries`, and takes hold of those and of all others that are due, in the order
        of the ids. See `claim_all`."""
        fresh = self._landed(landings, attempts=1, due=now + LEASE)
        jobs = {landing.raw.id: fresh_job(landing) for landing in landings if landing.raw.id in fresh}
        try:
            for claim in (CLAIM, CLAIM_TO_TELL):
                left = sorted(one for one in delivery_ids if one not in jobs)
                if left:
                    jobs |= {row.id: job_of(row) for row in self._run(claim(ids=left, now=now, leased=now + LEASE))}
        except DeliveryError as error:
            if not jobs:
                raise
            # What is held already is worked on; the others stay due, and are nudged again.
            log.warning("not-taken", deliveries=len(left), first=left[0], reason=error.reason, error=str(error))
        return [jobs[delivery_id] for delivery_id in delivery_ids if delivery_id in jobs]

    def _landed(self, landings: Sequence[Landing], *, attempts: int, due: datetime) -> set[UUID]:
        """The ids of those that were not there yet."""

        def asked(piece: Sequence[Landing]) -> Asked:
            held = {"attempts": attempts, "next_attempt_at": due}
            return LAND(rows=as_json([{**_raw_row(one), "origin": one.origin, **held} for one in piece]))

        pieces = _pieces(sorted(landings, key=lambda landing: landing.raw.id))
        if not pieces:
            return set()
        if len(pieces) == 1:
            return {row.id for row in self._run(asked(pieces[0]))}
        # All or none: what landed before the one that failed would be held by nobody until its lease ends.
        return self._transaction(lambda session: {row.id for piece in pieces for row in session.send(asked(piece))})

    def claim_all(self, delivery_ids: Sequence[UUID], now: datetime) -> list[Job]:
        """Takes hold of deliveries that are due; left out is what is not due, is held, is done, or is not there.

        The hold is a lease: `next_attempt_at` moves behind it, so that a worker that dies is noticed.
        """
        return self.take((), delivery_ids, now)

    def claim(self, delivery_id: UUID, now: datetime) -> Job | None:
        """Takes hold of one."""
        return next(iter(self.claim_all([delivery_id], now)), None)

    def let_go(self, jobs: Collection[Job], error: DeliveryError, now: datetime) -> None:
        """Makes due again what was held and not begun; that was no attempt."""
        self._run(LET_GO(ids=_ids(jobs), why=error.reason, told=str(error), now=now))

    def give_back(self, jobs: Collection[Job], now: datetime) -> None:
        """As if they had not been taken."""
        self._run(GIVE_BACK(ids=_ids(jobs), now=now))

    # --- questions ---

    def told_before(self, jobs: Sequence[Job]) -> dict[UUID, dict[str, Answer]]:
        """For each that repeats a message: the answers of another delivery of its endpoint that brought the same
        message and is settled for good.

        What this delivery itself applied before does not count: a replay is never stopped by sameness.
        """
        asking = [job for job in jobs if job.message_id is not None and not job.applied and not job.replayed]
        if not asking:
            return {}
        endpoints = sorted({job.raw.endpoint for job in asking})
        rows = self._run(TOLD_BEFORE(endpoints=endpoints, ids=sorted({str(job.message_id) for job in asking})))
        found: dict[UUID, dict[str, Answer]] = {}
        for job in asking:
            same = (job.raw.endpoint, job.message_id)
            row = next((row for row in rows if (row.endpoint, row.message_id) == same and row.id != job.raw.id), None)
            if row is not None:
                found[job.raw.id] = answers_from_json(row.lookup or {})
        return found

    def recall(self, asked: Sequence[tuple[Job, Recall]]) -> list[list[dict[str, Any]]]:
        """What other deliveries said about these bookings near each of these, in order of receipt."""
        if not asked:
            return []
        wanted = {booking_id(job.raw.endpoint, name) for job, recall in asked for name in recall.external_ids}
        earliest = min(job.raw.received_at - recall.within for job, recall in asked)
        latest = max(job.raw.received_at + recall.within for job, recall in asked)
        rows = self._run(RECALL(ids=sorted(wanted), earliest=earliest, latest=latest))
        told = [(row.endpoint, row.external_id, _said(row)) for row in rows]
        return [
            near(
                job.raw,
                recall,
                (
                    (said, name)
                    for endpoint, name, said in told
                    if endpoint == job.raw.endpoint and name in recall.external_ids
                ),
            )
            for job, recall in asked
        ]

    # --- the save ---

    def save(self, entries: Sequence[Entry], now: datetime) -> list[Saved | None]:
        """Events, rows, changes and the deliveries' states in one transaction: as if saved one after the other.

        What was found takes the place of what a delivery said before; where nothing was read, that stays. An entry
        that names a booking which is not there is saved as it waits. None stands for one of which nothing was written
        because what was recalled is not all any more: so of two workers who meet in a booking the second one knows of
        the first.
        """
        tally = self._transaction(lambda session: _saved(session, entries, now))
        self._wake_namesakes(tally, now)
        return tally.saved

    def arrive(self, entries: Sequence[Entry], now: datetime) -> list[Saved]:
        """Lands deliveries together with what they say: `land` and `save` in one transaction, and one row written once.

        Raises DeliveryError, and nothing is written, where one of them has landed already, or one of them cannot be
        saved; Overtaken where what was recalled is not all any more.
        """
        raws = [_raw_row(entry.job) for entry in entries]  # while no booking is locked yet
        tally = self._transaction(lambda session: _arrived(session, entries, raws, now))
        self._wake_namesakes(tally, now)
        return [one for one in tally.saved if one is not None]

    def _wake_namesakes(self, tally: _Tally, now: datetime) -> None:
        """Who waits for a booking whose code has become known."""
        for endpoint in sorted(tally.named):
            self.wake(endpoint, [AwaitingBooking.reason], now)

    def wake(self, endpoint: str, reasons: Collection[str], now: datetime) -> int:
        """Makes due what waits at this endpoint for one of these reasons; how many. Rows that somebody writes at this
        moment are left out.

        In a transaction of its own: a save holds deliveries and their bookings, and who waits may hold the other way.
        Who began to wait a moment too late to be seen here comes back by its own schedule. Being woken is no attempt
        of theirs: a busy hour must not use up their 24 hours. One that a worker holds looks the same and may be taken a
        second time, which changes nothing.
        """
        return len(self._run(WAKE(endpoint=endpoint, reasons=sorted(reasons), now=now)))

    # --- telling the provider ---

    def acknowledged(self, jobs: Collection[Job], now: datetime) -> None:
        """The provider knows that these deliveries are safe."""
        self._run(ACKNOWLEDGED(ids=_ids(jobs), now=now))

    def acknowledge_again(self, when: Mapping[UUID, datetime | None]) -> None:
        """The providers could not be told; None: it is given up, the provider's repeats have ended too."""
        rows = [{"id": delivery_id, "acknowledge_at": at} for delivery_id, at in sorted(when.items())]
        self._run(OWE(rows=as_json(rows)))


# --- landing and holding ---------------------------------------------------------------------------------------


def _ids(jobs: Iterable[Job]) -> list[UUID]:
    return sorted(job.raw.id for job in jobs)


def _pieces(landings: Iterable[Landing]) -> list[list[Landing]]:
    """Those that one statement takes: all of them, unless they are very large."""
    pieces: list[list[Landing]] = []
    size = PIECE
    for landing in landings:
        size += len(landing.raw.body)
        if not pieces or size > PIECE:
            pieces.append([])
            size = len(landing.raw.body)
        pieces[-1].append(landing)
    return pieces


def _raw_row(one: Landing | Job) -> dict[str, Any]:
    """What a row keeps of the request itself."""
    raw = one.raw
    return {
        "id": raw.id,
        "endpoint": raw.endpoint,
        "provider": one.provider,
        "received_at": raw.received_at,
        "method": raw.method,
        "headers": raw.headers,
        "body": "\\x" + raw.body.hex(),
        "message_id": one.message_id,
    }


# --- the save --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    """What becomes of the entries of one save."""

    saved: list[Saved | None] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    """The endpoints where the code of a booking became known."""
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Of `deliveries`, as far as a save writes them."""

    def tell(self, sheet: Sheet, entry: Entry, now: datetime) -> None:
        """Lets a delivery say what it says. Raises Overtaken, and it has said nothing."""
        written, effects = _told(sheet, entry)
        row = _settled(written, effects, now)
        self.rows.append(row)
        self.saved.append(Saved(entry=written, state=State(row["state"])))
        if Effect.NAMED in effects:
            self.named.add(entry.job.raw.endpoint)


def _saved(session: Session, entries: Sequence[Entry], now: datetime) -> _Tally:
    """In a transaction: what the deliveries of these entries say, and what becomes of their rows."""
    held = session.send(HOLD(ids=_ids(entry.job for entry in entries)))
    sheet, tally = Sheet(session, _tellings(entries)), _Tally()
    found = {row.id: row for row in held}
    for entry in entries:
        if not _is_held(entry.job, found.get(entry.job.raw.id)):
            tally.saved.append(Saved(entry=entry, state=None))
            continue
        try:
            tally.tell(sheet, entry, now)
        except Overtaken:
            tally.saved.append(None)
    sheet.write()
    if tally.rows:
        session.send(SETTLE(rows=as_json(tally.rows)))
    return tally


def _arrived(session: Session, entries: Sequence[Entry], raws: Sequence[dict[str, Any]], now: datetime) -> _Tally:
    """The same for deliveries without a row, which is made. Raises Overtaken."""
    sheet, tally = Sheet(session, _tellings(entries)), _Tally()
    for entry in entries:
        tally.tell(sheet, entry, now)
    rows = [{**raw, **row, "attempts": 1 - row["attempts"]} for raw, row in zip(raws, tally.rows, strict=True)]
    session.send(ARRIVE(rows=as_json(sorted(rows, key=itemgetter("id")))))  # before the events, which belong to them
    sheet.write()
    return tally


def _tellings(entries: Iterable[Entry]) -> list[Telling]:
    return [telling for entry in entries if (telling := _telling(entry)) is not None]


def _is_held(job: Job, row: Any | None) -> bool:
    """Whether nobody else has settled it; or, where it is taken for fresh, saved anything of it."""
    if row is None or row.state not in OPEN:
        return False
    return not job.fresh or (row.state == State.RECEIVED and row.replayed_at is None)


def _told(sheet: Sheet, entry: Entry) -> tuple[Entry, list[Effect]]:
    """The entry as it is written, with what its events did. Raises Overtaken."""
    telling = _telling(entry)
    if telling is None:
        return entry, []
    try:
        return entry, sheet.tell(telling)
    except AwaitingBooking:
        if entry.waiting is None:
            raise
        return _told(sheet, entry.waiting)


def _telling(entry: Entry) -> Telling | None:
    """None where nothing was read: what the delivery said before stays."""
    said = entry.found.said
    if said is None:
        return None
    answers = entry.found.answers
    return Telling(
        raw=entry.job.raw,
        provider=entry.job.provider,
        said=said,
        parser=entry.parser,
        recalled=[(recall, answers[recall.name].body) for recall in entry.found.recalled],
        first=entry.job.fresh,
    )


def _settled(entry: Entry, effects: Sequence[Effect], now: datetime) -> dict[str, Any]:
    """The row of a delivery, as far as a save writes it."""
    job, verdict = entry.job, entry.verdict
    applied = job.applied or not CHANGING.isdisjoint(effects)
    return {
        "id": job.raw.id,
        "provider": job.provider,
        "state": verdict.state or _state_of(effects, applied),
        "reason": verdict.reason,
        "error": verdict.error,
        "attempts": 0 if verdict.is_attempt else 1,
        "next_attempt_at": verdict.next_attempt_at,
        "lookup": answers_to_json(entry.found.answers) or None,
        "parser": None if entry.found.said is None else entry.parser,
        "applied_at": now if applied else None,
        "acknowledge_at": now + LEASE if verdict.acknowledge else None,
        "acknowledge_attempts": 1 if verdict.acknowledge else 0,
    }


def _said(row: Any) -> Said:
    """An event, as far as a Recall asks for it."""
    return Said(
        delivery_id=row.delivery_id,
        position=row.position,
        received_at=row.received_at,
        said={"provider_status": row.word},
    )


def job_of(row: Any) -> Job:
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
        replayed=row.replayed_at is not None,
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
