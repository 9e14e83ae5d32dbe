"""The workers' side: how fast a burst is applied, against Celery's floor and against PostgreSQL alone.

Three contenders take turns on the same servers. Reservoir's own worker, by its line of the Procfile, finds the inbox
full; beat runs beside it. The same line with an app whose task does nothing finds a message for each, by Celery's own
settings, which suit it better than Reservoir's would. `pgbench` does in one transaction per delivery what is least to
be written: the delivery, its event, its booking, as wide as Reservoir's own. The rate of a worker is that between the
first and the last CUT of a burst: no start, and no last few.

A worker is one line of the Procfile, with as many processes as it says. None of the three is kept from either core.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psycopg
from redis import Redis

from bench.figures import BURST, NO_OP, PGBENCH, RESERVOIR, Figure
from bench.floor import QUEUE, messages
from bench.ground import Ground, GroundFailed, Running
from bench.others import Others
from bench.stuff import Stuff, fill, recorded, secrets
from chaos.backlog import rate
from console.processes import procfile
from schemas.booking import COLUMNS
from schemas.delivery import INBOX, OPEN
from workers.database import engine

CUT: Final = 0.05
STALLED: Final = 60.0
"""Seconds without progress after which nobody waits any longer."""
LOOK_EVERY: Final = 0.2
PUSHED: Final = 1000
ENOUGH: Final = 20_000
"""Messages for the task that does nothing, at most: how many more wait behind them changes nothing for it."""
CLIENTS: Final = (4, 8, 16)
"""Of pgbench; the best of them counts."""
PGBENCH_SECONDS: Final = 8

Say = Callable[[str], None]


def burst(ground: Ground, deliveries: int, rounds: int, say: Say) -> list[Figure]:
    """Every contender in every round, in turns. Raises GroundFailed."""
    stuff = recorded(ground.config, deliveries)
    say(f"worker: {len(stuff.deliveries)} deliveries about {stuff.booked} bookings")
    match = Match(ground, stuff)
    contenders = (match.reservoir, match.no_op, match.pgbench)
    figures = []
    for number in range(rounds):
        for contender in contenders[::-1] if number % 2 else contenders:
            others = Others()
            figures.append(replace(contender(number), others_share=others.share()))
            say(f"worker: round {number + 1}: {_told(figures[-1])}")
    return figures


def _told(figure: Figure) -> str:
    return f"{figure.contender} {figure.per_second:.0f} a second, others {figure.others_share:.0%} of a core"


@dataclass
class Match:
    """The three contenders."""

    ground: Ground
    stuff: Stuff
    _sample: Mapping[str, str] = field(default_factory=dict)
    """What pgbench writes: a delivery, an event and a booking of Reservoir's, by variable."""

    @property
    def load(self) -> str:
        return f"{BURST} of {len(self.stuff.deliveries)}"

    def reservoir(self, number: int) -> Figure:
        emptied(self.ground.database_url)
        drain = drained(self.ground, self.stuff)
        self._sample = self._sample or sampled(self.ground.database_url)
        return Figure(
            contender=RESERVOIR,
            load=self.load,
            round=number,
            per_second=drain.per_second,
            cpu_ms=drain.cpu_ms,
            rss_mb=drain.rss_mb,
            kept=drain.kept,
            acked=len(self.stuff.deliveries),
        )

    def no_op(self, number: int) -> Figure:
        count = min(len(self.stuff.deliveries), ENOUGH)
        self.ground.empty_redis()
        with self.ground.file_left_alone(), self.ground.redis() as redis:
            _push(redis, count)
            with self.ground.running(NO_OP, floor_line(), core=None, kind="worker") as worker:
                watched = _watch(worker, count, lambda: int(redis.llen(QUEUE)) + int(redis.hlen("unacked")))
        return Figure(
            contender=NO_OP,
            load=self.load,
            round=number,
            per_second=rate(watched.marks, CUT, 1 - CUT),
            cpu_ms=watched.cpu_ms,
            rss_mb=watched.rss_mb,
        )

    def pgbench(self, number: int) -> Figure:
        emptied(self.ground.database_url)
        best = max(transactions(self.ground, self._sample, self.stuff.booked, clients) for clients in CLIENTS)
        emptied(self.ground.database_url)
        return Figure(contender=PGBENCH, load=self.load, round=number, per_second=best)


def floor_line() -> str:
    """The worker's line of the Procfile, with the app that does nothing."""
    return procfile()["worker"].replace("workers.app", "bench.floor")


