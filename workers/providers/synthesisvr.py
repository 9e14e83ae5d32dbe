"""SynthesisVR (lbvr.net, now synthesisvr.com): VR arcades.

Sends a JSON array of `{uuid, action, location, stations, customerid}` by POST, waits two seconds, ignores the answer
and never sends again (synthesisvr.com knowledge base, "Webhooks"). There is no date, time, price or status in it:
with an API key the session and its customer are read back.

There is no clock in it either. The order is that of receipt, then the place in the array. A delete and a create of
one session close together, in two requests, are either a session that was moved or two requests that overtook each
other; then the API is asked what is true, and its answer is an event of that moment. Knows nothing of how calls are
made or how events are kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, Final
from urllib.parse import quote
from zoneinfo import ZoneInfo

from schemas.booking import Status
from schemas.delivery import EPOCH
from workers.errors import Malformed, Park, Unsupported
from workers.provider import Answer, Auth, Call, Element, Event, Failed, Ignored, Incoming, Provider, Recall
from workers.reading import Wild, at_venue, carry, read_json

ACTIONS: Final[Mapping[str, Status]] = {
    # Nothing says paid or approved, but the session stands in the calendar.
    "create": Status.CONFIRMED,
    "delete": Status.CANCELLED,
}
OPPOSITE: Final[Mapping[str, str]] = {"create": "delete", "delete": "create"}

DOUBTFUL_WITHIN: Final = timedelta(minutes=2)
"""A create and a delete this close to each other may have overtaken each other on the way."""

# "Reading Sessions & Goods Data Through API": RANGE is a length of time behind the main date, SEARCH a list
# separated by blanks. `date=` sets the main date and is "mandatory in the common case"; whether `uuid:` works without
# it is not said. So the widest window goes along, and the answer is filtered by the exact uuid.
RANGE: Final = "100 year"
SEARCH: Final = "date=2000-01-01 uuid:{uuid}"

# A blank in an id would put further search words beside it, a slash or a dot another path: then nobody is asked.
SAFE_ID: Final = re.compile(r"[0-9A-Za-z-]{1,100}")
UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
LONGEST_ID: Final = 100
MOST_READ_BACKS: Final = 200
"""Sessions, and customers, that are read back for one request; the others stay as the webhook says them."""

FOUND: Final = "found by the API"
GONE: Final = "not found by the API"
UNREADABLE: Final = "unreadable answer of the API"
"""The words of `details.session` and `details.customer`."""

IN_DOUBT: Final = "in doubt"
SETTLED: Final = "settled by the API"
"""The words of `details.order`, which is there once two requests came so close that they may have overtaken each other.

No word says that all is well: of the two, the one that is worked on first would say it, and a worker's turn must not
show in the row.
"""

# `duration` is a bare number in the pages, minutes presumably. An end is computed only where the unit is written.
MINUTES: Final = re.compile(r"(\d{1,4}) ?(?:m|min|mins|minutes?)", re.IGNORECASE)
MONEY: Final = re.compile(r"[^\d-]*(-?\d[\d.,]*)\D*")
DECIMAL_COMMA: Final = re.compile(r"-?\d+,\d{1,2}")
THOUSANDS: Final = re.compile(r"-?\d{1,3}(,\d{3})+(\.\d+)?")


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """One element of the array, in our words."""

    uuid: str
    action: str
    said: Mapping[str, Any]

    @property
    def customer(self) -> str | None:
        """The customer to read back: a delete needs none."""
        return self.said.get("customer_id") if self.action == "create" else None


# --- what the webhook says -----------------------------------------------------------------------------------


def _listen(incoming: Incoming) -> tuple[Heard | Failed, ...]:
    """Every element of the body. Raises Malformed where there is no JSON."""
    return _heard(incoming.delivery.body, incoming.endpoint.timezone)


@lru_cache(maxsize=64)  # it is asked several times for each delivery of a batch, and for every session and customer
def _heard(body: bytes, timezone: str | None) -> tuple[Heard | Failed, ...]:
    document = read_json(body)
    elements = document.items() if isinstance(document.value, list) else [document]
    return tuple(_hear(element, timezone) for element in elements)


def _hear(element: Wild, timezone: str | None) -> Heard | Failed:
    try:
        uuid, action = _uuid(element["uuid"]), _action(element["action"])
        return Heard(uuid=uuid, action=action, said=_said(element, action, timezone))
    except Park as error:
        return Failed(error=error)


def _uuid(field: Wild) -> str:
    uuid = field.needed().lower()
    if len(uuid) > LONGEST_ID:
        raise field.wrong("a shorter text")
    return uuid


def _action(field: Wild) -> str:
    word = field.needed()
    if word not in ACTIONS:
        shown = f" {word}" if re.fullmatch(r"[\w.-]{1,40}", word, re.ASCII) else ""
        raise Unsupported(f"{field.path}: the action{shown} is not known", reason="unsupported-action")
    return word


def _said(element: Wild, action: str, timezone: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {"status": ACTIONS[action], "provider_status": action, "details": {}}
    if timezone is not None:
        said["timezone"] = timezone
    carry(said, "quantity", element["stations"], Wild.integer)
    carry(said, "resource_name", element["location"], Wild.text)
    carry(said["details"], "location", element["location"], Wild.text)
    carry(said, "customer_id", element["customerid"], _customer_id)
    if action == "create" and said.get("customer_id", "") is None:
        said |= _person(None)
    return said


def _customer_id(field: Wild) -> str | None:
    """What stands there for somebody who walks in is not documented; 0 and null are nobody's id."""
    text = field.text()
    return None if text == "0" else text


