"""Alarms over a real PostgreSQL and a real Redis: what is seen, what is kept, who is told, and how often."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from redis import Redis
from serving import PATIENCE, eventually, free_port, silent_server
from sqlalchemy import Engine, insert, select, update
from test_alarms_channels import KEY, Desk

from console.alarms import watch as watching
from console.alarms.diary import Diary
from console.alarms.findings import ALARMS, Finding, Judgement
from console.alarms.incidents import News
from console.alarms.ledger import FIRST, FOR, LEASE, LONGEST, adopt, backoff, claim, listed, not_sent, note, sent
from console.alarms.looking import Eyes, redis_client
from console.alarms.settings import WEBHOOK_SECRET, ToCommand
from console.alarms.stopgap import KEY as STOPGAP
from console.alarms.stopgap import Stopgap
from console.cli import main
from schemas.acks import ACKS
from schemas.delivery import INBOX, new_id, now
from schemas.endpoints import Endpoint, load
from workers.database import engine as make_engine
from workers.tables import deliveries, incidents, notices

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SILENT = Finding(kind="silence", subject="arcade", title="arcade is silent", detail="for long")
EVERYTHING = frozenset(ALARMS)
ARCADE = Endpoint(name="arcade", provider="synthesisvr", timezone="Europe/Vienna")


def judged(*findings: Finding) -> Judgement:
    return Judgement(findings=findings, kinds=EVERYTHING, host="here")


def rows(engine: Engine, table: Any) -> list[Any]:
    with engine.connect() as connection:
        return list(connection.execute(select(table).order_by(table.c.id)))


def delivery(received_at: datetime, **changes: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "endpoint": "arcade",
        "provider": "synthesisvr",
        "received_at": received_at,
        "method": "POST",
        "headers": [],
        "body": b"",
        "state": "applied",
        "reason": None,
        "origin": "webhook",
        "next_attempt_at": None,
        "nudged_at": None,
        "replayed_at": None,
        **changes,
    }


def keep(engine: Engine, *these: dict[str, Any]) -> None:
    with engine.begin() as connection:
        connection.execute(insert(deliveries), list(these))


# --- the ledger --------------------------------------------------------------------------------------------------


def test_an_incident_is_one_row_and_one_notice_for_each_channel(engine: Engine) -> None:
    for minute in range(3):
        note(engine, judged(SILENT), ["webhook", "email"], NOON + minute * MINUTE)
    note(engine, judged(), ["webhook", "email"], NOON + 3 * MINUTE)
    note(engine, judged(), ["webhook", "email"], NOON + 4 * MINUTE)
    (incident,) = rows(engine, incidents)
    assert (incident.opened_at, incident.last_seen_at) == (NOON, NOON + 2 * MINUTE)
    assert (incident.closed_at, incident.notified_at) == (NOON + 3 * MINUTE, NOON)
    told = [(notice.channel, notice.content["type"]) for notice in rows(engine, notices)]
    opened, recovered = "incident.opened", "incident.recovered"
    assert sorted(told) == sorted((channel, type_) for channel in ("webhook", "email") for type_ in (opened, recovered))


def test_processes_that_watch_at_once_tell_once(engine: Engine) -> None:
    """Eight of them, ten looks each, at the same moments."""
    together = threading.Barrier(8)

    def look() -> None:
        for minute in range(10):
            together.wait()
            note(engine, judged(SILENT), ["webhook"], NOON + minute * MINUTE)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(rows(engine, incidents)) == 1
    assert len(rows(engine, notices)) == 1


def test_a_notice_is_in_one_pair_of_hands(engine: Engine) -> None:
    note(engine, judged(SILENT), ["webhook"], NOON)
    first = claim(engine, "webhook", NOON)
    assert first is not None
    assert claim(engine, "webhook", NOON) is None
    assert claim(engine, "email", NOON) is None
    again = claim(engine, "webhook", NOON + LEASE)  # who held it has died
    assert again is not None
    assert (again.notice.id, again.attempts) == (first.notice.id, 2)
    sent(engine, again, NOON + LEASE)
    assert claim(engine, "webhook", NOON + 10 * LEASE) is None


def test_what_fails_is_tried_again_for_a_day(engine: Engine) -> None:
    note(engine, judged(SILENT), ["webhook"], NOON)
    at: datetime | None = NOON
    tries = 0
    while at is not None:
        claimed = claim(engine, "webhook", at)
        assert claimed is not None
        assert claim(engine, "webhook", at) is None
        tries += 1
        last, at = at, not_sent(engine, claimed, "status 500", at)
    assert FOR - 2 * LONGEST < last - NOON < FOR
    assert tries > 90
    (notice,) = rows(engine, notices)
    assert (notice.due_at, notice.sent_at, notice.error) == (None, None, "status 500")
    assert [backoff(number) for number in (1, 2, 3, 50)] == [FIRST, 2 * FIRST, 4 * FIRST, LONGEST]


def test_a_recovery_waits_for_the_alarm_on_the_same_channel(engine: Engine) -> None:
    note(engine, judged(SILENT), ["webhook", "email"], NOON)
    failed = claim(engine, "webhook", NOON)
    assert failed is not None
    not_sent(engine, failed, "status 500", NOON)
    note(engine, judged(), ["webhook", "email"], NOON + FIRST / 2)
    assert claim(engine, "webhook", NOON + FIRST / 2) is None
    other = claim(engine, "email", NOON + FIRST / 2)
    assert other is not None
    assert other.notice.content["type"] == "incident.opened"
    again = claim(engine, "webhook", NOON + FIRST)
    assert again is not None
    assert again.notice.id == failed.notice.id
    sent(engine, again, NOON + FIRST)
    then = claim(engine, "webhook", NOON + FIRST)
    assert then is not None
    assert then.notice.content["type"] == "incident.recovered"


def test_the_open_ones_are_listed_first_with_what_became_of_their_notices(engine: Engine) -> None:
    note(engine, judged(SILENT), ["webhook"], NOON)
    claimed = claim(engine, "webhook", NOON)
    assert claimed is not None
    not_sent(engine, claimed, "status 500", NOON)
    other = Finding(kind="parked", subject="desk", title="3 parked", detail="", amount=3)
    note(engine, judged(SILENT, other), ["webhook"], NOON + MINUTE)
    note(engine, judged(other), ["webhook"], NOON + 2 * MINUTE)
    found = list(listed(engine, NOON))
    assert [(row["kind"], row["closed_at"] is None) for row in found] == [("parked", True), ("silence", False)]
    assert (found[1]["waiting"], found[1]["sent"], found[1]["error"]) == (2, 0, "status 500")
    assert [row["kind"] for row in listed(engine, NOON + 60 * MINUTE)] == ["parked"]


# --- looking -----------------------------------------------------------------------------------------------------


@pytest.fixture
def eyes(engine: Engine, redis_url: str, tmp_path: Path) -> Iterator[Eyes]:
    with redis_client(redis_url) as client:
        yield Eyes(endpoints={"arcade": ARCADE}, engine=engine, redis=client, spool=tmp_path / "spool", host="here")


def test_what_is_seen_of_the_deliveries(eyes: Eyes, engine: Engine) -> None:
    keep(
        engine,
        delivery(NOON - 30 * MINUTE),
        delivery(NOON - 5 * MINUTE, origin="poll"),
        delivery(NOON - 4 * MINUTE, endpoint="gone"),
        delivery(NOON - 9 * MINUTE, state="parked", reason="malformed"),
        delivery(NOON - 90 * MINUTE, state="parked", reason="no-such-booking", nudged_at=NOON - 8 * MINUTE),
        delivery(NOON - 600 * MINUTE, state="received", next_attempt_at=NOON, replayed_at=NOON - 7 * MINUTE),
        delivery(NOON - 500 * MINUTE, state="retrying", reason="throttled", next_attempt_at=NOON),
    )
    seen = eyes.look(NOON).postgres
    assert seen is not None
    assert seen.heard["arcade"].last == NOON - 9 * MINUTE
    assert (seen.parked["arcade"].count, seen.parked["arcade"].latest) == (2, NOON - 8 * MINUTE)
    assert seen.parked["arcade"].reasons == ("malformed", "no-such-booking")
    waits = {state: (found.count, found.oldest) for (_, state), found in seen.unsettled.items()}
    assert waits == {"received": (1, NOON - 7 * MINUTE), "retrying": (1, NOON - 500 * MINUTE)}
    assert seen.unsettled["synthesisvr", "retrying"].reasons == ("throttled",)


def test_what_is_seen_of_redis(eyes: Eyes, redis: Redis) -> None:
    first = new_id()
    redis.hset(INBOX, mapping={str(first): "x", str(new_id()): "x", "no-id": "x"})
    redis.hset(ACKS, "arcade", json.dumps({"slowest_ms": 3.5, "failures_in_a_row": 1, "at": NOON.timestamp()}))
    redis.set("reservoir:worker:alive@here", f"{NOON.timestamp():.3f}", ex=120)
    redis.set("reservoir:worker:ended@here", f"{NOON.timestamp():.3f}", ex=30)
    redis.set("reservoir:worker:odd@here", "x", ex=120)
    seen = eyes.look(NOON).redis
    assert seen is not None
    assert seen.inbox == 3
    assert seen.inbox_oldest is not None
    assert abs(seen.inbox_oldest - now()) < MINUTE
    assert seen.acks["arcade"].slowest == timedelta(milliseconds=3.5)
    assert {name: worker.beats for name, worker in seen.workers.items()} == {"alive@here": True, "ended@here": False}


def test_what_is_away_is_named_and_does_not_stop_the_rest(eyes: Eyes, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("no directory")
    nowhere = redis_client(f"redis://127.0.0.1:{free_port()}/0")
    no_base = make_engine(f"postgresql://127.0.0.1:{free_port()}/none")
    seen = Eyes(endpoints={}, engine=no_base, redis=nowhere, spool=tmp_path / "spool", host="here").look(NOON)
    assert (seen.postgres, seen.redis, seen.spool) == (None, None, None)
    assert set(seen.why) == {"postgres", "redis", "spool"}
    assert eyes.look(NOON).postgres is not None


def test_what_hangs_is_as_good_as_away() -> None:
    """Servers that accept and never answer hold a look up for seconds, not for ever."""
    begun = time.monotonic()
    with silent_server() as port, redis_client(f"redis://127.0.0.1:{port}/0") as hung:
        no_base = make_engine(f"postgresql://127.0.0.1:{port}/none")
        seen = Eyes(endpoints={}, engine=no_base, redis=hung, spool=None, host="here").look(NOON)
    assert (seen.postgres, seen.redis) == (None, None)
    assert time.monotonic() - begun < PATIENCE / 2


def test_the_rhythm_comes_from_the_webhooks_of_the_last_weeks(engine: Engine) -> None:
    """Six a day at the venue's noon, for five weeks: a silence in the night is nothing, one at noon is."""
    first = datetime(2026, 6, 1, 10, 0, tzinfo=UTC)  # noon in Vienna
    keep(
        engine,
        *(
            delivery(first + timedelta(days=day, minutes=10 * number))
            for day in range(35)
            for number in range(6)
            for _ in range(2)
        ),
        *(delivery(first + timedelta(days=day, hours=12), origin="poll") for day in range(35)),
    )
    diary = Diary({"arcade": ARCADE})
    at = first + timedelta(days=35)
    with engine.connect() as connection:
        rhythm = diary.heard(connection, at)["arcade"].rhythm
        assert rhythm.week is not None
        assert len(rhythm.signs) == 35 * 6
        assert [round(rhythm.week[24 + hour]) for hour in (11, 12, 13, 22)] == [0, 6, 0, 0]
        keep(engine, delivery(at + timedelta(minutes=1)))
        heard = diary.heard(connection, at + timedelta(minutes=2))["arcade"]
        assert (heard.last, len(heard.rhythm.signs)) == (at + timedelta(minutes=1), 35 * 6)
        later = diary.heard(connection, at + timedelta(minutes=20))["arcade"]
        assert len(later.rhythm.signs) == 35 * 6 + 1


