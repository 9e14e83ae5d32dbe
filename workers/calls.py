"""Performs the calls that providers describe: the only HTTP that leaves us. Knows no delivery and no table.

Keys and tokens are filled in here and shown nowhere: an error names the call, never its URL.

Every request to an API takes a turn in its account's bucket, where a limit is known: lookups, acknowledgements, and
the asking again with a renewed token, because the provider counts them all. What the cache answers takes none. The
renewal of an OAuth token takes none either: it is one in an hour, outside of the API proper, it holds a lock in
Postgres meanwhile, and nothing goes on without it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, Protocol
from urllib.parse import quote

import httpx

from schemas.endpoints import Config, Endpoint
from workers import metrics
from workers.errors import (
    CredentialsMissing,
    CredentialsRefused,
    DeliveryError,
    NotYet,
    ProviderUnavailable,
    Refused,
    Throttled,
)
from workers.provider import Answer, Auth, Call, Limit, Provider, Rate
from workers.reading import storable
from workers.tokens import OAuthClient, Token, Tokens
from workers.wire import LATER, LONGEST, NO_ANSWER, NoAnswer, Reply, ask, client, retry_after, seconds_left, within

__all__ = ["Buckets", "Cache", "Caller", "Circuits", "api_base", "client", "limits", "oauth_client"]

RENEWING: Final = timedelta(seconds=5)
"""A token is not renewed with less time left: an answer that is cut off there takes the only refresh token with it."""
A_MOMENT: Final = timedelta(seconds=1)
"""How long an account is left alone after a refusal that names no time: shorter than any wait of a delivery."""
SPEAKS_OF_LIMITS: Final = re.compile(rb"rate.?limit|too many requests", re.IGNORECASE)
"""In the body of a 503, with which Timekit refuses what is above its limit. Its own words are documented nowhere."""

UNIX: Final = re.compile(r"[0-9]{1,11}")


class Circuits(Protocol):
    """What is known about APIs that are away; `workers.circuit.Circuits` says what each does."""

    def check(self, endpoint: str) -> None: ...
    def succeeded(self, endpoint: str) -> None: ...
    def failed(self, endpoint: str, wish: timedelta | None = None) -> None: ...


class Buckets(Protocol):
    """What keeps calls below the providers' limits; `workers.bucket.Buckets` says what each does."""

    def take(self, limit: Limit, patience: timedelta) -> timedelta: ...
    def hold(self, limit: Limit, wait: timedelta) -> None: ...


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


# --- whose calls count together ----------------------------------------------------------------------------------


def limits(
    config: Config,
    providers: Mapping[str, Provider],
    secrets_of: Callable[[Endpoint], Mapping[str, str]],
    secret: str,
) -> dict[str, Limit]:
    """Each endpoint's limit by its name, where there is one. `secret`, the installation's, goes into accounts' names.

    Endpoints of one account share its limit. Where they name several, the lowest holds for all of them: a limit is the
    account's, and the slip is rather in the higher one.
    """
    sharing: defaultdict[str, list[Endpoint]] = defaultdict(list)
    for endpoint in config:
        sharing[_account(providers[endpoint.provider], endpoint, secrets_of(endpoint), secret)].append(endpoint)
    return {
        endpoint.name: Limit(account=account, rate=rate)
        for account, endpoints in sharing.items()
        if (rate := _rate(providers[endpoints[0].provider], endpoints)) is not None
        for endpoint in endpoints
    }


def _account(provider: Provider, endpoint: Endpoint, secrets: Mapping[str, str], secret: str) -> str:
    """The same where provider, address and credentials are the same; those for webhooks say nothing about an account.

    An OAuth application with several logins is one account: whether its provider counts by application or by login is
    not known, and this way neither is exceeded. Without credentials in the environment an endpoint is on its own.
    """
    ours = sorted((what, value) for what, value in secrets.items() if what != "webhook_secret")
    who = [provider.name, api_base(provider, endpoint), ours or endpoint.name]
    digest = hmac.new(secret.encode(), json.dumps(["account", *who]).encode(), hashlib.sha256).hexdigest()
    return f"{provider.name}-{digest[:16]}"


def _rate(provider: Provider, endpoints: Sequence[Endpoint]) -> Rate | None:
    named = [endpoint.calls_per_second for endpoint in endpoints if endpoint.calls_per_second is not None]
    if not named:
        return provider.rate
    return (provider.rate or Rate(per_second=1, burst=1)).at(min(named))


