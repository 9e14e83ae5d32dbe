"""An API that is away is left alone, asked once in a while, and told of when it is back; with real Redis.

And the slots, with real children: one provider's API never holds all of a worker's.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from redis import Redis
from serving import eventually, free_port, listening, silent_server

from schemas.delivery import now
from schemas.endpoints import Endpoint
from tests.lines import logged
from workers import circuit
from workers.calls import Cache, Caller
from workers.calls import client as http_client
from workers.circuit import (
    AWAY,
    LATELY,
    LONGEST,
    OPENS_AFTER,
    PROBING,
    WISHED,
    Circuits,
    Gate,
    Seen,
    Way,
    after_failure,
    after_success,
    after_wish,
    opening,
    way,
)
from workers.database import engine as make_engine
from workers.errors import DeliveryError, ProviderUnavailable
from workers.provider import Auth, Call, Provider
from workers.seal import Seal
from workers.slots import Slots
from workers.tokens import Tokens

SHORT = timedelta(0)
"""No memory: every look is at Redis."""
ME, OTHER = "probe me", "probe other"


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


# --- what decides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "then"),
    [
        (Seen(), Way.ASK),
        (Seen(OPENS_AFTER - 1), Way.ASK),
        (Seen(OPENS_AFTER), Way.PROBE),
        (Seen(9), Way.PROBE),
        (Seen(OPENS_AFTER, Gate(AWAY, seconds(3))), Way.WAIT),
        (Seen(OPENS_AFTER, Gate(OTHER, seconds(3))), Way.WAIT),
        (Seen(0, Gate(WISHED, seconds(3))), Way.WAIT),
    ],
)
def test_what_a_call_may_do(seen: Seen, then: Way) -> None:
    assert way(seen) is then


@pytest.mark.parametrize(
    ("failures", "wait"),
    [(0, None), (1, None), (2, None), (3, 5), (4, 10), (5, 20), (6, 40), (7, 60), (8, 60), (10**9, 60)],
)
def test_how_long_it_stays_open(failures: int, wait: int | None) -> None:
    assert opening(failures) == (None if wait is None else seconds(wait))


@pytest.mark.parametrize(
    ("seen", "then"),
    [
        (Seen(), Seen(1)),
        (Seen(1), Seen(2)),
        (Seen(2), Seen(3, Gate(AWAY, seconds(5)))),
        # A probe of ours that fails.
        (Seen(3, Gate(ME, seconds(9))), Seen(4, Gate(AWAY, seconds(10)))),
        (Seen(40, Gate(ME, seconds(9))), Seen(41, Gate(AWAY, seconds(60)))),
        # What was asked before the gate went up: sixteen that fail together count as three.
        (Seen(3, Gate(AWAY, seconds(4))), Seen(3, Gate(AWAY, seconds(4)))),
        (Seen(3, Gate(OTHER, seconds(4))), Seen(3, Gate(OTHER, seconds(4)))),
        (Seen(3, Gate(WISHED, seconds(4))), Seen(3, Gate(WISHED, seconds(4)))),
    ],
)
def test_after_a_failure(seen: Seen, then: Seen) -> None:
    assert after_failure(seen, ME) == then


@pytest.mark.parametrize(
    ("seen", "wish", "then"),
    [
        (Seen(), 7, Seen(3, Gate(WISHED, seconds(7)))),
        (Seen(2), 3600, Seen(3, Gate(WISHED, seconds(60)))),
        (Seen(5, Gate(ME, seconds(15))), 7, Seen(5, Gate(WISHED, seconds(7)))),
        (Seen(3, Gate(AWAY, seconds(5))), 30, Seen(3, Gate(WISHED, seconds(30)))),
        # No wish shortens a gate, and none is none.
        (Seen(3, Gate(WISHED, seconds(30))), 7, Seen(3, Gate(WISHED, seconds(30)))),
        (Seen(), 0, Seen()),
    ],
)
def test_after_a_wish(seen: Seen, wish: int, then: Seen) -> None:
    assert after_wish(seen, ME, seconds(wish)) == then


@pytest.mark.parametrize(
    ("seen", "then"),
    [
        (Seen(), Seen()),
        (Seen(2), Seen()),
        (Seen(7), Seen()),
        (Seen(3, Gate(ME, seconds(9))), Seen()),
        (Seen(3, Gate(AWAY, seconds(4))), Seen()),
        # It was asked before the wish.
        (Seen(3, Gate(WISHED, seconds(4))), Seen(3, Gate(WISHED, seconds(4)))),
    ],
)
def test_after_a_success(seen: Seen, then: Seen) -> None:
    assert after_success(seen) == then


# --- in Redis ------------------------------------------------------------------------------------------------


@dataclass
class Woken:
    """Whose API is back, as it was told."""

    endpoints: list[str] = field(default_factory=list)

    def __call__(self, endpoint: str) -> None:
        self.endpoints.append(endpoint)


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def circuits(redis: Redis, woken: Woken) -> Circuits:
    return Circuits(redis, on_close=woken, memory=SHORT)


@pytest.fixture
def neighbour(redis_url: str) -> Iterator[Circuits]:
    """Another worker process, as far as Redis can tell."""
    with Redis.from_url(redis_url) as own:
        yield Circuits(own, memory=SHORT)


def fails(circuits: Circuits, times: int = OPENS_AFTER) -> None:
    for _ in range(times):
        circuits.check("vault")
        circuits.failed("vault")


def open_for(circuits: Circuits) -> timedelta | None:
    """None where the API may be asked, which makes this a probe where one is due."""
    try:
        circuits.check("vault")
    except ProviderUnavailable as error:
        return error.after
    return None


def time_passes(redis: Redis) -> None:
    """The gate falls, as it would by itself after its seconds."""
    assert redis.delete("reservoir:circuit:vault:gate")


def test_three_failures_in_a_row_open_it_for_all(circuits: Circuits, neighbour: Circuits) -> None:
    """For five seconds; of this endpoint, not of another."""
    fails(circuits, 2)
    assert open_for(neighbour) is None
    neighbour.failed("vault")
    for each in (circuits, neighbour):
        left = open_for(each)
        assert left is not None
        assert seconds(4) < left <= seconds(5)
        each.check("cellar")
    with pytest.raises(ProviderUnavailable, match=r"^vault: not asked: its API is away$"):
        circuits.check("vault")


def test_a_success_in_between_starts_again(circuits: Circuits, neighbour: Circuits, woken: Woken) -> None:
    """Three in a row are meant, whoever makes them; it was not open, so nobody is woken."""
    for one in (circuits, neighbour, circuits):
        fails(one, 2)
        one.succeeded("vault")
    assert open_for(circuits) is None
    assert woken.endpoints == []


def test_one_call_goes_through_as_a_probe(redis: Redis, circuits: Circuits, neighbour: Circuits) -> None:
    """The others fail fast until it has ended; when it fails, they wait for longer."""
    fails(circuits)
    time_passes(redis)
    assert open_for(neighbour) is None
    for each in (circuits, neighbour):
        left = open_for(each)
        assert left is not None
        assert seconds(10) < left <= PROBING
    neighbour.failed("vault")
    left = open_for(circuits)
    assert left is not None
    assert seconds(9) < left <= seconds(10)


def test_sixteen_that_come_together_send_one_probe(redis_url: str, circuits: Circuits, redis: Redis) -> None:
    fails(circuits)
    time_passes(redis)
    gate = Barrier(16)

    def one(_: int) -> bool:
        with Redis.from_url(redis_url) as own:
            gate.wait(10)
            return open_for(Circuits(own, memory=SHORT)) is None

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(one, range(16))) == 1


def test_sixteen_that_fail_together_count_as_three(redis_url: str, redis: Redis) -> None:
    """An API that hangs fails all that wait for it at the same moment; it is away for five seconds, not for sixty."""
    gate = Barrier(16)

    def one(_: int) -> None:
        with Redis.from_url(redis_url) as own:
            circuits = Circuits(own, memory=SHORT)
            circuits.check("vault")
            gate.wait(10)
            circuits.failed("vault")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))
    assert redis.get("reservoir:circuit:vault:failures") == b"3"
    assert 4000 < int(redis.pttl("reservoir:circuit:vault:gate")) <= 5000  # type: ignore[arg-type]


def test_a_success_closes_it_and_wakes(redis: Redis, circuits: Circuits, neighbour: Circuits, woken: Woken) -> None:
    """All are let through again, and the next three failures count from one."""
    fails(circuits)
    time_passes(redis)
    assert open_for(circuits) is None
    circuits.succeeded("vault")
    assert woken.endpoints == ["vault"]
    for _ in range(2):
        assert open_for(circuits) is None
        assert open_for(neighbour) is None
    circuits.succeeded("vault")
    assert woken.endpoints == ["vault"]
    fails(neighbour, 2)
    assert open_for(circuits) is None


def test_latecomers_are_woken_once_half_a_minute_later(
    redis: Redis, circuits: Circuits, neighbour: Circuits, woken: Woken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that found the circuit open may write so only after the others were woken."""
    fails(circuits)
    time_passes(redis)
    assert open_for(circuits) is None
    circuits.succeeded("vault")
    circuits.wake_latecomers()
    assert woken.endpoints == ["vault"]
    later = time.time() + LATELY.total_seconds() + 1
    monkeypatch.setattr(time, "time", lambda: later)
    circuits.wake_latecomers()
    circuits.wake_latecomers()
    neighbour.wake_latecomers()
    assert woken.endpoints == ["vault", "vault"]


