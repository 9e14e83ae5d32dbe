"""A MULTI … EXEC and its replies, on connections that redis-py has opened: what stands behind a group of requests.

Redis' words are spelled out here because the library's pipeline takes three times as long over a group as everything
else that we do for it (docs/performance.md). Addresses, TLS, login and the choice of a database stay the library's, and
so do the errors. Who sends is called back when the reply is read: a task that waits for it would be woken two turns of
the event loop later. Knows neither the inbox nor what a request is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis import exceptions
from redis._parsers import BaseParser
from redis.asyncio import Redis

from ingest.ending import ended
from ingest.telling import tell, tell_error

MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"


def command(*words: bytes) -> bytes:
    """A command as Redis reads it."""
    pieces = [b"*%d\r\n" % len(words)]
    for word in words:
        pieces += (b"$%d\r\n" % len(word), word, b"\r\n")
    return b"".join(pieces)


Then = Callable[[Exception | None], None]
"""Told once: nothing when Redis says that it has done it, which `appendfsync always` lets it say only when that is
synced. Else the RedisError, OSError or TimeoutError; whether Redis has done it all the same is then not known."""


class Wires:
    """Connections of one client, each for one transaction at a time; another one is opened when all are taken."""

    def __init__(self, redis: Redis, patience: float) -> None:
        self._redis = redis
        self._patience = patience
        self._idle: list[Wire] = []
        self._taken: set[Wire] = set()
        self._opening: set[asyncio.Task[None]] = set()

    def send(self, commands: Sequence[bytes], then: Then) -> None:
        """All of the commands or none, within `patience` seconds, a connection and its greeting included."""
        while self._idle:
            wire = self._idle.pop()
            if not wire.closed:
                self._send(wire, commands, self._patience, then)
                return
        task = asyncio.create_task(self._open_and_send(commands, then))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def execute(self, commands: Sequence[bytes]) -> None:
        """The same for who can wait. Raises RedisError, OSError, TimeoutError; who is cancelled does not undo it."""
        told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.send(commands, lambda error: tell(told, None) if error is None else tell_error(told, error))
        await told

    async def _open_and_send(self, commands: Sequence[bytes], then: Then) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._patience
        try:
            async with asyncio.timeout_at(until):
                wire = await Wire.opened(self._redis)
        except Exception as error:  # noqa: BLE001  whatever keeps it from opening, somebody waits to hear of it
            then(error)
        else:
            self._send(wire, commands, until - loop.time(), then)

    def _send(self, wire: Wire, commands: Sequence[bytes], patience: float, then: Then) -> None:
        def told(error: Exception | None) -> None:
            self._taken.discard(wire)
            if error is None:
                self._idle.append(wire)  # first of all: who is told may want to send the next one
            then(error)

        self._taken.add(wire)
        wire.send(commands, patience, told)

    async def aclose(self) -> None:
        """Nobody is told of what was under way."""
        await ended(*self._opening)  # first: one that comes to its end all the same leaves a connection behind
        for wire in (*self._idle, *self._taken):
            wire.close()


class Wire(asyncio.Protocol):
    """A connection for one transaction at a time. What fails in it leaves it closed."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transport: asyncio.Transport = connection._writer.transport
        self._transport.set_protocol(self)
        self._said = b""
        self._wanted = 0
        self._then: Then | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False

    @classmethod
    async def opened(cls, redis: Redis) -> Wire:
        """A new connection with the settings of that client. Raises RedisError, OSError."""
        connection = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            await connection.connect()
        except BaseException:
            connection._close()
            raise
        return cls(connection)

    def send(self, commands: Sequence[bytes], patience: float, then: Then) -> None:
        """All of them or none, within `patience` seconds."""
        self._then = then
        if self.closed:
            self._end(exceptions.ConnectionError("the connection is closed"))
            return
        self._wanted = len(commands)
        self._timer = asyncio.get_running_loop().call_later(patience, self._end, TimeoutError())
        try:
            self._transport.write(b"".join((MULTI, *commands, EXEC)))
        except Exception as error:  # noqa: BLE001  whatever it is, who waits is told of it here, and once
            self._end(error)

    def close(self) -> None:
        """Who waits for a reply is not told."""
        self.closed, self._then = True, None
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        self._connection._close()  # its own side of it, which would complain of being forgotten

    def _end(self, error: Exception | None) -> None:
        then, self._then = self._then, None
        if self._timer is not None:
            self._timer.cancel()
        if error is not None:
            self.close()  # a reply that comes now must not be taken for the next one's
        if then is not None:
            then(error)

    # --- what Redis says ---

    def data_received(self, data: bytes) -> None:
        self._said += data
        if self._then is None:
            self.close()  # nobody has asked
            return
        lines = self._said.split(b"\r\n")
        if not _whole(lines, self._wanted):
            return
        self._said = b""
        error = next((line for line in lines if line.startswith(b"-")), None)
        if error is not None:
            self._end(_meaning(error[1:].decode("utf-8", "replace")))
        elif lines[self._wanted + 1] != b"*%d" % self._wanted:
            self._end(exceptions.InvalidResponse("no reply to EXEC"))
        else:
            self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(exceptions.ConnectionError("the connection was lost"))


def _meaning(error: str) -> exceptions.RedisError:
    """In the library's own classes."""
    meant: exceptions.RedisError = BaseParser.parse_error(error)  # type: ignore[no-untyped-call]
    return meant


def _whole(lines: Sequence[bytes], commands: int) -> bool:
    """Whether these are all replies: to MULTI, to each command, to EXEC, and then one number for each command. Every
    reply is one line; the last piece is what follows the last line."""
    came = len(lines) - 1
    executed = commands + 2
    return came >= executed and (not lines[executed - 1].startswith(b"*") or came >= executed + commands)
