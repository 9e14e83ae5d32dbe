"""The console as a process: its parts put together, its addresses, and what it says when something fails.

`create` is what uvicorn runs: `uvicorn console.web.app:create --factory --no-access-log` (no access log, because an
address may hold what was searched for, such as a guest's e-mail).
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final

from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError, SQLAlchemyError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from console.web import settings as environment
from console.web.access import Patience, Sessions
from console.web.acts import Acts, Busy
from console.web.guard import Guard
from console.web.look import HERE, Look
from console.web.pages import Pages
from console.web.queue import Queue
from console.web.settings import Settings
from console.web.views import Views
from schemas.delivery import now
from schemas.endpoints import ConfigError
from schemas.logs import configure, log
from workers.database import engine

LARGEST: Final = 256 * 1024
"""Bytes of a form."""
PATIENCE: Final = "5s"
"""For one statement."""


def build(settings: Settings, clock: Callable[[], datetime] = now) -> Guard:
    """The console with its parts; `clock` says what is now on its pages."""
    database = engine(settings.database_url, pool_size=5, patience=PATIENCE)
    sessions = Sessions(settings.secret, settings.password)
    has_password = settings.password is not None
    pages = Pages(
        views=Views(database),
        acts=Acts(database, settings.config),
        queue=Queue(settings.redis_url),
        sessions=sessions,
        patience=Patience(time.monotonic),
        look=Look(settings.config, clock, has_password=has_password),
        clock=clock,
        config=settings.config,
        has_password=has_password,
    )

    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return pages.error(request, error.status_code, error.detail, error.headers)

    def busy(request: Request, error: Exception) -> Response:
        return pages.error(request, 503, str(error))

    def database_error(request: Request, error: Exception) -> Response:
        log.error("page-failed", path=request.url.path, error=type(error).__name__)
        return pages.error(request, 503, said_of(error))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        pages.queue.close()
        database.dispose()

    app = Starlette(
        routes=routes(pages),
        exception_handlers={HTTPException: http_error, SQLAlchemyError: database_error, Busy: busy},
        lifespan=lifespan,
        max_body_size=LARGEST,
    )
    return Guard(app, sessions, has_password=has_password)


def routes(pages: Pages) -> list[Route | Mount]:
    """Every address. What changes something is a POST, and reads its form through `guard.form_of`."""
    return [
        Route("/", pages.overview),
        Route("/deliveries", pages.deliveries),
        Route("/deliveries/retry", pages.retry, methods=["POST"]),
        Route("/deliveries/{id}", pages.delivery),
        Route("/deliveries/{id}/body", pages.body),
        Route("/parked", pages.parked),
        Route("/replay", pages.rehearse, methods=["GET", "POST"]),
        Route("/replay/apply", pages.replay, methods=["POST"]),
        Route("/bookings", pages.bookings),
        Route("/bookings/{id}", pages.booking),
        Route("/day", pages.day),
        Route("/audit", pages.audit),
        Route("/login", pages.ask_password),
        Route("/login", pages.login, methods=["POST"]),
        Route("/logout", pages.logout, methods=["POST"]),
        Route("/healthz", healthz),
        Mount("/static", StaticFiles(directory=HERE / "static")),
    ]


def healthz(request: Request) -> Response:
    """The process lives."""
    return PlainTextResponse("alive\n")


def said_of(error: Exception) -> str:
    """What a person can do about an error of the database. Its own text may quote a row, and is not shown."""
    if isinstance(error, ProgrammingError):
        return "The database lacks our tables or columns. Run `reservoir migrate`, then reload this page."
    if getattr(getattr(error, "orig", None), "sqlstate", None) == TOO_LONG:
        return f"The question took PostgreSQL more than {PATIENCE}. Narrow the filter, then try again."
    if isinstance(error, OperationalError) or (isinstance(error, DBAPIError) and error.connection_invalidated):
        return "PostgreSQL cannot be reached. Webhooks are still taken; reload this page when it is back."
    return "PostgreSQL did not answer as it should. Reload this page; the log names the error."


TOO_LONG: Final = "57014"
"""query_canceled"""


def create() -> Guard:
    """The app from the environment; a bad configuration ends the process with one line."""
    configure("console")
    try:
        return build(environment.read())
    except ConfigError as error:
        sys.exit(f"reservoir: {error}")
