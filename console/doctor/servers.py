"""Redis and PostgreSQL: whether they answer, keep what they are given, and agree with us on the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, cast

from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from sqlalchemy import Connection, func, select, text

from console.doctor.finding import Finding, fail, ok, size, span, warn
from schemas.delivery import EPOCH
from schemas.delivery import now as our_clock
from workers.migrate import alembic_config

OLDEST_REDIS: Final = (6, 2)
OLDEST_POSTGRES: Final = 15
PERSISTENCE: Final = {"appendonly": "yes", "appendfsync": "always", "no-appendfsync-on-rewrite": "no"}
"""What makes a 2xx true."""
KEEPING: Final = "noeviction"
CROWDED: Final = 0.5
FULL: Final = 0.8
"""The share of Redis's memory from which on receivers leave it to the workers, and spool."""
APART: Final = timedelta(seconds=1)
FAR_APART: Final = timedelta(minutes=1)
"""Two clocks: retries come early or late, and what happened when is told wrongly."""


# --- Redis -------------------------------------------------------------------------------------------------------


def redis_client(url: str) -> Redis:
    """A client that does not wait for long."""
    return Redis.from_url(url, socket_timeout=3, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0))


def redis(client: Redis) -> list[Finding]:
    """All about Redis; one line where it does not answer."""
    try:
        info = client.info()
        config = _settings(client)
        clock = redis_clock(client)
    except (RedisError, OSError) as error:
        mend = "start it, look at its log, or set REDIS_URL; until then receivers spool"
        return [fail("Redis", f"does not answer ({type(error).__name__})", mend)]
    return [
        redis_version(info),
        redis_role(info),
        redis_persistence(config),
        redis_disk(info),
        redis_eviction(config, info),
        redis_memory(info),
        clock,
    ]


def redis_version(info: Mapping[str, Any]) -> Finding:
    """Whether it is new enough."""
    version = str(info.get("redis_version", "0"))
    known = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if known < OLDEST_REDIS:
        return fail("Redis", f"answers; it is version {version}", "6.2 or newer is needed")
    return ok("Redis", f"answers; version {version}")


def redis_role(info: Mapping[str, Any]) -> Finding:
    """Whether it takes writes."""
    if info.get("role") != "master":
        return fail("Redis' role", f"it is a {info.get('role')}", "set REDIS_URL to the one that takes writes")
    return ok("Redis' role", "takes writes")


def redis_persistence(config: Mapping[str, str]) -> Finding:
    """Whether an answer of it means that the disk has it."""
    name = "Redis' persistence"
    if not config:
        mend = f"see with its host that it has {_said(PERSISTENCE)}"
        return warn(name, "it does not show its settings", mend)
    wrong = {key: config[key] for key, value in PERSISTENCE.items() if config.get(key, value) != value}
    if wrong:
        mend = f"set {_said({key: PERSISTENCE[key] for key in wrong})} in its configuration"
        return fail(name, f"{_said(wrong)}: a 2xx promises more than it keeps", mend)
    return ok(name, _said(PERSISTENCE))


def redis_disk(info: Mapping[str, Any]) -> Finding:
    """Whether its own file can be written."""
    name = "Redis' disk"
    wrong = [key for key in ("aof_last_write_status", "aof_last_bgrewrite_status") if info.get(key, "ok") != "ok"]
    if wrong:
        return fail(name, f"{', '.join(wrong)}: it failed", "look at its disk and its log")
    return ok(name, "the last write went well")


def redis_eviction(config: Mapping[str, str], info: Mapping[str, Any]) -> Finding:
    """Whether it throws nothing away when it is full."""
    name = "Redis' eviction"
    policy = config.get("maxmemory-policy") or info.get("maxmemory_policy")
    if policy is None:
        return warn(name, "it does not show its policy", f"see with its host that it is {KEEPING}")
    if policy != KEEPING:
        return fail(name, f"maxmemory-policy {policy}: a full Redis throws requests away", f"set it to {KEEPING}")
    return ok(name, policy)


