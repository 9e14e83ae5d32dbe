"""What a worker tells Flower: each event once, those of a moment together."""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from redis import Redis
from test_watch import Bench

from workers.consumer import TOGETHER, Consumer

TASKS = 40


@pytest.fixture
def bench(tmp_path: Path, redis_url: str, redis: Redis) -> Bench:
    return Bench(tmp_path, redis_url, redis)


class Hub:
    """Notes when it is to call whom."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Any]] = []

    def call_later(self, seconds: float, work: Any) -> None:
        self.calls.append((seconds, work))


@pytest.fixture
def consumer() -> Consumer:
    """Without a connection: what it does with its hub and its blueprint."""
    made = object.__new__(Consumer)
    made.hub = Hub()
    made.sent = []
    made._flush_events = lambda: made.sent.append("events")
    made.blueprint = SimpleNamespace(stop=lambda parent: made.sent.append("stopped"))
    return made


def test_a_moment_s_events_wait_for_one_call(consumer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(10):
        consumer.on_send_event_buffered()
    assert consumer.hub.calls == [(TOGETHER, consumer._flush_events)]


def test_the_next_moment_has_its_own_call_also_where_the_first_was_lost(
    consumer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    for moment in (0.0, TOGETHER + 0.01, 2 * TOGETHER + 0.02):
        monkeypatch.setattr(time, "monotonic", lambda moment=moment: began + moment)
        consumer.on_send_event_buffered()
    assert len(consumer.hub.calls) == 3


def test_what_waits_is_told_before_it_ends(consumer: Any) -> None:
    consumer.stop()
    assert consumer.sent == ["events", "stopped"]


def test_flower_hears_every_event_of_many_tasks_in_few_messages(bench: Bench) -> None:
    """Of a real worker: received, started and succeeded of each."""
    ids = [f"task-{number}" for number in range(TASKS)]
    with bench.worker() as worker, bench.redis.pubsub() as ear:
        ear.psubscribe("*celeryev*")
        for task in ids:
            bench.send(task, task_id=task)
        heard, messages = Counter[str](), 0
        ends = time.monotonic() + 60
        while heard["task-succeeded"] < TASKS and time.monotonic() < ends:
            events = _events(ear.get_message(ignore_subscribe_messages=True, timeout=1.0))
            heard.update(event["type"] for event in events)
            messages += bool(events)
        assert worker.poll() is None
    assert heard == {"task-received": TASKS, "task-started": TASKS, "task-succeeded": TASKS}
    assert messages < TASKS


def _events(message: Any) -> list[dict[str, Any]]:
    """Those about tasks."""
    if message is None:
        return []
    told = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
    events = told if isinstance(told, list) else [told]
    return [event for event in events if event["type"].startswith("task-")]
