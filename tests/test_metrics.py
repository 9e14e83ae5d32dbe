"""What is counted, what is seen, and that dashboard and alerts speak of nothing else."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from shutil import which
from typing import Any

import httpx
import pytest
import redis as redis_py
import yaml
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families
from serving import PATIENCE, PLAIN, SHORT, serving
from sqlalchemy import Engine
from world import NOON, Step, World, request, tell

from console.metrics import alive, at_config, at_postgres, at_redis, at_spool, looks, tidy
from console.spooled import Spooled, spooled
from console.trial import Trial
from ingest.acks import Acks, Lately, merged
from ingest.app import build
from ingest.metrics import Tally
from ingest.segment import Segment
from ingest.settings import Settings
from ingest.waiting import Row
from schemas import metrics as names
from schemas.acks import ACKS
from schemas.delivery import EPOCH, INBOX, new_id, now, packed
from schemas.endpoints import Endpoint, parse, path
from schemas.meters import DIRECTORY, InFiles, Off, meters
from schemas.metrics import ACK, ALL, REQUESTS, SETTLED, Kind, Metric
from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.lockme import Lockme
from simulators.reservekit import ReserveKit
from simulators.venue import Weather
from tests.lines import logged
from workers import metrics as counts
from workers import observed
from workers.circuit import Circuits

PROJECT = Path(__file__).resolve().parent.parent
SECRET = "the secret of this installation"
CONFIG = parse(
    {"endpoints": {"vault": {"provider": "lockme"}, "arcade": {"provider": "synthesisvr"}}}, "reservoir.toml", {}
)

Told = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def told(directory: Path) -> Told:
    """What prometheus-client reads from the files of all processes."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in MultiProcessCollector(None, str(directory)).collect()
        for sample in family.samples
    }