# --- what to ask ---------------------------------------------------------------------------------------------


def lookup(incoming: Incoming) -> Call | Recall | None:
    """First our own memory; then, with a key, the sessions that were made or are in doubt, and the customers."""
    heard = [element for element in _listen(incoming) if isinstance(element, Heard)]
    if not heard:
        return None
    last = _last_words(heard)
    if "recent" not in incoming.answers:
        return Recall(name="recent", external_ids=tuple(last), within=DOUBTFUL_WITHIN)
    if not incoming.endpoint.has("api_key"):
        return None
    calls = [*_session_calls(last, _doubtful(last, incoming)), *_customer_calls(heard)]
    return next((call for call in calls if call.name not in incoming.answers), None)


def _last_words(heard: Sequence[Heard]) -> dict[str, str]:
    """Session → the last action in this body: within one array the order is certain."""
    return {element.uuid: element.action for element in heard}


def _doubtful(last: Mapping[str, str], incoming: Incoming) -> frozenset[str]:
    """The sessions of which another request, shortly before or after, had the opposite as its last word.

    Of two such requests each finds the other: so it does not matter which of them is worked on first.
    """
    recent = incoming.answers.get("recent")
    told = recent.body if recent is not None and isinstance(recent.body, list) else []
    words = {
        (str(row.get("delivery_id")), str(row.get("external_id"))): str(row["provider_status"])
        for row in told
        if isinstance(row, dict) and str(row.get("provider_status")) in OPPOSITE
    }
    others = {(uuid, action) for (_, uuid), action in words.items()}
    return frozenset(uuid for uuid, action in last.items() if (uuid, OPPOSITE[action]) in others)


def _session_calls(last: Mapping[str, str], doubtful: frozenset[str]) -> Iterator[Call]:
    wanted = [uuid for uuid, action in last.items() if action == "create" or uuid in doubtful]
    for uuid in _safe(wanted):
        search = quote(SEARCH.format(uuid=uuid), safe="")
        yield _call(f"session:{uuid}", f"/data/sessions/{{key}}/json/{quote(RANGE)}/{search}")


def _customer_calls(heard: Sequence[Heard]) -> Iterator[Call]:
    """The search is free text: the id of one customer can be part of another's phone number."""
    wanted = dict.fromkeys(element.customer for element in heard if element.customer)
    for customer in _safe(wanted):
        call = _call(f"customer:{customer}", f"/data/customers/{{key}}/search/{customer}")
        yield replace(call, keep=partial(_only, customer))


def _safe(ids: Sequence[str] | Mapping[str, None]) -> list[str]:
    return [text for text in ids if SAFE_ID.fullmatch(text)][:MOST_READ_BACKS]


def _call(name: str, path: str) -> Call:
    return Call(name=name, path=path, auth=Auth.KEY_IN_PATH, accepts=frozenset({404}), required=False)


# --- what it comes to ----------------------------------------------------------------------------------------


