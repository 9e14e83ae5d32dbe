"""ReserveKit: appointments and services.

Today's webhook (ReserveKit/docs, "Webhooks", 2025-02-27) is `{"event_type", "bookings": [...], "timestamp"}`; before it
came the bare booking with an embedded `time_slot` and a `version` (2025-02-06). No signature is documented, any 2xx
within about five seconds is success, and the same event may come more than once.

A booking names a day and a slot, never a time: start, end and time zone come from an embedded slot or, where an API key
is set, from the API. What the webhook itself says is applied with or without an answer. Guide, Swagger file and SDKs
disagree about envelopes, pagination and the form of slot times; all forms that they show are read.

Of a slot only the wall clock counts: the day in `2006-01-02 14:00:00` is a placeholder. A slot time with an offset is
an instant on that day, to be looked at in the service's zone (ReserveKit/demo-nextjs, booking.tsx).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from schemas.booking import Status
from workers.errors import Malformed
from workers.provider import Answer, Auth, Call, Element, Event, Failed, Ignored, Incoming, Provider, Rate
from workers.reading import Wild, at_venue, carry, read_json

DELETE: Final = "bookings.delete"

STATUS: Final[Mapping[str | None, Status]] = {
    "pending": Status.PENDING,
    "confirmed": Status.CONFIRMED,
    "cancelled": Status.CANCELLED,
}

Reader = Callable[[Wild], Any]

COLUMNS: Final[Sequence[tuple[str, str, Reader]]] = (
    ("provider_status", "status", Wild.word),
    ("date", "date", Wild.day),  # the first ten characters as written: never shifted between zones
    ("resource_id", "service_id", Wild.text),
    ("note", "message", Wild.text),
    ("cancel_reason", "cancel_reason", Wild.text),
    ("provider_created_at", "created_at", Wild.instant),
    ("provider_updated_at", "updated_at", Wild.instant),
)
"""Our column, their field, how it is read. There is no price, no currency and no number of people."""

CUSTOMER: Final[Mapping[str, str]] = {
    "customer_id": "id",
    "customer_name": "name",
    "customer_email": "email",
    "customer_phone": "phone",
}

SLOT: Final = ("start_time", "end_time", "day_of_week")
"""What `details.slot` keeps of a slot, as it was when it was read: slots are edited and deleted later."""

GONE: Final = frozenset({"service-gone", "slot-gone"})
SKIPPED: Final = "skipped by daylight saving"
SORTED: Final = json.JSONEncoder(sort_keys=True)

SERVICE_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
MOST_SERVICES: Final = 10  # a webhook belongs to one service; a forged body must not cost a thousand calls
MOST_PAGES: Final = 10
PAGE_SIZE: Final = 100
WALL_CLOCK: Final = re.compile(r"(?:\d{4}-\d{2}-\d{2}[T ])?(\d{2}):(\d{2})(?::(\d{2})(?:\.\d+)?)?")


# --- the two shapes --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Envelope:
    """What stands around the bookings; the older shape has nothing around its one booking."""

    bookings: Sequence[Wild]
    event_type: str | None = None
    timestamp: datetime | None = None

    @property
    def deletes(self) -> bool:
        return self.event_type == DELETE


def _open(body: Wild) -> Envelope:
    body.object()
    if body["bookings"].present:
        return Envelope(
            bookings=tuple(body["bookings"].items()),
            event_type=body["event_type"].word(),
            timestamp=body["timestamp"].instant(),
        )
    if body["id"].empty or body["service_id"].empty:
        raise body["bookings"].wrong("a list")
    return Envelope(bookings=(body,))


# --- asking ----------------------------------------------------------------------------------------------------


def lookup(incoming: Incoming) -> Call | None:
    """The service of each booking, then its slots as far as they are needed. A deleted booking asks nothing."""
    if not incoming.endpoint.has("api_key"):
        return None
    pages = Pages(incoming)
    for service_id, slot_id in _wanted(incoming):
        call = _service_call(service_id)
        if call.name not in incoming.answers:
            return call
        missing = _missing(pages, service_id, slot_id) if slot_id else None
        if missing:
            return missing
    return None


def _wanted(incoming: Incoming) -> Iterator[tuple[str, str | None]]:
    """Service and slot of each booking that can be read; no slot where one is embedded."""
    try:
        envelope = _open(read_json(incoming.delivery.body))
    except Malformed:
        return
    services: set[str] = set()
    for booking in () if envelope.deletes else envelope.bookings:
        try:
            service_id, slot_id = booking["service_id"].text(), booking["time_slot_id"].text()
            embedded = not booking["time_slot"]["start_time"].empty
        except Malformed:
            continue
        if service_id and SERVICE_ID.fullmatch(service_id) and len(services | {service_id}) <= MOST_SERVICES:
            services.add(service_id)
            yield service_id, None if embedded else slot_id


def _missing(pages: Pages, service_id: str, slot_id: str) -> Call | None:
    try:
        found = _search(pages, service_id, slot_id)
    except Malformed:
        return None
    return found if isinstance(found, Call) else None


def _service_call(service_id: str) -> Call:
    return _call(f"service:{service_id}", f"/services/{service_id}", cache=timedelta(minutes=10))


def _page_call(service_id: str, page: int) -> Call:
    """The documentation wants a page also where no pages are wanted."""
    params = {"service_id": service_id, "page": str(page), "page_size": str(PAGE_SIZE), "no_pagination": "true"}
    return _call(_page_name(service_id, page), "/time-slots", params=params, cache=timedelta(seconds=60))


def _page_name(service_id: str, page: int) -> str:
    return f"slots:{service_id}" if page == 1 else f"slots:{service_id}:{page}"


def _fresh_call(service_id: str) -> Call:
    return _call(f"slots:{service_id}:fresh", f"/services/{service_id}/time-slots")


def _call(name: str, path: str, *, params: Mapping[str, str] | None = None, cache: timedelta | None = None) -> Call:
    return Call(
        name=name,
        path=path,
        auth=Auth.BEARER_KEY,
        params=params or {},
        accepts=frozenset({404}),
        required=False,
        cache=cache,
    )


# --- what the API answered -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """One answer with slots: each by its id, and the number of pages that there are."""

    slots: Mapping[str | None, Wild]
    count: int
    asked_at: datetime
    readable: bool = True


class Pages:
    """The answers with slots of one delivery, each read once, however many bookings are in the body."""

    def __init__(self, incoming: Incoming) -> None:
        self.received_at = incoming.delivery.received_at
        self.known = bool(incoming.answers)
        self._answers = incoming.answers
        self._read: dict[str, Page] = {}

    def get(self, name: str) -> Page | None:
        """The page, or None where it was not answered. Raises Malformed."""
        if name not in self._answers:
            return None
        if name not in self._read:
            self._read[name] = _page(self._answers[name])
        if not self._read[name].readable:
            raise Malformed("lookup.slots: expected slots")
        return self._read[name]


def _search(pages: Pages, service_id: str, slot_id: str) -> Wild | Call | None:
    """The slot, or the call that may bring it, or None where the API knows no such slot. Raises Malformed.

    An answer kept from before this delivery cannot know a slot that was made since, so its silence proves nothing.
    """
    stale = False
    for number in range(1, MOST_PAGES + 1):
        page = pages.get(_page_name(service_id, number))
        if page is None:
            return _page_call(service_id, number)
        if slot_id in page.slots:
            return page.slots[slot_id]
        stale = stale or page.asked_at < pages.received_at
        if number >= page.count:
            break
    call = _fresh_call(service_id)
    fresh = pages.get(call.name)
    if fresh is None:
        return call if stale else None
    return fresh.slots.get(slot_id)


def _page(answer: Answer) -> Page:
    try:
        slots, count = _slots(answer)
        by_id = {slot["id"].text(): slot for slot in reversed(slots)}
    except Malformed:
        return Page(slots={}, count=1, asked_at=answer.at, readable=False)
    return Page(slots=by_id, count=count, asked_at=answer.at)


def _slots(answer: Answer) -> tuple[Sequence[Wild], int]:
    """The slots of one answer and the number of pages. Raises Malformed.

    Bare under `data` or under `data.time_slots`; null for none, as Go writes an empty slice. Pages are counted in
    `pagination.total_pages` (guide, Swagger) or `metadata.lastPage` (the Swagger file's extension).
    """
    if answer.status == 404:
        return (), 1
    body = _answered(answer, "lookup.slots")
    data = body["data"]
    inside = data if isinstance(data.value, dict) else Wild(None, data.path)
    slots = data if inside.empty else inside["time_slots"]
    if not slots.present:
        raise slots.wrong("a list")
    counted = inside["pagination"].first(body["pagination"], body["metadata"])
    count = counted["total_pages"].first(counted["lastPage"]).integer()
    return () if slots.value is None else tuple(slots.items()), count or 1


def _answered(answer: Answer, path: str) -> Wild:
    body = Wild(answer.body, path)
    body.object()
    if not answer.ok or not body["error"].empty:
        raise body.wrong("an answer without an error")
    return body


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """What is known of the service; `note` says why it is not more."""

    name: str | None = None
    zone: ZoneInfo | None = None
    note: str | None = None


NO_SERVICE: Final = Service()


def _service(booking: Wild, incoming: Incoming) -> Service:
    if not incoming.answers:
        return NO_SERVICE
    answer = incoming.answers.get(f"service:{booking['service_id'].text()}")
    if answer is None:
        return NO_SERVICE
    if answer.status == 404:
        return Service(note="service-gone")
    try:
        told = _answered(answer, "lookup.service")["data"]
        told.object()
        return Service(name=told["name"].text(), zone=_zone(told["timezone"]))
    except Malformed:
        return Service(note="unreadable")


def _zone(field: Wild) -> ZoneInfo | None:
    name = field.text()
    try:
        return ZoneInfo(name) if name else None
    except (LookupError, ValueError, OSError) as error:
        raise field.wrong("an IANA time zone") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """When the slot begins and ends by the venue's clock, and how the provider wrote it."""

    start: time | None = None
    end: time | None = None
    shown: Mapping[str, Any] | None = None
    note: str | None = None


NO_SLOT: Final = Slot()


def _slot(booking: Wild, pages: Pages, zone: ZoneInfo | None) -> Slot:
    """The embedded slot, else the one that the API knows. Raises Malformed where the embedded one is unreadable."""
    if not booking["time_slot"]["start_time"].empty:
        return _read_slot(booking["time_slot"], zone)
    if not pages.known:
        return NO_SLOT
    service_id, slot_id = booking["service_id"].text(), booking["time_slot_id"].text()
    if service_id is None or slot_id is None:
        return NO_SLOT
    try:
        found = _search(pages, service_id, slot_id)
        if isinstance(found, Wild):
            return _read_slot(found, zone)
    except Malformed:
        return Slot(note="unreadable")
    return Slot(note="slot-gone") if found is None else NO_SLOT


def _read_slot(slot: Wild, zone: ZoneInfo | None) -> Slot:
    return Slot(
        start=_wall_clock(slot["start_time"], zone),
        end=_wall_clock(slot["end_time"], zone),
        shown={name: slot[name].plain() for name in SLOT if slot[name].present},
    )


def _wall_clock(field: Wild, zone: ZoneInfo | None) -> time | None:
    """The time of day at the venue; None where it is empty, or an instant and no zone is known. Raises Malformed."""
    text = field.text()
    if text is None:
        return None
    naive = WALL_CLOCK.fullmatch(text)
    if naive is None:
        moment = field.instant()
        return moment.astimezone(zone).time() if moment and zone else None
    hour, minute, second = (int(part or 0) for part in naive.groups())
    try:
        return time(hour, minute, second)
    except ValueError as error:
        raise field.wrong("a time of day") from error


# --- reading ---------------------------------------------------------------------------------------------------


def normalize(incoming: Incoming) -> Sequence[Element]:
    """One event per booking in the body. Raises Malformed."""
    envelope = _open(read_json(incoming.delivery.body))
    pages = Pages(incoming)
    elements = [_element(booking, envelope, incoming, pages) for booking in envelope.bookings]
    return elements or [Ignored(reason="no-bookings")]


def _element(booking: Wild, envelope: Envelope, incoming: Incoming, pages: Pages) -> Element:
    try:
        return _event(booking, envelope, incoming, pages)
    except Malformed as error:
        return Failed(error=error)


def _event(booking: Wild, envelope: Envelope, incoming: Incoming, pages: Pages) -> Event:
    booking.object()
    said, details = _own_words(booking, envelope)
    if not envelope.deletes:
        looked_up, notes = _visit(booking, incoming, pages, said.get("date"))
        said, details = {**said, **looked_up}, {**details, **notes}
    version, same_as = _order(booking, envelope)
    return Event(
        external_id=booking["id"].needed(), said={**said, "details": details}, version=version, same_as=same_as
    )


def _own_words(booking: Wild, envelope: Envelope) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the webhook itself says: columns and details."""
    said: dict[str, Any] = {}
    for column, name, read in COLUMNS:
        carry(said, column, booking[name], read)
    if envelope.deletes:
        said["status"] = Status.CANCELLED
    elif booking["status"].present:
        said["status"] = STATUS.get(said["provider_status"], Status.UNKNOWN)
    customer = booking["customer"]
    said.update(_customer(booking, customer))
    details = {} if envelope.event_type is None else {"event_type": envelope.event_type}
    carry(details, "time_slot_id", booking["time_slot_id"], Wild.text)
    carry(details, "version", booking["version"], Wild.integer)
    carry(details, "customer_updated_at", customer["updated_at"], Wild.text)
    return said, details


def _customer(booking: Wild, customer: Wild) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if customer.present and customer.empty:
        said = dict.fromkeys(CUSTOMER)
    for column, name in CUSTOMER.items():
        carry(said, column, customer[name], Wild.text)
    # The Swagger file's Booking has the id of the customer outside as well.
    if said.get("customer_id") is None:
        carry(said, "customer_id", booking["customer_id"], Wild.text)
    return said


def _visit(booking: Wild, incoming: Incoming, pages: Pages, day: date | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """When and where, as far as slot and service are known: columns and details.

    What is not known is said to be null, because a booking may just have been moved to another day. Only where the API
    knows the slot or the service no more, what was computed before stays: nothing can be moved to a slot that is gone.
    """
    service = _service(booking, incoming)
    zone = service.zone or incoming.endpoint.zone()
    slot = _slot(booking, pages, zone)
    note = service.note or slot.note
    said: dict[str, Any] = {}
    clock = None
    if booking["service_id"].present:
        said["resource_name"] = service.name
    if booking["date"].present:
        said["timezone"] = zone.key if zone else None
        said["starts_at"], said["ends_at"], clock = _times(day, slot, zone)
    if note in GONE:
        said = {column: value for column, value in said.items() if value is not None}
    details: dict[str, Any] = {"clock": clock, "slot": slot.shown} if "starts_at" in said else {}
    return said, {**details, "lookup": note} if incoming.answers else details


def _times(day: date | None, slot: Slot, zone: ZoneInfo | None) -> tuple[datetime | None, datetime | None, str | None]:
    """Start and end (UTC) and a note on the clock; an end before the start is on the next day."""
    if day is None or zone is None or slot.start is None:
        return None, None, None
    starts_at, skipped = at_venue(datetime.combine(day, slot.start), zone)
    note = SKIPPED if skipped else None
    if slot.end is None:
        return starts_at, None, note
    last_day = day + timedelta(days=1) if slot.end < slot.start else day
    return starts_at, at_venue(datetime.combine(last_day, slot.end), zone)[0], note


def _order(booking: Wild, envelope: Envelope) -> tuple[str | None, str | None]:
    """Version and sameness of one element; none where it has neither a time nor a version.

    Newer is what was updated later, then what was sent later; on a tie a delete wins, because a booking that is
    removed keeps its `updated_at`. Two edits of the customer share `updated_at`, so the whole element makes sameness.
    """
    updated_at, number = booking["updated_at"].instant(), booking["version"].integer()
    moment = updated_at or envelope.timestamp
    if moment is None and number is None:
        return None, None
    sent = envelope.timestamp or moment
    changed = _sortable(moment)
    version = f"{changed}/{_sortable(sent)}/{int(envelope.deletes)}/{max(number or 0, 0):010d}"
    return version, f"{changed}/{_digest(booking, envelope)}"


@lru_cache(maxsize=64)  # all bookings of a body are sent at the same moment, and most were changed at that moment too
def _sortable(moment: datetime | None) -> str:
    return moment.isoformat(timespec="microseconds") if moment else ""


def _digest(booking: Wild, envelope: Envelope) -> str:
    try:
        element = SORTED.encode([envelope.event_type, booking.value])
    except (RecursionError, ValueError) as error:
        raise booking.wrong("less nesting") from error
    return hashlib.sha256(element.encode()).hexdigest()[:32]


PROVIDER = Provider(
    name="reservekit",
    title="ReserveKit",
    docs="https://github.com/ReserveKit/docs",
    normalize=normalize,
    lookup=lookup,
    api_url="https://api.reservekit.io/v1",
    # Guide, "Rate limits": 5 a second and 10 at once on Starter; 10 and 20 on Developer, 20 and 50 on Growth.
    rate=Rate(per_second=5, burst=10),
    secrets=(("api_key",),),
)
