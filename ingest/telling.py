"""Tells who waits in a future. Knows nothing of what is told."""

from __future__ import annotations

import asyncio
from typing import TypeVar

Result = TypeVar("Result")


def tell(told: asyncio.Future[Result], result: Result) -> None:
    """The result; nothing where nobody waits any longer."""
    if not told.done():
        told.set_result(result)


def tell_error(told: asyncio.Future[Result], error: Exception) -> None:
    """What happened instead."""
    if not told.done():
        told.set_exception(error)
