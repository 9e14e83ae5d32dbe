"""Statements that share a round trip: each in its turn, all or nothing, and a second connection where one is dead."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from itertools import count
from typing import Any

import psycopg
import pytest
from celery.exceptions import SoftTimeLimitExceeded
from hypothesis import given as each
from hypothesis import strategies as st
from sqlalchemy import ARRAY, Engine, Text, Uuid, bindparam, func, literal, select, text

from schemas.booking import COLUMNS, Status, as_kept, from_json, to_json
from schemas.delivery import new_id
from workers.database import workers_engine
from workers.statements import Asked, Piped, Session, Statement, alone, onlookers, transaction
from workers.writing import as_json

ONE = Asked("SELECT %(number)s::int AS number", {"number": 1})
NOTE = Statement(text("INSERT INTO notes VALUES (:number)").bindparams(bindparam("number", required=True)))
WRONG = Asked("SELECT 1 / %(nothing)s::int", {"nothing": 0})


@pytest.fixture
def pool(database_url: str) -> Iterator[Engine]:
    """An engine as a worker has it, and a table to write to."""
    made = workers_engine(database_url)
    try:
        alone(made, Asked("CREATE TABLE notes (number int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)", {}))
        yield made
        alone(made, Asked("DROP TABLE notes", {}))
    finally:
        made.dispose()


def notes(engine: Engine) -> list[int]:
    return [row.number for row in alone(engine, Asked("SELECT number FROM notes ORDER BY number", {}))]


def test_a_statement_is_rendered_once_and_wants_its_values() -> None:
    greeting = Statement(select(literal("hello").label("said"), bindparam("name", type_=Text()).label("name")))
    asked = greeting(name="Ewa")
    assert asked.values == {"param_1": "hello", "name": "Ewa"}
    assert greeting(name="Jan").text is asked.text
    assert greeting().values == {"param_1": "hello"}


def test_a_value_that_is_missing_is_no_null(pool: Engine) -> None:
    with pytest.raises(psycopg.ProgrammingError, match="number"):
        alone(pool, NOTE())


def test_what_is_sent_comes_back_in_its_order(pool: Engine) -> None:
    def work(session: Session) -> list[int]:
        found = [session.send(Asked(ONE.text, {"number": number})) for number in range(20)]
        return [row.number for rows in reversed(found) for row in rows]

    assert transaction(pool, work) == list(reversed(range(20)))


def test_each_sees_what_those_before_it_did(pool: Engine) -> None:
    def work(session: Session) -> list[int]:
        counted = []
        for number in range(3):
            session.send(NOTE(number=number))
            counted.append(session.send(Asked("SELECT count(*) AS notes FROM notes", {})))
        return [row.notes for rows in counted for row in rows]

    assert transaction(pool, work) == [1, 2, 3]
    assert notes(pool) == [0, 1, 2]


@pytest.mark.parametrize("read", [True, False])
def test_an_error_leaves_nothing_behind_whether_anybody_read_the_result_or_not(pool: Engine, read: bool) -> None:
    def work(session: Session) -> None:
        session.send(NOTE(number=1))
        found = session.send(WRONG)
        session.send(NOTE(number=2))
        if read:
            list(found)

    with pytest.raises(psycopg.errors.DivisionByZero):
        transaction(pool, work)
    assert notes(pool) == []


def test_an_error_of_the_commit_itself_is_told(pool: Engine) -> None:
    def work(session: Session) -> None:
        session.send(NOTE(number=1))
        session.send(NOTE(number=1))

    with pytest.raises(psycopg.errors.UniqueViolation):
        transaction(pool, work)
    assert notes(pool) == []


def test_what_stumbles_in_between_leaves_nothing_behind(pool: Engine) -> None:
    def work(session: Session) -> None:
        session.send(NOTE(number=1))
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        transaction(pool, work)
    assert notes(pool) == []


def test_a_connection_goes_back_as_the_pool_knows_it(pool: Engine) -> None:
    """In the middle of nothing, and beginning transactions by itself as SQLAlchemy expects."""
    alone(pool, NOTE(number=1))
    with pytest.raises(psycopg.Error):
        transaction(pool, lambda session: list(session.send(WRONG)))
    with pool.connect() as connection:
        driver: Any = connection.connection.dbapi_connection
        assert not driver.autocommit
        connection.execute(text("INSERT INTO notes VALUES (2)"))
        connection.rollback()
    assert notes(pool) == [1]


def test_a_dead_connection_costs_one_more_try_and_all_like_it_are_left(pool: Engine) -> None:
    with pool.connect(), pool.connect():
        pass  # two in the pool
    pid = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = %s"
    with psycopg.connect(pool.url.set(drivername="postgresql").render_as_string(hide_password=False)) as other:
        assert len(other.execute(pid, [other.info.dbname]).fetchall()) >= 2
    transaction(pool, lambda session: session.send(NOTE(number=1)))
    assert notes(pool) == [1]


def test_a_plan_from_before_a_migration_is_left_with_its_connection(pool: Engine) -> None:
    """It was made for columns of other types, and the connection would keep it for ever."""
    alone(pool, NOTE(number=1))
    for _ in range(10):
        assert notes(pool) == [1]
    with psycopg.connect(pool.url.set(drivername="postgresql").render_as_string(hide_password=False)) as other:
        other.execute("ALTER TABLE notes ALTER COLUMN number TYPE bigint")
    assert notes(pool) == [1]


def test_what_comes_in_the_middle_of_an_answer_ends_the_connection(pool: Engine) -> None:
    """A task's time limit: nobody waits for the rest, the next one does not meet it, and soon not its locks either."""
    seen = []

    def work(session: Session) -> None:
        seen.append(session)
        session.send(NOTE(number=1))
        session.send(Asked("LOCK TABLE notes IN ACCESS EXCLUSIVE MODE", {}))
        session.send(Asked("SELECT pg_sleep(30)", {}))
        raise SoftTimeLimitExceeded

    began = time.monotonic()
    with pytest.raises(SoftTimeLimitExceeded):
        transaction(pool, work)
    assert time.monotonic() - began < 10
    (session,) = seen
    assert isinstance(session, Piped)
    assert session.connection.closed
    ended = time.monotonic()
    assert notes(pool) == []
    assert time.monotonic() - ended < 4, "whoever comes next waited for a statement that nobody wanted any more"


