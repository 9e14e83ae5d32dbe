"""What a run measures, and how rounds become one number. Values only; knows neither servers nor reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import median
from typing import Final

RESERVOIR: Final = "reservoir"
BARE: Final = "bare route"
SEND_TASK: Final = "send_task"
THREADED: Final = "send_task in threads"
WEBDIS: Final = "webdis"
WEBHOOK: Final = "webhook"
NO_OP: Final = "celery no-op"
PGBENCH: Final = "pgbench"

CONNECTIONS: Final = "connections"
"""So many requests under way at once, as fast as they are answered."""
BURST: Final = "burst"
"""So many deliveries that all lie there when the worker starts."""
RATE: Final = "a second"
"""So many requests a second, whatever becomes of them."""

CLIENT_BUSY: Final = 0.8
"""The share of its core from which on the client may have been the limit; such a round does not count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measurement of one contender in one round."""

    contender: str
    """One of the names above."""
    load: str
    """`32 connections`, `256 connections`, `burst of 50000`, `100 a second`."""
    round: int
    per_second: float
    """What was acknowledged or applied a second."""
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_ms: float | None = None
    """CPU time of the measured process and its children, per request or delivery."""
    rss_mb: float | None = None
    """Resident memory of the measured process and its children at the end of the round, MiB."""
    kept: int | None = None
    """How many of the acknowledged were found in the inbox or in PostgreSQL afterwards."""
    acked: int | None = None
    refused: int | None = None
    """Requests that were answered 503: their sender knows that nobody has them."""
    client_share: float | None = None
    """The part of the time in which the client used its core."""
    redis_share: float | None = None
    """The same of Redis, which has the core in common with the client."""
    others_share: float | None = None
    """What had no part in the run used so much of a core: on a quiet machine next to nothing."""
    disk_ms: float | None = None
    """The slowest of a bystander's small writes to the same disk, synced ten times a second meanwhile."""

    @property
    def lost(self) -> int:
        """Acknowledged, and found nowhere."""
        return 0 if self.kept is None or self.acked is None else max(0, self.acked - self.kept)

    @property
    def counts(self) -> bool:
        """Whether it says something about the server, and not about the client."""
        return self.client_share is None or self.client_share < CLIENT_BUSY


@dataclass(frozen=True, kw_only=True, slots=True)
class Soak:
    """The receiver's memory over many requests, MiB."""

    requests: int
    first: float
    """After a tenth of the requests: what a process has loaded and warmed up by then is its size."""
    largest: float
    last: float
    kept: int
    acked: int


@dataclass(frozen=True, kw_only=True, slots=True)
class InboxMemory:
    """What a waiting delivery takes, bytes."""

    raw: int
    """Head and body of the request as it came over the wire."""
    of_the_hash: float
    """`MEMORY USAGE` of the inbox, per delivery."""
    of_redis: float
    """Growth of `used_memory`, per delivery: with the nudges, and whatever else Redis needs for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """Of a whole run, or of the parts of it that were asked for."""

    figures: Sequence[Figure] = ()
    soak: Soak | None = None
    inbox: InboxMemory | None = None

    def __add__(self, other: Results) -> Results:
        """Both parts."""
        return Results(
            figures=[*self.figures, *other.figures], soak=other.soak or self.soak, inbox=other.inbox or self.inbox
        )

    @property
    def lost(self) -> int:
        """Acknowledged, and found nowhere: whatever else was measured, this must be 0."""
        soaked = max(0, self.soak.acked - self.soak.kept) if self.soak else 0
        return sum(figure.lost for figure in self.figures) + soaked


Value = Callable[[Figure], float | None]

PER_SECOND: Final[Value] = attrgetter("per_second")
P50: Final[Value] = attrgetter("p50_ms")
P99: Final[Value] = attrgetter("p99_ms")
CPU: Final[Value] = attrgetter("cpu_ms")
OTHERS: Final[Value] = attrgetter("others_share")
DISK: Final[Value] = attrgetter("disk_ms")
RSS: Final[Value] = attrgetter("rss_mb")


def kind_of(load: str) -> str:
    """CONNECTIONS, BURST or RATE. Raises ValueError."""
    for kind in (CONNECTIONS, BURST, RATE):
        if load.startswith(f"{kind} ") or load.endswith(f" {kind}"):
            return kind
    raise ValueError(f"{load!r} is no load")


def loads(figures: Sequence[Figure]) -> list[str]:
    """Each of them once, in the order in which they came."""
    return list(dict.fromkeys(figure.load for figure in figures))


def contenders(figures: Sequence[Figure], load: str) -> list[str]:
    """Those that had this load, in the order in which they came."""
    return list(dict.fromkeys(figure.contender for figure in figures if figure.load == load))


def by_round(figures: Sequence[Figure], load: str, contender: str, value: Value) -> dict[int, float]:
    """Round → value, where the round counts and has one."""
    return {
        figure.round: found
        for figure in figures
        if figure.load == load and figure.contender == contender and figure.counts
        if (found := value(figure)) is not None
    }


def middle(figures: Sequence[Figure], load: str, contender: str, value: Value = PER_SECOND) -> float | None:
    """The median over the rounds; None without one."""
    found = by_round(figures, load, contender, value)
    return median(found.values()) if found else None


def ratio(figures: Sequence[Figure], load: str, of: str, to: str, value: Value = PER_SECOND) -> float | None:
    """The median of the ratios, each taken within one round: what was slow for both says nothing about either.

    None without a round in which both have a value.
    """
    ours, theirs = by_round(figures, load, of, value), by_round(figures, load, to, value)
    ratios = [ours[one] / theirs[one] for one in ours if theirs.get(one)]
    return median(ratios) if ratios else None
