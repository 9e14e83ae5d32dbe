"""The hand-filled Celery message: what stands in it, and that real Celery workers take it, finish it, restore it."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_py
from celery import Celery
from serving import PATIENCE, PLAIN, SHORT, eventually, serving
from sqlalchemy import Engine, text

from ingest.app import build
from ingest.nudge import Nudge
from ingest.settings import Settings
from schemas.delivery import INBOX, PROCESS, new_id
from schemas.endpoints import load, path
from workers.app import broker_url

SECRET = "the secret of this installation"
PROJECT = Path(__file__).resolve().parent.parent
CUSTOMER = "Zuzanna-Grabowska"
"""Stands in the header and in the body of what is sent, and must stand in nothing that Celery sees."""


@pytest.fixture(scope="module")
def nudge() -> Nudge:
    return Nudge()


# --- what stands in it ---------------------------------------------------------------------------------------


def names(count: int) -> list[str]:
    return [str(new_id()) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 64])
def test_a_message_names_its_deliveries_and_nothing_else(count: int, nudge: Nudge) -> None:
    """In order; the task's id is the first one's, so that Flower shows a delivery that comes alone under its own."""
    ids = names(count)
    message = json.loads(nudge.message(ids, "timekit"))
    assert message["headers"]["task"] == PROCESS
    assert message["headers"]["id"] == message["headers"]["root_id"] == ids[0]
    assert message["properties"]["correlation_id"] == ids[0]
    assert message["properties"]["delivery_info"]["routing_key"] == "timekit"
    assert message["headers"]["argsrepr"] == (f"['{ids[0]}']" if count == 1 else f"{count} deliveries")
    arguments, keywords, embedded = json.loads(base64.b64decode(message["body"]))
    assert (arguments, keywords) == (ids, {})
    assert not any(embedded.values())


def test_nothing_is_left_to_be_filled_in(nudge: Nudge) -> None:
    """Two messages differ in what belongs to each of them, and nowhere else."""
    one, other = names(2)
    first, second = nudge.message([one], "lockme").decode(), nudge.message([other], "timekit").decode()
    assert "to-be-filled-in" not in first
    tags = [json.loads(message)["properties"]["delivery_tag"] for message in (first, second)]
    bodies = [json.loads(message)["body"] for message in (first, second)]
    like_second = first.replace(one, other).replace("lockme", "timekit")
    assert like_second.replace(tags[0], tags[1]).replace(bodies[0], bodies[1]) == second


def test_every_message_has_a_delivery_tag_of_its_own(nudge: Nudge) -> None:
    """Also two for the same delivery: under one tag, Redis would remember only one of them."""
    ids = names(2)
    tags = {json.loads(nudge.message(ids, "timekit"))["properties"]["delivery_tag"] for _ in range(50)}
    assert len(tags) == 50


@pytest.mark.parametrize("count", [1, 12])
def test_it_is_what_celery_itself_would_send(count: int, nudge: Nudge, redis_url: str, redis: redis_py.Redis) -> None:
    """Compared with a message that Celery published to Redis: the same fields, the same forms."""
    ids = names(count)
    with Celery("reservoir", broker=broker_url(redis_url), set_as_current=False) as app:
        app.send_task(PROCESS, args=ids, task_id=ids[0], queue="timekit")
    sent = redis.lindex("timekit", 0)
    assert isinstance(sent, bytes)
    theirs, ours = json.loads(sent), json.loads(nudge.message(ids, "timekit"))
    assert theirs["body"] == ours["body"]
    assert _shape(ours) == _shape(theirs)
    same = ("content-type", "content-encoding")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert ours["properties"]["body_encoding"] == theirs["properties"]["body_encoding"]
    assert ours["properties"]["delivery_info"] == theirs["properties"]["delivery_info"]


def _shape(value: Any) -> Any:
    return {key: _shape(inner) for key, inner in value.items()} if isinstance(value, dict) else type(value)


# --- real workers --------------------------------------------------------------------------------------------


@contextmanager
def running(command: list[str], environment: Mapping[str, str], log: Path, cwd: Path) -> Iterator[subprocess.Popen]:
    """A process with a session of its own, of which nothing is left afterwards."""
    with (
        log.open("ab") as output,
        subprocess.Popen(
            command, cwd=cwd, env=environment, stdout=output, stderr=output, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen) -> None:
    """The process and its children, as the power does."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def watched(redis_url: str) -> Iterator[list[dict[str, Any]]]:
    """Celery's events, as Flower hears them, while they come."""
    heard: list[dict[str, Any]] = []
    ready, done = threading.Event(), threading.Event()

    def listen(app: Celery) -> None:
        with app.connection() as connection:
            receiver = app.events.Receiver(connection, handlers={"*": heard.append})
            with receiver.consumer_context() as (own_connection, _, _):
                ready.set()
                while not done.is_set():
                    with suppress(socket.timeout):
                        own_connection.drain_events(timeout=0.2)

    with Celery("listener", broker=broker_url(redis_url), set_as_current=False) as app:
        thread = threading.Thread(target=listen, args=(app,))
        thread.start()
        ready.wait(PATIENCE)
        try:
            yield heard
        finally:
            done.set()
            thread.join()


