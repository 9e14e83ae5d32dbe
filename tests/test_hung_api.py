"""An API that hangs slows nobody else down: a real worker of two children, real queues, a server that never answers."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from redis import Redis
from serving import eventually, listening, silence
from sqlalchemy import Engine, text
from test_nudge import PROJECT, running, worker_line
from world import VENUES, Step, request, tell

from ingest.nudge import Nudge
from schemas.delivery import INBOX, now

MOMENT = 3.0
"""Seconds in which the healthy provider's bookings must stand, from one that waits five for every answer."""


@contextmanager
def hung_api() -> Iterator[tuple[int, threading.Event]]:
    """Its port, and whether anybody has come to ask."""
    asked = threading.Event()

    def handle(connection: object) -> None:
        asked.set()
        silence(connection)  # type: ignore[arg-type]

    with listening(handle) as port:
        yield port, asked


def receive(redis: Redis, provider: str, count: int, first: int = 1, guest: str = "Ewa") -> list[UUID]:
    """As the receiver puts them there: so many requests with a nudge each, about the bookings from `first` on."""
    nudge = Nudge()
    ids = []
    for number in range(first, first + count):
        telling = tell(provider, Step(name=guest, booking=number))
        raw = request(VENUES[provider].name, telling.body, headers=telling.headers, at=now())
        redis.hset(INBOX, str(raw.id), raw.pack())
        redis.lpush(provider, nudge.message([str(raw.id)], provider))
        ids.append(raw.id)
    return ids


def states(engine: Engine, ids: list[UUID]) -> list[str]:
    with engine.connect() as connection:
        query = text("SELECT state FROM deliveries WHERE id = ANY(:ids) ORDER BY id")
        return list(connection.execute(query, {"ids": ids}).scalars())


@pytest.mark.services
def test_the_others_bookings_are_there_while_it_hangs(
    redis: Redis, redis_url: str, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Two children and an API on which both could wait: one of them is always free for the other queues."""
    lockme, timekit = VENUES["lockme"].name, VENUES["timekit"].name
    with hung_api() as (port, asked):
        config = tmp_path / "reservoir.toml"
        config.write_text(
            f'[endpoints.{lockme}]\nprovider = "lockme"\ntimezone = "Europe/Warsaw"\n'
            f'api_url = "http://127.0.0.1:{port}"\n[endpoints.{timekit}]\nprovider = "timekit"\n',
            encoding="utf-8",
        )
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(PROJECT),
            "REDIS_URL": redis_url,
            "DATABASE_URL": database_url,
            "RESERVOIR_SECRET": "only for tests, long enough to be one",
            "RESERVOIR_CONFIG": str(config),
            f"RESERVOIR_{lockme.upper().replace('-', '_')}_ACCESS_TOKEN": "t0ken",
        }
        log = tmp_path / "log"
        stuck = receive(redis, "lockme", 20)
        with running(worker_line(children=2), environment, log, PROJECT) as worker:
            assert eventually(lambda: asked.is_set() or worker.poll() is not None, within=60), log.read_text()
            begin = time.monotonic()
            healthy = receive(redis, "timekit", 5)
            assert eventually(lambda: states(engine, healthy) == ["applied"] * 5), log.read_text()
            took = time.monotonic() - begin
            assert "applied" not in states(engine, stuck)
        assert took < MOMENT, log.read_text()
