"""What Redis says about the way in: how much waits in the inbox, and how fast the receivers answer.

Redis may be away, or not be told to the console at all; then these are unknown, and the pages say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from schemas.acks import ACKS, Acks, acks_of
from schemas.delivery import INBOX

PATIENCE: Final = 0.3
"""Seconds."""
LATELY: Final = timedelta(minutes=1)
"""What a receiver said before that is no news: it may be gone, and nobody sends any more."""


@dataclass(frozen=True, kw_only=True)
class Doorstep:
    """What is known now."""

    inbox: int | None = None
    """Requests that no worker has fetched; None: unknown."""
    slowest: Mapping[str, Acks] = field(default_factory=dict)
    """By endpoint; empty where the receivers do not tell."""


class Queue:
    """Redis, as far as a page asks it."""

    def __init__(self, url: str | None) -> None:
        self._redis = url and Redis.from_url(
            url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=Retry(NoBackoff(), 0)
        )

    @property
    def is_known(self) -> bool:
        return bool(self._redis)

    def look(self, at: datetime) -> Doorstep:
        """What is so at this moment, in one round trip."""
        if not self._redis:
            return Doorstep()
        try:
            with self._redis.pipeline(transaction=False) as both:
                both.hlen(INBOX)
                both.hgetall(ACKS)
                inbox, told = both.execute()
        except (RedisError, OSError):
            return Doorstep()
        return Doorstep(inbox=int(inbox), slowest=_lately(acks_of(told), at))

    def close(self) -> None:
        if self._redis:
            self._redis.close()


def _lately(told: Mapping[str, Acks], now: datetime) -> dict[str, Acks]:
    """What is too old is not told."""
    return {endpoint: acks for endpoint, acks in told.items() if now - acks.at <= LATELY}
