"""Nudges again what was left behind: requests in the inbox whose nudge was lost, deliveries that are due.

A nudge too many is harmless, so this errs on that side; but what waits in a queue is not nudged twice over:

- A request in the inbox is nudged when its queue is idle: then nothing waits there that could name it. Where no queue
  is idle the inbox is not looked at. Otherwise a script walks it inside Redis and hands out ids, no bodies; a sweep
  walks an eighth of the inbox at most and the next one goes on from there, so that a hundred thousand requests of a
  busy queue cost little while another queue is idle, and the whole is seen every 16 seconds.
- A delivery in PostgreSQL is nudged when it has become due, also into a busy queue: once, so it has its place in line
  behind the others and does not starve. It is nudged again when nothing came of that for PATIENCE, and only when its
  queue is idle. So a row that a killed worker left half-way is nudged when its lease (25 s) is over.

Nothing is nudged while PostgreSQL is away: no worker could do anything with it. Redis full, loading, read-only or gone:
one line in the log, and the next sweep tries again. Two sweeps at once do no harm. The state between two sweeps is a
place in the inbox, kept in Redis, and `deliveries.nudged_at`; when the last one ran is kept for whoever asks.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, cast
from uuid import UUID

from kombu.exceptions import KombuError
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from schemas.delivery import INBOX, PROCESS, first_id_after
from schemas.endpoints import Config
from schemas.logs import log
from workers.app import HOUSEKEEPING, app
from workers.database import reachable
from workers.inbox import SETTLED, Inbox
from workers.overdue import overdue
from workers.store import Store

PATIENCE: Final = timedelta(seconds=20)
"""So long a nudge may take to be taken up from a queue that is idle."""
GROUP: Final = 64
"""Ids in one message at most."""
MOST: Final = 64 * GROUP
"""What one sweep nudges of the inbox, about, and of the deliveries: some seconds of work."""
PAGE: Final = 200
"""Entries of the inbox that Redis looks at in one go; it answers nobody else meanwhile."""
WALK: Final = 10_000
SHARE: Final = 8
"""A sweep walks that many entries of the inbox or this part of it, whichever is more."""

PLACE: Final = "reservoir:sweep"
"""Where the last walk through the inbox ended: a cursor of HSCAN. Also a sweep's first write before it nudges."""
SWEPT: Final = "reservoir:swept"
"""When a sweep last ran (Unix time), also one that found PostgreSQL away: beat sends, and a worker takes."""

Nudge = tuple[Sequence[UUID], str, int]
"""Ids, queue, retries: one message."""


def sweep(inbox: Inbox, store: Store, config: Config, redis: Redis, now: datetime) -> int:
    """Nudges what was left behind; how many deliveries."""
    try:
        redis.set(SWEPT, now.timestamp())
        if not reachable(store.engine):
            log.warning("sweep-failed", error="postgres-is-away")
            return 0
        return _sweep(store, config, redis, now)
    except (RedisError, KombuError, SQLAlchemyError, OSError) as error:
        log.warning("sweep-failed", error=type(error).__name__)
        return 0


def _sweep(store: Store, config: Config, redis: Redis, now: datetime) -> int:
    yard = _Yard.seen(redis, config)
    redis.set(PLACE, yard.place)  # a Redis that takes no write takes no nudge: nothing must be noted as nudged then
    due = _due(store, config, yard, now)
    _nudge_all(due)
    lost = _lost(redis, config, yard, now)
    _nudge_all(lost)
    _tell("deliveries", due)
    _tell("inbox", lost)
    return sum(len(ids) for ids, _, _ in (*due, *lost))


@dataclass(frozen=True, kw_only=True)
class _Yard:
    """What Redis looks like when a sweep begins."""

    idle: frozenset[str]
    """Queues in which nothing waits."""
    size: int
    """Of the inbox."""
    place: bytes

    @classmethod
    def seen(cls, redis: Redis, config: Config) -> _Yard:
        queues = sorted({endpoint.provider for endpoint in config} | {HOUSEKEEPING})
        with redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.llen(queue)
            pipe.hlen(INBOX)
            pipe.get(PLACE)
            *lengths, size, place = pipe.execute()
        idle = frozenset(queue for queue, length in zip(queues, lengths, strict=True) if length == 0)
        return cls(idle=idle, size=size, place=place or b"0")

    def busy(self, config: Config) -> list[str]:
        """The endpoints whose queue is not idle."""
        return [endpoint.name for endpoint in config if endpoint.provider not in self.idle]


# --- deliveries --------------------------------------------------------------------------------------------------


