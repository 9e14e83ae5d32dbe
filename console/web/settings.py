"""The environment of the console as one frozen value. The only place in the console's web part that reads it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from schemas.endpoints import DEFAULT_FILE, Config, ConfigError, installation_secret, load
from workers import registry
from workers.settings import needed

PASSWORD: Final = "RESERVOIR_CONSOLE_PASSWORD"  # noqa: S105  (a name, not a password)
SHORTEST: Final = 12
"""Characters of a password."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the console needs to know. It is given no provider's key."""

    database_url: str = field(repr=False)
    secret: str = field(repr=False)
    config: Config
    redis_url: str | None = field(default=None, repr=False)
    """None: the page says nothing of the inbox."""
    password: str | None = field(default=None, repr=False)
    """None: only this machine is answered."""


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment and the configuration file. Raises ConfigError."""
    config = load(environment.get("RESERVOIR_CONFIG", DEFAULT_FILE), environment)
    registry.check(config)
    return Settings(
        database_url=needed(environment, "DATABASE_URL"),
        secret=installation_secret(environment),
        config=config,
        redis_url=environment.get("REDIS_URL") or None,
        password=_password(environment),
    )


def _password(environment: Mapping[str, str]) -> str | None:
    password = environment.get(PASSWORD, "")
    if password and len(password) < SHORTEST:
        raise ConfigError(PASSWORD, f"is too short; use at least {SHORTEST} characters, or unset it for loopback only")
    return password or None
