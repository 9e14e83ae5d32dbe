"""What one fixture cannot show of ReserveKit: order, sameness, and which calls are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import permutations
from typing import Any

from cases import RECEIVED_AT

from schemas.booking import Status
from schemas.delivery import RawDelivery, new_id
from schemas.endpoints import Endpoint
from workers.fold import Said, fold
from workers.provider import Answer, Auth, Call, Event, Incoming
from workers.providers.reservekit import PROVIDER

FIRST = "2026-09-01T08:00:00Z"
LATER = "2026-09-02T09:30:00Z"
BOOKING = {
    "id": 1,
    "service_id": 61,
    "date": "2026-09-18",
    "time_slot_id": 902,
    "status": "pending",
    "updated_at": FIRST,
}
SERVICE = {"data": {"id": 61, "name": "Haircut", "timezone": "Europe/Berlin"}}
SLOT = {"id": 902, "start_time": "2023-01-01 14:00:00", "end_time": "2023-01-01 15:00:00"}
ANSWERED: Mapping[str, Any] = {"service:61": SERVICE, "slots:61": {"data": [SLOT]}}


def body(*bookings: Mapping[str, Any], event: str = "bookings.update", timestamp: str | None = None) -> dict[str, Any]:
    stamp = timestamp or bookings[0].get("updated_at")
    return {"event_type": event, "bookings": list(bookings), "timestamp": stamp}


def incoming(payload: Any, answers: Mapping[str, Any] | None = None, *, asked_before: float = 0) -> Incoming:
    at = RECEIVED_AT - timedelta(seconds=asked_before)
    return Incoming(
        delivery=RawDelivery(
            id=new_id(),
            endpoint="salon",
            method="POST",
            received_at=RECEIVED_AT,
            body=json.dumps(payload).encode(),
        ),
        endpoint=Endpoint(name="salon", provider="reservekit", secrets=frozenset({"api_key"})),
        answers={name: Answer(status=200, body=answer, at=at) for name, answer in (answers or {}).items()},
    )


def events(payload: Any, answers: Mapping[str, Any] | None = None) -> list[Event]:
    return [event for event in PROVIDER.normalize(incoming(payload, answers)) if isinstance(event, Event)]


def row(*said: Event) -> dict[str, Any]:
    """The row when these events arrive in this order, each in a delivery of its own."""
    folded = fold(
        Said(
            delivery_id=new_id(),
            position=0,
            received_at=RECEIVED_AT + timedelta(seconds=second),
            version=event.version,
            said=event.said,
        )
        for second, event in enumerate(said)
    )
    assert folded is not None
    return dict(folded.columns)


def calls(payload: Any, answers: Mapping[str, Any]) -> Iterator[Call]:
    """All that is asked when every call is answered from `answers`, as far as it goes."""
    known: dict[str, Any] = {}
    while True:
        call = PROVIDER.lookup(incoming(payload, known))
        assert call is None or isinstance(call, Call)
        if call is None:
            return
        yield call
        if call.name not in answers:
            return
        known[call.name] = answers[call.name]


# --- order and sameness ----------------------------------------------------------------------------------------


def test_any_order_of_arrival_gives_the_same_row() -> None:
    said = [
        *events(body({**BOOKING, "message": "first", "customer": {"id": 7, "name": "Ida"}}, event="bookings.create")),
        *events(body({**BOOKING, "status": "confirmed", "updated_at": LATER})),
        *events(body({"id": 1, "message": "", "updated_at": "2026-09-03T10:00:00Z"})),
    ]
    rows = [row(*order) for order in permutations(said)]
    assert all(one == rows[0] for one in rows)
    assert (rows[0]["status"], rows[0]["note"], rows[0]["customer_name"]) == (Status.CONFIRMED, None, "Ida")


def test_two_edits_of_the_customer_are_two_events_though_updated_at_is_one() -> None:
    before, after = (
        events(body({**BOOKING, "customer": {"id": 7, "name": name}}, timestamp=stamp))[0]
        for name, stamp in (("Ida", "2026-09-05T08:00:00Z"), ("Ida Brandt", "2026-09-05T08:01:00Z"))
    )
    assert before.same_as != after.same_as
    assert row(before, after)["customer_name"] == row(after, before)["customer_name"] == "Ida Brandt"


def test_the_same_element_again_is_the_same_also_beside_news() -> None:
    (first,) = events(body(BOOKING))
    again, news = events(body(BOOKING, {**BOOKING, "id": 2}))
    assert again.same_as == first.same_as
    assert news.same_as != first.same_as


def test_an_update_and_a_delete_of_the_same_element_differ_and_the_delete_wins_the_tie() -> None:
    (update,) = events(body(BOOKING))
    (delete,) = events(body(BOOKING, event="bookings.delete"))
    assert update.same_as != delete.same_as
    assert row(update, delete)["status"] is row(delete, update)["status"] is Status.CANCELLED


def test_a_delete_sent_later_wins_though_updated_at_is_unchanged() -> None:
    (update,) = events(body({**BOOKING, "customer": {"name": "Ida"}}, timestamp="2026-09-05T08:00:00Z"))
    (delete,) = events(body(BOOKING, event="bookings.delete", timestamp="2026-09-06T08:00:00Z"))
    assert row(delete, update)["status"] is Status.CANCELLED


def test_a_confirmation_after_a_cancellation_restores_the_booking() -> None:
    steps = [
        events(body({**BOOKING, "status": status, "updated_at": stamp}))[0]
        for status, stamp in (("confirmed", FIRST), ("cancelled", LATER), ("confirmed", "2026-09-03T10:00:00Z"))
    ]
    assert len({event.same_as for event in steps}) == 3
    assert all(row(*order)["status"] is Status.CONFIRMED for order in permutations(steps))


def test_the_older_shape_is_told_apart_by_its_version() -> None:
    older = {"id": 1, "service_id": 61, "updated_at": FIRST, "date": "2026-09-18"}
    (one,), (same,), (two,) = (events({**older, "version": number}) for number in (9, 9, 10))
    assert one.same_as == same.same_as != two.same_as
    assert (one.version or "") < (two.version or "")


def test_an_event_without_any_time_has_neither_version_nor_sameness() -> None:
    (event,) = events({"bookings": [{"id": 1, "status": "confirmed"}]})
    assert (event.version, event.same_as) == (None, None)


# --- the slot --------------------------------------------------------------------------------------------------


def test_a_booking_that_is_moved_while_the_api_is_down_does_not_keep_the_old_start() -> None:
    (made,) = events(body(BOOKING), ANSWERED)
    (moved,) = events(body({**BOOKING, "date": "2026-09-25", "updated_at": LATER}))
    assert row(made)["starts_at"].isoformat() == "2026-09-18T12:00:00+00:00"
    assert row(made, moved)["starts_at"] is None
    (answered,) = events(body({**BOOKING, "date": "2026-09-25", "updated_at": LATER}), ANSWERED)
    assert row(made, answered)["starts_at"].isoformat() == "2026-09-25T12:00:00+00:00"


def test_what_was_computed_stays_when_the_slot_is_gone_or_the_booking_is_deleted() -> None:
    (made,) = events(body(BOOKING), ANSWERED)
    (confirmed,) = events(
        body({**BOOKING, "status": "confirmed", "updated_at": LATER}), {**ANSWERED, "slots:61": {"data": []}}
    )
    (deleted,) = events(body({**BOOKING, "updated_at": "2026-09-03T10:00:00Z"}, event="bookings.delete"))
    for after in (row(made, confirmed), row(made, confirmed, deleted)):
        assert (after["starts_at"], after["ends_at"]) == (made.said["starts_at"], made.said["ends_at"])
        assert (after["resource_name"], after["timezone"]) == ("Haircut", "Europe/Berlin")
    assert row(made, confirmed)["details"]["lookup"] == "slot-gone"


def test_service_and_slots_are_asked_once_each() -> None:
    asked = list(calls(body(BOOKING, {**BOOKING, "id": 2}), ANSWERED))
    assert [call.name for call in asked] == ["service:61", "slots:61"]
    assert [call.path for call in asked] == ["/services/61", "/time-slots"]
    assert asked[1].params == {"service_id": "61", "page": "1", "page_size": "100", "no_pagination": "true"}
    assert all(call.auth is Auth.BEARER_KEY and not call.required and call.accepts == {404} for call in asked)


def test_further_pages_are_asked_until_the_slot_is_found() -> None:
    other = {"data": {"time_slots": [{"id": 9020}], "pagination": {"total_pages": 3}}}
    found = {"data": {"time_slots": [SLOT], "pagination": {"total_pages": 3}}}
    answers = {"service:61": SERVICE, "slots:61": other, "slots:61:2": found}
    assert [call.name for call in calls(body(BOOKING), answers)] == ["service:61", "slots:61", "slots:61:2"]


def test_at_most_ten_pages_are_asked() -> None:
    endless = {"data": {"time_slots": [], "pagination": {"total_pages": 99}}}
    answers = {"service:61": SERVICE, **{f"slots:61:{page}": endless for page in range(2, 99)}, "slots:61": endless}
    assert len(list(calls(body(BOOKING), answers))) == 11


def test_a_kept_list_that_lacks_the_slot_is_asked_again_afresh() -> None:
    kept = incoming(body(BOOKING), {"service:61": SERVICE, "slots:61": {"data": []}}, asked_before=30)
    call = PROVIDER.lookup(kept)
    assert isinstance(call, Call)
    assert (call.name, call.path, call.cache) == ("slots:61:fresh", "/services/61/time-slots", None)
    assert PROVIDER.lookup(incoming(body(BOOKING), {"service:61": SERVICE, "slots:61": {"data": []}})) is None


def test_an_embedded_slot_needs_the_service_only() -> None:
    embedded = {**BOOKING, "time_slot": {"start_time": "2006-01-02 14:00:00", "end_time": "2006-01-02 15:00:00"}}
    assert [call.name for call in calls(embedded, ANSWERED)] == ["service:61"]


def test_nothing_is_asked_for_a_delete_or_for_what_cannot_be_read() -> None:
    for payload in (
        body(BOOKING, event="bookings.delete"),
        {"event": "booking:created", "data": BOOKING},
        body({**BOOKING, "service_id": "../bookings"}),
        body({**BOOKING, "service_id": {"id": 61}}),
        [],
    ):
        assert PROVIDER.lookup(incoming(payload)) is None


def test_nothing_is_asked_without_a_key() -> None:
    keyless = Incoming(
        delivery=incoming(body(BOOKING)).delivery, endpoint=Endpoint(name="salon", provider="reservekit")
    )
    assert PROVIDER.lookup(keyless) is None


def test_a_body_of_many_services_asks_for_ten_of_them() -> None:
    many = body(*({**BOOKING, "id": number, "service_id": number} for number in range(1, 50)))
    answers = {f"service:{number}": SERVICE for number in range(1, 50)}
    slots = {f"slots:{number}": {"data": [SLOT]} for number in range(1, 50)}
    assert len(list(calls(many, {**answers, **slots}))) == 20
