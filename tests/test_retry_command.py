"""`reservoir deliveries retry`: dead letters run again, never stopped by sameness, and nothing is told twice."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine

from schemas.delivery import RawDelivery, State, new_id, now
from schemas.endpoints import Endpoint
from tests.commands import Command, Done, run
from tests.world import NOON, VENUES, Script, Step, World, request, tell
from workers.errors import MessageGone
from workers.inbox import SETTLED
from workers.overdue import overdue
from workers.store import LEASE
from workers.sweep import PATIENCE

LOCKME = VENUES["lockme"]
READ = "/message/90005"
BOOKED = tell("lockme", Step(version=5, name="Jan", size=4))


@pytest.fixture
def retry(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """`reservoir deliveries retry` over the test's database, without a Redis, and with nobody at the keyboard."""
    (tmp_path / "reservoir.toml").write_text(
        '[endpoints.escape]\nprovider = "lockme"\ntimezone = "Europe/Warsaw"\n', encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)

    def typed(*words: object, command: str = "retry") -> Done:
        return run(capsys, "deliveries", command, *words, DATABASE_URL=database_url)

    return typed


@pytest.fixture
def world(engine: Engine) -> World:
    """One Lockme endpoint; its API answers."""
    return World(engine, [LOCKME], script=Script(lines=dict(BOOKED.answers)))


def message(**changes: Any) -> RawDelivery:
    return request("escape", headers=BOOKED.headers, **changes)


def parked(world: World) -> UUID:
    """A message that Lockme did not know when it was asked: a dead letter."""
    raw = message()
    world.script.lines = {READ: MessageGone()}
    world.deliver(raw)
    world.script.lines = dict(BOOKED.answers)
    assert world.verdict(raw.id) == (State.PARKED, "message-gone")
    return raw.id


def caught_up(world: World) -> None:
    """As if the sweeper had come by at once after the command."""
    world.clock.now = now()
    for row in overdue(world.engine, world.clock.now, settled=SETTLED, patience=PATIENCE, busy=(), limit=100):
        world.work(row.id)


def test_a_dead_letter_is_run_again_and_applied(world: World, retry: Command) -> None:
    """By its id; the sweeper finds it without another word, and Lockme is told once it is safe."""
    identity = parked(world)
    before = now()
    world.change(identity, nudged_at=before)
    done = retry(identity)
    assert (done.returncode, done.stdout, done.stderr) == (0, "retry: again=1 held=0\n", "")
    row = world.delivery(identity)
    assert (row.state, row.reason, row.error, row.attempts, row.nudged_at) == ("received", None, None, 0, None)
    assert before <= row.replayed_at <= now()
    caught_up(world)
    assert world.verdict(identity) == (State.APPLIED, None)
    assert [shown["customer_name"] for shown in world.rows()] == ["Jan"]
    assert world.delivery(identity).acknowledged_at is not None


def test_sameness_does_not_stop_a_replay(world: World, retry: Command) -> None:
    """A repeat of a message that another delivery brought is no `duplicate` by that alone: it is asked for and read."""
    first, repeat = message(), message()
    world.deliver(first, repeat)
    assert [world.verdict(raw.id)[0] for raw in (first, repeat)] == [State.APPLIED, State.DUPLICATE]
    asked = len(world.script.asked)
    changed = tell("lockme", Step(version=5, name="Anna", size=4))
    world.script.lines = dict(changed.answers)
    assert retry(repeat.id, "--ask-again").returncode == 0
    caught_up(world)
    assert READ in [call.path for call in world.script.asked[asked:]]
    assert world.verdict(repeat.id) == (State.DUPLICATE, None)  # the first receipt of a message counts
    assert [shown["customer_name"] for shown in world.rows()] == ["Jan"]


def test_a_dead_letter_whose_message_came_again_is_read_all_the_same(world: World, retry: Command) -> None:
    """Another delivery brought and applied the message meanwhile; without the operator's word that would be the end."""
    identity = parked(world)
    world.deliver(message(at=NOON + timedelta(minutes=1)))
    asked = len(world.script.asked)
    retry(identity)
    caught_up(world)
    assert world.script.asked[asked].path == READ
    assert world.verdict(identity) == (State.DUPLICATE, None)
    assert [event["delivery_id"] for event in world.events()] == [identity]  # the first receipt counts


def test_answers_are_kept_unless_they_shall_be_asked_again(world: World, retry: Command) -> None:
    """The provider may have forgotten the message; so it is not asked for what stands in `lookup`."""
    raw = message()
    world.deliver(raw)
    asked = len(world.script.asked)
    retry(raw.id)
    caught_up(world)
    assert READ not in [call.path for call in world.script.asked[asked:]]
    retry(raw.id, "--ask-again")
    assert world.delivery(raw.id).lookup is None
    caught_up(world)
    assert READ in [call.path for call in world.script.asked[asked:]]


def test_a_replay_tells_nothing_twice(world: World, retry: Command) -> None:
    """Three times over: the same event, the same row, no change on record; each time `applied`, as it was."""
    raw = message()
    world.deliver(raw)
    before = world.events(), world.rows(), world.changes()
    for _ in range(3):
        retry(raw.id)
        caught_up(world)
        assert world.verdict(raw.id) == (State.APPLIED, None)
    assert (world.events(), world.rows(), world.changes()) == before


