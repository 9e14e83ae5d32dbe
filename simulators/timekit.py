"""Timekit, played: bookings that walk through graphs, and a hook for each graph and state that one asks for.

Sources: developers.timekit.io ("Notifications & webhooks", "Signed webhooks", the graph pages, "List all bookings",
"Pagination", "Reschedule a booking"), help.timekit.io ("What is a webhook?", "Timekit's rate limiter"), the list of
graphs in PipedreamHQ/pipedream, recorded answers in timekit-io/booking-js. What they leave open is a switch, and its
default is invented. Not played: OutputTimestampFormat, calendars of other providers.

The order of a booking's requests survives any overtaking, since each body carries `updated_at` and the state.
Does not know how the receiver reads any of it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time, timedelta
from fnmatch import fnmatchcase
from functools import partial, wraps
from random import Random
from typing import Any, ClassVar, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from simulators.venue import Post, Venue

# --- graphs: state → action → next state; the first action is always `create` -----------------------------------

FIRST: Final[Mapping[str, str]] = {
    "instant": "confirmed",
    "instant_payment": "tentative",
    "confirm_decline": "tentative",
    "group_owner": "tentative",
    "group_customer": "confirmed",
    "group_customer_payment": "tentative",
    "reservation": "reserved",
}
_CANCELLED_BY: Final = {"cancel_by_owner": "cancelled_by_owner", "cancel_by_customer": "cancelled_by_customer"}
_ENDINGS: Final = {
    "complete": "completed",
    "cancel": "cancelled",
    "cancel_by_customer": "cancelled_by_customer",
    "reschedule_by_customer": "rescheduled_by_customer",
}
GRAPHS: Final[Mapping[str, Mapping[str, Mapping[str, str]]]] = {
    "instant": {"confirmed": _ENDINGS},
    "instant_payment": {
        "tentative": {"pay": "paid", "timeout": "unpaid", "cancel": "cancelled"},
        "paid": _ENDINGS,
    },
    "confirm_decline": {
        "tentative": {"confirm": "confirmed", "decline": "declined", "cancel_by_customer": "cancelled_by_customer"},
        "confirmed": _ENDINGS,
    },
    "group_owner": {"tentative": {"complete": "completed", "cancel": "cancelled"}},
    "group_customer": {"confirmed": {"complete": "completed", **_CANCELLED_BY}},
    "group_customer_payment": {
        "tentative": {"pay": "paid", "timeout": "unpaid", **_CANCELLED_BY},
        "paid": {"complete": "completed", **_CANCELLED_BY},
    },
    "reservation": {"reserved": {"timeout": "expired"}},
}
TRUTH: Final[Mapping[str, tuple[str, str | None]]] = {
    # What a state means to an operator, and why the booking ended.
    "reserved": ("hold", None),
    "tentative": ("pending", None),
    "confirmed": ("confirmed", None),
    "paid": ("confirmed", None),
    "completed": ("completed", None),
    "cancelled": ("cancelled", None),
    "cancelled_by_customer": ("cancelled", "by-customer"),
    "cancelled_by_owner": ("cancelled", "by-owner"),
    "declined": ("cancelled", "declined"),
    "unpaid": ("cancelled", "unpaid"),
    "expired": ("cancelled", "expired"),
    "rescheduled_by_customer": ("cancelled", "rescheduled"),
}
IN_CALENDAR: Final = frozenset({"confirmed", "paid", "reserved"})
"""From these states on there is an event, and with it a calendar; a tentative booking has neither."""
OWNERS_PART: Final[Mapping[str, str]] = {"cancel_by_owner": "cancel", "complete": "complete"}
"""What happens to a group's owner when its customers' bookings end like this."""
RESCHEDULED: Final[Mapping[str, tuple[str, ...]]] = {
    # The state of the old booking. Older pages: the old one is cancelled and a new one made; newer: it is updated.
    "older": ("cancelled",),
    "newer": ("rescheduled_by_customer",),
    "mixed": ("cancelled", "rescheduled_by_customer"),
}

STORIES: Final[Sequence[tuple[str, tuple[str, ...]]]] = (
    # What follows `create`; an action with an exclamation mark falls into the same second as the one before.
    ("instant", ()),
    ("instant", ("complete",)),
    ("instant", ("cancel_by_customer",)),
    ("instant", ("cancel!",)),
    ("instant", ("reschedule_by_customer",)),
    ("instant", ("reschedule_by_customer", "cancel")),
    ("confirm_decline", ("confirm",)),
    ("confirm_decline", ("confirm!",)),
    ("confirm_decline", ("decline",)),
    ("confirm_decline", ("confirm", "cancel_by_customer")),
    ("confirm_decline", ("confirm", "complete")),
    ("instant_payment", ("pay",)),
    ("instant_payment", ("timeout",)),
    ("instant_payment", ("pay!", "complete")),
    ("instant_payment", ("pay", "cancel")),
    ("group_customer", ()),
    ("group_customer", ("cancel_by_customer",)),
    ("group_customer", ("cancel_by_owner",)),
    ("group_customer_payment", ("pay",)),
    ("group_customer_payment", ("timeout",)),
    ("group_customer_payment", ("pay", "cancel_by_owner")),
    ("reservation", ()),
    ("reservation", ("timeout",)),
)

# --- numbers: documented, or invented where it says so ------------------------------------------------------------

SUCCESS: Final = frozenset({200, 201, 204})
TIMEOUTS: Final[Mapping[str, float]] = {"instant_payment": 300, "group_customer_payment": 300, "reservation": 900}
"""Simulated seconds to pay (five minutes: documented) or until a reservation lapses (invented)."""
AFTER_THE_END: Final = timedelta(minutes=15)
"""When a booking completes by itself (invented)."""
OPENING: Final = timedelta(hours=3)
"""Simulated; bookings are made within this time from the beginning of a busy day."""
PAUSE: Final = (60.0, 1500.0)
"""Simulated seconds between two actions."""
HELD_BACK: Final = (120.0, 1800.0)
"""Simulated seconds by which a late request is late."""
LEAST: Final = 1 / 8
"""The chance that a request is late, or sent twice, in a busy day without any weather."""
PLAN_LIMITS: Final[Mapping[bool, tuple[timedelta, int, int]]] = {
    False: (timedelta(minutes=1), 600, 503),
    True: (timedelta(days=1), 3000, 429),
}
"""By account (is it one for tests?): within this time, so many calls, then this status."""

RESOURCES: Final = (("Room One", "google"), ("Room 2", "google"), ("Værelse 3", "microsoft"))
GUESTS: Final = (
    ("Nora Quist", "nora@example.org", "+47 900 10 200", "Europe/Oslo"),
    ("Pilar Sáez", "pilar@example.org", "", "Europe/Madrid"),
    ("Ben Adler", "ben@example.com", "+1 212 555 0142", "America/New_York"),
    ("王 芳", "fang@example.net", "+86 10 5555 0100", "Asia/Shanghai"),
)
PROJECT: Final = {"id": "5e2f0c11-8a4e-4c5e-9d3f-0a1b2c3d4e5f", "name": "Demos", "slug": "demos"}
TOP: Final = ("id", "state", "graph", "completed", "created_at", "updated_at")
"""All that a row of the list holds without `include`."""

NEVER: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""When a booking was made that is only planned."""