@pytest.fixture
def environment(redis_url: str, database_url: str, tmp_path: Path) -> dict[str, str]:
    """What a worker needs."""
    file = tmp_path / "reservoir.toml"
    file.write_text('[endpoints.studio]\nprovider = "reservekit"\ntimezone = "Europe/Berlin"\n', encoding="utf-8")
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PROJECT),
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "RESERVOIR_SECRET": SECRET,
        "RESERVOIR_CONFIG": str(file),
    }


def deliver(environment: Mapping[str, str], count: int = 1) -> None:
    """Through the receiver, as a provider does."""
    config = load(environment["RESERVOIR_CONFIG"], environment)
    app = build(Settings(redis_url=environment["REDIS_URL"], secret=SECRET, config=config, patience=PATIENCE))
    with serving(app, SHORT) as url, httpx.Client(**PLAIN) as client:
        for number in range(count):
            answer = client.post(
                url + path(SECRET, config.endpoints["studio"]),
                content=json.dumps({"number": number, "customer": CUSTOMER}),
                headers={"x-customer": CUSTOMER},
            )
            assert answer.status_code == 200


def everything_in(redis: redis_py.Redis) -> dict[str, bytes]:
    """All that Redis holds but the inbox, by key."""
    keys = [key.decode() for key in redis.scan_iter()]
    return {key: redis.dump(key) for key in keys if key != INBOX}


def worker_line(children: int = 1) -> list[str]:
    """The Procfile's own line, with so many children."""
    (line,) = re.findall(r"(?m)^worker: (.*)$", (PROJECT / "Procfile").read_text(encoding="utf-8"))
    return line.replace("${RESERVOIR_CONCURRENCY:-4}", str(children)).split()


