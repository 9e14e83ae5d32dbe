"""A long past, made set-wise by PostgreSQL itself: deliveries, what they said, what became of it, and when.

The workers could have left it: a booking's row is the fold of its events, which lie some thousand deliveries apart. As
many deliveries are open or owed, however long it is: due FAR in the future, so that no sweeper of a run touches them.
Knows the tables and no provider's words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import psycopg

from schemas.endpoints import Endpoint
from workers.bookings import booking_id

FAR: Final = datetime(2100, 1, 1, tzinfo=UTC)
"""When what is open becomes due."""
PAST: Final = timedelta(days=365)
"""Over so long the history spreads."""
GROUP: Final = 1000
"""So many bookings are told of in turns: that far apart are the events of one."""
CHUNK: Final = 500_000
"""Deliveries that are made at a time, about."""
OPEN: Final = 500
"""So many deliveries are parked, so many wait for another attempt, for the first one, or owe an acknowledgement."""
TABLES: Final = ("deliveries", "bookings", "booking_events", "booking_changes")

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class History:
    """How long it is, and whose."""

    endpoints: Sequence[Endpoint]
    bookings: int
    each: int
    """Deliveries, and so events, of one booking."""
    until: datetime

    @classmethod
    def of(cls, endpoints: Sequence[Endpoint], deliveries: int, bookings: int, until: datetime) -> History:
        """About so many: each booking has the same number of events, and bookings come in whole groups."""
        whole = bookings // GROUP * GROUP or bookings
        return cls(endpoints=endpoints, bookings=whole, each=max(1, round(deliveries / whole)), until=until)

    @property
    def deliveries(self) -> int:
        return self.bookings * self.each

    def endpoint(self, booking: int) -> Endpoint:
        """Whose the n-th booking is, from 0."""
        return self.endpoints[booking % len(self.endpoints)]

    def external_id(self, booking: int) -> str:
        """The provider's id of the n-th booking."""
        return f"h{booking}"

    def make(self, connection: psycopg.Connection[Any], say: Say = lambda line: None) -> None:
        """Fills empty tables, through a connection that commits by itself."""
        for statement in _BEFORE:
            connection.execute(statement)
        indexes = _dropped(connection)
        self._name(connection)
        group = min(GROUP, self.bookings)
        facts = {
            "each": self.each,
            "group": group,
            "began": self.until - PAST,
            "step": timedelta(microseconds=PAST / self.deliveries // timedelta(microseconds=1)),
            "far": FAR,
            "period": max(4, self.deliveries // OPEN),
        }
        chunk = max(1, CHUNK // (group * self.each)) * group * self.each
        for first in range(0, self.deliveries, chunk):
            say(f"history: {first:,} of {self.deliveries:,} deliveries are there")
            span = {"first": first, "last": min(first + chunk, self.deliveries) - 1}
            for statement in _CHUNK:
                connection.execute(statement, facts | span)
        say("history: the indexes, and what PostgreSQL wants to know of the tables")
        for index in indexes:
            connection.execute(index)
        for statement in _AFTER:
            connection.execute(statement)

    def _name(self, connection: psycopg.Connection[Any]) -> None:
        """Our ids are made from names, which PostgreSQL cannot do by itself."""
        with connection.cursor() as cursor, cursor.copy("COPY names FROM STDIN") as copy:
            for number in range(self.bookings):
                endpoint, name = self.endpoint(number), self.external_id(number)
                identity = booking_id(endpoint.name, name)
                copy.write_row((number, identity, endpoint.name, endpoint.provider, name, endpoint.timezone))
        connection.execute("ANALYZE names")


def _dropped(connection: psycopg.Connection[Any]) -> list[str]:
    """Takes the indexes away that are no constraint's; how they are made again."""
    found = connection.execute(_INDEXES, {"tables": list(TABLES)}).fetchall()
    for name, _ in found:
        connection.execute(f"DROP INDEX {name}")
    return [definition for _, definition in found]


_INDEXES: Final = """
    SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid)
    FROM pg_index
    WHERE indrelid::regclass::text = ANY(%(tables)s)
      AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)
"""
_BEFORE: Final[Sequence[str]] = (
    "SET session_replication_role = replica",  # what is made here keeps its references by itself
    "SET synchronous_commit = off",
    "SET timezone = 'UTC'",
    """
    CREATE TEMPORARY TABLE names (
        b bigint PRIMARY KEY, booking_id uuid, endpoint text, provider text, external_id text, timezone text
    )
    """,
    # What the first event of a booking says, and what a later one adds.
    """
    CREATE FUNCTION pg_temp.first_said(b bigint, at timestamptz, timezone text) RETURNS jsonb STABLE LANGUAGE sql AS $$
        SELECT jsonb_build_object(
            'status', 'pending', 'provider_status', 'tentative', 'reference', 'H-' || b, 'timezone', timezone,
            'date', at::date + 7, 'starts_at', at + interval '7 days', 'ends_at', at + interval '169 hours',
            'resource_id', 'r' || mod(b, 20), 'resource_name', 'Room ' || mod(b, 20), 'party_size', 2 + mod(b, 7),
            'customer_name', 'Guest ' || b, 'customer_email', 'guest' || b || '@example.org',
            'customer_phone', '+47 900 ' || b, 'currency', 'NOK', 'total', (400 + mod(b, 90))::text || '.00',
            'details', jsonb_build_object('graph', 'instant'), 'provider_updated_at', at
        )
    $$
    """,
    """
    CREATE FUNCTION pg_temp.later_said(b bigint, nth bigint, at timestamptz) RETURNS jsonb STABLE LANGUAGE sql AS $$
        SELECT jsonb_build_object(
            'status', CASE WHEN mod(b, 10) = nth THEN 'cancelled' ELSE 'confirmed' END,
            'provider_status', 'state ' || nth, 'provider_updated_at', at
        )
    $$
    """,
)
_CHUNK: Final[Sequence[str]] = (
    # Delivery i is the nth about booking b, and of a kind: 0 owes something, 1 is parked, 2 waits for another attempt,
    # 3 for the first one, 4 is done. Its id is made of the time, as ours are.
    """
    CREATE TEMPORARY TABLE told AS
    SELECT *, (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '70008000' ||
               lpad(to_hex(i), 12, '0'))::uuid AS delivery_id
    FROM (
        SELECT i, i / (%(group)s * %(each)s) * %(group)s + mod(i, %(group)s) AS b,
               mod(i, %(group)s * %(each)s) / %(group)s AS nth,
               CASE WHEN mod(mod(i, %(period)s), %(period)s / 4) = 0 AND mod(i, %(period)s) < %(period)s / 4 * 4
                    THEN mod(i, %(period)s) / (%(period)s / 4) ELSE 4 END AS kind,
               %(began)s::timestamptz + i * %(step)s::interval AS at
        FROM generate_series(%(first)s::bigint, %(last)s::bigint) AS series(i)
    ) AS numbered
    JOIN names USING (b)
    ORDER BY i
    """,
    """
    INSERT INTO deliveries (id, endpoint, provider, received_at, method, headers, body, message_id, state, reason,
                            attempts, next_attempt_at, parser, applied_at, acknowledge_at)
    SELECT delivery_id, endpoint, provider, at, 'POST',
        jsonb_build_array(
            jsonb_build_array('host', 'hooks.example.org'), jsonb_build_array('user-agent', 'Bookings/1.0'),
            jsonb_build_array('content-type', 'application/json'), jsonb_build_array('content-length', '512'),
            jsonb_build_array('x-forwarded-for', '203.0.113.9'), jsonb_build_array('x-request-id', md5(i::text))
        ),
        convert_to(repeat(md5(i::text), 16), 'UTF8'),
        CASE provider WHEN 'lockme' THEN i::text END,
        CASE kind WHEN 1 THEN 'parked' WHEN 2 THEN 'retrying' WHEN 3 THEN 'received' ELSE
            CASE WHEN mod(i, 100) < 12 THEN 'duplicate' WHEN mod(i, 100) < 20 THEN 'ignored'
                 WHEN mod(i, 100) = 99 THEN 'stale' ELSE 'applied' END
        END,
        CASE WHEN kind = 1 THEN 'malformed' WHEN kind = 2 THEN 'provider-unavailable'
             WHEN kind <> 3 AND mod(i, 100) BETWEEN 12 AND 19 THEN 'catalogue-notice' END,
        CASE kind WHEN 3 THEN 0 ELSE 1 END,
        CASE WHEN kind IN (2, 3) THEN %(far)s::timestamptz END,
        1, CASE WHEN kind IN (0, 4) THEN at END,
        CASE WHEN kind = 0 THEN %(far)s::timestamptz END
    FROM told
    """,
    """
    INSERT INTO booking_events (booking_id, delivery_id, position, version, received_at, same_as, event, parser)
    SELECT booking_id, delivery_id, 0, to_char(at, 'YYYY-MM-DD"T"HH24:MI:SS.US'), at, 'h' || i,
        jsonb_build_object('said', CASE nth WHEN 0 THEN pg_temp.first_said(b, at, timezone)
                                            ELSE pg_temp.later_said(b, nth, at) END), 1
    FROM told
    """,
    """
    INSERT INTO booking_changes (booking_id, delivery_id, at, kind, diff)
    SELECT booking_id, delivery_id, at, CASE nth WHEN 0 THEN 'created' ELSE 'updated' END,
        jsonb_build_object('provider_status', jsonb_build_array('state ' || nth - 1, 'state ' || nth))
    FROM told
    """,
    """
    INSERT INTO bookings (id, provider, endpoint, external_id, first_seen_at, changed_at, delivery_id,
                          status, provider_status, reference, timezone, date, starts_at, ends_at, resource_id,
                          resource_name, party_size, customer_name, customer_email, customer_phone, currency, total,
                          details, provider_updated_at)
    SELECT newest.booking_id, newest.provider, newest.endpoint, newest.external_id, oldest.at, newest.at,
        newest.delivery_id, status, provider_status, reference, shown.timezone, date, starts_at, ends_at, resource_id,
        resource_name, party_size, customer_name, customer_email, customer_phone, currency, total, details,
        provider_updated_at
    FROM told AS newest
    JOIN told AS oldest ON oldest.b = newest.b AND oldest.nth = 0
    CROSS JOIN LATERAL jsonb_populate_record(
        NULL::bookings,
        pg_temp.first_said(newest.b, oldest.at, newest.timezone) ||
        CASE newest.nth WHEN 0 THEN '{}'::jsonb ELSE pg_temp.later_said(newest.b, newest.nth, newest.at) END
    ) AS shown
    WHERE newest.nth = %(each)s - 1
    """,
    "DROP TABLE told",
)
_AFTER: Final[Sequence[str]] = (
    "DROP TABLE names",
    "SET session_replication_role = origin",
    "VACUUM (ANALYZE) deliveries, bookings, booking_events, booking_changes",
)
