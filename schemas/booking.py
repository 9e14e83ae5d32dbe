"""A booking in our words: its statuses, its columns, and how a value travels through JSON.

Knows no provider's words and no database.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final


class Status(StrEnum):
    """The six words of ours that every provider's words are mapped to."""

    HOLD = "hold"
    """The slot is blocked while somebody is at a checkout; it ends by itself within minutes."""
    PENDING = "pending"
    """Asked for or set aside; something is outstanding (payment, approval, a waiting list)."""
    CONFIRMED = "confirmed"
    """Will take place as far as the provider is concerned."""
    COMPLETED = "completed"
    """The provider says that it is over."""
    CANCELLED = "cancelled"
    """Will not take place, whoever ended it and however."""
    UNKNOWN = "unknown"
    """A word that we cannot place, or none; the row is kept and shows `provider_status`."""


COLUMNS: Final[Mapping[str, type]] = {
    "reference": str,
    "status": Status,
    "provider_status": str,
    "date": date,
    "starts_at": datetime,
    "ends_at": datetime,
    "timezone": str,
    "resource_id": str,
    "resource_name": str,
    "party_size": int,
    "quantity": int,
    "items": list,
    "customer_id": str,
    "customer_name": str,
    "customer_email": str,
    "customer_phone": str,
    "currency": str,
    "total": Decimal,
    "paid": Decimal,
    "note": str,
    "source": str,
    "cancel_reason": str,
    "details": dict,
    "provider_created_at": datetime,
    "provider_updated_at": datetime,
}
"""The columns of `bookings` that an event can speak of, with the type of a value that is not null."""


def check(said: Mapping[str, Any]) -> None:
    """Raises TypeError or ValueError, naming the column, where a value is not of its column's type."""
    for column, value in said.items():
        kind = COLUMNS.get(column)
        if kind is None:
            raise ValueError(f"{column} is no column of bookings")
        if value is None:
            if column in ("status", "items", "details"):
                raise ValueError(f"{column} cannot be null")
            continue
        right = type(value) is kind or (kind not in (int, date) and isinstance(value, kind))
        if not right:
            raise TypeError(f"{column} takes {kind.__name__}, not {type(value).__name__}")
        if kind is datetime and value.utcoffset() is None:
            raise ValueError(f"{column} needs a time zone")


def to_json(said: Mapping[str, Any]) -> dict[str, Any]:
    """Values as JSON has them: instants in UTC as ISO 8601, days as ISO 8601, money as decimal text."""
    return {column: change(value) if (change := _PLAIN.get(type(value))) else value for column, value in said.items()}


def from_json(said: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `to_json`."""
    return {column: _typed(column, value) for column, value in said.items()}


def as_kept(said: Mapping[str, Any]) -> dict[str, Any]:
    """Values as they come back from where they are kept, without the way there: what `from_json` makes of `to_json`."""
    return {column: change(value) if (change := _KEPT.get(type(value))) else value for column, value in said.items()}


@lru_cache(maxsize=1024)  # an instant is told of again and again: in the lines of a booking, in lists of them
def iso(instant: datetime) -> str:
    """An instant in UTC as ISO 8601."""
    return instant.isoformat()


def _plain(value: Any) -> Any:
    change = _PLAIN.get(type(value))
    return value if change is None else change(value)


_PLAIN: Final[Mapping[type, Callable[[Any], Any]]] = {
    datetime: lambda value: iso(value.astimezone(UTC)),
    date: lambda value: value.isoformat(),
    Decimal: lambda value: format(value, "f"),
    dict: to_json,
    list: lambda value: [_plain(inner) for inner in value],
    tuple: lambda value: [_plain(inner) for inner in value],
}
"""By the exact type; what is not here is in JSON what it is."""

_KEPT: Final[Mapping[type, Callable[[Any], Any]]] = {
    datetime: lambda value: value.astimezone(UTC),
    **{kind: _PLAIN[kind] for kind in (dict, list, tuple)},
}


def _typed(column: str, value: Any) -> Any:
    read = None if value is None else _TYPED[COLUMNS[column]]
    return value if read is None else read(value)


_TYPED: Final[Mapping[type, Callable[[Any], Any] | None]] = {
    **dict.fromkeys(COLUMNS.values()),
    datetime: datetime.fromisoformat,
    date: date.fromisoformat,
    Decimal: Decimal,
    Status: Status,
}
"""By the column's type; None where it is in JSON what it is."""
