"""Untrusted documents, taken into types at first touch; a refusal names the path of the field.

Wild wraps a parsed document (JSON, or XML and forms turned into the same tree). Nothing inside is used before one
of the methods gave it a type. Three states matter and are kept apart: absent, present and empty, present.
Knows no provider.
"""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from functools import lru_cache, wraps
from math import isfinite
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

from workers.errors import Malformed

T = TypeVar("T")
D = TypeVar("D", bound=date)

_ABSENT: Final = object()
_NOTHING: Final[dict[str, Any]] = {}
_LONGEST_TEXT: Final = 100_000
_DEEPEST: Final = 64  # levels of nesting; Python's own limit would be met somewhere later, outside our reach
_INT4: Final = range(-(2**31), 2**31)
_MONEY: Final = Decimal(10) ** 15
_YEARS: Final = range(1900, 2200)
_CONTAINERS: Final = (dict, list)
_SCALARS: Final = (str, int, float, Decimal)
_DATE_WITH_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}")
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL's text and jsonb take neither
_REMEMBERED: Final = 1024
_LONGEST_REMEMBERED: Final = 200


def remembered(read: Callable[[str], T]) -> Callable[[str], T]:
    """Reads a text only once where it comes again soon, as the same names, days and sums do in every batch.

    A long text is not kept: nobody is to fill the memory from outside.
    """
    known = lru_cache(maxsize=_REMEMBERED)(read)

    @wraps(read)
    def reads(text: str) -> T:
        return known(text) if len(text) <= _LONGEST_REMEMBERED else read(text)

    return reads


class Wild:
    """A value from outside, with the path that leads to it.

    Every field of every delivery becomes one, so it is cheap: its path is spelled out only where somebody asks.
    """

    __slots__ = ("_parent", "_step", "value")

    def __init__(self, value: Any, step: str | int = "body", parent: Wild | None = None) -> None:
        self.value = value
        self._step = step
        self._parent = parent

    @property
    def path(self) -> str:
        """Where it stands in the document: `body.customer.name`."""
        step, parent = self._step, self._parent
        if parent is None:
            return str(step)
        return f"{parent.path}[{step}]" if isinstance(step, int) else f"{parent.path}.{step}"

    # --- looking around ---

    @property
    def present(self) -> bool:
        """Whether the field was there at all, empty or not."""
        return self.value is not _ABSENT

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it: absent, null, blank text, `{}` or `[]`."""
        value = self.value
        if isinstance(value, str):
            return not value or value.isspace()
        return value is None or value is _ABSENT or (isinstance(value, _CONTAINERS) and not value)

    def __getitem__(self, key: str) -> Wild:
        """The field of that name; absent where there is none or where this is empty. Raises Malformed."""
        value = self.value
        if not isinstance(value, dict):
            if not self.empty:
                raise self.wrong("an object")
            value = _NOTHING
        return Wild(value.get(key, _ABSENT), key, self)

    def at(self, *keys: str) -> Wild:
        """The field that this path of names leads to."""
        found = self
        for key in keys:
            found = found[key]
        return found

    def first(self, *fields: Wild) -> Wild:
        """The first of the fields that is not empty, this one before the others; else the last present one."""
        last = self
        for field in (self, *fields):
            if not field.empty:
                return field
            if field.present:
                last = field
        return last

    # --- containers ---

    def object(self) -> Mapping[str, Any]:
        """An object. Raises Malformed."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return self.value

    def keys(self) -> tuple[str, ...]:
        """The names of an object's fields; none where it is empty. Raises Malformed."""
        return () if self.empty else tuple(self.object())

    def items(self) -> Iterator[Wild]:
        """The elements of a list. Raises Malformed, at once."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return iter([Wild(element, index, self) for index, element in enumerate(self.value)])

    def one_or_many(self) -> list[Wild]:
        """A list as its elements, a single thing as a list of one, emptiness as none."""
        if self.empty:
            return []
        return list(self.items()) if isinstance(self.value, list) else [self]

    # --- scalars; None where empty ---

    def text(self) -> str | None:
        """A text without blanks around it; numbers are taken as text. Raises Malformed."""
        text = clean(self._written("text")).strip()
        if len(text) > _LONGEST_TEXT:
            raise self.wrong("a shorter text")
        return text or None

    def needed(self) -> str:
        """A text that must be there. Raises Malformed."""
        text = self.text()
        if text is None:
            raise self.wrong("text")
        return text

    def word(self) -> str | None:
        """A provider's word, untouched but for blanks around it."""
        return self.text()

    def integer(self) -> int | None:
        """A whole number of 32 bits, also written as text. Raises Malformed."""
        number = self.decimal()
        if number is None:
            return None
        whole = int(number)
        if whole != number or whole not in _INT4:
            raise self.wrong("a whole number")
        return whole

    def decimal(self) -> Decimal | None:
        """A finite number below 10^15, also written as text. Raises Malformed."""
        text = self._written("a number").strip()
        if not text:
            return None
        try:
            number = _number(text)
        except (InvalidOperation, ValueError) as error:
            raise self.wrong("a number") from error
        if number is None:
            raise self.wrong("a number of a sensible size")
        return number

    def truth(self) -> bool | None:
        """A truth value as 1/0, true/false, "1"/"0", "true"/"false". Raises Malformed."""
        if self.empty:
            return None
        word = str(self.value).strip().lower()
        if word in ("1", "true", "yes"):
            return True
        if word in ("0", "false", "no"):
            return False
        raise self.wrong("true or false")

    def day(self) -> date | None:
        """A day from the first ten characters, as written. Raises Malformed."""
        text = self.text()
        if text is None:
            return None
        try:
            return self._sensible(date.fromisoformat(text[:10]))
        except ValueError as error:
            raise self.wrong("a day such as 2026-05-06") from error

    def instant(self) -> datetime | None:
        """An instant with offset, UTC after reading; `Z`, `+0000` and `+01:00` alike. Raises Malformed."""
        moment = self.moment()
        if moment is not None and moment.utcoffset() is None:
            raise self.wrong("an instant with its offset")
        return moment.astimezone(UTC) if moment else None

    def moment(self) -> datetime | None:
        """A date with time, naive where it is written without offset. Raises Malformed."""
        text = self.text()
        if text is None:
            return None
        try:
            return self._sensible(_moment(text))
        except (ValueError, OverflowError) as error:
            raise self.wrong("a date with time") from error

    def unix(self) -> datetime | None:
        """Unix seconds, also written as text, as an instant in UTC. Raises Malformed."""
        seconds = self.decimal()
        if seconds is None:
            return None
        try:
            return self._sensible(_since_1970(seconds))
        except (ValueError, OverflowError, OSError) as error:
            raise self.wrong("Unix seconds") from error

    def plain(self) -> Any:
        """The whole value as JSON that PostgreSQL can hold, for `details`; None where absent. Raises Malformed."""
        try:
            return None if self.value is _ABSENT else storable(self.value, _DEEPEST)
        except RecursionError as error:
            raise self.wrong("less nesting") from error

    def _written(self, wanted: str) -> str:
        """A text or a number as it is written; nothing where it is empty. Raises Malformed."""
        value = self.value
        if isinstance(value, str):
            return value
        if self.empty:
            return ""
        if isinstance(value, bool) or not isinstance(value, _SCALARS):
            raise self.wrong(wanted)
        try:
            return str(value)
        except ValueError as error:  # an integer of thousands of digits
            raise self.wrong(wanted) from error

    # --- refusing ---

    def wrong(self, wanted: str) -> Malformed:
        """The refusal of this field: its path and what was wanted, never the value."""
        found = "nothing" if self.value is _ABSENT else _KINDS.get(type(self.value), "something else")
        return Malformed(f"{self.path}: expected {wanted}, found {found}")

    def _sensible(self, day: D) -> D:
        if day.year not in _YEARS:
            raise self.wrong(f"a year from {_YEARS.start} to {_YEARS.stop - 1}")
        return day


