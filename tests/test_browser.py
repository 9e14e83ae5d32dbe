"""The console in a real browser: the one story that it is for, its keys, both lights, a phone, and no script at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Browser, Page, expect
from redis import Redis
from sqlalchemy import Engine, text

from console.services import Embedded
from schemas.acks import ACKS
from schemas.delivery import now
from tests import screens, week
from tests.browsing import PASSWORD, processes
from tests.chromium import DESKTOP, FOUND, MISSING, PATIENCE, PHONE, Theme, chromium, visitor
from tests.world import Clock, World, database, request

pytestmark = pytest.mark.skipif(FOUND is None, reason=MISSING)

SERIOUS = {"serious", "critical"}
ONLY_FINDINGS = {"resultTypes": ["violations"]}
NARROW = 320
"""Pixels of the narrowest phone that is still in use."""
ENDLESS = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch" * 2
"""A word that does not fit anywhere."""
NOT_FOUND = "Failed to load resource: the server responded with a status of 404 (Not Found)"
"""What the browser says once: of the page that shows how an error looks."""
expect.set_options(timeout=PATIENCE)


@dataclass(frozen=True)
class Site:
    """A console that runs, over a full week; and what the browser keeps of somebody who has logged in."""

    url: str
    engine: Engine
    known: Any = None


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def site(
    services: Embedded, template: str, browser: Browser, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """The process of the Procfile. Nothing works on deliveries here, so what is run again stays as it is. One booking
    shows what nobody told, so that there is something that today's code would write."""
    at = now()
    with database(services, template) as engine, Redis.from_url(services.redis_url) as redis:
        week.tell(engine, at).add(replace(coming(at), number=999, guest=ENDLESS, room=("19", ENDLESS)))
        misread(engine)
        redis.hset(ACKS, mapping=week.acks(at + timedelta(minutes=30)))
        url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        given: Any = {"redis_url": services.redis_url, "endpoints": week.ENDPOINTS.values()}
        with processes(tmp_path_factory.mktemp("console"), "console", database_url=url, **given) as found:
            yield Site(found, engine, screens.cookies(browser, found))


def misread(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE bookings SET note = '{ENDLESS}!' WHERE length(customer_name) > 100")


@dataclass
class Watch:
    """What a page said on the browser's console, and whom it asked."""

    said: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def over(self, page: Page) -> None:
        page.on("console", lambda message: self.said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))


@contextmanager
def operator(browser: Browser, site: Site, **settings: Any) -> Iterator[Page]:
    """Somebody who has logged in."""
    with visitor(browser, site.url, storage_state=site.known, **settings) as page:
        yield page


def coming(at: datetime) -> week.Visit:
    """A visit in the harbour that is still to come."""
    return next(visit for visit in week.visits(at) if visit.endpoint == "harbour-tours" and visit.starts > at)


def first_of(engine: Engine, query: str) -> Any:
    with engine.connect() as connection:
        return connection.execute(text(query)).scalars().first()


@contextmanager
def changed(engine: Engine, now: str | None, afterwards: str, *, where: str) -> Iterator[None]:
    """Deliveries that are something else meanwhile."""
    with engine.begin() as connection:
        if now is not None:
            connection.exec_driver_sql(f"UPDATE deliveries SET {now} WHERE {where}")
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE deliveries SET {afterwards} WHERE {where}")


def every_page(site: Site) -> dict[str, str]:
    """The pages of the pictures, their lists not as long, and those that speak of the endless word."""
    long = first_of(site.engine, "SELECT id FROM bookings WHERE length(customer_name) > 100")
    came = first_of(site.engine, "SELECT delivery_id FROM bookings WHERE length(customer_name) > 100")
    return {
        **screens.addresses(site.engine),
        "long booking": f"/bookings/{long}",
        "long delivery": f"/deliveries/{came}",
        "replay": "/replay?since=24h",
        "deliveries": "/deliveries?endpoint=harbour-tours&since=3h",
        "bookings": f"/bookings?endpoint=harbour-tours&from={now():%Y-%m-%d}",
        "mistaken": "/deliveries?since=yesterday&q=nobody",
    }


# --- what it is for ----------------------------------------------------------------------------------------------


