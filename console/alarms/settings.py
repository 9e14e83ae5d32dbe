"""The table `[alarms]` of `reservoir.toml` as values: over which channels people are told. Secrets: the environment.

    [alarms]
    webhook = "https://example.org/alarms"      # signed with RESERVOIR_ALARMS_WEBHOOK_SECRET
    email_to = ["desk@example.org"]
    email_from = "reservoir@example.org"
    smtp = "smtp://user@mail.example.org:587"   # with RESERVOIR_ALARMS_SMTP_PASSWORD
    command = ["/usr/local/bin/page"]

Knows no channel's protocol.
"""

from __future__ import annotations

import binascii
import os
import re
import socket
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from schemas.endpoints import Config, ConfigError, did_you_mean

WEBHOOK_SECRET: Final = "RESERVOIR_ALARMS_WEBHOOK_SECRET"  # noqa: S105  (a name)
SMTP_PASSWORD: Final = "RESERVOIR_ALARMS_SMTP_PASSWORD"  # noqa: S105  (a name)
KEYS: Final = ("webhook", "email_to", "email_from", "smtp", "command")
LEAST_SECRET: Final = 16
"""Bytes."""
_ADDRESS: Final = re.compile(r"[^\s@<>,;:\"()]+@[^\s@<>,;:\"()]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class ToWebhook:
    """A POST, signed as Standard Webhooks has it."""

    url: str
    secret: str = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToEmail:
    """A mail to all of them, handed to this server."""

    to: tuple[str, ...]
    sender: str
    host: str
    port: int
    tls: bool
    """From the first byte on; without it TLS is begun where the server offers it, and demanded where we log in."""
    user: str | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToCommand:
    """A program that reads the notice from its stdin."""

    words: tuple[str, ...]


Target = ToWebhook | ToEmail | ToCommand


def targets(config: Config, environment: Mapping[str, str] = os.environ) -> dict[str, Target]:
    """Name of the channel → where it leads; empty where there is none. Raises ConfigError."""
    table, where = config.alarms, f"{config.file}: alarms"
    for key in table:
        if key not in KEYS:
            mend = did_you_mean(key, KEYS)
            raise ConfigError(f"{where}.{key}", f"unknown key{mend}; remove it, or use one of {', '.join(KEYS)}")
    found = {name: read(where, table, environment) for name, read in _READERS.items()}
    return {name: target for name, target in found.items() if target is not None}


def _webhook(where: str, table: Mapping[str, Any], environment: Mapping[str, str]) -> ToWebhook | None:
    if "webhook" not in table:
        return None
    url = _text(f"{where}.webhook", table["webhook"])
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s#]*", url) or not _host_of(url):
        raise ConfigError(f"{where}.webhook", "is no URL; write it as https://host/path")
    secret = environment.get(WEBHOOK_SECRET, "").strip()
    if not secret:
        raise ConfigError(WEBHOOK_SECRET, f"is not set; {_MAKE_ONE}, and give it to the receiver of {where}.webhook")
    try:
        strength = len(b64decode(secret.removeprefix("whsec_") + "==", validate=True))
    except binascii.Error:
        strength = 0
    if strength < LEAST_SECRET:
        raise ConfigError(WEBHOOK_SECRET, f"is no key of {LEAST_SECRET} bytes or more in base64; {_MAKE_ONE}")
    return ToWebhook(url=url, secret=secret)


_MAKE_ONE: Final = "make one with `echo whsec_$(openssl rand -base64 32)`"


def _email(where: str, table: Mapping[str, Any], environment: Mapping[str, str]) -> ToEmail | None:
    if not {"email_to", "email_from", "smtp"} & table.keys():
        return None
    for key in ("email_to", "smtp"):
        if key not in table:
            raise ConfigError(f"{where}.{key}", "is missing; mails need email_to and smtp")
    told = table["email_to"]
    to = tuple(_address(f"{where}.email_to", each) for each in (told if isinstance(told, list) else [told]))
    if not to:
        raise ConfigError(f"{where}.email_to", 'is empty; write ["you@example.org"]')
    sender = _address(f"{where}.email_from", table.get("email_from", f"reservoir@{socket.getfqdn() or 'localhost'}"))
    address = _text(f"{where}.smtp", table["smtp"])
    server = _parts(address)
    if server is None or server.scheme not in _PORTS or server.path.strip("/"):
        raise ConfigError(f"{where}.smtp", "is no mail server; write smtp://user@host:587 or smtps://user@host")
    if server.password is not None:
        raise ConfigError(f"{where}.smtp", f"holds a password; take it out, and set {SMTP_PASSWORD}")
    user = unquote(server.username) if server.username else None
    password = environment.get(SMTP_PASSWORD) or None
    if user and not password:
        raise ConfigError(SMTP_PASSWORD, f"is not set; {where}.smtp names the user {user}")
    return ToEmail(
        to=to,
        sender=sender,
        host=server.hostname or "",
        port=server.port or _PORTS[server.scheme],
        tls=server.scheme == "smtps",
        user=user,
        password=password if user else None,
    )


_PORTS: Final = {"smtp": 587, "smtps": 465}


def _command(where: str, table: Mapping[str, Any], environment: Mapping[str, str]) -> ToCommand | None:
    if "command" not in table:
        return None
    words = table["command"]
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word for word in words):
        raise ConfigError(f"{where}.command", 'is a list of words, for no shell reads it: ["/usr/local/bin/page"]')
    return ToCommand(words=tuple(words))


_READERS: Final[Mapping[str, Callable[[str, Mapping[str, Any], Mapping[str, str]], Target | None]]] = {
    "webhook": _webhook,
    "email": _email,
    "command": _command,
}
"""The channels by name, and what makes them of the table."""


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ConfigError(where, f"takes a text, not {value!r}")
    return value


def _address(where: str, value: Any) -> str:
    text = _text(where, value)
    if not _ADDRESS.fullmatch(text):
        raise ConfigError(where, f"{text!r} is no mail address; write it as you@example.org")
    return text


def _host_of(url: str) -> bool:
    parts = _parts(url)
    return parts is not None and bool(parts.hostname)


def _parts(url: str) -> Any:
    """The parts of a URL with a host; None where it is none."""
    try:
        parts = urlsplit(url)
        return parts if parts.hostname and parts.port != 0 else None
    except ValueError:
        return None
