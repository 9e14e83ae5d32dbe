"""Where a command works: the configuration, the installation's secret, the database, and what already runs.

A database comes from `DATABASE_URL`; else from the `reservoir up` that runs over the same state directory; else it is
started for as long as the command lasts. Knows no table.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.exc import ArgumentError

from console.services import ANNOUNCEMENT, Embedded, StateInUse, is_owned, prepare
from schemas.endpoints import SECRET, Config, ConfigError, Endpoint, did_you_mean, installation_secret, load
from workers import registry
from workers.database import engine, sqlalchemy_url

PATIENCE: Final = 60.0
"""Seconds that a command waits for another one that is just starting or stopping the servers."""


class CommandError(Exception):
    """What a person asked for cannot be done: why, and the mend, in one line."""


def read_config(file: Path) -> Config:
    """The configuration, checked against the providers. Raises ConfigError."""
    config = load(file)
    registry.check(config)
    return config


def endpoint_of(config: Config, name: str) -> Endpoint:
    """One endpoint by its name. Raises CommandError, with the name that was probably meant."""
    if name not in config.endpoints:
        mend = did_you_mean(name, config.endpoints)
        raise CommandError(f"{config.file}: there is no endpoint {name!r}{mend}; it has {', '.join(config.endpoints)}")
    return config.endpoints[name]


_AGO: Final = re.compile(r"(\d{1,6})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def instant(text: str, now: datetime) -> datetime:
    """`90m`, `24h` or `7d` before now, a day, or a moment; without a zone it is UTC. Raises CommandError."""
    try:
        if ago := _AGO.fullmatch(text):
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text)
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise CommandError(f"{text!r} is no time; write 90m, 24h, 7d, 2026-11-20 or 2026-11-20T18:30") from None


# --- the installation's secret ---------------------------------------------------------------------------------


def secret(state_dir: Path) -> str:
    """RESERVOIR_SECRET of the environment, else the one that the state directory keeps; made once.

    Raises ConfigError where the environment's is too short, CommandError where a running `up` uses another one.
    """
    if os.environ.get(SECRET):
        return installation_secret()
    if running(state_dir).get("secret") == "environment":
        raise CommandError(f"the running `reservoir up` has {SECRET} from its environment; set the same one here")
    return kept_secret(state_dir)


def kept_secret(state_dir: Path) -> str:
    """Two processes that make it at once agree on the one that was first."""
    prepare(state_dir)
    file = state_dir / "secret"
    if not file.exists():
        draft = state_dir / f"secret.{os.getpid()}"
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as writing:
            writing.write(secrets.token_urlsafe(32))
            writing.flush()
            os.fsync(writing.fileno())
        with suppress(FileExistsError):
            os.link(draft, file)
        draft.unlink()
    return installation_secret({SECRET: file.read_text(encoding="ascii").strip()})


# --- what runs -------------------------------------------------------------------------------------------------


def running(state_dir: Path) -> Mapping[str, Any]:
    """What the owner of the state directory has announced; empty where it has none, or has not yet."""
    if not is_owned(state_dir):
        return {}
    with suppress(FileNotFoundError, ValueError):
        return dict(json.loads((state_dir / ANNOUNCEMENT).read_text(encoding="utf-8")))
    return {}


@contextmanager
def database(state_dir: Path) -> Iterator[Engine]:
    """A connection pool to the database, see above. Raises ConfigError, ServiceError, CommandError."""
    with database_url(state_dir) as url:
        opened = engine(url)
        try:
            yield opened
        finally:
            opened.dispose()


@contextmanager
def database_url(state_dir: Path) -> Iterator[str]:
    """The address of the database, for as long as the context lasts."""
    url = url_of_environment()
    with ExitStack() as resources:
        yield url or _running_or_started(state_dir, resources)


def url_of_environment() -> str | None:
    """`DATABASE_URL`, where it is set. Raises ConfigError where it is none."""
    url = os.environ.get("DATABASE_URL")
    try:
        return url and sqlalchemy_url(url) and url
    except (ArgumentError, ValueError):
        raise ConfigError("DATABASE_URL", "is no URL; write it as postgresql://user:password@host:5432/name") from None


def _running_or_started(state_dir: Path, resources: ExitStack) -> str:
    """Another command that is at work, or an `up` that is about to start or to end, is waited for."""
    from workers.migrate import upgrade  # Alembic takes a while to import, and is seldom needed

    deadline = time.monotonic() + PATIENCE
    while True:
        facts = running(state_dir)
        if facts and "database_url" not in facts:
            raise CommandError("the running `reservoir up` has DATABASE_URL from its environment; set the same here")
        if facts:
            return str(facts["database_url"])
        try:
            embedded = resources.enter_context(Embedded(state_dir, with_redis=False))
        except StateInUse:
            if time.monotonic() > deadline:
                raise
        else:
            upgrade(embedded.database_url)
            return embedded.database_url