def test_an_onlooker_sees_what_goes_through_a_pipeline(pool: Engine) -> None:
    seen: list[Asked] = []

    def look(connection: psycopg.Connection[Any], asked: Asked) -> None:
        seen.append(asked)

    onlookers.append(look)
    try:
        transaction(pool, lambda session: list(session.send(ONE)))
    finally:
        onlookers.remove(look)
    assert [asked.text.split()[0] for asked in seen] == ["SELECT"]


RELAY = """
import os, socket, sys, threading

def passed_on(behind, client):
    while piece := behind.recv(2**20):
        client.sendall(piece)

listener = socket.socket(fileno=int(sys.argv[1]))
client, behind = listener.accept()[0], socket.socket(socket.AF_UNIX)
behind.connect(sys.argv[2])
threading.Thread(target=passed_on, args=[behind, client], daemon=True).start()
while piece := client.recv(2**20):
    os.write(1, b".")
    behind.sendall(piece)
"""
"""Between one client and the server: a dot for each piece that the client gives to the network."""


def test_what_is_sent_goes_over_the_wire_together(pool: Engine) -> None:
    """Once for the first result, and once for the end: that is what a pipeline is for, and psycopg's own sends each."""
    numbers = count()

    def work(session: Session) -> None:
        found = [session.send(ONE) for _ in range(4)]
        list(found[0])
        for _ in range(4):
            session.send(NOTE(number=next(numbers)))

    own = {"sslmode": "disable", "gssencmode": "disable"}
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = pool.url.set(drivername="postgresql", host="127.0.0.1", port=listener.getsockname()[1], query=own)
        command = [sys.executable, "-c", RELAY, str(listener.fileno()), f"{pool.url.query['host']}/.s.PGSQL.5432"]
        relay = subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[listener.fileno()])
    through = workers_engine(url.render_as_string(hide_password=False))
    with relay, ExitStack() as last:
        last.callback(through.dispose)
        for _ in range(6):  # until psycopg has prepared them
            transaction(through, work)
        given(relay)
        transaction(through, work)
        assert len(given(relay)) <= 3  # the third is psycopg's own last word
    assert notes(pool) == list(range(28))


