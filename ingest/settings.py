"""The receiver's environment as one frozen value. It holds no database credentials and no provider's secrets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from schemas.endpoints import DEFAULT_FILE, Config, ConfigError, installation_secret, load

BODY_LIMIT: Final = 1024 * 1024
PATIENCE: Final = 0.15
"""Seconds that a request waits for Redis before the spool has it. With what the spool may take it is half of the
shortest deadline, SynthesisVR's two seconds."""
SPOOL_LIMIT: Final = 1024**3
"""Bytes, for each receiver process: some hundred thousand webhooks."""
STATE_DIR: Final = ".reservoir"
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
    spool_dir: Path | None = None
    """None: there is no spool, and bad weather is answered 503."""
    spool_limit: int = SPOOL_LIMIT
    """Bytes."""


def read(environment: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment and the configuration file. Raises ConfigError."""
    return Settings(
        redis_url=_redis_url(environment),
        secret=installation_secret(environment),
        config=load(environment.get("RESERVOIR_CONFIG", DEFAULT_FILE), environment),
        body_limit=_positive(environment, "RESERVOIR_BODY_LIMIT", BODY_LIMIT, "bytes"),
        patience=_positive(environment, "RESERVOIR_PATIENCE_MS", round(PATIENCE * 1000), "milliseconds") / 1000,
        spool_dir=_spool_dir(environment),
        spool_limit=_positive(environment, "RESERVOIR_SPOOL_LIMIT", SPOOL_LIMIT, "bytes"),
    )


def _redis_url(environment: Mapping[str, str]) -> str:
    url = environment.get("REDIS_URL", "")
    if not url:
        raise ConfigError("REDIS_URL", "is not set; `reservoir up` sets it, elsewhere it is yours to set")
    if not url.startswith(("redis://", "rediss://", "unix://")):
        raise ConfigError("REDIS_URL", "is no URL of a Redis; write it as redis://host:6379/0")
    return url


def _spool_dir(environment: Mapping[str, str]) -> Path | None:
    named = environment.get("RESERVOIR_SPOOL_DIR", "")
    if named == "off":
        return None
    return Path(named or Path(environment.get("RESERVOIR_STATE_DIR") or STATE_DIR) / "spool").absolute()


def _positive(environment: Mapping[str, str], name: str, default: int, unit: str) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or int(text) == 0:
        raise ConfigError(name, f"takes a whole number of {unit} above 0, such as {default}")
    return int(text)
