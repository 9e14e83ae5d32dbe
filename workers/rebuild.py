"""Computes `bookings` again: from the events, or from the raw deliveries with today's parsers. The same rows come out.

Nobody is asked again: what the providers' APIs answered stands in `deliveries.lookup`. Safe beside running workers:
a delivery is held while it is read, and a booking while it is folded. Knows no delivery's state and changes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Column, Engine

from schemas.endpoints import Config
from workers.bookings import CHANGING, refold
from workers.errors import AwaitingBooking
from workers.provider import Provider
from workers.reread import RECEIPT, Reader, batches, pages, tell_again
from workers.tables import bookings, deliveries

PAGE: Final = 500


@dataclass
class Report:
    """What a rebuild did."""

    deliveries: int = 0
    """Read again."""
    bookings: int = 0
    """Folded again."""
    changed: int = 0
    """How often a row came to show something else."""
    unread: dict[UUID, str] = field(default_factory=dict)
    """Deliveries that could not be read, or not wholly, with the reason."""


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """A rebuild of one endpoint's bookings, or of all."""

    engine: Engine
    config: Config
    providers: Mapping[str, Provider]
    endpoint: str | None = None

    def run(self, *, from_raw: bool = False) -> Report:
        """Folds the bookings again; with `from_raw` their events are read again first."""
        report = Report()
        if from_raw:
            self._read_again(report)
        for page in pages(self.engine.connect, [bookings.c.id], self._ours(bookings.c.endpoint), size=PAGE):
            for row in page:
                with self.engine.begin() as connection:
                    report.bookings += 1
                    report.changed += refold(connection, row.id)
        return report

    def _read_again(self, report: Report) -> None:
        """In order of receipt; what waits for a booking that came later is read once more at the end."""
        waiting: list[UUID] = []
        for page in pages(self.engine.connect, RECEIPT, self._ours(deliveries.c.endpoint)):
            waiting += self._write([row.id for row in page], report)
        for batch in batches(waiting):
            for delivery_id in self._write(batch, report):
                report.unread[delivery_id] = AwaitingBooking.reason

    def _write(self, ids: Sequence[UUID], report: Report) -> list[UUID]:
        """Reads deliveries again, held against their workers meanwhile; those that wait for a booking."""
        reader = Reader(config=self.config, providers=self.providers)
        with self.engine.begin() as connection:
            found = reader.read(connection, ids)
            told = tell_again(connection, found.read)
        report.deliveries += len(told.effects)
        report.changed += sum(not CHANGING.isdisjoint(effects) for effects in told.effects.values())
        report.unread |= found.unread
        report.unread |= {one.row.id: one.failures[0].reason for one in found.read if one.failures}
        return told.waiting

    def _ours(self, owner: Column[Any]) -> list[Any]:
        return [] if self.endpoint is None else [owner == self.endpoint]