def given(relay: subprocess.Popen[bytes]) -> bytes:
    """The dots until now."""
    assert relay.stdout is not None
    time.sleep(0.1)
    return os.read(relay.stdout.fileno(), 2**16)


def test_ids_are_written_as_one_word(pool: Engine) -> None:
    """And every other list is left to psycopg, which knows how to quote."""
    ids = [new_id() for _ in range(3)]
    wanted = bindparam("ids", type_=ARRAY(Uuid()), required=True)
    words = bindparam("words", type_=ARRAY(Text()), required=True)
    both = Statement(select(func.unnest(wanted).label("id"), func.unnest(words).label("word")))
    said = ["a,b", 'c"d', "{}"]
    assert [(row.id, row.word) for row in alone(pool, both(ids=ids, words=said))] == list(zip(ids, said, strict=True))
    assert alone(pool, both(ids=[], words=[])) == []


def test_nobody_waits_before_a_result_is_read(pool: Engine) -> None:
    nap = Asked("SELECT pg_sleep(0.3)", {})

    def work(session: Session) -> tuple[float, float]:
        began = time.monotonic()
        naps = [session.send(nap) for _ in range(3)]
        sent = time.monotonic()
        list(naps[0])
        return sent - began, time.monotonic() - began

    sending, reading = transaction(pool, work)
    assert sending < 0.3 <= reading


# --- what rows are made of ---------------------------------------------------------------------------------------

ZONES = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
INSTANTS = st.datetimes(datetime(1900, 1, 2), datetime(2199, 12, 30), timezones=st.just(UTC) | ZONES)
MONEY = st.decimals(min_value=-(10**12), max_value=10**12, allow_nan=False) | st.just(Decimal("1E+2"))
INSIDE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | INSTANTS | st.dates(date(1900, 1, 1)) | MONEY,
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
OF_KIND = {
    str: st.text(),
    Status: st.sampled_from(Status),
    date: st.dates(date(1900, 1, 1)),
    datetime: INSTANTS,
    int: st.integers(),
    list: st.lists(INSIDE),
    Decimal: MONEY,
    dict: st.dictionaries(st.text(), INSIDE),
}
SAID = st.fixed_dictionaries({}, optional={name: st.none() | OF_KIND[kind] for name, kind in COLUMNS.items()})


@each(said=SAID)
def test_what_an_event_says_is_kept_as_it_comes_back(said: dict[str, Any]) -> None:
    """Without the way through JSON and back, and in JSON no other than by that way."""
    kept = as_kept(said)
    assert kept == from_json(to_json(said))
    assert [*map(type, kept.values())] == [*map(type, from_json(to_json(said)).values())]
    assert as_json(kept) == as_json(to_json(said))


@pytest.mark.parametrize("more", [[], [2**70]])
def test_ids_days_instants_and_money_are_written_as_they_are(more: list[int]) -> None:
    """Also where a number is too long for orjson."""
    identity, instant = new_id(), datetime(2026, 12, 1, 8, 0, 0, 250_000, tzinfo=UTC)
    written = as_json([identity, instant, instant.date(), Decimal("1E+2"), Decimal("94.50"), *more])
    assert json.loads(written) == [str(identity), instant.isoformat(), "2026-12-01", "100", "94.50", *more]
