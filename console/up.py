"""`reservoir up`: embedded services where no URL is set, the migrations, and the processes of the Procfile.

The processes are children of this one, and all of it ends when this one ends, however that happens. It tells in the
state directory what runs, and `reservoir restart` asks it to replace the processes one by one. How one process is kept
running is `console.processes`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import httpx
import kombu.exceptions
import redis

from console.context import CommandError, read_config, running, secret, url_of_environment
from console.flower import check as check_flower
from console.processes import GRACE, READY_WITHIN, NotReplaced, Output, Process, environment_of, procfile, say
from console.queries import kept_tokens
from console.services import Embedded
from schemas.endpoints import SECRET, Config, ConfigError
from schemas.logs import FORMAT, configure, is_json
from workers.app import app, broker_url
from workers.database import engine
from workers.migrate import upgrade
from workers.registry import check_access

STEP: Final = 0.1
"""Seconds between two looks at the processes."""
SETTLE: Final = 3.0
"""Seconds between two receivers of a rolling restart: a load balancer that asks every second must have seen the first
one again before the second one leaves."""
STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RESTART: Final = signal.SIGUSR1

RECEIVER: Final = "web"
WORKER: Final = "worker"
SCALED: Final = (RECEIVER, WORKER)
"""What can run several times; two `beat` would send everything twice, and Flower has one port."""
ROLLING: Final = (RECEIVER, WORKER)
"""The order of a rolling restart: receivers first, and after the workers whatever else there is."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for on the command line."""

    config_file: Path
    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    """Of the first receiver; the others take the ports that follow. 0: free ones."""
    scale: Mapping[str, int] = field(default_factory=dict)
    """How often a line of the Procfile runs, where that is not once."""


def scale_of(words: Sequence[str]) -> dict[str, int]:
    """`web=2` and the like as numbers. Raises ConfigError, CommandError."""
    names = procfile()
    scale = {}
    for word in words:
        name, _, number = word.partition("=")
        where = f"--scale {word}"
        if name not in names:
            raise ConfigError(where, f"the Procfile has no {name!r}; it has {', '.join(names)}")
        if not number.isdecimal():
            raise ConfigError(where, f"takes a whole number, such as {name}={2 if name in SCALED else 0}")
        if int(number) > 1 and name not in SCALED:
            raise ConfigError(where, f"{name} runs once; only {' and '.join(SCALED)} can run several times")
        scale[name] = int(number)
    return scale


def up(wish: Wish) -> None:
    """Runs until Ctrl-C or SIGTERM, then stops all of it. Raises ConfigError, ServiceError, CommandError."""
    configure("up")
    config = read_config(wish.config_file)
    rollout = Rollout(wish.config_file)
    with suppress(Stopped):
        signal.signal(RESTART, rollout.ask)
        for number in STOPS:
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                signal.signal(number, _stop)
        _up(wish, config, rollout)


class Stopped(BaseException):
    """Ctrl-C or SIGTERM: everything is unwound in order."""


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    """The first signal counts; a second one must not disturb the clean-up."""
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped


def _up(wish: Wish, config: Config, rollout: Rollout) -> None:
    database, queue = url_of_environment(), os.environ.get("REDIS_URL")
    installation = secret(wish.state_dir)
    with ExitStack() as resources:
        receivers = _receivers(wish, resources)
        flower = _flower(wish)
        page = _port(os.environ.get("CONSOLE_HOST", "127.0.0.1"), _wanted_port("CONSOLE_PORT"))
        metrics = _port(os.environ.get("METRICS_HOST", "127.0.0.1"), _wanted_port("METRICS_PORT"))
        embedded = resources.enter_context(Embedded(wish.state_dir, with_postgres=not database, with_redis=not queue))
        addresses = {
            "DATABASE_URL": database or embedded.database_url,
            "REDIS_URL": queue or embedded.redis_url,
            "HOST": wish.host,
            "FLOWER_PORT": str(flower),
            FORMAT: "json" if is_json() else "console",  # they talk to a pipe of ours, and do not see our terminal
            "CONSOLE_PORT": str(page),
            "METRICS_PORT": str(metrics),
            **_counted(embedded.state_dir, wish.scale.get("metrics", 1)),
            "RESERVOIR_CONFIG": str(wish.config_file.resolve()),
            "RESERVOIR_STATE_DIR": str(embedded.state_dir),
            SECRET: installation,
        }
        _prepare(addresses["DATABASE_URL"], config)
        if wish.scale.get("console", 1):
            say(f"the console, a page to look things up: {_url('127.0.0.1', page)}")
        if wish.scale.get("flower", 1):
            say(f"Flower, which shows what the workers do: {_url(_flower_host(), flower)}")
        planned = _planned(wish.scale, addresses, receivers)
        with _running(planned) as processes:
            _watch(House(processes, embedded, addresses["REDIS_URL"]), rollout)


def _prepare(database_url: str, config: Config) -> None:
    upgrade(database_url)
    opened = engine(database_url)
    try:
        check_access(config, kept_tokens(opened))
    finally:
        opened.dispose()


