"""The silence alarm on simulated months: at most one false alarm a month, and no long outage is missed.

`pytest tests/test_alarms_rhythm.py -s` prints what was learned of each kind of venue, and how it did.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import pairwise
from statistics import median
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from months import VENUES, Life, Venue, life

from console.alarms.rhythm import FLOOR, FORGIVEN, LONGEST, SLOT, WEEK, WIDE, Rhythm, in_hours, learn

MONTH = 30.44 * 24
MOMENT = 1e-6
OUTAGES = (6.0, 30.0, 72.0, 120.0, 240.0)
"""Hours; at places with little traffic four times as many."""


def signs_of(webhooks: Sequence[float]) -> list[float]:
    """The five minutes in which something came."""
    return [slot * SLOT for slot in sorted({int(at / SLOT) for at in webhooks})]


@dataclass
class Watched:
    """What the alarm said in six months."""

    life: Life
    alarms: list[tuple[float, float]] = field(default_factory=list)
    """When, and when it was over."""
    gaps: list[float] = field(default_factory=list)
    """Hours that a silence might last, week by week, if it began at five in the afternoon of a busy day."""
    gap: float = 0.0
    """Hours that the silence might last of which the outage was a part."""

    @property
    def false(self) -> list[float]:
        """Those that began while all was well."""
        begin, end = self.life.outage
        return [at for at, _ in self.alarms if not begin <= at < end]

    @property
    def most_in_a_month(self) -> int:
        """Of the false ones, in any thirty days."""
        return max((sum(at <= other < at + MONTH for other in self.false) for at in self.false), default=0)

    @property
    def outage(self) -> float:
        begin, end = self.life.outage
        return end - begin

    @property
    def found_after(self) -> float | None:
        """Hours of the outage."""
        begin, end = self.life.outage
        return next((max(at - begin, 0.0) for at, until in self.alarms if at < end and until > begin), None)


def watched(lived: Life) -> Watched:
    """Six months, silence by silence; the rhythm is learned anew all the time, as the process does it."""
    seen, signs = Watched(lived), signs_of(lived.webhooks)
    zone = lived.venue.zone
    before = lived.webhooks[bisect_left(lived.webhooks, lived.outage[0]) - 1]
    seen.gap = gap_of(learn(signs, zone, lived.outage[0]), before)
    for begin in range(lived.watched.start, lived.watched.stop, WEEK):
        rough, busy = learn(signs, zone, begin), busy_evening(lived, begin)
        suspicious = replace(rough, limit=rough.limit / 2, wide=rough.wide / 2, forgiven=0)
        seen.gaps.append(gap_of(rough, busy))
        first = max(bisect_right(lived.webhooks, begin) - 1, 0)
        stop = bisect_left(lived.webhooks, min(begin + WEEK, lived.watched.stop))
        for last, after in pairwise([*lived.webhooks[first : stop + 1], lived.watched.stop]):
            if begin <= last < begin + WEEK and after - last > FLOOR:
                at = alarm(signs, lived.venue, (last, after), suspicious.too_long_at(last))
                if at is not None:
                    seen.alarms.append((at, after))
    return seen


def gap_of(rhythm: Rhythm, last: float) -> float:
    return rhythm.too_long_at(last) - last


def busy_evening(lived: Life, begin: int) -> float:
    """Saturday or the busiest weekday of the week that begins then, at 17:00."""
    best = max(range(7), key=lambda day: lived.venue.weekdays[day])
    return begin + next(h for h in range(WEEK) if lived.venue.local(begin + h) == (best, 17))


def alarm(signs: Sequence[float], venue: Venue, silence: tuple[float, float], at: float) -> float | None:
    """When this silence becomes an alarm, if it does before it ends; it is looked at from then on."""
    last, after = silence
    while at < after:
        then = learn(signs, venue.zone, at).too_long_at(last)
        if then <= at:
            return at
        at = then
    return None


# --- months ------------------------------------------------------------------------------------------------------


def lives(venue: Venue, seeds: range) -> list[Watched]:
    """One for each seed, with a short or a long outage."""
    longer = 4 if venue.a_day < 5 else 1
    return [watched(life(venue, seed, longer * OUTAGES[seed % len(OUTAGES)])) for seed in seeds]


def check(venue: Venue, seeds: range) -> None:
    """What is required; a line of the table on the way."""
    seen = lives(venue, seeds)
    gaps = sorted(gap for each in seen for gap in each.gaps)
    long = [each for each in seen if each.outage > 2 * each.gap]
    told = {
        "lives": len(seen),
        "false a month": f"{sum(len(each.false) for each in seen) / len(seen) / 6:.2f}",
        "most": max(each.most_in_a_month for each in seen),
        "gap in hours": f"{median(gaps):.1f}",
        "p90": f"{gaps[len(gaps) * 9 // 10]:.1f}",
        "outages found": sum(each.found_after is not None for each in seen),
        "over twice the gap": len(long),
        "of these found": sum(each.found_after is not None for each in long),
    }
    print(f"\n{venue.name:34}", *(f"{name}: {value:<6}" for name, value in told.items()))
    assert {(each.life.seed, each.most_in_a_month) for each in seen if each.most_in_a_month > 1} == set()
    assert {each.life.seed for each in long if each.found_after is None} == set()
    assert all(each.found_after <= 2 * each.gap for each in long if each.found_after is not None)


DEAR = "bar games, 60 an hour, to 2 a.m."
"""A life of it takes as long to watch as one of most of the others together."""


@pytest.mark.parametrize(
    "venue",
    [pytest.param(venue, id=venue.name, marks=[pytest.mark.long] * (venue.name == DEAR)) for venue in VENUES],
)
def test_one_false_alarm_a_month_at_most_and_no_long_outage_missed(venue: Venue) -> None:
    """Six months with opening hours, holidays, seasons, moods and an outage."""
    check(venue, range(2))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.name)
def test_the_same_for_many_more_lives(venue: Venue) -> None:
    check(venue, range(2, 32))


USEFUL = {
    "escape room, 3 a day": 96,
    "workshop, 1 a day, Mon-Fri": 240,
    "laser tag, Fri-Sun": 6,
    "tour desk, 25 a day, seasonal": 24,
    "arcade, 20 an hour, shut Mondays": 2,
    "arcades, 300 an hour": 1,
    "bar games, 60 an hour, to 2 a.m.": 2,
}
"""Hours: what a person who knows the place would find too long, at five on its busiest day."""


@pytest.mark.parametrize("venue", VENUES, ids=lambda venue: venue.name)
def test_the_learned_gap_is_of_use(venue: Venue) -> None:
    """An alarm that never comes has no false ones either."""
    lived = life(venue, 1, 1.0)
    signs = signs_of(lived.webhooks)
    weeks = range(lived.watched.start, lived.watched.stop, 4 * WEEK)
    gaps = [gap_of(learn(signs, venue.zone, begin), busy_evening(lived, begin)) for begin in weeks]
    assert FLOOR <= median(gaps) <= USEFUL[venue.name]


# --- what it is made of ------------------------------------------------------------------------------------------

UTC = ZoneInfo("UTC")
MONDAY = 20570 * 24
"""A Monday in 2026, midnight UTC."""


def steady(weeks: int, *, opens: int = 10, closes: int = 20, every: float = 0.1, first: int = MONDAY) -> list[float]:
    """Every six minutes while it is open, every day."""
    count = round((closes - opens) / every)
    return signs_of([first + day * 24 + opens + number * every for day in range(7 * weeks) for number in range(count)])


def test_a_night_is_no_silence_and_a_morning_is() -> None:
    now = MONDAY + 8 * WEEK
    rhythm = learn(steady(8), UTC, now)
    assert now + 10 < rhythm.too_long_at(now - 4) < now + 12
    noon = now - 12
    assert FLOOR <= rhythm.too_long_at(noon) - noon < 2


def test_nothing_is_learned_from_little() -> None:
    now = MONDAY + 2 * WEEK
    rhythm = learn(steady(2), UTC, now)
    assert (rhythm.week, rhythm.too_long_at(now) - now) == (None, WIDE)
    few = [MONDAY + day * 48 for day in range(10)]
    assert learn(few, UTC, MONDAY + 10 * 48).too_long_at(now) - now == pytest.approx(3 * (48 - SLOT))
    assert learn([], UTC, now).too_long_at(now) - now == WIDE


@pytest.mark.parametrize("hours", [5, 12, 40, 100])
def test_an_outage_in_the_past_changes_little(hours: int) -> None:
    """Neither the gap in the middle of a day nor what is forgiven in it."""
    now = MONDAY + 12 * WEEK + 17
    before = learn(steady(13), UTC, now)
    lost = now - 9 * 24
    after = learn([sign for sign in steady(13) if not lost <= sign < lost + hours], UTC, now)
    assert before.too_long_at(now) - now <= after.too_long_at(now) - now < 1.5 * (before.too_long_at(now) - now)


def test_a_closed_day_is_an_alarm_and_the_next_ones_are_not() -> None:
    """Until five weeks have passed."""
    signs = steady(30)
    holiday = MONDAY + 15 * WEEK + 3 * 24
    open_days = [sign for sign in signs if not holiday <= sign < holiday + 24]
    evening = holiday - 4.1
    assert holiday + 10 < learn(open_days, UTC, evening).too_long_at(evening) < holiday + 13
    for weeks, forgiven in ((1, FORGIVEN), (4, FORGIVEN), (6, 0)):
        later = holiday + weeks * WEEK - 4.1
        rhythm = learn(open_days, UTC, later)
        opening = later + 4.1 + 24 * forgiven + 10
        assert opening < rhythm.too_long_at(later) < opening + 3
        noon = later - 8
        assert rhythm.too_long_at(noon) - noon < 2, "an outage in the day is found as fast as ever"


def test_hours_are_the_venues() -> None:
    """Summer time ends in the middle of what is learned; the venue opens at ten by its own clock."""
    vienna = ZoneInfo("Europe/Vienna")
    first = datetime(2026, 9, 7, tzinfo=vienna)
    came = []
    for day in range(10 * 7):
        local = first + timedelta(days=day)
        came += [in_hours(local.replace(hour=10)) + number * 0.1 for number in range(100)]
    now = in_hours(datetime(2026, 11, 13, 9, 0, tzinfo=vienna))
    rhythm = learn(signs_of(came), vienna, now)
    assert rhythm.week is not None
    assert [round(rhythm.week[hour]) for hour in (8, 9, 10, 19, 20)] == [0, 0, 10, 10, 0]


def test_a_quiet_season_makes_patient() -> None:
    """A tenth of the usual for a week: a silence weighs less."""
    now = MONDAY + 12 * WEEK + 17
    usual = steady(13)
    quiet = [sign for number, sign in enumerate(usual) if sign < now - WEEK or number % 10 == 0]
    patient, before = (learn(signs, UTC, now).too_long_at(now) - now for signs in (quiet, usual))
    assert patient > 3 * before


def test_the_silence_that_is_going_on_is_no_part_of_what_is_usual() -> None:
    """The alarm does not run away from the hours that pass."""
    signs, last = steady(12), MONDAY + 12 * WEEK - 4.1
    first = learn(signs, UTC, last + MOMENT).too_long_at(last)
    assert abs(learn(signs, UTC, first).too_long_at(last) - first) < 0.5
    assert learn(signs, UTC, first + 1).too_long_at(last) < first + 1


def test_a_silence_that_was_only_just_too_long_makes_patient_for_five_weeks() -> None:
    """It ended by itself: an opening an hour later than ever, say. The same again is no second alarm."""
    holiday, signs = MONDAY + 15 * WEEK, steady(30)
    late = [sign for sign in signs if not holiday <= sign < holiday + 11.5]
    evening = holiday - 4.1
    assert learn(late, UTC, evening).too_long_at(evening) < holiday + 11.5
    assert learn(late, UTC, evening + 2 * WEEK).too_long_at(evening + 2 * WEEK) > holiday + 2 * WEEK + 11.5
    assert learn(late, UTC, evening + 6 * WEEK).too_long_at(evening + 6 * WEEK) < holiday + 6 * WEEK + 11.5


def test_what_a_silence_has_swallowed_reaches_the_limit_when_it_is_too_long() -> None:
    now = MONDAY + 12 * WEEK + 12
    rhythm = learn(steady(13), UTC, now)
    too_long = rhythm.too_long_at(now)
    assert rhythm.swallowed(now, now) == 0
    assert rhythm.swallowed(now, too_long) == pytest.approx(rhythm.limit)


def test_an_endpoint_that_is_hardly_used_is_too_long_silent_at_some_time() -> None:
    signs = [MONDAY + number * 60.0 for number in range(28)]
    rhythm = learn(signs, UTC, MONDAY + 10 * WEEK)
    assert rhythm.too_long_at(signs[-1]) - signs[-1] <= LONGEST


instants = st.lists(st.floats(MONDAY, MONDAY + 14 * WEEK), max_size=120)


@given(instants, st.sampled_from(["UTC", "Europe/Vienna", "Asia/Kolkata", "America/St_Johns", "Pacific/Apia"]))
def test_any_history_has_a_rhythm(came: list[float], zone: str) -> None:
    """And no silence is too long before the floor, or lasts for ever."""
    now = MONDAY + 14.0 * WEEK
    rhythm = learn(signs_of(came), ZoneInfo(zone), now)
    for last in (now, now + 0.5, now + 30):
        gap = rhythm.too_long_at(last) - last
        assert FLOOR - MOMENT <= gap <= LONGEST or (gap == rhythm.wide and rhythm.week is None)
