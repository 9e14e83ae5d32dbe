"""Checkfront, played: whole bookings in three syntaxes, two notices per change of status, and a hook that switches off.

Sources: Checkfront/API (docs/ref/webhook/*.rst and its examples, docs/ref/booking, docs/overview) and clients where
those are silent: harry-dev-general/mbh for inclusive tax and package lines, BigRedKea/CheckFrontCalendarLoader for the
names of the API's answers. What they leave open is a switch, and its default is invented.

A booking's body has no event name, no action and no time of modification, so a later request must not overtake an
earlier one about the same booking, unless the receiver has API keys and can ask how it really is. Requests about
different bookings overtake each other at will. Does not know how the receiver reads any of it.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal
from functools import partial, wraps
from random import Random
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, urlencode
from xml.etree import ElementTree as Xml
from zoneinfo import ZoneInfo

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from simulators.ledger import Outcome, Sent
from simulators.venue import Life, Post, Venue

# --- the words -------------------------------------------------------------------------------------------------

TRUTH: Final[Mapping[str, str]] = {
    # What a built-in status means to an operator.
    "PEND": "pending",
    "HOLD": "pending",
    "WAIT": "pending",
    "PART": "confirmed",
    "PAID": "confirmed",
    "STOP": "cancelled",
    "VOID": "cancelled",
}
LABELS: Final[Mapping[str, str]] = {
    "PEND": "Pending",
    "HOLD": "Reserved",
    "WAIT": "Waiting",
    "PART": "Deposit",
    "PAID": "Paid",
    "STOP": "Cancelled",
    "VOID": "Void",
    "CHKIN": "Checked in",
    "NOSHW": "No show",
}
PULL_REQUEST: Final[Mapping[str, str]] = {"pending": "PENDING", "confirmed": "CONFIRMED", "cancelled": "CANCELLED"}
"""The words of the outsider's page (pull request 43), by their meaning."""

STORIES: Final[Sequence[tuple[str, ...]]] = (
    # A status code sets the status; the first step makes the booking. `checkout`: paid while it was being made.
    ("PEND", "pay"),
    ("HOLD", "deposit", "pay"),
    ("checkout",),
    ("PEND", "STOP"),
    ("WAIT", "PEND", "pay"),
    ("HOLD", "move", "pay"),
    ("checkout", "VOID", "PAID"),
    ("PEND", "deposit", "refund"),
    ("HOLD", "add", "pay"),
    ("checkout", "CHKIN"),
    ("checkout", "NOSHW"),
    ("PEND", "pay", "drop"),
    ("checkout", "move", "move"),
)

# --- numbers and people ----------------------------------------------------------------------------------------

OPENING: Final = timedelta(hours=3)
"""Simulated; bookings are made within this time from the beginning of a busy day."""
PAUSE: Final = (300.0, 1500.0)
"""Simulated seconds between two steps of one booking."""
CHECKOUT: Final = (5.0, 90.0)
"""Simulated seconds between a payment and the end of the checkout that it belongs to."""
HELD_BACK: Final = (300.0, 1800.0)
LEAST: Final = 1 / 8
"""The chance that a request is late (with API keys), or sent twice, in a busy day without any weather."""
MOST_FAILURES: Final = 5
"""In a row; after them the hook is switched off for good."""
ACCESS_SECONDS: Final = 14000
REFRESH_DAYS: Final = 14
CODE_SECONDS: Final = 60