def test_who_cannot_be_woken_is_woken_by_the_next_probe(redis: Redis, woken: Woken) -> None:
    """PostgreSQL was away when the API came back. The call itself has succeeded all the same."""

    def trouble(endpoint: str) -> None:
        raise LookupError

    first = Circuits(redis, on_close=trouble, memory=SHORT)
    fails(first)
    time_passes(redis)
    assert open_for(first) is None
    first.succeeded("vault")
    second = Circuits(redis, on_close=woken, memory=SHORT)
    time_passes(redis)
    assert open_for(second) is None
    second.succeeded("vault")
    assert woken.endpoints == ["vault"]


def probe_and_hang(redis_url: str, told: Connection) -> None:
    """A worker that gets the probe and is killed with it."""
    Circuits(Redis.from_url(redis_url)).check("vault")
    told.send("probing")
    time.sleep(60)


def test_a_killed_prober_blocks_nobody_for_long(redis_url: str, redis: Redis, circuits: Circuits) -> None:
    """Its gate falls by itself, and somebody else probes."""
    fails(circuits)
    time_passes(redis)
    ours, theirs = multiprocessing.Pipe()
    prober = multiprocessing.get_context("fork").Process(target=probe_and_hang, args=(redis_url, theirs))
    prober.start()
    try:
        assert ours.poll(30)
        assert open_for(circuits) is not None
    finally:
        os.kill(prober.pid or 0, signal.SIGKILL)
        prober.join()
    left = int(redis.pttl("reservoir:circuit:vault:gate"))  # type: ignore[arg-type]
    assert 0 < left <= PROBING / timedelta(milliseconds=1)
    redis.pexpire("reservoir:circuit:vault:gate", 50)
    assert eventually(lambda: open_for(circuits) is None)


