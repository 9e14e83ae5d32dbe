"""When next: from the number of attempts and the error to a decision, as a value. Knows no clock but the one given."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Final

from workers.errors import Again, DeliveryError, GaveUp

FIRST: Final = timedelta(seconds=2)
LONGEST: Final = timedelta(minutes=30)
FOR: Final = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryAt:
    """It comes back at that time (UTC)."""

    at: datetime
    error: Again


@dataclass(frozen=True, kw_only=True, slots=True)
class ParkNow:
    """A person has to look."""

    error: DeliveryError


Decision = RetryAt | ParkNow


def backoff(attempt: int) -> timedelta:
    """The wait after that attempt (counted from 1), without jitter: doubling from 2 s, at most 30 minutes."""
    return min(LONGEST, FIRST * (1 << min(attempt - 1, 32)))


def _attempts_in(period: timedelta) -> int:
    attempts, spent = 1, timedelta()
    while (spent := spent + backoff(attempts)) <= period:
        attempts += 1
    return attempts


ATTEMPTS: Final = _attempts_in(FOR)
"""So many attempts fill 24 hours. Counting them, not the hours, is fair to what waited in the inbox."""


def decide(error: DeliveryError, attempt: int, now: datetime, chance: Random) -> Decision:
    """What happens after attempt number `attempt` (counted from 1) ended in this error.

    Jitter takes off up to a quarter, so that what failed together does not come back together. A provider's own
    wish (`Retry-After`) is kept, up to the longest wait of ours.
    """
    if not isinstance(error, Again):
        return ParkNow(error=error)
    if not error.is_attempt and error.after is not None:
        return RetryAt(at=now + error.after, error=error)
    if attempt >= ATTEMPTS:
        return ParkNow(error=GaveUp(f"tried for 24 hours: {error}", reason=error.reason))
    wait = backoff(attempt) * (1 - chance.random() / 4)
    if error.after is not None:
        wait = max(wait, min(error.after, LONGEST))
    return RetryAt(at=now + wait, error=error)
