"""Deliveries that are taken together: one transaction, a fate each; greed, Flower, and a database in bad weather."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from redis import Redis
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from world import NOON, VENUES, Step, World, request, tell

from bench.plans import watched
from schemas.delivery import INBOX, PROCESS, RawDelivery, State, new_id
from schemas.endpoints import Config
from workers import database, flower
from workers.app import HOUSEKEEPING, app, broker_url
from workers.circuit import Circuits
from workers.database import reachable, trouble, workers_engine
from workers.errors import AwaitingBooking, DatabaseTrouble, OurFault, Park, ProviderUnavailable
from workers.flower import Outcome
from workers.greed import MOST, MOST_ASKING, filled_up
from workers.inbox import Inbox
from workers.job import ComesBack, Done, Job, Landing
from workers.land import arrivals, take
from workers.pipeline import AT_ONCE, BEGUN, MOST_BEGUN, _Batch, process
from workers.provider import Answer, Call, Element, Event, Incoming, Provider
from workers.registry import discover
from workers.statements import Asked
from workers.store import CLAIM, LAND, LEASE, Store
from workers.tasks import Workshop, _filled_up, _worked_on


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine, list(VENUES.values()))


def sent(world: World, provider: str, *steps: Step, at: float = 0) -> RawDelivery:
    telling = tell(provider, *steps)
    world.script.lines.update(telling.answers)
    moment = NOON + timedelta(seconds=at)
    return request(VENUES[provider].name, telling.body, headers=telling.headers, at=moment)


def batch(world: World, *raws: RawDelivery) -> list[Any]:
    """Lands them and works on them as one batch; their fates."""
    world.land(*raws)
    fates = world.batch(*(raw.id for raw in raws))
    return [fates.get(raw.id) for raw in raws]


def taken(world: World, ids: Sequence[UUID], inbox: Inbox, store: Store) -> list[Job]:
    """What a worker gets hold of that was told these ids."""
    now = world.clock()
    return take(ids, arrivals(ids, inbox, world.config, world.providers, now), inbox, store, now)


def workshop(store: Store, world: World, redis: Redis) -> Workshop:
    """What a worker's process holds open, as far as it is used here."""
    return Workshop(
        settings=None,  # type: ignore[arg-type]
        store=store,
        inbox=Inbox(redis),
        parts=replace(world.parts, store=store),
        redis=redis,
        circuits=Circuits(redis),
    )


@contextmanager
def statements(engine: Engine) -> Iterator[list[str]]:
    """The SQL that is executed inside."""
    seen: list[str] = []

    with watched(engine) as looks:
        looks.append(lambda connection, statement, values: seen.append(statement))
        yield seen


# --- together --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["timekit", "synthesisvr", "checkfront", "reservekit"])
def test_sixty_deliveries_take_no_more_statements_than_two(world: World, provider: str) -> None:
    def told(first: int, count: int) -> list[RawDelivery]:
        return [sent(world, provider, Step(booking=10 + n, version=n)) for n in range(first, first + count)]

    with statements(world.engine) as few:
        batch(world, *told(0, 2))
    with statements(world.engine) as many:
        assert batch(world, *told(2, 60)) == [Done(state=State.APPLIED)] * 60
    assert len(many) == len(few)


def test_the_api_is_asked_for_several_at_a_time(world: World) -> None:
    """As many as there are threads stand at the barrier together, or nobody gets through."""
    raws = [sent(world, "lockme", Step(version=n, booking=n)) for n in range(AT_ONCE)]
    barrier = threading.Barrier(AT_ONCE, timeout=20)
    lines = dict(world.script.lines)

    def together(call: Call) -> Answer:
        barrier.wait()
        return lines[call.path]

    world.script.lines.update({path: together for path in lines if path.startswith("/message/")})
    assert batch(world, *raws) == [Done(state=State.APPLIED)] * AT_ONCE


