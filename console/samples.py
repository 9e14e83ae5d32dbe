"""Requests as the providers send them, to be posted by hand: what their own test buttons would send, and more.

Data only. The field sets are those of the providers' pages; all values are invented. One sample booking for each
provider goes through all of its situations, so `create` and then `cancel` shows a row come and go. In a body `$…`
stands for a moment: see `moments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from string import Template
from typing import Final


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request."""

    provider: str
    situation: str
    meaning: str
    """What it tells, and what becomes of it where that is not plain."""
    body: str = ""
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    signed: bool = False
    """Signed with the endpoint's webhook secret, where it has one."""

    def content(self, now: datetime) -> bytes:
        """The body at that time."""
        return Template(self.body).substitute(moments(now)).encode()


def moments(now: datetime) -> dict[str, str]:
    """What the names in a body stand for: now, and a visit of an hour in a week."""
    now = now.astimezone(UTC).replace(microsecond=0)
    start = (now + timedelta(days=7)).replace(hour=16, minute=0, second=0)
    end = start + timedelta(hours=1)
    return {
        "now": f"{now:%Y-%m-%dT%H:%M:%SZ}",
        "now_offset": f"{now:%Y-%m-%dT%H:%M:%S+0000}",
        "now_unix": str(int(now.timestamp())),
        "day": f"{start:%Y-%m-%d}",
        "start_offset": f"{start:%Y-%m-%dT%H:%M:%S+0000}",
        "end_offset": f"{end:%Y-%m-%dT%H:%M:%S+0000}",
        "start_unix": str(int(start.timestamp())),
        "end_unix": str(int(end.timestamp())),
    }


JSON: Final = {"content-type": "application/json"}

# --- Lockme: a bare notification; what it is about would have to be read from Lockme's API -----------------------

MESSAGE: Final = "900000001"
_LOCKME: Final = {"user-agent": "LockMe/1.0", "accept": "*/*"}
LOCKME: Final = (
    Sample(
        provider="lockme",
        situation="message",
        meaning="a message id that Lockme does not know: ends as message-gone when the token is good",
        headers={**_LOCKME, "x-messageid": MESSAGE},
    ),
    Sample(
        provider="lockme",
        situation="message-by-get",
        meaning="the same as GET, as live clients see it",
        method="GET",
        headers={**_LOCKME, "x-messageid": MESSAGE},
    ),
    Sample(
        provider="lockme",
        situation="look",
        meaning="a GET without a message id: answered 200, and nothing is kept",
        method="GET",
        headers=_LOCKME,
    ),
)

# --- ReserveKit ("Webhooks") -------------------------------------------------------------------------------------

_RESERVEKIT: Final = {"user-agent": "Go-http-client/1.1", **JSON}


def _reservekit(situation: str, meaning: str, event: str, status: str, more: str = "") -> Sample:
    body = (
        f'{{"event_type": "{event}", "bookings": [{{"id": 900000001, "service_id": 900001, "date": "$day",'
        f' "time_slot_id": 900001, "status": "{status}",{more} "message": "A sample", "created_at": "$now",'
        ' "updated_at": "$now", "customer": {"id": 900001, "name": "Sample Guest", "email": "sample@example.org",'
        ' "phone": "+12025550100", "created_at": "$now", "updated_at": "$now"}}], "timestamp": "$now"}'
    )
    return Sample(provider="reservekit", situation=situation, meaning=meaning, body=body, headers=_RESERVEKIT)


RESERVEKIT: Final = (
    _reservekit("create", "a new booking, pending", "bookings.create", "pending"),
    _reservekit("confirm", "the booking is confirmed", "bookings.update", "confirmed"),
    _reservekit("cancel", "the booking is cancelled", "bookings.update", "cancelled", ' "cancel_reason": "A sample",'),
    _reservekit("delete", "the booking is deleted", "bookings.delete", "cancelled"),
    Sample(
        provider="reservekit",
        situation="empty",
        meaning="no booking at all: ignored",
        body='{"event_type": "bookings.update", "bookings": [], "timestamp": "$now"}',
        headers=_RESERVEKIT,
    ),
)

