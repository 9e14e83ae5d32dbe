"""The benchmark: how rounds become numbers, what a report says, that its client counts right, and one short round."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import eventually

import bench.receiver
from bench import load as client
from bench import report
from bench.__main__ import PARTS, QUICK, Size, _parser, _size
from bench.contenders import BODY, OTHERS, Kept, contenders, receiver, request
from bench.cores import by_core, cores, here, interrupted
from bench.disk import SmallWrites
from bench.figures import (
    BARE,
    NO_OP,
    PGBENCH,
    RESERVOIR,
    SEND_TASK,
    THREADED,
    Figure,
    InboxMemory,
    Results,
    Soak,
    kind_of,
    middle,
    ratio,
)
from bench.ground import Ground, Running
from bench.load import Asked, Load, answer, load, quantile
from bench.others import Others
from bench.plot import Bar, NoPlot, draw, panels
from bench.receiver import Refused, answered, inbox_memory, refused, rounds, soak
from bench.targets import TARGETS, last_line, missed, numbers
from console.processes import procfile
from schemas.delivery import INBOX

# --- from rounds to numbers ------------------------------------------------------------------------------------


def figure(contender: str, per_second: float, number: int = 0, load: str = "32 connections", **more: Any) -> Figure:
    return Figure(contender=contender, load=load, round=number, per_second=per_second, **more)


def acks(load: str, ours: float, bare: float, usual: float) -> list[Figure]:
    """One round, in which an answer takes as long as its rate says."""
    return [
        figure(name, rate, load=load, p50_ms=1000 / rate, p99_ms=2000 / rate, others_share=ours / 100_000)
        for name, rate in ((RESERVOIR, ours), (BARE, bare), (SEND_TASK, usual))
    ]


WHOLE = Results(
    figures=[
        *acks("32 connections", 9700, 10_000, 700),
        *acks("256 connections", 9000, 10_000, 600),
        *(
            figure(name, rate, load="burst of 50000")
            for name, rate in ((RESERVOIR, 3300), (NO_OP, 600), (PGBENCH, 9000))
        ),
        figure(RESERVOIR, 99.8, load="100 a second", p50_ms=11.24, p99_ms=61.5, disk_ms=41.0),
    ],
    soak=Soak(requests=1_000_000, first=52.0, largest=54.0, last=53.0, kept=1_000_000, acked=1_000_000),
    inbox=InboxMemory(raw=1000, of_the_hash=1100.0, of_redis=1520.0),
)


def test_ratios_are_taken_within_a_round() -> None:
    """A machine that becomes slower and slower changes none of them, whatever the medians say."""
    drifting = [
        figure(name, rate / (number + 1), number)
        for number in range(5)
        for name, rate in ((RESERVOIR, 90), (BARE, 100))
    ]
    assert ratio(drifting, "32 connections", RESERVOIR, BARE) == pytest.approx(0.9)
    late = [figure(RESERVOIR, 90), figure(RESERVOIR, 10, 1), figure(BARE, 100), figure(BARE, 20, 1), figure(BARE, 4, 2)]
    assert ratio(late, "32 connections", RESERVOIR, BARE) == pytest.approx((0.9 + 0.5) / 2)
    assert middle(late, "32 connections", BARE) == 20


def test_one_round_of_three_that_went_wrong_does_not_show() -> None:
    figures = [figure(RESERVOIR, rate, number) for number, rate in enumerate((95, 3, 97))]
    figures += [figure(BARE, 100, number) for number in range(3)]
    assert ratio(figures, "32 connections", RESERVOIR, BARE) == pytest.approx(0.95)


def test_a_round_in_which_the_client_was_the_limit_does_not_count() -> None:
    """It would say of two servers that they are equally fast."""
    figures = [figure(RESERVOIR, 95, 0, client_share=0.3), figure(BARE, 100, 0, client_share=0.31)]
    limited = [figure(RESERVOIR, 200, 1, client_share=0.81), figure(BARE, 200, 1, client_share=0.99)]
    assert ratio([*figures, *limited], "32 connections", RESERVOIR, BARE) == pytest.approx(0.95)
    assert ratio(limited, "32 connections", RESERVOIR, BARE) is None


def test_a_load_has_a_kind() -> None:
    assert [kind_of(load) for load in ("32 connections", "burst of 50000", "100 a second")] == [
        "connections",
        "burst",
        "a second",
    ]
    with pytest.raises(ValueError, match="no load"):
        kind_of("heavy")


def test_what_is_lost_is_what_was_acknowledged_and_is_not_there() -> None:
    """In a round, and in the soak. More than acknowledged is no loss: the last answers may not have reached us."""
    assert WHOLE.lost == 0
    assert Results(figures=[figure(RESERVOIR, 1, kept=7, acked=10), figure(RESERVOIR, 1, 1, kept=9, acked=8)]).lost == 3
    assert WHOLE.soak is not None
    assert Results(soak=replace(WHOLE.soak, kept=999_998)).lost == 2


def test_the_worst_load_gives_the_number() -> None:
    found = numbers(WHOLE)
    assert found == pytest.approx(
        {
            "ack_ratio": 0.9,
            "ack_p99_ms": 2000 / 9000,
            "ack_p99_ratio": 10 / 9,
            "vs_send_task": 9700 / 700,
            "apply_ratio": 5.5,
            "apply_vs_pgbench": 3300 / 9000,
            "e2e_p50_ms": 11.24,
            "e2e_p99_ms": 61.5,
            "soak_rss_mb": 54.0,
            "soak_growth": 53 / 52,
            "inbox_share": 0.8,
        }
    )
    assert set(found) == {target.name for target in TARGETS} | {"ack_p99_ms"}


def test_the_last_line_is_for_programs() -> None:
    """Its form is a promise; what was not run is left out."""
    assert last_line(numbers(WHOLE)) == (
        "bench: ack_ratio=0.900 ack_p99_ms=0.222 vs_send_task=13.9 apply_ratio=5.50 e2e_p50_ms=11.2 e2e_p99_ms=61.5"
    )
    only = Results(figures=[one for one in WHOLE.figures if kind_of(one.load) == "a second"])
    assert last_line(numbers(only)) == "bench: e2e_p50_ms=11.2 e2e_p99_ms=61.5"
    assert last_line(numbers(Results())) == "bench:"


def test_a_missed_target_has_a_line_of_its_own() -> None:
    assert missed(numbers(WHOLE)) == [
        "missed: ack_ratio=0.900, at least 0.95 is wanted "
        "(durable acknowledgements a second, of the bare route's answers)"
    ]
    assert missed({"e2e_p99_ms": 75.0, "ack_ratio": 0.95}) == []
    assert [line.split("=")[0] for line in missed({"e2e_p99_ms": 75.1, "soak_rss_mb": 91.0})] == [
        "missed: e2e_p99_ms",
        "missed: soak_rss_mb",
    ]


# --- the report ------------------------------------------------------------------------------------------------

FACTS = {
    "date": "2026-11-21",
    "machine": "2 cores",
    "processor": "a processor",
    "kernel": "6.1",
    "libraries": {"starlette": "1.10.0"},
    "servers": {"Redis": "7.0"},
    "file_system": "ext4",
    "sync_ms": 0.8,
    "client_core": 1,
    "server_core": 0,
}


def test_a_report_can_be_read_again() -> None:
    """By the part that writes the docs, after it has been a file."""
    told = json.loads(json.dumps(report.as_json(WHOLE, FACTS)))
    assert report.results_of(told) == WHOLE
    assert told["last_line"] == last_line(numbers(WHOLE))
    assert report.results_of(report.as_json(Results(), FACTS)) == Results(figures=[])


def test_the_tables_are_tables() -> None:
    """Every row of a table has as many cells, and every contender has a row under every load."""
    text = report.as_markdown(report.as_json(WHOLE, FACTS))
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert [len({line.count("|") for line in table}) for table in tables] == [1, 1]
    measured, targets = tables
    assert len(measured) == 2 + len(WHOLE.figures)
    assert "| 256 connections | reservoir | 9,000 | 0.900 | 0.111 | 0.222 | 1.11 |" in measured[5]
    assert [line.split(" | ")[-1] for line in targets[2:]] == ["no |", *["yes |"] * (len(TARGETS) - 1)]
    assert "1,000,000 of 1,000,000 found" in text
    assert "Others used 9% of a core meanwhile (median over the rounds; at most 10%)." in text
    assert "ten times a second, in ms, round by round: 61.5 and 41.0." in text
    assert "503" not in text
    assert report.as_markdown(report.as_json(Results(), FACTS)).count("|") == 0


def test_who_was_refused_is_told_beside_the_tables() -> None:
    text = report.as_markdown(report.as_json(Results(figures=[figure(RESERVOIR, 9.0, number=1, refused=1_256)]), FACTS))
    assert "could keep them in time: 1,256 at 32 connections in round 2 (reservoir)." in text


def test_the_document_gets_the_tables_between_its_marks(tmp_path: Path) -> None:
    """As often as one likes; what stands around them stays."""
    told, page = tmp_path / "bench-report.json", tmp_path / "performance.md"
    told.write_text(json.dumps(report.as_json(WHOLE, FACTS)), encoding="utf-8")
    page.write_text(f"# Performance\n\n{report.BEGIN}\nold\n{report.END}\n\nThe end.\n", encoding="utf-8")
    for _ in range(2):
        assert report.main([str(told), "--docs", str(page)]) == 0
    tables = report.as_markdown(report.as_json(WHOLE, FACTS)).strip()
    expected = f"# Performance\n\n{report.BEGIN}\n\n{tables}\n\n{report.END}\n\nThe end.\n"
    assert page.read_text(encoding="utf-8") == expected
    page.write_text(f"{report.END} the wrong way round {report.BEGIN}", encoding="utf-8")
    with pytest.raises(ValueError, match="marks"):
        report.main([str(told), "--docs", str(page)])


def test_the_picture_shows_what_was_measured(tmp_path: Path) -> None:
    shares, times, applied = panels(WHOLE)
    assert shares.bars[0] == Bar(label="reservoir, 32 connections", value=0.97, ours=True)
    assert [len(panel.bars) for panel in (shares, times, applied)] == [6, 6, 3]
    assert panels(Results(figures=[figure(RESERVOIR, 1, load="100 a second", p99_ms=1.0)])) == []
    with pytest.raises(NoPlot, match="nothing"):
        draw([], tmp_path / "none.png")


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    draw(panels(WHOLE), tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_a_quick_run_can_still_be_told_how_much() -> None:
    words = _parser().parse_args(["--quick", "--rounds", "3", "--only", "soak", "--only", "receiver"])
    assert _size(words) == replace(QUICK, rounds=3)
    assert words.only == ["soak", "receiver"]
    assert _size(_parser().parse_args(["--rate-seconds", "7.5"])) == Size(rate_seconds=7.5)
    assert list(PARTS) == ["receiver", "soak", "worker", "latency"]


# --- the client ------------------------------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 5\r\n\r\nsorry"
UNABLE = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n"
REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"

Reply = Callable[[int], list[bytes]]
"""The number of a request → what the server says, piece by piece; nothing at all closes the connection."""


class Server(asyncio.Protocol):
    """Counts whole requests, and answers as it is told."""

    taken = 0

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._heard = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._heard += data
        assert REQUEST.startswith(self._heard), "one request at a time on a connection"
        if self._heard == REQUEST:
            self._heard = b""
            Server.taken += 1
            self._say(self._reply(Server.taken))

    def _say(self, pieces: list[bytes]) -> None:
        if not pieces:
            self._transport.close()
            return
        for place, piece in enumerate(pieces):
            asyncio.get_running_loop().call_later(0.002 * place, self._transport.write, piece)


@asynccontextmanager
async def serving(reply: Reply) -> Any:
    Server.taken = 0
    server = await asyncio.get_running_loop().create_server(lambda: Server(reply), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def asked(reply: Reply, **how: Any) -> Load:
    async def told() -> Load:
        async with serving(reply) as port:
            return await load("127.0.0.1", port, REQUEST, Asked(**how))

    return asyncio.run(told())


def test_the_client_counts_every_answer() -> None:
    """So many as it was asked for, over all connections; the server has seen as many."""
    told = asked(lambda number: [OK], connections=3, warmup=0.0, requests=100)
    assert (told.acked, dict(told.others), Server.taken) == (100, {}, 100)
    assert 0 < told.p50_ms <= told.p99_ms <= told.max_ms
    assert told.per_second == pytest.approx(100 / told.seconds)


def test_the_window_is_as_long_as_it_shall_be() -> None:
    """Answers before and after it are acknowledgements too, and no part of the rate."""
    told = asked(lambda number: [OK], connections=2, warmup=0.1, seconds=0.2)
    assert told.acked == Server.taken
    assert told.seconds == pytest.approx(0.2)
    assert 0 < told.per_second * told.seconds < told.acked
    assert 0 < told.client_share <= 1.1


def test_the_client_takes_answers_in_pieces_and_with_a_body() -> None:
    pieces = [b"HTTP/1.1 200 OK\r\nContent-Le", b"ngth: 10\r\n", b"\r\n", b'{"LPU', b'SH":1']
    told = asked(lambda number: pieces, connections=2, warmup=0.0, requests=6)
    assert (told.acked, dict(told.others)) == (6, {})


@pytest.mark.parametrize(
    ("third", "end"),
    [([FAILED], "500"), ([], client.CUT), ([b"no HTTP\r\n\r\n"], client.GARBLED), ([OK + OK], client.GARBLED)],
    ids=["failure", "hang-up", "nonsense", "two-answers"],
)
def test_the_client_notices_what_is_no_200(third: list[bytes], end: str) -> None:
    """And goes on where it can."""
    told = asked(lambda number: third if number == 3 else [OK], connections=2, warmup=0.0, requests=10)
    assert (told.acked, dict(told.others)) == (9, {end: 1})
    with pytest.raises(Refused, match=rf"reservoir: .*1 × {end}"):
        answered(json.dumps(told_as_json(told)), "reservoir")


def test_a_503_is_an_answer_and_no_acknowledgement() -> None:
    """A few of them are told beside the rate; a round of many says nothing."""
    told = asked(lambda number: [UNABLE] if number in (3, 4) else [OK], connections=2, warmup=0.0, requests=200)
    assert (told.acked, dict(told.others)) == (198, {client.NOT_NOW: 2})
    assert told.per_second == pytest.approx(198 / told.seconds)
    assert refused(answered(json.dumps(told_as_json(told)), "reservoir")) == 2
    told = asked(lambda number: [UNABLE] if number < 10 else [OK], connections=2, warmup=0.0, requests=200)
    with pytest.raises(Refused, match=r"reservoir: .*9 × 503"):
        answered(json.dumps(told_as_json(told)), "reservoir")


def test_the_client_does_not_wait_for_ever() -> None:
    told = asked(lambda number: [b" "] if number == 1 else [OK], connections=2, warmup=0.0, seconds=0.5, patience=0.2)
    assert dict(told.others) == {client.SILENT: 1}
    assert told.acked == Server.taken - 1


def told_as_json(told: Load) -> dict[str, Any]:
    return {name: getattr(told, name) for name in Load.__dataclass_fields__}


def test_what_the_client_prints_is_what_it_found() -> None:
    told = asked(lambda number: [OK], connections=1, warmup=0.0, requests=3)
    assert answered(json.dumps(told_as_json(told)), "reservoir") == told
    with pytest.raises(Refused, match=r"the client failed: 127\.0\.0\.1:1: Connect call failed"):
        answered("127.0.0.1:1: Connect call failed\n", "reservoir")


@given(status=st.integers(100, 599), body=st.binary(max_size=50), cut=st.integers(0, 200), more=st.binary(max_size=5))
def test_an_answer_is_whole_when_it_is_whole(status: int, body: bytes, cut: int, more: bytes) -> None:
    """Not a byte before; and what follows is not taken for a part of it."""
    said = b"HTTP/1.1 %d Word\r\ndate: now\r\nContent-Length: %d\r\nserver: x\r\n\r\n%s" % (status, len(body), body)
    assert answer(said) == (str(status), len(said))
    assert answer(said + more) == (str(status), len(said))
    if cut < len(said):
        assert answer(said[:cut]) is None


@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0, 1))
def test_a_quantile_is_one_of_the_values(values: list[float], share: float) -> None:
    """At least that share of them is not above it, and with any smaller value it would not be."""
    ordered = sorted(values)
    found = quantile(ordered, share)
    below = [value for value in ordered if value < found]
    assert sum(value <= found for value in ordered) >= share * len(ordered)
    assert not below or len(below) < share * len(ordered)
    assert quantile([], share) == 0.0


# --- the contenders, really ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with Ground(tmp_path_factory.mktemp("ground"), with_postgres=False) as made:
        yield made


@pytest.mark.services
def test_all_are_asked_the_same_by_servers_of_the_same_kind(ground: Ground) -> None:
    """About 500 bytes of a booking; the line of the Procfile, but for the app and our own way of HTTP."""
    ours, bare, usual, threaded = contenders(ground)[:4]
    assert ours.command == procfile()["web"]
    line = ours.command.replace("--http ingest.protocol:Hooks", "--http httptools")
    assert bare.command == line.replace("ingest.app:create", "bench.apps:bare")
    assert usual.command == line.replace("ingest.app:create", "bench.apps:send_task")
    assert threaded.command == usual.command.replace("send_task", "send_task_in_threads")
    assert ours.request == bare.request == usual.request == threaded.request
    assert re.match(rb"POST /hooks/studio-berlin/[0-9a-f]{40} HTTP/1.1\r\n", ours.request)
    head, _, body = request("PUT", "/LPUSH/key").partition(b"\r\n\r\n")
    assert 450 < len(BODY) < 550
    assert body == BODY
    assert b"\r\nContent-Length: %d\r\n" % len(BODY) in head


INTERRUPTS = """\
           CPU0       CPU2
 28:         %d          0 PCI-MSIX-0000:00:01.0   0-edge      virtio0-config
 36:          7         %d PCI-MSIX-0000:00:02.0   1-edge      virtio1-req.0
