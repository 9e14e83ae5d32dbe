"""The Celery message that names deliveries, as a template that Celery itself renders once at start.

Celery's wire format changes with its versions, so it is never written by hand. What differs per message are the task's
id (the first delivery's own, so that Flower shows it when a delivery comes alone), the delivery tag, the queue, the
arguments and what Flower shows of them. **Every message needs a delivery tag of its own**: it is the key under which
a worker, or Redis, remembers what is not acknowledged.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

from celery import Celery

from schemas.delivery import PROCESS

_ID: Final = "00000000-0000-7000-8000-00000000aaaa"
_QUEUE: Final = "queue-to-be-filled-in"
_TAG: Final = "tag-to-be-filled-in"
_BODY: Final = "body-to-be-filled-in"
_SHOWN: Final = "arguments-to-be-filled-in"


class Nudge:
    """Renders messages for the queues of Celery's Redis transport: `LPUSH <queue> <message>`."""

    def __init__(self) -> None:
        message = _rendered()
        payload = json.loads(base64.b64decode(message["body"]))
        message["body"] = _BODY
        message["properties"]["delivery_tag"] = _TAG
        message["headers"]["argsrepr"] = _SHOWN
        # The pieces between what is filled in, so that a message is put together in one go.
        self._message = _split(json.dumps(message), _ID, _QUEUE, _SHOWN, _TAG, _BODY)
        self._payload = json.dumps(payload).split(_ID)

    def message(self, ids: Sequence[str], queue: str) -> bytes:
        """One message for deliveries of one queue. It carries their ids and nothing else."""
        filled = {
            _ID: ids[0],
            _QUEUE: queue,
            _SHOWN: f"['{ids[0]}']" if len(ids) == 1 else f"{len(ids)} deliveries",
            _TAG: str(uuid4()),
            _BODY: base64.b64encode('", "'.join(ids).join(self._payload).encode()).decode(),
        }
        return "".join([filled.get(piece, piece) for piece in self._message]).encode()


def _split(text: str, *names: str) -> list[str]:
    """The text in pieces, of which each name is one."""
    return re.split(f"({'|'.join(map(re.escape, names))})", text)


def _rendered() -> dict[str, Any]:
    """One message as Celery would send it, caught in a broker that lives in memory."""
    app = Celery("reservoir", broker="memory://", set_as_current=False)
    app.conf.update(task_serializer="json", accept_content=["json"], task_ignore_result=True)
    arguments: Sequence[str] = [_ID]
    with app.connection_for_write() as connection:
        app.send_task(PROCESS, args=arguments, task_id=_ID, queue=_QUEUE, connection=connection)
        channel: Any = connection.default_channel
        message: dict[str, Any] = channel._get(_QUEUE)  # the transport's own way of taking one off
    return message