def test_a_repeat_in_the_same_batch_is_not_asked_for(world: World) -> None:
    first, again = (sent(world, "lockme", Step(name="Ewa"), at=seconds) for seconds in (0, 60))
    assert batch(world, first, again) == [Done(state=State.APPLIED), Done(state=State.DUPLICATE)]
    assert sorted(world.script.names) == ["acknowledge", "acknowledge", "message"]


def test_a_payment_and_its_booking_in_one_batch(world: World) -> None:
    """Whichever comes first: the payment that waited is woken by the booking that stood behind it."""
    early = sent(world, "checkfront", Step(word="pay", version=1))
    booking, late = (
        sent(world, "checkfront", Step(size=80), at=1),
        sent(world, "checkfront", Step(word="pay", version=2), at=2),
    )
    fates = batch(world, early, booking, late)
    assert isinstance(fates[0], ComesBack)
    assert isinstance(fates[0].error, AwaitingBooking)
    assert fates[1:] == [Done(state=State.APPLIED)] * 2
    assert world.delivery(early.id).next_attempt_at == world.clock()
    assert world.work(early.id) == Done(state=State.APPLIED)
    assert [paid["id"] for paid in world.rows()[0]["details"]["payments"]] == ["TX-1", "TX-2"]


def test_each_change_is_on_record_as_if_saved_one_after_the_other(world: World) -> None:
    words = ["create", "cancel", "create"]
    batch(world, *(sent(world, "checkfront", Step(word=word), at=at) for at, word in enumerate(words)))
    assert [change["kind"] for change in world.changes()] == ["created", "cancelled", "restored"]


def test_what_was_not_begun_in_time_is_let_go_and_that_is_no_attempt(world: World) -> None:
    raws = [sent(world, "lockme", Step(version=n, booking=n)) for n in range(AT_ONCE + 2)]
    slow = threading.Barrier(AT_ONCE, timeout=20)
    lines = dict(world.script.lines)

    def late(call: Call) -> Answer:
        slow.wait()
        world.clock.now = NOON + timedelta(seconds=13)
        slow.wait()
        return lines[call.path]

    world.script.lines.update({path: late for path in lines if path.startswith("/message/")})
    fates = batch(world, *raws)
    assert fates[:AT_ONCE] == [Done(state=State.APPLIED)] * AT_ONCE
    for raw, fate in zip(raws[AT_ONCE:], fates[AT_ONCE:], strict=True):
        row = world.delivery(raw.id)
        assert isinstance(fate, ComesBack)
        assert (row.state, row.reason, row.attempts) == (State.RETRYING, "provider-unavailable", 0)
        assert row.next_attempt_at == world.clock()


def test_while_all_hands_but_one_ask_a_provider_it_is_not_asked(world: World) -> None:
    """What asks nobody goes on, and what was saved before stays owed."""
    asking, quiet = sent(world, "lockme", Step()), sent(world, "timekit", Step())
    world.land(asking, quiet)
    busy = replace(world.parts, hold=lambda provider: nullcontext(False))
    fates = process(world.store.claim_all([asking.id, quiet.id], world.clock()), busy)
    assert fates[quiet.id] == Done(state=State.APPLIED)
    assert world.verdict(asking.id) == (State.RETRYING, "provider-unavailable")
    assert world.script.asked == []
    assert world.work(asking.id) == Done(state=State.APPLIED)


def test_who_waits_for_an_api_is_woken_when_it_is_back(world: World) -> None:
    raws = [sent(world, "lockme", Step(version=n)) for n in range(3)]
    world.script.lines.clear()
    batch(world, *raws)
    payment = sent(world, "checkfront", Step(word="pay"))
    batch(world, payment)
    assert world.store.wake("escape", [ProviderUnavailable.reason], world.clock()) == 3
    rows = [world.delivery(raw.id) for raw in raws]
    assert {(row.next_attempt_at, row.attempts) for row in rows} == {(NOON, 0)}
    assert world.delivery(payment.id).next_attempt_at > NOON


