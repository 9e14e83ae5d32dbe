"""A workbench: takes a request from the inbox's form to its rows as `workers.tasks` does, with scripted answers.

Everything is real but for Celery, the provider's API and the clock: deliveries land, are claimed and worked on in real
PostgreSQL, by one worker or by several threads with a connection each. At the end: plausible requests of each provider.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from random import Random
from typing import Any
from uuid import UUID

import psycopg
from sqlalchemy import Engine, select, update

from console.services import Embedded
from schemas.booking import COLUMNS, from_json, to_json
from schemas.delivery import RawDelivery, State, new_id
from schemas.endpoints import Config, Endpoint
from workers.database import engine as make_engine
from workers.errors import ProviderUnavailable
from workers.fold import Said
from workers.job import Fate, Job, fresh_job
from workers.land import landing
from workers.pipeline import Parts, process, straight
from workers.provider import Answer, Call, Event, Provider
from workers.reading import storable
from workers.registry import discover
from workers.store import Store, answers_to_json
from workers.tables import bookings, changes, deliveries, events
from workers.tasks import meaning

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
WORKERS = 4

_numbers = count(1)


@dataclass
class Clock:
    """Stands still until somebody moves it."""

    now: datetime = NOON

    def __call__(self) -> datetime:
        return self.now

    def forward(self, **by: float) -> None:
        self.now += timedelta(**by)


@dataclass
class Script:
    """A provider's API: by a call's name or its path an answer, an error to raise, or a function of the call.

    A call that nobody scripted gets what is said `otherwise`, or meets an API that is down. `asked` and `unanswered`
    keep what was asked, in order.
    """

    lines: dict[str, Any] = field(default_factory=dict)
    otherwise: Any = None
    asked: list[Call] = field(default_factory=list)
    unanswered: list[Call] = field(default_factory=list)

    def __call__(self, call: Call) -> Answer:
        self.asked.append(call)
        line = self.lines.get(call.name, self.lines.get(call.path, self.otherwise))
        if callable(line):
            line = line(call)
        if line is None:
            self.unanswered.append(call)
            raise ProviderUnavailable(f"{call.name}: nobody answers")
        if isinstance(line, Exception):
            raise line
        assert isinstance(line, Answer)
        return replace(line, body=storable(line.body))  # as `workers.calls` hands it on

    @property
    def names(self) -> list[str]:
        """What was asked, by name."""
        return [call.name for call in self.asked]


def answer(body: Any, status: int = 200, at: datetime = NOON) -> Answer:
    """What an API says."""
    return Answer(status=status, body=body, at=at)


def request(
    endpoint: str,
    body: bytes = b"",
    *,
    at: datetime = NOON,
    headers: Iterable[tuple[str, str]] = (),
    delivery_id: UUID | None = None,
) -> RawDelivery:
    """One POST."""
    return RawDelivery(
        id=delivery_id or new_id(),
        endpoint=endpoint,
        method="POST",
        received_at=at,
        headers=tuple(headers),
        body=body,
    )


@dataclass
class World:
    """An installation on a database of its own, or on its own endpoints of a shared one."""

    engine: Engine
    endpoints: Sequence[Endpoint]
    script: Script = field(default_factory=Script)
    providers: Mapping[str, Provider] = field(default_factory=discover)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By endpoint; what is missing is made up."""
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.store = Store(self.engine)
        self.config = Config(file="test", endpoints={endpoint.name: endpoint for endpoint in self.endpoints})
        self.parts = Parts(
            store=self.store,
            providers=self.providers,
            config=self.config,
            secrets_of=self.secrets_of,
            asks_for=lambda provider, endpoint: self.script,
            meaning=meaning,
            clock=self.clock,
            chance=Random(7),
        )

    def secrets_of(self, endpoint: Endpoint) -> dict[str, str]:
        known = self.secrets.get(endpoint.name, {})
        return {what: known.get(what, f"{what}-of-a-test") for what in endpoint.secrets}

    # --- working ---

    def land(self, *raws: RawDelivery) -> None:
        """From the inbox's bytes into `deliveries`."""
        now = self.clock()
        self.store.land([landing(raw.id, raw.pack(), self.config, self.providers, now) for raw in raws], now)

    def work(self, delivery_id: UUID) -> Fate | None:
        """What one task does; None where the delivery could not be claimed."""
        return self.batch(delivery_id).get(delivery_id)

    def batch(self, *delivery_ids: UUID) -> dict[UUID, Fate]:
        """What one task does with several; what could not be claimed is left out."""
        return process(self.store.claim_all(delivery_ids, self.clock()), self.parts)

    def deliver(self, *raws: RawDelivery) -> list[Fate | None]:
        """Works on each request by the worker that lands it, one after the other."""
        return [process(self.taken(raw), self.parts).get(raw.id) for raw in raws]

    def arrive(self, *raws: RawDelivery, in_turns: bool = False) -> dict[UUID, Fate] | None:
        """What one task does with requests that have not landed, if it can do it in one step."""
        now = self.clock()
        jobs = [fresh_job(landing(raw.id, raw.pack(), self.config, self.providers, now)) for raw in raws]
        return dict(straight(jobs, self.parts, in_turns=in_turns).fates) or None

    def taken(self, raw: RawDelivery) -> list[Job]:
        """What a worker holds that finds a request in the inbox."""
        now = self.clock()
        return self.store.take([landing(raw.id, raw.pack(), self.config, self.providers, now)], [raw.id], now)

    def at_once(self, ids: Iterable[UUID], workers: int = WORKERS) -> list[Fate | None]:
        """Several workers take these deliveries from one queue."""
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(self.work, ids))

    def settle(self, rounds: int = 10) -> None:
        """Works on what is due, and lets time go by where nothing is, until nothing is open any more, or for so many
        rounds."""
        for _ in range(rounds):
            with self.engine.connect() as connection:
                due = select(deliveries.c.id, deliveries.c.next_attempt_at).where(
                    deliveries.c.state.in_([State.RECEIVED, State.RETRYING]),
                    deliveries.c.endpoint.in_(self.config.endpoints),
                )
                left = connection.execute(due.order_by(deliveries.c.next_attempt_at, deliveries.c.id)).all()
            if not left:
                return
            due = [row for row in left if row.next_attempt_at <= self.clock.now]
            if not due:
                self.clock.now = max(row.next_attempt_at for row in left)
            for row in due or left:
                self.work(row.id)

    def once_more(self, delivery_id: UUID) -> Fate | None:
        """Works on a delivery again that is done, as if its state had been lost."""
        self.change(delivery_id, state=State.RECEIVED, next_attempt_at=self.clock())
        return self.work(delivery_id)

    def change(self, delivery_id: UUID, **values: Any) -> None:
        """Writes into a delivery's row."""
        with self.engine.begin() as connection:
            connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(**values))

    def remember(self, delivery_id: UUID, answers: Mapping[str, Answer]) -> None:
        """Makes it look as if an earlier attempt had brought these answers."""
        self.change(delivery_id, lookup=answers_to_json(answers) or None)

    def forget(self) -> None:
        """An empty database again."""
        with self.engine.begin() as connection:
            for table in (events, bookings, changes, deliveries):
                connection.execute(table.delete())

    # --- looking ---

    def delivery(self, delivery_id: UUID) -> Any:
        """The row of a delivery."""
        with self.engine.connect() as connection:
            return connection.execute(select(deliveries).where(deliveries.c.id == delivery_id)).one()

    def verdict(self, delivery_id: UUID) -> tuple[str, str | None]:
        """State and reason."""
        row = self.delivery(delivery_id)
        return row.state, row.reason

    def rows(self) -> list[dict[str, Any]]:
        """The whole of `bookings`, every column, in the order of endpoint and external id."""
        return self._all(bookings, bookings.c.endpoint, bookings.c.external_id)

    def events(self) -> list[dict[str, Any]]:
        """The whole of `booking_events` but for their serial numbers, in the order in which they were told."""
        rows = self._all(events, events.c.received_at, events.c.delivery_id, events.c.position)
        return [{name: value for name, value in row.items() if name != "id"} for row in rows]

    def changes(self) -> list[dict[str, Any]]:
        """The whole of `booking_changes`, oldest first."""
        return self._all(changes, changes.c.id)

    def _all(self, table: Any, *order: Any) -> list[dict[str, Any]]:
        mine = select(bookings.c.id).where(bookings.c.endpoint.in_(self.config.endpoints))
        identity = table.c.id if table is bookings else table.c.booking_id
        with self.engine.connect() as connection:
            found = connection.execute(select(table).where(identity.in_(mine)).order_by(*order))
            return [dict(row._mapping) for row in found]


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `bookings` as `expected.json` has it: the columns that are not empty."""
    plain = to_json({column: row[column] for column in COLUMNS})
    full = {column: plain[column] for column in COLUMNS if plain[column] not in (None, [], {})}
    return {"external_id": row["external_id"], **full}


def said(raw: RawDelivery, place: int, event: Event) -> Said:
    """An element of a delivery as the fold takes it."""
    return Said(
        delivery_id=raw.id,
        position=place,
        received_at=event.as_of or raw.received_at,
        version=event.version,
        said=from_json(to_json(event.said)),
        payments=tuple(event.payments),
    )


# --- a database for many examples --------------------------------------------------------------------------------


@contextmanager
def database(services: Embedded, template: str) -> Iterator[Engine]:
    """A database for a whole file of tests. It may lose what it just committed in a power cut, and is faster so."""
    name = f"world_{next(_numbers)}"
    maintenance = services.database_url.replace("/reservoir?", "/postgres?")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    made = make_engine(services.database_url.replace("/reservoir?", f"/{name}?"), pool_size=WORKERS + 4)
    try:
        yield made
    finally:
        made.dispose()
        with psycopg.connect(maintenance, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


# --- plausible requests ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something that happens to a booking, before a provider puts it into its own words.

    `version` is the provider's order, where it has one. What is None is not spoken of.
    """

    word: str = "create"
    """`create`, `change`, `cancel` or `pay`."""
    version: int = 0
    booking: int = 1
    name: str | None = None
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Telling:
    """What a provider sends of it, and what its API answers then."""

    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    answers: Mapping[str, Answer] = field(default_factory=dict)