LOC:      90000          0   Local timer interrupts
ERR:          0
"""


def test_the_disks_interrupts_belong_to_redis_and_the_client() -> None:
    """Its core is the one on which they fell; where they tell nothing, the first."""
    quiet, busy, elsewhere = INTERRUPTS % (5, 11), INTERRUPTS % (6, 411), INTERRUPTS % (405, 11)
    assert by_core(busy) == {0: 13, 2: 411}
    assert interrupted(quiet, busy, [0, 2]) == 2
    assert interrupted(quiet, elsewhere, [0, 2]) == 0
    assert interrupted(quiet, INTERRUPTS % (5, 111), [0, 2]) == 0
    assert interrupted("", "", [1, 3]) == 1
    assert interrupted(quiet, busy, [0, 1]) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its core")
def test_two_cores_are_told_apart(tmp_path: Path) -> None:
    """Both ours, and we may go where we could go before."""
    before = os.sched_getaffinity(0)
    chosen = cores(tmp_path)
    assert os.sched_getaffinity(0) == before
    assert chosen == (None, None) if len(before) == 1 else len(before & set(chosen)) == 2


@pytest.mark.services
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process choose its core")
def test_what_is_measured_shares_its_core_with_nobody(ground: Ground) -> None:
    """Redis has the client's; where there is one core for all, nothing is kept from it."""
    ours, measured = ground.client_core, ground.server_core
    everywhere = sorted(os.sched_getaffinity(0))
    with ground.running("idle", "sleep 60", core=measured, kind="web") as idle, here(ours):
        assert eventually(lambda: idle.family()[0].name() == "sleep")
        assert idle.family()[0].cpu_affinity() == (everywhere if measured is None else [measured])
        assert ground.server("Redis").cpu_affinity() == (everywhere if ours is None else [ours])
        assert os.sched_getaffinity(0) == (set(everywhere) if ours is None else {ours})
        assert ours != measured or ours is None
    assert not idle.alive
    assert sorted(os.sched_getaffinity(0)) == everywhere


