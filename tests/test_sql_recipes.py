"""docs/sql.md: every query of the page runs as it stands, on tables that the workers filled, and says what is true.

The requests are fixtures, moved to one busy day at the five endpoints of `reservoir.toml`. The page's `now()` is that
day's noon; nothing else in a query is touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
from cases import Case, cases
from sqlalchemy import Engine
from world import Script, World, database
from world import answer as answer_of

from console.services import Embedded
from schemas.delivery import State, new_id
from schemas.endpoints import load
from workers.job import Done
from workers.tables import bookings

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "sql.md"
NOON = datetime(2026, 9, 21, 12, 0, tzinfo=UTC)
YESTERDAY = NOON - timedelta(hours=20)
LONG_AGO = NOON - timedelta(days=3)
WORK = timedelta(seconds=2)
"""From a request to its row."""

Row = tuple[Any, ...]


def recipes() -> dict[str, list[str]]:
    """Heading → its SQL blocks."""
    found: dict[str, list[str]] = {}
    for section in re.split(r"(?m)^#+ ", PAGE.read_text(encoding="utf-8"))[1:]:
        heading, _, text = section.partition("\n")
        blocks = re.findall(r"(?ms)^```sql\n(.*?)^```", text)
        if blocks:
            found[heading.strip()] = blocks
    return found


# --- the day -----------------------------------------------------------------------------------------------------


def fixture(name: str) -> Case:
    return next(case for case in cases() if case.name == name)


def kayak(number: int, status: str, *, paid: str = "94.50", start: int = 1790000000) -> Mapping[str, str]:
    """What makes Checkfront's one booking another one."""
    return {
        '"20417"': f'"{number}"',
        "QXRT-180926": f"KAYK-{number}",
        '"PAID"': f'"{status}"',
        '"paid_total": "94.50"': f'"paid_total": "{paid}"',
        "1790000000": str(start),
        "1790007200": str(start + 7200),
    }


ON_SUNDAY = 1789916400
"""2026-09-20 at eight in the morning in Vancouver."""
KAYAK, ESCAPE, STUDIO = "checkfront/json-one-item-as-object", "lockme/add", "timekit/instant-confirmed"
THE_DAY: Sequence[tuple[str, str, datetime, Mapping[str, str]]] = (
    # Harbour: one today, one half paid next week, on Sunday one that came, one that did not, one cancelled in the end.
    ("harbour-tours", KAYAK, LONG_AGO, kayak(20417, "PAID")),
    ("harbour-tours", KAYAK, LONG_AGO, kayak(20418, "PART", paid="40.00", start=1790600000)),
    ("harbour-tours", KAYAK, LONG_AGO, kayak(20419, "CHKIN", start=ON_SUNDAY)),
    ("harbour-tours", KAYAK, LONG_AGO, kayak(20420, "PAID", start=ON_SUNDAY)),
    ("harbour-tours", KAYAK, LONG_AGO, kayak(20421, "PAID", start=ON_SUNDAY)),
    ("harbour-tours", KAYAK, YESTERDAY + timedelta(hours=6), kayak(20421, "VOID", start=ON_SUNDAY)),
    # The vault is sold twice at once, and a third time through another provider.
    ("vault-warsaw", ESCAPE, LONG_AGO, {"2026-10-24": "2026-09-21"}),
    (
        "vault-warsaw",
        ESCAPE,
        YESTERDAY,
        {"90412277": "90412278", "5520931": "5520932", "2026-10-24": "2026-09-21", "18:30": "19:00", "Ewa": "Jan"},
    ),
    (
        "studio-berlin",
        "reservekit/slot-rfc3339-summer",
        LONG_AGO,
        {"2026-09-18": "2026-09-21", "T12:00:00Z": "T16:00:00Z", "T13:30:00Z": "T17:00:00Z"},
    ),
    # The workshop: one today, moved by an hour since yesterday.
    ("workshop-oslo", STUDIO, LONG_AGO, {"2026-05-06": "2026-09-21", "2026-05-04": "2026-09-01"}),
    (
        "workshop-oslo",
        STUDIO,
        YESTERDAY,
        {"2026-05-06T12": "2026-09-21T13", "2026-05-06T13": "2026-09-21T14", "2026-05-04": "2026-09-02"},
    ),
    ("arcade-vienna", "synthesisvr/key-session-and-customer", LONG_AGO, {"2026-11-21": "2026-09-21"}),
)


