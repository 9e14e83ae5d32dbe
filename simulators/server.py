"""The venues' APIs over real HTTP, on one port: `/<provider>/<endpoint>/…`, and a small panel at `/`.

Finds the providers by listing this folder, and brings the weather of the API down on all of them alike. Everything
runs in one event loop with the senders, so a venue needs no locks.
"""

from __future__ import annotations

import asyncio
import pkgutil
import socket
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib import import_module
from random import Random
from types import MappingProxyType
from typing import Any, Final, Self

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

import simulators
from simulators.ledger import Sent
from simulators.venue import Venue

SHOWN: Final = 100
"""How many of the last deliveries the panel shows."""
GRACE: Final = 2.0
"""Seconds that an answer may still take when the server goes."""


@cache
def discover() -> Mapping[str, type[Venue]]:
    """Every simulated provider by name: the file `simulators/<name>.py` holds its class as `VENUE`."""
    names = sorted(found.name for found in pkgutil.iter_modules(simulators.__path__) if found.name != "__main__")
    modules = {name: import_module(f"simulators.{name}") for name in names}
    return MappingProxyType({name: module.VENUE for name, module in modules.items() if hasattr(module, "VENUE")})


# --- the weather of the API ----------------------------------------------------------------------------------

_GARBAGE: Final = (
    ("text/html", b"<!doctype html><title>Down for maintenance</title><p>We will be back shortly.</p>"),
    ("application/json", b'{"data": {"id": 40'),
)


class Weathered:
    """A venue's API under that venue's weather: slow, down, or talking nonsense."""

    def __init__(self, api: ASGIApp, venue: Venue) -> None:
        self.api = api
        self.venue = venue
        self.chance = Random(venue.chance.getrandbits(64))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        weather = self.venue.weather
        if self.chance.random() < weather.api_slow:
            await asyncio.sleep(weather.slow_seconds)
        answer: ASGIApp = self.api
        if self.chance.random() < weather.api_down:
            answer = Response(b"upstream unavailable", 503, media_type="text/plain")
        elif self.chance.random() < weather.api_garbage:
            media_type, body = self.chance.choice(_GARBAGE)
            answer = Response(body, 200, media_type=media_type)
        await answer(scope, receive, send)


# --- the application -----------------------------------------------------------------------------------------


def mount_path(venue: Venue) -> str:
    """Where a venue's API stands; two venues of one provider live side by side."""
    return f"/{venue.provider}/{venue.endpoint}"


def build(venues: Sequence[Venue]) -> Starlette:
    """One application with the APIs of all these venues and the panel."""

    async def panel(_: Request) -> JSONResponse:
        return JSONResponse(_panel(venues))

    mounts = [Mount(mount_path(venue), Weathered(Router(venue.routes()), venue)) for venue in venues]
    return Starlette(routes=[Route("/", panel), *mounts])


def _panel(venues: Sequence[Venue]) -> dict[str, Any]:
    ledgers = {id(venue.ledger): venue.ledger for venue in venues}
    sent = sorted((sent for ledger in ledgers.values() for sent in ledger.sent), key=lambda sent: sent.at)
    return {
        "venues": [_of_venue(venue, [one for one in sent if one.endpoint == venue.endpoint]) for venue in venues],
        "deliveries": [_of_delivery(one) for one in reversed(sent[-SHOWN:])],
    }


def _of_venue(venue: Venue, sent: Sequence[Sent]) -> dict[str, Any]:
    return {
        "provider": venue.provider,
        "endpoint": venue.endpoint,
        "api": mount_path(venue),
        "hook": "off" if venue.hook_off else "on",
        "requests": len(sent),
        "taken": sum(one.acked for one in sent),
        **venue.panel(),
    }


def _of_delivery(sent: Sent) -> dict[str, Any]:
    return {
        "at": datetime.fromtimestamp(sent.at, UTC).isoformat(),
        "endpoint": sent.endpoint,
        "about": sent.about,
        "status": sent.status,
        "seconds": round(sent.seconds, 4),
        "late": sent.late,
    }


# --- the process ---------------------------------------------------------------------------------------------


class _Uvicorn(uvicorn.Server):
    """Says when it is up, goes at once when it is told to, and leaves signals to whoever runs the event loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()
        self.leave = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        ticking = asyncio.create_task(super().main_loop())
        await self.leave.wait()
        ticking.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it, without its pause: what is being answered may end, the rest is closed."""
        for listening in self.servers:
            listening.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        answering = set(self.server_state.tasks)
        if answering:
            _, stuck = await asyncio.wait(answering, timeout=GRACE)
            for task in stuck:
                task.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def serve(app: ASGIApp, port: int = 0) -> AsyncIterator[int]:
    """An application on 127.0.0.1, in the running event loop, as long as the context lasts; gives its port."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = _Uvicorn(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none"))
        running = asyncio.create_task(server.serve(sockets=[listener]))
        await server.up.wait()
        try:
            yield listener.getsockname()[1]
        finally:
            server.leave.set()
            await running


class Server:
    """The venues' APIs and the panel over HTTP.

    `base_url` is known once it is entered; port 0 takes a free one. The venues send nothing by that: enter each of
    them too.
    """

    def __init__(self, venues: Sequence[Venue], port: int = 0) -> None:
        self.app = build(venues)
        self.port = port

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def api_url(self, venue: Venue) -> str:
        """Where this venue's API is: what `Venue.settings` takes."""
        return self.base_url + mount_path(venue)

    async def __aenter__(self) -> Self:
        self._serving = serve(self.app, self.port)
        self.port = await self._serving.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._serving.__aexit__(None, None, None)
