"""Values as JSON, for what is written by the thousand: rows on their way to PostgreSQL, events for Flower.

The counterpart of `workers.reading`. Knows no table and no event.
"""

from __future__ import annotations

import json
from datetime import date
from decimal import Decimal
from typing import Any
from uuid import UUID

import orjson


def as_json(value: Any) -> str:
    """By orjson, which knows ids, days and instants; by the standard library what orjson refuses, such as whole numbers
    of more than 64 bits."""
    try:
        return orjson.dumps(value, _plain).decode()
    except TypeError:
        return json.dumps(value, default=_plain)


def _plain(value: Any) -> str:
    """Money as decimal text, days and instants as ISO 8601. Raises TypeError."""
    match value:
        case Decimal():
            return format(value, "f")
        case UUID():
            return str(value)
        case date():
            return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