# --- PostgreSQL is away ------------------------------------------------------------------------------------------

AWAY = Finding(kind="postgres", title="PostgreSQL is away", detail="it takes no connections")


@dataclass
class Bell:
    """A program that notes each notice it is given; it can be broken."""

    file: Path

    @property
    def target(self) -> ToCommand:
        text = "import sys; open(sys.argv[1], 'a').write(sys.stdin.read() + '\\n')"
        return ToCommand(words=(sys.executable, "-c", text, str(self.file)))

    @property
    def rung(self) -> list[str]:
        if not self.file.exists():
            return []
        return [json.loads(line)["type"].removeprefix("incident.") for line in self.file.read_text().splitlines()]


@pytest.fixture
def bell(tmp_path: Path) -> Bell:
    return Bell(tmp_path / "bell")


def test_that_postgres_is_away_is_told_once_by_all_processes(redis: Redis, engine: Engine, bell: Bell) -> None:
    """Also after a restart; and its recovery is told once."""
    targets = {"command": bell.target}
    first, second = Stopgap(redis, targets, "here"), Stopgap(redis, targets, "there")
    for minute in range(3):
        for each in (first, second):
            each.away(AWAY, NOON + minute * MINUTE)
    restarted = Stopgap(redis, targets, "here")
    for minute in (3, 4):
        restarted.away(AWAY, NOON + minute * MINUTE)
    assert bell.rung == ["opened"]
    told: list[News | None] = []
    for each in (restarted, second):
        each.back(engine, NOON + 5 * MINUTE)
        told += [news for _, news in note(engine, judged(), ["command"], NOON + 5 * MINUTE)]
    assert told == [News.RECOVERED]
    (incident,) = rows(engine, incidents)
    assert (incident.kind, incident.opened_at, incident.closed_at) == ("postgres", NOON, NOON + 5 * MINUTE)
    assert [notice.content["type"] for notice in rows(engine, notices)] == ["incident.recovered"]
    assert not redis.exists(STOPGAP)