Stamp = Callable[[datetime], str]


@dataclass(frozen=True, kw_only=True)
class Hook:
    """A webhook as it is set up: one graph, one state, one method."""

    graph: str
    state: str
    method: str = "POST"


@dataclass(frozen=True, kw_only=True)
class Guest:
    """Somebody who books."""

    id: str
    name: str
    email: str
    phone: str
    timezone: str


@dataclass(kw_only=True)
class Booking:
    """One booking at Timekit, and the chance that decides about it."""

    chance: Random
    id: str
    graph: str
    starts: datetime
    ends: datetime
    resource: tuple[str, str]
    """Name and calendar provider; the ids are made from the name."""
    guests: tuple[Guest, ...]
    party: str | None
    comment: str = ""
    owner: Booking | None = None
    state: str = ""
    created: datetime = NEVER
    updated: datetime = NEVER
    in_calendar: bool = False
    place_told: bool = False
    """Some hook has carried the calendar and the venue's own fields."""

    @property
    def actions(self) -> Mapping[str, str]:
        return GRAPHS[self.graph].get(self.state, {})


class Timekit(Venue):
    """One app with its hooks, all on one URL.

    With `signing` set to `wrong`, `missing` or `reserialised` nothing may be applied, so the ledger expects nothing.
    Bookings of the graph group_owner are open slots: expected only with `group_owners`.
    """

    provider: ClassVar[str] = "timekit"
    events_each: ClassVar[float] = 3.5

    def set_switches(
        self,
        *,
        timezone: str = "Europe/Oslo",
        signing: str = "right",
        hooks: Sequence[Hook] | None = None,
        methods: Sequence[str] = ("POST",),
        doubled: Sequence[tuple[str, str]] = (("instant", "confirmed"), ("confirm_decline", "confirmed")),
        stamps: str = "mixed",
        reschedule: str = "mixed",
        party_size: str | None = "party",
        group_owners: bool = False,
        retry_spacing: Sequence[float] = (60, 300, 1800),
        least_gap: float = 1.0,
        page_size: int = 50,
        test_account: bool = False,
        calls: int | None = None,
        retry_after: int | None = None,
    ) -> None:
        """What is unknown about them, or set up by the customer.

        signing: `off`, `right`, `wrong`, `missing`, or `reserialised`: made over JSON that was written again.
        hooks: those that exist; by default one for every graph and state, with `methods` in turn.
        doubled: (graph, state) with a second hook on the same URL.
        stamps: `utc` (+0000), `local` (+0100), `colon` (+01:00), or `mixed`.
        reschedule: one of RESCHEDULED.
        party_size: the key in `meta` that the venue keeps its head count under.
        retry_spacing, least_gap: simulated seconds before the three retries, and the wall seconds they are at least.
        page_size: 50 on one page, 1000 on the other.
        calls: in place of the documented number of API calls; retry_after: the header beside a refusal, if any.
        """
        self.zone, self.signing = ZoneInfo(timezone), signing
        self.hooks = [*(hooks if hooks is not None else _hooks(methods))]
        self.hooks += [hook for hook in self.hooks if (hook.graph, hook.state) in set(doubled)]
        self.stamps = tuple(STAMPS.values()) if stamps == "mixed" else (STAMPS[stamps],)
        self.ways_of_rescheduling = RESCHEDULED[reschedule]
        self.party_size, self.group_owners = party_size, group_owners
        self.retry_spacing, self.least_gap = tuple(retry_spacing), least_gap
        self.page_size, self.test_account, self.retry_after = page_size, test_account, retry_after
        self.calls = calls
        kind = "test" if test_account else "live"
        self.api_key = f"{kind}_api_key_{self.rng.getrandbits(128):032x}"
        self.webhook_secret = f"{self.rng.getrandbits(160):040x}"
        self.bookings: dict[str, Booking] = {}
        self.failed: list[str] = []
        """What was given up after the last retry; there is no replay."""
        self._called: deque[datetime] = deque()

    def settings(self, api_url: str) -> dict[str, Any]:
        table = {"provider": self.provider, "timezone": self.zone.key, "api_url": f"{api_url}/v2"}
        options = {"party_size": self.party_size, "group_owners": self.group_owners}
        return table | {name: value for name, value in options.items() if value}

    def secrets(self) -> dict[str, str]:
        return {} if self.signing == "off" else {"webhook_secret": self.webhook_secret}

    def panel(self) -> dict[str, Any]:
        return {"bookings": len(self.bookings), "failed for good": len(self.failed)}

    # --- a day ---

    async def busy_day(self, bookings: int) -> None:
        stories = list(STORIES) * (bookings // len(STORIES) + 1)
        self.rng.shuffle(stories)
        lives = []
        for graph, actions in stories[:bookings]:
            chance = Random(self.rng.getrandbits(64))
            at = chance.uniform(0, OPENING.total_seconds())
            lives.append((at, partial(self._live, chance, at, graph, actions)))
        await self.unfold(lives)

    async def _live(self, chance: Random, at: float, graph: str, actions: Sequence[str]) -> None:
        booking = self._planned(chance, graph, self._slot(chance, at, soon="complete" in actions))
        if booking.owner:
            self._enter(booking.owner)
        self._enter(booking)
        for action in actions:
            hurried = action.endswith("!")
            if not hurried:
                await self._wait_for(action, booking)
            booking = self._act(booking, action.rstrip("!"), same_second=hurried)

    def _slot(self, chance: Random, at: float, *, soon: bool) -> tuple[datetime, datetime]:
        """Within the hour, so that it completes today, or in the coming month; to the minute."""
        length = timedelta(minutes=chance.choice((30, 45, 60)))
        day = self.clock.start.astimezone(self.zone).date() + timedelta(days=chance.randint(1, 30))
        later = datetime.combine(day, time(chance.randint(9, 18), chance.choice((0, 30))), self.zone)
        now = self.clock.start.replace(second=0, microsecond=0) + timedelta(minutes=10 + at // 60)
        starts = (now if soon else later).astimezone(UTC)
        return starts, starts + length

    def _planned(self, chance: Random, graph: str, slot: tuple[datetime, datetime]) -> Booking:
        nobody = graph in ("reservation", "group_owner")
        guests = () if nobody else tuple(_guest(*who) for who in chance.sample(GUESTS, chance.choice((1, 1, 1, 2))))
        booking = Booking(
            chance=chance,
            id=_uuid(chance),
            graph=graph,
            starts=slot[0],
            ends=slot[1],
            resource=chance.choice(RESOURCES),
            guests=guests,
            party=None if nobody else chance.choice((None, "2", "4", "7")),
            comment=chance.choice(("", "", "We come by bike / train")),
        )
        if graph.startswith("group_customer"):
            booking.owner = self._planned(chance, "group_owner", slot)
            booking.owner.resource = booking.resource
        return booking

    async def _wait_for(self, action: str, booking: Booking) -> None:
        if action == "complete":
            await self.clock.until(booking.ends + AFTER_THE_END)
        elif action == "timeout":
            await self.clock.sleep(TIMEOUTS[booking.graph])
        else:
            await self.clock.sleep(booking.chance.uniform(*PAUSE))

    # --- what happens to a booking ---

    def _enter(self, booking: Booking) -> None:
        booking.created = self.clock.now().astimezone(UTC).replace(microsecond=0)
        booking.updated = booking.created - timedelta(seconds=1)
        self.bookings[booking.id] = booking
        self._turn(booking, FIRST[booking.graph])

    def _act(self, booking: Booking, action: str, *, same_second: bool = False) -> Booking:
        """Takes an action that the graph allows; returns the booking that goes on, after a reschedule the new one."""
        if action == "reschedule_by_customer":
            return self._reschedule(booking, *self._slot(booking.chance, 0, soon=False))
        owner, owners_part = booking.owner, OWNERS_PART.get(action)
        if owner and owners_part and owners_part in owner.actions:
            self._act(owner, owners_part)
        self._turn(booking, booking.actions[action], same_second=same_second)
        return booking

    def _reschedule(self, booking: Booking, starts: datetime, ends: datetime) -> Booking:
        """The id changes, both ways."""
        twin = replace(booking, id=_uuid(booking.chance), starts=starts, ends=ends, place_told=False)
        self._turn(booking, booking.chance.choice(self.ways_of_rescheduling))
        self._enter(twin)
        return twin

    def _turn(self, booking: Booking, state: str, *, same_second: bool = False) -> None:
        """`updated_at` has whole seconds; it grows from state to state unless both fall into the same second."""
        now = self.clock.now().astimezone(UTC).replace(microsecond=0)
        if not same_second:
            booking.updated = max(now, booking.updated + timedelta(seconds=1))
        booking.state = state
        booking.in_calendar |= state in IN_CALENDAR or booking.graph == "group_owner"
        hooks = [hook for hook in self.hooks if (hook.graph, hook.state) == (booking.graph, booking.state)]
        if hooks:
            self._expect(booking)
        for hook in hooks:
            self._send(hook, booking)

    def _expect(self, booking: Booking) -> None:
        if self.signing not in ("off", "right") or (booking.graph == "group_owner" and not self.group_owners):
            return
        booking.place_told |= booking.in_calendar
        status, cancel_reason = TRUTH[booking.state]
        guest = booking.guests[0] if booking.guests else None
        truth: dict[str, Any] = {
            "status": status,
            "provider_status": booking.state,
            "cancel_reason": cancel_reason,
            "starts_at": booking.starts,
            "ends_at": booking.ends,
            "date": booking.starts.astimezone(self.zone).date(),
            "timezone": self.zone.key,
            "resource_id": _id_of("calendar", booking.resource[0]) if booking.place_told else None,
            "resource_name": booking.resource[0] if booking.place_told else None,
            "customer_id": guest.id if guest else None,
            "customer_name": guest.name if guest else None,
            "customer_email": guest.email if guest else None,
            "customer_phone": guest.phone or None if guest else None,
        }
        if self.party_size:
            truth["party_size"] = int(booking.party) if booking.party and booking.place_told else None
        self.ledger.expect_anew(self.endpoint, booking.id, **truth)

    # --- the sender ---

    def _send(self, hook: Hook, booking: Booking) -> None:
        """The body is that of this moment, whenever it goes out."""
        chance, post = booking.chance, self.request(hook, booking)
        late = chance.random() < max(self.weather.reorder, LEAST)
        self.launch(self.deliver(post, chance.uniform(*HELD_BACK) if late else 0))
        if chance.random() < max(self.weather.duplicate, LEAST):
            self.launch(self.deliver(post, chance.uniform(*HELD_BACK)))

    def request(self, hook: Hook, booking: Booking) -> Post:
        """The request of one hook about a booking as it is now."""
        stamp = booking.chance.choice(self.stamps)
        body = php_json(self._document(booking, lambda moment: stamp(moment, self.zone)))
        headers = {"content-type": "application/json", "user-agent": "Timekit"} | self._signature(body)
        about = f"{hook.graph} {hook.state} {booking.id[:8]}"
        return Post(about, method=hook.method, headers=headers, body=body, bookings=(booking.id,))

    def _signature(self, body: bytes) -> dict[str, str]:
        written_again = json.dumps(json.loads(body), separators=(",", ":")).encode()
        signed = {"right": body, "wrong": body + b" ", "reserialised": written_again}.get(self.signing)
        if signed is None:
            return {}
        return {"x-timekit-signature": hmac.new(self.webhook_secret.encode(), signed, hashlib.sha256).hexdigest()}

    async def deliver(self, post: Post, held_back: float = 0) -> bool:
        """One request and up to three retries; whether one of them succeeded."""
        await self.clock.sleep(held_back)
        for gap in (0.0, *self.retry_spacing):
            if gap:
                await self.clock.sleep(gap, at_least=self.least_gap)
            if (await self.post(post)).status in SUCCESS:
                return True
        self.failed.append(post.about)
        self.give_up(post)
        return False

    # --- a booking as JSON ---

    def _document(self, booking: Booking, stamp: Stamp) -> dict[str, Any]:
        document: dict[str, Any] = {
            "id": booking.id,
            "state": booking.state,
            "graph": booking.graph,
            "completed": not booking.actions,
            "created_at": stamp(booking.created),
            "updated_at": stamp(booking.updated),
            "customers": [self._customer(guest) for guest in booking.guests],
            "attributes": self._attributes(booking, stamp),
        }
        return document | (self._relations(booking, stamp) if booking.in_calendar else {})

    def _customer(self, guest: Guest) -> dict[str, Any]:
        """`meta` is a JSON text in here."""
        return {
            "id": guest.id,
            "name": guest.name,
            "email": guest.email,
            "phone": guest.phone,
            "timezone": guest.timezone,
            "meta": "{}",
        }

    def _attributes(self, booking: Booking, stamp: Stamp) -> dict[str, Any]:
        attributes: dict[str, Any] = {"event_info": {"start": stamp(booking.starts), "end": stamp(booking.ends)}}
        if booking.graph == "group_owner":
            attributes["group_booking"] = {"max_seats": 8, "current_seats": 1}
        if booking.in_calendar and booking.guests:
            guest = booking.guests[0]
            zone = ZoneInfo(guest.timezone)
            local = [moment.astimezone(zone).isoformat() for moment in (booking.starts, booking.ends)]
            attributes["event"] = {"start": local[0], "end": local[1]}
            attributes["customer"] = {
                "name": guest.name,
                "email": guest.email,
                "comment": booking.comment,
                "timezone": guest.timezone,
            }
        return attributes

    def _relations(self, booking: Booking, stamp: Stamp) -> dict[str, Any]:
        name, calendar_provider = booking.resource
        who = booking.guests[0].name if booking.guests else "nobody yet"
        relations: dict[str, Any] = {
            "event": {
                "id": _id_of("event", booking.id),
                "what": f"Demo with {who}",
                "where": f"{name} / 1st floor",
                "description": "",
                "allDay": False,
                "rsvp": "accepted",
                "start": stamp(booking.starts),
                "end": stamp(booking.ends),
                "updated_at": stamp(booking.created),
            },
            "calendar": {"id": _id_of("calendar", name), "name": name, "provider": calendar_provider},
            "user": {"id": _id_of("user", name), "name": f"{name} desk", "timezone": self.zone.key},
            "project": PROJECT,
            # PHP writes an empty table as a list.
            "meta": {self.party_size or "party": booking.party} if booking.party else [],
            "available_actions": sorted(booking.actions),
            "customer_action_links": {
                action: f"https://api.timekit.example/v2/bookings/{booking.id}/{action}/{_id_of('link', booking.id)}"
                for action in sorted(booking.actions)
            },
        }
        if booking.owner:
            owner = booking.owner
            # An object or a bare id: nobody knows, so half of the bookings have the one and half the other.
            whole = {"id": owner.id, "state": owner.state}
            relations["owner_booking"] = whole if int(owner.id[0], 16) % 2 else owner.id
        return relations

    # --- the API ---

    def routes(self) -> Sequence[BaseRoute]:
        guarded = self._guarded
        return [
            Route("/v2/bookings", guarded(self._list)),
            Route("/v2/bookings", guarded(self._create), methods=["POST"]),
            Route("/v2/bookings/{id}", guarded(self._single)),
            Route("/v2/bookings/{id}/reschedule", guarded(self._move), methods=["POST"]),
            Route("/v2/bookings/{id}/{action}", guarded(self._action), methods=["PUT", "POST"]),
        ]

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        basic = "Basic " + b64encode(f":{self.api_key}".encode()).decode()

        @wraps(handler)
        async def checked(request: Request) -> Response:
            if request.headers.get("authorization") != basic:
                response: Response = JSONResponse({"error": "Not authorized"}, 401)
            else:
                response = self._throttle() or await handler(request)
            if self.test_account:
                response.headers["Timekit-TestMode"] = "true"
            return response

        return checked

    def _throttle(self) -> Response | None:
        """The refusal of a call that is too many, by the simulated clock."""
        within, most, status = PLAN_LIMITS[self.test_account]
        now = self.clock.now()
        while self._called and now - self._called[0] >= within:
            self._called.popleft()
        if len(self._called) >= (most if self.calls is None else self.calls):
            headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
            return JSONResponse({"error": "Rate limit exceeded"}, status, headers)
        self._called.append(now)
        return None

    def _as_api(self, booking: Booking) -> dict[str, Any]:
        return self._document(booking, lambda moment: moment.astimezone(UTC).isoformat(timespec="seconds"))

    async def _list(self, request: Request) -> Response:
        """A page of bookings, with the relations that `include` names."""
        query = request.query_params
        wanted = [term.partition(":") for term in query.get("search", "").split(";") if term]
        found = [
            document
            for document in map(self._as_api, self.bookings.values())
            if all(_matches(document, key, value) for key, _, value in wanted)
        ]
        shown = {*TOP, *query.get("include", "").split(",")}
        rows = [{name: value for name, value in document.items() if name in shown} for document in found]
        size, number = _whole(query.get("limit"), self.page_size), _whole(query.get("page"), 1)
        return JSONResponse(_page(rows, size, number, request.url.path))

    async def _single(self, request: Request) -> Response:
        booking = self.bookings.get(request.path_params["id"])
        return JSONResponse({"data": self._as_api(booking)}) if booking else _not_found()

    async def _action(self, request: Request) -> Response:
        booking, action = self.bookings.get(request.path_params["id"]), request.path_params["action"]
        if booking is None:
            return _not_found()
        if action not in booking.actions:
            return _invalid({"action": ["This action is not possible now."]}, action)
        return JSONResponse({"data": self._as_api(self._act(booking, action))})

    async def _move(self, request: Request) -> Response:
        booking, asked = self.bookings.get(request.path_params["id"]), await _asked(request)
        if booking is None:
            return _not_found()
        if booking.graph != "instant" or "reschedule_by_customer" not in booking.actions:
            return _invalid({"graph": ["Only a confirmed instant booking can be moved."]}, "reschedule")
        slot, errors = _times(asked)
        return _invalid(errors) if errors else JSONResponse({"data": self._as_api(self._reschedule(booking, *slot))})

    async def _create(self, request: Request) -> Response:
        asked = await _asked(request)
        slot, errors = _times(asked)
        if asked.get("graph") not in FIRST:
            errors["graph"] = ["The graph is not known."]
        if errors:
            return _invalid(errors)
        booking = self._planned(Random(self.rng.getrandbits(64)), asked["graph"], (slot[0], slot[1]))
        for one in (booking.owner, booking):
            if one:
                self._enter(one)
        return JSONResponse({"data": self._as_api(booking)}, 201)


STAMPS: Final[Mapping[str, Callable[[datetime, ZoneInfo], str]]] = {
    "utc": lambda moment, zone: moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S%z"),
    "local": lambda moment, zone: moment.astimezone(zone).strftime("%Y-%m-%dT%H:%M:%S%z"),
    "colon": lambda moment, zone: moment.astimezone(zone).isoformat(timespec="seconds"),
}


def php_json(document: Any) -> bytes:
    """JSON as PHP's json_encode writes it: no blanks, slashes escaped, all beyond ASCII as \\uXXXX."""
    return json.dumps(document, separators=(",", ":")).replace("/", "\\/").encode()


def _hooks(methods: Sequence[str]) -> list[Hook]:
    """One for every graph and state that there is."""
    pairs = []
    for graph, states in GRAPHS.items():
        reached = [FIRST[graph], *(after for actions in states.values() for after in actions.values())]
        pairs += [(graph, state) for state in dict.fromkeys(reached)]
    return [
        Hook(graph=graph, state=state, method=methods[number % len(methods)])
        for number, (graph, state) in enumerate(pairs)
    ]


def _uuid(chance: Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))


def _id_of(kind: str, name: str) -> str:
    """The same UUID for the same thing."""
    return str(UUID(bytes=hashlib.sha256(f"{kind}/{name}".encode()).digest()[:16], version=4))


def _guest(name: str, email: str, phone: str, timezone: str) -> Guest:
    return Guest(id=_id_of("customer", email), name=name, email=email, phone=phone, timezone=timezone)


def _matches(document: Mapping[str, Any], key: str, value: str) -> bool:
    """One `key:value` of a search; `customer.name` takes wildcards."""
    place, _, field = key.partition(".")
    things = {"customer": document["customers"], "resource": [document.get("user", {})]}.get(place)
    if things is None:
        thing = document.get(place, "")
        things = [thing if isinstance(thing, dict) else {"": thing}]
    found = [str(thing.get(field, "")).lower() for thing in things]
    return any(fnmatchcase(one, value.lower()) if key == "customer.name" else one == value.lower() for one in found)


def _page(rows: Sequence[Mapping[str, Any]], size: int, number: int, path: str) -> dict[str, Any]:
    last = max(1, -(-len(rows) // size))
    first = (number - 1) * size
    shown = rows[first : first + size]
    return {
        "total": len(rows),
        "per_page": size,
        "current_page": number,
        "last_page": last,
        "next_page_url": f"{path}?page={number + 1}" if number < last else None,
        "prev_page_url": f"{path}?page={number - 1}" if number > 1 else None,
        "from": first + 1 if shown else None,
        "to": first + len(shown) if shown else None,
        "data": list(shown),
    }


def _whole(text: str | None, otherwise: int) -> int:
    return max(1, int(text)) if text and text.isascii() and text.isdigit() else otherwise


async def _asked(request: Request) -> dict[str, Any]:
    try:
        asked = await request.json()
    except ValueError:
        return {}
    return asked if isinstance(asked, dict) else {}


def _times(asked: Mapping[str, Any]) -> tuple[list[datetime], dict[str, list[str]]]:
    """Start and end of a request, and what is wrong with them."""
    found, errors = [], {}
    for name in ("start", "end"):
        try:
            found.append(datetime.fromisoformat(str(asked.get(name))).astimezone(UTC))
        except ValueError:
            errors[name] = [f"The {name} is no date with time."]
    return found, errors


def _invalid(errors: Mapping[str, Sequence[str]], action: str | None = None) -> Response:
    return JSONResponse({"errors": errors} | ({"action": action} if action else {}), 422)


def _not_found() -> Response:
    return JSONResponse({"error": "Not found", "model": "Booking"}, 404)


VENUE = Timekit