def _due(store: Store, config: Config, yard: _Yard, now: datetime) -> list[Nudge]:
    """Deliveries that are due. One that has been tried is a task of its own: Flower shows it as the one that it was,
    with its count. The others share messages."""
    rows = overdue(store.engine, now, settled=SETTLED, patience=PATIENCE, busy=yard.busy(config), limit=MOST)
    fresh = defaultdict[str, list[UUID]](list)
    for row in rows:
        if not row.attempts:
            fresh[queue_of(config, row.endpoint)].append(row.id)
    tried = [((row.id,), queue_of(config, row.endpoint), row.attempts) for row in rows if row.attempts]
    return [*tried, *_grouped(fresh)]


# --- the inbox ---------------------------------------------------------------------------------------------------

_WALK: Final = """
local busy = {}
for i = 4, #ARGV do busy[ARGV[i]] = true end
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local entries, found = page[2], {}
for i = 1, #entries, 2 do
    local id = entries[i]
    local ours = #id == 36 and string.find(id, '^%x+%-%x+%-7%x+%-%x+%-%x+$')
    if not ours or id < ARGV[3] then
        local endpoint = string.match(entries[i + 1], '^reservoir/1 ([^ ]+) ') or ''
        if not busy[endpoint] then
            found[#found + 1] = id
            found[#found + 1] = endpoint
        end
    end
end
return {page[1], #entries / 2, found}
"""
"""One page of the inbox: cursor, entries seen, and id and endpoint of what is old enough and of no busy endpoint.

What is no id of ours, or no request (an endpoint of no name), is handed out too. Time-ordered ids compare as texts.
"""


def _lost(redis: Redis, config: Config, yard: _Yard, now: datetime) -> list[Nudge]:
    """Requests that nobody has in hand: their queue is idle and they are there all the same. Oldest first."""
    if not yard.idle or not yard.size:
        return []
    found = defaultdict[str, list[UUID]](list)
    for field, endpoint in _walk(redis, yard, yard.busy(config), before=first_id_after(now - SETTLED)):
        identity = _id(field)
        queue = queue_of(config, endpoint)
        if identity is None:
            log.error("not-an-id", where="inbox")  # whoever wrote it must take it away
        elif queue in yard.idle:
            found[queue].append(identity)
    return _grouped({queue: sorted(set(ids)) for queue, ids in found.items()})


def _walk(redis: Redis, yard: _Yard, busy: Collection[str], *, before: UUID) -> Iterable[tuple[bytes, str]]:
    """(field, endpoint) of entries, until there are enough of them, or enough were looked at, or all were."""
    page = redis.register_script(_WALK)
    cursor, seen, handed_out = yard.place, 0, 0
    while True:
        answer = page(keys=[INBOX], args=[cursor, PAGE, str(before), *busy])
        cursor, entries, found = cast("tuple[bytes, int, list[bytes]]", answer)
        yield from zip(found[::2], (name.decode("latin-1") for name in found[1::2]), strict=True)
        seen, handed_out = seen + entries, handed_out + len(found) // 2
        if cursor == b"0" or handed_out >= MOST or seen >= max(WALK, yard.size // SHARE):
            break
    redis.set(PLACE, cursor)


def _id(field: bytes) -> UUID | None:
    try:
        return UUID(field.decode())
    except ValueError:
        return None


# --- nudging -----------------------------------------------------------------------------------------------------


def nudge(ids: Sequence[UUID], queue: str, *, retries: int = 0, **how: Any) -> None:
    """Sends one task for deliveries of one queue, at most GROUP of them.

    Its task id is the first delivery's, so that Flower shows a delivery that comes back as one task with its history.
    """
    texts = [str(identity) for identity in ids]
    app.send_task(PROCESS, args=texts, task_id=texts[0], queue=queue, retries=retries, **how)


def _nudge_all(nudges: Sequence[Nudge]) -> None:
    """Many at once: they leave in batches, which is what makes thousands of retries cheap."""
    if not nudges:
        return
    with app.producer_or_acquire() as producer, producer.batch():
        for ids, queue, retries in nudges:
            nudge(ids, queue, retries=retries, producer=producer, retry=False)


def _grouped(ids: Mapping[str, Iterable[UUID]]) -> list[Nudge]:
    """The ids of each queue in messages of GROUP."""
    nudges: list[Nudge] = []
    for queue, waiting in ids.items():
        rest = iter(waiting)
        while group := tuple(islice(rest, GROUP)):
            nudges.append((group, queue, 0))
    return nudges


def queue_of(config: Config, endpoint: str) -> str:
    """The queue of an endpoint's provider."""
    found = config.endpoints.get(endpoint)
    return found.provider if found else HOUSEKEEPING


def _tell(what: str, nudges: Iterable[Nudge]) -> None:
    counted = defaultdict[str, int](int)
    for ids, queue, _ in nudges:
        counted[queue] += len(ids)
    if counted:
        log.info("nudged", what=what, queues=dict(sorted(counted.items())))
