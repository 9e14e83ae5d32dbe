"""Nine days at five made-up venues, always the same: what the console shows in a browser's tests and in its pictures.

The guests are invented. What the venues tell is in their providers' own words and goes the way of all deliveries; the
providers' answers come from a script. All of it lies around one moment, `at`, so a page that is looked at then is full.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from itertools import count
from random import Random
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from sqlalchemy import Engine, insert, select, text

from schemas.delivery import State
from schemas.endpoints import Endpoint
from tests.world import Clock, Telling, World, answer, request
from workers.errors import MessageGone, ProviderUnavailable
from workers.tables import audit, deliveries, incidents

ENDPOINTS: Mapping[str, Endpoint] = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint(
            name="arcade-vienna", provider="synthesisvr", timezone="Europe/Vienna", secrets=frozenset({"api_key"})
        ),
        Endpoint(name="harbour-tours", provider="checkfront", timezone="America/Vancouver"),
        Endpoint(name="studio-berlin", provider="reservekit", timezone="Europe/Berlin", secrets=frozenset({"api_key"})),
        Endpoint(
            name="vault-warsaw",
            provider="lockme",
            timezone="Europe/Warsaw",
            secrets=frozenset({"access_token"}),
            options={"slot_minutes": 60, "room_names": True},
        ),
        Endpoint(name="workshop-oslo", provider="timekit", timezone="Europe/Oslo"),
    )
}
FORGOTTEN = "old-cellar"
"""Sends, and stands in no configuration."""
JSON = (("content-type", "application/json"), ("accept", "*/*"))

GUESTS = (
    *("Leonie Sommer", "Jan Kowalski", "Nora Quist", "Samuel Okoro", "Ines Marlow", "Ewa Lis", "Mateo Ferrari"),
    *("Ida Brandt", "Tuva Halvorsen", "Oskar Nyman", "Priya Raman", "Zofia Wilk", "Ben Aldous", "Marit Solheim"),
    *("Hugo Lindqvist", "Clara Weiss", "Noah Tremblay", "Aiko Mori", "Piotr Zając", "Lena Vogt", "Émile Roux"),
    *("Freya Dahl", "Tomasz Mazur", "Grace Whitlock", "Jonas Beck", "Amira Haddad", "Kasper Lund", "Olga Sikora"),
    *("Ruben de Wit", "Maren Krüger", "Theo Papadakis", "Hanna Öberg", "Liam Archer", "Sofia Duarte", "Max Adler"),
)
ROOMS: Mapping[str, Sequence[tuple[str, str]]] = {
    "arcade-vienna": [("1", "Prater Arcade")],
    "harbour-tours": [("16", "harbour-kayak"), ("18", "seal-watch")],
    "studio-berlin": [("61", "Wheel throwing"), ("64", "Glaze and fire")],
    "vault-warsaw": [("1187", "The Submarine"), ("1188", "The Alchemist")],
    "workshop-oslo": [("k1f8e3b2", "Loft"), ("k77aa0c1", "Garage")],
}
TOGETHER = 64
"""Requests that a worker takes at once."""
LENGTH = {"studio-berlin": 90, "harbour-tours": 120}
"""Minutes of a visit, where they are not 60."""
HOURS = (10, 12, 14, 16, 18, 20)
BUSY = (9, 10, 11, 12, 12, 13, 14, 15, 16, 17, 17, 18, 18, 19, 19, 20, 20, 21, 22)
"""Hours at which people book, on their venue's clock; the busy ones more than once."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """A booking, as its venue knows it."""

    number: int
    endpoint: str
    room: tuple[str, str]
    starts: datetime
    guest: str
    party: int
    made: datetime
    spoken: int = 0
    """How often it was told."""

    @property
    def ends(self) -> datetime:
        return self.starts + timedelta(minutes=LENGTH.get(self.endpoint, 60))

    @property
    def local(self) -> datetime:
        return self.starts.astimezone(ZoneInfo(ENDPOINTS[self.endpoint].timezone or "UTC"))

    @property
    def email(self) -> str:
        return f"{self.guest.split()[0].lower()}.{self.number}@example.org"

    @property
    def price(self) -> str:
        return f"{18 * self.party + 30}.00"

    @property
    def paid(self) -> str:
        return self.price if self.spoken else "0.00"


@dataclass(frozen=True, kw_only=True)
class Told:
    """One request, and when it comes."""

    at: datetime
    endpoint: str
    telling: Telling


# --- in the providers' words -------------------------------------------------------------------------------------


