"""Which core is whose in a run: the one of the client and of Redis, and the one of what is measured.

A disk with one queue interrupts one core. That work is Redis's, who waits for the disk; on the other core it would be
taken from a receiver that makes requests durable, and from a route that stores nothing it would not. Knows no server.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.disk import synced

INTERRUPTS: Final = Path("/proc/interrupts")
SYNCS: Final = 200
"""Small writes, each of which makes the disk interrupt at least once."""


def cores(folder: Path) -> tuple[int | None, int | None]:
    """The client's and Redis's core, and the core of what is measured; None where they cannot be told apart. `folder`
    is on the disk that Redis writes to."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    ours = sorted(os.sched_getaffinity(0))
    if len(ours) < 2:
        return None, None
    disks = _disks(folder, ours)
    return disks, next(core for core in ours if core != disks)


def _disks(folder: Path, ours: Sequence[int]) -> int:
    """The core that the disk interrupts while a small file is synced again and again on the first one."""
    with here(ours[0]):
        before = _told()
        synced(folder, SYNCS)
        after = _told()
    return interrupted(before, after, ours)


def interrupted(before: str, after: str, ours: Sequence[int]) -> int:
    """The core on which devices interrupted most between two looks at `/proc/interrupts`; the first one where that was
    less often than the disk must have."""
    were, are = (by_core(told) for told in (before, after))
    more = {core: are.get(core, 0) - were.get(core, 0) for core in ours}
    most = max(ours, key=lambda core: more[core])
    return most if more[most] >= SYNCS else ours[0]


def by_core(told: str) -> Mapping[int, int]:
    """Core → how often devices have interrupted it: their lines begin with a number, other ones with a word."""
    head, *lines = told.splitlines() or [""]
    names = [int(name) for name in re.findall(r"CPU(\d+)", head)]
    counts = dict.fromkeys(names, 0)
    for line in lines:
        number, _, rest = line.partition(":")
        if number.strip().isdigit():
            for name, count in zip(names, rest.split(), strict=False):
                counts[name] += int(count) if count.isdigit() else 0
    return counts


def _told() -> str:
    try:
        return INTERRUPTS.read_text(encoding="utf-8")
    except OSError:
        return ""


@contextmanager
def here(core: int | None) -> Iterator[None]:
    """This thread works on that core for as long as the context lasts."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
