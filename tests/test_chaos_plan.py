"""What of the fault ledger is pure: when which fault comes, what counts as lost, and how it is told."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from difflib import ndiff
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chaos.backlog import rate
from chaos.balancer import CONFIGURATION, rendered
from chaos.books import FAIR, Account, Kept, Span, account, away
from chaos.faults import BY_NAME, FAULTS, Fault, Undo
from chaos.ground import Ground
from chaos.injector import Injector
from chaos.report import BEGIN, END, as_json, as_markdown, together, write_into
from chaos.schedule import APART, LEAD, Planned, schedule
from simulators.ledger import Outcome, Sent, Verdict, Wrong

KINDS = [fault.kind for fault in FAULTS]
SEEDS = st.integers(min_value=0, max_value=10**6)
MINUTES = st.floats(min_value=0.15, max_value=12.0)

# --- when which fault comes ------------------------------------------------------------------------------------


@given(seed=SEEDS)
def test_each_fault_comes_three_times_in_a_run_of_three_minutes(seed: int) -> None:
    """Whatever the seed, and not less than that in a longer run."""
    counted = Counter(planned.name for planned in schedule(seed, 3.0, KINDS))
    assert counted == dict.fromkeys(BY_NAME, 3)
    assert min(Counter(planned.name for planned in schedule(seed, 7.0, KINDS)).values()) == 7


@given(seed=SEEDS, minutes=MINUTES)
def test_faults_of_one_lane_never_overlap_and_all_end_in_time(seed: int, minutes: float) -> None:
    """Those of different lanes may."""
    plan = schedule(seed, minutes, KINDS)
    assert plan
    for lane in {planned.lane for planned in plan}:
        own = sorted(planned for planned in plan if planned.lane == lane)
        assert all(before.over <= after.at for before, after in pairwise(own))
    assert min(planned.at for planned in plan) >= LEAD
    assert max(planned.over for planned in plan) <= minutes * 60
    for planned in plan:
        least, most = BY_NAME[planned.name].lasts
        assert least <= planned.lasts <= most


@given(seed=SEEDS, minutes=MINUTES)
def test_the_same_seed_plans_the_same(seed: int, minutes: float) -> None:
    assert schedule(seed, minutes, KINDS) == schedule(seed, minutes, KINDS)
    assert schedule(seed, 3.0, KINDS) != schedule(seed + 1, 3.0, KINDS)


def test_short_runs_take_the_faults_in_turn() -> None:
    """No fault is out of reach for them."""
    came = {planned.name for seed in range(10) for planned in schedule(seed, 0.25, KINDS)}
    assert came == set(BY_NAME)
    assert len(schedule(1, 0.25, KINDS)) < len(FAULTS)


def test_the_disk_and_redis_never_fail_together() -> None:
    """With neither of them nothing can be kept, so they share a lane."""
    lanes = {fault.lane for fault in FAULTS if "redis" in fault.name or "disk" in fault.name}
    assert len(lanes) == 1


def test_what_is_stopped_is_stopped_for_longer_than_the_shortest_deadline() -> None:
    assert all(fault.lasts[0] > 2.0 for fault in FAULTS if fault.name.endswith("stopped"))


# --- what counts as lost ---------------------------------------------------------------------------------------


def sent(request: str, **more: Any) -> Sent:
    given: dict[str, Any] = {"endpoint": "desk", "provider": "checkfront", "at": 100.0, "seconds": 0.01, "status": 200}
    return Sent(**(given | {"about": request, "request": request, "bookings": (f"b-{request}",)} | more))


def kept(request: str, state: str = "applied", reason: str | None = None) -> Kept:
    return Kept(id=f"id-{request}", request=request, state=state, reason=reason, attempts=1)


def accounted(
    requests: list[Sent],
    rows: list[Kept],
    verdict: Verdict | None = None,
    *,
    balanced: bool = True,
    forgiven: set[tuple[str, str]] | None = None,
) -> Account:
    spans = [Span(name="redis killed", began=99.0, ended=101.0), Span(name="api down", began=100.5, ended=102.0)]
    return account(requests, rows, verdict or Verdict(), spans, balanced=balanced, forgiven=forgiven or set())


SINGLE: dict[str, Any] = {"provider": "synthesisvr", "status": None}
"""A provider that sends only once."""


@pytest.mark.parametrize(
    ("request_", "rows", "lost"),
    [
        (sent("1"), [kept("1")], 0),
        (sent("1"), [], 1),
        (sent("1"), [kept("2")], 1),
        (sent("1"), [kept("1", "received")], 1),
        (sent("1"), [kept("1", "retrying", "throttled")], 1),
        (sent("1"), [kept("1", "retrying"), kept("1", "duplicate")], 0),
        (sent("1", status=503), [], 0),
        (sent("1", status=None, outcome=Outcome.HUNG_UP), [], 0),
        (sent("1", **SINGLE, outcome=Outcome.HUNG_UP), [], 1),
        (sent("1", **SINGLE, outcome=Outcome.TIMED_OUT), [], 1),
        (sent("1", **SINGLE, outcome=Outcome.CUT), [], 1),
        (sent("1", **(SINGLE | {"status": 503})), [], 1),
        (sent("1", **SINGLE, outcome=Outcome.HUNG_UP), [kept("1")], 0),
    ],
)
def test_what_was_promised_and_is_not_there_is_lost(request_: Sent, rows: list[Kept], lost: int) -> None:
    """A 2xx promises; so does taking a request of a provider that sends once."""
    found = accounted([request_], rows)
    assert found.total.lost == lost
    assert found.good is (lost == 0)


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.CUT])
def test_without_a_balancer_what_dies_in_a_killed_receiver_is_excused_and_counted(outcome: Outcome) -> None:
    found = accounted([sent("1", **SINGLE, outcome=outcome)], [], balanced=False)
    assert (found.total.lost, found.excused, found.good) == (0, 1, True)


def test_parked_is_wrong_unless_nobody_can_know_the_booking() -> None:
    request, row = sent("1"), kept("1", "parked", "gone")
    assert accounted([request], [row]).total.wrong == 1
    assert accounted([request], [row], forgiven={("desk", "b-1")}).good


def test_a_booking_that_is_missing_or_differs_is_blamed_on_the_faults_that_its_requests_met() -> None:
    """Once in all, once for each fault."""
    differs = Wrong(endpoint="desk", external_id="b-2", column="status", expected="confirmed", found="hold")
    found = accounted(
        [sent("1"), sent("2", at=100.6), sent("3", at=500.0)],
        [kept("1"), kept("2"), kept("3")],
        Verdict(lost=[("desk", "b-1")], wrong=[differs, replace(differs, column="note")]),
    )
    faults = {line.name: (line.sent, line.lost, line.wrong) for line in found.faults}
    assert (found.total.lost, found.total.wrong) == (1, 1)
    assert faults == {"redis killed": (2, 1, 1), "api down": (1, 0, 1), FAIR: (1, 0, 0)}


def test_a_booking_is_not_counted_again_for_a_request_that_is_lost_already() -> None:
    found = accounted([sent("1")], [], Verdict(lost=[("desk", "b-1")]))
    assert found.total.lost == 1


def test_a_row_that_nobody_made_is_wrong() -> None:
    assert not accounted([], [], Verdict(invented=[("desk", "b-9")])).good


def test_a_late_answer_and_a_fault_that_does_not_end_are_told() -> None:
    assert accounted([sent("1", late=True)], [kept("1")]).total.late == 1
    stuck = Span(name="beat killed", began=1.0, ended=2.0, trouble="waited 45 s until beat came back")
    assert not account([], [], Verdict(), [stuck], balanced=True, forgiven=set()).good


def test_repeats_that_were_absorbed_are_counted() -> None:
    found = accounted([sent("1"), sent("2")], [kept("1"), kept("2", "duplicate"), kept("2", "stale")])
    assert (found.total.stored, found.total.applied, found.total.same) == (3, 1, 2)


def test_ack_times_while_redis_was_away() -> None:
    """From some time after it went, until it was back."""
    requests = [sent("1", at=99.1), sent("2", at=100.0, seconds=0.02), sent("3", at=200.0)]
    spans = [Span(name="redis stopped", began=99.0, ended=103.0)]
    assert away(requests, spans, frozenset({"redis stopped"}), 0.5) == [0.02]


# --- how it is told --------------------------------------------------------------------------------------------

FACTS: dict[str, Any] = {
    "seeds": [1],
    "minutes": 3.0,
    "events": 20_000,
    "faults_in_all": 2,
    "balanced": True,
    "redis_away": {"p50": 1.0, "p99": 2.0, "max": 3.0},
    "breaker_open": {"p50": 1.0, "p99": 2.0, "max": 3.0},
}


def told(seed: int) -> dict[str, Any]:
    found = accounted([sent("1", seconds=seed / 100)], [kept("1")])
    written: dict[str, Any] = json.loads(json.dumps(as_json(found, [], FACTS | {"seeds": [seed]})))
    return written


def test_several_runs_are_told_as_one() -> None:
    """Counts are added, and the worst ack time stays."""
    both = together([told(1), told(3)])
    assert both["seeds"] == [1, 3]
    assert both["total"]["sent"] == 2
    assert both["total"]["max"] == 30.0
    assert {line["name"]: line["sent"] for line in both["faults"]} == {"redis killed": 2, "api down": 0} or both[
        "faults"
    ]
    assert "Seed 1, 3: 4 faults, 40,000 events" in as_markdown(both)


def test_the_table_stands_between_the_marks_of_the_document() -> None:
    """What is around it stays, and an older table goes."""
    document = f"before\n{BEGIN}\nold\n{END}\nafter"
    assert write_into(document, "| new |\n") == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter"
    with pytest.raises(ValueError, match="marks"):
        write_into("nothing here", "")


def test_the_balancer_has_the_deployed_manners_and_other_addresses() -> None:
    """What differs is where it listens, where the receivers are, and that nobody asks Docker for them."""
    deployed = CONFIGURATION.read_text(encoding="utf-8")
    local = rendered(deployed, 4711, ["http://127.0.0.1:8001", "http://127.0.0.1:8002"])
    changes = [
        line for line in ndiff(deployed.splitlines(), local.splitlines()) if line[0] in "+-" and line[2:].strip()
    ]
    assert [line[1:].strip() for line in changes if line[0] == "+"] == [
        "bind 127.0.0.1:4711",
        "server receiver-1 127.0.0.1:8001",
        "server receiver-2 127.0.0.1:8002",
    ]
    gone = [line[1:].split()[0] for line in changes if line[0] == "-"]
    assert gone[-1] == "server-template"
    assert set(gone) <= {"resolvers", "nameserver", "resolve_retries", "timeout", "hold", "bind", "server-template"}
    assert "timeout server" in local


def test_the_rate_of_a_tenth_is_read_between_two_looks() -> None:
    marks = [(0.0, 0), (10.0, 500), (30.0, 1000)]
    assert rate(marks, 0.0, 0.1) == pytest.approx(50.0)
    assert rate(marks, 0.9, 1.0) == pytest.approx(25.0)
    assert rate([(10.0, 500), (30.0, 1000)], 0.0, 0.1) == pytest.approx(25.0)


def test_planned_faults_are_ordered_by_time() -> None:
    assert Planned(at=1, name="b", lane="x", lasts=1) < Planned(at=2, name="a", lane="x", lasts=1)


# --- the injector ----------------------------------------------------------------------------------------------


def test_a_fault_that_takes_long_still_leaves_time_to_come_back() -> None:
    """The next one of its lane waits; what was planned at the same moment in another lane does not."""

    async def slow(ground: Ground) -> Undo:
        async def undo() -> None:
            await asyncio.sleep(0.5)

        return undo

    faults = {name: Fault(name=name, lane=name[0], lasts=(0.0, 0.0), begin=slow) for name in ("a1", "a2", "b1")}
    plan = [
        Planned(at=0.0, name="a1", lane="a", lasts=0.1),
        Planned(at=0.2, name="a2", lane="a", lasts=0.0),
        Planned(at=0.2, name="b1", lane="b", lasts=0.0),
    ]
    injector = Injector(cast("Ground", None), plan, faults, lambda line: None)
    asyncio.run(injector.run())
    spans = {span.name: span for span in injector.spans}
    assert spans["a2"].began - spans["a1"].ended >= APART
    assert spans["b1"].began < spans["a1"].ended
