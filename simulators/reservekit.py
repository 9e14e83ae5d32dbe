"""ReserveKit (reservekit.io), played: JSON webhooks with one or many bookings, times only through the API.

A body names a slot and no time; slots, service names and zones are read back with a key (ReserveKit/docs: bookings,
time slots, webhooks, rate limits, error handling, 2025-02-27; for the bare booking `docs/webhooks.md`, 2025-02-06).
Docs, Swagger file and SDKs contradict each other, so most shapes are a switch below. Retries are mentioned nowhere;
their number and their gaps are invented.
"""

from __future__ import annotations

import json
import time as wall
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from math import ceil
from random import Random
from typing import Any, ClassVar, Final, Literal
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from simulators.clock import plan_day
from simulators.venue import Post, Venue

# --- switches ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Switches:
    """What is unknown about ReserveKit, or contradicts itself."""

    shape: Literal["bookings", "bare"] = "bookings"
    """Today's body with `bookings[]`, or the older one that is the booking itself."""
    cancel_event: Literal["bookings.update", "bookings.delete"] = "bookings.update"
    """What a PATCH to `cancelled` sends."""
    dates: Literal["day", "timestamp"] = "day"
    """`2026-09-18`, or `2026-09-18T00:00:00Z` as both SDKs read it."""
    retries: int = 3
    backoff: tuple[float, ...] = (30.0, 180.0, 900.0)
    """Simulated seconds before each retry; the last one serves for all that follow."""
    least_gap: float = 0.5
    """Wall-clock seconds below which no gap falls, however fast the clock runs."""
    company: float = 0.15
    """Chance that a body repeats, beside its news, what was last told of another booking."""

    with_key: bool = True
    """Whether Reservoir is given an API key; without one it cannot know times and service names."""
    timezone: str = "Europe/Berlin"
    slot_times: Literal["naive", "instant", "offset"] = "naive"
    """The guide's wall clock, or the placeholder instant as RFC 3339, with `Z` or with the zone's offset."""
    monday: Literal[0, 1] = 0
    """`day_of_week` of a Monday: 0 by the demos and one page, 1 by the table of the same page."""
    errors: Literal["guide", "swagger", "sdk"] = "guide"
    pages: Literal["guide", "swagger", "metadata"] = "guide"
    plan: Literal["starter", "developer", "growth"] = "growth"
    used_this_month: int = 0


@dataclass(frozen=True)
class Plan:
    """Documented limits: requests a second, burst, requests a month (None: custom)."""

    rate: int
    burst: int
    monthly: int | None


PLANS: Final[Mapping[str, Plan]] = {
    "starter": Plan(5, 10, 10_000),
    "developer": Plan(10, 20, 50_000),
    "growth": Plan(20, 50, None),
}

# --- the model -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A weekly time slot; wall-clock times in the service's zone."""

    id: int
    service: int
    weekday: int
    """Monday is 0."""
    start: time
    end: time
    max_bookings: int = 8


SERVICES: Final = {61: "Deep Tissue Massage", 62: "Probestunde für Anfänger"}
HOURS: Final = (
    (time(9, 0), time(10, 0)),
    (time(10, 30), time(12, 0)),
    (time(14, 0), time(15, 0)),
    (time(17, 45), time(19, 15)),
)
SLOTS: Final[Mapping[int, Slot]] = {
    number: Slot(id=number, service=service, weekday=weekday, start=start, end=end)
    for number, (service, weekday, (start, end)) in enumerate(
        ((service, weekday, hours) for service in SERVICES for weekday in range(7) for hours in HOURS), start=902
    )
}
PLACEHOLDER: Final = date(2006, 1, 2)
"""The date part of a slot's times. It lies in winter, which is a trap for whoever takes its offset for the summer."""
MADE: Final = "2026-01-05T08:00:00Z"
"""When the account's services and slots were set up."""

