"""The receiver in a real uvicorn in front of a real Redis: what it keeps, what it answers, and when."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import psutil
import pytest
import redis as redis_py
from serving import LONG, PATIENCE, PLAIN, SHORT, connected, eventually, free_port, serving, silent_server, spoken
from uvicorn.config import STARTUP_FAILURE
from weather import OwnRedis, own_redis_in

from console.services import Embedded
from ingest.app import build
from ingest.settings import Settings
from schemas.delivery import INBOX, RawDelivery, now
from schemas.endpoints import parse, path
from schemas.meters import DIRECTORY
from tests.lines import logged

SECRET = "the secret of this installation"
CONFIG = parse(
    {
        "endpoints": {
            "vault": {"provider": "lockme"},
            "studio": {"provider": "reservekit"},
            "arcade": {"provider": "synthesisvr"},
            "workshop": {"provider": "timekit"},
            "harbour": {"provider": "checkfront"},
        }
    },
    "reservoir.toml",
    {},
)
NAMES = tuple(CONFIG.endpoints)
MIB = 1024 * 1024
PROJECT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Receiver:
    """A running receiver and the way to it."""

    url: str
    client: httpx.Client

    def hook(self, endpoint: str = "studio") -> str:
        return self.url + self.path(endpoint)

    def path(self, endpoint: str = "studio") -> str:
        return path(SECRET, CONFIG.endpoints[endpoint])

    def post(self, content: bytes = b"{}", endpoint: str = "studio") -> httpx.Response:
        return self.client.post(self.hook(endpoint), content=content)

    def readyz(self) -> int:
        return self.client.get(f"{self.url}/readyz").status_code

    def healthz(self) -> int:
        return self.client.get(f"{self.url}/healthz").status_code


@contextmanager
def receiving(redis_url: str, http: str = SHORT, **settings: Any) -> Iterator[Receiver]:
    app = build(Settings(redis_url=redis_url, secret=SECRET, config=CONFIG, **settings))
    with serving(app, http) as url, httpx.Client(**PLAIN, timeout=PATIENCE) as client:
        yield Receiver(url, client)


@pytest.fixture(scope="module", params=[SHORT, LONG], ids=["short", "long"])
def receiver(services: Embedded, request: pytest.FixtureRequest) -> Iterator[Receiver]:
    """One for all tests that leave it as it was; the fixture `redis` empties what is behind it.

    It has all the time in the world: a test machine that does ten things at once is not what these tests are about.
    """
    with receiving(services.redis_url, request.param, patience=PATIENCE) as running:
        yield running


def kept(redis: redis_py.Redis) -> list[RawDelivery]:
    """What the inbox holds, in order of receipt."""
    entries: dict[bytes, bytes] = redis.hgetall(INBOX)
    raws = [RawDelivery.unpack(UUID(identity.decode()), packed) for identity, packed in entries.items()]
    return sorted(raws, key=lambda raw: raw.id)


def nudged(redis: redis_py.Redis, queue: str = "reservekit") -> list[str]:
    """The ids that the messages of a queue name."""
    messages = [json.loads(message) for message in redis.lrange(queue, 0, -1)]
    return [identity for message in messages for identity in json.loads(base64.b64decode(message["body"]))[0]]


def only(redis: redis_py.Redis) -> RawDelivery:
    (raw,) = kept(redis)
    return raw


def raw_request(receiver: Receiver, body: bytes, *headers: bytes, method: bytes = b"POST") -> bytes:
    """Bytes on the wire, with exactly these headers besides Host and Connection."""
    line = method + b" " + receiver.path().encode() + b" HTTP/1.1"
    return b"\r\n".join([line, b"Host: here", b"Connection: close", *headers, b"", body])


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


# --- what is kept --------------------------------------------------------------------------------------------

BODIES = {
    "json": b'{"bookings": [{"id": 4711}]}',
    "nothing": b"",
    "every byte": bytes(range(256)) * 8,
    "blank lines": b"\r\n\r\n\n\r\n",
    "looks like an inbox entry": b"reservoir/1 studio POST 1\r\nx: y\r\n\r\nz",
    "broken utf-8": b'{"name": "\xc5\xc5\xff"}',
}


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_request_is_kept_byte_for_byte(method: str, body: bytes, receiver: Receiver, redis: redis_py.Redis) -> None:
    """With its method, its endpoint and the time of receipt; nobody has looked inside."""
    before = now()
    answer = receiver.client.request(method, receiver.hook(), content=body)
    after = now()
    assert (answer.status_code, answer.content) == (200, b"")
    raw = only(redis)
    assert (raw.endpoint, raw.method, raw.body) == ("studio", method, body)
    assert before <= raw.received_at <= after


def test_every_header_is_kept(receiver: Receiver, redis: redis_py.Redis) -> None:
    """In order, repeated ones too, with values of any bytes; spelled in lower case, as the server hands them on."""
    headers = [
        b"X-Twice: one",
        b"Content-Type: application/json; charset=utf-8",
        b"x-twice: two",
        b"X-Empty:",
        b"X-Colons: a: b: c",
        b"X-Latin: caf\xe9 \xff",
        b"X-Utf8: \xc5\xbc\xc3\xb3\xc5\x82\xc4\x87",
        b"Content-Length: 2",
    ]
    assert status(spoken(receiver.url, raw_request(receiver, b"{}", *headers))) == 200
    raw = only(redis)
    assert raw.headers == (
        ("host", "here"),
        ("connection", "close"),
        ("x-twice", "one"),
        ("content-type", "application/json; charset=utf-8"),
        ("x-twice", "two"),
        ("x-empty", ""),
        ("x-colons", "a: b: c"),
        ("x-latin", "caf\xe9 \xff"),
        ("x-utf8", "\xc5\xbc\xc3\xb3\xc5\x82\xc4\x87"),
        ("content-length", "2"),
    )
    assert raw.body == b"{}"


def test_a_folded_header_cannot_forge_an_entry(receiver: Receiver, redis: redis_py.Redis) -> None:
    """The inbox separates headers by line ends; a header that brings one along is refused or loses it."""
    answer = spoken(receiver.url, raw_request(receiver, b"", b"X-Fold: a\r\n forged: b", b"Content-Length: 0"))
    assert status(answer) in (200, 400)
    assert all(name != " forged" for raw in kept(redis) for name, _ in raw.headers)


def test_a_200_means_kept_and_nudged(receiver: Receiver, redis: redis_py.Redis) -> None:
    """Both are seen in one look, taken as soon as the answer is here; each provider has its own queue."""
    for number, name in enumerate(NAMES, 1):
        assert receiver.post(endpoint=name).status_code == 200
        with redis.pipeline(transaction=True) as look:
            look.hlen(INBOX)
            for endpoint in CONFIG:
                look.llen(endpoint.provider)
            assert look.execute() == [number, *([1] * number + [0] * (len(NAMES) - number))]


def at_once(receiver: Receiver, requests: Sequence[bytes]) -> list[tuple[int, float]]:
    """All of these requests at the same moment, each over a connection of its own: status and seconds of each."""
    host, _, port = receiver.url.removeprefix("http://").partition(":")

    async def one(request: bytes) -> tuple[int, float]:
        begin = time.monotonic()
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return status(answer), time.monotonic() - begin

    async def all_of_them() -> list[tuple[int, float]]:
        return await asyncio.gather(*(one(request) for request in requests))

    return asyncio.run(all_of_them())


def test_two_hundred_at_once(receiver: Receiver, redis: redis_py.Redis) -> None:
    """Each one answered 200 is there under an id of its own, and they shared their trips to the disk."""
    bodies = [b"%03d" % number for number in range(200)]
    redis.config_resetstat()
    answers = at_once(receiver, [raw_request(receiver, body, b"Content-Length: 3") for body in bodies])
    acknowledged = [body for body, (status, _) in zip(bodies, answers, strict=True) if status == 200]
    assert acknowledged == bodies
    raws = kept(redis)
    assert sorted(raw.body for raw in raws) == acknowledged
    assert len({raw.id for raw in raws}) == len(bodies)
    assert sorted(nudged(redis)) == sorted(str(raw.id) for raw in raws)
    assert 0 < redis.info("commandstats")["cmdstat_exec"]["calls"] < len(bodies)


def test_many_probes_keep_no_delivery_out(receiver: Receiver, redis: redis_py.Redis) -> None:
    """Anybody may ask for /readyz: that costs no delivery its connection to Redis, and one write answers many."""
    redis.config_resetstat()
    probe = b"GET /readyz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    delivery = raw_request(receiver, b"{}", b"Content-Length: 2")
    answers = at_once(receiver, [delivery if number % 4 == 0 else probe for number in range(200)])
    assert {status for status, _ in answers} == {200}
    assert redis.hlen(INBOX) == 50
    assert redis.info("commandstats")["cmdstat_set"]["calls"] < 150


# --- which requests are deliveries ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "method", "headers", "stored"),
    [
        ("vault", "POST", {"X-MessageId": "90000001"}, True),
        ("vault", "POST", {}, True),
        ("vault", "GET", {"X-MessageId": "90000001"}, True),  # live clients of Lockme see GET only
        ("vault", "GET", {"x-messageid": "90000001"}, True),
        ("vault", "GET", {"X-MessageId": ""}, False),
        ("vault", "GET", {}, False),
        ("vault", "HEAD", {"X-MessageId": "90000001"}, False),
        ("vault", "HEAD", {}, False),
        ("studio", "GET", {"X-MessageId": "90000001"}, False),
        ("arcade", "GET", {"X-MessageId": "90000001"}, False),
        ("harbour", "HEAD", {}, False),
    ],
)
def test_what_is_a_delivery(
    endpoint: str, method: str, headers: dict[str, str], stored: bool, receiver: Receiver, redis: redis_py.Redis
) -> None:
    """All of these are answered 200; a browser and an uptime probe leave nothing behind."""
    answer = receiver.client.request(method, receiver.hook(endpoint), headers=headers)
    assert (answer.status_code, answer.content) == (200, b"")
    assert [raw.method for raw in kept(redis)] == ([method] if stored else [])
    assert redis.llen(CONFIG.endpoints[endpoint].provider) == stored


@pytest.mark.parametrize("method", ["DELETE", "OPTIONS", "PROPFIND"])
def test_other_methods_are_refused(method: str, receiver: Receiver, redis: redis_py.Redis) -> None:
    """With the ones that are taken."""
    answer = receiver.client.request(method, receiver.hook())
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD, PATCH, POST, PUT"
    assert kept(redis) == []


# --- the size limit ------------------------------------------------------------------------------------------


def pieces(size: int) -> Iterator[bytes]:
    """A body whose length nobody announces."""
    for begin in range(0, size, 60_000):
        yield b"x" * min(60_000, size - begin)


@pytest.mark.parametrize("content", [lambda size: b"x" * size, pieces], ids=["content-length", "chunked"])
def test_a_body_of_exactly_one_mebibyte_is_kept(
    content: Callable[[int], Any], receiver: Receiver, redis: redis_py.Redis
) -> None:
    """And one byte more is answered 413, and nothing of it kept."""
    assert receiver.client.post(receiver.hook(), content=content(MIB + 1)).status_code == 413
    assert kept(redis) == []
    assert receiver.client.post(receiver.hook(), content=content(MIB)).status_code == 200
    assert only(redis).body == b"x" * MIB


def test_an_announced_excess_is_refused_before_it_is_sent(receiver: Receiver, redis: redis_py.Redis) -> None:
    """The announcement is enough."""
    answer = spoken(receiver.url, raw_request(receiver, b"", b"Content-Length: %d" % (MIB + 1)))
    assert status(answer) == 413
    assert kept(redis) == []


def test_an_endless_body_is_cut_off(receiver: Receiver, redis: redis_py.Redis) -> None:
    """Nobody fills the memory of the receiver: after the limit the connection closes."""
    with closing(connected(receiver.url)) as connection:
        connection.sendall(raw_request(receiver, b"", b"Transfer-Encoding: chunked"))
        with pytest.raises(OSError):
            _send_without_end(connection)
    assert kept(redis) == []


def _send_without_end(connection: socket.socket) -> None:
    for _ in range(1000):
        connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")


def test_the_limit_can_be_set(redis_url: str) -> None:
    with receiving(redis_url, body_limit=10) as receiver:
        assert receiver.post(b"x" * 10).status_code == 200
        assert receiver.post(b"x" * 11).status_code == 413


# --- senders that leave --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent", [b"Content-Length: 100\r\n\r\nthe first half", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
def test_half_a_body_is_no_delivery(
    sent: bytes, receiver: Receiver, redis: redis_py.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever hangs up in the middle of it has told us nothing, and that is no error of ours."""
    with closing(connected(receiver.url)) as connection:
        connection.sendall(f"POST {receiver.path()} HTTP/1.1\r\nHost: here\r\n".encode() + sent)
        time.sleep(0.05)
    assert receiver.post(b"the next one").status_code == 200
    assert only(redis).body == b"the next one"
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


