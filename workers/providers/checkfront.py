"""Checkfront: tours, rentals, activities. A booking comes whole, as JSON, XML or form fields; one reader for all.

Booking Modified fires on every change and Booking Status Change on a change of status, so one change can come twice.
A booking's body has no event name, no action and no time of modification: what is newer is what came later, set
right by a read-back where API keys are set. Payments, items and rates come in an envelope of another form.
HTTPS only, a prompt 2xx; after five failures in a row the hook is switched off.

Pages (2024-03): Checkfront/API, docs/ref/notifications.rst and docs/ref/webhook/*.rst with their examples.
The page with `event: booking.create` and `CONFIRMED` is an outsider's pull request (number 43, 2025-03): tolerated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from schemas.booking import COLUMNS, Status, iso
from schemas.delivery import RawDelivery
from schemas.endpoints import Endpoint, did_you_mean
from workers.errors import Malformed, Park, Unsupported
from workers.provider import Answer, Auth, Call, Element, Event, Failed, Ignored, Incoming, Option, Provider
from workers.reading import Wild, carry, storable
from workers.trees import read_tree, tree

# --- their words ---------------------------------------------------------------------------------------------

STATUSES: Final[Mapping[str, Status]] = {
    "PEND": Status.PENDING,
    # Its label is "Reserved": a named customer with an order and a time. Their block during a checkout is another one.
    "HOLD": Status.PENDING,
    "WAIT": Status.PENDING,
    "PART": Status.CONFIRMED,
    "PAID": Status.CONFIRMED,
    "STOP": Status.CANCELLED,
    "VOID": Status.CANCELLED,
    # The words of the pull request.
    "PENDING": Status.PENDING,
    "CONFIRMED": Status.CONFIRMED,
    "CANCELLED": Status.CANCELLED,
}
"""The built-in codes (support, "Status types"). Accounts add their own: the endpoint's `statuses` maps those."""

Names = Mapping[str, tuple[str, ...]]


def _of_customer(word: str, *more: str) -> tuple[str, ...]:
    """Plain names in the examples, prefixed ones in older field tables and in the account's own form."""
    prefixed = f"customer_{word}"
    return (f"customer.{word}", f"customer.{prefixed}", f"fields.{prefixed}", f"meta.{prefixed}", *more)


WEBHOOK: Final[Names] = {
    "reference": ("code",),
    "provider_status": ("status",),
    "starts_at": ("start_date",),
    "ends_at": ("end_date",),
    "items": ("order.items", "items"),
    "customer_id": ("customer.code",),
    "customer_name": _of_customer("name"),
    "customer_email": _of_customer("email"),
    "customer_phone": _of_customer("phone", "meta.phone"),
    "currency": ("order.currency_id",),
    "total": ("order.total",),
    "paid": ("order.paid_total",),
    "note": ("meta.note",),
    "source": ("tid",),
    "provider_created_at": ("created_date",),
    "sub_total": ("order.sub_total",),
    "tax_total": ("order.tax_total",),
    "discount": ("order.discount",),
    "taxes": ("order.taxes",),
    "staff_id": ("staff_id",),
    "fields": ("fields",),
    "meta": ("meta",),
}
"""Where a webhook has what a column (else: a name in `details`) takes; the first that is not empty counts."""

# The answer's `customer_id` can be a number where the webhook has a code, so the read-back does not speak of it.
READ_BACK: Final[Names] = {
    "reference": ("code", "id"),
    "provider_status": ("status_id", "status"),
    "starts_at": ("start_date",),
    "ends_at": ("end_date",),
    "items": ("items", "order.items"),
    "customer_name": ("customer_name", "customer.name", "meta.customer_name"),
    "customer_email": ("customer_email", "customer.email", "meta.customer_email"),
    "customer_phone": ("customer_phone", "customer.phone", "meta.customer_phone"),
    "currency": ("currency_id", "order.currency_id"),
    "total": ("total", "order.total"),
    "paid": ("amount_paid", "paid_total", "order.paid_total"),
    "source": ("tid",),
    "provider_created_at": ("created_date",),
    "sub_total": ("sub_total", "order.sub_total"),
    "tax_total": ("tax_total", "order.tax_total"),
}
"""The same for `GET /booking/{id or code}`, which uses other names (seen in clients; the page shows no answer)."""

LINE: Final[Names] = {
    "line_id": ("line_id",),
    "item_id": ("item_id", "id"),
    "sku": ("sku",),
    "qty": ("qty", "quantity"),
    "total": ("total",),
    "status": ("status", "status_id"),
    "start": ("start_date",),
    "end": ("end_date",),
}
TAX: Final[Names] = {"tax_id": ("tax_id",), "name": ("name",), "amount": ("amount",)}

_LINE_NUMBER: Final = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})*")
_ASKABLE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_TAKEN: Final = re.compile("customer_|(note|phone)$")
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_LONGEST_ID: Final = 200


