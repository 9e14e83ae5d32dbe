"""Empties the spool into the inbox while Redis is well: this process's segments, and those that others left behind.

By the same MULTI as a live group, at most 64 requests each, on a connection of its own, and in half of the time only
while requests wait. A segment is removed when all of it has landed; killed half-way it lands once more, which changes
nothing. Files are read and removed on a thread that no request waits for.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from ingest.ending import ended
from ingest.inbox import Inbox, reason_of
from ingest.keeper import Keeper
from ingest.segment import Segment, said
from ingest.spool import Spool
from ingest.waiting import Row
from schemas.logs import log

Result = TypeVar("Result")

ROUND_EVERY: Final = 1.0
"""Seconds between two looks into the spool, where Redis has not come back meanwhile."""
ROUND_AT_LAST: Final = 10.0
"""Seconds, where one round after another has failed."""
STOP_WITHIN: Final = 2.0
"""Seconds that the end waits for a disk that hangs."""


class Drainer:
    """See the module. Use as an async context manager, inside the keeper's."""

    def __init__(self, spool: Spool, inbox: Inbox, keeper: Keeper) -> None:
        self._spool = spool
        self._inbox = inbox
        self._keeper = keeper
        self._segments: list[Segment] = []
        """Ours to empty."""

    async def __aenter__(self) -> Drainer:
        self._thread = ThreadPoolExecutor(1, "drainer")
        self._task = asyncio.create_task(self._drain())
        return self

    async def __aexit__(self, *_: object) -> None:
        await ended(self._task)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._in_thread(self._give_back), STOP_WITHIN)
        self._thread.shutdown(wait=False)

    async def _drain(self) -> None:
        pause = ROUND_EVERY
        while True:
            if not self._keeper.is_open:
                pause = ROUND_EVERY if await self._went_well() else min(2 * pause, ROUND_AT_LAST)
            if pause == ROUND_EVERY:
                await self._until_mended(pause)
            else:  # what failed may be why Redis is given up, and would be so again and again
                await asyncio.sleep(pause)

    async def _until_mended(self, patience: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await self._keeper.mended.wait()
        self._keeper.mended.clear()  # not before: it may have come while the last round went on

    async def _went_well(self) -> bool:
        """A round; whatever goes wrong with it, the next one may go better."""
        try:
            return await self._round()
        except Exception as error:  # noqa: BLE001  as it says
            log.error("drain-failed", error=type(error).__name__)
            return False

    async def _round(self) -> bool:
        """Everything that is spooled now, the oldest first. False where something went wrong."""
        if self._spool.holds:
            self._segments += await self._spool.closed()
        await self._in_thread(self._adopt)
        done = True
        for segment in sorted(self._segments, key=lambda segment: segment.path):
            try:
                if not await self._emptied(segment):
                    return False
            except (sqlite3.Error, OSError) as error:
                # Not Redis's doing; the other segments need not wait for it.
                log.error("drain-failed", segment=segment.path.name, error=said(error))
                done = False
        self._segments = [segment for segment in self._segments if not segment.removed]
        return done

    async def _emptied(self, segment: Segment) -> bool:
        """False where Redis is away. Raises sqlite3.Error or OSError where the disk is."""
        begin = time.monotonic()
        while group := await self._in_thread(segment.group):
            if self._keeper.is_open or not await self._landed(group):
                return False
            segment.landed()
        await self._in_thread(segment.set_aside if segment.torn else segment.remove)
        if segment.torn:
            log.error("segment-corrupt", rows=segment.rows, kept_as=f"{segment.path.name}.corrupt")
        elif segment.rows:
            seconds = round(time.monotonic() - begin, 1)
            log.warning("drained", segment=segment.path.name, rows=segment.rows, seconds=seconds)
        return True

    async def _landed(self, group: list[Row]) -> bool:
        begin = time.monotonic()
        try:
            await self._inbox.put_behind(group)
        except Exception as error:  # noqa: BLE001  whatever Redis says, the keeper has a word for it
            self._keeper.failed(reason_of(error))
            return False
        if self._keeper.busy:
            await asyncio.sleep(time.monotonic() - begin)
        return True

    def _adopt(self) -> None:
        # In the thread, so that nothing is forgotten that is found while the end has begun.
        self._segments += self._spool.adoptable()

    def _give_back(self) -> None:
        for segment in self._segments:
            segment.close()

    def _in_thread(self, work: Callable[[], Result]) -> asyncio.Future[Result]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)