def test_a_process_that_starts_afterwards_finishes_what_another_left(redis: Redis, engine: Engine, bell: Bell) -> None:
    died = Stopgap(redis, {"command": bell.target}, "here")
    for minute in (0, 1):
        died.away(AWAY, NOON + minute * MINUTE)
    Stopgap(redis, {"command": bell.target}, "here").back(engine, NOON + 2 * MINUTE)
    ((_, news),) = note(engine, judged(), ["command"], NOON + 2 * MINUTE)
    assert news is News.RECOVERED
    assert bell.rung == ["opened"]


def test_a_short_absence_of_postgres_is_not_told(redis: Redis, engine: Engine, bell: Bell) -> None:
    stopgap = Stopgap(redis, {"command": bell.target}, "here")
    stopgap.away(AWAY, NOON)
    stopgap.away(AWAY, NOON + MINUTE / 4)
    stopgap.back(engine, NOON + MINUTE / 2)
    assert bell.rung == []
    assert rows(engine, incidents) == []


def test_with_redis_away_too_each_process_tells(engine: Engine, bell: Bell) -> None:
    nowhere = redis_client(f"redis://127.0.0.1:{free_port()}/0")
    for name in ("here", "there"):
        stopgap = Stopgap(nowhere, {"command": bell.target}, name)
        for minute in range(3):
            stopgap.away(AWAY, NOON + minute * MINUTE)
    assert bell.rung == ["opened", "opened"]


