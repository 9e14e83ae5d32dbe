"""uvicorn's HTTP protocol, with a short way for deliveries: `uvicorn ingest.app:create --http ingest.protocol:Hooks`.

What uvicorn and ASGI do for any request of any application (a task, two events, a response put together anew) costs
more than making a delivery durable does. A delivery as it nearly always comes needs none of it: a method that its door
knows, a body of a known length, an answer that is written in one go. What comes in any other way (chunked, too long,
`Expect`, a second request before the first is answered, a GET, a wrong token, another path) is uvicorn's own affair and
goes to the app, which answers deliveries just the same (`ingest.hook`). docs/decisions/0010 tells what it saves.

Parsing, keep-alive, time-outs and graceful ends are uvicorn's. Knows neither Redis nor the spool.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from time import perf_counter
from typing import Any, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from ingest.door import Entrance
from ingest.hook import KEPT, Answer, Hook, refused, row_of
from ingest.metrics import HUNG_UP
from ingest.waiting import NotDurable
from schemas.delivery import present

FAILED: Final = Answer(500)
"""A mistake of our own; counted, as those of an app are not."""
CLOSE: Final = b"connection: close\r\n\r\n"
BUSY: Final = float("inf")
"""Of a connection that is not idle."""


class Visit:
    """A delivery that is being read or kept: what uvicorn's protocol asks of a request that it has begun."""

    __slots__ = (
        "began",
        "body",
        "disconnected",
        "entrance",
        "keep_alive",
        "method",
        "received_at",
        "response_complete",
        "whole",
    )
    message_event: Final = asyncio.Event()
    """Set by uvicorn when something came; nobody waits for it."""

    def __init__(self, entrance: Entrance, method: str, received_at: int, keep_alive: bool) -> None:
        self.entrance = entrance
        self.method = method
        self.received_at = received_at
        self.began = perf_counter()
        self.body: list[bytes] = []
        self.whole = False
        """All of it has come; the body is in other hands."""
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False


class Hooks(HttpToolsProtocol):
    """One connection."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        in_front = self.limit_concurrency or self.root_path
        self._hook: Hook | None = None if in_front else getattr(self.app, "hook", None)
        """None where something stands in front of the receiver: then everything goes through it."""
        self._visit: Visit | None = None
        self._idle_since = BUSY

    # --- as the parser reads -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        try:
            self._visit = self._delivery()
        except Exception:  # the parser would answer 400, which a provider may take for final
            self.logger.exception("Exception in the receiver")
            self._visit = None
        if self._visit is None:
            self._go_the_long_way()
        else:
            self.cycle = cast(RequestResponseCycle, self._visit)

    def _go_the_long_way(self) -> None:
        """uvicorn hears from the beginning what the parser has said."""
        url, headers = self.url, self.headers
        super().on_message_begin()
        super().on_url(url)
        for name, value in headers:
            super().on_header(name, value)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self._visit is None:
            super().on_body(body)
        else:
            self._visit.body.append(body)

    def on_message_complete(self) -> None:
        if self._visit is None:
            super().on_message_complete()
            return
        try:
            self._keep(self._visit)
        except Exception:  # as above
            self.logger.exception("Exception in the receiver")
            self._visit.keep_alive = False
            self._answer(self._visit, FAILED)

    # --- how long a connection may be idle ---------------------------------------------------------------------
    # uvicorn sets a timer after each answer and unsets it before the next; here one runs through, and whoever it wakes
    # looks how long nothing has come.

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = BUSY

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wake_in(self.timeout_keep_alive)

    def _wake_in(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left <= 0:
            super().timeout_keep_alive_handler()
        elif left < BUSY:
            self._wake_in(left)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
        visit = self._visit
        if visit is not None and not visit.whole and self._hook is not None:
            self._hook.tally.answered(visit.entrance.endpoint.name, HUNG_UP, "", perf_counter() - visit.began)
        super().connection_lost(exc)

    # --- a delivery --------------------------------------------------------------------------------------------

    def _delivery(self) -> Visit | None:
        """None for whatever has to go the long way."""
        hook, parser = self._hook, self.parser
        if hook is None or self._owes:
            return None
        entrance = hook.doors.at(self.url)
        if entrance is None:
            return None
        method, headers = parser.get_method().decode("ascii"), dict(self.headers)
        if method not in entrance.door.methods or parser.should_upgrade() or parser.get_http_version() != "1.1":
            return None
        length = headers.get(b"content-length", b"")
        if b"expect" in headers or not length.isdigit() or int(length) > hook.body_limit:
            return None
        return Visit(entrance, method, present(), parser.should_keep_alive())

    @property
    def _owes(self) -> bool:
        """An answer to the request before this one."""
        return self.cycle is not None and not self.cycle.response_complete

    def _keep(self, visit: Visit) -> None:
        assert self._hook is not None
        visit.whole, body = True, b"".join(visit.body)
        visit.body.clear()  # the connection may be idle for long, and would hold it
        row = row_of(visit.entrance, visit.method, visit.received_at, self.headers, body)

        def tell(fate: str | NotDurable) -> None:
            try:
                self._answer(visit, refused(visit.entrance, row, fate) if isinstance(fate, NotDurable) else KEPT[fate])
            except Exception:
                self.transport.abort()  # or its sender would wait for ever
                raise

        self._hook.keeper.take(row, tell)

    def _answer(self, visit: Visit, answer: Answer) -> None:
        assert self._hook is not None
        seconds = perf_counter() - visit.began
        self._hook.tally.answered(visit.entrance.endpoint.name, answer.status, answer.kept, seconds)
        visit.response_complete = True
        if self.transport.is_closing():
            return
        self.transport.write(rendered(answer, visit.keep_alive, *self.server_state.default_headers))
        if not visit.keep_alive:
            self.transport.close()
        self.on_response_complete()


@lru_cache(maxsize=16)
def rendered(answer: Answer, keep_alive: bool, *default_headers: tuple[bytes, bytes]) -> bytes:
    """An answer on the wire. It is the same for all until the clock's next second."""
    always = [b"%b: %b\r\n" % header for header in default_headers]
    return b"".join((STATUS_LINE[answer.status], *always, answer.lines, b"\r\n" if keep_alive else CLOSE))
