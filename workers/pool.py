"""Celery's pool of processes, in which one that has ended is replaced at once.

Celery hears of the end by a pipe, which the kernel closes a moment before the process can be waited for. Who looks in
that moment finds it still there and looks again with a timer of five seconds: so long its place is empty, and what was
handed to it waits (github.com/celery/celery/issues/9588, open; seen in 14 of 100 ends on two cores). Knows no task.
"""

from __future__ import annotations

from typing import Any, Final

from celery.concurrency.asynpool import AsynPool
from celery.concurrency.prefork import TaskPool

SOON: Final = 0.01
"""Seconds until somebody looks again, and twice as many each time after that."""
CELERYS_OWN: Final = 5.0
"""Seconds after which Celery looks by itself."""


class _Replaced(AsynPool):
    _pool: list[Any]

    def _event_process_exit(self, hub: Any, child: Any) -> None:
        super()._event_process_exit(hub, child)  # type: ignore[misc]  # celery-types does not know it
        self._look_again(hub, child, SOON)

    def _look_again(self, hub: Any, child: Any, after: float) -> None:
        if child in self._pool and after < CELERYS_OWN:
            hub.call_later(after, self._look, hub, child, 2 * after)

    def _look(self, hub: Any, child: Any, after: float) -> None:
        self.maintain_pool()
        self._look_again(hub, child, after)


class Pool(TaskPool):
    """See the module."""

    Pool = _Replaced
