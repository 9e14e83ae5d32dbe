"""What had no part in a run and used the CPU all the same: it takes from one contender what another one had."""

from __future__ import annotations

import time
from typing import Final

import psutil

from bench.ground import cpu_seconds

NOTHING: Final = frozenset({"idle", "iowait", "guest", "guest_nice"})
"""What the kernel counts and nobody used; a guest's time stands in the user's too."""


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