# --- what runs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Receiver:
    """Where a receiver listens."""

    port: int
    url: str
    held: socket.socket | None = None


def _receivers(wish: Wish, resources: ExitStack) -> list[Receiver]:
    """The places of the receivers. Raises CommandError where a port is taken.

    The socket of a single receiver is ours: while the receiver is away, senders wait for the next one instead of being
    refused. Of several each opens its own: being refused is what makes a load balancer go to another one at once.
    """
    count = wish.scale.get(RECEIVER, 1)
    taken = [resources.enter_context(_bound(wish.host, wish.port and wish.port + place)) for place in range(count)]
    ports = [sock.getsockname()[1] for sock in taken]
    if count == 1:
        return [Receiver(ports[0], _url(wish.host, ports[0]), taken[0])]
    for sock in taken:
        sock.close()
    return [Receiver(port, _url(wish.host, port)) for port in ports]


def _planned(scale: Mapping[str, int], addresses: Mapping[str, str], receivers: Sequence[Receiver]) -> list[Process]:
    """Every process that shall run, by the Procfile and the wish, in the order of their start."""
    lines = procfile()
    names = {kind: _names(kind, scale.get(kind, 1)) for kind in lines}
    output = Output((name for several in names.values() for name in several), as_json=is_json())
    planned = []
    for kind, several in names.items():
        for place, name in enumerate(several):
            receiver = receivers[place] if kind == RECEIVER else None
            own = {"RESERVOIR_PROCESS": name, **({"PORT": str(receiver.port)} if receiver else {})}
            planned.append(
                Process(
                    name=name,
                    kind=kind,
                    command=lines[kind],
                    environment=environment_of(kind, {**addresses, **own}),
                    output=output,
                    url=receiver.url if receiver else None,
                    held=receiver.held if receiver else None,
                )
            )
    return planned


def _names(kind: str, count: int) -> list[str]:
    return [kind] if count == 1 else [f"{kind}.{number}" for number in range(1, count + 1)]


@contextmanager
def _running(planned: Sequence[Process]) -> Iterator[list[Process]]:
    """All of them started; all of them ended afterwards."""
    started: list[Process] = []
    try:
        for process in planned:
            process.start()
            started.append(process)
        yield started
    finally:
        deadline = time.monotonic() + GRACE
        for process in started:
            process.ask_to_end()
        for process in started:
            process.end(deadline)


@dataclass(frozen=True)
class House:
    """All that runs here."""

    processes: Sequence[Process]
    embedded: Embedded
    redis_url: str

    @property
    def urls(self) -> list[str]:
        """The receivers' addresses."""
        return [process.url for process in self.processes if process.url is not None]

    def works(self, process: Process) -> bool:
        """Whether a process does what it is for: only receivers and workers can be asked."""
        if process.url is not None:
            return _takes_webhooks(process.url)
        return process.kind != WORKER or process.name in _answering(self.redis_url, len(self._workers))

    def ready(self) -> bool:
        """Every receiver takes webhooks, and a worker, where there is any, is there to work on them."""
        if not all(map(_takes_webhooks, self.urls)):
            return False
        return not self._workers or not self._workers.isdisjoint(_answering(self.redis_url, 1))

    @property
    def _workers(self) -> set[str]:
        return {process.name for process in self.processes if process.kind == WORKER}

    def facts(self, rollout: Rollout) -> dict[str, Any]:
        """What another command may know of us; the address of a database that is not ours is not ours to tell."""
        own = {"database_url": self.embedded.database_url} if "PostgreSQL" in self.embedded.servers else {}
        return {
            "pid": os.getpid(),
            **({"url": self.urls[0]} if self.urls else {}),
            "urls": self.urls,
            "secret": "environment" if os.environ.get(SECRET) else "kept",
            **own,
            "processes": [{"name": process.name, "pid": process.popen.pid} for process in self.processes],
            "restart": rollout.facts(),
        }


def _watch(house: House, rollout: Rollout) -> NoReturn:
    """Starts again what died, for ever; says once when a webhook would be taken; replaces all of it when asked."""
    deadline: float | None = time.monotonic() + READY_WITHIN
    told: dict[str, Any] = {}
    while True:
        for news in house.embedded.tend():
            say(news)
        for process in house.processes:
            process.mend(for_good=deadline is not None)
        if deadline is None:
            rollout.step(house)
        facts = house.facts(rollout)
        if facts != told:
            house.embedded.announce(facts)
            told = facts
        if deadline is not None and house.ready():
            deadline = None
            sys.stdout.write(f"ready: {house.urls[0] if house.urls else 'no receiver'}\n")
            sys.stdout.flush()
        if deadline is not None and time.monotonic() > deadline:
            raise CommandError(f"not ready after {READY_WITHIN:g} s; the output above says why")
        time.sleep(STEP)


def _takes_webhooks(url: str) -> bool:
    with suppress(httpx.TransportError), httpx.Client(trust_env=False, timeout=2.0) as client:
        return client.get(f"{url}/readyz").status_code == 200
    return False


