"""One delivery's life through the real pipeline and real PostgreSQL: every fixture, and every turn that it can take."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cases import Case, cases
from sqlalchemy import Engine, text
from world import NOON, VENUES, Script, Step, Telling, World, answer, database, request, shown, tell

from console.services import Embedded
from schemas.delivery import RawDelivery, State, new_id
from workers.errors import CredentialsRefused, ProviderUnavailable
from workers.job import ComesBack, Done
from workers.pipeline import process
from workers.provider import Answer, Auth, Call, Element, Event, Incoming, Provider
from workers.registry import discover
from workers.retry import ATTEMPTS, LONGEST
from workers.store import LEASE

KEYED_SALON = replace(VENUES["reservekit"], secrets=frozenset({"api_key"}))


@pytest.fixture
def world(engine: Engine) -> World:
    """All five venues, and an API that answers nothing until somebody scripts it."""
    return World(engine, list(VENUES.values()))


def sent(world: World, provider: str, *steps: Step, at: float = 0) -> RawDelivery:
    """A request as that provider sends it, received so many seconds after noon; the API answers accordingly."""
    telling = tell(provider, *steps)
    return posted(world, provider, telling, at=at)


def posted(world: World, provider: str, telling: Telling, at: float = 0) -> RawDelivery:
    world.script.lines.update(telling.answers)
    moment = NOON + timedelta(seconds=at)
    return request(VENUES[provider].name, telling.body, headers=telling.headers, at=moment)


def in_json(document: Any) -> Telling:
    return Telling(body=json.dumps(document).encode(), headers=(("content-type", "application/json"),))


# --- every fixture ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(services: Embedded, template: str) -> Iterator[Engine]:
    """One database for all fixtures: each has an endpoint of its own."""
    with database(services, template) as engine:
        yield engine


def world_of(case: Case, engine: Engine, number: int) -> tuple[World, Script]:
    """An endpoint of the case's own. Lockme's case files hold what is read, not the farewell."""
    script = Script({"acknowledge": answer(None, status=204), **case.answers})
    endpoint = replace(case.endpoint, name=f"case-{number}")
    return World(engine, [endpoint], script=script, secrets={endpoint.name: case.secrets}), script


def expected_end(case: Case, script: Script) -> tuple[str, str | None]:
    """State and reason that the case names; another one where it leaves questions open that the pipeline asks.

    A case without an answer stands for an API that is down, and a payment alone waits for its booking; both come back.
    """
    expected, required = case.expected, any(call.required for call in script.unanswered)
    if script.unanswered and (required or expected["state"] != State.PARKED):
        return State.RETRYING, "provider-unavailable"
    if expected["state"] == State.APPLIED and any(waits(row) for row in merged(expected["bookings"])):
        return State.RETRYING, "awaiting-booking"
    return expected["state"], expected.get("reason")


def merged(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where a case holds a payment and the booking with its code as two rows, the table has one."""
    of_code = {row["external_id"]: row["details"] for row in rows if waits(row)}
    whole = []
    for row in rows:
        payments = of_code.pop(f"code:{row.get('reference')}", None)
        whole.append({**row, "details": {**row.get("details", {}), **payments}} if payments else row)
    return [row for row in whole if not waits(row) or row["external_id"] in of_code]


def waits(row: dict[str, Any]) -> bool:
    return str(row["external_id"]).startswith("code:")


@pytest.mark.parametrize(("number", "case"), list(enumerate(cases())), ids=[case.name for case in cases()])
def test_a_fixture_goes_the_whole_way(number: int, case: Case, shared: Engine) -> None:
    """Rows, state and reason are those beside the fixture."""
    world, script = world_of(case, shared, number)
    raw = replace(case.delivery, id=new_id(), endpoint=f"case-{number}")
    remembered = {name: found for name, found in case.answers.items() if name == "recent"}
    world.land(raw)
    world.remember(raw.id, remembered)
    world.work(raw.id)
    assert [shown(row) for row in world.rows()] == [row for row in merged(case.expected["bookings"]) if not waits(row)]
    assert world.verdict(raw.id) == expected_end(case, script)
    assert case.expected.get("error", "") in (world.delivery(raw.id).error or "")


# --- a message that only its id names (Lockme) -----------------------------------------------------------------