def test_a_sender_that_leaves_after_the_body_has_delivered(receiver: Receiver, redis: redis_py.Redis) -> None:
    """SynthesisVR hangs up at two seconds and never sends again: leaving does not undo the commit."""
    for number in range(20):
        with closing(connected(receiver.url)) as connection:
            body = b"%d" % number
            connection.sendall(raw_request(receiver, body, b"Content-Length: %d" % len(body)))
    assert eventually(lambda: redis.hlen(INBOX) == 20)
    assert {int(raw.body) for raw in kept(redis)} == set(range(20))


# --- weather without a spool; with one: test_weather.py ------------------------------------------------------


def refuses_in_time(receiver: Receiver, within: float) -> None:
    """503 with Retry-After. One slow answer of three is the test machine's fault, but a deadline is a deadline."""
    taken = []
    for _ in range(3):
        begin = time.monotonic()
        answer = receiver.post()
        taken.append(time.monotonic() - begin)
        assert (answer.status_code, answer.content) == (503, b"")
        assert answer.headers["retry-after"] == "5"
    assert sorted(taken)[1] < within
    assert max(taken) < 2.0
    assert receiver.readyz() == 503
    assert receiver.healthz() == 200


def recovers(receiver: Receiver) -> None:
    """By itself, with the same receiver."""
    assert eventually(lambda: receiver.readyz() == 200)
    assert eventually(lambda: receiver.post(b"after").status_code == 200)
    assert receiver.healthz() == 200


