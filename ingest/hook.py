"""A hook, `/hooks/{endpoint}/{token}`: the right door, the size limit, the commit, and what is answered when.

A plain ASGI callable, which knows every way in which a request may come. Most deliveries come in one way only, and
`ingest.protocol` takes those on a shorter one; both ask the same `Hook`. Knows neither Redis nor the spool.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Final

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ingest.door import Doors, Entrance
from ingest.metrics import HUNG_UP, Tally
from ingest.settings import RETRY_AFTER
from ingest.waiting import REDIS, SPOOL, Keeps, NotDurable, Row
from schemas.delivery import new_id_text, now, packed, present
from schemas.logs import log

Headers = Sequence[tuple[bytes, bytes]]


class Answer:
    """An answer without a body, as it goes out: made once."""

    def __init__(self, status: int, kept: str = "", **headers: str) -> None:
        plain = Response(status_code=status, headers={name.replace("_", "-"): value for name, value in headers.items()})
        self.start: Message = {"type": "http.response.start", "status": status, "headers": plain.raw_headers}
        self.end: Message = {"type": "http.response.body", "body": b""}
        self.status = status
        self.lines = b"".join([b"%b: %b\r\n" % header for header in plain.raw_headers])
        """The headers on the wire."""
        self.kept = kept
        """Where a delivery was kept; empty where nothing was."""


KEPT: Final = {place: Answer(200, place) for place in (REDIS, SPOOL)}
NOTHING_TO_KEEP = Answer(200)
NOT_FOUND = Answer(404)
TOO_LARGE = Answer(413, connection="close")
NOT_NOW = Answer(503, retry_after=str(RETRY_AFTER))


class TooLarge(Exception):
    """The body is larger than we take."""


class HungUp(Exception):
    """The sender left before the body was complete."""


class Hook:
    """See the module."""

    def __init__(self, doors: Doors, keeper: Keeps, body_limit: int, tally: Tally) -> None:
        self.doors: Final = doors
        self.keeper: Final = keeper
        self.body_limit: Final = body_limit
        self.tally: Final = tally

    async def __call__(self, endpoint: str, token: str, scope: Scope, receive: Receive, send: Send) -> None:
        began = perf_counter()
        try:
            answer = await self._answer(endpoint, token, scope, receive)
        except HungUp:
            self.tally.answered(endpoint, HUNG_UP, "", perf_counter() - began)
            return
        await send(answer.start)
        await send(answer.end)
        known = endpoint if answer is not NOT_FOUND else ""  # a name that anybody may make up is counted nowhere
        self.tally.answered(known, answer.status, answer.kept, perf_counter() - began)

    async def _answer(self, endpoint: str, token: str, scope: Scope, receive: Receive) -> Answer:
        received_at = present()
        entrance = self.doors.find(endpoint, token, now())
        if entrance is None:
            return NOT_FOUND
        refusal = _refusal(entrance, scope)
        if refusal is not None:
            return refusal
        try:
            body = await self._body(scope, receive)
        except TooLarge:
            log.warning("refuse", endpoint=entrance.endpoint.name, reason="too-large")
            return TOO_LARGE
        row = row_of(entrance, scope["method"], received_at, scope["headers"], body)
        try:
            return KEPT[await self.keeper.keep(row)]
        except NotDurable as error:
            return refused(entrance, row, error)

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The body as it came. Raises TooLarge, as early as it is known, and HungUp."""
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self.body_limit:
                raise TooLarge
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HungUp
            piece: bytes = message.get("body", b"")
            if len(body) + len(piece) > self.body_limit:
                raise TooLarge
            if not message.get("more_body", False):
                return bytes(body + piece) if body else piece
            body += piece


def row_of(entrance: Entrance, method: str, received_at: int, headers: Headers, body: bytes) -> Row:
    """The request as it is kept, under an id of its own. `received_at` is what `schemas.delivery.present` said."""
    endpoint = entrance.endpoint
    return Row(new_id_text(), endpoint.provider, packed(endpoint.name, method, received_at, headers, body))


def refused(entrance: Entrance, row: Row, error: NotDurable) -> Answer:
    """Neither disk takes it: the sender is told to come again, and the log says why."""
    log.error("refuse", delivery=row.id, endpoint=entrance.endpoint.name, reason="not-durable", error=str(error))
    return NOT_NOW


def _refusal(entrance: Entrance, scope: Scope) -> Answer | None:
    """The answer to a request that is no delivery; None for one that is."""
    method, door = scope["method"], entrance.door
    if method in door.methods:
        return None
    if method in ("GET", "HEAD"):
        wanted = (door.message_id_header or "").encode()
        named = any(name == wanted and value.strip() for name, value in scope["headers"])
        # A GET without a message id is somebody's browser or an uptime probe: kept nowhere.
        return None if named and method == "GET" else NOTHING_TO_KEEP
    return Answer(405, allow=", ".join(sorted({*door.methods, "GET", "HEAD"})))