PEOPLE: Final = (
    ("Ida Brandt", "ida@example.org", "+4915112345678"),
    ("Jürgen Müller-Lüdenscheidt", "jml@example.net", ""),
    ("", "anon@example.com", "+493012345"),
    ("María José Ñúñez", "", "+34600100200"),
    ("Bo", "bo@example.org", "+4520123456"),
)
REMEMBERED: Final = 50
"""Of each kind of event, so many bookings may be told again beside news."""
MESSAGES: Final = ("", "two wheelchairs", "Bitte hinten klingeln", "")


@dataclass(kw_only=True)
class Customer:
    id: int
    name: str
    email: str
    phone: str
    created_at: datetime
    updated_at: datetime


@dataclass(kw_only=True)
class Booking:
    """A booking as ReserveKit knows it."""

    id: int
    date: date
    slot: Slot
    customer: Customer
    created_at: datetime
    updated_at: datetime
    touched_at: datetime
    """The last change of the booking or of its customer; the next one is later by a second at least."""
    status: str = "pending"
    message: str = ""
    cancel_reason: str = ""
    version: int = 1
    removed: bool = False


@dataclass
class Problem(Exception):
    """An answer that is an error; the switch `errors` gives it its shape."""

    status: int
    code: str
    message: str
    retry_after: int | None = None


# --- a day's stories -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """How bookings come about, and what happens to them after that; a party shares its bodies."""

    status: str
    then: tuple[str, ...] = ()
    party: int = 1


STORIES: Final = (
    Story("pending", ("confirm",)),
    Story("confirmed", ("move",)),
    Story("pending", ("confirm", "cancel")),
    Story("pending", ("confirm",), party=3),
    Story("confirmed", ("edit_customer", "edit_customer")),
    Story("confirmed", ("remove",)),
    Story("pending"),
    Story("confirmed", ("annotate", "move", "edit_customer")),
    Story("pending", ("cancel",)),
    Story("confirmed", ("edit_customer", "remove"), party=2),
    Story("confirmed"),
)


def _confirm(booking: Booking, day: Random) -> None:
    booking.status = "confirmed"


def _cancel(booking: Booking, day: Random) -> None:
    booking.status, booking.cancel_reason = "cancelled", day.choice(("Customer request", "Krankheit im Team"))


def _move(booking: Booking, day: Random) -> None:
    booking.date += timedelta(days=day.randint(1, 9))
    booking.slot = _slot(day, booking.slot.service, booking.date)


def _annotate(booking: Booking, day: Random) -> None:
    booking.message = "" if booking.message else "arrives by train"


def _remove(booking: Booking, day: Random) -> None:
    booking.removed = True


def _edit_customer(booking: Booking, day: Random) -> None:
    customer = booking.customer
    customer.email = f"{customer.id}.{day.randrange(1000)}@example.org"
    customer.phone = "" if customer.phone else "+4915100000000"


def _slot(day: Random, service: int, on: date) -> Slot:
    return day.choice([slot for slot in SLOTS.values() if (slot.service, slot.weekday) == (service, on.weekday())])


@dataclass(frozen=True)
class Verb:
    change: Callable[[Booking, Random], None]
    event: str = "bookings.update"
    renews: bool = True
    """Whether the booking's `updated_at` moves: not for its customer alone, nor when it is removed."""


VERBS: Final[Mapping[str, Verb]] = {
    "confirm": Verb(_confirm),
    "move": Verb(_move),
    "annotate": Verb(_annotate),
    "cancel": Verb(_cancel, event="cancel"),
    "edit_customer": Verb(_edit_customer, renews=False),
    "remove": Verb(_remove, event="bookings.delete", renews=False),
}

Handler = Callable[[Request], Awaitable[Any]]


