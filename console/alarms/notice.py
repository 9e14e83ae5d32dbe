"""What people are told, as a value, and how it reads. Knows no channel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from console.alarms.findings import ALARMS
from console.alarms.incidents import Incident, News
from schemas.delivery import new_id

RUNBOOK: Final = "docs/alarms.md"
_HEADLINE: Final[Mapping[str, str]] = {News.OPENED: "Alarm", News.MORE: "More", News.RECOVERED: "Over"}
TEST: Final = "test"


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """One message; the same over every channel, and each time that it is tried."""

    id: UUID
    at: datetime
    content: Mapping[str, Any]
    """`type`, `timestamp` and `data`, as Standard Webhooks advises."""

    @property
    def headline(self) -> str:
        """One line."""
        data = self.content["data"]
        return f"{_HEADLINE.get(data['news'], 'Test')}: {data['title']}"

    @property
    def text(self) -> str:
        """All of it, for a person."""
        lines = [self.headline, "", *(f"{name}: {value}" for name, value in self._told())]
        return "\n".join(lines) + "\n"

    def _told(self) -> list[tuple[str, Any]]:
        names = ("detail", "mend", "runbook", "opened_at", "closed_at", "times", "host", "incident")
        return [(name, self.content["data"][name]) for name in names if self.content["data"].get(name) is not None]

    @property
    def json(self) -> str:
        return json.dumps(self.content, ensure_ascii=False)


def about(incident: Incident, news: News, now: datetime, host: str) -> Notice:
    """What is told of an incident."""
    data = {
        "news": news.value,
        "incident": str(incident.id),
        "kind": incident.kind,
        "subject": incident.subject,
        "title": incident.title,
        "detail": incident.detail,
        "mend": ALARMS[incident.kind].mend if news is not News.RECOVERED else None,
        "runbook": f"{RUNBOOK}#{incident.kind}",
        "opened_at": incident.opened_at.isoformat(),
        "closed_at": incident.closed_at.isoformat() if incident.closed_at else None,
        "times": incident.times,
        "host": host,
    }
    return Notice(id=new_id(), at=now, content=_content(f"incident.{news.value}", now, data))


def for_trial(now: datetime, host: str) -> Notice:
    """A notice by which people see that they would be told."""
    data = {"news": TEST, "title": "this is a test", "detail": "`reservoir alarms test` was run; all is well"}
    return Notice(id=new_id(), at=now, content=_content("alarms.test", now, {**data, "host": host}))


def _content(kind: str, now: datetime, data: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": kind, "timestamp": now.isoformat(), "data": data}