def test_a_silent_redis() -> None:
    """It accepts and never answers: hung, firewalled. The deadline holds, also for the very first request."""
    with silent_server() as port, receiving(f"redis://127.0.0.1:{port}") as receiver:
        refuses_in_time(receiver, within=0.4)


def test_a_silent_redis_and_many_senders() -> None:
    """Those who wait behind a hung group are answered in time too."""
    with silent_server() as port, receiving(f"redis://127.0.0.1:{port}") as receiver:
        answers = at_once(receiver, [raw_request(receiver, b"{}", b"Content-Length: 2")] * 100)
        assert {status for status, _ in answers} == {503}
        assert max(seconds for _, seconds in answers) < 1.5
        assert receiver.healthz() == 200


def test_a_redis_that_refuses() -> None:
    """Nothing to wait for, so the answer comes at once."""
    with receiving(f"redis://127.0.0.1:{free_port()}") as receiver:
        refuses_in_time(receiver, within=0.2)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis_in(tmp_path / "state") as own:
        yield own


def test_a_redis_that_is_stopped_and_goes_on(own_redis: OwnRedis) -> None:
    """SIGSTOP: its connections stay open and nothing answers."""
    with receiving(own_redis.url) as receiver:
        assert eventually(lambda: receiver.post().status_code == 200)
        own_redis.process.suspend()
        try:
            refuses_in_time(receiver, within=0.4)
        finally:
            own_redis.process.resume()
        recovers(receiver)


