"""`reservoir replay`: what a dry run says is exactly what `--apply` does, and a dry run does nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, create_engine, select, text, update
from sqlalchemy.exc import DBAPIError
from test_properties import by_provider, stands, stories, tried, world_of
from world import NOON, VENUES, Script, Step, World, database, request, tell

from console import replaying
from console.services import Embedded
from schemas.booking import COLUMNS, Status, from_json
from schemas.delivery import RawDelivery, State
from tests.commands import Command, run
from workers.bookings import OURS
from workers.errors import Malformed
from workers.provider import Element, Event, Failed, Ignored, Incoming, Provider
from workers.registry import discover
from workers.rehearsal import rehearsal
from workers.replay import Choice, Difference, Outcome, Renewal
from workers.reread import Reader
from workers.tables import bookings, changes, deliveries, events

TABLES = (deliveries, bookings, events, changes)
ALL = Choice()


@pytest.fixture(scope="module")
def shared(services: Embedded, template: str) -> Iterator[Engine]:
    """One database for all examples; each begins by emptying it."""
    with database(services, template) as engine:
        yield engine


# --- today's code ------------------------------------------------------------------------------------------------

Reads = Callable[[Event], Element]
"""How today's code reads an element that yesterday's code read as this event."""


def noted(event: Event) -> Element:
    return replace(event, said={**event.said, "note": "seen by a better eye"})


def silent(event: Event) -> Element:
    return replace(event, said={name: value for name, value in event.said.items() if name in ("status", "reference")})


def elsewhere(event: Event) -> Element:
    return event if event.external_id is None else replace(event, external_id=f"new-{event.external_id}")


def cancelled(event: Event) -> Element:
    return replace(event, said={**event.said, "status": Status.CANCELLED, "cancel_reason": "read anew"})


def unordered(event: Event) -> Element:
    return replace(event, version=None)


def never_the_same(event: Event) -> Element:
    return replace(event, same_as=None)


def of_no_interest(event: Event) -> Element:
    return Ignored(reason="provider-test")


def unreadable(event: Event) -> Element:
    return Failed(error=Malformed("body: expected something else"))


def mistaken(event: Event) -> Element:
    return replace(event, said={**event.said, "status": "no such word of ours"})


EYES: Sequence[Reads] = (
    *(noted, silent, elsewhere, cancelled, unordered, never_the_same, of_no_interest, unreadable, mistaken),
    lambda event: event,
)


def reading(provider: str, eye: Callable[[int, Event], Element]) -> Mapping[str, Provider]:
    """The provider with a parser of tomorrow's version: `eye` is given the place in the body, and the event."""
    plain = discover()[provider]

    def normalize(incoming: Incoming) -> list[Element]:
        told = plain.normalize(incoming)
        return [eye(place, one) if isinstance(one, Event) else one for place, one in enumerate(told)]

    return {provider: replace(plain, normalize=normalize, parser=plain.parser + 1)}


@dataclass
class Desk:
    """Where an operator sits: a world as yesterday's code left it, and today's code."""

    world: World
    providers: Mapping[str, Provider]

    def renewal(self, choice: Choice = ALL, **how: Any) -> Renewal:
        reader = Reader(config=self.world.config, providers=self.providers)
        return Renewal(engine=self.world.engine, reader=reader, choice=choice, **how)

    def everything(self) -> list[list[tuple[Any, ...]]]:
        """Every row of every table."""
        with self.world.engine.connect() as connection:
            return [[tuple(row) for row in connection.execute(select(each).order_by(each.c.id))] for each in TABLES]

    def shown(self) -> dict[UUID, Mapping[str, Any]]:
        return {row["id"]: row for row in self.world.rows()}

    def states(self) -> dict[UUID, tuple[str, str | None]]:
        with self.world.engine.connect() as connection:
            rows = connection.execute(select(deliveries.c.id, deliveries.c.state, deliveries.c.reason))
            return {row.id: (row.state, row.reason) for row in rows}

    def noted(self) -> list[Mapping[str, Any]]:
        """All of `booking_changes`, also of bookings that are gone."""
        with self.world.engine.connect() as connection:
            return [row._asdict() for row in connection.execute(select(changes).order_by(changes.c.id))]

    def parsers(self) -> set[int | None]:
        with self.world.engine.connect() as connection:
            return set(connection.execute(select(deliveries.c.parser)).scalars())