# --- one bad delivery ------------------------------------------------------------------------------------------


def test_waking_what_a_worker_holds_counts_no_attempt_below_none(world: World) -> None:
    """A held row looks like one that waits. An attempt before the first one once parked it as a mistake of ours."""
    raw = sent(world, "lockme", Step())
    world.script.lines.clear()
    batch(world, raw)
    for hours in range(1, 4):
        assert world.store.wake("escape", [ProviderUnavailable.reason], world.clock() - timedelta(hours=hours)) == 1
    assert world.delivery(raw.id).attempts == 0


class Died(BaseException):
    """A worker's end, as far as a test can have it: nothing is written any more."""


def deadly() -> Provider:
    """Timekit, and whoever reads one body of it dies."""

    def normalize(incoming: Incoming) -> Sequence[Element]:
        if incoming.delivery.body == b"deadly":
            raise Died
        return [Event(external_id=incoming.delivery.body.decode(), said={})]

    return replace(discover()["timekit"], normalize=normalize)


def together(engine: Engine, *words: bytes, suspect: bytes | None = None) -> tuple[World, list[UUID]]:
    """Deliveries that have landed, one of which may kill; a suspect was begun as often as one may be among others."""
    world = World(engine, [VENUES["timekit"]], providers={"timekit": deadly()})
    raws = [request("studio", word) for word in words]
    world.land(*raws)
    for raw in raws:
        if raw.body == suspect:
            world.change(raw.id, attempts=BEGUN)
    return world, [raw.id for raw in raws]


