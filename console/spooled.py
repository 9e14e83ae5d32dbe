"""The spool as it looks from outside: which segments hold requests, how large they are, since when. Only reads.

A segment belongs to the process that holds its lock, and SQLite lets nobody else in meanwhile. So it is looked at as
the file that it is: each request in it begins with the start line that `schemas.delivery.packed` gives it, which tells
when it was received. Every receiver has a segment open, also when all is well: one without a start line is empty.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final
from uuid import UUID

from schemas.delivery import EPOCH, MICROSECOND

SUFFIX: Final = ".sqlite"
CORRUPT: Final = ".corrupt"
LOOKED_AT: Final = 4 * 1024 * 1024
"""Bytes of each file that are looked at: the first request stands further in front, however large it is."""
PAGE: Final = 4096
_START: Final = re.compile(rb"reservoir/1 [a-z0-9-]+ [A-Z]+ (\d{16})\r\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spooled:
    """What waits in a spool."""

    files: int = 0
    bytes: int = 0
    since: datetime | None = None
    """When the oldest request was received; None: nothing waits."""
    corrupt: int = 0
    """Segments that are kept for a person."""


def spooled(directory: Path) -> Spooled:
    """What waits in this directory; a segment that goes meanwhile is left out. Raises OSError."""
    names = sorted(directory.iterdir())
    waiting = {path: since for path in names if path.suffix == SUFFIX and (since := _since(path)) is not None}
    return Spooled(
        files=len(waiting),
        bytes=sum(_size(file) for path in waiting for file in _files(path)),
        since=min(waiting.values(), default=None),
        corrupt=sum(path.suffix == CORRUPT for path in names),
    )


def _since(segment: Path) -> datetime | None:
    """When its first request was received; None where it holds none."""
    for file in _files(segment):
        with suppress(FileNotFoundError), file.open("rb") as reading:
            begin = reading.read(LOOKED_AT)
            first = _START.search(begin)
            if first is not None:  # with what stands beside it: inside of a page the last one was written first
                near = _START.findall(begin, first.start(), first.start() + PAGE)
                return max(EPOCH + min(map(int, near)) * MICROSECOND, _made(segment))
    return None


def _made(segment: Path) -> datetime:
    """By its name, a time-ordered id. No request is older, whatever a body may look like."""
    try:
        milliseconds = UUID(hex=segment.stem).int >> 80
    except ValueError:
        return EPOCH
    return EPOCH + milliseconds * 1000 * MICROSECOND


def _files(segment: Path) -> tuple[Path, Path]:
    """The first requests are in the database itself; in the log until it has been worked into that."""
    return segment, segment.with_name(f"{segment.name}-wal")


def _size(file: Path) -> int:
    with suppress(FileNotFoundError):
        return file.stat().st_size
    return 0
