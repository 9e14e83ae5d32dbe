"""One MULTI … EXEC and its replies, on a connection that redis-py has opened: what stands behind a group of requests.

Redis' words are spelled out here because the library's pipeline takes three times as long over a group as everything
else that we do for it (docs/performance.md). Addresses, TLS, login and the choice of a database stay the library's, and
so do the errors. Knows neither the inbox nor what a request is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis import exceptions
from redis._parsers import BaseParser
from redis.asyncio import Redis

MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"


def command(*words: bytes) -> bytes:
    """A command as Redis reads it."""
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


class Wire(asyncio.Protocol):
    """A connection for one transaction at a time. What fails in it leaves it closed."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._transport: asyncio.Transport = connection._writer.transport
        self._transport.set_protocol(self)
        self._said = b""
        self._wanted = 0
        self._done: asyncio.Future[None] | None = None
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

    async def execute(self, commands: Sequence[bytes]) -> None:
        """All of them or none; returns when Redis says that it has done so, which `appendfsync always` lets it say only
        when they are synced. Raises RedisError, OSError; whether Redis has done it all the same is then not known."""
        if self.closed:
            raise exceptions.ConnectionError("the connection is closed")
        self._done = asyncio.get_running_loop().create_future()
        self._wanted = len(commands)
        try:
            self._transport.write(b"".join((MULTI, *commands, EXEC)))
            await self._done
        except BaseException:
            self.close()  # a reply that comes now must not be taken for the next one's
            raise
        finally:
            self._done = None

    def close(self) -> None:
        self.closed = True
        self._transport.abort()
        self._connection._close()  # its own side of it, which would complain of being forgotten

    # --- what Redis says ---

    def data_received(self, data: bytes) -> None:
        self._said += data
        if self._done is None or self._done.done():
            self.close()  # nobody has asked
            return
        lines = self._said.split(b"\r\n")
        if not _whole(lines, self._wanted):
            return
        self._said = b""
        error = next((line for line in lines if line.startswith(b"-")), None)
        if error is not None:
            self._done.set_exception(_meaning(error[1:].decode("utf-8", "replace")))
        elif lines[self._wanted + 1] != b"*%d" % self._wanted:
            self._done.set_exception(exceptions.InvalidResponse("no reply to EXEC"))
        else:
            self._done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self.close()
        if self._done is not None and not self._done.done():
            self._done.set_exception(exceptions.ConnectionError("the connection was lost"))


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
