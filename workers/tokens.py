"""OAuth tokens: kept in Postgres, sealed; refreshed by one thread of one process at a time.

A refresh token may be good for one use only, and every worker meets the expiry at the same moment. So whoever wants a
new token first locks the row, then looks whether somebody else has been there already; the threads of one process send
one of them. Knows no provider: where the token endpoint lives comes as `workers.provider.OAuth`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any, Final
from urllib.parse import urlencode

import httpx
from sqlalchemy import Connection, Engine, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from workers.errors import CredentialsMissing, CredentialsRefused, DatabaseTrouble, ProviderUnavailable, Throttled
from workers.seal import Seal, Unsealable
from workers.tables import tokens
from workers.wire import LATER, NO_ANSWER, NoAnswer, Reply, ask, retry_after, seconds_left

EARLY: Final = timedelta(seconds=60)
"""A token that ends so soon is refreshed before it is used."""

PATIENCE: Final = timedelta(seconds=3)
"""How long we wait for another process that renews the token just now."""
LOCK_NOT_AVAILABLE: Final = "55P03"


class BadToken(ValueError):
    """What was pasted is not the token JSON of a provider's panel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """An access token, and what renews it."""

    access_token: str
    refresh_token: str | None = None
    expires_at: datetime | None = None
    """None: the provider did not say."""

    def __repr__(self) -> str:
        return f"Token(expires_at={self.expires_at})"

    def stale(self, now: datetime) -> bool:
        """Whether it should be refreshed before its next use."""
        return self.expires_at is not None and self.expires_at - EARLY <= now

    def to_json(self) -> bytes:
        """The form that is sealed."""
        expires = int(self.expires_at.timestamp()) if self.expires_at else None
        return json.dumps(
            {"access_token": self.access_token, "refresh_token": self.refresh_token, "expires": expires}
        ).encode()


def read_token(document: Any, now: datetime) -> Token:
    """A token from a token endpoint (`expires_in`, seconds) or a panel (`expires`, Unix time). Raises BadToken."""
    if not isinstance(document, dict) or not isinstance(document.get("access_token"), str):
        raise BadToken("expected a JSON object with access_token")
    refresh = document.get("refresh_token")
    if refresh is not None and not isinstance(refresh, str):
        raise BadToken("refresh_token: expected a text")
    return Token(
        access_token=document["access_token"], refresh_token=refresh or None, expires_at=_expiry(document, now)
    )


def _expiry(document: dict[str, Any], now: datetime) -> datetime | None:
    try:
        if document.get("expires") is not None:
            return datetime.fromtimestamp(float(document["expires"]), UTC)
        if document.get("expires_in") is not None:
            return now + timedelta(seconds=float(document["expires_in"]))
    except (TypeError, ValueError, OverflowError, OSError):
        raise BadToken("expires: expected Unix seconds") from None
    return None


