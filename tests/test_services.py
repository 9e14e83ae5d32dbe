"""The embedded servers: real, durable, restartable after a kill, several at once, and gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from console.services import Embedded, StateInUse, strays

OWNER = """
import sys, time
from console.services import Embedded
with Embedded(sys.argv[1]) as embedded:
    print(embedded.database_url, embedded.redis_url, flush=True)
    time.sleep(600)
"""


def read_and_write(database_url: str, redis_url: str, value: str) -> list[str | None]:
    """What both held before, and `value` in both afterwards."""
    with psycopg.connect(database_url) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value text)")
        row = connection.execute("SELECT max(value) FROM kept").fetchone()
        connection.execute("INSERT INTO kept VALUES (%s)", [value])
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        before = client.getset("kept", value)
    assert row is not None
    return [row[0], before]


def eventually(true: Callable[[], bool], within: float = 15.0) -> bool:
    deadline = time.monotonic() + within
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    return true()


def leftovers(state_dir: Path) -> list[psutil.Process]:
    return strays(state_dir / "postgres") + strays(state_dir / "redis")


@contextmanager
def owner(state_dir: Path) -> Iterator[tuple[psutil.Process, list[str]]]:
    """Another process that holds the servers up, and their addresses."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(state_dir)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield psutil.Process(process.pid), process.stdout.readline().split()
        finally:
            process.kill()


def test_both_keep_what_they_confirmed(tmp_path: Path) -> None:
    """Each confirmed write is on the disk: the promise behind a 2xx rests on these settings."""
    with Embedded(tmp_path / "state") as embedded:
        with psycopg.connect(embedded.database_url) as connection:
            shown = [connection.execute(f"SHOW {name}").fetchone() for name in ("fsync", "synchronous_commit")]
            assert shown == [("on",), ("on",)]
            assert connection.info.server_version >= 180000
        with redis.Redis.from_url(embedded.redis_url, decode_responses=True) as client:
            held = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync", "maxmemory-policy")}
        assert held == {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}


def test_nothing_is_left_after_the_stop(tmp_path: Path) -> None:
    """No process, no socket directory, no announcement, and the data is there for the next start."""
    state = tmp_path / "state"
    with Embedded(state) as embedded:
        embedded.announce({"url": "http://127.0.0.1:8000"})
        sockets = embedded.sockets
        assert leftovers(state)
        read_and_write(embedded.database_url, embedded.redis_url, "one")
    assert not leftovers(state)
    assert not sockets.exists()
    assert not (state / "services.json").exists()
    with Embedded(state) as embedded:
        assert read_and_write(embedded.database_url, embedded.redis_url, "two") == ["one", "one"]


def test_a_start_after_everything_was_killed(tmp_path: Path) -> None:
    """kill -9 of the owner and of every server process loses nothing that was confirmed."""
    state = tmp_path / "state"
    with owner(state) as (process, urls):
        read_and_write(*urls, "before")
        everything = [*process.children(recursive=True), process]
        for victim in everything:
            victim.suspend()
        for victim in everything:
            victim.kill()
        psutil.wait_procs(everything, timeout=15)
    with Embedded(state) as embedded:
        assert read_and_write(embedded.database_url, embedded.redis_url, "after") == ["before", "before"]


def test_a_start_over_servers_whose_owner_was_killed(tmp_path: Path) -> None:
    """Where they outlive their owner, or still stop, the next owner ends them first."""
    state = tmp_path / "state"
    with owner(state) as (process, urls):
        read_and_write(*urls, "before")
        process.kill()
        process.wait(15)
        with Embedded(state) as embedded:
            assert read_and_write(embedded.database_url, embedded.redis_url, "after") == ["before", "before"]
    assert not leftovers(state)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_servers_end_with_a_killed_owner(tmp_path: Path) -> None:
    """Nobody has to come back for them."""
    state = tmp_path / "state"
    with owner(state) as (process, _):
        assert leftovers(state)
        process.kill()
        assert eventually(lambda: not leftovers(state))
    shutil.rmtree((state / "sockets").readlink())


