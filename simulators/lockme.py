"""Lockme (lock.me), played: bare notifications that are repeated until the API acknowledges them.

A notification carries a message id and nothing else, as POST or as GET; the content is read, and the message is put
away, through an API behind OAuth2. Whatever status the receiver answers, an unacknowledged message comes again, at
growing intervals, for 24 hours (lock.me help, article on webhooks; lockmepl/lockme-sdk and lockme-wordpress for the
API). What Lockme has published nowhere is a switch below; defaults of such switches are invented.
"""

from __future__ import annotations

import asyncio
import json
import time as wall
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Any, ClassVar, Final, Literal
from urllib.parse import parse_qsl, urlencode
from uuid import uuid4
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from simulators.clock import Step, plan_day
from simulators.venue import Post, Venue

# --- switches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What is unknown about Lockme, or differs between its customers."""

    method: Literal["post", "get", "mixed"] = "post"
    """The help article says POST; live clients see GET only."""
    version: str = "v2.4"
    timezone: str = "Europe/Warsaw"
    slot_minutes: int = 60
    """Lockme gives no end; Reservoir adds this length from its endpoint's settings."""
    room_names: bool = True

    first_gap: float = 300.0
    """Simulated seconds between the first request of a message and the second."""
    growth: float = 2.0
    longest_gap: float = 4 * 3600.0
    patience: float = 24 * 3600.0
    """Simulated seconds until an unacknowledged message is given up (24 hours: documented)."""
    least_gap: float = 5.0
    """Wall-clock seconds below which no gap falls, however fast the clock runs: a worker that needs a second must not
    be buried under repeats because the day goes by in seconds."""

    oauth: bool = False
    """False: a token from the panel is pasted as ACCESS_TOKEN; True: client id and secret, consent, refresh."""
    token_seconds: int = 3600
    """Life of an access token on the wall clock, since the client reckons with `expires_in` on its own."""
    rotate: bool = True
    """A refresh replaces the refresh token and ends the old access token."""
    oauth_error_status: Literal[200, 400] = 400
    """The client library takes a body with `error` for an error also below a 2xx."""
    redirect_uri: str | None = None
    """The one that stands in the panel; None: any is taken."""

    shows: Literal["then", "now"] = "then"
    """Whether a message shows the booking as it was at the event, or as it is when the message is read."""
    gone_after_ack: bool = True
    """Whether reading, or acknowledging again, an acknowledged message is answered 404, or as before. Nothing is said
    about it; with True, who acknowledges before he keeps what he read can really lose it."""
    ids: Literal["number", "text"] = "number"
    truth: Literal["number", "text", "bool"] = "number"
    """How `data.status` is written: 1, "1" or true."""
    on_delete: Literal["full", "private", "empty", "null"] = "full"
    """What is left of `data` on a delete."""
    throttle_every: int = 0
    """Every so-manyth API call is answered 429; 0: none."""
    retry_after: int | None = 1
    """Seconds in `Retry-After` of a 429; None: without the header."""


# --- the model -----------------------------------------------------------------------------------------------

ROOMS: Final = {1188: "Pharaoh's Tomb", 1189: "The Last Train", 1190: "Komnata Alchemika"}
PEOPLE: Final = (
    ("Ewa", "Lis", "ewa.lis@example.org", "+48500100200"),
    ("Jan", "Żółkiewski", "jan@example.org", "+48500100201"),
    ("Marta", "", "marta@example.net", ""),
    ("O'Neil", "van der Berg", "", "+31612345678"),
    ("Łucja", "Wiśniewska", "lucja@example.com", "+48500100204"),
)
COMMENTS: Final = ("", "Birthday, please hide a cake", "Dwoje dzieci poniżej 10 lat", "")


@dataclass
class Booking:
    """A booking as Lockme knows it."""

    id: int
    room: int
    date: date
    hour: time
    booked_at: datetime
    source: str = "api"
    paid: bool = True
    """The field `status`: paid with source `web`, firm with the others."""
    people: int = 0
    price: Decimal | None = None
    pricer: int | str = "API"
    name: str = ""
    surname: str = ""
    email: str = ""
    phone: str = ""
    comment: str = ""
    language: str = "pl"
    extid: str = ""
    portal: bool = False
    """Made on lock.me itself; once it is paid, the API cannot delete it."""
    private: bool = False
    """Everything that the partner ever hears of it is in privacy mode."""
    deleted: bool = False


