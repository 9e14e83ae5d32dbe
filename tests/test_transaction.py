"""Redis' own words: what a transaction makes of every reply, of a real Redis and of one that talks nonsense."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis as redis_py
from hypothesis import given
from hypothesis import strategies as st
from redis import exceptions
from serving import listening

from ingest.inbox import connect
from ingest.transaction import Wire, Wires, command
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


async def execute(wire: Wire, commands: Sequence[bytes], patience: float = MOMENT) -> None:
    """What became of it, as who waits would have it."""
    told: asyncio.Queue[Exception | None] = asyncio.Queue()
    wire.send(commands, patience, told.put_nowait)
    error = await told.get()
    assert told.empty()
    if error is not None:
        raise error


@given(words=st.lists(st.binary(max_size=40), max_size=5))
def test_a_command_is_spelled_as_redis_py_spells_it(words: list[bytes]) -> None:
    """Whatever is in it: line ends, dollars, nothing at all."""
    theirs = redis_py.connection.Connection().pack_command(b"HSET", *words)
    assert command(b"HSET", *words) == b"".join(theirs)


def test_all_of_it_is_done_again_and_again(redis: redis_py.Redis, redis_url: str) -> None:
    """A connection is good for the next one."""

    async def work(wire: Wire) -> None:
        for number in range(3):
            await execute(wire, [command(b"HSET", b"h", b"%d" % number, b"\r\n+OK\r\n"), command(b"LPUSH", b"l", b"x")])
        assert not wire.closed

    with_wire(redis_url, work)
    assert redis.hgetall("h") == {b"0": b"\r\n+OK\r\n", b"1": b"\r\n+OK\r\n", b"2": b"\r\n+OK\r\n"}
    assert redis.llen("l") == 3


def test_what_redis_does_not_take_undoes_all_of_it(redis: redis_py.Redis, redis_url: str) -> None:
    """Full: the first command is refused, and so EXEC is. The library's own error says why."""
    redis.config_set("maxmemory", 1)

    async def work(wire: Wire) -> None:
        with pytest.raises(exceptions.OutOfMemoryError):
            await execute(wire, [command(b"HSET", b"h", b"a", b"b"), command(b"LPUSH", b"l", b"x")])
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
            await execute(wire, [command(b"LPUSH", b"l", b"x")])

    with_wire(redis_url, work)


def test_what_takes_too_long_leaves_no_reply_for_the_next_one(redis: redis_py.Redis, redis_url: str) -> None:
    """A reply that comes later would be taken for another group's."""

    async def work(wire: Wire) -> None:
        redis.client_pause(500)
        with pytest.raises(TimeoutError):
            await execute(wire, [command(b"LPUSH", b"l", b"x")], patience=0.1)
        assert wire.closed
        with pytest.raises((exceptions.RedisError, OSError)):
            await execute(wire, [command(b"LPUSH", b"l", b"y")])

    with_wire(redis_url, work)


def test_what_cannot_be_written_is_told_once(redis: redis_py.Redis, redis_url: str) -> None:
    """And at once, not when the patience is over."""
    told: list[Exception | None] = []

    async def work(wire: Wire) -> None:
        unspeakable: Any = ["no bytes"]
        wire.send(unspeakable, 0.1, told.append)
        assert [type(error) for error in told] == [TypeError]
        assert wire.closed
        await asyncio.sleep(0.2)
        assert len(told) == 1

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
        transaction = execute(wire, [command(b"LPUSH", b"l", b"x")])
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
        await execute(wire, [command(b"LPUSH", b"l", b"x" * 100_000)])

    with listening(redis_says) as port:
        with_wire(f"rediss://localhost:{port}/0?ssl_ca_certs={certificate}", work)
    assert heard.count(b"x") >= 100_000


# --- several of them -----------------------------------------------------------------------------------------------


def with_wires(url: str, work: Callable[[Wires], Awaitable[None]], patience: float = MOMENT) -> None:
    async def run() -> None:
        client = connect(url, patience, 8)
        wires = Wires(client, patience)
        try:
            async with asyncio.timeout(2 * MOMENT):
                await work(wires)
        finally:
            await wires.aclose()
            await client.aclose()
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def push(name: bytes) -> list[bytes]:
    return [command(b"LPUSH", b"l", name)]


