"""When next: decisions as values, compared."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from workers.errors import (
    Again,
    AwaitingBooking,
    BadSignature,
    DatabaseTrouble,
    DeliveryError,
    Malformed,
    NotYet,
    OurFault,
    Park,
    ProviderUnavailable,
    Throttled,
)
from workers.retry import ATTEMPTS, FOR, LONGEST, ParkNow, RetryAt, backoff, decide

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


class Fixed(Random):
    """Chance that always comes out the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


NO_JITTER = Fixed(0.0)


@pytest.mark.parametrize(
    ("attempt", "seconds"),
    [
        (1, 2),
        (2, 4),
        (3, 8),
        (10, 1024),
        # From here on it is half an hour.
        (11, 1800),
        (12, 1800),
        (ATTEMPTS, 1800),
        # A number from outside must not become a number of a million digits.
        (10**9, 1800),
    ],
)
def test_the_wait_doubles_from_two_seconds_to_half_an_hour(attempt: int, seconds: int) -> None:
    assert backoff(attempt) == timedelta(seconds=seconds)


@pytest.mark.parametrize("error", [ProviderUnavailable(), AwaitingBooking(), DatabaseTrouble(), Again()])
def test_what_comes_back_by_itself_comes_back(error: Again) -> None:
    assert decide(error, 3, NOON, NO_JITTER) == RetryAt(at=NOON + timedelta(seconds=8), error=error)


@pytest.mark.parametrize("error", [Malformed(), BadSignature(), OurFault(), Park(), DeliveryError()])
@pytest.mark.parametrize("attempt", [1, ATTEMPTS])
def test_what_needs_a_person_is_parked_at_once(error: DeliveryError, attempt: int) -> None:
    assert decide(error, attempt, NOON, NO_JITTER) == ParkNow(error=error)


def test_the_waits_of_all_attempts_are_24_hours() -> None:
    waits = [backoff(attempt) for attempt in range(1, ATTEMPTS)]
    assert FOR - LONGEST < sum(waits, timedelta()) <= FOR == timedelta(hours=24)


def test_after_24_hours_it_is_parked_with_the_reason_that_it_had() -> None:
    error = ProviderUnavailable("message: answered 502")
    assert isinstance(decide(error, ATTEMPTS - 1, NOON, NO_JITTER), RetryAt)
    decision = decide(error, ATTEMPTS, NOON, NO_JITTER)
    assert isinstance(decision, ParkNow)
    assert (decision.error.reason, str(decision.error)) == (
        "provider-unavailable",
        "tried for 24 hours: message: answered 502",
    )


@pytest.mark.parametrize(
    ("attempt", "wish", "seconds"),
    [
        (1, 60, 60),
        # We would have waited longer anyway.
        (10, 60, 1024),
        (1, 0, 2),
        # A day is longer than what we promise.
        (1, 86_400, 1800),
    ],
)
def test_the_providers_own_wish_is_kept(attempt: int, wish: int, seconds: int) -> None:
    error = Throttled(after=timedelta(seconds=wish))
    assert decide(error, attempt, NOON, NO_JITTER) == RetryAt(at=NOON + timedelta(seconds=seconds), error=error)


def test_what_was_not_asked_comes_back_at_its_turn_however_often() -> None:
    error = NotYet(after=timedelta(seconds=1))
    assert decide(error, ATTEMPTS, NOON, Fixed(0.9)) == RetryAt(at=NOON + timedelta(seconds=1), error=error)


def test_jitter_never_brings_it_back_before_the_provider_wished() -> None:
    error = Throttled(after=timedelta(seconds=1024))
    assert decide(error, 10, NOON, Fixed(0.9)) == RetryAt(at=NOON + timedelta(seconds=1024), error=error)


@pytest.mark.parametrize(("chance", "seconds"), [(0.0, 8.0), (0.5, 7.0), (0.999_999, 6.0)])
def test_jitter_takes_off_up_to_a_quarter(chance: float, seconds: float) -> None:
    decision = decide(ProviderUnavailable(), 3, NOON, Fixed(chance))
    assert isinstance(decision, RetryAt)
    assert (decision.at - NOON).total_seconds() == pytest.approx(seconds, abs=0.001)


def test_what_failed_together_comes_back_apart() -> None:
    chance = Random(7)
    times = {decide(ProviderUnavailable(), 5, NOON, chance).at for _ in range(50)}  # type: ignore[union-attr]
    assert len(times) == 50