def another(text: str, changed: Mapping[str, str]) -> str:
    """All at once, so that no replacement meets another one's result."""
    return re.sub("|".join(map(re.escape, changed)), lambda found: changed[found[0]], text)


def live(engine: Engine) -> None:
    """The day, request by request, each on the whole way from the inbox's form to its rows."""
    known = load(ROOT / "reservoir.toml", {}).endpoints
    vault = replace(known["studio-berlin"], name="vault-warsaw", provider="lockme", timezone="Europe/Warsaw")
    endpoints = {
        **known,
        "vault-warsaw": replace(vault, secrets=frozenset({"access_token"}), options={"slot_minutes": 60}),
        "studio-berlin": replace(known["studio-berlin"], secrets=frozenset({"api_key"})),
        "arcade-vienna": replace(known["arcade-vienna"], secrets=frozenset({"api_key"})),
        "harbour-tours": replace(known["harbour-tours"], options={"statuses": {"CHKIN": "completed"}}),
    }
    world = World(engine, list(endpoints.values()))
    for endpoint, name, at, changed in sorted(THE_DAY, key=lambda told: told[2]):
        case = fixture(name)
        answers = {
            call: replace(answer, body=_moved(answer.body, changed), at=at) for call, answer in case.answers.items()
        }
        world.script = Script(lines={"acknowledge": answer_of(None, 204), **answers})
        world.clock.now = at + WORK
        headers = tuple((key, another(value, changed)) for key, value in case.delivery.headers)
        body = another(case.delivery.body.decode(), changed).encode()
        raw = replace(case.delivery, id=new_id(), endpoint=endpoint, received_at=at, headers=headers, body=body)
        [fate] = world.deliver(raw)
        assert isinstance(fate, Done), (name, fate)
        assert fate.state is State.APPLIED, (name, fate)


def _moved(body: Any, changed: Mapping[str, str]) -> Any:
    return json.loads(another(json.dumps(body), changed))


@pytest.fixture(scope="module")
def connection(services: Embedded, template: str) -> Iterator[psycopg.Connection[Row]]:
    """In front of `pg_catalog` stands a `now()` that says noon; what is noted in the tables is of that day too."""
    with database(services, template) as engine:
        live(engine)
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as opened:
            opened.execute(
                "UPDATE booking_changes SET at = received_at FROM deliveries WHERE deliveries.id = delivery_id"
            )
            opened.execute("CREATE SCHEMA still")
            opened.execute(
                "CREATE FUNCTION still.now() RETURNS timestamptz LANGUAGE sql STABLE RETURN"
                f" timestamptz '{NOON.isoformat()}'"
            )
            opened.execute("SET search_path = still, pg_catalog, public; SET timezone = 'UTC'")
            yield opened


# --- what each must say ------------------------------------------------------------------------------------------

