"""`reservoir up`: embedded services where no URL is set, the migrations, and the processes of the Procfile.

The processes are children of this one: what dies by itself starts again, and all of it ends when this one ends, however
that happens. Each process is given the secrets that it needs and no others. Knows nothing of what the processes do.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import httpx
import kombu.exceptions
import redis
from honcho.colour import get_colours
from honcho.environ import parse_procfile
from honcho.printer import Message, Printer

from console.context import CommandError, read_config, secret, url_of_environment
from console.queries import kept_tokens
from console.services import Embedded, bound_to_parent
from schemas.endpoints import SECRET, WHATS, Config, ConfigError
from workers.app import app, broker_url
from workers.database import engine
from workers.migrate import upgrade
from workers.registry import check_access

PROJECT: Final = Path(__file__).resolve().parent.parent
READY_WITHIN: Final = 90.0
"""Seconds from the start of the processes until a webhook must be taken."""
GRACE: Final = 30.0
"""Seconds for the processes to end; a worker gives its running tasks 20."""
BACKOFF_MOST: Final = 30.0
STEADY: Final = 60.0
"""A process that has run for so many seconds is forgiven its earlier ends."""
GIVE_UP: Final = 3
"""So many ends before we are ready mean that it will not get better."""

STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

GRANTED: Final[Mapping[str, frozenset[str]]] = {
    "web": frozenset({"REDIS_URL", SECRET}),
    "beat": frozenset({"REDIS_URL"}),
    "flower": frozenset({"REDIS_URL"}),
}
"""Of what is secret, what a process may know; a process that is not named, such as the worker, may know all of it."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for on the command line."""

    config_file: Path
    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    """0: a free one."""


def up(wish: Wish) -> None:
    """Runs until Ctrl-C or SIGTERM, then stops all of it. Raises ConfigError, ServiceError, CommandError."""
    config = read_config(wish.config_file)
    with suppress(Stopped):
        for number in STOPS:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, _stop)
        _up(wish, config)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM: everything is unwound in order."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """The first signal counts; a second one must not disturb the clean-up."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped


def _up(wish: Wish, config: Config) -> None:
    database, queue = url_of_environment(), os.environ.get("REDIS_URL")
    installation = secret(wish.state_dir)
    port = _port(wish.host, wish.port)
    flower = _port("127.0.0.1", _flower_port())
    with Embedded(wish.state_dir, with_postgres=not database, with_redis=not queue) as embedded:
        addresses = {
            "DATABASE_URL": database or embedded.database_url,
            "REDIS_URL": queue or embedded.redis_url,
            "HOST": wish.host,
            "PORT": str(port),
            "FLOWER_PORT": str(flower),
            "RESERVOIR_CONFIG": str(wish.config_file.resolve()),
            "RESERVOIR_STATE_DIR": str(embedded.state_dir),
            SECRET: installation,
        }
        url = _url(wish.host, port)
        _prepare(addresses["DATABASE_URL"], config)
        embedded.announce(_facts(embedded, url))
        _say(f"Flower, which shows what the workers do: {_url('127.0.0.1', flower)}")
        with _processes(addresses) as processes:
            _watch(processes, embedded, url, addresses["REDIS_URL"])


def _prepare(database_url: str, config: Config) -> None:
    upgrade(database_url)
    opened = engine(database_url)
    try:
        check_access(config, kept_tokens(opened))
    finally:
        opened.dispose()


def _facts(embedded: Embedded, url: str) -> dict[str, str]:
    """What another command may know of us; the address of a database that is not ours is not ours to tell."""
    own = {"database_url": embedded.database_url} if "PostgreSQL" in embedded.servers else {}
    return {"url": url, "secret": "environment" if os.environ.get(SECRET) else "kept", **own}


def _watch(processes: list[Process], embedded: Embedded, url: str, redis_url: str) -> NoReturn:
    """Starts again what died, for ever; says once when a webhook would be taken."""
    deadline: float | None = time.monotonic() + READY_WITHIN
    while True:
        for name in embedded.revive():
            _say(f"{name} had died and was started again")
        for process in processes:
            process.mend(for_good=deadline is not None)
        if deadline is not None and _takes_webhooks(url) and _worker_answers(redis_url):
            deadline = None
            sys.stdout.write(f"ready: {url}\n")
            sys.stdout.flush()
        if deadline is not None and time.monotonic() > deadline:
            raise CommandError(f"not ready after {READY_WITHIN:g} s; the output above says why")
        time.sleep(0.2)


def _takes_webhooks(url: str) -> bool:
    with suppress(httpx.TransportError), httpx.Client(trust_env=False, timeout=2.0) as client:
        return client.get(f"{url}/readyz").status_code == 200
    return False


def _worker_answers(redis_url: str) -> bool:
    app.conf.update(broker_url=broker_url(redis_url))
    try:
        return bool(app.control.broadcast("ping", reply=True, limit=1, timeout=1.0))
    except (kombu.exceptions.OperationalError, redis.RedisError, OSError):
        return False
    finally:
        app.close()


