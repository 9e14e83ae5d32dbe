"""Stored deliveries read again through the console: what is shown first, is what is written then."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from threading import Event as ThreadingEvent
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, select
from typer.testing import CliRunner

from console import replaying
from console.cli import app
from console.web import acts
from schemas.delivery import State, new_id, now
from tests.browsing import Browser, Page, console, settings_of
from tests.open_console import browser as browser
from tests.open_console import world as world
from tests.world import VENUES, Clock, Step, World, request, tell
from workers.errors import Malformed
from workers.provider import Element, Event, Failed, Ignored, Incoming
from workers.registry import discover
from workers.replay import Choice
from workers.tables import audit, bookings, changes, deliveries, events

EVERYTHING = (deliveries, bookings, events, changes)
BETTER = "seen by a better eye"
Eye = Callable[[Event], Element]
"""How today's code reads what yesterday's code read as this event."""


def noted(event: Event) -> Element:
    return replace(event, said={**event.said, "note": BETTER})


def unreadable(event: Event) -> Element:
    return Failed(error=Malformed("body: expected something else"))


def of_no_interest(event: Event) -> Element:
    return Ignored(reason="provider-test")


def told(world: World, *steps: Step, provider: str = "timekit", ago: timedelta = timedelta()) -> UUID:
    """What happened at that provider, told and worked on; the delivery's id."""
    said = tell(provider, *steps)
    world.script.lines |= said.answers
    raw = request(VENUES[provider].name, said.body, headers=said.headers, at=world.clock() - ago)
    world.deliver(raw)
    return raw.id


def sees(monkeypatch: pytest.MonkeyPatch, eye: Eye, provider: str = "timekit") -> None:
    """From now on, today's code reads what this provider says with another eye."""
    plain = discover()[provider]

    def normalize(incoming: Incoming) -> list[Element]:
        return [eye(one) if isinstance(one, Event) else one for one in plain.normalize(incoming)]

    today = {**discover(), provider: replace(plain, normalize=normalize, parser=plain.parser + 1)}
    monkeypatch.setattr(replaying, "discover", lambda: today)


def everything(engine: Engine) -> list[list[tuple[Any, ...]]]:
    with engine.connect() as connection:
        return [[tuple(row) for row in connection.execute(select(each).order_by(each.c.id))] for each in EVERYTHING]


def lines(engine: Engine) -> list[tuple[str, str | None, set[UUID], str | None]]:
    with engine.connect() as connection:
        rows = connection.execute(select(audit).order_by(audit.c.id))
        return [(row.action, row.chosen, set(row.deliveries), row.outcome) for row in rows]


def form_of(page: Page) -> dict[str, list[str]]:
    """What its form to write would send."""
    assert page.all("form", action="/replay/apply"), page.text
    fields: dict[str, list[str]] = {}
    for one in page.all("input", type="hidden"):
        fields.setdefault(one.attributes["name"], []).append(one.attributes["value"])
    return fields


def write(browser: Browser, page: Page) -> Page:
    """Presses the page's button."""
    answer = browser.client.post("/replay/apply", data=form_of(page), headers={"origin": browser.origin})
    assert answer.status_code == 200, answer.text
    return Page(answer.text)


# --- first it is shown, then it is done ----------------------------------------------------------------------------


