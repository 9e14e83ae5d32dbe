"""One trace for each delivery, from its receipt to its row: the names of its spans, and their ids.

Ids follow from the delivery's id, which receiver and workers both know: its 128 bits are the trace's id, the lower 64
that of the first span. So nothing travels with the request, and who has a delivery's id finds its trace (without the
dashes). Attributes are names and codes, no URL, no body, nothing of a guest. Knows no OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol
from uuid import UUID

RECEIVE: Final = "receive"
COMMIT: Final = "commit"
LAND: Final = "land"
LOOK_UP: Final = "look up"
SAVE: Final = "save"
ACKNOWLEDGE: Final = "acknowledge"

Attributes = Mapping[str, str | int]


class Spans(Protocol):
    """Where spans go. Times are nanoseconds of Unix time; `failure` is a short code."""

    def receipt(self, delivery_id: UUID, start: int, end: int, about: Attributes, failure: str | None) -> None:
        """The first span, of which all others are children."""

    def step(
        self, name: str, delivery_id: UUID, start: int, end: int, about: Attributes, failure: str | None = None
    ) -> None:
        """What was done with a delivery."""

    def flush(self) -> None:
        """Sends what waits to be sent."""


def is_chosen(delivery_id: UUID, share: float) -> bool:
    """Whether a delivery is traced: receiver and workers agree without a word, by the random end of its id."""
    return delivery_id.int & _RANDOM < share * (_RANDOM + 1)


_RANDOM: Final = (1 << 56) - 1
"""The bits that W3C's Trace Context wants to be random; in a UUID of version 7 they are."""


def first_span(delivery_id: UUID) -> int:
    """Its id; never 0, because a UUID says in these bits of which kind it is."""
    return delivery_id.int & (1 << 64) - 1
