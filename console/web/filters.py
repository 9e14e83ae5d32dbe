"""What a person asks a list for, from the words in the page's address. Pure; knows no SQL.

A word that cannot be understood is named in a sentence, and counts as not said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from console.context import CommandError, instant
from schemas.booking import Status
from schemas.delivery import EPOCH, MICROSECOND, State

LONGEST: Final = 100
"""Characters of a search."""
SHORTEST: Final = 2
FAR_ENOUGH: Final = timedelta(days=366 * 100)


@dataclass(kw_only=True)
class Words:
    """The words of an address, and what is wrong with them."""

    given: Mapping[str, str]
    wrong: list[str] = field(default_factory=list)

    def text(self, name: str) -> str | None:
        """Without control characters, which PostgreSQL would not take."""
        said = "".join(each for each in self.given.get(name, "") if each.isprintable()).strip()
        return said[:LONGEST] or None

    def word(self, name: str, known: type[State] | type[Status]) -> Any:
        said = self.text(name)
        if said is None or said in [each.value for each in known]:
            return said and known(said)
        self.wrong.append(f"There is no {name} {said!r}.")
        return None

    def moment(self, name: str, now: datetime) -> datetime | None:
        said = self.text(name)
        try:
            found = said and instant(said, now)
        except CommandError as error:
            self.wrong.append(f"{name}: {error}.")
            return None
        return self._near(name, found, now) if found else None

    def _near(self, name: str, found: datetime, now: datetime) -> datetime | None:
        if found.year not in (1, 9999) and abs(found.astimezone(UTC) - now) < FAR_ENOUGH:
            return found
        self.wrong.append(f"{name}: that is too far away.")
        return None

    def day(self, name: str) -> date | None:
        said = self.text(name)
        if said is None:
            return None
        try:
            return date.fromisoformat(said)
        except ValueError:
            self.wrong.append(f"{name}: {said!r} is no day; write it as 2026-11-20.")
            return None

    def search(self, name: str = "q") -> str | None:
        said = self.text(name)
        if said is not None and len(said) < SHORTEST:
            self.wrong.append(f"Search for at least {SHORTEST} characters.")
            return None
        return said


# --- deliveries ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class DeliveryFilter:
    """Which deliveries; what is None is not asked for."""

    endpoint: str | None = None
    state: State | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    text: str | None = None
    typed: Mapping[str, str] = field(default_factory=dict)
    """As it was typed."""

    @property
    def is_all(self) -> bool:
        return not any((self.endpoint, self.state, self.reason, self.since, self.until, self.text))

    def address(self, **more: str) -> str:
        """As the words behind the `?`."""
        return urlencode({**self.typed, **more})

    def sentence(self) -> str:
        """For the audit and for the question before an action."""
        said = ", ".join(f"{name} {value}" for name, value in self.typed.items())
        return said or "all"


DELIVERY_WORDS: Final = ("endpoint", "state", "reason", "since", "until", "q")


def delivery_filter(words: Words, now: datetime) -> DeliveryFilter:
    found = DeliveryFilter(
        endpoint=words.text("endpoint"),
        state=words.word("state", State),
        reason=words.text("reason"),
        since=words.moment("since", now),
        until=words.moment("until", now),
        text=words.search(),
        typed={name: said for name in DELIVERY_WORDS if (said := words.text(name))},
    )
    if found.since and found.until and found.since > found.until:
        words.wrong.append("since is later than until: nothing can be found.")
    return found


@dataclass(frozen=True, slots=True)
class DeliveryPlace:
    """The last row of a page: the next page begins behind it."""

    received_at: datetime
    id: UUID

    def __str__(self) -> str:
        return f"{(self.received_at - EPOCH) // MICROSECOND}-{self.id.hex}"

    @classmethod
    def read(cls, said: str | None) -> DeliveryPlace | None:
        """The inverse; None for anything else."""
        found = re.fullmatch(r"(\d{1,17})-([0-9a-f]{32})", said or "")
        if found is None:
            return None
        try:
            return cls(EPOCH + int(found[1]) * MICROSECOND, UUID(found[2]))
        except OverflowError:
            return None


# --- bookings --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class BookingFilter:
    """Which bookings, and in which order: from a day on they are told forwards, else the latest visit comes first."""

    endpoint: str | None = None
    status: Status | None = None
    since: date | None = None
    until: date | None = None
    text: str | None = None
    undated: bool = False
    """Those without a day instead."""
    typed: Mapping[str, str] = field(default_factory=dict)

    @property
    def backwards(self) -> bool:
        return self.since is None

    @property
    def is_everything(self) -> bool:
        """Those without a day too."""
        return self.since is None and self.until is None

    def address(self, **more: str) -> str:
        """As the words behind the `?`."""
        return urlencode({**self.typed, **more})


BOOKING_WORDS: Final = ("endpoint", "status", "from", "to", "q", "undated", "all")


def booking_filter(words: Words, today: date) -> BookingFilter:
    """Where nothing is said of days or of a guest, from today on."""
    typed = {name: said for name in BOOKING_WORDS if (said := words.text(name))}
    since, until, text, undated = words.day("from"), words.day("to"), words.search(), "undated" in typed
    if not typed.keys() & {"from", "to", "q", "undated", "all"}:
        since = today
    if since and until and since > until:
        words.wrong.append("from is later than to: nothing can be found.")
    return BookingFilter(
        endpoint=words.text("endpoint"),
        status=words.word("status", Status),
        since=since,
        until=until,
        text=text,
        undated=undated,
        typed=typed,
    )


@dataclass(frozen=True, slots=True)
class BookingPlace:
    """The last row of a page: the day and the moment of the visit (of those without a day: when it was first seen)."""

    day: date | None
    moment: datetime | None
    id: UUID

    def __str__(self) -> str:
        moment = "" if self.moment is None else (self.moment - EPOCH) // MICROSECOND
        return f"{self.day or ''}_{moment}_{self.id.hex}"

    @classmethod
    def read(cls, said: str | None) -> BookingPlace | None:
        """The inverse; None for anything else."""
        found = re.fullmatch(r"(\d{4}-\d\d-\d\d)?_(-?\d{1,17})?_([0-9a-f]{32})", said or "")
        if found is None:
            return None
        try:
            day = date.fromisoformat(found[1]) if found[1] else None
            moment = EPOCH + int(found[2]) * MICROSECOND if found[2] else None
        except (ValueError, OverflowError):
            return None
        return cls(day, moment, UUID(found[3]))


def identity(text: str | None) -> UUID | None:
    """An id, where the text is one."""
    try:
        return UUID(text or "")
    except ValueError:
        return None