# --- the processes ---------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Process:
    """One line of the Procfile, kept running."""

    name: str
    command: str
    environment: Mapping[str, str]
    output: Output
    popen: subprocess.Popen[bytes] = field(init=False)
    started: float = field(default=0.0, init=False)
    ends: int = field(default=0, init=False)
    again_at: float | None = field(default=None, init=False)

    def start(self) -> None:
        """In a session of its own: Ctrl-C reaches us only, and a forced end reaches all of its children."""
        self.popen = subprocess.Popen(  # noqa: S603  (the command is the Procfile's)
            # By force: when we were killed, Redis is gone too, and nothing that they still do would be kept.
            bound_to_parent(["sh", "-c", f"exec {self.command}"], signal.SIGKILL),
            cwd=PROJECT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started, self.again_at = time.monotonic(), None
        threading.Thread(target=self.output.relay, args=(self.name, self.popen), daemon=True).start()

    def mend(self, *, for_good: bool) -> None:
        """Starts it again, later and later, where it has ended by itself.

        Raises CommandError where it ends again and again and `for_good` says that it has never worked.
        """
        if self.popen.poll() is None:
            return
        now = time.monotonic()
        if self.again_at is None:
            self.ends = 1 if now - self.started > STEADY else self.ends + 1
            if for_good and self.ends >= GIVE_UP:
                raise CommandError(f"{self.name} does not start (it ended with {self.popen.returncode}); see above")
            wait = min(2.0 ** (self.ends - 1), BACKOFF_MOST)
            _say(f"{self.name} ended with {self.popen.returncode}; it starts again in {wait:g} s")
            self.again_at = now + wait
        elif now >= self.again_at:
            _kill_group(self.popen)
            self.start()

    def ask_to_end(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()

    def end(self, deadline: float) -> None:
        """Waits for the end, or forces it; nothing of its session is left afterwards."""
        try:
            self.popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            _say(f"{self.name} did not end in time and is killed")
        _kill_group(self.popen)
        self.popen.wait()


def _kill_group(popen: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)


def procfile() -> Mapping[str, str]:
    """Name → command line, in the order of the start. Raises CommandError."""
    try:
        text = (PROJECT / "Procfile").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommandError(
            "there is no Procfile beside the package; `up` runs from a checkout of the project"
        ) from None
    lines: Mapping[str, str] = parse_procfile(text).processes
    return lines


@contextmanager
def _processes(addresses: Mapping[str, str]) -> Iterator[list[Process]]:
    lines = procfile()
    output = Output(lines)
    processes = [
        Process(name=name, command=command, environment=environment_of(name, addresses), output=output)
        for name, command in lines.items()
    ]
    started: list[Process] = []
    try:
        for process in processes:
            process.start()
            started.append(process)
        yield started
    finally:
        deadline = time.monotonic() + GRACE
        for process in started:
            process.ask_to_end()
        for process in started:
            process.end(deadline)


_SECRET_NAME: Final = re.compile(rf"RESERVOIR_.+_({'|'.join(WHATS)})|{SECRET}|(DATABASE|REDIS)_URL|PG.*", re.IGNORECASE)


def environment_of(name: str, addresses: Mapping[str, str], given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Our own environment and the addresses, without the secrets that the process is not granted."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}"
    whole = {**given, **addresses, "PATH": programs, "PYTHONUNBUFFERED": "1"}
    granted = GRANTED.get(name, whole.keys())
    return {key: value for key, value in whole.items() if key in granted or not _SECRET_NAME.fullmatch(key)}


class Output:
    """What the processes print, line by line with their names, on stderr: stdout is for the one line `ready: …`."""

    def __init__(self, names: Iterable[str]) -> None:
        self._printer = Printer(sys.stderr, width=max(map(len, names)))
        self._colours = dict(zip(names, get_colours(), strict=False))
        self._lock = threading.Lock()

    def relay(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        """Until the process closes its output; read on where nobody reads ours, so that the process never blocks."""
        assert popen.stdout is not None
        with popen.stdout as lines:
            for line in lines:
                with self._lock, suppress(OSError):
                    self._printer.write(
                        Message("line", line, datetime.now(), name, self._colours[name])  # noqa: DTZ005  (for eyes)
                    )


# --- ports and words -------------------------------------------------------------------------------------------


def _port(host: str, wanted: int, patience: float = 3.0) -> int:
    """The port, or a free one for 0; one that is just given back is waited for. Raises CommandError."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with socket.create_server(
                (host, wanted), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            ) as free:
                return int(free.getsockname()[1])
        except OSError as error:
            if time.monotonic() > deadline:
                why = f"{error.strerror}; give another --port or --host, --port 0 takes a free one"
                raise CommandError(f"cannot listen on {host}:{wanted}: {why}") from None
        time.sleep(0.1)


def _flower_port() -> int:
    wanted = os.environ.get("FLOWER_PORT") or "0"
    if not wanted.isdigit() or int(wanted) > 65535:
        raise ConfigError("FLOWER_PORT", "takes a port's number; leave it out for a free one")
    return int(wanted)


def _url(host: str, port: int) -> str:
    """As somebody on this machine reaches it."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _say(line: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"reservoir: {line}\n")
        sys.stderr.flush()