@pytest.mark.services
def test_a_parked_delivery_is_found_understood_and_run_again(
    browser: Browser, engine: Engine, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """From the login to the booking, with a real worker: a venue sent before anybody had put it into the file."""
    at = now()
    visit = coming(at)
    telling = week.checkfront(visit, "made", at)
    World(engine, [], clock=Clock(at)).deliver(
        request(visit.endpoint, telling.body, at=at - timedelta(minutes=3), headers=telling.headers)
    )
    venue = week.ENDPOINTS[visit.endpoint]
    given: Any = {"database_url": database_url, "redis_url": redis_url, "endpoints": [venue]}
    with (
        processes(tmp_path, "console", "worker", "beat", **given) as url,
        visitor(browser, url) as page,
    ):
        page.goto("/parked")
        page.get_by_label("Password").fill(f"{PASSWORD}?")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("That is not the password.")
        page.get_by_label("Password").fill(PASSWORD)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="unknown-endpoint")).to_be_visible()
        expect(page.get_by_text("The endpoint is not in reservoir.toml.")).to_be_visible()

        page.get_by_role("link", name="harbour-tours", exact=True).click()
        page.locator("tbody a.go").click()
        why = page.get_by_label("Why")
        expect(why).to_contain_text("No such endpoint is configured")
        expect(why).to_contain_text("What to do: add it, restart")
        expect(page.get_by_label("Body")).to_contain_text(visit.guest)

        page.get_by_role("button", name="Run it again").click()
        expect(page.get_by_role("status").filter(has_text="retry: again=1 held=0.")).to_be_visible()
        expect(page.locator("h1 .state")).to_have_text("applied", timeout=60_000)
        page.get_by_role("link", name=week.code_of(visit)).click()
        expect(page.get_by_role("heading", name=week.code_of(visit))).to_be_visible()
        expect(page.locator("dl.fields")).to_contain_text(visit.guest)
        expect(page.locator("section.change.is-created")).to_have_count(1)


# --- every page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop-light", "phone-dark"])
def test_every_page_is_quiet_fits_and_can_be_used_by_everybody(
    browser: Browser, site: Site, size: dict[str, int], theme: Theme
) -> None:
    """Nothing on the browser's console, no request elsewhere, nothing wider than the screen, no finding of axe's."""
    watch, wrong = Watch(), {}
    with (
        operator(browser, site, viewport=size, color_scheme=theme) as known,
        visitor(browser, site.url, viewport=size, color_scheme=theme) as stranger,
    ):
        watch.over(known)
        watch.over(stranger)
        for name, address in every_page(site).items():
            page = stranger if name == "login" else known
            page.goto(address)
            if name == "confirm":
                page.get_by_role("button", name="Run again").first.click()
                expect(page.get_by_role("heading")).to_contain_text("again?")
            wrong[name] = [
                f"{each['id']}: {each['nodes'][0]['html'][:200]}"
                for each in findings(page)
                if each["impact"] in SERIOUS
            ]
            wrong[name] += too_wide(page, size["width"])
    assert {name: said for name, said in wrong.items() if said} == {}
    assert watch.said == [NOT_FOUND]
    assert watch.hosts == {urlsplit(site.url).netloc}


def findings(page: Page) -> list[dict[str, Any]]:
    """What axe objects to. Its long account of all that is well stays in the browser."""
    page.evaluate(AXE_SCRIPT)
    found: list[dict[str, Any]] = page.evaluate(f"axe.run({ONLY_FINDINGS}).then(said => said.violations)")
    return found


def too_wide(page: Page, width: int) -> list[str]:
    """How far the page reaches beyond the screen, also of a phone, and of the narrowest one."""
    found = []
    for each in sorted({width, PHONE["width"], NARROW}):
        page.set_viewport_size({"width": each, "height": 844})
        reaches = page.evaluate("document.documentElement.scrollWidth")
        if reaches > each:
            found.append(f"{reaches} pixels of {each}")
    page.set_viewport_size({"width": width, "height": 844})
    return found


