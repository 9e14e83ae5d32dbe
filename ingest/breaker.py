"""Whether Redis is asked at all: a state machine of two states, pure.

| state  | Redis failed, or was silent | Redis is well, its memory is not full | its memory is nearly full |
| ------ | --------------------------- | ------------------------------------- | ------------------------- |
| closed | open, with that reason      | closed                                | open, `memory`            |
| open   | open, as it was             | closed                                | open, `memory`            |

Knows no Redis, no clock and no log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MEMORY: Final = "memory"
"""The reason while Redis is well but has little room: what is left belongs to the bookkeeping of the workers."""
HIGH: Final = 0.80
LOW: Final = 0.70
"""Shares of Redis's memory: opened above the one, closed below the other."""


@dataclass(frozen=True, slots=True)
class Breaker:
    """Closed: requests go to Redis. Open: they go straight to the spool."""

    reason: str | None = None
    """Why it is open; None while it is closed."""
    since: float = 0.0

    @property
    def is_open(self) -> bool:
        return self.reason is not None

    def failed(self, reason: str, now: float) -> Breaker:
        """Redis did not take a write, or did not answer. The first reason stays."""
        return self if self.is_open else Breaker(reason, now)

    def well(self, memory: float | None, now: float) -> Breaker:
        """Redis answered, and took a write where it was asked to. `memory` is the share in use; None: without limit."""
        mark = LOW if self.reason == MEMORY else HIGH
        if memory is None or memory < mark:
            return Breaker(None, now) if self.is_open else self
        return self if self.reason == MEMORY else Breaker(MEMORY, now)
