"""Statements on their way to PostgreSQL: written with SQLAlchemy, rendered once, sent by psycopg.

SQLAlchemy's own way of executing costs more than most of our statements cost PostgreSQL (docs/performance.md), and each
of them waits for the one before. Here what is sent goes out when somebody reads a result: so several statements share
one round trip, and still run one after the other, each in sight of what was committed when its turn came.

`_Gathering` reaches into psycopg's pipeline; tests/test_statements.py counts what goes over the wire.

Knows no table. What an error means is `workers.database`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

import psycopg
from psycopg.abc import PQGen
from psycopg.rows import RowFactory, RowMaker, namedtuple_row
from sqlalchemy import ARRAY, Connection, Engine, Uuid
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.sql import ClauseElement
from sqlalchemy.types import TypeEngine

from workers.errors import DeliveryError

T = TypeVar("T")

Result = Iterable[Any]
"""Rows with their columns as attributes. Reading it waits for it, and for all that was sent before it."""

_DIALECT: Final = PGDialect_psycopg()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Asked:
    """A statement with its values."""

    text: str
    values: Mapping[str, Any]
    named: RowFactory[Any] = namedtuple_row
    """What makes its rows."""


onlookers: Final[list[Callable[[psycopg.Connection[Any], Asked], None]]] = []
"""Who wants to see each statement just before it is sent through a pipeline: EXPLAIN, and tests. In life nobody."""

BEGIN: Final = b"BEGIN"
COMMIT: Final = b"COMMIT"


class Statement:
    """A statement, rendered once. Calling it gives it its values, by name."""

    def __init__(self, written: ClauseElement) -> None:
        compiled = written.compile(dialect=_DIALECT)
        wanted = {name for name, bind in compiled.binds.items() if bind.required}  # type: ignore[attr-defined]
        self.text: Final = str(compiled)
        self._fixed: Final = {name: value for name, value in compiled.params.items() if name not in wanted}
        self._ids: Final = [name for name in wanted if _is_list_of_ids(compiled.binds[name].type)]  # type: ignore[attr-defined]
        self._rows: RowMaker[Any] | None = None

    def __call__(self, **values: Any) -> Asked:
        for name in self._ids:  # psycopg would look at each of them three times
            values[name] = f"{{{','.join(map(str, values[name]))}}}"
        return Asked(self.text, {**self._fixed, **values}, self._named)

    def _named(self, cursor: psycopg.Cursor[Any]) -> RowMaker[Any]:
        """The columns have the same names each time."""
        if self._rows is None:
            self._rows = namedtuple_row(cursor)
        return self._rows


def _is_list_of_ids(kind: TypeEngine[Any]) -> bool:
    return isinstance(kind, ARRAY) and isinstance(kind.item_type, Uuid)


class Session(Protocol):
    """A transaction that somebody has begun."""

    def send(self, asked: Asked) -> Result:
        """Sends it, if need be together with what else is sent before a result is read. An error of it may show only
        then, or at the end of the transaction."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """In a transaction of SQLAlchemy's, with its errors; each statement is sent at once."""

    connection: Connection

    def send(self, asked: Asked) -> Result:
        return self.connection.exec_driver_sql(asked.text, dict(asked.values))


@dataclass(frozen=True, slots=True)
class Piped:
    """On a connection of psycopg's, with its errors; in its pipeline, if it has been opened."""

    connection: psycopg.Connection[Any]

    def send(self, asked: Asked) -> _Rows:
        for look in onlookers:
            look(self.connection, asked)
        return _Rows(self.connection.cursor(row_factory=asked.named).execute(asked.text, asked.values))


@dataclass(frozen=True, slots=True)
class _Rows:
    """A result that is read all at once: row by row psycopg asks its pipeline for each of them."""

    cursor: psycopg.Cursor[Any]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.cursor.fetchall())


class _Gathering(psycopg.Pipeline):
    """psycopg by itself gives each statement of a pipeline to the network as soon as it has it, and the server takes it
    up alone. Here they gather in libpq's buffer, which leaves when a result is wanted, or at the end."""

    def say(self, word: bytes) -> None:
        """A command without values and rows."""
        self.command_queue.append(partial(self.pgconn.send_query_params, word, None))
        self.result_queue.append(None)

    def _communicate_gen(self) -> PQGen[None]:
        while self.command_queue:
            self.command_queue.popleft()()
        yield from ()


@contextmanager
def _gathering(connection: psycopg.Connection[Any]) -> Iterator[_Gathering]:
    pipeline = connection._pipeline = _Gathering(connection)
    try:
        with pipeline:
            yield pipeline
    finally:
        connection._pipeline = None


def transaction(engine: Engine, work: Callable[[Session], T]) -> T:
    """Does it in one transaction; on a second connection where the first turned out to be dead, as all connections of
    a pool are after PostgreSQL was restarted. Raises what psycopg and SQLAlchemy's pool raise."""

    def done(connection: psycopg.Connection[Any]) -> T:
        with _gathering(connection) as pipeline, _broken_off(connection):
            pipeline.say(BEGIN)
            result = work(Piped(connection))
            pipeline.say(COMMIT)
        return result

    return _once_more(engine, done)


@contextmanager
def _broken_off(connection: psycopg.Connection[Any]) -> Iterator[None]:
    """What comes from neither the database nor the tree of our errors, such as a task's time limit, may have come in
    the middle of an answer: nobody waits for the rest of it."""
    try:
        yield
    except (psycopg.Error, DeliveryError):
        raise
    except BaseException:
        connection.close()
        raise


def alone(engine: Engine, asked: Asked) -> list[Any]:
    """The rows of one statement, if it has any, which is a transaction by itself; otherwise as `transaction`."""

    def done(connection: psycopg.Connection[Any]) -> list[Any]:
        rows = Piped(connection).send(asked)
        return list(rows) if rows.cursor.description else []

    return _once_more(engine, done)


def _once_more(engine: Engine, work: Callable[[psycopg.Connection[Any]], T]) -> T:
    with _held(engine) as connection:
        try:
            return work(connection)
        except psycopg.errors.FeatureNotSupported:
            connection.close()  # its plans are from before a migration, and it would keep them
        except psycopg.Error:
            if not connection.closed:
                raise
    with _held(engine) as connection:
        return work(connection)


@contextmanager
def _held(engine: Engine) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the pool that begins nothing by itself. One that died does not go back, and neither do those
    that are as old as it: they most likely died with it."""
    held = engine.raw_connection()
    connection = cast("psycopg.Connection[Any]", held.driver_connection)
    well = False
    try:
        connection.autocommit = True
        yield connection
    finally:
        try:
            well = _given_back(connection)
        finally:
            if well:
                held.close()
            else:
                held.invalidate()
                engine.dispose()


def _given_back(connection: psycopg.Connection[Any]) -> bool:
    """Whether it is as the pool knows it."""
    with suppress(psycopg.Error):
        connection.rollback()
        connection.autocommit = False
        return True
    return False
