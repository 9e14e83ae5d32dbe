"""One day of bookings as a table: rooms as columns, quarters of an hour as rows. Pure; the template draws it.

Bookings of one room that overlap stand side by side. Times are those of the venue's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import groupby
from math import ceil
from typing import Any, Final
from zoneinfo import ZoneInfo

Row = Mapping[str, Any]
Zone = Callable[[Row], ZoneInfo | None]

STEP: Final = 15
"""Minutes of one row of the table."""
HOUR: Final = 60 // STEP
WHOLE: Final = 24 * HOUR
LEAST: Final = 2
"""Rows that a booking takes at least, so that it can be read."""
UNSAID: Final = HOUR
"""Rows of a booking whose end is not known."""
NO_ROOM: Final = "no room named"


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """A booking, with its place."""

    booking: Row
    first: int
    last: int
    """The row behind it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
    """A column, or several where bookings overlap."""

    endpoint: str
    name: str
    lanes: Sequence[Sequence[Block]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A cell that begins in a row of the table, and so many rows high."""

    rows: int
    block: Block | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row of the table: its hour, where one begins, and the cells that begin in it."""

    hour: str | None
    cells: Sequence[Cell]


@dataclass(frozen=True, kw_only=True)
class Day:
    """The whole page."""

    venues: Sequence[tuple[str, int]] = ()
    """Endpoints, and how many columns each takes."""
    rooms: Sequence[Room] = ()
    lines: Sequence[Line] = ()
    cancelled: Sequence[Row] = field(default=())
    elsewhere: Sequence[Row] = field(default=())
    """Without a time, or with one of another day."""


def day_of(rows: Iterable[Row], day: date, zone: Zone) -> Day:
    """The bookings of a day, in the order of their endpoints and rooms."""
    blocks: list[Block] = []
    cancelled: list[Row] = []
    elsewhere: list[Row] = []
    for row in rows:
        block = None if row["status"] == "cancelled" else _block(row, day, zone(row))
        if block is not None:
            blocks.append(block)
        else:
            (cancelled if row["status"] == "cancelled" else elsewhere).append(row)
    rooms = _rooms(blocks)
    venues = [(name, sum(len(room.lanes) for room in own)) for name, own in groupby(rooms, lambda room: room.endpoint)]
    return Day(venues=venues, rooms=rooms, lines=_lines(rooms), cancelled=cancelled, elsewhere=elsewhere)


def _block(row: Row, day: date, zone: ZoneInfo | None) -> Block | None:
    """None where it has no place on this day's clock."""
    if row["starts_at"] is None:
        return None
    starts = row["starts_at"].astimezone(zone or UTC)
    if starts.date() != day:
        return None
    first = _minutes(starts) // STEP
    last = first + UNSAID
    if row["ends_at"] is not None:
        ends = row["ends_at"].astimezone(zone or UTC)
        last = ceil(_minutes(ends) / STEP) if ends.date() == day else WHOLE
    first = min(first, WHOLE - LEAST)
    return Block(booking=row, first=first, last=min(max(last, first + LEAST), WHOLE))


def _minutes(moment: datetime) -> int:
    return moment.hour * 60 + moment.minute


def _rooms(blocks: Iterable[Block]) -> list[Room]:
    def place(block: Block) -> tuple[str, str]:
        booking = block.booking
        return booking["endpoint"], booking["resource_name"] or booking["resource_id"] or NO_ROOM

    ordered = sorted(blocks, key=lambda block: (*place(block), block.first, block.last, str(block.booking["id"])))
    return [
        Room(endpoint=endpoint, name=name, lanes=_lanes(own)) for (endpoint, name), own in groupby(ordered, key=place)
    ]


def _lanes(blocks: Iterable[Block]) -> list[list[Block]]:
    """Each block in the first lane that is free when it begins."""
    lanes: list[list[Block]] = []
    for block in blocks:
        free = next((lane for lane in lanes if lane[-1].last <= block.first), None)
        if free is None:
            lanes.append([block])
        else:
            free.append(block)
    return lanes


def _lines(rooms: Sequence[Room]) -> list[Line]:
    """From the first hour in which something happens to the last."""
    lanes = [lane for room in rooms for lane in room.lanes]
    if not lanes:
        return []
    first = min(lane[0].first for lane in lanes) // HOUR * HOUR
    last = ceil(max(block.last for lane in lanes for block in lane) / HOUR) * HOUR
    starts = [_cells(lane, first, last) for lane in lanes]
    return [
        Line(
            hour=f"{row // HOUR:02}:00" if row % HOUR == 0 else None,
            cells=[own[row] for own in starts if row in own],
        )
        for row in range(first, last)
    ]


def _cells(lane: Sequence[Block], first: int, last: int) -> dict[int, Cell]:
    """The cells of a lane by the row in which they begin; what is free ends with its hour."""
    cells: dict[int, Cell] = {}
    row = first
    waiting = list(lane)
    while row < last:
        if waiting and waiting[0].first == row:
            block = waiting.pop(0)
            cells[row] = Cell(rows=block.last - block.first, block=block)
        else:
            until = min((row // HOUR + 1) * HOUR, waiting[0].first if waiting else last)
            cells[row] = Cell(rows=until - row)
        row += cells[row].rows
    return cells