class ReserveKit(Venue):
    """An account at ReserveKit with two services whose webhooks all go to one URL."""

    provider: ClassVar[str] = "reservekit"
    events_each: ClassVar[float] = 2.8
    deadline: ClassVar[float] = 5.0
    """"Within 5 seconds" is the documented advice; that it is enforced is not."""

    def set_switches(self, **switches: Any) -> None:
        self.switches = Switches(**switches)
        self.zone = ZoneInfo(self.switches.timezone)
        self.bookings: dict[int, Booking] = {}
        self.failed: list[str] = []
        """What was given up after the last retry."""
        self.api_key = f"sk_rsv_{self.rng.getrandbits(128):032x}"
        self.limit = Limit(PLANS[self.switches.plan], self.switches.used_this_month)
        self._next_id = self.rng.randrange(40_000, 50_000)
        self._last_told: dict[str, list[dict[str, Any]]] = {}
        """Event → the last elements that were told with it, of different bookings, the newest last."""

    def settings(self, api_url: str) -> dict[str, Any]:
        return {
            "provider": self.provider,
            "api_url": f"{api_url}/v1",
            "timezone": self.switches.timezone,
            "calls_per_second": PLANS[self.switches.plan].rate,
        }

    def secrets(self) -> dict[str, str]:
        return {"api_key": self.api_key} if self.switches.with_key else {}

    def panel(self) -> dict[str, Any]:
        return {"bookings": len(self.bookings), "failed": self.failed, "api_calls": self.limit.used}

    # --- the day ---

    async def busy_day(self, bookings: int) -> None:
        day = Random(self.rng.getrandbits(64))
        stories = _stories(day, bookings)
        steps = plan_day(
            day,
            [1 + len(story.then) for story in stories],
            duplicate=self.weather.duplicate,
            reorder=self.weather.reorder,
        )
        parties: dict[int, list[Booking]] = {}
        began = self.clock.scheduled()
        for step in steps:
            await self.clock.until(began + timedelta(seconds=step.after))
            story = stories[step.story]
            at = _whole(self.clock.start + timedelta(seconds=step.after) + self.clock.leapt)
            if step.place == 0:
                parties[step.story] = [self._book(story, day, at) for _ in range(story.party)]
                event = "bookings.create"
            else:
                event = self._live_on(parties[step.story], VERBS[story.then[step.place - 1]], day, at)
            company = self._company(event, parties[step.story], day)
            for post in self._tell(event, parties[step.story], company):
                self.launch(self._deliver(post, late=step.late, twice=step.twice))
        await self.settled()

    def send_test(self) -> None:
        """The test button of the developer portal. What it sends is invented: an event without bookings."""
        body = {"event_type": "bookings.update", "bookings": [], "timestamp": _written(_whole(self.clock.now()))}
        self.launch(self._deliver(_post("test", body)))

    def _book(self, story: Story, day: Random, at: datetime) -> Booking:
        name, email, phone = day.choice(PEOPLE)
        on = at.astimezone(self.zone).date() + timedelta(days=day.randint(1, 28))
        slot = _slot(day, day.choice(list(SERVICES)), on)
        customer = self._customer(at, name=name, email=email, phone=phone)
        return self._keep(on, slot, customer, at, status=story.status, message=day.choice(MESSAGES))

    def _customer(self, at: datetime, *, name: str, email: str, phone: str) -> Customer:
        return Customer(id=self._new_id(), name=name, email=email, phone=phone, created_at=at, updated_at=at)

    def _keep(self, on: date, slot: Slot, customer: Customer, at: datetime, **more: Any) -> Booking:
        booking = Booking(
            id=self._new_id(),
            date=on,
            slot=slot,
            customer=customer,
            created_at=at,
            updated_at=at,
            touched_at=at,
            **more,
        )
        self.bookings[booking.id] = booking
        return booking

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _live_on(self, party: Iterable[Booking], verb: Verb, day: Random, at: datetime) -> str:
        for booking in party:
            verb.change(booking, day)
            _touch(booking, at, renews=verb.renews)
            if verb.change is _edit_customer:
                booking.customer.updated_at = booking.touched_at
        return self.switches.cancel_event if verb.event == "cancel" else verb.event

    def _company(self, event: str, party: Sequence[Booking], day: Random) -> list[dict[str, Any]]:
        """Another booking's last element, to be told once more in a body with news."""
        here = {booking.id for booking in party}
        others = [element for element in self._last_told.get(event, []) if element["id"] not in here]
        return [day.choice(others)] if others and day.random() < self.switches.company else []

    def _remember(self, event: str, news: Sequence[dict[str, Any]]) -> None:
        """What the next bodies may repeat: the last that was told of a booking, and of the latest bookings only."""
        here = {element["id"] for element in news}
        for told, elements in self._last_told.items():
            kept = [element for element in elements if element["id"] not in here]
            self._last_told[told] = kept[-REMEMBERED:]
        self._last_told.setdefault(event, []).extend(news)

    # --- webhooks ---

    def _tell(self, event: str, party: Sequence[Booking], company: Sequence[dict[str, Any]] = ()) -> list[Post]:
        """The webhooks of one event; the ledger knows from now on what the table must show."""
        for booking in party:
            self.ledger.expect_anew(self.endpoint, str(booking.id), **self._row(booking))
        if self.switches.shape == "bare":
            return [_post(f"bare {booking.id}", self._bare(booking), (booking.id,)) for booking in party]
        news = [self._shown(booking) for booking in party]
        self._remember(event, news)
        elements = [*company, *news]
        timestamp = _written(max(booking.touched_at for booking in party))
        ids = tuple(element["id"] for element in elements)
        body = {"event_type": event, "bookings": elements, "timestamp": timestamp}
        return [_post(" ".join((event, *map(str, ids))), body, ids)]

    async def _deliver(self, post: Post, *, late: float = 0.0, twice: bool = False) -> None:
        await self.clock.sleep(late)
        if twice:
            self.launch(self._try(post))
        await self._try(post)

    async def _try(self, post: Post) -> None:
        """The first attempt and its retries; any 2xx ends them."""
        for retry in range(self.switches.retries + 1):
            if retry:
                gap = self.switches.backoff[min(retry, len(self.switches.backoff)) - 1]
                await self.clock.sleep(gap, at_least=self.switches.least_gap)
            attempt = replace(post, about=f"{post.about} (retry {retry})") if retry else post
            if (await self.post(attempt)).acked:
                post.taken = True
                return
        self.failed.append(post.about)
        self.give_up(post)

    # --- the truth, in the columns of `bookings` ---

    def _row(self, booking: Booking) -> dict[str, Any]:
        customer, bare = booking.customer, self.switches.shape == "bare"
        # The older body does not carry status, message and reason; it embeds the slot instead.
        status = "cancelled" if booking.removed else booking.status
        timed = self.switches.with_key or bare
        return {
            "status": "unknown" if bare else status,
            "provider_status": None if bare else booking.status,
            "date": booking.date,
            "starts_at": datetime.combine(booking.date, booking.slot.start, self.zone) if timed else None,
            "ends_at": datetime.combine(booking.date, booking.slot.end, self.zone) if timed else None,
            "timezone": self.switches.timezone,
            "resource_id": str(booking.slot.service),
            "resource_name": SERVICES[booking.slot.service] if self.switches.with_key else None,
            "customer_id": str(customer.id),
            "customer_name": customer.name or None,
            "customer_email": customer.email or None,
            "customer_phone": customer.phone or None,
            "note": None if bare else booking.message or None,
            "cancel_reason": None if bare else booking.cancel_reason or None,
            "provider_created_at": booking.created_at,
            "provider_updated_at": booking.updated_at,
        }

    # --- how things are written ---

    def _shown(self, booking: Booking) -> dict[str, Any]:
        """A booking as the guide has it; `cancel_reason` is there only when it is cancelled."""
        reason = {"cancel_reason": booking.cancel_reason} if booking.status == "cancelled" else {}
        return {
            "id": booking.id,
            "service_id": booking.slot.service,
            "date": self._date(booking.date),
            "time_slot_id": booking.slot.id,
            "status": booking.status,
            "message": booking.message,
            **reason,
            "created_at": _written(booking.created_at),
            "updated_at": _written(booking.updated_at),
            "customer": _customer_shown(booking.customer),
        }

    def _bare(self, booking: Booking) -> dict[str, Any]:
        """The older webhook body, with the fields of Swagger's Booking."""
        return {
            "id": booking.id,
            "service_id": booking.slot.service,
            "customer_id": booking.customer.id,
            "date": self._date(booking.date),
            "time_slot_id": booking.slot.id,
            "version": booking.version,
            "time_slot": self._slot_shown(booking.slot),
            "customer": _customer_shown(booking.customer),
            "created_at": _written(booking.created_at),
            "updated_at": _written(booking.updated_at),
        }

    def _date(self, on: date) -> str:
        return on.isoformat() if self.switches.dates == "day" else f"{on.isoformat()}T00:00:00Z"

    def _slot_shown(self, slot: Slot) -> dict[str, Any]:
        return {
            "id": slot.id,
            "service_id": slot.service,
            "day_of_week": (slot.weekday + self.switches.monday) % 7,
            "start_time": self._slot_time(slot.start),
            "end_time": self._slot_time(slot.end),
            "max_bookings": slot.max_bookings,
            "created_at": MADE,
            "updated_at": MADE,
        }

    def _slot_time(self, at: time) -> str:
        moment = datetime.combine(PLACEHOLDER, at, self.zone)
        forms = {"naive": moment.strftime("%Y-%m-%d %H:%M:%S"), "instant": _written(moment)}
        return forms.get(self.switches.slot_times) or moment.isoformat()

    def _service_shown(self, service: int) -> dict[str, Any]:
        return {
            "id": service,
            "name": SERVICES[service],
            "description": "",
            "timezone": self.switches.timezone,
            "created_at": MADE,
            "updated_at": MADE,
        }

    # --- the API ---

    def routes(self) -> Sequence[BaseRoute]:
        booking = "/bookings/{booking:int}"
        table: tuple[tuple[str, str, Handler, int], ...] = (
            ("GET", "/bookings", self._list_bookings, 200),
            ("POST", "/bookings", self._create_booking, 201),
            ("GET", booking, self._get_booking, 200),
            ("PATCH", booking, self._patch_booking, 200),
            ("DELETE", booking, self._delete_booking, 200),
            ("GET", booking + "/customer", self._get_customer, 200),
            ("PATCH", booking + "/customer", self._patch_customer, 200),
            ("GET", "/services", self._list_services, 200),
            ("GET", "/services/{service:int}", self._get_service, 200),
            ("GET", "/services/{service:int}/time-slots", self._slots_of_service, 200),
            ("GET", "/time-slots", self._list_slots, 200),
            ("GET", "/{rest:path}", self._no_such_resource, 404),
        )
        return [
            Route("/v1" + path, self._guarded(handler, status), methods=[method])
            for method, path, handler, status in table
        ]

    def _guarded(self, handler: Handler, status: int) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            try:
                self.limit.take()
                self._authenticate(request)
                response = JSONResponse(await handler(request), status)
            except Problem as problem:
                response = JSONResponse(ERRORS[self.switches.errors](problem), problem.status)
                if problem.retry_after is not None:
                    response.headers["Retry-After"] = str(problem.retry_after)
            response.headers.update(self.limit.headers())
            return response

        return guarded

    def _authenticate(self, request: Request) -> None:
        header = request.headers.get("authorization")
        if not header:
            raise Problem(401, "authentication_required", "Authentication is required")
        kind, _, key = header.partition(" ")
        if kind != "Bearer" or not key:
            raise Problem(401, "authorization_header_malformed", "Use: Authorization: Bearer <key>")
        if key != self.api_key:
            raise Problem(401, "invalid_api_key", "The API key is not valid")

    async def _no_such_resource(self, request: Request) -> Any:
        raise Problem(404, "resource_not_found", "There is no such resource")

    # --- the API: services and slots ---

    async def _list_services(self, request: Request) -> Any:
        paged = "page" in request.query_params
        page, size = _required(request, "page", "page_size") if paged else (1, 10)
        return self._page("services", [self._service_shown(service) for service in SERVICES], page, size)

    async def _get_service(self, request: Request) -> Any:
        return {"data": self._service_shown(_known_service(request.path_params["service"]))}

    async def _slots_of_service(self, request: Request) -> Any:
        return {"data": self._slots(_known_service(request.path_params["service"]))}

    async def _list_slots(self, request: Request) -> Any:
        service, page, size = _required(request, "service_id", "page", "page_size")
        slots = self._slots(_known_service(service))
        if request.query_params.get("no_pagination") == "true":
            return {"data": {"time_slots": slots}}
        return self._page("time_slots", slots, page, size)

    def _slots(self, service: int) -> list[dict[str, Any]]:
        return [self._slot_shown(slot) for slot in SLOTS.values() if slot.service == service]

    def _page(self, name: str, rows: Sequence[Any], page: int, size: int) -> dict[str, Any]:
        shown = list(rows[(page - 1) * size : page * size])
        return PAGES[self.switches.pages](name, shown, Numbers(page, size, max(1, ceil(len(rows) / size)), len(rows)))

    # --- the API: bookings ---

    async def _list_bookings(self, request: Request) -> Any:
        service, page, size = _required(request, "service_id", "page", "page_size")
        there = [booking for booking in self.bookings.values() if not booking.removed]
        rows = [self._shown(booking) for booking in there if booking.slot.service == _known_service(service)]
        return self._page("bookings", rows, page, size)

    async def _get_booking(self, request: Request) -> Any:
        return {"data": self._shown(self._asked(request))}

    async def _get_customer(self, request: Request) -> Any:
        return {"data": _customer_shown(self._asked(request).customer)}

    async def _create_booking(self, request: Request) -> Any:
        (service,) = _required(request, "service_id")
        wanted, at = await _object(request), _whole(self.clock.now())
        slot, on = SLOTS.get(_whole_number(wanted, "time_slot_id")), _day(wanted.get("date"))
        if slot is None or slot.service != _known_service(service):
            raise Problem(404, "time_slot_not_found", "There is no such time slot")
        self._check_room(slot, on, wanted.get("customer_email"))
        texts = {key: str(wanted.get(f"customer_{key}", "")) for key in ("name", "email", "phone")}
        customer = self._customer(at, **texts)
        booking = self._keep(on, slot, customer, at, message=str(wanted.get("message", "")))
        self._send_all("bookings.create", booking)
        return {"data": self._shown(booking)}

    def _check_room(self, slot: Slot, on: date, email: Any) -> None:
        taken = [
            booking
            for booking in self.bookings.values()
            if (booking.slot, booking.date) == (slot, on) and booking.status != "cancelled" and not booking.removed
        ]
        if len(taken) >= slot.max_bookings:
            raise Problem(400, "time_slot_full", "time slot is full")
        if email and email in {booking.customer.email for booking in taken}:
            raise Problem(400, "duplicate_booking", "duplicate booking")

    async def _patch_booking(self, request: Request) -> Any:
        booking, wanted = self._asked(request), await _object(request)
        status = str(wanted.get("status", booking.status))
        self._check_transition(booking, status, wanted)
        booking.date = _day(wanted["date"]) if "date" in wanted else booking.date
        booking.message = str(wanted.get("message", booking.message))
        cancelled_now = status == "cancelled" != booking.status
        booking.status, booking.cancel_reason = status, str(wanted.get("cancel_reason", booking.cancel_reason))
        _touch(booking, _whole(self.clock.now()))
        self._send_all(self.switches.cancel_event if cancelled_now else "bookings.update", booking)
        return {"data": self._shown(booking)}

    def _check_transition(self, booking: Booking, status: str, wanted: Mapping[str, Any]) -> None:
        if status not in TRANSITIONS:
            raise Problem(400, "validation_failed", "status must be pending, confirmed or cancelled")
        if status != booking.status and status not in TRANSITIONS[booking.status]:
            raise Problem(422, "invalid_status_transition", f"cannot go from {booking.status} to {status}")
        if status == "cancelled" and not (wanted.get("cancel_reason") or booking.cancel_reason):
            raise Problem(400, "missing_required_field", "cancel_reason is required")

    async def _patch_customer(self, request: Request) -> Any:
        """Changes the customer alone: the booking's `updated_at` stays (as in the guide's examples)."""
        booking, wanted = self._asked(request), await _object(request)
        for key in ("name", "email", "phone"):
            setattr(booking.customer, key, str(wanted.get(key, getattr(booking.customer, key))))
        _touch(booking, _whole(self.clock.now()), renews=False)
        booking.customer.updated_at = booking.touched_at
        self._send_all("bookings.update", booking)
        return {"data": _customer_shown(booking.customer)}

    async def _delete_booking(self, request: Request) -> Any:
        booking = self._asked(request)
        booking.removed = True
        _touch(booking, _whole(self.clock.now()), renews=False)
        self._send_all("bookings.delete", booking)
        return {"data": "ok"}

    def _send_all(self, event: str, booking: Booking) -> None:
        for post in self._tell(event, [booking]):
            self.launch(self._deliver(post))

    def _asked(self, request: Request) -> Booking:
        booking = self.bookings.get(request.path_params["booking"])
        if booking is None or booking.removed:
            raise Problem(404, "booking_not_found", "booking not found")
        return booking


