"""The breaker: its table, and what holds after whatever may have happened."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.breaker import HIGH, LOW, MEMORY, Breaker

CLOSED = Breaker()
REFUSED = Breaker("refused", 1.0)
FULL = Breaker(MEMORY, 1.0)
BETWEEN = (HIGH + LOW) / 2


def failed(breaker: Breaker) -> Breaker:
    return breaker.failed("silent", 2.0)


def well(breaker: Breaker, memory: float | None) -> Breaker:
    return breaker.well(memory, 2.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (CLOSED, Breaker("silent", 2.0)),
        (REFUSED, REFUSED),  # the first reason stays, and since when
        (FULL, FULL),
    ],
)
def test_redis_fails(before: Breaker, after: Breaker) -> None:
    assert failed(before) == after


@pytest.mark.parametrize(
    ("before", "memory", "after"),
    [
        (CLOSED, None, CLOSED),  # no limit is set
        (CLOSED, BETWEEN, CLOSED),
        (CLOSED, HIGH, Breaker(MEMORY, 2.0)),
        (REFUSED, None, Breaker(None, 2.0)),
        (REFUSED, BETWEEN, Breaker(None, 2.0)),
        (REFUSED, HIGH, Breaker(MEMORY, 2.0)),  # it is back, and still has no room
        (FULL, HIGH, FULL),
        (FULL, BETWEEN, FULL),  # not at every breath
        (FULL, LOW - 0.01, Breaker(None, 2.0)),
        (FULL, None, Breaker(None, 2.0)),  # the limit was lifted
    ],
)
def test_redis_is_well(before: Breaker, memory: float | None, after: Breaker) -> None:
    assert well(before, memory) == after


@pytest.mark.parametrize("breaker", [REFUSED, FULL])
def test_open_is_to_have_a_reason(breaker: Breaker) -> None:
    assert breaker.is_open
    assert not CLOSED.is_open


HAPPENINGS = st.sampled_from(["silent", "refused"]) | st.none() | st.floats(0.0, 1.2)


@given(st.lists(HAPPENINGS, max_size=30))
def test_whatever_happens(happenings: list[str | float | None]) -> None:
    """One good look is enough to close it, a full memory or a failure to open it; `since` is when that happened."""
    breaker = Breaker()
    for now, happening in enumerate(happenings, 1):
        before = breaker
        if isinstance(happening, str):
            breaker = before.failed(happening, now)
            assert breaker.is_open
        else:
            breaker = before.well(happening, now)
            if happening is None or happening < LOW:
                assert not breaker.is_open
            elif happening >= HIGH:
                assert breaker.reason == MEMORY
        assert breaker.since == (before.since if breaker.reason == before.reason else now)
