"""An API that is away is not asked again and again: one circuit per endpoint, shared by all workers through Redis.

Three failures in a row open it; while it is open nobody asks. Then one call goes through as a probe: its success closes
the circuit, its failure opens it for longer. What the provider wished (`Retry-After`) opens it for that time.

In Redis a circuit is two keys: the failures in a row, and a *gate* that expires by itself. While the gate stands nobody
asks; where it has fallen and the failures stand, whoever puts up a new gate first is the probe, and a probe that is
killed keeps the others waiting no longer than its gate. With Redis away every circuit counts as closed.

Knows no HTTP, no delivery and no table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, Final, Protocol, TypeVar
from uuid import uuid4

from redis import Redis
from redis.backoff import NoBackoff
from redis.client import Pipeline
from redis.exceptions import RedisError
from redis.retry import Retry

from schemas.logs import log
from workers.errors import ProviderUnavailable, Throttled

T = TypeVar("T")

OPENS_AFTER: Final = 3
FIRST: Final = timedelta(seconds=5)
LONGEST: Final = timedelta(seconds=60)
PROBING: Final = timedelta(seconds=15)
"""How long one probe may keep the others waiting: longer than a call may take."""
KEPT: Final = timedelta(hours=2)
"""How long failures are remembered: longer than the longest backoff, or who comes first would wake nobody."""
MEMORY: Final = timedelta(seconds=1)
"""How long a process believes that a circuit is closed, and after trouble that Redis is away, without asking."""
LATELY: Final = timedelta(seconds=30)
"""After a circuit has closed, a worker may still write for so long that it found it open: longer than it may ask."""

AWAY: Final = "away"
WISHED: Final = "wished"


# --- what decides, as values -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Gate:
    """While it stands nobody asks; `word` says why: away, wished, or the name of whoever probes."""

    word: str
    left: timedelta


@dataclass(frozen=True, slots=True)
class Seen:
    """A circuit as it stands."""

    failures: int = 0
    """In a row."""
    gate: Gate | None = None


class Way(Enum):
    """What a call may do now."""

    ASK = "ask"
    PROBE = "probe"
    """Ask, if it is the first to say so."""
    WAIT = "wait"


def way(seen: Seen) -> Way:
    """Whether to ask now."""
    if seen.gate is not None:
        return Way.WAIT
    return Way.PROBE if seen.failures >= OPENS_AFTER else Way.ASK


def opening(failures: int) -> timedelta | None:
    """For how long so many failures in a row open it: 5 s, doubled with each probe that fails, at most a minute."""
    if failures < OPENS_AFTER:
        return None
    return min(LONGEST, FIRST * (1 << min(failures - OPENS_AFTER, 10)))


def after_failure(seen: Seen, me: str) -> Seen:
    """One more; but what was asked before the gate went up, and fails behind it, says nothing new."""
    if seen.gate is not None and seen.gate.word != me:
        return seen
    wait = opening(seen.failures + 1)
    return Seen(seen.failures + 1, Gate(AWAY, wait) if wait is not None else None)


def after_wish(seen: Seen, me: str, wish: timedelta) -> Seen:
    """Open for the time that the provider wished for, at most a minute; then one probe. No wish shortens a gate."""
    wait = min(wish, LONGEST)
    held = seen.gate.left if seen.gate is not None and seen.gate.word != me else timedelta()
    if wait <= held:
        return seen
    return Seen(max(seen.failures, OPENS_AFTER), Gate(WISHED, wait))


def after_success(seen: Seen) -> Seen:
    """Closed; but a provider's wish stands, also when what was asked before it is answered well."""
    return seen if seen.gate is not None and seen.gate.word == WISHED else Seen()


# --- in Redis --------------------------------------------------------------------------------------------------


def client(redis_url: str) -> Redis:
    """Redis for circuits and slots: what does not answer at once is not waited for."""
    return Redis.from_url(redis_url, socket_timeout=0.3, socket_connect_timeout=0.3, retry=Retry(NoBackoff(), 0))


class OnClose(Protocol):
    """Told when the API of an endpoint is back; whoever waits for it need not sit out the backoff."""

    def __call__(self, endpoint: str) -> None: ...