class Limit:
    """A token bucket on the wall clock, as large as the plan's burst, and the month's quota."""

    def __init__(self, plan: Plan, used: int) -> None:
        self.plan = plan
        self.used = used
        self._tokens = float(plan.burst)
        self._seen = wall.monotonic()

    def take(self) -> None:
        """Counts a call. Raises Problem where there is no room for it."""
        now = wall.monotonic()
        self._tokens = min(self.plan.burst, self._tokens + (now - self._seen) * self.plan.rate)
        self._seen = now
        if self.plan.monthly is not None and self.used >= self.plan.monthly:
            raise Problem(429, "api_limit_exceeded", "Monthly API limit exceeded", retry_after=3600)
        if self._tokens < 1:
            raise Problem(429, "rate_limit_exceeded", "Rate limit exceeded. Try again in 1 seconds.", retry_after=1)
        self._tokens -= 1
        self.used += 1

    def headers(self) -> dict[str, str]:
        """The three headers of every answer; `Retry-After` comes with a 429 only."""
        full_at = wall.time() + (self.plan.burst - self._tokens) / self.plan.rate
        return {
            "X-RateLimit-Limit": str(self.plan.burst),
            "X-RateLimit-Remaining": str(int(self._tokens)),
            "X-RateLimit-Reset": str(ceil(full_at)),
        }