def test_the_light_is_the_readers(browser: Browser, site: Site) -> None:
    """Dark letters on light ground, or the other way round, by the reader's own setting."""

    def brightness(theme: Theme) -> tuple[float, float]:
        with operator(browser, site, color_scheme=theme) as page:
            page.goto("/")
            style = "(([one]) => [one.backgroundColor, one.color])([getComputedStyle(document.documentElement)])"
            ground, ink = page.evaluate(style)
        return _brightness(ground), _brightness(ink)

    (light_ground, light_ink), (dark_ground, dark_ink) = brightness("light"), brightness("dark")
    assert light_ground > 200 > 60 > light_ink
    assert dark_ground < 60 < 200 < dark_ink


def _brightness(colour: str) -> float:
    """Of `rgb(17, 21, 26)`."""
    parts = [float(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    return sum(parts) / len(parts)


# --- by hand -----------------------------------------------------------------------------------------------------


def test_all_can_be_done_with_the_keyboard(browser: Browser, site: Site) -> None:
    """Into the search and out again, through the list, choosing, opening; and one sees where one is."""
    with operator(browser, site) as page:
        page.goto("/")
        search = page.get_by_role("searchbox")
        page.keyboard.press("/")
        expect(search).to_be_focused()
        page.keyboard.type("jk x/")
        expect(search).to_have_value("jk x/")
        page.keyboard.press("Escape")
        expect(search).not_to_be_focused()
        page.keyboard.press("/")
        page.keyboard.type("KMVQ-2811")
        page.keyboard.press("Enter")
        expect(page.locator("tbody")).to_contain_text("malformed")

        page.goto("/deliveries")
        links = page.locator("[data-rows] tbody a.go")
        for key, place in (("j", 0), ("j", 1), ("j", 2), ("k", 1)):
            page.keyboard.press(key)
            expect(links.nth(place)).to_be_focused()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        page.keyboard.press("x")
        expect(page.locator("input[name=id]:checked")).to_have_count(1)
        expect(page.locator("tbody tr").nth(1).locator("input[name=id]")).to_be_checked()
        wanted = links.nth(1).get_attribute("href")
        page.keyboard.press("Enter")
        page.wait_for_url(f"**{wanted}")


def test_a_list_follows_what_is_typed_and_chosen(browser: Browser, site: Site) -> None:
    """Without loading the page anew; and the address can be kept, sent to somebody, and gone back from."""
    with operator(browser, site) as page:
        page.goto("/deliveries")
        page.evaluate("window.stayed = true")
        page.get_by_role("combobox", name="State").select_option("parked")
        expect(page.locator("tbody tr")).to_have_count(6)
        page.get_by_label("Search").fill("KMVQ-2811")
        expect(page.locator("tbody tr")).to_have_count(1)
        expect(page.locator("tbody")).to_contain_text("body: expected JSON")
        assert page.evaluate("window.stayed") is True
        address = page.url
        assert "state=parked" in address
        assert "q=KMVQ-2811" in address
        page.goto("/bookings")
        page.get_by_label("Search").fill(ENDLESS[:12])
        expect(page.locator("tbody tr")).to_have_count(1)
        page.goto(address)
        expect(page.get_by_label("Search")).to_have_value("KMVQ-2811")
        expect(page.locator("tbody tr")).to_have_count(1)


def test_a_long_list_goes_on(browser: Browser, site: Site) -> None:
    with operator(browser, site) as page:
        page.goto("/deliveries")
        first = page.locator("tbody a.go").first.get_attribute("href")
        page.get_by_role("link", name="More →").click()
        expect(page.get_by_role("link", name="← Newest")).to_be_visible()
        assert page.locator("tbody a.go").first.get_attribute("href") != first
        page.get_by_role("link", name="← Newest").click()
        expect(page.locator("tbody a.go").first).to_have_attribute("href", first or "")


def test_all_of_a_page_are_chosen_at_once(browser: Browser, site: Site) -> None:
    """And the question says how many."""
    with operator(browser, site) as page:
        page.goto("/deliveries?state=parked")
        page.get_by_label("Choose all on this page").check()
        page.get_by_role("button", name="Run the chosen again").click()
        expect(page.get_by_role("heading", name="Run 6 deliveries again?")).to_be_visible()
        page.get_by_role("link", name="No, go back").click()
        page.wait_for_url("**/deliveries?state=parked")


# --- by itself ---------------------------------------------------------------------------------------------------


def test_the_overview_refreshes_itself_and_one_keeps_ones_place(browser: Browser, site: Site) -> None:
    with operator(browser, site) as page:
        page.clock.install()
        page.goto("/")
        row = page.get_by_role("row").filter(has_text="workshop-oslo")
        row.get_by_role("link", name="workshop-oslo").focus()
        expect(row.get_by_role("cell").last).to_have_text("0")
        with changed(site.engine, "state = 'parked'", "state = 'ignored'", where="reason = 'group-owner'"):
            page.clock.fast_forward(5_100)
            expect(row.get_by_role("cell").last).to_have_text("1")
        expect(row.get_by_role("link", name="workshop-oslo")).to_be_focused()


def test_a_page_that_could_not_be_refreshed_says_so(browser: Browser, site: Site) -> None:
    """Until it can be again."""
    with operator(browser, site) as page:
        page.clock.install()
        page.goto("/")
        warning = page.get_by_text("This page could not be refreshed.")
        expect(warning).to_be_hidden()
        page.route("**/*", lambda route: route.abort())
        page.clock.fast_forward(5_100)
        expect(warning).to_be_visible()
        page.unroute_all()
        page.clock.fast_forward(5_100)
        expect(warning).to_be_hidden()


def test_a_session_that_ended_leads_to_the_login(browser: Browser, site: Site) -> None:
    """Also of a page that only refreshes itself."""
    with operator(browser, site) as page:
        page.clock.install()
        page.goto("/")
        page.context.clear_cookies()
        page.clock.fast_forward(5_100)
        expect(page.get_by_label("Password")).to_be_visible()


# --- with today's code -------------------------------------------------------------------------------------------


def test_what_today_s_code_would_write_is_seen_and_written(browser: Browser, site: Site) -> None:
    """Without a script, on a phone, by the keyboard: chosen in the list, looked at field by field, written."""
    with operator(browser, site, viewport=PHONE, java_script_enabled=False) as page:
        page.goto("/deliveries?q=Llanfair")
        page.locator("tbody input[name=id]").first.check()
        page.get_by_role("button", name="What would today's code write?").press("Enter")
        change = page.locator("section.change.is-updated")
        expect(change.locator("td.old")).to_have_text(f"{ENDLESS}!")
        expect(change.locator("td.new")).to_have_text("\N{EM DASH}")
        with misread_again(site.engine):
            page.get_by_role("button", name="Write it").press("Enter")
            expect(page.get_by_role("heading", name="What today's code has written")).to_be_visible()
            expect(change).to_have_count(1)
            change.get_by_role("link").first.press("Enter")
            expect(page.locator("dl.fields")).not_to_contain_text(f"{ENDLESS}!")


@contextmanager
def misread_again(engine: Engine) -> Iterator[None]:
    """The booking shows afterwards what it showed before."""
    try:
        yield
    finally:
        misread(engine)


# --- without a script --------------------------------------------------------------------------------------------


def test_without_a_script_everything_can_be_read_and_done(browser: Browser, site: Site) -> None:
    """Every page has what it has with one; filters have a button; deliveries are chosen, asked about and run again."""
    with operator(browser, site, java_script_enabled=False) as page:
        for name, address in every_page(site).items():
            if name not in ("login", "confirm"):
                page.goto(address)
                expect(page.locator("h1")).to_be_visible()
                assert page.locator("tbody tr, .empty, dl.fields, .wrong, .bars").count() or name == "error", name
        page.goto("/deliveries")
        expect(page.get_by_label("Choose all on this page")).to_be_hidden()
        page.get_by_role("combobox", name="State").select_option("parked")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator("tbody tr")).to_have_count(6)
        gone = page.locator("tbody tr").filter(has_text="message-gone")
        for row in (gone.nth(0), gone.nth(1)):
            row.get_by_role("checkbox").check()
        page.get_by_role("button", name="Run the chosen again").click()
        with changed(site.engine, None, "state = 'parked', reason = 'message-gone'", where="replayed_at IS NOT NULL"):
            page.get_by_role("button", name="Run 2 again").click()
            expect(page.get_by_role("status").filter(has_text="retry: again=2 held=0.")).to_be_visible()
            expect(page.locator("tbody tr")).to_have_count(4)
