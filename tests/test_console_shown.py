"""How the console puts values: moments, numbers, bodies, headers, charts, days; and its words against the docs."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from console.web import shown
from console.web.chart import HEIGHT, HOURS, chart, first_hour
from console.web.day import HOUR, NO_ROOM, day_of
from console.web.words import REASONS, STATES, Advice, advice
from schemas.delivery import State
from tests.world import NOON

VIENNA = ZoneInfo("Europe/Vienna")
MANUAL = Path(__file__).parent.parent / "docs" / "operating.md"


# --- words -------------------------------------------------------------------------------------------------------


def tables() -> list[list[list[str]]]:
    """The tables of the manual, row by row."""
    lines = MANUAL.read_text(encoding="utf-8").splitlines()
    found: list[list[list[str]]] = [[]]
    for line in lines:
        if line.startswith("| "):
            found[-1].append([cell.strip() for cell in line.strip("|").split(" | ")])
        elif found[-1]:
            found.append([])
    return found


def test_states_are_told_as_in_the_manual() -> None:
    (rows,) = [rows[2:] for rows in tables() if rows and rows[0] == ["state", "means"]]
    assert {name.strip("`"): means for name, means in rows} == STATES
    assert set(STATES) == {state.value for state in State}


def test_reasons_are_told_as_in_the_manual() -> None:
    (rows,) = [rows[2:] for rows in tables() if rows and rows[0] == ["reason", "what it is", "what to do"]]
    told = {name: Advice(what, mend) for names, what, mend in rows for name in re.findall(r"`([^`]+)`", names)}
    assert told == REASONS


def test_a_reason_that_nobody_knows_has_advice_too() -> None:
    assert advice("made-up").mend == "read the error"
    assert advice(None).mend == "read the error"


# --- what changed ------------------------------------------------------------------------------------------------


def test_a_change_is_told_in_the_order_of_the_table() -> None:
    diff = {"note": ["a", "b"], "status": ["pending", "confirmed"], "else": [1, 2], "paid": [None, "9.00"]}
    told = shown.changed(diff, None, NOON)
    assert told == [("status", "pending", "confirmed"), ("paid", "—", "9.00"), ("note", "a", "b"), ("else", "1", "2")]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ({"a": 1, "b": 2}, {"a": 1, "b": 3}, [("details b", "2", "3")]),
        ({"a": 1}, {"a": 1, "b": {"c": 2}}, [("details b", "—", '{\n "c": 2\n}')]),
        ([{"qty": 1}, {"qty": 2}], [{"qty": 1}, {"qty": 5}], [("details 2 qty", "2", "5")]),
        ([1], [1, 2], [("details", "[\n 1\n]", "[\n 1,\n 2\n]")]),
        ({"a": None}, {"b": None}, [("details", '{\n "a": null\n}', '{\n "b": null\n}')]),
        ([], [{"qty": 1}], [("details", "—", '[\n {\n  "qty": 1\n }\n]')]),
    ],
    ids=["one-name", "a-new-name", "one-place", "another-length", "only-nulls", "from-nothing"],
)
def test_of_two_documents_the_difference_is_told(old: Any, new: Any, told: list[tuple[str, str, str]]) -> None:
    assert shown.changed({"details": [old, new]}, None, NOON) == told


def test_a_time_that_changed_is_told_by_the_venues_clock() -> None:
    ((name, old, new),) = shown.changed({"starts_at": [None, "2026-12-01T17:30:00+00:00"]}, VIENNA, NOON)
    assert (name, old) == ("starts_at", "—")
    assert "1 Dec 18:30:00</time>" in new
    assert shown.changed({"starts_at": ["soon", None]}, VIENNA, NOON) == [("starts_at", "soon", "—")]


# --- time and numbers --------------------------------------------------------------------------------------------


def test_a_moment_is_told_on_the_venues_clock() -> None:
    """The offset and UTC stand behind it."""
    told = str(shown.moment(NOON, VIENNA, NOON))
    assert ">20 Nov 13:00:00<" in told
    assert 'title="2026-11-20 13:00:00+01:00 Europe/Vienna · 12:00:00 UTC"' in told
    assert 'datetime="2026-11-20T12:00:00+00:00"' in told


def test_a_moment_without_a_venue_is_utc_and_another_year_is_named() -> None:
    assert ">20 Nov 12:00<" in str(shown.moment(NOON, None, NOON, seconds=False))
    assert "20 Nov 2026 12:00" in str(shown.moment(NOON, None, NOON + timedelta(days=300), seconds=False))
    assert str(shown.moment(None, VIENNA, NOON)) == ""


@pytest.mark.parametrize(
    ("length", "told"),
    [
        (timedelta(seconds=-5), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(minutes=14, seconds=59), "14 min"),
        (timedelta(hours=2), "2 h"),
        (timedelta(hours=2, minutes=5), "2 h 5 min"),
        (timedelta(days=1, hours=3), "1 d 3 h"),
        (timedelta(days=40, hours=3), "40 d"),
    ],
)
def test_a_span_is_told_in_its_largest_units(length: timedelta, told: str) -> None:
    assert shown.span(length) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, "0"),
        (999, "999"),
        (12_345, "12 000"),
        (999_000, "999 000"),
        (1_234_567, "1.2 million"),
        (34_567_890, "35 million"),
    ],
)
def test_what_was_not_counted_is_told_roughly(count: int, told: str) -> None:
    assert shown.about(count).replace("\N{NARROW NO-BREAK SPACE}", " ") == told


def test_no_currency_is_guessed() -> None:
    assert shown.money(Decimal("400.00"), "NOK") == "400.00 NOK"
    assert shown.money(Decimal("1E+3"), None) == "1000"
    assert shown.money(None, "NOK") == ""


def test_code_is_marked_and_nothing_else() -> None:
    assert shown.code("run `a <b>` & <i>") == "run <code>a &lt;b&gt;</code> &amp; &lt;i&gt;"


# --- bodies ------------------------------------------------------------------------------------------------------

DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(DOCUMENTS, st.booleans())
def test_json_is_set_line_by_line_and_says_the_same(document: Any, ascii_only: bool) -> None:
    pretty = shown._pretty(json.dumps(document, ensure_ascii=ascii_only))
    assert pretty is not None
    assert json.loads(pretty) == document
    assert pretty == json.dumps(json.loads(json.dumps(document)), indent=2, ensure_ascii=False)


@given(st.binary(max_size=200))
def test_any_body_can_be_shown(body: bytes) -> None:
    """And what is shown can be sent."""
    told = shown.body(body)
    (told.text + (told.raw or "")).encode()


@pytest.mark.parametrize(
    ("body", "kind"),
    [(b"", "empty"), (b"{}", "JSON"), (b"a=b", "text"), (b"<x/>", "text"), (b"\xff", "bytes"), (b'"\\ud800"', "JSON")],
)
def test_a_body_is_what_it_is(body: bytes, kind: str) -> None:
    assert shown.body(body).kind == kind


def test_a_body_that_is_deep_or_long_is_not_set() -> None:
    deep = shown.body(b"[" * 300 + b"1," * 50_000 + b"1" + b"]" * 300)
    assert deep.kind == "text"
    long = shown.body(b'["' + b"x" * 1_000_000 + b'"]')
    assert (long.kind, long.is_cut, len(long.text)) == ("text", True, shown.LARGE)
    endless = shown.body(b"[" + b"9" * 5000 + b"]")
    assert endless.kind == "text"


def test_what_deceives_the_eye_is_marked() -> None:
    assert shown.clean("a\x1b[31mb\u202ec\ud800") == "a\ufffd[31mb\ufffdc\ufffd"


def test_credentials_are_masked() -> None:
    url = "https://x.example/hooks/arcade-vienna/" + "0a" * 20
    told = shown.headers([("Authorization", "Bearer x"), ("X-Url", url), ("X-Timekit-Signature", "abc")])
    assert told == [
        ("Authorization", "…"),
        ("X-Url", "https://x.example/hooks/arcade-vienna/…"),
        ("X-Timekit-Signature", "abc"),
    ]
    assert (
        shown.body(json.dumps({"url": url}).encode()).text == '{\n  "url": "https://x.example/hooks/arcade-vienna/…"\n}'
    )


# --- charts ------------------------------------------------------------------------------------------------------


def test_bars_are_as_high_as_their_share_and_none_is_lost() -> None:
    since = first_hour(NOON)
    found = chart({0: 1, 22: 1000, 23: 500}, since, VIENNA)
    assert len(found.bars) == HOURS
    assert [bar.height for bar in found.bars if bar.height] == [2, HEIGHT, HEIGHT // 2]
    assert found.total == 1501
    assert found.bars[23].says == "13:00: 500"
    assert "the most in the hour from 12:00: 1,000" in found.says
    assert chart({}, since, None).says == "nothing in 24 hours"


# --- days --------------------------------------------------------------------------------------------------------


def booked(number: int, begins: str | None, ends: str | None = None, **more: Any) -> dict[str, Any]:
    """A booking of that day, by the clock of Vienna."""

    def at(clock: str | None) -> datetime | None:
        return clock and datetime.fromisoformat(f"2026-11-20T{clock}").replace(tzinfo=VIENNA).astimezone(UTC)  # type: ignore[return-value]

    row = {"id": number, "endpoint": "arcade", "status": "confirmed", "resource_name": "Blue", "resource_id": "b"}
    return {**row, "starts_at": at(begins), "ends_at": at(ends), **more}


def laid(*rows: dict[str, Any]) -> Any:
    return day_of(rows, date(2026, 11, 20), lambda row: VIENNA)


def grid(day: Any) -> list[list[Any]]:
    """Which booking stands in each cell, as a browser lays the table out; raises where cells overlap or miss."""
    columns = sum(len(room.lanes) for room in day.rooms)
    cells = [[None] * columns for _ in day.lines]
    taken = [[False] * columns for _ in day.lines]
    for row, line in enumerate(day.lines):
        for cell in line.cells:
            column = taken[row].index(False)
            for below in range(cell.rows):
                assert not taken[row + below][column]
                taken[row + below][column] = True
                cells[row + below][column] = cell.block and cell.block.booking["id"]
    assert all(all(row) for row in taken)
    return cells


def test_a_day_reaches_from_its_first_hour_to_its_last() -> None:
    day = laid(booked(1, "10:20", "11:20"), booked(2, "14:00", "15:00"))
    assert [line.hour for line in day.lines if line.hour] == ["10:00", "11:00", "12:00", "13:00", "14:00"]
    column = [row[0] for row in grid(day)]
    assert column == [None] + [1] * 5 + [None] * 10 + [2] * HOUR


def test_bookings_that_overlap_stand_side_by_side() -> None:
    day = laid(booked(1, "10:00", "11:00"), booked(2, "10:30", "11:30"), booked(3, "11:00", "12:00"))
    assert [len(room.lanes) for room in day.rooms] == [2]
    assert grid(day)[HOUR - 1] == [1, 2]
    assert grid(day)[HOUR] == [3, 2]


def test_rooms_are_columns_below_their_venue() -> None:
    day = laid(
        booked(1, "10:00", "11:00"),
        booked(2, "10:00", "11:00", resource_name=None),
        booked(3, "10:00", "11:00", resource_name=None, resource_id=None),
        booked(4, "10:00", "11:00", endpoint="studio"),
    )
    assert [(room.endpoint, room.name) for room in day.rooms] == [
        *(("arcade", "Blue"), ("arcade", "b"), ("arcade", NO_ROOM)),
        ("studio", "Blue"),
    ]
    assert day.venues == [("arcade", 3), ("studio", 1)]


def test_what_has_no_place_on_the_clock_is_listed() -> None:
    day = laid(booked(1, None), booked(2, "10:00", "11:00", status="cancelled"), booked(3, None, status="cancelled"))
    assert [row["id"] for row in day.elsewhere] == [1]
    assert [row["id"] for row in day.cancelled] == [2, 3]
    assert day.lines == []


@given(
    st.lists(
        st.tuples(st.integers(0, 1439), st.one_of(st.none(), st.integers(-600, 3000)), st.integers(0, 2)), max_size=12
    )
)
def test_any_day_can_be_laid_out(times: list[tuple[int, int | None, int]]) -> None:
    """Whatever the ends say: every booking has its cell, and no two share one."""
    midnight = datetime(2026, 11, 20, tzinfo=VIENNA)
    rows = [
        booked(
            number,
            None,
            resource_name=f"room {room}",
            starts_at=midnight + timedelta(minutes=begins),
            ends_at=None if length is None else midnight + timedelta(minutes=begins + length),
        )
        for number, (begins, length, room) in enumerate(times, 1)
    ]
    day = laid(*rows)
    found = {cell for row in grid(day) for cell in row if cell}
    assert found == {row["id"] for row in rows}


def test_the_hour_that_comes_twice_is_laid_out() -> None:
    """On the day when clocks go back a visit may end before it begins, by the clock."""
    zone = ZoneInfo("Europe/Vienna")
    begins = datetime(2026, 10, 25, 0, 45, tzinfo=UTC)
    row = booked(1, None, starts_at=begins, ends_at=begins + timedelta(minutes=30))
    day = day_of([row], date(2026, 10, 25), lambda _: zone)
    assert [cell for line in grid(day) for cell in line if cell] == [1, 1]
