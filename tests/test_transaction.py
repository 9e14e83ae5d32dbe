"""Redis' own words: what a transaction makes of every reply, of a real Redis and of one that talks nonsense."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redis as redis_py
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions
from serving import listening

from ingest.inbox import connect
from ingest.transaction import Wire, command
from tests.certificates import self_signed

MOMENT = 2.0


def with_wire(url: str, work: Callable[[Wire], Awaitable[None]]) -> None:
    async def run() -> None:
        client = connect(url, MOMENT, 1)
        wire = await Wire.opened(client)
        try:
            async with asyncio.timeout(MOMENT):
                await work(wire)
        finally:
            wire.close()
            await client.aclose()

    asyncio.run(run())


@given(words=st.lists(st.binary(max_size=40), max_size=5))
def test_a_command_is_spelled_as_redis_py_spells_it(words: list[bytes]) -> None:
    """Whatever is in it: line ends, dollars, nothing at all."""
    theirs = redis_py.connection.Connection().pack_command(b"HSET", *words)
    assert command(b"HSET", *words) == b"".join(theirs)


def test_all_of_it_is_done_again_and_again(redis: redis_py.Redis, redis_url: str) -> None:
    """A connection is good for the next one."""

    async def work(wire: Wire) -> None:
        for number in range(3):
            await wire.execute([command(b"HSET", b"h", b"%d" % number, b"\r\n+OK\r\n"), command(b"LPUSH", b"l", b"x")])
        assert not wire.closed

    with_wire(redis_url, work)
    assert redis.hgetall("h") == {b"0": b"\r\n+OK\r\n", b"1": b"\r\n+OK\r\n", b"2": b"\r\n+OK\r\n"}
    assert redis.llen("l") == 3


def test_what_redis_does_not_take_undoes_all_of_it(redis: redis_py.Redis, redis_url: str) -> None:
    """Full: the first command is refused, and so EXEC is. The library's own error says why."""
    redis.config_set("maxmemory", 1)

    async def work(wire: Wire) -> None:
        with pytest.raises(exceptions.OutOfMemoryError):
            await wire.execute([command(b"HSET", b"h", b"a", b"b"), command(b"LPUSH", b"l", b"x")])
        assert wire.closed

    try:
        with_wire(redis_url, work)
    finally:
        redis.config_set("maxmemory", 0)
    assert redis.keys() == []


def test_a_key_of_another_kind_is_an_error(redis: redis_py.Redis, redis_url: str) -> None:
    """EXEC itself succeeds then: the error stands among its replies."""
    redis.set("l", "a text")

    async def work(wire: Wire) -> None:
        with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
            await wire.execute([command(b"LPUSH", b"l", b"x")])

    with_wire(redis_url, work)


def test_what_is_cancelled_leaves_no_reply_for_the_next_one(redis: redis_py.Redis, redis_url: str) -> None:
    """A reply that comes later would be taken for another group's."""

    async def work(wire: Wire) -> None:
        redis.client_pause(500)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await wire.execute([command(b"LPUSH", b"l", b"x")])
        assert wire.closed
        with pytest.raises((exceptions.RedisError, OSError)):
            await wire.execute([command(b"LPUSH", b"l", b"y")])

    with_wire(redis_url, work)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ([b"+OK\r\n+QUEUED\r\n*1\r\n:1\r\n"], None),
        ([b"+OK\r\n+QUE", b"UED\r\n*1", b"\r\n:1\r", b"\n"], None),
        ([b"-LOADING Redis is loading the dataset in memory\r\n" * 2 + b"-ERR EXEC without MULTI\r\n"], "BusyLoading"),
        ([b"+OK\r\n-READONLY You can't write\r\n-EXECABORT Transaction discarded\r\n"], "ReadOnly"),
        ([b"+OK\r\n+QUEUED\r\n*2\r\n:1\r\n:1\r\n"], "InvalidResponse"),
        ([b"+OK\r\n+QUEUED\r\n+OK\r\n"], "InvalidResponse"),
        ([b"+OK\r\n+QUEUED\r\n"], "ConnectionError"),
        ([b""], "ConnectionError"),
    ],
)
def test_every_end_of_a_reply(said: list[bytes], error: str | None) -> None:
    """Whole, in pieces, refused, cut off, nonsense."""

    def redis_says(connection: socket.socket) -> None:
        heard = b""
        while b"EXEC" not in heard:
            piece = connection.recv(65536)
            if not piece:
                return
            for _ in range(piece.count(b"SETINFO")):
                connection.sendall(b"+OK\r\n")
            heard += piece
        for piece in said:
            connection.sendall(piece)
        if error is None:
            connection.recv(1)

    async def work(wire: Wire) -> None:
        transaction = wire.execute([command(b"LPUSH", b"l", b"x")])
        if error is None:
            await transaction
            return
        with pytest.raises((exceptions.RedisError, OSError)) as raised:
            await transaction
        assert error in type(raised.value).__name__

    with listening(redis_says) as port:
        with_wire(f"redis://127.0.0.1:{port}/0", work)


def test_tls_stays_the_librarys(tmp_path: Path) -> None:
    """A transaction goes through whatever the library has opened."""
    certificate = tmp_path / "localhost.pem"
    certificate.write_bytes(self_signed("localhost"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    heard = bytearray()

    def redis_says(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as connection:
            while b"EXEC" not in heard:
                piece = connection.recv(65536)
                if not piece:
                    return
                heard.extend(piece)
                connection.sendall(b"+OK\r\n" * piece.count(b"SETINFO"))
            connection.sendall(b"+OK\r\n+QUEUED\r\n*1\r\n:1\r\n")
            connection.recv(1)

    async def work(wire: Wire) -> None:
        await wire.execute([command(b"LPUSH", b"l", b"x" * 100_000)])

    with listening(redis_says) as port:
        with_wire(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}", work)
    assert heard.count(b"x") >= 100_000
