"""The disk under a run, felt by somebody who writes next to nothing and syncs it. Knows no server."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

PIECE: Final = bytes(4096)
"""One small write, about a small group commit."""
EVERY: Final = 0.1
"""Seconds between two writes of a bystander; what is measured syncs some hundred times a second."""


def synced(folder: Path, times: int) -> list[float]:
    """Seconds that each of so many small writes took until it was on the disk, one after another. Raises OSError."""
    place = folder / "synced"
    took = []
    try:
        with place.open("wb", buffering=0) as file:
            for _ in range(times):
                began = time.perf_counter()
                file.write(PIECE)
                os.fsync(file.fileno())
                took.append(time.perf_counter() - began)
    finally:
        place.unlink(missing_ok=True)
    return took


class SmallWrites:
    """A bystander's, each synced, again and again while the context lasts. Its end raises OSError where one failed."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "bystander"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._failed: OSError | None = None
        self.slowest = 0.0
        """Seconds that a write took, with its sync."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._file.unlink(missing_ok=True)
        if self._failed is not None:
            raise self._failed

    def _write(self) -> None:
        try:
            with self._file.open("ab", buffering=0) as file:
                while not self._over.wait(EVERY):
                    began = time.perf_counter()
                    file.write(PIECE)
                    os.fdatasync(file.fileno())
                    self.slowest = max(self.slowest, time.perf_counter() - began)
        except OSError as error:  # whoever could not write has not felt anything
            self._failed = error
