"""The OAuth login of an endpoint, from a terminal: the address to open, and the way back to us.

Which provider it is, is the endpoint's affair: whoever declares OAuth can be logged in to.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Final
from urllib.parse import parse_qs, urlsplit

import typer
from sqlalchemy import Engine

from console.context import CommandError
from schemas.delivery import now
from schemas.endpoints import Endpoint
from workers.calls import client, oauth_client
from workers.errors import DeliveryError
from workers.registry import discover
from workers.seal import Seal
from workers.tokens import BadToken, OAuthClient, Tokens

PATIENCE: Final = 300.0
"""Seconds for a person to say yes in the browser."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """How the code comes back to us."""

    port: int
    redirect_uri: str | None
    paste: bool


def keeper(engine: Engine, secret: str) -> Tokens:
    """Where tokens are kept, sealed with the installation's secret."""
    return Tokens(engine, Seal(secret), now)


def paste(endpoint: Endpoint, text: str, tokens: Tokens) -> None:
    """Keeps the token JSON of a provider's panel. Raises CommandError."""
    _declares_oauth(endpoint)
    try:
        tokens.paste(endpoint.name, text)
    except BadToken as error:
        raise CommandError(f"this is no token: {error}") from None


def log_in(endpoint: Endpoint, wish: Wish, tokens: Tokens) -> None:
    """Sends a person to the provider, takes the code that comes back, keeps the token. Raises CommandError."""
    application = _application(endpoint)
    state = secrets.token_urlsafe(24)
    redirect_uri, answer = (_by_paste if wish.paste else _by_listening)(application, wish, state)
    code = _code(answer, state)
    try:
        with client() as http:
            tokens.keep(endpoint.name, application.exchange(http, code, redirect_uri, now()))
    except DeliveryError as error:
        raise CommandError(f"the login failed: {error}") from None


Answer = Mapping[str, list[str]]
"""The query of the address that the provider sends the browser to."""


def _by_listening(application: OAuthClient, wish: Wish, state: str) -> tuple[str, Answer]:
    with _Listener(wish.port) as listener:
        redirect_uri = wish.redirect_uri or f"http://127.0.0.1:{listener.server_port}/"
        _invite(application.login_url(redirect_uri, state))
        typer.echo(f"Waiting for the way back on port {listener.server_port}; --paste does without.")
        return redirect_uri, listener.answer()


def _by_paste(application: OAuthClient, wish: Wish, state: str) -> tuple[str, Answer]:
    redirect_uri = wish.redirect_uri or f"http://127.0.0.1:{wish.port}/"
    _invite(application.login_url(redirect_uri, state))
    ended_at = typer.prompt("The address that the browser ended at, also where it shows an error")
    return redirect_uri, parse_qs(urlsplit(ended_at.strip()).query)


def _invite(address: str) -> None:
    typer.echo(f"Open this address, and say yes:\n\n  {address}\n")


def _application(endpoint: Endpoint) -> OAuthClient:
    _declares_oauth(endpoint)
    application = oauth_client(discover()[endpoint.provider], endpoint, endpoint.secrets_in(os.environ))
    if application is None:
        names = " and ".join(endpoint.variable(what) for what in ("client_id", "client_secret"))
        raise CommandError(f"a login needs {names} in the environment, as the provider's panel shows them")
    return application


def _declares_oauth(endpoint: Endpoint) -> None:
    provider = discover()[endpoint.provider]
    if provider.oauth is None:
        raise CommandError(f"{endpoint.name} is an endpoint of {provider.title}, which takes no login")


def _code(answer: Answer, state: str) -> str:
    """The code, if the answer is one to our question. Raises CommandError."""
    if "error" in answer:
        raise CommandError("the provider did not grant access; start the login again")
    if not secrets.compare_digest(answer.get("state", [""])[0], state) or "code" not in answer:
        raise CommandError("this is no answer to this login; start it again")
    return answer["code"][0]


class _Listener(HTTPServer):
    """Waits on the loopback interface for one way back from the provider."""

    timeout = PATIENCE

    def __init__(self, port: int) -> None:
        try:
            super().__init__(("127.0.0.1", port), _WayBack)
        except OSError as error:
            raise CommandError(f"cannot listen on port {port}: {error.strerror}; give --port, or --paste") from None
        self.found: Answer = {}

    def answer(self) -> Answer:
        """What the browser brought. Raises CommandError where nobody comes."""
        while not self.found:
            self.handle_request()
        return self.found

    def handle_timeout(self) -> None:
        raise CommandError(f"nobody came back within {PATIENCE:g} s; start the login again, or use --paste")


class _WayBack(BaseHTTPRequestHandler):
    server: _Listener
    timeout = 10.0

    def do_GET(self) -> None:
        """Whatever else a browser asks for, such as an icon, is not the answer."""
        found = parse_qs(urlsplit(self.path).query)
        if "code" in found or "error" in found:
            self.server.found = found
        self.send_response(200)
        self.send_header("content-type", "text/plain; charset=utf-8")
        self.end_headers()
        self.wfile.write(b"Done. You can close this page.\n")

    def log_message(self, format: str, *_: object) -> None:
        """The address holds the code."""
