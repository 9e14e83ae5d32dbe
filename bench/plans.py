"""How PostgreSQL goes about the statements of the code that runs inside: EXPLAIN for each of them, just before it runs.

Nothing is copied: whoever changes a statement sees its plan change. A statement is explained twice. With the values
that it is given it is also executed, and undone by a savepoint; without them, as PostgreSQL may come to plan it when
the same connection has run it often enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Engine, event

_PLANNED: Final = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b", re.IGNORECASE)
_VALUE: Final = re.compile(r"%\((\w+)\)s")
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")
_SHOWN: Final = 60
"""Characters of a value that are shown at most."""
_PLANNING: Final = 10.0
"""About what PostgreSQL adds to a plan with values for having to make it each time (`choose_custom_plan`)."""


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

    @property
    def may_be_generic(self) -> bool:
        """PostgreSQL goes over to the plan without values only where that is expected to cost less."""
        return bool(self.generic["Total Cost"] < self.plan["Total Cost"] + _PLANNING)


def scans(plan: Mapping[str, Any]) -> set[str]:
    """The tables that a plan reads from end to end."""
    below = (scans(node) for node in plan.get("Plans", ()))
    own = {str(plan["Relation Name"])} if plan["Node Type"] == "Seq Scan" else set()
    return own.union(*below)


@contextmanager
def explained(engine: Engine) -> Iterator[list[Explained]]:
    """The statements that run inside through this engine, in their order."""
    seen: list[Explained] = []

    def look(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if _PLANNED.match(statement):
            seen.append(_explain(connection.connection.driver_connection, statement, parameters))

    event.listen(engine, "before_cursor_execute", look)
    try:
        yield seen
    finally:
        event.remove(engine, "before_cursor_execute", look)


def _explain(connection: Any, statement: str, parameters: Any) -> Explained:
    def ask(how: str, statement: str, parameters: Any = None) -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SAVEPOINT explained")
            rows = cursor.execute(f"EXPLAIN ({how}) {statement}", parameters, prepare=False).fetchall()
            cursor.execute("ROLLBACK TO SAVEPOINT explained")
        return rows

    ((plan,),) = ask("ANALYZE, BUFFERS, FORMAT JSON", statement, parameters)
    ((generic,),) = ask("GENERIC_PLAN, FORMAT JSON", _numbered(statement))
    text = "\n".join(line for (line,) in ask("ANALYZE, BUFFERS", statement, parameters))
    return Explained(
        statement=statement,
        plan=plan[0]["Plan"],
        generic=generic[0]["Plan"],
        text=_LITERAL.sub(lambda found: found[0] if len(found[0]) <= _SHOWN else "'…'", text),
    )


def _numbered(statement: str) -> str:
    """The statement with $1, $2 … in place of its values, as the driver hands it to the server."""
    numbers: dict[str, int] = {}
    numbered = _VALUE.sub(lambda found: f"${numbers.setdefault(found[1], len(numbers) + 1)}", statement)
    return numbered.replace("%%", "%")