TRANSITIONS: Final[Mapping[str, frozenset[str]]] = {
    "pending": frozenset({"confirmed", "cancelled"}),
    "confirmed": frozenset({"cancelled"}),
    "cancelled": frozenset(),
}
"""That there are forbidden ones is documented; which ones is invented."""


def _guide_error(problem: Problem) -> dict[str, Any]:
    after = {} if problem.retry_after is None else {"retry_after": problem.retry_after}
    return {"error": {"code": problem.code, "message": problem.message, **after}}


ERRORS: Final[Mapping[str, Callable[[Problem], dict[str, Any]]]] = {
    "guide": _guide_error,
    "swagger": lambda problem: {"data": None, "error": problem.message},
    "sdk": lambda problem: {"status": problem.status, "message": problem.message, "code": problem.code},
}


@dataclass(frozen=True)
class Numbers:
    """Where a page stands among the others."""

    page: int
    size: int
    pages: int
    total: int


def _guide_page(name: str, rows: list[Any], at: Numbers) -> dict[str, Any]:
    numbers = {"current_page": at.page, "total_pages": at.pages, "total_count": at.total, "page_size": at.size}
    return {"data": {name: rows, "pagination": numbers}}


def _swagger_page(name: str, rows: list[Any], at: Numbers) -> dict[str, Any]:
    numbers = {"page": at.page, "total_pages": at.pages, "total_items": at.total, "page_size": at.size}
    return {"data": {name: rows, "pagination": numbers}}


