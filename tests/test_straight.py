"""Deliveries that land together with what they say: in one step, all or nothing, and only where it is that simple."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from redis import Redis
from sqlalchemy import Engine, text
from test_batch import sent, statements, touchy, workshop
from test_meeting import said_of_the_session
from world import NOON, VENUES, Step, World, request

from schemas.delivery import INBOX, RawDelivery, State, first_id_after, new_id, now
from tests.lines import logged
from workers.database import workers_engine
from workers.errors import DatabaseTrouble, OurFault
from workers.greed import MOST
from workers.inbox import HANDS, SETTLED, Inbox
from workers.job import ComesBack, Done, fresh_job
from workers.land import are_new, arrivals, landing, pick_up
from workers.pipeline import straight
from workers.statements import transaction
from workers.store import ARRIVE, HOLD, LAND, LEASE, SETTLE, Store
from workers.tasks import Workshop, _worked_on, sweep_up

APPLIED = Done(state=State.APPLIED)


@pytest.fixture
def world(engine: Engine) -> World:
    return World(engine, list(VENUES.values()))


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url)


@pytest.fixture
def shop(world: World, redis: Redis) -> Workshop:
    return workshop(world.store, world, redis)


def received(redis: Redis, *raws: RawDelivery) -> list[UUID]:
    """They wait in the inbox; their ids."""
    for raw in raws:
        redis.hset(INBOX, str(raw.id), raw.pack())
    return [raw.id for raw in raws]


# --- in one step -----------------------------------------------------------------------------------------------


def test_one_row_is_written_once_and_nothing_is_asked_of_it_before(world: World, redis: Redis, shop: Workshop) -> None:
    raws = [sent(world, "timekit", Step(booking=n)) for n in range(3)]
    ids = received(redis, *raws)
    with statements(world.engine) as seen:
        jobs, fates = _worked_on(ids, shop, "timekit")
    assert [job.raw for job in jobs] == raws
    assert fates == dict.fromkeys(ids, APPLIED)
    assert seen.count(ARRIVE.text) == 1
    assert not {LAND.text, HOLD.text, SETTLE.text} & set(seen)
    row = world.delivery(ids[0])
    assert (row.state, row.attempts, row.next_attempt_at, row.body) == (State.APPLIED, 1, None, raws[0].body)
    assert redis.hlen(INBOX) == 3  # until what is committed is tidied up
    shop.inbox.tidy()
    assert redis.hlen(INBOX) == 0


def test_what_needs_a_person_lands_as_what_it_is(world: World) -> None:
    raw = request(VENUES["timekit"].name, b"{")
    assert world.arrive(raw) == {raw.id: Done(state=State.PARKED, reason="malformed")}
    row = world.delivery(raw.id)
    assert (row.state, row.reason, row.body, row.attempts) == (State.PARKED, "malformed", b"{", 1)


def test_what_waits_lands_as_it_waits(world: World) -> None:
    """And is woken by the booking that it waits for, which lands the same way."""
    payment = sent(world, "checkfront", Step(word="pay"))
    assert isinstance((world.arrive(payment) or {})[payment.id], ComesBack)
    row = world.delivery(payment.id)
    assert (row.state, row.reason, row.attempts) == (State.RETRYING, "awaiting-booking", 1)
    assert row.next_attempt_at > world.clock()
    booking = sent(world, "checkfront", Step(size=80), at=1)
    assert world.arrive(booking) == {booking.id: APPLIED}
    assert world.delivery(payment.id).next_attempt_at == world.clock()
    assert world.work(payment.id) == APPLIED


# --- only where it is simple -----------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", ["lockme", "nobody"])
def test_what_may_ask_and_what_nobody_knows_lands_first(world: World, provider: str) -> None:
    raw = sent(world, "lockme", Step()) if provider == "lockme" else request("nowhere", b"{}")
    assert world.arrive(raw) is None
    assert world.script.asked == []
    with world.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM deliveries")).scalar_one() == 0


def test_of_a_queue_that_may_ask_nothing_is_tried(world: World, redis: Redis, shop: Workshop) -> None:
    (one,) = received(redis, sent(world, "lockme", Step()))
    assert "lockme" in shop.asking
    with statements(world.engine) as seen:
        assert _worked_on([one], shop, "lockme")[1] == {one: APPLIED}
    assert seen[0] == LAND.text
    assert ARRIVE.text not in seen


@pytest.mark.parametrize("age", [SETTLED - timedelta(seconds=2), SETTLED + timedelta(milliseconds=1)])
def test_what_the_sweeper_may_have_nudged_is_not_new(world: World, redis: Redis, age: timedelta) -> None:
    """Somebody may have died of it: it must be noted before it is tried again."""
    moment = now()
    old = replace(sent(world, "timekit", Step()), id=_id_at(moment - age))
    assert new(world, redis, sent(world, "timekit", Step(booking=2)), old, at=moment) is (age < SETTLED)


def test_an_id_that_tells_no_time_is_not_new(world: World, redis: Redis) -> None:
    assert not new(world, redis, replace(sent(world, "timekit", Step()), id=uuid4()), at=now())


def new(world: World, redis: Redis, *raws: RawDelivery, at: datetime) -> bool:
    """Whether these count as new when they are taken out of the inbox."""
    ids = received(redis, *raws)
    return are_new(ids, arrivals(ids, Inbox(redis), world.config, world.providers, at), at)


def _id_at(moment: datetime) -> UUID:
    """One of that millisecond."""
    return UUID(int=first_id_after(moment).int - (1 << 80) | 7 << 76 | 0b10 << 62)


def test_one_that_has_landed_takes_the_others_along_to_the_other_way(
    world: World, redis: Redis, shop: Workshop
) -> None:
    landed, fresh = sent(world, "timekit", Step()), sent(world, "timekit", Step(booking=2))
    world.land(landed)
    (one,) = received(redis, fresh)
    assert not are_new([landed.id, one], arrivals([one], shop.inbox, world.config, world.providers, now()), now())
    assert _worked_on([landed.id, one], shop, "timekit")[1] == {landed.id: APPLIED, one: APPLIED}


def test_bodies_that_one_statement_does_not_take_land_in_pieces(
    world: World, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    raws = [sent(world, "timekit", Step(booking=n)) for n in range(2)]
    assert new(world, redis, *raws, at=now())
    monkeypatch.setattr("workers.land.PIECE", 100)
    assert not new(world, redis, *raws, at=now())


# --- all or nothing --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["bad", "stumble"])
def test_one_that_cannot_be_saved_is_parked_on_the_other_way(engine: Engine, redis: Redis, bad: str) -> None:
    world = World(engine, [VENUES["timekit"]], providers={"timekit": touchy()})
    raws = [request("studio", word.encode()) for word in ("one", bad, "two")]
    assert world.arrive(*raws) is None
    assert world.rows() == []
    ids = received(redis, *raws)
    _, fates = _worked_on(ids, workshop(world.store, world, redis), "timekit")
    assert [getattr(fates[one], "state", None) for one in ids] == [State.APPLIED, State.PARKED, State.APPLIED]
    assert world.verdict(raws[1].id) == (State.PARKED, "internal-error")
    assert [row["external_id"] for row in world.rows()] == ["one", "two"]


def test_one_that_somebody_landed_meanwhile_is_left_to_them(world: World, redis: Redis, shop: Workshop) -> None:
    """Between our look into the inbox and the commit another worker may have saved it, and even have made it wait."""
    first, second = sent(world, "timekit", Step()), sent(world, "timekit", Step(booking=2))
    assert world.arrive(first) == {first.id: APPLIED}
    before = world.rows(), world.events(), world.changes()
    with pytest.raises(OurFault, match="UniqueViolation"):
        world.store.arrive(_entries(world, second, first), world.clock())
    assert world.arrive(second, first) is None
    assert (world.rows(), world.events(), world.changes()) == before
    ids = received(redis, second, first)
    assert _worked_on(ids, shop, "timekit")[1] == {second.id: APPLIED}
    assert len(world.rows()) == 2
    shop.inbox.tidy()
    assert redis.hlen(INBOX) == 0


def _entries(world: World, *raws: RawDelivery) -> Any:
    """As the pipeline would save them."""
    caught: list[Any] = []

    class Listens(Store):
        def arrive(self, entries: Any, now: Any) -> Any:
            caught.extend(entries)
            return []

    jobs = [fresh_job(landing(raw.id, raw.pack(), world.config, world.providers, world.clock())) for raw in raws]
    straight(jobs, replace(world.parts, store=Listens(world.engine)))
    return caught


def test_workers_with_the_same_requests_leave_each_of_them_once(world: World, redis: Redis) -> None:
    """Two nudges for the same requests, taken at the same time and in opposite order."""
    raws = [sent(world, "timekit", Step(booking=n % 4, version=n)) for n in range(12)]
    ids = received(redis, *raws)
    both = threading.Barrier(2)
    found: list[Any] = []

    def work(turn: list[UUID]) -> None:
        both.wait()
        found.append(_worked_on(turn, workshop(world.store, world, redis), "timekit"))

    threads = [threading.Thread(target=work, args=(turn,)) for turn in (ids, ids[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    settled = [one for _, fates in found for one, fate in fates.items() if isinstance(fate, Done) and fate.state]
    assert sorted(settled) == sorted(ids)
    assert len(world.events()) == 12
    assert len(world.rows()) == 4


def test_a_worker_that_dies_before_the_commit_leaves_the_request_where_it_was(
    world: World, redis: Redis, shop: Workshop
) -> None:
    (one,) = received(redis, sent(world, "timekit", Step()))

    class Dies(Store):
        def arrive(self, entries: Any, now: Any) -> Any:
            raise SystemExit

    dying = replace(shop, parts=replace(world.parts, store=Dies(world.engine)))
    with pytest.raises(SystemExit):
        _worked_on([one], dying, "timekit")
    dying.inbox.tidy()
    assert redis.hlen(INBOX) == 1
    assert _worked_on([one], shop, "timekit")[1] == {one: APPLIED}


def test_with_postgresql_away_it_is_tried_once(world: World, redis: Redis) -> None:
    """Each try may take as long as a server that hangs."""
    tried: list[str] = []

    class Away(Store):
        def arrive(self, entries: Any, now: Any) -> Any:
            tried.append("arrive")
            return super().arrive(entries, now)

        def take(self, *args: Any) -> Any:
            tried.append("take")
            return super().take(*args)

    away = Away(workers_engine("postgresql://nobody@127.0.0.1:1/x"))
    (one,) = received(redis, sent(world, "timekit", Step()))
    jobs, fates = _worked_on([one], workshop(away, world, redis), "timekit")
    assert (jobs, tried) == ([], ["arrive"])
    fate = fates[one]
    assert isinstance(fate, ComesBack)
    assert isinstance(fate.error, DatabaseTrouble)


def test_a_commit_of_which_nobody_knows_is_found_done(world: World, redis: Redis) -> None:
    """The connection dies behind it: what was written is there once, and the request leaves the inbox."""

    class Ambiguous(Store):
        def _transaction(self, work: Any) -> Any:
            super()._transaction(work)
            raise DatabaseTrouble("postgres: OperationalError")

    (one,) = received(redis, sent(world, "timekit", Step()))
    shop = workshop(Ambiguous(world.engine), world, redis)
    assert _worked_on([one], shop, "timekit") == ([], {})
    shop.inbox.tidy()
    assert redis.hlen(INBOX) == 0
    assert world.verdict(one) == (State.APPLIED, None)
    assert (len(world.rows()), len(world.events()), len(world.changes())) == (1, 1, 1)


def test_a_connection_that_dies_behind_its_commit_writes_nothing_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction is done once more on a second connection, where the row is met."""

    def once_more(engine: Engine, work: Any) -> Any:
        transaction(engine, work)
        return transaction(engine, work)

    monkeypatch.setattr("workers.store.transaction", once_more)
    raw = sent(world, "timekit", Step())
    assert world.arrive(raw) is None
    assert world.verdict(raw.id) == (State.APPLIED, None)
    assert (len(world.rows()), len(world.events()), len(world.changes())) == (1, 1, 1)