def lockme(visit: Visit, word: str, at: datetime) -> Telling:
    number = str(90_412_000 + visit.number * 10 + visit.spoken)
    name, _, surname = visit.guest.partition(" ")
    data = {
        "roomid": int(visit.room[0]),
        "date": f"{visit.local:%Y-%m-%d}",
        "hour": f"{visit.local:%H:%M:%S}",
        "people": visit.party,
        "price": visit.price,
        "pricer": 77,
        "name": name,
        "surname": surname,
        "email": visit.email,
        "phone": f"+48500100{visit.number:03}",
        "comment": "",
        "language": "pl",
        "invoice": "",
        "source": "web",
        "status": 1,
        "extid": "",
        "time": f"{visit.made:%Y-%m-%d %H:%M:%S}",
    }
    action = {"made": "add", "changed": "edit", "cancelled": "delete"}[word]
    message = {
        "roomid": int(visit.room[0]),
        "reservationid": str(5_520_000 + visit.number),
        "data": data,
        "action": action,
    }
    return Telling(
        headers=(("user-agent", "LockMe/1.0"), ("x-messageid", number)),
        answers=_answers(lockme_api(number, message), at),
    )


def lockme_api(number: str, message: Any) -> dict[str, Any]:
    rooms = [{"roomid": int(room), "room": name, "department": "Warszawa"} for room, name in ROOMS["vault-warsaw"]]
    return {f"/message/{number}": message, "acknowledge": None, "rooms": rooms}


def reservekit(visit: Visit, word: str, at: datetime) -> Telling:
    slot = 900 + visit.local.hour
    booking = {
        "id": 40_000 + visit.number,
        "service_id": int(visit.room[0]),
        "date": f"{visit.local:%Y-%m-%d}",
        "time_slot_id": slot,
        "status": "confirmed",
        "message": f"{visit.party} people",
        "created_at": _zulu(visit.made),
        "updated_at": _zulu(at),
        "customer": {"id": 7000 + visit.number, "name": visit.guest, "email": visit.email, "phone": "+4915550001"},
    }
    event = {"made": "create", "changed": "update", "cancelled": "delete"}[word]
    told = {"bookings": [booking], "timestamp": _zulu(at), "event_type": f"bookings.{event}"}
    service = {"id": int(visit.room[0]), "name": visit.room[1], "timezone": "Europe/Berlin"}
    slots = [
        {"id": 900 + hour, "start_time": f"2023-01-01 {hour:02}:00:00", "end_time": f"2023-01-01 {hour + 1:02}:30:00"}
        for hour in HOURS
    ]
    api = {f"service:{visit.room[0]}": {"data": service}, f"slots:{visit.room[0]}": {"data": {"time_slots": slots}}}
    return _json(told, _answers(api, at))


def synthesisvr(visit: Visit, word: str, at: datetime) -> Telling:
    uuid = str(_uuid(visit.number))
    customer, games = 5200 + visit.number, ["Arizona Sunshine", "Elven Assassin", "Cook-Out"]
    action = {"made": "create", "changed": "create", "cancelled": "delete"}[word]
    told = [
        {"uuid": uuid, "action": action, "location": visit.room[1], "stations": visit.party, "customerid": customer}
    ]
    session = {
        "uuid": uuid,
        "experience": games[visit.number % 3],
        "cost": f"${visit.price}",
        "duration": 60,
        "games": [games[visit.number % 3]],
        "stations": visit.party,
        "start_time": f"{visit.local:%Y-%m-%d %H:%M:%S}",
        "end_time": f"{visit.local + timedelta(hours=1):%Y-%m-%d %H:%M:%S}",
    }
    person = {"id": customer, "email": visit.email, "fullname": visit.guest, "phone": "+4366012345"}
    api = {f"session:{uuid}": {"sessions": {"0": session}}, f"customer:{customer}": {"customers": [person]}}
    return _json(told, _answers(api, at))


def timekit(visit: Visit, word: str, at: datetime) -> Telling:
    state = {"made": "tentative", "changed": "confirmed", "cancelled": "cancelled"}[word]
    told = {
        "id": str(_uuid(visit.number)),
        "state": state,
        "graph": "confirm_decline",
        "completed": False,
        "created_at": _zulu(visit.made),
        "updated_at": _zulu(at),
        "customers": [{"id": f"c14e-{visit.number}", "name": visit.guest, "email": visit.email, "phone": ""}],
        "event": {"what": f"{visit.room[1]} with {visit.guest.split()[0]}", "where": visit.room[1], "allDay": False}
        | {"start": _zulu(visit.starts), "end": _zulu(visit.ends)},
        "calendar": {"id": visit.room[0], "name": visit.room[1], "display_name": visit.room[1]},
    }
    return _json(told)


