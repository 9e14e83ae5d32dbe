"""The console's pages, of an empty installation and of a full one: what they show, do, and never show."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
from redis import Redis
from sqlalchemy import Engine, make_url, select

from console.web.queue import Queue
from schemas.acks import ACKS
from schemas.delivery import INBOX, State, new_id, now
from schemas.endpoints import Endpoint, token
from tests.browsing import SECRET, Browser, Page, console, settings_of
from tests.open_console import browser as browser
from tests.open_console import world as world
from tests.serving import free_port
from tests.world import VENUES, Clock, Script, Step, World, request, tell
from workers.errors import MessageGone
from workers.inbox import SETTLED
from workers.overdue import overdue
from workers.sweep import PATIENCE
from workers.tables import audit, deliveries, incidents

PAGES = ("/", "/deliveries", "/bookings", "/bookings?all=yes", "/bookings?undated=yes", "/day", "/parked", "/audit")
OURS = ["/static/htmx.min.js", "/static/console.js"]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}"


def told(world: World, provider: str, *steps: Step, **more: object) -> UUID:
    """What happened at that provider, told and worked on; the delivery's id."""
    said = tell(provider, *steps)
    world.script.lines |= said.answers
    raw = request(VENUES[provider].name, said.body, headers=said.headers, at=world.clock(), **more)  # type: ignore[arg-type]
    world.deliver(raw)
    return raw.id


def unreadable(world: World, body: bytes = b'{"booking": [', endpoint: str = "harbour") -> UUID:
    """A delivery that is parked."""
    raw = request(endpoint, body, headers=[("content-type", "application/json")], at=world.clock())
    world.deliver(raw)
    assert world.verdict(raw.id)[0] == State.PARKED
    return raw.id


def full(world: World) -> None:
    """Something of everything: each provider, each state, with names that mean harm."""
    for provider in VENUES:
        told(world, provider, Step(name=HOSTILE, size=4, version=1))
        told(world, provider, Step(word="change", name=HOSTILE, size=5, version=2))
    told(world, "checkfront", Step(word="pay", booking=8, version=3))  # of a booking that never came
    told(world, "checkfront", Step(word="cancel", version=4))
    unreadable(world, json.dumps({"booking": HOSTILE}).encode())
    unreadable(world, b"\xff\xfe\x00<script>")
    world.land(request("arcade", b"[]", at=world.clock()), request("gone-from-the-file", b"{}", at=world.clock()))
    states = {row.state for row in _states(world)}
    assert states >= {"applied", "parked", "retrying", "received"}


def _states(world: World) -> list[object]:
    with world.engine.connect() as connection:
        return list(connection.execute(select(deliveries.c.state)))


def every_page(browser: Browser) -> dict[str, Page]:
    """The lists, and all that they lead to within the console."""
    pages: dict[str, Page] = {}
    waiting = list(PAGES)
    while waiting:
        path = waiting.pop()
        if path in pages or path.endswith("/body"):
            continue
        pages[path] = browser.open(path)
        waiting += [link for link in pages[path].links() if re.match(r"/(deliveries|bookings)/", link)]
    return pages


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/", "nothing came yet"),
        ("/", "Paste the URLs that reservoir urls prints"),
        ("/deliveries", "Nothing has come yet."),
        ("/bookings", "Nothing is booked from today on."),
        ("/day", "Nothing with a time is booked for this day."),
        ("/parked", "Nothing is parked."),
        ("/audit", "Nothing has been done here yet."),
    ],
)
def test_an_empty_installation_says_so(browser: Browser, path: str, said: str) -> None:
    assert said in browser.open(path).text


def test_the_overview_shows_every_endpoint(browser: Browser, world: World) -> None:
    """Those of the configuration, and those that only the table knows."""
    full(world)
    page = browser.open("/")
    for name in (*(endpoint.name for endpoint in VENUES.values()), "gone-from-the-file"):
        assert name in page.texts
    assert "not in reservoir.toml" in page.text
    assert len(page.all("svg", class_="bars")) == len(VENUES) + 1
    assert any("in 24 hours" in one.attributes.get("aria-label", "") for one in page.all("svg"))
    assert "Not worked on yet 2 oldest" in page.text


