"""Calls stay below the provider's limit: one bucket for each account, shared by all workers through Redis.

Whoever comes when the bucket is empty takes the next token that will fall into it, and is told how long that takes: so
nobody polls, nobody overtakes, and a worker that is killed while it waits wastes one token. What would take longer than
the caller's patience is not taken. An answer of the provider may hold the bucket: until then nobody goes.

In Redis a bucket is one key, with two moments by the clock of Redis, so that the workers' clocks do not matter: when a
call would be due if all came evenly (the *arrival* of the generic cell rate algorithm, ITU-T I.371), and until when it
is held. With Redis away calls go out uncounted. Knows no HTTP, no delivery, and nothing of what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from threading import Lock
from typing import Final, TypeVar

from redis import Redis
from redis.exceptions import RedisError

from schemas.logs import log
from workers.provider import Limit, Rate

T = TypeVar("T")

OF_RATE: Final = 0.9
"""What we use of the published rate: a provider may count a call that we do not, such as the renewal of a token."""
OF_BURST: Final = 0.5
"""What we use of the published burst: calls that set out one after the other may arrive at the same time."""
LONGEST: Final = timedelta(seconds=60)
"""An answer holds a bucket for so long at most. Then one call asks whether it still holds: times can be nonsense."""
MEMORY: Final = timedelta(seconds=1)
"""How long a process believes, after trouble, that Redis is away."""

SECOND: Final = 1_000_000
"""Moments and lengths of time are whole microseconds here: Lua counts them exactly, and so do we."""
FAR: Final = 300 * SECOND
"""No bucket is ever that far ahead; what is was written by a clock that has been set back since."""
KEPT: Final = 600 * SECOND
"""When a bucket that nobody uses is forgotten: longer than it can be ahead."""


# --- what decides, as values -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pace:
    """How we go: a token falls every `interval`, and `slack` is how far ahead of that a burst may run."""

    interval: int
    slack: int


def pace(rate: Rate) -> Pace:
    """Ours, where that is the provider's rate."""
    interval = -int(-SECOND // (rate.per_second * OF_RATE))
    return Pace(interval, (max(1, int(rate.burst * OF_BURST)) - 1) * interval)


@dataclass(frozen=True, slots=True)
class Seen:
    """A bucket as it stands."""

    arrival: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """What is said to a call: `ours`, and after which wait; or, not ours, how long the wait would be."""

    ours: bool
    wait: int


def turn(seen: Seen, pace: Pace, now: int, patience: int, *, has_waited: bool = False) -> tuple[Turn, Seen]:
    """The turn of a call that comes now, and the bucket after it. `has_waited`: it comes for the token that it took,
    which is good, unless the bucket is held meanwhile."""
    held, arrival = _near(seen.held, now), _near(seen.arrival, now)
    if has_waited and held <= now:
        return Turn(True, 0), seen
    begin = max(now, held)
    wait = max(begin, arrival - pace.slack) - now
    if wait > patience:
        return Turn(False, wait), seen
    return Turn(True, wait), replace(seen, arrival=max(begin, arrival) + pace.interval)


def hold(seen: Seen, now: int, wait: int) -> Seen:
    """Nobody goes for so long. None shortens what stands."""
    return replace(seen, held=max(_near(seen.held, now), now + wait))


def _near(moment: int, now: int) -> int:
    return moment if moment - now <= FAR else 0


# --- the same in Redis -----------------------------------------------------------------------------------------

CLOCK: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
"""
_READ: Final = f"""
local key = KEYS[1]
local function near(field)
    local moment = tonumber(redis.call('HGET', key, field) or 0)
    return moment - now <= {FAR} and moment or 0
end
local function keep(field, moment)
    redis.call('HSET', key, field, string.format('%.0f', moment))
    redis.call('PEXPIRE', key, {KEPT // 1000})
end
"""
TURN: Final = (
    _READ
    + """
local interval, slack, patience = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local held, arrival = near('held'), near('arrival')
if ARGV[4] == '1' and held <= now then return {1, 0} end
local begin = math.max(now, held)
local wait = math.max(begin, arrival - slack) - now
if wait > patience then return {0, wait} end
keep('arrival', math.max(begin, arrival) + interval)
return {1, wait}
"""
)
"""`turn`, in one step for all workers."""
HOLD: Final = (
    _READ
    + """
keep('held', math.max(near('held'), now + tonumber(ARGV[1])))
"""
)
"""`hold`, likewise."""


class Buckets:
    """The buckets of all accounts, for one process and its threads."""

    def __init__(self, redis: Redis, *, memory: timedelta = MEMORY) -> None:
        """`redis` should not be waited for, see `workers.circuit.client`."""
        self._turn = redis.register_script(CLOCK + TURN)
        self._hold = redis.register_script(CLOCK + HOLD)
        self._memory = memory.total_seconds()
        self._away_until = 0.0
        """Until when (monotonic) Redis is taken to be away."""
        self._lock = Lock()

    def take(self, limit: Limit, patience: timedelta) -> timedelta:
        """Returns zero when a call may go out, after a sleep of at most `patience`; else how long it would have to
        wait, and then nothing is taken."""
        until = time.monotonic() + patience.total_seconds()
        has_waited = False
        while True:
            said = self._asked(limit, max(0.0, until - time.monotonic()), has_waited)
            if not said.ours:
                return timedelta(microseconds=said.wait)
            if not said.wait:
                return timedelta()
            time.sleep(said.wait / SECOND)
            has_waited = True

    def hold(self, limit: Limit, wait: timedelta) -> None:
        """The provider asks to be left alone for so long; at most a minute of it is kept."""
        wait = max(timedelta(), min(wait, LONGEST))
        log.info("account-held", account=limit.account, seconds=wait.total_seconds())
        self._tried(lambda: self._hold([_key(limit)], [wait // timedelta(microseconds=1)]), None)

    def _asked(self, limit: Limit, patience: float, has_waited: bool) -> Turn:
        ours = pace(limit.rate)
        words = [ours.interval, ours.slack, int(patience * SECOND), int(has_waited)]
        free, wait = self._tried(lambda: self._turn([_key(limit)], words), (1, 0))
        return Turn(bool(free), int(wait))

    def _tried(self, work: Callable[[], T], otherwise: T) -> T:
        """What comes of it; Redis away is no reason to stop, and said once a second."""
        if time.monotonic() < self._away_until:
            return otherwise
        try:
            return work()
        except (RedisError, OSError, ValueError) as error:
            with self._lock:
                is_news = time.monotonic() >= self._away_until
                self._away_until = time.monotonic() + self._memory
            if is_news:
                log.warning("calls-not-counted", error=type(error).__name__)
            return otherwise


def _key(limit: Limit) -> str:
    return f"reservoir:bucket:{limit.account}"