@pytest.mark.services
def test_nothing_of_an_installation_outside_reaches_a_process(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its Redis nor its keys: with one of them a worker would ask a real API."""
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere/reservoir")
    monkeypatch.setenv("RESERVOIR_STUDIO_BERLIN_API_KEY", "outside")
    given_to_worker = ground.environment("worker")
    assert given_to_worker["REDIS_URL"] == ground.redis_url
    assert "RESERVOIR_STUDIO_BERLIN_API_KEY" not in given_to_worker
    assert "elsewhere" not in " ".join(given_to_worker.values())


@pytest.mark.long
@pytest.mark.services
def test_a_short_round_finds_all_that_was_acknowledged(ground: Ground) -> None:
    """By every contender that keeps something; two rounds, so that both orders are run."""
    said: list[str] = []
    measured = Results(figures=rounds(ground, contenders(ground), 2, 0.5, said.append, connections=[4], warmup=0.2))
    names = [one.contender for one in measured.figures]
    assert names[:4] == [RESERVOIR, BARE, SEND_TASK, THREADED]
    assert names[len(names) // 2 :] == names[: len(names) // 2][::-1]
    assert len(said) == len(names)
    for one in measured.figures:
        assert one.acked is not None
        assert one.acked > 0
        assert one.kept == (None if one.contender == BARE else one.acked)
        # On a busy machine the window of half a second may pass without an answer.
        assert (one.per_second > 0) == ((one.p99_ms or 0) > 0)
        assert (one.rss_mb or 0) > 1
        assert one.others_share is not None


@pytest.mark.services
def test_what_a_process_and_its_children_have_used_is_known(ground: Ground) -> None:
    """Also what those have used that have ended; others are whoever is left over."""
    with ground.running(
        "busy", "sh -c \"python -c 'for _ in range(3000000): pass'; sleep 60; :\"", core=None, kind="web"
    ) as busy:
        assert eventually(lambda: names(busy) == ["sh", "sleep"])
        assert busy.cpu_seconds() > 0.05
        assert busy.rss_mb() > 1
    assert (busy.cpu_seconds(), busy.rss_mb()) == (0.0, 0.0)


def names(running: Running) -> list[str]:
    """None while one of them is just ending."""
    with suppress(psutil.NoSuchProcess):
        return [one.name() for one in running.family()]
    return []


def test_others_are_whoever_we_have_not_started() -> None:
    """Here one that has lost its parents, and ends by itself after half a second of work."""
    work = "import time\nwhile time.process_time() < 0.5: pass"
    others = Others()
    began = time.monotonic()
    subprocess.run(["sh", "-c", f"setsid {sys.executable} -c '{work}' & "], check=True)
    assert eventually(lambda: others.share() * (time.monotonic() - began) > 0.4)


def test_a_bystander_feels_a_disk_that_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its slowest write is told, and nothing of it is left."""
    syncs = iter((0.0, 0.15))
    monkeypatch.setattr("os.fdatasync", lambda _: time.sleep(next(syncs, 0.0)))
    with SmallWrites(tmp_path) as writes:
        assert eventually(lambda: writes.slowest > 0.14)
    assert list(tmp_path.iterdir()) == []


def test_a_bystander_that_cannot_write_does_not_praise_the_disk(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), SmallWrites(tmp_path / "nowhere"):
        pass


@pytest.mark.services
def test_what_is_acknowledged_and_not_there_is_lost(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is counted: here they lie where nobody looks."""
    monkeypatch.setattr(bench.receiver, "FOUND_WITHIN", 0.2)
    elsewhere = replace(receiver(ground), kept=Kept(db=0, key="elsewhere"))
    measured = Results(figures=rounds(ground, [elsewhere], 1, 0.2, lambda line: None, connections=[2], warmup=0.0))
    assert measured.figures[0].kept == 0
    assert measured.lost == measured.figures[0].acked
    assert measured.lost > 0


@pytest.mark.services
def test_the_memory_is_watched_while_the_inbox_is_emptied(ground: Ground) -> None:
    """What was taken out counts as found, and nothing is left behind."""
    said: list[str] = []
    soaked, waiting = soak(ground, 1500, said.append), inbox_memory(ground, said.append, 500)
    assert (soaked.kept, soaked.acked) == (1500, 1500)
    assert 10 < soaked.first <= soaked.largest
    assert waiting.raw == len(receiver(ground).request)
    assert waiting.raw * 0.5 < waiting.of_the_hash <= waiting.of_redis < 4 * waiting.raw
    assert len(said) == 2


@pytest.mark.services
def test_every_round_begins_with_an_empty_redis(ground: Ground) -> None:
    with ground.redis() as ours, ground.redis(OTHERS) as theirs:
        ours.hset(INBOX, "id", b"left")
        theirs.lpush("celery", b"left")
        ground.empty_redis()
        assert ours.dbsize() == theirs.dbsize() == 0
        assert ours.config_get("appendfsync") == {"appendfsync": "always"}
        with ground.file_left_alone():
            assert ours.config_get("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": "0"}
        assert ours.config_get("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": "100"}