def test_what_kills_goes_alone_and_is_parked(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Its neighbours die with it twice; after that nobody does but who works on it alone."""
    world, ids = together(engine, b"one", b"deadly", b"two")
    deaths = 0
    while world.delivery(ids[1]).state == State.RECEIVED and deaths < 20:
        try:
            world.batch(*ids)
        except Died:
            deaths += 1
            world.clock.forward(seconds=LEASE.total_seconds())
    assert deaths == MOST_BEGUN
    assert world.verdict(ids[1]) == (State.PARKED, "never-ended")
    others = [world.delivery(one) for one in (ids[0], ids[2])]
    assert [row.state for row in others] == [State.APPLIED] * 2
    assert [row.attempts for row in others] == [BEGUN + 1] * 2
    alone = [record.msg for record in caplog.records if record.msg["event"] == "begun-again"]
    assert {line["delivery"] for line in alone} == set(ids)


def test_one_that_comes_in_with_a_suspect_goes_before_it(engine: Engine) -> None:
    world, (bad, good) = together(engine, b"deadly", b"good", suspect=b"deadly")
    with pytest.raises(Died):
        world.batch(bad, good)
    assert world.verdict(good) == (State.APPLIED, None)
    assert world.delivery(bad).attempts == BEGUN + 1


def test_what_others_do_is_not_counted_against_a_suspect(engine: Engine) -> None:
    """It was given back before they began. Once nobody of them kills any more, its own turn counts."""
    world, (bad, good) = together(engine, b"deadly", b"good", suspect=b"good")
    for _ in range(BEGUN):
        with pytest.raises(Died):
            world.batch(bad, good)
        assert world.delivery(good).attempts == BEGUN
        world.clock.forward(seconds=LEASE.total_seconds())
    world.batch(good)
    assert world.verdict(good) == (State.APPLIED, None)
    assert world.delivery(good).attempts == BEGUN + 1


def test_a_suspect_whose_turn_does_not_come_in_time_is_given_back(engine: Engine) -> None:
    """Not let go: that would make it one that waits for something, and those are no suspects."""
    world, (one, other) = together(engine, b"one", b"other", suspect=b"one")
    _Batch(world.parts, until=world.clock()).through(world.store.claim_all([one, other], world.clock()))
    assert world.verdict(other) == (State.APPLIED, None)
    assert (world.delivery(one).state, world.delivery(one).attempts) == (State.RECEIVED, BEGUN)


def test_what_stops_a_suspect_is_written_into_its_row(engine: Engine) -> None:
    """Somebody's mistake is no death: it is not begun again and again."""

    class Stumbles(Store):
        def told_before(self, jobs: Any) -> Any:
            raise RuntimeError

    world, (one,) = together(engine, b"one", suspect=b"one")
    world.parts = replace(world.parts, store=Stumbles(engine))
    world.batch(one)
    assert world.verdict(one) == (State.PARKED, "internal-error")


def touchy() -> Provider:
    """Timekit with a file that lets through what PostgreSQL cannot hold, and what our own fold stumbles over."""

    def normalize(incoming: Incoming) -> Sequence[Element]:
        word = incoming.delivery.body.decode()
        if word == "stumble":
            return [Event(external_id=word, said={}, payments=[{"no": "id"}])]
        return [Event(external_id="a\x00b" if word == "bad" else word, said={"note": word})]

    return replace(discover()["timekit"], normalize=normalize)


@pytest.mark.parametrize("bad", ["bad", "stumble"])
def test_one_that_cannot_be_saved_spoils_nobody_else(engine: Engine, bad: str) -> None:
    world = World(engine, [VENUES["timekit"]], providers={"timekit": touchy()})
    raws = [request("studio", word.encode()) for word in ("one", bad, "two")]
    fates = batch(world, *raws)
    assert [fate.state for fate in fates] == [State.APPLIED, State.PARKED, State.APPLIED]
    assert world.verdict(raws[1].id) == (State.PARKED, "internal-error")
    assert [row["external_id"] for row in world.rows()] == ["one", "two"]


def test_one_that_cannot_land_stays_in_the_inbox_and_keeps_nobody_else_there(world: World, redis: Redis) -> None:
    good, bad = sent(world, "timekit", Step()), sent(world, "timekit", Step())
    redis.hset(INBOX, str(good.id), good.pack())
    redis.hset(INBOX, str(bad.id), replace(bad, headers=(("x", "y"),)).pack())

    class Refuses(Store):
        def take(self, landings: Any, *args: Any) -> Any:
            if any(landing.raw.id == bad.id for landing in landings):
                raise trouble(psycopg.errors.CheckViolation())
            return super().take(landings, *args)

    store, inbox = Refuses(world.engine), Inbox(redis)
    jobs = taken(world, [bad.id, good.id], inbox, store)
    assert [job.raw.id for job in jobs] == [good.id]
    assert redis.hlen(INBOX) == 2  # nobody waits for a disk to forget what is safe elsewhere
    inbox.tidy()
    assert redis.hkeys(INBOX) == [str(bad.id).encode()]
    inbox.tidy()
    assert redis.hkeys(INBOX) == [str(bad.id).encode()]


def test_very_large_requests_land_one_after_the_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement has only so long, and sixty times a mebibyte took longer, again and again. They land all or none."""
    raws = [request("studio", b"x" * size) for size in (100, 100, 100, 500, 10, 240)]
    landings = [Landing(raw=raw, provider="timekit") for raw in raws]
    monkeypatch.setattr("workers.store.PIECE", 250)
    with statements(world.engine) as seen:
        jobs = world.store.take(landings, [raw.id for raw in raws], world.clock())
    assert [job.raw for job in jobs] == raws
    landed = [text for text in seen if text not in ("BEGIN", "COMMIT")]
    assert landed == [LAND.text] * 4  # two, one, the one that is too large for that, the last two


def test_where_one_piece_cannot_land_none_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What had landed before it would be held by nobody until its lease ends."""
    raws = [request("studio", b"x" * 200) for _ in range(3)]
    bad = replace(raws[2], method="\0")
    landings = [Landing(raw=raw, provider="timekit") for raw in (*raws[:2], bad)]
    monkeypatch.setattr("workers.store.PIECE", 250)
    with pytest.raises(Park):
        world.store.take(landings, [raw.id for raw in raws], world.clock())
    with world.engine.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM deliveries")).scalar_one() == 0


def test_what_has_landed_is_worked_on_though_the_others_cannot_be_taken(
    world: World, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Else it would be held by nobody until its lease ends. Whom it did not take is told."""
    fresh, old = sent(world, "timekit", Step()), sent(world, "timekit", Step(booking=2))
    redis.hset(INBOX, str(fresh.id), fresh.pack())
    world.land(old)

    class Stumbles(Store):
        def _run(self, asked: Asked) -> list[Any]:
            if asked.text == CLAIM.text:
                raise DatabaseTrouble("postgres: LockNotAvailable")
            return super()._run(asked)

    store, inbox = Stumbles(world.engine), Inbox(redis)
    jobs = taken(world, [fresh.id, old.id], inbox, store)
    assert [job.raw.id for job in jobs] == [fresh.id]
    (line,) = [record.msg for record in caplog.records if record.name == "reservoir"]
    assert (line["event"], line["first"], line["reason"]) == ("not-taken", old.id, "database-trouble")
    with pytest.raises(DatabaseTrouble):
        taken(world, [old.id], inbox, store)
    assert world.store.claim(old.id, world.clock()) is not None


# --- greed -----------------------------------------------------------------------------------------------------


def message(*ids: UUID, task: str = PROCESS) -> bytes:
    """A message as Celery's Redis transport writes it."""
    body = base64.b64encode(json.dumps([[str(one) for one in ids], {}, {}]).encode()).decode()
    return json.dumps({"body": body, "headers": {"task": task}, "properties": {"body_encoding": "base64"}}).encode()


def test_a_worker_in_a_backlog_takes_more_and_never_too_much(redis: Redis) -> None:
    own, *others = (new_id() for _ in range(200))
    for other in others:
        redis.lpush("timekit", message(other))
    assert filled_up([own], redis, "timekit") == [own, *others[: MOST - 1]]
    assert redis.llen("timekit") == 200 - MOST
    assert filled_up([own], redis, "timekit") == [own, *others[MOST - 1 :]]
    assert filled_up([own], redis, "timekit") == [own]


@pytest.mark.parametrize(("most", "taken"), [(MOST_ASKING, 1), (MOST, 3)])
def test_what_would_be_too_much_goes_back_to_where_it_was(redis: Redis, most: int, taken: int) -> None:
    own, waiting = new_id(), [message(*(new_id() for _ in range(40))) for _ in range(4)]
    for one in waiting:
        redis.lpush("timekit", one)
    assert len(filled_up([own], redis, "timekit", most)) == 1 + 40 * taken
    assert redis.lrange("timekit", 0, -1) == waiting[: taken - 1 : -1]


def test_a_batch_is_smaller_where_an_api_may_have_to_be_asked(world: World, redis: Redis) -> None:
    """Lockme says nothing without its API, and whoever gave us a key wants it used."""
    keyed = replace(VENUES["reservekit"], secrets=frozenset({"api_key"}))
    plain = [replace(VENUES[name], secrets=frozenset()) for name in ("timekit", "checkfront")]
    config = Config(file="", endpoints={one.name: one for one in (keyed, *plain)})
    shop = replace(workshop(world.store, world, redis), parts=replace(world.parts, config=config))
    taken = {}
    for queue in ("lockme", "reservekit", "timekit", "checkfront", HOUSEKEEPING):
        redis.lpush(queue, *(message(new_id()) for _ in range(200)))
        taken[queue] = len(_filled_up([new_id()], shop, queue))
    assert taken == {"lockme": 64, "reservekit": 64, "timekit": MOST, "checkfront": MOST, HOUSEKEEPING: 1}


@pytest.mark.parametrize(
    "stranger", [message(new_id(), task="another"), b"no message", b'{"headers": 1}', message()[:-1]]
)
def test_what_is_no_nudge_is_put_back(redis: Redis, stranger: bytes) -> None:
    own, other, behind = new_id(), new_id(), new_id()
    for one in (message(other), stranger, message(behind)):
        redis.lpush("timekit", one)
    assert filled_up([own], redis, "timekit") == [own, other]
    assert redis.lrange("timekit", 0, -1) == [message(behind), stranger]


# --- Flower ----------------------------------------------------------------------------------------------------


def test_the_others_of_a_batch_are_told_in_one_publish(
    redis: Redis, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receiver of Celery's own hears a whole history of each."""
    monkeypatch.setattr(app.conf, "broker_url", broker_url(redis_url))
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    well, badly = new_id(), new_id()
    heard: list[dict[str, Any]] = []
    published = redis.pubsub()
    published.psubscribe("*celeryev*")
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": heard.append})
        with connection.channel() as channel:
            queue = receiver.queue(channel)
            queue.declare()
            with connection.Consumer([queue], callbacks=[receiver._receive], no_ack=True, channel=channel):
                outcomes = [
                    Outcome(delivery_id=well, retries=0, state="applied"),
                    Outcome(delivery_id=badly, retries=2, trouble="ProviderUnavailable('provider-unavailable: down')"),
                ]
                with suppress(TimeoutError):
                    connection.drain_events(timeout=0.1)  # from here on it hears
                flower.tell(app, outcomes, hostname="worker@here", began=time.time())
                while len(heard) < 6:
                    connection.drain_events(timeout=10)
    assert [(one["uuid"], one["type"]) for one in heard] == [
        *((str(well), f"task-{word}") for word in ("received", "started", "succeeded")),
        *((str(badly), f"task-{word}") for word in ("received", "started", "retried")),
    ]
    assert "provider-unavailable" in heard[-1]["exception"]
    messages = [one for one in iter(lambda: published.get_message(timeout=0.2), None) if one["type"] == "pmessage"]
    assert len(messages) == 1


def test_a_broker_that_is_away_stops_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.conf, "broker_url", "redis://127.0.0.1:1/0")
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    began = time.monotonic()
    flower.tell(app, [Outcome(delivery_id=new_id(), retries=0, state="applied")], hostname="w", began=0.0)
    assert time.monotonic() - began < 3


# --- PostgreSQL in bad weather ---------------------------------------------------------------------------------


def trouble_of(error: psycopg.Error) -> DBAPIError:
    """As SQLAlchemy hands it on."""
    return DBAPIError.instance("SELECT 1", {}, error, psycopg.Error)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "kind",
    [
        psycopg.errors.AdminShutdown,
        psycopg.errors.CannotConnectNow,
        psycopg.errors.DeadlockDetected,
        psycopg.errors.SerializationFailure,
        psycopg.errors.LockNotAvailable,
        psycopg.errors.QueryCanceled,
        psycopg.errors.DiskFull,
        psycopg.errors.TooManyConnections,
        psycopg.errors.InFailedSqlTransaction,
        psycopg.errors.ReadOnlySqlTransaction,
        psycopg.errors.UndefinedTable,
        psycopg.InterfaceError,
        psycopg.OperationalError,
    ],
)
def test_what_passes_comes_back(kind: type[psycopg.Error]) -> None:
    error = kind("the connection is closed")
    assert isinstance(trouble(error), DatabaseTrouble)
    assert isinstance(trouble(trouble_of(error)), DatabaseTrouble)


def test_what_does_not_pass_is_ours(world: World) -> None:
    assert isinstance(trouble(PoolTimeout()), DatabaseTrouble)
    assert isinstance(trouble(psycopg.errors.NumericValueOutOfRange()), OurFault)
    assert isinstance(trouble(trouble_of(psycopg.errors.NumericValueOutOfRange())), OurFault)


@pytest.fixture
def pool(database_url: str) -> Iterator[Engine]:
    """An engine as a worker has it."""
    made = workers_engine(database_url)
    yield made
    made.dispose()


def test_connections_that_died_are_noticed_where_they_are_used(world: World, pool: Engine) -> None:
    """PostgreSQL was restarted: one look at a dead connection, and the batch goes on with a new one."""
    raw = sent(world, "timekit", Step())
    world.land(raw)
    store = Store(pool)
    with pool.connect(), pool.connect():
        pass
    others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    with world.engine.connect() as connection:
        assert len(connection.execute(text(f"SELECT pg_terminate_backend(pid) {others}")).all()) >= 2
    jobs = store.claim_all([raw.id], world.clock())
    assert process(jobs, replace(world.parts, store=store)) == {raw.id: Done(state=State.APPLIED)}


def test_a_server_that_hangs_holds_no_worker(pool: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "NO_ANSWER", 0.3)
    with pool.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(OperationalError) as caught:
                connection.execute(text("SELECT 1"))
            assert time.monotonic() - began < 5
        finally:
            os.kill(pid, signal.SIGCONT)
        assert caught.value.connection_invalidated
    assert isinstance(trouble(caught.value), DatabaseTrouble)


def test_reachable_answers_within_a_second_or_so(pool: Engine, database_url: str) -> None:
    assert reachable(pool)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        assert not reachable(workers_engine(f"postgresql://nobody@127.0.0.1:{silent.getsockname()[1]}/x"))
        assert time.monotonic() - began < 2
    assert not reachable(workers_engine("postgresql://nobody@127.0.0.1:1/x"))


def test_with_postgresql_away_the_task_comes_back_and_the_inbox_keeps_all(world: World, redis: Redis) -> None:
    raws = [sent(world, "timekit", Step(booking=n)) for n in range(3)]
    for raw in raws:
        redis.hset(INBOX, str(raw.id), raw.pack())
    shop = workshop(Store(workers_engine("postgresql://nobody@127.0.0.1:1/x")), world, redis)
    jobs, fates = _worked_on([raw.id for raw in raws], shop)
    assert jobs == []
    assert {fate.error.reason for fate in fates.values() if isinstance(fate, ComesBack)} == {"database-trouble"}
    assert len(fates) == redis.hlen(INBOX) == 3


def test_with_postgresql_away_before_the_save_the_lease_brings_them_back(world: World) -> None:
    raws = [sent(world, "timekit", Step(booking=n)) for n in range(3)]
    world.land(*raws)
    jobs = world.store.claim_all([raw.id for raw in raws], world.clock())
    tried: list[int] = []

    class Away(Store):
        def save(self, entries: Any, now: Any) -> Any:
            tried.append(len(entries))
            return super().save(entries, now)

    away = Away(workers_engine("postgresql://nobody@127.0.0.1:1/x"))
    fates = process(jobs, replace(world.parts, store=away))
    assert tried == [3]  # each try may take as long as a server that hangs
    assert {fate.error.reason for fate in fates.values() if isinstance(fate, ComesBack)} == {"database-trouble"}
    assert len(fates) == 3
    world.clock.forward(seconds=LEASE.total_seconds())
    assert list(world.batch(*(raw.id for raw in raws)).values()) == [Done(state=State.APPLIED)] * 3


def test_two_workers_with_the_same_deliveries_share_them(world: World) -> None:
    raws = [sent(world, "timekit", Step(booking=n)) for n in range(20)]
    world.land(*raws)
    ids = [raw.id for raw in raws]
    found: list[set[UUID]] = []
    threads = [
        threading.Thread(target=lambda turn=turn: found.append(set(world.batch(*turn)))) for turn in (ids, ids[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found[0] & found[1]
    assert found[0] | found[1] == set(ids)
    assert len(world.rows()) == 20
