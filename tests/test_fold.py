"""The fold in small sentences: what the order is, what a silence says, who wrote the row, what a change is called."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.booking import COLUMNS, Status
from workers.fold import EMPTY, Row, Said, difference, fold, kind_of_change

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


def event(number: int = 1, *, second: int = 0, place: int = 0, version: str | None = None, **said: Any) -> Said:
    """What delivery `number` said, received so many seconds after noon."""
    return Said(
        delivery_id=UUID(int=number),
        position=place,
        received_at=NOON + timedelta(seconds=second),
        version=version,
        said=said,
    )


def paid(number: int, *ids: str, second: int = 0) -> Said:
    payments = tuple({"id": identity, "told_by": number} for identity in ids)
    return Said(
        delivery_id=UUID(int=number), position=0, received_at=NOON + timedelta(seconds=second), payments=payments
    )


def row(*events: Said) -> Row:
    """The row, which is the same whatever order the events are handed over in."""
    rows = [fold(order) for order in permutations(events)]
    assert rows[0] is not None
    assert all(other == rows[0] for other in rows)
    return rows[0]


def test_no_events_are_no_row() -> None:
    assert fold([]) is None


def test_an_event_that_says_nothing_makes_an_empty_row() -> None:
    assert row(event()).columns == EMPTY


@pytest.mark.parametrize(
    ("older", "newer"),
    [
        # The provider's version counts more than the receipt.
        (event(1, second=9, version="1"), event(2, second=0, version="2")),
        # It sorts as text, so that providers pad their numbers.
        (event(1, second=9, version="09"), event(2, second=0, version="10")),
        # Who gives no version stands before who gives one.
        (event(1, second=9), event(2, second=0, version="1")),
        # Without a version, and with the same one, the receipt decides.
        (event(1, second=0), event(2, second=1)),
        (event(1, second=0, version="1"), event(2, second=1, version="1")),
        # Received at the same moment: the ids of deliveries grow with time.
        (event(1), event(2)),
        # In one body: the place.
        (event(1, place=0), event(1, place=1)),
    ],
)
def test_what_is_newer_wins(older: Said, newer: Said) -> None:
    told = [_saying(older, "old"), _saying(newer, "new")]
    assert row(*told).columns["note"] == "new"


def _saying(one: Said, note: str) -> Said:
    return Said(
        delivery_id=one.delivery_id,
        position=one.position,
        received_at=one.received_at,
        version=one.version,
        said={"note": note},
    )


def test_a_silence_says_nothing_and_an_empty_field_empties() -> None:
    told = [event(1, note="by the window", source="web"), event(2, second=1), event(3, second=2, source=None)]
    columns = row(*told).columns
    assert (columns["note"], columns["source"]) == ("by the window", None)


def test_details_are_told_key_by_key() -> None:
    told = [event(1, details={"a": 1, "b": 2}), event(2, second=1, details={"b": None, "c": 3}), event(3, second=2)]
    assert row(*told).columns["details"] == {"a": 1, "b": None, "c": 3}


def test_payments_are_gathered_each_id_once_in_the_order_of_telling() -> None:
    told = [paid(1, "x"), paid(2, "y", "x", second=1), paid(3, "z", second=2)]
    payments = row(*told).columns["details"]["payments"]
    assert [(payment["id"], payment["told_by"]) for payment in payments] == [("x", 1), ("y", 2), ("z", 3)]


def test_payments_leave_the_rest_of_the_details_alone() -> None:
    told = [event(1, details={"a": 1}), paid(2, "x", second=1), event(3, second=2, details={"a": 2})]
    assert row(*told).columns["details"] == {"a": 2, "payments": [{"id": "x", "told_by": 2}]}


def test_the_row_was_changed_by_the_last_event_that_made_a_difference() -> None:
    told = [event(1, note="a"), event(2, second=1, note="b"), event(3, second=2, note="b"), event(4, second=3)]
    found = row(*told)
    assert (found.delivery_id, found.changed_at) == (UUID(int=2), NOON + timedelta(seconds=1))


def test_a_row_that_nobody_changed_was_written_by_the_first() -> None:
    assert row(event(1), event(2, second=1)).delivery_id == UUID(int=1)


def test_a_booking_was_first_seen_at_the_first_receipt_whatever_its_version() -> None:
    told = [event(1, second=5, version="1", note="a"), event(2, second=3, version="2", note="b")]
    assert row(*told).first_seen_at == NOON + timedelta(seconds=3)


def test_there_and_back_again_is_two_changes() -> None:
    told = [event(number, second=number, status=status) for number, status in enumerate(_THERE_AND_BACK)]
    found = row(*told)
    assert (found.columns["status"], found.delivery_id) == (Status.CONFIRMED, UUID(int=2))


_THERE_AND_BACK = (Status.CONFIRMED, Status.CANCELLED, Status.CONFIRMED)


KINDS: dict[str, st.SearchStrategy[Any]] = {
    "status": st.sampled_from([Status.CONFIRMED, Status.CANCELLED]),
    "note": st.none() | st.sampled_from("ab"),
    "total": st.none() | st.sampled_from([Decimal("1.5"), Decimal("1.50"), Decimal(2)]),
    "details": st.dictionaries(st.sampled_from("xy"), st.none() | st.integers(0, 1), max_size=2),
}
SOME = st.builds(
    Said,
    delivery_id=st.integers(0, 3).map(lambda number: UUID(int=number)),
    position=st.integers(0, 1),
    received_at=st.integers(0, 3).map(lambda second: NOON + timedelta(seconds=second)),
    version=st.none() | st.sampled_from(["", "1", "2"]),
    said=st.fixed_dictionaries({}, optional=KINDS),
    payments=st.lists(st.sampled_from([{"id": "x", "told": 1}, {"id": "x", "told": 2}, {"id": "y"}]), max_size=2).map(
        tuple
    ),
)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(told=st.lists(SOME, max_size=8, unique_by=lambda one: one.order), below=st.integers(0, 8))
def test_what_is_newer_than_all_else_can_be_folded_onto_the_row(told: list[Said], below: int) -> None:
    """Wherever the line is drawn."""
    ordered = sorted(told, key=lambda one: one.order)
    assert fold(ordered[below:], onto=fold(ordered[:below])) == fold(told)


def test_the_events_themselves_are_left_as_they_are() -> None:
    first, second = event(1, details={"a": 1}), event(2, second=1, details={"a": 2})
    row(first, second)
    assert (first.said["details"], second.said["details"]) == ({"a": 1}, {"a": 2})
    assert EMPTY["details"] == {}


# --- what changed ----------------------------------------------------------------------------------------------


def columns(**said: Any) -> dict[str, Any]:
    return {**EMPTY, **said}


def test_a_difference_names_what_differs() -> None:
    assert difference(columns(note="a", source="web"), columns(note="b", source="web")) == {"note": ("a", "b")}
    assert difference(columns(), columns()) == {}


def test_of_a_row_that_was_not_there_everything_is_new() -> None:
    assert difference(None, columns(note="a")) == {"status": (None, Status.UNKNOWN), "note": (None, "a")}


def test_every_column_is_compared() -> None:
    before, after = columns(), dict.fromkeys(COLUMNS, "other")
    assert difference(before, after).keys() == COLUMNS.keys()


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [
        (None, Status.CONFIRMED, "created"),
        (None, Status.CANCELLED, "created"),
        (Status.HOLD, Status.CONFIRMED, "updated"),
        (Status.CONFIRMED, Status.CANCELLED, "cancelled"),
        (Status.CANCELLED, Status.PENDING, "restored"),
        (Status.CANCELLED, Status.CANCELLED, "updated"),
    ],
)
def test_a_change_has_a_word(before: Status | None, after: Status, word: str) -> None:
    shown = None if before is None else columns(status=before)
    assert kind_of_change(shown, columns(status=after)) == word
