"""From POST to row, with everything real: `reservoir up` and its processes, the simulators over HTTP.

One installation with seven venues lives through the day once; each test looks at what came of it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import httpx
import psycopg
import pytest

from console.trial import SETTLED, Trial
from simulators.clock import Clock
from simulators.ledger import Ledger, Verdict
from simulators.lockme import Lockme
from simulators.server import discover
from simulators.venue import Venue, Weather
from tests.lines import AGREED, ANYWHERE, documented, read

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]

FLOWER = ("operator", "only-for-those-who-know")
WRONG = "what-somebody-guessed"
ENVIRONMENT = {"FLOWER_BASIC_AUTH": ":".join(FLOWER), "RESERVOIR_CONSOLE_PASSWORD": "only-for-the-operator"}
STRANGER = "stranger@guests.example"
"""A guest in what cannot be read."""
SPEED = 2000.0
PATIENCE = 90.0


@dataclass
class Day:
    """What the day left behind."""

    ledger: Ledger = field(default_factory=Ledger)
    venues: list[Venue] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    while_down: list[dict[str, Any]] = field(default_factory=list)
    """The deliveries of the venue whose API was down, while it was."""
    others_while_down: bool = False
    retry: dict[str, Any] = field(default_factory=dict)
    """What Flower tells of one of those, at that time."""
    stranger: int = 0
    """Flower's answer to somebody without its password."""
    flower: dict[str, Any] = field(default_factory=dict)
    """What Flower tells of all tasks, in the end."""
    pages: str = ""
    """Flower's pages of some of them."""
    log: str = ""
    """All that `reservoir up` and its processes said, from the start to the end."""
    servers: str = ""
    """The logs of PostgreSQL and Redis."""

    secrets: set[str] = field(default_factory=set)
    """The installation's own, and the tokens that a provider issued."""

    def of(self, venue: Venue) -> list[dict[str, Any]]:
        return [row for row in self.deliveries if row["endpoint"] == venue.endpoint]

    @property
    def personal(self) -> set[str]:
        """What nobody may read who is not meant to: every secret, and what the guests told."""
        secrets = {secret for venue in self.venues for secret in venue.secrets().values()}
        tokens = {venue.hook_url.rsplit("/", 1)[1] for venue in self.venues}
        columns = ("customer_name", "customer_email", "customer_phone", "note")
        guests = {str(row[column]) for row in self.ledger.truth.values() for column in columns if row.get(column)}
        found = secrets | tokens | self.secrets | {FLOWER[1], STRANGER} | {text for text in guests if len(text) > 5}
        return found | {json.dumps(text)[1:-1] for text in found}

    @property
    def said(self) -> tuple[str, ...]:
        """All that the log and Flower told."""
        return self.log, self.servers, self.pages, json.dumps([self.flower, self.retry], ensure_ascii=False)


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Day:
    day, clock = Day(), Clock(datetime.now(UTC).replace(microsecond=0), SPEED)

    def venue(kind: type[Venue], name: str, weather: Weather) -> Any:
        made = kind(
            endpoint=name, hook_url="", ledger=day.ledger, clock=clock, rng=Random(f"day {name}"), weather=weather
        )
        day.venues.append(made)
        return made

    for name, kind in discover().items():
        venue(kind, f"{name}-venue", Weather(duplicate=0.15, reorder=0.15))
    forgetful = venue(Lockme, "lockme-forgetful", Weather())
    down = venue(Lockme, "lockme-down", Weather(api_down=1.0))

    async def live() -> None:
        folder, scale = tmp_path_factory.mktemp("trial"), {"console": 1}
        async with Trial(day.venues, day.ledger, folder, scale=scale, environment=ENVIRONMENT) as trial:
            forgetful.fail_acknowledgements(2)
            forgetful.send_test()
            later = asyncio.gather(forgetful.busy_day(2), down.busy_day(1))
            await asyncio.gather(*(one.busy_day(6) for one in day.venues if one not in (forgetful, down)))
            await until(lambda: _waiting(trial, down, day), "the deliveries that need the dead API to retry")
            day.others_while_down = await _others_are_right(trial, day, down)
            day.retry = (await _flower(trial, f"/api/task/info/{day.while_down[0]['id']}")).json()
            day.stranger = (await _flower(trial, "/api/tasks", auth=None)).status_code
            down.weather.api_down = 0.0
            await later
            await until(lambda: _settled(trial), "everything to settle")
            day.rows = await trial.command("bookings", "list", "--json")
            day.verdict = day.ledger.compare(day.rows)
            day.deliveries = await trial.command("deliveries", "list", "--json")
            day.flower = (await _flower(trial, "/api/tasks")).json()
            for row in day.deliveries[:20]:
                day.pages += (await _flower(trial, f"/task/{row['id']}")).text
            await _evening(trial, day)
            day.secrets = {(folder / "state" / "secret").read_text().strip(), *ENVIRONMENT.values(), WRONG}
        day.log = trial.log.read_text(errors="replace")
        day.servers = "".join(file.read_text(errors="replace") for file in (folder / "state" / "log").iterdir())

    asyncio.run(live())
    return day