@dataclass
class Message:
    """One notification and what has become of it."""

    id: int
    action: str
    room: int
    booking: Booking | None = None
    """None for the panel's connection test."""
    then: Booking | None = None
    """The booking as it was at the event."""
    private: bool = False
    sends: int = 0
    reads: int = 0
    """How often its content was asked for, answered or not."""
    acks: int = 0
    """How often its acknowledgement was tried, taken or not."""
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def about(self) -> str:
        what = f" {self.booking.id}" if self.booking else ""
        return f"{self.action}{what} (message {self.id}, request {self.sends})"

    @property
    def bookings(self) -> tuple[str, ...]:
        return (str(self.booking.id),) if self.booking else ()


@dataclass(kw_only=True)
class Grant:
    """A pair of tokens; the access token dies at `expires` (Unix time), or earlier when it is revoked."""

    access_token: str
    refresh_token: str
    expires: float


class Refused(Exception):
    """An answer from 400 up, with the JSON `message` of Lockme's API."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class OAuthRefused(Exception):
    """An OAuth error: its message is the word in `error`."""


# --- a day's stories -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """How a booking comes about, and what happens to it after that."""

    source: str
    paid: bool
    then: tuple[str, ...] = ()
    private: bool = False


STORIES: Final = (
    Story("web", False, ("pay",)),
    Story("web", False, ("lapse",)),
    Story("panel", True, ("another_day", "another_hour")),
    Story("web", False, ("pay", "another_room")),
    Story("widget", True, ("party", "cancel")),
    Story("panel", False, ("firm",)),
    Story("panel", True, ("quiet_move",), private=True),
    Story("web", True, ("quiet_move", "comment")),
    Story("panel", False),
    Story("web", False, ("pay", "another_day", "cancel")),
    Story("api", True, ("party",)),
    Story("widget", True, ("another_room", "quiet_move")),
)


def _pay(booking: Booking, day: Random) -> None:
    booking.paid = True


def _nothing(booking: Booking, day: Random) -> None:
    return None


def _another_day(booking: Booking, day: Random) -> None:
    booking.date += timedelta(days=day.randint(1, 5))


def _another_hour(booking: Booking, day: Random) -> None:
    booking.hour = time(10 + (booking.hour.hour - 9) % 12, booking.hour.minute)


def _another_room(booking: Booking, day: Random) -> None:
    booking.room = day.choice([room for room in ROOMS if room != booking.room])


def _quiet_move(booking: Booking, day: Random) -> None:
    _another_day(booking, day)
    _another_room(booking, day)


def _party(booking: Booking, day: Random) -> None:
    booking.people += 1
    booking.price = (booking.price or Decimal(0)) + 30


def _comment(booking: Booking, day: Random) -> None:
    booking.comment = "" if booking.comment else "Will be ten minutes late"


@dataclass(frozen=True)
class Verb:
    action: str
    change: Callable[[Booking, Random], None]
    private: bool = False
    """Its message carries only what privacy mode leaves."""


VERBS: Final[Mapping[str, Verb]] = {
    "pay": Verb("edit", _pay),
    "firm": Verb("edit", _pay),
    "lapse": Verb("delete", _nothing),
    "cancel": Verb("delete", _nothing),
    "another_day": Verb("edit", _another_day),
    "another_hour": Verb("edit", _another_hour),
    "another_room": Verb("edit", _another_room),
    "quiet_move": Verb("edit", _quiet_move, private=True),
    "party": Verb("edit", _party),
    "comment": Verb("edit", _comment),
}

Handler = Callable[[Request], Awaitable[Any]]


class Lockme(Venue):
    """A department of a Lockme partner: its rooms, its messages, its OAuth client."""

    provider: ClassVar[str] = "lockme"
    events_each: ClassVar[float] = 2.8
    deadline: ClassVar[float] = 10.0
    """Invented: Lockme does not say how long it waits."""

    def set_switches(self, **switches: Any) -> None:
        self.switches = Switches(**switches)
        self.zone = ZoneInfo(self.switches.timezone)
        self.bookings: dict[int, Booking] = {}
        self.messages: dict[int, Message] = {}
        self.given_up: list[Message] = []
        """Messages that nobody acknowledged within 24 hours."""
        self._next_booking = self.rng.randrange(5_000_000, 6_000_000)
        self._next_message = self.rng.randrange(90_000_000, 91_000_000)
        self.client_id = f"partner-{self.rng.randrange(1000, 9999)}"
        self.client_secret = f"{self.rng.getrandbits(128):032x}"
        self._grants: list[Grant] = []
        self._codes: dict[str, str] = {}
        self._panel = self._issue()
        self._failing = {"reads": 0, "acks": 0}
        self._calls = 0

    def settings(self, api_url: str) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "api_url": api_url,
            "timezone": self.switches.timezone,
            "slot_minutes": self.switches.slot_minutes,
            "room_names": self.switches.room_names,
        }

    def secrets(self) -> dict[str, str]:
        if self.switches.oauth:
            return {"client_id": self.client_id, "client_secret": self.client_secret}
        return {"access_token": self._panel.access_token}

    def panel(self) -> dict[str, Any]:
        waiting = sum(not message.acknowledged.is_set() for message in self.messages.values())
        return {"messages": len(self.messages), "unacknowledged": waiting, "given_up": len(self.given_up)}

    # --- what only a test can do ---

    def panel_token(self) -> dict[str, Any]:
        """The JSON that the panel shows to copy: `expires` is absolute, in Unix seconds (third-party client)."""
        return {
            "token_type": "Bearer",
            "access_token": self._panel.access_token,
            "refresh_token": self._panel.refresh_token,
            "expires": int(self._panel.expires),
        }

    def expire_tokens(self) -> None:
        """Every access token is dead from now on; refresh tokens live."""
        for grant in self._grants:
            grant.expires = 0.0

    def fail_acknowledgements(self, times: int) -> None:
        """The next so many acknowledgements are answered 503."""
        self._failing["acks"] = times

    def fail_reads(self, times: int) -> None:
        """The next so many readings of a message are answered 503."""
        self._failing["reads"] = times

    # --- messages ---

    async def busy_day(self, bookings: int) -> None:
        day = Random(self.rng.getrandbits(64))
        stories = [STORIES[index % len(STORIES)] for index in range(bookings)]
        day.shuffle(stories)
        steps = plan_day(
            day,
            [1 + len(story.then) for story in stories],
            duplicate=self.weather.duplicate,
            reorder=self.weather.reorder,
        )
        made: dict[int, Booking] = {}
        began = self.clock.scheduled()
        self.send_test()
        for step in steps:
            await self.clock.until(began + timedelta(seconds=step.after))
            story = stories[step.story]
            if step.place == 0:
                made[step.story] = self._book(story, day, self._at(step))
                message = self._tell("add", made[step.story], private=story.private)
            else:
                message = self._live_on(made[step.story], VERBS[story.then[step.place - 1]], day)
            self.launch(self._deliver(message, late=step.late, twice=step.twice))
        await self.settled()

    def _at(self, step: Step) -> datetime:
        """The time of day of a step, to the second and without the wall clock's jitter."""
        return self.clock.start + timedelta(seconds=step.after) + self.clock.leapt

    def send_test(self) -> Message:
        """The button of the panel that tests the connection."""
        message = self._message("test", min(ROOMS))
        self.launch(self._deliver(message))
        return message

    def _book(self, story: Story, day: Random, at: datetime) -> Booking:
        name, surname, email, phone = day.choice(PEOPLE)
        now = at.astimezone(self.zone).replace(tzinfo=None, microsecond=0)
        return self._keep(
            Booking(
                id=0,
                room=day.choice(list(ROOMS)),
                date=now.date() + timedelta(days=day.randint(1, 21)),
                hour=time(day.randint(10, 21), day.choice((0, 15, 30))),
                booked_at=now,
                source=story.source,
                paid=story.paid,
                people=day.randint(0, 6),
                price=Decimal(day.randrange(12_000, 40_000, 50)) / 100,
                pricer=day.randint(70, 79),
                name=name,
                surname=surname,
                email=email,
                phone=phone,
                comment=day.choice(COMMENTS),
                portal=story.source == "web",
                private=story.private,
            )
        )

    def _keep(self, booking: Booking) -> Booking:
        self._next_booking += 1
        booking.id = self._next_booking
        self.bookings[booking.id] = booking
        return booking

    def _live_on(self, booking: Booking, verb: Verb, day: Random) -> Message:
        verb.change(booking, day)
        booking.deleted = verb.action == "delete"
        return self._tell(verb.action, booking, private=verb.private or booking.private)

    def _tell(self, action: str, booking: Booking, *, private: bool = False) -> Message:
        """A new message about a booking; the ledger knows from now on what the table must show."""
        self.ledger.expect(self.endpoint, str(booking.id), **self._row(booking))
        message = self._message(action, booking.room)
        message.booking, message.then, message.private = booking, replace(booking), private
        return message

    def _message(self, action: str, room: int) -> Message:
        self._next_message += 1
        message = Message(id=self._next_message, action=action, room=room)
        self.messages[message.id] = message
        return message

    async def _deliver(self, message: Message, *, late: float = 0.0, twice: bool = False) -> None:
        """Sends, and sends again, until somebody acknowledges. The answer's status means nothing."""
        await self.clock.sleep(late)
        over = self.clock.scheduled() + timedelta(seconds=self.switches.patience)
        gap = self.switches.first_gap
        if twice:
            self.launch(self._send(message))
        while self.clock.scheduled() < over:
            await self._send(message)
            if await self._acknowledged_within(message, gap):
                return
            gap = min(gap * self.switches.growth, self.switches.longest_gap)
        self.given_up.append(message)
        self.ledger.give_up(self.endpoint, message.bookings)

    async def _send(self, message: Message) -> None:
        message.sends += 1
        ways = {"post": ("POST",), "get": ("GET",), "mixed": ("GET", "POST")}[self.switches.method]
        headers = {"User-Agent": "LockMe/1.0", "X-MessageId": str(message.id)}
        method = self.chance.choice(ways)
        await self.post(Post(message.about, method=method, headers=headers, bookings=message.bookings))

    async def _acknowledged_within(self, message: Message, gap: float) -> bool:
        seconds = max(gap / self.clock.speed, self.switches.least_gap)
        try:
            await asyncio.wait_for(message.acknowledged.wait(), seconds)
        except TimeoutError:
            return False
        return True

    # --- the truth, in the columns of `bookings` ---

    def _row(self, booking: Booking) -> dict[str, Any]:
        starts_at = datetime.combine(booking.date, booking.hour, self.zone)
        known = {
            "status": _status(booking),
            "provider_status": str(self._truth(booking.paid)).lower(),
            "date": booking.date,
            "starts_at": starts_at,
            "ends_at": starts_at + timedelta(minutes=self.switches.slot_minutes),
            "timezone": self.switches.timezone,
            "resource_id": str(booking.room),
            "resource_name": ROOMS[booking.room] if self.switches.room_names else None,
        }
        more = self._in_full(booking)
        return known | (dict.fromkeys(more) if booking.private else more)

    def _in_full(self, booking: Booking) -> dict[str, Any]:
        return {
            "party_size": booking.people or None,
            "customer_name": " ".join(filter(None, (booking.name, booking.surname))) or None,
            "customer_email": booking.email or None,
            "customer_phone": booking.phone or None,
            "total": booking.price,
            "note": booking.comment or None,
            "source": booking.source,
            "provider_created_at": booking.booked_at.replace(tzinfo=self.zone),
        }

    # --- how a booking is written ---

    def _data(self, booking: Booking, private: bool) -> dict[str, Any]:
        """`data` of a message. Hours come with and without seconds, numbers also as text, as clients have seen it."""
        even = booking.id % 2 == 0
        spare = {
            "roomid": self._id(booking.room),
            "date": booking.date.isoformat(),
            "hour": booking.hour.isoformat("seconds" if even else "minutes"),
            "status": self._truth(booking.paid),
            "extid": booking.extid,
        }
        if private:
            return spare
        return spare | {
            "people": booking.people if even else str(booking.people),
            "price": _price(booking.price, as_text=not even),
            "pricer": booking.pricer,
            "name": booking.name,
            "surname": booking.surname,
            "email": booking.email,
            "phone": booking.phone,
            "comment": booking.comment,
            "language": booking.language,
            "invoice": "",
            "source": booking.source,
            "time": booking.booked_at.isoformat(" "),
        }

    def _id(self, number: int) -> int | str:
        return str(number) if self.switches.ids == "text" else number

    def _truth(self, value: bool) -> int | str | bool:
        forms: dict[str, int | str | bool] = {"number": int(value), "text": str(int(value)), "bool": value}
        return forms[self.switches.truth]

    def _written(self, message: Message) -> dict[str, Any]:
        """What `GET /message/{id}` answers."""
        booking = message.booking if self.switches.shows == "now" else message.then
        if booking is None:
            return {"action": message.action, "roomid": self._id(message.room), "reservationid": 0, "data": None}
        return {
            "action": message.action,
            "roomid": self._id(booking.room),
            "reservationid": self._id(booking.id),
            "data": self._data_of(message, booking),
        }

    def _data_of(self, message: Message, booking: Booking) -> dict[str, Any] | None:
        left = self.switches.on_delete if message.action == "delete" else "full"
        if left in ("empty", "null"):
            return {} if left == "empty" else None
        return self._data(booking, message.private or left == "private")

    # --- the API ---

    def routes(self) -> Sequence[BaseRoute]:
        reservation = "/room/{room:int}/reservation/{key:path}"
        table: tuple[tuple[str, str, Handler], ...] = (
            ("GET", "/me", self._me),
            ("GET", "/test", self._test),
            ("GET", "/message/{message:int}", self._read_message),
            ("POST", "/message/{message:int}", self._acknowledge_message),
            ("GET", "/rooms", self._rooms),
            ("GET", "/room/{room:int}", self._room),
            ("GET", "/room/{room:int}/reservations/{day}", self._reservations),
            ("PUT", "/room/{room:int}/reservation", self._add),
            ("POST", reservation + "/move", self._move),
            ("GET", reservation, self._reservation),
            ("POST", reservation, self._edit),
            ("DELETE", reservation, self._delete),
            ("GET", "/{rest:path}", self._no_such_resource),
        )
        api = f"/{self.switches.version}"
        return [
            Route("/authorize", self._authorize),
            Route("/access_token", self._access_token, methods=["POST"]),
            *(Route(api + path, self._guarded(handler), methods=[method]) for method, path, handler in table),
        ]

    def _guarded(self, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                self._admit(request)
                return JSONResponse(await handler(request))
            except Refused as refused:
                return JSONResponse({"message": str(refused)}, refused.status, refused.headers)

        return guarded

    def _admit(self, request: Request) -> None:
        self._calls += 1
        if self.switches.throttle_every and self._calls % self.switches.throttle_every == 0:
            after = self.switches.retry_after
            raise Refused(429, "Too many requests", {"Retry-After": str(after)} if after is not None else None)
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        alive = (grant.access_token for grant in self._grants if grant.expires > wall.time())
        if kind.lower() != "bearer" or token not in alive:
            raise Refused(401, "The access token is invalid or has expired")

    async def _me(self, request: Request) -> Any:
        return {"userid": 4711, "nick": self.endpoint}

    async def _test(self, request: Request) -> Any:
        return "OK"

    async def _no_such_resource(self, request: Request) -> Any:
        raise Refused(404, "Resource not found")

    # --- the API: messages ---

    async def _read_message(self, request: Request) -> Any:
        message = self._asked_message(request)
        message.reads += 1
        self._stumble("reads")
        self._refuse_acknowledged(message)
        return self._written(message)

    async def _acknowledge_message(self, request: Request) -> Any:
        message = self._asked_message(request)
        message.acks += 1
        self._stumble("acks")
        self._refuse_acknowledged(message)
        message.acknowledged.set()
        return True

    def _asked_message(self, request: Request) -> Message:
        message = self.messages.get(request.path_params["message"])
        if message is None:
            raise Refused(404, "Message not found")
        return message

    def _refuse_acknowledged(self, message: Message) -> None:
        if message.acknowledged.is_set() and self.switches.gone_after_ack:
            raise Refused(404, "Message not found")

    def _stumble(self, at: str) -> None:
        if self._failing[at]:
            self._failing[at] -= 1
            raise Refused(503, "Service unavailable")

    # --- the API: rooms and bookings ---

    async def _rooms(self, request: Request) -> Any:
        return [self._room_shown(room) for room in ROOMS]

    async def _room(self, request: Request) -> Any:
        return {**self._room_shown(self._asked_room(request)), "calendarMargin": 30}

    def _room_shown(self, room: int) -> dict[str, Any]:
        return {"roomid": self._id(room), "room": ROOMS[room], "department": self.endpoint}

    async def _reservations(self, request: Request) -> Any:
        room, day = self._asked_room(request), request.path_params["day"]
        there = (booking for booking in self.bookings.values() if booking.room == room and not booking.deleted)
        return [self._shown(booking) for booking in there if booking.date.isoformat() == day]

    async def _reservation(self, request: Request) -> Any:
        return self._shown(self._asked_booking(request))

    async def _add(self, request: Request) -> Any:
        written = await _body(request)
        if not (written.get("date") and written.get("hour")):
            raise Refused(400, "No date or hour")
        now = self.clock.now().astimezone(self.zone).replace(tzinfo=None, microsecond=0)
        booking = Booking(id=0, room=self._asked_room(request), date=now.date(), hour=time(0), booked_at=now)
        _write(booking, written)
        self._echo("add", self._keep(booking))
        return self._id(booking.id)

    async def _edit(self, request: Request) -> Any:
        booking = self._asked_booking(request)
        _write(booking, await _body(request))
        self._echo("edit", booking)
        return True

    async def _move(self, request: Request) -> Any:
        booking, written = self._asked_booking(request), await _body(request)
        if int(written.get("roomid", booking.room)) not in ROOMS:
            raise Refused(404, "Room not found")
        _write(booking, {key: written[key] for key in ("roomid", "date", "hour") if key in written})
        self._echo("edit", booking)
        return True

    async def _delete(self, request: Request) -> Any:
        booking = self._asked_booking(request)
        if booking.portal and booking.paid:
            raise Refused(400, "A reservation paid through Lockme cannot be deleted")
        booking.deleted = True
        self._echo("delete", booking)
        return True

    def _echo(self, action: str, booking: Booking) -> None:
        """A write through the API comes back as a message of its own, with the source `api`."""
        booking.source = "api"
        self.launch(self._deliver(self._tell(action, booking, private=booking.private)))

    def _asked_room(self, request: Request) -> int:
        room = request.path_params["room"]
        if room not in ROOMS:
            raise Refused(404, "Room not found")
        return int(room)

    def _asked_booking(self, request: Request) -> Booking:
        """By Lockme's id, or by the partner's own as `ext/…`."""
        room, key = self._asked_room(request), request.path_params["key"]
        for booking in self.bookings.values():
            names = (str(booking.id), f"ext/{booking.extid}" if booking.extid else None)
            if booking.room == room and key in names and not booking.deleted:
                return booking
        raise Refused(404, "Reservation not found")

    def _shown(self, booking: Booking) -> dict[str, Any]:
        return {"reservationid": self._id(booking.id), **self._data(booking, booking.private)}

    # --- OAuth2 (without version in the path) ---

    async def _authorize(self, request: Request) -> Response:
        """Stands for a person who is logged in and clicks yes."""
        asked = request.query_params
        redirect_uri = asked.get("redirect_uri", "")
        registered = self.switches.redirect_uri in (None, redirect_uri)
        if asked.get("response_type") != "code" or asked.get("client_id") != self.client_id or not registered:
            return JSONResponse({"error": "invalid_request"}, self.switches.oauth_error_status)
        code = uuid4().hex
        self._codes[code] = redirect_uri
        answer = {"code": code} | ({"state": asked["state"]} if "state" in asked else {})
        return RedirectResponse(f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{urlencode(answer)}", 302)

    async def _access_token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode(), keep_blank_values=True))
        try:
            self._admit_client(request, form)
            grant = self._grant(form)
        except OAuthRefused as refused:
            return JSONResponse({"error": str(refused)}, self.switches.oauth_error_status)
        return JSONResponse(
            {
                "token_type": "Bearer",
                "expires_in": self.switches.token_seconds,
                "access_token": grant.access_token,
                "refresh_token": grant.refresh_token,
            }
        )

    def _admit_client(self, request: Request, form: Mapping[str, str]) -> None:
        if _client(request, form) != (self.client_id, self.client_secret):
            raise OAuthRefused("invalid_client")

    def _grant(self, form: Mapping[str, str]) -> Grant:
        if form.get("grant_type") == "authorization_code":
            if self._codes.pop(form.get("code", ""), None) != form.get("redirect_uri", ""):
                raise OAuthRefused("invalid_grant")
            return self._issue()
        if form.get("grant_type") == "refresh_token":
            return self._refresh(form.get("refresh_token", ""))
        raise OAuthRefused("unsupported_grant_type")

    def _refresh(self, refresh_token: str) -> Grant:
        """With rotation the old pair ends here, so a second client that refreshes with it is refused."""
        grant = next((grant for grant in self._grants if grant.refresh_token == refresh_token), None)
        if grant is None:
            raise OAuthRefused("invalid_grant")
        if not self.switches.rotate:
            return self._issue(refresh_token)
        self._grants.remove(grant)
        return self._issue()

    def _issue(self, refresh_token: str | None = None) -> Grant:
        expires = wall.time() + self.switches.token_seconds
        grant = Grant(access_token=uuid4().hex, refresh_token=refresh_token or uuid4().hex, expires=expires)
        self._grants.append(grant)
        return grant