def checkfront(visit: Visit, word: str, at: datetime) -> Telling:
    status = {"made": "PEND", "changed": "PAID", "cancelled": "VOID"}[word]
    starts, ends = str(int(visit.starts.timestamp())), str(int(visit.ends.timestamp()))
    item = {
        "@attributes": {"line_id": "1", "item_id": visit.room[0]},
        "start_date": starts,
        "end_date": ends,
        "sku": visit.room[1],
        "status": status,
        "total": visit.price,
        "qty": str(visit.party),
    }
    order = {"@attributes": {"currency_id": "CAD"}, "total": visit.price, "paid_total": visit.paid}
    booking = {
        "@attributes": {"booking_id": str(visit.number)},
        "status": status,
        "code": code_of(visit),
        "created_date": str(int(visit.made.timestamp())),
        "start_date": starts,
        "end_date": ends,
        "customer": {"name": visit.guest, "email": visit.email, "phone": "1 (250) 555-0142"},
        "order": {**order, "items": {"item": item}},
    }
    return _json({"@attributes": {"version": "3.0", "host": "harbour-tours.example"}, "booking": booking})


def code_of(visit: Visit) -> str:
    """What Checkfront's people say aloud."""
    letters = "KMVQWPLKRTZB"
    return f"{''.join(letters[(visit.number * step) % 12] for step in (1, 5, 7, 11))}-{visit.local:%d%m%y}"


TELL: Mapping[str, Callable[[Visit, str, datetime], Telling]] = {
    "lockme": lockme,
    "reservekit": reservekit,
    "synthesisvr": synthesisvr,
    "timekit": timekit,
    "checkfront": checkfront,
}


def _json(document: Any, answers: Mapping[str, Any] | None = None) -> Telling:
    return Telling(body=json.dumps(document, ensure_ascii=False).encode(), headers=JSON, answers=answers or {})


def _message(number: str, error: Exception) -> Telling:
    """Lockme's notice of a message that cannot be read."""
    headers = (("user-agent", "LockMe/1.0"), ("x-messageid", number))
    return Telling(headers=headers, answers={f"/message/{number}": error})  # type: ignore[dict-item]


def _answers(api: Mapping[str, Any], at: datetime) -> dict[str, Any]:
    return {name: answer(body, status=200 if body is not None else 204, at=at) for name, body in api.items()}


def _uuid(number: int) -> UUID:
    """Of a provider that counts in these; always the same."""
    return UUID(int=Random(number).getrandbits(128), version=4)


