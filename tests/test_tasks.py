"""What a task does about trouble that no provider's file and no API has caused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from redis import Redis
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, OperationalError
from world import NOON, VENUES, Step, World, request, tell

from schemas.delivery import INBOX, State, new_id
from workers.inbox import Inbox
from workers.job import ComesBack, Done
from workers.pipeline import process
from workers.tasks import holding

SECRET = "Ewa Lis, ewa@example.org"


class Stumbles:
    """A store whose save stumbles once."""

    def __init__(self, store: Any, error: Exception) -> None:
        self._store, self._error = store, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def save(self, *args: Any, **kwargs: Any) -> Any:
        error, self._error = self._error, None  # type: ignore[assignment]
        if error is not None:
            raise error
        return self._store.save(*args, **kwargs)


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (OperationalError("INSERT", {}, psycopg.OperationalError(SECRET)), State.RETRYING, "database-trouble"),
        (DataError("INSERT", {}, psycopg.DataError(SECRET)), State.PARKED, "internal-error"),
        (SoftTimeLimitExceeded(), State.RETRYING, "provider-unavailable"),
        (KeyError(SECRET), State.PARKED, "internal-error"),
    ],
)
def test_trouble_stands_in_the_row_by_its_class_and_without_a_value(
    engine: Engine, error: Exception, state: State, reason: str
) -> None:
    """Postgres in trouble and a task that took too long come back; a mistake of ours needs a person."""
    world = World(engine, [VENUES["timekit"]])
    raw = request(VENUES["timekit"].name, tell("timekit", Step(name="Ewa")).body)
    world.land(raw)
    job = world.store.claim(raw.id, NOON)
    assert job is not None
    fate = process([job], replace(world.parts, store=Stumbles(world.store, error)))[raw.id]
    assert isinstance(fate, ComesBack if state is State.RETRYING else Done)
    row = world.delivery(raw.id)
    assert (row.state, row.reason) == (state, reason)
    assert SECRET not in row.error
    assert world.rows() == []


def test_what_has_landed_leaves_the_inbox_before_an_api_is_asked(redis: Redis) -> None:
    """It may take its time, and meanwhile the sweeper would nudge what somebody has in hand."""
    inbox, landed, waits = Inbox(redis), new_id(), new_id()
    redis.hset(INBOX, mapping={str(landed): b"", str(waits): b""})
    inbox.landed(landed)
    with holding(inbox)("lockme") as free:
        assert free
        assert redis.hkeys(INBOX) == [str(waits).encode()]
