"""Looks at PostgreSQL, Redis and this machine's spool, each within seconds; what cannot be seen does not stop the rest.

Only reads. Knows nothing of what is wrong with what it sees. No error's text is passed on, only its kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from console.alarms.diary import Diary
from console.alarms.world import AtPostgres, AtRedis, Parked, Unsettled, Worker, World
from console.spooled import Spooled, spooled
from schemas.acks import ACKS, acks_of
from schemas.delivery import EPOCH, INBOX, MICROSECOND
from schemas.endpoints import Endpoint
from workers.database import reachable

WORKERS: Final = "reservoir:worker:"
"""What a worker leaves with each heartbeat, see `workers/watch.py`: when it heard last."""
SAMPLE: Final = 1000
"""Ids of the inbox that are looked at for the oldest one."""
BEATS: Final = 80
"""Seconds that are left of the two minutes for which a heartbeat's trace is kept: its worker still sends them."""

_PARKED: Final = text(
    "SELECT endpoint, count(*) AS number, max(greatest(received_at, nudged_at, replayed_at)) AS latest,"
    " array_agg(DISTINCT reason) AS reasons FROM deliveries WHERE state = 'parked' GROUP BY endpoint"
)
_UNSETTLED: Final = text(
    "SELECT provider, state, count(*) AS number, min(greatest(received_at, replayed_at)) AS oldest,"
    " array_agg(DISTINCT reason) FILTER (WHERE reason IS NOT NULL) AS reasons FROM deliveries"
    " WHERE next_attempt_at IS NOT NULL AND state IN ('received', 'retrying') GROUP BY provider, state"
)


def redis_client(url: str) -> Redis:
    """One that does not wait."""
    return Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


@dataclass
class Eyes:
    """See the module."""

    endpoints: Mapping[str, Endpoint]
    engine: Engine
    redis: Redis
    spool: Path | None
    host: str
    diary: Diary = field(init=False)

    def __post_init__(self) -> None:
        self.diary = Diary(self.endpoints)

    def look(self, now: datetime) -> World:
        """All there is to see now."""
        why: dict[str, str] = {}
        return World(
            now=now,
            endpoints=self.endpoints,
            host=self.host,
            postgres=self._postgres(now, why),
            redis=self._redis(why),
            spool=self._spool(why),
            why=why,
        )

    def _postgres(self, now: datetime, why: dict[str, str]) -> AtPostgres | None:
        if not reachable(self.engine):
            why["postgres"] = "it takes no connections"
            return None
        try:
            with self.engine.connect() as connection:
                return AtPostgres(
                    heard=self.diary.heard(connection, now),
                    parked={
                        row.endpoint: Parked(count=row.number, latest=row.latest, reasons=_sorted(row.reasons))
                        for row in connection.execute(_PARKED)
                    },
                    unsettled={
                        (row.provider, row.state): Unsettled(
                            count=row.number, oldest=row.oldest, reasons=_sorted(row.reasons)
                        )
                        for row in connection.execute(_UNSETTLED)
                    },
                )
        except SQLAlchemyError as error:
            why["postgres"] = type(error.orig if isinstance(error, DBAPIError) else error).__name__
            return None

    def _redis(self, why: dict[str, str]) -> AtRedis | None:
        try:
            with self.redis.pipeline(transaction=False) as pipe:
                pipe.hlen(INBOX)
                pipe.hrandfield(INBOX, SAMPLE)
                pipe.hgetall(ACKS)
                inbox, ids, acks = pipe.execute()
            workers = dict(self._workers())
        except (RedisError, OSError) as error:
            why["redis"] = type(error).__name__
            return None
        return AtRedis(inbox=inbox, inbox_oldest=oldest(ids or ()), acks=acks_of(acks), workers=workers)

    def _workers(self) -> Iterator[tuple[str, Worker]]:
        keys: list[bytes] = list(self.redis.scan_iter(match=f"{WORKERS}*", count=1000))
        with self.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.get(key)
                pipe.ttl(key)
            told: list[Any] = pipe.execute()
        for key, heard, left in zip(keys, told[::2], told[1::2], strict=True):
            with suppress(TypeError, ValueError, OverflowError):  # it is gone meanwhile, or is none of ours
                heard_at = datetime.fromtimestamp(float(heard), UTC)
                yield key.decode().removeprefix(WORKERS), Worker(heard_at=heard_at, beats=left > BEATS)

    def _spool(self, why: dict[str, str]) -> Spooled | None:
        if self.spool is None:
            return None
        try:
            return spooled(self.spool) if self.spool.exists() else Spooled()
        except OSError as error:
            why["spool"] = error.strerror or type(error).__name__
            return None


def oldest(ids: Iterable[bytes]) -> datetime | None:
    """When the oldest of them came, by the ids, which begin with their time; what is none of ours has none."""
    times = [UUID(one.decode()).int >> 80 for one in ids if _OURS.fullmatch(one)]
    return EPOCH + min(times) * 1000 * MICROSECOND if times else None


_OURS: Final = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def _sorted(reasons: Iterable[str | None] | None) -> tuple[str, ...]:
    return tuple(sorted(reason or "none" for reason in reasons or ()))
