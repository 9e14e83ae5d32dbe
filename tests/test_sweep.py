"""What was left behind is nudged again, once: requests in the inbox, deliveries that are due. Real Redis.

How much a sweep costs stands at the end, with a hundred thousand requests in the inbox; `pytest -s` shows the numbers.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Engine
from world import NOON, VENUES, Step, World, request, tell

from console.services import Embedded
from schemas.delivery import EPOCH, INBOX, PROCESS, RawDelivery, State, new_id
from tests.lines import logged
from workers.app import HOUSEKEEPING, app, broker_url
from workers.database import engine as make_engine
from workers.errors import DatabaseTrouble, ProviderUnavailable
from workers.inbox import SETTLED, Inbox
from workers.job import ComesBack
from workers.land import land
from workers.overdue import overdue
from workers.store import LEASE, Store
from workers.sweep import GROUP, MOST, PATIENCE, SHARE, sweep


@pytest.fixture
def broker(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The Celery app sends to this test's Redis. Its pool of connections is kombu's, by URL, and stays open."""
    monkeypatch.setattr(app.conf, "broker_url", broker_url(redis_url))
    monkeypatch.setattr(app.amqp, "_producer_pool", None)
    return redis_url


@dataclass
class Yard:
    """The places that the sweeper looks at."""

    world: World
    redis: Redis

    @property
    def inbox(self) -> Inbox:
        return Inbox(self.redis)

    def receive(self, provider: str, *, ago: timedelta, packed: bytes | None = None) -> RawDelivery:
        """A request that the receiver put into the inbox so long ago, and whose nudge was lost."""
        moment = self.world.clock() - ago
        telling = tell(provider, Step(name="Ewa"))
        self.world.script.lines.update(telling.answers)
        raw = request(
            VENUES[provider].name, telling.body, headers=telling.headers, at=moment, delivery_id=id_of(moment)
        )
        self.redis.hset(INBOX, str(raw.id), raw.pack() if packed is None else packed)
        return raw

    def sweep(self) -> int:
        return sweep(self.inbox, self.world.store, self.world.config, self.redis, self.world.clock())

    def land(self, delivery_id: UUID) -> None:
        world = self.world
        land(delivery_id, self.inbox, world.store, world.config, world.providers, world.clock())

    def queue(self, name: str) -> list[dict[str, Any]]:
        """The messages in a queue, oldest first."""
        return [json.loads(message) for message in reversed(self.redis.lrange(name, 0, -1))]


def id_of(moment: datetime) -> UUID:
    """A time-ordered id that was made at that moment."""
    milliseconds = (moment - EPOCH) // timedelta(milliseconds=1)
    return UUID(int=milliseconds << 80 | new_id().int & ((1 << 80) - 1))


def nudges(messages: list[dict[str, Any]]) -> list[tuple[str, str, list[str], int]]:
    """(task, task id, arguments, retries) of each message."""
    return [
        (
            message["headers"]["task"],
            message["headers"]["id"],
            json.loads(base64.b64decode(message["body"]))[0],
            message["headers"]["retries"],
        )
        for message in messages
    ]


def ids(messages: list[dict[str, Any]]) -> int:
    """How many deliveries these messages name."""
    return sum(len(arguments) for *_, arguments, _ in nudges(messages))


@pytest.fixture
def yard(engine: Engine, redis: Redis, broker: str) -> Yard:
    return Yard(World(engine, list(VENUES.values())), redis)


# --- the inbox -------------------------------------------------------------------------------------------------


def test_a_request_whose_nudge_was_lost_is_nudged_into_its_providers_queue(yard: Yard) -> None:
    raw = yard.receive("timekit", ago=SETTLED)
    assert yard.sweep() == 1
    assert nudges(yard.queue("timekit")) == [(PROCESS, str(raw.id), [str(raw.id)], 0)]
    assert yard.inbox.get(raw.id) == raw.pack()  # it leaves the inbox when PostgreSQL has it


