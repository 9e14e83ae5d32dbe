"""Whether work is done: workers that hear, sweeps that come, and nothing that waits for too long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from redis import Redis
from sqlalchemy import Connection, func, select

from console.doctor.finding import Finding, by_age, fail, ok, span, warn
from schemas.delivery import EPOCH, INBOX, State
from workers.tables import deliveries

HEARTBEATS: Final = "reservoir:worker:"
"""A worker's name behind it: when it heard last. See `workers.watch`."""
SWEPT: Final = "reservoir:swept"
"""When a sweep last ran. See `workers.sweep`."""
DEAF: Final = timedelta(seconds=60)
UNSWEPT: Final = timedelta(seconds=30)
LATE: Final = timedelta(minutes=1)
LOST: Final = timedelta(minutes=10)
MANY: Final = 500_000
"""So many ids are not fetched to find the oldest of them."""


def workers(client: Redis, now: datetime) -> Finding:
    """Whether there are any, and they hear."""
    heard = _heard(client)
    if not heard:
        mend = "start one (`reservoir up`, or the Procfile's line); a new one is seen after 20 s"
        return fail("workers", "none was heard of in the last two minutes", mend)
    deaf = sorted(name for name, at in heard.items() if now - at > DEAF)
    if deaf:
        mend = "look at its log; a deaf one ends by itself within a minute, and its supervisor starts it anew"
        return warn("workers", f"{len(heard)}, of which {', '.join(deaf)} hears nothing", mend)
    return ok("workers", f"{len(heard)} hear: {', '.join(sorted(heard))}")


def _heard(client: Redis) -> dict[str, datetime]:
    """When each worker heard last."""
    keys = [_text(key) for key in client.scan_iter(f"{HEARTBEATS}*", count=1000)]
    values = cast("list[Any]", client.mget(keys)) if keys else []
    found = zip(keys, values, strict=True)
    return {
        key.removeprefix(HEARTBEATS): datetime.fromtimestamp(float(value), UTC)
        for key, value in found
        if value is not None
    }


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key


def beat(client: Redis, now: datetime) -> Finding:
    """Whether the sweeps come: beat sends them, a worker does them, and each of them writes when it ran."""
    mend = "see that one `beat` runs, and a worker that takes the queue `sweeps`"
    swept = client.get(SWEPT)
    if swept is None:
        return fail("beat", "there was no sweep yet", mend)
    ago = max(now - datetime.fromtimestamp(float(swept), UTC), timedelta())
    text = f"swept {span(ago)} ago"
    return fail("beat", text, mend) if ago > UNSWEPT else ok("beat", text)


def inbox(client: Redis, now: datetime) -> Finding:
    """What waits in Redis for a worker."""
    count = int(client.hlen(INBOX))
    if not count:
        return ok("inbox", "nothing waits")
    mend = "see that workers run and PostgreSQL answers"
    if count > MANY:
        return fail("inbox", f"{count} requests wait", mend)
    ids = (_received(_text(key)) for key in cast("list[bytes]", client.hkeys(INBOX)))
    age = now - min((at for at in ids if at is not None), default=now)
    text = f"{count} wait, the oldest for {span(age)}"
    return by_age("inbox", text, age, late=LATE, lost=LOST, mend=mend)


def _received(identity: str) -> datetime | None:
    """The time in a time-ordered id; None where it is none of ours."""
    try:
        return EPOCH + timedelta(milliseconds=int(identity.replace("-", "")[:12], 16))
    except (ValueError, OverflowError):
        return None


def overdue(connection: Connection, now: datetime) -> Finding:
    """What a worker should have looked at by now."""
    columns = deliveries.c
    firsts = [
        connection.execute(select(func.min(due)).where(due <= now)).scalar_one()
        for due in (columns.next_attempt_at, columns.acknowledge_at)
    ]
    first = min((each for each in firsts if each is not None), default=None)
    if first is None:
        return ok("overdue", "nothing is")
    age = now - first
    mend = "see that a beat and workers run; `reservoir deliveries list --state retrying` shows the reasons"
    text = f"the oldest delivery has been due for {span(age)}"
    return by_age("overdue", text, age, late=LATE, lost=LOST, mend=mend)


def parked(connection: Connection) -> Finding:
    """What needs a person."""
    query = select(func.count()).where(deliveries.c.state == State.PARKED)
    count = int(connection.execute(query).scalar_one())
    if count:
        mend = "`reservoir deliveries list --state parked` says why"
        return warn("parked", f"{count} deliveries need a person", mend)
    return ok("parked", "nothing needs a person")
