"""How values look on a page: moments in the venue's zone, amounts, bodies, headers. Pure; knows no table.

Whatever comes from outside is text, and the templates escape it. What would let somebody in is masked: the token in a
hook's URL, and headers that carry credentials.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from markupsafe import Markup, escape

from schemas.booking import COLUMNS

LARGE: Final = 200_000
"""Characters of a body that are shown."""
DEEPEST: Final = 50
"""Levels of a document that is set line by line; deeper ones would be mostly blanks."""
MASK: Final = "…"
_TOKEN: Final = re.compile(r"(/hooks/[a-z0-9-]{1,63}/)[0-9a-fA-F]{8,}")
_CREDENTIAL: Final = re.compile(r"authorization|cookie|secret|token|password|api-?key", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_CODE: Final = re.compile(r"`([^`]+)`")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


# --- time ------------------------------------------------------------------------------------------------------


def zone_of(name: str | None, otherwise: ZoneInfo | None = None) -> ZoneInfo | None:
    """A zone by its name; one that does not exist is none."""
    try:
        return ZoneInfo(name) if name else otherwise
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return otherwise


def moment(value: datetime | None, zone: ZoneInfo | None, now: datetime, *, seconds: bool = True) -> Markup:
    """In the venue's zone; its offset and UTC are told when one points at it."""
    if value is None:
        return Markup("")
    local = value.astimezone(zone or UTC)
    year = f" {local.year}" if local.year != now.astimezone(zone or UTC).year else ""
    said = (
        f"{local.day:\N{FIGURE SPACE}>2} {_MONTHS[local.month - 1]}{year} {local:{'%H:%M:%S' if seconds else '%H:%M'}}"
    )
    return _time(value, zone, said)


def clock(value: datetime | None, zone: ZoneInfo | None) -> Markup:
    """The hour and the minute alone."""
    return _time(value, zone, f"{value.astimezone(zone or UTC):%H:%M}") if value else Markup("")


def hours(begins: datetime | None, ends: datetime | None, zone: ZoneInfo | None) -> Markup:
    """`13:00–14:00`; without an end, when it begins."""
    if begins is None:
        return Markup("")
    until = f"\N{EN DASH}{ends.astimezone(zone or UTC):%H:%M}" if ends else ""
    return _time(begins, zone, f"{begins.astimezone(zone or UTC):%H:%M}{until}")


def ago(value: datetime | None, now: datetime, zone: ZoneInfo | None = None) -> Markup:
    """`3 min ago`."""
    if value is None:
        return Markup("")
    return _time(value, zone, f"{span(now - value)} ago")


def _time(value: datetime, zone: ZoneInfo | None, said: str) -> Markup:
    local = value.astimezone(zone or UTC)
    title = f"{local.isoformat(' ', 'seconds')} {zone.key if zone else 'UTC'}"
    if zone:
        title += f" \N{MIDDLE DOT} {value.astimezone(UTC):%H:%M:%S} UTC"
    at = value.astimezone(UTC).isoformat()
    return Markup(f'<time datetime="{at}" title="{escape(title)}">{escape(said)}</time>')  # noqa: S704  (escaped right here)


def span(length: timedelta) -> str:
    """In its two largest units: `2 d 4 h`, `14 min`, `8 s`."""
    seconds = max(0, int(length.total_seconds()))
    days, hours, minutes = seconds // 86400, seconds // 3600 % 24, seconds // 60 % 60
    if days:
        return f"{days} d {hours} h" if days < 7 and hours else f"{days} d"
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{minutes} min" if minutes else f"{seconds} s"


def day(value: date | None) -> str:
    """`Fri 20 Nov 2026`."""
    return f"{value:%a} {value.day} {_MONTHS[value.month - 1]} {value.year}" if value else ""


# --- numbers and words -----------------------------------------------------------------------------------------


def number(value: int | None) -> str:
    """Thousands apart, by a narrow blank."""
    return "" if value is None else f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def about(value: int) -> str:
    """A number that was not counted, as coarse as it is known."""
    if value < 1_000_000:
        return number(round(value, -3) if value >= 1000 else value)
    return f"{value / 1_000_000:.{1 if value < 10_000_000 else 0}f} million"


def money(value: Decimal | None, currency: str | None) -> str:
    """`400.00 NOK`; no currency is guessed."""
    return "" if value is None else f"{value:f}" + (f" {currency}" if currency else "")


def size(count: int) -> str:
    """Bytes."""
    return f"{count / 1024:.1f} KiB" if count >= 1024 else f"{count} B"


