"""How a process reaches PostgreSQL. Knows no table."""

from __future__ import annotations

from sqlalchemy import Engine, create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.engine.url import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from workers.errors import DatabaseTrouble, DeliveryError, OurFault


def sqlalchemy_url(url: str) -> URL:
    """A libpq URL (`postgres://`, `postgresql://`) as SQLAlchemy wants it, with psycopg as the driver."""
    parsed = make_url(url)
    return parsed.set(drivername="postgresql+psycopg")


def engine(url: str, *, pool_size: int = 2, patience: str = "30s") -> Engine:
    """An engine for one process; every session speaks UTC, and gives up on a statement after `patience`."""
    return create_engine(
        sqlalchemy_url(url),
        pool_size=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,  # they hold guests' data, and errors are logged
        connect_args={
            "connect_timeout": 5,
            "options": f"-c timezone=UTC -c statement_timeout={patience} -c lock_timeout=10s",
        },
    )


def trouble(error: DBAPIError) -> DeliveryError:
    """What an error of the database means for a delivery: it comes back, or our own code is at fault.

    Only the error's class is told: its text quotes the values of the row.
    """
    name = type(error.orig).__name__
    if isinstance(error, OperationalError) or error.connection_invalidated:
        return DatabaseTrouble(f"postgres: {name}")
    return OurFault(f"postgres: {name}")