def test_it_is_not_nudged_again_while_its_nudge_waits(yard: Yard) -> None:
    yard.receive("timekit", ago=timedelta(hours=1))
    assert [yard.sweep(), yard.sweep()] == [1, 0]
    assert len(yard.queue("timekit")) == 1


def test_it_is_nudged_again_when_that_one_was_lost_too(yard: Yard) -> None:
    raw = yard.receive("timekit", ago=timedelta(hours=1))
    yard.sweep()
    yard.redis.delete("timekit")
    assert yard.sweep() == 1
    assert [task_id for _, task_id, _, _ in nudges(yard.queue("timekit"))] == [str(raw.id)]


def test_a_request_that_has_just_come_is_left_to_its_own_nudge(yard: Yard) -> None:
    yard.receive("timekit", ago=SETTLED - timedelta(milliseconds=1))
    assert yard.sweep() == 0


def test_a_queue_that_is_being_worked_off_is_left_in_peace_and_the_others_are_not(yard: Yard) -> None:
    yard.redis.lpush("timekit", "somebody else's message")
    for provider in ("timekit", "reservekit", "reservekit"):
        yard.receive(provider, ago=timedelta(minutes=1))
    assert yard.sweep() == 2
    assert yard.redis.llen("timekit") == 1
    assert ids(yard.queue("reservekit")) == 2


def test_an_endpoint_that_nobody_configured_belongs_to_housekeeping(yard: Yard) -> None:
    raw = request("gone", b"{}", at=NOON - timedelta(minutes=1), delivery_id=id_of(NOON - timedelta(minutes=1)))
    yard.redis.hset(INBOX, str(raw.id), raw.pack())
    assert yard.sweep() == 1
    assert [task_id for _, task_id, _, _ in nudges(yard.queue(HOUSEKEEPING))] == [str(raw.id)]


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"no request at all",
        b"reservoir/2 studio POST 1\r\n\r\n{}",
        b"reservoir/1 studio POST soon\r\n\r\n{}",
        b"reservoir/1 studio POST 99999999999999999999999\r\n\r\n{}",
        b"reservoir/1 studio POST 1795176000000000\r\n{}",
        # PostgreSQL could not hold these.
        b"reservoir/1 stu\0dio POST 1795176000000000\r\n\r\n{}",
        b"reservoir/1 studio POST 1795176000000000\r\nx-odd: a\0b\r\n\r\n{}",
    ],
)
def test_an_entry_that_cannot_be_read_ends_up_parked_with_every_byte(yard: Yard, packed: bytes) -> None:
    raw = yard.receive("timekit", ago=timedelta(minutes=1), packed=packed)
    assert yard.sweep() == 1
    (message,) = nudges(yard.queue(HOUSEKEEPING) + yard.queue("timekit"))
    yard.land(UUID(message[1]))
    yard.world.work(raw.id)
    row = yard.world.delivery(raw.id)
    assert (row.state, row.reason, row.body) == (State.PARKED, "unknown-endpoint", packed)
    assert yard.inbox.size() == 0


def test_landing_puts_a_request_into_postgresql_and_out_of_the_inbox(yard: Yard) -> None:
    raw = yard.receive("lockme", ago=timedelta(0))
    for _ in range(2):
        yard.land(raw.id)
    row = yard.world.delivery(raw.id)
    assert (row.endpoint, row.provider, row.message_id, row.state) == ("escape", "lockme", "90000", State.RECEIVED)
    assert (row.received_at, row.headers, row.body) == (raw.received_at, [list(pair) for pair in raw.headers], raw.body)
    assert yard.inbox.get(raw.id) is None


def test_a_request_stays_in_the_inbox_when_postgresql_is_away(yard: Yard) -> None:
    raw = yard.receive("timekit", ago=timedelta(0))
    away = replace(yard.world, engine=make_engine("postgresql:///reservoir?host=/nowhere"))
    with pytest.raises(DatabaseTrouble):
        land(raw.id, yard.inbox, away.store, away.config, away.providers, NOON)
    assert yard.inbox.get(raw.id) == raw.pack()