def test_the_overview_tells_how_close_the_deadline_is(database_url: str, redis: Redis, redis_url: str) -> None:
    """Where the receivers tell it; else there is no such column."""
    redis.hset(INBOX, str(new_id()), b"reservoir/1 arcade POST 0\r\n\r\n")
    with console(settings_of(database_url, password=None, redis_url=redis_url)) as browser:
        page = browser.open("/")
        assert "In the inbox 1" in page.text
        assert "Of the deadline" not in page.text
        said = {"count": 9, "slowest_ms": 1200, "failures_in_a_row": 0, "at": now().timestamp()}
        redis.hset(ACKS, mapping={"arcade": json.dumps(said), "studio": json.dumps(said), "salon": "{", "escape": "[]"})
        page = browser.open("/")
    assert "Of the deadline" in page.text
    assert "60 %" in page.text
    assert page.text.count("60 %") == 1  # Timekit names no deadline


def test_a_receiver_that_is_gone_is_not_shown_as_slow(redis: Redis, redis_url: str) -> None:
    """What it said last is over after a minute."""
    at = now()
    said = {"count": 9, "slowest_ms": 1200, "failures_in_a_row": 0, "at": at.timestamp()}
    redis.hset(ACKS, "arcade", json.dumps(said))
    queue = Queue(redis_url)
    assert queue.look(at + timedelta(seconds=59)).slowest["arcade"].slowest == timedelta(seconds=1.2)
    assert queue.look(at + timedelta(seconds=61)).slowest == {}
    queue.close()


def test_the_overview_tells_of_open_alarms(browser: Browser, engine: Engine) -> None:
    """Of those that people are told of; of an alarm's kind that this version does not know, all but what to do."""
    at = now()
    rows = {
        "silent": {"kind": "silence"},
        "new kind": {"kind": "made-up"},
        "over": {"kind": "silence", "subject": "b", "closed_at": at},
        "not yet": {"kind": "silence", "subject": "c", "tell_at": at + timedelta(minutes=1)},
    }
    for title, row in rows.items():
        usual = {"id": new_id(), "subject": "a", "title": title, "detail": "long", "opened_at": at, "tell_at": at}
        with engine.begin() as connection:
            connection.execute(incidents.insert().values({**usual, "last_seen_at": at, **row}))
    page = browser.open("/")
    assert {title for title in rows if title in page.texts} == {"silent", "new kind"}
    assert page.text.count("What to do: send a test webhook") == 1


def test_a_redis_that_is_away_stops_no_page(database_url: str) -> None:
    settings = settings_of(database_url, password=None, redis_url=f"redis://127.0.0.1:{free_port()}/0")
    with console(settings) as browser:
        assert "Redis is away" in browser.open("/").text
    assert Queue(None).look(now()).inbox is None


def test_a_delivery_shows_what_came_and_what_became_of_it(browser: Browser, world: World) -> None:
    """The request, the provider's answer, the booking, the change."""
    identity = told(world, "lockme", Step(name="Jan Kowalski", size=4, version=5))
    page = browser.open(f"/deliveries/{identity}")
    text = page.text
    assert "changed at least one booking" in text
    assert "90005" in text  # the message's id, a header
    assert "/message/90005" in text or "message" in text
    assert "Jan Kowalski" in text
    assert "created" in text
    assert [link for link in page.links("/bookings/") if UUID(link.removeprefix("/bookings/"))]


def test_a_parked_delivery_says_why_and_what_to_do(browser: Browser, world: World) -> None:
    identity = unreadable(world)
    error = world.delivery(identity).error
    page = browser.open(f"/deliveries/{identity}")
    assert "malformed" in page.texts
    assert error in page.text
    assert "What to do: keep it, tell us." in page.text
    group = browser.open("/parked")
    assert "the body is not what this provider sends; the error names the place." in group.text
    assert "What to do: keep it, tell us." in group.text