@pytest.mark.parametrize(("wish", "held"), [(7, 7), (3600, 60)])
def test_a_provider_that_asks_for_a_pause_gets_it(
    wish: int, held: int, redis: Redis, circuits: Circuits, neighbour: Circuits, woken: Woken
) -> None:
    """From all workers and at once, at most for a minute; what was on its way ends it neither way."""
    circuits.failed("vault", seconds(wish))
    circuits.succeeded("vault")
    circuits.failed("vault")
    with pytest.raises(ProviderUnavailable, match="wishes to be left alone") as error:
        neighbour.check("vault")
    assert error.value.reason == "throttled"
    assert error.value.after is not None
    assert seconds(held - 1) < error.value.after <= seconds(held) <= LONGEST
    time_passes(redis)
    assert [open_for(circuits) is None, open_for(neighbour) is None] == [True, False]
    circuits.succeeded("vault")
    assert open_for(neighbour) is None
    assert woken.endpoints == ["vault"]


def test_every_key_ends_by_itself(redis: Redis, circuits: Circuits) -> None:
    fails(circuits)
    time_passes(redis)
    circuits.check("vault")
    circuits.failed("cellar", seconds(5))
    keys: Any = redis.keys("*")
    assert len(keys) == 4
    circuits.succeeded("vault")
    keys = redis.keys("*")
    assert sorted(key for key in keys if b"cellar" not in key) == [b"reservoir:circuit-closed"]
    assert all(int(redis.pttl(key)) > 0 for key in keys)  # type: ignore[arg-type]