VENUES: Mapping[str, Endpoint] = {
    "lockme": Endpoint(name="escape", provider="lockme", timezone="Europe/Warsaw", secrets=frozenset({"access_token"})),
    "reservekit": Endpoint(name="salon", provider="reservekit", timezone="Europe/Berlin"),
    "synthesisvr": Endpoint(name="arcade", provider="synthesisvr", timezone="Europe/Vienna"),
    "timekit": Endpoint(name="studio", provider="timekit", timezone="Europe/Oslo"),
    "checkfront": Endpoint(name="harbour", provider="checkfront", timezone="America/Vancouver"),
}
"""One endpoint per provider, without an API where the provider allows that."""

SEVERAL = frozenset({"reservekit", "synthesisvr"})
"""Who tells of several bookings in one request."""


def tell(provider: str, *steps: Step) -> Telling:
    """The steps as that provider sends them in one request."""
    return _TELL[provider](*steps)


def _lockme(step: Step) -> Telling:
    number = str(90_000 + step.version)
    action = {"create": "add", "change": "edit", "pay": "edit", "cancel": "delete"}[step.word]
    data = {"date": "2026-12-01", "hour": "18:30:00", "status": 1, **_given(name=step.name, people=step.size)}
    message = {"action": action, "reservationid": f"r{step.booking}", "roomid": 7, "data": data}
    return Telling(
        headers=(("x-messageid", number),),
        answers={f"/message/{number}": answer(message), "acknowledge": answer(None, status=204)},
    )


