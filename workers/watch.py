"""Every worker notices by itself when it is connected but deaf, and ends, so that its supervisor starts it anew.

A deaf worker has a connection to Redis, answers `inspect ping`, and takes no message. So a worker sends itself a
heartbeat, through a queue of its own and over a connection of its own, and listens for it where it listens for tasks.
Four heartbeats sent and none heard: it says so in one line and ends, with its children.

What is not deafness:

- Redis is away, full or silent: nothing is sent, so nothing can be missed, and the count starts anew.
- The worker is busy: with every process at work it takes no message, and that is as it should be, for as long as one
  task may take. What went unheard meanwhile is not held against it when it is free again and has yet to listen.
- The process was stopped for a while: heartbeats are counted, not seconds.

A heartbeat is heard by the consumer itself: it never reaches the pool, nor Celery's events, nor Flower. At most one
waits. For two minutes `reservoir:worker:<node>` holds when the worker heard last (Unix time), and
`reservoir:in-hand:<node>` how many messages it had in hand then; `RESERVOIR_HEARTBEAT` is the time between two
heartbeats in seconds (default 10: a deaf worker is gone within a minute).

A worker that is asked to end takes nothing new and finishes what it has in hand; where that takes longer than 25
seconds (`RESERVOIR_LAST`) it ends too. Nothing is lost then: what it held is due again when its lease is over.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NoReturn, cast
from uuid import uuid4

from celery.signals import (
    celeryd_after_setup,
    task_received,
    worker_ready,
    worker_shutting_down,
)
from celery.worker import state
from kombu import Exchange, Queue
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from schemas.logs import log
from workers.app import REDIS_URL, app

HEARTBEAT: Final = "reservoir.heartbeat"
EVERY: Final = float(os.environ.get("RESERVOIR_HEARTBEAT", "10"))
"""Seconds between two heartbeats."""
UNHEARD: Final = 4
"""So many heartbeats sent and not heard are deafness."""
KEPT: Final = 120
"""Seconds that a trace of a worker outlives it in Redis."""
SILENCE: Final = 2.0
"""Seconds that Redis may take to answer a heartbeat."""
LAST: Final = float(os.environ.get("RESERVOIR_LAST", "25"))
"""Seconds for a shutdown; a supervisor grants 30 and then kills what it knows of."""
FAILED: Final = 75
"""The exit code: try again (EX_TEMPFAIL)."""


@dataclass
class Ears:
    """What the heartbeats that were sent say of the worker's hearing. Counts; knows no clock and no Redis."""

    patience_when_full: int
    """Heartbeats that may go unheard beyond the usual while every process of the pool is at work."""
    unheard: int = 0
    unheard_when_free: int = 0
    """Those of them that were sent while a process of the pool had nothing to do."""
    heard_at: float | None = None

    def sent(self, *, full: bool) -> None:
        self.unheard += 1
        self.unheard_when_free += not full

    def heard(self, at: float) -> None:
        self.unheard, self.unheard_when_free, self.heard_at = 0, 0, at

    def nothing_sent(self) -> None:
        """Of what came before, nothing can be concluded any more."""
        self.unheard, self.unheard_when_free = 0, 0

    @property
    def deaf(self) -> bool:
        return self.unheard_when_free >= UNHEARD or self.unheard >= UNHEARD + self.patience_when_full


ears: Final = Ears(patience_when_full=round(app.conf.task_time_limit / EVERY))
"""Of this process; a child of the pool has no use for its copy."""


class Heartbeat:
    """The message that a worker sends to itself: Celery's own, rendered once, with a delivery tag of its own each time.

    Its queue is bound to no exchange and takes no acknowledgement, so that nothing of it stays in Redis.
    """

    def __init__(self, node: str) -> None:
        self.queue = Queue(f"reservoir.heartbeat.{node}.{uuid4().hex[:8]}", Exchange(""), no_ack=True)
        self.queue.routing_key = self.queue.name
        with app.connection_for_write(url="memory://") as connection:
            app.send_task(HEARTBEAT, queue=cast("Any", self.queue), connection=connection)
            channel: Any = connection.default_channel
            self._message: dict[str, Any] = channel._get(self.queue.name)  # the transport's own way of taking one off

    def message(self) -> str:
        self._message["properties"]["delivery_tag"] = str(uuid4())
        return json.dumps(self._message)


