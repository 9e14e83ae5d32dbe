"""What is asked of PostgreSQL in the course of a day, once each, by the code that always asks it.

Knows the names in a history (`bench.history`), and no SQL.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine

from bench.history import FAR, History
from bench.plans import Explained, explained, scans
from console import queries
from schemas.delivery import RawDelivery, State, new_id
from workers.database import workers_engine
from workers.errors import ProviderUnavailable
from workers.job import Entry, Findings, Job, Landing, Verdict, fresh_job
from workers.overdue import overdue
from workers.provider import Event, Recall
from workers.replay import Choice, chosen
from workers.store import Store

BATCH: Final = 64
PAGE: Final = 51
"""Rows that a list asks for, where nothing else is said."""
SWEPT: Final = 4096
"""Deliveries that one sweep nudges at most."""
LATER: Final = FAR + timedelta(hours=1)
"""When all that is open in the history is due."""


@dataclass(frozen=True)
class Bystander:
    """Somebody who works on a database with a history."""

    engine: Engine
    history: History

    @property
    def store(self) -> Store:
        return Store(self.engine)

    def landed(self, first: int = 0, *, message_id: str | None = None) -> list[Job]:
        """Fresh deliveries in our hands, one about each of the bookings from `first` on."""
        landings = self._landings(first, message_id=message_id)
        return self.store.take(landings, [landing.raw.id for landing in landings], self.history.until)

    def _landings(self, first: int, *, message_id: str | None = None) -> list[Landing]:
        landings = []
        for booking in range(first, first + BATCH):
            raw, provider = self._raw(booking, self.history.until), self.history.endpoint(booking).provider
            landings.append(Landing(raw=raw, provider=provider, message_id=message_id))
        return landings

    def _raw(self, booking: int, at: datetime) -> RawDelivery:
        return RawDelivery(
            id=new_id(),
            endpoint=self.history.endpoint(booking).name,
            method="POST",
            received_at=at,
            headers=(("content-type", "application/json"),),
            body=b"{}",
        )

    def save(self, first: int, *, late: bool = False) -> None:
        """One more event for each of so many bookings; those above the history's are new. `late`: older than all."""
        entries = [self._entry(booking, job, late=late) for booking, job in enumerate(self.landed(first), first)]
        self.store.save(entries, self.history.until)

    def arrive(self, first: int) -> None:
        """The same in one step with landing."""
        jobs = map(fresh_job, self._landings(first))
        entries = [self._entry(booking, job, late=False) for booking, job in enumerate(jobs, first)]
        self.store.arrive(entries, self.history.until)

    def _entry(self, booking: int, job: Job, *, late: bool) -> Entry:
        found = Findings(elements=[self._event(booking, job, late=late)], answers={})
        return Entry(job=job, found=found, verdict=Verdict(state=None), parser=1)

    def _event(self, booking: int, job: Job, *, late: bool) -> Event:
        version = "" if late else self.history.until.isoformat()
        said = {"provider_status": "told now", "party_size": 9}
        return Event(external_id=self.history.external_id(booking), said=said, version=version, same_as=str(job.raw.id))

    def recall(self) -> None:
        """What the history says about bookings near their newest event."""
        asked = []
        for booking, job in enumerate(self.landed()):
            name = self.history.external_id(booking)
            asked.append((job, Recall(name="near", external_ids=(name,), within=timedelta(hours=1))))
        self.store.recall(asked)

    def again(self) -> Sequence[Job]:
        """All that is open in the history, held."""
        due = self.sweep()
        return self.store.claim_all([one.id for one in due[:BATCH]], LATER)

    def sweep(self) -> Sequence[Any]:
        return overdue(
            self.engine, LATER, settled=timedelta(0), patience=timedelta(seconds=20), busy=["nobody"], limit=SWEPT
        )


def _away(one: Bystander) -> None:
    one.store.let_go(one.landed(), ProviderUnavailable(), one.history.until)


def _given_back(one: Bystander) -> None:
    one.store.give_back(one.landed(), one.history.until)


def _acknowledged(one: Bystander) -> None:
    jobs = one.landed()
    one.store.acknowledge_again({job.raw.id: one.history.until for job in jobs})
    one.store.acknowledged(jobs, one.history.until)


def _wake(one: Bystander) -> None:
    one.store.wake(_owner(one), [ProviderUnavailable.reason], one.history.until)


def _owner(one: Bystander) -> str:
    return one.history.endpoint(0).name


WORK: Final[Mapping[str, Callable[[Bystander], Any]]] = {
    "land 64 and hold them": lambda one: one.landed(),
    "sweep": lambda one: one.sweep(),
    "hold 64 that are due": lambda one: one.again(),
    "let 64 go": _away,
    "give 64 back": _given_back,
    "acknowledge 64": _acknowledged,
    "told before": lambda one: one.store.told_before(one.landed(message_id="4")),
    "recall": lambda one: one.recall(),
    "wake what waits for an API": _wake,
    "land and save 64 of new bookings in one step": lambda one: one.arrive(one.history.bookings + BATCH),
    "land and save the next event of 64 bookings in one step": lambda one: one.arrive(2 * BATCH),
    "save 64 of new bookings": lambda one: one.save(one.history.bookings),
    "save the next event of 64 bookings": lambda one: one.save(0),
    "save a late event of 64 bookings": lambda one: one.save(BATCH, late=True),
}
"""What workers and the sweeper do all day, on connections that live long; by name, and each for itself."""


def _list(**choice: Any) -> Callable[[Bystander], Any]:
    """A page of `reservoir deliveries list`."""
    return lambda one: list(queries.deliveries(one.engine, limit=PAGE, **choice))


LISTS: Final[Mapping[str, Callable[[Bystander], Any]]] = {
    "deliveries list": _list(),
    **{f"deliveries list --state {state}": _list(state=state) for state in State},
    "deliveries list --reason": _list(reason="unknown-endpoint"),
    "deliveries list --endpoint": lambda one: _list(endpoint=_owner(one))(one),
    "deliveries list --endpoint --state parked": lambda one: _list(endpoint=_owner(one), state=State.PARKED)(one),
    "deliveries list --since": lambda one: _list(since=one.history.until - timedelta(days=1))(one),
    "deliveries show": lambda one: queries.delivery(one.engine, new_id()),
    "deliveries retry --state parked": lambda one: chosen(one.engine, Choice(state=State.PARKED)),
    "deliveries retry --reason": lambda one: chosen(one.engine, Choice(reason="unknown-endpoint")),
    "bookings list": lambda one: list(queries.bookings(one.engine, limit=PAGE)),
    "bookings list --endpoint": lambda one: list(queries.bookings(one.engine, limit=PAGE, endpoint=_owner(one))),
}
"""What a person asks for, by the command; always planned with its values, because a command asks once and ends."""


def probed(engine: Engine, history: History) -> dict[str, list[Explained]]:
    """The plans of all statements, by what they are for. The work comes last, because something is left of it."""
    found: dict[str, list[Explained]] = {}
    workers = workers_engine(engine.url.set(drivername="postgresql").render_as_string(hide_password=False))
    for names, of in ((LISTS, engine), (WORK, workers)):
        for name, probe in names.items():
            with explained(of) as found[name]:
                probe(Bystander(of, history))
    workers.dispose()
    return found


def read_whole(name: str, seen: Explained) -> set[str]:
    """The tables that a statement reads from end to end; a worker's also in the plan that is kept for all values."""
    return scans(seen.plan) | (scans(seen.generic) if name in WORK else set())
