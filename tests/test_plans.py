"""What a worker, the sweeper and the lists ask does not read a table from end to end, however long the history is."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import Engine, select, update
from world import NOON, VENUES, database

from bench.history import OPEN, TABLES, History
from bench.plans import Explained, explained, indexes, scans
from bench.probes import BATCH, LISTS, WORK, probed, read_whole
from console.services import Embedded
from workers.bookings import refold
from workers.tables import bookings, deliveries

pytestmark = pytest.mark.long

HISTORY = History.of(list(VENUES.values()), deliveries=100_000, bookings=20_000, until=NOON)


@pytest.fixture(scope="module")
def long(services: Embedded, template: str) -> Iterator[Engine]:
    """A database with that history."""
    with database(services, template) as engine:
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            HISTORY.make(connection)
        yield engine


@pytest.fixture(scope="module")
def plans(long: Engine) -> dict[str, list[Explained]]:
    return probed(long, HISTORY)


def test_it_is_a_history_that_the_workers_could_have_left(long: Engine) -> None:
    """Rows are the fold of their events, and the names are ours."""
    with long.begin() as connection:
        ids = connection.execute(select(bookings.c.id).order_by(bookings.c.id).limit(20)).scalars().all()
        assert [refold(connection, identity) for identity in ids] == [False] * 20


def test_as_many_are_open_however_long_it_is(plans: dict[str, list[Explained]]) -> None:
    """A person finds what is parked, and the sweep the rest, with the batch that was landed just before."""
    (parked,) = plans["deliveries retry --state parked"]
    (swept,) = plans["sweep"]
    assert parked.plan["Actual Rows"] == OPEN
    assert swept.plan["Actual Rows"] == 3 * OPEN + BATCH


@pytest.mark.parametrize("work", [*WORK, *LISTS])
def test_no_table_is_read_from_end_to_end(plans: dict[str, list[Explained]], work: str) -> None:
    assert plans[work]
    for one in plans[work]:
        assert not read_whole(work, one) & set(TABLES), f"{one.statement}\n{one.text}"


@pytest.mark.parametrize("work", WORK)
def test_a_worker_s_plan_for_all_values_goes_by_the_indexes_of_the_plan_for_these(
    plans: dict[str, list[Explained]], work: str
) -> None:
    """A worker's connection makes it once and keeps it. By the key is as well as by anything."""
    for one in plans[work]:
        assert indexes(one.generic) <= indexes(one.plan) | {"deliveries_pkey"}, one.text


def test_a_table_that_is_read_from_end_to_end_is_seen(long: Engine) -> None:
    """Below whatever else the plan does."""
    with explained(long) as seen, long.begin() as connection:
        by_put = select(deliveries.c.id).where(deliveries.c.method == "PUT").order_by(deliveries.c.id).subquery()
        connection.execute(select(bookings.c.id).join(by_put, bookings.c.delivery_id == by_put.c.id))
    (one,) = seen
    assert scans(one.plan) == {"deliveries", "bookings"}
    assert one.buffers > 1000


def test_what_is_explained_happens_once(long: Engine) -> None:
    """The plan is that of a run that is undone."""
    with long.begin() as connection:
        first = select(deliveries.c.id, deliveries.c.attempts).order_by(deliveries.c.id).limit(1)
        before = connection.execute(first).one()
        again = update(deliveries).where(deliveries.c.id == before.id).values(attempts=deliveries.c.attempts + 1)
        with explained(long) as seen:
            connection.execute(again)
        after = connection.execute(first).one().attempts
    assert [one.plan["Node Type"] for one in seen] == ["ModifyTable"]
    assert after == before.attempts + 1