# --- calling -----------------------------------------------------------------------------------------------------


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
    buckets: Buckets | None = None
    limit: Limit | None = None
    """With both, calls wait for their turn."""
    longest: timedelta = LONGEST
    """For a call with all that belongs to it: the wait for its turn, a token's renewal, and the asking again."""

    def __call__(self, call: Call) -> Answer:
        """The answer: a 2xx, or a status that the call accepts.

        Raises ProviderUnavailable (not asked, no answer, 5xx, no JSON), Throttled (429; 503 that names a time or speaks
        of a limit), NotYet (its turn would come too late), CredentialsMissing and CredentialsRefused (401, also after a
        refresh; 403), DatabaseTrouble (the token cannot be read), Refused (any other status).
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
            case NotYet():
                pass
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
        request, auth = self._request(call, token), self._basic(call)
        self._wait_for_turn(call)
        began = time.monotonic()
        try:
            reply = ask(self.http, request, auth=auth, longest=self.longest)
        except NoAnswer as error:
            metrics.asked(self.provider.name, metrics.NO_ANSWER, time.monotonic() - began)
            raise ProviderUnavailable(f"{call.name}: {error}") from None
        metrics.asked(self.provider.name, reply.status, time.monotonic() - began)
        self._heed(reply)
        return reply

    def _wait_for_turn(self, call: Call) -> None:
        """At most half of the time that is left: the answer has the other half. Raises NotYet."""
        if self.buckets is None or self.limit is None:
            return
        wait = self.buckets.take(self.limit, timedelta(seconds=seconds_left() / 2))
        if wait:
            raise NotYet(f"{call.name}: not asked yet: we stay below the provider's limit", after=wait)

    def _heed(self, reply: Reply) -> None:
        """What the answer says about the calls to come, for all workers."""
        if self.buckets is None or self.limit is None:
            return
        wait = pause(reply, self.clock())
        if wait:
            self.buckets.hold(self.limit, wait)

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
        if _throttles(reply, self.clock()):
            return Throttled(said, after=_named_wait(reply, self.clock()))
        if reply.status in (401, 403):
            return CredentialsRefused(said)
        if reply.status >= 500 or reply.status < 400 or reply.status in LATER:
            return ProviderUnavailable(said)
        return self._page(call, reply) if reply.is_page else Refused(said)

    def _page(self, call: Call, reply: Reply) -> DeliveryError:
        """The word of whatever stands in front of the API; when that has gone, the API speaks for itself."""
        return ProviderUnavailable(f"{call.name}: answered {reply.status} with a page")


def pause(reply: Reply, now: datetime) -> timedelta | None:
    """How long the account should be left alone after this answer; None where it asks for nothing.

    Also an answer that is none of a limit's may tell that it was the last one for now: ReserveKit's headers do.
    """
    if _throttles(reply, now):
        wait = _named_wait(reply, now)
        return A_MOMENT if wait is None else wait
    return _named_wait(reply, now) if _is_last(reply) else None


def _throttles(reply: Reply, now: datetime) -> bool:
    """A refusal of what is too much; a 503 is one where it says so, and an outage where it does not."""
    if reply.status != 503:
        return reply.status == 429
    tells_when = retry_after(reply.headers.get("retry-after"), now) is not None
    return tells_when or _is_last(reply) or SPEAKS_OF_LIMITS.search(reply.content[:1024]) is not None


def _is_last(reply: Reply) -> bool:
    return reply.headers.get("x-ratelimit-remaining", "").strip() == "0"


def _named_wait(reply: Reply, now: datetime) -> timedelta | None:
    """Until when `Retry-After` or else `X-RateLimit-Reset` says; that is Unix time, by the clock of who sends it."""
    wish = retry_after(reply.headers.get("retry-after"), now)
    reset = reply.headers.get("x-ratelimit-reset", "").strip()
    if wish is not None or not UNIX.fullmatch(reset):
        return wish
    return max(timedelta(), timedelta(seconds=int(reset) - _sent_at(reply, now).timestamp()))


def _sent_at(reply: Reply, now: datetime) -> datetime:
    """By the clock of who sent it; by ours where it does not say."""
    try:
        sent = parsedate_to_datetime(reply.headers.get("date", ""))
    except ValueError:
        return now
    return sent if sent.tzinfo else sent.replace(tzinfo=UTC)


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
