"""Numbers as a small bar chart: where each bar stands, and what it says. Pure; the template draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

HOURS: Final = 24
HEIGHT: Final = 28
STEP: Final = 5
BAR: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One hour."""

    x: int
    y: int
    height: int
    says: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A day up to now, hour by hour."""

    bars: Sequence[Bar]
    says: str
    total: int
    width: int = HOURS * STEP - (STEP - BAR)
    height: int = HEIGHT
    bar: int = BAR


def first_hour(now: datetime) -> datetime:
    """Where a chart begins: so that its last bar is the hour that runs now."""
    return now.replace(minute=0, second=0, microsecond=0) - timedelta(hours=HOURS - 1)


def chart(by_hour: Mapping[int, int], since: datetime, zone: ZoneInfo | None) -> Chart:
    """Bars as high as their share of the highest; whatever is not zero can be seen."""
    counts = [by_hour.get(hour, 0) for hour in range(HOURS)]
    most, total = max(counts), sum(counts)
    bars = []
    for hour, count in enumerate(counts):
        height = max(2, round(HEIGHT * count / most)) if count else 0
        begins = (since + timedelta(hours=hour)).astimezone(zone or UTC)
        says = f"{begins:%H:%M}: {count:,}"
        bars.append(Bar(x=hour * STEP, y=HEIGHT - height, height=height, says=says))
    if not total:
        return Chart(bars=bars, says="nothing in 24 hours", total=0)
    peak = (since + timedelta(hours=counts.index(most))).astimezone(zone or UTC)
    says = f"{total:,} in 24 hours, the most in the hour from {peak:%H:%M}: {most:,}"
    return Chart(bars=bars, says=says, total=total)