def _answering(redis_url: str, most: int) -> set[str]:
    """The workers that answer a ping, by the names that we gave them; so many are enough."""
    app.conf.update(broker_url=broker_url(redis_url))
    try:
        answers: list[dict[str, Any]] = app.control.broadcast("ping", reply=True, limit=most, timeout=1.0) or []
    except (kombu.exceptions.OperationalError, redis.RedisError, OSError):
        return set()
    finally:
        app.close()
    return {node.partition("@")[0] for answer in answers for node in answer}


# --- a rolling restart -----------------------------------------------------------------------------------------


class Rollout:
    """Replaces the processes one by one; where one does not come back, the others are left as they are."""

    def __init__(self, config_file: Path) -> None:
        self._config_file = config_file
        self._asked = False
        self._steps: Iterator[None] | None = None
        self._count = 0
        self._trouble: str | None = None

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler; the work is done by `step`."""
        self._asked = True

    def facts(self) -> dict[str, Any]:
        """How many are done, whether one is under way, and why the last one stopped, if it did."""
        return {"done": self._count, "under_way": self._steps is not None, "trouble": self._trouble}

    def step(self, house: House) -> None:
        """A small step, where there is one to take."""
        if self._steps is None and self._asked:
            self._asked, self._trouble = False, None
            self._steps = self._through(house)
        if self._steps is None:
            return
        try:
            next(self._steps)
            return
        except StopIteration:
            say("every process has been replaced")
        except (NotReplaced, ConfigError) as error:
            self._trouble = str(error)
            say(f"the restart has stopped: {error}", is_trouble=True)
        self._steps, self._count = None, self._count + 1

    def _through(self, house: House) -> Iterator[None]:
        read_config(self._config_file)  # what cannot start is better known before anything ends
        for process in sorted(house.processes, key=_turn):
            say(f"{process.name} is replaced")
            yield from process.replace(_asker(house, process))
            if process.url is not None and process.held is None:
                yield from _while(SETTLE)


def _while(seconds: float) -> Iterator[None]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield


def _turn(process: Process) -> int:
    return ROLLING.index(process.kind) if process.kind in ROLLING else len(ROLLING)


def _asker(house: House, process: Process) -> Callable[[], bool]:
    return lambda: house.works(process)


def restart(state_dir: Path) -> list[str]:
    """Has the running `up` replace its processes, and waits for it; their names. Raises CommandError."""
    facts = running(state_dir)
    if "pid" not in facts:
        raise CommandError(f"no `reservoir up` is running over {state_dir}; give --state-dir, or start it")
    wanted = facts["restart"]["done"] + 1 + facts["restart"]["under_way"]
    os.kill(facts["pid"], RESTART)
    while (facts := running(state_dir)) and facts["restart"]["done"] < wanted:
        time.sleep(STEP)
    if not facts:
        raise CommandError("`reservoir up` has ended meanwhile")
    if facts["restart"]["trouble"]:
        raise CommandError(f"the restart has stopped: {facts['restart']['trouble']}; the others run as before")
    return [process["name"] for process in facts["processes"]]


# --- ports -----------------------------------------------------------------------------------------------------


def _port(host: str, wanted: int) -> int:
    """The port, or a free one for 0. Raises CommandError."""
    with _bound(host, wanted) as sock:
        return int(sock.getsockname()[1])


def _flower(wish: Wish) -> int:
    """Flower's port. Raises ConfigError where it would let in anybody, CommandError."""
    if wish.scale.get("flower", 1):
        check_flower(_flower_host())
    return _port(_flower_host(), _wanted_port("FLOWER_PORT"))


def _flower_host() -> str:
    return os.environ.get("FLOWER_HOST") or "127.0.0.1"


def _bound(host: str, wanted: int, patience: float = 3.0) -> socket.socket:
    """A socket at this port, or at a free one for 0, on which nobody listens yet; a port that is just given back is
    waited for. Raises CommandError."""
    deadline = time.monotonic() + patience
    while True:
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        try:
            if wanted:  # a free port shall be ours alone, also before anybody listens
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, wanted))
        except (OSError, OverflowError) as error:
            sock.close()
            if time.monotonic() > deadline:
                why = getattr(error, "strerror", None) or error
                mend = "give another --port or --host, --port 0 takes a free one"
                raise CommandError(f"cannot listen on {host}:{wanted}: {why}; {mend}") from None
        else:
            return sock
        time.sleep(0.1)


def _wanted_port(name: str) -> int:
    wanted = os.environ.get(name) or "0"
    if not wanted.isdigit() or int(wanted) > 65535:
        raise ConfigError(name, "takes a port's number; leave it out for a free one")
    return int(wanted)


def _counted(state_dir: Path, metrics: int) -> dict[str, str]:
    """Where the processes put what they count; nowhere while nobody adds it up."""
    return {"PROMETHEUS_MULTIPROC_DIR": str(state_dir / "metrics")} if metrics else {}


def _url(host: str, port: int) -> str:
    """As somebody on this machine reaches it."""
    if host in ("0.0.0.0", "::"):  # noqa: S104  (compared, not bound)
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