async def until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await true():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for {what}"
        await asyncio.sleep(0.5)


async def _waiting(trial: Trial, down: Venue, day: Day) -> bool:
    if {*await asyncio.to_thread(_states, trial, down.endpoint)} != {"retrying"}:
        return False
    day.while_down = await trial.command("deliveries", "list", "--json", "--endpoint", down.endpoint)
    return bool(day.while_down) and all(row["state"] == "retrying" for row in day.while_down)


async def _others_are_right(trial: Trial, day: Day, down: Venue) -> bool:
    """Whether every booking of a provider that has nothing to do with the dead API stands as it should."""

    async def right() -> bool:
        verdict = await trial.compare()
        bad = {wrong.endpoint for wrong in verdict.wrong} | {endpoint for endpoint, _ in verdict.lost}
        return not {one for one in bad if not one.startswith(down.provider)}

    await until(right, "the other providers' bookings")
    return True


async def _settled(trial: Trial) -> bool:
    states = await asyncio.to_thread(_states, trial)
    acked = sum(one.acked for one in trial.ledger.sent)
    return len(states) >= acked and all(state in SETTLED for state in states)


def _states(trial: Trial, endpoint: str = "%") -> list[str]:
    """Of all deliveries, or of one endpoint's. To wait so costs nothing; the command takes a second of a core."""
    with psycopg.connect(trial.database_url()) as connection:
        found = connection.execute("SELECT state FROM deliveries WHERE endpoint LIKE %s", [endpoint])
        return [str(state) for (state,) in found]


async def _flower(trial: Trial, path: str, auth: tuple[str, str] | None = FLOWER) -> httpx.Response:
    """What Flower answers."""
    async with httpx.AsyncClient(trust_env=False, timeout=20, auth=auth) as client:
        answer = await client.get(_address(trial, "Flower") + path)
    assert answer.status_code == (200 if auth else 401)
    return answer


def _address(trial: Trial, name: str) -> str:
    """Where a page is; the log says it."""
    found = re.search(rf'{name}.*?(http://[^\s"]+)', trial.log.read_text(errors="replace"))
    assert found, name
    return found[1]


async def _evening(trial: Trial, day: Day) -> None:
    """What goes wrong on every installation: bodies that cannot be read, one that is too large, a wrong password."""
    checkfront = next(venue for venue in day.venues if venue.provider == "checkfront")
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        assert (await client.post(checkfront.hook_url, content=f'{{"booking": "{STRANGER}"')).status_code == 200
        with suppress(httpx.TransportError):  # refused while it is still being sent
            await client.post(checkfront.hook_url, content=f"{STRANGER} " * 100_000)
        login = _address(trial, "the console") + "/login"
        token = re.search(r'name="token" value="([^"]+)"', (await client.get(login)).text)
        assert token
        refused = await client.post(login, data={"token": token[1], "password": WRONG}, headers={"origin": login[:-6]})
        assert refused.status_code == 403

    async def is_parked() -> bool:
        return "parked" in await asyncio.to_thread(_states, trial)

    await until(is_parked, "the one that cannot be read to be parked")


# --- what came of it -------------------------------------------------------------------------------------------


def test_every_row_of_all_five_providers_is_right(day: Day) -> None:
    """Creates, changes, moves, cancellations, duplicates and overtaking end in what the venues know."""
    assert day.verdict.good, (day.verdict.wrong[:5], day.verdict.lost, day.verdict.invented)
    assert {row["provider"] for row in day.rows} == set(discover())
    assert day.verdict.checked == len(day.rows) == len(day.ledger.truth)


def test_every_request_was_answered_in_time(day: Day) -> None:
    """Each 2xx came within the provider's own deadline, and nothing was refused."""
    assert [one for one in day.ledger.sent if one.late or not one.acked] == []


