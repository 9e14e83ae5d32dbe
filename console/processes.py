"""The processes of the Procfile, each kept running and, when asked, replaced without a gap.

What dies by itself starts again; each process is given the secrets that it needs and no others; nothing of its session
is left when it has ended. Knows nothing of what the processes do, but for the one line by which a receiver says that it
serves.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from honcho.colour import get_colours
from honcho.environ import parse_procfile
from honcho.printer import Message, Printer

from console.context import CommandError
from console.services import bound_to_parent
from schemas.delivery import now
from schemas.endpoints import SECRET, WHATS
from schemas.logs import is_json, log

PROJECT: Final = Path(__file__).resolve().parent.parent
GRACE: Final = 30.0
"""Seconds for a process to end: a receiver gives its requests 10, a worker its running tasks 20."""
READY_WITHIN: Final = 90.0
"""Seconds from the start of a process until it must work."""
HASTY: Final = 5.0
"""Seconds: a process that ends this soon has not worked; one that ran for longer starts again at once."""
PAUSE: Final = 0.5
PAUSE_MOST: Final = 5.0
"""Seconds before the next start of a process that ends hastily: doubled each time, and never more than this."""
GIVE_UP: Final = 3
"""So many ends before it has ever worked, or in a restart, mean that it will not get better."""

GRANTED: Final[Mapping[str, frozenset[str]]] = {
    "web": frozenset({"REDIS_URL", SECRET}),
    "beat": frozenset({"REDIS_URL"}),
    "flower": frozenset({"REDIS_URL", "FLOWER_BASIC_AUTH"}),
    "metrics": frozenset({"REDIS_URL", "DATABASE_URL"}),
    "console": frozenset({"REDIS_URL", "DATABASE_URL", SECRET, "RESERVOIR_CONSOLE_PASSWORD"}),
    "alarms": frozenset(
        {"REDIS_URL", "DATABASE_URL", "RESERVOIR_ALARMS_WEBHOOK_SECRET", "RESERVOIR_ALARMS_SMTP_PASSWORD"}
    ),
}
"""Of what is secret, what a process may know; one that is not named, such as the worker, may know all of it."""

_SERVING: Final = b"Uvicorn running on "
OURS: Final = "RESERVOIR_CONSOLE_PASSWORD|RESERVOIR_ALARMS_SMTP_PASSWORD|FLOWER_BASIC_AUTH"
"""Secrets of the installation itself, beside the one."""
_SECRET_NAME: Final = re.compile(
    rf"RESERVOIR_.+_({'|'.join(WHATS)})|{SECRET}|(DATABASE|REDIS)_URL|PG.*|{OURS}", re.IGNORECASE
)


def procfile() -> Mapping[str, str]:
    """Name → command line, in the order of the start. Raises CommandError."""
    try:
        text = (PROJECT / "Procfile").read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommandError(
            "there is no Procfile beside the package; `up` runs from a checkout of the project"
        ) from None
    lines: Mapping[str, str] = parse_procfile(text).processes
    return lines


def environment_of(kind: str, addresses: Mapping[str, str], given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Our own environment and the addresses, without the secrets that this line of the Procfile is not granted."""
    programs = f"{Path(sys.executable).parent}{os.pathsep}{given.get('PATH', os.defpath)}"
    whole = {**given, **addresses, "PATH": programs, "PYTHONUNBUFFERED": "1"}
    granted = GRANTED.get(kind, whole.keys())
    return {key: value for key, value in whole.items() if key in granted or not _SECRET_NAME.fullmatch(key)}


def pause(hasty_ends: int) -> float:
    """Seconds before the next start, after so many ends in a row that came right after the start."""
    return 0.0 if hasty_ends == 0 else min(PAUSE * 2.0 ** (hasty_ends - 1), PAUSE_MOST)


class NotReplaced(Exception):
    """The new process did not work; in one line."""


