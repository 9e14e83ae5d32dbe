"""A request on its way to a disk: what is kept of it, and who waits for it where.

Knows neither Redis nor the spool.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from ingest.telling import tell, tell_error
from schemas.logs import log

REDIS: Final = "redis"
SPOOL: Final = "spool"
"""Where a request is kept."""
GROUP: Final = 64
"""Requests that go to Redis together, at most."""
ENOUGH: Final = 16
"""Requests that wait for nobody more while Redis could work on them: it does so beside us, on another core."""
GROUP_BYTES: Final = 4 * 1024 * 1024
"""A group that has reached this size takes nobody more: sixty-four of the largest bodies take longer than we have."""


class Row(NamedTuple):
    """One request as it is kept, in the inbox and in the spool."""

    id: str
    queue: str
    packed: bytes


class NotDurable(Exception):
    """The request could not be made durable in time; whether some disk has it all the same is not known."""


Then = Callable[[str | NotDurable], None]
"""Told once what became of a request: where it is kept, or why it is not."""


class Keeps(ABC):
    """Somebody who makes requests durable."""

    @abstractmethod
    def take(self, row: Row, then: Then) -> None:
        """`then` is called when the request is on a disk, or cannot be; at once where that is known at once.

        The commit is not the sender's affair: one that hangs up does not undo it.
        """

    async def keep(self, row: Row) -> str:
        """The same for who can wait: where it is kept. Raises NotDurable. Who is cancelled does not undo it either."""
        told: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.take(row, lambda fate: tell_error(told, fate) if isinstance(fate, NotDurable) else tell(told, fate))
        return await told


class Waiting:
    """A row, and who is to be told when it is on a disk."""

    __slots__ = ("came", "failure", "line", "place", "row", "settled", "since", "then", "turned_away")

    def __init__(self, row: Row, then: Then) -> None:
        self.row = row
        self.then = then
        self.settled = False
        self.turned_away = False
        """One of the two places could not take it; the other one is the last."""
        self.failure = ""
        """Why that one could not either, when it first said so."""
        self.line: Line | None = None
        self.place = ""
        """Where it stands in line, or stood when it was kept."""
        self.came = 0.0
        """When it joined its first line, by the loop's clock."""
        self.since = 0.0
        """When it joined the one in which it stands."""

    def settle(self, failure: str | None = None) -> None:
        """Tells, once: what two places took was kept by the first one that says so."""
        if self.settled:
            return
        self.settled = True
        try:
            self.then(self.place if failure is None else NotDurable(failure))
        except Exception as error:  # noqa: BLE001  who stumbles over its answer keeps it from nobody else
            log.error("not-answered", delivery=self.row.id, error=type(error).__name__)


class Line:
    """Who waits at one place, in order of arrival. It has one timer, and that only while somebody waits.

    `overdue` is called when the first one has waited longer than `patience`; it is to take everybody out.
    """

    def __init__(self, place: str, patience: float, overdue: Callable[[], None]) -> None:
        self.place = place
        self._patience = patience
        self._overdue = overdue
        self._loop = asyncio.get_running_loop()
        self._members: deque[Waiting] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def join(self, waiting: Waiting) -> None:
        """To the end. Whoever joins another line, or is settled, has left this one."""
        waiting.line, waiting.place = self, self.place
        waiting.since = self._loop.time()
        waiting.came = waiting.came or waiting.since
        self._members.append(waiting)
        if self._timer is None:
            self._timer = self._loop.call_later(self._patience, self._look)

    def take(self) -> list[Waiting]:
        """Everybody who still waits here; the line is empty afterwards."""
        here = [waiting for waiting in self._members if self._holds(waiting)]
        self._members.clear()
        return here

    def let_go(self) -> None:
        """Forgets those at the front who wait no longer. Otherwise they would lie here until the timer looks, thousands
        under load: memory that no processor's cache can hold, and that is then freed in one long moment."""
        while self._members and not self._holds(self._members[0]):
            self._members.popleft()

    def __bool__(self) -> bool:
        return any(map(self._holds, self._members))

    def _holds(self, waiting: Waiting) -> bool:
        return waiting.line is self and not waiting.settled

    def _look(self) -> None:
        self._timer = None
        self.let_go()
        if self._members and self._members[0].since + self._patience <= self._loop.time():
            self._overdue()
        if self._members and self._timer is None:
            self._timer = self._loop.call_at(self._members[0].since + self._patience, self._look)
