"""`reservoir.toml` as values: the endpoints, their settings, the names of their secrets, their URLs.

Checks what is common to all endpoints. What only one provider can set is declared in its file in
`workers/providers/` and checked by `workers.registry`. Values of secrets stay in the environment: here are
only their names.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, available_timezones

DEFAULT_FILE: Final = "reservoir.toml"
SECRET: Final = "RESERVOIR_SECRET"  # noqa: S105  (a name, not a secret)
NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

COMMON: Final[Mapping[str, type]] = {
    "provider": str,
    "timezone": str,
    "api_url": str,
    "calls_per_second": float,
    "generation": int,
    "previous_until": date,
    "silence": str,
}
"""The keys that every endpoint takes, with the type of their value."""

TABLES: Final = ("endpoints", "alarms")


class ConfigError(Exception):
    """Bad configuration: where it stands, and the mend, in one line."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(" ".join(f"{where}: {what}".split()))  # a quoted key of TOML may hold line ends


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """One URL given to one provider for one venue."""

    name: str
    provider: str
    timezone: str | None = None
    """IANA name, for providers that send wall-clock times."""
    api_url: str | None = None
    """In place of the provider's API base."""
    calls_per_second: float | None = None
    """What the account's plan allows, in place of the provider's published limit."""
    generation: int = 1
    """Raise it by one to rotate the URL."""
    previous_until: datetime | None = None
    """Until then (UTC) the URL of the previous generation is accepted too."""
    silence: timedelta | Literal["off"] | None = None
    """How long it may be silent before that is an alarm; None: what its own rhythm says."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What only this provider can set, checked against the provider's declaration."""
    secrets: frozenset[str] = frozenset()
    """The WHATs of the secrets that the environment holds for this endpoint, in lower case: `api_key` …"""

    def has(self, *whats: str) -> bool:
        """Whether the environment holds all of these secrets."""
        return self.secrets.issuperset(whats)

    def variable(self, what: str) -> str:
        """The environment variable of one secret: `RESERVOIR_ARCADE_VIENNA_API_KEY`."""
        return f"RESERVOIR_{self.name.upper().replace('-', '_')}_{what.upper()}"

    def secrets_in(self, environment: Mapping[str, str]) -> dict[str, str]:
        """Secret WHAT → value. Not kept here, so that no `repr` shows one."""
        return {what: environment[self.variable(what)].strip() for what in sorted(self.secrets)}

    def zone(self) -> ZoneInfo | None:
        """The venue's time zone, where one is set."""
        return ZoneInfo(self.timezone) if self.timezone else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """All endpoints of an installation, by name."""

    file: str
    endpoints: Mapping[str, Endpoint]
    alarms: Mapping[str, Any] = field(default_factory=dict)
    """How people are told, as it stands in the file; checked by `console.alarms.settings`."""

    def __iter__(self) -> Iterator[Endpoint]:
        return iter(self.endpoints.values())


WHATS: Final = ("api_key", "api_secret", "webhook_secret", "client_id", "client_secret", "access_token")


def load(file: str | os.PathLike[str], environment: Mapping[str, str] = os.environ) -> Config:
    """Reads the configuration. Raises ConfigError, in one line with the file, the key and the mend."""
    name = str(file)
    try:
        document = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(name, "no such file; copy reservoir.toml from the project, or give --config") from None
    except OSError as error:
        raise ConfigError(name, f"cannot be read ({error.strerror}); mend its path or its permissions") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(name, f"is no TOML: {error}; mend that line") from None
    return parse(document, name, environment)


def parse(document: Mapping[str, Any], file: str, environment: Mapping[str, str]) -> Config:
    """A parsed document as values. Raises ConfigError."""
    for key in document:
        if key not in TABLES:
            raise ConfigError(f"{file}: {key}", f"unknown key{did_you_mean(key, TABLES)}; remove it")
    tables = document.get("endpoints", {})
    if not isinstance(tables, dict):
        raise ConfigError(f"{file}: endpoints", "must be tables; write [endpoints.my-venue]")
    if not tables:
        raise ConfigError(f"{file}: endpoints", "there is none; add [endpoints.my-venue] with its provider")
    alarms = document.get("alarms", {})
    if not isinstance(alarms, dict):
        raise ConfigError(f"{file}: alarms", "must be a table; write [alarms]")
    endpoints = {name: _endpoint(file, name, table, environment) for name, table in tables.items()}
    return Config(file=file, endpoints=endpoints, alarms=alarms)


