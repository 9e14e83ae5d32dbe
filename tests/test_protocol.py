"""The short way of a delivery through uvicorn: the same answers as the long one, to the byte, whatever comes."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis as redis_py
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import LONG, PATIENCE, SHORT, connected, eventually, serving
from starlette.types import Receive, Scope, Send
from test_receiver import CONFIG, MIB, SECRET, kept

from console.services import Embedded
from ingest.app import Receiver, build
from ingest.protocol import Hooks
from ingest.settings import Settings
from ingest.waiting import Keeps, NotDurable, Row, Then
from schemas.delivery import INBOX
from schemas.endpoints import path
from tests.lines import logged

HOOK = path(SECRET, CONFIG.endpoints["studio"]).encode()
LAST = b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
"""Ends a conversation."""


def post(body: bytes = b'{"id": 1}', *headers: bytes, method: bytes = b"POST", to: bytes = HOOK) -> bytes:
    """A delivery as it ordinarily comes."""
    lines = (method + b" " + to + b" HTTP/1.1", b"Host: here", b"Content-Length: %d" % len(body), *headers)
    return b"\r\n".join((*lines, b"", body))


def chunked(*pieces: bytes, trailer: bytes = b"") -> bytes:
    head = b"POST " + HOOK + b" HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n"
    return (
        head
        + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (*pieces, b"")).removesuffix(b"\r\n")
        + (trailer + b"\r\n")
    )


ORDINARY = {
    "post": post(),
    "put": post(method=b"PUT"),
    "patch": post(method=b"PATCH"),
    "no body": post(b""),
    "a large body": post(b"x" * 300_000),
    "a body that looks like a request": post(post()),
    "headers twice": post(b"{}", b"X-Sign: a", b"x-sign: b"),
    "a header without a value": post(b"{}", b"X-Empty:"),
    "a header that is no text": post(b"{}", b"X-Bytes: \xe9\xff"),
}
"""They take the short way."""
ODD = {
    "chunked": chunked(b'{"id"', b": 1}"),
    "chunked, with a trailer": chunked(b"{}", trailer=b"X-Sum: 1\r\n"),
    "an expectation": post(b"{}", b"Expect: 100-continue"),
    "a query": post(to=HOOK + b"?x=1"),
    "an escaped letter": post(to=HOOK.replace(b"studio", b"%73tudio")),
    "a wrong token": post(to=HOOK[:-1] + b"x"),
    "nobody's endpoint": post(to=HOOK.replace(b"studio", b"nobody")),
    "a deeper path": post(to=HOOK + b"/"),
    "another path": post(to=b"/hooks"),
    "a whole URL": post(to=b"http://here" + HOOK),
    "get": post(b"", method=b"GET"),
    "head": post(b"", method=b"HEAD"),
    "delete": post(b"", method=b"DELETE"),
    "not long, and no body": b"POST " + HOOK + b" HTTP/1.1\r\nHost: here\r\n\r\n",
}
"""They do not."""
ENDING = {
    "http/1.0": post().replace(b"HTTP/1.1", b"HTTP/1.0"),
    "http/1.0, kept alive": post(b"{}", b"Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "an upgrade": post(b"{}", b"Connection: Upgrade", b"Upgrade: websocket"),
    "too long": post(b"").replace(b"Content-Length: 0", b"Content-Length: %d" % (MIB + 1)),
    "a length that is none": post().replace(b"Content-Length: 9", b"Content-Length: x"),
    "two lengths": post(b"{}", b"Content-Length: 3"),
    "no request": b"nonsense\r\n\r\n",
}
"""Nor do these, and nothing is read after them. What is sent all the same makes it a matter of time which answers still
arrive."""
OTHERS = ODD | ENDING
SEVERAL = {
    "closing": post(b"{}", b"Connection: close"),
    "two": post(b"1") + post(b"2"),
    "three kinds": post(b"1") + LAST.replace(b"Connection: close\r\n", b"") + chunked(b"2") + post(b"3"),
    "one that closes, and one more": post(b"1", b"Connection: close") + post(b"2"),
}


@dataclass
class Counted:
    """A receiver that counts what comes to it as to any app of ASGI."""

    app: Receiver
    calls: int = 0

    @property
    def hook(self) -> Any:
        return self.app.hook

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.calls += scope["type"] == "http"
        await self.app(scope, receive, send)


@dataclass(frozen=True)
class Both:
    """The same receiver twice."""

    short: str
    long: str
    counted: Counted


def built(services: Embedded, patience: float = PATIENCE) -> Receiver:
    return build(Settings(redis_url=services.redis_url, secret=SECRET, config=CONFIG, patience=patience))


@pytest.fixture(scope="module")
def both(services: Embedded) -> Iterator[Both]:
    counted = Counted(built(services))
    with serving(counted, SHORT, keep_alive=2) as short, serving(built(services), LONG, keep_alive=2) as long:
        yield Both(short, long, counted)


def conversation(base_url: str, *pieces: bytes) -> bytes:
    """All that is answered, without the hour."""
    answer = bytearray()
    with closing(connected(base_url)) as connection, suppress(ConnectionError):
        for piece in pieces:
            connection.sendall(piece)
        while said := connection.recv(65536):
            answer += said
    return re.sub(rb"date: [^\r]+", b"date: today", bytes(answer))


def delivered(redis: redis_py.Redis) -> list[tuple[str, tuple[tuple[str, str], ...], bytes]]:
    """What is kept now, which is then gone."""
    found = sorted((raw.method, raw.headers, raw.body) for raw in kept(redis))
    redis.delete(INBOX)
    return found


@pytest.mark.parametrize("request_", (ORDINARY | OTHERS | SEVERAL).values(), ids=ORDINARY | OTHERS | SEVERAL)
def test_both_ways_answer_and_keep_the_same(request_: bytes, both: Both, redis: redis_py.Redis) -> None:
    """And both are heard to the end."""
    long = conversation(both.long, request_ + LAST), delivered(redis)
    short = conversation(both.short, request_ + LAST), delivered(redis)
    assert short == long
    assert long[0].startswith(b"HTTP/1.1 ")


@pytest.mark.parametrize("request_", ORDINARY.values(), ids=ORDINARY)
def test_what_is_ordinary_takes_the_short_way(request_: bytes, both: Both, redis: redis_py.Redis) -> None:
    """Many after each other on one connection, and none of them is a call of the app."""
    before = both.counted.calls
    with closing(connected(both.short)) as connection:
        for _ in range(3):
            connection.sendall(request_)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    assert both.counted.calls == before
    assert len(delivered(redis)) == 3


@pytest.mark.parametrize("request_", OTHERS.values(), ids=OTHERS)
def test_what_is_not_goes_to_the_app(request_: bytes, both: Both, redis: redis_py.Redis) -> None:
    """Where it is a request at all."""
    before = both.counted.calls
    said = conversation(both.short, request_ + LAST)
    assert both.counted.calls > before or said.startswith(b"HTTP/1.1 400")


@settings(max_examples=50)
@given(
    names=st.lists(st.sampled_from([*ORDINARY, *ODD]), min_size=1, max_size=3),
    last=st.sampled_from([LAST, ENDING["http/1.0"], ENDING["http/1.0, kept alive"]]),
    cuts=st.lists(st.floats(0, 1), max_size=4),
)
def test_however_the_bytes_are_cut(names: list[str], last: bytes, cuts: list[float], both: Both) -> None:
    """Several requests in one packet, or a header in two."""
    whole = b"".join((*[(ORDINARY | ODD)[name] for name in names], last))
    ends = sorted({0, len(whole), *(round(cut * len(whole)) for cut in cuts)})
    pieces = [whole[start:end] for start, end in itertools.pairwise(ends)]
    assert conversation(both.short, *pieces) == conversation(both.long, *pieces)


# --- who stands in the way, and who stumbles ------------------------------------------------------------------


def test_nobody_in_front_of_the_receiver_is_passed_by(services: Embedded, redis: redis_py.Redis) -> None:
    """What wraps the app may have its reasons."""
    seen: list[str] = []
    app = built(services)

    async def watchman(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            seen.append(scope["path"])
        await app(scope, receive, send)

    with serving(watchman, SHORT) as url:
        assert conversation(url, post(b"{}", b"Connection: close")).startswith(b"HTTP/1.1 200 OK\r\n")
    assert seen == [HOOK.decode()]


def test_a_path_of_its_own_is_the_apps_affair(services: Embedded) -> None:
    """uvicorn's `--root-path` stands before every path, and so before ours."""
    with (
        serving(built(services), SHORT, root_path="/x") as short,
        serving(built(services), LONG, root_path="/x") as long,
    ):
        one = post(b"{}", b"Connection: close")
        assert conversation(short, one) == conversation(long, one)


