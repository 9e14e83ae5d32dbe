"""What the faults touch: the processes of one `reservoir up`, its Redis, its PostgreSQL, its venues.

Processes are found as children of the one that we started, so that nothing else on the machine is ever hit. Knows no
fault.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, Final

import httpx
import psutil
import psycopg
import redis

from console.trial import Trial
from simulators.venue import Venue

MARKS: Final[Mapping[str, str]] = {
    # A process of ours → a word of its command line.
    "web": "ingest.app:create",
    "worker": "worker",
    "beat": "beat",
    "flower": "flower",
    "redis": "redis-server",
    "postgres": "postgres",
}
BACK_WITHIN: Final = 45.0
"""Seconds that something killed may take to come back; what takes longer is told, and not waited for any more."""
ASKED_EVERY: Final = 0.1


class NotBack(Exception):
    """What a fault took away did not come back by itself."""


class Ground:
    """One installation under test."""

    def __init__(self, trial: Trial, venues: Sequence[Venue], chance: Random) -> None:
        self.trial = trial
        self.venues = venues
        self.chance = chance
        self._up = psutil.Process(trial.pid)

    # --- processes ---

    def processes(self, kind: str) -> list[psutil.Process]:
        """Those of our children that do this, without their own children; what is just dying does not count."""
        return [child for child in self._children() if _is(child, kind)]

    def pick(self, kind: str) -> psutil.Process | None:
        """One of them by chance; None while there is none."""
        found = self.processes(kind)
        return self.chance.choice(found) if found else None

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return self._up.children()
        return []

    async def back(self, kind: str, gone: Iterable[psutil.Process], answers: Callable[[], bool] | None = None) -> None:
        """Waits until there are as many as before without those that are gone, and they answer. Raises NotBack."""
        left = {process.pid for process in gone}
        wanted = max(1, self.trial.scale.get(kind, 1))

        def there() -> bool:
            return len([one for one in self.processes(kind) if one.pid not in left]) >= wanted

        await self.until(lambda: there() and (answers is None or answers()), f"{kind} came back")

    async def until(self, true: Callable[[], bool], what: str, within: float = BACK_WITHIN) -> None:
        """Polls from a thread. Raises NotBack."""
        deadline = time.monotonic() + within
        while not await asyncio.to_thread(true):
            if time.monotonic() > deadline:
                raise NotBack(f"waited {within:g} s until {what}")
            await asyncio.sleep(ASKED_EVERY)

    # --- the servers ---

    def redis(self, timeout: float = 1.0) -> redis.Redis:
        """A client of our own."""
        return redis.Redis.from_url(self.trial.redis_url(), socket_timeout=timeout, retry=None, decode_responses=True)

    def redis_answers(self) -> bool:
        with suppress(redis.RedisError, OSError), self.redis() as client:
            return bool(client.ping())
        return False

    def postgres_answers(self) -> bool:
        with suppress(psycopg.Error), self.database() as connection:
            return connection.execute("SELECT 1").fetchone() is not None
        return False

    def database(self) -> psycopg.Connection[Any]:
        """A connection of our own."""
        return psycopg.connect(self.trial.database_url(), autocommit=True, connect_timeout=2)

    def receivers_answer(self) -> bool:
        """Whether every receiver would take a webhook."""
        with suppress(httpx.TransportError), httpx.Client(trust_env=False, timeout=1.0) as client:
            return all(client.get(f"{url}/healthz").status_code == 200 for url in self.trial.urls)
        return False


def _is(process: psutil.Process, kind: str) -> bool:
    with suppress(psutil.Error):
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        words = process.cmdline()
        if kind in ("redis", "postgres"):
            return any(os.path.basename(word.split(" ")[0]) == MARKS[kind] for word in words[:1])
        return MARKS[kind] in words
    return False


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all below it."""
    with suppress(psutil.Error):
        return [process, *process.children(recursive=True)]
    return []


def send(processes: Iterable[psutil.Process], how: signal.Signals) -> None:
    """A signal to each that still lives."""
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(how)