def _metadata_page(name: str, rows: list[Any], at: Numbers) -> dict[str, Any]:
    """`x-envelope-pagination` of the Swagger file."""
    numbers = {"currentPage": at.page, "firstPage": 1, "lastPage": at.pages, "pageSize": at.size}
    return {"data": rows, "error": None, "metadata": {**numbers, "totalRecords": at.total}}


PAGES: Final[Mapping[str, Callable[[str, list[Any], Numbers], dict[str, Any]]]] = {
    "guide": _guide_page,
    "swagger": _swagger_page,
    "metadata": _metadata_page,
}


def _stories(day: Random, bookings: int) -> list[Story]:
    """Every kind of story in turn until there are that many bookings, then shuffled."""
    stories: list[Story] = []
    made = 0
    while made < bookings:
        stories.append(STORIES[len(stories) % len(STORIES)])
        made += stories[-1].party
    day.shuffle(stories)
    return stories


def _touch(booking: Booking, at: datetime, *, renews: bool = True) -> None:
    booking.touched_at = max(at, booking.touched_at + timedelta(seconds=1))
    booking.version += 1
    if renews:
        booking.updated_at = booking.touched_at


def _customer_shown(customer: Customer) -> dict[str, Any]:
    return {
        "id": customer.id,
        "name": customer.name,
        "email": customer.email,
        "phone": customer.phone,
        "created_at": _written(customer.created_at),
        "updated_at": _written(customer.updated_at),
    }


