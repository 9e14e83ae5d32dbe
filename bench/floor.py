"""Celery's floor: a task that does nothing, and messages for it. `celery -A bench.floor worker` runs it.

Knows Redis by its URL, and nothing of Reservoir's tasks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final
from uuid import uuid4

from celery import Celery

from workers.app import REDIS_URL, broker_url

QUEUE: Final = "floor"
NOTHING: Final = "floor.nothing"
_ID: Final = "00000000-0000-7000-8000-00000000aaaa"

app = Celery("floor", broker=broker_url(REDIS_URL))
app.conf.update(task_default_queue=QUEUE, task_ignore_result=True)


@app.task(name=NOTHING)
def nothing(delivery_id: str) -> None:
    """What a task costs before it does anything."""


def messages(count: int) -> Iterator[bytes]:
    """So many of them as they lie in Redis, with an id and a delivery tag each; Celery renders the first one."""
    with app.connection_for_write(url="memory://") as connection:
        app.send_task(NOTHING, args=[_ID], task_id=_ID, connection=connection)
        channel: Any = connection.default_channel
        message: dict[str, Any] = channel._get(QUEUE)  # the transport's own way of taking one off
    tag, rendered = message["properties"]["delivery_tag"], json.dumps(message)
    for _ in range(count):
        yield rendered.replace(_ID, str(uuid4())).replace(tag, str(uuid4())).encode()
