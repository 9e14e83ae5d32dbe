"""One delivery: the raw request as a provider sent it, its states, and the names under which it travels.

Knows the form in which a request waits in the inbox. Does not know what is inside the body.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from random import Random
from typing import Final
from uuid import UUID

INBOX: Final = "reservoir:inbox"
"""The Redis hash of raw requests that are not in Postgres yet: delivery id → `RawDelivery.pack()`."""

PROCESS: Final = "reservoir.process"
"""The Celery task that a nudge names. The receiver sends it by this name and imports no task."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)


class State(StrEnum):
    """What became of a delivery."""

    RECEIVED = "received"
    """Kept, not worked on yet."""
    APPLIED = "applied"
    """At least one of its events changed a booking."""
    DUPLICATE = "duplicate"
    """All of its events were known, or left their booking as it was."""
    STALE = "stale"
    """Older than what we have."""
    IGNORED = "ignored"
    """Known and of no interest; `reason` says why."""
    RETRYING = "retrying"
    """Comes back at `next_attempt_at`; `reason` says what it waits for."""
    PARKED = "parked"
    """Needs a person; `reason` and `error` say why."""


OPEN: Final = frozenset({State.RECEIVED, State.RETRYING})
"""The states that a worker may still change on its own."""


class Malformed(ValueError):
    """An inbox entry that this version cannot read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawDelivery:
    """One request, byte for byte.

    `received_at` is stamped by the receiver (UTC, microseconds) and is the order of receipt.
    `headers` keep their order, their repetitions and their spelling as the server saw it (latin-1).
    """

    id: UUID
    endpoint: str
    method: str
    received_at: datetime
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def __post_init__(self) -> None:
        if self.received_at.utcoffset() is None:
            raise ValueError("received_at needs a time zone")

    def header(self, name: str) -> str | None:
        """The first header of that name, whatever its case; None where there is none."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)

    def pack(self) -> bytes:
        """The form in the inbox. See `packed`."""
        headers = ((name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers)
        received_at = (self.received_at - EPOCH) // MICROSECOND
        return packed(self.endpoint, self.method, received_at, headers, self.body)

    @classmethod
    def unpack(cls, delivery_id: UUID, entry: bytes) -> RawDelivery:
        """The inverse of `pack`. Raises Malformed."""
        head, blank, body = entry.partition(b"\r\n\r\n")
        start, *lines = head.decode("latin-1").split("\r\n")
        try:
            form, endpoint, method, microseconds = start.split(" ")
            received_at = EPOCH + int(microseconds) * MICROSECOND
        except (ValueError, OverflowError) as error:
            raise Malformed("the inbox entry has no start line of ours") from error
        if form != "reservoir/1" or not blank:
            raise Malformed("the inbox entry is of a form that this version does not know")
        headers = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
        return cls(
            id=delivery_id,
            endpoint=endpoint,
            method=method,
            received_at=received_at,
            headers=headers,
            body=body,
        )


def packed(endpoint: str, method: str, received_at: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """A request as it waits in the inbox: a start line of our own, the headers, a blank line, the body untouched.

    It reads like the request that it is, costs no JSON, and a body never needs escaping. `received_at` in microseconds
    since 1970, UTC.
    """
    start = f"reservoir/1 {endpoint} {method} {received_at}".encode("latin-1")
    return b"\r\n".join((start, *map(b": ".join, headers), b"", body))


@dataclass(frozen=True, kw_only=True, slots=True)
class Door:
    """What the receiver must know of a provider to hold the door for it, and nothing more."""

    methods: frozenset[str] = frozenset({"POST", "PUT", "PATCH"})
    message_id_header: str | None = None
    """With this header a GET is a delivery too."""
    deadline: timedelta | None = None
    """How long the sender waits; None where the provider does not say."""
    sends_again: bool = True
    """False: what we do not take is lost for good."""


DOORS: Final[Mapping[str, Door]] = {
    # The help page says POST, live clients only ever see GET (lock.me, article on webhooks; negan-1 bot).
    "lockme": Door(message_id_header="x-messageid"),
    # "within 5 seconds" is advice (ReserveKit docs, webhooks, 2025-02-27).
    "reservekit": Door(deadline=timedelta(seconds=5)),
    # Two seconds, and an unreachable handler is not tried again (synthesisvr.com, "Webhooks").
    "synthesisvr": Door(deadline=timedelta(seconds=2), sends_again=False),
}
ORDINARY: Final = Door()


def door_of(provider: str) -> Door:
    """The door facts of a provider; a provider without a line of its own has the ordinary ones."""
    return DOORS.get(provider, ORDINARY)


class _Clock:
    """Time-ordered ids of one process: strictly growing, even within a microsecond."""

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def tick(self) -> int:
        """Milliseconds in the upper bits, the 12 bits of fraction in the lower ones."""
        with self._lock:
            now = (time.time_ns() << 12) // 1_000_000
            last = self._last
            self._last = last = now if now > last else last + 1
            return last


_clock = _Clock()
_chance = Random()  # noqa: S311  an id is to be unique, and no secret
os.register_at_fork(after_in_child=_chance.seed)  # two processes must not go on alike


def new_id() -> UUID:
    """A UUID of version 7 (RFC 9562, method 3: the fraction of the millisecond stands in `rand_a`)."""
    return UUID(new_id_text())


def new_id_text() -> str:
    """The same as text, for who has no use for the object."""
    tick, chance = f"{_clock.tick():015x}", f"{0b10 << 62 | _chance.getrandbits(62):016x}"
    return f"{tick[:8]}-{tick[8:12]}-7{tick[12:]}-{chance[:4]}-{chance[4:]}"


def first_id_after(moment: datetime) -> UUID:
    """Above every id of this moment's millisecond and of those before, and below all later ones."""
    milliseconds = (moment - EPOCH) // timedelta(milliseconds=1) + 1
    return UUID(int=milliseconds << 80)


def now() -> datetime:
    """The present moment, UTC."""
    return datetime.now(UTC)


def present() -> int:
    """The same in microseconds since 1970, for who only writes it down."""
    return time.time_ns() // 1000
