"""The inbox as the workers see it: raw requests that the receiver committed and Postgres does not have yet, or has had
for a moment. And the hands: which of them somebody works on who has not made a row for them.

A note of what is in hand stays where its worker dies. Knows nothing of what is done with a request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from redis import Redis
from redis.exceptions import RedisError

from schemas.delivery import INBOX, Malformed, RawDelivery
from schemas.logs import log

HANDS: Final = "reservoir:hands"
"""A Redis hash: any name → until when (Unix time), and the ids, with blanks between them."""
SETTLED: Final = timedelta(seconds=10)
"""A request this old whose queue is empty was not nudged, or its nudge was lost, and the sweeper nudges it."""
AT_ONCE: Final = 32
"""Requests in one answer of Redis, which may be a mebibyte each: meanwhile it answers no receiver."""


class Inbox:
    """A Redis hash: delivery id → raw request."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._landed: list[UUID] = []
        self._hand = ""

    def get(self, delivery_id: UUID) -> bytes | None:
        """The packed request; None when it has landed already."""
        return self.get_all([delivery_id]).get(delivery_id)

    def get_all(self, delivery_ids: Sequence[UUID]) -> dict[UUID, bytes]:
        """The packed requests; one that has landed already is left out."""
        there: dict[UUID, bytes] = {}
        for start in range(0, len(delivery_ids), AT_ONCE):
            ids = delivery_ids[start : start + AT_ONCE]
            found = self._redis.hmget(INBOX, [str(delivery_id) for delivery_id in ids])
            pairs = zip(ids, found, strict=True)
            there |= {delivery_id: _bytes(packed) for delivery_id, packed in pairs if packed is not None}
        return there

    def forget(self, *delivery_ids: UUID) -> None:
        """Removes what Postgres has."""
        if delivery_ids:
            self._redis.hdel(INBOX, *map(str, delivery_ids))

    def landed(self, *delivery_ids: UUID) -> None:
        """Notes what Postgres has. It may stay here for a while: whoever finds it finds it landed."""
        self._landed += delivery_ids

    def tidy(self) -> None:
        """Removes what has landed, and the note of what was in hand: off the way of a delivery, because Redis syncs its
        disk for it. What a Redis that is away keeps is found by the sweeper."""
        landed, self._landed = self._landed, []
        hand, self._hand = self._hand, ""
        with suppress(RedisError), self._redis.pipeline(transaction=False) as pipe:
            if landed:
                pipe.hdel(INBOX, *map(str, landed))
            if hand:
                pipe.hdel(HANDS, hand)
            pipe.execute()

    # --- what is in hand ---

    def take_in_hand(self, delivery_ids: Sequence[UUID], until: datetime) -> None:
        """Notes, until `tidy`, that these are worked on though they have no row that says so. Raises RedisError."""
        self._hand = uuid4().hex
        self._redis.hset(HANDS, self._hand, " ".join((str(until.timestamp()), *map(str, delivery_ids))))

    def dropped(self, now: datetime) -> dict[str, list[UUID]]:
        """What was noted and whose time is over, by the note's name: its worker has died, or hangs, or Redis was away
        when it was done. Most of that may have landed."""
        dropped = {}
        for name, note in self._redis.hgetall(HANDS).items():
            until, ids = _noted(_bytes(note))
            if not until > now.timestamp():
                dropped[_bytes(name).decode("latin-1")] = ids
        return dropped

    def pick_up(self, hand: str, landed: Sequence[UUID]) -> None:
        """Removes a note of somebody else's, with what Postgres has of it now."""
        self.forget(*landed)
        self._redis.hdel(HANDS, hand)

    # --- all of it ---

    def waiting(self) -> Iterator[tuple[UUID, bytes]]:
        """Every request that has not landed; one that comes or goes meanwhile may be left out or told twice."""
        for field, packed in self._redis.hscan_iter(INBOX, count=50):
            delivery_id = _id(field)
            if delivery_id is None:
                log.error("not-an-id", where="inbox")  # whoever wrote it must take it away
            else:
                yield delivery_id, packed

    def size(self) -> int:
        """How many requests have not landed."""
        return int(self._redis.hlen(INBOX))


def _bytes(packed: bytes | str) -> bytes:
    return packed if isinstance(packed, bytes) else packed.encode("latin-1")


def _noted(note: bytes) -> tuple[float, list[UUID]]:
    """Until when, and what. What cannot be read is nobody's, and over."""
    try:
        until, *ids = note.decode("ascii").split()
        return float(until), [UUID(one) for one in ids]
    except ValueError:
        log.error("not-an-id", where="hands")
        return 0.0, []


def _id(field: bytes) -> UUID | None:
    try:
        return UUID(field.decode())
    except ValueError:
        return None


def unpacked(delivery_id: UUID, packed: bytes) -> RawDelivery | None:
    """The request; None where this version cannot read the entry, or PostgreSQL could not hold its head."""
    try:
        raw = RawDelivery.unpack(delivery_id, packed)
    except Malformed:
        return None
    return None if b"\0" in packed.partition(b"\r\n\r\n")[0] else raw
