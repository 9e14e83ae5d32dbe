"""Lockme (lock.me): escape rooms.

A webhook says only that there is something to read: its body is empty and `X-MessageId` names a message. What the
message says is read by `GET /message/{id}`; until `POST /message/{id}` says that it was read, the same message comes
again for 24 hours at growing intervals (lock.me help, "Webhooks configuration"). The help page says POST, live clients
only ever see GET (negan-1/lockme-discord-bot), so the method is not looked at. No message is documented word for
word: the names of its fields are those that Lockme's own adapters read (lockmepl/lockme-wordpress, lockme-sdk).

Does not know how tokens are got, kept and refreshed; a `Call` with `Auth.OAUTH` asks for one.

A message as `GET /message/{id}` answers it:

    {"action": "add",                  add, edit, delete, test
     "roomid": 1188,                   number or text, as all ids
     "reservationid": "5520931",
     "data": {"roomid": 1188,          perhaps; wins over the one outside
              "date": "2026-10-24", "hour": "18:30:00",     the venue's wall clock; no end
              "people": 4,             0 where nobody knows
              "price": "240.00",       number or text, no currency anywhere
              "name": "…", "surname": "…", "email": "…", "phone": "…", "comment": "",
              "source": "web",         web, panel, widget, api
              "status": 1,             1/0, true/false, "1"/"0"
              "extid": "", "pricer": 77, "language": "pl", "invoice": "",
              "time": "2026-10-01 12:04:55"}}               when it was booked

Senders in privacy mode leave all but `roomid`, `date`, `hour`, `status` and `extid` away.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, time, timedelta
from typing import Any, Final

from schemas.booking import Status
from schemas.delivery import RawDelivery
from schemas.endpoints import Endpoint
from workers.errors import Malformed, MessageGone, Unsupported
from workers.provider import Answer, Auth, Call, Element, Event, Ignored, Incoming, OAuth, Option, Provider
from workers.reading import Wild, at_venue, carry

HOST: Final = "https://api.lock.me"
DEFAULT_VERSION: Final = "v2.4"
VERSION: Final = re.compile(r"v\d+\.\d+")

MESSAGE_ID: Final = re.compile(r"[0-9]{1,19}")
HOUR: Final = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
AN_HOUR: Final = "an hour such as 18:30:00"
SHOWABLE: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")

BOOKING_ACTIONS: Final = ("add", "edit", "delete")
IGNORED: Final[Mapping[str, str]] = {"test": "provider-test"}
"""Actions that are known and of no interest, with the reason: `test` is the panel's check of the connection."""

FIRM: Final[Mapping[str | None, bool]] = {"1": True, "true": True, "0": False, "false": False, None: False}
"""Their `status` is truthy or falsy; an empty one is falsy to the PHP that reads it (lockme-wordpress, Booked.php)."""

STATUS: Final[Mapping[tuple[str, bool | None], Status]] = {
    # On the portal the slot is blocked for at most 20 minutes while the customer pays (Booked.php).
    ("web", False): Status.HOLD,
    ("web", True): Status.CONFIRMED,
    # Elsewhere a falsy status is a draft: not firm, yet no checkout either, so it must stay visible.
    ("elsewhere", False): Status.PENDING,
    ("elsewhere", True): Status.CONFIRMED,
}

SKIPPED: Final = "skipped by daylight saving"
"""Stands in `details.clock` when the venue's clock never showed that hour; the visit is put behind the gap."""


# --- asking ----------------------------------------------------------------------------------------------------


def message_id(delivery: RawDelivery) -> str | None:
    """The id of the message, where the request names one."""
    header = (delivery.header("x-messageid") or "").strip()
    return header if MESSAGE_ID.fullmatch(header) else None


def lookup(incoming: Incoming) -> Call | None:
    """The message; then, where the endpoint wants the names of rooms, the rooms. Raises Malformed."""
    number = _needed_id(incoming)
    message = incoming.answers.get("message")
    if message is None:
        return Call(name="message", path=f"/message/{number}", auth=Auth.OAUTH, accepts=frozenset({404}))
    wants_rooms = incoming.endpoint.options.get("room_names") and "rooms" not in incoming.answers
    if wants_rooms and _speaks_of_a_booking(message):
        return Call(name="rooms", path="/rooms", auth=Auth.OAUTH, required=False, cache=timedelta(minutes=10))
    return None