def test_one_connection_serves_those_who_take_turns(redis: redis_py.Redis, redis_url: str) -> None:
    """Another one is opened for who comes meanwhile."""

    async def work(wires: Wires) -> None:
        before = len(redis.client_list())
        for number in range(3):
            await wires.execute(push(b"%d" % number))
        assert len(redis.client_list()) == before + 1
        await asyncio.gather(*(wires.execute(push(b"together")) for _ in range(3)))
        assert len(redis.client_list()) == before + 3

    with_wires(redis_url, work)
    assert redis.lrange("l", 0, -1) == [b"together"] * 3 + [b"2", b"1", b"0"]


def test_who_is_told_may_send_the_next_one_at_once(redis: redis_py.Redis, redis_url: str) -> None:
    """Over the same connection."""
    told: list[Exception | None] = []

    async def work(wires: Wires) -> None:
        done = asyncio.Event()
        before = len(redis.client_list())

        def next_one(error: Exception | None) -> None:
            told.append(error)
            if len(told) < 5:
                wires.send(push(b"%d" % len(told)), next_one)
            else:
                done.set()

        wires.send(push(b"0"), next_one)
        await done.wait()
        assert len(redis.client_list()) == before + 1

    with_wires(redis_url, work)
    assert told == [None] * 5
    assert redis.lrange("l", 0, -1) == [b"4", b"3", b"2", b"1", b"0"]


def test_a_connection_that_was_lost_is_replaced(redis: redis_py.Redis, redis_url: str) -> None:
    """One that is idle is missed by nobody; one that is in use fails what it carries."""

    async def work(wires: Wires) -> None:
        await wires.execute(push(b"before"))
        redis.client_kill_filter(_type="normal", skipme=True)
        await asyncio.sleep(0.05)
        await wires.execute(push(b"afterwards"))
        redis.client_pause(60_000, all=False)
        try:
            in_use = asyncio.create_task(wires.execute(push(b"in use")))
            await asyncio.sleep(0.05)
            redis.client_kill_filter(_type="normal", skipme=True)
            with pytest.raises(exceptions.ConnectionError):
                await in_use
        finally:
            redis.client_unpause()
        await wires.execute(push(b"at last"))

    with_wires(redis_url, work)
    assert redis.lrange("l", 0, -1) == [b"at last", b"afterwards", b"before"]


def test_who_goes_away_does_not_undo_it(redis: redis_py.Redis, redis_url: str) -> None:
    """And the reply that comes later is for nobody else."""

    async def work(wires: Wires) -> None:
        await wires.execute(push(b"before"))
        leaving = asyncio.create_task(wires.execute(push(b"left")))
        await asyncio.sleep(0)
        leaving.cancel()
        await wires.execute(push(b"stayed"))
        await asyncio.sleep(0.05)

    with_wires(redis_url, work)
    assert sorted(redis.lrange("l", 0, -1)) == [b"before", b"left", b"stayed"]


@pytest.mark.parametrize("greets", [False, True])
def test_nobody_is_told_after_the_end(redis: redis_py.Redis, redis_url: str, greets: bool) -> None:
    """Neither while a connection opens, nor while one is in use: who would be told is at its end as well."""
    told: list[Exception | None] = []

    async def work(wires: Wires) -> None:
        if greets:
            await wires.execute(push(b"before"))
        redis.client_pause(500)
        wires.send(push(b"too late"), told.append)
        await asyncio.sleep(0.05)
        await wires.aclose()
        await asyncio.sleep(0.6)
        assert told == []

    with_wires(redis_url, work, patience=0.2)


def test_a_connection_that_opens_at_the_end_is_closed(redis: redis_py.Redis, redis_url: str) -> None:
    """Whenever the end comes: the library now and then loses the cancellation of who opens it."""

    async def work(wires: Wires) -> None:
        before = len(redis.client_list())
        for number in range(200):
            wires.send(push(b"x"), told.append)
            await asyncio.sleep(number * 1e-5)
            await wires.aclose()
            said = len(told)
            await asyncio.sleep(0.001)
            assert len(told) == said
        async with asyncio.timeout(MOMENT):
            while len(redis.client_list()) > before:
                await asyncio.sleep(0.01)

    told: list[Exception | None] = []
    with_wires(redis_url, work)
