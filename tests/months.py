"""Venues that live through months: when webhooks come, with opening hours, holidays, seasons, moods and an outage.

For the silence alarm's tests. Time runs in spells of five minutes; all that is told is in which of them a webhook came.
Knows nothing of what is learned from it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from random import Random
from typing import Final
from zoneinfo import ZoneInfo

SPELLS: Final = 12
"""In an hour."""
HOLIDAYS: Final = {(1, 1), (1, 6), (5, 1), (8, 15), (10, 26), (11, 1), (12, 8), (12, 24), (12, 25), (12, 26), (12, 31)}
"""Month and day; Easter's are computed."""
EASTER: Final = {2024: date(2024, 3, 31), 2025: date(2025, 4, 20), 2026: date(2026, 4, 5), 2027: date(2027, 3, 28)}


def is_holiday(day: date) -> bool:
    """In Austria or Germany, more or less."""
    around_easter = day - EASTER[day.year]
    return (day.month, day.day) in HOLIDAYS or around_easter.days in (-2, 0, 1, 39, 50)


@dataclass(frozen=True, kw_only=True)
class Venue:
    """How many webhooks come when."""

    name: str
    zone: ZoneInfo
    a_day: float
    """Signs of interest on an ordinary day, in the mean over the year; each brings one webhook or a few."""
    weekdays: tuple[float, ...] = (0.8, 0.8, 0.9, 1.0, 1.3, 1.6, 1.2)
    """From Monday on, as parts of an ordinary day."""
    opens: int = 9
    closes: int = 23
    nights: float = 0.0
    """An hour outside the opening hours, as a part of one within: people also book at night."""
    on_holidays: float = 0.0
    """As a part of an ordinary day; 0: shut, and nobody books."""
    season: float = 0.3
    """How far summer lies above and winter below the mean."""
    moods: float = 0.35
    """How much days differ from each other: the deviation of the logarithm."""
    follow_ups: float = 0.5
    """Further webhooks for one: a payment, a change."""
    follow_after: tuple[float, ...] = (0.1, 2.0, 30.0)
    """Hours after which they come, in the mean."""

    def days(self, first: date, count: int, chance: Random) -> Iterator[tuple[int, float]]:
        """Hour (since 1970) and the webhooks that come in it in the mean."""
        weights = [1.0 if self.opens <= hour < self.closes else self.nights for hour in range(24)]
        for day in (first + timedelta(days=number) for number in range(count)):
            turn = 2 * math.pi * (day.timetuple().tm_yday - 200) / 365
            busy = self.a_day * self.weekdays[day.weekday()] * (1 + self.season * math.cos(turn))
            busy *= chance.lognormvariate(-(self.moods**2) / 2, self.moods)
            busy *= self.on_holidays if is_holiday(day) else 1.0
            for hour, weight in enumerate(weights):
                local = datetime(day.year, day.month, day.day, hour, tzinfo=self.zone)
                yield int(local.timestamp() / 3600), busy * weight / sum(weights)

    def local(self, hour: int) -> tuple[int, int]:
        """Weekday and hour at the venue."""
        at = datetime.fromtimestamp(hour * 3600, self.zone)
        return at.weekday(), at.hour

    def webhooks(self, first: date, count: int, chance: Random) -> list[float]:
        """When each one comes, in hours since 1970; in a busy spell the first two stand for all of them."""
        came: list[float] = []
        for hour, mean in self.days(first, count, chance):
            for spell in range(SPELLS):
                if chance.random() < -math.expm1(-mean / SPELLS):
                    at = hour + (spell + chance.random()) / SPELLS
                    came.append(at)
                    while chance.random() < self.follow_ups / (1 + self.follow_ups):
                        came.append(at + chance.expovariate(1 / chance.choice(self.follow_after)))
        return sorted(came)


VIENNA = ZoneInfo("Europe/Vienna")
VENUES: Final = (
    Venue(name="escape room, 3 a day", zone=VIENNA, a_day=3, opens=8, closes=24, nights=0.1, on_holidays=0.6),
    Venue(
        name="workshop, 1 a day, Mon-Fri",
        zone=ZoneInfo("Europe/Oslo"),
        a_day=1.2,
        weekdays=(1.4, 1.4, 1.4, 1.4, 1.4, 0.0, 0.0),
        opens=8,
        closes=17,
    ),
    Venue(
        name="laser tag, Fri-Sun",
        zone=VIENNA,
        a_day=12,
        weekdays=(0.02, 0.02, 0.05, 0.1, 2.0, 3.0, 2.0),
        opens=12,
        closes=22,
        nights=0.02,
        on_holidays=1.3,
    ),
    Venue(
        name="tour desk, 25 a day, seasonal",
        zone=ZoneInfo("America/Vancouver"),
        a_day=25,
        opens=7,
        closes=22,
        nights=0.15,
        on_holidays=0.5,
        season=0.7,
    ),
    Venue(
        name="arcade, 20 an hour, shut Mondays",
        zone=VIENNA,
        a_day=220,
        weekdays=(0.0, 0.8, 0.9, 1.0, 1.3, 1.6, 1.2),
        opens=11,
        closes=22,
        follow_after=(0.1,),
    ),
    Venue(name="arcades, 300 an hour", zone=VIENNA, a_day=3000, opens=12, closes=22, nights=0.001, follow_after=(0.1,)),
    Venue(
        name="bar games, 60 an hour, to 2 a.m.",
        zone=ZoneInfo("Europe/Berlin"),
        a_day=600,
        opens=16,
        closes=24,
        nights=0.12,
        on_holidays=0.3,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Life:
    """Nine months of a venue, with one outage in the last six."""

    venue: Venue
    seed: int
    webhooks: list[float]
    """Those that reached us, in hours."""
    watched: range
    """The hours of the last six months."""
    outage: tuple[float, float]


def life(venue: Venue, seed: int, outage_hours: float) -> Life:
    """The same for the same seed."""
    chance = Random(f"{venue.name} {seed}")
    first = date(2024, 1, 1) + timedelta(days=chance.randrange(700))
    came = venue.webhooks(first, 92 + 183, chance)
    begin = int(datetime(first.year, first.month, first.day, tzinfo=venue.zone).timestamp() / 3600)
    watched = range(begin + 92 * 24, begin + (92 + 183) * 24)
    lost = chance.uniform(watched.start, watched.stop - outage_hours - 7 * 24)
    reached = [at for at in came if not lost <= at < lost + outage_hours and at < watched.stop]
    return Life(venue=venue, seed=seed, webhooks=reached, watched=watched, outage=(lost, lost + outage_hours))