def normalize(incoming: Incoming) -> Sequence[Element]:
    """One event per element of the array; behind them one per session that was in doubt and that the API settled."""
    elements = _listen(incoming)
    if not elements:
        return [Ignored(reason="empty")]
    last = _last_words([element for element in elements if isinstance(element, Heard)])
    doubtful = _doubtful(last, incoming)
    closing = {element.uuid: place for place, element in enumerate(elements) if isinstance(element, Heard)}
    events: list[Element] = [
        _event(element, incoming, doubtful, closing=closing[element.uuid] == place)
        if isinstance(element, Heard)
        else element
        for place, element in enumerate(elements)
    ]
    return events + [event for uuid in last if uuid in doubtful for event in _settled(uuid, incoming)]


def _event(heard: Heard, incoming: Incoming, doubtful: frozenset[str], *, closing: bool) -> Event:
    """What an element says, and what was read back for it, where it is the body's last word on the session."""
    said = _with(heard.said, _note("order", IN_DOUBT) if heard.uuid in doubtful else {})
    if heard.customer is not None:
        said = _with(said, _customer(heard.customer, incoming))
    if closing and heard.action == "create" and heard.uuid not in doubtful:
        said = _with(said, _session(heard.uuid, incoming))
    if closing and heard.uuid in doubtful and _outcome(_session(heard.uuid, incoming)) == UNREADABLE:
        said = _with(said, _note("session", UNREADABLE))
    return Event(external_id=heard.uuid, said=said)


def _settled(uuid: str, incoming: Incoming) -> Iterator[Event]:
    """What the API says of a session in doubt, true when it was asked; nothing where it gave no clear answer."""
    status = {FOUND: Status.CONFIRMED, GONE: Status.CANCELLED}
    said = _session(uuid, incoming)
    outcome = _outcome(said)
    if outcome in status:
        said = _with({"status": status[outcome], **said}, _note("order", SETTLED))
        yield Event(external_id=uuid, said=said, as_of=incoming.answers[f"session:{uuid}"].at)


def _outcome(said: Mapping[str, Any]) -> str:
    return str(said.get("details", {}).get("session"))


