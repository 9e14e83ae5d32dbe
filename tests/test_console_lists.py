"""The console's lists over a long history: they go on without gaps or doubles, and read as much as they show."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import ColumnElement, Engine, func, insert, select, text, true

from bench.history import TABLES, History
from bench.plans import explained, scans
from console.replaying import AT_ONCE
from console.services import Embedded
from console.web.chart import first_hour
from console.web.filters import BookingFilter, BookingPlace, DeliveryFilter, DeliveryPlace, Words, booking_filter
from console.web.filters import delivery_filter as read_filter
from console.web.views import MANY, PAGE, Page, Views
from schemas.booking import Status
from schemas.delivery import State, new_id
from tests.world import NOON, VENUES, database
from workers.bookings import booking_id
from workers.tables import audit, bookings, deliveries

pytestmark = pytest.mark.long

HISTORY = History.of(list(VENUES.values()), deliveries=200_000, bookings=40_000, until=NOON)
GENEROUS = 2.0
"""Seconds for what takes milliseconds, on a machine that does something else."""


@pytest.fixture(scope="module")
def long(services: Embedded, template: str) -> Iterator[Engine]:
    """A database with that history."""
    with database(services, template) as engine:
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        with psycopg.connect(url, autocommit=True) as connection:
            HISTORY.make(connection)
            connection.execute(_FELL_SILENT)
            connection.execute("VACUUM (ANALYZE) deliveries")
        yield engine


SILENT = "studio"
_FELL_SILENT = f"UPDATE deliveries SET received_at = received_at - interval '400 days' WHERE endpoint = '{SILENT}'"
"""One endpoint in five has sent nothing for more than a year."""


@pytest.fixture(scope="module")
def some(long: Engine) -> Mapping[str, UUID]:
    """A delivery and a booking in the middle."""
    with long.connect() as connection:
        middle = select(deliveries.c.id).where(deliveries.c.received_at > NOON - timedelta(days=90)).limit(1)
        return {
            "delivery": connection.execute(middle.order_by(deliveries.c.received_at)).scalar_one(),
            "booking": booking_id(HISTORY.endpoint(20_000).name, HISTORY.external_id(20_000)),
        }


ENDPOINTS = [endpoint.name for endpoint in VENUES.values()]
DAY = NOON.date() - timedelta(days=30)
SEEN: Mapping[str, Callable[[Views, Mapping[str, UUID]], Any]] = {
    "endpoints": lambda views, some: views.endpoints(),
    "by hour": lambda views, some: views.by_hour(ENDPOINTS, first_hour(NOON)),
    "troubled": lambda views, some: views.troubled(),
    "unread": lambda views, some: views.unread(),
    "visits": lambda views, some: views.visits(DAY),
    "totals": lambda views, some: views.totals(),
    "parked": lambda views, some: views.parked(),
    "incidents": lambda views, some: views.incidents(NOON),
    "deliveries": lambda views, some: views.deliveries(DeliveryFilter()),
    "deliveries of an endpoint": lambda views, some: views.deliveries(DeliveryFilter(endpoint="arcade")),
    **{
        f"deliveries {state}": lambda views, some, state=state: views.deliveries(DeliveryFilter(state=state))
        for state in State
    },
    **{
        f"deliveries of an endpoint, {state}": lambda views, some, state=state: views.deliveries(
            DeliveryFilter(endpoint="arcade", state=state)
        )
        for state in State
    },
    "bookings of many": lambda views, some: views.told_of(views.chosen(DeliveryFilter(endpoint="arcade"))[:AT_ONCE]),
    "deliveries with a reason": lambda views, some: views.deliveries(DeliveryFilter(reason="catalogue-notice")),
    "deliveries of a reason that nobody has": lambda views, some: views.deliveries(DeliveryFilter(reason="overtaken")),
    "deliveries of a time": lambda views, some: views.deliveries(
        DeliveryFilter(since=NOON - timedelta(days=99), until=NOON - timedelta(days=98))
    ),
    "deliveries by a code": lambda views, some: views.deliveries(DeliveryFilter(text="H-20000")),
    "deliveries by an e-mail": lambda views, some: views.deliveries(DeliveryFilter(text="guest77@example.org")),
    "deliveries by an id": lambda views, some: views.deliveries(DeliveryFilter(text=str(some["delivery"]))),
    "deliveries by a word of all": lambda views, some: views.deliveries(DeliveryFilter(text="guest")),
    "deliveries by a word of nobody": lambda views, some: views.deliveries(DeliveryFilter(text="nobody")),
    "deliveries, far behind": lambda views, some: views.deliveries(
        DeliveryFilter(), DeliveryPlace(NOON - timedelta(days=300), some["delivery"])
    ),
    "chosen": lambda views, some: views.chosen(DeliveryFilter(state=State.PARKED)),
    "chosen of an endpoint": lambda views, some: views.chosen(DeliveryFilter(state=State.PARKED, endpoint="arcade")),
    "delivery": lambda views, some: views.delivery(some["delivery"]),
    "told by a delivery": lambda views, some: views.told_by(some["delivery"]),
    "changed by a delivery": lambda views, some: views.changed_by(some["delivery"], [some["booking"]]),
    "bookings from a day on": lambda views, some: views.bookings(BookingFilter(since=DAY)),
    "bookings, the last first": lambda views, some: views.bookings(BookingFilter()),
    "bookings of a venue": lambda views, some: views.bookings(BookingFilter(since=DAY, endpoint="arcade")),
    "bookings with a status": lambda views, some: views.bookings(BookingFilter(since=DAY, status=Status.CANCELLED)),
    "bookings by a code": lambda views, some: views.bookings(BookingFilter(text="H-20000")),
    "bookings by a name": lambda views, some: views.bookings(BookingFilter(text="guest 20000")),
    "bookings by an id": lambda views, some: views.bookings(BookingFilter(text=str(some["booking"]))),
    "bookings without a day": lambda views, some: views.bookings(BookingFilter(undated=True)),
    "how many have no day": lambda views, some: views.undated(),
    "a day": lambda views, some: views.day(DAY, None),
    "a day of a venue": lambda views, some: views.day(DAY, "arcade"),
    "booking": lambda views, some: views.booking(some["booking"]),
    "changes of a booking": lambda views, some: views.changes_of(some["booking"]),
    "events of a booking": lambda views, some: views.events_of(some["booking"]),
    "audit": lambda views, some: views.audit(),
}
"""Whatever a page asks for."""


def test_every_view_is_here() -> None:
    """A new one is asked for here too."""
    asked = {name for seen in SEEN.values() for name in seen.__code__.co_names}
    views = {name for name in vars(Views) if not name.startswith("_")}
    assert views - asked == {"noted"}


@pytest.mark.parametrize("name", SEEN)
def test_no_table_is_read_from_end_to_end(long: Engine, some: Mapping[str, UUID], name: str) -> None:
    with explained(long) as seen:
        SEEN[name](Views(long), some)
    assert seen
    for one in seen:
        assert not scans(one.plan) & set(TABLES), f"{one.statement}\n{one.text}"


@pytest.mark.parametrize(
    "ask",
    [
        lambda views: views.endpoints(),
        lambda views: views.by_hour(ENDPOINTS, first_hour(NOON)),
        lambda views: views.deliveries(DeliveryFilter(endpoint=SILENT)),
        lambda views: views.deliveries(DeliveryFilter(endpoint=SILENT, state=State.APPLIED)),
        lambda views: views.deliveries(DeliveryFilter(endpoint=SILENT, state=State.DUPLICATE)),
        lambda views: views.deliveries(DeliveryFilter(endpoint=SILENT, until=NOON)),
        lambda views: views.deliveries(DeliveryFilter(endpoint=SILENT, since=NOON - timedelta(days=9))),
    ],
)
def test_who_has_been_silent_for_long_is_not_looked_for_among_the_others(long: Engine, ask: Any) -> None:
    """A walk back to there would look at 160,000 rows."""
    with explained(long) as seen:
        ask(Views(long))
    assert sum(one.buffers for one in seen) < 2000, "\n".join(one.text for one in seen)


@pytest.mark.parametrize("name", SEEN)
def test_every_view_answers_soon(long: Engine, some: Mapping[str, UUID], name: str) -> None:
    views = Views(long)
    SEEN[name](views, some)
    began = time.monotonic()
    SEEN[name](views, some)
    assert time.monotonic() - began < GENEROUS


def test_views_cannot_write(long: Engine) -> None:
    with (
        Views(long)._reading() as connection,
        pytest.raises(Exception, match="read-only transaction"),
    ):
        connection.execute(insert(audit).values(session="s", address="a", action="x"))


# --- from page to page -------------------------------------------------------------------------------------------


def walked(ask: Callable[[str | None], Page]) -> list[UUID]:
    """The ids of a list, page by page to its end."""
    found: list[UUID] = []
    behind: str | None = None
    while True:
        page = ask(behind)
        assert len(page.rows) <= PAGE
        found += [row["id"] for row in page.rows]
        if page.next is None:
            return found
        behind = page.next


@pytest.fixture
def crowd(engine: Engine) -> Engine:
    """Deliveries and bookings of which many stand at the same moment, or at none."""
    at = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
    with engine.begin() as connection:
        for number in range(3 * PAGE + 7):
            connection.execute(
                insert(deliveries).values(
                    id=new_id(),
                    endpoint=ENDPOINTS[number % 2],
                    provider="timekit",
                    received_at=at - timedelta(seconds=number // 40),
                    method="POST",
                    headers=[],
                    body=b"",
                    state=State.PARKED if number % 3 else State.APPLIED,
                )
            )
            connection.execute(
                insert(bookings).values(
                    id=booking_id("studio", str(number)),
                    provider="timekit",
                    endpoint="studio",
                    external_id=str(number),
                    date=None if number % 5 == 0 else date(2026, 11, 20 + number % 2),
                    starts_at=at if number % 3 else None,
                    customer_name="Ada",
                    first_seen_at=at - timedelta(seconds=number // 30),
                    changed_at=at,
                    delivery_id=new_id(),
                )
            )
    return engine


@pytest.mark.parametrize(
    "wanted",
    [
        DeliveryFilter(),
        DeliveryFilter(state=State.PARKED),
        DeliveryFilter(endpoint=ENDPOINTS[0]),
        DeliveryFilter(endpoint=ENDPOINTS[1], state=State.PARKED),
        DeliveryFilter(since=datetime(2026, 11, 20, 11, 59, 58, tzinfo=UTC)),
    ],
)
def test_a_list_of_deliveries_has_no_gap_and_no_double(crowd: Engine, wanted: DeliveryFilter) -> None:
    views = Views(crowd)
    found = walked(lambda behind: views.deliveries(wanted, DeliveryPlace.read(behind)))
    assert found == list(reversed(views.chosen(wanted)))
    assert len(found) == len(set(found)) > PAGE


def test_a_list_goes_on_where_it_ended_when_more_has_come(crowd: Engine) -> None:
    """What is new stands before the first page, and moves nothing."""
    views = Views(crowd)
    first = views.deliveries(DeliveryFilter())
    with crowd.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO deliveries (id, endpoint, provider, received_at, method, headers, body) "
                "SELECT gen_random_uuid(), 'studio', 'timekit', '2026-11-20 13:00+00', 'POST', '[]', '' "
                "FROM generate_series(1, 99)"
            )
        )
    second = views.deliveries(DeliveryFilter(), DeliveryPlace.read(first.next))
    everything = list(reversed(views.chosen(DeliveryFilter())))[99:]
    assert [row["id"] for row in (*first.rows, *second.rows)] == everything[: 2 * PAGE]


IS_DATED, IS_UNDATED = bookings.c.date.is_not(None), bookings.c.date.is_(None)


@pytest.mark.parametrize(
    ("wanted", "which"),
    [
        (BookingFilter(), true()),
        (BookingFilter(text="ada"), true()),
        (BookingFilter(since=date(2026, 11, 1)), IS_DATED),
        (BookingFilter(until=date(2026, 12, 1)), IS_DATED),
        (BookingFilter(undated=True), IS_UNDATED),
        (BookingFilter(undated=True, text="ada"), IS_UNDATED),
    ],
)
def test_a_list_of_bookings_has_no_gap_and_no_double(
    crowd: Engine, wanted: BookingFilter, which: ColumnElement[bool]
) -> None:
    """Also of those without a time, and of those without a day."""
    views = Views(crowd)
    found = walked(lambda behind: views.bookings(wanted, BookingPlace.read(behind)))
    with crowd.connect() as connection:
        expected = set(connection.execute(select(bookings.c.id).where(which)).scalars())
    assert set(found) == expected
    assert len(found) == len(expected)


def test_both_directions_tell_the_same(crowd: Engine) -> None:
    views = Views(crowd)
    since, until = BookingFilter(since=date(2026, 1, 1)), BookingFilter(until=date(2027, 1, 1))
    forwards, backwards = (
        walked(lambda behind, wanted=wanted: views.bookings(wanted, BookingPlace.read(behind)))  # type: ignore[misc]
        for wanted in (since, until)
    )
    assert forwards == list(reversed(backwards))


def test_the_audit_goes_on_too(engine: Engine) -> None:
    with engine.begin() as connection:
        rows = [{"session": "s", "address": "a", "action": "login"} for _ in range(2 * PAGE + 1)]
        connection.execute(insert(audit), rows)
    found = walked(lambda behind: Views(engine).audit(int(behind) if behind else None))
    assert found == sorted(found, reverse=True)
    assert len(found) == 2 * PAGE + 1


def test_too_many_are_not_counted_to_the_end(long: Engine) -> None:
    """A page says that there are more than it counts."""
    views = Views(long)
    assert len(views.chosen(DeliveryFilter(state=State.DUPLICATE))) == MANY + 1
    totals = views.totals()
    assert totals["deliveries"].how == "about"
    with long.connect() as connection:
        number = connection.execute(select(func.count()).select_from(deliveries)).scalar_one()
    assert totals["deliveries"].number == pytest.approx(number, rel=0.05)


# --- filters -----------------------------------------------------------------------------------------------------


def test_a_filter_is_its_own_address() -> None:
    """What is typed comes back as it was, and nothing else."""
    given = {"endpoint": "a&b", "q": "Ada L", "since": "24h", "other": "x", "state": ""}
    found = read_filter(Words(given=given), NOON)
    assert found.address() == "endpoint=a%26b&since=24h&q=Ada+L"
    assert found.since == NOON - timedelta(hours=24)
    assert not found.is_all


@pytest.mark.parametrize(
    ("given", "since", "backwards"),
    [
        ({}, NOON.date(), False),
        ({"endpoint": "arcade"}, NOON.date(), False),
        ({"q": "ada"}, None, True),
        ({"to": "2026-01-01"}, None, True),
        ({"from": "2026-01-01", "q": "ada"}, date(2026, 1, 1), False),
        ({"all": "yes"}, None, True),
    ],
)
def test_bookings_begin_today_where_nothing_else_is_said(given: Any, since: date | None, backwards: bool) -> None:
    found = booking_filter(Words(given=given), NOON.date())
    assert (found.since, found.backwards) == (since, backwards)


@pytest.mark.parametrize(
    "place",
    [
        DeliveryPlace(NOON, UUID(int=7)),
        BookingPlace(NOON.date(), NOON, UUID(int=7)),
        BookingPlace(NOON.date(), None, UUID(int=7)),
        BookingPlace(None, NOON, UUID(int=7)),
        BookingPlace(None, datetime(1969, 1, 1, tzinfo=UTC), UUID(int=7)),
    ],
)
def test_a_place_in_a_list_can_be_written_and_read(place: DeliveryPlace | BookingPlace) -> None:
    assert type(place).read(str(place)) == place
    assert type(place).read(f"{place}x") is None
