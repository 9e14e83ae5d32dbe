"""The venues' APIs over real HTTP, on one port: `/<provider>/<endpoint>/…`, and a small panel at `/`.

Finds the providers by listing this folder, and brings the weather of the API down on all of them alike. Everything
runs in one event loop with the senders, so a venue needs no locks.
"""

from __future__ import annotations

import asyncio
import logging
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
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import simulators
from simulators.ledger import Counted, Sent
from simulators.venue import Venue

SHOWN: Final = 100
"""How many of the last deliveries the panel shows."""
LOOK_AGAIN: Final = 0.05
"""Seconds between two looks at the weather while a call hangs."""
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
    """A venue's API under that venue's weather: slow, hanging, down, talking nonsense, or cut off."""

    def __init__(self, api: ASGIApp, venue: Venue) -> None:
        self.api = api
        self.venue = venue
        self.chance = Random(venue.chance.getrandbits(64))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        weather = self.venue.weather
        if self._comes(weather.api_slow):
            await asyncio.sleep(weather.slow_seconds)
        if self._comes(weather.api_hang):
            receive = await self._hanging(receive)
        answer: ASGIApp = self.api
        if self._comes(weather.api_down):
            answer = Response(b"upstream unavailable", 503, media_type="text/plain")
        elif self._comes(weather.api_garbage):
            media_type, body = self.chance.choice(_GARBAGE)
            answer = Response(body, 200, media_type=media_type)
        elif self._comes(weather.api_cut):
            answer = _cut
        await answer(scope, receive, send)

    def _comes(self, chance: float) -> bool:
        return chance > 0 and self.chance.random() < chance

    async def _hanging(self, receive: Receive) -> Receive:
        """Returns when the weather is over or the client has left; what gives the request's messages again."""
        messages: list[Message] = []
        listening = asyncio.create_task(_listen(receive, messages))
        while self.venue.weather.api_hang and not listening.done():
            await asyncio.wait({listening}, timeout=LOOK_AGAIN)
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)

        async def again() -> Message:
            return messages.pop(0) if messages else await receive()

        return again


async def _listen(receive: Receive, messages: list[Message]) -> None:
    """Keeps what comes, until the client leaves."""
    while not messages or messages[-1]["type"] != "http.disconnect":
        messages.append(await receive())


async def _cut(scope: Scope, receive: Receive, send: Send) -> None:
    """Announces more than it says; the server closes a connection whose answer was not completed."""
    headers = [(b"content-type", b"application/json"), (b"content-length", b"4096")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b'{"data": {"id": 40', "more_body": True})


def _unmeant(record: logging.LogRecord) -> bool:
    """Whether the server's complaint is about anything but that."""
    return "without completing response" not in record.getMessage()


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
    last = (sent for ledger in ledgers.values() for sent in ledger.sent[-SHOWN:])
    return {
        "venues": [_of_venue(venue, venue.ledger.counted[venue.endpoint]) for venue in venues],
        "deliveries": [_of_delivery(one) for one in sorted(last, key=lambda sent: sent.at, reverse=True)[:SHOWN]],
    }


def _of_venue(venue: Venue, counted: Counted) -> dict[str, Any]:
    return {
        "provider": venue.provider,
        "endpoint": venue.endpoint,
        "api": mount_path(venue),
        "hook": "off" if venue.hook_off else "on",
        "requests": counted.sent,
        "taken": counted.acked,
        **venue.panel(),
    }


def _of_delivery(sent: Sent) -> dict[str, Any]:
    return {
        "at": datetime.fromtimestamp(sent.at, UTC).isoformat(),
        "endpoint": sent.endpoint,
        "about": sent.about,
        "request": sent.request,
        "outcome": sent.outcome,
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
    logging.getLogger("uvicorn.error").addFilter(_unmeant)
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        server = _Uvicorn(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", ws="none", proxy_headers=False)
        )
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
