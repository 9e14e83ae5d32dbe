"""What is true and what was sent: the simulators write it, and compare it with the table `bookings` at the end.

Knows column names of the public table and nothing of how they are filled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Sent:
    """One request to a webhook URL."""

    endpoint: str
    provider: str
    at: float
    """Wall clock, Unix seconds."""
    seconds: float
    """How long the answer took, or how long we waited for none."""
    status: int | None
    """None: refused, cut, or no answer within the provider's deadline."""
    about: str
    """What it carried, for a person: `create 40118`."""
    late: bool = False
    """The provider's deadline passed before the answer."""

    @property
    def acked(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


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
    lost: list[tuple[str, str]] = field(default_factory=list)
    """(endpoint, external_id) of bookings that have no row."""
    invented: list[tuple[str, str]] = field(default_factory=list)
    """(endpoint, external_id) of rows that no simulator knows."""

    @property
    def good(self) -> bool:
        return not (self.wrong or self.lost or self.invented)


@dataclass
class Ledger:
    """The truth of every simulated booking, in the columns of `bookings`, and every request sent."""

    truth: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    sent: list[Sent] = field(default_factory=list)

    def expect(self, endpoint: str, external_id: str, **columns: Any) -> None:
        """From now on the row of this booking must show these values; columns named before stay expected."""
        self.truth.setdefault((endpoint, external_id), {}).update(columns)

    def record(self, sent: Sent) -> None:
        """Notes a request."""
        self.sent.append(sent)

    def compare(self, rows: Iterable[Mapping[str, Any]]) -> Verdict:
        """Compares rows (as `reservoir bookings list --json` prints them) with the truth."""
        verdict, found = Verdict(), {(row["endpoint"], row["external_id"]): row for row in rows}
        for key, columns in self.truth.items():
            row = found.pop(key, None)
            if row is None:
                verdict.lost.append(key)
                continue
            verdict.checked += 1
            verdict.wrong += [
                Wrong(endpoint=key[0], external_id=key[1], column=column, expected=value, found=row[column])
                for column, value in columns.items()
                if not same(value, row[column])
            ]
        verdict.invented = list(found)
        return verdict


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