def test_a_repeated_message_is_acknowledged_again_and_not_read_again(world: World) -> None:
    first, again = (sent(world, "lockme", Step(name="Ewa"), at=seconds) for seconds in (0, 60))
    world.deliver(first, again)
    assert world.script.names == ["message", "acknowledge", "acknowledge"]
    assert world.verdict(again.id) == (State.DUPLICATE, None)
    assert [row["delivery_id"] for row in world.rows()] == [first.id]


def test_a_message_is_acknowledged_when_another_connection_can_see_its_row(world: World) -> None:
    raw = sent(world, "lockme", Step(name="Ewa"))
    seen: list[tuple[list[str], str]] = []

    def acknowledge(call: Call) -> Answer:
        seen.append(([row["customer_name"] for row in world.rows()], world.delivery(raw.id).state))
        return answer(None, status=204)

    world.script.lines["acknowledge"] = acknowledge
    world.deliver(raw)
    assert seen == [(["Ewa"], State.APPLIED)]
    assert world.delivery(raw.id).acknowledged_at == NOON


def test_an_acknowledge_that_fails_is_owed_and_comes_back(world: World) -> None:
    raw = sent(world, "lockme", Step())
    down = world.script.lines["acknowledge"] = ProviderUnavailable()
    (fate,) = world.deliver(raw)
    assert isinstance(fate, ComesBack)
    assert fate.error is down
    row = world.delivery(raw.id)
    assert (row.state, row.acknowledge_at, row.acknowledged_at) == (State.APPLIED, fate.at, None)

    world.script.lines["acknowledge"] = answer(None, status=204)
    assert world.work(raw.id) is None  # not yet
    world.clock.now = fate.at
    assert world.work(raw.id) == Done(state=State.APPLIED)
    assert world.script.names == ["message", "acknowledge", "acknowledge"]
    assert world.delivery(raw.id).acknowledge_at is None


def test_a_redelivery_while_the_acknowledge_is_owed_is_a_duplicate_and_acknowledged(world: World) -> None:
    raw, again = sent(world, "lockme", Step()), sent(world, "lockme", Step(), at=60)
    world.script.lines["acknowledge"] = ProviderUnavailable()
    world.deliver(raw)
    world.script.lines["acknowledge"] = answer(None, status=404)  # it may be gone by then
    world.clock.forward(minutes=1)
    assert world.deliver(again) == [Done(state=State.DUPLICATE)]
    assert world.work(raw.id) == Done(state=State.APPLIED)
    assert [world.delivery(one.id).acknowledged_at for one in (raw, again)] == [world.clock()] * 2


def test_an_acknowledge_that_is_refused_for_good_is_given_up_in_the_end(world: World) -> None:
    raw = sent(world, "lockme", Step())
    world.script.lines["acknowledge"] = CredentialsRefused()
    world.deliver(raw)
    for _ in range(ATTEMPTS):
        world.clock.forward(minutes=31)
        world.work(raw.id)
    row = world.delivery(raw.id)
    assert (row.state, row.acknowledge_at, row.acknowledged_at) == (State.APPLIED, None, None)
    assert world.script.names.count("acknowledge") == ATTEMPTS


def test_an_acknowledge_is_given_up_when_the_endpoint_is_removed(world: World) -> None:
    raw = sent(world, "lockme", Step())
    world.script.lines["acknowledge"] = ProviderUnavailable()
    world.deliver(raw)
    without = World(world.engine, [VENUES["timekit"]], clock=world.clock)
    world.clock.forward(hours=1)
    without.work(raw.id)
    row = world.delivery(raw.id)
    assert (row.state, row.acknowledge_at) == (State.APPLIED, None)


def test_a_repeat_that_is_worked_on_before_the_first_does_not_take_its_place(world: World) -> None:
    """The first one waits for the API; meanwhile the provider sends again and the API is back."""
    first, again = (sent(world, "lockme", Step(name="Ewa"), at=seconds) for seconds in (0, 60))
    message = world.script.lines.pop("/message/90000")
    world.deliver(first)
    world.script.lines["/message/90000"] = message
    world.deliver(again)
    world.settle()
    (row,) = world.rows()
    assert (row["delivery_id"], row["changed_at"], row["first_seen_at"]) == (first.id, NOON, NOON)
    assert world.script.names.count("message") == 2  # one that failed, one that was answered
    assert [world.verdict(one.id)[0] for one in (first, again)] == [State.DUPLICATE, State.APPLIED]


