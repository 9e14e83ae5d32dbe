"""The numbers that a run comes to, its last line, and what they should reach.

Where several loads have the same number, the worst of them is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from bench.figures import (
    BARE,
    BURST,
    CONNECTIONS,
    NO_OP,
    P50,
    P99,
    PGBENCH,
    RATE,
    RESERVOIR,
    SEND_TASK,
    InboxMemory,
    Results,
    kind_of,
    loads,
    middle,
    ratio,
)

LAST_LINE: Final = ("ack_ratio", "ack_p99_ms", "vs_send_task", "apply_ratio", "e2e_p50_ms", "e2e_p99_ms")


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What one number should reach."""

    name: str
    means: str
    least: float | None = None
    most: float | None = None

    def reached(self, number: float) -> bool:
        """Whether this number is good enough; as it is, not as it is rounded for the eye."""
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)

    @property
    def wanted(self) -> str:
        return f"at least {self.least:g}" if self.least is not None else f"at most {self.most:g}"


TARGETS: Final = (
    Target(name="ack_ratio", least=0.95, means="durable acknowledgements a second, of the bare route's answers"),
    Target(name="ack_p99_ratio", most=1.5, means="p99 of an acknowledgement, of the bare route's answers"),
    Target(name="vs_send_task", least=12, means="durable acknowledgements a second, of the send_task handler's"),
    Target(name="apply_ratio", least=5, means="deliveries applied a second, of no-op Celery tasks on the same pool"),
    Target(name="apply_vs_pgbench", least=0.35, means="deliveries applied a second, of pgbench's transactions"),
    Target(name="e2e_p50_ms", most=15, means="POST to committed row, p50, ms"),
    Target(name="e2e_p99_ms", most=75, means="POST to committed row, p99, ms"),
    Target(name="soak_rss_mb", most=90, means="the receiver's largest RSS over many requests, MiB"),
    Target(name="soak_growth", most=1.05, means="its last RSS, of that after a tenth of the requests"),
    Target(name="inbox_share", most=1.0, means="Redis's memory per waiting delivery, of 1.6 × the raw bytes + 300"),
)


def numbers(results: Results) -> dict[str, float]:
    """Name → number, without those of parts that were not run."""
    figures, soak, inbox = results.figures, results.soak, results.inbox
    acks, bursts, rates = (
        [load for load in loads(figures) if kind_of(load) == kind] for kind in (CONNECTIONS, BURST, RATE)
    )
    found = {
        "ack_ratio": _worst(min, (ratio(figures, load, RESERVOIR, BARE) for load in acks)),
        "ack_p99_ms": _worst(max, (middle(figures, load, RESERVOIR, P99) for load in acks)),
        "ack_p99_ratio": _worst(max, (ratio(figures, load, RESERVOIR, BARE, P99) for load in acks)),
        "vs_send_task": _worst(min, (ratio(figures, load, RESERVOIR, SEND_TASK) for load in acks)),
        "apply_ratio": _worst(min, (ratio(figures, load, RESERVOIR, NO_OP) for load in bursts)),
        "apply_vs_pgbench": _worst(min, (ratio(figures, load, RESERVOIR, PGBENCH) for load in bursts)),
        "e2e_p50_ms": _worst(max, (middle(figures, load, RESERVOIR, P50) for load in rates)),
        "e2e_p99_ms": _worst(max, (middle(figures, load, RESERVOIR, P99) for load in rates)),
        "soak_rss_mb": soak.largest if soak else None,
        "soak_growth": soak.last / soak.first if soak else None,
        "inbox_share": _inbox_share(inbox) if inbox else None,
    }
    return {name: number for name, number in found.items() if number is not None}


def _inbox_share(memory: InboxMemory) -> float:
    """The larger of the two ways of measuring it, of what is allowed."""
    return max(memory.of_the_hash, memory.of_redis) / (1.6 * memory.raw + 300)


def _worst(which: Callable[[Iterable[float]], float], found: Iterable[float | None]) -> float | None:
    known = [one for one in found if one is not None]
    return which(known) if known else None


def last_line(found: Mapping[str, float]) -> str:
    """What a program reads; numbers of parts that were not run are left out."""
    return " ".join(["bench:", *(f"{name}={shown(found[name])}" for name in LAST_LINE if name in found)])


def missed(found: Mapping[str, float]) -> list[str]:
    """A line for every target that was measured and not reached."""
    return [
        f"missed: {target.name}={shown(found[target.name])}, {target.wanted} is wanted ({target.means})"
        for target in TARGETS
        if target.name in found and not target.reached(found[target.name])
    ]


def shown(number: float) -> str:
    """With as many places as are worth something."""
    places = 0 if number >= 100 else 1 if number >= 10 else 2 if number >= 1 else 3
    return f"{number:.{places}f}"
