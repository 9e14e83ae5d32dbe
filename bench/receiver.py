"""The receiver's side: acknowledgements a second against doing nothing and against the usual ways, its memory over
many requests, and what a waiting delivery takes in Redis.

The client is a process of its own on the core that it shares with Redis; what is measured has the other core. After
every round the acknowledged are counted where they must lie.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

import redis

from bench.contenders import Contender, receiver
from bench.cores import here
from bench.figures import CONNECTIONS, Figure, InboxMemory, Soak
from bench.ground import Ground, Running, cpu_seconds
from bench.load import NOT_NOW, Load
from bench.others import Others
from schemas.delivery import INBOX

MANY: Final = (32, 256)
"""Connections; what is measured with one number of them, the memory, has the first."""
WARMUP: Final = 1.0
"""Seconds of each round before anything is measured."""
ENDED_WITHIN: Final = 60.0
"""Seconds that a client may take beyond what it was asked for."""
FOUND_WITHIN: Final = 20.0
"""Seconds until the last acknowledged request must be in the inbox: what went to the spool is drained by then."""
MEMORY_REQUESTS: Final = 20_000
FEW: Final = 0.02
"""The share of 503 beside the acknowledged up to which a round is one."""
DISTURBED: Final = 0.1
"""The share of a core from which on it is told that others used it."""
LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the receiver's memory."""
TAKEN: Final = "bench:taken"
SPOOLED: Final = '"event": "breaker", "state": "open"'

Say = Callable[[str], None]


class Refused(Exception):
    """What came of a round cannot be used: why, in one line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """A contender that serves."""

    contender: Contender
    server: Running


class Shape(NamedTuple):
    """Of the load in one round."""

    connections: int
    warmup: float
    """Seconds."""
    seconds: float
    """Of the window after it."""


# --- side by side ----------------------------------------------------------------------------------------------


def rounds(
    ground: Ground,
    taking_part: Sequence[Contender],
    many: int,
    seconds: float,
    say: Say,
    *,
    connections: Sequence[int] = MANY,
    warmup: float = WARMUP,
) -> list[Figure]:
    """Each contender in turn, every other round in the opposite order. Raises Refused, GroundFailed."""
    with ExitStack() as stack:
        stack.enter_context(ground.file_left_alone())
        players = [stack.enter_context(_started(ground, contender)) for contender in taking_part]
        return [
            _round(ground, player, Shape(one, warmup, seconds), number, say)
            for one in connections
            for number in range(many)
            for player in (players if number % 2 == 0 else reversed(players))
        ]


@contextmanager
def _started(ground: Ground, contender: Contender) -> Iterator[Started]:
    with ground.serving(
        contender.name,
        contender.command,
        core=ground.server_core,
        kind="web",
        more=contender.more,
        port=contender.port,
    ) as server:
        yield Started(contender=contender, server=server)


def _round(ground: Ground, player: Started, shape: Shape, number: int, say: Say) -> Figure:
    ground.empty_redis()
    contender, server = player.contender, player.server
    spooled, meter = server.said(SPOOLED), Meter(ground, server)
    how_long = f"--warmup {shape.warmup} --seconds {shape.seconds}"
    with _client(ground, player, shape.connections, how_long) as client:
        client.wait(shape.warmup + shape.seconds + ENDED_WITHIN)
        load = answered(client.output(), contender.name)
    spent = meter.read()
    figure = Figure(
        contender=contender.name,
        load=f"{shape.connections} {CONNECTIONS}",
        round=number,
        per_second=load.per_second,
        p50_ms=load.p50_ms,
        p99_ms=load.p99_ms,
        cpu_ms=1000 * spent.server / max(load.acked, 1),
        rss_mb=server.rss_mb(),
        redis_share=spent.redis,
        others_share=spent.others,
        kept=_kept(ground, contender, load.acked),
        acked=load.acked,
        refused=refused(load),
        client_share=load.client_share,
    )
    say(_told(figure, server.said(SPOOLED) - spooled))
    return figure


class Meter:
    """CPU time from now on."""

    def __init__(self, ground: Ground, server: Running) -> None:
        self._server, self._redis = server, ground.server("Redis")
        self._began = time.monotonic()
        self._others = Others()
        self._before = self._spent()

    def _spent(self) -> tuple[float, float]:
        return self._server.cpu_seconds(), cpu_seconds(self._redis)

    def read(self) -> Spent:
        """What was used since the beginning."""
        server, redis_server = (now - before for now, before in zip(self._spent(), self._before, strict=True))
        return Spent(server, redis_server / (time.monotonic() - self._began), self._others.share())


class Spent(NamedTuple):
    """CPU."""

    server: float
    """Seconds."""
    redis: float
    """The share of a core."""
    others: float
    """The share of a core that had no part in the run: it takes from one contender what another one had."""


def _told(figure: Figure, spooled: int) -> str:
    words = [
        f"{figure.load}, round {figure.round + 1}, {figure.contender}: {figure.per_second:.0f} a second, ",
        f"p99 {figure.p99_ms:.1f} ms, client {figure.client_share:.0%}, Redis {figure.redis_share:.0%} of their core",
    ]
    if (figure.others_share or 0.0) > DISTURBED:
        words.append(f", others {figure.others_share:.0%} of a core")
    if figure.kept is not None:
        words.append(f", {figure.kept} of {figure.acked} found")
    if figure.refused:
        words.append(f", {figure.refused} answered 503")
    words.append(_stood_in(spooled))
    if not figure.counts:
        words.append("; does not count, because the client was the limit")
    return "".join(words)


def _stood_in(spooled: int) -> str:
    """What the disk's own troubles have set in motion: it costs time, and once some memory."""
    return f"; Redis was too slow ({spooled} ×), and the spool took over" if spooled else ""


