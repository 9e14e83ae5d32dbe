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
from math import isfinite
from typing import Any, Final, TypeVar
from zoneinfo import ZoneInfo

from workers.errors import Malformed

T = TypeVar("T")

_ABSENT: Final = object()
_NOTHING: Final[dict[str, Any]] = {}
_LONGEST_TEXT: Final = 100_000
_DEEPEST: Final = 64  # levels of nesting; Python's own limit would be met somewhere later, outside our reach
_INT4: Final = range(-(2**31), 2**31)
_MONEY: Final = Decimal(10) ** 15
_YEARS: Final = range(1900, 2200)
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL's text and jsonb take neither


class Wild:
    """A value from outside, with the path that leads to it.

    Every field of every delivery becomes one, so it is cheap: its path is spelled out only where somebody asks.
    """

    __slots__ = ("_way", "value")

    def __init__(self, value: Any, way: str | tuple[Wild, str] = "body") -> None:
        self.value = value
        self._way = way

    @property
    def path(self) -> str:
        """Where it stands in the document: `body.customer.name`."""
        if isinstance(self._way, str):
            return self._way
        parent, step = self._way
        return parent.path + step

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
        return not value if isinstance(value, dict | list) else value is None or value is _ABSENT

    def __getitem__(self, key: str) -> Wild:
        """The field of that name; absent where there is none or where this is empty. Raises Malformed."""
        value = self.value
        if not isinstance(value, dict):
            if not self.empty:
                raise self.wrong("an object")
            value = _NOTHING
        return Wild(value.get(key, _ABSENT), (self, f".{key}"))

    def at(self, *keys: str) -> Wild:
        """The field that this path of names leads to."""
        found = self
        for key in keys:
            found = found[key]
        return found

    def first(self, *fields: Wild) -> Wild:
        """The first of the fields that is not empty, this one before the others; else the last present one."""
        fields = (self, *fields)
        full = next((field for field in fields if not field.empty), None)
        return full or next((field for field in reversed(fields) if field.present), self)

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
        return iter([Wild(element, (self, f"[{index}]")) for index, element in enumerate(self.value)])

    def one_or_many(self) -> list[Wild]:
        """A list as its elements, a single thing as a list of one, emptiness as none."""
        if self.empty:
            return []
        return list(self.items()) if isinstance(self.value, list) else [self]

    # --- scalars; None where empty ---

    def text(self) -> str | None:
        """A text without blanks around it; numbers are taken as text. Raises Malformed."""
        if self.empty:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, str | int | float | Decimal):
            raise self.wrong("text")
        try:
            text = clean(str(self.value)).strip()
        except ValueError as error:  # an integer of thousands of digits
            raise self.wrong("text") from error
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
        if number != number.to_integral_value() or int(number) not in _INT4:
            raise self.wrong("a whole number")
        return int(number)

    def decimal(self) -> Decimal | None:
        """A finite number below 10^15, also written as text. Raises Malformed."""
        if self.empty:
            return None
        if isinstance(self.value, bool) or not isinstance(self.value, str | int | float | Decimal):
            raise self.wrong("a number")
        try:
            number = Decimal(str(self.value).strip())
        except (InvalidOperation, ValueError) as error:
            raise self.wrong("a number") from error
        if not number.is_finite() or abs(number) >= _MONEY or _digits_after_point(number) > 12:
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
        if not re.match(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}", text):
            raise self.wrong("a date with time")
        try:
            return self._sensible(datetime.fromisoformat(text))
        except (ValueError, OverflowError) as error:
            raise self.wrong("a date with time") from error

    def unix(self) -> datetime | None:
        """Unix seconds, also written as text, as an instant in UTC. Raises Malformed."""
        seconds = self.decimal()
        if seconds is None:
            return None
        try:
            return self._sensible(datetime.fromtimestamp(float(seconds), UTC))
        except (ValueError, OverflowError, OSError) as error:
            raise self.wrong("Unix seconds") from error

    def plain(self) -> Any:
        """The whole value as JSON that PostgreSQL can hold, for `details`; None where absent. Raises Malformed."""
        try:
            return None if self.value is _ABSENT else storable(self.value, _DEEPEST)
        except RecursionError as error:
            raise self.wrong("less nesting") from error

    # --- refusing ---

    def wrong(self, wanted: str) -> Malformed:
        """The refusal of this field: its path and what was wanted, never the value."""
        found = "nothing" if self.value is _ABSENT else _KINDS.get(type(self.value), "something else")
        return Malformed(f"{self.path}: expected {wanted}, found {found}")

    def _sensible(self, day: T) -> T:
        if getattr(day, "year", 0) not in _YEARS:
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
    if isinstance(value, dict | list) and not levels:
        raise RecursionError("nested too deeply")
    if isinstance(value, dict):
        return {clean(str(key)): storable(inner, levels - 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [storable(inner, levels - 1) for inner in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)  # as jsonb gives it back: 1e23 as a float is another number than 1 with 23 zeros
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def read_json(body: bytes, path: str = "body") -> Wild:
    """JSON in UTF-8 (a byte order mark is forgiven). Raises Malformed."""
    try:
        return Wild(json.loads(body.removeprefix(BOM_UTF8).decode()), path)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path}: expected JSON") from error


def carry(said: dict[str, Any], column: str, field: Wild, read: Callable[[Wild], Any]) -> None:
    """Puts a field into what an event says, if the field is there: absent is not said, empty is None."""
    if field.present:
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