def test_a_body_is_shown_in_order_and_kept_to_the_byte(browser: Browser, world: World) -> None:
    body = b'{"z": 1.10, "a": "\\u00fc", "a": [ ] }'
    identity = unreadable(world, body)
    page = browser.open(f"/deliveries/{identity}")
    assert '{ "z": 1.10, "a": "ü", "a": [] }' in page.texts
    answer = browser.client.get(f"/deliveries/{identity}/body")
    assert answer.content == body
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_a_booking_tells_its_life(browser: Browser, world: World) -> None:
    """Field by field, each change with its delivery."""
    first = told(world, "timekit", Step(name="Ada", size=30, version=1))
    second = told(world, "timekit", Step(word="change", name="Ada Lovelace", size=30, version=2))
    (row,) = world.rows()
    page = browser.open(f"/bookings/{row['id']}")
    assert "customer_name Ada Ada Lovelace" in page.text
    for identity in (first, second):
        assert f"/deliveries/{identity}" in page.links()
    assert page.text.index("updated") < page.text.index("created")


def test_of_a_document_that_changed_only_the_difference_is_told(browser: Browser, world: World) -> None:
    """And of a booking that is new, only what it shows now; times by the venue's clock."""
    told(world, "lockme", Step(name="Jan", size=4, version=1))
    told(world, "lockme", Step(word="change", name="Jan", size=4, version=2))
    (row,) = world.rows()
    page = browser.open(f"/bookings/{row['id']}")
    assert "before after details message_id 90001 90002 created" in page.text
    assert re.search(r"starts_at \W*1 Dec 18:30:00", page.text)


def test_a_booking_that_was_removed_is_said_to_be_gone(browser: Browser, world: World, engine: Engine) -> None:
    """As by a replay after which no event speaks of it; what it showed is still noted."""
    told(world, "timekit", Step(name="Ada", size=30, version=1))
    (row,) = world.rows()
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM bookings")
    assert "in the table no more" in browser.open(f"/bookings/{row['id']}", status=410).text


def test_a_day_has_rooms_and_hours(browser: Browser, world: World) -> None:
    """On the venue's clock: 12:30 UTC is 13:30 in Oslo."""
    told(world, "timekit", Step(name="Ada", size=30, version=1))
    told(world, "timekit", Step(name="Ben", size=30, version=1, booking=2))
    told(world, "timekit", Step(name="Cy", size=30, version=1, booking=3))
    told(world, "timekit", Step(word="cancel", version=2, booking=3))
    page = browser.open("/day?day=2026-11-20&endpoint=studio")
    blocks = [one for one in page.all("td") if "block" in one.attributes.get("class", "")]
    assert [one.attributes["rowspan"] for one in blocks] == ["4", "4"]
    assert page.texts.count("13:30–14:30") == 2
    assert "Cancelled 1" in page.text
    assert browser.open("/day?day=2026-11-20&endpoint=arcade").all("table") == []


def test_a_search_finds_what_a_person_says(browser: Browser, world: World) -> None:
    """A code, a name from the beginning of any of its words, an id; in small letters or large ones."""
    identity = told(world, "checkfront", Step(name="Maria Luisa Ferrari", size=4, version=1))
    other = told(world, "timekit", Step(name="Ada", size=30, version=1))
    (row,) = [row for row in world.rows() if row["endpoint"] == "harbour"]
    for said in ("CODE-001", "code-0", "ferrari", "MARIA fer", str(row["id"]), str(identity)):
        found = browser.open(f"/deliveries?q={said}")
        assert f"/deliveries/{identity}" in found.links(), said
        assert f"/deliveries/{other}" not in found.links()
    for said in ("CODE-001", "luisa", str(row["id"])):
        assert f"/bookings/{row['id']}" in browser.open(f"/bookings?q={said}").links(), said
    for said in ("aria", "ferrari ada", "nobody", "'", "\\", "a' | 'b", ":* &", "!!", "%", "(("):
        assert "No delivery is like that." in browser.client.get("/deliveries", params={"q": said + "zz"}).text
        assert browser.client.get("/bookings", params={"q": said}).status_code == 200
        assert browser.client.get("/deliveries", params={"q": said}).status_code == 200


def test_a_booking_is_found_by_the_providers_id(browser: Browser, world: World) -> None:
    """Also where that is an id as ours are."""
    identity = told(world, "synthesisvr", Step(name="7", size=4))
    (row,) = world.rows()
    assert UUID(row["external_id"])
    assert f"/bookings/{row['id']}" in browser.open(f"/bookings?q={row['external_id']}").links()
    assert f"/deliveries/{identity}" in browser.open(f"/deliveries?q={row['external_id']}").links()