def redis_memory(info: Mapping[str, Any]) -> Finding:
    """How much of its memory is left."""
    name = "Redis' memory"
    used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    own = int(info.get("maxmemory", 0))
    limit = own or int(info.get("total_system_memory", 0))
    if not limit:
        return ok(name, f"{size(used)} in use")
    share = used / limit
    said = f"{size(used)} of {size(limit)} in use" + ("" if own else ", without a limit of its own")
    mend = "see why the inbox is not emptied (workers, PostgreSQL), or give it more memory"
    if share >= FULL:
        return fail(name, said, mend)
    return warn(name, said, mend) if share >= CROWDED else ok(name, said)


def redis_clock(client: Redis) -> Finding:
    """Its clock and ours."""

    def theirs() -> datetime:
        seconds, microseconds = client.time()
        return EPOCH + timedelta(seconds=seconds, microseconds=microseconds)

    return clock("Redis' clock", theirs)


def _settings(client: Redis) -> dict[str, str]:
    """The settings that matter; empty where it does not show them, as some hosted ones do."""
    try:  # one by one: before version 7, Redis takes no more names at once
        found = [cast("dict[str, str]", client.config_get(key)) for key in (*PERSISTENCE, "maxmemory-policy")]
    except RedisError:
        return {}
    return {str(_text(key)): str(_text(value)) for each in found for key, value in each.items()}


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _said(settings: Mapping[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


# --- PostgreSQL --------------------------------------------------------------------------------------------------


def postgres(connection: Connection) -> list[Finding]:
    """All about PostgreSQL, where it answers."""
    return [
        postgres_version(connection),
        migrations(connection),
        postgres_durability(connection),
        postgres_clock(connection),
    ]


def postgres_version(connection: Connection) -> Finding:
    """Whether it is new enough."""
    version = str(connection.execute(text("SHOW server_version")).scalar_one()).split()[0]
    if int(version.split(".")[0]) < OLDEST_POSTGRES:
        return fail("PostgreSQL", f"answers; it is version {version}", f"{OLDEST_POSTGRES} or newer is needed")
    return ok("PostgreSQL", f"answers; version {version}")


def migrations(connection: Connection) -> Finding:
    """Whether the tables are those of this code."""
    name = "migrations"
    scripts = ScriptDirectory.from_config(alembic_config(connection))
    there, head = MigrationContext.configure(connection).get_current_revision(), scripts.get_current_head()
    if there == head:
        return ok(name, f"at the newest, {head}")
    if there is not None and there not in {each.revision for each in scripts.walk_revisions()}:
        return fail(
            name, f"the database is at {there}, which this code does not know", "deploy the newer code here too"
        )
    return fail(name, f"the database is at {there or 'nothing'}, the code at {head}", "run `reservoir migrate`")


def postgres_durability(connection: Connection) -> Finding:
    """Whether what is committed is on the disk: after that the request leaves Redis."""
    name = "PostgreSQL's durability"
    held = {key: str(connection.execute(text(f"SHOW {key}")).scalar_one()) for key in ("fsync", "synchronous_commit")}
    wrong = {key: value for key, value in held.items() if value == "off"}
    if wrong:
        return fail(name, f"{_said(wrong)}: a power cut loses what was committed", "set it to on")
    return ok(name, _said(held))


def postgres_clock(connection: Connection) -> Finding:
    """Its clock and ours."""
    return clock("PostgreSQL's clock", lambda: connection.execute(select(func.clock_timestamp())).scalar_one())


# --- clocks ------------------------------------------------------------------------------------------------------


def clock(name: str, theirs: Callable[[], datetime]) -> Finding:
    """How far their clock is from ours, as far as the way to them lets us know."""
    before, began = our_clock(), time.monotonic()
    there = theirs()
    way = timedelta(seconds=time.monotonic() - began)
    return apart(name, there - before, way)


def apart(name: str, ahead: timedelta, way: timedelta) -> Finding:
    """`ahead`: what they said, less the time at which we asked; `way`: how long the answer took."""
    far = max(timedelta(), -ahead, ahead - way)
    if far < APART:
        return ok(name, "agrees with ours")
    said = f"{span(far)} {'ahead of' if ahead > timedelta() else 'behind'} ours"
    mend = "have both machines keep the time (NTP)"
    return fail(name, said, mend) if far >= FAR_APART else warn(name, said, mend)
