"""One question over HTTP and its whole answer, in a time that holds. Knows no provider, no delivery and no table.

An HTTP client's timeouts are those of single reads: a server that sends a byte now and then never meets them. Here
every read, write, connect and look-up of a name is cut to what is left of the time for the whole.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ssl import SSLContext
from typing import Any, Final

import httpcore
import httpx

TIMEOUT: Final = httpx.Timeout(5.0, connect=2.0)
LARGEST: Final = 8 * 1024 * 1024
"""Bytes of an answer that we read."""
LONGEST: Final = timedelta(seconds=10)
"""The time for one answer as a whole."""
LIMITS: Final = httpx.Limits(max_connections=64, max_keepalive_connections=16, keepalive_expiry=3.0)
"""More connections than threads ask at once, so nobody waits for one. Idle ones go before most servers drop them."""

NO_ANSWER: Final = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError)
"""How a call ends without an answer; the last one is a host name that nobody can look up."""
DROPPED: Final = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
"""How a kept connection shows that the server has closed it meanwhile."""


LATER: Final = frozenset({407, 408, 421, 423, 425})
"""Refusals of the moment: a proxy, a lock, a connection."""


class NoAnswer(Exception):
    """Nothing came, or not all of it; the text says what happened and holds no address."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back, read whole."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_page(self) -> bool:
        """Whether it is HTML: the word of a proxy or of a web server, not of an API that speaks JSON."""
        return self.content[:1024].lstrip().lower().startswith((b"<!doctype html", b"<html"))


def client() -> httpx.Client:
    """One HTTP client for a process and all its threads: connections are kept, redirects with our keys not followed.

    It keeps silent in the log: what it would say there holds whole URLs, and with them the keys of some providers. It
    keeps no cookies: two venues may share a provider's host, and one's session is not the other's.
    """
    for name in ("httpx", "httpcore"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    no_cookies = CookieJar(policy=DefaultCookiePolicy(allowed_domains=()))
    made = httpx.Client(
        timeout=TIMEOUT, limits=LIMITS, follow_redirects=False, headers={"user-agent": "reservoir"}, cookies=no_cookies
    )
    # httpx hands no network backend on to the pools of httpcore, which take one; a proxy has a pool of its own.
    for transport in (made._transport, *made._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = _Punctual()
    return made


def ask(
    http: httpx.Client, request: httpx.Request, *, auth: httpx.Auth | None = None, longest: timedelta = LONGEST
) -> Reply:
    """The whole answer, whatever its status. Raises NoAnswer.

    A GET that went out on a kept connection which the server was just closing is asked once more: that is no failure.
    """
    with within(longest) as patience:
        try:
            try:
                return _whole(http, request, auth)
            except DROPPED:
                if request.method != "GET" or patience.connected:
                    raise
                return _whole(http, request, auth)
        except NO_ANSWER as error:
            # `from None`: the chained exception holds the request, and with it the URL and the headers.
            raise NoAnswer(patience.late or type(error).__name__) from None


def _whole(http: httpx.Client, request: httpx.Request, auth: httpx.Auth | None) -> Reply:
    response = http.send(request, auth=auth or httpx.USE_CLIENT_DEFAULT, stream=True)
    try:
        read = bytearray()
        for chunk in response.iter_bytes():
            read += chunk
            if len(read) > LARGEST:
                raise NoAnswer(f"answered more than {LARGEST} bytes")
        return Reply(response.status_code, response.headers, bytes(read))
    finally:
        response.close()


def retry_after(value: str | None, now: datetime) -> timedelta | None:
    """`Retry-After` in either of its forms (seconds, HTTP date); None where it is missing or nonsense."""
    if value is None:
        return None
    try:
        if value.strip().isdigit():
            return timedelta(seconds=int(value))
        when = parsedate_to_datetime(value)
        return max(timedelta(), (when if when.tzinfo else when.replace(tzinfo=UTC)) - now)
    except (ValueError, OverflowError):
        return None


# --- the time for the whole ------------------------------------------------------------------------------------


@dataclass
class Patience:
    """How long this thread goes on with what it asks now."""

    until: float
    longest: timedelta
    connected: bool = False
    """A connection was opened meanwhile, so it is not a kept one that failed."""

    @property
    def left(self) -> float:
        """Seconds, below 0 when the time is over."""
        return self.until - time.monotonic()

    @property
    def late(self) -> str | None:
        """What to say of an answer that the time cut off."""
        return f"the answer took longer than {self.longest.total_seconds():g} s" if self.left <= 0 else None


_patience: ContextVar[Patience | None] = ContextVar("patience", default=None)


@contextmanager
def within(longest: timedelta) -> Iterator[Patience]:
    """Everything that this thread asks inside takes so long together, or what is left of an outer limit."""
    outer, until = _patience.get(), time.monotonic() + longest.total_seconds()
    if outer is not None and outer.until < until:
        until, longest = outer.until, outer.longest
    patience = Patience(until, longest)
    token = _patience.set(patience)
    try:
        yield patience
    finally:
        _patience.reset(token)


def seconds_left() -> float:
    """How much of the innermost limit is left, at least 0; without one, the time of an answer."""
    patience = _patience.get()
    return max(0.0, patience.left) if patience is not None else LONGEST.total_seconds()


def _cut(timeout: float | None, late: type[httpcore.TimeoutException]) -> float | None:
    """The timeout of one step, cut to what is left; raises `late` when nothing is."""
    patience = _patience.get()
    if patience is None:
        return timeout
    left = patience.left
    if left <= 0:
        raise late
    return left if timeout is None else min(timeout, left)


class _Punctual(httpcore.NetworkBackend):
    """Sockets that keep to the patience of the thread that uses them."""

    def __init__(self) -> None:
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        patience = _patience.get()
        if patience is not None:
            patience.connected = True
        failed: Exception = httpcore.ConnectError()
        for address in _addresses(host, port, _cut(timeout, httpcore.ConnectTimeout)):
            left = _cut(timeout, httpcore.ConnectTimeout)
            try:
                return _Stream(self._plain.connect_tcp(address, port, left, local_address, socket_options))
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failed = error
        raise failed


def _addresses(host: str, port: int, timeout: float | None) -> list[str]:
    """The host's addresses. The system's resolver knows no timeout of ours, so it is left behind in its thread."""
    found: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result(list(dict.fromkeys(str(answer[4][0]) for answer in answers)))
        except Exception as error:  # noqa: BLE001  told to the thread that waits
            found.set_exception(error)

    threading.Thread(target=look_up, name="look-up", daemon=True).start()
    try:
        return found.result(timeout)
    except TimeoutError:
        raise httpcore.ConnectTimeout from None
    except OSError:
        raise httpcore.ConnectError from None


class _Stream(httpcore.NetworkStream):
    def __init__(self, plain: httpcore.NetworkStream) -> None:
        self._plain = plain

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._plain.read(max_bytes, _cut(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._plain.write(buffer, _cut(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._plain.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            left = _cut(timeout, httpcore.ConnectTimeout)
        except httpcore.ConnectTimeout:
            self.close()
            raise
        return _Stream(self._plain.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)
