"""A rebuild gives the same rows again: from the events, and from the raw deliveries on an empty table."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from cases import Case, cases
from sqlalchemy import Engine, insert, text, update
from world import NOON, VENUES, Script, Step, World, answer, database, request, tell

from console.services import Embedded
from schemas.delivery import RawDelivery, State, new_id
from workers.pipeline import understand
from workers.provider import Element, Event, Incoming
from workers.rebuild import Rebuild, Report
from workers.registry import discover
from workers.tables import bookings

EVERY = 4
"""Every fourth fixture is in the day: all providers, all kinds of trouble."""

SIGNED = replace(VENUES["timekit"], name="signed", secrets=frozenset({"webhook_secret"}))


@dataclass
class Day:
    """A mixed day at many venues, and what stood in the tables at its end."""

    world: World
    rows: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def rebuild(self, **how: Any) -> Report:
        return rebuild(self.world, **how)

    def execute(self, statement: Any) -> None:
        with self.world.engine.begin() as connection:
            connection.execute(statement)

    def remember(self) -> None:
        self.rows, self.events = self.world.rows(), self.world.events()

    def stands(self) -> bool:
        """Whether every row and every event is as it was, all columns."""
        return (self.world.rows(), self.world.events()) == (self.rows, self.events)


def rebuild(world: World, *, from_raw: bool = False, endpoint: str | None = None) -> Report:
    return Rebuild(
        engine=world.engine,
        config=world.config,
        providers=world.providers,
        endpoint=endpoint,
    ).run(from_raw=from_raw)


# --- the day ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def day(services: Embedded, template: str) -> Iterator[Day]:
    """One day for all tests of the file: each leaves it as it was."""
    with database(services, template) as engine:
        yield lived(engine)


def lived(engine: Engine) -> Day:
    chosen = {f"case-{number}": case for number, case in enumerate(cases()[::EVERY])}
    endpoints = [replace(case.endpoint, name=name) for name, case in chosen.items()]
    secrets = {name: case.secrets for name, case in chosen.items()}
    world = World(engine, [*endpoints, *VENUES.values(), SIGNED], secrets=secrets)
    for name, case in chosen.items():
        world.script = Script({"acknowledge": answer(None, status=204), **case.answers})
        world.deliver(replace(case.delivery, id=new_id(), endpoint=name))
    world.script = Script()
    for provider in sorted(VENUES):
        live_through(world, provider)
    world.deliver(request("signed", tell("timekit", Step(booking=9, name="Forged")).body))
    world.deliver(request("nobodys", b"{}"))
    world.settle(rounds=3)
    day = Day(world)
    day.remember()
    assert len(day.rows) > 80
    return day


def live_through(world: World, provider: str) -> None:
    """Changes of two bookings, repeats, and workers that take them in a bad order."""
    steps = [
        Step(version=1, name="Ewa", size=2),
        Step(version=2, booking=2, size=3),
        Step(version=3, word="change" if provider != "synthesisvr" else "create", size=4),
        Step(version=4, word="cancel", booking=2),
        Step(version=2, booking=2, size=3),
        Step(version=5, name="Jan"),
    ]
    if provider == "checkfront":
        # The second booking is paid for before it is heard of; the fifth one is never heard of.
        steps[0:0] = [Step(word="pay", booking=booking, version=booking) for booking in (2, 5)]
    raws = [posted(world, provider, step, minute) for minute, step in enumerate(steps)]
    world.land(*raws)
    for raw in [*raws[3:], *raws[:3]]:
        world.work(raw.id)


def posted(world: World, provider: str, step: Step, minute: float) -> RawDelivery:
    telling = tell(provider, step)
    world.script.lines.update(telling.answers)
    moment = NOON + timedelta(minutes=minute)
    return request(VENUES[provider].name, telling.body, headers=telling.headers, at=moment)


# --- from the events -------------------------------------------------------------------------------------------


def test_a_rebuild_of_what_is_right_changes_nothing(day: Day) -> None:
    changes = day.world.changes()
    report = day.rebuild()
    assert (report.bookings, report.changed, report.deliveries, report.unread) == (len(day.rows), 0, 0, {})
    assert day.stands()
    assert day.world.changes() == changes


def test_a_rebuild_repairs_damaged_rows(day: Day) -> None:
    day.execute(
        update(bookings).values(
            status="unknown",
            note="damaged",
            items=[1],
            total=1,
            first_seen_at=NOON - timedelta(days=9),
            changed_at=NOON + timedelta(days=9),
            delivery_id=UUID(int=0),
        )
    )
    assert not day.stands()
    assert day.rebuild().changed == len(day.rows)
    assert day.stands()


def test_a_rebuild_tells_what_it_repaired(day: Day) -> None:
    (row,) = [row for row in day.rows if (row["endpoint"], row["external_id"]) == ("salon", "1")]
    day.execute(update(bookings).where(bookings.c.id == row["id"]).values(note="damaged"))
    day.rebuild()
    change = day.world.changes()[-1]
    assert (change["booking_id"], change["kind"], change["delivery_id"]) == (row["id"], "updated", row["delivery_id"])
    assert change["diff"] == {"note": ["damaged", row["note"]]}


def test_a_row_that_no_event_speaks_of_is_removed(day: Day) -> None:
    stray = {"provider": "timekit", "endpoint": "studio", "external_id": "stray", "delivery_id": uuid4()}
    day.execute(insert(bookings).values(id=uuid4(), first_seen_at=NOON, changed_at=NOON, **stray))
    assert day.rebuild().changed == 1
    assert day.stands()


@pytest.mark.parametrize("from_raw", [False, True])
def test_a_rebuild_of_one_endpoint_leaves_the_others_alone(day: Day, from_raw: bool) -> None:
    day.execute(update(bookings).where(bookings.c.endpoint.in_(["salon", "studio"])).values(note="damaged"))
    report = day.rebuild(endpoint="salon", from_raw=from_raw)
    damaged = {row["endpoint"] for row in day.world.rows() if row["note"] == "damaged"}
    assert (damaged, report.bookings) == ({"studio"}, 2)
    day.rebuild()
    assert day.stands()


# --- from the raw deliveries -----------------------------------------------------------------------------------


def test_reading_everything_again_changes_nothing(day: Day) -> None:
    assert day.rebuild(from_raw=True).changed == 0
    assert day.stands()


def test_the_same_rows_come_out_of_the_raw_deliveries_alone(day: Day) -> None:
    """All columns: ids, times of receipt, the delivery that wrote the row. And nobody is asked."""
    asked = list(day.world.script.asked)
    day.execute(text("TRUNCATE bookings CASCADE"))
    assert (day.world.rows(), day.world.events()) == ([], [])
    report = day.rebuild(from_raw=True)
    assert day.stands()
    assert report.bookings == len(day.rows)
    assert day.world.script.asked == asked


ANSWERED = [case for case in cases() if case.answers]


@pytest.mark.parametrize("case", ANSWERED, ids=[case.name for case in ANSWERED])
def test_an_answer_that_was_kept_says_the_same_as_when_it_came(case: Case) -> None:
    """PostgreSQL's jsonb orders the names of an object by their length."""
    provider = discover()[case.provider]
    kept = {name: replace(came, body=in_jsonb(came.body)) for name, came in case.answers.items()}
    elements = [understand(provider, replace(case.incoming, answers=answers)) for answers in (case.answers, kept)]
    assert repr(elements[0]) == repr(elements[1])