def acknowledge(incoming: Incoming) -> Call | None:
    """Marks the message as read, whatever it said: what nobody marks comes again for 24 hours."""
    number = message_id(incoming.delivery)
    if number is None:
        return None
    return Call(name="acknowledge", method="POST", path=f"/message/{number}", auth=Auth.OAUTH, accepts=frozenset({404}))


def api_base(endpoint: Endpoint) -> str:
    """Resources live below a version, `{host}/{version}{path}`; an `api_url` that names one already keeps it."""
    host = endpoint.api_url or HOST
    versioned = VERSION.fullmatch(host.rsplit("/", 1)[-1])
    return host if versioned else f"{host}/{endpoint.options.get('api_version', DEFAULT_VERSION)}"


def _needed_id(incoming: Incoming) -> str:
    number = message_id(incoming.delivery)
    if number is None:
        raise Malformed("headers.x-messageid: expected 1 to 19 digits", reason="no-message-id")
    return number


def _speaks_of_a_booking(message: Answer) -> bool:
    return message.ok and isinstance(message.body, dict) and message.body.get("action") in BOOKING_ACTIONS


# --- reading ---------------------------------------------------------------------------------------------------


def normalize(incoming: Incoming) -> Sequence[Element]:
    """What the message says. Raises Malformed, MessageGone, Unsupported."""
    number = _needed_id(incoming)
    message = _message(incoming)
    action = message["action"].needed()
    if action in IGNORED:
        return [Ignored(reason=IGNORED[action])]
    if action not in BOOKING_ACTIONS:
        shown = action if SHOWABLE.fullmatch(action) else "a word"
        raise Unsupported(f"{message['action'].path}: {shown} is not known", reason="unsupported-action")
    return [
        Event(
            external_id=message["reservationid"].needed(),
            said=_said(action, message, number, incoming),
            version=number.zfill(20),
            same_as=number,
        )
    ]


def _message(incoming: Incoming) -> Wild:
    answer = incoming.answers.get("message")
    if answer is not None and answer.status == 404:
        raise MessageGone
    if answer is None or not answer.ok:
        raise Malformed("the message has not been looked up", reason="not-looked-up")
    message = Wild(answer.body, "lookup.message")
    message.object()
    return message


def _said(action: str, message: Wild, number: str, incoming: Incoming) -> dict[str, Any]:
    data = message["data"]
    said: dict[str, Any] = {}
    details: dict[str, Any] = {"message_id": number}
    for column, name, read in COLUMNS:
        carry(said, column, data[name], read)
    for name, read in DETAILS:
        carry(details, name, data[name], read)
    for part in (
        _status(action, data),
        _customer_name(data),
        _booked(data, incoming.endpoint),
        _visit(data, incoming.endpoint, details),
        _room(data["roomid"].first(message["roomid"]), incoming.answers.get("rooms"), details),
    ):
        said.update(part)
    return {**said, "details": details}


def _whole(field: Wild) -> Any:
    return None if field.empty else field.plain()


COLUMNS: Final[Sequence[tuple[str, str, Callable[[Wild], Any]]]] = (
    ("party_size", "people", lambda field: field.integer() or None),
    ("total", "price", Wild.decimal),
    ("customer_email", "email", Wild.text),
    ("customer_phone", "phone", Wild.text),
    ("note", "comment", Wild.text),
    ("source", "source", Wild.word),
)
"""Our column, their field, how it is read. There is no currency, and nothing tells a deposit from the full price."""

DETAILS: Final[Sequence[tuple[str, Callable[[Wild], Any]]]] = (
    ("extid", Wild.text),
    ("pricer", Wild.text),
    ("language", Wild.text),
    ("invoice", _whole),
)


def _status(action: str, data: Wild) -> dict[str, Any]:
    field = data["status"]
    said: dict[str, Any] = {}
    carry(said, "provider_status", field, _as_written)
    if action == "delete":
        said["status"] = Status.CANCELLED
    elif field.present:
        where = "web" if data["source"].word() == "web" else "elsewhere"
        said["status"] = STATUS.get((where, FIRM.get(said["provider_status"])), Status.UNKNOWN)
    return said