# --- what arrives --------------------------------------------------------------------------------------------


def normalize(incoming: Incoming) -> Sequence[Element]:
    """The booking, payment or catalogue notice of a delivery, and what a read-back says. Raises Park."""
    body = _body(incoming.delivery)
    kind = _kind(body)
    if kind not in KINDS:
        shown = kind if _WORD.fullmatch(kind) else "this"
        raise Unsupported(f"body.type: {shown} is none of the types that we know", reason="unsupported-event")
    return KINDS[kind](body, incoming)


def lookup(incoming: Incoming) -> Call | None:
    """The read-back of the booking that is spoken of, where API keys are set. Raises Malformed."""
    if not incoming.endpoint.has("api_key", "api_secret"):
        return None
    key = _key(_body(incoming.delivery))
    if key is None or not _ASKABLE.fullmatch(key) or _call_name(key) in incoming.answers:
        return None
    return Call(
        name=_call_name(key),
        path=f"/booking/{key}",
        auth=Auth.BASIC_KEY_SECRET,
        accepts=frozenset({404}),
        required=False,
    )


def _body(delivery: RawDelivery) -> Wild:
    return read_tree(delivery.body, delivery.header("content-type"))


def _kind(body: Wild) -> str:
    """The envelope's type; a booking's envelope has none and is known by its object's name."""
    kind = body["type"].text() or next((name for name in KINDS if body[name].present), None)
    if kind is None:
        raise Malformed("body: expected a booking, a transaction, an item or a rate, found none of them")
    return kind.lower()


def _key(body: Wild) -> str | None:
    """The id, for a payment the code, under which the API knows the booking."""
    handler = KINDS.get(_kind(body))
    if handler is _booking:
        return _external_id(body["booking"])
    return _short(_transaction(body)["booking_id"]) if handler is _payment else None


def _call_name(key: str) -> str:
    return f"booking:{key}"


def _booking(body: Wild, incoming: Incoming) -> list[Element]:
    booking = body["booking"]
    external_id = _external_id(booking)
    try:
        told: Element = Event(external_id=external_id, said=_said(booking, AS_SENT, incoming.endpoint))
    except Park as error:
        told = Failed(error=error)
    return [told, *_read_back(incoming, external_id, ("booking_id",))]


def _payment(body: Wild, incoming: Incoming) -> list[Element]:
    """A transaction names its booking by code. The payer's name and card stay in the raw body."""
    transaction = _transaction(body)
    code, number = _short(transaction["booking_id"]), _short(transaction["transaction_id"])
    told = Event(
        external_id=None,
        reference=code,
        payments=[
            {
                "id": number,
                "date": _iso(transaction["date"]),
                "status": transaction["status"].text(),
                "amount": _amount(transaction["amount"]),
                "gateway_id": transaction["gateway_id"].text(),
                "payment_type": transaction["payment_type"].text(),
            }
        ],
        same_as=f"transaction:{number}:{_cut(body['action'])}:{_cut(transaction['status'])}",
    )
    return [told, *_read_back(incoming, code, ("code", "id"))]


def _catalogue(body: Wild, incoming: Incoming) -> list[Element]:
    return [Ignored(reason="catalogue-notice")]


KINDS: Final[Mapping[str, Callable[[Wild, Incoming], list[Element]]]] = {
    "booking": _booking,
    "transaction": _payment,
    "payment": _payment,  # the field table's word for what the example calls a transaction
    "item": _catalogue,
    "rate": _catalogue,
}


def _transaction(body: Wild) -> Wild:
    return body["transaction"].first(body["payment"])


def _external_id(booking: Wild) -> str:
    return _short(booking["booking_id"].first(booking["id"]))


def _short(field: Wild) -> str:
    """An id that must be there and that an index can hold."""
    text = field.needed()
    if len(text) > _LONGEST_ID:
        raise field.wrong(f"text of at most {_LONGEST_ID} characters")
    return text


def _cut(field: Wild) -> str:
    return (field.text() or "")[:40]


# --- the read-back -------------------------------------------------------------------------------------------


def _read_back(incoming: Incoming, key: str, names: tuple[str, ...]) -> list[Element]:
    """What the API answered, true at the moment of asking; `details.lookup` tells what became of the question."""
    answer = incoming.answers.get(_call_name(key))
    if answer is None:
        return []
    try:
        external_id, said = _found(answer, key, names, incoming.endpoint)
    except Park:
        if "booking_id" not in names:  # whose booking it was, nobody knows
            return []
        outcome = "not-found" if answer.status == 404 else "unreadable"
        external_id, said = key, {"details": {"lookup": outcome}}
    return [Event(external_id=external_id, said=said, as_of=answer.at)]


