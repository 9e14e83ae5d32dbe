"""Nudges again what was left behind: requests in the inbox whose nudge was lost, deliveries that are due.

A nudge too many is harmless, so this errs on that side; but a queue that is being worked off is left in peace.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache
from typing import Final
from uuid import UUID

from redis import Redis

from schemas.delivery import EPOCH, PROCESS
from schemas.endpoints import Config
from workers.app import HOUSEKEEPING, app
from workers.inbox import Inbox, unpacked
from workers.store import Store

log = logging.getLogger("reservoir")

SETTLED: Final = timedelta(seconds=10)
"""A request this old whose queue is empty was not nudged, or its nudge was lost."""
PATIENCE: Final = timedelta(seconds=60)
MOST: Final = 1000


def sweep(inbox: Inbox, store: Store, config: Config, redis: Redis, now: datetime) -> int:
    """Nudges what was left behind; how many."""
    return _sweep_inbox(inbox, config, redis, now) + _sweep_deliveries(store, config, now)


def _sweep_inbox(inbox: Inbox, config: Config, redis: Redis, now: datetime) -> int:
    @cache
    def idle(queue: str) -> bool:
        return redis.llen(queue) == 0

    left = Counter[str]()
    for delivery_id, packed in inbox.waiting():
        if now - born(delivery_id) < SETTLED:
            continue
        raw = unpacked(delivery_id, packed)
        queue = queue_of(config, raw.endpoint if raw else "")
        if idle(queue):
            nudge(delivery_id, queue)
            left[queue] += 1
        if left.total() == MOST:
            break
    _tell("inbox", left)
    return left.total()


def _sweep_deliveries(store: Store, config: Config, now: datetime) -> int:
    due: Iterable[tuple[UUID, str, int]] = store.due(now, patience=PATIENCE, limit=MOST)
    sent = Counter[str]()
    for delivery_id, endpoint, attempts in due:
        queue = queue_of(config, endpoint)
        nudge(delivery_id, queue, retries=attempts)
        sent[queue] += 1
    _tell("deliveries", sent)
    return sent.total()


def nudge(delivery_id: UUID, queue: str, *, retries: int = 0) -> None:
    """Sends the task of a delivery; its task id is the delivery's, so that Flower shows one task with its history."""
    app.send_task(PROCESS, args=[str(delivery_id)], task_id=str(delivery_id), queue=queue, retries=retries)


def queue_of(config: Config, endpoint: str) -> str:
    """The queue of an endpoint's provider."""
    found = config.endpoints.get(endpoint)
    return found.provider if found else HOUSEKEEPING


def born(delivery_id: UUID) -> datetime:
    """When a time-ordered id was made (UTC, milliseconds)."""
    return EPOCH + timedelta(milliseconds=delivery_id.int >> 80)


def _tell(what: str, counted: Counter[str]) -> None:
    if counted:
        log.info("action=sweep what=%s %s", what, " ".join(f"{queue}={n}" for queue, n in sorted(counted.items())))
