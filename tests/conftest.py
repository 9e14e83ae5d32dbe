"""Real PostgreSQL and Redis for the tests that want them: one pair per test process, a database cloned per test."""

from __future__ import annotations

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
import redis as redis_py
from hypothesis import settings
from sqlalchemy import Engine
from xdist.scheduler import LoadScopeScheduling

from console.services import Embedded
from workers.database import engine as make_engine
from workers.migrate import upgrade

_numbers = itertools.count(1)
# How long an example takes is the machine's affair; what hangs is ended by `timeout` in pyproject.toml.
settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")
# Some hundred interpreters are started by the tests; where this is set, each of them compiles all that is ours anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """PostgreSQL and Redis as `reservoir up` starts them."""
    state_dir: Path = tmp_path_factory.mktemp("services")
    with Embedded(state_dir) as embedded:
        yield embedded


@pytest.fixture(scope="session")
def template(services: Embedded) -> str:
    """The name of a database that is migrated and empty, to be cloned."""
    upgrade(services.database_url)
    return "reservoir"


@pytest.fixture(scope="session")
def maintenance(services: Embedded) -> Iterator[psycopg.Connection[Any]]:
    """A connection to make databases over; a new one for each would cost the server as much as the databases do."""
    with psycopg.connect(services.database_url.replace("/reservoir?", "/postgres?"), autocommit=True) as connection:
        yield connection


@pytest.fixture
def database_url(services: Embedded, template: str, maintenance: psycopg.Connection[Any]) -> Iterator[str]:
    """A database of the test's own."""
    name = f"test_{next(_numbers)}"
    maintenance.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield services.database_url.replace("/reservoir?", f"/{name}?")
    maintenance.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """SQLAlchemy's way into that database."""
    made = make_engine(database_url, pool_size=8)
    yield made
    made.dispose()


@pytest.fixture
def redis_url(services: Embedded) -> str:
    """An empty Redis."""
    with redis_py.Redis.from_url(services.redis_url) as client:
        client.flushall()
    return services.redis_url


@pytest.fixture
def redis(redis_url: str) -> Iterator[redis_py.Redis]:
    """redis-py's way into it."""
    with redis_py.Redis.from_url(redis_url) as client:
        yield client


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many fixture cases ran and passed, per provider."""
    contract = re.compile(r"test_providers\.py::test_a_fixture_becomes_its_expected_rows\[(\w+)/")
    ran: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", ()):
        ran.update(contract.findall(report.nodeid))
    if ran:
        counts = "  ".join(f"{provider}={count}" for provider, count in sorted(ran.items()))
        terminalreporter.write_line(f"fixture cases that became their rows: {counts}  total={ran.total()}")


def pytest_configure(config: pytest.Config) -> None:
    """Several processes begin to read at different files: in a fresh clone each finds compiled what others read."""
    ours, own = Path(__file__).parent, getattr(config, "workerinput", None)
    if own and [config.rootpath / each for each in config.args] == [ours]:
        files = sorted(map(str, ours.glob("test_*.py")))
        first = len(files) * int(own["workerid"].removeprefix("gw")) // own["workercount"]
        config.args[:] = files[first:] + files[:first]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes share the work, what starts processes of its own is spread among the rest.

    So few of them run at once, which those with a deadline would feel, and none is left for the end.
    """
    if not hasattr(config, "workerinput"):
        return
    items.sort(key=lambda item: item.path)  # all of them must have the same order; see `pytest_configure`
    dear = [item for item in items if item.get_closest_marker("services")]
    cheap = [item for item in items if not item.get_closest_marker("services")]
    every = max(1, len(cheap) * 2 // 3 // max(1, len(dear)))
    left = iter(dear)  # in their order: some of a file want what those before them have left
    items.clear()
    for number, item in enumerate(cheap):
        if number % every == 0:
            items += itertools.islice(left, 1)
        items.append(item)
    items += left


class _ByNeed(LoadScopeScheduling):
    """Tests go to whichever process is free; those of a file that shares something dear stay together, and go first.

    Whole installations, and what has deadlines, run one after the other in two of the processes: more of them at once
    take two cores for as long as they would take in turns, and what is measured in them is the crowd.
    """

    TOGETHER: Final = {
        "test_acceptance.py": "installations",
        "test_chaos.py": "installations",
        "test_browser.py": "installations too",
        "test_send.py": "installations too",
        "test_up.py": "installations too",
        "test_watch.py": "installations too",
        "test_weather.py": "installations",
        "test_readme.py": "installations too",
        "test_rebuild.py": "a history",
        "test_sql_recipes.py": "a week",
    }
    """File → what it is together with."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].rpartition("/")[2]
        return self.TOGETHER.get(file, nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByNeed:
    """`--dist loadgroup` does the same, and knows no groups under pytest 9.2."""
    return _ByNeed(config, log)
