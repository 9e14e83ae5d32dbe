"""The group commit: raw requests into the inbox together with the messages that name them, in one MULTI.

While one MULTI is under way, arrivals gather; when it returns, the next goes out with what is waiting. No timer: when
it is quiet a group is one request. With `appendfsync always` Redis syncs its file before it answers, so EXEC's reply is
the proof. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ingest.nudge import Nudge
from schemas.delivery import INBOX, RawDelivery

log = logging.getLogger("reservoir")

GROUP: Final = 64
"""Requests in one MULTI at most."""
FLUSHERS: Final = 2
"""One group is being synced while the next one is sent."""
DURABLE: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
"""What Redis must be set to, or a 2xx promises more than it keeps."""


class NotDurable(Exception):
    """The request could not be made durable in time; whether Redis has it all the same is not known."""


@dataclass(slots=True)
class _Waiting:
    raw: RawDelivery
    queue: str
    done: asyncio.Future[None] = field(repr=False)


def connect(url: str, patience: float) -> Redis:
    """A client that answers or fails within `patience` seconds: the library's own defaults wait for minutes."""
    return Redis.from_url(
        url,
        socket_timeout=patience,
        socket_connect_timeout=patience,
        retry=Retry(NoBackoff(), 0),
        health_check_interval=0,
        max_connections=FLUSHERS + 2,
    )


class Inbox:
    """Commits raw requests. Use as an async context manager."""

    def __init__(self, redis: Redis, nudge: Nudge, patience: float) -> None:
        self._redis = redis
        self._nudge = nudge
        self._patience = patience
        self._waiting: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._flushers: list[asyncio.Task[None]] = []
        self._probe: asyncio.Task[bool] | None = None

    async def __aenter__(self) -> Inbox:
        self._flushers = [asyncio.create_task(self._flush()) for _ in range(FLUSHERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        running = [*self._flushers, *([self._probe] if self._probe else [])]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._redis.aclose()

    async def commit(self, raw: RawDelivery, queue: str) -> None:
        """Returns when the request is on disk, together with its nudge. Raises NotDurable after `patience`.

        The commit belongs to a flusher, not to the caller: a sender that hangs up does not undo it.
        """
        waiting = _Waiting(raw, queue, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        try:
            await asyncio.wait_for(waiting.done, self._patience)
        except TimeoutError:
            if waiting in self._waiting:  # no group has taken it yet
                self._waiting.remove(waiting)
            raise NotDurable("redis did not answer in time") from None

    async def _flush(self) -> None:
        while True:
            await self._arrived.wait()
            group = [self._waiting.popleft() for _ in range(min(GROUP, len(self._waiting)))]
            if not self._waiting:
                self._arrived.clear()
            if group:
                await self._commit_group(group)

    async def _commit_group(self, group: Sequence[_Waiting]) -> None:
        """Each request gets its own result; a group that fails takes no other group with it."""
        failure: Exception | None = None
        try:
            await self._exec(group)
        except Exception as error:  # noqa: BLE001  whatever it is, a flusher that ends takes the receiver with it
            failure = NotDurable(f"redis: {type(error).__name__}")
            log.warning("action=commit-failed size=%d error=%s", len(group), type(error).__name__)
        for waiting in group:
            if waiting.done.done():
                continue
            if failure is None:
                waiting.done.set_result(None)
            else:
                waiting.done.set_exception(failure)

    async def _exec(self, group: Sequence[_Waiting]) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(INBOX, mapping={str(waiting.raw.id): waiting.raw.pack() for waiting in group})
            for waiting in group:
                pipe.lpush(waiting.queue, self._nudge.message(waiting.raw.id, waiting.queue))
            await pipe.execute()

    async def ready(self) -> bool:
        """Whether a request could be made durable now: a write that is synced like any other.

        Who asks while it is under way shares it: anybody may ask, and the connections belong to the deliveries.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._takes_a_write())
        return await asyncio.shield(self._probe)

    async def _takes_a_write(self) -> bool:
        try:
            await asyncio.wait_for(self._redis.set("reservoir:ready", 1, ex=60), self._patience)
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    async def undurable(self) -> dict[str, str]:
        """Settings of Redis that break the promise of a 2xx, with their value; empty when all hold.

        A Redis that does not show its settings (some hosted ones) is taken at its word.
        """
        try:  # one by one: before version 7, Redis takes no more names at once
            found = [(name, await self._redis.config_get(name)) for name in DURABLE]
        except (RedisError, OSError, TimeoutError):
            return {}
        held = {name: str(settings.get(name, DURABLE[name])) for name, settings in found}
        return {name: value for name, value in held.items() if value != DURABLE[name]}