def _post(about: str, body: Mapping[str, Any], bookings: Sequence[int] = ()) -> Post:
    return Post(
        about,
        headers={"Content-Type": "application/json", "User-Agent": "ReserveKit-Webhooks/1.0"},
        body=json.dumps(body, ensure_ascii=False).encode(),
        bookings=tuple(map(str, bookings)),
        events=len(bookings),
    )


def _whole(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(microsecond=0)


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _known_service(service: int) -> int:
    if service not in SERVICES:
        raise Problem(404, "service_not_found", "There is no such service")
    return service


def _required(request: Request, *names: str) -> list[int]:
    """Query parameters that must be there as whole numbers above 0."""
    found = []
    for name in names:
        value = request.query_params.get(name)
        if value is None:
            raise Problem(400, "missing_required_field", f"{name} is required")
        if not value.isdecimal() or int(value) < 1:
            raise Problem(400, "invalid_field_format", f"{name} must be a positive integer")
        found.append(int(value))
    return found


async def _object(request: Request) -> dict[str, Any]:
    try:
        wanted = json.loads(await request.body())
    except ValueError:
        raise Problem(400, "invalid_request", "The body is not JSON") from None
    if not isinstance(wanted, dict):
        raise Problem(400, "invalid_request", "The body is not an object")
    return wanted


def _whole_number(wanted: Mapping[str, Any], name: str) -> int:
    if name not in wanted:
        raise Problem(400, "missing_required_field", f"{name} is required")
    if not isinstance(wanted[name], int):
        raise Problem(400, "invalid_field_format", f"{name} must be an integer")
    return int(wanted[name])


def _day(value: Any) -> date:
    if value is None:
        raise Problem(400, "missing_required_field", "date is required")
    try:
        return date.fromisoformat(str(value)[:10])
    except ValueError:
        raise Problem(400, "invalid_field_format", "date must be YYYY-MM-DD") from None


VENUE = ReserveKit