def _with(said: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {**said, **more, "details": {**said.get("details", {}), **more.get("details", {})}}


def _note(key: str, word: str) -> dict[str, Any]:
    return {"details": {key: word}}


# --- what the API says ---------------------------------------------------------------------------------------


def _session(uuid: str, incoming: Incoming) -> dict[str, Any]:
    """The session in our words, with the outcome in `details.session`; nothing where nobody answered."""
    answer = incoming.answers.get(f"session:{uuid}")
    if answer is None:
        return {}
    try:
        row = _find(answer, "sessions", "uuid", uuid)
        return _note("session", GONE) if row is None else _with(_read_session(row, incoming), _note("session", FOUND))
    except Malformed:
        return _note("session", UNREADABLE)


def _customer(customer: str, incoming: Incoming) -> dict[str, Any]:
    """The person in our words, with the outcome in `details.customer`; nothing where nobody answered."""
    answer = incoming.answers.get(f"customer:{customer}")
    if answer is None:
        return {}
    try:
        row = _find(answer, "customers", "id", customer.lower())
        return {**_person(row), **_note("customer", GONE if row is None else FOUND)}
    except Malformed:
        return _note("customer", UNREADABLE)


def _only(customer: str, body: Any) -> Any:
    """The answer without the other guests that the search has found; nothing where we cannot tell them apart."""
    try:
        row = _find(Answer(status=200, body=body, at=EPOCH), "customers", "id", customer.lower())
    except Malformed:
        return None
    return {"customers": [row.value] if row is not None else []}


def _person(row: Wild | None) -> dict[str, Any]:
    """The columns that belong to one person: all of them change with the person."""
    fields = {"customer_name": "fullname", "customer_email": "email", "customer_phone": "phone"}
    return {column: row[field].text() if row is not None else None for column, field in fields.items()}


def _find(answer: Answer, name: str, id_field: str, wanted: str) -> Wild | None:
    """The row with exactly this id; None where there is none.

    Raises Malformed also where some row does not name its id: then nobody can say that it is not the one. So does a
    404: how this API says that a search found nothing is not documented, and a wrong address says the same.
    """
    document = Wild(answer.body, f"lookup.{name}")
    if answer.status == 404:
        raise document.wrong("rows")
    rows = [(_identity(key, row, id_field), row) for key, row in _rows(document, name, id_field)]
    found = next((row for identity, row in rows if identity == wanted), None)
    if found is None and any(identity is None for identity, _ in rows):
        raise document.wrong(f"rows that name their {id_field}")
    return found


def _rows(document: Wild, name: str, id_field: str) -> list[tuple[str, Wild]]:
    """The rows with the key under which each stands: a client reads `sessions` as an object, lists are taken too."""
    holder = document[name] if isinstance(document.value, dict) and name in document.value else document
    if isinstance(holder.value, list):
        return [("", row) for row in holder.items()]
    if _key(holder.object(), id_field) is not None:
        return [("", holder)]
    return [(key, holder[key]) for key in holder.object()]


def _identity(key: str, row: Wild, id_field: str) -> str | None:
    """The id that a row names, in whatever case its key is written; else the uuid that it stands under."""
    own = _key(row.value, id_field) if isinstance(row.value, dict) else None
    text = row[own].text() if own is not None else None
    if text is None and UUID.fullmatch(key):
        text = key
    return text.lower() if text else None


def _key(row: Mapping[str, Any], field: str) -> str | None:
    return next((key for key in row if key.lower() == field), None)


def _read_session(row: Wild, incoming: Incoming) -> dict[str, Any]:
    """Types and formats of these fields are not documented: what cannot be read stays in details as it came."""
    said: dict[str, Any] = {"details": {}}
    for name in ("experience", "games", "duration", "label", "externaluuid"):
        carry(said["details"], name, row[name], Wild.plain)
    _gently(said, "quantity", row, "stations", Wild.integer)
    _gently(said, "resource_name", row, "location", Wild.text)
    _gently(said, "total", row, "cost", _money)
    _gently(said, "items", row, "experience", _lines)
    _times(said, row, incoming.endpoint.zone())
    return said


def _gently(said: dict[str, Any], column: str, row: Wild, name: str, read: Callable[[Wild], Any]) -> None:
    try:
        carry(said, column, row[name], read)
    except Malformed:
        said["details"][name] = row[name].plain()


def _money(field: Wild) -> Decimal | None:
    """The number of a text such as `$12.50`; the sign before it is no certain currency."""
    text = field.text()
    if text is None:
        return None
    match = MONEY.fullmatch(text)
    if match is None:
        raise field.wrong("an amount")
    number = match[1]
    if DECIMAL_COMMA.fullmatch(number):
        number = number.replace(",", ".")
    elif THOUSANDS.fullmatch(number):
        number = number.replace(",", "")
    return Wild(number, field.path).decimal()


def _lines(field: Wild) -> list[dict[str, str]]:
    return [{"name": line.needed()} for line in field.one_or_many()]


def _times(said: dict[str, Any], row: Wild, zone: ZoneInfo | None) -> None:
    _gently(said, "date", row, "start_time", lambda field: _day(field, zone))
    for name, column in (("start_time", "starts_at"), ("end_time", "ends_at")):
        _gently(said, column, row, name, lambda field: _instant(field, zone))
        if said.get(column) is not None and _was_skipped(row[name], zone):
            said["details"][name] = row[name].plain()
    duration = row["duration"].value
    minutes = MINUTES.fullmatch(duration) if isinstance(duration, str) else None
    if minutes and row["end_time"].empty and said.get("starts_at") is not None:
        said["ends_at"] = said["starts_at"] + timedelta(minutes=int(minutes[1]))


def _instant(field: Wild, zone: ZoneInfo | None) -> datetime | None:
    """Wall-clock time is the venue's; without the endpoint's zone it is no instant."""
    moment = field.moment()
    if moment is None or moment.utcoffset() is not None:
        return moment.astimezone(UTC) if moment else None
    if zone is None:
        raise field.wrong("an instant, or the endpoint's time zone")
    return at_venue(moment, zone)[0]


def _day(field: Wild, zone: ZoneInfo | None) -> date | None:
    """The day at the venue: as written on its wall clock, or where an instant falls in its zone."""
    moment = field.moment()
    if moment is None or moment.utcoffset() is None:
        return moment.date() if moment else None
    if zone is None:
        raise field.wrong("a wall-clock time, or the endpoint's time zone")
    return moment.astimezone(zone).date()


def _was_skipped(field: Wild, zone: ZoneInfo | None) -> bool:
    """Whether daylight saving took that hour away, so that the instant is the one behind the gap."""
    moment = field.moment()
    return moment is not None and moment.utcoffset() is None and zone is not None and at_venue(moment, zone)[1]


PROVIDER = Provider(
    name="synthesisvr",
    title="SynthesisVR",
    docs="https://synthesisvr.com/knowledge-base/webhooks/",
    normalize=normalize,
    lookup=lookup,
    api_url="https://api.synthesisvr.com",
    secrets=(("api_key",),),
)
