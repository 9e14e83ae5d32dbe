"""The incidents in PostgreSQL, and the notices that are still to be sent. Decides nothing: see `incidents`.

Several processes may watch: a lock of the database lets one at a time note what it saw, so each incident is told once.
A notice is in one sender's hands at a time, by a lease; a sender that dies with it leaves it to the next one. So a
notice can come twice, with the same id, and is never lost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Engine, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from console.alarms.findings import Judgement
from console.alarms.incidents import REST, Change, Incident, News, changes
from console.alarms.notice import Notice, about
from workers.tables import incidents, notices

LOCK: Final = 0x616C61726D73
"""\"alarms\": whoever notes what it saw holds it."""
LEASE: Final = timedelta(minutes=1)
"""One try takes less; after it the notice is anybody's again."""
FIRST: Final = timedelta(seconds=15)
LONGEST: Final = timedelta(minutes=15)
FOR: Final = timedelta(hours=24)
"""A notice that could not be sent for so long is given up."""


def note(engine: Engine, judgement: Judgement, channels: Collection[str], now: datetime) -> list[Change]:
    """Brings the incidents up to date, and puts what people are to be told into every channel's line; what was new."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        found = list(changes(judgement, _known(connection, now), now))
        for incident, news in found:
            _keep(connection, incident)
            if news is not None:
                _line_up(connection, incident, news, channels, now, judgement.host)
    return [change for change in found if change[1] is not None]


def adopt(engine: Engine, incident: Incident, unsent: Collection[str], now: datetime, host: str) -> None:
    """An incident of which people were told while there was no database, and the channels that have not told yet.

    Another process may have brought it, and may have seen meanwhile that it is over.
    """
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        same = [known.closed_at for known in _known(connection, now) if known.key == incident.key]
        if any(closed_at is None or closed_at >= incident.last_seen_at for closed_at in same):
            return
        _keep(connection, incident)
        _line_up(connection, incident, News.OPENED, unsent, now, host)


def listed(engine: Engine, since: datetime) -> Iterator[dict[str, Any]]:
    """The incidents that are open or were seen since then, the newest first, with what became of their notices."""
    waiting = func.count(notices.c.id).filter(notices.c.due_at.is_not(None)).label("waiting")
    sent = func.count(notices.c.sent_at).label("sent")
    error = func.max(notices.c.error).filter(notices.c.sent_at.is_(None)).label("error")
    query = (
        select(incidents, sent, waiting, error)
        .outerjoin(notices, notices.c.incident_id == incidents.c.id)
        .where(or_(incidents.c.closed_at.is_(None), incidents.c.last_seen_at >= since))
        .group_by(incidents.c.id)
        .order_by(incidents.c.closed_at.is_not(None), incidents.c.opened_at.desc())
    )
    with engine.connect() as connection:
        for row in connection.execute(query):
            yield row._asdict()


def _known(connection: Connection, now: datetime) -> list[Incident]:
    lately = or_(incidents.c.closed_at.is_(None), incidents.c.last_seen_at > now - 2 * REST)
    rows = connection.execute(select(*(incidents.c[name] for name in _COLUMNS)).where(lately))
    return [Incident(**row._asdict()) for row in rows]


_COLUMNS: Final = tuple(column.name for column in fields(Incident))


def _keep(connection: Connection, incident: Incident) -> None:
    values = asdict(incident)
    changed = {name: value for name, value in values.items() if name not in ("id", "kind", "subject", "opened_at")}
    connection.execute(insert(incidents).values(values).on_conflict_do_update(index_elements=["id"], set_=changed))


def _line_up(
    connection: Connection, incident: Incident, news: News, channels: Collection[str], now: datetime, host: str
) -> None:
    for channel in channels:
        notice = about(incident, news, now, host)
        connection.execute(
            insert(notices).values(
                id=notice.id,
                incident_id=incident.id,
                channel=channel,
                content=dict(notice.content),
                created_at=now,
                due_at=now,
            )
        )


# --- sending -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """A notice in our hands."""

    notice: Notice
    attempts: int
    """With this one."""


def claim(engine: Engine, channel: str, now: datetime) -> Claim | None:
    """The next notice of that channel that is due; what came before of the same incident goes first."""
    earlier = notices.alias()
    waits = exists().where(
        earlier.c.incident_id == notices.c.incident_id,
        earlier.c.channel == notices.c.channel,
        earlier.c.due_at.is_not(None),
        earlier.c.id < notices.c.id,
    )
    chosen = (
        select(notices.c.id)
        .where(notices.c.channel == channel, notices.c.due_at <= now, ~waits)
        .order_by(notices.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    taken = (
        update(notices)
        .where(notices.c.id == chosen.scalar_subquery())
        .values(due_at=now + LEASE, attempts=notices.c.attempts + 1)
        .returning(notices.c.id, notices.c.created_at, notices.c.content, notices.c.attempts)
    )
    with engine.begin() as connection:
        row = connection.execute(taken).one_or_none()
    if row is None:
        return None
    return Claim(notice=Notice(id=row.id, at=row.created_at, content=row.content), attempts=row.attempts)


def sent(engine: Engine, claimed: Claim, now: datetime) -> None:
    """It got there."""
    _settle(engine, claimed, due_at=None, sent_at=now, error=None)


def not_sent(engine: Engine, claimed: Claim, why: str, now: datetime) -> datetime | None:
    """It did not; when it is tried again, None: never."""
    after = now + backoff(claimed.attempts)
    again = after if after - claimed.notice.at < FOR else None
    _settle(engine, claimed, due_at=again, sent_at=None, error=why)
    return again


def _settle(engine: Engine, claimed: Claim, **values: Any) -> None:
    with engine.begin() as connection:
        connection.execute(update(notices).where(notices.c.id == claimed.notice.id).values(**values))


def backoff(attempts: int) -> timedelta:
    """The wait after so many tries: doubled from one to the next."""
    return min(LONGEST, FIRST * (1 << min(attempts - 1, 16)))
