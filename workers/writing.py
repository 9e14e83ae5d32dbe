"""Values as JSON, for what is written by the thousand: rows on their way to PostgreSQL, events for Flower.

The counterpart of `workers.reading`. Knows no table and no event.
"""

from __future__ import annotations

import json
from typing import Any

import orjson


def as_json(value: Any) -> str:
    """By orjson; by the standard library what orjson refuses, such as whole numbers of more than 64 bits."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        return json.dumps(value)