def _reservekit(*steps: Step) -> Telling:
    event = {"create": "bookings.create", "cancel": "bookings.delete"}.get(steps[0].word, "bookings.update")
    told = [
        {
            "id": step.booking,
            "service_id": 140,
            "date": "2026-12-01",
            "status": "confirmed",
            "updated_at": _minute(step.version),
            **_given(message=step.size and f"{step.size} chairs", customer=step.name and {"name": step.name}),
        }
        for step in steps
    ]
    return _json({"event_type": event, "bookings": told, "timestamp": _minute(max(step.version for step in steps))})


def _synthesisvr(*steps: Step) -> Telling:
    return _json(
        [
            {
                "uuid": f"9a1f6c1e-77d0-5b62-8e0a-3f1c2d4e5b{step.booking:02d}",
                "action": "delete" if step.word == "cancel" else "create",
                **_given(stations=step.size, customerid=step.name),
            }
            for step in steps
        ]
    )


def _timekit(step: Step) -> Telling:
    state = {"create": "tentative", "change": "confirmed", "pay": "paid", "cancel": "cancelled"}[step.word]
    booking = {
        "id": f"t{step.booking}",
        "state": state,
        "graph": "instant",
        "updated_at": _minute(step.version),
        **_given(
            customers=step.name and [{"name": step.name}],
            event=step.size and {"start": _minute(step.size), "end": _minute(step.size + 60)},
        ),
    }
    return _json(booking)


def _checkfront(step: Step) -> Telling:
    code = f"CODE-00{step.booking}"
    if step.word == "pay":
        payment = {"transaction_id": f"TX-{step.version}", "booking_id": code, "status": "PAID", "amount": "12.50"}
        return _json({"type": "transaction", "action": "create", "transaction": payment})
    status = {"create": "PEND", "change": "PAID", "cancel": "VOID"}[step.word]
    booking = {
        "@attributes": {"booking_id": str(step.booking)},
        "status": status,
        **_given(code=step.size and code, customer=step.name and {"name": step.name}),
        **_given(order=step.size and {"paid_total": f"{step.size}.00"}),
    }
    return _json({"booking": booking})


_TELL: Mapping[str, Callable[..., Telling]] = {
    "lockme": _lockme,
    "reservekit": _reservekit,
    "synthesisvr": _synthesisvr,
    "timekit": _timekit,
    "checkfront": _checkfront,
}


def _json(document: Any) -> Telling:
    return Telling(body=json.dumps(document).encode(), headers=(("content-type", "application/json"),))


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _minute(number: int) -> str:
    return (NOON + timedelta(minutes=number)).isoformat()
