"""What a person sees of a run while it goes on: what fault is on, and the counts; plain lines without a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_EVERY: Final = 5.0
"""Seconds between two lines of counts without a terminal."""
SHOWN: Final = 12


class Screen:
    """Use as a context manager; `tell` what happens, `show` how it stands."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._began = time.monotonic()
        self._last: list[str] = []
        self._shown_at = 0.0
        self._live = Live(console=console, refresh_per_second=6, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.__exit__(kind, error, trace)

    def tell(self, line: str) -> None:
        """Something that happened."""
        told = f"{time.monotonic() - self._began:6.1f} s  {line}"
        if self._live:
            self._last = [*self._last, told][-SHOWN:]
        else:
            self._console.print(told, markup=False, highlight=False, soft_wrap=True)

    def show(self, counts: Callable[[], str], under_way: Sequence[str]) -> None:
        """How it stands; may be called as often as one likes."""
        now = time.monotonic()
        if now - self._shown_at < (0.2 if self._live else PLAIN_EVERY):
            return
        self._shown_at = now
        line = f"{now - self._began:6.1f} s  {counts()}"
        if self._live:
            weather = ", ".join(under_way) or "fair weather"
            self._live.update(Text("\n".join([line, f"          now: {weather}", "", *self._last])))
        else:
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
