"""What every endpoint does now, as the first page shows it: one line each. Knows no SQL and no HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from console.web.chart import Chart, chart, first_hour
from console.web.views import Views
from schemas.acks import Acks
from schemas.delivery import State, door_of
from schemas.endpoints import Config

HIGH: Final = 0.5
"""The share of the deadline from which on an answer is called slow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ack:
    """How long the slowest answer took lately, and how long the sender waits for one."""

    told: Acks
    deadline: timedelta

    @property
    def share(self) -> float:
        return self.told.slowest / self.deadline

    @property
    def is_high(self) -> bool:
        return self.share > HIGH


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One endpoint."""

    name: str
    provider: str
    is_known: bool
    """It stands in the configuration."""
    latest: datetime | None
    """When it sent last."""
    chart: Chart
    ack: Ack | None
    """None where the provider names no deadline, or the receivers do not tell."""
    parked: int
    retrying: int
    today: date
    """The venue's."""
    visits: int
    """Of today."""


def lines(views: Views, config: Config, told: Mapping[str, Acks], at: datetime) -> list[Line]:
    """Every endpoint that is configured or has ever sent something, by name."""
    sent = views.endpoints()
    providers = {name: row["provider"] for name, row in sent.items()}
    providers |= {endpoint.name: endpoint.provider for endpoint in config}
    since = first_hour(at)
    by_hour = views.by_hour(providers, since)
    troubled, visits = views.troubled(), views.visits(at.astimezone(UTC).date())
    found = []
    for name, provider in sorted(providers.items()):
        endpoint = config.endpoints.get(name)
        zone = endpoint.zone() if endpoint else None
        today = at.astimezone(zone or UTC).date()
        found.append(
            Line(
                name=name,
                provider=provider,
                is_known=endpoint is not None,
                latest=sent[name]["received_at"] if name in sent else None,
                chart=chart(by_hour.get(name, {}), since, zone),
                ack=_ack(told.get(name), provider),
                parked=troubled.get((name, State.PARKED), 0),
                retrying=troubled.get((name, State.RETRYING), 0),
                today=today,
                visits=visits.get((name, today), 0),
            )
        )
    return found


def _ack(told: Acks | None, provider: str) -> Ack | None:
    deadline = door_of(provider).deadline
    return None if told is None or deadline is None else Ack(told=told, deadline=deadline)
