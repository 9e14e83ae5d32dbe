"""How a process reaches PostgreSQL, and what an error of it means. Knows no table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.pq import PGconn, Ping
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.engine.url import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from workers.errors import DatabaseTrouble, DeliveryError, OurFault

NO_ANSWER: Final = 15.0
"""Seconds after which a worker takes the server for hung. What the server itself gives up on comes first: of the
statements that share a round trip three may have to wait for a lock."""
PASSING: Final = (psycopg.OperationalError, psycopg.InterfaceError, psycopg.InternalError)
"""Connections, locks, deadlocks, shutdowns, a full disk, a transaction that another error ended."""
STEADY: Final = " ".join(
    f"-c {setting}"
    for setting in (
        "enable_seqscan=off",
        "enable_hashjoin=off",
        "enable_mergejoin=off",
        "plan_cache_mode=force_generic_plan",
    )
)
"""How a worker's statements are planned: once for a connection, whatever their values; and from row to row by an index,
as is right for a few rows of a large table. When such a plan is made the table may still be empty."""
SEEN_GONE: Final = "-c client_connection_check_interval=500ms"
"""A worker that was killed, or broke off in the middle of an answer, is missed by the server while its statement still
runs, where its machine can still say that it is gone: it rolls back, and whoever waits for those rows goes on. Without
it they would stay locked for a statement's whole patience, which is also that of whoever waits. A server on Windows has
no such setting."""
BEHIND: Final = frozenset({"42P01", "42703"})
"""A table or a column that is not there: the migration has not run yet."""


def sqlalchemy_url(url: str) -> URL:
    """A libpq URL (`postgres://`, `postgresql://`) as SQLAlchemy wants it, with psycopg as the driver."""
    parsed = make_url(url)
    return parsed.set(drivername="postgresql+psycopg")


def engine(url: str, *, pool_size: int = 2, patience: str = "30s", pre_ping: bool = True, more: str = "") -> Engine:
    """An engine for one process; every session speaks UTC, and gives up on a statement after `patience`.

    `more`: further options of its sessions, as libpq has them.
    """
    return create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        pool_pre_ping=pre_ping,
        hide_parameters=True,  # they hold guests' data, and errors are logged
        connect_args={
            "connect_timeout": 5,
            "options": f"-c timezone=UTC -c statement_timeout={patience} -c lock_timeout=10s {more}",
        },
    )


def workers_engine(url: str) -> Engine:
    """An engine for a worker: a server that hangs does not hold it, and a dead connection shows where it is used.

    Whoever writes through it tries once more on a disconnect; that costs less than a ping before each transaction.
    """
    made = engine(url, pool_size=6, patience="4500ms", pre_ping=False, more=f"{STEADY} {SEEN_GONE}")

    @event.listens_for(made, "do_connect")
    def connect(dialect: Any, record: Any, args: Any, parameters: dict[str, Any]) -> psycopg.Connection[Any]:
        return _Impatient.connect(*args, **parameters)

    return made


class _Impatient(psycopg.Connection[Any]):
    """Waits for the server only so long. A server's own timeouts are worth nothing when it hangs."""

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        try:
            return super().wait(gen, interval, timeout=NO_ANSWER if timeout is None else timeout)
        except psycopg.errors._WaitTimeout:
            self.pgconn.finish()  # whatever comes now belongs to nobody
            raise psycopg.OperationalError(f"the server did not answer for {NO_ANSWER:g} s") from None


def reachable(engine: Engine) -> bool:
    """Whether PostgreSQL takes connections: within a second, without a session, and also where the server hangs."""
    _, parameters = engine.dialect.create_connect_args(engine.url)
    parameters.pop("context", None)  # psycopg's own
    conninfo = make_conninfo(**{**parameters, "connect_timeout": 1})
    return PGconn.ping(conninfo.encode()) == Ping.OK


@contextmanager
def told() -> Iterator[None]:
    """An error of the database leaves it as what it means for a delivery."""
    try:
        yield
    except (psycopg.Error, SQLAlchemyError) as error:
        raise trouble(error) from None


def trouble(error: SQLAlchemyError | psycopg.Error) -> DeliveryError:
    """What an error of the database means for a delivery: it comes back, or our own code is at fault.

    Only the error's class is told: its text quotes the values of the row.
    """
    if isinstance(error, PoolTimeout):
        return DatabaseTrouble("postgres: no connection was free")
    found = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(found, psycopg.Error):
        return OurFault(f"sqlalchemy: {type(found).__name__}")
    said = f"postgres: {type(found).__name__}"
    lost = isinstance(error, DBAPIError) and error.connection_invalidated
    passing = lost or isinstance(found, PASSING) or found.sqlstate in BEHIND
    return DatabaseTrouble(said) if passing else OurFault(said)
