"""Computes `bookings` again: from the events, or from the raw deliveries with today's parsers. The same rows come out.

Nobody is asked again: what the providers' APIs answered stands in `deliveries.lookup`. Safe beside running workers:
a delivery is held while it is read, and a booking while it is folded. Knows no delivery's state and changes none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

from sqlalchemy import Engine, select, tuple_
from sqlalchemy import Row as SqlRow

from schemas.delivery import State
from schemas.endpoints import Config
from workers.bookings import CHANGING, refold, write_events
from workers.errors import AwaitingBooking, BadSignature, DeliveryError, UnknownEndpoint
from workers.job import Job
from workers.pipeline import look_up, understand
from workers.provider import Answer, Call, Event, Failed, Incoming, Provider, Recall
from workers.store import job_of
from workers.tables import bookings, deliveries

BATCH: Final = 500


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


class NotKept(DeliveryError):
    """The answer to a lookup is not kept, and a rebuild asks nobody."""

    reason = "lookup-not-kept"


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
        for row in self._pages(bookings.c.id, bookings.c.endpoint):
            with self.engine.begin() as connection:
                report.bookings += 1
                report.changed += refold(connection, row.id)
        return report

    def _read_again(self, report: Report) -> None:
        """In order of receipt; what waits for a booking that came later is read once more at the end."""
        waiting: list[UUID] = []
        for row in self._pages(deliveries.c.received_at, deliveries.c.id, deliveries.c.endpoint):
            try:
                report.deliveries += self._write(row.id, report)
            except AwaitingBooking:
                waiting.append(row.id)
        for delivery_id in waiting:
            try:
                report.deliveries += self._write(delivery_id, report)
            except AwaitingBooking as error:
                report.unread[delivery_id] = error.reason

    def _write(self, delivery_id: UUID, report: Report) -> bool:
        """Reads one delivery again, held against its worker meanwhile; False where it is left alone."""
        with self.engine.begin() as connection:
            held = select(deliveries).where(deliveries.c.id == delivery_id).with_for_update()
            row = connection.execute(held).one()
            if row.state == State.RECEIVED:
                return False  # its worker will come
            if row.reason == BadSignature.reason:
                report.unread[delivery_id] = row.reason  # whatever today's secret says of yesterday's signature
                return False
            job = job_of(row)
            try:
                provider, said = self._said(job, report)
            except DeliveryError as error:
                report.unread[delivery_id] = error.reason
                return True
            effects = write_events(connection, job.raw, provider.name, said, parser=provider.parser)
        report.changed += not CHANGING.isdisjoint(effects)
        return True

    def _said(self, job: Job, report: Report) -> tuple[Provider, list[tuple[int, Event]]]:
        """What a delivery says today. Raises DeliveryError where it says nothing."""
        endpoint = self.config.endpoints.get(job.raw.endpoint)
        if endpoint is None:
            raise UnknownEndpoint
        provider = self.providers[endpoint.provider]
        incoming = Incoming(delivery=job.raw, endpoint=endpoint, answers=job.answers)
        answers, trouble, enough = look_up(provider, incoming, _ask_nobody)
        if trouble is not None and not enough:
            raise trouble
        elements = understand(provider, replace(incoming, answers=answers))
        failed = next((element.error for element in elements if isinstance(element, Failed)), None)
        if failed is not None:
            report.unread[job.raw.id] = failed.reason
        return provider, [(place, element) for place, element in enumerate(elements) if isinstance(element, Event)]

    def _pages(self, *columns: Any) -> Iterator[SqlRow[Any]]:
        """The rows of a table by these columns (the last one is the endpoint), a batch at a time."""
        *order, owner = columns
        last: SqlRow[Any] | None = None
        while True:
            query = select(*order).order_by(*order).limit(BATCH)
            if self.endpoint is not None:
                query = query.where(owner == self.endpoint)
            if last is not None:
                query = query.where(tuple_(*order) > tuple_(*last))
            with self.engine.connect() as connection:
                page = connection.execute(query).all()
            if not page:
                return
            yield from page
            last = page[-1]


def _ask_nobody(question: Call | Recall) -> Answer:
    raise NotKept
