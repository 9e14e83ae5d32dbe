"""What senders have lately had from us, by endpoint: receivers write it into Redis, alarms and the console read it.

The hash `reservoir:acks` holds for each endpoint a JSON object:

- `count`, `slowest_ms`: how many deliveries were answered in the last minute before `at`, and the slowest answer;
- `failures_in_a_row`: how many of the last deliveries, one after the other, had a 503 from us; a 200 ends the row.
  Some providers switch a webhook off after a few;
- `at`: when this was written, Unix time. An endpoint to which nothing was sent lately is not written anew;
- `slots`: the minute in steps, for the next receiver that adds to it.

Knows neither how it is counted nor how it is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

ACKS: Final = "reservoir:acks"
"""The Redis hash: endpoint → the object above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Acks:
    """What one endpoint's senders have lately had from us, as far as a reader asks."""

    slowest: timedelta
    """The slowest answer of the minute before `at`."""
    failures_in_a_row: int
    """503s since the last 200."""
    at: datetime
    """When it was written (UTC)."""


def acks_of(told: Mapping[bytes, bytes]) -> dict[str, Acks]:
    """The whole hash, by endpoint. What is none of ours is left out; raises nothing."""
    found = {}
    for endpoint, said in told.items():
        with suppress(ValueError, TypeError, KeyError, OverflowError, OSError):  # the last one: a time out of range
            document: Any = json.loads(said)
            found[endpoint.decode()] = Acks(
                slowest=timedelta(milliseconds=float(document["slowest_ms"])),
                failures_in_a_row=int(document["failures_in_a_row"]),
                at=datetime.fromtimestamp(float(document["at"]), UTC),
            )
    return found