class Circuits:
    """The circuits of all endpoints, for one process and its threads."""

    def __init__(self, redis: Redis, *, on_close: OnClose | None = None, memory: timedelta = MEMORY) -> None:
        self._redis = redis
        self._on_close = on_close
        self._memory = memory.total_seconds()
        self._me = f"probe {uuid4().hex}"
        self._clean: dict[str, float] = {}
        """Until when (monotonic) a circuit is taken to be closed, without a failure."""
        self._away_until = 0.0
        """Until when Redis is taken to be away."""

    def check(self, endpoint: str) -> None:
        """Returns where the API may be asked. Raises ProviderUnavailable while it may not."""
        if self._is_clean(endpoint):
            return
        seen = self._tried(lambda: self._look(endpoint), Seen())
        match way(seen):
            case Way.ASK:
                self._remember(endpoint, seen)
            case Way.PROBE:
                if not self._tried(lambda: self._takes_probe(endpoint), True):
                    raise _not_asked(endpoint, Gate("probe", PROBING))
            case Way.WAIT:
                assert seen.gate is not None
                raise _not_asked(endpoint, seen.gate)

    def succeeded(self, endpoint: str) -> None:
        """The API has answered, be it with a refusal."""
        if self._is_clean(endpoint):
            return
        self._tried(lambda: self._close(endpoint), None)

    def failed(self, endpoint: str, wish: timedelta | None = None) -> None:
        """The API has not answered, or with nonsense; or it wishes (`Retry-After`) to be left alone so long."""
        self._clean.pop(endpoint, None)

        def after(seen: Seen) -> Seen:
            return after_failure(seen, self._me) if wish is None else after_wish(seen, self._me, wish)

        self._tried(lambda: self._change(endpoint, after), None)

    def wake_latecomers(self) -> None:
        """Wakes once more when a circuit has been closed for half a minute: until then a worker that had found it open
        may have written so, after all others were woken, and would sit out its backoff for nothing."""

        def step() -> None:
            before = time.time() - LATELY.total_seconds()
            found: Any = self._redis.zrangebyscore(_CLOSED, "-inf", before)
            told = [self._told(_text(name)) for name in found]
            if found and all(told):
                self._redis.zremrangebyscore(_CLOSED, "-inf", before)

        self._tried(step, None)

    # --- the steps ---

    def _look(self, endpoint: str) -> Seen:
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.get(_failures(endpoint))
            pipe.get(_gate(endpoint))
            pipe.pttl(_gate(endpoint))
            return _seen(*pipe.execute())

    def _takes_probe(self, endpoint: str) -> bool:
        return bool(self._redis.set(_gate(endpoint), self._me, nx=True, px=PROBING))

    def _close(self, endpoint: str) -> None:
        seen = self._look(endpoint)
        then = after_success(seen)
        if then == Seen() and seen.failures >= OPENS_AFTER and not self._woken(endpoint):
            return  # it stays as it is, and the next probe wakes them
        if then != seen:
            self._change(endpoint, after_success)
        self._remember(endpoint, then)

    def _woken(self, endpoint: str) -> bool:
        """Tells that the API is back, before the circuit closes: a worker that dies in between is made up for."""
        self._redis.zadd(_CLOSED, {endpoint: time.time()})
        self._redis.pexpire(_CLOSED, KEPT)
        if self._told(endpoint):
            log.info("circuit", endpoint=endpoint, state="closed")
            return True
        return False

    def _told(self, endpoint: str) -> bool:
        try:
            if self._on_close is not None:
                self._on_close(endpoint)
        except Exception as error:  # noqa: BLE001  whatever it met, the call that succeeded has succeeded
            log.warning("not-woken", endpoint=endpoint, error=type(error).__name__)
            return False
        return True

    def _change(self, endpoint: str, after: Callable[[Seen], Seen]) -> None:
        """Two workers may see the same: what is written follows from what stands, or it is looked at again."""
        failures, gate = _failures(endpoint), _gate(endpoint)

        def step(pipe: Pipeline) -> None:
            seen = _seen(pipe.get(failures), pipe.get(gate), pipe.pttl(gate))
            then = after(seen)
            pipe.multi()
            if then == seen:
                return
            if then.failures:
                pipe.set(failures, then.failures, px=KEPT)
            else:
                pipe.delete(failures)
            if then.gate is not None:
                pipe.set(gate, then.gate.word, px=then.gate.left)
                seconds = then.gate.left.total_seconds()
                log.warning("circuit", endpoint=endpoint, state=then.gate.word, seconds=seconds, failures=then.failures)
            else:
                pipe.delete(gate)

        self._redis.transaction(step, failures, gate)

    # --- what this process remembers ---

    def _is_clean(self, endpoint: str) -> bool:
        return time.monotonic() < self._clean.get(endpoint, 0.0)

    def _remember(self, endpoint: str, seen: Seen) -> None:
        if seen == Seen():
            self._clean[endpoint] = time.monotonic() + self._memory

    def _tried(self, work: Callable[[], T], otherwise: T) -> T:
        """What comes of it; Redis away is no reason to stop."""
        if time.monotonic() < self._away_until:
            return otherwise
        try:
            return work()
        except (RedisError, OSError, ValueError) as error:
            self._away_until = time.monotonic() + self._memory
            log.warning("circuits-not-known", error=type(error).__name__)
            return otherwise


_CLOSED: Final = "reservoir:circuit-closed"


def _failures(endpoint: str) -> str:
    return f"reservoir:circuit:{endpoint}:failures"


def _gate(endpoint: str) -> str:
    return f"reservoir:circuit:{endpoint}:gate"


def _seen(failures: Any, word: Any, left: Any) -> Seen:
    """What Redis says; a gate that falls between two answers is none."""
    gate = Gate(_text(word), timedelta(milliseconds=left)) if word is not None and left > 0 else None
    return Seen(int(failures or 0), gate)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _not_asked(endpoint: str, gate: Gate) -> ProviderUnavailable:
    if gate.word == WISHED:
        said = f"{endpoint}: not asked: its API wishes to be left alone"
        return ProviderUnavailable(said, reason=Throttled.reason, after=gate.left)
    return ProviderUnavailable(f"{endpoint}: not asked: its API is away", after=gate.left)
