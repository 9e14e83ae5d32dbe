"""What one look at the installation saw, as values. A part that could not be seen is None, and `why` says why.

Knows neither how it is looked at nor what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from console.alarms.rhythm import Rhythm
from console.spooled import Spooled
from schemas.acks import Acks
from schemas.endpoints import Endpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class Heard:
    """One endpoint: what it is, when it was heard last, and its rhythm."""

    endpoint: Endpoint
    last: datetime | None
    rhythm: Rhythm


@dataclass(frozen=True, kw_only=True, slots=True)
class Parked:
    """Dead letters of one endpoint."""

    count: int
    latest: datetime
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unsettled:
    """Deliveries of one provider in one state."""

    count: int
    oldest: datetime
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """When it heard something last, and whether it still sends heartbeats."""

    heard_at: datetime
    beats: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class AtPostgres:
    """What the tables say."""

    heard: Mapping[str, Heard] = field(default_factory=dict)
    parked: Mapping[str, Parked] = field(default_factory=dict)
    unsettled: Mapping[tuple[str, str], Unsettled] = field(default_factory=dict)
    """By provider and state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AtRedis:
    """What the receivers and the workers leave there."""

    inbox: int = 0
    inbox_oldest: datetime | None = None
    acks: Mapping[str, Acks] = field(default_factory=dict)
    workers: Mapping[str, Worker] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """What one look saw. A part that is None could not be seen."""

    now: datetime
    endpoints: Mapping[str, Endpoint]
    host: str
    postgres: AtPostgres | None
    redis: AtRedis | None
    spool: Spooled | None
    why: Mapping[str, str] = field(default_factory=dict)
    """Of a part that could not be seen: what it said."""
