"""How PostgreSQL goes about the statements of the code that runs inside: EXPLAIN for each of them, just before it runs.

Nothing is copied: whoever changes a statement sees its plan change. A statement is explained twice. With the values
that it is given it is also executed, and undone by a savepoint; without them, as a worker's connection keeps it for all
values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg.pq import PipelineStatus
from sqlalchemy import Engine, event

from workers.statements import Asked, onlookers

_PLANNED: Final = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", re.IGNORECASE)
_VALUE: Final = re.compile(r"%\((\w+)\)s")
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")
_SHOWN: Final = 60
"""Characters of a value that are shown at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """One statement of some work."""

    statement: str
    plan: Mapping[str, Any]
    """With its values: the node at the top, as EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) has it."""
    generic: Mapping[str, Any]
    """Without them."""
    text: str
    """The plan with its values, for a person; long values are left out."""

    @property
    def buffers(self) -> int:
        """Pages that were looked at, in memory or on the disk."""
        return int(self.plan["Shared Hit Blocks"] + self.plan["Shared Read Blocks"])


def scans(plan: Mapping[str, Any]) -> set[str]:
    """The tables that a plan reads from end to end."""
    below = (scans(node) for node in plan.get("Plans", ()))
    own = {str(plan["Relation Name"])} if plan["Node Type"] == "Seq Scan" else set()
    return own.union(*below)


def indexes(plan: Mapping[str, Any]) -> set[str]:
    """The indexes that a plan goes by."""
    below = (indexes(node) for node in plan.get("Plans", ()))
    own = {str(plan["Index Name"])} if "Index Name" in plan else set()
    return own.union(*below)


@contextmanager
def explained(engine: Engine) -> Iterator[list[Explained]]:
    """The statements that run inside through this engine, in their order."""
    seen: list[Explained] = []

    with watched(engine) as look:
        look.append(lambda *asked: seen.append(_explain(engine, *asked)))
        yield seen


Look = Callable[["psycopg.Connection[Any]", str, Any], None]
"""Is told a connection, a statement and its values, just before it runs."""


@contextmanager
def watched(engine: Engine) -> Iterator[list[Look]]:
    """Whoever is in this list looks on: at what SQLAlchemy sends through this engine, and at our own pipelines."""
    looks: list[Look] = []

    def each(connection: psycopg.Connection[Any], statement: str, parameters: Any) -> None:
        for look in looks if _PLANNED.match(statement) else ():
            look(connection, statement, parameters)

    def by_sqlalchemy(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        each(connection.connection.dbapi_connection, statement, parameters)

    def by_us(connection: psycopg.Connection[Any], asked: Asked) -> None:
        each(connection, asked.text, asked.values)

    event.listen(engine, "before_cursor_execute", by_sqlalchemy)
    onlookers.append(by_us)
    try:
        yield looks
    finally:
        onlookers.remove(by_us)
        event.remove(engine, "before_cursor_execute", by_sqlalchemy)


def _explain(engine: Engine, connection: psycopg.Connection[Any], statement: str, parameters: Any) -> Explained:
    alone = connection.autocommit and connection.pgconn.pipeline_status == PipelineStatus.OFF
    first, last = ("BEGIN", "ROLLBACK") if alone else ("SAVEPOINT explained", "ROLLBACK TO SAVEPOINT explained")

    def ask(how: str) -> Any:
        connection.execute(first)
        connection.execute("SET LOCAL plan_cache_mode = force_custom_plan")
        rows = connection.execute(f"EXPLAIN ({how}) {statement}", parameters, prepare=False).fetchall()
        connection.execute(last)
        return rows

    ((plan,),) = ask("ANALYZE, BUFFERS, FORMAT JSON")
    ((generic,),) = _generic(engine, statement)
    text = "\n".join(line for (line,) in ask("ANALYZE, BUFFERS"))
    return Explained(
        statement=statement,
        plan=plan[0]["Plan"],
        generic=generic[0]["Plan"],
        text=_LITERAL.sub(lambda found: found[0] if len(found[0]) <= _SHOWN else "'…'", text),
    )


def _generic(engine: Engine, statement: str) -> Any:
    """On a connection of its own: a pipeline wants a value for each number."""
    held = engine.raw_connection()
    try:
        cursor = held.cursor()
        cursor.execute(f"EXPLAIN (GENERIC_PLAN, FORMAT JSON) {_numbered(statement)}")
        return cursor.fetchall()
    finally:
        held.close()


def _numbered(statement: str) -> str:
    """The statement with $1, $2 … in place of its values, as the driver hands it to the server."""
    numbers: dict[str, int] = {}
    numbered = _VALUE.sub(lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}", statement)
    return numbered.replace("%%", "%")