def _found(answer: Answer, key: str, names: tuple[str, ...], endpoint: Endpoint) -> tuple[str, dict[str, Any]]:
    """The booking of an answer and its number, if it is the one that was asked for. Raises Malformed."""
    booking = tree(answer.body, "lookup.booking")["booking"]
    if not answer.ok or key not in [booking[name].text() for name in names]:
        raise Malformed("lookup.booking: expected the booking that was asked for")
    said = _said(booking, AS_READ_BACK, endpoint)
    if (said.get("reference") or "").isdigit():  # an `id` that is the number once more
        del said["reference"]
    return _short(booking["booking_id"]), {**said, "details": {**said["details"], "lookup": "read"}}


# --- one booking, by whatever names --------------------------------------------------------------------------


def _said(booking: Wild, table: Table, endpoint: Endpoint) -> dict[str, Any]:
    found = _named(booking, table)
    said = {name: value for name, value in found.items() if name in COLUMNS}
    said |= {"details": {name: value for name, value in found.items() if name not in COLUMNS}}
    said |= _status(said, endpoint) | _day(said, endpoint)
    said |= _from_lines(said, endpoint, booking.path) | _party(booking, endpoint)
    return said


def _named(thing: Wild, table: Table) -> dict[str, Any]:
    """Name → value, for what is there; what is there and empty is None."""
    found: dict[str, Any] = {}
    parts = {part: thing.at(*part) for part in table.parts}
    for name, read, (part, key), others in table.columns:
        field = parts[part][key]
        if others:
            field = field.first(*[parts[part][key] for part, key in others])
        carry(found, name, field, read)
    return found


def _moment(field: Wild) -> datetime | None:
    """Unix seconds; 0 is no date (the example of an item event ends at 0)."""
    return field.unix() if field.decimal() else None


def _iso(field: Wild) -> str | None:
    moment = _moment(field)
    return iso(moment) if moment else None


def _amount(field: Wild) -> str | None:
    """Money as text, with two places at least: a webhook's "94.50" and an answer's 94.5 are the same."""
    amount = field.decimal()
    if amount is None:
        return None
    text = f"{amount:f}"
    return text if len(text.partition(".")[2]) >= 2 else f"{amount:.2f}"


def _many(field: Wild, name: str) -> list[tuple[str | None, Wild]]:
    """One thing, several, or things keyed by number, below `name` or not: (number, thing)."""
    if not isinstance(field.value, dict):
        return [(None, thing) for thing in field.one_or_many()]
    things = field[name] if name in field.value else field
    if not isinstance(things.value, dict) or not all(map(_LINE_NUMBER.fullmatch, things.value)):
        return [(None, thing) for thing in things.one_or_many()]
    # In the order of the numbers: an answer that was kept as jsonb has its names in another order than it came in.
    numbers = sorted(things.object(), key=lambda number: [int(part) for part in number.split(".")])
    return [(number, things[number]) for number in numbers]


def _lines(field: Wild) -> list[dict[str, Any]]:
    lines = []
    for number, line in _many(field, "item"):
        found = _named(line, OF_LINE)
        if number is not None:
            found = {"line_id": number} | found
        # A name only where there is no sku: the read-back has both, and the line must not change by being read back.
        if not found.get("sku"):
            carry(found, "name", line["name"], Wild.text)
        lines.append(found)
    return lines


def _taxes(field: Wild) -> list[dict[str, Any]]:
    return [_named(tax, OF_TAX) for _, tax in _many(field, "tax")]


def _rest(field: Wild) -> dict[str, Any]:
    """The account's own fields, without those that are columns and without the guest's address."""
    fields = {} if field.empty else field.object()
    rest: dict[str, Any] = storable({name: value for name, value in fields.items() if not _TAKEN.match(name)})
    return rest


Reader = Callable[[Wild], Any]

READERS: Final[Mapping[str, Reader]] = {
    "starts_at": _moment,
    "ends_at": _moment,
    "provider_created_at": _moment,
    "items": _lines,
    "total": Wild.decimal,
    "paid": Wild.decimal,
    "sub_total": _amount,
    "tax_total": _amount,
    "discount": _amount,
    "taxes": _taxes,
    "fields": _rest,
    "meta": _rest,
}
"""How a booking's values are read, by our name of them; as text where nothing is said here."""

PART_READERS: Final[Mapping[str, Reader]] = {
    "qty": Wild.integer,
    "total": _amount,
    "amount": _amount,
    "start": _iso,
    "end": _iso,
}
"""The same for what goes into JSON: lines and taxes."""


Place = tuple[tuple[str, ...], str]
"""A path taken apart: the way to a part of the thing, and a key in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Names and their readers, put together once: every delivery is read by the same few."""

    columns: Sequence[tuple[str, Reader, Place, Sequence[Place]]]
    """Name, reader, the place that is looked at first, the other places."""
    parts: Sequence[tuple[str, ...]]
    """All parts that a place is in: each is looked up once, however many places it has."""