def test_a_busy_process_asks_redis_once_a_second(redis: Redis, woken: Woken) -> None:
    """As long as all is well; its own failures it knows at once."""
    circuits = Circuits(redis, on_close=woken)

    def commands() -> int:
        stats: Any = redis.info("stats")
        return int(stats["total_commands_processed"])

    circuits.check("vault")
    before = commands()
    for _ in range(100):
        circuits.check("vault")
        circuits.succeeded("vault")
    assert commands() - before == 1
    fails(circuits)
    assert open_for(circuits) is not None


# --- Redis away ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["refuses", "silent"])
def no_redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """Nobody there, or somebody who says nothing."""
    if request.param == "refuses":
        yield circuit.client(f"redis://127.0.0.1:{free_port()}/0")
        return
    with silent_server() as port, circuit.client(f"redis://127.0.0.1:{port}/0") as client:
        yield client


def test_without_redis_every_circuit_counts_as_closed(
    no_redis: Redis, woken: Woken, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is raised, nobody is woken, and a silent Redis is waited for once a second, not at every call."""
    circuits = Circuits(no_redis, on_close=woken)
    begin = time.monotonic()
    for _ in range(5):
        fails(circuits)
        circuits.failed("vault", seconds(9))
        circuits.succeeded("vault")
        circuits.wake_latecomers()
    took = time.monotonic() - begin
    assert took < 3
    assert 1 <= len(logged(caplog, "circuits-not-known")) <= 1 + took
    assert woken.endpoints == []


def test_redis_that_comes_back_is_used_again(redis: Redis, tmp_path: Path) -> None:
    """After a second at most, without a restart."""
    there, socket_path = redis.connection_pool.connection_kwargs["path"], tmp_path / "redis.sock"
    with circuit.client(f"unix://{socket_path}") as client:
        circuits = Circuits(client, memory=seconds(0.05))
        fails(circuits)
        assert open_for(circuits) is None
        socket_path.symlink_to(there)

        def opens() -> bool:
            circuits.failed("vault")
            return open_for(circuits) is not None

        assert eventually(opens)


# --- around a call -------------------------------------------------------------------------------------------

READ = Call(name="session", path="/session/7", auth=Auth.BEARER_KEY)


def caller(port: int, circuits: Circuits, longest: timedelta = timedelta(seconds=10)) -> Caller:
    secrets = {"api_key": "a key"}
    return Caller(
        http=http_client(),
        provider=Provider(name="someone", title="", docs="", normalize=lambda incoming: []),
        endpoint=Endpoint(
            name="vault", provider="someone", api_url=f"http://127.0.0.1:{port}", secrets=frozenset(secrets)
        ),
        secrets=secrets,
        tokens=Tokens(make_engine("postgresql://nobody@127.0.0.1:1/none"), Seal("0123456789abcdef"), now),
        cache=Cache(),
        clock=now,
        circuits=circuits,
        longest=longest,
    )


def test_an_api_that_hangs_costs_three_timeouts_and_then_nothing(redis: Redis, woken: Woken) -> None:
    """And when it is back, one probe finds out, and those who wait are told."""
    answers: Callable[[socket.socket], None] | None = None
    asked = list[socket.socket]()

    def answer(connection: socket.socket) -> None:
        asked.append(connection)
        connection.recv(65536)
        if answers is None:
            connection.recv(65536)  # until the other side gives up
        else:
            answers(connection)

    circuits = Circuits(redis, on_close=woken)
    with listening(answer) as port:
        asks = caller(port, circuits, longest=seconds(0.1))
        told, took = list[str](), list[float]()
        for _ in range(100):
            begin = time.monotonic()
            with pytest.raises(ProviderUnavailable) as error:
                asks(READ)
            took.append(time.monotonic() - begin)
            told.append(str(error.value))
        assert told[:3] == ["session: the answer took longer than 0.1 s"] * 3
        assert set(told[3:]) == {"vault: not asked: its API is away"}
        assert sum(took) < 3
        # A busy machine may stand still during one or the other of them.
        assert sum(sorted(took[3:])[:90]) < 1
        answers = answers_well
        time_passes(redis)
        assert asks(READ).body == []
        asks.http.close()
    assert len(asked) == 3 + 1
    assert woken.endpoints == ["vault"]


def answers_well(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")


def test_an_api_that_refuses_us_is_there(redis: Redis) -> None:
    """Nobody else has to wait because one delivery asks for what is not there."""

    def refuses(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with listening(refuses) as port:
        asks = caller(port, Circuits(redis))
        for _ in range(2 * OPENS_AFTER):
            with pytest.raises(DeliveryError, match="session: answered 404"):
                asks(READ)
        asks.http.close()


# --- slots ---------------------------------------------------------------------------------------------------


@pytest.fixture
def four() -> Iterator[Slots]:
    """Of a worker with four children, who wait for nothing."""
    made = Slots(4, patience=SHORT)
    yield made
    made.close()


def holds_until_told(slots: Slots, provider: str, told: Connection) -> None:
    """A child that asks a provider."""
    with slots.hold(provider) as free:
        told.send(free)
        told.poll(60)


@dataclass
class Child:
    """A child of a worker, forked as Celery does."""

    process: Any
    line: Connection
    free: bool = False

    def ends(self) -> None:
        self.line.send("done")
        self.process.join(20)

    def is_killed(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(20)


@pytest.fixture
def child() -> Iterator[Callable[[Slots, str], Child]]:
    """Forks children, and ends those that are left."""
    fork, children = multiprocessing.get_context("fork"), list[Child]()

    def forked(slots: Slots, provider: str) -> Child:
        ours, theirs = fork.Pipe()
        process = fork.Process(target=holds_until_told, args=(slots, provider, theirs))
        process.start()
        children.append(Child(process, ours))
        assert ours.poll(20)
        children[-1].free = ours.recv()
        return children[-1]

    yield forked
    for each in children:
        if each.process.is_alive():
            each.is_killed()


def is_free(slots: Slots, provider: str = "lockme") -> bool:
    with slots.hold(provider) as free:
        return free


def test_one_provider_never_holds_all_children(four: Slots, child: Callable[[Slots, str], Child]) -> None:
    """Three may ask one provider, and three another."""
    asking = [child(four, "lockme") for _ in range(4)]
    assert [each.free for each in asking] == [True, True, True, False]
    assert not is_free(four)
    assert child(four, "timekit").free
    assert is_free(four, "timekit")
    asking[3].ends()  # it had none to give back
    assert not is_free(four)
    asking[1].ends()
    assert is_free(four)


def test_a_killed_childs_slot_is_free_at_once(four: Slots, child: Callable[[Slots, str], Child]) -> None:
    """Nobody has to notice."""
    asking = [child(four, "lockme") for _ in range(3)]
    assert not is_free(four)
    asking[0].is_killed()
    assert is_free(four)


@pytest.mark.parametrize("concurrency", [0, 1, 2])
def test_there_is_always_one_slot(concurrency: int, child: Callable[[Slots, str], Child]) -> None:
    """A worker with one child works too."""
    alone = Slots(concurrency, patience=SHORT)
    assert [child(alone, "lockme").free, child(alone, "lockme").free] == [True, False]
    alone.close()


def test_what_goes_wrong_inside_gives_the_slot_back(child: Callable[[Slots, str], Child]) -> None:
    alone = Slots(1, patience=SHORT)
    with pytest.raises(KeyError), alone.hold("lockme"):
        raise KeyError
    assert child(alone, "lockme").free
    alone.close()


def test_a_slot_is_waited_for_a_moment(child: Callable[[Slots, str], Child]) -> None:
    """Where all is well nobody has to come back: the next slot is free in no time."""
    patient = Slots(1, patience=seconds(10))
    holder = child(patient, "lockme")
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(is_free, patient)
        assert not wait([waits], timeout=0.2).done
        holder.ends()
        assert waits.result(10)
    patient.close()
