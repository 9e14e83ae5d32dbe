"""How long an endpoint may be silent at this time of the week before somebody should look. Pure: no clock, no I/O.

Learned from the endpoint's own webhooks, by weekday and hour in the venue's time zone:

- A *sign of life* is a spell of five minutes with at least one webhook: what comes in one burst counts once.
- The *week* says how many signs of life each of its hours brings. Recent weeks count more, and where there are few, an
  hour borrows from its weekday and from its hour of the day.
- A silence is measured by what it has *swallowed*: the signs of life that would have come in it. A night weighs
  nothing, a Saturday afternoon much. On a quiet day and in a quiet season everything weighs less: the day and the
  week before the silence say how much.
- It is too long when it has swallowed more than silences of this endpoint do. Were all of it chance, that would happen
  once in `1 / FALSE` months; where its silences are wilder than chance, the limit is higher.

What must not spoil it: one outage in the past (no single extreme decides: quantiles and the second longest do), a
holiday (the first closed day is an alarm; for five weeks after it, up to three whole days without a sign of life are
forgiven), summer and winter time (hours are the venue's).

Until there are three weeks and twenty signs of life, the limit is three days or three times the longest silence so far.
Instants are hours since 1970, as fractions; the week begins on Monday, 00:00.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

SLOT: Final = 1 / 12
"""Hours: what comes within is one sign of life."""
WEEK: Final = 168
MEMORY: Final = 12 * WEEK
"""Hours that are looked back."""
HALF_LIFE: Final = 4 * WEEK
"""Hours after which a week counts half."""
LEAST_HOURS: Final = 3 * WEEK
LEAST_SIGNS: Final = 20
WIDE: Final = 72.0
"""Hours of silence that are too many while nothing is learned yet."""
FLOOR: Final = 0.5
"""Hours: a shorter silence is never too long. Providers have maintenance too."""
LONGEST: Final = MEMORY
"""Hours: a longer silence always is."""
FALSE: Final = 0.02
"""False alarms in a month, were it all chance."""
MONTH: Final = 30.44 * 24
BORROWED: Final = 1.0
"""Weeks of what weekday and hour of the day say that are mixed into each hour of the week."""
USUAL: Final = 5.0
"""Signs of life as usual that are mixed into how busy it has been lately."""
LEVELS: Final = (6, 24, WEEK, 4 * WEEK)
"""Hours over which it is said how busy it has been lately; the quietest of them counts."""
LATELY: Final = 5 * WEEK
"""Hours for which a silence that came to an end by itself is remembered."""
MARGIN: Final = 1.25
"""So much more than the second longest did lately a silence must swallow ..."""
TWICE: Final = 2.0
"""... and so much more than one that was only just too long."""
FORGIVEN: Final = 3
"""Days that may be closed, when one was closed lately."""
CLOSED: Final = 0.9
"""Of what a day brings: where one silence swallows so much of it, it was closed."""
DAY_BEGINS: Final = 5
"""The local hour at which a venue's day is over, whatever the date says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rhythm:
    """What was learned of one endpoint."""

    zone: ZoneInfo
    signs: Sequence[float] = field(repr=False)
    """When signs of life began, sorted."""
    week: tuple[float, ...] | None = None
    """Signs of life that each hour of the week brings; None while nothing is learned."""
    limit: float = 0.0
    """So many signs of life may a silence swallow."""
    forgiven: int = 0
    """Whole days without a sign of life that are not held against it."""
    wide: float = WIDE
    """Hours that a silence may last while nothing is learned."""
    usual: Line | None = field(default=None, repr=False)
    """What was to be expected in the past, without what long silences swallowed."""

    def too_long_at(self, last: float) -> float:
        """When a silence that began then will be too long."""
        if self.week is None:
            return last + self.wide
        level, swallowed = self.level(last), 0.0
        for begin, end in self._counting(last):
            weight = level * self.week[hour_of_week(self.zone, int(begin))]
            if swallowed + weight * (end - begin) >= self.limit:
                return max(last + FLOOR, begin + (self.limit - swallowed) / weight)
            swallowed += weight * (end - begin)
        return last + LONGEST

    def swallowed(self, last: float, now: float) -> float:
        """The signs of life that were to be expected since."""
        if self.week is None:
            return 0.0
        pieces = ((begin, min(end, now)) for begin, end in self._counting(last) if begin < now)
        return self.level(last) * sum(
            self.week[hour_of_week(self.zone, int(begin))] * (end - begin) for begin, end in pieces
        )

    def level(self, at: float) -> float:
        """How busy it was before that, as a part of what the week says; never more than all of it."""
        return min(1.0, *(self._ratio(at - back, at) for back in LEVELS))

    def _ratio(self, begin: float, end: float) -> float:
        assert self.usual is not None
        came = bisect_left(self.signs, end) - bisect_left(self.signs, begin)
        return (came + USUAL) / (self.usual.between(begin, end) + USUAL)

    def _counting(self, last: float) -> Iterator[tuple[float, float]]:
        """Hour by hour from then on, without the days that are forgiven."""
        assert self.week is not None
        left, today, forgiven = self.forgiven, 0, False
        for hour in range(int(last), int(last) + LONGEST):
            if (day := day_of(self.zone, hour)) != today:
                today = day
                forgiven = left > 0 and self._would_be_closed(max(last, hour))
                left -= forgiven
            if not forgiven:
                yield max(last, float(hour)), hour + 1.0

    def _would_be_closed(self, silent_from: float) -> bool:
        """Whether a day that is silent from then on is one that is closed."""
        assert self.week is not None
        day = day_around(self.zone, int(silent_from))
        brings = [self.week[hour_of_week(self.zone, hour)] for hour in day]
        return sum(brings) >= self.limit and sum(brings[int(silent_from) - day.start :]) >= CLOSED * sum(brings)


