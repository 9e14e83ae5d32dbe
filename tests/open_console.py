"""The fixtures of tests that look at pages: a console without a password, and the world that it shows.

Knows no page. A file that wants another console or another world has fixtures of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from schemas.delivery import now
from tests.browsing import Browser, console, settings_of
from tests.world import VENUES, Clock, World


@pytest.fixture
def browser(database_url: str) -> Iterator[Browser]:
    """In front of a console of its own machine, which needs no password."""
    with console(settings_of(database_url, password=None)) as found:
        yield found


@pytest.fixture
def world(engine: Engine) -> World:
    """One endpoint of each provider, now."""
    return World(engine, list(VENUES.values()), clock=Clock(now()))