def emptied(database_url: str) -> None:
    """No row is left, and nothing of what was before has still to be written to the disk."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("TRUNCATE deliveries, bookings, booking_events, booking_changes")
        connection.execute("CHECKPOINT")


# --- a worker at work ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """What was seen of a worker from outside."""

    marks: Sequence[tuple[float, int]]
    """(when, how many were done), monotonic seconds."""
    cpu_ms: float
    """Of the worker with its children, for each that was done while we looked."""
    rss_mb: float


def _watch(worker: Running, count: int, left: Callable[[], int]) -> Watched:
    """From the first that is done until nothing is left. Raises GroundFailed where nothing moves any more."""
    marks = [(time.monotonic(), 0)]
    began = 0.0
    while marks[-1][1] < count:
        time.sleep(LOOK_EVERY)
        done, now = count - left(), time.monotonic()
        if not worker.alive or now - marks[-1][0] > STALLED:
            raise GroundFailed(f"{worker.name}: {count - done} of {count} are left:\n{worker.output()[-2000:]}")
        if done > marks[-1][1]:
            if marks[-1][1] == 0:
                marks, began = [(now, done)], worker.cpu_seconds()
            else:
                marks.append((now, done))
    worked = count - marks[0][1]
    spent = worker.cpu_seconds() - began
    return Watched(marks=marks, cpu_ms=1000 * spent / worked if worked else 0.0, rss_mb=worker.rss_mb())


@dataclass(frozen=True, kw_only=True, slots=True)
class Drain:
    """How a burst was worked off."""

    per_second: float
    cpu_ms: float
    rss_mb: float
    kept: int
    """Deliveries that are settled."""


def drained(ground: Ground, stuff: Stuff, database_url: str | None = None) -> Drain:
    """A worker and beat over a full inbox, until all of it is settled, in this database. Raises GroundFailed, also
    where the table of bookings is not as the venues know it."""
    url = database_url or ground.database_url
    ground.empty_redis()
    with ground.file_left_alone(), ground.redis() as redis, psycopg.connect(url, autocommit=True) as connection:
        fill(ground.redis_url, stuff)

        def left() -> int:
            return int(redis.hlen(INBOX)) or _open(connection)

        more = {"DATABASE_URL": url, **secrets(stuff.config)}
        with ground.running("beat", core=None, more=more), ground.running("worker", core=None, more=more) as worker:
            watched = _watch(worker, len(stuff.deliveries), left)
        moments = settled_at(connection, stuff)
    _compare(url, stuff)
    marks = [(moment, place) for place, moment in enumerate(moments, 1)]
    return Drain(per_second=rate(marks, CUT, 1 - CUT), cpu_ms=watched.cpu_ms, rss_mb=watched.rss_mb, kept=len(moments))


def _open(connection: psycopg.Connection[Any]) -> int:
    """Deliveries that somebody must look at within the day."""
    query = "SELECT count(*) FROM deliveries WHERE next_attempt_at < now() + interval '1 day'"
    ((count,),) = connection.execute(query).fetchall()
    return int(count)


def settled_at(connection: psycopg.Connection[Any], stuff: Stuff) -> list[float]:
    """When each of these deliveries that is settled was committed so, Unix seconds, in order: PostgreSQL's own word."""
    query = """
        SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS moment
        FROM deliveries WHERE id = ANY(%s) AND state <> ALL(%s) ORDER BY moment
    """
    ids = [delivery.id for delivery in stuff.deliveries]
    return [moment for (moment,) in connection.execute(query, [ids, sorted(OPEN)])]


def _compare(database_url: str, stuff: Stuff) -> None:
    """Raises GroundFailed, with what became of the deliveries."""
    opened = engine(database_url)
    try:
        verdict = stuff.verdict(opened)
    finally:
        opened.dispose()
    if not verdict.good:
        raise GroundFailed(
            f"of {stuff.booked} bookings {len(verdict.lost)} are lost, {len(verdict.invented)} invented and "
            f"{len(verdict.wrong)} columns wrong, such as {[*verdict.wrong, *verdict.lost, *verdict.invented][:3]}; "
            f"deliveries: {_fates(database_url, stuff)}"
        )