def test_a_channel_that_failed_meanwhile_is_told_afterwards(redis: Redis, engine: Engine, bell: Bell) -> None:
    targets = {"command": bell.target, "broken": ToCommand(words=("/nowhere/page",))}
    stopgap = Stopgap(redis, targets, "here")
    for minute in range(3):
        stopgap.away(AWAY, NOON + minute * MINUTE)
    assert bell.rung == ["opened"]
    stopgap.back(engine, NOON + 3 * MINUTE)
    assert [notice.channel for notice in rows(engine, notices)] == ["broken"]


def test_an_incident_that_is_over_is_not_brought_back(engine: Engine, redis: Redis) -> None:
    stopgap = Stopgap(redis, {}, "here")
    for minute in range(2):
        stopgap.away(AWAY, NOON + minute * MINUTE)
    incident = stopgap.incident
    assert incident is not None
    adopt(engine, incident, ["command"], NOON + 2 * MINUTE, "here")
    note(engine, judged(), [], NOON + 2 * MINUTE)
    adopt(engine, incident, ["command"], NOON + 3 * MINUTE, "there")
    (row,) = rows(engine, incidents)
    assert row.closed_at == NOON + 2 * MINUTE
    assert len(rows(engine, notices)) == 1


# --- the whole process -------------------------------------------------------------------------------------------


