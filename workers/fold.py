"""A booking is the fold of its events: pure, and the same whatever order the workers ran in.

Order: the provider's version where there is one, then the time of receipt that the receiver stamped, then the
delivery, then the place in the body. A field that an event does not carry says nothing about that field. Knows no
provider and no database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from schemas.booking import COLUMNS, Status

EMPTY: Final[Mapping[str, Any]] = {
    **dict.fromkeys(COLUMNS),
    "status": Status.UNKNOWN,
    "items": [],
    "details": {},
}
"""A row that nobody has spoken of yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """One row of `booking_events`: what a delivery said about this booking, and where that stands in the order."""

    delivery_id: UUID
    position: int
    received_at: datetime
    version: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    payments: tuple[Mapping[str, Any], ...] = ()

    @property
    def place(self) -> tuple[UUID, int]:
        """Where it was told: the delivery, and the place in its body."""
        return (self.delivery_id, self.position)

    @property
    def order(self) -> tuple[str, datetime, UUID, int]:
        """An event without version stands before those with one."""
        return (self.version or "", self.received_at, self.delivery_id, self.position)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The state of a booking: its columns, and which events brought it there."""

    columns: Mapping[str, Any]
    first_seen_at: datetime
    changed_at: datetime
    """The time of receipt of the event that wrote this state."""
    delivery_id: UUID
    """The delivery that wrote this state."""


def fold(events: Iterable[Said], onto: Row | None = None) -> Row | None:
    """The row that these events add up to; None where there are none.

    `onto`: what all earlier events add up to; each of these must be newer than each of those.
    """
    ordered = sorted(events, key=lambda event: event.order)
    if not ordered:
        return onto
    first = ordered[0]
    row = onto or Row(
        columns=EMPTY, first_seen_at=first.received_at, changed_at=first.received_at, delivery_id=first.delivery_id
    )
    columns, changed_at, delivery_id = row.columns, row.changed_at, row.delivery_id
    for event in ordered:
        after = _apply(columns, event)
        if after != columns:
            columns, changed_at, delivery_id = after, event.received_at, event.delivery_id
    return Row(
        columns=columns,
        first_seen_at=min(row.first_seen_at, *(event.received_at for event in ordered)),
        changed_at=changed_at,
        delivery_id=delivery_id,
    )


def _apply(columns: Mapping[str, Any], event: Said) -> dict[str, Any]:
    details = {**columns["details"], **event.said.get("details", {})}
    if event.payments:
        details["payments"] = _gathered(details.get("payments", []), event.payments)
    return {**columns, **event.said, "details": details}


def _gathered(known: list[Mapping[str, Any]], more: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Payments in the order in which they were first told, each id once."""
    by_id = {payment["id"]: payment for payment in known}
    for payment in more:
        by_id.setdefault(payment["id"], payment)
    return list(by_id.values())


def difference(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Column → (old, new), for what differs; a row that was not there counts as empty."""
    old = before if before is not None else {**dict.fromkeys(COLUMNS), "items": [], "details": {}}
    return {column: (old[column], after[column]) for column in COLUMNS if old[column] != after[column]}


def kind_of_change(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> str:
    """The word for `booking_changes.kind`."""
    if before is None:
        return "created"
    was, is_now = before["status"] == Status.CANCELLED, after["status"] == Status.CANCELLED
    if was != is_now:
        return "cancelled" if is_now else "restored"
    return "updated"
