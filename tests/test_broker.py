"""What a worker has in hand: remembered by itself, given back when it ends, and noted nowhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kombu import Exchange, Queue
from redis import Redis

from console.services import Embedded
from workers.app import broker_url
from workers.broker import Channel, Prompt

QUEUE = Queue("lockme", Exchange("reservoir", type="direct"), routing_key="lockme")


class Worker:
    """A consumer that takes so many messages and finishes none by itself."""

    def __init__(self, redis_url: str, *, most: int = 4) -> None:
        self.connection = Prompt(broker_url(redis_url), transport_options={"socket_timeout": 1})
        self.channel: Any = self.connection.channel()
        self.taken: list[Any] = []
        consumer = self.connection.Consumer(QUEUE, channel=self.channel, callbacks=[self._take], accept=["json"])
        consumer.qos(prefetch_count=most)
        consumer.consume()

    def _take(self, body: Any, message: Any) -> None:
        self.taken.append(message)

    def listen(self) -> list[str]:
        """What it has in hand, when nothing more comes."""
        with suppress(TimeoutError):
            while True:
                self.connection.drain_events(timeout=0.3)
        return [message.payload for message in self.taken]

    def send(self, *words: str) -> None:
        with self.connection.Producer() as producer:
            for word in words:
                producer.publish(word, exchange=QUEUE.exchange, routing_key="lockme", serializer="json")


@pytest.fixture
def worker(redis: Redis, redis_url: str) -> Iterator[Worker]:
    worker = Worker(redis_url)
    yield worker
    worker.connection.release()


@pytest.mark.services
def test_what_is_in_hand_is_noted_nowhere(worker: Worker, redis: Redis) -> None:
    assert isinstance(worker.channel, Channel)
    before = set(redis.keys())
    worker.send("one", "two")
    assert worker.listen() == ["one", "two"]
    assert set(redis.keys()) == before
    for message in worker.taken:
        message.ack()
    assert set(redis.keys()) == before


@pytest.mark.services
def test_nobody_takes_more_than_was_agreed(redis: Redis, redis_url: str) -> None:
    worker = Worker(redis_url, most=2)
    worker.send("one", "two", "three", "four")
    assert worker.listen() == ["one", "two"]
    worker.taken[0].ack()
    assert worker.listen() == ["one", "two", "three"]
    worker.connection.release()


@pytest.mark.services
def test_what_was_not_finished_goes_back_when_the_worker_ends(worker: Worker, redis: Redis, redis_url: str) -> None:
    worker.send("one", "two", "three")
    assert worker.listen() == ["one", "two", "three"]
    worker.taken[1].ack()
    worker.connection.release()
    assert redis.llen("lockme") == 2
    heir = Worker(redis_url)
    assert sorted(heir.listen()) == ["one", "three"]
    heir.connection.release()


@pytest.mark.services
def test_what_was_rejected_goes_back_at_once(worker: Worker, redis: Redis) -> None:
    worker.send("one")
    worker.listen()
    worker.taken[0].requeue()
    assert worker.listen() == ["one", "one"]
    worker.taken[1].ack()


@pytest.mark.services
def test_a_redis_that_is_away_gets_nothing_back_and_no_file_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    with Embedded(tmp_path / "state", with_postgres=False) as embedded:
        worker = Worker(embedded.redis_url)
        worker.send("one")
        assert worker.listen() == ["one"]
        embedded.servers["Redis"].stop()
        monkeypatch.setattr(tempfile, "tempdir", str(kept))
        worker.connection.collect()
    assert list(kept.iterdir()) == []


@pytest.mark.services
def test_a_redis_that_takes_nothing_gets_nothing_back(worker: Worker, redis: Redis) -> None:
    worker.send("one")
    assert worker.listen() == ["one"]
    redis.config_set("min-replicas-to-write", 1)
    try:
        worker.connection.release()
    finally:
        redis.config_set("min-replicas-to-write", 0)
    assert not redis.exists("lockme")


def test_other_brokers_stay_as_they_are() -> None:
    """A message is rendered in a broker that lives in memory (ingest/nudge.py, workers/watch.py)."""
    with Prompt("memory://") as connection:
        assert not isinstance(connection.default_channel, Channel)