def test_every_acknowledged_request_is_kept_once(day: Day) -> None:
    """As many deliveries as 2xx, for each endpoint."""
    for venue in day.venues:
        acked = sum(one.acked for one in day.ledger.sent if one.endpoint == venue.endpoint)
        assert len(day.of(venue)) == acked, venue.endpoint


def test_payments_are_recorded_once(day: Day) -> None:
    """Checkfront tells of a payment twice, in its own notice and in the booking; `details.payments` has it once."""
    told = {row["reference"]: [one["id"] for one in row["details"].get("payments", [])] for row in day.rows}
    made = {code: ids for venue in day.venues for code, ids in getattr(venue, "payments", {}).items()}
    assert made
    assert {code: sorted(ids) for code, ids in made.items()} == {code: sorted(told[code]) for code in made}


def test_lockme_knows_of_every_message_in_the_end(day: Day) -> None:
    """Each message was acknowledged through the API, that of the connection test and of repeats included."""
    for venue in day.venues:
        if isinstance(venue, Lockme):
            assert venue.messages
            assert all(message.acknowledged.is_set() for message in venue.messages.values()), venue.endpoint


def test_lockme_is_told_again_when_that_failed(day: Day) -> None:
    """What could not be acknowledged stands in the table all the same, and is acknowledged later."""
    forgetful = next(venue for venue in day.venues if venue.endpoint == "lockme-forgetful")
    assert isinstance(forgetful, Lockme)
    assert sum(message.acks for message in forgetful.messages.values()) >= len(forgetful.messages) + 2
    assert all(row["acknowledged_at"] for row in day.of(forgetful))


def test_a_message_is_applied_once_however_often_it_came(day: Day) -> None:
    """Repeats are duplicates."""
    for venue in day.venues:
        applied = [row["message_id"] for row in day.of(venue) if row["state"] == "applied" and row["message_id"]]
        assert len(applied) == len(set(applied))


def test_a_provider_that_is_down_waits_and_the_others_go_on(day: Day) -> None:
    """Its deliveries retry with their reason and the time of the next attempt."""
    assert day.others_while_down
    assert {row["reason"] for row in day.while_down} == {"provider-unavailable"}
    assert all(row["next_attempt_at"] for row in day.while_down)


def test_flower_shows_the_retry_with_its_reason_and_the_success_under_the_same_task(day: Day) -> None:
    """A delivery is one task with its history; only who has the password sees it."""
    assert (day.retry["state"], day.retry["args"]) == ("RETRY", f"['{day.while_down[0]['id']}']")
    assert "provider-unavailable" in day.retry["exception"]
    assert {row["id"] for row in day.deliveries} <= set(day.flower)
    assert {day.flower[row["id"]]["state"] for row in day.deliveries} == {"SUCCESS"}
    assert day.stranger == 401


def test_no_secret_and_no_guest_in_flower_or_in_the_log(day: Day) -> None:
    """Neither keys, URL tokens, passwords, names, addresses nor phone numbers, as they are and as JSON spells them."""
    found = {text for text in day.personal if any(text in said for said in day.said)}
    assert len(day.personal) > 50
    assert not found


def test_every_line_of_the_log_is_an_event_with_the_agreed_fields(day: Day) -> None:
    """For a program: when, how bad, who and what. What is about one delivery says which, and of whom."""
    lines = read(day.log)
    assert len(lines) > len(day.deliveries)
    assert all(line.keys() >= AGREED for line in lines)
    assert {line["process"] for line in lines} >= {"up", "web", "worker"}
    assert all("Z" in line["timestamp"] for line in lines)
    about = [line for line in lines if "delivery" in line]
    assert [line for line in about if not line.get("endpoint")] == []
    endpoints = {row["id"]: row["endpoint"] for row in day.deliveries}
    assert endpoints.items() <= {line["delivery"]: line["endpoint"] for line in about}.items()
    ours, known = [line for line in lines if line["logger"] == "reservoir"], documented()
    assert {line["state"] for line in ours if line["event"] == "processed"} >= {"applied", "duplicate", "parked"}
    happened = {line["event"] for line in ours}
    assert {"up", "processed", "retry", "circuit", "nudged", "refuse", "login-refused"} <= happened <= known.keys()
    assert {f for line in ours for f in line.keys() - AGREED - ANYWHERE - known[line["event"]]} == set()
