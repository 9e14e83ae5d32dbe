"""What one fixture cannot show of Lockme: the order of messages, thin messages, and what is asked and acknowledged."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from cases import RECEIVED_AT

from schemas.booking import Status
from schemas.delivery import RawDelivery, new_id
from schemas.endpoints import ConfigError, Endpoint, parse
from workers.errors import Malformed
from workers.fold import Said, fold
from workers.provider import Answer, Auth, Event, Incoming
from workers.providers.lockme import PROVIDER
from workers.registry import check

WHEN = {"roomid": 7, "date": "2026-10-24", "hour": "18:30:00"}
PERSON = {"name": "Ewa", "surname": "Lis", "people": 4, "price": "240.00"}


def incoming(number: str | None, message: Any = None, *, method: str = "POST", **options: Any) -> Incoming:
    headers = (("x-messageid", number),) if number is not None else ()
    answers = {} if message is None else {"message": Answer(status=200, body=message, at=RECEIVED_AT)}
    return Incoming(
        delivery=RawDelivery(id=new_id(), endpoint="escape", method=method, received_at=RECEIVED_AT, headers=headers),
        endpoint=Endpoint(name="escape", provider="lockme", timezone="Europe/Warsaw", options=options),
        answers=answers,
    )


def said(number: str, action: str, **data: Any) -> Said:
    message = incoming(number, {"action": action, "roomid": 7, "reservationid": 5, "data": data})
    (event,) = PROVIDER.normalize(message)
    assert isinstance(event, Event)
    assert event.same_as == number
    return Said(
        delivery_id=message.delivery.id,
        position=0,
        received_at=message.delivery.received_at,
        version=event.version,
        said=event.said,
    )


def row(*events: Said) -> dict[str, Any]:
    folded = fold(events)
    assert folded is not None
    return dict(folded.columns)


def test_message_ids_are_ordered_as_numbers() -> None:
    hold = said("999", "add", **WHEN, **PERSON, source="web", status=0)
    paid = said("1000", "edit", **WHEN, **PERSON, source="web", status=1)
    assert row(hold, paid) == row(paid, hold)
    assert row(paid, hold)["status"] is Status.CONFIRMED


def test_thin_messages_in_any_order_give_the_same_row() -> None:
    events = (
        said("10", "add", **WHEN, **PERSON, source="panel", status=1, comment="birthday"),
        said("11", "edit", roomid=8, date="2026-10-25", hour="20:00:00", status=1, extid="wp-310"),
        said("12", "edit", comment=""),
        said("13", "delete", extid="wp-310"),
    )
    rows = [row(*order) for order in permutations(events)]
    assert all(one == rows[0] for one in rows)
    assert (rows[0]["status"], rows[0]["resource_id"], rows[0]["customer_name"], rows[0]["note"]) == (
        Status.CANCELLED,
        "7",  # the delete names the room outside of its data again
        "Ewa Lis",
        None,
    )
    assert rows[0]["starts_at"].isoformat() == "2026-10-25T19:00:00+00:00"


def test_a_note_on_the_clock_ends_when_the_booking_moves_out_of_the_gap() -> None:
    night = said("20", "add", roomid=7, date="2026-03-29", hour="02:30:00", status=1)
    evening = said("21", "edit", roomid=7, date="2026-03-29", hour="18:30:00")
    assert row(night)["details"]["clock"] == "skipped by daylight saving"
    assert row(night, evening)["details"]["clock"] is None


def test_a_new_day_without_an_hour_does_not_keep_the_start_of_the_old_day() -> None:
    moved = row(said("30", "add", **WHEN, status=1), said("31", "edit", date="2026-11-02"))
    assert (moved["date"].isoformat(), moved["starts_at"]) == ("2026-11-02", None)


def test_the_message_is_asked_for_first_and_rooms_only_where_their_names_are_wanted() -> None:
    call = PROVIDER.lookup(incoming("42", room_names=True))
    assert call is not None
    assert (call.name, call.path, call.auth, call.accepts) == ("message", "/message/42", Auth.OAUTH, {404})
    booking = {"action": "add", "reservationid": 5}
    assert PROVIDER.lookup(incoming("42", booking)) is None
    rooms = PROVIDER.lookup(incoming("42", booking, room_names=True))
    assert rooms is not None
    assert (rooms.name, rooms.path, rooms.required) == ("rooms", "/rooms", False)
    assert PROVIDER.lookup(incoming("42", {"action": "test"}, room_names=True)) is None
    assert PROVIDER.lookup(incoming("42", [1], room_names=True)) is None


@pytest.mark.parametrize("action", ["add", "delete", "test", "move", None])
def test_every_message_is_acknowledged_whatever_it_says(action: str | None) -> None:
    call = PROVIDER.acknowledge(incoming("42", {"action": action}, method="GET"))
    assert call is not None
    assert (call.method, call.path, call.auth, call.accepts) == ("POST", "/message/42", Auth.OAUTH, {404})


@pytest.mark.parametrize("number", [None, "", "abc", "12x", "1" * 20, "-1", "4²"])
def test_a_request_without_a_message_id_is_parked_and_acknowledges_nothing(number: str | None) -> None:
    request = incoming(number)
    assert PROVIDER.message_id(request.delivery) is None
    assert PROVIDER.acknowledge(request) is None
    for ask in (PROVIDER.lookup, PROVIDER.normalize):
        with pytest.raises(Malformed) as error:
            ask(request)
        assert error.value.reason == "no-message-id"


def test_the_api_base_ends_in_the_version() -> None:
    endpoint = Endpoint(name="escape", provider="lockme")
    assert PROVIDER.api_base(endpoint) == "https://api.lock.me/v2.4"
    played = Endpoint(
        name="escape", provider="lockme", api_url="http://127.0.0.1:9/lockme", options={"api_version": "v2.3"}
    )
    assert PROVIDER.api_base(played) == "http://127.0.0.1:9/lockme/v2.3"


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({}, "timezone"),
        ({"timezone": "Europe/Warsaw", "api_version": "2.4"}, "api_version"),
        ({"timezone": "Europe/Warsaw", "slot_minutes": 0}, "slot_minutes"),
        ({"timezone": "Europe/Warsaw", "slot_minutes": "60"}, "slot_minutes"),
        ({"timezone": "Europe/Warsaw", "room_names": "yes"}, "room_names"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], where: str) -> None:
    config = parse({"endpoints": {"escape": {"provider": "lockme", **settings}}}, "reservoir.toml", {})
    with pytest.raises(ConfigError, match=rf"^reservoir\.toml: endpoints\.escape\.{where}: "):
        check(config)


def test_the_api_lives_below_a_version_that_api_url_may_name_itself() -> None:
    """`api_url` is the host, as the provider writes it; a version in it counts, and is not doubled."""
    plain = Endpoint(name="vault", provider="lockme")
    assert PROVIDER.api_base(plain) == "https://api.lock.me/v2.4"
    assert PROVIDER.api_base(replace(plain, api_url="http://127.0.0.1:9")) == "http://127.0.0.1:9/v2.4"
    assert PROVIDER.api_base(replace(plain, api_url="http://127.0.0.1:9/v2.3")) == "http://127.0.0.1:9/v2.3"
    older = replace(plain, options={"api_version": "v2.1"})
    assert PROVIDER.api_base(older) == "https://api.lock.me/v2.1"
