"""The client: one request, again and again, on so many connections, each of which waits for its answer.

A process of its own, so that it can be given a core and so that what it costs is known: `python -m bench.load` reads
the request's bytes from a file and prints one line of JSON, a `Load`. Knows of the server only that it answers HTTP/1.1
with a `Content-Length`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import re
import sys
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

import uvloop

OK: Final = "200"
NOT_NOW: Final = "503"
"""An answer like any other: nobody could keep the request in time, and its sender knows that."""
CUT: Final = "cut"
"""In place of a status: the server closed the connection while it owed an answer."""
SILENT: Final = "silent"
"""In place of a status: no answer until the end."""
GARBLED: Final = "garbled"
"""In place of a status: what came is no answer that this client can read."""

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})[ \r]")
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What came of it. Rates and times are those of the window after the warm-up; `acked` and `others` count all."""

    per_second: float
    """Answers of status 200; those of status 503 have their part in the times."""
    seconds: float
    """Of the window."""
    p50_ms: float
    p99_ms: float
    max_ms: float
    """From the first byte of a request to the last byte of its answer."""
    acked: int
    """Answers of status 200, with those of the warm-up and the last ones."""
    others: Mapping[str, int]
    """Any other end of a request: its status, or a word → how many."""
    client_share: float
    """The part of the time in which this client used its core: near 1 it was the limit, and not the server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """How much of it: for some seconds, or until so many requests were sent."""

    connections: int
    warmup: float = 1.0
    """Seconds before the window opens."""
    seconds: float | None = None
    """Length of the window."""
    requests: int | None = None
    """In all, with the warm-up; the window is open until the last answer."""
    patience: float = 20.0
    """Seconds that the end waits for answers that are still out."""


class Client:
    """All connections, and the counts."""

    def __init__(self, request: bytes, asked: Asked) -> None:
        self.request = request
        self.acked = self.acked_in_window = 0
        self.others: Counter[str] = Counter()
        self.latencies = array("d")
        self.opens_at = self.closes_at = float("inf")
        self.left = sys.maxsize if asked.requests is None else asked.requests
        self.at_work = 0
        self.done = asyncio.get_running_loop().create_future()

    def answered(self, status: str, sent_at: float, now: float) -> None:
        """One request has its end."""
        in_window = self.opens_at <= now <= self.closes_at
        if status == OK:
            self.acked += 1
            self.acked_in_window += in_window
        else:
            self.others[status] += 1
        if in_window and status in (OK, NOT_NOW):
            self.latencies.append(now - sent_at)

    def ended(self) -> None:
        """One connection has nothing more to do."""
        self.at_work -= 1
        if self.at_work == 0 and not self.done.done():
            self.done.set_result(None)


class Connection(asyncio.Protocol):
    """One request under way at any time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._said = b""
        self._sent_at = 0.0
        self.waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, now: float) -> None:
        """The next request, or the end where there shall be none."""
        client = self._client
        assert self._transport is not None
        if client.left == 0 or now >= client.closes_at:
            self._close()
            return
        client.left -= 1
        self._sent_at, self.waiting = now, True
        self._transport.write(client.request)

    def data_received(self, data: bytes) -> None:
        said = self._said + data if self._said else data
        whole = answer(said)
        if whole is None:
            self._said = said
            return
        status, length = whole
        if length != len(said):  # more than the one answer that was asked for
            status = GARBLED
        now = time.perf_counter()
        self._said, self.waiting = b"", False
        self._client.answered(status, self._sent_at, now)
        if status == GARBLED:
            self._close()
        else:
            self.send(now)

    def connection_lost(self, error: Exception | None) -> None:
        if self.waiting:
            self._client.others[CUT] += 1
            self.waiting = False
        if self._transport is not None:
            self._transport = None
            self._client.ended()

    def give_up(self) -> None:
        """Waits no longer."""
        if self.waiting:
            self._client.others[SILENT] += 1
            self.waiting = False
        if self._transport is not None:
            self._transport.abort()

    def _close(self) -> None:
        assert self._transport is not None
        self._transport.close()


def answer(said: bytes) -> tuple[str, int] | None:
    """Status and length, head and body, of the answer at the beginning of these bytes; None while it is not whole."""
    head = said.find(b"\r\n\r\n") + 4
    if head == 3:
        return None
    status, length = _STATUS.match(said), _LENGTH.search(said, 0, head)
    if status is None or length is None:
        return GARBLED, len(said)
    whole = head + int(length[1])
    return (status[1].decode(), whole) if len(said) >= whole else None


async def load(host: str, port: int, request: bytes, asked: Asked) -> Load:
    """Connects all, then sends. Raises OSError where a connection is refused."""
    loop = asyncio.get_running_loop()
    client = Client(request, asked)
    connections = []
    for _ in range(asked.connections):
        _, connection = await loop.create_connection(lambda: Connection(client), host, port)
        connections.append(connection)
    client.at_work = len(connections)
    began, worked = time.perf_counter(), time.process_time()
    client.opens_at = began + asked.warmup
    if asked.seconds is not None:
        client.closes_at = client.opens_at + asked.seconds
    for connection in connections:
        connection.send(time.perf_counter())
    with suppress(TimeoutError):
        async with asyncio.timeout_at(_at_last(client, asked)):
            await client.done
    for connection in connections:
        connection.give_up()
    ended = time.perf_counter()
    share = (time.process_time() - worked) / (ended - began)
    return _told(client, min(ended, client.closes_at) - client.opens_at, share)


def _at_last(client: Client, asked: Asked) -> float | None:
    """When to wait no longer, by the loop's clock; None where there is no telling how long it takes."""
    if asked.seconds is None:
        return None
    return asyncio.get_running_loop().time() + client.closes_at - time.perf_counter() + asked.patience


def _told(client: Client, seconds: float, share: float) -> Load:
    times = sorted(client.latencies)
    return Load(
        per_second=client.acked_in_window / seconds if seconds > 0 else 0.0,
        seconds=seconds,
        p50_ms=1000 * quantile(times, 0.5),
        p99_ms=1000 * quantile(times, 0.99),
        max_ms=1000 * quantile(times, 1.0),
        acked=client.acked,
        others=dict(client.others),
        client_share=share,
    )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them does not exceed; 0 where there is none."""
    return ordered[max(math.ceil(share * len(ordered)), 1) - 1] if ordered else 0.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where the server does not take connections."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description="One request again and again, counted.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--request", type=Path, required=True, help="a file with the request, byte for byte")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--warmup", type=float, default=1.0, help="seconds before the window opens (default: 1)")
    how_long = parser.add_mutually_exclusive_group(required=True)
    how_long.add_argument("--seconds", type=float, help="length of the window")
    how_long.add_argument("--requests", type=int, help="in all")
    words = parser.parse_args(arguments)
    asked = Asked(connections=words.connections, warmup=words.warmup, seconds=words.seconds, requests=words.requests)
    request = words.request.read_bytes()
    gc.disable()  # nothing here makes cycles, and a pause of ours would be told as one of the server
    try:
        told = uvloop.run(load(words.host, words.port, request, asked))
    except OSError as error:
        sys.stderr.write(f"{words.host}:{words.port}: {error.strerror or error}\n")
        return 1
    sys.stdout.write(f"{json.dumps(asdict(told))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