# --- SynthesisVR ("Webhooks") ------------------------------------------------------------------------------------

_SYNTHESISVR: Final = {"user-agent": "Synthesis", "accept": "*/*", **JSON}


def _session(action: str, stations: int = 3) -> str:
    return (
        f'{{"uuid": "5a3b1e00-0000-5000-8000-000000000001", "action": "{action}", "location": "Sample Arcade",'
        f' "stations": {stations}, "customerid": null}}'
    )


SYNTHESISVR: Final = tuple(
    Sample(provider="synthesisvr", situation=situation, meaning=meaning, body=body, headers=_SYNTHESISVR)
    for situation, meaning, body in (
        ("create", "a new session", f"[{_session('create')}]"),
        ("delete", "the session is deleted", f"[{_session('delete')}]"),
        ("move", "a delete and a create in one request", f"[{_session('delete')}, {_session('create', 4)}]"),
        ("empty", "an empty list: ignored", "[]"),
        ("unknown-action", "a word that nobody knows: parked", f"[{_session('sample')}]"),
    )
)

# --- Timekit ("Notifications & webhooks") ------------------------------------------------------------------------

_TIMEKIT: Final = {"user-agent": "GuzzleHttp/6.5.5 curl/7.64.1 PHP/7.4.33", "accept": "*/*", **JSON}


def _timekit(
    situation: str, meaning: str, state: str, graph: str = "confirm_decline", *, signed: bool = True
) -> Sample:
    body = (
        f'{{"id":"5a3b1e00-0000-4000-8000-000000000001","state":"{state}","graph":"{graph}","completed":false,'
        '"created_at":"$now_offset","updated_at":"$now_offset","customers":[{"id":'
        '"5a3b1e00-0000-4000-8000-000000000002","name":"Sample Guest","email":"sample@example.org","phone":"",'
        r'"voip":"","timezone":"Europe\/Oslo","meta":"{}"}],"event":{"id":"5a3b1e00-0000-4000-8000-000000000003",'
        '"what":"A sample","where":"Sample Room","description":"","rsvp":"accepted","allDay":false,'
        '"start":"$start_offset","end":"$end_offset","created_at":"$now_offset","updated_at":"$now_offset"},'
        '"calendar":{"id":"5a3b1e00-0000-4000-8000-000000000004","name":"Sample Room","display_name":"Sample Room",'
        '"provider":"google"}}'
    )
    return Sample(provider="timekit", situation=situation, meaning=meaning, body=body, headers=_TIMEKIT, signed=signed)


TIMEKIT: Final = (
    _timekit("create", "a new booking that waits for a yes", "tentative"),
    _timekit("confirm", "the booking is confirmed", "confirmed"),
    _timekit("decline", "the booking is declined", "declined"),
    _timekit("cancel", "the booking is cancelled by the customer", "cancelled_by_customer"),
    _timekit("open-slot", "the owner's side of a group: ignored", "tentative", "group_owner"),
    _timekit(
        "forged", "without a signature: parked where the endpoint has a webhook secret", "confirmed", signed=False
    ),
)

# --- Checkfront (API guide, "Webhooks"; Checkfront/API, docs/examples) -------------------------------------------

_CHECKFRONT: Final = {"user-agent": "Checkfront/3.0", "accept": "*/*"}
CODE: Final = "SMPL-000001"