def desk(engine: Engine, provider: str, eye: Reads, *steps: Step) -> Desk:
    """A day at one venue."""
    world = World(engine, [VENUES[provider]])
    for place, step in enumerate(steps):
        telling = tell(provider, step)
        world.script.lines.update(telling.answers)
        moment = NOON + timedelta(minutes=place)
        world.deliver(request(VENUES[provider].name, telling.body, headers=telling.headers, at=moment))
    return Desk(world, reading(provider, lambda _, event: eye(event)))


# --- the two agree -----------------------------------------------------------------------------------------------


@pytest.mark.long
@by_provider
@tried(25)
@given(data=st.data())
def test_what_a_dry_run_says_is_exactly_what_apply_changes(shared: Engine, provider: str, data: st.DataObject) -> None:
    """All columns of all rows, every delivery's state; whatever today's code makes of yesterday, for any choice."""
    story = data.draw(stories(provider))
    world = world_of(story, shared, provider)
    for delivery_id in story.ids:
        world.work(delivery_id)
    eyes = data.draw(st.lists(st.sampled_from(EYES), min_size=1, max_size=3))
    sitting = Desk(
        world, reading(provider, lambda place, event: eyes[(place + len(str(event.said))) % len(eyes)](event))
    )
    since = data.draw(st.sampled_from([None, *(raw.received_at for raw in story.requests)]))
    choice, size = Choice(since=since), data.draw(st.integers(1, 4))

    before, rows, states, known = sitting.everything(), sitting.shown(), sitting.states(), len(sitting.noted())
    planned = sitting.renewal(choice, batch=size).planned()
    assert sitting.everything() == before

    done = sitting.renewal(choice, batch=size).apply()
    after = sitting.shown()
    assert told(planned) == told(done)
    assert fields(planned.differences) == differing(rows, after)
    now = sitting.states()
    assert {turn.delivery_id: (turn.was, turn.now) for turn in planned.turns} == {
        one: (states[one], now[one]) for one in states if states[one] != now[one]
    }
    assert noted_fields(sitting.noted()[known:], after) == {
        identity: {name: pair for name, pair in changed.items() if name in COLUMNS}
        for identity, changed in fields(planned.differences).items()
        if identity in after and not changed.keys() <= set(OURS)
    }
    stands(world)
    assert sitting.renewal(choice, batch=size).planned().differences == []


def told(outcome: Outcome) -> tuple[Any, ...]:
    return outcome.deliveries, outcome.read, outcome.unread, outcome.turns, outcome.differences


def fields(differences: Sequence[Difference]) -> dict[UUID, dict[str, tuple[Any, Any]]]:
    return {one.booking_id: dict(one.fields) for one in differences}


def differing(
    before: Mapping[UUID, Mapping[str, Any]], after: Mapping[UUID, Mapping[str, Any]]
) -> dict[UUID, dict[str, tuple[Any, Any]]]:
    """What differs in the table, by looking at it."""
    blank = {**dict.fromkeys([*COLUMNS, *OURS]), "items": [], "details": {}}
    pairs = {one: (before.get(one, blank), after.get(one, blank)) for one in before.keys() | after.keys()}
    found = {
        identity: {name: (old[name], new[name]) for name in blank if old[name] != new[name]}
        for identity, (old, new) in pairs.items()
    }
    return {identity: changed for identity, changed in found.items() if changed}


def noted_fields(
    noted: Sequence[Mapping[str, Any]], rows: Mapping[UUID, Mapping[str, Any]]
) -> dict[UUID, dict[str, tuple[Any, Any]]]:
    """What `booking_changes` tells of the way, first to last, in the table's own values."""
    way: dict[UUID, dict[str, tuple[Any, Any]]] = {}
    for change in noted:
        mine = way.setdefault(change["booking_id"], {})
        for name, (old, new) in from_changes(change["diff"]).items():
            mine[name] = (mine[name][0] if name in mine else old, new)
    kept = {one: {name: pair for name, pair in mine.items() if pair[0] != pair[1]} for one, mine in way.items()}
    return {one: mine for one, mine in kept.items() if mine and one in rows}


def from_changes(diff: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, Any]]:
    old, new = (from_json({name: pair[side] for name, pair in diff.items()}) for side in (0, 1))
    return {name: (old[name], new[name]) for name in diff}


# --- what a dry run is -------------------------------------------------------------------------------------------