def fill(yard: Yard, count: int, *, endpoint: str = "studio", ago: timedelta = timedelta(minutes=1)) -> list[UUID]:
    """So many requests in the inbox; their ids, oldest first."""
    made = [id_of(yard.world.clock() - ago + timedelta(milliseconds=number // 10)) for number in range(count)]
    head = f"reservoir/1 {endpoint} POST 1795176000000000\r\ncontent-type: application/json\r\n\r\n".encode()
    entries = {str(one): head + b"x" * 500 for one in made}
    for some in batched(entries.items(), 5000):
        yard.redis.hset(INBOX, mapping=dict(some))
    return sorted(made)


def batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some


def test_they_go_in_groups_the_oldest_first(yard: Yard) -> None:
    made = fill(yard, 2 * GROUP + 1)
    assert yard.sweep() == len(made)
    groups = [arguments for *_, arguments, _ in nudges(yard.queue("timekit"))]
    assert [len(group) for group in groups] == [GROUP, GROUP, 1]
    assert [one for group in groups for one in group] == [str(one) for one in made]
    assert [task_id for _, task_id, *_ in nudges(yard.queue("timekit"))] == [group[0] for group in groups]


def test_a_sweep_stops_when_there_is_enough_and_the_next_one_goes_on(yard: Yard) -> None:
    """Whoever drains the queue gets all of them in the end, and few of them twice."""
    made = fill(yard, 3 * MOST)
    told = Counter[str]()
    for _ in range(20):
        assert yard.sweep() <= 1.1 * MOST
        told.update(one for *_, arguments, _ in nudges(yard.queue("timekit")) for one in arguments)
        yard.redis.delete("timekit")
        if len(told) == len(made):
            break
        yard.redis.hdel(INBOX, *told)  # they are taken up
    assert told.keys() == {str(one) for one in made}
    assert told.total() < 1.05 * len(made)


def test_an_id_that_tells_no_time_is_nudged_too(yard: Yard) -> None:
    """Somebody wrote it; that is no reason to leave it there for ever."""
    identity = UUID("ffffffff-1c1f-4b6e-9d6c-2f2b8f4f2a11")
    yard.redis.hset(INBOX, str(identity), request("studio", b"{}").pack())
    assert yard.sweep() == 1
    assert [task_id for _, task_id, *_ in nudges(yard.queue("timekit"))] == [str(identity)]


@pytest.mark.parametrize("queues", ["busy", "idle"])
def test_a_sweep_costs_little_with_a_hundred_thousand_requests_in_the_inbox(yard: Yard, queues: str) -> None:
    """The time and what travels, with every queue busy, and with all but one of a provider that nothing waits for."""
    fill(yard, 100_000)
    for provider in (*VENUES, HOUSEKEEPING):
        if queues == "busy" or provider != "lockme":
            yard.redis.lpush(provider, "somebody else's message")
    assert yard.sweep() == 0  # connections are made
    seconds, travelled = [], []
    for _ in range(2 * SHARE):
        before, began = yard.redis.info("stats")["total_net_output_bytes"], time.perf_counter()
        assert yard.sweep() == 0
        seconds.append(time.perf_counter() - began)
        travelled.append(yard.redis.info("stats")["total_net_output_bytes"] - before)
    middle = sorted(seconds)[SHARE]
    print(
        f"queues {queues}: {middle * 1000:.1f} ms a sweep, at most {max(seconds) * 1000:.1f} ms, "
        f"{max(travelled) / 1000:.0f} kB from Redis"
    )
    assert middle < (0.1 if queues == "busy" else 0.4)
    assert max(travelled) < 50_000


def test_what_is_lost_among_a_hundred_thousand_of_a_busy_queue_is_found_within_16_seconds(yard: Yard) -> None:
    """A sweep every two seconds, each of which walks an eighth."""
    fill(yard, 100_000)
    (lost,) = fill(yard, 1, endpoint="escape")
    yard.redis.lpush("timekit", "somebody else's message")
    sweeps = next(number for number in range(1, 100) if yard.sweep())
    print(f"found by sweep {sweeps}")
    assert sweeps <= SHARE + 1
    assert [task_id for _, task_id, *_ in nudges(yard.queue("lockme"))] == [str(lost)]


def test_two_sweeps_at_once_do_no_harm(yard: Yard) -> None:
    """A request may be told by both; a delivery in PostgreSQL is told by one of them."""
    made = fill(yard, 1000)
    rows = [request("harbour", b"{}", at=NOON) for _ in range(500)]
    yard.world.land(*rows)
    yard.world.clock.forward(minutes=1)
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: yard.sweep(), range(2)))
    assert ids(yard.queue("checkfront")) == len(rows)
    told = [one for *_, arguments, _ in nudges(yard.queue("timekit")) for one in arguments]
    assert set(told) == {str(one) for one in made}
    assert sum(done) == len(told) + len(rows)


# --- bad weather -------------------------------------------------------------------------------------------------


def test_nothing_is_nudged_while_postgresql_is_away_and_all_of_it_afterwards(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    raw = yard.receive("timekit", ago=timedelta(minutes=1))
    there = yard.world.store
    yard.world.store = Store(make_engine("postgresql:///reservoir?host=/nowhere"))
    assert yard.sweep() == 0
    assert yard.queue("timekit") == []
    assert len(caplog.records) == 1
    assert logged(caplog, "sweep-failed") == [{"error": "postgres-is-away"}]
    yard.world.store = there
    assert yard.sweep() == 1
    assert [task_id for _, task_id, *_ in nudges(yard.queue("timekit"))] == [str(raw.id)]


@pytest.fixture
def own(engine: Engine, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Yard]:
    """With a Redis of its own, to be stopped; the inbox and a delivery have something for the sweeper."""
    folder = tmp_path_factory.mktemp("r")
    with Embedded(folder, with_postgres=False) as embedded, Redis.from_url(embedded.redis_url) as client:
        monkeypatch.setattr(app.conf, "broker_url", broker_url(embedded.redis_url))
        monkeypatch.setattr(app.amqp, "_producer_pool", None)
        made = Yard(World(engine, list(VENUES.values())), client)
        made.receive("timekit", ago=timedelta(minutes=1))
        waiting(made)
        made.world.clock.forward(hours=1)
        yield made


@pytest.mark.parametrize("weather", ["full", "read-only", "gone"])
def test_a_sweep_survives_bad_weather_in_redis(own: Yard, weather: str, caplog: pytest.LogCaptureFixture) -> None:
    """One line, nothing is noted as nudged, and the next sweep in good weather catches up."""
    settings: Mapping[str, tuple[str, str, str]] = {
        "full": ("maxmemory", "1", "0"),
        "read-only": ("min-replicas-to-write", "1", "0"),
        "gone": ("maxclients", "10000", "10000"),
    }
    name, bad, good = settings[weather]
    away = Redis(unix_socket_path="/nowhere/redis.sock") if weather == "gone" else own.redis
    there, own.redis = own.redis, away
    there.config_set(name, bad)
    assert own.sweep() == 0
    assert len(caplog.records) == 1
    assert len(logged(caplog, "sweep-failed")) == 1
    own.redis = there
    there.config_set(name, good)
    assert own.sweep() == 2
    assert (ids(own.queue("timekit")), ids(own.queue("checkfront"))) == (1, 1)


def test_a_sweep_survives_that_its_connections_are_cut(own: Yard) -> None:
    assert own.sweep() == 2
    for _ in range(2):
        own.redis.delete("timekit", "checkfront")
        own.world.clock.forward(hours=1)
        with Redis.from_url(str(app.conf.broker_url).replace("redis+socket", "unix")) as other:
            other.client_kill_filter(_type="normal", skipme=True)
        assert own.sweep() + own.sweep() == 2


# --- deliveries ------------------------------------------------------------------------------------------------


def waiting(yard: Yard) -> tuple[RawDelivery, ComesBack]:
    """A payment that waits for its booking."""
    raw = request("harbour", tell("checkfront", Step(word="pay")).body)
    (fate,) = yard.world.deliver(raw)
    assert isinstance(fate, ComesBack)
    return raw, fate


def test_a_retry_is_sent_when_it_is_due_under_the_id_of_its_delivery(yard: Yard) -> None:
    raw, fate = waiting(yard)
    yard.world.clock.now = fate.at - timedelta(microseconds=1)
    assert yard.sweep() == 0
    yard.world.clock.now = fate.at
    assert yard.sweep() == 1
    assert nudges(yard.queue("checkfront")) == [(PROCESS, str(raw.id), [str(raw.id)], 1)]


def test_every_retry_counts_one_up(yard: Yard) -> None:
    """Flower shows one task with its history."""
    raw, fate = waiting(yard)
    for _ in range(3):
        yard.world.clock.now = fate.at
        yard.sweep()
        again = yard.world.work(raw.id)
        assert isinstance(again, ComesBack)
        fate = again
    assert [retries for *_, retries in nudges(yard.queue("checkfront"))] == [1, 2, 3]
    assert {task_id for _, task_id, *_ in nudges(yard.queue("checkfront"))} == {str(raw.id)}


def test_a_retry_is_sent_again_when_nothing_came_of_it_within_patience(yard: Yard) -> None:
    _, fate = waiting(yard)
    yard.world.clock.now = fate.at
    assert yard.sweep() == 1
    yard.redis.delete("checkfront")  # whoever took it was killed
    yard.world.clock.now = fate.at + PATIENCE
    assert yard.sweep() == 0
    yard.world.clock.forward(milliseconds=1)
    assert yard.sweep() == 1


def test_a_retry_whose_nudge_waits_in_a_long_queue_is_not_sent_again(yard: Yard) -> None:
    _, fate = waiting(yard)
    yard.world.clock.now = fate.at
    assert yard.sweep() == 1
    yard.world.clock.forward(hours=1)
    assert yard.sweep() == 0
    yard.redis.delete("checkfront")
    assert yard.sweep() == 1


def test_a_retry_takes_its_place_in_a_long_queue_when_it_is_due(yard: Yard) -> None:
    """It would starve otherwise: a queue may be long for hours."""
    raw, fate = waiting(yard)
    yard.redis.lpush("checkfront", json.dumps("somebody else's message"))
    yard.world.clock.now = fate.at
    assert yard.sweep() == 1
    assert nudges(yard.queue("checkfront")[1:]) == [(PROCESS, str(raw.id), [str(raw.id)], 1)]


def test_a_retry_that_is_due_anew_is_sent_within_patience(yard: Yard) -> None:
    raw, fate = waiting(yard)
    yard.world.clock.now = fate.at
    yard.sweep()
    again = yard.world.work(raw.id)
    assert isinstance(again, ComesBack)
    assert again.at - fate.at < PATIENCE
    yard.world.clock.now = again.at
    assert yard.sweep() == 1


def test_what_a_killed_worker_held_is_nudged_within_30_seconds(yard: Yard) -> None:
    """When its lease is over; and when the worker that took up that nudge is killed too, PATIENCE later."""
    raw = yard.receive("timekit", ago=timedelta(0))
    yard.land(raw.id)
    assert yard.world.store.claim(raw.id, yard.world.clock()) is not None
    yard.world.clock.now += LEASE - timedelta(milliseconds=1)
    assert yard.sweep() == 0
    yard.world.clock.forward(milliseconds=1)
    assert yard.sweep() == 1
    assert [(task_id, retries) for _, task_id, _, retries in nudges(yard.queue("timekit"))] == [(str(raw.id), 1)]
    assert max(LEASE, PATIENCE) <= timedelta(seconds=28)  # a sweep comes every two


def test_what_has_just_landed_is_left_to_who_landed_it(yard: Yard) -> None:
    raw = yard.receive("timekit", ago=timedelta(0))
    yard.land(raw.id)
    yard.world.clock.now += SETTLED - timedelta(milliseconds=1)
    assert yard.sweep() == 0
    yard.world.clock.forward(milliseconds=1)
    assert yard.sweep() == 1
    assert [(task_id, retries) for _, task_id, _, retries in nudges(yard.queue("timekit"))] == [(str(raw.id), 0)]


def test_what_was_tried_goes_alone_and_what_was_not_goes_in_groups(yard: Yard) -> None:
    """Flower shows a delivery that comes back as the task that it was, with its count."""
    rows = [request("studio", b"{}", at=NOON) for _ in range(GROUP + 1)]
    yard.world.land(*rows)
    for raw in rows[:2]:
        yard.world.change(raw.id, attempts=3, state=State.RETRYING)
    yard.world.clock.forward(minutes=1)
    assert yard.sweep() == GROUP + 1
    sent = nudges(yard.queue("timekit"))
    assert [(len(arguments), retries) for *_, arguments, retries in sent] == [(1, 3), (1, 3), (GROUP - 1, 0)]
    assert {argument for *_, arguments, _ in sent for argument in arguments} == {str(raw.id) for raw in rows}


def test_of_what_is_due_the_longest_due_goes_first_and_no_more_than_was_asked_for(yard: Yard) -> None:
    rows = [request("studio", b"{}", at=NOON) for _ in range(10)]
    yard.world.land(*rows)
    for late, raw in enumerate(rows):
        yard.world.change(raw.id, next_attempt_at=NOON - timedelta(minutes=late))
    asked: dict[str, Any] = {"settled": timedelta(0), "patience": PATIENCE, "busy": (), "limit": 4}
    told = [[one.id for one in overdue(yard.world.engine, NOON, **asked)] for _ in range(3)]
    oldest = [raw.id for raw in reversed(rows)]
    assert told == [oldest[:4], oldest[4:8], oldest[8:]]


def test_an_acknowledge_that_is_owed_is_sent_too(yard: Yard) -> None:
    raw = yard.receive("lockme", ago=timedelta(0))
    yard.world.script.lines["acknowledge"] = ProviderUnavailable()
    yard.land(raw.id)
    fate = yard.world.work(raw.id)
    assert isinstance(fate, ComesBack)
    assert yard.sweep() == 0
    yard.world.clock.now = fate.at
    assert yard.sweep() == 1
    assert len(yard.queue("lockme")) == 1


def test_what_is_done_is_left_alone(yard: Yard) -> None:
    applied = request("studio", tell("timekit", Step()).body)
    parked = request("studio", b"no JSON")
    yard.world.deliver(applied, parked)
    yard.world.clock.forward(days=2)
    assert yard.sweep() == 0


def test_a_woken_payment_is_sent_at_the_next_sweep(yard: Yard) -> None:
    waiting(yard)
    yard.world.deliver(request("harbour", tell("checkfront", Step(size=80)).body))
    assert yard.sweep() == 1


def test_a_field_of_the_inbox_that_is_no_id_stops_no_sweep(yard: Yard, caplog: pytest.LogCaptureFixture) -> None:
    """It is told in the log, and what else waits is nudged."""
    yard.redis.hset(INBOX, "not-an-id", b"?")
    raw = yard.receive("timekit", ago=SETTLED)
    assert yard.sweep() == 1
    assert [task for _, task, _, _ in nudges(yard.queue("timekit"))] == [str(raw.id)]
    assert logged(caplog, "not-an-id") == [{"where": "inbox"}]


def test_a_mistake_in_a_providers_file_keeps_no_request_out_of_postgresql(yard: Yard) -> None:
    """It lands without its message id, and what is wrong shows when it is worked on."""

    def stumble(delivery: RawDelivery) -> str:
        raise KeyError("message")

    raw = yard.receive("lockme", ago=SETTLED)
    yard.world.providers = {
        **yard.world.providers,
        "lockme": replace(yard.world.providers["lockme"], message_id=stumble),
    }
    yard.land(raw.id)
    assert yard.world.delivery(raw.id).message_id is None
    assert yard.inbox.get(raw.id) is None
