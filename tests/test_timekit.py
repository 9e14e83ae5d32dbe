"""What one request of Timekit cannot show: which of two is newer, and what a thin one leaves alone."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest

from schemas.delivery import RawDelivery
from schemas.endpoints import Endpoint
from workers.fold import Said, fold
from workers.provider import Event, Incoming
from workers.providers.timekit import PROVIDER

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
VENUE = Endpoint(name="studio", provider="timekit", timezone="Europe/Oslo")
FULL = {
    "customers": [{"id": "c1", "name": "Nora Quist", "email": "nora@example.org", "phone": ""}],
    "event": {"start": "2026-05-06T12:00:00+0000", "end": "2026-05-06T13:00:00+0000", "what": "Demo"},
    "calendar": {"id": "k1", "name": "Room 2"},
    "attributes": {"customer": {"comment": "By the window, please"}},
}


def booking(state: str, updated_at: str = "2026-05-04T07:10:01+0000", **relations: Any) -> bytes:
    return json.dumps({"id": "b1", "state": state, "graph": "instant", "updated_at": updated_at, **relations}).encode()


def event_of(body: bytes, endpoint: Endpoint = VENUE) -> Event:
    delivery = RawDelivery(id=UUID(int=1), endpoint="studio", method="POST", received_at=NOON, body=body)
    (element,) = PROVIDER.normalize(Incoming(delivery=delivery, endpoint=endpoint))
    assert isinstance(element, Event)
    return element


def folded(*bodies: bytes) -> dict[str, Any]:
    """The row after requests that were received in this order, all at one moment."""
    events = [
        Said(delivery_id=UUID(int=number), position=0, received_at=NOON, version=event.version, said=event.said)
        for number, event in enumerate(map(event_of, bodies))
    ]
    row = fold(events)
    assert row is not None
    return dict(row.columns)


TIES = [
    ("tentative", "confirmed"),
    ("initialized", "paid"),
    ("reserved", "expired"),
    ("tentative", "declined"),
    ("confirmed", "completed"),
    ("confirmed", "rescheduled_by_customer"),
    ("paid", "cancelled_by_owner"),
    ("completed", "cancelled"),
]


@pytest.mark.parametrize(("before", "after"), TIES)
def test_of_two_states_in_one_second_the_further_one_counts(before: str, after: str) -> None:
    for bodies in permutations([booking(before), booking(after)]):
        assert folded(*bodies)["provider_status"] == after


def test_the_later_updated_at_counts_whatever_its_offset_and_state() -> None:
    cancelled = booking("cancelled", "2026-05-04T09:10:01+0200")
    confirmed = booking("confirmed", "2026-05-04T07:10:02Z")
    for bodies in permutations([cancelled, confirmed]):
        assert folded(*bodies)["status"] == "confirmed"


def test_a_booking_that_comes_back_has_no_reason_of_cancellation_any_more() -> None:
    declined = booking("declined", "2026-05-04T07:10:01+0000")
    assert folded(declined)["cancel_reason"] == "declined"
    assert folded(declined, booking("confirmed", "2026-05-04T07:11:00+0000"))["cancel_reason"] is None
    assert folded(declined, booking("cancelled", "2026-05-04T07:11:00+0000"))["cancel_reason"] is None


def test_thin_events_in_any_order_leave_what_a_full_one_said() -> None:
    info = {"event_info": {"start": "2026-05-06T12:00:00+0000", "end": "2026-05-06T13:00:00+0000"}}
    bodies = [
        booking("tentative", "2026-05-04T07:10:00+0000", attributes=info, user={"id": "u1", "name": "Ola"}),
        booking("confirmed", "2026-05-04T07:10:30+0000", **FULL),
        booking("cancelled_by_customer", "2026-05-04T08:00:00+0000", user={"id": "u1", "name": "Ola"}),
    ]
    rows = [folded(*order) for order in permutations(bodies)]
    assert all(row == rows[0] for row in rows)
    row = rows[0]
    assert (row["status"], row["cancel_reason"]) == ("cancelled", "by-customer")
    assert (row["resource_id"], row["resource_name"]) == ("k1", "Room 2")
    assert (row["customer_name"], row["note"]) == ("Nora Quist", "By the window, please")
    assert (row["date"], row["starts_at"]) == (date(2026, 5, 6), datetime(2026, 5, 6, 12, 0, tzinfo=UTC))


def test_a_repeat_has_the_same_key_and_any_change_has_another() -> None:
    once = event_of(booking("confirmed")).same_as
    assert once == event_of(booking("confirmed")).same_as
    others = [
        booking("paid"),
        booking("confirmed", "2026-05-04T07:10:02+0000"),
        booking("confirmed", meta={"party": 5}),
    ]
    assert once not in {event_of(body).same_as for body in others}


def test_without_their_time_there_is_neither_order_nor_sameness() -> None:
    event = event_of(b'{"id": "b1", "state": "confirmed"}')
    assert (event.version, event.same_as) == (None, None)


def test_the_links_that_change_a_booking_are_copied_nowhere() -> None:
    link = "https://admin.example.org/cancel?token=tk-secret"
    body = booking("confirmed", **FULL, customer_action_links={"cancel": link}, available_actions=["cancel"])
    assert "tk-secret" not in repr(event_of(body))
