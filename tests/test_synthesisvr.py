"""What one request of SynthesisVR cannot show: what is asked, in which order, and what several requests add up to."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from schemas.delivery import RawDelivery
from schemas.endpoints import Endpoint
from workers.fold import Said, fold
from workers.provider import Answer, Auth, Call, Event, Incoming, Recall
from workers.providers.synthesisvr import PROVIDER

SESSION, OTHER = "9a1f6c1e-77d0-5b62-8e0a-3f1c2d4e5b60", "0c52be0d-1f0b-5d6e-9a63-5d2b8e7f1a44"
NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
KEYED = Endpoint(name="arcade", provider="synthesisvr", timezone="Europe/Vienna", secrets=frozenset({"api_key"}))
BARE = Endpoint(name="arcade", provider="synthesisvr")


def told(action: str, uuid: str = SESSION, **fields: Any) -> dict[str, Any]:
    return {"uuid": uuid, "action": action, "location": "Prater Arcade", "stations": 3, **fields}


def request(
    *elements: dict[str, Any], number: int = 1, at: datetime = NOON, endpoint: Endpoint = BARE, **answers: Answer
) -> Incoming:
    delivery = RawDelivery(
        id=UUID(int=number), endpoint="arcade", method="POST", received_at=at, body=json.dumps(elements).encode()
    )
    return Incoming(delivery=delivery, endpoint=endpoint, answers=answers)


def answer(body: Any, status: int = 200, at: datetime = NOON) -> Answer:
    return Answer(status=status, body=body, at=at)


def asked(incoming: Incoming) -> list[str]:
    """The names of all questions, each answered with nothing known."""
    names, answers = [], dict(incoming.answers)
    while question := PROVIDER.lookup(
        Incoming(delivery=incoming.delivery, endpoint=incoming.endpoint, answers=answers)
    ):
        names.append(question.name)
        answers[question.name] = answer([])
    return names


def folded(*requests: Incoming) -> dict[str, Any]:
    """The row of SESSION."""
    said = [
        Said(
            delivery_id=incoming.delivery.id,
            position=position,
            received_at=element.as_of or incoming.delivery.received_at,
            said=element.said,
        )
        for incoming in requests
        for position, element in enumerate(PROVIDER.normalize(incoming))
        if isinstance(element, Event) and element.external_id == SESSION
    ]
    row = fold(said)
    assert row is not None
    return dict(row.columns)


# --- what is asked ---


def test_without_a_key_only_our_own_memory_is_asked() -> None:
    incoming = request(told("create", customerid=5204), told("delete", OTHER))
    assert PROVIDER.lookup(incoming) == Recall(
        name="recent", external_ids=(SESSION, OTHER), within=timedelta(minutes=2)
    )
    assert asked(incoming) == ["recent"]


def test_with_a_key_a_create_asks_for_its_session_and_its_customer() -> None:
    incoming = request(told("create", customerid=5204), endpoint=KEYED)
    assert asked(incoming) == ["recent", f"session:{SESSION}", "customer:5204"]


def test_a_delete_asks_for_nothing_more() -> None:
    assert asked(request(told("delete", customerid=5204), endpoint=KEYED)) == ["recent"]


def test_what_is_made_and_deleted_in_one_array_is_not_read_back() -> None:
    assert asked(request(told("create"), told("delete"), endpoint=KEYED)) == ["recent"]


def test_a_delete_in_doubt_is_read_back() -> None:
    recent = answer([{"external_id": SESSION, "provider_status": "create"}])
    assert asked(request(told("delete"), endpoint=KEYED, recent=recent)) == [f"session:{SESSION}"]


def test_the_session_is_searched_by_uuid_in_the_widest_window_and_the_key_is_only_a_placeholder() -> None:
    assert PROVIDER.lookup(request(told("create"), endpoint=KEYED, recent=answer([]))) == Call(
        name=f"session:{SESSION}",
        path=f"/data/sessions/{{key}}/json/100%20year/date%3D2000-01-01%20uuid%3A{SESSION}",
        auth=Auth.KEY_IN_PATH,
        accepts=frozenset({404}),
        required=False,
    )


@pytest.mark.parametrize("unsafe", ["x upcoming", "../customers", "a/b", "a%20b", "{key}", "ä"])
def test_an_id_that_could_change_the_question_is_not_asked_for(unsafe: str) -> None:
    incoming = request(told("create", unsafe, customerid=unsafe), endpoint=KEYED)
    assert asked(incoming) == ["recent"]


def test_a_very_long_array_does_not_ask_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.providers.synthesisvr.MOST_READ_BACKS", 10)
    elements = [told("create", f"session-{number}", customerid=number) for number in range(1, 30)]
    assert len(asked(request(*elements, endpoint=KEYED))) == 1 + 10 + 10


def test_nothing_is_asked_for_a_body_without_readable_elements() -> None:
    assert PROVIDER.lookup(request(told("update"), {}, endpoint=KEYED)) is None


# --- what several requests add up to ---


def test_create_delete_create_is_three_facts() -> None:
    later = [NOON + timedelta(hours=hours) for hours in range(3)]
    rows = [request(told(word), number=n, at=later[n]) for n, word in enumerate(("create", "delete", "create"))]
    assert folded(*rows)["status"] == "confirmed"
    assert folded(*reversed(rows))["status"] == "confirmed"
    assert all(isinstance(element, Event) and element.same_as is None for element in PROVIDER.normalize(rows[2]))


def test_a_read_back_settles_two_requests_that_overtook_each_other() -> None:
    """The delete was sent last and received first; the API, asked after both, knows."""
    recent = answer([{"external_id": SESSION, "provider_status": "delete"}])
    settled = {f"session:{SESSION}": answer({"sessions": []}, at=NOON + timedelta(seconds=3))}
    delete = request(told("delete"), number=1)
    create = request(told("create"), number=2, at=NOON + timedelta(seconds=1), endpoint=KEYED, recent=recent, **settled)
    row = folded(create, delete)
    assert (row["status"], row["details"]["order"]) == ("cancelled", "settled by the API")


def test_what_comes_after_a_read_back_is_newer_than_it() -> None:
    recent = answer([{"external_id": SESSION, "provider_status": "delete"}])
    settled = {f"session:{SESSION}": answer({"sessions": []}, at=NOON + timedelta(seconds=3))}
    doubted = request(told("create"), number=1, endpoint=KEYED, recent=recent, **settled)
    again = request(told("create"), number=2, at=NOON + timedelta(minutes=30), recent=answer([]))
    row = folded(doubted, again)
    assert row["status"] == "confirmed"


def test_a_delete_leaves_what_the_read_back_said() -> None:
    session = {"sessions": {"0": {"uuid": SESSION, "start_time": "2026-11-21 18:30", "cost": "$75.00"}}}
    read = {"recent": answer([]), f"session:{SESSION}": answer(session)}
    create = request(told("create"), number=1, endpoint=KEYED, **read)
    delete = request(told("delete"), number=2, at=NOON + timedelta(hours=1))
    row = folded(create, delete)
    assert (row["status"], row["starts_at"]) == ("cancelled", datetime(2026, 11, 21, 17, 30, tzinfo=UTC))


def test_a_session_that_changes_hands_does_not_keep_the_other_persons_name() -> None:
    nora = answer([{"id": 5204, "fullname": "Nora Quist", "email": "nora@example.org", "phone": "1"}])
    first = request(told("create", customerid=5204), number=1, endpoint=KEYED, **{"customer:5204": nora})
    walk_in = request(told("create", customerid=0), number=2, at=NOON + timedelta(hours=1))
    row = folded(first, walk_in)
    assert (row["customer_id"], row["customer_name"], row["customer_email"]) == (None, None, None)


def test_of_the_customers_that_a_search_finds_only_the_one_that_was_meant_is_kept() -> None:
    """The search is free text, and other guests are none of our business."""
    made = request(
        told("create", customerid=5204),
        endpoint=KEYED,
        recent=answer([]),
        **{f"session:{SESSION}": answer({"sessions": []})},
    )
    call = PROVIDER.lookup(made)
    assert isinstance(call, Call)
    assert call.keep is not None
    meant, other = {"id": 5204, "fullname": "Nora Quist"}, {"id": 5199, "phone": "+43 5204"}
    assert call.keep({"customers": {"1": other, "2": meant}}) == {"customers": [meant]}
    assert call.keep({"customers": [other]}) == {"customers": []}
    assert call.keep("no such thing") is None