def _endpoint(file: str, name: str, table: Any, environment: Mapping[str, str]) -> Endpoint:
    where = f"{file}: endpoints.{name}"
    if not NAME.fullmatch(name):
        raise ConfigError(where, "the name goes into the URL; use a-z, 0-9 and '-', at most 63")
    if not isinstance(table, dict):
        raise ConfigError(where, f"must be a table; write [endpoints.{name}]")
    for key, kind in COMMON.items():
        if key in table and not _is(kind, table[key]):
            raise ConfigError(f"{where}.{key}", f"takes {_WORDS[kind]}, not {table[key]!r}")
    if "provider" not in table:
        raise ConfigError(f"{where}.provider", 'is missing; write for example provider = "lockme"')
    generation = table.get("generation", 1)
    if generation < 1:
        raise ConfigError(f"{where}.generation", "counts from 1; raise it by one to rotate the URL")
    endpoint = Endpoint(
        name=name,
        provider=table["provider"],
        timezone=_timezone(f"{where}.timezone", table.get("timezone")),
        api_url=_url(f"{where}.api_url", table.get("api_url")),
        calls_per_second=_speed(f"{where}.calls_per_second", table.get("calls_per_second")),
        generation=generation,
        previous_until=_instant(table.get("previous_until")),
        silence=_silence(f"{where}.silence", table.get("silence")),
        options={key: value for key, value in table.items() if key not in COMMON},
    )
    held = (what for what in WHATS if environment.get(endpoint.variable(what), "").strip())
    return replace(endpoint, secrets=frozenset(held))


_WORDS: Final = {str: "a text", int: "a whole number", float: "a number", date: "a date such as 2026-12-31"}


def _is(kind: type, value: Any) -> bool:
    kinds = (int, float) if kind is float else (kind,)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _timezone(where: str, name: str | None) -> str | None:
    if name is None:
        return None
    if name not in _zones():
        mend = did_you_mean(name, _zones())
        raise ConfigError(where, f"{name!r} is no IANA time zone; write one such as Europe/Vienna{mend}")
    return name


@cache
def _zones() -> set[str]:
    """The names; looking them up reads hundreds of files."""
    return available_timezones()


def _url(where: str, url: str | None) -> str | None:
    if url is None:
        return None
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", url) or not _has_host(url):
        raise ConfigError(where, f"{url!r} is no URL; write it as https://host/path")
    return url.rstrip("/")


def _has_host(url: str) -> bool:
    """Whether a host stands in it, and behind that at most a port."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _speed(where: str, calls: float | None) -> float | None:
    """From a few in a minute to more than one server answers; what lies beyond is a slip, and so is `nan`."""
    if calls is None:
        return None
    if not 0.01 <= calls <= 1000:
        raise ConfigError(where, "is how many API calls a second your plan allows; write a number from 0.01 to 1000")
    return float(calls)


_SPAN: Final = re.compile(r"([1-9]\d{0,3})([mhd])")
_UNITS: Final = {"m": "minutes", "h": "hours", "d": "days"}


def _silence(where: str, text: str | None) -> timedelta | Literal["off"] | None:
    if text is None:
        return None
    if text == "off":
        return "off"
    span = _SPAN.fullmatch(text)
    if span is None:
        raise ConfigError(where, f'{text!r} is no span of time; write 90m, 6h, 2d or "off"')
    return timedelta(**{_UNITS[span[2]]: int(span[1])})


def _instant(value: date | datetime | None) -> datetime | None:
    """A bare day means its end, UTC: until that day is over."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        return datetime.combine(value, time.max, UTC)
    return value if value.utcoffset() is not None else value.replace(tzinfo=UTC)


def did_you_mean(word: str, words: Collection[str]) -> str:
    """` (did you mean X?)`, or nothing where no word is near."""
    near = get_close_matches(word, words, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


# --- URLs ----------------------------------------------------------------------------------------------------


def token(secret: str, endpoint: str, generation: int) -> str:
    """The part of an endpoint's URL that cannot be guessed: 160 bits in 40 hexadecimal digits."""
    message = f"hook\n{endpoint}\n{generation}".encode()
    return hmac.new(secret.encode(), message, hashlib.sha256).hexdigest()[:40]


def path(secret: str, endpoint: Endpoint) -> str:
    """The path to paste behind the public host into the provider's dashboard."""
    return f"/hooks/{endpoint.name}/{token(secret, endpoint.name, endpoint.generation)}"


def installation_secret(environment: Mapping[str, str] = os.environ) -> str:
    """The installation's own secret. Raises ConfigError where it is missing or too short to be one."""
    secret = environment.get(SECRET, "")
    if not secret:
        raise ConfigError(SECRET, "is not set; set it to 32 random characters, the same for every process")
    if len(secret) < 16:
        raise ConfigError(SECRET, "is too short to be a secret; use at least 16 random characters")
    return secret