class Tokens:
    """The tokens of all endpoints."""

    def __init__(self, engine: Engine, seal: Seal, clock: Callable[[], datetime]) -> None:
        self._engine = engine
        self._seal = seal
        self._clock = clock
        self._renewals = _Shared()
        self._unkept: dict[str, _Unkept] = {}

    def endpoints(self) -> set[str]:
        """The endpoints that have a token."""
        with self._engine.connect() as connection:
            return set(connection.execute(select(tokens.c.endpoint)).scalars())

    def keep(self, endpoint: str, token: Token) -> None:
        """Keeps a token in place of the one before."""
        with self._engine.begin() as connection:
            self._write(connection, endpoint, token)

    def paste(self, endpoint: str, text: str) -> Token:
        """Keeps the token JSON that a provider's panel shows. Raises BadToken."""
        try:
            document = json.loads(text)
        except ValueError:
            raise BadToken("expected JSON, as the panel shows it") from None
        token = read_token(document, self._clock())
        self.keep(endpoint, token)
        return token

    def get(self, endpoint: str) -> Token | None:
        """The token as it is kept. Raises CredentialsRefused where it cannot be unsealed."""
        with self._engine.connect() as connection:
            sealed = connection.execute(
                select(tokens.c.sealed).where(tokens.c.endpoint == endpoint)
            ).scalar_one_or_none()
        return self._open(sealed) if sealed is not None else None

    def fresh(self, endpoint: str, refused: str | None, renew: Callable[[str], Token]) -> Token:
        """A token that can be used now; `refused` is the access token that the provider has just refused.

        `renew` trades a refresh token for a new token; the row is locked meanwhile, so no two processes trade the
        same one, and the threads of this one share what comes of it: one connection, one question. Raises
        CredentialsMissing, CredentialsRefused, ProviderUnavailable, Throttled, DatabaseTrouble.
        """
        with _database():
            token = self.get(endpoint)
        if token is None:
            raise CredentialsMissing(f"there is no token yet: run `reservoir lockme login {endpoint}`")
        if token.access_token != refused and not token.stale(self._clock()):
            return token

        def renewed() -> Token:
            with _database():
                return self._renew(endpoint, refused, renew)

        token = self._renewals.share(endpoint, renewed)
        # What another thread has waited for may be the very token that was refused to us.
        return token if token.access_token != refused else self._renewals.share(endpoint, renewed)

    def _renew(self, endpoint: str, refused: str | None, renew: Callable[[str], Token]) -> Token:
        with self._engine.begin() as connection:
            connection.execute(text(f"SET LOCAL lock_timeout = {PATIENCE // timedelta(milliseconds=1)}"))
            sealed = connection.execute(
                select(tokens.c.sealed).where(tokens.c.endpoint == endpoint).with_for_update()
            ).scalar_one_or_none()
            if sealed is None:
                raise CredentialsMissing(f"there is no token any more: run `reservoir lockme login {endpoint}`")
            token = self._open(sealed)
            if token.access_token != refused and not token.stale(self._clock()):
                return token  # somebody else has been here while we waited for the lock
            if token.refresh_token is None:
                raise CredentialsRefused("the token has ended and nothing renews it; log in again")
            renewed = self._traded(endpoint, token.refresh_token, renew)
            self._write(connection, endpoint, renewed)
        self._unkept.pop(endpoint, None)
        return renewed

    def _traded(self, endpoint: str, refresh_token: str, renew: Callable[[str], Token]) -> Token:
        """A new token for that refresh token. It is remembered until it is kept: when Postgres goes away just then,
        the old refresh token is spent and the new one would be lost, and a person would have to log in."""
        before = self._unkept.get(endpoint)
        if before is not None and before.traded == refresh_token:
            return before.token
        renewed = renew(refresh_token)
        if renewed.refresh_token is None:
            renewed = replace(renewed, refresh_token=refresh_token)
        self._unkept[endpoint] = _Unkept(refresh_token, renewed)
        return renewed

    def _write(self, connection: Connection, endpoint: str, token: Token) -> None:
        sealed = self._seal.close(token.to_json())
        connection.execute(
            insert(tokens)
            .values(endpoint=endpoint, sealed=sealed)
            .on_conflict_do_update(
                index_elements=[tokens.c.endpoint], set_={"sealed": sealed, "updated_at": func.now()}
            )
        )

    def _open(self, sealed: bytes) -> Token:
        try:
            return read_token(json.loads(self._seal.open(sealed)), self._clock())
        except Unsealable as error:
            raise CredentialsRefused(str(error)) from None


@dataclass(frozen=True, slots=True)
class _Unkept:
    """A token that was traded for a refresh token and does not stand in Postgres yet."""

    traded: str
    token: Token

    def __repr__(self) -> str:
        return "_Unkept()"


