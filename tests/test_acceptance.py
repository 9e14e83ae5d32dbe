"""From POST to row, with everything real: `reservoir up` and its processes, the simulators over HTTP.

One installation with seven venues lives through the day once; each test looks at what came of it.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any

import httpx
import pytest

from console.trial import SETTLED, Trial
from simulators.clock import Clock
from simulators.ledger import Ledger, Verdict
from simulators.lockme import Lockme
from simulators.server import discover
from simulators.venue import Venue, Weather

pytestmark = [pytest.mark.services, pytest.mark.timeout(240)]

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
    retry: str = ""
    """Flower's page of one of those, at that time."""
    flower: str = ""
    """Flower's pages of all deliveries, in the end."""
    log: str = ""

    def of(self, venue: Venue) -> list[dict[str, Any]]:
        return [row for row in self.deliveries if row["endpoint"] == venue.endpoint]


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
        async with Trial(day.venues, day.ledger, tmp_path_factory.mktemp("trial")) as trial:
            forgetful.fail_acknowledgements(2)
            forgetful.send_test()
            later = asyncio.gather(forgetful.busy_day(2), down.busy_day(1))
            await asyncio.gather(*(one.busy_day(6) for one in day.venues if one not in (forgetful, down)))
            await until(lambda: _waiting(trial, down, day), "the deliveries that need the dead API to retry")
            day.others_while_down = await _others_are_right(trial, day, down)
            day.retry = await _flower(trial, [day.while_down[0]["id"]])
            down.weather.api_down = 0.0
            await later
            await until(lambda: _settled(trial), "everything to settle")
            day.verdict, day.rows = await trial.compare(), await trial.command("bookings", "list", "--json")
            day.deliveries = await trial.command("deliveries", "list", "--json")
            day.flower = await _flower(trial, [row["id"] for row in day.deliveries])
            day.log = trial.log.read_text(errors="replace")

    asyncio.run(live())
    return day


async def until(true: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await true():
        assert time.monotonic() < deadline, f"waited {PATIENCE:g} s for {what}"
        await asyncio.sleep(0.5)


async def _waiting(trial: Trial, down: Venue, day: Day) -> bool:
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
    rows = await trial.command("deliveries", "list", "--json")
    acked = sum(one.acked for one in trial.ledger.sent)
    return len(rows) >= acked and all(row["state"] in SETTLED for row in rows)


async def _flower(trial: Trial, tasks: list[str]) -> str:
    """What Flower's pages show of these tasks."""
    found = re.search(r"Flower.*?(http://\S+)", trial.log.read_text(errors="replace"))
    assert found, "the log says where Flower is"
    async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
        pages = [await client.get(f"{found[1]}/task/{task}") for task in tasks]
    assert {page.status_code for page in pages} == {200}
    return "\n".join(page.text for page in pages)


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
    """A delivery is one task with its history."""
    assert "RETRY" in day.retry
    assert "provider-unavailable" in day.retry
    assert "RETRY" not in day.flower
    assert day.flower.count("SUCCESS") >= len(day.deliveries)


def test_no_secret_and_no_guest_in_flower_or_in_the_log(day: Day) -> None:
    """Neither keys, URL tokens, names, addresses nor phone numbers."""
    secrets = {secret for venue in day.venues for secret in venue.secrets().values()}
    tokens = {venue.hook_url.rsplit("/", 1)[1] for venue in day.venues}
    columns = ("customer_name", "customer_email", "customer_phone", "note")
    guests = {str(row[column]) for row in day.ledger.truth.values() for column in columns if row.get(column)}
    personal = secrets | tokens | {text for text in guests if len(text) > 5}
    assert len(personal) > 20
    assert [text for text in personal if text in day.log or text in day.flower + day.retry] == []