@pytest.mark.parametrize(("action", "end"), [("refund", "unsupported-action"), ("test", "provider-test")])
def test_what_is_no_booking_is_acknowledged_too(world: World, action: str, end: str) -> None:
    """Else it would come again for a day."""
    raw = sent(world, "lockme", Step())
    world.script.lines["/message/90000"] = answer({"action": action, "data": {}})
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.IGNORED if action == "test" else State.PARKED, end)
    assert world.delivery(raw.id).acknowledged_at is not None
    assert world.rows() == []


def test_a_message_that_nobody_could_read_for_24_hours_is_parked_and_not_acknowledged(world: World) -> None:
    raw = sent(world, "lockme", Step())
    del world.script.lines["/message/90000"]
    world.deliver(raw)
    world.settle(rounds=ATTEMPTS)
    row = world.delivery(raw.id)
    assert (row.state, row.reason, row.attempts) == (State.PARKED, "provider-unavailable", ATTEMPTS)
    assert row.error == "tried for 24 hours: message: nobody answers"
    assert "acknowledge" not in world.script.names
    assert timedelta(hours=18) < world.clock() - NOON <= timedelta(hours=24)


def test_a_worker_whose_lease_ran_out_does_not_acknowledge_what_another_one_parked(world: World) -> None:
    raw = sent(world, "lockme", Step())
    world.land(raw)
    slow = world.store.claim(raw.id, world.clock())
    assert slow is not None
    world.clock.forward(seconds=LEASE.total_seconds())
    world.change(raw.id, attempts=ATTEMPTS - 1)
    message = world.script.lines.pop("/message/90000")
    world.work(raw.id)
    assert world.verdict(raw.id)[0] == State.PARKED

    world.script.lines["/message/90000"] = message
    assert process([slow], world.parts) == {raw.id: Done(state=None)}
    assert "acknowledge" not in world.script.names
    assert world.rows() == []


# --- looking up ------------------------------------------------------------------------------------------------


def test_what_the_webhook_says_is_applied_at_once_and_the_rest_when_the_api_is_back(engine: Engine) -> None:
    world = World(engine, [KEYED_SALON])
    raw = sent(world, "reservekit", Step(name="Lena"))
    (fate,) = world.deliver(raw)
    assert isinstance(fate, ComesBack)
    assert world.verdict(raw.id) == (State.RETRYING, "provider-unavailable")
    assert [(row["customer_name"], row["resource_name"]) for row in world.rows()] == [("Lena", None)]

    world.script.lines["service:140"] = answer({"data": {"id": 140, "name": "Haircut", "timezone": "Europe/Berlin"}})
    world.clock.now = fate.at
    assert world.work(raw.id) == Done(state=State.APPLIED)
    assert [(row["customer_name"], row["resource_name"]) for row in world.rows()] == [("Lena", "Haircut")]
    assert [change["kind"] for change in world.changes()] == ["created", "updated"]


def test_a_delivery_does_not_ask_for_ever_and_goes_on_where_it_stopped(engine: Engine) -> None:
    """A slow API: what was answered in time is applied and kept; the rest is asked at the next attempt."""
    world = World(engine, [KEYED_SALON])

    def slow(call: Call) -> Answer:
        world.clock.forward(seconds=26)
        return answer({"data": {"id": 140, "name": "Haircut", "timezone": "Europe/Berlin"}})

    world.script.lines["service:140"] = slow
    body = {"bookings": [{"id": 1, "service_id": 140, "time_slot_id": 9, "date": "2026-12-01"}]}
    raw = posted(world, "reservekit", in_json(body))
    (fate,) = world.deliver(raw)
    assert isinstance(fate, ComesBack)
    assert world.verdict(raw.id) == (State.RETRYING, "provider-unavailable")
    assert world.script.names == ["service:140"]
    assert [row["timezone"] for row in world.rows()] == ["Europe/Berlin"]
    world.clock.now = fate.at
    world.work(raw.id)
    assert world.script.names == ["service:140", "slots:140"]


