"""What had no part in a run and used the machine all the same: it takes from one contender what another one had.

Of the CPU it is counted. Of the disk it is felt: by somebody who writes next to nothing, and still has to wait.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from bench.ground import cpu_seconds

NOTHING: Final = frozenset({"idle", "iowait", "guest", "guest_nice"})
"""What the kernel counts and nobody used; a guest's time stands in the user's too."""

WRITE: Final = b"\0" * 4096
EVERY: Final = 0.1
"""Seconds between two writes of a bystander; what is measured syncs some hundred times a second."""


class Others:
    """The rest of the machine from now on. What a hypervisor took away is work of others."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), _rest()

    def share(self) -> float:
        """Of a core, since the beginning."""
        return max(0.0, _rest() - self._before) / (time.monotonic() - self._began)


def _rest() -> float:
    """Seconds of CPU of all that is neither this process nor started by it."""
    here = psutil.Process()
    ours = sum(cpu_seconds(process) for process in (here, *here.children(recursive=True)))
    counted = psutil.cpu_times()._asdict()
    return float(sum(spent for name, spent in counted.items() if name not in NOTHING)) - ours


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
                    file.write(WRITE)
                    os.fdatasync(file.fileno())
                    self.slowest = max(self.slowest, time.perf_counter() - began)
        except OSError as error:  # whoever could not write has not felt anything
            self._failed = error
