"""A booking with a long history: its next event costs what the next event of a new booking costs.

Nothing is timed. What counts is what PostgreSQL reads: the blocks that the statements of a save touch, and the events
that they bring.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, delete, text
from world import NOON, VENUES, Step, World, request, tell

from bench.plans import watched as looked_at
from schemas.delivery import RawDelivery, State
from workers.bookings import Sheet, Telling
from workers.job import Done
from workers.provider import Event
from workers.rebuild import Rebuild
from workers.statements import Plain
from workers.tables import deliveries

pytestmark = pytest.mark.long

LONG = 600
SPACE = 5
"""Minutes between two receipts, so that none is near another."""
LAST = LONG * SPACE
OLD, NEW = 1, 2
"""The booking with the long history, and one that was just made."""
by_provider = pytest.mark.parametrize("provider", sorted(VENUES))


def sent(world: World, provider: str, step: Step, minute: float) -> RawDelivery:
    telling = tell(provider, step)
    world.script.lines.update(telling.answers)
    moment = NOON + timedelta(minutes=minute)
    return request(VENUES[provider].name, telling.body, headers=telling.headers, at=moment)


def lived(engine: Engine, provider: str) -> World:
    """Two bookings, of which one has changed all the time."""
    world = World(engine, [VENUES[provider]])
    old = [sent(world, provider, Step(version=n, booking=OLD, size=1 + n % 80), n * SPACE) for n in range(LONG)]
    new = sent(world, provider, Step(version=LONG, booking=NEW, size=3), LAST)
    take(world, *old, new)
    assert len(world.events()) == LONG + 1
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    return world


def take(world: World, *raws: RawDelivery) -> list[Any]:
    """Lands them and works on them, in batches."""
    world.land(*raws)
    fates: dict[Any, Any] = {}
    for start in range(0, len(raws), 50):
        fates |= world.batch(*(raw.id for raw in raws[start : start + 50]))
    return [fates.get(raw.id) for raw in raws]


@dataclass
class Reading:
    """What was read of `booking_events`."""

    rows: int = 0
    asked: list[tuple[str, Any]] = field(default_factory=list)

    def blocks(self, engine: Engine) -> int:
        """How many blocks these statements touch, asked once more."""
        total = 0
        with engine.connect() as connection:
            for statement, parameters in self.asked:
                connection.exec_driver_sql(statement, parameters)  # whatever is read of the catalogue is read now
                explained = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}"
                (plan,) = connection.exec_driver_sql(explained, parameters).scalar_one()
                total += plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
            connection.rollback()
        return total


@contextmanager
def watched(engine: Engine) -> Iterator[Reading]:
    """What is read of `booking_events` inside."""
    reading = Reading()

    def note(connection: psycopg.Connection[Any], statement: str, parameters: Any) -> None:
        if statement.startswith("SELECT") and "booking_events" in statement:
            reading.asked.append((statement, parameters))
            reading.rows += len(connection.execute(statement, parameters).fetchall())

    with looked_at(engine) as looks:
        looks.append(note)
        yield reading


# --- the next event --------------------------------------------------------------------------------------------


@by_provider
def test_the_next_event_reads_no_more_than_that_of_a_new_booking(engine: Engine, provider: str) -> None:
    world = lived(engine, provider)
    found = {}
    for booking in (NEW, OLD):
        raw = sent(world, provider, Step(version=LONG + booking, booking=booking, size=4), LAST + booking * SPACE)
        with watched(engine) as reading:
            assert take(world, raw) == [Done(state=State.APPLIED)]
        found[booking] = reading.rows, reading.blocks(engine)
    assert found[OLD][0] == found[NEW][0]
    assert found[OLD][1] <= found[NEW][1] + ONE_LEVEL_DEEPER
    stands(world)


ONE_LEVEL_DEEPER = 8
"""Blocks: a tree is entered a few times, and may be one level deeper where the old booking's events are."""


