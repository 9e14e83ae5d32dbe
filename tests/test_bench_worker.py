"""The workers' side of the benchmark: what it gives them, what it makes of what it sees, and one small run of each."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import psutil
import psycopg
import pytest
from redis import Redis
from sqlalchemy import Engine

from bench import growth, latency, worker
from bench.figures import NO_OP, PGBENCH, RESERVOIR
from bench.floor import NOTHING, messages
from bench.ground import VENUES, Ground, GroundFailed
from bench.growth import SMALL_NAME, NoRoom, check_room
from bench.history import History
from bench.latency import WARMUP, Kept, Post, Way, at_rate, figure, ways
from bench.others import _rest
from bench.plans import Explained
from bench.stuff import Stuff, fill, recorded
from bench.worker import _compare, burst, committed, floor_line, script
from console.processes import procfile
from console.services import Embedded
from ingest.waiting import GROUP
from schemas.delivery import INBOX, RawDelivery, new_id, now
from schemas.endpoints import Config, parse
from workers.greed import nudged

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def config() -> Config:
    return parse({"endpoints": {name: dict(table) for name, table in VENUES.items()}}, "test", {})


@pytest.fixture(scope="module")
def stuff(config: Config) -> Stuff:
    return recorded(config, 400)


# --- what they are given ---------------------------------------------------------------------------------------


def test_the_venues_send_in_equal_parts_and_in_order(stuff: Stuff, config: Config) -> None:
    sent = Counter(config.endpoints[delivery.endpoint].provider for delivery in stuff.deliveries)
    assert set(sent) == {"reservekit", "synthesisvr", "timekit", "checkfront"}
    assert all(100 <= count <= 130 for count in sent.values())
    assert [one.id for one in stuff.deliveries] == sorted({one.id for one in stuff.deliveries})
    assert sorted(one.received_at for one in stuff.deliveries) == [one.received_at for one in stuff.deliveries]


def test_a_booking_is_told_of_more_than_once(stuff: Stuff) -> None:
    assert 0 < stuff.booked < len(stuff.deliveries)


def test_the_inbox_is_filled_as_the_receiver_leaves_it(stuff: Stuff, redis: Redis, redis_url: str) -> None:
    """Every request is there, and named by one message in its provider's queue; a message names a group at most."""
    fill(redis_url, stuff)
    there = {UUID(field.decode()): packed for field, packed in redis.hgetall(INBOX).items()}
    assert [RawDelivery.unpack(one.id, there[one.id]) for one in stuff.deliveries] == list(stuff.deliveries)
    named: Counter[UUID] = Counter()
    for provider in ("reservekit", "synthesisvr", "timekit", "checkfront"):
        for message in redis.lrange(provider, 0, -1):
            ids = nudged(message)
            assert ids is not None
            assert 1 <= len(ids) <= GROUP
            named.update(ids)
    assert named == Counter(one.id for one in stuff.deliveries)


def test_messages_of_the_floor_are_celerys_own_with_an_id_and_a_tag_each() -> None:
    made = [json.loads(message) for message in messages(3)]
    assert [message["headers"]["task"] for message in made] == [NOTHING] * 3
    assert len({message["headers"]["id"] for message in made}) == 3
    assert len({message["properties"]["delivery_tag"] for message in made}) == 3
    assert {len(json.loads(base64.b64decode(message["body"]))[0]) for message in made} == {1}


def test_the_floor_runs_on_the_workers_own_line() -> None:
    ours, floor = procfile()["worker"].split(), floor_line().split()
    assert [(one, other) for one, other in zip(ours, floor, strict=True) if one != other] == [
        ("workers.app", "bench.floor")
    ]


def test_pgbench_writes_what_the_sample_has(config: Config) -> None:
    words = script({"endpoint": "e", "body": "b", "status": "confirmed", "customer_name": "Ewa"})
    assert "delivery_id, status, customer_name)" in words
    assert ":delivery, :status, :customer_name)" in words
    assert words.rstrip().endswith("END;")
    assert "customer_phone" not in words


def test_pgbenchs_clients_may_meet_in_a_new_booking(services: Embedded, database_url: str, tmp_path: Path) -> None:
    """Each transaction is about one of few that are new, mostly; a client that gives up fails the run."""
    sample = {"endpoint": "e", "provider": "lockme", "headers": "[]", "body": "b", "event": "{}", "status": "confirmed"}
    file, onwards = tmp_path / "pgbench.sql", "random(:bookings, :bookings + 60)\n\\set bookings :bookings + 16"
    file.write_text(script(sample).replace("random(1, :bookings)", onwards), encoding="utf-8")
    server = services.servers["PostgreSQL"].process
    assert server is not None
    program = Path(psutil.Process(server.pid).cmdline()[0]).with_name("pgbench")
    length = ("--client", "32", "--jobs", "2", "--transactions", "100")
    assert committed(program, file, database_url, sample | {"bookings": "1"}, length) > 0
    with psycopg.connect(database_url) as connection:
        counted = connection.execute("SELECT count(*) FROM booking_events").fetchone()
    assert counted == (3200,)


# --- what is made of it ----------------------------------------------------------------------------------------


def test_a_table_that_is_not_as_the_venues_know_it_is_no_result(
    stuff: Stuff, engine: Engine, database_url: str
) -> None:
    with pytest.raises(GroundFailed, match=f"of {stuff.booked} bookings {stuff.booked} are lost"):
        _compare(database_url, stuff)


def post(at: float, status: int | None = 200) -> Post:
    return Post(began=at, acked=0.002, status=status)


def kept(at: float, *, settled: bool = True) -> Kept:
    return Kept(id=new_id(), received=at - 0.006, committed=at, settled=settled)


