"""What stands before every page: the rule for loopback, the session, where a form comes from, and headers that tell the
browser what it may not do. Knows no page but the login."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qs, quote

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from console.web.access import COOKIE, HOURS, MEND, Session, Sessions, is_own, refusal

LOGIN: Final = "/login"
OPEN: Final = ("/login", "/healthz", "/static/")
"""What is answered before a login."""
WITHOUT_SESSION: Final = ("/healthz", "/static/")

HEADERS: Final = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`: with it a browser does not say where a form comes from.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """In front of the app. `request.state.session` is there behind it."""

    def __init__(self, app: ASGIApp, sessions: Sessions, *, has_password: bool) -> None:
        self._app = app
        self._sessions = sessions
        self._has_password = has_password

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._guarded(Request(scope), receive, send)

    async def _guarded(self, request: Request, receive: Receive, send: Send) -> None:
        async def hardened(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                # Pages show guests' data: nobody keeps them. What is static is asked for again, and is seldom sent.
                headers.setdefault("cache-control", "no-cache" if _is_below(request, "/static/") else "no-store")
                if cookie:
                    headers.append("set-cookie", cookie)
            await send(message)

        cookie = ""
        answer = self._refused(request)
        if answer is None and not _is_below(request, *WITHOUT_SESSION):
            session = self._sessions.read(request.cookies.get(COOKIE))
            if session is None:
                session = self._sessions.fresh()
                cookie = cookie_header(self._sessions, session, request)
            request.state.session = session
            answer = self._sent_away(request, session)
        await (answer or self._app)(request.scope, receive, hardened)

    def _refused(self, request: Request) -> Response | None:
        host = request.headers.get("host", "")
        if not self._has_password:
            client, server = request.scope.get("client"), request.scope.get("server")
            why = refusal(client and client[0], server and server[0], host, request.headers)
            if why is not None:
                return PlainTextResponse(f"{why}\n{MEND}\n", 403)
        if request.method not in ("GET", "HEAD") and not is_own(request.headers.get("origin"), host):
            return PlainTextResponse("This form does not come from a page of the console. Open it there.\n", 403)
        return None

    def _sent_away(self, request: Request, session: Session) -> Response | None:
        if session.known or not self._has_password or _is_below(request, *OPEN):
            return None
        if "hx-request" in request.headers:
            return Response(status_code=401, headers={"hx-refresh": "true"})
        if request.method != "GET":
            return RedirectResponse(LOGIN, 303)
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return RedirectResponse(LOGIN if here == "/" else f"{LOGIN}?next={quote(here, safe='')}", 303)


def _is_below(request: Request, *paths: str) -> bool:
    return any(request.url.path == path or (path.endswith("/") and request.url.path.startswith(path)) for path in paths)


def cookie_header(sessions: Sessions, session: Session, request: Request) -> str:
    """The value of `Set-Cookie`."""
    words = [f"{COOKIE}={sessions.cookie(session)}", "Path=/", f"Max-Age={HOURS * 3600}", "HttpOnly", "SameSite=Lax"]
    return "; ".join([*words, "Secure"] if _is_encrypted(request) else words)


def _is_encrypted(request: Request) -> bool:
    """Also where a proxy ends the encryption. Whoever invents the header gets a cookie that is used less, not more."""
    forwarded = request.headers.get("x-forwarded-proto", "").split(",", 1)[0].strip().lower()
    return "https" in (request.url.scheme, forwarded)


class Form:
    """The fields of a form that has been checked."""

    def __init__(self, fields: dict[str, list[str]]) -> None:
        self._fields = fields

    def one(self, name: str) -> str:
        """The field's value; empty where there is none."""
        return self._fields.get(name, [""])[0]

    def all(self, name: str) -> list[str]:
        return self._fields.get(name, [])


async def form_of(request: Request, sessions: Sessions) -> Form:
    """The form, when it carries this session's token. Raises HTTPException."""
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=2000)
    except ValueError:
        raise HTTPException(400, "This form cannot be read. Go back and send it again.") from None
    form = Form(fields)
    if not sessions.is_token(session_of(request), form.one("token")):
        raise HTTPException(403, "This page is too old. Go back, reload it, and send the form again.")
    return form


def session_of(request: Request) -> Session:
    """Whoever asks."""
    session: Any = request.state.session
    assert isinstance(session, Session)
    return session


def is_here(path: str) -> bool:
    """Whether it is a path of ours, and no way to another host."""
    return path.startswith("/") and not path.startswith(("//", "/\\")) and path.isprintable()
