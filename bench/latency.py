"""End to end at a steady rate: from just before the first byte of a POST until what it says is committed.

The lines of the Procfile for the receiver, one worker and beat, as they run in life; requests come as they do from many
senders who know nothing of each other. Both ends of a time are of one machine's clock: ours before the request, and
PostgreSQL's own when it commits the row for the last time. Celery's events tell what lies between.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from random import Random
from statistics import median
from typing import Any, Final
from uuid import UUID

from celery import Celery

from bench.disk import SmallWrites
from bench.figures import RATE, RESERVOIR, Figure
from bench.ground import Ground, GroundFailed, Running
from bench.load import quantile
from bench.others import Others
from bench.stuff import WITHOUT_PAYMENTS, Stuff, recorded, secrets
from bench.worker import emptied
from schemas.delivery import INBOX, OPEN, RawDelivery
from schemas.endpoints import path
from simulators.sender import Request, Sender
from workers.app import broker_url

WARMUP: Final = 3.0
"""Seconds at the same rate before anything counts: every process has then made its connections."""
ANSWERED_WITHIN: Final = 10.0
SETTLED_WITHIN: Final = 60.0
READY: Final = " ready."
OURS: Final = ("host", "content-length")
"""Headers that the sender writes by itself."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Post:
    """One request, as its sender saw it."""

    began: float
    """Just before the first byte, Unix seconds."""
    acked: float
    """Seconds until the head of the answer."""
    status: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """The row of a delivery. All times are Unix seconds."""

    id: UUID
    received: float
    """As the receiver stamped it."""
    committed: float
    """Of the row as it is now."""
    settled: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """The way of one delivery in milliseconds, each piece from the end of the one before."""

    ack: float
    """The whole of the receiver, seen from outside; the pieces below begin with the receiver's stamp."""
    door: float
    """First byte to the receiver's stamp."""
    queue: float
    """To the worker that takes the message: the receiver's commit, and what Celery does around its BRPOP."""
    pool: float
    """To the process that works on it."""
    work: float
    """To the commit: landing, reading, saving."""


def at_rate(ground: Ground, rate: float, seconds: float, say: Say, number: int = 0) -> Figure:
    """So many requests a second, by chance, for so long; in the round of that number. Raises GroundFailed."""
    stuff = recorded(ground.config, ceil(rate * (WARMUP + seconds)), switches=WITHOUT_PAYMENTS)
    emptied(ground.database_url)
    ground.empty_redis()
    with (
        ground.serving("web", core=None) as web,
        ground.running("beat", core=None),
        ground.running("worker", core=None, more=secrets(ground.config)) as worker,
        _ear(ground.redis_url) as heard,
    ):
        worker.until(lambda: READY in worker.output(), "it is ready")
        measured = (web, worker)
        before, others = _cpu(measured), Others()
        with SmallWrites(ground.folder) as writes:
            posts = asyncio.run(_posted(ground, web, stuff, rate, WARMUP + seconds))
        rows = _settled(ground, len(posts))
        cpu = 1000 * (_cpu(measured) - before) / len(posts)
        rss = sum(process.rss_mb() for process in measured)
        found = figure(posts, rows, rate=rate, cpu_ms=cpu, rss_mb=rss)
        found = replace(found, round=number, others_share=others.share(), disk_ms=1000 * writes.slowest)
    took = f"p50 {found.p50_ms:.1f} ms, p99 {found.p99_ms:.1f} ms"
    say(f"latency: round {number + 1}: {took}; a bystander's small write to the disk took {found.disk_ms:.0f} at most")
    _tell(posts, rows, heard, say)
    return found


def figure(posts: Mapping[str, Post], rows: Mapping[str, Kept], *, rate: float, cpu_ms: float, rss_mb: float) -> Figure:
    """What came of it, without the warm-up. Raises GroundFailed where a request was refused or nothing settled."""
    refused = sum(post.status != 200 for post in posts.values())
    if refused:
        raise GroundFailed(f"{refused} of {len(posts)} requests were not answered with 200")
    began = min(post.began for post in posts.values()) + WARMUP
    counted = [request for request in posts if posts[request].began >= began and request in rows]
    if len(counted) < 2:
        raise GroundFailed("nothing was kept")
    took = sorted(1000 * (rows[request].committed - posts[request].began) for request in counted)
    committed = sorted(rows[request].committed for request in counted)
    return Figure(
        contender=RESERVOIR,
        load=f"{rate:g} {RATE}",
        round=0,
        per_second=(len(committed) - 1) / (committed[-1] - committed[0]),
        p50_ms=quantile(took, 0.5),
        p99_ms=quantile(took, 0.99),
        cpu_ms=cpu_ms,
        rss_mb=rss_mb,
        kept=sum(rows[request].settled for request in posts if request in rows),
        acked=len(posts),
    )