def test_a_search_looks_into_what_is_parked(browser: Browser, world: World) -> None:
    """There no booking tells of it."""
    identity = unreadable(world, b'{"booking": "KMVQ-060314"')
    assert f"/deliveries/{identity}" in browser.open("/deliveries?q=KMVQ-0603").links()


def test_a_message_is_found_by_its_id(browser: Browser, world: World) -> None:
    identity = told(world, "lockme", Step(name="Jan", size=4, version=7))
    assert f"/deliveries/{identity}" in browser.open("/deliveries?q=90007").links()


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("state=lost", "There is no state 'lost'."),
        ("since=yesterday", "'yesterday' is no time"),
        ("since=0001-01-01", "too far away"),
        ("until=9999-12-31", "too far away"),
        ("q=a", "Search for at least 2 characters."),
        ("since=1h&until=2h", "since is later than until"),
    ],
)
def test_a_word_that_is_not_understood_is_named(browser: Browser, query: str, said: str) -> None:
    assert said in browser.open(f"/deliveries?{query}").text


@pytest.mark.parametrize("query", ["from=x", "from=2026-13-01", "status=lost", "from=2026-02-01&to=2026-01-01"])
def test_so_is_one_of_the_bookings(browser: Browser, query: str) -> None:
    assert browser.open(f"/bookings?{query}").all("p", class_="wrong")


@pytest.mark.parametrize(
    "path",
    [
        *("/deliveries?behind=x", "/deliveries?behind=99999999999999999-" + "f" * 32, "/deliveries?q=%00%1b[31m"),
        *("/deliveries?note=99999999999999999999", "/bookings?behind=_9_" + "0" * 32, "/bookings?from=0001-01-01"),
        *("/audit?behind=-1", "/audit?behind=9999999999999999999999"),
        *("/day?day=x", "/day?day=0001-01-01", "/day?day=9999-12-31"),
    ],
)
def test_an_address_can_be_nonsense(browser: Browser, path: str) -> None:
    browser.open(path)


@pytest.mark.parametrize(
    "path",
    ["/deliveries/x", f"/deliveries/{new_id()}", f"/bookings/{new_id()}", "/nowhere"],
    ids=["no-id", "delivery", "booking", "nowhere"],
)
def test_what_is_not_there_is_a_page_too(browser: Browser, path: str) -> None:
    page = browser.open(path, status=404)
    assert page.all("nav")


# --- what is never shown -----------------------------------------------------------------------------------------


def test_text_from_outside_stays_text(browser: Browser, world: World) -> None:
    """On every page: no script but ours, no handler, no style, no way out."""
    full(world)
    pages = every_page(browser)
    assert len(pages) > 20
    for path, page in pages.items():
        assert [one.attributes["src"] for one in page.all("script")] == ["/static/htmx.min.js", "/static/console.js"], (
            path
        )
        for one in page.elements:
            assert one.name not in ("img", "iframe", "object", "style", "base"), path
            assert not [name for name in one.attributes if name.startswith("on") or name == "style"], path
            for name in ("href", "src", "action", "hx-get"):
                assert one.attributes.get(name, "/").startswith(("/", "#")), path
    assert any(HOSTILE in " ".join(page.texts) for page in pages.values())


def test_a_browser_is_told_what_it_may_not_do(browser: Browser) -> None:
    headers = browser.client.get("/deliveries").headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "script-src 'self';" in policy
    assert (headers["cache-control"], headers["x-content-type-options"]) == ("no-store", "nosniff")
    assert browser.client.get("/static/console.css").headers["cache-control"] == "no-cache"


def test_no_secret_is_on_any_page(database_url: str, engine: Engine) -> None:
    """Not the installation's, not a URL's token, not a key that somebody sent along."""
    venue = VENUES["checkfront"]
    url = f"/hooks/{venue.name}/{token(SECRET, venue.name, 1)}"
    headers = [("Authorization", "Bearer of-a-proxy"), ("Cookie", "id=of-a-browser"), ("X-Original-URL", url)]
    headers += [("X-Api-Key", "of-a-gateway"), ("User-Agent", "Checkfront/1")]
    world = World(engine, [venue], clock=Clock(now()))
    world.deliver(request(venue.name, b'{"booking": ["' + url.encode() + b'"', headers=headers, at=world.clock()))
    with console(settings_of(database_url, password=None)) as browser:
        pages = every_page(browser)
    shown = "\n".join(page.html for page in pages.values())
    assert "Checkfront/1" in shown
    for secret in (SECRET, token(SECRET, venue.name, 1), "of-a-proxy", "of-a-browser", "of-a-gateway", database_url):
        assert secret not in shown


