"""Tells Flower of the deliveries that travelled in another one's message: a delivery is one task with its history.

Celery's own worker tells of the task that a message names, which is the batch's first delivery. For the others the same
events are sent from here, all in one publish. Whether anybody hears them changes nothing. Knows ids, endpoints' states
and reasons; nothing of a guest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final
from uuid import UUID

from celery import Celery
from celery.events.event import get_exchange
from celery.utils.time import utcoffset
from kombu import Connection

from schemas.delivery import PROCESS
from schemas.logs import log
from workers.writing import as_json

TOGETHER: Final = "task.multi"
"""The routing key of a list of events."""
HASTY: Final = {
    "socket_timeout": 1,
    "socket_connect_timeout": 1,
    "retry_on_timeout": False,
    "max_retries": 1,
    "interval_start": 0,
    "interval_step": 0,
    "interval_max": 0,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """How the task of one delivery ended."""

    delivery_id: UUID
    retries: int
    state: str | None = None
    trouble: str | None = None
    """Why it comes back; None: it succeeded."""


def tell(app: Celery, outcomes: Sequence[Outcome], *, hostname: str, began: float) -> None:
    """Sends their events; a broker that is away is no trouble of ours."""
    if not outcomes or not app.conf.worker_send_task_events:
        return
    connection = _connection(app.conf.broker_url)
    try:
        exchange = get_exchange(connection, name=app.conf.event_exchange)
        connection.Producer(auto_declare=False).publish(
            as_json(events(outcomes, hostname=hostname, began=began, ended=time.time())),
            routing_key=TOGETHER,
            exchange=exchange.name,
            declare=[exchange],
            content_type="application/json",
            content_encoding="utf-8",
            headers={"hostname": hostname},
            delivery_mode=1,
            retry=False,
        )
    except Exception as error:  # noqa: BLE001  whatever the broker does, the deliveries are where they are
        log.debug("flower-not-told", error=type(error).__name__)
        connection.release()  # the next one opens it again


@cache
def _connection(url: str) -> Connection:
    """One for a process. Celery's own would wait for a broker that is away for longer than a batch takes."""
    return Connection(url, transport_options=HASTY)


def events(outcomes: Sequence[Outcome], *, hostname: str, began: float, ended: float) -> list[dict[str, Any]]:
    """What a worker would have told of each. Without a clock: whoever hears them puts them in the order of arrival."""
    common = {"hostname": hostname, "pid": os.getpid(), "utcoffset": utcoffset()}
    told: list[dict[str, Any]] = []
    for outcome in outcomes:
        identity = str(outcome.delivery_id)
        task = {**common, "uuid": identity}
        received = {"name": PROCESS, "args": f"['{identity}']", "kwargs": "{}", "root_id": identity, "parent_id": None}
        told.append(
            {**task, **received, "type": "task-received", "retries": outcome.retries, "eta": None, "expires": None}
            | {"timestamp": began}
        )
        told.append({**task, "type": "task-started", "timestamp": began})
        if outcome.trouble is None:
            ended_well = {"result": repr(outcome.state), "runtime": ended - began}
            told.append({**task, "type": "task-succeeded", "timestamp": ended, **ended_well})
        else:
            came_back = {"exception": outcome.trouble, "traceback": None}
            told.append({**task, "type": "task-retried", "timestamp": ended, **came_back})
    return told