def _checkfront_json(situation: str, meaning: str, status: str, paid: str) -> Sample:
    body = (
        '{"@attributes": {"version": "3.0", "host": "sample.example"}, "booking": {"@attributes": {"booking_id":'
        f' "900000001"}}, "status": "{status}", "code": "{CODE}", "created_date": "$now_unix", "staff_id": "1",'
        ' "source_ip": "203.0.113.1", "start_date": "$start_unix", "end_date": "$end_unix", "customer": {"name":'
        ' "Sample Guest", "email": "sample@example.org", "region": "BC", "address": {}, "city": "Nanaimo", "country":'
        ' "CA", "phone": "1 (250) 555-0100", "postal_zip": {}}, "meta": {"note": "A sample"}, "order":'
        ' {"@attributes": {"currency_id": "CAD"}, "sub_total": "60.00", "tax_total": "3.00",'
        f' "paid_total": "{paid}", "total": "63.00", "taxes": {{"tax": {{"@attributes": {{"tax_id": "1"}}, "name":'
        ' "GST", "amount": "3.00"}}, "items": {"item": {"@attributes": {"line_id": "1", "item_id": "1"}, "start_date":'
        f' "$start_unix", "end_date": "$end_unix", "sku": "sample", "status": "{status}", "total": "63.00",'
        ' "tax_total": "3.00", "qty": "2"}}}}}'
    )
    return Sample(
        provider="checkfront", situation=situation, meaning=meaning, body=body, headers={**_CHECKFRONT, **JSON}
    )


_XML: Final = (
    '<?xml version="1.0" encoding="utf-8"?>\n<checkfront-notify version="3.0" host="sample.example">'
    f'<booking booking_id="900000001"><status>PAID</status><code>{CODE}</code><created_date>$now_unix</created_date>'
    "<staff_id>1</staff_id><source_ip>203.0.113.1</source_ip><start_date>$start_unix</start_date>"
    "<end_date>$end_unix</end_date><customer><name>Sample Guest</name><email>sample@example.org</email>"
    "<phone>1 (250) 555-0100</phone></customer><meta><note>A sample</note></meta>"
    '<order currency_id="CAD"><sub_total>60.00</sub_total><tax_total>3.00</tax_total><paid_total>63.00</paid_total>'
    '<total>63.00</total><items><item line_id="1" item_id="1"><start_date>$start_unix</start_date>'
    "<end_date>$end_unix</end_date><sku>sample</sku><status>PAID</status><total>63.00</total>"
    "<tax_total>3.00</tax_total><qty>2</qty></item></items></order></booking></checkfront-notify>"
)
CHECKFRONT: Final = (
    _checkfront_json("create", "a new booking, reserved", "HOLD", "0.00"),
    _checkfront_json("paid", "the booking is paid", "PAID", "63.00"),
    Sample(
        provider="checkfront",
        situation="paid-xml",
        meaning="the same in XML",
        body=_XML,
        headers={**_CHECKFRONT, "content-type": "application/xml"},
    ),
    Sample(
        provider="checkfront",
        situation="payment",
        meaning="a payment, which names the booking by its code: waits where the booking has not come",
        body=(
            '{"version": "3.11.0.0", "host": "sample.example", "type": "transaction", "action": "insert",'
            ' "transaction": {"transaction_id": "SAMPLE-1", "date": $now_unix, "status": "PAID", "amount": "63.00",'
            ' "gateway_id": "Sample", "payment_mask": "0000", "payment_type": "Visa", "payment_customer":'
            f' "Sample Guest", "booking_id": "{CODE}"}}}}'
        ),
        headers={**_CHECKFRONT, **JSON},
    ),
    _checkfront_json("void", "the booking is void", "VOID", "0.00"),
    Sample(
        provider="checkfront",
        situation="item",
        meaning="a change of the catalogue: ignored",
        body=(
            '{"version": "3.28.0.7", "host": "sample.example", "type": "item", "action": "update",'
            ' "item": {"item_id": "1", "name": "A sample", "status": "A", "category": "Samples"}}'
        ),
        headers={**_CHECKFRONT, **JSON},
    ),
)

SAMPLES: Final = (*LOCKME, *RESERVEKIT, *SYNTHESISVR, *TIMEKIT, *CHECKFRONT)
