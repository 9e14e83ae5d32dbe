"""Two workers that meet in one booking, at the moments where it matters: between asking and saving, and in the save."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from world import NOON, VENUES, World, answer, request

from schemas.delivery import RawDelivery, State
from workers.bookings import LOCK, Sheet, Telling
from workers.job import ComesBack, Done
from workers.pipeline import process
from workers.provider import Answer, Call, Event, Recall
from workers.statements import Asked, Plain, Result, Session, transaction

SESSION = "9a1f6c1e-77d0-5b62-8e0a-3f1c2d4e5b60"


def arcade(engine: Engine) -> World:
    return World(engine, [replace(VENUES["synthesisvr"], secrets=frozenset({"api_key"}))])


def said_of_the_session(action: str, *, milliseconds: int) -> RawDelivery:
    body = json.dumps([{"uuid": SESSION, "action": action, "location": "Prater", "stations": 2}]).encode()
    return request("arcade", body, at=NOON + timedelta(milliseconds=milliseconds))


def test_a_delete_that_overtook_its_create_is_noticed_though_neither_was_saved_when_the_other_looked(
    engine: Engine,
) -> None:
    """While the create's session is being read, another worker saves the delete that came first. The create looks
    again, finds itself in doubt, and the API settles it: the session is gone."""
    world = arcade(engine)
    delete = said_of_the_session("delete", milliseconds=0)
    create = said_of_the_session("create", milliseconds=50)
    world.land(delete, create)

    def meanwhile(call: Call) -> Answer:
        if world.delivery(delete.id).state == State.RECEIVED:
            world.work(delete.id)
        return answer({"sessions": {}}, at=NOON + timedelta(seconds=1))

    world.script.otherwise = meanwhile
    world.work(create.id)
    (row,) = world.rows()
    assert row["status"] == "cancelled"
    assert row["details"]["order"] == "settled by the API"
    assert world.delivery(delete.id).lookup["recent"]["body"] == []
    (seen,) = world.delivery(create.id).lookup["recent"]["body"]
    assert seen["delivery_id"] == str(delete.id)


def test_a_move_that_arrives_the_wrong_way_round_is_not_lost(engine: Engine) -> None:
    """Deleted and made again with the same uuid, received in the other order: the API has the session, so it stands."""
    world = arcade(engine)
    create = said_of_the_session("create", milliseconds=0)
    delete = said_of_the_session("delete", milliseconds=50)
    found = {"sessions": {"1": {"uuid": SESSION, "start_time": "2026-12-01 18:00:00"}}}
    world.script.otherwise = answer(found, at=NOON + timedelta(seconds=1))
    world.deliver(create, delete)
    (row,) = world.rows()
    assert row["status"] == "confirmed"
    assert row["starts_at"].isoformat() == "2026-12-01T17:00:00+00:00"


def test_a_repeat_that_is_read_while_the_first_is_asked_for_leaves_nothing_parked(engine: Engine) -> None:
    """Lockme forgets a message that is acknowledged; who asks for it a moment too late knows why it is gone."""
    world = World(engine, [VENUES["lockme"]])
    first, again = (request("escape", at=NOON, headers=[("x-messageid", "90001")]) for _ in range(2))
    world.land(first, again)
    message = {"action": "add", "roomid": 7, "reservationid": 1, "data": {"date": "2026-12-01", "hour": "18:00"}}

    def read(call: Call) -> Answer:
        if world.delivery(again.id).state != State.RECEIVED:
            return answer(message)
        world.script.lines["message"] = answer(message)
        world.work(again.id)
        return answer(None, status=404)

    world.script.lines |= {"message": read, "acknowledge": answer(True)}
    world.work(first.id)
    assert world.verdict(again.id) == (State.APPLIED, None)
    assert world.verdict(first.id) == (State.DUPLICATE, None)
    assert world.delivery(first.id).acknowledged_at is not None
    assert len(world.rows()) == 1


def test_who_has_lost_its_hold_writes_nothing_over_what_another_one_saved(engine: Engine) -> None:
    """It takes the delivery for fresh; meanwhile its lease ends, another worker has it, and must come back to it."""
    world = arcade(engine)
    create = said_of_the_session("create", milliseconds=0)
    held = world.taken(create)
    assert [job.fresh for job in held] == [True]
    world.clock.forward(minutes=1)
    assert isinstance(world.work(create.id), ComesBack)
    before, (row,) = world.delivery(create.id), world.rows()
    assert before.state == State.RETRYING
    (fate,) = process(held, world.parts).values()
    assert isinstance(fate, Done)
    assert fate.state is None
    assert world.delivery(create.id) == before
    assert world.rows() == [row]


def test_who_holds_what_an_operator_had_run_again_writes_nothing(engine: Engine) -> None:
    """It is as it came, and yet not fresh: what was saved of it before stands in the tables."""
    world = arcade(engine)
    create = said_of_the_session("create", milliseconds=0)
    held = world.taken(create)
    with engine.begin() as connection:
        connection.execute(text("UPDATE deliveries SET replayed_at = now()"))
    (fate,) = process(held, world.parts).values()
    assert isinstance(fate, Done)
    assert fate.state is None
    assert world.rows() == []


def test_what_changed_is_noted_also_where_nothing_is_left_of_the_booking(engine: Engine) -> None:
    """Two deliveries that say nothing any more: after the first one the booking showed something else."""
    world = World(engine, [VENUES["synthesisvr"]])
    create = said_of_the_session("create", milliseconds=0)
    delete = said_of_the_session("delete", milliseconds=50)
    world.deliver(create, delete)
    assert [row["kind"] for row in world.changes()] == ["created", "cancelled"]
    with engine.begin() as connection:
        nothing = [Telling(raw=raw, provider="synthesisvr", said=(), parser=1) for raw in (delete, create)]
        sheet = Sheet(Plain(connection), nothing)
        for telling in nothing:
            sheet.tell(telling)
        sheet.write()
        kinds = connection.execute(text("SELECT kind FROM booking_changes ORDER BY id")).scalars().all()
    assert world.rows() == []
    assert kinds == ["created", "cancelled", "restored"]


def plainly(engine: Engine, work: Callable[[Session], None]) -> None:
    with engine.begin() as connection:
        work(Plain(connection))


@pytest.mark.parametrize("doing", [plainly, transaction])
def test_an_event_that_is_overtaken_while_it_waits_for_its_booking_comes_late(
    engine: Engine, doing: Callable[[Engine, Callable[[Session], None]], None]
) -> None:
    """It was the newest when its worker began, and is not when the booking is at last its own: also where the question
    for the newest was sent along with the wish for the booking."""
    world = World(engine, [VENUES["timekit"]])
    first, older, newer = (request("studio", at=NOON + timedelta(minutes=minute)) for minute in range(3))
    world.land(first, older, newer)

    def told(raw: RawDelivery, **said: Any) -> Telling:
        return Telling(raw=raw, provider="timekit", said=[(0, Event(external_id="1", said=said))], parser=1)

    def write(telling: Telling) -> None:
        def tell(session: Session) -> None:
            sheet = Sheet(session, [telling])
            sheet.tell(telling)
            sheet.write()

        doing(engine, tell)

    write(told(first, note="first", source="web"))
    waiting = threading.Thread(target=write, args=[told(older, note="older", cancel_reason="rain")])
    with engine.begin() as connection:
        telling = told(newer, note="newer")
        sheet = Sheet(Plain(connection), [telling])
        waiting.start()
        until_somebody_waits(engine)
        sheet.tell(telling)
        sheet.write()
    waiting.join(timeout=20)
    (row,) = world.rows()
    assert (row["note"], row["cancel_reason"], row["source"]) == ("newer", "rain", "web")
    assert (row["delivery_id"], row["changed_at"]) == (newer.id, newer.received_at)


@dataclass
class Interrupted:
    """A session in which something happens just after the bookings were locked."""

    session: Session
    meanwhile: Callable[[], None]

    def send(self, asked: Asked) -> Result:
        result = self.session.send(asked)
        if asked.text == LOCK.text:
            self.meanwhile()
        return result


def test_a_booking_that_is_made_between_the_lock_and_the_look_is_not_ours_yet(engine: Engine) -> None:
    """One that a Recall asks for, and that was not there to be locked."""
    world = World(engine, [VENUES["timekit"]])
    asking, making = (request("studio", at=NOON + timedelta(minutes=minute)) for minute in range(2))
    world.land(asking, making)
    recall = Recall(name="near", external_ids=("2",), within=timedelta(hours=1))

    def told(raw: RawDelivery, name: str, *recalled: tuple[Recall, Any]) -> Telling:
        said = [(0, Event(external_id=name, said={"note": name}))]
        return Telling(raw=raw, provider="timekit", said=said, parser=1, recalled=recalled)

    def write(session: Session, telling: Telling) -> None:
        sheet = Sheet(session, [telling])
        sheet.tell(telling)
        sheet.write()

    def make() -> None:
        plainly(engine, lambda session: write(session, told(making, "2")))

    plainly(engine, lambda session: write(Interrupted(session, make), told(asking, "1", (recall, []))))
    assert sorted(row["note"] for row in world.rows()) == ["1", "2"]


def until_somebody_waits(engine: Engine) -> None:
    """For a lock, in this database."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        with engine.connect() as connection:
            if connection.execute(text(query)).scalar_one():
                return
        time.sleep(0.01)
    raise AssertionError("nobody waits")