def test_a_bad_element_does_not_keep_the_good_ones_from_being_looked_up_later(engine: Engine) -> None:
    """While the API is down the delivery retries; when all is read that can be read, it is parked for the rest."""
    world = World(engine, [KEYED_SALON])
    good = {"id": 1, "service_id": 140, "date": "2026-12-01"}
    raw = posted(world, "reservekit", in_json({"bookings": [good, {"id": 2, "date": "never"}]}))
    (fate,) = world.deliver(raw)
    assert isinstance(fate, ComesBack)
    assert world.verdict(raw.id) == (State.RETRYING, "provider-unavailable")
    assert "body.bookings[1]" in world.delivery(raw.id).error
    world.script.lines["service:140"] = answer({"data": {"id": 140, "name": "Haircut", "timezone": "Europe/Berlin"}})
    world.clock.now = fate.at
    world.work(raw.id)
    assert world.verdict(raw.id) == (State.PARKED, "malformed")
    assert [row["resource_name"] for row in world.rows()] == ["Haircut"]


def test_what_was_answered_before_is_not_asked_again(engine: Engine) -> None:
    """The service was known at the first attempt, the slots came with the second one."""
    world = World(engine, [KEYED_SALON])
    body = {"bookings": [{"id": 1, "service_id": 140, "time_slot_id": 9, "date": "2026-12-01"}]}
    world.script.lines["service:140"] = answer({"data": {"id": 140, "name": "Haircut", "timezone": "Europe/Berlin"}})
    (fate,) = world.deliver(posted(world, "reservekit", in_json(body)))
    assert isinstance(fate, ComesBack)
    slots = {"data": [{"id": 9, "start_time": "09:00:00", "end_time": "10:00:00"}]}
    world.script.lines["slots:140"] = answer(slots)
    world.settle()
    assert world.script.names == ["service:140", "slots:140", "slots:140"]
    assert [row["starts_at"].isoformat() for row in world.rows()] == ["2026-12-01T08:00:00+00:00"]


def test_our_own_memory_is_asked_for_what_came_close(world: World) -> None:
    """A create and a delete of one session within two minutes may have overtaken each other."""
    requests = [sent(world, "synthesisvr", Step(word=word), at=at) for word, at in [("create", 0), ("cancel", 30)]]
    world.deliver(*requests)
    (row,) = world.rows()
    assert (row["status"], row["details"]["order"]) == ("cancelled", "in doubt")
    (told,) = world.delivery(requests[1].id).lookup["recent"]["body"]
    assert (told["delivery_id"], told["provider_status"]) == (str(requests[0].id), "create")


@pytest.mark.parametrize("turns", [(0, 1), (1, 0)])
def test_only_the_last_words_of_two_requests_can_contradict_each_other(world: World, turns: tuple[int, int]) -> None:
    """Made and deleted in one request, deleted once more in the next: nothing is in doubt, whoever is first."""
    made_and_deleted, deleted = [Step(word="create"), Step(word="cancel")], [Step(word="cancel")]
    requests = [sent(world, "synthesisvr", *steps, at=at) for steps, at in [(made_and_deleted, 0), (deleted, 30)]]
    world.deliver(*(requests[turn] for turn in turns))
    (row,) = world.rows()
    assert (row["status"], row["details"], row["delivery_id"]) == ("cancelled", {}, requests[0].id)


def test_what_was_read_back_is_not_lost_to_a_retry_unless_our_memory_has_changed(engine: Engine) -> None:
    """The session was read, the customer was not; when the API is down at the retry, the session is known still."""
    world = World(engine, [replace(VENUES["synthesisvr"], secrets=frozenset({"api_key"}))])
    uuid = "9a1f6c1e-77d0-5b62-8e0a-3f1c2d4e5b01"
    world.script.lines[f"session:{uuid}"] = answer({"sessions": [{"uuid": uuid, "start_time": "2026-12-01 18:00"}]})
    raw = sent(world, "synthesisvr", Step(name="5204"))
    world.deliver(raw)
    world.script.lines.clear()
    world.settle(rounds=1)
    assert world.script.names == [f"session:{uuid}", "customer:5204", "customer:5204"]
    assert [row["starts_at"].isoformat() for row in world.rows()] == ["2026-12-01T17:00:00+00:00"]

    world.deliver(sent(world, "synthesisvr", Step(word="cancel"), at=30))
    world.settle(rounds=1)
    assert world.script.names[-1] == f"session:{uuid}"


