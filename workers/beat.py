"""The clock that sends the sweeps; at most one waits, however long no worker takes it. Keeps nothing on disk."""

from __future__ import annotations

from typing import Any

from celery.beat import ScheduleEntry, Scheduler

from schemas.logs import log
from workers.app import SWEEPS


class Beat(Scheduler):
    """Celery's scheduler for intervals, sparing with messages and with words."""

    def apply_entry(self, entry: ScheduleEntry, producer: Any = None) -> None:
        """Sends what is due; a sweep that still waits is replaced: an hour without workers leaves one, not 1800.

        Without Redis it says so in one line, and the next one is sent when it is due.
        """
        try:
            producer.channel.queue_purge(SWEEPS)
            self.apply_async(entry, producer=producer, advance=False)
        except Exception as error:  # noqa: BLE001  as Celery's own: a clock does not stop for one stroke
            log.error("beat-failed", task=entry.task, error=type(error.__cause__ or error).__name__)
