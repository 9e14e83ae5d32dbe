"""What was logged, as events with their fields, and what docs/operating.md says of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

Line = dict[str, Any]

OPERATING = Path(__file__).resolve().parent.parent / "docs" / "operating.md"
AGREED = {"timestamp", "level", "logger", "process", "event"}
"""What every line has."""
ANYWHERE = {"delivery", "endpoint", "raised", "at"}
"""What any of our own lines may have."""


def logged(caplog: pytest.LogCaptureFixture, event: str) -> list[Line]:
    """The fields of our own lines of this name, in this process."""
    ours = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [{name: value for name, value in line.items() if name != "event"} for line in ours if line["event"] == event]


def read(log: str) -> list[Line]:
    """The lines of a log that programs read. Raises ValueError where one is none."""
    return [json.loads(line) for line in log.splitlines()]


def documented() -> dict[str, set[str]]:
    """Event → fields, by the table of docs/operating.md."""
    text = OPERATING.read_text(encoding="utf-8").partition("## The log")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| `([a-z-]+)` \| ([^|]*) \|", text)
    return {event: set(re.findall(r"`([a-z_]+)`", fields)) for event, fields in rows}