class Watch(threading.Thread):
    """Sends the heartbeats, and ends the process when they go unheard."""

    def __init__(self, node: str, pool: Any, heartbeat: Heartbeat) -> None:
        super().__init__(name="watch", daemon=True)
        self._node, self._pool, self._heartbeat = node, pool, heartbeat
        self._redis = Redis.from_url(
            REDIS_URL, socket_timeout=SILENCE, socket_connect_timeout=SILENCE, retry=Retry(NoBackoff(), 0)
        )
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(EVERY):
            self._beat()
        time.sleep(LAST)
        self._give_up("slow-to-end")

    def end(self) -> None:
        """A worker that shuts down listens no more, and that is right; only that it comes to an end is watched."""
        self._over.set()

    def leave_no_trace(self) -> None:
        with suppress(RedisError, OSError):
            self._redis.delete(self._heartbeat.queue.name, *self._traces)

    @property
    def _traces(self) -> tuple[str, str]:
        """When it heard last, and what it has in hand."""
        return f"reservoir:worker:{self._node}", f"reservoir:in-hand:{self._node}"

    def _beat(self) -> None:
        if ears.deaf:
            self._give_up("deaf")
        ears.sent(full=self._full())  # before it is: it may be heard before Redis has answered us
        try:
            self._send()
        except (RedisError, OSError):
            ears.nothing_sent()

    def _send(self) -> None:
        queue = self._heartbeat.queue.name
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.lpush(queue, self._heartbeat.message())
            pipe.ltrim(queue, 0, 0)
            pipe.expire(queue, KEPT)
            if ears.heard_at is not None:
                for trace, what in zip(self._traces, (ears.heard_at, _in_hand()), strict=True):
                    pipe.set(trace, f"{what:.3f}", ex=KEPT)
            pipe.execute()

    def _full(self) -> bool:
        return _in_hand() >= int(self._pool.num_processes)

    def _give_up(self, why: str) -> NoReturn:
        """Hard: what would have to end in good order is what does not work any more."""
        log.critical("worker-ends-by-force", worker=self._node, reason=why, unheard=ears.unheard)
        for child in self._pool.info.get("processes", ()):  # on Linux they would go with us anyway
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        os._exit(FAILED)


def _in_hand() -> int:
    """Messages that are taken and not finished."""
    return len(state.reserved_requests)


# --- Celery's hooks ----------------------------------------------------------------------------------------------


@app.task(name=HEARTBEAT, Strategy="workers.watch:listening")
def heartbeat() -> None:
    """Never run: the consumer itself hears it."""


def listening(*_: Any) -> Any:
    """What the consumer does with a heartbeat: it notes that it hears."""
    return hear


def hear(*_: Any, **__: Any) -> None:
    """Also a task is heard: a worker that takes them hears, where its heartbeat waits its turn behind them."""
    ears.heard(time.time())


task_received.connect(hear)


_heartbeat: Heartbeat | None = None
_watch: Watch | None = None


@celeryd_after_setup.connect
def listen(sender: str, instance: Any, **_: Any) -> None:
    """A worker consumes from the queue of its heartbeat too."""
    global _heartbeat
    _heartbeat = Heartbeat(sender)
    instance.app.amqp.queues.select_add(_heartbeat.queue).exchange = Exchange("")


@worker_ready.connect
def watch(sender: Any, **_: Any) -> None:
    """From when the worker takes tasks, and for good: reconnecting is part of what is watched."""
    global _watch
    if _heartbeat is not None:
        _watch = Watch(sender.hostname, sender.pool, _heartbeat)
        _watch.start()
        atexit.register(_watch.leave_no_trace)


@worker_shutting_down.connect
def watch_no_more(**_: Any) -> None:
    """This comes in the handler of a signal, so nothing is waited for."""
    if _watch is not None:
        _watch.end()