CENT: Final = Decimal("0.01")
TAX: Final = Decimal("0.05")
ITEMS: Final = (
    # Item id, sku, name, price of one, hours (none: sold by the day).
    ("31", "kayak2h", "Kayak 2 h", Decimal("45.00"), 2),
    ("32", "sunset-paddle", "Sunset paddle", Decimal("61.90"), 3),
    ("40", "harbour-tour", "Harbour tour", Decimal("28.00"), 1),
    ("44", "boat-day", "Boat for a day", Decimal("310.00"), None),
)
PARTS: Final = (("51", "life-vest"), ("52", "dry-bag"))
"""What comes with a package, on lines of its own such as `1.1`."""
GUESTS: Final = (
    ("HT1-222-333", "Sam Okoro", "sam@example.org", "555 0199"),
    ("HT1-222-334", "Zoë Lefèvre", "zoe@example.org", "+33 1 55 55 01 00"),
    ("HT1-222-335", "O'Brien & Söhne", "office@example.com", ""),
    ("HT1-222-336", "李 明", "ming@example.net", "555 0142"),
)
NOTES: Final = (None, None, "allergic to nuts", "arrives <late> & wet")
SOURCES: Final = (None, None, "partner-site", "newsletter-11")


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of an order; `1.1` is a part of the package on line `1`."""

    line_id: str
    item_id: str
    sku: str
    name: str
    qty: int
    total: Decimal
    starts: datetime
    ends: datetime


@dataclass(kw_only=True)
class Booking:
    """One booking at Checkfront, and the chance that decides about it."""

    chance: Random
    number: int
    code: str
    guest: tuple[str, str, str, str]
    """Customer code, name, email, phone."""
    phone_in: str
    """Where a webhook has the phone: `customer`, `fields` or `meta`."""
    lines: list[Line]
    dropped: set[str] = field(default_factory=set)
    """Lines that were taken out of the booking: they stay, with the status VOID."""
    inclusive: bool = False
    """Prices hold their tax: `tax_total` is 0.00 then."""
    note: str | None = None
    source: str | None = None
    people: int = 1
    status: str = ""
    paid: Decimal = Decimal("0.00")
    created: datetime
    modified: datetime
    visible: bool = False
    """False while it is a pre-booking: a checkout that the API does not show."""
    told: bool = False

    @property
    def starts(self) -> datetime:
        """Of the first line; in the documented example another line starts earlier."""
        return self.lines[0].starts

    @property
    def ends(self) -> datetime:
        return self.lines[0].ends

    @property
    def total(self) -> Decimal:
        return sum((line.total for line in self.lines if line.line_id not in self.dropped), Decimal("0.00"))

    @property
    def tax(self) -> Decimal:
        """The part of the total that is tax, shown in it or not."""
        return _cents(self.total * TAX / (1 + TAX))

    def status_of(self, line: Line) -> str:
        return "VOID" if line.line_id in self.dropped else self.status


class Checkfront(Venue):
    """One account with its webhook.

    `syntax="pull-request"` sends the shape of the outsider's page: it names no time, no code and no money, so the
    ledger expects as much, there are no payments, and API keys are not given.
    """

    provider: ClassVar[str] = "checkfront"
    events_each: ClassVar[float] = 6.5

    def set_switches(
        self,
        *,
        api: bool = True,
        timezone: str = "America/Vancouver",
        host: str = "harbour-tours.example",
        currency: str = "CAD",
        syntax: str = "mixed",
        events: Sequence[str] = ("modified", "status", "payment", "item", "rate"),
        customer_keys: str = "mixed",
        form_attributes: str = "mixed",
        empty: str = "{}",
        statuses: Mapping[str, str] | None = None,
        party_size: str | None = "fields.numpax",
        pre_status: str | None = None,
        content_type: str | None = "",
        version: str = "2025.09.09-b3830f82",
        retries: int = 0,
        retry_gap: float = 60.0,
        least_gap: float = 1.0,
        calls_per_minute: int | None = None,
    ) -> None:
        """What is unknown about them, or set up by the customer.

        api: whether Reservoir is given key and secret.
        syntax: `json`, `xml`, `form`, `mixed` or `pull-request`.
        events: the notices that are switched on, as in the signature.
        customer_keys: `plain`, `prefixed` or `mixed`.
        form_attributes: whether a form's attributes stand below `@attributes` (`at`), `plain`, or `mixed`.
        empty: how JSON writes an empty element: `{}`, `[]` or `""`.
        statuses: meanings of the account's own codes; by default those of CHKIN, while NOSHW has none.
        party_size: the form field with the head count.
        pre_status: the code under which a checkout already sends notices; None: it sends none.
        content_type: in place of the syntax's own; None: without the header.
        retries, retry_gap, least_gap: after a failure, simulated seconds, and the wall seconds they are at least.
        calls_per_minute: API calls beyond are answered 429.
        """
        self.pull_request = syntax == "pull-request"
        self.api = api and not self.pull_request
        self.zone, self.host, self.currency = ZoneInfo(timezone), host, currency
        self.syntaxes = ("json", "xml", "form") if syntax == "mixed" else (syntax,)
        self.events = frozenset(events)
        self.key_styles = ("plain", "prefixed") if customer_keys == "mixed" else (customer_keys,)
        self.attribute_styles = ("at", "plain") if form_attributes == "mixed" else (form_attributes,)
        self.empty = json.loads(empty)
        self.statuses = dict(statuses) if statuses is not None else {"CHKIN": "confirmed"}
        self.party_size, self.pre_status = party_size, pre_status
        self.content_type, self.version = content_type, version
        self.retries, self.retry_gap, self.least_gap = retries, retry_gap, least_gap
        self.calls_per_minute = calls_per_minute
        self.api_key, self.api_secret = f"{self.rng.getrandbits(80):020x}", f"{self.rng.getrandbits(160):040x}"
        self.client_id, self.client_secret = f"{self.rng.getrandbits(48):012x}", f"{self.rng.getrandbits(160):040x}"
        self.bookings: dict[int, Booking] = {}
        self._by_code: dict[str, Booking] = {}
        self.payments: dict[str, list[str]] = {}
        """Booking code → the transactions that a receiver must know of."""
        self.untold_payments: set[str] = set()
        """Of those, the ones whose notice was never taken: a receiver may know of them or not."""
        self.failures_in_a_row = 0
        self._made = 0
        self._called: deque[datetime] = deque()
        self._grants: dict[str, tuple[str, datetime]] = {}
        """Code or token → its kind and its end."""

    def settings(self, api_url: str) -> dict[str, Any]:
        table = {"provider": self.provider, "timezone": self.zone.key, "api_url": f"{api_url}/api/3.0"}
        options = {"statuses": self.statuses, "party_size": self.party_size}
        return table | {name: value for name, value in options.items() if value}

    def secrets(self) -> dict[str, str]:
        return {"api_key": self.api_key, "api_secret": self.api_secret} if self.api else {}

    def panel(self) -> dict[str, Any]:
        return {"bookings": len(self.bookings), "failures in a row": self.failures_in_a_row}

    def switch_on(self) -> None:
        """What an operator does in the dashboard after an outage."""
        self.hook_off, self.failures_in_a_row = False, 0

    # --- a day ---

    async def busy_day(self, bookings: int) -> None:
        stories = list(STORIES) * (bookings // len(STORIES) + 1)
        self.rng.shuffle(stories)
        lives: list[Life] = []
        for story in stories[:bookings]:
            booking = self._planned(Random(self.rng.getrandbits(64)), story)
            lives.append((booking.chance.uniform(0, OPENING.total_seconds()), partial(self._live, booking, story)))
        lives.append((0, partial(self._catalogue, Random(self.rng.getrandbits(64)))))
        await self.unfold(lives)

    def _planned(self, chance: Random, story: Sequence[str]) -> Booking:
        self._made += 1
        number, today = 20416 + self._made, self.clock.start.astimezone(self.zone)
        booking = Booking(
            chance=chance,
            number=number,
            code=f"{_letters(number)}-{today:%d%m%y}",
            guest=chance.choice(GUESTS),
            phone_in=chance.choice(("customer", "customer", "fields", "meta")),
            lines=[],
            inclusive=chance.random() < 0.25,
            note=chance.choice(NOTES),
            source=chance.choice(SOURCES),
            people=chance.randint(1, 9),
            created=today,
            modified=today,
        )
        self._add(booking, package=chance.random() < 0.25)
        if "drop" in story or chance.random() < 0.4:
            self._add(booking)
        return booking

    def _add(self, booking: Booking, *, package: bool = False) -> None:
        """One more item; the second of a booking starts before the first, as in the documented example."""
        item_id, sku, name, price, hours = booking.chance.choice(ITEMS)
        top = [line for line in booking.lines if "." not in line.line_id]
        day = top[0].starts.date() if top else self._day(booking.chance)
        hour = 0 if hours is None else booking.chance.randint(14, 17) - 4 * len(top)
        starts = datetime.combine(day, time(hour), self.zone)
        qty = booking.chance.randint(1, 4)
        line = Line(
            line_id=str(len(top) + 1),
            item_id=item_id,
            sku=sku,
            name=name,
            qty=qty,
            total=_cents(price * qty),
            starts=starts,
            ends=starts + timedelta(hours=24 if hours is None else hours),
        )
        booking.lines += [line, *(_part(line, number) for number in range(len(PARTS) if package else 0))]

    def _day(self, chance: Random) -> date:
        return self.clock.start.astimezone(self.zone).date() + timedelta(days=chance.randint(1, 60))

    async def _live(self, booking: Booking, story: Sequence[str]) -> None:
        booking.created = self.clock.now()
        self.bookings[booking.number] = booking
        self._by_code[booking.code] = booking
        for place, step in enumerate(story):
            if place:
                await self.clock.sleep(booking.chance.uniform(*PAUSE))
            await _STEPS.get(step, _set_status(step))(self, booking)

    # --- what happens to a booking ---

    async def _checkout(self, booking: Booking) -> None:
        """The money comes first: its notice speaks of a booking that nobody was told of, and that the API hides."""
        if self.pre_status:
            await self._set(booking, self.pre_status, visible=False)
        booking.paid = booking.total
        await self._transaction(booking, booking.paid, "PAID")
        await self.clock.sleep(booking.chance.uniform(*CHECKOUT))
        await self._set(booking, "PAID")

    async def _deposit(self, booking: Booking) -> None:
        await self._money(booking, _cents(booking.total / 5), "PART")

    async def _pay(self, booking: Booking) -> None:
        await self._money(booking, booking.total - booking.paid, "PAID")

    async def _refund(self, booking: Booking) -> None:
        await self._money(booking, -booking.paid, "STOP")

    async def _money(self, booking: Booking, amount: Decimal, status: str) -> None:
        """Fires a payment notice and, since the booking changed with it, Booking Modified."""
        booking.paid += amount
        self._change(booking, status)
        await self._transaction(booking, abs(amount), "PAID" if amount > 0 else "REFUND")
        await self._tell(booking, status_changed=True)

    async def _move(self, booking: Booking) -> None:
        shift = self._day(booking.chance) - booking.starts.date()
        booking.lines = [_later(line, shift) for line in booking.lines]
        await self._set(booking, booking.status)

    async def _add_line(self, booking: Booking) -> None:
        self._add(booking)
        await self._set(booking, booking.status)

    async def _drop_line(self, booking: Booking) -> None:
        booking.dropped.add(booking.lines[-1].line_id)
        await self._set(booking, booking.status)

    async def _set(self, booking: Booking, status: str, *, visible: bool = True) -> None:
        status_changed = status != booking.status
        self._change(booking, status, visible=visible)
        await self._tell(booking, status_changed=status_changed)

    def _change(self, booking: Booking, status: str, *, visible: bool = True) -> None:
        """The booking, and with it the API and the truth, before anybody is told."""
        booking.status, booking.visible, booking.modified = status, visible, self.clock.now()
        self._expect(booking)

    def _expect(self, booking: Booking) -> None:
        first, status = booking.lines[0], self._meaning(booking.status)
        code, name, email, phone = booking.guest
        truth: dict[str, Any] = {
            "status": status,
            "provider_status": self._word(booking),
            "customer_name": name,
            "customer_email": email,
            "resource_id": first.item_id,
            "resource_name": first.name if self.pull_request else first.sku,
        }
        if not self.pull_request:
            truth |= {
                "reference": booking.code,
                "cancel_reason": "void" if booking.status == "VOID" else None,
                "starts_at": booking.starts,
                "ends_at": booking.ends,
                "date": booking.starts.date(),
                "timezone": self.zone.key,
                "quantity": self._quantity(booking),
                "customer_id": code,
                "customer_phone": phone or None,
                "currency": self.currency,
                "total": booking.total,
                "paid": booking.paid,
                "note": booking.note,
                "source": booking.source,
            }
            truth |= {"party_size": booking.people} if self.party_size == "fields.numpax" else {}
        self.ledger.expect_anew(self.endpoint, str(booking.number), **truth)

    def _quantity(self, booking: Booking) -> int:
        """Without the parts of packages, and without dropped lines unless all of it is off."""
        off = self._meaning(booking.status) == "cancelled"
        lines = [line for line in booking.lines if "." not in line.line_id]
        return sum(line.qty for line in lines if off or line.line_id not in booking.dropped)

    def _meaning(self, status: str) -> str:
        return {**TRUTH, **self.statuses}.get(status, "unknown")

    def _word(self, booking: Booking) -> str:
        """The status as the hook's shape writes it."""
        return PULL_REQUEST.get(self._meaning(booking.status), booking.status) if self.pull_request else booking.status

    # --- the notices ---

    async def _tell(self, booking: Booking, *, status_changed: bool) -> None:
        """Booking Modified fires on any change, Booking Status Change beside it: the same body twice."""
        fired = [name for name, fires in (("modified", True), ("status", status_changed)) if fires]
        post = self._post(booking.chance, f"{booking.code} {booking.status}", self._tree(booking), booking)
        posts = [replace(post, about=f"{name} {post.about}") for name in fired if name in self.events]
        booking.told = True
        await self._hand_over(booking.chance, posts, partial(self.give_up, post))

    async def _transaction(self, booking: Booking, amount: Decimal, status: str) -> None:
        """`booking_id` is the code here, and `date` a number."""
        if self.pull_request or "payment" not in self.events:
            return
        known = self.payments.setdefault(booking.code, [])
        known.append(f"TX-{booking.number}-{len(known) + 1}")
        transaction = {
            "transaction_id": known[-1],
            "date": int(self.clock.now().timestamp()),
            "status": status,
            "amount": str(amount),
            "gateway_id": "CardGateway",
            "payment_mask": "1111",
            "payment_type": "Visa",
            "payment_customer": booking.guest[1],
            "booking_id": booking.code,
        }
        about = f"payment {booking.code} {status}"
        tree = self._envelope("transaction", "insert", transaction)
        untold = partial(self.untold_payments.add, known[-1])
        await self._hand_over(booking.chance, [self._post(booking.chance, about, tree, booking)], untold)

    async def _catalogue(self, chance: Random) -> None:
        """Now and then somebody works on the catalogue."""
        things = [("item", {"item_id": "31", "sku": "kayak2h", "name": "Kayak 2 h", "status": "A", "summary": {}})]
        things += [("rate", {"event_id": "9", "name": "Early birds", "status": "A", "end_date": "0"})]
        for kind, thing in things:
            await self.clock.sleep(chance.uniform(0, OPENING.total_seconds() / 2))
            if kind in self.events:
                tree = self._envelope(kind, "update", thing)
                await self._hand_over(chance, [self._post(chance, f"{kind} update", tree)])

    def _envelope(self, kind: str, action: str, thing: Mapping[str, Any]) -> dict[str, Any]:
        return {"version": "3.11.0.0", "host": self.host, "type": kind, "action": action, kind: thing}

    def _tree(self, booking: Booking) -> dict[str, Any]:
        if self.pull_request:
            return self._tree_of_the_pull_request(booking)
        return {
            "@attributes": {"version": self.version, "host": self.host},
            "booking": {
                "@attributes": {"booking_id": str(booking.number)},
                "status": booking.status,
                "code": booking.code,
                "tid": booking.source or {},
                "created_date": _unix(booking.created),
                "staff_id": "0",
                "source_ip": "203.0.113.9",
                "start_date": _unix(booking.starts),
                "end_date": _unix(booking.ends),
                **self._people(booking),
                "order": self._order(booking),
            },
        }

    def _tree_of_the_pull_request(self, booking: Booking) -> dict[str, Any]:
        verb = "cancel" if self._meaning(booking.status) == "cancelled" else "update" if booking.told else "create"
        items = [{"id": int(line.item_id), "name": line.name, "quantity": line.qty} for line in booking.lines]
        customer = {"name": booking.guest[1], "email": booking.guest[2]}
        thing = {"id": booking.number, "status": self._word(booking), "customer": customer, "items": items}
        return {"event": f"booking.{verb}", "booking": thing}

    def _people(self, booking: Booking) -> dict[str, Any]:
        """Keys below `customer` are plain or prefixed, those of the account's own form always prefixed."""
        code, name, email, phone = booking.guest
        prefix = "customer_" if booking.chance.choice(self.key_styles) == "prefixed" else ""
        customer: dict[str, Any] = {f"{prefix}name": name, f"{prefix}email": email}
        fields: dict[str, Any] = {"customer_name": name, "customer_email": email, "numpax": str(booking.people)}
        meta: dict[str, Any] = {"note": booking.note or {}, "mobile_device": {}}
        if booking.phone_in == "customer":
            customer[f"{prefix}phone"] = phone or {}
        else:
            {"fields": fields, "meta": meta}[booking.phone_in]["customer_phone"] = phone or {}
        place = {"region": "BC", "address": {}, "city": "Tofino", "country": "CA", "postal_zip": "V0R 2Z0"}
        return {"customer": {"code": code, **customer, **place}, "fields": fields, "meta": meta}

    def _order(self, booking: Booking) -> dict[str, Any]:
        tax = Decimal("0.00") if booking.inclusive else booking.tax
        lines = [self._line(booking, line) for line in booking.lines]
        return {
            "@attributes": {"currency_id": self.currency},
            "sub_total": str(booking.total - tax),
            "tax_total": str(tax),
            "paid_total": str(booking.paid),
            "total": str(booking.total),
            "discount": "0.00",
            "taxes": {"tax": {"@attributes": {"tax_id": "6"}, "name": "GST", "amount": str(booking.tax)}},
            "items": {"item": lines[0] if len(lines) == 1 else lines},
        }

    def _line(self, booking: Booking, line: Line) -> dict[str, Any]:
        return {
            "@attributes": {"line_id": line.line_id, "item_id": line.item_id},
            "start_date": _unix(line.starts),
            "end_date": _unix(line.ends),
            "sku": line.sku,
            "slip": {},
            "package_id": line.line_id.split(".")[0] if "." in line.line_id else "0",
            "status": booking.status_of(line),
            "total": str(line.total),
            "tax_total": "0.00" if booking.inclusive else str(_cents(line.total * TAX / (1 + TAX))),
            "qty": str(line.qty),
            "category_id": "4",
        }

    # --- the three syntaxes, and the sender ---

    def _post(self, chance: Random, about: str, tree: Mapping[str, Any], booking: Booking | None = None) -> Post:
        syntax = "json" if self.pull_request else chance.choice(self.syntaxes)
        own, write = _SYNTAXES[syntax]
        content_type = own if self.content_type == "" else self.content_type
        headers = {"content-type": content_type} if content_type else {}
        return Post(
            about,
            headers={"user-agent": "Checkfront"} | headers,
            body=write(self, tree, chance),
            bookings=(str(booking.number),) if booking else (),
        )

    def _json(self, tree: Mapping[str, Any], chance: Random) -> bytes:
        return json.dumps(_filled(tree, self.empty)).encode()

    def _xml(self, tree: Mapping[str, Any], chance: Random) -> bytes:
        return to_xml(tree)

    def _form(self, tree: Mapping[str, Any], chance: Random) -> bytes:
        return to_form(tree, chance.choice(self.attribute_styles))

    async def _hand_over(
        self, chance: Random, posts: Sequence[Post], untold: Callable[[], None] = lambda: None
    ) -> None:
        """Returns when the requests are through, or at once where a later one may overtake them. Calls `untold` when
        none of them was taken."""
        late = chance.random() < max(self.weather.reorder, LEAST) and self.api
        copies = 2 if chance.random() < max(self.weather.duplicate, LEAST) else 1
        held_back = chance.uniform(*HELD_BACK)
        if late:
            self.launch(self._send(posts, copies, untold, held_back))
        else:
            await self._send(posts, copies, untold)

    async def _send(self, posts: Sequence[Post], copies: int, untold: Callable[[], None], held_back: float = 0) -> None:
        await self.clock.sleep(held_back)
        for _ in range(copies):
            await asyncio.gather(*(self.deliver(post) for post in posts))
        if not any(post.taken for post in posts):
            untold()

    async def deliver(self, post: Post) -> bool:
        """One request, with as many retries as are switched on; nothing any more once the hook is off."""
        for attempt in range(1 + self.retries):
            if attempt:
                await self.clock.sleep(self.retry_gap, at_least=self.least_gap)
            if self.hook_off:
                return False
            sent = await self.post(post)
            self._count(sent)
            if sent.acked:
                return True
        return False

    def _count(self, sent: Sent) -> None:
        """A sender that hung up by its own fault does not hold that against the receiver (invented)."""
        if sent.acked:
            self.failures_in_a_row = 0
        elif sent.outcome is not Outcome.HUNG_UP:
            self.failures_in_a_row += 1
            self.hook_off |= self.failures_in_a_row >= MOST_FAILURES

    # --- the API ---

    def routes(self) -> Sequence[BaseRoute]:
        guarded = self._guarded
        return [
            Route("/api/3.0/ping", guarded(self._ping)),
            Route("/api/3.0/booking/index", guarded(self._index)),
            Route("/api/3.0/booking/{key}", guarded(self._single)),
            Route("/oauth/", self._authorise),
            Route("/oauth/token/", self._token, methods=["POST"]),
        ]

    def _guarded(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        @wraps(handler)
        async def checked(request: Request) -> Response:
            if not self._allowed(request.headers.get("authorization", "")):
                # Critical errors come without the usual envelope.
                text = "The access token provided is invalid."
                return JSONResponse({"error": "invalid_token", "error_description": text}, 401)
            return self._throttle() or await handler(request)

        return checked

    def _allowed(self, authorization: str) -> bool:
        kind, _, token = authorization.partition(" ")
        grant, ends = self._grants.get(token, ("", self.clock.start))
        held = kind == "Bearer" and grant == "access" and self.clock.now() < ends
        return held or authorization == _basic(self.api_key, self.api_secret)

    def _throttle(self) -> Response | None:
        now, within = self.clock.now(), timedelta(minutes=1)
        while self._called and now - self._called[0] >= within:
            self._called.popleft()
        if self.calls_per_minute is not None and len(self._called) >= self.calls_per_minute:
            wait = within - (now - self._called[0]) if self._called else within
            headers = {"retry-after": str(1 + int(wait.total_seconds() / self.clock.speed))}
            return JSONResponse({"error": "rate_limit_exceeded"}, 429, headers)
        self._called.append(now)
        return None

    def _answer(
        self, resource: str, request: Mapping[str, Any], found: Mapping[str, Any], status: int = 200
    ) -> Response:
        envelope = {
            "version": "3.0",
            "account_id": 1,
            "host_id": self.host,
            "name": "Harbour Tours",
            "locale": {"id": "en_US", "lang": "en", "currency": self.currency},
            "request": {"status": "OK", "resource": resource, "time": 0.0003, "method": "get", **request},
        }
        return JSONResponse(envelope | dict(found), status)

    async def _ping(self, request: Request) -> Response:
        now = int(self.clock.now().timestamp())
        pong = {"remote_addr": "203.0.113.9", "time": now, "timezone": self.zone.key, "provider": "API Console"}
        return self._answer("ping", {"records": 1, "limit": 0, "page": 1, "pages": 1}, {"pong": pong})

    async def _index(self, request: Request) -> Response:
        query = request.query_params
        try:
            found = [one for one in self.bookings.values() if one.visible and self._passes(one, query)]
            limit, page = max(1, int(query.get("limit", 100))), max(1, int(query.get("page", 1)))
        except ValueError:
            return self._error(400, "index", "A filter could not be read.")
        shown = found[(page - 1) * limit : page * limit]
        pages = max(1, -(-len(found) // limit))
        paging = {"id": "index", "records": len(shown), "total_records": len(found), "limit": limit}
        rows = {str(one.number): self._row(one) for one in shown}
        return self._answer("booking", paging | {"page": page, "pages": pages}, {"booking/index": rows})

    def _passes(self, booking: Booking, query: Mapping[str, str]) -> bool:
        """Raises ValueError for a date that is none."""
        texts = {"status_id": booking.status, "customer_id": booking.guest[0], "customer_email": booking.guest[2]}
        moments = {
            "start_date": booking.starts,
            "end_date": booking.ends,
            "created_date": booking.created,
            "last_modified": booking.modified,
        }
        items = {line.item_id for line in booking.lines}
        return (
            all(query.get(name, value) == value for name, value in texts.items())
            and all(self._compares(moment, query[name]) for name, moment in moments.items() if name in query)
            and query.get("item_id", next(iter(items))) in items
        )

    def _compares(self, moment: datetime, wanted: str) -> bool:
        """`<` and `>` with Unix seconds or a date; a date alone means that day. Raises ValueError."""
        sign, text = (wanted[0], wanted[1:]) if wanted[:1] in ("<", ">") else ("=", wanted)
        begin = datetime.fromtimestamp(int(text), UTC) if text.isdecimal() else datetime.fromisoformat(text)
        begin = begin if begin.tzinfo else begin.replace(tzinfo=self.zone)
        return {"<": moment < begin, ">": moment > begin, "=": begin <= moment < begin + timedelta(days=1)}[sign]

    def _row(self, booking: Booking) -> dict[str, Any]:
        """Without phone, items, and times but for a text."""
        return {
            "booking_id": booking.number,
            "code": booking.code,
            "status_id": booking.status,
            "status_name": LABELS.get(booking.status, booking.status),
            "created_date": int(booking.created.timestamp()),
            "total": str(booking.total),
            "tax_total": str(Decimal("0.00") if booking.inclusive else booking.tax),
            "paid_total": str(booking.paid),
            "customer_id": booking.guest[0],
            "customer_name": booking.guest[1],
            "customer_email": booking.guest[2],
            "summary": booking.lines[0].name,
            "date_desc": f"{booking.starts:%a %b} {booking.starts.day}, {booking.starts.year}",
            "token": f"{booking.number:064x}",
        }

    async def _single(self, request: Request) -> Response:
        key = request.path_params["key"]
        booking = self.bookings.get(int(key)) if key.isdecimal() else self._by_code.get(key)
        if booking is None or not booking.visible:
            return self._error(404, key, "The booking could not be found.")
        return self._answer("booking", {"id": key, "records": 1}, {"booking": self._detail(booking)})

    def _detail(self, booking: Booking) -> dict[str, Any]:
        """Other names than the webhook's: the code under `id`, flat customer, lines by number, times of any type."""
        stamp: Callable[[datetime], Any] = _unix if booking.number % 2 else lambda moment: int(moment.timestamp())
        row = self._row(booking)
        del row["code"], row["date_desc"], row["summary"], row["token"]
        return row | {
            "id": booking.code,
            "created_date": stamp(booking.created),
            "start_date": stamp(booking.starts),
            "end_date": stamp(booking.ends),
            "customer_phone": booking.guest[3],
            "currency_id": self.currency,
            "tid": booking.source or "",
            "items": {line.line_id: self._detail_line(booking, line, stamp) for line in booking.lines},
        }

    def _detail_line(self, booking: Booking, line: Line, stamp: Callable[[datetime], Any]) -> dict[str, Any]:
        return {
            "item_id": int(line.item_id),
            "sku": line.sku,
            "name": line.name,
            "qty": line.qty,
            "status_id": booking.status_of(line),
            "start_date": stamp(line.starts),
            "end_date": stamp(line.ends),
            "total": str(line.total),
        }

    def _error(self, status: int, key: str, text: str) -> Response:
        """An error with the usual envelope."""
        error = {"id": status, "title": text, "details": ""}
        return self._answer("booking", {"status": "ERROR", "id": key, "error": error}, {}, status)

    # --- OAuth2: a code for 60 seconds, an access token for 14000, a refresh token that is replaced at each use ---

    async def _authorise(self, request: Request) -> Response:
        query = request.query_params
        if query.get("client_id") != self.client_id or not query.get("redirect_uri"):
            return JSONResponse({"error": "invalid_client"}, 400)
        code = self._grant("code", timedelta(seconds=CODE_SECONDS))
        back = {"code": code} | ({"state": query["state"]} if "state" in query else {})
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode(back)}", 302)

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        if request.headers.get("authorization") != _basic(self.client_id, self.client_secret):
            return JSONResponse({"error": "invalid_client"}, 401)
        field_of = {"authorization_code": ("code", "code"), "refresh_token": ("refresh", "refresh_token")}
        kind, name = field_of.get(form.get("grant_type", ""), ("", ""))
        found, ends = self._grants.pop(form.get(name, ""), ("", self.clock.start))
        if not kind or found != kind or self.clock.now() >= ends:
            return JSONResponse({"error": "invalid_grant"}, 400)
        answer = {
            "access_token": self._grant("access", timedelta(seconds=ACCESS_SECONDS)),
            "refresh_token": self._grant("refresh", timedelta(days=REFRESH_DAYS)),
            "expires_in": ACCESS_SECONDS,
            "token_type": "Bearer",
        }
        return JSONResponse(answer)

    def _grant(self, kind: str, life: timedelta) -> str:
        token = f"{self.rng.getrandbits(160):040x}"
        self._grants[token] = (kind, self.clock.now() + life)
        return token


Step = Callable[[Checkfront, Booking], Awaitable[None]]

_STEPS: Final[Mapping[str, Step]] = {
    "checkout": Checkfront._checkout,
    "deposit": Checkfront._deposit,
    "pay": Checkfront._pay,
    "refund": Checkfront._refund,
    "move": Checkfront._move,
    "add": Checkfront._add_line,
    "drop": Checkfront._drop_line,
}


_SYNTAXES: Final[Mapping[str, tuple[str, Callable[[Checkfront, Mapping[str, Any], Random], bytes]]]] = {
    # The content type, which is written nowhere, and the writer.
    "json": ("application/json", Checkfront._json),
    "xml": ("text/xml; charset=utf-8", Checkfront._xml),
    "form": ("application/x-www-form-urlencoded", Checkfront._form),
}


def _set_status(code: str) -> Step:
    return lambda venue, booking: venue._set(booking, code)


def to_xml(tree: Mapping[str, Any]) -> bytes:
    """A tree below `checkfront-notify`; the other envelope's version and host are attributes there."""
    top = {name: tree[name] for name in ("version", "host") if name in tree}
    rest = {name: value for name, value in tree.items() if name not in top}
    root = _element("checkfront-notify", {"@attributes": top, **rest})
    return bytes(Xml.tostring(root, encoding="utf-8", xml_declaration=True))


def _element(name: str, value: Any) -> Xml.Element:
    element = Xml.Element(name)
    if not isinstance(value, dict):
        element.text = str(value)
        return element
    for attribute, text in value.get("@attributes", {}).items():
        element.set(attribute, text)
    for child, inner in value.items():
        if child != "@attributes":
            element.extend(_element(child, one) for one in (inner if isinstance(inner, list) else [inner]))
    return element


def to_form(tree: Mapping[str, Any], attributes: str) -> bytes:
    """Bracket keys; attributes below `@attributes` (`at`) or beside the children (`plain`)."""
    return urlencode(list(_pairs("", tree, attributes))).encode()


def _pairs(path: str, value: Any, attributes: str) -> Iterator[tuple[str, str]]:
    if not isinstance(value, dict | list):
        yield path, str(value)
    elif not value:
        yield path, ""
    else:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            left_out = key == "@attributes" and attributes == "plain"
            yield from _pairs(path if left_out else f"{path}[{key}]" if path else str(key), inner, attributes)


def _filled(value: Any, empty: Any) -> Any:
    """The tree with its empty elements written the way the account's JSON writes them."""
    if isinstance(value, dict):
        return {key: _filled(inner, empty) for key, inner in value.items()} if value else empty
    return [_filled(inner, empty) for inner in value] if isinstance(value, list) else value


def _part(line: Line, number: int) -> Line:
    """What a package brings along on its own line, without a price."""
    item_id, sku = PARTS[number]
    line_id = f"{line.line_id}.{number + 1}"
    return replace(line, line_id=line_id, item_id=item_id, sku=sku, name=sku, total=Decimal("0.00"))


def _later(line: Line, shift: timedelta) -> Line:
    """The same wall-clock time on another day."""
    return replace(line, starts=line.starts + shift, ends=line.ends + shift)


def _cents(amount: Decimal) -> Decimal:
    return amount.quantize(CENT, ROUND_HALF_UP)


def _unix(moment: datetime) -> str:
    return str(int(moment.timestamp()))


def _letters(number: int) -> str:
    """Four letters, different for different bookings (7919 shares no factor with 26)."""
    rest, letters = number * 7919 % 26**4, ""
    for _ in range(4):
        rest, digit = divmod(rest, 26)
        letters += chr(ord("A") + digit)
    return letters


def _basic(user: str, password: str) -> str:
    return "Basic " + b64encode(f"{user}:{password}".encode()).decode()


VENUE = Checkfront