def of(metric: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return metric, tuple(sorted(labels.items()))


# --- the names -----------------------------------------------------------------------------------------------------


def test_every_metric_is_named_as_prometheus_wants_it_and_explained() -> None:
    page = (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for metric in ALL:
        assert metric.name.startswith("reservoir_")
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert f"`{metric.name}`" in page
        assert all(f"`{label}`" in page for label in metric.labels)
    assert len({metric.name for metric in ALL}) == len(ALL)


# --- counting ------------------------------------------------------------------------------------------------------


def test_who_counts_loads_no_library_for_it() -> None:
    code = "import sys, ingest.app, workers.observed; print(sorted(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert "'schemas.meters'" in ended.stdout
    assert "'prometheus_client'" not in ended.stdout


def test_what_is_counted_is_what_prometheus_client_reads(tmp_path: Path) -> None:
    ours = InFiles("receiver", tmp_path)
    ours.add(REQUESTS, ("arcade", "200", "redis"))
    ours.add(REQUESTS, ("arcade", "200", "redis"), 2)
    ours.write()
    for seconds in (0.001, 0.0011, 60):
        ours.observe(ACK, ("arcade",), seconds)
    ours.add(REQUESTS, ('a "quoted" \\ név', "200", ""))
    ours.write()
    found = told(tmp_path)
    assert found[of("reservoir_requests_total", endpoint="arcade", status="200", kept="redis")] == 3
    assert found[of("reservoir_requests_total", endpoint='a "quoted" \\ név', status="200", kept="")] == 1
    assert found[of("reservoir_ack_seconds_bucket", endpoint="arcade", le="0.001")] == 1
    assert found[of("reservoir_ack_seconds_bucket", endpoint="arcade", le="0.0025")] == 2
    assert found[of("reservoir_ack_seconds_bucket", endpoint="arcade", le="5.0")] == 2
    assert found[of("reservoir_ack_seconds_bucket", endpoint="arcade", le="+Inf")] == 3
    assert found[of("reservoir_ack_seconds_count", endpoint="arcade")] == 3
    assert found[of("reservoir_ack_seconds_sum", endpoint="arcade")] == pytest.approx(60.0021)


def test_a_reader_in_the_middle_of_the_writing_sees_what_was_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = InFiles("receiver", tmp_path)
    ours.add(SETTLED, ("vault", "applied", ""))
    ours.write()
    seen: list[int] = []
    plain = os.pwrite

    def watched(file: int, data: Any, at: int) -> int:
        written = plain(file, data, at)
        seen.append(len(told(tmp_path)))
        return written

    monkeypatch.setattr(os, "pwrite", watched)
    for number in range(50):
        ours.add(SETTLED, ("vault", "parked", f"reason-{number}"))
    ours.write()
    assert seen == [1, 51]


def test_a_full_disk_means_that_the_counts_are_written_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = InFiles("receiver", tmp_path)

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as weather:
        weather.setattr(os, "pwrite", full)
        ours.add(REQUESTS, ("arcade", "200", "spool"))
        ours.write()
        assert told(tmp_path) == {}
    ours.add(REQUESTS, ("arcade", "200", "spool"))
    ours.write()
    assert told(tmp_path) == {of("reservoir_requests_total", endpoint="arcade", status="200", kept="spool"): 2}


def test_without_a_directory_nothing_is_counted_and_a_bad_one_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(meters("receiver", {}), Off)
    (tmp_path / "file").touch()
    assert isinstance(meters("receiver", {DIRECTORY: str(tmp_path / "file" / "below")}), Off)
    assert len(logged(caplog, "not-counted")) == 1
    assert isinstance(meters("receiver", {DIRECTORY: str(tmp_path / "new")}), InFiles)


COUNTS = """
import sys
from pathlib import Path
from schemas.meters import InFiles
from schemas.metrics import ACK, REQUESTS
ours = InFiles("receiver", Path(sys.argv[1]))
ours.add(REQUESTS, ("arcade", "200", "redis"), 5)
ours.observe(ACK, ("arcade",), 0.3)
ours.write()
print("written", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that has counted five requests, and lives until its input is closed."""
    command = [sys.executable, "-c", COUNTS, str(directory)]
    with subprocess.Popen(command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        yield process


def test_sums_do_not_fall_when_processes_end_and_their_files_do_not_pile_up(tmp_path: Path) -> None:
    requests = of("reservoir_requests_total", endpoint="arcade", status="200", kept="redis")
    acks = of("reservoir_ack_seconds_bucket", endpoint="arcade", le="0.4")
    with another_process(tmp_path), another_process(tmp_path) as killed:
        killed.kill()
        killed.wait()
        tidy(tmp_path)
        assert alive(tmp_path) == {"receiver": 1}
        assert (told(tmp_path)[requests], told(tmp_path)[acks]) == (10, 2)
    tidy(tmp_path)
    tidy(tmp_path)
    assert (told(tmp_path)[requests], told(tmp_path)[acks]) == (10, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counter_past.db", "histogram_past.db"]


def test_a_child_of_a_worker_counts_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    counts._ours.cache_clear()
    counts.retried("vault", "throttled")
    counts.write()
    child = os.fork()
    if not child:
        counts.retried("vault", "throttled")
        counts.write()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert len(list(tmp_path.glob("counter_*.db"))) == 2
    assert told(tmp_path) == {of("reservoir_retries_total", endpoint="vault", reason="throttled"): 2}
    counts._ours.cache_clear()


def test_an_answers_accounting_is_cheap(tmp_path: Path) -> None:
    """It takes 1.6 µs of the processor, and may take three; a busy machine is forgiven as much again."""
    tally = Tally(InFiles("receiver", tmp_path), Acks("redis://127.0.0.1:1", well=lambda: False), ["arcade"])
    rounds = timeit.repeat(
        lambda: tally.answered("arcade", 200, "redis", 0.004), number=2000, repeat=50, timer=time.process_time
    )
    assert min(rounds) / 2000 < 6e-6


# --- what the receiver counts ---------------------------------------------------------------------------------------


@contextmanager
def receiving(redis_url: str, **settings: Any) -> Iterator[httpx.Client]:
    app = build(Settings(redis_url=redis_url, secret=SECRET, config=CONFIG, **settings))
    with serving(app, SHORT) as url, httpx.Client(**PLAIN, timeout=PATIENCE, base_url=url) as client:
        yield client


def hook(endpoint: str) -> str:
    return path(SECRET, CONFIG.endpoints[endpoint])


def test_requests_are_counted_by_their_answer_and_where_they_were_kept(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    with receiving(redis_url, patience=PATIENCE, body_limit=100) as client:
        for _ in range(3):
            assert client.post(hook("arcade"), content=b"[]").status_code == 200
        assert client.get(hook("vault")).status_code == 200
        assert client.delete(hook("vault")).status_code == 405
        assert client.post(hook("vault"), content=bytes(101)).status_code == 413
        assert client.post("/hooks/made-up-by-a-stranger/0123").status_code == 404
        assert client.post("/hooks/arcade/0123").status_code == 404
    found = told(tmp_path)
    requests = {labels: count for (name, labels), count in found.items() if name == REQUESTS.name}
    assert {tuple(value for _, value in labels): count for labels, count in requests.items() if count} == {
        ("arcade", "redis", "200"): 3,
        ("vault", "", "200"): 1,
        ("vault", "", "405"): 1,
        ("vault", "", "413"): 1,
        ("", "", "404"): 2,
    }
    assert found[of("reservoir_ack_seconds_count", endpoint="arcade")] == 3
    assert of("reservoir_ack_seconds_count", endpoint="vault") not in found
    assert (
        found[of("reservoir_requests_total", endpoint="vault", status="503", kept="")] == 0
    )  # a rise begins somewhere


def test_bad_weather_is_counted_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DIRECTORY, str(tmp_path / "metrics"))
    away = "redis://127.0.0.1:1"
    with receiving(away, spool_dir=tmp_path / "spool") as client:
        assert client.post(hook("arcade"), content=b"[]").status_code == 200
    with receiving(away) as client:
        assert client.post(hook("arcade"), content=b"[]").status_code == 503
    found = told(tmp_path / "metrics")
    assert found[of("reservoir_requests_total", endpoint="arcade", status="200", kept="spool")] == 1
    assert found[of("reservoir_requests_total", endpoint="arcade", status="503", kept="")] == 1
    assert found[of("reservoir_ack_seconds_count", endpoint="arcade")] == 2


# --- reservoir:acks -------------------------------------------------------------------------------------------------


def lately(*slots: tuple[int, int, float], failures: int = 0, succeeded: bool = True) -> Lately:
    return Lately({slot: [count, slowest] for slot, count, slowest in slots}, failures, succeeded)


def test_receivers_add_to_the_same_minute() -> None:
    one = merged({}, lately((200, 3, 0.0101), (201, 1, 0.5)), now=1010)
    assert one == {
        "count": 4,
        "slowest_ms": 500.0,
        "failures_in_a_row": 0,
        "at": 1010,
        "slots": {"200": (3, 10.1), "201": (1, 500.0)},
    }
    another = merged(json.loads(json.dumps(one)), lately((201, 2, 0.7)), now=1012)
    assert (another["count"], another["slowest_ms"]) == (6, 700.0)
    later = merged(json.loads(json.dumps(another)), lately((213, 1, 0.002)), now=1066)
    assert (later["count"], later["slowest_ms"]) == (4, 700.0)
    at_last = merged(json.loads(json.dumps(later)), lately((220, 1, 0.002)), now=1105)
    assert (at_last["count"], at_last["slowest_ms"]) == (2, 2.0)


def test_failures_in_a_row_are_counted_across_receivers_until_one_succeeds() -> None:
    was = merged({}, lately((200, 2, 0.9), failures=2, succeeded=True), now=1000)
    was = merged(was, lately((200, 3, 0.9), failures=3, succeeded=False), now=1001)
    assert was["failures_in_a_row"] == 5
    assert merged(was, lately((200, 1, 0.1)), now=1002)["failures_in_a_row"] == 0


def test_the_receiver_tells_redis_how_senders_fare(redis_url: str, redis: redis_py.Redis) -> None:
    begun = time.time()
    for _ in range(2):  # two receivers, one after the other
        with receiving(redis_url, patience=PATIENCE) as client:
            assert client.post(hook("arcade"), content=b"[]").status_code == 200
    entries: dict[bytes, bytes] = redis.hgetall(ACKS)
    assert set(entries) == {b"arcade"}
    entry = json.loads(entries[b"arcade"])
    assert entry["count"] == 2
    assert entry["failures_in_a_row"] == 0
    assert 0 < entry["slowest_ms"] < PATIENCE * 1000
    assert begun <= entry["at"] <= time.time()


def test_what_redis_could_not_be_told_is_told_later(redis_url: str, redis: redis_py.Redis) -> None:
    well = False

    async def live() -> None:
        nonlocal well
        async with Acks(redis_url, well=lambda: well) as acks:
            for _ in range(4):
                acks.answered("arcade", 0.9, failed=True)
            await acks._tell()
            assert not redis.exists(ACKS)
            redis.set(ACKS, "no hash")
            well = True
            await acks._tell()
            redis.delete(ACKS)
            acks.answered("arcade", 0.1, failed=True)

    asyncio.run(live())
    assert json.loads(redis.hget(ACKS, "arcade"))["failures_in_a_row"] == 5


# --- what the workers count -----------------------------------------------------------------------------------------


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory into which this process counts as a worker does."""
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    counts._ours.cache_clear()
    yield tmp_path
    counts._ours.cache_clear()


def test_what_becomes_of_deliveries_is_counted_once_it_is_committed(engine: Engine, counting: Path) -> None:
    world = World(engine, [Endpoint(name="arcade", provider="synthesisvr", timezone="Europe/Vienna")])
    world.store = observed.Store(engine)
    world.parts = replace(world.parts, store=world.store)
    broken, fine = request("arcade", b"{"), request("arcade", b"[]", at=NOON - timedelta(seconds=3))
    world.deliver(broken, fine)
    counts.write()
    found = {labels: count for (name, labels), count in told(counting).items() if name == SETTLED.name}
    assert {tuple(value for _, value in labels): count for labels, count in found.items()} == {
        ("arcade", "malformed", "parked"): 1,
        ("arcade", "empty", "ignored"): 1,
    }


def test_lag_is_counted_where_rows_changed(engine: Engine, counting: Path) -> None:
    world = World(engine, [Endpoint(name="arcade", provider="synthesisvr", timezone="Europe/Vienna")])
    world.store = observed.Store(engine)
    world.parts = replace(world.parts, store=world.store)
    world.deliver(request("arcade", tell("synthesisvr", Step()).body, at=NOON - timedelta(seconds=3)))
    counts.write()
    found = told(counting)
    assert found[of("reservoir_deliveries_settled_total", endpoint="arcade", state="applied", reason="")] == 1
    assert found[of("reservoir_lag_seconds_sum", endpoint="arcade")] == 3


def test_each_opening_of_a_circuit_is_counted(redis: redis_py.Redis, counting: Path) -> None:
    circuits = observed.Circuits(redis)
    for _ in range(5):  # the third opens it; what fails behind the gate says nothing new
        circuits.failed("vault")
    circuits.failed("arcade", timedelta(seconds=30))
    counts.write()
    assert told(counting) == {
        of("reservoir_circuit_openings_total", endpoint="vault"): 1,
        of("reservoir_circuit_openings_total", endpoint="arcade"): 1,
    }


# --- looks ----------------------------------------------------------------------------------------------------------


def test_the_deadlines_stand_beside_the_answers() -> None:
    assert list(at_config(CONFIG)) == [(names.ACK_DEADLINE, ("arcade",), 2.0)]


def test_a_look_at_redis(redis: redis_py.Redis) -> None:
    seen = {(metric, labels): value for metric, labels, value in at_redis(redis, CONFIG, now())}
    assert seen[names.INBOX, ()] == seen[names.INBOX_OLDEST, ()] == seen[names.WORKERS, ()] == 0
    assert (names.HEARTBEAT_OLDEST, ()) not in seen
    ids = [new_id() for _ in range(3)]
    redis.hset(INBOX, mapping={str(identity): b"" for identity in ids} | {"no id of ours": b""})
    redis.lpush("lockme", "one", "two")
    circuits = Circuits(redis)
    for _ in range(3):
        circuits.failed("vault")
    moment = now() + timedelta(seconds=40)
    redis.set("reservoir:worker:worker.1@a", f"{moment.timestamp() - 5:.3f}")
    redis.set("reservoir:worker:worker.2@b", f"{moment.timestamp() - 25:.3f}")
    redis.mset({"reservoir:in-hand:worker.1@a": 0, "reservoir:in-hand:worker.2@b": 3})
    seen = {(metric, labels): value for metric, labels, value in at_redis(redis, CONFIG, moment)}
    assert seen[names.INBOX, ()] == 4
    assert seen[names.INBOX_OLDEST, ()] == pytest.approx(40, abs=5)
    assert (seen[names.QUEUE, ("lockme",)], seen[names.QUEUE, ("synthesisvr",)]) == (2, 0)
    assert (names.QUEUE, ("housekeeping",)) in seen
    assert (names.QUEUE, ("sweeps",)) in seen
    assert seen[names.IN_HAND, ()] == 3
    assert (seen[names.CIRCUIT_OPEN, ("vault",)], seen[names.CIRCUIT_OPEN, ("arcade",)]) == (1, 0)
    assert seen[names.WORKERS, ()] == 2
    assert seen[names.HEARTBEAT_OLDEST, ()] == pytest.approx(25, abs=0.1)


def test_a_look_at_postgres(engine: Engine) -> None:
    world = World(engine, [Endpoint(name="arcade", provider="synthesisvr", timezone="Europe/Vienna")])
    parked, settled = request("arcade", b"{"), request("arcade", b"[]")
    waiting = [request("arcade", b"[]", at=NOON - timedelta(minutes=minutes)) for minutes in (1, 3)]
    world.deliver(parked, settled)
    world.land(*waiting)
    world.change(waiting[0].id, state="retrying", reason="throttled")
    world.change(settled.id, acknowledge_at=NOON)
    seen = sorted(
        (metric.name, labels, value) for metric, labels, value in at_postgres(engine, NOON + timedelta(minutes=1))
    )
    assert seen == [
        ("reservoir_acknowledgements_outstanding", ("arcade",), 1),
        ("reservoir_deliveries_open", ("arcade", "parked", "malformed"), 1),
        ("reservoir_deliveries_open", ("arcade", "received", ""), 1),
        ("reservoir_deliveries_open", ("arcade", "retrying", "throttled"), 1),
        ("reservoir_deliveries_open_oldest_seconds", ("arcade", "parked"), 60),
        ("reservoir_deliveries_open_oldest_seconds", ("arcade", "received"), 240),
        ("reservoir_deliveries_open_oldest_seconds", ("arcade", "retrying"), 120),
    ]


def row(at: datetime, body: bytes = b"[]") -> Row:
    return Row(
        str(new_id()),
        "synthesisvr",
        packed("arcade", "POST", (at - EPOCH) // timedelta(microseconds=1), [(b"host", b"x")], body),
    )


def test_an_open_segment_without_requests_is_no_spool_in_use(tmp_path: Path) -> None:
    segment = Segment.create(tmp_path, 64 * 1024**2)
    segment.try_room()
    assert spooled(tmp_path) == Spooled()
    segment.close()


def test_a_look_at_the_spool_of_a_receiver_that_is_writing(tmp_path: Path) -> None:
    """While its process holds it, and nobody else may open it."""
    segment = Segment.create(tmp_path, 64 * 1024**2)
    since = now()
    # A body may look like a request of its own, even one of long ago.
    segment.append([row(since, b"reservoir/1 arcade POST 0000000000000001\r\n" + bytes(1024 * 1024))])
    segment.append([row(since + timedelta(seconds=1)) for _ in range(3000)])
    (tmp_path / "old.sqlite.corrupt").touch()
    found = spooled(tmp_path)
    assert (found.files, found.corrupt) == (1, 1)
    assert found.bytes > 1024 * 1024
    assert found.since is not None
    assert abs(found.since - since) < timedelta(seconds=1)
    seen = {metric.name: value for metric, _, value in at_spool(tmp_path, since + timedelta(seconds=60))}
    assert seen["reservoir_spool_oldest_seconds"] == pytest.approx(60, abs=1)
    segment.remove()


def test_what_is_away_is_told_as_such_and_keeps_nothing_else_from_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Engine, database_url: str
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1")
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv(DIRECTORY, raising=False)
    begun = time.monotonic()
    with looks(CONFIG, tmp_path) as ours:
        seen = [(metric.name, labels, value) for metric, labels, value in ours.samples(now())]
    assert time.monotonic() - begun < 8
    reachable = {labels: value for name, labels, value in seen if name == "reservoir_reachable"}
    assert reachable == {("redis",): 0, ("postgres",): 1, ("spool",): 1}
    assert "reservoir_inbox_requests" not in {name for name, _, _ in seen}
    assert "reservoir_spool_files" in {name for name, _, _ in seen}


# --- dashboard and alerts -------------------------------------------------------------------------------------------

BOARD = json.loads((PROJECT / "docs" / "grafana" / "reservoir.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((PROJECT / "docs" / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]

SUFFIXES = {Kind.COUNTER: ("",), Kind.GAUGE: ("",), Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
EXPOSED: dict[str, Metric] = {metric.name + suffix: metric for metric in ALL for suffix in SUFFIXES[metric.kind]}
"""The names of the samples that Prometheus has."""
OURS = re.compile(r"\b(reservoir_[a-z_]+)\b(?:\{([^}]*)\})?")
GIVEN_BY_PROMETHEUS = {"instance", "job", "le"}


def expressions() -> dict[str, str]:
    """Every expression of the dashboard and of the alerts, by where it stands."""
    panels = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in BOARD["panels"]
        for target in panel.get("targets", ())
    }
    variables = {each["name"]: each["definition"] for each in BOARD["templating"]["list"] if "definition" in each}
    return panels | variables | {rule["alert"]: rule["expr"] for rule in ALERTS}


@pytest.mark.parametrize("where", expressions())
def test_an_expression_speaks_of_metrics_and_labels_that_exist(where: str) -> None:
    expression = expressions()[where]
    found = OURS.findall(expression)
    assert found
    labels = GIVEN_BY_PROMETHEUS.copy()
    for name, matchers in found:
        metric = EXPOSED[name]
        asked = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers))
        assert asked <= set(metric.labels)
        labels |= set(metric.labels)
    grouped = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
    grouped += re.findall(r"label_values\([^,]*,([^)]*)\)", expression)
    named = {label.strip() for group in grouped for label in group.split(",")}
    assert named <= labels
    assert balanced(expression)


def balanced(expression: str) -> bool:
    """Whether brackets and quotes are closed, outside of quotes."""
    plain = re.sub(r'"[^"]*"', "", expression)
    for pair in ("()", "[]", "{}"):
        if plain.count(pair[0]) != plain.count(pair[1]):
            return False
    return '"' not in plain


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {EXPOSED[name] for panel in expressions().values() for name, _ in OURS.findall(panel)}
    assert {metric.name for metric in ALL} - {metric.name for metric in shown} == set()


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """No data source of one's own is wired in, no id of a panel is there twice, no panel lies over another."""
    (source, *_) = BOARD["templating"]["list"]
    assert (source["name"], source["type"], source["query"]) == ("datasource", "datasource", "prometheus")
    assert set(re.findall(r'"uid": "([^"]*)"', json.dumps(BOARD))) == {"reservoir", "${datasource}"}
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [
        (x, y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_whole_and_has_its_page(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"Reservoir[A-Za-z]+", rule["alert"])
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert {"summary", "description", "runbook"} == set(rule["annotations"])
    assert rule["annotations"]["runbook"] == f"docs/metrics.md#{rule['alert'].lower()}"
    page = (PROJECT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert f"\n### {rule['alert']}\n" in page
    told = re.findall(r"\$labels\.([a-z_]+)", json.dumps(rule["annotations"]))
    kept = {label for group in re.findall(r"by \(([^)]*)\)", rule["expr"]) for label in group.split(", ")}
    assert set(told) <= kept


@pytest.mark.skipif(which("promtool") is None, reason="promtool is not installed")
def test_promtool_agrees() -> None:
    file = PROJECT / "docs" / "prometheus" / "alerts.yml"
    checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


# --- a real run ------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(240)
def test_a_real_run_exposes_every_metric_with_its_labels(tmp_path: Path) -> None:
    """As `reservoir up` starts them, with an API that is away for a while and a body that is none; read as Prometheus
    reads it."""
    ledger, clock = Ledger(), Clock(datetime.now(UTC).replace(microsecond=0), 2000.0)

    def venue(kind: Any, name: str, weather: Weather) -> Any:
        return kind(endpoint=name, hook_url="", ledger=ledger, clock=clock, rng=Random(name), weather=weather)

    vault, studio = venue(Lockme, "vault", Weather(api_down=1.0)), venue(ReserveKit, "studio", Weather())
    forgetful = venue(Lockme, "forgetful", Weather())
    counted = tmp_path / "metrics"
    wanted = {metric.name for metric in ALL}

    async def live() -> dict[str, set[frozenset[str]]]:
        environment = {DIRECTORY: str(counted)}
        async with Trial(
            [vault, studio, forgetful], ledger, tmp_path, environment=environment, scale={"metrics": 0}
        ) as trial:
            forgetful.fail_acknowledgements(1000)
            with command(trial, counted) as url:
                async with httpx.AsyncClient(**PLAIN, timeout=PATIENCE) as client:
                    assert (await client.post(studio.hook_url, content=b"{")).status_code == 200
                    assert (await client.post(f"{trial.url}/hooks/vault/0")).status_code == 404
                    days = [asyncio.create_task(one.busy_day(2)) for one in (vault, studio, forgetful)]
                    found: dict[str, set[frozenset[str]]] = {}
                    deadline = time.monotonic() + 120
                    while wanted - set(found) and time.monotonic() < deadline:
                        await asyncio.sleep(1)
                        for name, labels in exposed((await client.get(url)).text).items():
                            found.setdefault(name, set()).update(labels)
                        if "reservoir_circuit_openings_total" in found:
                            vault.weather.api_down = 0.0
                    for day in days:
                        day.cancel()
                    await asyncio.gather(*days, return_exceptions=True)
                    return found

    found = asyncio.run(live())
    assert wanted - set(found) == set()
    labels = {metric.name: {frozenset(metric.labels)} for metric in ALL}
    assert {name: found[name] for name in labels} == labels


@contextmanager
def command(trial: Trial, counted: Path) -> Iterator[str]:
    """`reservoir metrics` beside a running installation; the URL that it says."""
    environment = {
        **os.environ,
        "REDIS_URL": trial.redis_url(),
        "DATABASE_URL": trial.database_url(),
        DIRECTORY: str(counted),
    }
    where = ["--config", str(trial.folder / "reservoir.toml"), "--state-dir", str(trial.folder / "state")]
    program = str(Path(sys.executable).with_name("reservoir"))
    with subprocess.Popen(
        [program, "metrics", "--port", "0", *where], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("metrics: http://127.0.0.1:")
        try:
            yield line.removeprefix("metrics: ").strip()
        finally:
            process.terminate()
    assert process.returncode == 0


def exposed(text: str) -> dict[str, set[frozenset[str]]]:
    """Names of metrics that have a sample, with the names of the labels of their samples."""
    found: dict[str, set[frozenset[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            metric = EXPOSED.get(sample.name)
            if metric is not None:
                found.setdefault(metric.name, set()).add(frozenset(sample.labels) - {"le"})
    return found
