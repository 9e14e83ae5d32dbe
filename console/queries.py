"""What the command line shows of the tables. Only reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import ColumnElement, Engine, Select, func, select

from workers.tables import bookings as _bookings
from workers.tables import deliveries as _deliveries
from workers.tables import tokens as _tokens

Row = Mapping[str, Any]

_LISTED: Final = (
    *("id", "received_at", "endpoint", "provider", "origin", "method", "message_id", "state", "reason", "error"),
    *("attempts", "next_attempt_at", "applied_at", "acknowledged_at", "replayed_at"),
)
"""Of a delivery, all but what can be large: headers, body, lookup."""
_BATCH: Final = 500


def bookings(engine: Engine, *, endpoint: str | None = None, limit: int | None = None) -> Iterator[Row]:
    """Rows of `bookings` with all their columns, in the order of the visits; those without a day stand last."""
    columns = _bookings.c
    order = columns.date.nulls_last(), columns.starts_at.nulls_last(), columns.endpoint, columns.external_id
    chosen = _equal(endpoint=(columns.endpoint, endpoint))
    return _rows(engine, select(_bookings).where(*chosen).order_by(*order).limit(limit))


def deliveries(
    engine: Engine,
    *,
    endpoint: str | None = None,
    state: str | None = None,
    reason: str | None = None,
    since: datetime | None = None,
    limit: int | None = None,
) -> Iterator[Row]:
    """Deliveries without their bodies, the newest first."""
    columns = _deliveries.c
    size = func.octet_length(columns.body).label("body_bytes")
    chosen = _equal(
        endpoint=(columns.endpoint, endpoint), state=(columns.state, state), reason=(columns.reason, reason)
    )
    if since is not None:
        chosen.append(columns.received_at >= since)
    query = select(*(columns[name] for name in _LISTED), size).where(*chosen)
    return _rows(engine, query.order_by(columns.received_at.desc(), columns.id.desc()).limit(limit))


def delivery(engine: Engine, identity: UUID) -> Row | None:
    """One delivery, whole."""
    return next(_rows(engine, select(_deliveries).where(_deliveries.c.id == identity)), None)


def kept_tokens(engine: Engine) -> set[str]:
    """The endpoints that have an OAuth token in the database."""
    return {row["endpoint"] for row in _rows(engine, select(_tokens.c.endpoint))}


def _equal(**wanted: tuple[ColumnElement[Any], str | None]) -> list[ColumnElement[bool]]:
    return [column == value for column, value in wanted.values() if value is not None]


def _rows(engine: Engine, query: Select[Any]) -> Iterator[Row]:
    """Through a server-side cursor: a table of any size needs little memory."""
    with (
        engine.connect() as connection,
        connection.execution_options(yield_per=_BATCH).execute(query) as found,  # closed also where nobody reads on
    ):
        for row in found:
            yield row._asdict()