def test_a_dry_run_holds_nobody_up_and_sees_one_moment(engine: Engine) -> None:
    """In the middle of it a worker changes the very booking, without waiting; the dry run goes on with what it saw."""
    sitting = desk(engine, "timekit", noted, Step(version=1, name="Ewa"), Step(version=2, name="Ewa"))
    later = tell("timekit", Step(version=3, name="Jan"))

    def meanwhile(done: int) -> None:
        if done == 1:
            raw = request("studio", later.body, at=NOON + timedelta(minutes=9))
            assert sitting.world.deliver(raw)
            assert sitting.world.verdict(raw.id) == (State.APPLIED, None)

    outcome = sitting.renewal(batch=1, progress=meanwhile).planned()
    (difference,) = outcome.differences
    assert (outcome.deliveries, difference.fields["note"]) == (2, (None, "seen by a better eye"))
    assert [(row["customer_name"], row["note"]) for row in sitting.world.rows()] == [("Jan", None)]


@pytest.mark.parametrize("table", ["real_bookings", "deliveries", "tokens"])
def test_postgres_itself_refuses_a_write_to_anything_real(engine: Engine, table: str) -> None:
    with rehearsal(engine) as stage:
        stage.connection.execute(text("DELETE FROM bookings"))  # the copies
        with pytest.raises(DBAPIError, match="read-only"):
            stage.connection.execute(text(f"DELETE FROM {table}"))


def test_a_connection_that_was_on_stage_is_not_used_again(engine: Engine) -> None:
    """Whoever asks next means the real tables, also by statements that were prepared before."""
    sitting = desk(engine, "timekit", noted, Step(version=1, name="Ewa"))
    for _ in range(10):
        assert len(sitting.world.rows()) == 1
        sitting.renewal().planned()


# --- what is read, and what is not -------------------------------------------------------------------------------


def test_it_asks_nobody(engine: Engine) -> None:
    """What Lockme's API answered is used again, also where Lockme would have forgotten it."""
    sitting = desk(engine, "lockme", noted, Step(version=1, name="Ewa", size=4))
    sitting.world.script = Script()
    assert sitting.renewal().planned().differences[0].fields["note"] == (None, "seen by a better eye")
    sitting.renewal().apply()
    assert sitting.world.script.asked == []
    assert [(row["note"], row["party_size"]) for row in sitting.world.rows()] == [("seen by a better eye", 4)]


def test_a_dead_letter_that_can_be_read_today_is_applied(engine: Engine) -> None:
    """Its state follows, with the time; its events stand, and the parser's version on it."""
    world = World(engine, [VENUES["timekit"]], providers=reading("timekit", lambda _, event: unreadable(event)))
    raw = request("studio", tell("timekit", Step(version=1, name="Nora")).body)
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.PARKED, "malformed")
    sitting = Desk(world, reading("timekit", lambda _, event: event))
    outcome = sitting.renewal(Choice(state=State.PARKED, reason="malformed")).apply()
    assert [(turn.was, turn.now) for turn in outcome.turns] == [(("parked", "malformed"), ("applied", None))]
    assert [difference.kind for difference in outcome.differences] == ["created"]
    row = world.delivery(raw.id)
    assert (row.state, row.reason, row.error, row.parser) == (State.APPLIED, None, None, 2)
    assert row.applied_at is not None


def test_what_today_s_code_cannot_read_keeps_what_it_said(engine: Engine) -> None:
    """A worse parser takes no booking away."""
    sitting = desk(engine, "timekit", unreadable, Step(version=1, name="Ewa"))
    before = sitting.everything()
    outcome = sitting.renewal().apply()
    assert (outcome.differences, outcome.turns, set(outcome.unread.values())) == ([], [], {"malformed"})
    assert sitting.everything() == before


def test_a_booking_that_is_another_one_today_goes_and_comes(engine: Engine) -> None:
    sitting = desk(engine, "timekit", elsewhere, Step(version=1, name="Ewa"))
    kinds = {one.external_id: one.kind for one in sitting.renewal().planned().differences}
    assert kinds == {"t1": "removed", "new-t1": "created"}
    sitting.renewal().apply()
    assert [row["external_id"] for row in sitting.world.rows()] == ["new-t1"]


def test_what_nobody_has_checked_is_not_let_in(engine: Engine) -> None:
    """A forged request, one whose endpoint was unknown, one that is about to be worked on."""
    signed = replace(VENUES["timekit"], name="signed", secrets=frozenset({"webhook_secret"}))
    body = tell("timekit", Step(version=1, name="Nora")).body
    strangers = World(engine, [VENUES["timekit"], signed])
    forged, unknown, fresh = request("signed", body), request("new", body), request("studio", body)
    strangers.deliver(forged, unknown)
    strangers.land(fresh)
    known = World(engine, [VENUES["timekit"], replace(signed, secrets=frozenset()), replace(signed, name="new")])
    outcome = Desk(known, discover()).renewal().apply()
    assert outcome.unread == {forged.id: "bad-signature", unknown.id: "unknown-endpoint"}
    assert (outcome.deliveries, outcome.read, known.rows()) == (3, 0, [])
    assert known.verdict(fresh.id) == (State.RECEIVED, None)