def in_jsonb(value: Any) -> Any:
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: (len(name.encode(errors="replace")), name))
        return {name: in_jsonb(value[name]) for name in names}
    return [in_jsonb(inner) for inner in value] if isinstance(value, list) else value


def test_what_cannot_be_read_stays_out_and_is_reported(day: Day) -> None:
    unread = day.rebuild(from_raw=True).unread
    told = {(day.world.delivery(one).endpoint, reason) for one, reason in unread.items()}
    assert ("signed", "bad-signature") in told
    assert ("nobodys", "unknown-endpoint") in told
    assert ("harbour", "awaiting-booking") in told
    # Nothing that was read the first time is lost the second time: also a repeated message of Lockme's.
    states = {day.world.delivery(one).state for one in unread}
    assert states <= {State.PARKED, State.RETRYING}
    assert not [row for row in day.world.rows() if row["endpoint"] in ("signed", "nobodys")]


def test_a_rotated_secret_takes_nothing_away_and_lets_nothing_in(engine: Engine) -> None:
    """What was signed with yesterday's secret was checked yesterday, and so was what was not."""
    world = World(engine, [SIGNED], secrets={"signed": {"webhook_secret": "yesterday"}})
    genuine, forged = (tell("timekit", Step(booking=booking, name="Ewa")).body for booking in (1, 2))
    signature = hmac.new(b"yesterday", genuine, hashlib.sha256).hexdigest()
    world.deliver(request("signed", genuine, headers=[("x-timekit-signature", signature)]), request("signed", forged))
    rows = world.rows()
    assert len(rows) == 1
    rotated = replace(world, secrets={"signed": {"webhook_secret": "today"}})
    unsigned = replace(world, endpoints=[replace(SIGNED, secrets=frozenset())])
    for later in (rotated, unsigned):
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE bookings CASCADE"))
        rebuild(later, from_raw=True)
        assert world.rows() == rows


