"""The receiver's environment as one frozen value. It holds no database credentials and no provider's secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from schemas.endpoints import DEFAULT_FILE, Config, ConfigError, installation_secret, load

BODY_LIMIT: Final = 1024 * 1024
PATIENCE: Final = 0.25
"""Seconds that a request waits for Redis: an eighth of the shortest deadline, SynthesisVR's two seconds."""
RETRY_AFTER: Final = 5
"""Seconds, in a 503."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a receiver needs to know."""

    redis_url: str = field(repr=False)
    secret: str = field(repr=False)
    config: Config
    body_limit: int = BODY_LIMIT
    """Bytes."""
    patience: float = PATIENCE
    """Seconds."""


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment and the configuration file. Raises ConfigError."""
    return Settings(
        redis_url=_redis_url(environment),
        secret=installation_secret(environment),
        config=load(environment.get("RESERVOIR_CONFIG", DEFAULT_FILE), environment),
        body_limit=_positive(environment, "RESERVOIR_BODY_LIMIT", BODY_LIMIT, "bytes"),
        patience=_positive(environment, "RESERVOIR_PATIENCE_MS", round(PATIENCE * 1000), "milliseconds") / 1000,
    )


def _redis_url(environment: Mapping[str, str]) -> str:
    url = environment.get("REDIS_URL", "")
    if not url:
        raise ConfigError("REDIS_URL", "is not set; `reservoir up` sets it, elsewhere it is yours to set")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigError("REDIS_URL", "is no URL of a Redis; write it as redis://host:6379/0")
    return url


def _positive(environment: Mapping[str, str], name: str, default: int, unit: str) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(name, f"takes a whole number of {unit} above 0, such as {default}")
    return int(text)