class Silence(NamedTuple):
    """A stretch of the past without a sign of life."""

    begin: float
    end: float
    swallowed: float
    """Without its closed days, where it has any."""
    closed: bool
    """Whether a whole day that would have been busy is part of it."""


def learn(signs: Sequence[float], zone: ZoneInfo, now: float) -> Rhythm:
    """What the signs of life up to now say."""
    signs = signs[bisect_left(signs, now - MEMORY) : bisect_left(signs, now)]
    gaps = [(before + SLOT, after) for before, after in pairwise(signs) if after - before > 1.5 * SLOT]
    if len(signs) < LEAST_SIGNS or now - signs[0] < LEAST_HOURS:
        return Rhythm(zone=zone, signs=signs, wide=max(WIDE, 3 * max((end - begin for begin, end in gaps), default=0)))
    past = range(int(signs[0]), int(now) + 1)
    week = week_of(signs, zone, past)
    expected = Line(past.start, (week[hour_of_week(zone, hour)] for hour in past))
    chance = math.log(1 + len(gaps) / len(past) * MONTH / FALSE)
    usual = Line(past.start, _without([gap for gap in gaps if expected.between(*gap) >= 3 * chance], week, zone, past))
    rhythm = Rhythm(zone=zone, signs=signs, week=week, usual=usual)
    silences = [_silence(rhythm, expected, gap, chance) for gap in gaps]
    lately = [silence for silence in silences if silence.end > now - LATELY]
    usually = max(chance, _wild(silences, len(past)))
    return Rhythm(
        zone=zone,
        signs=signs,
        week=week,
        limit=max(usually, TWICE * _false(lately, usually), min(MARGIN * _second(lately), _busiest_day(week))),
        forgiven=FORGIVEN if any(silence.closed for silence in lately) else 0,
        usual=usual,
    )


# --- the week ----------------------------------------------------------------------------------------------------


