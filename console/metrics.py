"""`reservoir metrics`: one small process for each machine that tells Prometheus what this machine's processes count,
and what only a look at the configuration, Redis, PostgreSQL and the spool can tell.

A look is short and has a limit: a part that is away is told as such (`reservoir_reachable`) and left out. The counts of
processes that have ended are added up in files of their own, so that sums never fall. For an internal port: what it
says holds no secret and nothing of a guest, but it is nobody else's business.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from sqlalchemy import ColumnElement, Engine, func, literal_column, select
from sqlalchemy.exc import SQLAlchemyError

from console.context import CommandError, read_config, url_of_environment
from console.spooled import Spooled, spooled
from schemas import metrics as names
from schemas.delivery import EPOCH, INBOX, door_of, now
from schemas.endpoints import Config
from schemas.logs import configure, log
from schemas.meters import DIRECTORY, Labels, Sheet, is_alive
from schemas.metrics import Kind, Metric
from workers.app import HOUSEKEEPING, SWEEPS
from workers.database import engine, reachable
from workers.tables import deliveries

PORT: Final = 9464
"""The one that OpenTelemetry's Prometheus exporters have."""
SAMPLE: Final = 1000
"""Ids of the inbox that are looked at for the oldest one."""
PAST: Final = "past"
"""In place of a process, in the names of the files that add up those that have ended."""
HEARTBEATS: Final = "reservoir:worker:*"
IN_HAND: Final = "reservoir:in-hand:*"
GATE: Final = "reservoir:circuit:{}:gate"

Sample = tuple[Metric, Labels, float]
Look = Callable[[datetime], Iterable[Sample]]


# --- looks -------------------------------------------------------------------------------------------------------


def at_config(config: Config) -> Iterator[Sample]:
    """The deadlines of the providers that name one."""
    for endpoint in config:
        deadline = door_of(endpoint.provider).deadline
        if deadline is not None:
            yield names.ACK_DEADLINE, (endpoint.name,), deadline.total_seconds()


def at_redis(redis: Redis, config: Config, now: datetime) -> Iterator[Sample]:
    """The inbox, the queues, the workers' heartbeats, the circuits. Raises RedisError."""
    queues = sorted({endpoint.provider for endpoint in config} | {HOUSEKEEPING, SWEEPS})
    endpoints = [endpoint.name for endpoint in config]
    with redis.pipeline(transaction=False) as pipe:
        pipe.hlen(INBOX)
        pipe.hrandfield(INBOX, SAMPLE)
        for queue in queues:
            pipe.llen(queue)
        for endpoint in endpoints:
            pipe.exists(GATE.format(endpoint))
        size, ids, *rest = pipe.execute()
    yield names.INBOX, (), size
    yield names.INBOX_OLDEST, (), _oldest(ids or (), now)
    for queue, length in zip(queues, rest, strict=False):
        yield names.QUEUE, (queue,), length
    for endpoint, stands in zip(endpoints, rest[len(queues) :], strict=True):
        yield names.CIRCUIT_OPEN, (endpoint,), stands
    heard = _told(redis, HEARTBEATS)
    yield names.IN_HAND, (), sum(_told(redis, IN_HAND))
    yield names.WORKERS, (), len(heard)
    if heard:
        yield names.HEARTBEAT_OLDEST, (), max(0.0, now.timestamp() - min(heard))


def _oldest(ids: Iterable[bytes], now: datetime) -> float:
    """Age by the ids, which begin with their time; what is none of ours has no age."""
    times = [int(one[:8] + one[9:13], 16) for one in ids if _OURS.fullmatch(one)]
    return max(0.0, (now - EPOCH).total_seconds() - min(times) / 1000) if times else 0.0


_OURS: Final = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


def _told(redis: Redis, traces: str) -> list[float]:
    """What each worker has left under such a name."""
    keys = list(redis.scan_iter(match=traces, count=1000))
    found: Any = redis.mget(keys) if keys else []
    return [float(what) for what in found if what is not None]


def at_postgres(opened: Engine, now: datetime) -> Iterator[Sample]:
    """What is not settled, and what is owed: by indexes that hold only these rows. Raises SQLAlchemyError."""
    table = deliveries.c
    reason = func.coalesce(table.reason, literal_column("''"))
    who = select(table.endpoint, table.state, reason, func.count(), func.min(table.received_at))
    looked_for: tuple[ColumnElement[bool], ...] = (
        table.next_attempt_at.is_not(None),
        literal_column("state = 'parked'"),
    )
    owed = select(table.endpoint, func.count()).where(table.acknowledge_at.is_not(None)).group_by(table.endpoint)
    oldest: dict[Labels, datetime] = {}
    with opened.connect() as connection:
        for these in looked_for:
            for endpoint, state, why, count, since in connection.execute(
                who.where(these).group_by(table.endpoint, table.state, reason)
            ):
                yield names.OPEN, (endpoint, state, why), count
                oldest[endpoint, state] = min(since, oldest.get((endpoint, state), since))
        for endpoint, count in connection.execute(owed):
            yield names.OWED, (endpoint,), count
    for labels, since in oldest.items():
        yield names.OPEN_OLDEST, labels, max(0.0, (now - since).total_seconds())


def at_spool(directory: Path, now: datetime) -> Iterator[Sample]:
    """What waits on this machine's disk; nothing where no receiver has been yet. Raises OSError."""
    found = spooled(directory) if directory.exists() else Spooled()
    yield names.SPOOL_FILES, (), found.files
    yield names.SPOOL_BYTES, (), found.bytes
    yield names.SPOOL_OLDEST, (), max(0.0, (now - found.since).total_seconds()) if found.since else 0.0
    yield names.SPOOL_CORRUPT, (), found.corrupt