def test_times_run_from_the_first_byte_to_the_commit_and_the_warm_up_does_not_count() -> None:
    posts = {str(number): post(100.0 + number) for number in range(13)}
    rows = {request: kept(one.began + 0.010 * (int(request) + 1)) for request, one in posts.items()}
    found = figure(posts, rows, rate=1.0, cpu_ms=1.0, rss_mb=2.0)
    counted = [10.0 * (number + 1) for number in range(13) if number >= WARMUP]
    assert found.p50_ms == pytest.approx(counted[len(counted) // 2 - 1])
    assert found.p99_ms == pytest.approx(counted[-1])
    assert found.per_second == pytest.approx(1 / 1.01)
    assert (found.kept, found.acked, found.lost) == (13, 13, 0)
    assert found.load == "1 a second"


def test_what_was_acknowledged_and_is_not_settled_is_lost() -> None:
    posts = {str(number): post(100.0 + number) for number in range(9)}
    rows = {request: kept(one.began + 1, settled=request != "7") for request, one in posts.items() if request != "8"}
    found = figure(posts, rows, rate=1.0, cpu_ms=1.0, rss_mb=2.0)
    assert (found.kept, found.acked, found.lost) == (7, 9, 2)


def test_a_request_that_was_refused_makes_no_figure() -> None:
    with pytest.raises(GroundFailed, match="1 of 2 requests were not answered with 200"):
        figure({"a": post(1.0), "b": post(2.0, status=503)}, {}, rate=1.0, cpu_ms=1.0, rss_mb=1.0)


def test_the_pieces_of_a_way_add_up_and_only_whole_ways_are_told() -> None:
    """One that travelled in another's message was taken and begun at once, and tells nothing of the queue."""
    row = Kept(id=new_id(), received=1.001, committed=1.020, settled=True)
    together, unheard = replace(row, id=new_id()), replace(row, id=new_id())
    heard = {
        row.id: {"task-received": 1.004, "task-started": 1.005},
        together.id: {"task-received": 1.005, "task-started": 1.005},
    }
    posts = {"a": post(1.0), "b": post(1.0), "c": post(1.0)}
    (way,) = ways(posts, {"a": row, "b": together, "c": unheard}, heard)
    assert [round(getattr(way, name), 6) for name in Way.__slots__] == [2.0, 1.0, 3.0, 1.0, 15.0]


def test_what_we_start_is_not_the_work_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it has ended: of a machine that stands still, our own work is taken away."""
    still = psutil.cpu_times()
    monkeypatch.setattr(psutil, "cpu_times", lambda: still)
    before = _rest()
    subprocess.run([sys.executable, "-c", "sum(range(20_000_000))"], check=True)
    assert before - _rest() > 0.1


# --- growth ----------------------------------------------------------------------------------------------------


def test_a_history_that_does_not_fit_is_refused_with_a_mend(tmp_path: Path) -> None:
    check_room(tmp_path, 1000)
    with pytest.raises(NoRoom, match=r"takes about 3000000 GB below .* give --folder on another disk, or fewer"):
        check_room(tmp_path, 10**12)


def plan(node: str, table: str, pages: int) -> Explained:
    shape = {
        "Node Type": node,
        "Relation Name": table,
        "Shared Hit Blocks": pages,
        "Shared Read Blocks": 1,
        "Actual Total Time": 1.5,
        "Total Cost": 100.0,
    }
    return Explained(statement="SELECT", plan=shape, generic=shape, text="")


@pytest.mark.parametrize(
    ("node", "table", "rate", "good"),
    [
        ("Index Scan", "deliveries", 85.0, True),
        ("Index Scan", "deliveries", 84.0, False),
        ("Seq Scan", "deliveries", 100.0, False),
        ("Seq Scan", "tokens", 100.0, True),
    ],
)
def test_a_history_is_borne_where_nothing_is_read_whole_and_the_rate_holds(
    config: Config, node: str, table: str, rate: float, good: bool
) -> None:
    history = History.of(list(config), 5000, 1000, now())
    plans = {
        SMALL_NAME: {"sweep": [plan("Index Scan", table, 9)]},
        growth.FULL_NAME: {"sweep": [plan(node, table, 10), plan("Index Scan", table, 20)]},
    }
    told = growth.summary(history, 10**9, [(100.0, rate)] * 3, plans)
    assert told["good"] is good
    assert [(cost["small"], cost["full"], cost["full_ms"]) for cost in told["costs"]] == [(10, 32, 3.0)]
    assert growth.as_markdown(told).count("| sweep | 2 | 10 | 32 | 3.0 |") == 1


# --- whole -----------------------------------------------------------------------------------------------------


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    with Ground(tmp_path) as made:
        yield made


@pytest.mark.services
def test_a_small_burst_is_applied_wholly_beside_the_other_contenders(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "PGBENCH_SECONDS", 1)
    lines: list[str] = []
    figures = burst(ground, 200, 1, lines.append)
    assert [one.contender for one in figures] == [RESERVOIR, NO_OP, PGBENCH]
    assert all(one.per_second > 0 for one in figures)
    assert figures[0].acked == figures[0].kept
    assert figures[0].acked is not None
    assert figures[0].acked >= 200
    assert len(lines) == 4


@pytest.mark.services
def test_a_few_seconds_end_to_end(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "WARMUP", 1.0)
    lines: list[str] = []
    found = at_rate(ground, 20.0, 2.0, lines.append)
    assert found.acked == found.kept
    assert found.acked is not None
    assert found.acked > 20
    assert found.p50_ms is not None
    assert found.p99_ms is not None
    assert 0 < found.p50_ms <= found.p99_ms
    assert found.disk_ms
    assert lines[-1].startswith("latency: medians in ms of ")