def _table(names: Names, readers: Mapping[str, Reader]) -> Table:
    places = {name: [_place(path) for path in paths] for name, paths in names.items()}
    return Table(
        columns=[(name, readers.get(name, Wild.text), first, others) for name, (first, *others) in places.items()],
        parts=list(dict.fromkeys(part for found in places.values() for part, _ in found)),
    )


def _place(path: str) -> Place:
    *part, key = path.split(".")
    return tuple(part), key


AS_SENT: Final = _table(WEBHOOK, READERS)
AS_READ_BACK: Final = _table(READ_BACK, READERS)
OF_LINE: Final = _table(LINE, PART_READERS)
OF_TAX: Final = _table(TAX, PART_READERS)


# --- what follows from what is said --------------------------------------------------------------------------


def _status_of(code: str | None, endpoint: Endpoint) -> Status:
    word = (code or "").upper()
    own = {theirs.upper(): Status(ours) for theirs, ours in endpoint.options.get("statuses", {}).items()}
    return own.get(word) or STATUSES.get(word, Status.UNKNOWN)


def _status(said: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    if "provider_status" not in said:
        return {}
    code = said["provider_status"]
    status = _status_of(code, endpoint)
    is_void = status is Status.CANCELLED and code.upper() == "VOID"
    return {"status": status, "cancel_reason": "void" if is_void else None}


def _day(said: Mapping[str, Any], endpoint: Endpoint) -> dict[str, Any]:
    """The day at the venue; items sold by the day start at its midnight, so UTC would give the wrong one."""
    zone = endpoint.zone()
    if zone is None or "starts_at" not in said:
        return {}
    starts_at = said["starts_at"]
    return {"date": starts_at.astimezone(zone).date() if starts_at else None, "timezone": endpoint.timezone}


def _from_lines(said: Mapping[str, Any], endpoint: Endpoint, path: str) -> dict[str, Any]:
    if "items" not in said:
        return {}
    lines = said["items"]
    first = lines[0] if lines else {}
    return {
        "resource_id": first.get("item_id"),
        "resource_name": first.get("sku") or first.get("name"),
        "quantity": Wild(_quantity(lines, said.get("status"), endpoint), f"{path}.quantity").integer(),
    }


def _quantity(lines: list[dict[str, Any]], status: Status | None, endpoint: Endpoint) -> int | None:
    """Parts of a package (a dot in their number) are in its own line; what was taken out of the booking is out."""
    if all(line.get("qty") is None for line in lines):
        return None
    return sum(
        line.get("qty") or 0
        for line in lines
        if "." not in (line.get("line_id") or "")
        and (status is Status.CANCELLED or _status_of(line.get("status"), endpoint) is not Status.CANCELLED)
    )


def _party(booking: Wild, endpoint: Endpoint) -> dict[str, Any]:
    """No field of Checkfront's own counts people; a form field of the account may. What a guest wrote there parks
    nothing: a text that is no number is an unknown size, and stands in `details`."""
    path = endpoint.options.get("party_size")
    if path is None:
        return {}
    try:
        field = booking.at(*path.split("."))
        return {"party_size": field.integer()} if field.present else {}
    except Malformed:
        return {"party_size": None}


# --- the settings --------------------------------------------------------------------------------------------


def _check_statuses(table: Mapping[str, Any]) -> str | None:
    for code, ours in table.items():
        if ours not in list(Status):
            mend = did_you_mean(str(ours), list(Status))
            return f"maps {code} to {ours!r}, which is none of our words{mend}; use one of {', '.join(Status)}"
    return None


def _check_path(path: str) -> str | None:
    return None if re.fullmatch(r"[\w-]+(\.[\w-]+)*", path) else 'names a field of the booking; write "fields.numpax"'


def _check_account(name: str) -> str | None:
    good = re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?", name)
    return None if good else 'is the first word of the host; write "my-company" for my-company.checkfront.com'


def _api_base(endpoint: Endpoint) -> str | None:
    account = endpoint.options.get("account")
    return endpoint.api_url or (f"https://{account}.checkfront.com/api/3.0" if account else None)


PROVIDER = Provider(
    name="checkfront",
    title="Checkfront",
    docs="https://api.checkfront.com/ref/webhook/booking.html",
    normalize=normalize,
    lookup=lookup,
    api_base=_api_base,
    options={
        "account": Option(
            kind=str, meaning="the account's name: https://<account>.checkfront.com", check=_check_account
        ),
        "statuses": Option(
            kind=dict,
            meaning="codes of the account's own, or other meanings of the built-in ones",
            check=_check_statuses,
        ),
        "party_size": Option(kind=str, meaning="the field of a booking that counts the people", check=_check_path),
    },
    secrets=(("api_key", "api_secret"),),
)