def test_a_redis_that_is_killed_and_comes_back(own_redis: OwnRedis) -> None:
    """What was acknowledged before is still there, for it was on the disk."""
    with receiving(own_redis.url) as receiver:
        assert eventually(lambda: receiver.post(b"before").status_code == 200)
        own_redis.kill()
        refuses_in_time(receiver, within=0.2)
        own_redis.revive()
        recovers(receiver)
    assert {b"before", b"after"} <= {raw.body for raw in kept(own_redis.client)}


@pytest.mark.parametrize(
    ("break_it", "mend_it"),
    [
        (("config", "set", "maxmemory", "1"), ("config", "set", "maxmemory", "0")),
        (("replicaof", "127.0.0.1", "1"), ("replicaof", "no", "one")),
    ],
    ids=["out of memory", "read only"],
)
def test_a_redis_that_takes_no_write(break_it: tuple[str, ...], mend_it: tuple[str, ...], own_redis: OwnRedis) -> None:
    """It lives and answers, and keeps nothing: then neither do we say that it did."""
    with receiving(own_redis.url) as receiver:
        own_redis.client.execute_command(*break_it)
        refuses_in_time(receiver, within=0.2)
        assert own_redis.client.hlen(INBOX) == 0
        own_redis.client.execute_command(*mend_it)
        recovers(receiver)


