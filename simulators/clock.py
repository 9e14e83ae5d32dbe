"""A clock of the simulators' own: hours pass in seconds, and the same seed gives the same day."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from random import Random
from typing import Final, TypeVar

T = TypeVar("T")


class Clock:
    """Simulated time that runs `speed` times as fast as the wall clock, from `start` on.

    It has two hands. The schedule goes on steadily, and by it things happen; the time of day can leap, as a server's
    clock does when it is set, and it is what the provider stamps on things.
    """

    def __init__(self, start: datetime, speed: float = 1.0) -> None:
        if start.utcoffset() is None:
            raise ValueError("start needs a time zone")
        self.start = start
        self.speed = speed
        self.leapt = timedelta()
        """By how much the time of day is ahead of the schedule; it only grows."""
        self._behind = timedelta()
        self._began = time.monotonic()

    def scheduled(self) -> datetime:
        """Where the schedule is, in the zone of `start`."""
        return self.start + timedelta(seconds=(time.monotonic() - self._began) * self.speed)

    def now(self) -> datetime:
        """The simulated time of day, in the zone of `start`."""
        return self.scheduled() + self.leapt

    def date(self) -> str:
        """The time of day as the header `Date` has it, in which a leap backward shows."""
        return format_datetime((self.now() + self._behind).astimezone(UTC), usegmt=True)

    def leap(self, seconds: float) -> None:
        """The time of day leaps and stays ahead; nothing is due the earlier for it. A leap backward shows in the header
        `Date` alone: a provider whose order of versions ran backward would contradict itself."""
        if seconds >= 0:
            self.leapt += timedelta(seconds=seconds)
        else:
            self._behind += timedelta(seconds=seconds)

    def pace(self, speed: float) -> None:
        """Another speed from now on; no hand moves by it."""
        if speed != self.speed:
            now = time.monotonic()
            self._began = now - (now - self._began) * self.speed / speed
            self.speed = speed

    async def sleep(self, seconds: float, at_least: float = 0.0) -> None:
        """Waits for that many simulated seconds, and not less than `at_least` seconds of the wall clock: whoever has
        to answer meanwhile lives by the wall clock, however fast our day goes."""
        await asyncio.sleep(max(seconds / self.speed, at_least))

    async def until(self, moment: datetime) -> None:
        """Waits for that moment of the schedule, and not a moment less; one that is over is not waited for."""
        while (left := (moment - self.scheduled()).total_seconds()) > 0:
            await self.sleep(left)  # a loop may wake a fraction of a millisecond early, which is seconds of ours
        await asyncio.sleep(0)


DAY: Final = timedelta(hours=4)
"""How long a busy day is, simulated: about seven seconds at 2000 times the speed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing that happens to one booking in the course of a day."""

    after: int
    """Simulated seconds after the day began."""
    story: int
    """Whose step it is: an index into the stories of the day."""
    place: int
    """The first step of a story (0) makes the booking, the others change it."""
    late: int = 0
    """Simulated seconds that its first request is held back, so that the next step's request overtakes it."""
    twice: bool = False
    """Its request is sent twice."""


def plan_day(rng: Random, lengths: Sequence[int], *, duplicate: float = 0.0, reorder: float = 0.0) -> list[Step]:
    """A day in which story i has `lengths[i]` steps, 3 to 15 minutes apart, in the order in which they happen.

    At least an eighth of the requests are sent twice, and an eighth of those that another one of their story follows
    are held back; `duplicate` and `reorder` ask for more.
    """
    stories = [_story(rng, story, length) for story, length in enumerate(lengths)]
    _mark_late(rng, stories, max(reorder, 1 / 8))
    steps = sorted((step for story in stories for step in story), key=lambda step: (step.after, step.story))
    twice = set(_some(rng, range(len(steps)), max(duplicate, 1 / 8)))
    return [replace(step, twice=index in twice) for index, step in enumerate(steps)]


def _story(rng: Random, story: int, length: int) -> list[Step]:
    after = rng.randrange(int(DAY.total_seconds() * 3 / 4))
    steps = []
    for place in range(length):
        steps.append(Step(after=after, story=story, place=place))
        after += rng.randint(180, 900)
    return steps


def _mark_late(rng: Random, stories: list[list[Step]], share: float) -> None:
    followed = [(story, place) for story in stories for place in range(len(story) - 1)]
    for story, place in _some(rng, followed, share):
        gap = story[place + 1].after - story[place].after
        story[place] = replace(story[place], late=gap + rng.randint(60, 300))


def _some(rng: Random, things: Sequence[T], share: float) -> list[T]:
    """That share of the things, one at least where there is any."""
    return rng.sample(things, min(len(things), max(1, round(len(things) * share))))
