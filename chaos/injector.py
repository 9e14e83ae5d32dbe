"""Lets the planned faults happen: one task per lane, so that those of a lane never meet. Notes when each really was.

When it ends, however that happens, every fault is undone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from chaos.books import Span
from chaos.faults import Fault, Undo
from chaos.ground import Ground, NotBack
from chaos.schedule import APART, Planned
from console.trial import TrialFailed


class Injector:
    """The faults of one run."""

    def __init__(
        self, ground: Ground, plan: Sequence[Planned], faults: Mapping[str, Fault], say: Callable[[str], None]
    ) -> None:
        self._ground = ground
        self._faults = faults
        self._say = say
        self._lanes: dict[str, list[Planned]] = {}
        for planned in plan:
            self._lanes.setdefault(planned.lane, []).append(planned)
        self._began = 0.0
        self._open: dict[str, float] = {}
        self.spans: list[Span] = []

    @property
    def under_way(self) -> list[str]:
        """Names of the faults that are on now."""
        return sorted(self._open)

    async def run(self) -> None:
        """All of them; returns when the last one is over."""
        self._began = time.monotonic()
        await asyncio.gather(*(self._lane(planned) for planned in self._lanes.values()))

    async def _lane(self, plan: Sequence[Planned]) -> None:
        """One after the other, and time to come back between two, also where one took longer than planned: a second
        receiver that is killed before the balancer has seen the first one again is no single fault."""
        over = 0.0
        for planned in plan:
            at = max(planned.at, over + APART)
            await asyncio.sleep(max(0.0, at - (time.monotonic() - self._began)))
            await self._happen(planned)
            over = time.monotonic() - self._began

    async def _happen(self, planned: Planned) -> None:
        began, trouble = time.time(), None
        self._open[planned.name] = began
        self._say(f"begins: {planned.name}")
        undo: Undo | None = None
        try:
            try:
                undo = await self._faults[planned.name].begin(self._ground)
                await asyncio.sleep(planned.lasts)
            finally:
                if undo is not None:
                    await asyncio.shield(undo())
        except (NotBack, TrialFailed) as error:
            trouble = str(error)
        ended = time.time()
        del self._open[planned.name]
        self.spans.append(Span(name=planned.name, began=began, ended=ended, trouble=trouble))
        self._say(f"over:   {planned.name} after {ended - began:.1f} s{f' — {trouble}' if trouble else ''}")
