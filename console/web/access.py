"""Who is let in: sessions, the token of a form, patience with wrong passwords, and the rule for loopback.

Decides and performs no I/O: `console.web.guard` asks these for each request. What is remembered of wrong passwords is
remembered in this one process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

from itsdangerous import BadData, URLSafeTimedSerializer

from console.web.settings import PASSWORD

HOURS: Final = 12
"""For so long a session lasts, from the login on."""
COOKIE: Final = "reservoir_console"


# --- sessions --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One browser, from its first page on; `known` once it has given the password."""

    id: str
    known: bool = False

    @property
    def name(self) -> str:
        """As the audit has it: enough to tell sessions apart, too little to use one."""
        return self.id[:8]


class Sessions:
    """Sessions as signed cookies. The key follows from the installation's secret and the password: a change of either
    ends every session."""

    def __init__(self, secret: str, password: str | None) -> None:
        self._key = hmac.new(secret.encode(), f"console\n{password or ''}".encode(), hashlib.sha256).digest()
        self._password = password
        self._signed = URLSafeTimedSerializer(
            self._key, salt="session", signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256}
        )

    def fresh(self, *, known: bool = False) -> Session:
        """A new one, with an id that nobody has seen before: a login never takes the id of before."""
        return Session(id=secrets.token_hex(16), known=known)

    def cookie(self, session: Session) -> str:
        """As the browser keeps it."""
        return str(self._signed.dumps([session.id, session.known]))

    def read(self, cookie: str | None) -> Session | None:
        """The inverse; None where it is missing, forged or too old."""
        if not cookie:
            return None
        try:
            identity, known = self._signed.loads(cookie, max_age=HOURS * 3600)
        except (BadData, ValueError, TypeError):
            return None
        return Session(id=str(identity), known=bool(known))

    def token(self, session: Session) -> str:
        """What every form of this session carries."""
        return hmac.new(self._key, f"form\n{session.id}".encode(), hashlib.sha256).hexdigest()

    def is_token(self, session: Session, given: str) -> bool:
        """In constant time."""
        return hmac.compare_digest(self.token(session).encode(), given.encode())

    def is_password(self, given: str) -> bool:
        """In a time that says nothing of the password, nor of its length."""
        if self._password is None:
            return False
        return hmac.compare_digest(self._hash(self._password), self._hash(given))

    def _hash(self, text: str) -> bytes:
        return hmac.new(self._key, text.encode(), hashlib.sha256).digest()


# --- wrong passwords -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Tally:
    failures: int = 0
    latest: float = 0.0
    until: float = 0.0


class Patience:
    """How long an address has to wait after wrong passwords: a few are free, then each doubles the wait.

    All addresses together count as one more, with more free attempts and a shorter wait, so that many addresses do not
    try many passwords and nobody is locked out for long.
    """

    FREE: Final = 5
    FREE_ALL: Final = 50
    MOST: Final = 300.0
    MOST_ALL: Final = 30.0
    FORGOTTEN: Final = 3600.0
    """Seconds after which failures do not count any more."""
    KEPT: Final = 10_000
    """Addresses that are remembered, the latest ones."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._of: OrderedDict[str, _Tally] = OrderedDict()
        self._all = _Tally()

    def wait(self, address: str) -> float:
        """Seconds until the next attempt is looked at; 0: now."""
        own = self._of.get(_origin(address), _Tally())
        return max(0.0, own.until - self._clock(), self._all.until - self._clock())

    def failed(self, address: str) -> None:
        """A wrong password."""
        own = self._of.pop(_origin(address), _Tally())
        self._of[_origin(address)] = own
        while len(self._of) > self.KEPT:
            self._of.popitem(last=False)
        self._count(own, self.FREE, self.MOST)
        self._count(self._all, self.FREE_ALL, self.MOST_ALL)

    def succeeded(self, address: str) -> None:
        """The right one."""
        self._of.pop(_origin(address), None)
        self._all = _Tally()

    def _count(self, tally: _Tally, free: int, most: float) -> None:
        now = self._clock()
        tally.failures = 1 if now - tally.latest > self.FORGOTTEN else tally.failures + 1
        tally.latest = now
        if tally.failures >= free:
            tally.until = now + min(2.0 ** min(tally.failures - free + 1, 20), most)


def _origin(address: str) -> str:
    """Whoever has an IPv6 address has the 2^64 beside it."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    return str(ip_network((parsed, 64), strict=False)) if isinstance(parsed, IPv6Address) else address


# --- loopback --------------------------------------------------------------------------------------------------

NAMES: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
FORWARDED: Final = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")
"""Headers of a proxy: what comes through one may come from anywhere."""


def refusal(client: str | None, server: str | None, host: str, headers: Collection[str]) -> str | None:
    """Without a password: why a request is not answered; None where it goes from this machine to this machine.

    The name in `Host` counts too: a page on the internet can make its own name point to 127.0.0.1.
    """
    if not _is_loopback(client) or not _is_loopback(server):
        return "Without a password the console answers this machine only."
    if any(name in headers for name in FORWARDED):
        return "Without a password the console is not for a proxy."
    if hostname(host) not in NAMES:
        return "Without a password the console answers to the names localhost and 127.0.0.1 only."
    return None


MEND: Final = f"Set {PASSWORD} in the console's environment to at least 12 characters, start it again, and log in."


def _is_loopback(address: str | None) -> bool:
    try:
        parsed = ip_address(address or "")
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, IPv6Address) else None
    return (mapped or parsed).is_loopback


def hostname(host: str) -> str:
    """The name in a `Host` header, without its port; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def is_own(origin: str | None, host: str) -> bool:
    """Whether a form was sent from a page of ours. Every browser says with a POST where it comes from."""
    try:
        return bool(origin) and bool(host) and urlsplit(origin or "").netloc.lower() == host.lower()
    except ValueError:
        return False
