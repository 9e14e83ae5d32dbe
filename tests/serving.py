"""Real servers for tests, each on a free port of its own: an ASGI app in uvicorn, a bare TCP server, raw requests.

Knows nothing of what is served.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import Any, Final

import uvicorn
from starlette.types import ASGIApp

SHORT: Final = "ingest.protocol:Hooks"
"""The HTTP of a receiver, as in the Procfile."""
LONG: Final = "httptools"
"""The same as any app has it."""
PATIENCE = 20.0
"""Seconds for what takes milliseconds on a machine that has nothing else to do."""
PLAIN: Final[Mapping[str, Any]] = {"trust_env": False, "verify": False}
"""For a client of httpx that meets only these: one that could speak TLS reads every certificate first, 20 ms long."""


def eventually(true: Callable[[], object], within: float = PATIENCE) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + within
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def serving(app: ASGIApp, http: str = LONG, keep_alive: int = 5, **more: Any) -> Iterator[str]:
    """The app behind uvicorn as it runs in production (uvloop, this HTTP protocol), in a thread; its base URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        config = uvicorn.Config(
            app,
            loop="uvloop",
            http=http,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=keep_alive,
            **more,
        )
        # `access_log=False` is not enough: pytest listens also to loggers that do not propagate.
        logging.getLogger("uvicorn.access").setLevel(logging.CRITICAL)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert eventually(lambda: server.started or not thread.is_alive())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def listening(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server that hands each connection to `handle`, in a thread each, and then closes it; its port."""
    threads: list[threading.Thread] = []

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            handle(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=answer, args=(connection,)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *threads):
                thread.join()


def silence(connection: socket.socket) -> None:
    """Reads what comes and never answers, until the other side leaves."""
    while connection.recv(65536):
        pass


@contextmanager
def silent_server() -> Iterator[int]:
    """A TCP server that accepts and never answers: hung, firewalled, stopped. Its port."""
    with listening(silence) as port:
        yield port


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def connected(base_url: str) -> socket.socket:
    """A connection to the server behind a base URL."""
    host, _, port = base_url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE)


def spoken(base_url: str, request: bytes) -> bytes:
    """All that the server says to these bytes, until it closes; ask it to with `Connection: close`."""
    with closing(connected(base_url)) as connection:
        connection.sendall(request)
        answer = bytearray()
        while piece := connection.recv(65536):
            answer += piece
        return bytes(answer)
