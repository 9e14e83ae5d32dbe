"""What a check found, as a value. Knows no check."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum


class Verdict(StrEnum):
    """How it stands."""

    OK = "ok"
    WARN = "warn"
    """It works, and may not for long, or not as well as it could."""
    FAIL = "fail"
    """A promise is broken, or will be by the next bad day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line: what was looked at, how it stands, what was seen, and the mend where one is needed."""

    name: str
    verdict: Verdict
    text: str
    mend: str | None = None


def ok(name: str, text: str) -> Finding:
    """All is well."""
    return Finding(name=name, verdict=Verdict.OK, text=text)


def warn(name: str, text: str, mend: str) -> Finding:
    """See Verdict.WARN."""
    return Finding(name=name, verdict=Verdict.WARN, text=text, mend=mend)


def fail(name: str, text: str, mend: str) -> Finding:
    """See Verdict.FAIL."""
    return Finding(name=name, verdict=Verdict.FAIL, text=text, mend=mend)


def by_age(name: str, text: str, age: timedelta, *, late: timedelta, lost: timedelta, mend: str) -> Finding:
    """What gets worse with time."""
    if age >= lost:
        return fail(name, text, mend)
    return warn(name, text, mend) if age >= late else ok(name, text)


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TB"


def span(age: timedelta) -> str:
    """A time as a person reads it."""
    seconds = int(age.total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