class _Shared:
    """Threads that want the same at the same time: one does the work, all have its result, or its error."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._under_way: dict[str, Future[Token]] = {}

    def share(self, name: str, work: Callable[[], Token]) -> Token:
        """The result of the work that is under way, or of this one. Raises what it raised, ProviderUnavailable."""
        with self._lock:
            joined = self._under_way.get(name)
            if joined is None:
                mine = self._under_way[name] = Future[Token]()
        if joined is not None:
            try:
                return joined.result(seconds_left())
            except TimeoutError:
                raise ProviderUnavailable("the token is being renewed, and that takes too long") from None
        try:
            mine.set_result(work())
        except BaseException as error:  # noqa: BLE001  raised below, and wherever somebody waits for it
            mine.set_exception(error)
        finally:
            with self._lock:
                del self._under_way[name]
        return mine.result()


@contextmanager
def _database() -> Iterator[None]:
    """Trouble of the database never parks what waits for a token: only its class is told."""
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == LOCK_NOT_AVAILABLE:
            raise ProviderUnavailable("another worker is renewing the token, and that takes too long") from None
        raise DatabaseTrouble(f"postgres: {type(error.orig).__name__}") from None
    except SQLAlchemyError as error:
        raise DatabaseTrouble(f"postgres: {type(error).__name__}") from None


# --- the provider's side of OAuth -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class OAuthClient:
    """Our application at a provider (RFC 6749)."""

    authorize_url: str
    token_url: str
    scope: str
    client_id: str
    client_secret: str

    def __repr__(self) -> str:
        return f"OAuthClient({self.authorize_url})"

    def login_url(self, redirect_uri: str, state: str) -> str:
        """Where a person says yes."""
        query = {
            "response_type": "code",
            "client_id": self.client_id,
            "redirect_uri": redirect_uri,
            "scope": self.scope,
            "state": state,
        }
        return f"{self.authorize_url}?{urlencode(query)}"

    def exchange(self, http: httpx.Client, code: str, redirect_uri: str, now: datetime) -> Token:
        """Trades the code of a login for a token. Raises CredentialsRefused, ProviderUnavailable, Throttled."""
        return self._trade(http, {"grant_type": "authorization_code", "code": code, "redirect_uri": redirect_uri}, now)

    def refresh(self, http: httpx.Client, refresh_token: str, now: datetime) -> Token:
        """Trades a refresh token for a new token. Raises CredentialsRefused, ProviderUnavailable, Throttled."""
        return self._trade(http, {"grant_type": "refresh_token", "refresh_token": refresh_token}, now)

    def _trade(self, http: httpx.Client, form: dict[str, str], now: datetime) -> Token:
        ours = {"client_id": self.client_id, "client_secret": self.client_secret}
        try:
            reply = ask(http, http.build_request("POST", self.token_url, data={**form, **ours}))
        except NoAnswer as error:
            raise ProviderUnavailable(f"token endpoint: {error}") from None
        except NO_ANSWER as error:
            raise ProviderUnavailable(f"token endpoint: {type(error).__name__}") from None
        return _token_of(reply, now)


def _token_of(reply: Reply, now: datetime) -> Token:
    said = f"token endpoint: answered {reply.status}"
    wish = retry_after(reply.headers.get("retry-after"), now)
    if reply.status == 429 or (reply.status == 503 and wish is not None):
        raise Throttled(said, after=wish)
    if reply.status >= 500 or 300 <= reply.status < 400 or reply.status in LATER:
        raise ProviderUnavailable(said)
    try:
        document = json.loads(reply.content)
    except (ValueError, RecursionError):
        raise ProviderUnavailable(f"{said} without JSON") from None
    # A body that has the key `error` is a refusal, also with a 2xx status
    # (lockmepl/oauth2-lockme, Lockme.php, checkResponse).
    if reply.status >= 400 or (isinstance(document, dict) and "error" in document):
        raise CredentialsRefused(f"the token endpoint refuses ({reply.status}); log in again")
    try:
        return read_token(document, now)
    except BadToken as error:
        raise ProviderUnavailable(f"token endpoint: {error}") from None
