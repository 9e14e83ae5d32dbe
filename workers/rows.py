"""Statements about many rows at once: what is written travels as one JSON document. Knows no table by name.

One parameter, one plan, one round trip, however many rows there are; PostgreSQL gives each value its column's type.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    ColumnElement,
    Select,
    TableValuedAlias,
    Update,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal,
    literal_column,
    select,
    true,
    update,
)
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.types import TypeEngine

ROWS: Final = "rows"


def given(table: SqlTable, columns: Sequence[str], rows: str = ROWS) -> TableValuedAlias:
    """The rows of the parameter `rows` as a table: dictionaries with these columns, as JSON has them."""
    given = cast(bindparam(rows, type_=JSON()), JSON())
    document = func.json_populate_recordset(literal_column(f"NULL::{table.name}"), given)
    return document.table_valued(*(column(name, table.c[name].type) for name in columns), name="given")


def inserted(table: SqlTable, columns: Sequence[str], rows: str = ROWS) -> Insert:
    """Inserts the rows of the parameter `rows`."""
    found = given(table, columns, rows)
    return upsert(table).from_select(list(columns), select(*found.c))


def updated(table: SqlTable, columns: Sequence[str], rows: str = ROWS) -> Update:
    """Writes these columns into the rows that `id` names."""
    found = given(table, ["id", *columns], rows)
    return update(table).where(table.c.id == found.c.id).values({name: found.c[name] for name in columns})


def among(wanted: Column[Any]) -> ColumnElement[bool]:
    """Whether a column has one of the values in the parameter `ids`."""
    return wanted == any_(bindparam("ids", type_=ARRAY(wanted.type)))


def one_of(column: Column[Any], words: Iterable[str]) -> ColumnElement[bool]:
    """Whether a column has one of these words."""
    return column == any_(literal([str(word) for word in sorted(words)], ARRAY(column.type)))


def sought(name: str, **columns: TypeEngine[Any]) -> TableValuedAlias:
    """What is looked for as a table: a column each from the parameters `<name>_<column>`, lists of the same length.

    Of a list PostgreSQL expects few rows, and goes for an index; of a JSON document it would expect a hundred.
    """
    lists = [bindparam(f"{name}_{each}", type_=ARRAY(kind)) for each, kind in columns.items()]
    table = func.unnest(*lists).table_valued(*(column(each, kind) for each, kind in columns.items()))
    return table.render_derived(name=name)


def newest(columns: Select[Any], owner: Column[Any], order: Sequence[ColumnElement[Any]]) -> Select[Any]:
    """Of the last row in this order of each owner in the parameter `ids` these columns: as many rows are read, where an
    index has the owners and the order."""
    ids = func.unnest(bindparam("ids", type_=ARRAY(owner.type)))
    one = ids.table_valued(column("id", owner.type)).render_derived(name="one")
    last = columns.where(owner == one.c.id).order_by(*(by.desc() for by in order)).limit(literal_column("1"))
    newest = last.lateral("newest")
    return select(newest).select_from(one).join(newest, true())
