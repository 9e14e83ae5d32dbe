"""Ends tasks for good. Knows nothing of what they do."""

from __future__ import annotations

import asyncio
from typing import Any, Final

AGAIN: Final = 0.01
"""Seconds until a task that has not ended is cancelled once more."""


async def ended(*tasks: asyncio.Task[Any]) -> None:
    """Returns when none of them runs any more; what they raise is theirs.

    One cancellation is not enough. redis-py sends through `asyncio.wait_for`, and before Python 3.12 that loses one
    that comes when the command is just on its way; a loop that has lost its only one would be waited for until the
    process is killed. All loops here rest between two looks, where none is lost.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN)
    await asyncio.gather(*tasks, return_exceptions=True)
