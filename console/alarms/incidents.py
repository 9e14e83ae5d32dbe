"""From findings to incidents: one for each kind and subject, told once when it opens and once when it is over.

Pure: what is known of an incident and what a look found make the incident as it is afterwards, and what people are to
be told. Damped: a kind that may pass by itself must last for a while before anybody is told; an incident that comes
again within a day is the same one, told only when it lasts, and for longer each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final
from uuid import UUID

from console.alarms.findings import ALARMS, Finding, Judgement
from schemas.delivery import new_id

REST: Final = timedelta(hours=24)
"""What comes again so soon after it was over is the same incident."""
AGAIN: Final = timedelta(minutes=15)
"""So long it must last when it comes again; twice as long with each further time ..."""
AGAIN_MOST: Final = timedelta(hours=4)
"""... and never longer."""
MORE: Final = timedelta(minutes=15)
"""Between two notices that there is more of the same."""


class News(StrEnum):
    """What people are told about an incident."""

    OPENED = "opened"
    MORE = "more"
    RECOVERED = "recovered"


@dataclass(frozen=True, kw_only=True, slots=True)
class Incident:
    """One row of `incidents`."""

    id: UUID
    kind: str
    subject: str
    title: str
    detail: str
    opened_at: datetime
    last_seen_at: datetime
    closed_at: datetime | None = None
    tell_at: datetime
    """When people are told, if it lasts until then."""
    notified_at: datetime | None = None
    """When they were told last; None: not of this opening."""
    times: int = 1
    """How often it has opened."""
    amount: int = 0
    latest: datetime | None = None
    """How much of it people know, and up to when."""

    @property
    def key(self) -> tuple[str, str]:
        return self.kind, self.subject


Change = tuple[Incident, News | None]


def changes(judgement: Judgement, known: Iterable[Incident], now: datetime) -> Iterator[Change]:
    """Every incident that is not as it was, or was seen again. `known`: the open ones, and those lately over."""
    before = {incident.key: incident for incident in sorted(known, key=lambda incident: incident.opened_at)}
    found = {(finding.kind, finding.subject): finding for finding in judgement.findings}
    for key, finding in found.items():
        yield seen(before.get(key), finding, now)
    for key, incident in before.items():
        if key not in found and incident.closed_at is None and judgement.covers(*key):
            yield over(incident, now)


def seen(known: Incident | None, finding: Finding, now: datetime) -> Change:
    """It is there."""
    if known is None or (known.closed_at is not None and now - known.closed_at > REST):
        incident = opened(finding, now)
    elif known.closed_at is not None:
        incident = reopened(known, now)
    else:
        incident = known
    incident = replace(incident, title=finding.title, detail=finding.detail, last_seen_at=now)
    if incident.notified_at is None:
        return told(incident, finding, now, News.OPENED) if now >= incident.tell_at else (incident, None)
    if _is_more(incident, finding) and now - incident.notified_at >= MORE:
        return told(incident, finding, now, News.MORE)
    return replace(incident, amount=min(incident.amount, finding.amount)), None


def opened(finding: Finding, now: datetime) -> Incident:
    """For the first time, or for the first time in a day."""
    return Incident(
        id=new_id(),
        kind=finding.kind,
        subject=finding.subject,
        title=finding.title,
        detail=finding.detail,
        opened_at=now,
        last_seen_at=now,
        tell_at=now + ALARMS[finding.kind].patience,
    )


def reopened(known: Incident, now: datetime) -> Incident:
    """Shortly after it was over."""
    wait = min(AGAIN * (1 << min(known.times - 1, 10)), AGAIN_MOST)
    return replace(known, closed_at=None, tell_at=now + wait, notified_at=None, times=known.times + 1)


def told(incident: Incident, finding: Finding, now: datetime, news: News) -> Change:
    """People know of it from now on."""
    return replace(incident, notified_at=now, amount=finding.amount, latest=finding.latest), news


def _is_more(incident: Incident, finding: Finding) -> bool:
    newer = finding.latest is not None and (incident.latest is None or finding.latest > incident.latest)
    return newer or finding.amount > incident.amount


def over(incident: Incident, now: datetime) -> Change:
    """It is not there any more. Who was not told that it came is not told that it went."""
    return replace(incident, closed_at=now), News.RECOVERED if incident.notified_at is not None else None