@dataclass(kw_only=True)
class Process:
    """One running line of the Procfile; of a line that is scaled, one of several."""

    name: str
    """As in the log: `beat`, `web.1`."""
    kind: str
    """The Procfile's name."""
    command: str
    environment: Mapping[str, str]
    output: Output
    url: str | None = None
    """Of a receiver."""
    held: socket.socket | None = None
    """A receiver's socket that we keep, so that it outlives the receiver."""
    popen: subprocess.Popen[bytes] = field(init=False)
    started: float = field(default=0.0, init=False)
    ends: int = field(default=0, init=False)
    hasty: int = field(default=0, init=False)
    again_at: float | None = field(default=None, init=False)
    serving: threading.Event = field(init=False)
    """It has said that it serves."""
    _replacing: bool = field(default=False, init=False)
    _old: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """In a session of its own: Ctrl-C reaches us only, and a forced end reaches all of its children."""
        held = {"UVICORN_FD": str(self.held.fileno())} if self.held else {}
        self.popen = subprocess.Popen(  # noqa: S603  (the command is the Procfile's)
            # By force: when we were killed, Redis is gone too, and nothing that they still do would be kept.
            bound_to_parent(["sh", "-c", f"exec {self.command}"], signal.SIGKILL),
            cwd=PROJECT,
            env={**self.environment, **held},
            pass_fds=[self.held.fileno()] if self.held else [],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started, self.again_at, self.serving = time.monotonic(), None, threading.Event()
        relay = threading.Thread(target=self.output.relay, args=(self.name, self.popen, self.serving), daemon=True)
        relay.start()

    @property
    def alive(self) -> bool:
        return self.popen.poll() is None

    # --- what dies by itself ---

    def mend(self, *, for_good: bool) -> None:
        """Starts it again where it has ended by itself: at once, or after a pause where it has hardly run.

        Raises CommandError where it ends again and again and `for_good` says that it has never worked.
        """
        if self.alive or self._replacing:
            return
        now = time.monotonic()
        if self.again_at is None:
            self.ends += 1
            self.hasty = self.hasty + 1 if now - self.started < HASTY else 0
            if for_good and self.ends >= GIVE_UP:
                raise CommandError(f"{self.name} does not start (it ended with {self.popen.returncode}); see above")
            wait = pause(self.hasty)
            soon = f"in {wait:g} s" if wait else "now"
            say(f"{self.name} ended with {self.popen.returncode}; it starts again {soon}", is_trouble=True)
            self.again_at = now + wait
        if now >= self.again_at:
            _kill_group(self.popen)
            self.start()

    # --- a rolling restart ---

    def replace(self, works: Callable[[], bool]) -> Iterator[None]:
        """A new process for the old one, in small steps, so that whoever supervises can go on between them.

        Where we hold the socket both serve it for a moment: the old one ends when the new one serves. Else the old one
        ends first, within its grace, and we wait until the new one `works`. Raises NotReplaced.
        """
        self._replacing = True
        try:
            yield from self._hand_over() if self.held else self._end_and_start(works)
        finally:
            self._replacing = False

    def _hand_over(self) -> Iterator[None]:
        old = self._old = self.popen  # until it has ended it is ours to end
        self.start()
        try:
            yield from self._until(self.serving.is_set)
        except NotReplaced:
            self.popen, self._old = old, self.popen
            _kill_group(self._old)
            self._old.wait()
            self._old = None
            raise
        yield from self._ended(old)
        self._old = None

    def _end_and_start(self, works: Callable[[], bool]) -> Iterator[None]:
        """The old one is gone: so a new one that was killed, or that Celery ended, is started once more."""
        yield from self._ended(self.popen)
        for left in reversed(range(GIVE_UP)):
            self.start()
            try:
                yield from self._until(works)
            except NotReplaced:
                if self.alive or not left:
                    raise
                _kill_group(self.popen)
            else:
                return

    def _until(self, true: Callable[[], bool]) -> Iterator[None]:
        while not true():
            if not self.alive:
                raise NotReplaced(f"the new {self.name} ended with {self.popen.returncode}")
            if time.monotonic() - self.started > READY_WITHIN:
                raise NotReplaced(f"the new {self.name} did not work within {READY_WITHIN:g} s")
            yield

    def _ended(self, popen: subprocess.Popen[bytes]) -> Iterator[None]:
        deadline = time.monotonic() + GRACE
        popen.terminate()
        while popen.poll() is None and time.monotonic() < deadline:
            yield
        if popen.poll() is None:
            say(f"{self.name} did not end in time and is killed", is_trouble=True)
        _kill_group(popen)
        popen.wait()

    # --- the end ---

    def ask_to_end(self) -> None:
        for popen in self._popens():
            popen.terminate()

    def end(self, deadline: float) -> None:
        """Waits for the end, or forces it; nothing of its session is left afterwards."""
        for popen in self._popens():
            try:
                popen.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                say(f"{self.name} did not end in time and is killed", is_trouble=True)
            _kill_group(popen)
            popen.wait()

    def _popens(self) -> list[subprocess.Popen[bytes]]:
        """Two in the middle of a handing over."""
        return [popen for popen in (self.popen, self._old) if popen is not None]


def _kill_group(popen: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(popen.pid, signal.SIGKILL)


class Output:
    """What the processes print, line by line, on stderr: stdout is for the one line `ready: …`.

    For eyes each line has the name of its process before it. For a program it is passed on as it is, because it names
    its process itself; what is printed and not logged is made a line of the log.
    """

    def __init__(self, names: Iterable[str], *, as_json: bool = False) -> None:
        known = list(names)
        self._as_json = as_json
        self._printer = Printer(sys.stderr, time_format="", width=max(map(len, known), default=0))
        self._colours = dict(zip(known, get_colours(), strict=False))
        self._lock = threading.Lock()

    def relay(self, name: str, popen: subprocess.Popen[bytes], serving: threading.Event) -> None:
        """Until the process closes its output; read on where nobody reads ours, so that the process never blocks."""
        assert popen.stdout is not None
        with popen.stdout as lines:
            for line in lines:
                if _SERVING in line:
                    serving.set()
                with self._lock, suppress(OSError):
                    self._pass_on(name, line)

    def _pass_on(self, name: str, line: bytes) -> None:
        if not self._as_json:
            self._printer.write(Message("line", line, now(), name, self._colours[name]))
        elif line.startswith(b"{"):
            sys.stderr.write(line.decode(errors="replace"))
            sys.stderr.flush()
        elif said := line.decode(errors="replace").strip():
            log.info("printed", process=name, text=said)


def say(line: str, *, is_trouble: bool = False) -> None:
    """A sentence of our own, among the lines of the processes."""
    if is_json():
        (log.warning if is_trouble else log.info)("up", text=line)
        return
    with suppress(OSError):
        sys.stderr.write(f"reservoir: {line}\n")
        sys.stderr.flush()