# --- the client ------------------------------------------------------------------------------------------------


@contextmanager
def _client(ground: Ground, player: Started, connections: int, how_long: str) -> Iterator[Running]:
    file = ground.folder / "request"
    file.write_bytes(player.contender.request)
    command = (
        f"python -m bench.load --port {player.server.port} --request {file} --connections {connections} {how_long}"
    )
    with ground.running("client", command, core=ground.client_core, kind="web") as client:
        yield client


def answered(said: str, server: str) -> Load:
    """What the client printed, where it is about answers of status 200 and next to nothing else: a disk that stands
    still for a second leaves no other answer than 503. Raises Refused."""
    try:
        load = Load(**json.loads(said))
    except ValueError:
        raise Refused(f"{server}: the client failed: {said.strip()}") from None
    if set(load.others) - {NOT_NOW} or refused(load) > FEW * load.acked:
        ends = ", ".join(f"{many} × {end}" for end, many in load.others.items())
        raise Refused(f"{server}: not every request was answered 200: {ends}")
    return load


def refused(load: Load) -> int:
    """Answers of status 503."""
    return load.others.get(NOT_NOW, 0)


def _kept(ground: Ground, contender: Contender, acked: int) -> int | None:
    """How many lie where they must; what went to the spool first is given the time to come."""
    if contender.kept is None:
        return None
    deadline = time.monotonic() + FOUND_WITHIN
    with ground.redis(contender.kept.db) as client:
        while (found := contender.kept.counted(client)) < acked and time.monotonic() < deadline:
            time.sleep(0.1)
    return found


# --- memory ----------------------------------------------------------------------------------------------------


def soak(ground: Ground, requests: int, say: Say) -> Soak:
    """So many requests over 32 connections; meanwhile the inbox is emptied, as workers would. Raises Refused."""
    ground.empty_redis()
    taken, seen = set[bytes | str](), list[tuple[int, float]]()
    with _started(ground, receiver(ground)) as player, here(ground.client_core), ground.redis() as client:
        with _client(ground, player, MANY[0], f"--requests {requests}") as sending:
            while sending.alive:
                time.sleep(LOOK_EVERY)
                taken |= _take(client)
                seen.append((len(taken), player.server.rss_mb()))
            load = answered(sending.output(), player.contender.name)
        last, spooled = player.server.rss_mb(), player.server.said(SPOOLED)
        _kept(ground, player.contender, load.acked - len(taken))
        kept = len(taken | _take(client))
    first = next((mb for many, mb in seen if many >= requests / 10), last)
    largest = max([last, *(mb for _, mb in seen)])
    told = Soak(requests=requests, first=first, largest=largest, last=last, kept=kept, acked=load.acked)
    say(
        f"{requests} requests, {load.per_second:.0f} a second, p99 {load.p99_ms:.1f} ms: RSS {first:.1f} MiB after a "
        f"tenth, {largest:.1f} at most, {last:.1f} at the end; {kept} of {load.acked} found{_stood_in(spooled)}"
    )
    return told


def _take(client: redis.Redis) -> set[bytes | str]:
    """Empties the inbox and its queues; the ids that were in the inbox. One that went by the spool may come again after
    it was taken, and is still one delivery."""
    with suppress(redis.ResponseError):  # there is no inbox yet, or no more
        client.rename(INBOX, TAKEN)
    ids = set(client.hkeys(TAKEN))
    client.unlink(TAKEN, *client.scan_iter(_type="list"))
    return ids


def inbox_memory(ground: Ground, say: Say, requests: int = MEMORY_REQUESTS) -> InboxMemory:
    """What deliveries that wait take in Redis, each. Raises Refused."""
    with _started(ground, receiver(ground)) as player, ground.redis() as client:
        ground.empty_redis()
        before = client.info("memory")["used_memory"]
        with _client(ground, player, MANY[0], f"--requests {requests}") as sending:
            sending.wait(ENDED_WITHIN)
            load = answered(sending.output(), player.contender.name)
        _kept(ground, player.contender, load.acked)
        there = int(client.hlen(INBOX))
        told = InboxMemory(
            raw=len(player.contender.request),
            of_the_hash=client.memory_usage(INBOX, samples=0) / there,
            of_redis=(client.info("memory")["used_memory"] - before) / there,
        )
    say(
        f"a waiting delivery of {told.raw} bytes takes {told.of_the_hash:.0f} in the inbox, "
        f"{told.of_redis:.0f} of Redis's memory in all"
    )
    return told
