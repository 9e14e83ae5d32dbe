"""The environment of a worker as one frozen value. The only place in `workers/` that reads environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from schemas.endpoints import DEFAULT_FILE, Config, ConfigError, Endpoint, installation_secret, load
from workers import registry


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a worker needs to know."""

    redis_url: str = field(repr=False)
    database_url: str = field(repr=False)
    secret: str = field(repr=False)
    config: Config
    environment: Mapping[str, str] = field(repr=False)

    def secrets_of(self, endpoint: Endpoint) -> dict[str, str]:
        """Secret WHAT → value, of one endpoint."""
        return endpoint.secrets_in(self.environment)


def needed(environment: Mapping[str, str], name: str) -> str:
    """The value of an environment variable. Raises ConfigError."""
    value = environment.get(name, "")
    if not value:
        raise ConfigError(name, "is not set; `reservoir up` sets it, elsewhere it is yours to set")
    return value


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment and the configuration file. Raises ConfigError."""
    config = load(environment.get("RESERVOIR_CONFIG", DEFAULT_FILE), environment)
    registry.check(config)
    return Settings(
        redis_url=needed(environment, "REDIS_URL"),
        database_url=needed(environment, "DATABASE_URL"),
        secret=installation_secret(environment),
        config=config,
        environment=environment,
    )
