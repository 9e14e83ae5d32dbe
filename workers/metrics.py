"""What a worker counts, as a line for whoever counts it. Knows no queue, no table and no HTTP.

Each child of a worker counts for itself, from its first count on, and its counts are written down after each task.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache

from schemas.meters import Meters, meters
from schemas.metrics import CIRCUIT_OPENINGS, LAG, LOOKUP, RETRIES, SETTLED

NO_ANSWER = "none"
"""In place of a status."""


@cache
def _ours() -> Meters:
    return meters("worker")


os.register_at_fork(after_in_child=_ours.cache_clear)


def settled(endpoint: str, state: str, reason: str | None) -> None:
    """A delivery reached a final state."""
    _ours().add(SETTLED, (endpoint, state, reason or ""))


def applied(endpoint: str, lag: timedelta) -> None:
    """Rows changed, so long after the receipt."""
    _ours().observe(LAG, (endpoint,), lag.total_seconds())


def retried(endpoint: str, reason: str | None) -> None:
    """Another attempt will follow."""
    _ours().add(RETRIES, (endpoint, reason or ""))


def asked(provider: str, status: int | str, seconds: float) -> None:
    """A provider's API was asked, and answered with this status, or not at all."""
    _ours().observe(LOOKUP, (provider, str(status)), seconds)


def circuit_opened(endpoint: str) -> None:
    """Nobody asks this endpoint's API for a while."""
    _ours().add(CIRCUIT_OPENINGS, (endpoint,))


def write() -> None:
    """Makes known what was counted."""
    _ours().write()
