"""What the receiver counts: each request by its answer, and how long a delivery waited for it.

On the way of a request it is plain memory (docs/metrics.md says what it costs); a thread writes the counts down every
second, so that no request waits for its disk. Knows no HTTP beyond the number of a status.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final

from ingest.acks import Acks
from schemas.meters import Meters
from schemas.metrics import ACK, REQUESTS

EVERY: Final = 1.0
"""Seconds between two writes."""
STOP_WITHIN: Final = 1.0
"""Seconds that the end waits for a disk that hangs."""

HUNG_UP: Final = 0
"""In place of a status: the sender left before its body was complete."""

EXPECTED: Final = (("200", "redis"), ("200", "spool"), ("503", ""))
"""Answers to deliveries, and where these were kept: counted from 0, for Prometheus sees no rise in a first value."""


class Tally:
    """See the module. Use as an async context manager."""

    def __init__(self, meters: Meters, acks: Acks, endpoints: Iterable[str]) -> None:
        self._meters = meters
        self._acks = acks
        for labels in [("", "404", ""), *((name, *answer) for name in endpoints for answer in EXPECTED)]:
            meters.add(REQUESTS, labels, 0.0)

    def answered(self, endpoint: str, status: int, kept: str, seconds: float) -> None:
        """`endpoint` is empty where the URL was wrong, `kept` where nothing was."""
        self._meters.add(REQUESTS, (endpoint, _STATUS.get(status) or str(status), kept))
        if kept or status >= 500:
            self._meters.observe(ACK, (endpoint,), seconds)
            self._acks.answered(endpoint, seconds, failed=not kept)

    async def __aenter__(self) -> Tally:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="tally", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(STOP_WITHIN)

    def _work(self) -> None:
        while not self._over.wait(EVERY):
            self._meters.write()
        self._meters.write()


_STATUS: Final = {status: str(status) for status in (HUNG_UP, 200, 404, 405, 413, 503)}
"""Spelled once."""
