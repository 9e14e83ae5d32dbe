"""How a provider's requests go out: a lean HTTP/1.1 sender with connections that are kept, and its bad manners.

A client library makes one request well; this one makes a hundred a second beside everything else on two cores, and
can do what no library wants to do: hang up on purpose. It tells apart what a sender can see of a request that was not
answered. Knows no provider and no booking.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from select import POLLIN, poll
from ssl import SSLContext, create_default_context
from time import monotonic
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

from simulators.ledger import Outcome

AT_ONCE: Final = 200
"""Requests of one sender under way at most, and so its connections."""
PIECES: Final = 8
PIECE_SECONDS: Final = 0.012
"""A slow body comes in so many pieces, so far apart: about a tenth of a second."""
BODILESS: Final = frozenset({"GET", "HEAD"})
_NO_LINGER: Final = struct.pack("ii", 1, 0)
"""Closing discards what is unread and unsent, and sends RST instead of FIN."""


class Manner(Enum):
    """How a request is sent."""

    PLAIN = auto()
    DRIPPING = auto()
    """The body comes in small pieces, chunked."""
    CLOSING = auto()
    """The sender writes everything, then closes without reading."""
    RESETTING = auto()
    """The same with RST, as a process that dies does it."""


HANGING_UP: Final = frozenset({Manner.CLOSING, Manner.RESETTING})


class Place(NamedTuple):
    """Where connections lead."""

    host: str
    port: int
    tls: bool


class Url(NamedTuple):
    place: Place
    authority: str
    target: str


@lru_cache(maxsize=64)
def parse(url: str) -> Url:
    """A URL taken apart. Raises ValueError where it names no host."""
    parts = urlsplit(url)
    if parts.hostname is None:
        raise ValueError(f"{url!r} is no URL to send to")
    tls = parts.scheme == "https"
    target = f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"
    return Url(Place(parts.hostname, parts.port or (443 if tls else 80), tls), parts.netloc, target)


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes = b""

    def head(self, *, chunked: bool) -> bytes:
        lines = [f"{self.method} {parse(self.url).target} HTTP/1.1", f"host: {parse(self.url).authority}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if chunked:
            lines.append("transfer-encoding: chunked")
        elif self.body or self.method not in BODILESS:
            lines.append(f"content-length: {len(self.body)}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a request."""

    outcome: Outcome
    status: int | None
    seconds: float
    """From the first byte written to the head of the answer, or for as long as there was something to wait for."""