def test_where_another_one_was_saved_since_our_memory_was_asked_nothing_is_written(engine: Engine) -> None:
    world = World(engine, [VENUES["synthesisvr"]])
    delete, create = said_of_the_session("delete", milliseconds=0), said_of_the_session("create", milliseconds=50)
    assert world.arrive(delete) == {delete.id: APPLIED}
    before = world.rows(), world.events(), world.changes()

    class Stale(Store):
        def recall(self, asked: Any) -> Any:
            return [[] for _ in asked]

    world.parts = replace(world.parts, store=Stale(engine))
    assert world.arrive(create) is None
    assert (world.rows(), world.events(), world.changes()) == before
    world.parts = replace(world.parts, store=world.store)
    assert create.id in (world.arrive(create) or {})


def test_two_that_must_see_each_other_land_first(engine: Engine) -> None:
    world = World(engine, [VENUES["synthesisvr"]])
    delete, create = said_of_the_session("delete", milliseconds=0), said_of_the_session("create", milliseconds=50)
    assert world.arrive(delete, create) is None
    assert world.rows() == []


def test_when_the_time_of_a_task_is_over_it_is_not_tried_another_way(world: World, redis: Redis) -> None:
    class Slow(Store):
        def arrive(self, entries: Any, now: Any) -> Any:
            raise SoftTimeLimitExceeded

        def take(self, *args: Any) -> Any:
            raise AssertionError("there is no time for it")

    (one,) = received(redis, sent(world, "timekit", Step()))
    jobs, fates = _worked_on([one], workshop(Slow(world.engine), world, redis), "timekit")
    assert jobs == []
    assert isinstance(fates[one], ComesBack)
    assert redis.hlen(INBOX) == 1


