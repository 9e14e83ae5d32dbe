"""`reservoir doctor`: each thing that an installation stands on is broken once, and it says so with the mend."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
import redis as redis_py
from serving import eventually, free_port, listening, serving
from sqlalchemy import Engine, text, update
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from test_login import Room
from test_login import room as room
from test_up import Up, running
from weather import OwnRedis, own_redis_in, refusing
from world import NOON, VENUES, World, request

from console.doctor import access, place, servers, work
from console.doctor.command import Wish, examined
from console.doctor.finding import Finding, Verdict, span
from console.services import Embedded
from ingest.segment import Segment
from ingest.waiting import Row
from schemas.delivery import INBOX, new_id, now
from schemas.endpoints import SECRET, Endpoint
from workers import sweep
from workers.database import engine as make_engine
from workers.inbox import Inbox
from workers.migrate import upgrade
from workers.registry import discover
from workers.tables import deliveries
from workers.tokens import Token

OK, WARN, FAIL = Verdict.OK, Verdict.WARN, Verdict.FAIL
CONFIG = '[endpoints.studio]\nprovider = "timekit"\ntimezone = "Europe/Oslo"\n'


def by_name(findings: list[Finding]) -> dict[str, Verdict]:
    return {finding.name: finding.verdict for finding in findings}


def says(finding: Finding, verdict: Verdict, *words: str) -> None:
    """How it stands, what was seen; whatever is not well has its mend in the same line."""
    line = f"{finding.text} → {finding.mend}"
    assert (finding.verdict, bool(finding.mend)) == (verdict, verdict is not OK), line
    assert all(word in line for word in words), line
    assert "\n" not in line


# --- the configuration -------------------------------------------------------------------------------------------


def configured(folder: Path, document: str = CONFIG) -> Path:
    file = folder / "reservoir.toml"
    file.write_text(document, encoding="utf-8")
    file.chmod(0o644)
    return file


def test_a_good_configuration(tmp_path: Path) -> None:
    finding, config = place.configuration(configured(tmp_path))
    says(finding, OK, "1 endpoint")
    assert config is not None
    says(place.variables(config, {"RESERVOIR_STUDIO_API_KEY": "key", "PATH": "/bin"}), OK)


def test_a_configuration_that_is_not_there_or_not_right(tmp_path: Path) -> None:
    finding, config = place.configuration(tmp_path / "none.toml")
    says(finding, FAIL, "no such file")
    assert config is None
    finding, _ = place.configuration(configured(tmp_path, '[endpoints.studio]\nprovider = "timekti"\n'))
    says(finding, FAIL, "did you mean timekit?")


@pytest.mark.parametrize("loose", [stat.S_IWGRP, stat.S_IWOTH])
def test_a_configuration_that_others_can_change(tmp_path: Path, loose: int) -> None:
    file = configured(tmp_path)
    file.chmod(0o644 | loose)
    says(place.configuration(file)[0], WARN, f"chmod go-w {file}")


def test_a_secret_of_no_endpoint(tmp_path: Path) -> None:
    """A mistyped name is read by nobody; its value is not shown."""
    _, config = place.configuration(configured(tmp_path))
    assert config is not None
    finding = place.variables(config, {"RESERVOIR_STUDO_API_KEY": "very-secret"})
    says(finding, WARN, "RESERVOIR_STUDO_API_KEY")
    assert "very-secret" not in str(finding)


def test_the_installation_s_secret(tmp_path: Path) -> None:
    says(place.secret(tmp_path, {}), WARN, "none yet")
    says(place.secret(tmp_path, {"RESERVOIR_SECRET": "short"}), FAIL, "too short")
    says(place.secret(tmp_path, {"RESERVOIR_SECRET": "0123456789abcdef"}), OK)
    file = tmp_path / "secret"
    file.write_text("0123456789abcdef")
    file.chmod(0o600)
    says(place.secret(tmp_path, {}), OK)
    file.chmod(0o640)
    says(place.secret(tmp_path, {}), FAIL, f"chmod 600 {file}")


# --- the spool ---------------------------------------------------------------------------------------------------


def test_a_spool_that_is_well(tmp_path: Path) -> None:
    """Also before it is made; an open segment without a request in it is nothing that waits."""
    folder = tmp_path / "spool"
    assert set(by_name(place.spool(folder, 1, now())).values()) <= {OK, FAIL}  # the test's own disk may be a tmpfs
    says(place.spool_writable(folder), OK, "can be made")
    folder.mkdir()
    segment = Segment.create(folder, 1024**2)
    segment.try_room()
    says(place.spool_writable(folder), OK, "takes files")
    says(place.spool_content(folder, now()), OK, "nothing waits")
    segment.remove()


def test_no_spool(tmp_path: Path) -> None:
    assert place.spool_dir(tmp_path, {"RESERVOIR_SPOOL_DIR": "off"}) is None
    (finding,) = place.spool(None, 1, now())
    says(finding, WARN, "503")
    assert place.spool_dir(tmp_path, {}) == tmp_path / "spool"


def test_a_spool_that_cannot_be_written() -> None:
    """Not even by root."""
    says(place.spool_writable(Path("/proc/spool")), FAIL, "cannot be written", "RESERVOIR_SPOOL_DIR")


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no tmpfs to try")
def test_a_spool_that_a_restart_empties() -> None:
    says(place.spool_disk(Path("/dev/shm/spool")), FAIL, "tmpfs", "RESERVOIR_SPOOL_DIR")
    says(place.spool_disk(Path("/proc/none")), OK, "proc")


def test_a_disk_without_the_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit beyond what is free; and a disk that is all but full."""
    free = shutil.disk_usage(tmp_path).free
    says(place.spool_room(tmp_path / "spool", free // 2), OK)
    says(place.spool_room(tmp_path / "spool", free * 2), WARN, "lower RESERVOIR_SPOOL_LIMIT")
    monkeypatch.setattr(place, "LEAST", free * 2)
    says(place.spool_room(tmp_path / "spool", 1), FAIL, "are free")


def test_what_lies_in_the_spool(tmp_path: Path) -> None:
    """Requests that wait for Redis are no harm for a moment; and what could not be read is somebody's affair."""
    segment = Segment.create(tmp_path, 16 * 1024**2)
    segment.append([_row(b"x" * 200_000) for _ in range(3)])
    says(place.spool_content(tmp_path, now()), WARN, "wait in 1 segments", "Redis takes writes")
    says(place.spool_content(tmp_path, now() + timedelta(hours=2)), FAIL, "for 2 h")
    segment.remove()
    (tmp_path / "0190.sqlite.corrupt").touch()
    says(place.spool_content(tmp_path, now()), WARN, "0190.sqlite.corrupt")


def _row(packed: bytes) -> Row:
    return Row(id=str(new_id()), queue="timekit", packed=packed)


# --- Redis -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OwnRedis]:
    with own_redis_in(tmp_path) as own:
        yield own


def test_a_redis_as_it_should_be(own: OwnRedis) -> None:
    with servers.redis_client(own.url) as client:
        findings = servers.redis(client)
    assert set(by_name(findings).values()) == {OK}
    assert len(findings) == 7


@pytest.mark.parametrize(
    ("setting", "name", "verdict", "words"),
    [
        ("appendfsync everysec", "Redis' persistence", FAIL, ("appendfsync everysec", "set appendfsync always")),
        ("appendonly no", "Redis' persistence", FAIL, ("appendonly no", "set appendonly yes")),
        ("no-appendfsync-on-rewrite yes", "Redis' persistence", FAIL, ("no-appendfsync-on-rewrite yes",)),
        ("maxmemory-policy allkeys-lru", "Redis' eviction", FAIL, ("allkeys-lru", "noeviction")),
        ("maxmemory 1000000", "Redis' memory", FAIL, ("of 977 kB",)),
    ],
)
def test_a_redis_that_is_set_wrongly(
    own: OwnRedis, setting: str, name: str, verdict: Verdict, words: tuple[str, ...]
) -> None:
    own.client.execute_command("CONFIG", "SET", *setting.split())
    with servers.redis_client(own.url) as client:
        findings = servers.redis(client)
    (wrong,) = [finding for finding in findings if finding.verdict is not OK]
    assert wrong.name == name
    says(wrong, verdict, *words)


def test_a_redis_that_follows_another_one(own: OwnRedis) -> None:
    own.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    with servers.redis_client(own.url) as client:
        assert by_name(servers.redis(client))["Redis' role"] is FAIL


def test_a_redis_that_hides_its_settings(own: OwnRedis) -> None:
    """As some hosted ones do: it is taken at its word, with a word about it."""
    own.client.execute_command("ACL", "SETUSER", "doctor", "on", ">pw", "~*", "+@all", "-config")
    with redis_py.Redis.from_url(own.url, username="doctor", password="pw") as client:
        found = {finding.name: finding for finding in servers.redis(client)}
    says(found["Redis' persistence"], WARN, "does not show its settings")
    says(found["Redis' eviction"], OK, "noeviction")


def test_a_redis_that_is_away(own: OwnRedis) -> None:
    with refusing(own), servers.redis_client(own.url) as client:
        (finding,) = servers.redis(client)
    says(finding, FAIL, "does not answer (ConnectionError)", "REDIS_URL")


@pytest.mark.parametrize(
    ("info", "verdict"),
    [({"redis_version": "7.4.1"}, OK), ({"redis_version": "6.2.14"}, OK), ({"redis_version": "5.0.9"}, FAIL)],
)
def test_the_version_of_redis(info: dict[str, str], verdict: Verdict) -> None:
    assert servers.redis_version(info).verdict is verdict


def test_a_redis_whose_disk_failed() -> None:
    says(servers.redis_disk({"aof_last_write_status": "err"}), FAIL, "aof_last_write_status")


# --- clocks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ahead", "way", "verdict"),
    [
        (0.0, 0.0, OK),
        (2.9, 2.0, OK),  # the answer was that long under way
        (2.9, 1.0, WARN),
        (-5.0, 1.0, WARN),
        (90.0, 0.1, FAIL),
        (-3600.0, 0.1, FAIL),
    ],
)
def test_a_clock_that_is_wrong(ahead: float, way: float, verdict: Verdict) -> None:
    finding = servers.apart("clock", timedelta(seconds=ahead), timedelta(seconds=way))
    says(finding, verdict, "agrees" if verdict is OK else "ahead of" if ahead > 0 else "behind")


# --- PostgreSQL --------------------------------------------------------------------------------------------------


def postgres(engine: Engine) -> dict[str, Finding]:
    with engine.connect() as connection:
        return {finding.name: finding for finding in servers.postgres(connection)}


def test_a_database_as_it_should_be(engine: Engine) -> None:
    assert {finding.verdict for finding in postgres(engine).values()} == {OK}


@pytest.fixture
def bare_url(services: Embedded) -> Iterator[str]:
    """A database without a table."""
    maintenance = services.database_url.replace("/reservoir?", "/postgres?")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute("CREATE DATABASE bare")
    yield services.database_url.replace("/reservoir?", "/bare?")
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute("DROP DATABASE bare WITH (FORCE)")


def test_a_database_that_was_not_migrated(bare_url: str) -> None:
    engine = make_engine(bare_url)
    says(postgres(engine)["migrations"], FAIL, "at nothing", "run `reservoir migrate`")
    upgrade(bare_url, "0001")
    says(postgres(engine)["migrations"], FAIL, "at 0001", "run `reservoir migrate`")
    upgrade(bare_url)
    says(postgres(engine)["migrations"], OK)
    engine.dispose()


def test_a_database_that_is_ahead_of_the_code(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    says(postgres(engine)["migrations"], FAIL, "9999", "deploy the newer code")


def test_a_database_that_forgets_in_a_power_cut(engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SET synchronous_commit = off"))
        says(servers.postgres_durability(connection), FAIL, "synchronous_commit off")


# --- work --------------------------------------------------------------------------------------------------------


def test_no_worker_a_deaf_one_and_one_that_hears(redis: redis_py.Redis) -> None:
    says(work.workers(redis, now()), FAIL, "none", "reservoir up")
    redis.set(f"{work.HEARTBEATS}worker@here", f"{now().timestamp():.3f}")
    says(work.workers(redis, now()), OK, "worker@here")
    says(work.workers(redis, now() + timedelta(seconds=90)), WARN, "worker@here hears nothing")


def test_no_sweep_one_just_now_and_an_old_one(engine: Engine, redis: redis_py.Redis) -> None:
    """A real sweep says when it ran, also to a clock that is behind the worker's."""
    world = World(engine, [VENUES["timekit"]])
    says(work.beat(redis, NOON), FAIL, "no sweep yet", "beat")
    sweep.sweep(Inbox(redis), world.store, world.config, redis, NOON)
    says(work.beat(redis, NOON + timedelta(seconds=3)), OK, "swept 3 s ago")
    says(work.beat(redis, NOON - timedelta(seconds=3)), OK, "swept 0 s ago")
    says(work.beat(redis, NOON + timedelta(minutes=5)), FAIL, "swept 5 min ago", "one `beat` runs")


def test_a_sweep_is_told_while_postgresql_is_away(redis: redis_py.Redis) -> None:
    """Then nothing is nudged, and beat is not what is wrong."""
    nowhere = make_engine(f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")
    world = World(nowhere, [VENUES["timekit"]])
    assert sweep.sweep(Inbox(redis), world.store, world.config, redis, NOON) == 0
    says(work.beat(redis, NOON), OK, "swept 0 s ago")


def test_what_waits_in_the_inbox(redis: redis_py.Redis) -> None:
    """Its age is in its id."""
    says(work.inbox(redis, now()), OK, "nothing waits")
    redis.hset(INBOX, mapping={str(new_id()): b"", "no id": b""})
    says(work.inbox(redis, now()), OK, "2 wait")
    says(work.inbox(redis, now() + timedelta(minutes=3)), WARN, "the oldest for 3 min", "workers")
    says(work.inbox(redis, now() + timedelta(hours=3)), FAIL, "the oldest for 3 h")


def test_what_nobody_has_looked_at_in_time(engine: Engine) -> None:
    world = World(engine, [VENUES["timekit"]])
    with engine.connect() as connection:
        says(work.overdue(connection, NOON), OK, "nothing")
    world.land(request("studio", b"{}"))
    with engine.connect() as connection:
        says(work.overdue(connection, NOON + timedelta(seconds=10)), OK, "for 10 s")
        says(work.overdue(connection, NOON + timedelta(minutes=5)), WARN, "for 5 min", "workers run")
        says(work.overdue(connection, NOON + timedelta(hours=5)), FAIL, "for 5 h")
    with engine.begin() as connection:  # what is owed to the provider counts too
        connection.execute(update(deliveries).values(next_attempt_at=None, acknowledge_at=NOON))
    with engine.connect() as connection:
        says(work.overdue(connection, NOON + timedelta(hours=5)), FAIL, "for 5 h")


def test_what_needs_a_person(engine: Engine) -> None:
    world = World(engine, [VENUES["timekit"]])
    with engine.connect() as connection:
        says(work.parked(connection), OK)
    world.deliver(request("studio", b"{"))
    with engine.connect() as connection:
        says(work.parked(connection), WARN, "1 deliveries", "deliveries list --state parked")


# --- access ------------------------------------------------------------------------------------------------------


def endpoint(provider: str, *secrets: str) -> Endpoint:
    return Endpoint(name="venue", provider=provider, secrets=frozenset(secrets))


@pytest.mark.parametrize(
    ("provider", "secrets", "verdict", "words"),
    [
        ("reservekit", (), WARN, ("set RESERVOIR_VENUE_API_KEY",)),
        ("reservekit", ("api_key",), OK, ("RESERVOIR_VENUE_API_KEY",)),
        ("checkfront", (), WARN, ("RESERVOIR_VENUE_API_KEY and RESERVOIR_VENUE_API_SECRET",)),
        ("timekit", ("webhook_secret",), OK, ("RESERVOIR_VENUE_WEBHOOK_SECRET",)),
        ("lockme", ("access_token",), OK, ("RESERVOIR_VENUE_ACCESS_TOKEN",)),
        ("lockme", ("client_id", "client_secret"), FAIL, ("no token", "reservoir lockme login venue")),
    ],
)
def test_credentials_that_are_there_or_not(
    provider: str, secrets: tuple[str, ...], verdict: Verdict, words: tuple[str, ...]
) -> None:
    says(access.credentials(endpoint(provider, *secrets), discover()[provider], None, NOON), verdict, *words)


@pytest.mark.parametrize(
    ("days", "refreshed", "client", "verdict", "words"),
    [
        (-1.0, True, True, OK, ("renewed by itself",)),
        (-1.0, False, True, FAIL, ("ended 24 h ago", "lockme login")),
        (-1.0, True, False, FAIL, ("nothing renews it", "RESERVOIR_VENUE_CLIENT_ID")),
        (1.0, False, True, WARN, ("ends in 24 h",)),
        (30.0, False, False, OK, ("ends in 30 d",)),
    ],
)
def test_a_token_that_has_ended_or_will(
    days: float, refreshed: bool, client: bool, verdict: Verdict, words: tuple[str, ...]
) -> None:
    token = Token(
        access_token="very-secret",
        refresh_token="very-secret" if refreshed else None,
        expires_at=NOON + timedelta(days=days),
    )
    venue = endpoint("lockme", *(("client_id", "client_secret") if client else ()))
    finding = access.credentials(venue, discover()["lockme"], token, NOON)
    says(finding, verdict, *words)
    assert "very-secret" not in str(finding)


def test_a_token_that_another_secret_sealed(room: Room, engine: Engine) -> None:
    room.tokens.keep("room", Token(access_token="very-secret"))
    venue = Endpoint(name="room", provider="lockme")
    secret = "0123456789abcdef0123456789abcdef"
    token, wrong = access.token_of(venue, engine, secret)
    assert (token is not None, wrong) == (True, None)
    token, wrong = access.token_of(venue, engine, "another-secret-of-enough-length")
    assert token is None
    assert wrong is not None
    says(wrong, FAIL, "another RESERVOIR_SECRET")


# --- who answers -------------------------------------------------------------------------------------------------


HOOK = ("studio", "/hooks/studio/0123")


def answering(status: int) -> Starlette:
    async def answer(_: Request) -> Response:
        return PlainTextResponse("", status)

    return Starlette(routes=[Route("/{rest:path}", answer)])


@pytest.mark.parametrize(
    ("status", "verdict", "words"),
    [
        (200, WARN, ("answers for studio", "https")),  # a test's own server speaks http
        (404, FAIL, ("does not know the URL of studio", "this secret")),
        (503, FAIL, ("answered 503",)),
    ],
)
def test_the_public_url(status: int, verdict: Verdict, words: tuple[str, ...]) -> None:
    """The endpoint's token is told to nobody."""
    with serving(answering(status)) as url:
        finding = access.public_url(url, HOOK)
    says(finding, verdict, *words)
    assert "0123" not in str(finding)


def test_a_public_url_where_nobody_is() -> None:
    finding = access.public_url(f"http://127.0.0.1:{free_port()}", HOOK)
    says(finding, FAIL, "does not answer", "DNS")
    assert "0123" not in str(finding)
    says(access.public_url(None, HOOK), WARN, "RESERVOIR_PUBLIC_URL")
    says(access.public_url("https://hooks.example.org", None), WARN, "not asked")
    with listening(lambda connection: connection.close()) as port:
        says(access.public_url(f"http://127.0.0.1:{port}", HOOK), FAIL, "does not answer")


PATHS = {
    "lockme": "/v2.4/test",
    "reservekit": "/services",
    "timekit": "/bookings",
    "checkfront": "/ping",
    "synthesisvr": "/data/customers/good-key/search/reservoir-doctor",
}


def provider_api(seen: list[str], status: int) -> Starlette:
    async def answer(asked: Request) -> Response:
        seen.append(f"{asked.method} {asked.url.path}")
        return Response('{"fine": true}', status, media_type="application/json")

    return Starlette(routes=[Route("/{rest:path}", answer)])


@pytest.mark.parametrize("provider", sorted(PATHS))
def test_an_api_is_asked_by_one_get_that_changes_nothing(provider: str) -> None:
    """And what it says of our key is told without the key."""
    seen: list[str] = []
    secrets = {"api_key": "good-key", "api_secret": "good-secret", "access_token": "good-token"}
    for status, verdict in ((200, OK), (401, FAIL), (403, FAIL), (500, WARN)):
        with serving(provider_api(seen, status)) as url:
            venue = Endpoint(name="venue", provider=provider, api_url=url, secrets=frozenset(secrets))
            finding = access.api(venue, discover()[provider], secrets, None)
        assert finding is not None
        says(finding, verdict, {OK: "takes our credentials", FAIL: "refuses", WARN: "answered 500"}[verdict])
        assert "good-" not in str(finding)
    assert set(seen) == {f"GET {PATHS[provider]}"}


def test_an_api_is_not_asked_without_a_key() -> None:
    assert set(access.QUESTIONS) == set(discover())
    for name, provider in discover().items():
        assert access.api(Endpoint(name="venue", provider=name), provider, {}, None) is None


def test_a_token_is_tried_and_not_renewed() -> None:
    """One that has ended is left to the workers."""
    seen: list[str] = []
    with serving(provider_api(seen, 401)) as url:
        venue = Endpoint(
            name="venue", provider="lockme", api_url=url, secrets=frozenset({"client_id", "client_secret"})
        )
        secrets = {"client_id": "id", "client_secret": "secret"}
        good, ended = (
            Token(access_token="token", refresh_token="again", expires_at=now() + timedelta(hours=hours))
            for hours in (1, -1)
        )
        finding = access.api(venue, discover()["lockme"], secrets, good)
        assert finding is not None
        says(finding, FAIL, "refuses the token", "log in again")
        assert access.api(venue, discover()["lockme"], secrets, ended) is None
    assert seen == ["GET /v2.4/test"]


# --- the whole ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("doctor"), config=CONFIG) as installation:
        yield installation


@pytest.mark.long
@pytest.mark.services
@pytest.mark.timeout(240)
def test_a_running_installation_is_well(up: Up) -> None:
    """Everything real: its Redis, its PostgreSQL, a worker's heartbeat, the sweeps. Nothing is changed by looking."""
    (up.folder / "reservoir.toml").chmod(0o644)

    def heard() -> bool:
        done = up.command("doctor", "--json")
        found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
        return found["workers"]["verdict"] == "ok" and found["beat"]["verdict"] == "ok"

    assert eventually(heard, within=60)
    done = up.command("doctor", "--json")
    findings = json.loads(done.stdout)["findings"]
    bad = {each["name"]: each["text"] for each in findings if each["verdict"] == "fail"}
    assert not {name for name in bad if name not in ("spool's disk", "spool's room")}, bad
    warned = {each["name"] for each in findings if each["verdict"] == "warn"}
    # `test_up` gives secrets of another endpoint.
    assert {"secrets' names"} <= warned <= {"secrets' names", "credentials of studio", "spool's room"}
    assert done.returncode == bool(bad)
    lines = up.command("doctor").stdout.splitlines()
    assert len(lines) == len(findings)
    assert all(re.match(r"(ok|warn|fail) +[^:]+: ", line) for line in lines)
    wish = Wish(config_file=up.folder / "reservoir.toml", state_dir=up.folder / ".reservoir", online=True)
    for url, secret, words in ((up.url, {}, "answers for studio"), (up.url, {SECRET: "x" * 32}, "does not know")):
        findings = list(examined(wish, {"RESERVOIR_PUBLIC_URL": url, **secret}))
        assert words in next(each.text for each in findings if each.name == "public URL")
    assert up.command("deliveries", "list", "--json").stdout == "[]\n"


def test_nothing_runs(tmp_path: Path) -> None:
    """It says what is missing, starts nothing and makes nothing."""
    configured(tmp_path)
    wish = Wish(config_file=tmp_path / "reservoir.toml", state_dir=tmp_path / "state")
    found = by_name(list(examined(wish, {})))
    assert (found["Redis"], found["PostgreSQL"], found["secret"]) == (FAIL, FAIL, WARN)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["reservoir.toml"]


def test_servers_that_are_away_are_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(tmp_path)
    wish = Wish(config_file=tmp_path / "reservoir.toml", state_dir=tmp_path / "state", online=True)
    monkeypatch.setenv("DATABASE_URL", f"postgresql://somebody:very-secret@127.0.0.1:{free_port()}/nothing")
    environment = {**os.environ, "REDIS_URL": f"redis://:very-secret@127.0.0.1:{free_port()}/0"}
    findings = list(examined(wish, environment))
    found = by_name(findings)
    assert (found["Redis"], found["PostgreSQL"], found["public URL"]) == (FAIL, FAIL, WARN)
    assert "very-secret" not in str(findings)
    assert "inbox" not in found


def test_a_span_is_told_as_a_person_would() -> None:
    told = [span(timedelta(seconds=seconds)) for seconds in (0, 119, 120, 7199, 7200, 172_800)]
    assert told == ["0 s", "119 s", "2 min", "119 min", "2 h", "2 d"]
