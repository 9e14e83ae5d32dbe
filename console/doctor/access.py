"""Whether we may ask the providers, and they can reach us. Shows names of secrets, never one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import httpx
from sqlalchemy import Engine

from console.doctor.finding import Finding, fail, ok, span, warn
from schemas.delivery import now as clock
from schemas.endpoints import Endpoint
from workers.calls import Cache, Caller, client
from workers.database import engine
from workers.errors import CredentialsMissing, CredentialsRefused, DeliveryError
from workers.provider import Auth, Call, Provider
from workers.seal import Seal
from workers.tokens import Token, Tokens

SOON: Final = timedelta(days=3)
"""So long before its end a token that nothing renews is worth a word."""
PATIENCE: Final = 10.0

QUESTIONS: Final[Mapping[str, Call]] = {
    "lockme": Call(name="test", path="/test", auth=Auth.OAUTH),
    "reservekit": Call(name="services", path="/services", auth=Auth.BEARER_KEY, params={"page_size": "1"}),
    "timekit": Call(name="bookings", path="/bookings", auth=Auth.BASIC_EMPTY_USER, params={"limit": "1"}),
    "checkfront": Call(name="ping", path="/ping", auth=Auth.BASIC_KEY_SECRET),
    # A customer of this name is nobody's: an empty list, and the permission that is needed.
    "synthesisvr": Call(
        name="customers",
        path="/data/customers/{key}/search/reservoir-doctor",
        auth=Auth.KEY_IN_PATH,
        accepts=frozenset({404}),
    ),
}
"""What each provider can be asked with a key, cheaply and without changing anything."""
NEEDED: Final[Mapping[Auth, tuple[str, ...]]] = {
    Auth.BEARER_KEY: ("api_key",),
    Auth.KEY_IN_PATH: ("api_key",),
    Auth.BASIC_EMPTY_USER: ("api_key",),
    Auth.BASIC_KEY_SECRET: ("api_key", "api_secret"),
}


# --- what we have ------------------------------------------------------------------------------------------------


def credentials(endpoint: Endpoint, provider: Provider, token: Token | None, now: datetime) -> Finding:
    """Whether an endpoint has what its provider wants; `token`: the one that is kept for it."""
    name = f"credentials of {endpoint.name}"
    if provider.oauth is not None and not endpoint.has("access_token"):
        return _of_token(name, endpoint, token, now)
    held = [secrets for secrets in provider.secrets if endpoint.has(*secrets)]
    if held:
        names = [endpoint.variable(what) for secrets in held for what in secrets]
        return ok(name, f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} there")
    if not provider.secrets:
        return ok(name, "none are needed")
    ways = " or ".join(" and ".join(map(endpoint.variable, secrets)) for secrets in provider.secrets)
    return warn(name, "none: only what the webhook itself says is known", f"set {ways}")


def _of_token(name: str, endpoint: Endpoint, token: Token | None, now: datetime) -> Finding:
    login = f"run `reservoir lockme login {endpoint.name}`"
    if token is None:
        return fail(name, "there is no token, and without it no content", login)
    renewed = token.refresh_token is not None and endpoint.has("client_id", "client_secret")
    if token.expires_at is None or renewed:
        return ok(name, "a token is kept" + (", and renewed by itself" if renewed else ""))
    left = token.expires_at - now
    if token.refresh_token is not None:
        login = f"set {endpoint.variable('client_id')} and {endpoint.variable('client_secret')}, which renew it"
    if left <= timedelta():
        return fail(name, f"the token ended {span(-left)} ago, and nothing renews it", login)
    text = f"the token ends in {span(left)}, and nothing renews it"
    return warn(name, text, login) if left <= SOON else ok(name, text)


def token_of(endpoint: Endpoint, database: Engine, secret: str) -> tuple[Token | None, Finding | None]:
    """The token that is kept for an endpoint, and what is wrong with it where it cannot be opened."""
    try:
        return Tokens(database, Seal(secret), clock).get(endpoint.name), None
    except CredentialsRefused as error:
        return None, fail(f"credentials of {endpoint.name}", str(error), "set the secret that it was sealed with")


# --- who answers -------------------------------------------------------------------------------------------------


def public_url(url: str | None, hook: tuple[str, str] | None) -> Finding:
    """Whether a receiver answers at the address that the providers have; `hook`: an endpoint's name and its path.

    A bare GET to a hook is answered like a browser's: nothing is kept of it, and a wrong secret is a 404.
    """
    name = "public URL"
    if not url:
        return warn(name, "RESERVOIR_PUBLIC_URL is not set", "set it to the address that the providers call")
    if hook is None:
        return warn(name, "not asked: without configuration and secret no URL is known", "see the lines above")
    endpoint, path = hook
    try:
        with httpx.Client(timeout=PATIENCE) as http:
            status = http.get(url.rstrip("/") + path).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        mend = "look at DNS, the certificate, the load balancer and the receiver behind it"
        return fail(name, f"{url} does not answer ({type(error).__name__})", mend)
    if status == 404:
        mend = "give the receivers this secret and this configuration, and let /hooks/ through to them"
        return fail(name, f"{url} does not know the URL of {endpoint}", mend)
    if status != 200:
        return fail(name, f"{url} answered {status}", "look at the load balancer and the receiver behind it")
    text = f"{url} answers for {endpoint}"
    if url.startswith("http://"):
        return warn(name, text, "providers should call https, or the secret URL can be read on the way")
    return ok(name, text)


def api(endpoint: Endpoint, provider: Provider, secrets: Mapping[str, str], token: Token | None) -> Finding | None:
    """Whether the provider's API takes our credentials; None where there is nothing to ask with, or nothing to ask."""
    call = QUESTIONS.get(provider.name)
    if call is None:
        return None
    name = f"API of {endpoint.name}"
    if call.auth is Auth.OAUTH:
        fixed = secrets.get("access_token") or (token.access_token if token and not token.stale(clock()) else None)
        if fixed is None:
            return None
        # As a fixed token, so that asking renews nothing and writes nothing.
        endpoint, secrets = replace(endpoint, secrets=frozenset({"access_token"})), {"access_token": fixed}
    elif not endpoint.has(*NEEDED[call.auth]):
        return None
    with client() as http:
        caller = Caller(
            http=http,
            provider=provider,
            endpoint=endpoint,
            secrets=secrets,
            tokens=Tokens(engine("postgresql://"), Seal(""), clock),  # never asked: a token is fixed by now
            cache=Cache(),
            clock=clock,
        )
        try:
            caller(call)
        except (CredentialsRefused, CredentialsMissing) as error:
            if call.auth is Auth.OAUTH:
                return fail(name, f"refuses the token ({call.name})", "log in again, or paste a new token")
            return fail(name, f"refuses our key ({error})", "set the right one")
        except DeliveryError as error:
            return warn(
                name, f"does not answer as it should ({error})", "see the provider's status page; it is tried again"
            )
    return ok(name, f"takes our credentials ({call.name})")
