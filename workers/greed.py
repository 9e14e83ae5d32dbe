"""A worker that finds a backlog takes more of it: further nudges off the same queue, until its batch is full.

So batches form by themselves whenever there is something to catch up with, whatever the pattern of arrival, and with no
timer; when it is quiet a batch is one. A nudge taken this way is lost if the worker dies, and the sweeper finds its
deliveries. Knows the form of Celery's messages in Redis and nothing of what a delivery is.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any, Final, cast
from uuid import UUID

from redis import Redis

from schemas.delivery import PROCESS

MOST: Final = 128
"""Deliveries in one batch."""
MOST_ASKING: Final = 64
"""The same where an API may have to be asked: a batch has only so long for all of its questions."""


def filled_up(delivery_ids: Sequence[UUID], redis: Redis, queue: str, most: int = MOST) -> list[UUID]:
    """These ids and those of further nudges in this queue, oldest first, each once; no nudge is taken beyond `most`.

    What is no nudge of ours goes back to where it was, and so does what would be too much.
    """
    ids = dict.fromkeys(delivery_ids)
    room = most - len(ids)
    if room <= 0:
        return list(ids)
    # Messages of one backlog are of one size, about; so this takes hardly more than it keeps.
    found = cast("list[bytes] | None", redis.rpop(queue, max(1, room // max(1, len(ids)))))
    back: list[bytes] = []
    for message in found or ():
        if back or (more := nudged(message)) is None or len(ids.keys() | set(more)) > most:
            back.append(message)
        else:
            ids |= dict.fromkeys(more)
    if back:
        redis.rpush(queue, *reversed(back))
    return list(ids)


def nudged(message: bytes) -> list[UUID] | None:
    """The ids in a message of Celery's Redis transport; None where it is anything else."""
    try:
        document: Any = json.loads(message)
        if document["headers"]["task"] != PROCESS or document["properties"]["body_encoding"] != "base64":
            return None
        (args, *_) = json.loads(base64.b64decode(document["body"]))
        return ids_of(args)
    except (ValueError, KeyError, TypeError):
        return None


def ids_of(words: Iterable[str]) -> list[UUID]:
    """Each id once, in their order. Raises ValueError where one is none."""
    return list(dict.fromkeys(UUID(word) for word in words))
