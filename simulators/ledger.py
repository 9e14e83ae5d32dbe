"""What is true and what was sent: the simulators write it, and compare it with the table `bookings` at the end.

Knows column names of the public table and nothing of how they are filled, and of a request only what its sender could
see: what became of it, not why.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

Key = tuple[str, str]
"""(endpoint, external_id): one booking."""


class Outcome(StrEnum):
    """What became of a request, as its sender sees it."""

    ANSWERED = "answered"
    """The head of an answer came; its status says the rest."""
    REFUSED = "refused"
    """Nobody listens there: not a byte of the request went out."""
    CUT = "cut"
    """The connection died without an answer. What was written may have been read or not."""
    TIMED_OUT = "timed-out"
    """The provider's deadline passed without an answer, and the sender left."""
    HUNG_UP = "hung-up"
    """The sender wrote the whole request and left without reading, by its own fault."""


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request to a webhook URL."""

    endpoint: str
    provider: str
    at: float
    """Wall clock, Unix seconds."""
    seconds: float
    """How long the answer took from the first byte written, or how long we waited for none."""
    status: int | None
    """None: there was no answer, see `outcome`."""
    about: str
    """What it carried, for a person: `create 40118`."""
    late: bool = False
    """The provider's deadline passed before the answer."""
    outcome: Outcome = Outcome.ANSWERED
    request: str = ""
    """Its `x-request-id`, which no other request has."""
    bookings: tuple[str, ...] = ()
    """The bookings (external ids) that it speaks of."""
    events: int = 1
    """How many events it carries: five sessions in one array are five."""

    @property
    def acked(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(kw_only=True)
class Counted:
    """The requests of one endpoint, counted as they are noted."""

    sent: int = 0
    events: int = 0
    acked: int = 0
    late: int = 0
    slowest: float = 0.0
    outcomes: Counter[Outcome] = field(default_factory=Counter)

    def add(self, sent: Sent) -> None:
        self.sent += 1
        self.events += sent.events
        self.acked += sent.acked
        self.late += sent.late
        self.slowest = max(self.slowest, sent.seconds)
        self.outcomes[sent.outcome] += 1


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """A row that differs from the truth."""

    endpoint: str
    external_id: str
    column: str
    expected: Any
    found: Any


@dataclass(kw_only=True)
class Verdict:
    """How the table compares with the ledger."""

    checked: int = 0
    wrong: list[Wrong] = field(default_factory=list)
    lost: list[Key] = field(default_factory=list)
    """Bookings that have no row."""
    invented: list[Key] = field(default_factory=list)
    """Rows that no simulator knows."""
    excused: int = 0
    """Bookings that nobody can know rightly: a request about them met no listener, and never comes again."""
    given_up: int = 0
    """Bookings that nobody can know rightly: their sender has used up its repeats."""

    @property
    def good(self) -> bool:
        return not (self.wrong or self.lost or self.invented)


@dataclass
class Ledger:
    """The truth of every simulated booking, in the columns of `bookings`, and every request sent."""

    truth: dict[Key, dict[str, Any]] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)
    counted: defaultdict[str, Counted] = field(default_factory=lambda: defaultdict(Counted))
    """Endpoint → what was sent there; kept up while the requests come, so that a picture need not go through them."""
    excused: set[Key] = field(default_factory=set)
    given_up: set[Key] = field(default_factory=set)

    # --- the truth ---

    def expect(self, endpoint: str, external_id: str, **columns: Any) -> None:
        """From now on the row of this booking must show these values; columns named before stay expected."""
        self.truth.setdefault((endpoint, external_id), {}).update(columns)

    def expect_anew(self, endpoint: str, external_id: str, **columns: Any) -> None:
        """From now on the row must show these values whatever was told before: for an event that tells a booking
        whole. What an earlier request failed to tell matters no more."""
        key = (endpoint, external_id)
        self.truth[key] = columns
        self.excused.discard(key)
        self.given_up.discard(key)

    def excuse(self, endpoint: str, external_ids: Iterable[str]) -> None:
        """A request about these bookings took effect nowhere, and its sender never repeats it."""
        self.excused.update((endpoint, external_id) for external_id in external_ids)

    def give_up(self, endpoint: str, external_ids: Iterable[str]) -> None:
        """A request about these bookings was never taken, and its sender's repeats are used up."""
        self.given_up.update((endpoint, external_id) for external_id in external_ids)

    # --- the requests ---

    def record(self, sent: Sent) -> None:
        """Notes a request."""
        self.sent.append(sent)
        self.counted[sent.endpoint].add(sent)

    # --- the end ---

    def compare(self, rows: Iterable[Mapping[str, Any]]) -> Verdict:
        """Compares rows (as `reservoir bookings list --json` prints them) with the truth."""
        verdict, found = Verdict(), {(row["endpoint"], row["external_id"]): row for row in rows}
        for key, columns in self.truth.items():
            row = found.pop(key, None)
            if key in self.given_up:
                verdict.given_up += 1
            elif key in self.excused:
                verdict.excused += 1
            elif row is None:
                verdict.lost.append(key)
            else:
                verdict.checked += 1
                verdict.wrong += _differences(key, columns, row)
        verdict.invented = list(found)
        return verdict


def _differences(key: Key, columns: Mapping[str, Any], row: Mapping[str, Any]) -> list[Wrong]:
    return [
        Wrong(endpoint=key[0], external_id=key[1], column=column, expected=value, found=row[column])
        for column, value in columns.items()
        if not same(value, row[column])
    ]


def same(expected: Any, found: Any) -> bool:
    """Whether a column shows the expected value; instants and money are compared as such, not as text."""
    if expected is None or found is None:
        return expected is found
    if isinstance(expected, datetime):
        return datetime.fromisoformat(str(found)) == expected
    if isinstance(expected, Decimal):
        try:
            return Decimal(str(found)) == expected
        except InvalidOperation:
            return False
    return str(expected) == str(found) if not isinstance(expected, dict | list) else bool(expected == found)
