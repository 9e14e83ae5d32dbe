"""The faults, each a value: its name, its lane, how long it lasts, how it begins and how it ends.

`begin` does the harm and returns how it is undone; the fault is over when that has returned, which for something that
was killed means: when it is back, by itself. Faults of one lane never overlap (see `chaos.schedule`): Redis and the
spool's disk share one, because with neither of them nothing can be kept; whatever stands in different lanes may come
together.
"""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import psutil
import psycopg
import redis

from chaos.ground import Ground, family, send
from chaos.schedule import Kind

Undo = Callable[[], Awaitable[None]]
Begin = Callable[[Ground], Awaitable[Undo]]

LONGER_THAN_THE_SHORTEST_DEADLINE: Final = (2.5, 6.0)
A_MOMENT: Final = (0.5, 1.0)
"""For what is done at once; how long it takes to come back is up to the system."""
A_WHILE: Final = (2.0, 5.0)
LEAP: Final = 3600.0
KEYS: Final = frozenset({"api_key", "access_token", "client_id"})
"""Who is given one of these asks the provider's API."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One way in which things go wrong."""

    name: str
    lane: str
    lasts: tuple[float, float]
    begin: Begin

    @property
    def kind(self) -> Kind:
        return Kind(name=self.name, lane=self.lane, least=self.lasts[0], most=self.lasts[1])


# --- processes: killed, and back by themselves -----------------------------------------------------------------


def _killed(kind: str, answers: Callable[[Ground], bool] | None = None, how: signal.Signals = signal.SIGKILL) -> Begin:
    """One process of a kind; over when there is a new one that answers."""

    async def begin(ground: Ground) -> Undo:
        victim = ground.pick(kind)
        gone = [victim] if victim else []
        send(gone, how)
        ask = partial(answers, ground) if answers else None
        return partial(ground.back, kind, gone, ask)

    return begin


async def _kill_a_child(ground: Ground) -> Undo:
    """A child of a worker, whatever it is doing."""
    worker = ground.pick("worker")
    children = family(worker)[1:] if worker else []
    if children:
        send([ground.chance.choice(children)], signal.SIGKILL)
    return _nothing


# --- processes: stopped, and let go on -------------------------------------------------------------------------


def _stopped(kind: str) -> Begin:
    """A process of a kind with all its children: it hears nothing and says nothing, and holds all its connections."""

    async def begin(ground: Ground) -> Undo:
        victim = ground.pick(kind)
        stopped = family(victim) if victim else []
        send(stopped, signal.SIGSTOP)

        async def go_on() -> None:
            send([*stopped, *(family(victim) if victim else [])], signal.SIGCONT)

        return go_on

    return begin


# --- Redis and the disk ----------------------------------------------------------------------------------------


async def _fill_redis(ground: Ground) -> Undo:
    """No room for one more write."""
    await _told_to_redis(ground, lambda client: client.config_set("maxmemory", "1mb"))
    return partial(_told_to_redis, ground, lambda client: client.config_set("maxmemory", "0"))


async def _cut_redis(ground: Ground) -> Undo:
    """Every connection, those of blocked readers too."""
    await _told_to_redis(ground, lambda client: client.client_kill_filter(skipme=True, _type="normal"))
    return _nothing


async def _told_to_redis(ground: Ground, words: Callable[[redis.Redis], Any]) -> None:
    def tell() -> bool:
        with suppress(redis.RedisError, OSError), ground.redis() as client:
            words(client)
            return True
        return False

    await ground.until(tell, "Redis took a command of ours")


async def _fill_disk(ground: Ground) -> Undo:
    """No receiver may write to any file: the write fails as it does on a full disk."""
    limited = ground.processes("web")
    _limit_files(limited, 0)

    async def make_room() -> None:
        _limit_files(limited, resource.RLIM_INFINITY)

    return make_room