def _as_written(field: Wild) -> str | None:
    return json.dumps(field.value) if isinstance(field.value, bool) else field.word()


def _customer_name(data: Wild) -> dict[str, Any]:
    parts = (data["name"], data["surname"])
    if not any(part.present for part in parts):
        return {}
    return {"customer_name": " ".join(filter(None, (part.text() for part in parts))) or None}


def _booked(data: Wild, endpoint: Endpoint) -> dict[str, Any]:
    """The moment of booking, which is written without a zone: taken for the venue's (inferred)."""
    said: dict[str, Any] = {}
    zone = endpoint.zone()
    if zone is not None:
        carry(said, "provider_created_at", data["time"], Wild.moment)
    moment = said.get("provider_created_at")
    if zone is not None and moment is not None and moment.utcoffset() is None:
        said["provider_created_at"], _ = at_venue(moment, zone)
    return said


def _visit(data: Wild, endpoint: Endpoint, details: dict[str, Any]) -> dict[str, Any]:
    """When it is. A message with only one of `date` and `hour` says that the start known so far is no longer sure."""
    if not (data["date"].present or data["hour"].present):
        return {}
    said: dict[str, Any] = {"timezone": endpoint.timezone, "starts_at": None}
    carry(said, "date", data["date"], Wild.day)
    day, hour, zone = said.get("date"), _hour(data["hour"]), endpoint.zone()
    details["clock"] = None
    if day is not None and hour is not None and zone is not None:
        said["starts_at"], skipped = at_venue(datetime.combine(day, hour), zone)
        details["clock"] = SKIPPED if skipped else None
    minutes = endpoint.options.get("slot_minutes")
    if minutes is not None:
        said["ends_at"] = said["starts_at"] and said["starts_at"] + timedelta(minutes=minutes)
    return said


def _hour(field: Wild) -> time | None:
    """`18:30:00`, `18:30` and `9:30` alike, as the adapters read it."""
    text = field.text()
    if text is None:
        return None
    parts = HOUR.fullmatch(text)
    if parts is None:
        raise field.wrong(AN_HOUR)
    hour, minute, second = (int(part or 0) for part in parts.groups())
    try:
        return time(hour, minute, second)
    except ValueError as error:
        raise field.wrong(AN_HOUR) from error


def _room(room: Wild, answer: Answer | None, details: dict[str, Any]) -> dict[str, Any]:
    if not room.present:
        return {}
    said: dict[str, Any] = {"resource_id": room.text(), "resource_name": None}
    if answer is not None:
        try:
            said["resource_name"] = _names(answer).get(said["resource_id"])
            details["lookup"] = None
        except Malformed:
            details["lookup"] = "unreadable"
    return said


def _names(answer: Answer) -> dict[str | None, str | None]:
    """Room id → name. Raises Malformed."""
    rooms = Wild(answer.body, "lookup.rooms").items()
    return {room["roomid"].needed(): room["room"].text() for room in rooms}


# --- the provider ----------------------------------------------------------------------------------------------


def _version_mend(value: str) -> str | None:
    return None if VERSION.fullmatch(value) else "write the version as Lockme's panel shows it, such as v2.4"


def _minutes_mend(value: int) -> str | None:
    return None if 0 < value <= 24 * 60 else "write the minutes of one visit as a whole number from 1 to 1440"


PROVIDER = Provider(
    name="lockme",
    title="Lockme",
    docs="https://lock.me/en/docs/article/webhooks-configuration",
    normalize=normalize,
    lookup=lookup,
    message_id=message_id,
    acknowledge=acknowledge,
    api_url=HOST,
    api_base=api_base,
    # lockmepl/oauth2-lockme, Lockme.php: both without a version; scope from lockmepl/lockme-sdk, README.
    oauth=OAuth(authorize="/authorize", token="/access_token", scope="rooms_manage"),  # noqa: S106  (a path)
    options={
        "api_version": Option(
            kind=str, meaning="the API version that the integration is set to in Lockme's panel", check=_version_mend
        ),
        "slot_minutes": Option(kind=int, meaning="how long a visit takes; Lockme names no end", check=_minutes_mend),
        "room_names": Option(kind=bool, meaning="true: the names of the rooms are read too"),
    },
    secrets=(("access_token",), ("client_id", "client_secret")),
    needs_secrets=True,
    needs_timezone=True,
)