def week_of(signs: Sequence[float], zone: ZoneInfo, past: range) -> tuple[float, ...]:
    """Signs of life that each hour of the week brings, by what these hours brought."""
    came, seen = [0.0] * WEEK, [0.0] * WEEK
    ages = [0.5 ** ((past.stop - hour) / HALF_LIFE) for hour in past]
    for hour, weight in zip(past, ages, strict=True):
        seen[hour_of_week(zone, hour)] += weight
    for sign in signs:
        came[hour_of_week(zone, int(sign))] += ages[int(sign) - past.start]
    mean = sum(came) / sum(seen)
    days = [sum(came[day * 24 : day * 24 + 24]) / sum(seen[day * 24 : day * 24 + 24]) for day in range(7)]
    clock = [sum(came[hour::24]) / sum(seen[hour::24]) for hour in range(24)]
    borrowed = [days[place // 24] * clock[place % 24] / mean for place in range(WEEK)]
    return tuple((came[place] + BORROWED * borrowed[place]) / (seen[place] + BORROWED) for place in range(WEEK))


def _busiest_day(week: Sequence[float]) -> float:
    return max(sum(week[day * 24 : day * 24 + 24]) for day in range(7))


class Line:
    """A sum along the hours, by which any stretch of it is read off at once."""

    def __init__(self, first: int, values: Iterable[float]) -> None:
        self._first = first
        self._sums = [0.0, *accumulate(values)]

    def between(self, begin: float, end: float) -> float:
        return self._until(end) - self._until(begin)

    def _until(self, hour: float) -> float:
        whole = int(hour) - self._first
        if whole < 0:
            return 0.0
        if whole >= len(self._sums) - 1:
            return self._sums[-1]
        sums = self._sums
        return sums[whole] + (hour % 1) * (sums[whole + 1] - sums[whole])


def _without(
    gaps: Sequence[tuple[float, float]], week: Sequence[float], zone: ZoneInfo, past: range
) -> Iterator[float]:
    """What each hour brings, and nothing where it lies in one of these gaps."""
    lost = {hour for begin, end in gaps for hour in range(int(begin), int(end) + 1)}
    return (0.0 if hour in lost else week[hour_of_week(zone, hour)] for hour in past)


# --- the silences of the past ------------------------------------------------------------------------------------


def _silence(rhythm: Rhythm, expected: Line, gap: tuple[float, float], chance: float) -> Silence:
    brings = expected.between(*gap)
    if brings < 1:  # most are, and none of them decides anything: it is not worth while to weigh them
        return Silence(*gap, brings, closed=False)
    closed = list(_closed_days(rhythm.zone, expected, gap, chance))
    return Silence(*gap, rhythm.level(gap[0]) * (brings - sum(closed)), bool(closed))


def _closed_days(zone: ZoneInfo, expected: Line, gap: tuple[float, float], chance: float) -> Iterator[float]:
    """What a gap swallowed of days that were as good as wholly silent, where that can be no chance."""
    begin, end = gap
    if expected.between(begin, end) < CLOSED * chance:
        return
    hour = int(begin)
    while hour < end:
        day = day_around(zone, hour)
        brings = expected.between(day.start, day.stop)
        silent = expected.between(max(begin, day.start), min(end, day.stop))
        if brings >= chance and silent >= CLOSED * brings:
            yield silent
        hour = day.stop


def _wild(silences: Sequence[Silence], hours: int) -> float:
    """What silences swallow so seldom, if their longer ones go on as the upper quarter does (but for its extremes).

    By chance alone this comes out at `chance`: what they swallow is then exponentially distributed, with mean 1.
    """
    if len(silences) < LEAST_SIGNS:
        return 0.0
    swallowed = sorted(silence.swallowed for silence in silences)
    quarter, twentieth = (swallowed[int(len(swallowed) * part)] for part in (0.75, 0.95))
    grows = (twentieth - quarter) / math.log(5)
    return quarter + grows * math.log(max(1.0, 0.25 * len(silences) / hours * MONTH / FALSE))


def _false(silences: Sequence[Silence], limit: float) -> float:
    """What the longest has swallowed of those that were too long, and not by much: more likely a false alarm."""
    return max((each.swallowed for each in silences if limit < each.swallowed <= TWICE * limit), default=0.0)


def _second(silences: Sequence[Silence]) -> float:
    """What the second longest has swallowed; those less than a day apart are one."""
    apart: list[Silence] = []
    for silence in silences:
        if apart and silence.begin - apart[-1].end < 24:
            apart[-1] = max(apart[-1], silence, key=lambda each: each.swallowed)._replace(end=silence.end)
        else:
            apart.append(silence)
    return sorted(silence.swallowed for silence in apart)[-2] if len(apart) > 1 else 0.0


# --- the venue's clock -------------------------------------------------------------------------------------------


@lru_cache(maxsize=1 << 16)
def _local(zone: ZoneInfo, hour: int) -> tuple[int, int]:
    """The hour of the week, and a number for the venue's day."""
    local = datetime.fromtimestamp(hour * 3600, zone)
    return local.weekday() * 24 + local.hour, local.toordinal() - (local.hour < DAY_BEGINS)


def hour_of_week(zone: ZoneInfo, hour: int) -> int:
    """0 is Monday from midnight to one."""
    return _local(zone, hour)[0]


def day_of(zone: ZoneInfo, hour: int) -> int:
    """A number that is the same for all hours of a venue's day."""
    return _local(zone, hour)[1]


def day_around(zone: ZoneInfo, hour: int) -> range:
    """The 24 hours of the venue's day."""
    begin = hour - (hour_of_week(zone, hour) - DAY_BEGINS) % 24
    return range(begin, begin + 24)


def in_hours(instant: datetime) -> float:
    """An instant as we count."""
    return instant.timestamp() / 3600


def instant_of(hours: float) -> datetime:
    """The other way round, UTC."""
    return datetime.fromtimestamp(hours * 3600, UTC)