def _limit_files(processes: Sequence[psutil.Process], size: int) -> None:
    """The soft limit, which can be raised again. Python ignores the signal, and the write fails with EFBIG."""
    for process in processes:
        with suppress(psutil.Error):
            process.rlimit(psutil.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


# --- PostgreSQL ------------------------------------------------------------------------------------------------


async def _cut_database(ground: Ground) -> Undo:
    """Every session but our own, in the middle of whatever it does."""

    def cut() -> None:
        with suppress(psycopg.Error), ground.database() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")

    await asyncio.to_thread(cut)
    return _nothing


# --- the providers ---------------------------------------------------------------------------------------------


def _weather(whose: Callable[[Ground], Sequence[Any]], **worse: float) -> Begin:
    """Numbers of the weather of some venues, until it clears up."""

    async def begin(ground: Ground) -> Undo:
        before = [(venue, {name: getattr(venue.weather, name) for name in worse}) for venue in whose(ground)]

        def set_all(numbers: Callable[[Mapping[str, float]], Mapping[str, float]]) -> None:
            for venue, fair in before:
                for name, value in numbers(fair).items():
                    setattr(venue.weather, name, value)

        set_all(lambda fair: worse)

        async def clear_up() -> None:
            set_all(lambda fair: fair)

        return clear_up

    return begin


def _a_provider(ground: Ground) -> Sequence[Any]:
    """All venues of one provider whose API is asked."""
    chosen = ground.chance.choice(sorted({venue.provider for venue in ground.venues if KEYS & venue.secrets().keys()}))
    return [venue for venue in ground.venues if venue.provider == chosen]


def _all(ground: Ground) -> Sequence[Any]:
    return ground.venues


async def _leap(ground: Ground) -> Undo:
    """The clocks of all senders jump, and stay there."""
    for clock in {id(venue.clock): venue.clock for venue in ground.venues}.values():
        clock.leap(ground.chance.choice((LEAP, -LEAP)))
    return _nothing


# --- an operator -----------------------------------------------------------------------------------------------


async def _roll(ground: Ground) -> Undo:
    """`reservoir restart`, in the middle of the day."""
    await ground.trial.run("restart")
    return partial(ground.until, ground.receivers_answer, "all receivers answered again")


async def _nothing() -> None:
    return None


def _everybody(ground: Ground) -> bool:
    return ground.receivers_answer()


FAULTS: Final[Sequence[Fault]] = (
    Fault(name="redis killed", lane="durability", lasts=A_MOMENT, begin=_killed("redis", Ground.redis_answers)),
    Fault(
        name="redis stopped",
        lane="durability",
        lasts=LONGER_THAN_THE_SHORTEST_DEADLINE,
        begin=_stopped("redis"),
    ),
    Fault(
        name="redis restarted",
        lane="durability",
        lasts=A_MOMENT,
        begin=_killed("redis", Ground.redis_answers, signal.SIGTERM),
    ),
    Fault(name="redis full", lane="durability", lasts=A_WHILE, begin=_fill_redis),
    Fault(name="redis connections cut", lane="durability", lasts=A_MOMENT, begin=_cut_redis),
    Fault(name="spool disk full", lane="durability", lasts=A_WHILE, begin=_fill_disk),
    Fault(name="postgres killed", lane="database", lasts=A_MOMENT, begin=_killed("postgres", Ground.postgres_answers)),
    Fault(
        name="postgres stopped",
        lane="database",
        lasts=LONGER_THAN_THE_SHORTEST_DEADLINE,
        begin=_stopped("postgres"),
    ),
    Fault(name="postgres connections cut", lane="database", lasts=A_MOMENT, begin=_cut_database),
    Fault(name="receiver killed", lane="receivers", lasts=A_MOMENT, begin=_killed("web", _everybody)),
    Fault(name="everything rolled", lane="receivers", lasts=A_MOMENT, begin=_roll),
    Fault(name="worker killed", lane="workers", lasts=A_MOMENT, begin=_killed("worker")),
    Fault(name="worker's child killed", lane="workers", lasts=A_MOMENT, begin=_kill_a_child),
    Fault(
        name="worker stopped",
        lane="workers",
        lasts=LONGER_THAN_THE_SHORTEST_DEADLINE,
        begin=_stopped("worker"),
    ),
    Fault(name="beat killed", lane="workers", lasts=A_MOMENT, begin=_killed("beat")),
    Fault(name="api down", lane="providers", lasts=A_WHILE, begin=_weather(_a_provider, api_down=1.0)),
    Fault(name="api hangs", lane="providers", lasts=A_WHILE, begin=_weather(_a_provider, api_hang=1.0)),
    Fault(name="api slow", lane="providers", lasts=A_WHILE, begin=_weather(_a_provider, api_slow=1.0)),
    Fault(name="api talks nonsense", lane="providers", lasts=A_WHILE, begin=_weather(_a_provider, api_garbage=1.0)),
    Fault(name="api cut short", lane="providers", lasts=A_WHILE, begin=_weather(_a_provider, api_cut=1.0)),
    Fault(name="senders hang up", lane="senders", lasts=A_WHILE, begin=_weather(_all, hang_up_early=0.3)),
    Fault(name="senders drip", lane="senders", lasts=A_WHILE, begin=_weather(_all, slow_body=0.3)),
    Fault(name="clock leaps", lane="senders", lasts=A_MOMENT, begin=_leap),
)
BY_NAME: Final[Mapping[str, Fault]] = {fault.name: fault for fault in FAULTS}
