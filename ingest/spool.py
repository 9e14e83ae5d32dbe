"""The spool: requests on the local disk while Redis takes none, by a group commit of its own.

One thread writes, off the event loop: everything that waits goes into one transaction, into a segment of this process's
own (`segment.py`). What is spooled leaves as whole segments, for which the drainer asks. Knows nothing of Redis.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final, Protocol, TypeVar

from ingest.segment import Segment, found, is_full, said
from ingest.telling import tell, tell_error
from ingest.waiting import Waiting
from schemas.logs import log

Report = Callable[[list[Waiting], str | None], None]
"""Told in the event loop what became of a batch: None for kept, or why not."""
Result = TypeVar("Result")

OPEN_AGAIN: Final = 0.5
"""Seconds between two attempts to open a segment while the disk does not let us."""
BATCH_BYTES: Final = 16 * 1024 * 1024
"""A transaction that has reached this size takes nobody more."""
STOP_WITHIN: Final = 2.0
"""Seconds that the end waits for a disk that hangs."""


class NoSpool(Exception):
    """Nothing can be spooled now."""


class Spool(Protocol):
    """Where requests go that Redis does not take."""

    @property
    def holds(self) -> bool:
        """Whether this process has spooled something that it has not handed out."""

    async def start(self, report: Report) -> None:
        """Before anything else."""

    async def stop(self) -> None:
        """What is spooled stays for the next start, or for another process."""

    def take(self, waiting: Waiting) -> None:
        """Never waits; the report tells what became of it."""

    async def ready(self) -> bool:
        """Whether a request could be spooled now."""

    async def closed(self) -> list[Segment]:
        """The segments with what was spooled so far, which are the caller's from here on."""

    def adoptable(self) -> list[Segment]:
        """What other processes left behind, which is the caller's from here on. For any thread but the loop's."""


class Off:
    """No spool, by configuration."""

    holds = False

    async def start(self, report: Report) -> None:
        self._report = report

    async def stop(self) -> None:
        pass

    def take(self, waiting: Waiting) -> None:
        self._report([waiting], "the spool is off")

    async def ready(self) -> bool:
        return False

    async def closed(self) -> list[Segment]:
        return []

    def adoptable(self) -> list[Segment]:
        return []


class OnDisk:
    """Segments in a directory, `limit` bytes of them for this process."""

    def __init__(self, directory: Path, limit: int) -> None:
        """Raises OSError where the directory cannot be used."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(0, "it may not be written")
        self._directory = directory
        self._limit = limit
        self._arrivals: SimpleQueue[Waiting | Callable[[], None]] = SimpleQueue()
        self._segment: Segment | None = None
        self._closed: deque[Segment] = deque()
        self._ours: list[Segment] = []
        """All that were opened here and are not removed: together they keep the limit."""
        self._again_at = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="spool", daemon=True)
        self._probe: asyncio.Future[bool] | None = None

    # --- the event loop's side -------------------------------------------------------------------------------

    async def start(self, report: Report) -> None:
        """With a segment that is open already, so that the first spooled request pays nothing."""
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        await self._ask(self._try_to_open)

    async def stop(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ask(self._end), STOP_WITHIN)

    def take(self, waiting: Waiting) -> None:
        self._arrivals.put(waiting)

    @property
    def holds(self) -> bool:
        segment = self._segment
        return bool(self._closed or (segment and segment.rows))

    async def ready(self) -> bool:
        """By a write that is synced like any other. Who asks while it is under way shares it."""
        if self._probe is None or self._probe.done():
            self._probe = self._ask(self._takes_a_write)
        return await asyncio.shield(self._probe)

    async def closed(self) -> list[Segment]:
        await self._ask(self._change)
        return [self._closed.popleft() for _ in range(len(self._closed))]

    def adoptable(self) -> list[Segment]:
        return [segment for path in found(self._directory) if (segment := Segment.adopt(path)) is not None]

    def _ask(self, errand: Callable[[], Result]) -> asyncio.Future[Result]:
        """Has the thread do it, after what it was given before."""
        answer: asyncio.Future[Result] = self._loop.create_future()

        def run() -> None:
            try:
                self._in_loop(tell, answer, errand())
            except Exception as error:  # noqa: BLE001  it is the asker's
                self._in_loop(tell_error, answer, error)

        self._arrivals.put(run)
        return answer

    # --- the thread's side -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._stopping:
            batch, errand = self._gathered()
            if batch:
                self._keep(batch)
            if errand is not None:
                errand()
            del batch, errand  # or they would be held until the next ones come

    def _gathered(self) -> tuple[list[Waiting], Callable[[], None] | None]:
        """Everything that waits, up to the first errand."""
        batch: list[Waiting] = []
        size = 0
        arrival: Waiting | Callable[[], None] | None = self._arrivals.get()
        while isinstance(arrival, Waiting):
            batch.append(arrival)
            size += len(arrival.row.packed)
            try:
                arrival = self._arrivals.get_nowait() if size < BATCH_BYTES else None
            except Empty:
                arrival = None
        return batch, arrival

    def _keep(self, batch: list[Waiting]) -> None:
        failure = None
        try:
            # Who has been told something meanwhile is not kept any more: a 503 has been sent, or Redis has it.
            rows = [waiting.row for waiting in batch if not waiting.settled]
            self._write(lambda segment: segment.append(rows))
        except (NoSpool, sqlite3.Error, OSError) as error:
            failure = f"spool: {said(error)}"
        self._in_loop(self._report, batch, failure)

    def _takes_a_write(self) -> bool:
        try:
            self._write(Segment.try_room)
        except (NoSpool, sqlite3.Error, OSError):
            return False
        return True

    def _write(self, work: Callable[[Segment], None]) -> None:
        segment = self._segment or self._open()
        try:
            work(segment)
        except (sqlite3.Error, OSError) as error:
            if not is_full(error):
                # After a failed sync nobody knows what the file holds of that write: no further one goes into it.
                log.error("spool-failed", segment=segment.path.name, error=said(error))
                self._retire()
            raise

    def _open(self) -> Segment:
        """Raises NoSpool, also without a new attempt shortly after one that failed."""
        if time.monotonic() < self._again_at:
            raise NoSpool("no segment could be opened")
        try:
            self._ours = [segment for segment in self._ours if not segment.removed]
            left = self._limit - sum(segment.size for segment in self._ours)
            self._segment = Segment.create(self._directory, left)
        except (sqlite3.Error, OSError) as error:
            self._again_at = time.monotonic() + OPEN_AGAIN
            log.error("spool-failed", error=said(error))
            raise NoSpool(said(error)) from error
        self._ours.append(self._segment)
        return self._segment

    def _try_to_open(self) -> None:
        with suppress(NoSpool):
            self._open()

    def _retire(self) -> None:
        """No more is written into the current segment."""
        segment, self._segment = self._segment, None
        if segment is None:
            return
        if segment.rows:
            self._closed.append(segment)
            return
        try:
            segment.remove()
        except OSError as error:
            log.warning("segment-not-removed", segment=segment.path.name, error=said(error))

    def _change(self) -> None:
        """Closes the current segment, where there is something in it, and opens the next one at once."""
        if self._segment is not None and self._segment.rows:
            self._retire()
        if self._segment is None:
            self._try_to_open()

    def _end(self) -> None:
        self._stopping = True
        self._retire()
        for segment in self._closed:
            segment.close()

    def _in_loop(self, call: Callable[..., None], *news: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(call, *news)
