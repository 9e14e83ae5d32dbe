"""The receiver with its spool, in every weather: answered 200 in time, and afterwards in the inbox, once, nudged."""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
from serving import PATIENCE, PLAIN, connected, eventually, free_port, listening
from test_receiver import (
    PROJECT,
    SECRET,
    Receiver,
    at_once,
    command_line,
    environment,
    kept,
    nudged,
    raw_request,
    receiving,
)
from test_spool import overwrite, rows, written_file
from weather import WEATHERS, OwnRedis, hung, own_redis_in, refusing

from ingest.segment import CORRUPT, Segment, found
from ingest.waiting import Row
from schemas.delivery import INBOX, RawDelivery, new_id, now
from tests.lines import logged

LARGEST = 1.0
"""Seconds for the slowest answer in any weather, half of the shortest deadline; 0.4 on a machine of its own."""
USUAL = 0.1
"""Seconds for all but the slowest hundredth while the breaker is open; 25 ms on a machine of its own."""


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis_in(tmp_path / "state") as own:
        yield own


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def numbered(count: int, name: str = "body") -> list[bytes]:
    return [b"%s-%05d" % (name.encode(), number) for number in range(count)]


def requests(receiver: Receiver, bodies: Sequence[bytes]) -> list[bytes]:
    return [raw_request(receiver, body, b"Content-Length: %d" % len(body)) for body in bodies]


def arrived(own: OwnRedis, bodies: Sequence[bytes]) -> None:
    """Each of them is in the inbox, once, and has been nudged."""
    assert eventually(lambda: own.client.hlen(INBOX) >= len(bodies)), own.client.hlen(INBOX)
    raws = kept(own.client)
    assert Counter(raw.body for raw in raws) == Counter(bodies)
    assert set(nudged(own.client)) == {str(raw.id) for raw in raws}


def emptied(spool: Path) -> bool:
    """Nothing is left but the empty segments of those who live."""
    return len(found(spool)) <= 1


# --- each weather --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WEATHERS)
def test_everything_is_taken_and_arrives(name: str, own_redis: OwnRedis, spool: Path) -> None:
    """The first ones, who find out; those who come at once; those after them, who need not ask Redis any more."""
    together, one_by_one = numbered(50, "together"), numbered(200, "one-by-one")
    with receiving(own_redis.url, spool_dir=spool) as receiver:
        assert receiver.post(b"before").status_code == 200
        with WEATHERS[name](own_redis):
            answers = at_once(receiver, requests(receiver, together))
            for body in one_by_one:
                begin = time.monotonic()
                answers.append((receiver.post(body).status_code, time.monotonic() - begin))
            said = receiver.client.get(f"{receiver.url}/readyz")
            assert (said.status_code, said.text) == (200, "ready: spooling\n")
            assert receiver.healthz() == 200
        assert {status for status, _ in answers} == {200}
        arrived(own_redis, [b"before", *together, *one_by_one])
        assert eventually(lambda: receiver.client.get(f"{receiver.url}/readyz").text == "ready\n")
        assert eventually(lambda: emptied(spool))
        assert receiver.post(b"after").status_code == 200
    arrived(own_redis, [b"before", *together, *one_by_one, b"after"])
    assert list(spool.iterdir()) == []
    largest = max(seconds for _, seconds in answers)
    usual = sorted(seconds for _, seconds in answers[len(together) :])[int(0.99 * len(one_by_one))]
    print(f"{name}: largest {largest * 1000:.0f} ms, p99 while open {usual * 1000:.1f} ms")
    assert largest < LARGEST
    assert usual < USUAL


def test_a_redis_that_dies_in_the_middle(own_redis: OwnRedis, spool: Path) -> None:
    """While requests are under way; what it had synced without saying so arrives once all the same."""
    bodies = numbered(600)
    with receiving(own_redis.url, spool_dir=spool) as receiver, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(lambda: [a for at in range(0, 600, 60) for a in some(receiver, bodies[at : at + 60])])
        assert eventually(lambda: own_redis.client.hlen(INBOX) > 100)
        own_redis.kill()
        answers = sending.result()
        assert {status for status, _ in answers} == {200}
        own_redis.revive()
        arrived(own_redis, bodies)
    assert max(seconds for _, seconds in answers) < LARGEST


def some(receiver: Receiver, bodies: Sequence[bytes]) -> list[tuple[int, float]]:
    return at_once(receiver, requests(receiver, bodies))


