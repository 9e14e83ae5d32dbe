"""Timekit: appointments and group bookings.

Sends the booking itself as a JSON object, one request per hook that was set for a graph and a state; three more tries
after a failure, then none (developers.timekit.io, "Notifications & webhooks"; help.timekit.io, "What is a webhook?").
On some plans the body is signed. Everything is in the body, so nothing is looked up; but what is in it differs: before
a booking is confirmed there may be no `event` and no `calendar`, and older hooks lack whole relations.

Not copied, because one click on them changes the booking: `customer_action_links`. Not done, because it takes two
bookings to see it: linking a rescheduled booking with the one that took its place.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache
from typing import Any, Final
from zoneinfo import ZoneInfo, available_timezones

from schemas.booking import Status
from schemas.endpoints import Endpoint
from workers.errors import BadSignature, Malformed
from workers.provider import Element, Event, Ignored, Incoming, Option, Provider, Rate
from workers.reading import Wild, carry, read_json

SIGNATURE: Final = "x-timekit-signature"


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What a state of theirs is in our words."""

    status: Status
    cancel_reason: str | None = None
    ended: bool = False
    """Nothing follows in the graph; the calendar's event may be gone."""


STATES: Final[Mapping[str, State]] = {
    # In the order of the graphs: updated_at has whole seconds, and on a tie the lower line is the newer one.
    "initialized": State(status=Status.UNKNOWN),
    "reserved": State(status=Status.HOLD),  # the graph `reservation`: a slot kept without a customer
    "tentative": State(status=Status.PENDING),
    "confirmed": State(status=Status.CONFIRMED),
    "paid": State(status=Status.CONFIRMED),
    "other": State(status=Status.UNKNOWN),
    "error": State(status=Status.UNKNOWN),
    # The state `completed` comes about an hour after the end; the flag `completed` only says that no action is left.
    "completed": State(status=Status.COMPLETED, ended=True),
    "unpaid": State(status=Status.CANCELLED, cancel_reason="unpaid", ended=True),
    "expired": State(status=Status.CANCELLED, cancel_reason="expired", ended=True),
    "declined": State(status=Status.CANCELLED, cancel_reason="declined", ended=True),
    "rescheduled_by_customer": State(status=Status.CANCELLED, cancel_reason="rescheduled", ended=True),
    "cancelled": State(status=Status.CANCELLED, ended=True),
    "cancelled_by_owner": State(status=Status.CANCELLED, cancel_reason="by-owner", ended=True),
    "cancelled_by_customer": State(status=Status.CANCELLED, cancel_reason="by-customer", ended=True),
}
NEW_WORD: Final = STATES["other"]
RANKS: Final[Mapping[str, int]] = {word: place for place, word in enumerate(STATES)}


# --- the signature -------------------------------------------------------------------------------------------


def verify(incoming: Incoming, secrets: Mapping[str, str]) -> None:
    """Hexadecimal HMAC-SHA256 over the raw bytes ("Signed webhooks"): the sender escapes slashes, so that reading and
    writing the JSON again would change it. Several secrets, parted by blanks or commas, are all good.
    """
    keys = [key for key in re.split(r"[\s,]+", secrets.get("webhook_secret", "")) if key]
    if not keys:
        return
    given = (incoming.delivery.header(SIGNATURE) or "").strip().lower()
    if not given:
        raise BadSignature(f"the header {SIGNATURE} is missing; the endpoint has a webhook secret")
    wanted = [hmac.new(key.encode(), incoming.delivery.body, hashlib.sha256).hexdigest() for key in keys]
    matches = [hmac.compare_digest(given.encode(), one.encode()) for one in wanted]
    if not any(matches):
        raise BadSignature(f"the header {SIGNATURE} does not belong to this body and the endpoint's webhook secret")


# --- what it says --------------------------------------------------------------------------------------------


def normalize(incoming: Incoming) -> Sequence[Element]:
    """One event, or none for an open slot of a group. Raises Malformed."""
    booking = _booking(read_json(incoming.delivery.body))
    if booking["graph"].word() == "group_owner" and not incoming.endpoint.options.get("group_owners", False):
        return [Ignored(reason="group-owner")]
    external_id, state = booking["id"].needed(), booking["state"].word()
    stamp = _stamp(booking["updated_at"].instant())
    return [
        Event(
            external_id=external_id,
            said=_said(booking, incoming.endpoint),
            version=_version(stamp, state),
            same_as=_same_as(external_id, state, stamp, incoming.delivery.body),
        )
    ]