# --- what needs a person ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("signature", [None, "0" * 64])
def test_a_bad_signature_parks_the_delivery_and_writes_no_row(engine: Engine, signature: str | None) -> None:
    signed = replace(VENUES["timekit"], secrets=frozenset({"webhook_secret"}))
    world = World(engine, [signed])
    telling = tell("timekit", Step(name="Nora"))
    headers = [("x-timekit-signature", signature)] if signature else []
    raw = request("studio", telling.body, headers=headers)
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.PARKED, "bad-signature")
    assert (world.rows(), world.changes()) == ([], [])


def test_one_bad_element_parks_the_delivery_and_the_good_ones_are_applied(world: World) -> None:
    good = [{"id": number, "status": "confirmed"} for number in (1, 3)]
    raw = posted(world, "reservekit", in_json({"bookings": [good[0], {"id": {"not": "an id"}}, good[1]]}))
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.PARKED, "malformed")
    assert "body.bookings[1].id: expected text" in world.delivery(raw.id).error
    assert [row["external_id"] for row in world.rows()] == ["1", "3"]
    assert [event["position"] for event in world.events()] == [0, 2]
    assert world.delivery(raw.id).applied_at == NOON


def test_an_endpoint_that_nobody_configured_parks_and_can_be_put_back(world: World) -> None:
    raw = request("gone", tell("timekit", Step(name="Nora")).body)
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.PARKED, "unknown-endpoint")
    assert world.delivery(raw.id).provider == "unknown"

    back = World(world.engine, [replace(VENUES["timekit"], name="gone")])
    assert back.once_more(raw.id) == Done(state=State.APPLIED)
    assert back.delivery(raw.id).provider == "timekit"
    assert [(row["provider"], row["customer_name"]) for row in back.rows()] == [("timekit", "Nora")]


def made(**parts: Any) -> Provider:
    """Timekit with other parts."""
    return replace(discover()["timekit"], **parts)


def stumble(incoming: Incoming, *_: Any) -> Any:
    return {}[incoming.delivery.body.decode()]


@pytest.mark.parametrize("part", ["normalize", "lookup", "verify"])
def test_a_mistake_of_ours_parks_without_a_word_of_the_body(engine: Engine, part: str) -> None:
    world = World(engine, [VENUES["timekit"]], providers={"timekit": made(**{part: stumble})})
    raw = request("studio", b"nora@example.org")
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.PARKED, "internal-error")
    error = world.delivery(raw.id).error
    assert error.startswith("KeyError at test_pipeline.py:")
    assert "nora" not in error


def test_a_mistake_in_the_farewell_stops_nothing(engine: Engine) -> None:
    world = World(engine, [VENUES["timekit"]], providers={"timekit": made(acknowledge=stumble)})
    assert world.deliver(request("studio", tell("timekit", Step()).body)) == [Done(state=State.APPLIED)]


def test_a_provider_that_asks_without_end_is_parked(engine: Engine) -> None:
    def lookup(incoming: Incoming) -> Call:
        return Call(name=f"question-{len(incoming.answers)}", path="/", auth=Auth.BEARER_KEY)

    patient = Script(otherwise=answer(None))
    world = World(engine, [VENUES["timekit"]], script=patient, providers={"timekit": made(lookup=lookup)})
    raw = request("studio", tell("timekit", Step()).body)
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.PARKED, "internal-error")


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else "bottom"


def says(**fields: Any) -> Provider:
    """A provider whose file lets through what none of ours would."""

    def normalize(incoming: Incoming) -> Sequence[Element]:
        return [Event(**{"external_id": "1", "said": {}, **fields})]

    return made(normalize=normalize)


@pytest.mark.parametrize(
    ("provider", "end"),
    [
        (says(said={"note": "a\x00b\ud800"}), (State.APPLIED, None)),
        (says(said={"details": {"a\x00": ["\udfff", float("inf")]}}), (State.APPLIED, None)),
        (says(payments=[{"id": "1", "by": "\x00"}]), (State.APPLIED, None)),
        (says(external_id="i" * 201), (State.PARKED, "malformed")),
        (says(said={"reference": "r" * 201}), (State.PARKED, "malformed")),
        (says(same_as="s" * 201), (State.PARKED, "malformed")),
        (says(version="v" * 201), (State.PARKED, "malformed")),
        (says(said={"quantity": 2**31}), (State.PARKED, "malformed")),
        (says(said={"details": {"a": deep(500)}}), (State.PARKED, "internal-error")),
        (says(external_id="a\x00b"), (State.PARKED, "internal-error")),
        (says(said={"colour": "red"}), (State.PARKED, "internal-error")),
    ],
)
def test_what_postgresql_cannot_hold_ends_in_a_row_or_parked(
    engine: Engine, provider: Provider, end: tuple[str, str | None]
) -> None:
    world = World(engine, [VENUES["timekit"]], providers={"timekit": provider})
    raw = request("studio", b"{}")
    world.deliver(raw)
    assert world.verdict(raw.id) == end
    assert len(world.rows()) == (end[0] == State.APPLIED)