@contextmanager
def deaf_proxy(own: OwnRedis, deaf: Callable[[], bool]) -> Iterator[str]:
    """In front of a Redis: hands everything on, and while `deaf` no answer back. Its URL."""
    address = own.url.removeprefix("unix://")

    def carry(client: socket.socket) -> None:
        with closing(socket.socket(socket.AF_UNIX)) as server:
            server.connect(address)
            server.settimeout(0.02)
            client.settimeout(0.02)
            while True:
                if (asked := _received(client)) == b"":
                    return
                server.sendall(asked or b"")
                if (answer := _received(server)) == b"":
                    return
                if answer and not deaf():
                    client.sendall(answer)

    with listening(carry) as port:
        yield f"redis://127.0.0.1:{port}"


def _received(connection: socket.socket) -> bytes | None:
    """None where nothing came."""
    try:
        return connection.recv(65536)
    except TimeoutError:
        return None


def test_a_delivery_in_both_places_arrives_once(own_redis: OwnRedis, spool: Path) -> None:
    """Redis keeps it, and the answer is lost: the same id lands again, and changes nothing."""
    lost = False
    with (
        deaf_proxy(own_redis, lambda: lost) as url,
        receiving(url, spool_dir=spool) as receiver,
    ):
        assert receiver.post(b"before").status_code == 200
        lost = True
        assert receiver.post(b"twice").status_code == 200
        assert own_redis.client.hlen(INBOX) == 2
        (identity,) = [str(raw.id) for raw in kept(own_redis.client) if raw.body == b"twice"]
        lost = False
        assert eventually(lambda: nudged(own_redis.client).count(identity) == 2)
        assert eventually(lambda: emptied(spool))
    arrived(own_redis, [b"before", b"twice"])


def test_a_sender_that_hangs_up_while_redis_is_silent(own_redis: OwnRedis, spool: Path) -> None:
    """Nobody is there to hear the 200, and it is kept: SynthesisVR does not send again."""
    bodies = numbered(20)
    with receiving(own_redis.url, spool_dir=spool) as receiver:
        assert receiver.post(b"before").status_code == 200
        with hung(own_redis):
            for request in requests(receiver, bodies):
                with closing(connected(receiver.url)) as connection:
                    connection.sendall(request)
            assert eventually(lambda: receiver.client.get(f"{receiver.url}/readyz").text == "ready: spooling\n")
        arrived(own_redis, [b"before", *bodies])