# --- out of a backlog ------------------------------------------------------------------------------------------


def backlog(world: World, redis: Redis, count: int = MOST) -> list[UUID]:
    """A full batch, and there is more where it came from; their ids."""
    redis.lpush("timekit", "the next message")
    return received(redis, *(sent(world, "timekit", Step(booking=n)) for n in range(count)))


def test_a_full_batch_lands_with_what_it_says_too(world: World, redis: Redis, shop: Workshop) -> None:
    """But it is noted before, for as long as it is in hand."""
    ids = backlog(world, redis)
    with statements(world.engine) as seen:
        assert _worked_on(ids, shop, "timekit")[1] == dict.fromkeys(ids, APPLIED)
    assert seen.count(ARRIVE.text) == 1
    assert not {LAND.text, HOLD.text, SETTLE.text} & set(seen)
    assert list(shop.inbox.dropped(now() + LEASE).values()) == [ids]
    shop.inbox.tidy()
    assert shop.inbox.dropped(now() + LEASE) == {}
    assert redis.hlen(INBOX) == 0


@pytest.mark.parametrize("why", ["full", "more", "old", "quiet"])
def test_only_what_would_not_be_found_is_noted(why: str, world: World, redis: Redis, shop: Workshop) -> None:
    """In a queue that is never empty, or after somebody may have died of it; and a batch is not full where the next
    message would not have fitted."""
    raws = [sent(world, "timekit", Step(booking=n)) for n in range(MOST if why == "full" else 1)]
    if why == "old":
        raws = [replace(raw, id=_id_at(now() - SETTLED)) for raw in raws]
    if why == "more":
        redis.lpush("timekit", "the next message")
    ids = received(redis, *raws)
    assert _worked_on(ids, shop, "timekit")[1] == dict.fromkeys(ids, APPLIED)
    assert redis.hlen(HANDS) == (why != "quiet")


