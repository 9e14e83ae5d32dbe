"""Performs the calls that providers describe: the only HTTP that leaves us. Knows no delivery and no table.

Keys and tokens are filled in here and shown nowhere: an error names the call, never its URL.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Protocol
from urllib.parse import quote

import httpx

from schemas.endpoints import Endpoint
from workers.errors import (
    CredentialsMissing,
    CredentialsRefused,
    DeliveryError,
    ProviderUnavailable,
    Refused,
    Throttled,
)
from workers.provider import Answer, Auth, Call, Provider
from workers.reading import storable
from workers.tokens import OAuthClient, Token, Tokens
from workers.wire import LATER, LONGEST, NO_ANSWER, NoAnswer, Reply, ask, client, retry_after, seconds_left, within

__all__ = ["Cache", "Caller", "Circuits", "api_base", "client", "oauth_client"]

RENEWING: Final = timedelta(seconds=5)
"""A token is not renewed with less time left: an answer that is cut off there takes the only refresh token with it."""


class Circuits(Protocol):
    """What is known about APIs that are away; `workers.circuit.Circuits` says what each does."""

    def check(self, endpoint: str) -> None: ...
    def succeeded(self, endpoint: str) -> None: ...
    def failed(self, endpoint: str, wish: timedelta | None = None) -> None: ...


def api_base(provider: Provider, endpoint: Endpoint) -> str | None:
    """Where this endpoint's API lives, without a slash at the end."""
    return provider.api_base(endpoint) or provider.api_url


def oauth_client(provider: Provider, endpoint: Endpoint, secrets: Mapping[str, str]) -> OAuthClient | None:
    """Our application at the provider; None where the endpoint has no client id and secret."""
    if provider.oauth is None or not endpoint.has("client_id", "client_secret"):
        return None
    host = re.sub(r"/v\d+(\.\d+)?$", "", endpoint.api_url or provider.api_url or "")
    return OAuthClient(
        authorize_url=f"{host}{provider.oauth.authorize}",
        token_url=f"{host}{provider.oauth.token}",
        scope=provider.oauth.scope,
        client_id=secrets["client_id"],
        client_secret=secrets["client_secret"],
    )