@pytest.mark.parametrize("provider", ["lockme", "reservekit", "timekit"])
def test_a_repeat_reads_no_more_than_itself(engine: Engine, provider: str) -> None:
    """Of something told long ago."""
    world = lived(engine, provider)
    with watched(engine) as reading:
        assert take(world, sent(world, provider, Step(version=9, booking=OLD, size=10), LAST + SPACE)) == [
            Done(state=State.DUPLICATE)
        ]
    assert reading.rows <= 2


# --- when all events are read ----------------------------------------------------------------------------------


@by_provider
def test_what_comes_late_is_put_in_its_place_with_one_more_statement(engine: Engine, provider: str) -> None:
    """For all bookings of a batch together."""
    world = lived(engine, provider)
    newest = [sent(world, provider, Step(version=LONG + n, booking=n, size=4), LAST + n * SPACE) for n in (OLD, NEW)]
    late = [sent(world, provider, Step(version=-n, booking=n, name="Ewa"), SPACE / 2) for n in (OLD, NEW)]
    with watched(engine) as usual:
        take(world, *newest)
    with watched(engine) as reading:
        assert take(world, *late) == [Done(state=State.APPLIED)] * 2
    assert reading.rows == usual.rows + len(world.events()) - len(late)
    assert len(reading.asked) == len(usual.asked) + 1
    assert all("Ewa" in (row["customer_name"], row["customer_id"]) for row in world.rows())
    stands(world)


def told(raw: RawDelivery, event: Event) -> Telling:
    return Telling(raw=raw, provider="checkfront", said=[(0, event)], parser=1)


def test_a_code_that_is_new_in_this_batch_can_lead_to_a_booking_with_other_events(engine: Engine) -> None:
    """Nobody could know before that what is told by this code comes late there, or is told again."""
    world = World(engine, [VENUES["checkfront"]])
    first, last, naming, late, again = (
        request("harbour", at=NOON + timedelta(minutes=minute)) for minute in (10, 11, 20, 5, 21)
    )
    world.land(first, last, naming, late, again)
    write(engine, told(first, Event(external_id="1", said={"note": "first"}, same_as="TX-1")))
    write(engine, told(last, Event(external_id="1")))
    write(
        engine,
        told(naming, Event(external_id="1", said={"reference": "AB"})),
        told(again, Event(external_id=None, reference="AB", said={"note": "again"}, same_as="TX-1")),
        told(late, Event(external_id=None, reference="AB", said={"note": "late", "source": "desk"})),
    )
    (row,) = world.rows()
    assert (row["reference"], row["note"], row["source"]) == ("AB", "first", "desk")
    assert len(world.events()) == 4
    stands(world)


def test_a_booking_whose_events_are_all_gone_begins_anew(engine: Engine) -> None:
    """Somebody removed its deliveries, and their events with them."""
    world = World(engine, [VENUES["checkfront"]])
    first, second = (request("harbour", at=NOON + timedelta(minutes=minute)) for minute in (1, 2))
    world.land(first, second)
    write(engine, told(first, Event(external_id="1", said={"note": "first", "source": "web"})))
    with engine.begin() as connection:
        connection.execute(delete(deliveries).where(deliveries.c.id == first.id))
    write(engine, told(second, Event(external_id="1", said={"note": "second"})))
    (row,) = world.rows()
    assert (row["note"], row["source"], row["first_seen_at"]) == ("second", None, second.received_at)


def write(engine: Engine, *tellings: Telling) -> None:
    """Tells them together."""
    with engine.begin() as connection:
        sheet = Sheet(Plain(connection), tellings)
        for telling in tellings:
            sheet.tell(telling)
        sheet.write()


def stands(world: World) -> None:
    """A rebuild from the events changes nothing."""
    rows = world.rows()
    report = Rebuild(engine=world.engine, config=world.config, providers=world.providers).run()
    assert report.changed == 0
    assert world.rows() == rows
