"""The receiver: a plain ASGI callable for the hooks, and a Starlette app for all else.

A hook's request does not pass through Starlette's middleware, routing, Request and Response: together they cost more
than making it durable does (docs/performance.md).

`create` is what uvicorn runs:
`uvicorn ingest.app:create --factory --loop uvloop --http ingest.protocol:Hooks --no-access-log` (no access log, because
the URL holds the endpoint's token).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send
from uvicorn.config import STARTUP_FAILURE

from ingest import settings as environment
from ingest.acks import Acks
from ingest.door import Doors
from ingest.drainer import Drainer
from ingest.hook import Hook
from ingest.inbox import Inbox
from ingest.keeper import Keeper
from ingest.metrics import Tally
from ingest.nudge import Nudge
from ingest.settings import RETRY_AFTER, Settings
from ingest.spool import Off, OnDisk, Spool
from ingest.traces import traced
from schemas.endpoints import ConfigError
from schemas.garbage import collect_less
from schemas.logs import configure
from schemas.meters import meters


class Receiver:
    """The whole: `/hooks/{endpoint}/{token}` goes straight to the hook."""

    def __init__(self, hook: Hook, rest: Starlette) -> None:
        self.hook: Final = hook
        """Also for `ingest.protocol`, which need not come through here."""
        self._rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            match scope["path"].split("/"):
                case ["", "hooks", endpoint, token]:
                    await self.hook(endpoint, token, scope, receive, send)
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
        receiver = build(environment.read())
    except ConfigError as error:
        sys.stderr.write(f"reservoir: {error}\n")
        sys.exit(STARTUP_FAILURE)  # by which uvicorn knows that another try would end the same way
    collect_less()
    return receiver