def test_a_payment_finds_the_booking_that_came_after_it(day: Day) -> None:
    (row,) = [row for row in day.rows if (row["endpoint"], row["external_id"]) == ("harbour", "2")]
    assert [paid["id"] for paid in row["details"]["payments"]] == ["TX-2"]
    day.execute(text("TRUNCATE bookings CASCADE"))
    day.rebuild(from_raw=True, endpoint="harbour")
    assert row in day.world.rows()
    day.rebuild(from_raw=True)
    assert day.stands()


def test_a_rebuild_changes_no_deliverys_state(day: Day) -> None:
    def states() -> list[Any]:
        with day.world.engine.connect() as connection:
            query = "SELECT id, state, reason, error, attempts, next_attempt_at, lookup FROM deliveries ORDER BY id"
            return list(connection.execute(text(query)))

    before = states()
    day.rebuild(from_raw=True)
    assert states() == before


def test_what_has_just_been_received_is_left_to_its_worker(engine: Engine) -> None:
    world = World(engine, [VENUES["timekit"]])
    raw = posted(world, "timekit", Step(name="Nora"), 0)
    world.land(raw)
    assert rebuild(world, from_raw=True) == Report()
    assert world.rows() == []


# --- a better parser, and company ------------------------------------------------------------------------------


def test_a_better_parser_folds_yesterday_again(engine: Engine) -> None:
    yesterday = World(engine, [VENUES["timekit"]])
    told = [posted(yesterday, "timekit", Step(version=n, word=w), n) for n, w in enumerate(("create", "change"))]
    yesterday.deliver(*told)
    assert [row["note"] for row in yesterday.rows()] == [None]

    today = World(engine, [VENUES["timekit"]], providers={"timekit": BETTER})
    assert rebuild(today, from_raw=True).changed == 1
    (row,) = today.rows()
    assert (row["note"], row["status"], row["first_seen_at"]) == ("seen by a better eye", "confirmed", NOON)
    assert {event["parser"] for event in today.events()} == {2}


def _with_a_note(incoming: Incoming) -> list[Element]:
    elements = discover()["timekit"].normalize(incoming)
    note = {"note": "seen by a better eye"}
    return [replace(one, said={**one.said, **note}) for one in elements if isinstance(one, Event)]


BETTER = replace(discover()["timekit"], normalize=_with_a_note, parser=2)


def test_a_rebuild_and_workers_can_share_a_booking(engine: Engine) -> None:
    """Whoever comes first, the row is the fold of all events."""
    world = World(engine, [VENUES["timekit"]])
    told = [posted(world, "timekit", Step(version=n, name=f"Nora {n}"), n) for n in range(12)]
    world.deliver(*told[:6])
    world.land(*told[6:])
    with ThreadPoolExecutor(1) as other:
        rebuilt = [other.submit(rebuild, world, from_raw=True) for _ in range(3)]
        world.at_once([raw.id for raw in reversed(told[6:])])
        assert all(one.result().unread == {} for one in rebuilt)
    (row,) = world.rows()
    assert (row["customer_name"], row["delivery_id"]) == ("Nora 11", told[-1].id)
    assert len(world.events()) == 12
    assert rebuild(world).changed == 0
