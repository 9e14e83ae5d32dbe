"""Statements that write many rows at once: the rows travel as one JSON document. Knows no table by name.

One parameter, one plan, one round trip, however many rows there are; PostgreSQL gives each value its column's type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    Column,
    ColumnElement,
    TableValuedAlias,
    Update,
    any_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
    update,
)
from sqlalchemy import Table as SqlTable
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as upsert

ROWS: Final = bindparam("rows", type_=JSON())


def given(table: SqlTable, columns: Sequence[str]) -> TableValuedAlias:
    """The rows of the parameter `rows` as a table: dictionaries with these columns, as JSON has them."""
    document = func.json_populate_recordset(literal_column(f"NULL::{table.name}"), cast(ROWS, JSON()))
    return document.table_valued(*(column(name, table.c[name].type) for name in columns), name="given")


def inserted(table: SqlTable, columns: Sequence[str]) -> Insert:
    """Inserts the rows of the parameter `rows`."""
    rows = given(table, columns)
    return upsert(table).from_select(list(columns), select(*rows.c))


def updated(table: SqlTable, columns: Sequence[str]) -> Update:
    """Writes these columns into the rows that `id` names."""
    rows = given(table, ["id", *columns])
    return update(table).where(table.c.id == rows.c.id).values({name: rows.c[name] for name in columns})


def among(wanted: Column[Any]) -> ColumnElement[bool]:
    """Whether a column has one of the values in the parameter `ids`."""
    return wanted == any_(bindparam("ids", type_=ARRAY(wanted.type)))
