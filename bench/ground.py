"""What a run stands on: a Redis and a PostgreSQL of its own, the venues, and processes of the Procfile on chosen cores.

Where there are two cores, one belongs to the client and to Redis, one to what is measured (`bench.cores`). Knows no
contender and no figure.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import psutil
import psycopg
import redis
from psycopg import sql

from bench.cores import cores
from console.processes import PROJECT, environment_of, procfile
from console.services import Embedded, bound_to_parent
from console.trial import toml
from schemas.endpoints import SECRET, Config, load
from workers.migrate import upgrade

VENUES: Final[Mapping[str, Mapping[str, Any]]] = {
    "arcade-vienna": {"provider": "synthesisvr", "timezone": "Europe/Vienna"},
    "studio-berlin": {"provider": "reservekit", "timezone": "Europe/Berlin"},
    "workshop-oslo": {"provider": "timekit", "timezone": "Europe/Oslo"},
    "harbour-tours": {"provider": "checkfront", "timezone": "America/Vancouver"},
    "vault-warsaw": {"provider": "lockme", "timezone": "Europe/Warsaw"},
}
"""One per provider, without API keys: no provider's API has a part in what is measured."""
SETTINGS: Final = {"track_commit_timestamp": "on"}
"""Of PostgreSQL, beyond the embedded ones: when a row was committed is then asked of PostgreSQL itself."""
OUTSIDE: Final = ("RESERVOIR_", "DATABASE_URL", "REDIS_URL", "PG", "CELERY_", "UVICORN_")
"""How variables begin that would tie a process to an installation outside, or change what is measured."""
STARTED_WITHIN: Final = 60.0
STOPPED_WITHIN: Final = 30.0
MIB: Final = 2**20


class GroundFailed(Exception):
    """What the run stands on did not come up, in a line or two."""


