"""How rows look to a person (rich tables) and to a program (JSON). Knows no database."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Final, TextIO

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from schemas.booking import to_json

STYLES: Final[Mapping[str, str]] = {
    "applied": "green",
    "confirmed": "green",
    "completed": "green",
    "duplicate": "dim",
    "stale": "dim",
    "ignored": "dim",
    "retrying": "yellow",
    "pending": "yellow",
    "hold": "yellow",
    "parked": "bold red",
    "cancelled": "red",
}
"""The colour of a state or a status."""

BOOKINGS: Final = (
    *("endpoint", "external_id", "status", "date", "starts_at", "resource_name", "party_size", "customer_name"),
    *("currency", "total", "paid", "changed_at"),
)
DELIVERIES: Final = (
    *("id", "received_at", "endpoint", "method", "state", "reason", "attempts", "next_attempt_at", "body_bytes"),
)
PARKED: Final = ("id", "received_at", "endpoint", "attempts", "reason", "error")
"""Of deliveries that need a person: what is wrong with them."""
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
URLS: Final = ("endpoint", "provider", "url")


def json_list(rows: Iterable[Mapping[str, Any]], out: TextIO) -> None:
    """A JSON list, written row by row. Instants as ISO 8601 in UTC, money as decimal text, ids as text."""
    separator = "["
    for row in rows:
        out.write(f"{separator}\n  {as_json(row)}")
        separator = ","
    out.write("[]\n" if separator == "[" else "\n]\n")


def as_json(row: Mapping[str, Any], indent: int | None = None) -> str:
    return json.dumps(to_json(row), default=str, ensure_ascii=False, indent=indent)


def table(rows: Iterable[Mapping[str, Any]], columns: Iterable[str], limit: int | None = None) -> None:
    """A table on the terminal; where `limit` rows are not all, it says so. Wider where the output is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    names = list(columns)
    shown = Table(*names, box=None, header_style="bold", pad_edge=False)
    left = iter(rows)
    for row in islice(left, limit):
        shown.add_row(*(_cell(row[name]) for name in names))
    console.print(shown)
    if next(left, None) is not None:
        console.print(f"[dim]the first {limit}; more with --limit, all with --json[/dim]")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    text = escape(_printable(str(value)))
    return f"[{STYLES[text]}]{text}[/]" if text in STYLES else text


def _printable(text: str) -> str:
    """What a guest typed must not steer the terminal."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def delivery(row: Mapping[str, Any]) -> dict[str, Any]:
    """One delivery with its body as a program can read it: as text, or as base64 where it is none."""
    body = bytes(row["body"])
    shown = {name: value for name, value in row.items() if name != "body"}
    try:
        return {**shown, "body": body.decode(), "body_encoding": "utf-8"}
    except UnicodeDecodeError:
        return {**shown, "body": base64.b64encode(body).decode(), "body_encoding": "base64"}


def delivery_page(row: Mapping[str, Any]) -> None:
    """What became of a delivery, then the request as it came."""
    console = Console(soft_wrap=True, highlight=False)
    page = delivery(row)
    request = {"headers", "body", "body_encoding", "lookup", "method"}
    for name, value in page.items():
        if name not in request and value is not None:
            console.print(f"[bold]{name:>20}[/]  {_cell(value)}")
    console.print()
    console.print(_printable(page["method"]), markup=False)
    for name, value in page["headers"]:
        console.print(_printable(f"{name}: {value}"), markup=False)
    console.print()
    console.print(_printable(page["body"]), markup=False)
    if page["body_encoding"] == "base64":
        console.print("[dim](no text; the body is shown in base64)[/]")
    if page["lookup"]:
        console.print("\n[bold]what the provider's API answered[/]")
        console.print(json.dumps(page["lookup"], ensure_ascii=False, indent=2), markup=False)
