"""A request that kills whoever works on it, for real: SIGKILL in the middle of reading, with beat, sweeps and leases.

That it goes alone after two tries is a decision, and tested as one in test_batch.py. Here it is what is left of it.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from redis import Redis
from serving import eventually
from sqlalchemy import Engine, text
from test_hung_api import receive, states
from test_nudge import PROJECT, running, worker_line
from world import VENUES

from schemas.delivery import INBOX
from workers.pipeline import MOST_BEGUN

OUR_APP = """
import os, signal
from dataclasses import replace
from datetime import timedelta

from redis import Redis

from workers import store
from workers.providers import timekit

store.LEASE = timedelta(seconds=1)
_read = timekit.PROVIDER.normalize

def normalize(incoming):
    if b"Killer" in incoming.delivery.body:
        Redis.from_url(os.environ["REDIS_URL"]).incr("deaths")
        os.kill(os.getpid(), signal.SIGKILL)
    return _read(incoming)

timekit.PROVIDER = replace(timekit.PROVIDER, normalize=normalize)

from workers.app import app  # which looks for the providers once
"""
"""Our own app, whose leases are short and whose Timekit dies of one request."""


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(240)
def test_a_request_that_kills_is_parked_and_its_neighbours_stand(
    redis: Redis, redis_url: str, database_url: str, engine: Engine, tmp_path: Path
) -> None:
    venue = VENUES["timekit"].name
    (tmp_path / "deadly_app.py").write_text(OUR_APP, encoding="utf-8")
    config = tmp_path / "reservoir.toml"
    config.write_text(f'[endpoints.{venue}]\nprovider = "timekit"\n', encoding="utf-8")
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(PROJECT))),
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "RESERVOIR_SECRET": "only for tests, long enough to be one",
        "RESERVOIR_CONFIG": str(config),
    }
    (beat,) = re.findall(r"(?m)^beat: (.*)$", (PROJECT / "Procfile").read_text(encoding="utf-8"))
    log = tmp_path / "log"
    with ExitStack() as stack:
        worker, _ = (
            stack.enter_context(running(with_our_app(line), environment, log, tmp_path))
            for line in (worker_line(children=2), beat.split())
        )
        assert eventually(lambda: "ready." in log.read_text(), within=60), log.read_text()
        before = receive(redis, "timekit", 5)
        (deadly,) = receive(redis, "timekit", 1, 6, "Killer")
        behind = receive(redis, "timekit", 5, 7)
        assert eventually(lambda: states(engine, [deadly]) == ["parked"], within=120), log.read_text()
        after = receive(redis, "timekit", 5, 12)
        assert eventually(lambda: states(engine, before + behind + after) == ["applied"] * 15), log.read_text()
        assert worker.poll() is None
    with engine.connect() as connection:
        query = text("SELECT reason, attempts, length(body) > 0 FROM deliveries WHERE id = :id")
        assert connection.execute(query, {"id": deadly}).one() == ("never-ended", MOST_BEGUN + 1, True)
    # Once while it was new and had no row to be counted in; then as often as its row says.
    assert int(redis.get("deaths") or 0) == 1 + MOST_BEGUN
    assert not redis.hexists(INBOX, str(deadly))


def with_our_app(line: list[str]) -> list[str]:
    return ["deadly_app" if word == "workers.app" else word for word in line]