def test_what_the_database_says_is_not_shown(database_url: str, browser: Browser, engine: Engine) -> None:
    """But what can be done."""
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE bookings RENAME TO hidden")
    page = browser.open("/bookings", status=503)
    assert "Run reservoir migrate" in page.text
    assert "SELECT" not in page.text
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE hidden RENAME TO bookings")
    browser.open("/bookings")


def test_without_a_database_every_page_says_so(browser: Browser, database_url: str) -> None:
    name = make_url(database_url).database
    with psycopg.connect(database_url.replace(f"/{name}?", "/postgres?"), autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        try:
            assert "PostgreSQL cannot be reached." in browser.open("/", status=503).text
        finally:
            connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    browser.open("/")


# --- doing -------------------------------------------------------------------------------------------------------


def due(world: World) -> set[UUID]:
    """What the sweeper nudges now."""
    found = overdue(world.engine, now(), settled=SETTLED, patience=PATIENCE, busy=(), limit=100)
    return {row.id for row in found}


def lines(engine: Engine) -> list[tuple[str, str | None, set[UUID], str | None]]:
    with engine.connect() as connection:
        rows = connection.execute(select(audit).order_by(audit.c.id))
        return [(row.action, row.chosen, set(row.deliveries), row.outcome) for row in rows]


def test_one_delivery_is_run_again(browser: Browser, engine: Engine) -> None:
    """It is due at once, the worker applies it, the page says so, and the audit has it."""
    world = World(engine, [VENUES["lockme"]], clock=Clock(now()))
    booked = tell("lockme", Step(version=5, name="Jan", size=4))
    world.script = Script(lines={"/message/90005": MessageGone()})
    world.parts = World(engine, [VENUES["lockme"]], script=world.script, clock=world.clock).parts
    raw = request("escape", headers=booked.headers, at=world.clock())
    world.deliver(raw)
    assert world.verdict(raw.id) == (State.PARKED, "message-gone")
    world.script.lines = dict(booked.answers)

    path = f"/deliveries/{raw.id}"
    sent = browser.send("/deliveries/retry", {"id": str(raw.id), "back": path}, of=path)
    assert sent.status_code == 303
    page = browser.open(sent.headers["location"])
    assert "retry: again=1 held=0." in page.text
    assert page.all("div", id="delivery")[0].attributes["hx-trigger"] == "every 3s"
    assert due(world) == {raw.id}
    world.clock.now = now()
    world.work(raw.id)
    assert world.verdict(raw.id) == (State.APPLIED, None)
    assert "hx-trigger" not in browser.open(path).all("div", id="delivery")[0].attributes
    assert lines(engine) == [("retry", "by hand", {raw.id}, "again=1 held=0")]
    assert f"/deliveries/{raw.id}" in browser.open("/audit").links()


def test_several_are_run_again_after_a_question(browser: Browser, world: World, engine: Engine) -> None:
    """Chosen by hand."""
    ids = [unreadable(world) for _ in range(3)]
    fields = {"choose": "ids", "id": [str(identity) for identity in ids[:2]], "back": "/deliveries?state=parked"}
    question = Page(browser.send("/deliveries/retry", fields, of="/deliveries").text)
    assert "Run 2 deliveries again?" in question.text
    assert due(world) == set()
    assert lines(engine) == []
    sent = browser.send("/deliveries/retry", {**fields, "confirmed": "2"}, of="/deliveries")
    assert sent.headers["location"].startswith("/deliveries?state=parked&note=")
    assert due(world) == set(ids[:2])
    assert lines(engine) == [("retry", "by hand", set(ids[:2]), "again=2 held=0")]


def test_all_of_a_filter_are_run_again(browser: Browser, world: World, engine: Engine) -> None:
    """Only those; and where there are more than the question said, it is asked once more."""
    ids = [unreadable(world) for _ in range(3)]
    other = unreadable(world, b"[", endpoint="studio")
    fields = {"choose": "filter", "state": "parked", "reason": "malformed", "endpoint": "harbour", "back": "/parked"}
    question = Page(browser.send("/deliveries/retry", fields, of="/parked").text)
    assert "Run 3 deliveries again?" in question.text
    kept = {one.attributes["name"]: one.attributes["value"] for one in question.all("input", type="hidden")}
    ids.append(unreadable(world))
    again = browser.client.post("/deliveries/retry", data=kept, headers={"origin": browser.origin})
    assert "It has become more than you were asked for. It is 4 now." in Page(again.text).text
    assert due(world) == set()
    sent = browser.send("/deliveries/retry", {**fields, "confirmed": "4"}, of="/parked")
    assert sent.headers["location"].startswith("/parked?note=")
    assert due(world) == set(ids)
    assert world.verdict(other)[0] == State.PARKED
    said = "endpoint harbour, state parked, reason malformed"
    assert lines(engine) == [("retry", said, set(ids), "again=4 held=0")]


def test_the_provider_is_asked_anew_where_one_wants_that(browser: Browser, world: World, engine: Engine) -> None:
    identity = told(world, "lockme", Step(name="Jan", size=4, version=5))
    assert world.delivery(identity).lookup
    browser.send("/deliveries/retry", {"id": str(identity), "ask_again": "yes"}, of="/deliveries")
    assert world.delivery(identity).lookup is None
    assert lines(engine)[0][1] == "by hand; ask the provider again"


def test_what_a_worker_has_in_hand_is_left(browser: Browser, world: World, engine: Engine) -> None:
    identity = unreadable(world)
    world.change(identity, state=State.RETRYING, next_attempt_at=now() + timedelta(seconds=10))
    sent = browser.send("/deliveries/retry", {"id": str(identity), "back": "/parked"}, of="/deliveries")
    assert f"retry: again=0 held=1: {identity}" in browser.open(sent.headers["location"]).text
    assert world.verdict(identity)[0] == State.RETRYING


@pytest.mark.parametrize(
    "fields", [{}, {"id": "x"}, {"choose": "filter"}, {"choose": "filter", "state": "lost"}, {"choose": "ids"}]
)
def test_nothing_chosen_is_nothing_done(browser: Browser, world: World, engine: Engine, fields: dict[str, str]) -> None:
    unreadable(world)
    answer = browser.send("/deliveries/retry", fields, of="/deliveries")
    assert answer.status_code == 400
    assert lines(engine) == []


def test_another_sessions_note_is_not_told(browser: Browser, world: World) -> None:
    """An address with a number in it tells nobody what somebody else did."""
    identity = unreadable(world)
    sent = browser.send("/deliveries/retry", {"id": str(identity), "back": "/parked"}, of="/deliveries")
    assert "retry: again=1" in browser.open(sent.headers["location"]).text
    browser.client.cookies.clear()
    assert "retry: again=1" not in browser.open(sent.headers["location"]).text


def test_what_was_begun_and_not_ended_stays_in_the_audit(browser: Browser, engine: Engine) -> None:
    with engine.begin() as connection:
        line = {"session": "s", "address": "a", "action": "retry", "chosen": "by hand", "deliveries": [new_id()] * 30}
        connection.execute(audit.insert().values(line))
    text = browser.open("/audit").text
    assert "begun; its end is not written" in text
    assert "and 10 more" in text


def test_an_endpoint_that_is_not_configured_can_be_filtered(browser: Browser, world: World) -> None:
    world.land(request("gone-from-the-file", b"{}", at=world.clock()))
    page = browser.open("/deliveries?endpoint=gone-from-the-file")
    assert len(page.all("input", name="id")) == 1
    assert page.all("option", value="gone-from-the-file", selected="")


def test_a_zone_that_does_not_exist_is_shown_as_utc(database_url: str, engine: Engine) -> None:
    """Of a booking; an endpoint's is checked when it is read."""
    world = World(engine, [Endpoint(name="studio", provider="timekit")], clock=Clock(now()))
    told(world, "timekit", Step(name="Ada", size=30, version=1))
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE bookings SET timezone = 'Mars/Olympus'")
    with console(settings_of(database_url, password=None, endpoints=world.endpoints)) as browser:
        (row,) = world.rows()
        assert "12:30" in browser.open(f"/bookings/{row['id']}").text
