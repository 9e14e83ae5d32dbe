"""Makes a request durable: in Redis by group commit, in the spool where Redis does not take it in time.

While one MULTI is under way, arrivals gather; when it returns, the next goes out with what is waiting. No timer: when
it is quiet a group is one request, and when the event loop is busy a group takes along whom its next turns bring, until
there are enough to be worth a sync: the rest is read while Redis works on them. When
Redis fails, or is silent for longer than the patience, everything that waits for it goes to the spool at once, and what
comes after goes there directly until Redis is well again. Whom neither takes goes back to a Redis that has only just
fallen silent, for as long as there is time. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from contextlib import suppress
from typing import Final

from ingest.breaker import Breaker
from ingest.ending import ended
from ingest.inbox import SILENT, WAYS, Inbox, reason_of
from ingest.spool import Spool
from ingest.waiting import ENOUGH, GROUP, GROUP_BYTES, REDIS, SPOOL, Keeps, Line, Row, Then, Waiting
from schemas.logs import log

SPOOL_PATIENCE: Final = 0.8
"""Seconds that a request waits for the spool. With Redis before or after it, that is half of the shortest deadline."""
MOMENT: Final = SPOOL_PATIENCE
"""Seconds from when a silence of Redis was noticed for which it is taken for a pause: whom the spool refuses waits for
its end, at most as long as a spool that hangs would keep it."""
LOOK_EVERY: Final = 0.5
"""Seconds between two looks after Redis: whether it is back, and how full it is."""
LOOK_SOON: Final = 0.05
"""Seconds until the first look after the breaker has opened, and twice as many each time: most silences are a pause of
the disk, and what is spooled meanwhile is late."""
STEADY: Final = 2.0
"""Seconds that it must have been closed before. A Redis that is slow, and not away, would be given up and taken back
all the time."""
EMPTY_WITHIN: Final = 3.0
"""Seconds that the end waits for what is under way, which has its own limits and needs less."""


class Keeper(Keeps):
    """See the module. Use as an async context manager."""

    def __init__(self, inbox: Inbox, spool: Spool, patience: float) -> None:
        self._inbox = inbox
        self._spool = spool
        self._patience = patience
        self._breaker = Breaker()
        self._gathering: deque[Waiting] = deque()
        """Those at Redis that no group has taken yet."""
        self._under_way = 0
        """Groups."""
        self._one_forms = False
        """The next group takes along whom the next turns of the event loop bring."""
        self._opened = asyncio.Event()
        """A breaker that was closed for a while has just opened."""
        self.mended = asyncio.Event()
        """Set when the breaker closes; who waits for that clears it."""
        self._hope_until = math.inf
        """Until when Redis may take what the spool refuses, by the loop's clock: always while it is well, for a moment
        after it fell silent, and never where it refuses."""
        self._spool_hangs = False

    async def __aenter__(self) -> Keeper:
        self._loop = asyncio.get_running_loop()
        self._at_redis = Line(REDIS, self._patience, lambda: self.failed(SILENT))
        self._at_spool = Line(SPOOL, SPOOL_PATIENCE, self._spool_is_silent)
        await self._spool.start(self._spooled)
        await self._look()
        if not self.is_open:
            await self._check_promise()
        self._task = asyncio.create_task(self._look_after_redis())
        return self

    async def __aexit__(self, *_: object) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(EMPTY_WITHIN):
                while self._at_redis or self._at_spool or self._under_way:  # noqa: ASYNC110  once in a life, for some milliseconds
                    await asyncio.sleep(0.01)
        await ended(self._task)
        await self._spool.stop()
        await self._inbox.aclose()

    def take(self, row: Row, then: Then) -> None:
        """In Redis together with its nudge, or in the spool: where it stood in line when it was."""
        waiting = Waiting(row, then)
        if self._breaker.is_open:
            self._to_spool(waiting)
        else:
            self._to_redis(waiting)

    @property
    def is_open(self) -> bool:
        """Whether requests go straight to the spool."""
        return self._breaker.is_open

    @property
    def busy(self) -> bool:
        """Whether requests wait for the next group."""
        return bool(self._gathering)

    async def ready(self) -> str | None:
        """How a request could be made durable now, in a word or two; None: not at all."""
        redis = await self._inbox.ready()
        if redis and not self.is_open:
            return "ready"
        with suppress(TimeoutError):
            if await asyncio.wait_for(self._spool.ready(), SPOOL_PATIENCE):
                return "ready: spooling"
        return "ready" if redis else None

    # --- Redis -----------------------------------------------------------------------------------------------

    def _to_redis(self, waiting: Waiting) -> None:
        self._at_redis.join(waiting)
        self._gathering.append(waiting)
        self._form()

    def _form(self) -> None:
        """The next group, once somebody waits and one of the ways to Redis is free."""
        if self._gathering and not self._one_forms and self._under_way < WAYS:
            self._one_forms = True
            self._loop.call_soon(self._all_in, 0)

    def _all_in(self, before: int) -> None:
        """Until there are enough, or a turn of the event loop brings nobody more: who is being read comes along."""
        here = len(self._gathering)
        if before < here < ENOUGH:
            self._loop.call_soon(self._all_in, here)
            return
        self._one_forms = False
        if here:
            if group := self._next_group():
                self._commit(group)
            self._form()

    def _next_group(self) -> list[Waiting]:
        group: list[Waiting] = []
        size = 0
        while self._gathering and len(group) < GROUP and size < GROUP_BYTES:
            waiting = self._gathering.popleft()
            if not waiting.settled:  # the spool may have answered it, or Redis another time
                group.append(waiting)
                size += len(waiting.row.packed)
        return group

    def _commit(self, group: list[Waiting]) -> None:
        def committed(error: Exception | None) -> None:
            self._under_way -= 1
            self._form()
            if error is not None:
                self.failed(reason_of(error))
                return
            self._hope_until = math.inf
            for waiting in group:
                waiting.settle()
            self._at_redis.let_go()

        self._under_way += 1
        try:
            self._inbox.put([waiting.row for waiting in group], committed)
        except Exception as error:  # noqa: BLE001  a mistake of our own is no reason to leave them without an answer
            committed(error)

    def failed(self, reason: str) -> None:
        """Redis did not take a write: nobody waits for it any longer."""
        now = self._loop.time()
        self._change(self._breaker.failed(reason, now))
        self._hope_until = min(self._hope_until, now + MOMENT) if reason == SILENT else -math.inf
        self._gathering.clear()
        for waiting in self._at_redis.take():
            if waiting.turned_away:
                self._nowhere_to_go(waiting, f"redis: {reason}")
            else:
                waiting.turned_away = True
                self._to_spool(waiting)

    # --- the spool -------------------------------------------------------------------------------------------

    def _to_spool(self, waiting: Waiting) -> None:
        if self._spool_hangs:
            self._not_spooled(waiting, "spool: silent")
            return
        self._at_spool.join(waiting)
        self._spool.take(waiting)

    def _spooled(self, batch: list[Waiting], failure: str | None) -> None:
        """The spool's report."""
        self._spool_hangs = False
        for waiting in batch:
            if failure is None:
                waiting.settle()
            elif not waiting.settled and waiting.line is self._at_spool:
                self._not_spooled(waiting, failure)
        self._at_spool.let_go()

    def _spool_is_silent(self) -> None:
        """The disk hangs: until it says something, nobody else is sent to it."""
        self._spool_hangs = True
        log.error("spool-failed", error="silent")
        for waiting in self._at_spool.take():
            self._not_spooled(waiting, "spool: silent")

    def _not_spooled(self, waiting: Waiting, failure: str) -> None:
        """Whom Redis has not turned away has one chance left, though it is not expected to be one."""
        if waiting.turned_away:
            self._nowhere_to_go(waiting, failure)
        else:
            waiting.turned_away = True
            self._to_redis(waiting)

    def _nowhere_to_go(self, waiting: Waiting, failure: str) -> None:
        """Neither place has taken it. A Redis that has only just fallen silent may wake up while there is time."""
        waiting.failure = waiting.failure or failure
        if self._loop.time() < min(self._hope_until, waiting.came + MOMENT):
            self._to_redis(waiting)
        else:
            waiting.settle(waiting.failure)

    # --- the breaker -----------------------------------------------------------------------------------------

    async def _look_after_redis(self) -> None:
        pause = LOOK_EVERY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._opened.wait()
            if self._opened.is_set():
                self._opened.clear()
                pause = LOOK_SOON
                continue
            was_open = self.is_open
            await self._look()
            if was_open and not self.is_open:
                await self._check_promise()
            pause = min(2 * pause, LOOK_EVERY)

    async def _look(self) -> None:
        """Opens the breaker before a request has to find out, and closes it."""
        if self.is_open and not await self._inbox.ready():
            return
        try:
            memory = await self._inbox.memory()
        except Exception as error:  # noqa: BLE001  nor may the one end who closes the breaker
            self.failed(reason_of(error))
        else:
            self._hope_until = math.inf
            self._change(self._breaker.well(memory, self._loop.time()))

    def _change(self, breaker: Breaker) -> None:
        before, self._breaker = self._breaker, breaker
        if breaker == before:
            return
        if breaker.is_open:
            if breaker.since - before.since > STEADY:
                self._opened.set()
            log.warning("breaker", state="open", reason=breaker.reason)
        else:
            self.mended.set()
            seconds = round(breaker.since - before.since, 1)
            log.warning("breaker", state="closed", reason=before.reason, seconds=seconds)

    async def _check_promise(self) -> None:
        for name, value in (await self._inbox.undurable()).items():
            log.error("redis-not-durable", setting=name, value=value)
