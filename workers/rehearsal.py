"""A stage on which statements about bookings can be tried: they run as they are, and nothing real is written or locked.

In one snapshot of the database, temporary tables take the names of `bookings`, `booking_events` and `booking_changes`;
whoever writes to those names writes to copies. Rows are copied as they are needed. The transaction is read-only as soon
as the stage stands, so PostgreSQL itself refuses a write to anything real, and it is rolled back at the end.

Knows the tables by name, and nothing of what is tried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Connection, Engine, TableClause, Uuid, bindparam, column, table, text
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects.postgresql import ARRAY

from workers.tables import bookings, changes, events

PLAYED: Final = (bookings, events, changes)
FIRST_ID: Final = 2**62
"""Of the rows that are made on the stage: no real one has come so far."""


def _real(played: SqlTable) -> TableClause:
    """What the table behind a copy is called meanwhile."""
    return table(f"real_{played.name}", *(column(each.name, each.type) for each in played.c))


REAL_BOOKINGS: Final = _real(bookings)
REAL_EVENTS: Final = _real(events)

SCENE: Final = (
    *(f"CREATE TEMP VIEW real_{played.name} AS TABLE {played.name}" for played in PLAYED),
    *(f"CREATE TEMP TABLE {played.name} (LIKE {played.name} INCLUDING ALL)" for played in PLAYED),
    *(f"ALTER TABLE {played.name} ALTER COLUMN id RESTART WITH {FIRST_ID}" for played in (events, changes)),
    "SET TRANSACTION READ ONLY",
)
_IDS: Final = bindparam("ids", type_=ARRAY(Uuid()))
COPY: Final = tuple(
    text(
        f"INSERT INTO {played.name} OVERRIDING SYSTEM VALUE "  # noqa: S608  (names of ours)
        f"SELECT * FROM real_{played.name} WHERE {owner} = ANY(:ids)"
    ).bindparams(_IDS)
    for played, owner in ((bookings, "id"), (events, "booking_id"))
)


@dataclass(frozen=True)
class Stage:
    """Where it is played."""

    connection: Connection
    _there: set[UUID] = field(default_factory=set)

    def bring(self, identities: Collection[UUID]) -> None:
        """Copies these bookings with all their events, where they are not on the stage yet."""
        missing = sorted(set(identities) - self._there)
        if not missing:
            return
        for statement in COPY:
            self.connection.execute(statement, {"ids": missing})
        self._there.update(missing)


@contextmanager
def rehearsal(engine: Engine) -> Iterator[Stage]:
    """The stage, for as long as the context lasts."""
    with engine.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        _unprepared(connection)
        connection.detach()  # nobody else shall meet a connection on which names meant something else
        with connection.begin() as transaction:
            for statement in SCENE:
                connection.execute(text(statement))
            try:
                yield Stage(connection)
            finally:
                transaction.rollback()


def _unprepared(connection: Connection) -> None:
    """A statement that was prepared before would go on to mean the real tables."""
    driver: Any = connection.connection.driver_connection
    driver.prepare_threshold = None