def _cpu(processes: Sequence[Running]) -> float:
    return sum(process.cpu_seconds() for process in processes)


# --- the requests ----------------------------------------------------------------------------------------------


async def _posted(ground: Ground, web: Running, stuff: Stuff, rate: float, seconds: float) -> dict[str, Post]:
    """By `x-request-id`. Nobody waits for anybody: a slow answer does not keep the next request back."""
    paths = {endpoint.name: path(ground.secret, endpoint) for endpoint in ground.config}
    sender, chance, posts = Sender(), Random(1), dict[str, Post]()  # noqa: S311  seeded chance is the point

    async def post(delivery: RawDelivery) -> None:
        headers = {name: value for name, value in delivery.headers if name not in OURS}
        url = f"http://127.0.0.1:{web.port}{paths[delivery.endpoint]}"
        began = time.time()
        reply = await sender.send(Request(delivery.method, url, headers, delivery.body), deadline=ANSWERED_WITHIN)
        posts[headers["x-request-id"]] = Post(began=began, acked=reply.seconds, status=reply.status)

    start = due = time.monotonic()
    async with asyncio.TaskGroup() as under_way:
        for delivery in stuff.deliveries:
            due += chance.expovariate(rate)
            if due - start > seconds:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            under_way.create_task(post(delivery))
    await sender.close()
    return posts


def _settled(ground: Ground, count: int) -> dict[str, Kept]:
    """The rows by `x-request-id`, once so many are settled, or when that has taken too long."""
    query = """
        SELECT jsonb_path_query_first(headers, 'strict $[*] ? (@[0] == "x-request-id")[1]') #>> '{}' AS request,
               id, extract(epoch FROM received_at)::float8,
               extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8, state
        FROM deliveries
    """
    deadline = time.monotonic() + SETTLED_WITHIN
    with ground.database() as connection, ground.redis() as redis:
        while True:
            rows = connection.execute(query).fetchall()
            kept = {
                request: Kept(id=identity, received=received, committed=committed, settled=state not in OPEN)
                for request, identity, received, committed, state in rows
            }
            done = sum(row.settled for row in kept.values()) >= count and not redis.hlen(INBOX)
            if done or time.monotonic() > deadline:
                return kept
            time.sleep(0.5)


# --- what lies between -----------------------------------------------------------------------------------------


@contextmanager
def _ear(redis_url: str) -> Iterator[dict[UUID, dict[str, float]]]:
    """Listens to the worker's events while the context lasts, as Flower does: task → event → when, Unix seconds."""
    heard: dict[UUID, dict[str, float]] = {}

    def note(event: dict[str, Any]) -> None:
        heard.setdefault(UUID(event["uuid"]), {}).setdefault(event["type"], event["timestamp"])

    app = Celery(broker=broker_url(redis_url), set_as_current=False)
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"task-received": note, "task-started": note})
        thread = threading.Thread(target=receiver.capture, kwargs={"limit": None, "timeout": None, "wakeup": False})
        thread.start()
        try:
            yield heard
        finally:
            receiver.should_stop = True
            thread.join()


def ways(posts: Mapping[str, Post], rows: Mapping[str, Kept], heard: Mapping[UUID, Mapping[str, float]]) -> list[Way]:
    """Of those that had a message to themselves, and of which all events were heard."""
    found = []
    for request, post in posts.items():
        row = rows.get(request)
        told = heard.get(row.id, {}) if row else {}
        taken, begun = told.get("task-received"), told.get("task-started")
        # Who travelled in another one's message is told of by us, and was taken and begun at one moment.
        if row is None or taken is None or begun is None or taken == begun:
            continue
        moments = (post.began, row.received, taken, begun, row.committed)
        door, queue, pool, work = (1000 * (after - before) for before, after in pairwise(moments))
        found.append(Way(ack=1000 * post.acked, door=door, queue=queue, pool=pool, work=work))
    return found


def _tell(
    posts: Mapping[str, Post], rows: Mapping[str, Kept], heard: Mapping[UUID, Mapping[str, float]], say: Say
) -> None:
    found = ways(posts, rows, heard)
    if not found:
        return
    pieces = [f"{name} {median(getattr(way, name) for way in found):.1f}" for name in Way.__slots__]
    say(f"latency: medians in ms of {len(found)} deliveries: {', '.join(pieces)}")