@pytest.fixture
def venue(tmp_path: Path, bell: Bell) -> Path:
    """A configuration with a command, a webhook and an endpoint that may be silent for an hour."""
    file = tmp_path / "reservoir.toml"
    words = json.dumps(list(bell.target.words))
    file.write_text(
        f'[alarms]\ncommand = {words}\nwebhook = "http://127.0.0.1:9/"\n'
        '[endpoints.arcade]\nprovider = "synthesisvr"\ntimezone = "Europe/Vienna"\nsilence = "1h"\n',
        encoding="utf-8",
    )
    return file


@contextmanager
def process(file: Path, database_url: str, redis_url: str) -> Iterator[None]:
    """`run` in a thread, looking all the time."""
    over = threading.Event()
    environment = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, WEBHOOK_SECRET: KEY}
    words = (load(file, {}), None, environment, over, 0.05)
    thread = threading.Thread(target=watching.run, args=words)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def beating(redis: Redis) -> None:
    redis.set("reservoir:worker:worker@here", f"{now().timestamp():.3f}", ex=120)


def test_two_processes_and_a_restart_tell_once_and_a_broken_channel_stops_nobody(
    venue: Path, bell: Bell, engine: Engine, database_url: str, redis_url: str, redis: Redis
) -> None:
    """The webhook leads nowhere; the command is told all the same, once, and of the recovery too."""
    beating(redis)
    keep(engine, delivery(now() - timedelta(hours=2)))
    with process(venue, database_url, redis_url), process(venue, database_url, redis_url):
        assert eventually(lambda: bell.rung == ["opened"])
    with process(venue, database_url, redis_url):
        assert eventually(lambda: any(row.attempts and row.error for row in rows(engine, notices)))
        keep(engine, delivery(now()))
        assert eventually(lambda: len(bell.rung) == 2)
    assert bell.rung == ["opened", "recovered"]
    (incident,) = rows(engine, incidents)
    assert incident.closed_at is not None


def test_a_look_survives_a_table_that_is_not_there(
    venue: Path, bell: Bell, engine: Engine, database_url: str, redis_url: str, redis: Redis
) -> None:
    """As before a migration; when the tables are there it is told."""
    beating(redis)
    keep(engine, delivery(now() - timedelta(hours=2)))
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE incidents RENAME TO elsewhere")
    with process(venue, database_url, redis_url):
        assert not eventually(lambda: bell.rung, within=1)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO incidents")
        assert eventually(lambda: bell.rung == ["opened"])


