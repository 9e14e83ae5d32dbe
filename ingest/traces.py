"""The receiver's part of a delivery's trace: when it came, and how it was kept. Knows no HTTP and no disk.

Stands between the hook and the keeper where traces are on, and is not there where they are off.
"""

from __future__ import annotations

import time
from uuid import UUID

from ingest.waiting import Keeps, NotDurable, Row, Then
from schemas.spans import COMMIT, Attributes, Spans
from schemas.tracing import spans


def traced(keeper: Keeps) -> Keeps:
    """The keeper, with its part of the traces where somebody collects them."""
    collected = spans("receiver")
    return keeper if collected is None else Traced(keeper, collected)


class Traced(Keeps):
    """A keeper that tells of each request when it came and when it was kept."""

    def __init__(self, keeper: Keeps, collected: Spans) -> None:
        self._keeper = keeper
        self._spans = collected

    def take(self, row: Row, then: Then) -> None:
        began = time.time_ns()

        def tell(fate: str | NotDurable) -> None:
            then(fate)
            if isinstance(fate, NotDurable):
                self._tell(row, began, {}, "not-durable")
            else:
                self._tell(row, began, {"reservoir.kept": fate}, None)

        self._keeper.take(row, tell)

    def _tell(self, row: Row, began: int, about: dict[str, str], failure: str | None) -> None:
        ended, identity = time.time_ns(), UUID(row.id)
        _, endpoint, method, microseconds = row.packed[: row.packed.index(b"\r\n")].decode("latin-1").split(" ")
        whose = {"reservoir.endpoint": endpoint, "reservoir.provider": row.queue}
        came: Attributes = {**whose, "http.request.method": method, "http.request.body.size": _size(row)}
        self._spans.receipt(identity, int(microseconds) * 1000, ended, came, failure)
        self._spans.step(COMMIT, identity, began, ended, about, failure)


def _size(row: Row) -> int:
    """Bytes of the body."""
    return len(row.packed) - row.packed.index(b"\r\n\r\n") - 4