def test_a_retrying_delivery_stays_one(engine: Engine) -> None:
    """What it says is read anew; when it comes back is its own affair."""
    keyed = replace(VENUES["synthesisvr"], secrets=frozenset({"api_key"}))
    world = World(engine, [keyed])
    raw = request("arcade", tell("synthesisvr", Step(name="5204", size=3)).body)
    world.deliver(raw)
    before = world.delivery(raw.id)
    assert before.state == State.RETRYING
    Desk(world, reading("synthesisvr", lambda _, event: noted(event))).renewal().apply()
    after = world.delivery(raw.id)
    assert (after.state, after.reason, after.next_attempt_at) == (before.state, before.reason, before.next_attempt_at)
    assert ([row["note"] for row in world.rows()], after.parser) == (["seen by a better eye"], 2)


def test_a_payment_finds_the_booking_that_came_after_it(engine: Engine) -> None:
    """In one run, though it was received before; one whose booking never came is named."""
    steps = [Step(word="pay", version=1), Step(word="pay", version=2, booking=2), Step(version=3, name="Ewa", size=2)]
    sitting = desk(engine, "checkfront", noted, *steps)
    sitting.world.settle(rounds=2)
    with engine.begin() as connection:
        connection.execute(update(deliveries).values(parser=1))
        connection.execute(text("TRUNCATE bookings CASCADE"))
    planned = sitting.renewal(batch=1).planned()
    done = sitting.renewal(batch=1).apply()
    assert told(planned) == told(done)
    assert list(done.unread.values()) == ["awaiting-booking"]
    (row,) = sitting.world.rows()
    assert [paid["id"] for paid in row["details"]["payments"]] == ["TX-1"]


# --- in the middle of it -----------------------------------------------------------------------------------------