def test_what_a_pause_has_spooled_is_drained_when_it_is_over(
    own_redis: OwnRedis, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for a booking a second later finds it: neither the looks after Redis nor the drainer keep it waiting. Of
    several pauses, as the test machine has some of its own."""
    monkeypatch.setattr("ingest.keeper.STEADY", 0.1)
    with receiving(own_redis.url, spool_dir=spool) as receiver:
        waited = [_until_drained(own_redis, receiver, b"pause %d" % number) for number in range(3)]
    print("after a pause in the inbox within", *(f"{1000 * seconds:.0f}" for seconds in waited), "ms")
    assert sorted(waited)[1] < 0.25


def test_what_cannot_be_drained_does_not_take_redis_from_everybody(
    own_redis: OwnRedis, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It fails each time while Redis is well: it must not be tried as soon as Redis is found well again."""
    with receiving(own_redis.url, spool_dir=spool) as receiver:
        own_redis.client.set("reservekit", "no queue")
        with hung(own_redis):
            assert receiver.post(b"spooled").status_code == 200
        time.sleep(2.5)
        assert len([line for line in logged(caplog, "breaker") if line["state"] == "open"]) < 5
        own_redis.client.delete("reservekit")
        assert eventually(lambda: bool(nudged(own_redis.client)))
        arrived(own_redis, [b"spooled"])


def _until_drained(own: OwnRedis, receiver: Receiver, body: bytes) -> float:
    """Seconds from Redis' return on."""
    before = own.client.hlen(INBOX)
    time.sleep(0.2)
    with hung(own):
        assert receiver.post(body).status_code == 200
    begin = time.monotonic()
    assert eventually(lambda: own.client.hlen(INBOX) > before)
    seconds = time.monotonic() - begin
    assert eventually(lambda: receiver.client.get(f"{receiver.url}/readyz").text == "ready\n")
    return seconds


def test_a_long_outage_is_drained_in_seconds(own_redis: OwnRedis, spool: Path) -> None:
    """Five minutes at fifty a second; while it drains, live requests wait no longer than usual."""
    spool.mkdir()
    left = [_spooled(body) for body in numbered(15_000)]
    segment = Segment.create(spool, 1024**3)
    for begin in range(0, len(left), 100):
        segment.append(left[begin : begin + 100])
    segment.close()
    with receiving(own_redis.url, spool_dir=spool) as receiver:
        begin = time.monotonic()
        live = []
        while own_redis.client.hlen(INBOX) < len(left) + len(live):
            sent = time.monotonic()
            assert receiver.post(b"live").status_code == 200
            live.append(time.monotonic() - sent)
        seconds = time.monotonic() - begin
        assert eventually(lambda: emptied(spool))
    print(f"15,000 drained in {seconds:.1f} s; meanwhile {len(live)} live, slowest {max(live) * 1000:.0f} ms")
    arrived(own_redis, [*numbered(15_000), *[b"live"] * len(live)])
    assert seconds < 15


def _spooled(body: bytes) -> Row:
    raw = RawDelivery(id=new_id(), endpoint="studio", method="POST", received_at=now(), body=body)
    return Row(str(raw.id), "reservekit", raw.pack())


def test_a_corrupt_segment_is_drained_as_far_as_it_can_be_read(
    own_redis: OwnRedis, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said loudly and kept, and the receiver goes on."""
    spool.mkdir()
    torn = written_file(spool, [_spooled(body) for body in numbered(1000)])
    overwrite(torn, torn.stat().st_size // 2 // 4096 * 4096, 4096)
    nothing = written_file(spool, rows(3))
    overwrite(nothing, 0, 4096)
    with receiving(own_redis.url, spool_dir=spool) as receiver:
        assert eventually(lambda: len(list(spool.glob(f"*{CORRUPT}"))) == 2)
        assert receiver.post(b"and on").status_code == 200
    of_torn, of_nothing = logged(caplog, "segment-corrupt")
    assert of_torn["kept_as"] == torn.name + CORRUPT
    assert of_nothing["rows"] == 0
    assert 950 < own_redis.client.hlen(INBOX) <= 1000
    assert set(nudged(own_redis.client)) == {str(raw.id) for raw in kept(own_redis.client)}


# --- processes -----------------------------------------------------------------------------------------------


@contextmanager
def process(tmp_path: Path, redis_url: str, **variables: str) -> Iterator[tuple[psutil.Popen, Receiver]]:
    """A receiver as the Procfile starts it, with one endpoint, until it is killed."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with (
        psutil.Popen(
            command_line(port),
            cwd=PROJECT,
            env=environment(tmp_path, REDIS_URL=redis_url, **variables),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as running,
        httpx.Client(**PLAIN, timeout=PATIENCE) as client,
    ):
        try:
            receiver = Receiver(url, client)
            assert eventually(lambda: _healthy(receiver) or running.poll() is not None)
            yield running, receiver
        finally:
            with suppress(psutil.NoSuchProcess):
                running.kill()
            running.wait()


def _healthy(receiver: Receiver) -> bool:
    try:
        return receiver.healthz() == 200
    except httpx.TransportError:
        return False


def test_a_killed_receiver_leaves_its_spool_to_another_one(own_redis: OwnRedis, tmp_path: Path, spool: Path) -> None:
    """kill -9 while Redis is away; whoever starts next adopts what it had acknowledged."""
    bodies = numbered(100)
    with refusing(own_redis), process(tmp_path, own_redis.url) as (running, receiver):
        for body in bodies:
            assert receiver.post(body).status_code == 200
        running.kill()
        running.wait()
    assert len(found(spool)) == 1
    with receiving(own_redis.url, spool_dir=spool):
        arrived(own_redis, bodies)
        assert eventually(lambda: emptied(spool))


def test_receivers_that_share_a_directory(own_redis: OwnRedis, tmp_path: Path, spool: Path) -> None:
    """Each writes to segments of its own; what a killed one leaves behind is drained by exactly one of the others."""
    bodies = [numbered(60, name) for name in ("one", "two", "killed")]
    with (
        process(tmp_path, own_redis.url) as (_, one),
        process(tmp_path, own_redis.url) as (_, two),
        process(tmp_path, own_redis.url) as (killed, third),
    ):
        with refusing(own_redis):
            for body in range(60):
                for receiver, own in zip((one, two, third), bodies, strict=True):
                    assert receiver.post(own[body]).status_code == 200
            assert len(found(spool)) == 3
            killed.kill()
            killed.wait()
        arrived(own_redis, [body for own in bodies for body in own])
        assert eventually(lambda: len(found(spool)) == 2)
        assert len(nudged(own_redis.client)) == 180


def test_a_stopped_receiver_stands_in_nobodys_way(own_redis: OwnRedis, tmp_path: Path, spool: Path) -> None:
    """SIGSTOP with its spool open: the others answer and drain, and what it has is drained when it goes on."""
    with process(tmp_path, own_redis.url) as (stopped, one), process(tmp_path, own_redis.url) as (_, two):
        with refusing(own_redis):
            assert one.post(b"one").status_code == 200
            stopped.suspend()
            assert two.post(b"two").status_code == 200
        try:
            arrived(own_redis, [b"two"])
        finally:
            stopped.resume()
        arrived(own_redis, [b"one", b"two"])


def test_the_end_of_a_receiver_while_requests_wait(own_redis: OwnRedis, tmp_path: Path, spool: Path) -> None:
    """SIGTERM, with Redis silent: each of them is answered, and what was answered is in the spool."""
    bodies = numbered(30)
    with process(tmp_path, own_redis.url) as (running, receiver):
        assert eventually(lambda: receiver.post(b"before").status_code == 200)
        with hung(own_redis):
            connections = [connected(receiver.url) for _ in bodies]
            for connection, request in zip(connections, requests(receiver, bodies), strict=True):
                connection.sendall(request)
            assert eventually(lambda: _idle(running, connections))
            running.terminate()
            answers = [_answer(connection) for connection in connections]
            assert running.wait(PATIENCE) in (0, -signal.SIGTERM)
    assert {answer[:12] for answer in answers} == {b"HTTP/1.1 200"}
    with receiving(own_redis.url, spool_dir=spool):
        arrived(own_redis, [b"before", *bodies])


def _idle(running: psutil.Popen, connections: Sequence[socket.socket]) -> bool:
    """It has taken every connection."""
    return sum(c.status == psutil.CONN_ESTABLISHED for c in running.net_connections("tcp")) >= len(connections)


def _answer(connection: socket.socket) -> bytes:
    with closing(connection):
        return connection.recv(65536)


# --- neither Redis nor the spool -----------------------------------------------------------------------------


def refused(receiver: Receiver, body: bytes = b"{}") -> float:
    """503 with Retry-After; the seconds that it took."""
    begin = time.monotonic()
    answer = receiver.post(body)
    taken = time.monotonic() - begin
    assert (answer.status_code, answer.content, answer.headers["retry-after"]) == (503, b"", "5")
    assert receiver.readyz() == 503
    return taken


@pytest.mark.parametrize("weather", [refusing, hung])
def test_a_spool_that_is_full(
    weather: Callable[[OwnRedis], AbstractContextManager[None]], own_redis: OwnRedis, spool: Path
) -> None:
    """503 in time; what was answered 200 arrives, and then there is room again."""
    with receiving(own_redis.url, spool_dir=spool, spool_limit=256 * 1024) as receiver:
        taken = list(_fill(receiver, own_redis, weather))
        assert 10 < len(taken) < 90
        arrived(own_redis, taken)
        assert eventually(lambda: receiver.readyz() == 200)
        assert receiver.post(b"after").status_code == 200


def _fill(
    receiver: Receiver, own: OwnRedis, weather: Callable[[OwnRedis], AbstractContextManager[None]]
) -> Iterator[bytes]:
    with weather(own):
        for body in numbered(100):
            # When there is no room for a large one any more, there still is for some small ones.
            for content in (body + bytes(10_000), body):
                if receiver.post(content).status_code == 200:
                    yield content
                    break
            else:
                break
        assert max(refused(receiver) for _ in range(3)) < LARGEST


def test_a_disk_that_is_full(own_redis: OwnRedis, tmp_path: Path, spool: Path) -> None:
    """503 while no file may grow; 200 when it may again; and a full disk keeps nothing from being drained."""
    bodies = numbered(20)
    with process(tmp_path, own_redis.url) as (running, receiver):
        with refusing(own_redis):
            assert [receiver.post(body).status_code for body in bodies] == [200] * 20
            _, hard = running.rlimit(psutil.RLIMIT_FSIZE)
            running.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
            assert eventually(lambda: receiver.readyz() == 503)
            assert max(refused(receiver) for _ in range(3)) < LARGEST
            running.rlimit(psutil.RLIMIT_FSIZE, (hard, hard))
            assert eventually(lambda: receiver.readyz() == 200)
            assert receiver.post(b"room again").status_code == 200
            running.rlimit(psutil.RLIMIT_FSIZE, (0, hard))
        arrived(own_redis, [*bodies, b"room again"])
        assert eventually(lambda: found(spool) == [])
        assert receiver.post(b"after").status_code == 200


def test_a_spool_that_is_switched_off(own_redis: OwnRedis, tmp_path: Path, spool: Path) -> None:
    with (
        refusing(own_redis),
        process(tmp_path, own_redis.url, RESERVOIR_SPOOL_DIR="off") as (_, receiver),
    ):
        refused(receiver)
    assert not spool.exists()


def test_a_directory_that_cannot_be_used_ends_the_start(tmp_path: Path) -> None:
    """With one line, which says what to do."""
    place = tmp_path / "spool"
    place.write_text("a file")
    ended = subprocess.run(
        command_line(0),
        cwd=PROJECT,
        env=environment(tmp_path, REDIS_URL=f"redis://127.0.0.1:{free_port()}"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode != 0
    (line,) = [line for line in ended.stderr.splitlines() if "RESERVOIR_SPOOL_DIR" in line]
    assert line.startswith(f"reservoir: RESERVOIR_SPOOL_DIR: {place} cannot be used")
    assert SECRET not in ended.stderr