def test_a_delivery_of_an_endpoint_that_was_added_later(engine: Engine, retry: Command) -> None:
    """It came when nobody knew the endpoint; with the endpoint in the configuration it is applied."""
    told = tell("timekit", Step(version=1, name="Kari", size=30))
    raw = request("studio", told.body, headers=told.headers)
    stranger = World(engine, [])
    stranger.deliver(raw)
    assert stranger.verdict(raw.id) == (State.PARKED, "unknown-endpoint")
    assert retry("--reason", "unknown-endpoint").returncode == 0
    known = World(engine, [Endpoint(name="studio", provider="timekit", timezone="Europe/Oslo")])
    caught_up(known)
    assert known.verdict(raw.id) == (State.APPLIED, None)
    assert known.delivery(raw.id).provider == "timekit"


def test_by_state_and_by_endpoint(world: World, retry: Command) -> None:
    """Only what is as described; `--json` gives the ids, in order of receipt."""
    bad = [parked(world) for _ in range(2)]
    elsewhere = request("gone")
    world.deliver(elsewhere)
    good = message()
    world.deliver(good)
    done = retry("--state", "parked", "--endpoint", "escape", "--json")
    assert json.loads(done.stdout) == {"again": [str(each) for each in bad], "held": []}
    assert world.verdict(elsewhere.id)[0] == State.PARKED
    assert world.delivery(good.id).replayed_at is None
    assert json.loads(retry("--state", "parked", "--json").stdout)["again"] == [str(elsewhere.id)]
    assert json.loads(retry("--reason", "no-such-reason", "--json").stdout) == {"again": [], "held": []}


def test_many_are_run_again_only_after_a_question(
    world: World, retry: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A filter may catch more than was meant; where nobody can be asked, the answer is no."""
    raws = [request("gone") for _ in range(21)]
    world.deliver(*raws)
    refused = retry("--state", "parked")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "21 deliveries would be run again; say --yes" in refused.stderr
    keyboard = StringIO("n\n")
    monkeypatch.setattr(keyboard, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", keyboard)
    asked = retry("--state", "parked")
    assert asked.returncode == 1
    assert "Run 21 deliveries again?" in asked.stderr
    assert {world.verdict(raw.id)[0] for raw in raws} == {State.PARKED}
    assert retry("--state", "parked", "--yes").stdout == "retry: again=21 held=0\n"
    assert {world.verdict(raw.id)[0] for raw in raws} == {State.RECEIVED}


def test_what_a_worker_holds_is_left_to_it(world: World, retry: Command) -> None:
    """Its save would undo the wish; when the lease has run out, nobody holds it."""
    identity = parked(world)
    retry(identity)
    moment = now()
    assert world.store.claim(identity, moment) is not None
    done = retry(identity)
    assert (done.returncode, done.stdout) == (1, "retry: again=0 held=1\n")
    assert f"delivery {identity} is in a worker's hands" in done.stderr
    assert world.delivery(identity).attempts == 1
    world.change(identity, next_attempt_at=moment - LEASE)
    assert retry(identity).stdout == "retry: again=1 held=0\n"


def test_what_waits_for_a_retry_need_not_wait(world: World, retry: Command) -> None:
    """A `retrying` delivery goes on at once, with all of its attempts before it."""
    raw = message()
    world.script.lines = {}
    world.deliver(raw)
    world.change(raw.id, next_attempt_at=now() + timedelta(minutes=20), attempts=9)
    assert world.verdict(raw.id) == (State.RETRYING, "provider-unavailable")
    assert retry("--reason", "provider-unavailable").stdout == "retry: again=1 held=0\n"
    assert world.delivery(raw.id).attempts == 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "say which"),
        (("--endpoint", "escape"), 2, "say which"),
        (("01a1fbb7-c0e3-79dd-ba46-15ec90f85ed7", "--state", "parked"), 2, "say which"),
        (("01a1fbb7-c0e3-79dd-ba46-15ec90f85ed7",), 1, "there is no delivery 01a1fbb7-c0e3-79dd-ba46-15ec90f85ed7"),
        (("nonsense",), 1, "'nonsense' is no delivery's id"),
        (("--state", "parked", "--endpoint", "escpe"), 1, "did you mean escape?"),
    ],
)
def test_mistakes_are_one_line(retry: Command, words: tuple[str, ...], code: int, says: str) -> None:
    """And nothing is done."""
    done = retry(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_one_unknown_id_stops_all(world: World, retry: Command) -> None:
    """Half of a list that was mistyped is not what was meant."""
    identity = parked(world)
    assert retry(identity, new_id()).returncode == 1
    assert world.verdict(identity)[0] == State.PARKED


def test_the_list_of_dead_letters_says_what_is_wrong(world: World, retry: Command) -> None:
    """Reason and error stand in the table; a list can begin at a moment."""
    identity = parked(world)
    table = retry("--state", "parked", command="list").stdout
    assert "message-gone" in table
    assert str(world.delivery(identity).error) in " ".join(table.split())
    since = (world.clock() + timedelta(minutes=1)).isoformat()
    assert json.loads(retry("--since", since, "--json", command="list").stdout) == []
    assert len(json.loads(retry("--since", "2026-11-20", "--json", command="list").stdout)) == 1
    assert "is no time" in retry("--since", "yesterday", command="list").stderr
