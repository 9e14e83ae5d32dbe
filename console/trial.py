"""A whole Reservoir in a directory of its own, connected to simulated venues: for the demo and the acceptance tests.

Everything is real, and runs as users run it: `reservoir up` is a process of its own, the providers speak HTTP. Knows
nothing of what the venues send.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final, Self

from console.services import ANNOUNCEMENT, bound_to_parent, redis_url
from schemas.endpoints import SECRET, WHATS, Endpoint
from simulators.ledger import Ledger, Verdict
from simulators.server import Server
from simulators.venue import Venue

READY_WITHIN: Final = 90.0
STOPPED_WITHIN: Final = 60.0
SETTLED: Final = ("applied", "duplicate", "stale", "ignored", "parked")


LOOKERS_ON: Final = {"console": 0, "alarms": 0, "metrics": 0}
"""Processes that change nothing, left out where nobody asks for them."""


class TrialFailed(Exception):
    """The installation did not start, or a command failed; the message holds the end of its output."""


class Trial:
    """Use as an async context manager: inside it webhooks are taken, and every venue knows its URL."""

    def __init__(
        self,
        venues: Sequence[Venue],
        ledger: Ledger,
        folder: Path,
        *,
        scale: Mapping[str, int] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.venues = venues
        self.ledger = ledger
        self.folder = folder
        self.scale = {**LOOKERS_ON, **(scale or {})}
        """Process of the Procfile → how many of it, where it is not one."""
        self.log = folder / "reservoir.log"
        self.api = Server(venues)
        self.url = ""
        """The first receiver."""
        self.urls: Sequence[str] = ()
        """All receivers."""
        self.pid = 0
        """`reservoir up`, the parent of everything."""
        self._more = dict(environment or {})
        self._environment: Mapping[str, str] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.api)
            for venue in self.venues:
                await stack.enter_async_context(venue)
            self._configure()
            await self._start(stack)
            for found in await self.command("urls", "--json"):
                self._venue(found["endpoint"]).hook_url = found["url"]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    # --- the installation ---

    def _configure(self) -> None:
        tables, secrets = [], {}
        for venue in self.venues:
            endpoint = Endpoint(name=venue.endpoint, provider=venue.provider)
            settings = venue.settings(self.api.api_url(venue))
            tables.append(f"[endpoints.{venue.endpoint}]\n{toml(settings)}")
            secrets.update({endpoint.variable(what): value for what, value in venue.secrets().items()})
        (self.folder / "reservoir.toml").write_text("\n".join(tables), encoding="utf-8")
        # A receiver is one process, so that it is the one that a fault is meant for.
        self._environment = {**_without_ours(os.environ), "WEB_CONCURRENCY": "1", **secrets, **self._more}

    async def _start(self, stack: AsyncExitStack) -> None:
        log: IO[bytes] = stack.enter_context(self.log.open("ab"))
        scale = [word for name, many in self.scale.items() for word in ("--scale", f"{name}={many}")]
        process = await asyncio.create_subprocess_exec(
            # When we are killed, it ends cleanly, and takes everything that it started with it.
            *bound_to_parent(_reservoir("up", "--port", "0", *scale)),
            *self._where(),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for us; we pass on a SIGTERM
        )
        stack.push_async_callback(_stop, process)
        assert process.stdout is not None
        try:
            line = await asyncio.wait_for(process.stdout.readline(), READY_WITHIN)
        except TimeoutError:
            line = b""
        if not line.startswith(b"ready: "):
            raise TrialFailed(f"`reservoir up` did not become ready:\n{self.end_of_log()}")
        self.url = line.decode().removeprefix("ready: ").strip()
        self.urls = self.announced().get("urls") or [self.url]
        self.pid = process.pid

    def end_of_log(self, lines: int = 30) -> str:
        """The last that `reservoir up` and its processes printed."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def announced(self) -> dict[str, Any]:
        """What `reservoir up` tells of itself to other commands."""
        facts: dict[str, Any] = json.loads((self.folder / "state" / ANNOUNCEMENT).read_text())
        return facts

    def database_url(self) -> str:
        """Where the tables are."""
        return str(self.announced()["database_url"])

    def redis_url(self) -> str:
        """Where the inbox and the queues are."""
        return redis_url((self.folder / "state" / "sockets").readlink())

    def _where(self) -> list[str]:
        return ["--config", str(self.folder / "reservoir.toml"), "--state-dir", str(self.folder / "state")]

    def _venue(self, endpoint: str) -> Venue:
        return next(venue for venue in self.venues if venue.endpoint == endpoint)

    # --- asking it ---

    async def command(self, *words: str) -> Any:
        """What a `reservoir … --json` command answers. Raises TrialFailed."""
        return json.loads(await self.run(*words))

    async def run(self, *words: str) -> bytes:
        """What a `reservoir` command prints. Raises TrialFailed."""
        process = await asyncio.create_subprocess_exec(
            *_reservoir(*words),
            *self._where(),
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, errors = await process.communicate()
        if process.returncode != 0:
            raise TrialFailed(f"reservoir {' '.join(words)}: {errors.decode(errors='replace')}")
        return out

    async def compare(self) -> Verdict:
        """How the table compares with what the venues know, by the public command."""
        return self.ledger.compare(await self.command("bookings", "list", "--json"))


def toml(table: Mapping[str, Any]) -> str:
    """A flat table, its values spelled as JSON does, which is how TOML spells scalars too."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def _reservoir(*words: str) -> list[str]:
    return [str(Path(sys.executable).with_name("reservoir")), *words]


def _without_ours(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what would tie the trial to a real installation."""
    ours = {"DATABASE_URL", "REDIS_URL", SECRET}
    ends = tuple(f"_{what.upper()}" for what in WHATS)
    return {
        key: value
        for key, value in environment.items()
        if key not in ours and not (key.startswith("RESERVOIR_") and key.endswith(ends))
    }


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), STOPPED_WITHIN)
    except TimeoutError:
        process.kill()
        await process.wait()


def folder() -> tempfile.TemporaryDirectory[str]:
    """A directory for one trial, removed afterwards."""
    return tempfile.TemporaryDirectory(prefix="reservoir-trial-", ignore_cleanup_errors=True)