def test_the_command_ends_when_it_is_asked_to(venue: Path, database_url: str, redis_url: str) -> None:
    environment = {**os.environ, "DATABASE_URL": database_url, "REDIS_URL": redis_url, WEBHOOK_SECRET: KEY}
    run = "from console.cli import main; main()"
    command = [sys.executable, "-c", run, "alarms", "watch", "--config", str(venue)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as started:
        assert started.stderr is not None
        line = ""
        while '"event": "watching"' not in line:
            line = started.stderr.readline()
            assert line, "it has ended"
        started.send_signal(signal.SIGTERM)
        assert started.wait(timeout=30) == 0
        said = line + started.stderr.read()
    assert "Traceback" not in said
    assert KEY not in said


# --- the commands ------------------------------------------------------------------------------------------------

Reservoir = Callable[..., tuple[int, str, str]]


@pytest.fixture
def reservoir(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Reservoir:
    """`reservoir alarms …` over the test's database."""
    monkeypatch.chdir(tmp_path)
    bare = {name: value for name, value in os.environ.items() if not re.match(r"RESERVOIR_|DATABASE_|REDIS_", name)}

    def run(*words: str, **environment: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["reservoir", "alarms", *words])
        whole = {**bare, "DATABASE_URL": database_url, **environment}
        with mock.patch.dict(os.environ, whole, clear=True), pytest.raises(SystemExit) as ended:
            main()
        return (int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_a_trial_tells_what_each_channel_answered(reservoir: Reservoir, venue: Path, bell: Bell) -> None:
    desk = Desk()
    with desk.open() as url:
        venue.write_text(venue.read_text().replace("http://127.0.0.1:9/", url), encoding="utf-8")
        code, said, _ = reservoir("test", **{WEBHOOK_SECRET: KEY})
    assert (code, said) == (0, "webhook: sent (status 204)\ncommand: sent (exit code 0)\n")
    assert [content["type"] for content in desk.came] == ["alarms.test"]
    code, said, _ = reservoir("test", **{WEBHOOK_SECRET: KEY})
    assert (code, said) == (1, "webhook: NOT sent (ConnectError)\ncommand: sent (exit code 0)\n")


def test_a_trial_without_channels_says_what_to_add(reservoir: Reservoir, venue: Path) -> None:
    venue.write_text('[endpoints.arcade]\nprovider = "checkfront"\ntimezone = "UTC"\n', encoding="utf-8")
    code, _, said = reservoir("test")
    assert code == 1
    assert "add [alarms]" in said


def test_a_mistake_in_the_table_is_one_line(reservoir: Reservoir, venue: Path) -> None:
    code, _, said = reservoir("test")
    assert code == 2
    assert said.startswith(f"reservoir: {WEBHOOK_SECRET}: is not set")
    assert len(said.splitlines()) == 1


def test_incidents_are_listed(reservoir: Reservoir, venue: Path, engine: Engine) -> None:
    assert reservoir("list")[1] == "no incident is open, and there was none lately\n"
    note(engine, judged(SILENT), ["command"], now())
    code, said, _ = reservoir("list")
    assert code == 0
    assert "arcade is silent" in said
    (row,) = json.loads(reservoir("list", "--json")[1])
    assert (row["kind"], row["told"]) == ("silence", "0 sent, 1 waiting")


def test_the_rhythm_of_an_endpoint_is_shown(reservoir: Reservoir, venue: Path, engine: Engine) -> None:
    venue.write_text(venue.read_text().replace('silence = "1h"\n', ""), encoding="utf-8")
    assert "never" in reservoir("rhythm", "arcade")[1]
    begin = now() - timedelta(weeks=5)
    keep(engine, *(delivery(begin + timedelta(hours=hour)) for hour in range(5 * 168)))
    code, said, _ = reservoir("rhythm", "arcade")
    assert code == 0
    assert re.search(r"^00 +1\.0( +[01]\.\d){6}", said, re.MULTILINE)
    assert re.search(r"allowed gap  \d+\.\d h", said)
    facts = json.loads(reservoir("rhythm", "arcade", "--json")[1])
    assert len(facts["week"]) == 168
    code, _, said = reservoir("rhythm", "arcde")
    assert (code, "did you mean arcade?" in said) == (1, True)


def test_an_override_is_shown_as_one(reservoir: Reservoir, venue: Path, engine: Engine) -> None:
    keep(engine, delivery(now() - timedelta(hours=2)))
    said = reservoir("rhythm", "arcade")[1]
    assert "from the configuration" in said
    assert "allowed gap  1.0 h" in said
    assert "since " in said


def test_what_is_sent_is_never_lost_with_its_sender(engine: Engine) -> None:
    """A sender that dies between sending and noting it sends again, under the same id."""
    note(engine, judged(SILENT), ["webhook"], NOON)
    first = claim(engine, "webhook", NOON)
    assert first is not None
    with engine.begin() as connection:
        connection.execute(update(notices).values(due_at=NOON))
    second = claim(engine, "webhook", NOON)
    assert second is not None
    assert second.notice == first.notice
