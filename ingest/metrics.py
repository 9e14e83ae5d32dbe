"""What the receiver counts: each request by its answer, and how long a delivery waited for it.

On the way of a request it is plain memory (docs/metrics.md says what it costs); a thread writes the counts down every
second, so that no request waits for its disk. Knows no HTTP beyond the number of a status.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Final, NamedTuple

from ingest.acks import Acks
from schemas.meters import Meters, Numbers, observed
from schemas.metrics import ACK, REQUESTS

EVERY: Final = 1.0
"""Seconds between two writes."""
STOP_WITHIN: Final = 1.0
"""Seconds that the end waits for a disk that hangs."""

HUNG_UP: Final = 0
"""In place of a status: the sender left before its body was complete."""

EXPECTED: Final = (("200", "redis"), ("200", "spool"), ("503", ""))
"""Answers to deliveries, and where these were kept: counted from 0, for Prometheus sees no rise in a first value."""


class Answers(NamedTuple):
    """What is counted of one kind of answer."""

    requests: Numbers
    waits: Numbers | None
    """None where nobody waited for a disk."""


class Tally:
    """See the module. Use as an async context manager."""

    def __init__(self, meters: Meters, acks: Acks, endpoints: Iterable[str]) -> None:
        self._meters = meters
        self._acks = acks
        self._answers: dict[tuple[str, int, str], Answers] = {}
        for labels in [("", "404", ""), *((name, *answer) for name in endpoints for answer in EXPECTED)]:
            meters.numbers(REQUESTS, labels)

    def answered(self, endpoint: str, status: int, kept: str, seconds: float) -> None:
        """`endpoint` is empty where the URL was wrong, `kept` where nothing was. For the loop's thread."""
        answers = self._answers.get((endpoint, status, kept)) or self._first(endpoint, status, kept)
        answers.requests[0] += 1.0
        if answers.waits is not None:
            observed(ACK, answers.waits, seconds)
            self._acks.answered(endpoint, seconds, failed=not kept)

    def _first(self, endpoint: str, status: int, kept: str) -> Answers:
        counts_as_wait = kept or status >= 500
        answers = self._answers[endpoint, status, kept] = Answers(
            requests=self._meters.numbers(REQUESTS, (endpoint, str(status), kept)),
            waits=self._meters.numbers(ACK, (endpoint,)) if counts_as_wait else None,
        )
        return answers

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
