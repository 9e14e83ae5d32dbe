"""Celery's consumer, sparing with events: it tells Flower what happened in a moment in one message.

Celery publishes a task's events one by one, as soon as its loop comes round, and waits for Redis each time; with a disk
that is synced for every write, that was a third of what a worker's parent did for a delivery, and the next delivery
waited for it (docs/performance.md). Each event still has the time when it happened. Knows no task.
"""

from __future__ import annotations

import time
from typing import Any, Final

from celery.worker.consumer import Consumer as CelerysConsumer

TOGETHER: Final = 0.2
"""Seconds that an event waits for others at most; of many, Celery sends two dozen at a time."""


class Consumer(CelerysConsumer):
    """See the module."""

    hub: Any
    _flush_events: Any
    _next = 0.0
    """When the events that are gathered now are sent, by the monotonic clock."""

    def on_send_event_buffered(self) -> Any:
        """Celery has put an event with those that wait."""
        now = time.monotonic()
        if self.hub and now >= self._next:  # also where a new connection has swept the hub's timers away
            self._next = now + TOGETHER
            self.hub.call_later(TOGETHER, self._flush_events)

    def stop(self) -> Any:
        """What waits is told before it ends."""
        self._flush_events()
        return super().stop()
