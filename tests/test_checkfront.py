"""What Checkfront's fixtures cannot show, because it takes two deliveries, a call, or a setting."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from cases import RECEIVED_AT

from schemas.delivery import RawDelivery, new_id
from schemas.endpoints import Endpoint
from workers.fold import Row, Said, difference, fold
from workers.provider import Answer, Auth, Call, Event, Incoming
from workers.providers.checkfront import PROVIDER

KEYS = frozenset({"api_key", "api_secret"})


def booking(status: str, **order: str) -> dict[str, Any]:
    return {
        "booking": {"@attributes": {"booking_id": "20417"}, "code": "QXRT-180926", "status": status, "order": order}
    }


def transaction(number: str, amount: str, status: str = "PAID") -> dict[str, Any]:
    told = {"transaction_id": number, "status": status, "amount": amount, "booking_id": "QXRT-180926"}
    return {"type": "transaction", "action": "insert", "transaction": told}


def incoming(body: Any, second: int = 0, *, secrets: frozenset[str] = KEYS, **answers: Answer) -> Incoming:
    delivery = RawDelivery(
        id=new_id(),
        endpoint="harbour",
        method="POST",
        received_at=RECEIVED_AT + timedelta(seconds=second),
        body=json.dumps(body).encode(),
    )
    endpoint = Endpoint(name="harbour", provider="checkfront", secrets=secrets, options={"account": "harbour-tours"})
    return Incoming(delivery=delivery, endpoint=endpoint, answers={f"booking:{key}": it for key, it in answers.items()})


def said(arrived: Incoming) -> list[Said]:
    """The events of a delivery as the table keeps them; a payment's code is taken for the booking's."""
    return [
        Said(
            delivery_id=arrived.delivery.id,
            position=position,
            received_at=event.as_of or arrived.delivery.received_at,
            version=event.version,
            said=event.said,
            payments=tuple(event.payments),
        )
        for position, event in enumerate(PROVIDER.normalize(arrived))
        if isinstance(event, Event)
    ]


def folded(*deliveries: Incoming) -> Row:
    row = fold([event for delivery in deliveries for event in said(delivery)])
    assert row is not None
    return row


def answer(at: datetime, **fields: Any) -> Answer:
    return Answer(status=200, body={"booking": {"booking_id": 20417, "id": "QXRT-180926", **fields}}, at=at)


def test_the_second_hook_of_a_status_change_leaves_the_row_as_it_is() -> None:
    once = folded(incoming(booking("PAID"), 1))
    twice = folded(incoming(booking("PAID"), 1), incoming(booking("PAID"), 2))
    assert difference(once.columns, twice.columns) == {}


def test_a_status_that_comes_back_counts_in_any_order_of_work() -> None:
    first, second, third = (incoming(booking(status), at) for at, status in enumerate(("PAID", "VOID", "PAID")))
    for order in ((first, second, third), (first, third, second), (third, second, first)):
        columns = folded(*order).columns
        assert (columns["provider_status"], columns["cancel_reason"]) == ("PAID", None)


def test_nothing_tells_a_repeated_booking_from_news() -> None:
    (event,) = PROVIDER.normalize(incoming(booking("PAID")))
    assert isinstance(event, Event)
    assert (event.same_as, event.version) == (None, None)


def test_a_read_back_counts_from_the_moment_of_asking() -> None:
    """Two webhooks swap places on the way; what was read after both is right, until a later webhook says more."""
    asked = answer(RECEIVED_AT + timedelta(seconds=5), status_id="VOID")
    overtaken = [incoming(booking("VOID"), 1), incoming(booking("PAID"), 2, **{"20417": asked})]
    assert folded(*overtaken).columns["status"] == "cancelled"
    assert folded(*overtaken, incoming(booking("PART"), 9)).columns["status"] == "confirmed"


def test_payments_are_listed_once_each_and_never_added_to_what_is_paid() -> None:
    deposit, refund = transaction("TX-1", "40.00"), transaction("TX-2", "-10.00", "REFUND")
    row = folded(
        incoming(booking("PART", paid_total="30.00")),
        incoming(deposit, 1),
        incoming(refund, 2),
        incoming(deposit, 3),
    )
    assert [(payment["id"], payment["amount"]) for payment in row.columns["details"]["payments"]] == [
        ("TX-1", "40.00"),
        ("TX-2", "-10.00"),
    ]
    assert row.columns["paid"] == Decimal("30.00")


def test_a_repeated_transaction_is_the_same_and_its_refund_another() -> None:
    bodies = transaction("TX-1", "40.00"), transaction("TX-1", "40.00"), transaction("TX-1", "40.00", "REFUND")
    events = [PROVIDER.normalize(incoming(body))[0] for body in bodies]
    first, again, refund = (event.same_as for event in events if isinstance(event, Event))
    assert first == again != refund


def test_no_guest_data_of_a_payment_and_no_address_leaves_the_raw_body() -> None:
    payment = transaction("TX-1", "40.00")
    payment["transaction"] |= {"payment_mask": "4242", "payment_customer": "Sam Okoro"}
    booked = booking("PAID")
    booked["booking"] |= {"source_ip": "203.0.113.9", "customer": {"address": "12 Quay Street"}}
    told = repr([PROVIDER.normalize(incoming(body)) for body in (payment, booked)])
    assert not any(word in told for word in ("4242", "Sam Okoro", "203.0.113.9", "12 Quay Street"))


@pytest.mark.parametrize(("body", "key"), [(booking("PAID"), "20417"), (transaction("TX-1", "40.00"), "QXRT-180926")])
def test_with_keys_the_booking_is_read_back_once(body: Mapping[str, Any], key: str) -> None:
    call = PROVIDER.lookup(incoming(body))
    assert call == Call(
        name=f"booking:{key}",
        path=f"/booking/{key}",
        auth=Auth.BASIC_KEY_SECRET,
        accepts=frozenset({404}),
        required=False,
    )
    assert PROVIDER.lookup(incoming(body, **{key: answer(RECEIVED_AT)})) is None


@pytest.mark.parametrize("number", ["..", "../ping", "20417?x=1", "20417/invoice", "20 417", "²"])
def test_a_number_that_would_lead_elsewhere_is_not_asked_for(number: str) -> None:
    body = {"booking": {"booking_id": number, "status": "PAID"}}
    assert PROVIDER.lookup(incoming(body)) is None
    assert len(PROVIDER.normalize(incoming(body))) == 1


def test_nobody_is_asked_without_keys_or_about_the_catalogue() -> None:
    assert PROVIDER.lookup(incoming(booking("PAID"), secrets=frozenset())) is None
    assert PROVIDER.lookup(incoming({"type": "item", "action": "update", "item": {"item_id": "31"}})) is None
    assert PROVIDER.lookup(incoming({"type": "waiver", "action": "insert"})) is None


def test_the_api_is_the_accounts_unless_a_url_is_given() -> None:
    endpoint = Endpoint(name="harbour", provider="checkfront", options={"account": "harbour-tours"})
    assert PROVIDER.api_base(endpoint) == "https://harbour-tours.checkfront.com/api/3.0"
    elsewhere = Endpoint(name="harbour", provider="checkfront", api_url="http://127.0.0.1:9/api/3.0")
    assert PROVIDER.api_base(elsewhere) == "http://127.0.0.1:9/api/3.0"
    assert PROVIDER.api_base(Endpoint(name="harbour", provider="checkfront")) is None


@pytest.mark.parametrize(
    ("option", "good", "bad", "mend"),
    [
        ("statuses", {"CHKIN": "completed"}, {"CHKIN": "complete"}, "did you mean completed?"),
        ("statuses", {}, {"CHKIN": ["confirmed"]}, "use one of hold, pending"),
        ("party_size", "fields.numpax", "fields.", 'write "fields.numpax"'),
        ("account", "harbour-tours", "harbour-tours.checkfront.com", 'write "my-company"'),
    ],
)
def test_a_setting_that_is_not_good_is_answered_with_its_mend(option: str, good: Any, bad: Any, mend: str) -> None:
    check = PROVIDER.options[option].check
    assert check(good) is None
    assert mend in (check(bad) or "")