@dataclass(frozen=True, kw_only=True, eq=False)
class Looks:
    """Everything that there is to look at on this machine. For Prometheus's registry."""

    config: Config
    parts: dict[str, Look]
    """By its name in `reservoir_reachable`."""
    directory: Path | None = None
    """Where the processes' files are; None: nobody counts."""

    def collect(self) -> Iterator[Family]:
        """All metrics: what is counted, then what is seen."""
        with _ONE_AT_A_TIME:
            if self.directory is not None:
                tidy(self.directory)
                yield from MultiProcessCollector(None, str(self.directory)).collect()  # type: ignore[no-untyped-call]
            yield from _families([*self.samples(now())])

    def samples(self, now: datetime) -> Iterator[Sample]:
        """What a look tells."""
        yield from at_config(self.config)
        if self.directory is not None:
            for kind, count in alive(self.directory).items():
                yield names.PROCESSES, (kind,), count
        for what, look in self.parts.items():
            try:
                found = [*look(now)]
            except (RedisError, SQLAlchemyError, OSError, ValueError) as error:
                log.warning("look-failed", what=what, error=type(error).__name__)
                yield names.REACHABLE, (what,), 0
            else:
                yield names.REACHABLE, (what,), 1
                yield from found


_ONE_AT_A_TIME: Final = threading.Lock()
"""Two Prometheus servers may ask at once, and files are tidied up by the way."""


def _families(samples: Sequence[Sample]) -> Iterator[Family]:
    """In the order of the table, also those of which there is nothing to tell now: who reads sees that they exist."""
    told = defaultdict[Metric, list[tuple[Labels, float]]](list)
    for metric, labels, value in samples:
        told[metric].append((labels, value))
    for metric in names.SEEN:
        family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, value in told[metric]:
            family.add_metric(labels, float(value))
        yield family


# --- the files of processes ---------------------------------------------------------------------------------------


def alive(directory: Path) -> dict[str, int]:
    """How many processes of each kind count here."""
    kinds = defaultdict[str, int](int)
    for lock in sorted(directory.glob("*.lock")):
        kinds[lock.name.partition("-")[0]] += is_alive(lock)
    return dict(kinds)


def tidy(directory: Path) -> None:
    """Adds up what processes counted that have ended, and removes their files.

    A machine that loses its power in the middle of it may count the last process twice.
    """
    ended = [lock for lock in sorted(directory.glob("*.lock")) if not is_alive(lock)]
    for kind in (Kind.COUNTER, Kind.HISTOGRAM):
        files = [file for lock in ended if (file := directory / f"{kind}_{lock.stem}.db").exists()]
        if files:
            _add_up(directory / f"{kind}_{PAST}.db", files)
    for lock in ended:
        lock.unlink(missing_ok=True)


def _add_up(into: Path, files: Sequence[Path]) -> None:
    sums = defaultdict[str, float](float)
    for file in (into, *files):
        if file.exists():
            for name, value, *_ in MmapedDict.read_all_values_from_file(str(file)):  # type: ignore[no-untyped-call]
                sums[name] += value
    sheet = Sheet(into)
    for name, value in sums.items():
        sheet.set(name, value)
    sheet.write()
    sheet.close()
    for file in files:
        file.unlink()


# --- the process --------------------------------------------------------------------------------------------------


@contextmanager
def looks(config: Config, state_dir: Path) -> Iterator[Looks]:
    """What the environment names: a machine that only receives has no DATABASE_URL."""
    parts: dict[str, Look] = {}
    with ExitStack() as resources:
        if url := os.environ.get("REDIS_URL"):
            redis = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0))
            resources.callback(redis.close)
            parts["redis"] = lambda now: at_redis(redis, config, now)
        if url := url_of_environment():
            opened = engine(url, pool_size=1, patience="5s")
            resources.callback(opened.dispose)
            parts["postgres"] = lambda now: _at_postgres_in_time(opened, now)
        spool = os.environ.get("RESERVOIR_SPOOL_DIR") or state_dir / "spool"
        if spool != "off":
            parts["spool"] = lambda now: at_spool(Path(spool), now)
        counted = os.environ.get(DIRECTORY)
        if counted:
            Path(counted).mkdir(mode=0o700, parents=True, exist_ok=True)
        yield Looks(config=config, parts=parts, directory=Path(counted) if counted else None)


def _at_postgres_in_time(opened: Engine, now: datetime) -> Iterable[Sample]:
    """A server that hangs is not asked: it would keep the answer to Prometheus waiting for longer than that waits."""
    if not reachable(opened):
        raise OSError("it takes no connections")
    return at_postgres(opened, now)


def serve(config_file: Path, state_dir: Path, host: str, port: int) -> None:
    """Answers Prometheus until it is asked to end. Raises ConfigError, CommandError."""
    configure("metrics")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with looks(read_config(config_file), state_dir) as ours, suppress(KeyboardInterrupt):
        registry = CollectorRegistry()
        registry.register(ours)
        try:
            server, thread = start_http_server(port, host, registry)
        except OSError as error:
            mend = "give another --port or --host"
            raise CommandError(f"cannot listen on {host}:{port}: {error.strerror}; {mend}") from None
        for missing in _missing(ours):
            log.warning("not-told", text=missing)
        sys.stdout.write(f"metrics: http://{host}:{server.server_port}/metrics\n")
        sys.stdout.flush()
        thread.join()


def _missing(ours: Looks) -> Iterator[str]:
    """What is not told, and why; a machine may be meant to be so."""
    if ours.directory is None:
        yield f"{DIRECTORY} is not set, so receivers and workers count nothing; only looks are told"
    for what, variable in (("redis", "REDIS_URL"), ("postgres", "DATABASE_URL")):
        if what not in ours.parts:
            yield f"{variable} is not set, so {what} is not looked at"