def test_it_can_be_stopped_and_run_again(engine: Engine) -> None:
    """What was done stays, and is found in the outcome; the second run does the rest."""
    steps = [Step(version=number, booking=number, name="Ewa") for number in range(1, 7)]
    sitting = desk(engine, "timekit", noted, *steps)
    planned = sitting.renewal().planned()

    def pull_the_plug(done: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    stopped = sitting.renewal(batch=2, progress=pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        stopped.apply()
    assert stopped.outcome.differences == planned.differences[:4]
    assert sitting.parsers() == {1, 2}
    rest = sitting.renewal(Choice(parser_before=2), batch=2).apply()
    assert rest.differences == planned.differences[4:]
    assert sitting.parsers() == {2}
    assert sitting.renewal().apply().differences == []


def test_it_and_workers_can_share_a_booking(engine: Engine) -> None:
    """Whoever comes first, the row is the fold of all events, and none of them fails."""
    first = [Step(version=number, name=f"Nora {number}") for number in range(20)]
    sitting = desk(engine, "timekit", noted, *first)
    world = sitting.world
    raws = [_posted(Step(version=number, name=f"Nora {number}"), number) for number in range(20, 40)]
    world.land(*raws)
    with ThreadPoolExecutor(1) as other:
        renewals = [other.submit(sitting.renewal(batch=3).apply) for _ in range(3)]
        world.at_once([raw.id for raw in raws])
        assert all(renewal.result().unread == {} for renewal in renewals)
    world.settle()
    (row,) = world.rows()
    assert (row["customer_name"], row["note"]) == ("Nora 39", "seen by a better eye")
    assert len(world.events()) == 40
    assert {world.verdict(raw.id)[0] for raw in raws} <= {State.APPLIED, State.STALE, State.DUPLICATE}
    stands(world)


def _posted(step: Step, minute: int) -> RawDelivery:
    return request("studio", tell("timekit", step).body, at=NOON + timedelta(minutes=minute))


def test_two_who_stand_in_each_others_way_try_again(engine: Engine) -> None:
    """A lock that somebody else does not give away in time ends one try, not the run."""
    sitting = desk(engine, "timekit", noted, Step(version=1, name="Ewa"))
    with _impatient(engine) as short, engine.connect() as holder, ThreadPoolExecutor(1) as other:
        holder.execute(select(bookings).with_for_update())
        under_way = other.submit(replace(sitting.renewal(), engine=short).apply)
        with pytest.raises(TimeoutError):
            under_way.result(0.4)
        holder.rollback()
        assert len(under_way.result(20).differences) == 1


@contextmanager
def _impatient(engine: Engine) -> Iterator[Engine]:
    """Waits for a lock for 50 ms only."""
    made = create_engine(engine.url, connect_args={"options": "-c timezone=UTC -c lock_timeout=50"})
    yield made
    made.dispose()


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def replay(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`reservoir replay` over the test's database, with a better eye for Timekit."""
    (tmp_path / "reservoir.toml").write_text(
        '[endpoints.studio]\nprovider = "timekit"\ntimezone = "Europe/Oslo"\n', encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    better = {**discover(), **reading("timekit", lambda _, event: noted(event))}
    monkeypatch.setattr(replaying, "discover", lambda: better)
    return partial(run, capsys, "replay", DATABASE_URL=database_url)


def test_the_command_shows_then_does_and_then_has_nothing_to_do(engine: Engine, replay: Command) -> None:
    sitting = desk(engine, "timekit", noted, Step(version=1, name="Ewa"), Step(version=2, booking=2, name="Jan"))
    before = sitting.everything()
    shown = replay("--since", "2026-11-20", "--dry-run")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [line.split() for line in shown.stdout.splitlines() if " note " in line] == [
        [*("studio", each, "updated", "note"), *["seen", "by", "a", "better", "eye"]] for each in ("t1", "t2")
    ]
    assert "deliveries=2 read=2 bookings=2 updated=2 states=0 (a dry run: nothing was written" in shown.stdout
    assert sitting.everything() == before
    planned = json.loads(replay("--since", "2026-11-20", "--dry-run", "--json").stdout)
    done = json.loads(replay("--since", "2026-11-20", "--apply", "--json").stdout)
    assert {**planned, "applied": True} == done
    assert done["bookings"][0]["fields"]["note"] == [None, "seen by a better eye"]
    assert "bookings=0" in replay("--since", "2026-11-20", "--apply").stdout
    assert json.loads(replay("--parser-before", "2", "--dry-run", "--json").stdout)["deliveries"] == 0


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (("--since", "2026-11-20T12:01"), 2),
        (("--since", "2026-11-20", "--until", "2026-11-20T12:01"), 1),
        (("--since", "2026-11-20", "--state", "duplicate"), 1),
        (("--since", "2026-11-20", "--reason", "no-such-reason"), 0),
        (("--since", "2026-11-20", "--endpoint", "studio"), 3),
        (("--parser-before", "2"), 3),
        (("--parser-before", "1"), 0),
    ],
)
def test_only_what_is_as_described(engine: Engine, replay: Command, words: tuple[str, ...], count: int) -> None:
    desk(
        engine,
        "timekit",
        noted,
        Step(version=1, name="Ewa"),
        Step(version=2, name="Ewa", size=2),
        Step(version=1, name="Ewa"),
    )
    assert json.loads(replay(*words, "--dry-run", "--json").stdout)["deliveries"] == count


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--since", "7d"), "say which: --dry-run"),
        (("--since", "7d", "--dry-run", "--apply"), "say which: --dry-run"),
        (("--dry-run",), "say which deliveries"),
        (("--since", "yesterday", "--dry-run"), "is no time"),
        (("--since", "7d", "--dry-run", "--endpoint", "studo"), "did you mean studio?"),
    ],
)
def test_mistakes_are_one_line(replay: Command, words: tuple[str, ...], says: str) -> None:
    done = replay(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert says in done.stderr


def test_ctrl_c_says_how_far_it_came(engine: Engine, replay: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    desk(engine, "timekit", noted, Step(version=1, name="Ewa"))

    def stopped(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Renewal, "_step", stopped)
    done = replay("--since", "2026-11-20", "--apply")
    assert (done.returncode, done.stdout) == (130, "")
    assert "stopped after 0 deliveries, which stay as they are now; run it again" in done.stderr


def test_somebody_who_looks_sees_how_far_it_is(
    engine: Engine, replay: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On stderr: what it prints can go into a file."""
    desk(engine, "timekit", noted, *(Step(version=number, name="Ewa") for number in range(3)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    done = replay("--since", "2026-11-20", "--apply", "--json")
    assert "reading again" in done.stderr
    assert "3/3" in done.stderr
    assert json.loads(done.stdout)["deliveries"] == 3


def test_a_page_can_ask_the_same(engine: Engine) -> None:
    """The functions that need no terminal."""
    sitting = desk(engine, "timekit", noted, Step(version=1, name="Ewa"))
    outcome = replaying.planned(engine, sitting.world.config, ALL)
    assert (outcome.read, outcome.differences) == (1, [])
    assert replaying.apply(engine, sitting.world.config, ALL).read == 1
