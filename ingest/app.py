"""The receiver: a plain ASGI callable for the hooks, and a Starlette app for all else.

A hook's request does not pass through Starlette's middleware, routing, Request and Response: together they cost more
than making it durable does (docs/performance.md).

`create` is what uvicorn runs: `uvicorn ingest.app:create --factory --loop uvloop --http httptools --no-access-log`
(no access log, because the URL holds the endpoint's token).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import STARTUP_FAILURE

from ingest import settings as environment
from ingest.acks import Acks
from ingest.door import Doors, Entrance
from ingest.drainer import Drainer
from ingest.inbox import Inbox
from ingest.keeper import REDIS, SPOOL, Keeper
from ingest.metrics import HUNG_UP, Tally
from ingest.nudge import Nudge
from ingest.settings import RETRY_AFTER, Settings
from ingest.spool import Off, OnDisk, Spool
from ingest.traces import Keeps, traced
from ingest.waiting import NotDurable, Row
from schemas.delivery import new_id_text, now, packed
from schemas.endpoints import ConfigError
from schemas.logs import configure, log
from schemas.meters import meters


class Answer:
    """An answer without a body, as it goes out: made once."""

    def __init__(self, status: int, kept: str = "", **headers: str) -> None:
        plain = Response(status_code=status, headers={name.replace("_", "-"): value for name, value in headers.items()})
        self.start: Message = {"type": "http.response.start", "status": status, "headers": plain.raw_headers}
        self.end: Message = {"type": "http.response.body", "body": b""}
        self.status = status
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
    """`/hooks/{endpoint}/{token}`: the right door, the size limit, the commit, an empty 200."""

    def __init__(self, doors: Doors, keeper: Keeps, body_limit: int, tally: Tally) -> None:
        self._doors = doors
        self._keeper = keeper
        self._body_limit = body_limit
        self._tally = tally

    async def __call__(self, endpoint: str, token: str, scope: Scope, receive: Receive, send: Send) -> None:
        began = perf_counter()
        try:
            answer = await self._answer(endpoint, token, scope, receive)
        except HungUp:
            self._tally.answered(endpoint, HUNG_UP, "", perf_counter() - began)
            return
        await send(answer.start)
        await send(answer.end)
        known = endpoint if answer is not NOT_FOUND else ""  # a name that anybody may make up is counted nowhere
        self._tally.answered(known, answer.status, answer.kept, perf_counter() - began)

    async def _answer(self, endpoint: str, token: str, scope: Scope, receive: Receive) -> Answer:
        received_at = now()
        entrance = self._doors.find(endpoint, token, received_at)
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
        name, queue = entrance.endpoint.name, entrance.endpoint.provider
        row = Row(new_id_text(), queue, packed(name, scope["method"], received_at, scope["headers"], body))
        try:
            return KEPT[await self._keeper.keep(row)]
        except NotDurable as error:
            log.error("refuse", delivery=row.id, endpoint=name, reason="not-durable", error=str(error))
            return NOT_NOW

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        """The body as it came. Raises TooLarge, as early as it is known, and HungUp."""
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._body_limit:
                raise TooLarge
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HungUp
            piece: bytes = message.get("body", b"")
            if len(body) + len(piece) > self._body_limit:
                raise TooLarge
            if not message.get("more_body", False):
                return bytes(body + piece) if body else piece
            body += piece


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


class Receiver:
    """The whole: `/hooks/{endpoint}/{token}` goes straight to the hook."""

    def __init__(self, hook: Hook, rest: Starlette) -> None:
        self._hook = hook
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            match scope["path"].split("/"):
                case ["", "hooks", endpoint, token]:
                    await self._hook(endpoint, token, scope, receive, send)
                    return
        await self._rest(scope, receive, send)


async def healthz(request: Request) -> Response:
    """The process lives."""
    return PlainTextResponse("alive\n")


def build(settings: Settings) -> Receiver:
    """The receiver with its parts. Raises ConfigError."""
    inbox = Inbox(settings.redis_url, Nudge(), settings.patience)
    spool = _spool(settings)
    keeper = Keeper(inbox, spool, settings.patience)
    acks = Acks(settings.redis_url, well=lambda: not keeper.is_open)
    tally = Tally(meters("receiver"), acks, settings.config.endpoints)
    hook = Hook(Doors(settings.config, settings.secret), traced(keeper), settings.body_limit, tally)

    async def readyz(request: Request) -> Response:
        """A delivery can be made durable now, and how."""
        how = await keeper.ready()
        if how is not None:
            return PlainTextResponse(f"{how}\n")
        said = "not ready: neither redis nor the spool takes a write\n"
        return PlainTextResponse(said, 503, {"retry-after": str(RETRY_AFTER)})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with keeper, Drainer(spool, inbox, keeper), acks, tally:
            yield

    routes = [Route("/healthz", healthz), Route("/readyz", readyz)]
    return Receiver(hook, Starlette(routes=routes, lifespan=lifespan))


def _spool(settings: Settings) -> Spool:
    directory = settings.spool_dir
    if directory is None:
        return Off()
    try:
        return OnDisk(directory, settings.spool_limit)
    except OSError as error:
        mend = "name a directory that this process may write, or `off`"
        raise ConfigError("RESERVOIR_SPOOL_DIR", f"{directory} cannot be used ({error.strerror}); {mend}") from None


def create() -> Receiver:
    """The app from the environment; a bad configuration ends the process with one line."""
    configure("web")
    try:
        return build(environment.read())
    except ConfigError as error:
        sys.stderr.write(f"reservoir: {error}\n")
        sys.exit(STARTUP_FAILURE)  # by which uvicorn knows that another try would end the same way
