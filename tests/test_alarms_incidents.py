"""What is wrong with a world, and what becomes of it: pure, from values to values."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from console.alarms import findings
from console.alarms.findings import ALARMS, BUSY, LANDED, QUIET, WAITING, Finding, Judgement, judge
from console.alarms.incidents import AGAIN, MORE, REST, Incident, News, changes
from console.alarms.looking import oldest
from console.alarms.notice import about
from console.alarms.rhythm import Rhythm
from console.alarms.world import AtPostgres, AtRedis, Heard, Parked, Unsettled, Worker, World
from console.spooled import Spooled
from schemas.acks import Acks, acks_of
from schemas.delivery import new_id
from schemas.endpoints import Endpoint

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DESK = Endpoint(name="desk", provider="checkfront")
ARCADE = Endpoint(name="arcade", provider="synthesisvr")
WORKING = {"worker@a": Worker(heard_at=NOON - SECOND, beats=True)}


def world(
    *,
    postgres: AtPostgres | None = None,
    redis: AtRedis | None = None,
    spool: Spooled | None = None,
    away: frozenset[str] = frozenset(),
) -> World:
    """All is well, but for what is named."""
    return World(
        now=NOON,
        endpoints={"desk": DESK, "arcade": ARCADE},
        host="here",
        postgres=None if "postgres" in away else postgres or AtPostgres(),
        redis=None if "redis" in away else redis or AtRedis(workers=WORKING),
        spool=spool or Spooled(),
        why=dict.fromkeys(away, "ConnectionError"),
    )


def found(seen: World) -> dict[tuple[str, str], Finding]:
    return {(finding.kind, finding.subject): finding for finding in judge(seen).findings}


def heard(silent_for: timedelta, endpoint: Endpoint = ARCADE) -> AtPostgres:
    one = Heard(endpoint=endpoint, last=NOON - silent_for, rhythm=Rhythm(zone=ZoneInfo("UTC"), signs=()))
    return AtPostgres(heard={endpoint.name: one})


# --- findings ----------------------------------------------------------------------------------------------------


def test_a_world_that_is_well_has_no_findings() -> None:
    judgement = judge(world())
    assert judgement.findings == ()
    assert judgement.kinds == set(ALARMS)


SIX_HOURS = replace(ARCADE, silence=6 * HOUR)
OFF = replace(ARCADE, silence="off")


@pytest.mark.parametrize(
    ("endpoint", "silent_for", "alarm"),
    [
        (SIX_HOURS, 6 * HOUR - SECOND, False),
        (SIX_HOURS, 6 * HOUR, True),
        (OFF, 1000 * HOUR, False),
        (ARCADE, 72 * HOUR - SECOND, False),
        (ARCADE, 72 * HOUR, True),
    ],
)
def test_an_endpoint_is_silent_for_too_long(endpoint: Endpoint, silent_for: timedelta, alarm: bool) -> None:
    assert set(found(world(postgres=heard(silent_for, endpoint)))) == ({("silence", "arcade")} if alarm else set())


def test_an_endpoint_that_never_had_a_webhook_is_not_silent() -> None:
    never = Heard(endpoint=ARCADE, last=None, rhythm=Rhythm(zone=ZoneInfo("UTC"), signs=()))
    assert found(world(postgres=AtPostgres(heard={"arcade": never}))) == {}


@pytest.mark.parametrize("waiting", [None, LANDED, LANDED + SECOND])
def test_nothing_is_said_about_silence_while_requests_wait_to_land(waiting: timedelta | None) -> None:
    inbox_oldest = None if waiting is None else NOON - waiting
    seen = world(postgres=heard(100 * HOUR), redis=AtRedis(workers=WORKING, inbox=1, inbox_oldest=inbox_oldest))
    told = waiting is None or waiting <= LANDED
    assert (("silence", "arcade") in found(seen), "silence" in judge(seen).kinds) == (told, told)
    assert "silence" not in judge(world(postgres=heard(100 * HOUR), away=frozenset({"redis"}))).kinds


def acks(**changes: Any) -> Acks:
    return Acks(**{"slowest": timedelta(0), "failures_in_a_row": 0, "at": NOON, **changes})


@pytest.mark.parametrize(
    ("endpoint", "failures", "ago", "alarm"),
    [
        ("desk", 5, QUIET, True),
        ("desk", 4, QUIET, False),
        ("desk", 5, QUIET - SECOND, False),
        ("desk", 9, 20 * HOUR, True),
        ("arcade", 9, QUIET, False),
        ("gone", 9, QUIET, False),
    ],
)
def test_checkfront_switches_a_webhook_off_after_five_failures(
    endpoint: str, failures: int, ago: timedelta, alarm: bool
) -> None:
    told = {endpoint: acks(failures_in_a_row=failures, at=NOON - ago)}
    assert (("hook-off", endpoint) in found(world(redis=AtRedis(workers=WORKING, acks=told)))) is alarm


@pytest.mark.parametrize(
    ("endpoint", "slowest", "ago", "alarm"),
    [
        ("arcade", 1.001, 0, True),
        ("arcade", 1.0, 0, False),
        ("arcade", 1.9, 121, False),
        ("desk", 60.0, 0, False),
    ],
)
def test_an_answer_that_took_more_than_half_of_the_deadline(
    endpoint: str, slowest: float, ago: int, alarm: bool
) -> None:
    told = {endpoint: acks(slowest=timedelta(seconds=slowest), at=NOON - ago * SECOND)}
    assert (("slow", endpoint) in found(world(redis=AtRedis(workers=WORKING, acks=told)))) is alarm


def test_parked_deliveries_are_counted() -> None:
    parked = Parked(count=3, latest=NOON - HOUR, reasons=("bad-signature", "malformed"))
    finding = found(world(postgres=AtPostgres(parked={"desk": parked})))["parked", "desk"]
    assert (finding.amount, finding.latest) == (3, NOON - HOUR)
    assert "bad-signature, malformed" in finding.detail


@pytest.mark.parametrize("state", WAITING)
@pytest.mark.parametrize("late", [False, True])
def test_what_is_not_applied_for_long(state: str, late: bool) -> None:
    waits = Unsettled(count=7, oldest=NOON - WAITING[state] - late * SECOND, reasons=("throttled",))
    seen = found(world(postgres=AtPostgres(unsettled={("timekit", state): waits})))
    assert set(seen) == ({("unapplied", f"timekit, {state}")} if late else set())


@pytest.mark.parametrize(("ago", "alarm"), [(300, False), (301, True)])
def test_what_nobody_fetches_from_the_inbox(ago: int, alarm: bool) -> None:
    seen = world(redis=AtRedis(workers=WORKING, inbox=2, inbox_oldest=NOON - ago * SECOND))
    assert (("inbox", "") in found(seen)) is alarm


@pytest.mark.parametrize(
    ("workers", "kinds"),
    [
        ({}, {"no-worker"}),
        ({"a": (SECOND, True)}, set()),
        ({"a": (BUSY, True)}, set()),
        ({"a": (BUSY + SECOND, True)}, {"no-worker", "deaf-worker"}),
        ({"a": (BUSY + SECOND, True), "b": (SECOND, True)}, {"deaf-worker"}),
        ({"a": (BUSY + SECOND, False), "b": (SECOND, True)}, set()),
        ({"a": (BUSY + SECOND, False)}, {"no-worker"}),
    ],
)
def test_workers_that_do_not_hear(workers: dict[str, tuple[timedelta, bool]], kinds: set[str]) -> None:
    """One that beats and hears nothing is deaf; one that does not even beat has ended."""
    told = {name: Worker(heard_at=NOON - ago, beats=beats) for name, (ago, beats) in workers.items()}
    assert {kind for kind, _ in found(world(redis=AtRedis(workers=told)))} == kinds


@pytest.mark.parametrize(
    ("spool", "alarm"),
    [
        (Spooled(), False),
        (Spooled(files=1, bytes=20480, since=NOON - MINUTE), True),
        (Spooled(corrupt=1), True),
    ],
)
def test_the_spool_is_in_use(spool: Spooled, alarm: bool) -> None:
    assert (("spool", "here") in found(world(spool=spool))) is alarm


def test_what_is_away_is_an_alarm_and_nothing_else_is_said_about_it() -> None:
    for part in ("redis", "postgres"):
        seen = world(away=frozenset({part}))
        assert set(found(seen)) == {(part, "")}
    both = found(world(away=frozenset({"redis", "postgres"})))
    assert "Redis is away too" in both["postgres", ""].detail
    assert judge(world(away=frozenset({"postgres"}))).kinds.isdisjoint({"silence", "parked", "unapplied"})
    assert judge(world(away=frozenset({"redis"}))).kinds.isdisjoint({"slow", "hook-off", "no-worker", "inbox"})


def test_every_kind_has_its_section_in_the_runbook() -> None:
    page = (Path(__file__).parent.parent / "docs" / "alarms.md").read_text(encoding="utf-8")
    headings = {line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")}
    assert headings == set(ALARMS)


# --- what the receivers and workers tell -------------------------------------------------------------------------


def test_acks_that_cannot_be_read_are_left_out() -> None:
    told = {
        b"desk": b'{"count": 3, "slowest_ms": 12.5, "failures_in_a_row": 2, "at": 1795176000.25, "slots": {}}',
        **{f"bad{number}".encode(): said for number, said in enumerate([b"", b"[]", b"5", b"{}", b"\xff"])},
        b"odd": b'{"slowest_ms": null, "failures_in_a_row": 2, "at": 1}',
        b"far": b'{"slowest_ms": 1e300, "failures_in_a_row": 2, "at": 1e300}',
    }
    at = datetime.fromtimestamp(1795176000.25, UTC)
    assert acks_of(told) == {"desk": acks(slowest=timedelta(milliseconds=12.5), failures_in_a_row=2, at=at)}


@pytest.mark.parametrize(
    "change",
    [
        {"slowest_ms": "x"},
        {"slowest_ms": float("nan")},
        {"slowest_ms": 1e300},
        {"failures_in_a_row": None},
        {"failures_in_a_row": float("inf")},
        {"at": []},
        {"at": float("nan")},
        {"at": 1e12},  # each of these is out of range for another reason, and raises something else
        {"at": 1e17},
        {"at": 1e300},
    ],
)
def test_one_value_that_cannot_be_read_leaves_its_endpoint_out(change: dict[str, Any]) -> None:
    good = {"slowest_ms": 12.5, "failures_in_a_row": 2, "at": NOON.timestamp()}
    told = {b"arcade": json.dumps(good | change).encode(), b"desk": json.dumps(good).encode()}
    assert set(acks_of(told)) == {"desk"}


@pytest.mark.parametrize("missing", ["slowest_ms", "failures_in_a_row", "at"])
def test_acks_that_lack_a_value_are_left_out(missing: str) -> None:
    whole = {"slowest_ms": 12.5, "failures_in_a_row": 2, "at": NOON.timestamp()}
    part = {name: value for name, value in whole.items() if name != missing}
    told = {b"arcade": json.dumps(part).encode(), b"\xff": json.dumps(whole).encode(), b"salon": b"null"}
    assert acks_of(told) == {}


def test_the_oldest_of_the_inbox_is_known_by_its_id() -> None:
    before = datetime.now(UTC) - timedelta(milliseconds=1)
    first, second = (str(new_id()).encode() for _ in range(2))
    came = oldest([second, b"no-id", first])
    assert came is not None
    assert before <= came <= datetime.now(UTC)
    assert oldest([b"no-id"]) is None


# --- incidents ---------------------------------------------------------------------------------------------------

QUIETLY = Finding(kind="silence", subject="arcade", title="silent", detail="for long")
HANDS = Finding(kind="no-worker", title="no worker", detail="since then")
EVERYTHING = frozenset(ALARMS)


class Story:
    """Looks, one after the other, and what people were told."""

    def __init__(self) -> None:
        self.known: dict[Any, Incident] = {}
        self.told: list[tuple[float, str]] = []

    def look(self, minute: float, *seen: Finding, kinds: frozenset[str] = EVERYTHING, host: str = "here") -> None:
        judgement = Judgement(findings=seen, kinds=kinds, host=host)
        for incident, news in changes(judgement, list(self.known.values()), NOON + minute * MINUTE):
            self.known[incident.id] = incident
            if news is not None:
                self.told.append((minute, news.value))

    @property
    def only(self) -> Incident:
        (incident,) = self.known.values()
        return incident


def test_an_incident_is_told_when_it_opens_and_when_it_is_over() -> None:
    story = Story()
    for minute in range(5):
        story.look(minute, QUIETLY)
    story.look(5)
    story.look(6)
    assert story.told == [(0, "opened"), (5, "recovered")]
    assert story.only.opened_at == NOON
    assert story.only.last_seen_at == NOON + 4 * MINUTE
    assert story.only.closed_at == NOON + 5 * MINUTE


def test_what_may_pass_by_itself_must_last_before_it_is_told() -> None:
    story = Story()
    story.look(0, HANDS)
    story.look(0.5, HANDS)
    story.look(0.75)
    assert story.told == []
    lasting = Story()
    for minute in (0, 0.5, 1, 1.5):
        lasting.look(minute, HANDS)
    assert lasting.told == [(1, "opened")]


def test_flapping_is_told_once_and_again_only_when_it_lasts() -> None:
    """Each further time it must last for longer."""
    story = Story()
    for minute in range(0, 120, 2):
        story.look(minute, QUIETLY)
        story.look(minute + 1)
    assert story.told == [(0, "opened"), (1, "recovered")]
    assert story.only.times == 60
    twice = Story()
    twice.look(0, QUIETLY)
    twice.look(1)
    for minute in range(2, 20):
        twice.look(minute, QUIETLY)
    twice.look(20)
    assert twice.told == [(0, "opened"), (1, "recovered"), (2 + AGAIN / MINUTE, "opened"), (20, "recovered")]


def test_what_comes_again_after_a_day_is_another_incident() -> None:
    story = Story()
    story.look(0, QUIETLY)
    story.look(1)
    story.look(2 + REST / MINUTE, QUIETLY)
    assert [news for _, news in story.told] == ["opened", "recovered", "opened"]
    assert len(story.known) == 2


def test_what_cannot_be_judged_stays_as_it_is() -> None:
    story = Story()
    story.look(0, QUIETLY)
    story.look(1, kinds=frozenset({"redis"}))
    assert story.only.closed_at is None
    story.look(2)
    assert story.told == [(0, "opened"), (2, "recovered")]


def test_each_machine_judges_its_own_spool_only() -> None:
    story = Story()
    mine = Finding(kind="spool", subject="there", title="in use", detail="")
    story.look(0, mine, host="there")
    story.look(1, host="here")
    assert story.only.closed_at is None
    story.look(2, host="there")
    assert story.only.closed_at == NOON + 2 * MINUTE


def parked(amount: int, latest: float) -> Finding:
    return Finding(kind="parked", subject="desk", title="", detail="", amount=amount, latest=NOON + latest * MINUTE)


def test_more_of_the_same_is_told_now_and_then() -> None:
    story, wait = Story(), MORE / MINUTE
    story.look(0, parked(3, 0))
    story.look(1, parked(3, 0))
    story.look(2, parked(4, 1.5))
    story.look(wait, parked(5, wait))
    story.look(wait + 1, parked(5, wait))
    assert story.told == [(0, "opened"), (wait, "more")]


def test_one_that_is_mended_while_another_comes_is_told_too() -> None:
    """The number is the same; the time of the newest is not. Fewer are no news, and as many again are."""
    story, wait = Story(), MORE / MINUTE
    story.look(0, parked(3, 0))
    story.look(wait, parked(3, 1))
    story.look(2 * wait, parked(2, 1))
    story.look(3 * wait, parked(3, 1))
    assert story.told == [(0, "opened"), (wait, "more"), (3 * wait, "more")]


def test_a_notice_of_a_recovery_asks_nothing_of_anybody() -> None:
    story = Story()
    story.look(0, QUIETLY)
    first = about(story.only, News.OPENED, NOON, "here")
    story.look(1)
    last = about(story.only, News.RECOVERED, NOON, "here")
    assert first.content["data"]["mend"] == ALARMS["silence"].mend
    assert last.content["data"]["mend"] is None
    assert "mend" not in last.text
    assert first.id != last.id


@pytest.mark.parametrize(
    ("minutes", "words"),
    [(0, "0 min"), (59, "59 min"), (60, "1 h"), (61, "1 h 1 min"), (1440, "1 d"), (2880 + 185, "2 d 3 h")],
)
def test_how_long_reads(minutes: int, words: str) -> None:
    assert findings._span(minutes * MINUTE) == words