def _booking(document: Wild) -> Wild:
    """The hook has the booking at top level, the API under `data`."""
    return document["data"] if document["id"].empty and not document["data"].empty else document


def _stamp(updated_at: datetime | None) -> str | None:
    """Their time in UTC, in a form that sorts as text."""
    if updated_at is None:
        return None
    return updated_at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _version(stamp: str | None, state: str | None) -> str | None:
    """Their time, and how far the state is in its graph."""
    if stamp is None:
        return None
    rank = RANKS.get((state or "").lower(), RANKS["other"])
    return f"{stamp}/{rank:02d}"


def _same_as(external_id: str, state: str | None, stamp: str | None, body: bytes) -> str | None:
    """Without their time nothing tells a repeat from a booking that came back to a state."""
    if stamp is None:
        return None
    parts = f"{external_id}\n{state}\n{stamp}\n".encode()
    return hashlib.sha256(parts + body).hexdigest()


def _said(booking: Wild, endpoint: Endpoint) -> dict[str, Any]:
    said: dict[str, Any] = {"details": {}}
    state = _state(said, booking["state"])
    _times(said, booking, endpoint)
    _resource(said, booking, state)
    _customers(said, booking)
    _details(said["details"], booking)
    _party_size(said, endpoint.options.get("party_size"))
    comment = booking.at("attributes", "customer", "comment")
    carry(said, "note", comment.first(booking.at("event", "description")), Wild.text)
    carry(said, "provider_created_at", booking["created_at"], Wild.instant)
    carry(said, "provider_updated_at", booking["updated_at"], Wild.instant)
    return said


def _state(said: dict[str, Any], field: Wild) -> State:
    """The state goes with its reason, also where it has none: a booking that is back has no reason any more."""
    word = field.word()
    state = STATES.get((word or "").lower(), NEW_WORD)
    if field.present:
        said |= {"status": state.status, "provider_status": word, "cancel_reason": state.cancel_reason}
    return state


# --- when ----------------------------------------------------------------------------------------------------


def _times(said: dict[str, Any], booking: Wild, endpoint: Endpoint) -> None:
    """Instants as written; the day in the venue's zone. Start and end come from one place, so that they fit."""
    attributes = booking["attributes"]
    places = (booking["event"], attributes["event_info"], attributes["event"])
    place = next((place for place in places if not place["start"].empty), places[0])
    start, all_day = place["start"], place["allDay"].truth() or False
    for column, field in (("starts_at", start), ("ends_at", place["end"])):
        carry(said, column, field, _all_day_instant if all_day else Wild.instant)
    zone = _zone(said, booking.at("user", "timezone"), endpoint)
    if all_day:
        carry(said, "date", start, Wild.day)
    elif zone is not None and start.present:
        said["date"] = _day(said["starts_at"], zone)


def _all_day_instant(field: Wild) -> datetime | None:
    """A day without a time and an offset is no instant."""
    text = field.text() or ""
    moment = field.moment() if len(text) > len("2026-05-06") else None
    return moment.astimezone(UTC) if moment is not None and moment.utcoffset() is not None else None


def _day(instant: datetime | None, zone: ZoneInfo) -> date | None:
    return instant.astimezone(zone).date() if instant is not None else None


def _zone(said: dict[str, Any], users: Wild, endpoint: Endpoint) -> ZoneInfo | None:
    """The endpoint's zone, else the user's (the resource's); a name that is no zone is only noted."""
    name = endpoint.timezone or (None if users.empty else str(users.plain()))
    if name is None:
        return None
    if name not in _zones():
        said["details"]["unknown_timezone"] = users.plain()
        return None
    said["timezone"] = name
    return ZoneInfo(name)


@cache
def _zones() -> frozenset[str]:
    """Listed once: a name from outside must not become a path in the zone database."""
    return frozenset(available_timezones())


# --- where and who -------------------------------------------------------------------------------------------