SAM = "Sam Okoro"
SAYS: Mapping[str, Sequence[Row]] = {
    "Today's bookings across all venues": [
        ("15:00", "workshop-oslo", "Room 2", "confirmed", "Nora Quist", None),
        ("07:13", "harbour-tours", "kayak2h", "confirmed", SAM, 2),
        ("18:00", "studio-berlin", "Haircut", "confirmed", "Ida Brandt", None),
        ("18:30", "arcade-vienna", "Prater Arcade", "confirmed", "Nora Quist", 3),
        ("18:30", "vault-warsaw", "1188", "confirmed", "Ewa Lis", 4),
        ("19:00", "vault-warsaw", "1188", "confirmed", "Jan Lis", 4),
    ],
    "Free rooms today": [
        ("harbour-tours", "kayak2h", "10:00", "22:00"),
        ("studio-berlin", "Haircut", "10:00", "18:00"),
        ("studio-berlin", "Haircut", "19:00", "22:00"),
        ("vault-warsaw", "1188", "10:00", "18:30"),
        ("vault-warsaw", "1188", "20:00", "22:00"),
        ("workshop-oslo", "Room 2", "10:00", "15:00"),
        ("workshop-oslo", "Room 2", "16:00", "22:00"),
    ],
    "Double bookings": [("vault-warsaw", "1188", NOON.date(), "5520931", "5520932")],
    "One room sold through two providers": [("The vault", "studio-berlin", "40118", "vault-warsaw", "5520931")],
    "No-shows": [
        ("harbour-tours", date(2026, 9, 20), "20420", SAM, "confirmed"),
        ("harbour-tours", date(2026, 9, 20), "20421", SAM, "cancelled"),
    ],
    "Revenue by provider": [
        ("checkfront", "CAD", 4, Decimal("378.00"), Decimal("323.50")),
        ("lockme", "not told", 2, Decimal("480.00"), None),
        ("reservekit", "not told", 1, None, None),
        ("synthesisvr", "not told", 1, Decimal("75.00"), None),
        ("timekit", "not told", 1, None, None),
    ],
    "Money that is still to come": [
        (date(2026, 9, 28), "harbour-tours", "KAYK-20418", SAM, "CAD", Decimal("54.50")),
    ],
    "How full the next days are": [
        (NOON.date(), "arcade-vienna", 1, None, 3),
        (NOON.date(), "harbour-tours", 1, None, 2),
        (NOON.date(), "studio-berlin", 1, None, None),
        (NOON.date(), "vault-warsaw", 2, 8, None),
        (NOON.date(), "workshop-oslo", 1, None, None),
    ],
    "Reconciling with a venue's own list": [
        ("20417", "differs", "VOID", "PAID"),
        ("29999", "missing here", "PAID", None),
    ],
}
"""Heading → the rows of its last query."""


def runs(connection: psycopg.Connection[Row], block: str) -> list[Row]:
    """Statement by statement, as `psql` would; the rows of the last one."""
    rows: list[Row] = []
    for statement in filter(str.strip, block.split(";\n")):
        cursor = connection.execute(statement.encode())
        rows = cursor.fetchall() if cursor.description else []
    return rows


@pytest.mark.parametrize("heading", recipes())
def test_a_recipe_says_what_is_true(connection: psycopg.Connection[Row], heading: str) -> None:
    with connection.transaction(force_rollback=True):
        rows: list[Row] = []
        for block in recipes()[heading]:
            rows = runs(connection, block)
            if "CREATE TEMP TABLE theirs" in block:
                with connection.cursor().copy("COPY theirs FROM STDIN CSV") as copy:
                    copy.write("20417,VOID\n29999,PAID\n")
        if heading in SAYS:
            assert rows == [*SAYS[heading]]
        else:
            assert heading in ALSO, "a new recipe needs its rows in SAYS"
            assert ALSO[heading](rows), rows


def changed(rows: list[Row]) -> bool:
    """The workshop's visit was moved, the cancelled one was cancelled, and what is new is left out."""
    told = {(row[1], row[3], row[4]) for row in rows}
    return (
        {("workshop-oslo", "updated", "starts_at"), ("harbour-tours", "cancelled", "status")} <= told
        and ("confirmed", "cancelled") in {row[5:] for row in rows}
        and all(row[3] != "created" for row in rows)
    )


ALSO: Mapping[str, Callable[[list[Row]], bool]] = {
    "SQL recipes": lambda rows: rows == [],
    "What changed since yesterday": changed,
    "All that we hold of one guest": lambda rows: [len(row[-1]) for row in rows] == [1, 1, 2, 1, 1],
    "What came in, and how long it took": lambda rows: (
        [row[0] for row in rows] == ["harbour-tours", "vault-warsaw", "workshop-oslo"]
        and {row[1:] for row in rows} == {("applied", 1, Decimal("2.0"))}
    ),
}
"""Headings of which not every value is worth writing down, with what must be true of their rows."""


def test_every_column_of_bookings_is_explained() -> None:
    explained = set(re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8").partition("## What the columns mean")[2]))
    assert {column.name for column in bookings.columns} - {"id"} <= explained