def test_a_server_that_died_comes_back_at_the_same_address(tmp_path: Path) -> None:
    """So that whoever holds the address only has to try again."""
    with Embedded(tmp_path / "state") as embedded:
        urls = embedded.database_url, embedded.redis_url
        read_and_write(*urls, "before")
        assert embedded.revive() == []
        for server in embedded.servers.values():
            assert server.process is not None
            server.process.kill()
            server.process.wait()
        assert embedded.revive() == ["PostgreSQL", "Redis"]
        assert read_and_write(*urls, "after") == ["before", "before"]


def test_supervision_does_not_wait_for_a_server(tmp_path: Path) -> None:
    """Killed, both come back at the same address with all that they confirmed, and no step towards it takes long.

    A start that fails is tried again for as long as it takes.
    """
    with Embedded(tmp_path / "state") as embedded:
        urls = embedded.database_url, embedded.redis_url
        read_and_write(*urls, "before")
        assert embedded.tend() == []
        kept = embedded.servers["Redis"].command
        embedded.servers["Redis"].command = ["/nonexistent/redis-server"]
        for server in embedded.servers.values():
            assert server.process is not None
            server.process.kill()
            server.process.wait()
        told: list[str] = []
        longest = 0.0

        def said(words: str) -> bool:
            nonlocal longest
            began = time.monotonic()
            told.extend(embedded.tend())
            longest = max(longest, time.monotonic() - began)
            return any(words in line for line in told)

        assert eventually(lambda: said("PostgreSQL is back after"))
        assert eventually(lambda: said("Redis is started once more"))
        embedded.servers["Redis"].command = kept
        assert eventually(lambda: said("Redis is back after"))
        assert longest < 3.0
        assert told[:2] == ["PostgreSQL has died and is started again", "Redis has died and is started again"]
        assert read_and_write(*urls, "after") == ["before", "before"]
        assert embedded.tend() == []


def test_two_at_once_do_not_meet(tmp_path: Path) -> None:
    """No fixed port, no shared name: two installations or two test runs on one machine."""
    with ExitStack() as running:
        both = [running.enter_context(Embedded(tmp_path / name)) for name in ("one", "two")]
        for embedded in both:
            found = read_and_write(embedded.database_url, embedded.redis_url, embedded.state_dir.name)
            assert found == [None, None]


def test_a_state_directory_has_one_owner(tmp_path: Path) -> None:
    """The second one is told so, and the first one is not disturbed."""
    state = tmp_path / "state"
    with Embedded(state) as embedded:
        with pytest.raises(StateInUse, match="in use"):
            Embedded(state).start()
        assert all(server.alive for server in embedded.servers.values())


def test_a_deep_state_directory(tmp_path: Path) -> None:
    """A socket's path ends at about 100 bytes; the state directory's need not."""
    deep = tmp_path.joinpath(*["a-rather-long-name-of-a-directory"] * 6)
    with Embedded(deep / "state") as embedded:
        assert read_and_write(embedded.database_url, embedded.redis_url, "deep") == [None, None]


def test_a_closed_home_directory_stays_closed(tmp_path: Path) -> None:
    """As root too: the servers reach their data without a change to the directories above it."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    before = [parent.stat().st_mode for parent in home.parents]
    with Embedded(home / "clone" / ".reservoir"):
        assert home.stat().st_mode & 0o777 == 0o700
    assert [parent.stat().st_mode for parent in home.parents] == before


def test_a_recycled_process_id_does_not_stop_the_start(tmp_path: Path) -> None:
    """After a reboot PostgreSQL's lock file can name a process that has nothing to do with it."""
    state = tmp_path / "state"
    with Embedded(state, with_redis=False):
        lock = (state / "postgres" / "postmaster.pid").read_text().splitlines()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        pid_file = state / "postgres" / "postmaster.pid"
        pid_file.write_text("\n".join([str(stranger.pid), *lock[1:]]) + "\n")
        os.chown(pid_file, (state / "postgres").stat().st_uid, -1)
        with Embedded(state, with_redis=False) as embedded:
            assert embedded.servers["PostgreSQL"].alive
        assert stranger.poll() is None
        stranger.kill()