class Running:
    """A process that a run has started, with all that it started itself."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes], log: Path, port: int) -> None:
        self.name = name
        self.log = log
        self.port = port
        self._popen = popen
        self._process = psutil.Process(popen.pid)

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    def family(self) -> list[psutil.Process]:
        """It and what it has started; empty when it has ended."""
        with suppress(psutil.NoSuchProcess):
            return [self._process, *self._process.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """CPU time since the start, user and system, of those that live and of their children that have ended."""
        return sum(cpu_seconds(one) for one in self.family())

    def rss_mb(self) -> float:
        """Resident memory, MiB; pages that several processes share count for each of them."""
        return sum(_rss(one) for one in self.family()) / MIB

    def said(self, words: str) -> int:
        """How many lines of its output hold these words."""
        return sum(words in line for line in self.output().splitlines())

    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def until(self, true: Callable[[], bool], what: str, within: float = STARTED_WITHIN) -> None:
        """Waits. Raises GroundFailed where it ends before, or takes too long."""
        deadline = time.monotonic() + within
        while not true():
            if not self.alive or time.monotonic() > deadline:
                last = "\n".join(self.output().splitlines()[-15:])
                raise GroundFailed(f"{self.name}: waited until {what}, in vain:\n{last}")
            time.sleep(0.05)

    def wait(self, within: float) -> None:
        """Until it has ended by itself. Raises GroundFailed where it takes longer."""
        try:
            self._popen.wait(within)
        except subprocess.TimeoutExpired:
            raise GroundFailed(f"{self.name}: has not ended after {within:g} s") from None

    def stop(self) -> None:
        """Asks it to end, and forces what is left of it."""
        if self.alive:
            self._popen.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOPPED_WITHIN)
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()


class Ground:
    """Use as a context manager: inside it both servers answer, and the database has its tables."""

    def __init__(
        self, folder: Path, *, venues: Mapping[str, Mapping[str, Any]] = VENUES, with_postgres: bool = True
    ) -> None:
        self.folder = folder
        self.secret = secrets.token_urlsafe(32)
        self.client_core, self.server_core = cores(folder)
        self._venues = venues
        self._embedded = Embedded(folder / "state", with_postgres=with_postgres)
        self._with_postgres = with_postgres
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.config_file.write_text(_written(self._venues), encoding="utf-8")
            stack.enter_context(self._embedded)
            if self._with_postgres:
                self._prepare_postgres()
            self.pin("Redis", self.client_core)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _prepare_postgres(self) -> None:
        upgrade(self.database_url)
        with self.database() as connection:
            for name, value in SETTINGS.items():
                words = sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
                connection.execute(words)
        server = self._embedded.servers["PostgreSQL"]
        server.stop()
        server.start()

    # --- where things are ---

    @property
    def config_file(self) -> Path:
        return self.folder / "reservoir.toml"

    @property
    def config(self) -> Config:
        """The venues, as the processes read them."""
        return load(self.config_file)

    @property
    def redis_url(self) -> str:
        return self._embedded.redis_url

    @property
    def database_url(self) -> str:
        return self._embedded.database_url

    def redis(self, db: int = 0) -> redis.Redis:
        """A client of our own, which waits for as long as it takes; bytes stay bytes."""
        return redis.Redis.from_url(self.redis_url, db=db)

    def database(self) -> psycopg.Connection[Any]:
        """A connection of our own."""
        return psycopg.connect(self.database_url, autocommit=True)

    def versions(self) -> dict[str, str]:
        """Of the servers that run."""
        with self.redis() as client:
            found = {"Redis": str(client.info("server")["redis_version"])}
        if self._with_postgres:
            with self.database() as connection:
                version = connection.info.parameter_status("server_version") or "?"
            found["PostgreSQL"] = version.partition(" ")[0]
        return found

    def empty_redis(self) -> None:
        """No key is left, and the file on the disk is short again: every round begins with the same Redis."""
        with self.redis() as client:
            client.flushall()
            client.bgrewriteaof()
            while _rewriting(client.info("persistence")):
                time.sleep(0.01)

    @contextmanager
    def file_left_alone(self) -> Iterator[None]:
        """Redis rewrites its file only when asked to: in a round nothing drains the inbox, so that it would do so in
        the middle of one, and copy what in life a worker has long taken away."""
        with self.redis() as client:
            client.config_set("auto-aof-rewrite-percentage", 0)
            try:
                yield
            finally:
                client.config_set("auto-aof-rewrite-percentage", 100)

    # --- processes ---

    def environment(self, kind: str, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """What a process of that kind (a name of the Procfile) is given; nothing of an installation outside."""
        addresses = {
            "REDIS_URL": self.redis_url,
            SECRET: self.secret,
            "RESERVOIR_CONFIG": str(self.config_file),
            "RESERVOIR_STATE_DIR": str(self.folder / "state"),
            "WEB_CONCURRENCY": "1",  # what is measured has one core
            **({"DATABASE_URL": self.database_url} if self._with_postgres else {}),
        }
        outside = {key: value for key, value in os.environ.items() if not key.startswith(OUTSIDE)}
        return environment_of(kind, {**addresses, **(more or {})}, outside)

    @contextmanager
    def running(
        self,
        name: str,
        command: str | None = None,
        *,
        core: int | None,
        kind: str | None = None,
        more: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> Iterator[Running]:
        """A command as the Procfile writes them, on a core, until the context ends.

        Without a command it is the Procfile's own line of that name. `PORT` is a free port where none is given;
        nobody waits here until it is taken (see `serving`). `kind` tells what it may know, where it is not its name.
        """
        kind = kind or name
        port = port or free_port()
        words = ["sh", "-c", f"exec {command or procfile()[kind]}"]
        log = self.folder / f"{name.replace(' ', '-')}.log"
        with log.open("wb") as output:
            popen = subprocess.Popen(  # noqa: S603  (the command is the Procfile's, or a contender's)
                bound_to_parent(self.pinned(words, core), signal.SIGKILL),
                cwd=PROJECT,
                env=self.environment(kind, {"HOST": "127.0.0.1", "PORT": str(port), **(more or {})}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        started = Running(name, popen, log, port)
        try:
            yield started
        finally:
            started.stop()

    @contextmanager
    def serving(self, name: str, command: str | None = None, **how: Any) -> Iterator[Running]:
        """The same for a server: it takes connections on its port. Raises GroundFailed."""
        with self.running(name, command, **how) as started:
            started.until(lambda: _listens(started.port), "it takes connections")
            yield started

    def pinned(self, command: Sequence[str], core: int | None) -> list[str]:
        """The command, to run on this core only; as it is where there is no choice."""
        taskset = shutil.which("taskset")
        if core is None or taskset is None:
            return list(command)
        return [taskset, "--cpu-list", str(core), *command]

    def pin(self, server: str, core: int | None) -> None:
        """Moves one of the servers, `Redis` or `PostgreSQL`, to a core."""
        started = self._embedded.servers[server].process
        if core is None or started is None:
            return
        process = psutil.Process(started.pid)
        for one in (process, *process.children(recursive=True)):
            _move(one.pid, {core})

    def server(self, name: str) -> psutil.Process:
        """The process of `Redis` or `PostgreSQL`."""
        started = self._embedded.servers[name].process
        assert started is not None
        return psutil.Process(started.pid)


def _move(pid: int, to: set[int]) -> None:
    """All threads of a process."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            os.sched_setaffinity(int(thread), to)


def cpu_seconds(process: psutil.Process) -> float:
    """User and system, with its children that have ended; 0 when it has ended itself."""
    with suppress(psutil.Error):
        times = process.cpu_times()
        return float(times.user + times.system + times.children_user + times.children_system)
    return 0.0


def _rss(process: psutil.Process) -> int:
    with suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _rewriting(persistence: Any) -> bool:
    return bool(persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"])


def _written(venues: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(f"[endpoints.{name}]\n{toml(settings)}" for name, settings in venues.items())


def free_port() -> int:
    """On which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False