@dataclass
class Cache:
    """Answers that may serve other deliveries for a while; of one process and its threads, so each step is one step
    of the dict: two threads that miss both ask, and either answer may stay."""

    _kept: dict[tuple[str, str], tuple[float, Answer]] = field(default_factory=dict)

    def get(self, endpoint: str, call: Call) -> Answer | None:
        """The answer, while it is fresh."""
        until, answer = self._kept.get((endpoint, call.name), (0.0, None))
        return answer if answer is not None and time.monotonic() < until else None

    def put(self, endpoint: str, call: Call, answer: Answer) -> None:
        """Keeps an answer for as long as the call allows."""
        if call.cache is None or not answer.ok:
            return
        if len(self._kept) > 1000:
            self._kept.clear()
        self._kept[(endpoint, call.name)] = (time.monotonic() + call.cache.total_seconds(), answer)


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Performs the calls of one endpoint."""

    http: httpx.Client
    provider: Provider
    endpoint: Endpoint
    secrets: Mapping[str, str] = field(repr=False)
    tokens: Tokens
    cache: Cache
    clock: Callable[[], datetime]
    circuits: Circuits | None = None
    """Without them every API counts as there."""
    longest: timedelta = LONGEST
    """For a call with all that belongs to it: a token's renewal, and the asking again."""

    def __call__(self, call: Call) -> Answer:
        """The answer: a 2xx, or a status that the call accepts.

        Raises ProviderUnavailable (not asked, no answer, 5xx, no JSON), Throttled (429; 503 that names a time),
        CredentialsMissing and CredentialsRefused (401, also after a refresh; 403), DatabaseTrouble (the token cannot
        be read), Refused (any other status).
        """
        kept = self.cache.get(self.endpoint.name, call)
        if kept is not None:
            return kept
        if self.circuits is not None:
            self.circuits.check(self.endpoint.name)
        asked = self.clock()  # what changes while we read the answer may not be in it
        try:
            with within(self.longest):
                answer = self._answer(call, self._performed(call), asked)
        except DeliveryError as error:
            self._learn(error)
            raise
        self._learn(None)
        self.cache.put(self.endpoint.name, call, answer)
        return answer

    def _learn(self, error: DeliveryError | None) -> None:
        """What a call's end says about the API: a refusal is an answer too, and trouble of our own says nothing."""
        if self.circuits is None:
            return
        match error:
            case None | CredentialsRefused() | Refused():
                self.circuits.succeeded(self.endpoint.name)
            case Throttled(after=timedelta() as wish):
                self.circuits.failed(self.endpoint.name, wish)
            case ProviderUnavailable():
                self.circuits.failed(self.endpoint.name)
            case _:
                pass

    # --- asking ---

    def _performed(self, call: Call) -> Reply:
        token = self._token(refused=None) if call.auth is Auth.OAUTH else None
        reply = self._send(call, token)
        if token is not None and _refuses_token(reply):
            reply = self._send(call, self._token(refused=token.access_token))
            if _refuses_token(reply):
                raise CredentialsRefused(f"{call.name}: the token is refused, also after a refresh")
        return reply

    def _token(self, refused: str | None) -> Token:
        """A pasted ACCESS_TOKEN as it is; else the kept token, renewed where it has ended or was refused."""
        if self.endpoint.has("access_token"):
            if refused is not None:
                raise CredentialsRefused("ACCESS_TOKEN is refused; paste a new one")
            return Token(access_token=self.secrets["access_token"])
        application = oauth_client(self.provider, self.endpoint, self.secrets)

        def renew(refresh_token: str) -> Token:
            if application is None:
                raise CredentialsMissing("the token has ended; renewing it takes CLIENT_ID and CLIENT_SECRET")
            if seconds_left() < RENEWING.total_seconds():
                raise ProviderUnavailable("there was no time left to renew the token")
            return application.refresh(self.http, refresh_token, self.clock())

        return self.tokens.fresh(self.endpoint.name, refused, renew)

    def _send(self, call: Call, token: Token | None) -> Reply:
        try:
            return ask(self.http, self._request(call, token), auth=self._basic(call), longest=self.longest)
        except NoAnswer as error:
            raise ProviderUnavailable(f"{call.name}: {error}") from None

    def _request(self, call: Call, token: Token | None) -> httpx.Request:
        base = api_base(self.provider, self.endpoint)
        if base is None:
            raise CredentialsMissing(f"{call.name}: the endpoint names no api_url")
        path, bearer = call.path, token.access_token if token else None
        if call.auth is Auth.KEY_IN_PATH:
            path = path.replace("{key}", quote(self._secret("api_key"), safe=""))
        elif call.auth is Auth.BEARER_KEY:
            bearer = self._secret("api_key")
        # As bytes: a letter that no header holds, a slip in the pasting, is the provider's to refuse.
        headers = [(b"authorization", f"Bearer {bearer}".encode())] if bearer is not None else []
        try:
            return self.http.build_request(call.method, base + path, params=dict(call.params) or None, headers=headers)
        except NO_ANSWER as error:
            raise ProviderUnavailable(f"{call.name}: {type(error).__name__}") from None

    def _basic(self, call: Call) -> httpx.BasicAuth | None:
        if call.auth is Auth.BASIC_EMPTY_USER:
            return httpx.BasicAuth("", self._secret("api_key"))
        if call.auth is Auth.BASIC_KEY_SECRET:
            return httpx.BasicAuth(self._secret("api_key"), self._secret("api_secret"))
        return None

    def _secret(self, what: str) -> str:
        if what not in self.secrets:
            raise CredentialsMissing(f"{self.endpoint.variable(what)} is not set")
        return self.secrets[what]

    # --- reading the answer ---

    def _answer(self, call: Call, reply: Reply, asked: datetime) -> Answer:
        if not 200 <= reply.status < 300 and reply.status not in call.accepts:
            raise self._failure(call, reply)
        if reply.status >= 400 and reply.is_page:
            raise self._page(call, reply)  # a message is gone when the API says so, not the server in front of it
        return Answer(status=reply.status, body=_document(call, reply), at=asked)

    def _failure(self, call: Call, reply: Reply) -> DeliveryError:
        said = f"{call.name}: answered {reply.status}"
        wish = retry_after(reply.headers.get("retry-after"), self.clock())
        if reply.status == 429 or (reply.status == 503 and wish is not None):
            return Throttled(said, after=wish)
        if reply.status in (401, 403):
            return CredentialsRefused(said)
        if reply.status >= 500 or reply.status < 400 or reply.status in LATER:
            return ProviderUnavailable(said)
        return self._page(call, reply) if reply.is_page else Refused(said)

    def _page(self, call: Call, reply: Reply) -> DeliveryError:
        """The word of whatever stands in front of the API; when that has gone, the API speaks for itself."""
        return ProviderUnavailable(f"{call.name}: answered {reply.status} with a page")


def _refuses_token(reply: Reply) -> bool:
    """A 401; or below 400 a body with the key `error`, which is an OAuth error in spite of its status
    (lockmepl/oauth2-lockme, Lockme.php, checkResponse)."""
    if reply.status == 401:
        return True
    if reply.status >= 400 or not reply.content.lstrip().startswith(b"{"):
        return False
    try:
        return json.loads(reply.content).get("error") is not None
    except (ValueError, RecursionError):
        return False


def _document(call: Call, reply: Reply) -> Any:
    """The JSON of an answer. Of a refusal that the call accepts, the status is enough."""
    if reply.status >= 300 or (call.method != "GET" and not reply.content.strip()):
        return None
    try:
        return storable(json.loads(reply.content))
    except (ValueError, RecursionError):
        raise ProviderUnavailable(f"{call.name}: answered {reply.status} without JSON") from None