def test_what_was_shown_is_what_is_written(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Field by field, each booking with its delivery; nothing changes before, and there is nothing to do after."""
    first = told(world, Step(name="Ada", size=30, version=1))
    other = told(world, Step(name="Ben", size=30, version=1, booking=2))
    sees(monkeypatch, noted)
    before = everything(engine)
    page = browser.open("/replay?endpoint=studio")
    assert "Nothing is written yet." in page.text
    assert "Bookings that change 2" in page.text
    assert page.text.count(f"note \N{EM DASH} {BETTER}") == 2
    for row in world.rows():
        assert f"/bookings/{row['id']}" in page.links()
    assert {f"/deliveries/{first}", f"/deliveries/{other}"} <= set(page.links())
    assert everything(engine) == before
    assert lines(engine) == []

    done = write(browser, page)
    assert "This is written now." in done.text
    assert "Bookings changed 2" in done.text
    assert done.text.count(f"note \N{EM DASH} {BETTER}") == 2
    assert [row["note"] for row in world.rows()] == [BETTER, BETTER]
    said = "deliveries=2 read=2 bookings=2 updated=2 states=0"
    assert lines(engine) == [("replay", "endpoint studio", {first, other}, said)]
    assert f"/deliveries/{first}" in browser.open("/audit").links()
    page = browser.open("/replay?endpoint=studio")
    assert "Today's code would write what is there." in page.text
    assert not page.all("form", action="/replay/apply")


def test_only_the_chosen_ones_are_read(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some are chosen by hand, the filter around them says nothing."""
    first = told(world, Step(name="Ada", size=30, version=1))
    told(world, Step(name="Ben", size=30, version=1, booking=2))
    sees(monkeypatch, noted)
    answer = browser.send("/replay", {"id": [str(first), "x"], "endpoint": "studio"}, of="/deliveries")
    page = Page(answer.text)
    assert "Chosen: by hand." in page.text
    write(browser, page)
    assert [row["note"] for row in world.rows()] == [BETTER, None]
    assert lines(engine)[0][1:3] == ("by hand", {first})


def test_a_dead_letter_that_can_be_read_today(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its group among the parked ones, to the booking that it makes."""
    sees(monkeypatch, unreadable)
    world.parts = replace(world.parts, providers=replaying.discover())
    identity = told(world, Step(name="Nora", version=1))
    assert world.verdict(identity) == (State.PARKED, "malformed")
    monkeypatch.setattr(replaying, "discover", discover)
    (address,) = browser.open("/parked").links("/replay?")
    page = browser.open(address)
    assert "parked malformed applied" in page.text
    assert "created t1" in page.text
    assert page.links("/bookings/") == []  # there is none yet
    done = write(browser, page)
    (row,) = world.rows()
    assert f"/bookings/{row['id']}" in done.links()
    assert world.verdict(identity) == (State.APPLIED, None)
    assert "No delivery is like that." in browser.open(address).text


def test_a_booking_that_would_go(browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be looked at until it is gone."""
    told(world, Step(name="Ada", size=30, version=1))
    (row,) = world.rows()
    sees(monkeypatch, of_no_interest)
    page = browser.open("/replay?endpoint=studio")
    assert f"/bookings/{row['id']}" in page.links()
    assert "customer_name Ada \N{EM DASH}" in page.text
    done = write(browser, page)
    assert (world.rows(), done.links("/bookings/")) == ([], [])
    browser.open(f"/bookings/{row['id']}", status=410)


def test_what_cannot_be_read_today_is_left(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(world, Step(name="Ada", size=30, version=1))
    sees(monkeypatch, unreadable)
    page = browser.open("/replay?endpoint=studio")
    assert "Left as they are 1" in page.text
    assert "malformed 1 the body is not what this provider sends" in page.text


@pytest.mark.parametrize("provider", ["checkfront", "reservekit", "synthesisvr"])
def test_it_reads_the_same_without_the_providers_keys(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """The console has none, the command may have them: also of what the provider has not answered yet."""
    keyed = replace(VENUES[provider], secrets=frozenset({"api_key", "api_secret"}))
    world = World(engine, [keyed], clock=Clock(now()))
    told(world, Step(name="5204", size=4, version=1), provider=provider)
    unanswered = tell(provider, Step(name="5205", size=4, version=1, booking=2))
    raw = request(keyed.name, unanswered.body, headers=unanswered.headers, at=world.clock())
    world.deliver(raw)
    assert world.verdict(raw.id)[0] == State.RETRYING
    sees(monkeypatch, noted, provider)
    with_keys, without = (
        replaying.planned(engine, settings_of(database_url, endpoints=[each]).config, Choice())
        for each in (keyed, replace(keyed, secrets=frozenset()))
    )
    assert with_keys == without
    assert (without.read, len(without.differences)) == (2, 2)


# --- what came in between ------------------------------------------------------------------------------------------


def test_what_has_changed_meanwhile_is_shown_instead(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written that nobody has seen."""
    told(world, Step(name="Ada", size=30, version=1))
    sees(monkeypatch, noted)
    page = browser.open("/replay?endpoint=studio")
    sees(monkeypatch, lambda event: replace(event, said={**event.said, "note": "another eye"}))
    before = everything(engine)
    again = write(browser, page)
    assert "It is not what you were shown" in again.text
    assert "another eye" in again.text
    assert (everything(engine), lines(engine)) == (before, [])
    write(browser, again)
    assert [row["note"] for row in world.rows()] == ["another eye"]


def test_a_state_that_has_changed_meanwhile_is_shown_too(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = told(world, Step(name="Ada", size=30, version=1))
    sees(monkeypatch, noted)
    page = browser.open("/replay?endpoint=studio")
    world.change(identity, state=State.IGNORED, reason="empty", applied_at=None)
    again = write(browser, page)
    assert "It is not what you were shown" in again.text
    assert "ignored empty applied" in again.text
    assert lines(engine) == []


def test_what_came_in_the_same_moment_is_told(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the writing; it is written, and it is said that it was not all as shown."""
    told(world, Step(name="Ada", size=30, version=1))
    sees(monkeypatch, noted)
    page = browser.open("/replay?endpoint=studio")
    perform = acts.perform

    def late(*given: Any) -> replaying.Showing:
        sees(monkeypatch, lambda event: replace(event, said={**event.said, "note": "another eye"}))
        return perform(*given)

    monkeypatch.setattr(acts, "perform", late)
    done = write(browser, page)
    assert "Something else came in the same moment" in done.text
    assert "another eye" in done.text
    assert [row["note"] for row in world.rows()] == ["another eye"]


# --- its limits ----------------------------------------------------------------------------------------------------


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many at once as a test can make."""
    monkeypatch.setattr(replaying, "AT_ONCE", 2)


@pytest.mark.usefixtures("few")
def test_where_there_are_more_the_command_for_them_is_told(
    browser: Browser, world: World, database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """And it finds all of them."""
    for number in (3, 2, 1):
        told(world, Step(name="Ada", version=1, booking=number), ago=timedelta(days=number))
    page = browser.open("/replay?endpoint=studio")
    assert "There are more: these are the first 2." in page.text
    assert "Deliveries 2 Read 2" in page.text
    oldest = world.clock() - timedelta(days=3)
    said = f"reservoir replay --since {oldest.date()} --endpoint studio --dry-run"
    assert said in page.texts
    (tmp_path / "reservoir.toml").write_text(
        '[endpoints.studio]\nprovider = "timekit"\ntimezone = "Europe/Oslo"\n', encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", database_url)
    done = CliRunner().invoke(app, shlex.split(said)[1:], catch_exceptions=False)
    assert "deliveries=3 read=3" in done.stdout
    typed = browser.open("/replay?endpoint=studio&since=7d&state=applied")
    assert "reservoir replay --since 7d --endpoint studio --state applied --dry-run" in typed.texts


def test_a_command_is_quoted() -> None:
    """Whatever stood in the address."""
    said = replaying.command({"since": "7d", "reason": "$(reboot); 'x"})
    assert shlex.split(said) == ["reservoir", "replay", "--since", "7d", "--reason", "$(reboot); 'x", "--dry-run"]


@pytest.mark.usefixtures("few")
def test_the_command_does_not_know_a_search(browser: Browser, world: World) -> None:
    for number in (1, 2, 3):
        told(world, Step(name="Ada", version=1, booking=number))
    page = browser.open("/replay?q=ada")
    assert "There are more" in page.text
    assert not page.all("pre")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time for one delivery."""
    monkeypatch.setattr(replaying, "SECONDS", 0.0)
    monkeypatch.setattr(replaying, "STEP", 1)


@pytest.mark.usefixtures("hasty")
def test_what_took_too_long_cannot_be_written(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what was seen whole can be; fewer can be looked at."""
    first = told(world, Step(name="Ada", size=30, version=1), ago=timedelta(minutes=1))
    told(world, Step(name="Ben", size=30, version=1, booking=2))
    sees(monkeypatch, noted)
    page = browser.open("/replay?endpoint=studio")
    assert "1 of 2 were read within 0 seconds." in page.text
    assert "reservoir replay --since" in page.text
    assert not page.all("form", action="/replay/apply")
    kept = {name: [one.attributes["value"] for one in page.all("input", name=name)] for name in ("token", "id", "back")}
    assert kept["id"] == [str(first)]
    fewer = Page(browser.client.post("/replay", data=kept, headers={"origin": browser.origin}).text)
    write(browser, fewer)
    assert [row["note"] for row in world.rows()] == [BETTER, None]


def test_what_was_not_written_in_time_is_told(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays as it was, and can be looked at anew."""
    first = told(world, Step(name="Ada", size=30, version=1), ago=timedelta(minutes=1))
    second = told(world, Step(name="Ben", size=30, version=1, booking=2))
    sees(monkeypatch, noted)
    page = browser.open("/replay?endpoint=studio")
    monkeypatch.setattr(replaying, "STEP", 1)
    perform = acts.perform

    def slowly(*given: Any) -> replaying.Showing:
        monkeypatch.setattr(replaying, "SECONDS", 0.0)
        return perform(*given)

    monkeypatch.setattr(acts, "perform", slowly)
    done = write(browser, page)
    assert "The others are as they were." in done.text
    assert [one.attributes["value"] for one in done.all("input", name="id")] == [str(second)]
    assert [row["note"] for row in world.rows()] == [BETTER, None]
    assert lines(engine) == [
        ("replay", "endpoint studio", {first, second}, "deliveries=1 read=1 bookings=1 updated=1 states=0")
    ]


def test_one_person_at_a_time(browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are told to come back, and the console goes on."""
    told(world, Step(name="Ada", size=30, version=1))
    monkeypatch.setattr(acts, "SECONDS", 0.05)
    begun, go_on, rehearse = ThreadingEvent(), ThreadingEvent(), acts.rehearse

    def slowly(*given: Any) -> replaying.Showing:
        begun.set()
        assert go_on.wait(20)
        return rehearse(*given)

    monkeypatch.setattr(acts, "rehearse", slowly)
    with ThreadPoolExecutor(1) as other:
        first = other.submit(browser.open, "/replay?endpoint=studio")
        try:
            assert begun.wait(20)
            assert "Try again in some seconds." in browser.open("/replay?endpoint=studio", status=503).text
            browser.open("/deliveries")
        finally:
            go_on.set()
        assert "Nothing is written yet." in first.result(20).text
    browser.open("/replay?endpoint=studio")


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("query", ["", "?state=lost", "?since=yesterday"])
def test_all_of_them_are_too_many(browser: Browser, world: World, query: str) -> None:
    told(world, Step(name="Ada", size=30, version=1))
    browser.open(f"/replay{query}", status=400)


@pytest.mark.parametrize("ids", [[], ["x"], [str(new_id()) for _ in range(replaying.AT_ONCE + 1)]])
def test_nothing_chosen_or_too_much_is_not_written(
    browser: Browser, world: World, engine: Engine, ids: list[str]
) -> None:
    told(world, Step(name="Ada", size=30, version=1))
    assert browser.send("/replay/apply", {"id": ids}, of="/deliveries").status_code == 400
    assert lines(engine) == []


def test_ids_that_are_not_there_choose_nothing(browser: Browser, world: World, database_url: str) -> None:
    """Not everything."""
    told(world, Step(name="Ada", size=30, version=1))
    answer = browser.send("/replay", {"id": [str(new_id())]}, of="/deliveries")
    assert "No delivery is like that." in Page(answer.text).text
    config = settings_of(database_url).config
    for ids in ([], [new_id()]):
        nothing = replaying.rehearse(world.engine, config, ids)
        assert nothing.outcome.deliveries == 0
        assert replaying.perform(world.engine, config, nothing).outcome.deliveries == 0


@pytest.mark.parametrize("path", ["/replay", "/replay/apply"])
def test_a_form_of_somebody_else_does_nothing(
    browser: Browser, world: World, engine: Engine, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    told(world, Step(name="Ada", size=30, version=1))
    sees(monkeypatch, noted)
    fields = form_of(browser.open("/replay?endpoint=studio"))
    before = everything(engine)
    elsewhere = browser.client.post(path, data=fields, headers={"origin": "https://elsewhere.example"})
    forged = browser.client.post(path, data={**fields, "token": "x"}, headers={"origin": browser.origin})
    assert (elsewhere.status_code, forged.status_code) == (403, 403)
    assert (everything(engine), lines(engine)) == (before, [])
    assert browser.client.get("/replay/apply").status_code == 405


def test_nobody_looks_without_the_password(database_url: str, world: World) -> None:
    told(world, Step(name="Ada", size=30, version=1))
    with console(settings_of(database_url)) as stranger:
        assert stranger.client.get("/replay?endpoint=studio").headers["location"].startswith("/login")
        stranger.log_in()
        assert "Nothing is written yet." in stranger.open("/replay?endpoint=studio").text


def test_text_from_outside_stays_text(browser: Browser, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = "<script>alert(1)</script>\"'&{{7*7}}"
    told(world, Step(name=hostile, size=30, version=1))
    sees(monkeypatch, lambda event: replace(event, said={**event.said, "note": hostile}))
    page = browser.open("/replay?endpoint=studio")
    assert hostile in " ".join(page.texts)
    assert len(page.all("script")) == 2
