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


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment and the configuration file. Raises ConfigError."""
    redis_url = environment.get("REDIS_URL", "")
    if not redis_url:
        raise ConfigError("REDIS_URL", "is not set; `reservoir up` sets it, elsewhere it is yours to set")
    return Settings(
        redis_url=redis_url,
        secret=installation_secret(environment),
        config=load(environment.get("RESERVOIR_CONFIG", DEFAULT_FILE), environment),
        body_limit=_positive(environment, "RESERVOIR_BODY_LIMIT", BODY_LIMIT),
    )


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdigit() or int(text) == 0:
        raise ConfigError(name, "takes a whole number of bytes above 0, such as 1048576")
    return int(text)