class Sender:
    """Sends requests over connections that it keeps."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._idle: defaultdict[Place, list[_Connection]] = defaultdict(list)
        self._connections: set[_Connection] = set()

    async def send(self, request: Request, *, deadline: float, manner: Manner = Manner.PLAIN) -> Reply:
        """One request within the deadline, connecting included. Never raises for what the network does."""
        async with self._slots:
            exchange = _Exchange(request, manner)
            try:
                async with asyncio.timeout(deadline):
                    return await self._exchanged(exchange)
            except TimeoutError:
                return exchange.timed_out()
            except OSError:
                return exchange.over(Outcome.REFUSED)

    async def _exchanged(self, exchange: _Exchange) -> Reply:
        """Raises OSError where no connection comes about."""
        place = parse(exchange.request.url).place
        connection = self._kept(place) or await self._connected(place)
        try:
            reply = await exchange.over_the(connection)
        finally:
            if connection.usable:
                self._idle[place].append(connection)
            else:
                connection.close()
        return reply

    def _kept(self, place: Place) -> _Connection | None:
        """A connection that is still open, the one that was used last; those that the server closed are dropped."""
        idle = self._idle[place]
        while idle:
            connection = idle.pop()
            if connection.usable and connection.quiet:
                return connection
            connection.close()
        return None

    async def _connected(self, place: Place) -> _Connection:
        """A new connection. Raises OSError."""
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(self._connections), place.host, place.port, ssl=_tls() if place.tls else None
        )
        return connection

    async def close(self) -> None:
        """Returns when no connection is left."""
        closing = list(self._connections)
        for connection in closing:
            connection.abort()
        await asyncio.gather(*(connection.gone.wait() for connection in closing))


class _Exchange:
    """One request on its way."""

    def __init__(self, request: Request, manner: Manner) -> None:
        self.request = request
        self.manner = manner
        self.began = monotonic()
        self.connection: _Connection | None = None

    async def over_the(self, connection: _Connection) -> Reply:
        self.connection, self.began = connection, monotonic()
        answered = connection.expect()
        await self._write(connection)
        if self.manner in HANGING_UP:
            connection.hang_up(reset=self.manner is Manner.RESETTING)
            return self.over(Outcome.HUNG_UP)
        await answered
        return self._answered() or self.over(Outcome.CUT)

    async def _write(self, connection: _Connection) -> None:
        body = self.request.body
        if self.manner is not Manner.DRIPPING or not body:
            connection.write(self.request.head(chunked=False) + body)
            return
        connection.write(self.request.head(chunked=True))
        size = -(-len(body) // PIECES)
        for start in range(0, len(body), size):
            piece = body[start : start + size]
            connection.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await asyncio.sleep(PIECE_SECONDS)
        connection.write(b"0\r\n\r\n")

    def timed_out(self) -> Reply:
        """Where the head was read in time and only the rest is missing, it is an answer."""
        return self._answered() or self.over(Outcome.TIMED_OUT)

    def over(self, outcome: Outcome) -> Reply:
        return Reply(outcome, None, monotonic() - self.began)

    def _answered(self) -> Reply | None:
        head = self.connection.head if self.connection else None
        return Reply(Outcome.ANSWERED, head[0], head[1] - self.began) if head else None


@lru_cache(maxsize=1)
def _tls() -> SSLContext:
    """Reading the certificates takes longer than a whole test; once is enough, and only where there is TLS."""
    return create_default_context()


class _Connection(asyncio.Protocol):
    """One connection, with at most one request under way on it."""

    def __init__(self, living: set[_Connection]) -> None:
        self._living = living
        self.head: tuple[int, float] | None = None
        """Status of the last answer, and when its head had been read (monotonic)."""
        self.gone = asyncio.Event()
        self._parser = HttpResponseParser(self)
        self._answered: asyncio.Future[None] | None = None
        self._open = False
        self._transport: asyncio.Transport | None = None
        self._readable = poll()

    # --- what the exchange does ---

    def expect(self) -> asyncio.Future[None]:
        """Done when the answer was read to its end, or when there will be none."""
        self.head = None
        self._answered = asyncio.get_running_loop().create_future()
        return self._answered

    def write(self, data: bytes) -> None:
        if self._open and self._transport:
            self._transport.write(data)

    def hang_up(self, *, reset: bool) -> None:
        """Closes when everything is written; with `reset` the other side sees RST."""
        if self._transport and reset:
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.close()

    def close(self) -> None:
        self._open = False
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        """Closes now, whatever is not written yet."""
        self._open = False
        if self._transport:
            self._transport.abort()

    @property
    def usable(self) -> bool:
        """Whether another request may be written: it is open, and nothing of the last one is under way."""
        return self._open and self._answered is None

    @property
    def quiet(self) -> bool:
        """False when the server has closed, or said something unasked, and the event loop has not come round to it."""
        return not self._readable.poll(0)

    # --- what the network does ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self._open = cast(asyncio.Transport, transport), True  # uvloop's is one in all but name
        self._living.add(self)
        self._readable.register(transport.get_extra_info("socket").fileno(), POLLIN)

    def data_received(self, data: bytes) -> None:
        if self._answered is None:
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except HttpParserError:
            self.close()
            self._settle()

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._living.discard(self)
        self._settle()
        self.gone.set()

    # --- what the parser finds ---

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:
            self.head = (status, monotonic())

    def on_message_complete(self) -> None:
        if self.head is None:
            return  # 100 Continue and its like
        self._open = self._open and self._parser.should_keep_alive()
        self._settle()

    def _settle(self) -> None:
        answered, self._answered = self._answered, None
        if answered and not answered.done():
            answered.set_result(None)