@pytest.mark.services
def test_a_real_worker_takes_it(
    environment: dict[str, str], redis: redis_py.Redis, redis_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Name, arguments and acknowledgement are right, and no customer shows in Celery, in its events or its log."""
    log = tmp_path / "log"
    deliver(environment, count=3)
    (message, *_) = redis.lrange("reservekit", 0, 0)
    queued = everything_in(redis)
    with watched(redis_url) as events, running(worker_line(), environment, log, PROJECT) as worker:

        def settled() -> bool:
            ended = [event for event in events if event["type"] in ("task-succeeded", "task-failed", "task-retried")]
            return len(ended) == 3 or worker.poll() is not None

        assert eventually(settled, within=60), log.read_text()
        assert eventually(lambda: not redis.hlen(INBOX))
        assert not redis.exists("unacked")
        assert redis.llen("reservekit") == 0
        queued |= everything_in(redis)
        worker.send_signal(signal.SIGTERM)
        worker.wait(PATIENCE)
    received = [event for event in events if event["type"] == "task-received"]
    assert [event["name"] for event in received] == [PROCESS] * 3
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT id, state, headers, body FROM deliveries")).all()
    assert {event["uuid"] for event in received} == {str(row.id) for row in rows}
    # Of a delivery that a worker took along with another one, the worker tells itself, in Python's own spelling.
    assert {event["args"].strip("[](),'") for event in received} == {str(row.id) for row in rows}
    assert all(CUSTOMER in bytes(row.body).decode() and CUSTOMER in str(row.headers) for row in rows)
    assert "received" not in {row.state for row in rows}
    assert CUSTOMER not in repr(events)
    assert CUSTOMER.encode() not in message
    assert CUSTOMER.encode() not in b"".join(queued.values())
    assert CUSTOMER not in log.read_text()


SLOW_WORKER = """
import os
import time
from redis import Redis
from schemas.delivery import PROCESS
from workers.app import app

app.conf.include = ()
redis = Redis.from_url(os.environ["REDIS_URL"])

@app.task(name=PROCESS)
def process(*identities):
    redis.rpush("started", *identities)
    while not redis.exists("go"):
        time.sleep(0.02)
    redis.rpush("finished", *identities)
"""
"""Our own Celery app with a task that waits until it may go on."""


@pytest.mark.services
def test_a_real_worker_takes_many_at_once(
    environment: dict[str, str], redis: redis_py.Redis, redis_url: str, nudge: Nudge, tmp_path: Path
) -> None:
    """As many arguments as there are ids, in order, in one task."""
    (tmp_path / "slow.py").write_text(SLOW_WORKER, encoding="utf-8")
    command = [word.replace("workers.app", "slow") for word in worker_line()]
    log = tmp_path / "log"
    ids = names(64)
    redis.set("go", 1)
    redis.lpush("reservekit", nudge.message(ids, "reservekit"))
    with (
        watched(redis_url) as events,
        running(command, environment, log, tmp_path) as worker,
    ):

        def told(kind: str) -> list[dict[str, Any]]:
            return [event for event in events if event["type"] == kind]

        assert eventually(lambda: told("task-succeeded") or worker.poll() is not None, within=60), log.read_text()
        assert not redis.exists("unacked")
    assert [name.decode() for name in redis.lrange("finished", 0, -1)] == ids
    (received,) = told("task-received")
    assert (received["uuid"], received["args"]) == (ids[0], "64 deliveries")


@pytest.mark.services
def test_a_killed_worker_loses_no_more_than_a_nudge(
    environment: dict[str, str], redis: redis_py.Redis, nudge: Nudge, tmp_path: Path
) -> None:
    """kill -9 in the middle of the task: nobody noted the message, the inbox has the request, and who is nudged anew,
    as the sweeper does, takes it up."""
    (tmp_path / "slow.py").write_text(SLOW_WORKER, encoding="utf-8")
    command = [word.replace("workers.app", "slow") for word in worker_line()]
    log = tmp_path / "log"
    deliver(environment)
    (identity,) = redis.hkeys(INBOX)
    with running(command, environment, log, tmp_path) as worker:
        assert eventually(lambda: redis.llen("started") or worker.poll() is not None, within=60), log.read_text()
        kill(worker)
    assert redis.hkeys(INBOX) == [identity]
    assert not redis.exists("unacked", "reservekit")
    redis.set("go", 1)
    redis.lpush("reservekit", nudge.message([identity.decode()], "reservekit"))
    with running(command, environment, log, tmp_path) as worker:
        assert eventually(lambda: redis.llen("finished") or worker.poll() is not None, within=60), log.read_text()
    assert redis.lrange("started", 0, -1) == [identity, identity]
    assert redis.lrange("finished", 0, -1) == [identity]