def _status(booking: Booking) -> str:
    """A web booking that is not paid blocks its slot for the 20 minutes of a checkout; with the other sources, and
    where privacy mode hides the source, not firm means only that something is outstanding."""
    if booking.deleted:
        return "cancelled"
    if booking.paid:
        return "confirmed"
    return "hold" if booking.source == "web" and not booking.private else "pending"


def _price(price: Decimal | None, *, as_text: bool) -> float | str:
    if price is None:
        return ""
    return str(price) if as_text else float(price)


def _client(request: Request, form: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Client id and secret, from the form or as HTTP Basic."""
    kind, _, pair = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return form.get("client_id"), form.get("client_secret")
    try:
        name, _, secret = b64decode(pair).decode().partition(":")
    except (NotBase64, UnicodeDecodeError):
        raise OAuthRefused("invalid_client") from None
    return name, secret


async def _body(request: Request) -> dict[str, Any]:
    """What is written, as JSON or as a form."""
    raw = (await request.body()).decode()
    try:
        written = json.loads(raw)
    except ValueError:
        return dict(parse_qsl(raw, keep_blank_values=True))
    if not isinstance(written, dict):
        raise Refused(400, "Expected an object")
    return written


def _truthy(value: Any) -> bool:
    return str(value).lower() in ("1", "true")


WRITABLE: Final[Mapping[str, tuple[str, Callable[[Any], Any]]]] = {
    "roomid": ("room", int),
    "date": ("date", date.fromisoformat),
    "hour": ("hour", time.fromisoformat),
    "people": ("people", int),
    "price": ("price", lambda price: Decimal(str(price))),
    "pricer": ("pricer", str),
    "status": ("paid", _truthy),
    **{key: (key, str) for key in ("name", "surname", "email", "phone", "comment", "language", "extid")},
}
"""Their key → our field, and how it is read."""


def _write(booking: Booking, written: Mapping[str, Any]) -> None:
    for key, (attribute, read) in WRITABLE.items():
        if key in written:
            try:
                setattr(booking, attribute, read(written[key]))
            except (ValueError, TypeError, ArithmeticError):
                raise Refused(400, f"Wrong {key}") from None


VENUE = Lockme