def test_a_worker_that_dies_in_a_backlog_is_noticed_by_its_lease(
    world: World, redis: Redis, shop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    """What it had in hand lands, as tried once; then it is due like any other, also while its queue is busy."""
    ids = backlog(world, redis)
    with pytest.raises(SystemExit):
        _worked_on(ids, dying(shop), "timekit")
    assert _picked_up(world, redis, at=now() + LEASE - timedelta(seconds=5)) == 0
    later = now() + LEASE
    assert _picked_up(world, redis, at=later) == MOST
    assert logged(caplog, "picked-up") == [{"deliveries": MOST, "first": ids[0]}]
    assert (redis.hlen(INBOX), redis.hlen(HANDS)) == (0, 0)
    rows = [world.delivery(one) for one in ids]
    assert {(row.state, row.attempts, row.next_attempt_at) for row in rows} == {(State.RECEIVED, 1, later)}
    world.clock.now = later
    assert world.batch(*ids) == dict.fromkeys(ids, APPLIED)
    assert len(world.rows()) == MOST


def dying(shop: Workshop) -> Workshop:
    """One whose worker is killed just before the commit."""

    class Dies(Store):
        def arrive(self, entries: Any, now: Any) -> Any:
            raise SystemExit

    return replace(shop, inbox=Inbox(shop.redis), parts=replace(shop.parts, store=Dies(shop.store.engine)))


def _picked_up(world: World, redis: Redis, at: datetime, store: Store | None = None) -> int:
    return pick_up(Inbox(redis), store or world.store, world.config, world.providers, at)


def test_what_was_committed_by_a_worker_that_died_behind_it_stays_as_it_is(
    world: World, redis: Redis, shop: Workshop
) -> None:
    ids = backlog(world, redis)
    _worked_on(ids, replace(shop, inbox=Inbox(redis)), "timekit")  # and never tidied up
    before = world.rows(), world.events(), world.changes()
    assert _picked_up(world, redis, at=now() + LEASE) == 0
    assert (redis.hlen(INBOX), redis.hlen(HANDS)) == (0, 0)
    assert {(world.delivery(one).state, world.delivery(one).attempts) for one in ids} == {(State.APPLIED, 1)}
    assert (world.rows(), world.events(), world.changes()) == before


def test_a_worker_that_is_slower_than_its_lease_writes_nothing_over_what_has_landed(
    world: World, redis: Redis, shop: Workshop
) -> None:
    """It takes hold of the rows, if they are still there to be held."""
    ids, later = backlog(world, redis), now() + 2 * LEASE
    landed: list[int] = []

    class Slow(Store):
        def arrive(self, entries: Any, moment: Any) -> Any:
            landed.append(_picked_up(world, redis, at=later))
            return super().arrive(entries, moment)

        def take(self, landings: Any, delivery_ids: Any, moment: Any) -> Any:
            return super().take(landings, delivery_ids, later)

    slow = Slow(world.engine)
    held = replace(shop, store=slow, parts=replace(shop.parts, store=slow))
    assert _worked_on(ids, held, "timekit")[1] == dict.fromkeys(ids, APPLIED)
    assert landed == [MOST]
    assert {world.delivery(one).attempts for one in ids} == {2}
    assert len(world.events()) == MOST


def test_one_that_cannot_land_keeps_nobody_else_from_being_picked_up(
    world: World, redis: Redis, shop: Workshop, caplog: pytest.LogCaptureFixture
) -> None:
    first, bad, last = ids = backlog(world, redis, 3)
    with pytest.raises(SystemExit):
        _worked_on(ids, dying(shop), "timekit")

    class Picky(Store):
        def land(self, landings: Any, moment: Any, **how: Any) -> set[UUID]:
            if bad in [one.raw.id for one in landings]:
                raise OurFault("postgres: DataError")
            return super().land(landings, moment, **how)

    assert _picked_up(world, redis, at=now() + LEASE, store=Picky(world.engine)) == 2
    assert {world.delivery(one).state for one in (first, last)} == {State.RECEIVED}
    assert Inbox(redis).get_all(ids).keys() == {bad}  # for the sweeper's other rule
    assert redis.hlen(HANDS) == 0
    assert [entry["delivery"] for entry in logged(caplog, "not-landed")] == [bad]


def test_with_postgresql_away_nothing_is_put_down(world: World, redis: Redis, shop: Workshop) -> None:
    ids = backlog(world, redis, 3)
    with pytest.raises(SystemExit):
        _worked_on(ids, dying(shop), "timekit")
    away = Store(workers_engine("postgresql://nobody@127.0.0.1:1/x"))
    assert _picked_up(world, redis, at=now() + LEASE, store=away) == 0
    assert (redis.hlen(INBOX), redis.hlen(HANDS)) == (3, 1)
    assert _picked_up(world, redis, at=now() + LEASE) == 3


def test_a_hand_that_cannot_be_picked_up_now_keeps_no_other_one_waiting(
    world: World, redis: Redis, shop: Workshop
) -> None:
    """Somebody holds its rows, say; its note stays."""
    stuck, fine = backlog(world, redis, 3), backlog(world, redis, 3)
    for ids in (stuck, fine):
        with pytest.raises(SystemExit):
            _worked_on(ids, dying(shop), "timekit")

    class Held(Store):
        def land(self, landings: Any, moment: Any, **how: Any) -> set[UUID]:
            if stuck[0] in [one.raw.id for one in landings]:
                raise DatabaseTrouble("postgres: LockNotAvailable")
            return super().land(landings, moment, **how)

    later = now() + LEASE
    assert _picked_up(world, redis, at=later, store=Held(world.engine)) == 3
    assert list(shop.inbox.dropped(later).values()) == [stuck]
    assert set(Inbox(redis).get_all([*stuck, *fine])) == set(stuck)


@pytest.mark.parametrize("note", [b"", b"soon", b"\xff", b"nan", b"1 no-id"])
def test_a_note_that_nobody_can_read_keeps_no_other_from_being_picked_up(
    note: bytes, world: World, redis: Redis, shop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the sweep, which takes this along."""
    ids = backlog(world, redis, 3)
    with pytest.raises(SystemExit):
        _worked_on(ids, dying(shop), "timekit")
    redis.hset(HANDS, "somebody's", note)
    monkeypatch.setattr("workers.tasks.workshop", lambda: shop)
    monkeypatch.setattr("workers.tasks.now", lambda: now() + LEASE)
    monkeypatch.setattr("workers.sweep.sweep", lambda *_: 7)
    assert sweep_up() == 7
    assert (redis.hlen(INBOX), redis.hlen(HANDS)) == (0, 0)
    assert {world.delivery(one).attempts for one in ids} == {1}


def test_what_was_written_before_postgresql_went_away_is_told(engine: Engine, redis: Redis) -> None:
    """The turns before it are done; what is left comes back."""
    world = World(engine, [VENUES["synthesisvr"]])

    class Goes(Store):
        turns = 0

        def arrive(self, entries: Any, moment: Any) -> Any:
            self.turns += 1
            if self.turns == 3:
                raise DatabaseTrouble("postgres: OperationalError")
            return super().arrive(entries, moment)

        def reachable(self) -> bool:
            return False

    raws = [said_of_the_session(word, milliseconds=20 * n) for n, word in enumerate(("create", "delete") * 2)]
    redis.lpush("synthesisvr", "the next message")
    ids = received(redis, *raws)
    shop = workshop(Goes(engine), world, redis)
    jobs, fates = _worked_on(ids, shop, "synthesisvr")
    assert [job.raw.id for job in jobs] == ids[:2]
    assert [type(fates[one]) for one in ids] == [Done, Done, ComesBack, ComesBack]
    shop.inbox.tidy()
    assert set(Inbox(redis).get_all(ids)) == set(ids[2:])


def test_a_redis_that_is_full_is_emptied_all_the_same(world: World, redis: Redis, shop: Workshop) -> None:
    """It takes no note; so everything lands first."""
    ids = backlog(world, redis)
    redis.config_set("maxmemory", 1)
    try:
        with statements(world.engine) as seen:
            assert _worked_on(ids, shop, "timekit")[1] == dict.fromkeys(ids, APPLIED)
        shop.inbox.tidy()
    finally:
        redis.config_set("maxmemory", 0)
    assert seen[0] == LAND.text
    assert ARRIVE.text not in seen
    assert redis.hlen(INBOX) == 0


def test_those_that_must_see_each_other_take_turns(engine: Engine, redis: Redis) -> None:
    """Each turn is a transaction; what is out of the ordinary lands first, with all that comes after it."""
    world = World(engine, [VENUES["synthesisvr"]])
    words = ("create", "delete", "create", "delete")
    raws = [said_of_the_session(word, milliseconds=20 * place) for place, word in enumerate(words)]
    calls: list[int] = []

    class Counts(Store):
        def arrive(self, entries: Any, moment: Any) -> Any:
            calls.append(len(entries))
            if len(calls) == 3:
                raise OurFault("postgres: DataError")
            return super().arrive(entries, moment)

    shop = workshop(Counts(engine), world, redis)
    redis.lpush("synthesisvr", "the next message")
    ids = received(redis, *raws)
    with statements(engine) as seen:
        _, fates = _worked_on(ids, shop, "synthesisvr")
    assert calls == [1, 1, 1]
    assert (seen.count(ARRIVE.text), seen.count(LAND.text)) == (2, 1)
    assert list(fates) == ids
    assert {type(fate) for fate in fates.values()} == {Done}
    assert len(world.events()) == 4


# --- ids -------------------------------------------------------------------------------------------------------


def test_ids_before_and_after_a_moment() -> None:
    before, moment, after = new_id(), now() + timedelta(milliseconds=1), NOON
    assert before < first_id_after(moment)
    assert first_id_after(moment) < first_id_after(moment + timedelta(milliseconds=1))
    assert _id_at(after) < first_id_after(after)
    assert SETTLED < LEASE
