"""Redis, as the receiver knows it: raw requests into the inbox together with the messages that name them, in one MULTI.

With `appendfsync always` Redis syncs its file before it answers, so EXEC's reply is the proof. There is a client for
the requests, which is in a hurry, and one for all that goes on behind them. Knows no HTTP and no spool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from redis import exceptions
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from ingest.ending import ended
from ingest.nudge import Nudge
from ingest.transaction import Then, Wires, command
from ingest.waiting import Row
from schemas.delivery import INBOX

WAYS: Final = 2
"""Groups under way at once: one is being synced while the next one is sent."""
CALM: Final = 1.0
"""Seconds that the drainer and the looks after Redis wait for it: nobody waits for them."""
DURABLE: Final = {
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",
    "maxmemory-policy": "noeviction",
}
"""What Redis must be set to, or a 2xx promises more than it keeps."""

SILENT: Final = "silent"
"""The one reason that may be over in a moment."""
REASONS: Final = (
    (exceptions.BusyLoadingError, "loading"),
    (exceptions.OutOfMemoryError, "full"),
    (exceptions.ReadOnlyError, "read-only"),
    ((exceptions.TimeoutError, TimeoutError), SILENT),
    ((exceptions.ConnectionError, OSError), "refused"),
)
"""Why Redis did not take a write, in a word; the first that fits."""


def reason_of(error: Exception) -> str:
    """One word for the log and the breaker; what has none is named by its type."""
    return next((word for kind, word in REASONS if isinstance(error, kind)), type(error).__name__)


def connect(url: str, patience: float, connections: int) -> Redis:
    """A client that answers or fails within `patience` seconds: the library's own defaults wait for minutes."""
    return Redis.from_url(
        url,
        socket_timeout=patience,
        socket_connect_timeout=patience,
        retry=Retry(NoBackoff(), 0),
        protocol=2,  # in which Redis says nothing that was not asked for
        health_check_interval=0,
        max_connections=connections,
    )


class Inbox:
    """See the module."""

    def __init__(self, url: str, nudge: Nudge, patience: float) -> None:
        # A connection that is given up is closed in the background; the next group shall not wait for that.
        self._hurried = connect(url, patience, 2 * WAYS)
        self._slowly = max(CALM, patience)
        self._calm = connect(url, self._slowly, 8)
        self._hurried_wires = Wires(self._hurried, patience)
        self._calm_wires = Wires(self._calm, self._slowly)
        self._nudge = nudge
        self._patience = patience
        self._probe: asyncio.Task[bool] | None = None

    def put(self, rows: Sequence[Row], then: Then) -> None:
        """One MULTI. `then` is told when it is synced, or what happened instead, also where that took too long."""
        self._hurried_wires.send(self._commands(rows), then)

    async def put_behind(self, rows: Sequence[Row]) -> None:
        """The same without a hurry, on a connection that no request waits for, and for who can wait. Raises whatever
        happens instead."""
        await self._calm_wires.execute(self._commands(rows))

    def _commands(self, rows: Sequence[Row]) -> list[bytes]:
        """The requests, and for each queue one message that names its own."""
        entries: list[bytes] = []
        queues: dict[str, list[str]] = {}
        for row in rows:
            entries += (row.id.encode(), row.packed)
            queues.setdefault(row.queue, []).append(row.id)
        nudges = [command(b"LPUSH", queue.encode(), self._nudge.message(ids, queue)) for queue, ids in queues.items()]
        return [command(b"HSET", INBOX.encode(), *entries), *nudges]

    async def ready(self) -> bool:
        """Whether a request could be kept here now: a write that is synced like any other, and an inbox that is one.

        Who asks while it is under way shares it: anybody may ask, and the connections belong to the deliveries.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._takes_a_write())
        return await asyncio.shield(self._probe)

    async def _takes_a_write(self) -> bool:
        try:
            async with asyncio.timeout(self._patience), self._calm.pipeline(transaction=True) as pipe:
                pipe.set("reservoir:ready", 1, ex=60)
                pipe.hdel(INBOX, "")  # there is no such id: an error where the key holds something else
                await pipe.execute()
        except (RedisError, OSError, TimeoutError):
            return False
        return True

    async def memory(self) -> float | None:
        """The share of Redis's memory that is in use; None where it has no limit, or does not say.

        Raises whatever keeps it from answering at all.
        """
        try:
            found = await self._calm.info("memory")
        except exceptions.ResponseError:
            return None
        limit = found.get("maxmemory", 0)
        # The buffers of the AOF are not counted by Redis itself when it says that it is full.
        return (found["used_memory"] - found.get("mem_not_counted_for_evict", 0)) / limit if limit else None

    async def undurable(self) -> dict[str, str]:
        """Settings of Redis that break the promise of a 2xx, with their value; empty when all hold.

        A Redis that does not show its settings (some hosted ones) is taken at its word.
        """
        try:  # one by one: before version 7, Redis takes no more names at once
            found = [(name, await self._calm.config_get(name)) for name in DURABLE]
        except (RedisError, OSError, TimeoutError):
            return {}
        held = {name: str(settings.get(name, DURABLE[name])) for name, settings in found}
        return {name: value for name, value in held.items() if value != DURABLE[name]}

    async def aclose(self) -> None:
        if self._probe is not None:
            await ended(self._probe)
        await self._hurried_wires.aclose()
        await self._calm_wires.aclose()
        await self._hurried.aclose()
        await self._calm.aclose()