@dataclass
class Holding(Keeps):
    """Holds everybody until it is told what to say."""

    waiting: list[tuple[Row, Then]] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop | None = None

    def take(self, row: Row, then: Then) -> None:
        self.loop = asyncio.get_running_loop()
        self.waiting.append((row, then))

    def say(self, fate: str | NotDurable) -> None:
        assert self.loop is not None
        for _, then in self.waiting:
            self.loop.call_soon_threadsafe(then, fate)
        self.waiting.clear()


def stumble(*_: object) -> None:
    raise RuntimeError("a mistake of our own")


class Stumbling(Keeps):
    """Has a mistake."""

    def take(self, row: Row, then: Then) -> None:
        stumble()


@contextmanager
def kept_by(keeper: Keeps, services: Embedded, monkeypatch: pytest.MonkeyPatch, keep_alive: int = 5) -> Iterator[str]:
    app = built(services)
    monkeypatch.setattr(app.hook, "keeper", keeper)
    with serving(app, SHORT, keep_alive) as url:
        yield url


def test_a_mistake_of_our_own_is_a_500(
    services: Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Which a provider sends again, as a 400 it may not."""
    with kept_by(Stumbling(), services, monkeypatch) as url:
        for _ in range(2):
            said = conversation(url, post())
            assert said.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
            assert b"\r\nconnection: close\r\n" in said
    assert caplog.text.count("Exception in the receiver") == 2


def test_a_mistake_at_the_head_is_one_too(
    services: Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The long way meets it as well."""
    app = built(services)
    monkeypatch.setattr(app.hook.doors, "at", stumble)
    monkeypatch.setattr(app.hook.doors, "find", stumble)
    with serving(app, SHORT) as url:
        assert conversation(url, post(b"{}", b"Connection: close")).startswith(b"HTTP/1.1 500 ")
    assert "Exception in the receiver" in caplog.text


def test_who_stumbles_over_its_answer_is_let_go(
    services: Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its sender comes again, instead of waiting for ever."""
    app = built(services)
    monkeypatch.setattr(app.hook.tally, "answered", stumble)
    with serving(app, SHORT) as url:
        assert conversation(url, post()) == b""
    assert logged(caplog, "not-answered")[0]["error"] == "RuntimeError"


def test_what_no_disk_takes_is_a_503(
    services: Embedded, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = Holding()
    with kept_by(keeper, services, monkeypatch) as url, closing(connected(url)) as connection:
        connection.sendall(post())
        assert eventually(lambda: keeper.waiting)
        keeper.say(NotDurable("redis: silent"))
        said = connection.recv(65536)
    assert said.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"\r\nretry-after: " in said
    (refused,) = logged(caplog, "refuse")
    assert (refused["endpoint"], refused["reason"]) == ("studio", "not-durable")


def test_a_receiver_that_is_asked_to_end_answers_first(services: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """And tells the sender that this was the last one on this connection."""
    keeper = Holding()
    with kept_by(keeper, services, monkeypatch) as url:
        connection = connected(url)
        connection.sendall(post())
        assert eventually(lambda: keeper.waiting)
        threading.Timer(0.3, keeper.say, ["redis"]).start()
    with closing(connection):
        said = b"".join(iter(lambda: connection.recv(65536), b""))
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"\r\nconnection: close\r\n" in said


def test_a_sender_that_has_left_disturbs_nobody(services: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its delivery is kept; who came with it is answered."""
    keeper = Holding()
    with kept_by(keeper, services, monkeypatch) as url, closing(connected(url)) as staying:
        with closing(connected(url)) as leaving:
            leaving.sendall(post())
            staying.sendall(post())
            assert eventually(lambda: len(keeper.waiting) == 2)
        assert eventually(lambda: connections() == 1)
        keeper.say("redis")
        assert staying.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")


# --- how long a connection may be idle ------------------------------------------------------------------------


def connections() -> int:
    """Those of which anybody still knows."""
    return sum(isinstance(thing, Hooks) and thing.parser is not None for thing in gc.get_objects())


def answered(connection: Any, request_: bytes) -> bool:
    connection.sendall(request_)
    return bool(connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n"))


@pytest.mark.parametrize("way", [post, lambda: chunked(b"{}")], ids=["short", "long"])
def test_an_idle_connection_is_closed(way: Callable[[], bytes], services: Embedded, redis: redis_py.Redis) -> None:
    """Two seconds after its last answer, and not after its first."""
    app = built(services)
    with serving(app, SHORT, keep_alive=2) as url, closing(connected(url)) as connection:
        assert answered(connection, way())
        time.sleep(1)
        asked = time.monotonic()
        assert answered(connection, way())
        assert connection.recv(1) == b""
        assert time.monotonic() - asked >= 1.99


def test_a_busy_connection_is_not(services: Embedded, redis: redis_py.Redis) -> None:
    """However long its sender takes over a request."""
    app = built(services)
    with serving(app, SHORT, keep_alive=2) as url, closing(connected(url)) as connection:
        assert answered(connection, post())
        time.sleep(0.5)
        connection.sendall(post()[:-3])
        time.sleep(2)
        assert answered(connection, post()[-3:])


def test_a_closed_connection_is_forgotten(services: Embedded, redis: redis_py.Redis) -> None:
    """Its timer would hold it for as long as one may be idle."""

    def remembered() -> int:
        gc.collect()
        return sum(isinstance(thing, Hooks) for thing in gc.get_objects())

    app = built(services, patience=0.5)  # so long a line remembers who has been settled
    with serving(app, SHORT, keep_alive=600) as url:
        before = remembered()
        for _ in range(5):
            with closing(connected(url)) as connection:
                assert answered(connection, post())
        assert eventually(lambda: remembered() <= before)


def test_an_idle_connection_holds_no_body(services: Embedded, redis: redis_py.Redis) -> None:
    """There may be hundreds, idle for longer than a minute."""

    def large() -> int:
        gc.collect()
        return sum(len(thing) > MIB // 2 for seen in gc.get_objects() for thing in bytes_in(seen))

    with serving(built(services, patience=0.5), SHORT, keep_alive=600) as url, closing(connected(url)) as connection:
        assert answered(connection, post(b"x" * (MIB - 1)))
        assert eventually(lambda: large() == 0)


def bytes_in(thing: object) -> list[bytes]:
    """Which it refers to; bytes themselves are nothing that Python's collector knows."""
    return [held for held in gc.get_referents(thing) if type(held) is bytes]