def _resource(said: dict[str, Any], booking: Wild, state: State) -> None:
    """The calendar; where there is none yet, its user. An ended booking may have lost its calendar, and then the
    user must not take the place of what earlier events said.
    """
    calendar = booking["calendar"]
    source = booking["user"] if calendar.empty and not state.ended else calendar
    carry(said, "resource_id", source["id"], Wild.text)
    carry(said, "resource_name", source["name"], Wild.text)


PERSON: Final[Mapping[str, str]] = {
    "customer_id": "id",
    "customer_name": "name",
    "customer_email": "email",
    "customer_phone": "phone",
}


def _customers(said: dict[str, Any], booking: Wild) -> None:
    """The first customer stands in the columns, further ones in details."""
    customers = booking["customers"].one_or_many()
    first = customers[0] if customers else booking.at("attributes", "customer")
    if first.empty and booking["customers"].present:
        said |= dict.fromkeys(PERSON)
    for column, field in PERSON.items():
        carry(said, column, first[field], Wild.text)
    if len(customers) > 1:
        said["details"]["customers"] = [
            {field: one[field].text() for field in PERSON.values()} for one in customers[1:]
        ]


# --- the rest ------------------------------------------------------------------------------------------------


def _details(details: dict[str, Any], booking: Wild) -> None:
    event, info = booking["event"], booking.at("attributes", "event_info")
    carry(details, "graph", booking["graph"], Wild.plain)
    carry(details, "completed", booking["completed"], Wild.plain)
    carry(details, "what", event["what"].first(info["what"]), Wild.plain)
    carry(details, "where", event["where"].first(info["where"]), Wild.plain)
    carry(details, "project", booking["project"], _named)
    carry(details, "user", booking["user"], _named)
    carry(details, "meta", booking["meta"], _meta)
    details |= _group(booking)


def _named(field: Wild) -> Any:
    """A related thing by id and name; whatever else hangs on it stays in the raw body."""
    if field.empty:
        return None
    if not isinstance(field.value, dict):
        return field.plain()
    parts = {key: field[key] for key in ("id", "name")}
    return {key: part.plain() for key, part in parts.items() if part.present}


def _meta(field: Wild) -> Any:
    """An object, or the same written as JSON text."""
    if isinstance(field.value, str):
        try:
            read = json.loads(field.value)
        except (ValueError, RecursionError):
            read = None
        if isinstance(read, dict | list):
            field = Wild(read, field.path)
    return field.plain() or None


NO_OWNER: Final = Wild({})


def _group(booking: Wild) -> dict[str, Any]:
    """A seat's open slot: its id, and how many seats it has. `owner_booking` is an object or an id."""
    owner = booking["owner_booking"]
    whole = owner if isinstance(owner.value, dict) else NO_OWNER
    seats = booking.at("attributes", "group_booking").first(whole.at("attributes", "group_booking"))
    owner_id = whole["id"] if not whole.empty else owner.first(booking.at("related", "owner_booking_id"))
    told: dict[str, Any] = {} if owner_id.empty else {"owner_booking_id": owner_id.text()}
    if not seats.empty:
        told["seats"] = {"max": seats["max_seats"].integer(), "current": seats["current_seats"].integer()}
    return told


def _party_size(said: dict[str, Any], key: str | None) -> None:
    """Their model has no party size; a venue may ask its guests for it, who then write what they like."""
    meta = said["details"].get("meta")
    if key is None or not isinstance(meta, dict) or key not in meta:
        return
    try:
        people = Wild(meta[key]).integer()
    except Malformed:
        people = None
    said["party_size"] = people if people and people > 0 else None


PROVIDER = Provider(
    name="timekit",
    title="Timekit",
    docs="https://developers.timekit.io/docs/notifications-webhooks",
    normalize=normalize,
    verify=verify,
    api_url="https://api.timekit.io/v2",
    # help.timekit.io, "Timekit's rate limiter": 600 a minute, above it 503. A second's worth at once is our choice.
    rate=Rate(per_second=10, burst=10),
    options={
        "group_owners": Option(kind=bool, meaning="open slots of group bookings become rows of their own"),
        "party_size": Option(
            kind=str,
            meaning="the key in a booking's meta that holds the number of people",
            check=lambda key: None if key.strip() else 'names a key in meta: party_size = "party"',
        ),
    },
    secrets=(("api_key",), ("webhook_secret",)),
)
