"""When each endpoint's webhooks came in the last weeks, read from PostgreSQL and kept; and what is learned of it.

The whole of it is read at the start and every six hours; between that, what has come in the last two. So what the spool
brings late is found too, if late. Only webhooks count: what was polled or replayed says nothing about the sender.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from sqlalchemy import Connection, text

from console.alarms.rhythm import MEMORY, SLOT, Rhythm, in_hours, learn
from console.alarms.world import Heard
from schemas.endpoints import Endpoint

ALL_EVERY: Final = timedelta(hours=6)
ON_EVERY: Final = timedelta(minutes=15)
"""Also how often the rhythm is learned anew."""
BACK: Final = timedelta(hours=2)
"""Read again each time, for what landed late."""

_SIGNS: Final = text(
    "SELECT endpoint, extract(epoch FROM date_bin('5 minutes', received_at, 'epoch'))::bigint / 300 AS slot"
    " FROM deliveries WHERE origin = 'webhook' AND received_at >= :since AND endpoint = ANY(:names) GROUP BY 1, 2"
)
_LAST: Final = text(
    "SELECT name, (SELECT received_at FROM deliveries WHERE endpoint = name AND origin = 'webhook'"
    " ORDER BY received_at DESC LIMIT 1) AS last FROM unnest(CAST(:names AS text[])) AS name"
)


@dataclass
class Diary:
    """See the module."""

    endpoints: Mapping[str, Endpoint]
    _slots: dict[str, set[int]] = field(default_factory=dict)
    _rhythms: dict[str, Rhythm] = field(default_factory=dict)
    _all_at: datetime | None = None
    _on_at: datetime | None = None

    def heard(self, connection: Connection, now: datetime) -> dict[str, Heard]:
        """Every endpoint as it is now. Raises SQLAlchemyError."""
        self._read_on(connection, now)
        lasts = connection.execute(_LAST, {"names": list(self.endpoints)})
        return {
            row.name: Heard(endpoint=self.endpoints[row.name], last=row.last, rhythm=self._rhythms[row.name])
            for row in lasts
        }

    def _read_on(self, connection: Connection, now: datetime) -> None:
        if self._all_at is None or now - self._all_at >= ALL_EVERY:
            self._slots = {}
            self._read(connection, now - timedelta(hours=MEMORY))
            self._all_at = self._on_at = now
        elif self._on_at is None or now - self._on_at >= ON_EVERY:
            self._read(connection, now - BACK)
            self._on_at = now
        else:
            return
        self._rhythms = {
            name: learn([slot * SLOT for slot in sorted(self._slots.get(name, ()))], _zone(endpoint), in_hours(now))
            for name, endpoint in self.endpoints.items()
        }

    def _read(self, connection: Connection, since: datetime) -> None:
        for name, slot in connection.execute(_SIGNS, {"since": since, "names": list(self.endpoints)}):
            self._slots.setdefault(name, set()).add(slot)


def _zone(endpoint: Endpoint) -> ZoneInfo:
    return endpoint.zone() or ZoneInfo("UTC")
