"""What senders have lately had from us, endpoint by endpoint, in one hash of Redis for all receivers.

`schemas.acks` names the hash and tells its form. It is written now and then, off the way of a request, and never while
Redis is not well. Knows no HTTP, and not who reads it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from ingest.ending import ended
from ingest.inbox import CALM, connect
from schemas.acks import ACKS
from schemas.logs import log

EVERY: Final = 5
"""Seconds between two writes, and the length of a slot."""
MINUTE: Final = 60


@dataclass(slots=True)
class Lately:
    """What became of the deliveries of one endpoint since the last write."""

    slots: dict[int, list[float]] = field(default_factory=dict)
    """Slot → how many, and the slowest in seconds."""
    failures: int = 0
    """In a row, up to now."""
    succeeded: bool = False
    """A success came before them."""

    def begin(self, slot: int, seconds: float) -> None:
        """The first one of a slot; what is older than a minute tells nobody anything, however long Redis is away."""
        self.slots = {old: what for old, what in self.slots.items() if old > slot - MINUTE // EVERY}
        self.slots[slot] = [1, seconds]


class Acks:
    """See the module. Counting is for the loop's thread; use as an async context manager."""

    def __init__(self, redis_url: str, well: Callable[[], bool]) -> None:
        self._redis_url = redis_url
        self._well = well
        self._lately: dict[str, Lately] = {}
        self._slot = _slot(time.time())

    def answered(self, endpoint: str, seconds: float, *, failed: bool) -> None:
        """One more delivery had its answer."""
        lately = self._lately.get(endpoint)
        if lately is None:
            lately = self._lately[endpoint] = Lately()
        slot = lately.slots.get(self._slot)
        if slot is None:
            lately.begin(self._slot, seconds)
        else:
            slot[0] += 1
            if seconds > slot[1]:
                slot[1] = seconds
        if failed:
            lately.failures += 1
        else:
            lately.failures, lately.succeeded = 0, True

    async def __aenter__(self) -> Acks:
        self._redis: Redis = connect(self._redis_url, CALM, 2)
        self._task = asyncio.create_task(self._work())
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(self._task)
        await self._tell()
        await self._redis.aclose()

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(EVERY - time.time() % EVERY)
            await self._tell()
            self._slot = _slot(time.time())

    async def _tell(self) -> None:
        if not self._lately or not self._well():
            return
        lately, self._lately = self._lately, {}
        try:
            async with asyncio.timeout(CALM):
                await self._write(lately)
        except (RedisError, OSError, TimeoutError) as error:
            log.warning("acks-not-written", error=type(error).__name__)
            for name, old in lately.items():
                self._lately[name] = _joined(old, self._lately.get(name))

    async def _write(self, lately: Mapping[str, Lately]) -> None:
        """Another receiver may write at the same moment: what is written follows from what stands, or is done again."""
        names = sorted(lately)

        async def step(pipe: Pipeline) -> None:
            found = await pipe.hmget(ACKS, names)
            now = time.time()
            told = {name: merged(_read(was), lately[name], now) for name, was in zip(names, found, strict=True)}
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.hset(ACKS, mapping={name: json.dumps(what) for name, what in told.items()})

        await self._redis.transaction(step, ACKS)


def merged(was: Mapping[str, Any], lately: Lately, now: float) -> dict[str, Any]:
    """What stands in Redis afterwards."""
    slots = {int(slot): (count, slowest) for slot, (count, slowest) in was.get("slots", {}).items()}
    for slot, (count, slowest) in lately.slots.items():
        before = slots.get(slot, (0, 0.0))
        slots[slot] = (before[0] + count, max(before[1], round(slowest * 1000, 1)))
    slots = {slot: what for slot, what in slots.items() if (slot + 1) * EVERY > now - MINUTE}
    return {
        "count": sum(count for count, _ in slots.values()),
        "slowest_ms": max((slowest for _, slowest in slots.values()), default=0.0),
        "failures_in_a_row": lately.failures + (0 if lately.succeeded else was.get("failures_in_a_row", 0)),
        "at": round(now, 3),
        "slots": {str(slot): what for slot, what in sorted(slots.items())},
    }


def _joined(old: Lately, new: Lately | None) -> Lately:
    """What could not be written, with what has come since."""
    if new is None:
        return old
    slots = dict(old.slots)
    for slot, (count, slowest) in new.slots.items():
        before = slots.get(slot, [0, 0.0])
        slots[slot] = [before[0] + count, max(before[1], slowest)]
    failures = new.failures if new.succeeded else old.failures + new.failures
    return Lately(slots, failures, old.succeeded or new.succeeded)


def _read(told: bytes | str | None) -> Mapping[str, Any]:
    """What another receiver wrote; nothing where it is none of ours."""
    try:
        found = json.loads(told or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _slot(now: float) -> int:
    return int(now // EVERY)
