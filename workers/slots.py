"""How many children of one worker ask one provider at a time: never all of them, so that an API that hangs leaves
hands for the other queues.

A slot is a lock on one byte of a file without a name, which the worker opens before it forks its children: the kernel
gives it back when a child ends, however it ends. Whoever finds none waits for a moment: where all is well, one is free
long before. Knows no queue, no HTTP and no delivery.
"""

from __future__ import annotations

import fcntl
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final
from zlib import crc32

PATIENCE: Final = timedelta(seconds=0.5)
"""How long a child waits for a slot; much longer than an API takes that is well, much shorter than one that hangs."""
PAUSE: Final = 0.05
MOST: Final = 1024
"""Bytes for each provider: more than a worker has children."""


class Slots:
    """The slots of one worker, for each provider; made before it forks. Of one child, one thread may hold a slot."""

    def __init__(self, concurrency: int, *, patience: timedelta = PATIENCE) -> None:
        """One less than there are children; one slot there is always."""
        self._most = min(max(1, concurrency - 1), MOST)
        self._patience = patience.total_seconds()
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  as long as the process lives

    def close(self) -> None:
        """Gives back what this process holds."""
        self._file.close()

    @contextmanager
    def hold(self, provider: str) -> Iterator[bool]:
        """Yields whether a slot was free; where it was, it is held until the end."""
        first = crc32(provider.encode()) * MOST
        until = time.monotonic() + self._patience
        while (place := self._taken(first)) is None and time.monotonic() < until:
            time.sleep(PAUSE)
        try:
            yield place is not None
        finally:
            if place is not None:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def _taken(self, first: int) -> int | None:
        for place in range(first, first + self._most):
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):  # POSIX allows either
                continue
            return place
        return None