@pytest.mark.parametrize("number", [1e23, 3.019234294786527e16, -0.0, 2.5, 5e-324, 10**40])
def test_a_number_is_the_same_number_when_postgresql_gives_it_back(engine: Engine, number: float) -> None:
    provider = says(said={"details": {"number": number}}, payments=[{"id": "1", "number": number}])
    world = World(engine, [VENUES["timekit"]], providers={"timekit": provider})
    fates = world.deliver(request("studio", b"{}"), request("studio", b"{}"))
    assert fates == [Done(state=State.APPLIED), Done(state=State.DUPLICATE)]
    assert len(world.changes()) == 1


# --- a payment that comes before its booking (Checkfront) ------------------------------------------------------


def test_a_payment_waits_for_its_booking_and_is_woken_by_it(world: World) -> None:
    payment = sent(world, "checkfront", Step(word="pay", version=1))
    (fate,) = world.deliver(payment)
    assert isinstance(fate, ComesBack)
    assert world.verdict(payment.id) == (State.RETRYING, "awaiting-booking")
    assert world.rows() == []

    world.deliver(sent(world, "checkfront", Step(size=80), at=1))
    assert world.delivery(payment.id).next_attempt_at == world.clock()
    assert world.work(payment.id) == Done(state=State.APPLIED)
    (row,) = world.rows()
    assert [(paid["id"], paid["amount"]) for paid in row["details"]["payments"]] == [("TX-1", "12.50")]
    assert str(row["paid"]) == "80.00"


def test_a_payment_is_recorded_once_however_often_it_is_told(world: World) -> None:
    pay = [sent(world, "checkfront", Step(word="pay", version=1), at=at) for at in (1, 2, 3)]
    world.deliver(sent(world, "checkfront", Step(size=80)), *pay)
    (row,) = world.rows()
    assert [paid["id"] for paid in row["details"]["payments"]] == ["TX-1"]
    assert [world.verdict(one.id)[0] for one in pay] == [State.APPLIED, State.DUPLICATE, State.DUPLICATE]


def test_being_woken_in_vain_uses_up_none_of_the_attempts(world: World) -> None:
    """A busy venue has more changes of other bookings in an hour than a day has attempts."""
    payment = sent(world, "checkfront", Step(word="pay", version=1))
    world.deliver(payment)
    for number in range(2, 7):
        world.deliver(sent(world, "checkfront", Step(booking=number, size=1)))
        world.work(payment.id)
    assert world.delivery(payment.id).attempts == 1
    assert world.verdict(payment.id) == (State.RETRYING, "awaiting-booking")


def test_only_news_of_a_code_wakes_who_waits_for_one(world: World) -> None:
    """A busy venue's changes and repeats of bookings that are known do not run its waiting payments again."""
    known = sent(world, "checkfront", Step(booking=1, name="Ewa", size=10))
    payment = sent(world, "checkfront", Step(word="pay", booking=2, version=2), at=10)
    world.deliver(known, payment)
    due = world.delivery(payment.id).next_attempt_at
    world.deliver(sent(world, "checkfront", Step(word="change", booking=1, name="Jan", size=20), at=20))
    assert world.delivery(payment.id).next_attempt_at == due
    world.deliver(sent(world, "checkfront", Step(booking=2, size=30), at=30))
    assert world.delivery(payment.id).next_attempt_at == world.clock()


def test_a_duplicate_writes_nothing_into_its_row(engine: Engine) -> None:
    """More than half of what Checkfront sends says what is known already."""
    world = World(engine, [VENUES["checkfront"]])
    world.deliver(sent(world, "checkfront", Step(name="Ewa")))
    written = _version_of_the_row(engine)
    again = sent(world, "checkfront", Step(name="Ewa"), at=10)
    world.deliver(again)
    assert world.verdict(again.id) == (State.DUPLICATE, None)
    assert _version_of_the_row(engine) == written