def _fates(database_url: str, stuff: Stuff) -> str:
    query = """
        SELECT concat_ws(' ', state, reason) AS fate, count(*) FROM deliveries WHERE id = ANY(%s) GROUP BY 1 ORDER BY 1
    """
    with psycopg.connect(database_url) as connection:
        counted = connection.execute(query, [[delivery.id for delivery in stuff.deliveries]]).fetchall()
    return ", ".join(f"{count} {fate}" for fate, count in counted) or "none"


# --- the floor -------------------------------------------------------------------------------------------------


def _push(redis: Redis, count: int) -> None:
    waiting = list(messages(count))
    for start in range(0, count, PUSHED):
        redis.lpush(QUEUE, *waiting[start : start + PUSHED])


# --- pgbench ---------------------------------------------------------------------------------------------------

# A booking's id is by chance: of one made from its number two clients could insert the same at once, and only one of
# the two unique indexes can be the one that ON CONFLICT minds.
_SCRIPT: Final = r"""
\set booking random(1, :bookings)
BEGIN;
INSERT INTO deliveries (id, endpoint, provider, received_at, method, headers, body, state, attempts, parser, applied_at)
VALUES (uuidv7(), :endpoint, :provider, now(), 'POST', :headers, :body, 'applied', 1, 1, now())
RETURNING id AS delivery \gset
INSERT INTO bookings (id, provider, endpoint, external_id, first_seen_at, changed_at, delivery_id, COLUMNS)
VALUES (gen_random_uuid(), :provider, :endpoint, :booking::text, now(), now(), :delivery, VALUES_OF_THEM)
ON CONFLICT (endpoint, external_id) DO UPDATE
SET changed_at = excluded.changed_at, delivery_id = excluded.delivery_id, UPDATES
RETURNING id AS row \gset
INSERT INTO booking_events (booking_id, delivery_id, position, received_at, event, parser)
VALUES (:row, :delivery, 0, now(), :event, 1);
END;
"""
_SAMPLE: Final = r"""
    SELECT d.endpoint, d.provider, d.headers::text AS headers, '\x' || encode(d.body, 'hex') AS body,
           e.event::text AS event, to_jsonb(b) AS booking
    FROM deliveries d
    JOIN booking_events e ON e.delivery_id = d.id
    JOIN bookings b ON b.id = e.booking_id
    WHERE d.state = 'applied'
    ORDER BY abs(octet_length(d.body) - (SELECT avg(octet_length(body)) FROM deliveries)), d.id
    LIMIT 1
"""


def sampled(database_url: str) -> dict[str, str]:
    """A delivery whose body is as long as they are on average, with its event and its booking."""
    with psycopg.connect(database_url, row_factory=psycopg.rows.dict_row) as connection:
        row = connection.execute(_SAMPLE).fetchone()
    assert row is not None, "Reservoir has applied nothing"
    booking = row.pop("booking")
    return row | {name: _text(booking[name]) for name in COLUMNS if booking[name] is not None}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def script(sample: Mapping[str, str]) -> str:
    """What pgbench does for one delivery; the values are its variables."""
    columns = [name for name in COLUMNS if name in sample]
    return (
        _SCRIPT.replace("COLUMNS", ", ".join(columns))
        .replace("VALUES_OF_THEM", ", ".join(f":{name}" for name in columns))
        .replace("UPDATES", ", ".join(f"{name} = excluded.{name}" for name in columns))
    )


def transactions(ground: Ground, sample: Mapping[str, str], bookings: int, clients: int) -> float:
    """How many pgbench commits a second, with so many connections. Raises GroundFailed."""
    file = ground.folder / "pgbench.sql"
    file.write_text(script(sample), encoding="utf-8")
    program = Path(ground.server("PostgreSQL").cmdline()[0]).with_name("pgbench")
    length = ("--client", str(clients), "--jobs", "2", "--time", str(PGBENCH_SECONDS))
    return committed(program, file, ground.database_url, {**sample, "bookings": str(bookings)}, length)


def committed(program: Path, file: Path, url: str, variables: Mapping[str, str], length: Sequence[str]) -> float:
    """Transactions a second of pgbench with this script. Raises GroundFailed, also where one of them fails."""
    given = [word for name, value in variables.items() for word in ("-D", f"{name}={value}")]
    command = [str(program), "--no-vacuum", "--protocol", "prepared", "--file", str(file), *length, *given, url]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  (the command is ours)
    found = re.search(r"tps = ([\d.]+)", ended.stdout)
    if ended.returncode != 0 or found is None:
        raise GroundFailed(f"pgbench: {ended.stderr.strip()[-500:]}")
    return float(found[1])