_KINDS: Final[Mapping[type, str]] = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


@remembered
def _number(text: str) -> Decimal | None:
    """The number; None where it is not of a sensible size. Raises InvalidOperation or ValueError where it is none."""
    number = Decimal(text)
    sensible = number.is_finite() and abs(number) < _MONEY and _digits_after_point(number) <= 12
    return number if sensible else None


@remembered
def _moment(text: str) -> datetime:
    """A date with time. Raises ValueError."""
    if not _DATE_WITH_TIME.match(text):
        raise ValueError("no date with time")
    return datetime.fromisoformat(text)


@lru_cache(maxsize=_REMEMBERED)
def _since_1970(seconds: Decimal) -> datetime:
    """Raises ValueError, OverflowError or OSError."""
    return datetime.fromtimestamp(float(seconds), UTC)


def _digits_after_point(number: Decimal) -> int:
    exponent = number.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def clean(text: str) -> str:
    """The text without what PostgreSQL cannot hold: NUL, lone surrogates."""
    return text if text.isprintable() else _UNSTORABLE.sub("\ufffd", text)


def storable(value: Any, levels: int = 2 * _DEEPEST) -> Any:
    """A JSON value with every text in it cleaned and every number finite. Raises RecursionError.

    What `plain` let through may be put into other things before it comes here again.
    """
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, float):
        return _storable_number(value)
    if not isinstance(value, _CONTAINERS):
        return value
    if not levels:
        raise RecursionError("nested too deeply")
    if isinstance(value, dict):
        return {clean(str(key)): storable(inner, levels - 1) for key, inner in value.items()}
    return [storable(inner, levels - 1) for inner in value]


def _storable_number(number: float) -> float | None:
    if number.is_integer():
        return int(number)  # as jsonb gives it back: 1e23 as a float is another number than 1 with 23 zeros
    return number if isfinite(number) else None


def read_json(body: bytes, path: str = "body") -> Wild:
    """JSON in UTF-8 (a byte order mark is forgiven). Raises Malformed."""
    try:
        return Wild(json.loads(body.removeprefix(BOM_UTF8).decode()), path)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path}: expected JSON") from error


def carry(said: dict[str, Any], column: str, field: Wild, read: Callable[[Wild], Any]) -> None:
    """Puts a field into what an event says, if the field is there: absent is not said, empty is None."""
    if field.value is not _ABSENT:
        said[column] = read(field)


def at_venue(naive: datetime, zone: ZoneInfo) -> tuple[datetime, bool]:
    """A wall-clock time as an instant (UTC), and whether that wall clock never showed it.

    In the hour that daylight saving takes away it is the first instant behind the gap; of the hour that it gives
    twice, the first.
    """
    instant = naive.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == naive:
        return instant, False
    return _end_of_gap(instant, zone), True


def _end_of_gap(behind: datetime, zone: ZoneInfo) -> datetime:
    """The change of offset that lies less than a day before this instant (UTC), to the second."""
    before, after = behind - timedelta(days=1), behind
    offset = after.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == offset:
            after = middle
        else:
            before = middle
    return after