def test_a_group_that_the_receiver_stumbles_over(receiver: Receiver, redis: redis_py.Redis) -> None:
    """Where the inbox's key holds something else, that is said each time, and ends when it is mended."""
    redis.set(INBOX, "not a hash")
    assert [receiver.post().status_code for _ in range(4)] == [503] * 4
    redis.delete(INBOX)
    recovers(receiver)


# --- the promise behind a 2xx --------------------------------------------------------------------------------


def test_a_redis_that_is_not_durable_is_named(own_redis: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    """Loudly and setting by setting, at the start."""
    own_redis.client.config_set("appendfsync", "everysec")
    own_redis.client.config_set("maxmemory-policy", "allkeys-lru")
    with receiving(own_redis.url):
        pass
    assert logged(caplog, "redis-not-durable") == [
        {"setting": "appendfsync", "value": "everysec"},
        {"setting": "maxmemory-policy", "value": "allkeys-lru"},
    ]


def test_a_durable_redis_raises_no_alarm(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """The embedded one keeps the promise."""
    with receiving(redis_url) as receiver:
        assert receiver.readyz() == 200
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]


# --- the process ---------------------------------------------------------------------------------------------


def test_no_answer_waits_for_the_disk_of_the_counts(
    redis_url: str, redis: redis_py.Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is counted is written by a thread; a disk that hangs holds up that thread and nobody who counts."""
    hangs, goes_on = threading.Event(), threading.Event()
    write = os.pwrite

    def hanging(*what: Any) -> int:
        hangs.set()
        goes_on.wait(PATIENCE)
        return write(*what)

    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    monkeypatch.setattr(os, "pwrite", hanging)
    with receiving(redis_url, patience=PATIENCE) as receiver:
        try:
            assert receiver.post().status_code == 200
            assert hangs.wait(PATIENCE)
            begin = time.monotonic()
            assert {receiver.post().status_code for _ in range(20)} == {200}
            assert time.monotonic() - begin < PATIENCE / 4
        finally:
            goes_on.set()
    assert redis.hlen(INBOX) == 21


def command_line(port: int, processes: int = 1) -> list[str]:
    """The Procfile's own line."""
    (line,) = re.findall(r"(?m)^web: (.*)$", (PROJECT / "Procfile").read_text(encoding="utf-8"))
    line = re.sub(r"\$\{WEB_CONCURRENCY:-.*?\}", str(processes), line)
    words = line.replace("${HOST:-127.0.0.1}", "127.0.0.1").replace("${PORT:-8000}", str(port)).split()
    assert words[0] == "uvicorn"
    return [sys.executable, "-m", *words]


def environment(tmp_path: Path, **variables: str) -> dict[str, str]:
    """What the receiver's process is given: no database, no provider's secret."""
    file = tmp_path / "reservoir.toml"
    file.write_text('[endpoints.studio]\nprovider = "reservekit"\n', encoding="utf-8")
    settings = {
        "RESERVOIR_CONFIG": str(file),
        "RESERVOIR_SECRET": SECRET,
        "RESERVOIR_STATE_DIR": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    return settings | variables


def test_the_process_of_the_procfile(redis: redis_py.Redis, redis_url: str, tmp_path: Path) -> None:
    """Takes a delivery through uvloop and httptools (h11 is four times slower), and leaves when it is told to."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(
            command_line(port), cwd=PROJECT, env=environment(tmp_path, REDIS_URL=redis_url), stdout=log, stderr=log
        ) as process,
        httpx.Client(**PLAIN, timeout=PATIENCE) as client,
    ):
        try:
            assert eventually(lambda: _answers(client, f"{url}/readyz") or process.poll() is not None)
            hook = url + path(SECRET, CONFIG.endpoints["studio"])
            assert eventually(lambda: client.post(hook, content=b"customer-data-in-the-body").status_code == 200)
            head = client.head(hook)
            loaded = {mapped.path for mapped in psutil.Process(process.pid).memory_maps()}
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
        finally:
            process.kill()
    assert "server" not in head.headers
    assert {raw.body for raw in kept(redis)} == {b"customer-data-in-the-body"}
    assert any("/uvloop/" in path for path in loaded)
    assert any("/httptools/" in path for path in loaded)
    said = (tmp_path / "log").read_text()
    assert hook.rpartition("/")[2] not in said
    assert "customer-data" not in said


def test_several_processes_of_one_receiver(redis: redis_py.Redis, redis_url: str, tmp_path: Path) -> None:
    """The Procfile's default on more cores: all take deliveries on one port, and one that is killed is replaced."""
    port = free_port()
    hook = f"http://127.0.0.1:{port}" + path(SECRET, CONFIG.endpoints["studio"])
    given = environment(tmp_path, REDIS_URL=redis_url)
    words = command_line(port, processes=2)
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(words, cwd=PROJECT, env=given, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            assert eventually(lambda: _posted(hook, 1) == 1)
            victim, other = _processes(process)
            acked = _posted(hook, 40)
            psutil.Process(victim).kill()
            assert eventually(lambda: len(now := _processes(process)) == 2 and victim not in now)
            assert other in _processes(process)
            acked += _posted(hook, 40)
            assert acked >= 75  # a few may have been with the one that was killed
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert redis.hlen(INBOX) > acked


def _processes(supervisor: subprocess.Popen[bytes]) -> set[int]:
    """Process ids of the receiver's processes."""
    found = set()
    for child in psutil.Process(supervisor.pid).children():
        with suppress(psutil.Error):  # it ends right now, or has and is a zombie
            if "spawn_main" in " ".join(child.cmdline()):
                found.add(child.pid)
    return found


def _posted(hook: str, count: int) -> int:
    """How many of so many deliveries, each on a connection of its own, were acknowledged."""
    acked = 0
    for number in range(count):
        with suppress(httpx.TransportError):
            acked += httpx.post(hook, content=b"%d" % number, **PLAIN, timeout=PATIENCE).status_code == 200
    return acked


def _answers(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(url).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("missing", ["httptools", "uvloop"])
def test_no_slower_parser_takes_over(missing: str, tmp_path: Path) -> None:
    """uvicorn left to itself falls back without a word; told which one, it refuses to start."""
    run = f"import sys; sys.modules[{missing!r}] = None; import runpy; runpy.run_module('uvicorn', run_name='__main__')"
    words = [sys.executable, "-c", run, *command_line(0)[3:]]
    ended = subprocess.run(
        words,
        cwd=PROJECT,
        env=environment(tmp_path, REDIS_URL=f"redis://127.0.0.1:{free_port()}"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode != 0
    assert missing in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"RESERVOIR_CONFIG": "/nowhere/reservoir.toml"}, "reservoir: /nowhere/reservoir.toml: no such file; copy"),
        ({"RESERVOIR_CONFIG": "{broken}"}, "reservoir: {broken}: endpoints.studio.timezone: 'Europe/Viena' is no"),
        ({"RESERVOIR_SECRET": ""}, "reservoir: RESERVOIR_SECRET: is not set; set it to 32 random characters"),
        ({"REDIS_URL": ""}, "reservoir: REDIS_URL: is not set; `reservoir up` sets it"),
        ({"REDIS_URL": "localhost:6379"}, "reservoir: REDIS_URL: "),
    ],
)
def test_bad_configuration_ends_the_process_with_one_line(variables: dict[str, str], said: str, tmp_path: Path) -> None:
    """File, key and mend, and no traceback around them."""
    broken = tmp_path / "broken.toml"
    broken.write_text('[endpoints.studio]\nprovider = "reservekit"\ntimezone = "Europe/Viena"\n', encoding="utf-8")
    given = {name: value.format(broken=broken) for name, value in variables.items()}
    ended = subprocess.run(
        command_line(0),
        cwd=PROJECT,
        env=environment(tmp_path, **({"REDIS_URL": f"redis://127.0.0.1:{free_port()}"} | given)),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == STARTUP_FAILURE
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith(said.format(broken=broken))
