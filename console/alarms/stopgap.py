"""The one incident that PostgreSQL cannot keep: that it is away.

It is kept in memory, and in Redis for the other processes and for the next one after a restart: whoever notes it there
first tells people. When PostgreSQL is back the incident goes into its table, where it is seen to be over. With Redis
away too, each process that watches tells for itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import Engine

from console.alarms.channels import NotSent, send
from console.alarms.findings import Finding
from console.alarms.incidents import Incident, News, seen
from console.alarms.ledger import adopt, backoff
from console.alarms.notice import Notice, about
from console.alarms.settings import Target
from schemas.logs import log

KEY: Final = "reservoir:alarms:postgres"
KEPT: Final = 7 * 24 * 3600
"""Seconds."""


@dataclass
class Stopgap:
    """See the module."""

    redis: Redis
    targets: Mapping[str, Target]
    host: str
    incident: Incident | None = None
    """The last one, also when it is over."""
    _unsent: dict[str, tuple[Notice, int, datetime]] = field(default_factory=dict)
    """Channel → what it is to be told, the tries so far, and when the next one is."""

    def away(self, finding: Finding, now: datetime) -> None:
        """PostgreSQL cannot be seen."""
        self.incident, news = seen(self.incident, finding, now)
        if news is News.OPENED and self._is_first():
            notice = about(self.incident, news, now, self.host)
            self._unsent = dict.fromkeys(self.targets, (notice, 0, now))
        for channel, (notice, tries, due_at) in list(self._unsent.items()):
            if due_at <= now:
                self._try(channel, notice, tries + 1, now)

    def back(self, engine: Engine, now: datetime) -> None:
        """PostgreSQL can be seen again. Raises SQLAlchemyError."""
        incident = self.incident or self._left_behind()
        if incident is None or incident.closed_at is not None:
            return
        if incident.notified_at is not None:
            adopt(engine, incident, self._unsent, now, self.host)
            with suppress(RedisError, OSError):
                self.redis.delete(KEY)
        self.incident, self._unsent = replace(incident, closed_at=now), {}

    def _try(self, channel: str, notice: Notice, tries: int, now: datetime) -> None:
        try:
            send(self.targets[channel], notice)
        except NotSent as error:
            log.error("notify-failed", channel=channel, tries=tries, error=str(error))
            self._unsent[channel] = notice, tries, now + backoff(tries)
        else:
            del self._unsent[channel]

    def _left_behind(self) -> Incident | None:
        """What a process has noted that ended before PostgreSQL was back."""
        with suppress(RedisError, OSError, TypeError, ValueError, KeyError):
            told: Any = self.redis.get(KEY)
            return _unpacked(told) if told else None
        return None

    def _is_first(self) -> bool:
        """Whether nobody has told people yet; else the incident is the one that they know."""
        assert self.incident is not None
        try:
            if self.redis.set(KEY, _packed(self.incident), nx=True, ex=KEPT):
                return True
            told: Any = self.redis.get(KEY)
        except (RedisError, OSError):
            return True
        with suppress(TypeError, ValueError, KeyError):
            self.incident = _unpacked(told)
            return False
        return True


def _packed(incident: Incident) -> str:
    return json.dumps(asdict(incident), default=str)


def _unpacked(told: bytes) -> Incident:
    """Raises TypeError, ValueError, KeyError."""
    values: dict[str, Any] = json.loads(told)
    times = {name: datetime.fromisoformat(value) for name, value in values.items() if name.endswith("_at") and value}
    return Incident(**{**values, **times, "id": UUID(values["id"])})
