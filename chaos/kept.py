"""What the installation has kept, read from its tables: rows of `deliveries` by the request that each holds."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import psycopg
import redis

from chaos.books import Kept
from chaos.ground import Ground
from schemas.delivery import INBOX, OPEN

_ROWS: Final = """
    SELECT id::text, state, reason, attempts, error,
           jsonb_path_query_first(headers, 'strict $[*] ? (@[0] == "x-request-id")[1]') #>> '{}'
    FROM deliveries
"""
_COUNTS: Final = """
    SELECT count(*), count(*) FILTER (WHERE state = ANY(%s)), count(*) FILTER (WHERE acknowledge_at IS NOT NULL)
    FROM deliveries
"""


def kept(ground: Ground) -> list[Kept]:
    """Every row. Raises psycopg.Error."""
    with ground.database() as connection:
        return [
            Kept(id=identity, request=request or "", state=state, reason=reason, attempts=attempts, error=error)
            for identity, state, reason, attempts, error, request in connection.execute(_ROWS)
        ]


@dataclass(frozen=True)
class Standing:
    """How far the work has come; None where nobody could be asked."""

    rows: int | None = None
    open: int | None = None
    untold: int | None = None
    """Providers that are still to be told that a delivery is safe."""
    inbox: int | None = None

    @property
    def settled(self) -> bool:
        return (self.open, self.untold, self.inbox) == (0, 0, 0)

    def __str__(self) -> str:
        rows, waiting, inbox = ("?" if number is None else number for number in (self.rows, self.open, self.inbox))
        return f"stored={rows} open={waiting} inbox={inbox}"


def standing(ground: Ground) -> Standing:
    """One question to each server; a server that is away leaves a gap."""
    rows = waiting = untold = inbox = None
    with suppress(psycopg.Error), ground.database() as connection:
        connection.execute("SET statement_timeout = '5s'")
        rows, waiting, untold = connection.execute(_COUNTS, [sorted(OPEN)]).fetchone() or (None, None, None)
    with suppress(redis.RedisError, OSError), ground.redis() as client:
        inbox = int(client.hlen(INBOX))
    return Standing(rows, waiting, untold, inbox)