def code(sentence: str) -> Markup:
    """What stands between backticks, as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(sentence))))  # noqa: S704  (escaped right here)


def plain(value: Any) -> str:
    """A value of our own JSON (a column, old or new) in one piece."""
    if value is None or value in ("", [], {}):
        return "\N{EM DASH}"
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(" ", "seconds")
    if isinstance(value, str | int | float | Decimal | date):
        return clean(str(value))
    return clean(json.dumps(value, ensure_ascii=False, default=str, indent=1))


# --- what changed ------------------------------------------------------------------------------------------------

_PLACES: Final = {column: place for place, column in enumerate(COLUMNS)}
DEEP: Final = 4
"""Levels of a document that are compared one by one."""

Difference = tuple[str, Any, Any]
"""Field, before, after."""


def changed(diff: Mapping[str, Sequence[Any]], zone: ZoneInfo | None, now: datetime) -> list[Difference]:
    """Field by field, in the order of the table; of a document only what differs in it."""
    ordered = sorted(diff.items(), key=lambda item: (_PLACES.get(item[0], len(_PLACES)), item[0]))
    return [
        (clean(name), _readable(name, before, zone, now), _readable(name, after, zone, now))
        for field, (old, new) in ordered
        for name, before, after in _apart(field, old, new, DEEP)
    ]


def _apart(name: str, old: Any, new: Any, levels: int) -> list[Difference]:
    """Where two values differ; as wholes, where they have not the same parts."""
    inner: Iterable[tuple[Any, Any, Any]] = ()
    if levels and isinstance(old, dict) and isinstance(new, dict) and old and new:
        inner = ((key, old.get(key), new.get(key)) for key in {**old, **new})
    elif levels and isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        inner = zip(count(1), old, new)
    found = [
        each
        for key, before, after in inner
        if before != after
        for each in _apart(f"{name} {key}", before, after, levels - 1)
    ]
    return found or [(name, old, new)]


def _readable(name: str, value: Any, zone: ZoneInfo | None, now: datetime) -> str:
    """An instant on the venue's clock, anything else in one piece."""
    if name in _INSTANTS and isinstance(value, str):
        with suppress(ValueError):
            return moment(datetime.fromisoformat(value), zone, now)
    return plain(value)


_INSTANTS: Final = frozenset(
    {*(column for column, kind in COLUMNS.items() if kind is datetime), "first_seen_at", "changed_at"}
)


# --- what came from outside ------------------------------------------------------------------------------------


def clean(said: str) -> str:
    """Without what could deceive the eye or let somebody in."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", masked(said).replace("\r\n", "\n"))


def masked(said: str) -> str:
    return _TOKEN.sub(rf"\1{MASK}", said)


def headers(given: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """As they came; of what carries credentials, only that it was there."""
    return [(clean(name), MASK if _CREDENTIAL.search(name) else clean(value)) for name, value in given]


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A body for a reader."""

    kind: str
    """`JSON`, `text`, `bytes`, `empty`."""
    text: str
    raw: str | None = None
    """As it came, where `text` is not."""
    is_cut: bool = False


def body(given: bytes) -> Body:
    """JSON is set line by line; what is no text is shown as bytes."""
    if not given:
        return Body(kind="empty", text="")
    try:
        text = given.decode()
    except UnicodeDecodeError:
        return Body(kind="bytes", text=_dump(given[: LARGE // 8]), is_cut=len(given) > LARGE // 8)
    is_cut = len(text) > LARGE
    pretty = None if is_cut else _pretty(text)
    if pretty is None:
        return Body(kind="text", text=clean(text[:LARGE]), is_cut=is_cut)
    return Body(kind="JSON", text=clean(pretty), raw=clean(text))


def document(value: Any) -> str:
    """Something that was JSON."""
    said = json.dumps(value, ensure_ascii=False, indent=2, default=str)
    return clean(said[:LARGE])


_PIECE: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


def _pretty(text: str) -> str | None:
    """Set line by line: every name and every digit as it was written. None where it is no JSON, or too deep."""
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return None
    said: list[str] = []
    depth, before = 0, ""
    for piece in _PIECE.findall(text):
        if before in ("{", "["):
            depth += piece not in "}]"
            if depth > DEEPEST:
                return None
            said.append("" if piece in "}]" else f"\n{'  ' * depth}")
        elif piece in ("}", "]"):
            depth -= 1
            said.append(f"\n{'  ' * depth}")
        said.append(f",\n{'  ' * depth}" if piece == "," else _ENDS.get(piece, _read(piece)))
        before = piece
    return "".join(said)


_ENDS: Final = {":": ": "}


def _read(piece: str) -> str:
    """A text with its letters in place of their escapes."""
    return json.dumps(json.loads(piece), ensure_ascii=False) if piece.startswith('"') else piece


def _dump(given: bytes) -> str:
    """Sixteen bytes a line, with their places."""
    lines = []
    for start in range(0, len(given), 16):
        piece = given[start : start + 16]
        letters = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in piece)
        lines.append(f"{start:06x}  {piece.hex(' '):<47}  {letters}")
    return "\n".join(lines)


def answers(lookup: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    """What the provider's API answered, by the name of the call."""
    return [(name, answer) for name, answer in (lookup or {}).items() if isinstance(answer, Mapping)]