def _version_of_the_row(engine: Engine) -> str:
    """PostgreSQL's own: another one after every UPDATE."""
    with engine.connect() as connection:
        return str(connection.execute(text("SELECT ctid FROM bookings")).scalar_one())


def test_a_payment_of_a_booking_that_never_comes_is_parked_after_a_day(world: World) -> None:
    payment = sent(world, "checkfront", Step(word="pay"))
    world.deliver(payment)
    world.settle(rounds=ATTEMPTS)
    assert world.verdict(payment.id) == (State.PARKED, "awaiting-booking")


# --- one worker at a time --------------------------------------------------------------------------------------


def test_a_delivery_is_claimed_by_one_of_many_workers(world: World) -> None:
    raw = sent(world, "timekit", Step())
    world.land(raw)
    fates = world.at_once([raw.id] * 8, workers=8)
    assert [fate for fate in fates if fate is not None] == [Done(state=State.APPLIED)]
    assert world.delivery(raw.id).attempts == 1


def test_a_lease_that_ran_out_is_taken_over(world: World) -> None:
    raw = sent(world, "timekit", Step())
    world.land(raw)
    assert world.store.claim(raw.id, world.clock()) is not None
    world.clock.now = NOON + LEASE - timedelta(microseconds=1)
    assert world.work(raw.id) is None
    world.clock.now = NOON + LEASE
    assert world.work(raw.id) == Done(state=State.APPLIED)
    assert world.delivery(raw.id).attempts == 2


def test_what_has_landed_is_not_landed_twice(world: World) -> None:
    raw = sent(world, "timekit", Step())
    world.deliver(raw)
    world.land(replace(raw, body=b"another"))
    assert world.delivery(raw.id).body == raw.body
    assert world.work(raw.id) is None


# --- several elements, and states ------------------------------------------------------------------------------


def test_two_elements_of_one_booking_in_one_delivery_are_both_on_record(world: World) -> None:
    moved = [Step(word="cancel", size=2), Step(word="create", size=3)]
    raw = sent(world, "synthesisvr", *moved)
    world.deliver(raw)
    (row,) = world.rows()
    assert (row["status"], row["quantity"]) == ("confirmed", 3)
    assert [(event["position"], event["event"]["said"]["status"]) for event in world.events()] == [
        (0, "cancelled"),
        (1, "confirmed"),
    ]
    assert [change["kind"] for change in world.changes()] == ["created"]


def test_the_changes_tell_what_the_table_showed(world: World) -> None:
    for number, word in enumerate(("create", "cancel", "create", "create")):
        world.deliver(sent(world, "synthesisvr", Step(word=word, size=3 + number // 3), at=300 * number))
    assert [change["kind"] for change in world.changes()] == ["created", "cancelled", "restored", "updated"]
    assert world.changes()[1]["diff"] == {
        "status": ["confirmed", "cancelled"],
        "provider_status": ["create", "delete"],
    }
    assert world.changes()[3]["diff"] == {"quantity": [3, 4]}


def test_a_late_event_is_stale_and_a_repeated_one_a_duplicate(world: World) -> None:
    new, old = Step(word="cancel", version=2, name="Nora"), Step(word="change", version=1, name="Nora")
    requests = [sent(world, "timekit", step, at=at) for at, step in enumerate([new, old, new])]
    world.deliver(*requests)
    states = [world.verdict(raw.id)[0] for raw in requests]
    assert states == [State.APPLIED, State.STALE, State.DUPLICATE]
    assert [row["status"] for row in world.rows()] == ["cancelled"]


def test_an_old_event_that_fills_a_gap_is_applied(world: World) -> None:
    """What only the older one speaks of counts, although the newer one came first."""
    new, old = Step(word="cancel", version=2), Step(word="change", version=1, name="Nora")
    world.deliver(sent(world, "timekit", new), sent(world, "timekit", old, at=1))
    assert [(row["status"], row["customer_name"]) for row in world.rows()] == [("cancelled", "Nora")]


def test_the_decision_to_come_back_has_jitter_of_its_own(world: World) -> None:
    """What failed together does not come back together."""
    fates = world.deliver(*(sent(world, "checkfront", Step(word="pay", booking=number)) for number in range(1, 6)))
    times = {fate.at for fate in fates if isinstance(fate, ComesBack)}
    assert len(times) == 5
    assert all(NOON < at <= NOON + LONGEST for at in times)
