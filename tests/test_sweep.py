"""What was left behind is nudged again, once: requests in the inbox, deliveries that are due. Real Redis."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from world import NOON, VENUES, Step, World, request, tell

from schemas.delivery import EPOCH, INBOX, PROCESS, RawDelivery, State, new_id
from workers.app import HOUSEKEEPING, app, broker_url
from workers.database import engine as make_engine
from workers.errors import ProviderUnavailable
from workers.inbox import Inbox
from workers.job import ComesBack
from workers.land import land
from workers.sweep import PATIENCE, SETTLED, born, sweep


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
    assert len(yard.queue("reservekit")) == 2


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
    (message,) = nudges(yard.queue(HOUSEKEEPING))
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
    with pytest.raises(OperationalError):
        land(raw.id, yard.inbox, away.store, away.config, away.providers, NOON)
    assert yard.inbox.get(raw.id) == raw.pack()


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


def test_a_retry_is_not_sent_again_within_patience(yard: Yard) -> None:
    _, fate = waiting(yard)
    yard.world.clock.now = fate.at
    assert yard.sweep() == 1
    yard.world.clock.now = fate.at + PATIENCE
    assert yard.sweep() == 0
    yard.world.clock.forward(milliseconds=1)
    assert yard.sweep() == 1


def test_a_retry_that_is_due_anew_is_sent_within_patience(yard: Yard) -> None:
    raw, fate = waiting(yard)
    yard.world.clock.now = fate.at
    yard.sweep()
    again = yard.world.work(raw.id)
    assert isinstance(again, ComesBack)
    assert again.at - fate.at < PATIENCE
    yard.world.clock.now = again.at
    assert yard.sweep() == 1


def test_the_delivery_of_a_worker_that_died_is_nudged_when_its_lease_is_over(yard: Yard) -> None:
    raw = yard.receive("timekit", ago=timedelta(0))
    yard.land(raw.id)
    assert yard.world.store.claim(raw.id, yard.world.clock()) is not None
    assert yard.sweep() == 0
    yard.world.clock.forward(seconds=90)
    assert yard.sweep() == 1
    assert [(task_id, retries) for _, task_id, _, retries in nudges(yard.queue("timekit"))] == [(str(raw.id), 1)]


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


# --- the id ----------------------------------------------------------------------------------------------------


def test_an_id_tells_when_it_was_made() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    assert before <= born(new_id()) <= datetime.now(UTC)


def test_a_field_of_the_inbox_that_is_no_id_stops_no_sweep(yard: Yard, caplog: pytest.LogCaptureFixture) -> None:
    """It is told in the log, and what else waits is nudged."""
    yard.redis.hset(INBOX, "not-an-id", b"?")
    raw = yard.receive("timekit", ago=SETTLED)
    assert yard.sweep() == 1
    assert [task for _, task, _, _ in nudges(yard.queue("timekit"))] == [str(raw.id)]
    assert "a-field-that-is-no-id" in caplog.text


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
