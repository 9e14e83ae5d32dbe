"""SynthesisVR (synthesisvr.com), played: an arcade that tells of each session once, waits two seconds, and forgets.

Sources: the pages "Webhooks", "Reading Sessions & Goods Data Through API", "Reading Customers Data Through API" and
"Delete or Update Session Through API" of its knowledge base, and one client of 2019 that reads `sessions` (github.com
Najsar/ZENonVR-Control-Center). What they leave open is a switch, and its default is invented.

A webhook has no clock, so the order of receipt is all the order there is. With an API key the receiver can ask, and
then requests may overtake one another here; without one, those about one session are sent one after the other.
Does not know how the receiver reads any of it.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import partial, wraps
from random import Random
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl
from uuid import NAMESPACE_URL, UUID, uuid5
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from simulators.ledger import Outcome
from simulators.venue import Post, Venue


@dataclass(frozen=True, kw_only=True)
class Customer:
    """A person with an account at the arcade."""

    id: int
    fullname: str
    email: str
    phone: str


@dataclass(frozen=True, kw_only=True)
class Session:
    """VR stations kept for somebody; a change makes a new value with the same uuid."""

    uuid: str
    starts: datetime
    minutes: int
    stations: int
    experience: str
    customer: Customer | None
    walk_in: str
    """How a webhook writes that there is no customer: `null`, `missing` or `zero`."""
    made_on: date
    label: int
    externaluuid: str | None = None

    @property
    def ends(self) -> datetime:
        """End minus start is exactly the duration, also where the clocks change."""
        return (self.starts.astimezone(UTC) + timedelta(minutes=self.minutes)).astimezone(self.starts.tzinfo)

    @property
    def cost(self) -> Decimal:
        return PRICE * self.stations * (self.minutes // 30)


@dataclass(kw_only=True)
class Party:
    """Sessions that are booked, moved and cancelled in one go, with the chance that decides about them."""

    chance: Random
    at: float
    """Simulated seconds after the day began."""
    fate: str
    sessions: list[Session]


UTC: Final = ZoneInfo("UTC")
PRICE: Final = Decimal("14.50")
"""For one station and half an hour."""
OPENING: Final = timedelta(hours=3)
"""Simulated; parties book within this time from the beginning of a busy day."""
PAUSE: Final = (300.0, 1800.0)
"""Simulated seconds between two steps of one party."""
HASTE: Final = 0.05
"""Wall seconds between a create and a delete that chase each other."""
LEAST_OVERTAKEN: Final = 1 / 2
"""Of such deletes, how many overtake their create where the receiver can ask the API."""

LIVES: Final[Mapping[str, tuple[str, ...]]] = {
    "stays": ("create",),
    "moves": ("create", "move"),
    "cancels": ("create", "cancel"),
    "leaves at once": ("create and cancel",),
    "moves, then cancels": ("create", "move", "cancel"),
    "comes back": ("create", "cancel", "restore"),
}
MOVES: Final[Mapping[str, tuple[tuple[bool, bool], ...]]] = {
    # How a move shows: (the uuid changes, delete and create travel in one array).
    "silent": (),
    "same-uuid": ((False, True),),
    "same-uuid-two-posts": ((False, False),),
    "new-uuid": ((True, True),),
    "new-uuid-two-posts": ((True, False),),
    "mixed": ((False, True), (False, False), (True, True), (True, False)),
}
WALK_INS: Final = ("null", "missing", "zero")
EXPERIENCES: Final = ("Free Roam", "Escape: The Lighthouse", "Arcade Hour", "Racing")
NAMES: Final = ("Jana Ritter", "Émile Durand", "Oskar Lindqvist", "Marta Nowak", "Li Wei", "Ines Duarte", "Tom Shaw")
UNKNOWN_KEYS: Final = {"arcade": {"id": 7, "hall": None}, "tags": ["vr", "walk-in"], "widget": True}

SPANS: Final = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "month": timedelta(days=31),
    "year": timedelta(days=366),
}
SPAN: Final = re.compile(r"(\d{1,4})\s*(hour|day|month|year)s?")
DATED: Final = re.compile(r"(date|crdate)([=<>])(\d{4}-\d{2}-\d{2})")
NAMED: Final = re.compile(r"(customer|label|uuid|externaluuid):(\S+)")
SWITCHES: Final = frozenset({"comments", "phone"})
"""Search words that choose what is shown and not which sessions."""

Test = Callable[[Session], bool]
Told = tuple[str, Session]
"""An action and the session that it is about."""


class SynthesisVR(Venue):
    """One arcade.

    A silent move (`moves="silent"`) sends nothing, as it may be in truth: the ledger expects the new time, and only
    reading the API again can find it. The simulated network never repeats a request here, whatever `duplicate` says.
    """

    provider: ClassVar[str] = "synthesisvr"
    events_each: ClassVar[float] = 2.5
    deadline: ClassVar[float] = 2.0

    def set_switches(
        self,
        *,
        api: bool = True,
        timezone: str = "Europe/Vienna",
        location: str = "Prater Arcade",
        moves: str = "mixed",
        bare: float = 0.3,
        unknown_keys: float = 0.15,
        element_per_station: bool = False,
        deleted_found: bool = False,
        uuid_needs_date: bool = False,
        time_format: str = "%Y-%m-%dT%H:%M:%S",
        cost_as: str = "number",
        content_type: str | None = "application/json",
    ) -> None:
        """What is unknown about them.

        api: whether Reservoir is given the key.
        moves: one of MOVES.
        bare, unknown_keys: chances that a single event comes without its array, or with keys of no page.
        element_per_station: a session with n stations stands n times in the array.
        deleted_found: `uuid:` still finds a deleted session.
        uuid_needs_date: `uuid:` without any date is refused.
        time_format, cost_as: how the API writes times (venue's wall clock) and money (`number`, `text`, `dollars`).
        """
        self.api, self.zone, self.location = api, ZoneInfo(timezone), location
        self.ways_of_moving = MOVES[moves]
        self.bare, self.unknown_keys = bare, unknown_keys
        self.element_per_station, self.deleted_found = element_per_station, deleted_found
        self.uuid_needs_date = uuid_needs_date
        self.time_format, self.cost_as, self.content_type = time_format, cost_as, content_type
        self.key = str(UUID(int=self.rng.getrandbits(128), version=4))
        self.calendar: dict[str, Session] = {}
        self.deleted: dict[str, Session] = {}
        self.customers = {customer.id: customer for customer in _customers()}
        self._made = 0

    def settings(self, api_url: str) -> dict[str, Any]:
        return {"provider": self.provider, "timezone": self.zone.key, "api_url": api_url}

    def secrets(self) -> dict[str, str]:
        return {"api_key": self.key} if self.api else {}

    def panel(self) -> dict[str, Any]:
        return {"sessions": len(self.calendar), "deleted": len(self.deleted)}

    # --- a day ---

    async def busy_day(self, bookings: int) -> None:
        await self.unfold([(party.at, partial(self._live, party)) for party in self._parties(bookings)])

    def _parties(self, bookings: int) -> list[Party]:
        """All content of the day is drawn here or from a party's own chance, so no timing can change it."""
        parties: list[Party] = []
        left, fates = bookings, list(LIVES) * (bookings // len(LIVES) + 1)
        self.rng.shuffle(fates)
        while left > 0:
            chance = Random(self.rng.getrandbits(64))
            size = min(left, chance.choice((1, 1, 1, 2, 3)))
            # Every third party books together with the one before it: several requests at once.
            at = parties[-1].at if len(parties) % 3 == 2 else chance.uniform(0, OPENING.total_seconds())
            sessions = [self._session(chance) for _ in range(size)]
            parties.append(Party(chance=chance, at=at, fate=fates.pop(), sessions=sessions))
            left -= size
        return parties

    def _session(self, chance: Random) -> Session:
        external = chance.random() < 0.2
        nobody, form = self._made % 4 == 3, WALK_INS[self._made // 4 % len(WALK_INS)]
        return Session(
            uuid=self._new_uuid(),
            starts=self._slot(chance),
            minutes=chance.choice((30, 60, 90)),
            stations=chance.randint(1, 6),
            experience=chance.choice(EXPERIENCES),
            customer=None if nobody else chance.choice(list(self.customers.values())),
            walk_in=form,
            made_on=self.clock.start.astimezone(self.zone).date(),
            label=chance.randint(1, 4),
            externaluuid=str(UUID(int=chance.getrandbits(128), version=4)) if external else None,
        )

    def _new_uuid(self) -> str:
        """A version-5 UUID, as in the examples of the webhook page."""
        self._made += 1
        return str(uuid5(NAMESPACE_URL, f"{self.endpoint}/{self._made}/{self.rng.getrandbits(64)}"))

    def _slot(self, chance: Random) -> datetime:
        """A quarter of an hour within opening hours of the coming month."""
        day = self.clock.start.astimezone(self.zone).date() + timedelta(days=chance.randint(1, 30))
        return datetime.combine(day, time(chance.randint(10, 20), chance.choice((0, 15, 30, 45))), self.zone)

    async def _live(self, party: Party) -> None:
        for number, step in enumerate(LIVES[party.fate]):
            if number:
                await self.clock.sleep(party.chance.uniform(*PAUSE))
            await _STEPS[step](self, party)

    # --- what happens to a party's sessions: first the calendar, then the ledger, then the webhook ---

    async def _create(self, party: Party) -> None:
        await self._tell(party.chance, self._entered(party.sessions))

    async def _cancel(self, party: Party) -> None:
        await self._tell(party.chance, self._removed(party.sessions))

    async def _create_and_cancel(self, party: Party) -> None:
        """Both requests are under way within 50 ms; with a key the second may even overtake the first."""
        overtaken = self.api and party.chance.random() < max(self.weather.reorder, LEAST_OVERTAKEN)
        created = self._entered(party.sessions)
        first = self._request(party.chance, created)
        if not self.api:
            await self._once(first)
        elif not overtaken:
            self.launch(self._once(first))
        await asyncio.sleep(HASTE)
        await self._tell(party.chance, self._removed(party.sessions))
        if overtaken:
            await self._once(first)

    async def _move(self, party: Party) -> None:
        gone = party.sessions
        if not self.ways_of_moving:
            party.sessions = [self._elsewhere(session, party.chance) for session in gone]
            self._entered(party.sessions)
            return
        new_uuid, one_array = party.chance.choice(self.ways_of_moving)
        party.sessions = [self._elsewhere(session, party.chance, new_uuid) for session in gone]
        await self._tell_move(party.chance, gone, party.sessions, one_array=one_array)

    async def _tell_move(
        self, chance: Random, gone: Sequence[Session], come: Sequence[Session], *, one_array: bool
    ) -> None:
        requests = [self._removed(gone), self._entered(come)]
        for told in [requests[0] + requests[1]] if one_array else requests:
            await self._tell(chance, told)

    def _elsewhere(self, session: Session, chance: Random, new_uuid: bool = False) -> Session:
        moved = replace(session, starts=self._slot(chance), stations=chance.randint(1, 6))
        return replace(moved, uuid=str(uuid5(NAMESPACE_URL, f"{session.uuid}/moved"))) if new_uuid else moved

    def _entered(self, sessions: Sequence[Session]) -> list[Told]:
        for session in sessions:
            self.calendar[session.uuid] = session
            self.deleted.pop(session.uuid, None)
            self._expect(session, "confirmed")
        return [("create", session) for session in sessions]

    def _removed(self, sessions: Sequence[Session]) -> list[Told]:
        for session in sessions:
            self.calendar.pop(session.uuid, None)
            self.deleted[session.uuid] = session
            self._expect(session, "cancelled")
        return [("delete", session) for session in sessions]

    def _expect(self, session: Session, status: str) -> None:
        """The truth of a session that stands, or stood, in the calendar.

        Of a session that is gone only the webhook's own words count: whether somebody asked the API while it still
        knew the session is a matter of milliseconds.
        """
        truth: dict[str, Any] = {
            "status": status,
            "quantity": session.stations,
            "resource_name": self.location,
            "customer_id": str(session.customer.id) if session.customer else None,
        }
        if self.api and status != "cancelled":
            truth |= self._what_the_api_knows(session)
        self.ledger.expect_anew(self.endpoint, session.uuid, **truth)

    def _what_the_api_knows(self, session: Session) -> dict[str, Any]:
        customer = session.customer
        return {
            "starts_at": session.starts,
            "ends_at": session.ends,
            "date": session.starts.date(),
            "timezone": self.zone.key,
            "total": session.cost,
            "customer_name": customer.fullname if customer else None,
            "customer_email": customer.email if customer else None,
            "customer_phone": customer.phone if customer else None,
        }

    # --- the sender ---

    async def _tell(self, chance: Random, told: Sequence[Told]) -> None:
        await self._once(self._request(chance, told))

    async def _once(self, post: Post) -> None:
        """There is no second time: what met no listener at all took effect nowhere, and the truth is nobody's fault."""
        if (await self.post(post)).outcome is Outcome.REFUSED:
            self.ledger.excuse(self.endpoint, post.bookings)

    def _request(self, chance: Random, told: Sequence[Told]) -> Post:
        copies = [(action, s) for action, s in told for _ in range(s.stations if self.element_per_station else 1)]
        elements = [self._element(chance, action, session) for action, session in copies]
        bare = len(elements) == 1 and chance.random() < self.bare
        headers = {"user-agent": "SynthesisVR"} | ({"content-type": self.content_type} if self.content_type else {})
        about = ", ".join(f"{action} {session.uuid[:8]}" for action, session in told)
        body = json.dumps(elements[0] if bare else elements).encode()
        uuids = tuple(dict.fromkeys(session.uuid for _, session in told))
        return Post(about, headers=headers, body=body, bookings=uuids, events=len(told))

    def _element(self, chance: Random, action: str, session: Session) -> dict[str, Any]:
        element: dict[str, Any] = {
            "uuid": session.uuid,
            "action": action,
            "location": self.location,
            "stations": session.stations,
        }
        if session.customer or session.walk_in != "missing":
            nobody = 0 if session.walk_in == "zero" else None
            element["customerid"] = session.customer.id if session.customer else nobody
        return element | (UNKNOWN_KEYS if chance.random() < self.unknown_keys else {})

    # --- the API ---

    def routes(self) -> Sequence[BaseRoute]:
        guarded = self._behind_the_key
        return [
            Route("/data/sessions/{key}/json/{span}/{search:path}", guarded(self._read_sessions)),
            Route("/data/sessions/{key}/update/{uuid}", guarded(self._update_session), methods=["POST"]),
            Route("/data/sessions/{key}/delete/{uuid}", guarded(self._delete_session), methods=["POST"]),
            Route("/data/customers/{key}/json", guarded(self._read_customers)),
            Route("/data/customers/{key}/search/{text:path}", guarded(self._read_customers)),
        ]

    def _behind_the_key(
        self, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        @wraps(handler)
        async def checked(request: Request) -> Response:
            if request.path_params["key"] != self.key:
                return _error(403, "Invalid API key")
            return await handler(request)

        return checked

    async def _read_sessions(self, request: Request) -> Response:
        words = request.path_params["search"].split()
        span = _span(request.path_params["span"])
        if span is None:
            return _error(400, "Invalid range")
        if not self._dated(words):
            return _error(400, "The date is mandatory")
        tests = [self._test(word, span) for word in words if word not in SWITCHES]
        found = [session for session in self._candidates(words) if all(test(session) for test in tests)]
        shown = {str(number): self._shown(session, words) for number, session in enumerate(found, start=1001)}
        return JSONResponse({"sessions": shown})

    def _candidates(self, words: Sequence[str]) -> list[Session]:
        """Those that a search can find; one that names a session need not go through the whole calendar."""
        pools = (self.calendar, self.deleted) if self.deleted_found else (self.calendar,)
        named = next((word[5:].lower() for word in words if word.startswith("uuid:")), None)
        if named is not None:
            return [pool[named] for pool in pools if named in pool]
        return [session for pool in pools for session in pool.values()]

    def _dated(self, words: Sequence[str]) -> bool:
        """Whether the search has a date, which is mandatory 'in the common case', or a name that does without."""
        names = ("customer:",) if self.uuid_needs_date else ("customer:", "uuid:", "externaluuid:")
        return any(DATED.fullmatch(word) or word in ("today", "upcoming") or word.startswith(names) for word in words)

    def _test(self, word: str, span: timedelta) -> Test:
        """What one search word asks of a session; RANGE is a length after the main date."""
        if dated := DATED.fullmatch(word):
            name, sign, text = dated.groups()
            day = date.fromisoformat(text)
            return _made_on(sign, day) if name == "crdate" else self._on(sign, day, span)
        if named := NAMED.fullmatch(word):
            name, value = named.groups()
            return lambda session: _names(session)[name] == value.lower()
        return self._word(word, span)

    def _word(self, word: str, span: timedelta) -> Test:
        now = self.clock.now().astimezone(self.zone)
        fixed: Mapping[str, Test] = {
            "today": lambda session: session.starts.date() == now.date(),
            "upcoming": lambda session: timedelta() <= session.starts - now < span,
            "skip_api": lambda session: session.externaluuid is None,
            "api_only": lambda session: session.externaluuid is not None,
        }
        return fixed.get(word) or (lambda session: word.lower() in _free_text(session))

    def _on(self, sign: str, day: date, span: timedelta) -> Test:
        begin, none = datetime.combine(day, time(), self.zone), timedelta()
        if sign == "<":
            return lambda session: session.starts.date() <= day
        return lambda session: none <= session.starts - begin < span

    def _shown(self, session: Session, words: Sequence[str]) -> dict[str, Any]:
        """The seven names of the 2019 client, and those by which one can search."""
        costs = {"number": float(session.cost), "text": str(session.cost), "dollars": f"${session.cost}"}
        shown = {
            "uuid": session.uuid,
            "externaluuid": session.externaluuid,
            "location": self.location,
            "customerid": session.customer.id if session.customer else None,
            "label": session.label,
            "experience": session.experience,
            "games": 1 + session.label,
            "stations": session.stations,
            "duration": session.minutes,
            "cost": costs[self.cost_as],
            "start_time": session.starts.strftime(self.time_format),
            "end_time": session.ends.strftime(self.time_format),
        }
        more = {"comments": "", "phone": session.customer.phone if session.customer else ""}
        return shown | {word: more[word] for word in SWITCHES.intersection(words)}

    async def _read_customers(self, request: Request) -> Response:
        text = request.path_params.get("text", "").lower()
        hits = [customer for customer in self.customers.values() if text in _whole_text(customer)]
        return JSONResponse({"customers": {str(customer.id): _as_json(customer) for customer in hits}})

    async def _update_session(self, request: Request) -> Response:
        session = self.calendar.get(request.path_params["uuid"].lower())
        if session is None:
            return _error(404, "Session not found")
        fields = await _fields(request)
        try:
            moved = self._changed(session, fields)
        except (KeyError, ValueError):
            return _error(400, "date and time are mandatory")
        self.launch(self._updated(session, moved))
        return JSONResponse({"status": "ok"})

    def _changed(self, session: Session, fields: Mapping[str, str]) -> Session:
        at = datetime.combine(date.fromisoformat(fields["date"]), time.fromisoformat(fields["time"]), self.zone)
        return replace(
            session,
            starts=at,
            minutes=int(fields.get("duration", session.minutes)),
            stations=int(fields.get("people", session.stations)),
            experience=fields.get("experience", session.experience),
        )

    async def _updated(self, gone: Session, come: Session) -> None:
        if not self.ways_of_moving:
            self._entered([come])
            return
        chance = Random(self.rng.getrandbits(64))
        new_uuid, one_array = chance.choice(self.ways_of_moving)
        if new_uuid:
            come = replace(come, uuid=self._new_uuid())
        await self._tell_move(chance, [gone], [come], one_array=one_array)

    async def _delete_session(self, request: Request) -> Response:
        session = self.calendar.get(request.path_params["uuid"].lower())
        if session is None:
            return _error(404, "Session not found")
        self.launch(self._tell(Random(self.rng.getrandbits(64)), self._removed([session])))
        return JSONResponse({"status": "ok"})


_STEPS: Final[Mapping[str, Callable[[SynthesisVR, Party], Awaitable[None]]]] = {
    "create": SynthesisVR._create,
    "restore": SynthesisVR._create,
    "move": SynthesisVR._move,
    "cancel": SynthesisVR._cancel,
    "create and cancel": SynthesisVR._create_and_cancel,
}


def _customers() -> list[Customer]:
    """Ids that are also found in the phone of the next one, as a free-text search for an id will find them."""
    return [
        Customer(
            id=5200 + number,
            fullname=name,
            email=f"guest{number}@example.org",
            phone=f"+43 1 {5200 + (number + 1) % len(NAMES)} {100 + number}",
        )
        for number, name in enumerate(NAMES)
    ]


def _span(text: str) -> timedelta | None:
    """`1 month 5 days` as a length; None where it is none."""
    parts = SPAN.findall(text)
    if not parts or SPAN.sub("", text).strip():
        return None
    return sum((int(count) * SPANS[unit] for count, unit in parts), timedelta())


def _made_on(sign: str, day: date) -> Test:
    """`crdate` has a `=` only (newer page)."""
    return lambda session: sign == "=" and session.made_on == day


def _names(session: Session) -> dict[str, str | None]:
    return {
        "customer": str(session.customer.id) if session.customer else None,
        "label": str(session.label),
        "uuid": session.uuid,
        "externaluuid": session.externaluuid,
    }


def _free_text(session: Session) -> str:
    person = _whole_text(session.customer) if session.customer else ""
    return f"{session.experience} {person}".lower()


def _whole_text(customer: Customer) -> str:
    return f"{customer.id} {customer.fullname} {customer.email} {customer.phone}".lower()


def _as_json(customer: Customer) -> dict[str, Any]:
    more = {"balance": "$0.00", "widget": True, "sessions": 1, "regdate": "2026-01-05T00:00:00"}
    return {"id": customer.id, "email": customer.email, "fullname": customer.fullname, "phone": customer.phone} | more


async def _fields(request: Request) -> dict[str, str]:
    """Fields of a POST, as a form or as JSON; the page does not say which."""
    body = (await request.body()).decode("utf-8", "replace")
    if body.lstrip().startswith("{"):
        return {key: str(value) for key, value in json.loads(body).items()}
    return dict(parse_qsl(body))


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


VENUE = SynthesisVR