def _zulu(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


# --- what happens ------------------------------------------------------------------------------------------------


def visits(at: datetime) -> Iterator[Visit]:
    """Each room has something on most days, from five days ago to nine days ahead."""
    chance, numbers = Random("a week"), count(1)
    for endpoint in ENDPOINTS.values():
        zone = ZoneInfo(endpoint.timezone or "UTC")
        today = at.astimezone(zone).date()
        for offset in range(-5, 10):
            for room in ROOMS[endpoint.name]:
                busy = 4 if offset == 0 else 2 if abs(offset) < 4 else 1
                for hour in sorted(chance.sample(HOURS, busy)):
                    starts = datetime.combine(today + timedelta(days=offset), time(hour), zone).astimezone(UTC)
                    guest = chance.choice(GUESTS)
                    made = _made(chance, min(starts, at), zone)
                    number = next(numbers)
                    party = chance.randint(2, 6)
                    yield Visit(
                        number=number,
                        endpoint=endpoint.name,
                        room=room,
                        starts=starts,
                        guest=guest,
                        party=party,
                        made=made,
                    )


def _made(chance: Random, before: datetime, zone: ZoneInfo) -> datetime:
    """Some time in the days before, when people are awake; most book late."""
    day: date = before.astimezone(zone).date() - timedelta(days=int(chance.triangular(0, 4, 0)))
    made = datetime.combine(day, time(chance.choice(BUSY), chance.randrange(60), chance.randrange(60)), zone)
    return made.astimezone(UTC) if made < before else made.astimezone(UTC) - timedelta(days=1)


def life(visit: Visit, at: datetime, chance: Random) -> Iterator[Told]:
    """It is made; some are confirmed, paid or enlarged; some are cancelled; now and then a word comes twice."""
    tell = TELL[ENDPOINTS[visit.endpoint].provider]
    moment = visit.made
    yield Told(at=moment, endpoint=visit.endpoint, telling=tell(visit, "made", moment))
    if chance.random() < (0.9 if visit.endpoint in ("harbour-tours", "workshop-oslo") else 0.3):
        moment += timedelta(minutes=chance.randint(2, 180), seconds=chance.randrange(60))
        visit = replace(visit, party=visit.party + chance.choice((0, 0, 1)), spoken=1)
        again = Told(at=moment, endpoint=visit.endpoint, telling=tell(visit, "changed", moment))
        yield again
        if chance.random() < 0.15:
            yield replace(again, at=moment + timedelta(seconds=31))
    if chance.random() < 0.1:
        moment += timedelta(minutes=chance.randint(20, 600))
        yield Told(at=moment, endpoint=visit.endpoint, telling=tell(replace(visit, spoken=2), "cancelled", moment))


def told(at: datetime) -> list[Told]:
    """All that went well, in the order in which it came."""
    chance = Random("told")
    quiet = at - timedelta(hours=9)
    everything = [each for visit in visits(at) for each in life(visit, at, chance)]
    heard = [each for each in everything if each.at < (quiet if each.endpoint == "workshop-oslo" else at)]
    return sorted(heard, key=lambda each: (each.at, each.endpoint))


# --- into the tables ---------------------------------------------------------------------------------------------


@dataclass
class Week:
    """The days, told to an installation; names what the tests look for."""

    world: World
    at: datetime

    def __post_init__(self) -> None:
        self._numbers = count(1)

    def tell(self) -> None:
        """All of it."""
        everything = told(self.at)
        for first in range(0, len(everything), TOGETHER):
            self._deliver(everything[first : first + TOGETHER])
        for each, work in self._troubles():
            self._deliver([each], work=work)
        self._catch_up()
        self._done_here()
        self._gone_quiet()
        with self.world.engine.begin() as connection:
            for statement in _AT_ONCE:
                connection.exec_driver_sql(statement)

    def add(self, visit: Visit) -> None:
        """A booking that was made just now."""
        endpoint = ENDPOINTS[visit.endpoint]
        self._deliver(
            [Told(at=self.at, endpoint=endpoint.name, telling=TELL[endpoint.provider](visit, "made", self.at))]
        )

    def _deliver(self, some: Sequence[Told], *, work: bool = True) -> None:
        """Requests that are landed and worked on together, a second after the last of them."""
        raws = [
            request(
                each.endpoint,
                each.telling.body,
                at=each.at,
                headers=each.telling.headers,
                delivery_id=self._identity(each.at),
            )
            for each in some
        ]
        for each in some:
            self.world.script.lines |= each.telling.answers
        self.world.clock.now = some[-1].at + timedelta(seconds=1)
        self.world.land(*raws)
        if work:
            self.world.batch(*(raw.id for raw in raws))

    def _identity(self, at: datetime) -> UUID:
        """As the receiver's, but always the same."""
        milliseconds = int(at.timestamp() * 1000)
        chance = (next(self._numbers) * 0x9E3779B97F4A7C15) % (1 << 62)
        return UUID(int=milliseconds << 80 | 7 << 76 | (chance & 0xFFF) << 64 | 0b10 << 62 | chance)

    def _troubles(self) -> Iterator[tuple[Told, bool]]:
        """What waits for something, and what needs a person; and whether a worker has looked at it."""

        def came(endpoint: str, telling: Telling, **ago: float) -> Told:
            return Told(at=self.at - timedelta(**ago), endpoint=endpoint, telling=telling)

        for days in (4, 3, 1):
            yield came(FORGOTTEN, _json({"event_type": "bookings.create"}), days=days, hours=2), True
        for hours, number in ((31, "90411877"), (7, "90411902")):
            yield came("vault-warsaw", _message(number, MessageGone()), hours=hours), True
        owner = {"id": "a1ebdd9d", "state": "tentative", "graph": "group_owner", "updated_at": _zulu(self.at)}
        yield came("workshop-oslo", _json(owner), hours=10), True
        waitlisted = {"event_type": "bookings.waitlist", "bookings": [{"id": 40_777, "service_id": 61}]}
        yield came("studio-berlin", _json(waitlisted), hours=5), True
        yield came("harbour-tours", Telling(body=CUT_SHORT, headers=JSON), minutes=42), True
        payment = {"transaction_id": "TX-3301", "booking_id": "ZTRK-261126", "status": "PAID", "amount": "84.00"}
        paid = {"type": "transaction", "action": "create", "transaction": payment}
        yield came("harbour-tours", _json(paid), minutes=6), True
        away = ProviderUnavailable("message: the API answered 503")
        yield came("vault-warsaw", _message("90413990", away), seconds=20), True
        yield came("arcade-vienna", _json([]), seconds=3), False

    def _catch_up(self) -> None:
        """What comes back by itself has done so until now."""
        due = select(deliveries.c.id, deliveries.c.next_attempt_at).where(
            deliveries.c.state == State.RETRYING, deliveries.c.next_attempt_at < self.at
        )
        while True:
            with self.world.engine.connect() as connection:
                row = connection.execute(due.order_by(deliveries.c.next_attempt_at).limit(1)).first()
            if row is None:
                return
            self.world.clock.now = row.next_attempt_at
            self.world.work(row.id)

    def _done_here(self) -> None:
        """What somebody did at the console this morning."""
        with self.world.engine.begin() as connection:
            parked = text("SELECT id FROM deliveries WHERE state = :state ORDER BY id LIMIT 2")
            ids = list(connection.execute(parked, {"state": State.PARKED}).scalars())
            line = {"session": "5f0c2a9d", "address": "192.0.2.14", "chosen": None, "deliveries": [], "outcome": "done"}
            did: list[dict[str, Any]] = [
                {
                    **line,
                    "at": self.at - timedelta(hours=3, minutes=2),
                    "action": "login-refused",
                    "outcome": "wrong password",
                },
                {**line, "at": self.at - timedelta(hours=3), "action": "login"},
                {
                    **line,
                    "at": self.at - timedelta(hours=2, minutes=48),
                    "action": "retry",
                    "deliveries": ids,
                    "chosen": "state parked, reason message-gone",
                    "outcome": "again=2 held=0",
                },
                {
                    **line,
                    "at": self.at - timedelta(hours=2, minutes=40),
                    "action": "retry",
                    "deliveries": ids[:1],
                    "chosen": "by hand; ask the provider again",
                    "outcome": "again=1 held=0",
                },
                {**line, "at": self.at - timedelta(hours=1), "action": "logout"},
            ]
            connection.execute(insert(audit), did)

    def _gone_quiet(self) -> None:
        """As the alarms would have noted it."""
        noticed = self.at - timedelta(hours=2)
        row = {
            **dict.fromkeys(("opened_at", "tell_at", "notified_at"), noticed),
            "id": _uuid(0),
            "kind": "silence",
            "subject": "workshop-oslo",
            "title": "workshop-oslo is silent",
            "detail": f"the last webhook came {self.at - timedelta(hours=10):%Y-%m-%d %H:%M} UTC, 10 h ago; 8 h 20 min "
            "of silence is an alarm (by its rhythm about 14 spells of five minutes with webhooks should have come)",
            "last_seen_at": self.at,
        }
        with self.world.engine.begin() as connection:
            connection.execute(insert(incidents).values(row))


CUT_SHORT = (
    b'{"booking": {"@attributes": {"booking_id": "902"}, "status": "PEND", "code": "KMVQ-281126", "customer": {"na'
)
"""Ends in the middle; its code can be searched for."""

_AT_ONCE = (
    """
    UPDATE booking_changes SET at = deliveries.received_at + interval '1 second'
    FROM deliveries WHERE deliveries.id = booking_changes.delivery_id
    """,
    "UPDATE deliveries SET applied_at = received_at + interval '1 second' WHERE applied_at IS NOT NULL",
    "UPDATE deliveries SET acknowledged_at = applied_at WHERE acknowledged_at IS NOT NULL",
    "ANALYZE",
)
"""As if each had been worked on when it came, and by a database that lives in that week."""


def acks(at: datetime) -> dict[str, str]:
    """What the receivers tell Redis of their last minute, by endpoint."""
    slowest = {"arcade-vienna": 21.4, "harbour-tours": 12.9, "studio-berlin": 33.0, "vault-warsaw": 18.2}
    return {
        name: json.dumps({"count": 3, "slowest_ms": milliseconds, "failures_in_a_row": 0, "at": at.timestamp() - 4})
        for name, milliseconds in slowest.items()
    }


def tell(engine: Engine, at: datetime) -> Week:
    """The days, in that database."""
    week = Week(World(engine, list(ENDPOINTS.values()), clock=Clock(at)), at)
    week.tell()
    return week
