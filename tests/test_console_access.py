"""Who is let into the console: the password, patience with wrong ones, sessions, forms, and the rule for loopback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from itsdangerous import URLSafeTimedSerializer
from sqlalchemy import Engine, select

from console.web.access import COOKIE, Patience, Sessions, is_own, refusal
from console.web.app import build, create
from console.web.guard import is_here
from console.web.settings import PASSWORD as VARIABLE
from console.web.settings import read
from schemas.endpoints import ConfigError
from tests.browsing import PASSWORD, SECRET, Browser, console, settings_of
from workers.tables import audit

PAGES = ("/", "/deliveries", "/bookings", "/day", "/parked", "/audit")


@pytest.fixture
def browser(database_url: str) -> Iterator[Browser]:
    """In front of a console with a password."""
    with console(settings_of(database_url)) as found:
        yield found


def lines(engine: Engine) -> list[tuple[str, str | None]]:
    """What the audit says, the oldest first."""
    with engine.connect() as connection:
        return [(row.action, row.outcome) for row in connection.execute(select(audit).order_by(audit.c.id))]


# --- the password ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [*PAGES, "/deliveries/x", "/nowhere"])
def test_nothing_is_shown_before_the_login(browser: Browser, path: str) -> None:
    """Not even whether a page is there."""
    answer = browser.client.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/login")


def test_the_password_lets_in_and_leads_to_where_one_wanted_to_go(browser: Browser, engine: Engine) -> None:
    """The audit has it."""
    asked = browser.client.get("/deliveries?state=parked")
    page = browser.open(asked.headers["location"])
    wanted = page.all("input", name="next")[0].attributes["value"]
    answer = browser.send("/login", {"password": PASSWORD, "next": wanted}, of="/login")
    assert (answer.status_code, answer.headers["location"]) == (303, "/deliveries?state=parked")
    for path in PAGES:
        browser.open(path)
    assert lines(engine) == [("login", "done")]


def test_a_wrong_password_does_not(browser: Browser, engine: Engine) -> None:
    answer = browser.log_in(f"{PASSWORD}.")
    assert answer.status_code == 403
    assert "That is not the password." in answer.text
    assert browser.client.get("/").status_code == 303
    assert lines(engine) == [("login-refused", "wrong password")]


def test_after_some_wrong_passwords_the_right_one_has_to_wait(browser: Browser) -> None:
    """Nothing is compared meanwhile."""
    for _ in range(Patience.FREE):
        browser.log_in("wrong")
    answer = browser.log_in()
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert browser.client.get("/").status_code == 303


def test_a_login_leads_to_no_other_host(browser: Browser) -> None:
    answer = browser.send("/login", {"password": PASSWORD, "next": "//elsewhere.example"}, of="/login")
    assert answer.headers["location"] == "/"


def test_who_logs_out_is_out(browser: Browser, engine: Engine) -> None:
    browser.log_in()
    assert browser.send("/logout", {}).headers["location"] == "/login"
    assert browser.client.get("/").status_code == 303
    assert lines(engine) == [("login", "done"), ("logout", "done")]


@pytest.mark.parametrize("path", ["/", "/deliveries", "//elsewhere.example", "/\\elsewhere", "https://x.example", ""])
def test_a_path_of_ours_is_told_from_another_host(path: str) -> None:
    assert is_here(path) == (path in ("/", "/deliveries"))


# --- patience ----------------------------------------------------------------------------------------------------


def test_each_wrong_password_beyond_the_free_ones_doubles_the_wait() -> None:
    """Up to a limit; for that address only."""
    clock = [1000.0]
    patience = Patience(lambda: clock[0])
    waits = []
    for _ in range(Patience.FREE + 10):
        patience.failed("192.0.2.1")
        waits.append(patience.wait("192.0.2.1"))
    assert waits[: Patience.FREE + 3] == [0] * (Patience.FREE - 1) + [2, 4, 8, 16]
    assert max(waits) == Patience.MOST
    assert patience.wait("192.0.2.2") == 0
    clock[0] += Patience.MOST
    assert patience.wait("192.0.2.1") == 0


def test_who_knows_the_password_is_forgiven() -> None:
    patience = Patience(lambda: 0.0)
    for _ in range(Patience.FREE):
        patience.failed("192.0.2.1")
    patience.succeeded("192.0.2.1")
    patience.failed("192.0.2.1")
    assert patience.wait("192.0.2.1") == 0


def test_failures_of_long_ago_do_not_count() -> None:
    clock = [0.0]
    patience = Patience(lambda: clock[0])
    for _ in range(3 * Patience.FREE):
        patience.failed("192.0.2.1")
        clock[0] += Patience.FORGOTTEN + 1
    assert patience.wait("192.0.2.1") == 0


def test_many_addresses_together_have_to_wait_too() -> None:
    """And who has one IPv6 address has its whole network."""
    patience = Patience(lambda: 0.0)
    for number in range(Patience.FREE_ALL):
        patience.failed(f"192.0.2.{number}")
    assert 0 < patience.wait("198.51.100.1") <= Patience.MOST_ALL
    alone = Patience(lambda: 0.0)
    for number in range(Patience.FREE):
        alone.failed(f"2001:db8::{number:x}")
    assert alone.wait("2001:db8::ffff") > 0
    assert alone.wait("2001:db8:1::1") == 0


def test_the_memory_for_addresses_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patience, "KEPT", 10)
    patience = Patience(lambda: 0.0)
    for number in range(100):
        patience.failed(f"192.0.2.{number}")
    assert len(patience._of) == 10


# --- sessions ----------------------------------------------------------------------------------------------------


def test_a_session_is_worth_nothing_under_another_secret_or_password() -> None:
    ours = Sessions(SECRET, PASSWORD)
    cookie = ours.cookie(ours.fresh(known=True))
    assert ours.read(cookie) is not None
    assert Sessions(f"{SECRET}x", PASSWORD).read(cookie) is None
    assert Sessions(SECRET, f"{PASSWORD}x").read(cookie) is None


def test_a_session_ends_after_twelve_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Sessions(SECRET, PASSWORD)
    cookie = ours.cookie(ours.fresh(known=True))
    at = int(time.time())
    for later, is_there in ((12 * 3600 - 5, True), (12 * 3600 + 5, False)):
        monkeypatch.setattr("itsdangerous.TimestampSigner.get_timestamp", lambda signer, later=later: at + later)
        assert (ours.read(cookie) is not None) == is_there


@pytest.mark.parametrize("cookie", ["", "x", "a.b.c", None])
def test_a_forged_cookie_is_no_session(cookie: str | None) -> None:
    assert Sessions(SECRET, PASSWORD).read(cookie) is None
    forged = URLSafeTimedSerializer("guessed", salt="session").dumps(["0" * 32, True])
    assert Sessions(SECRET, PASSWORD).read(str(forged)) is None


def test_a_login_changes_the_session(browser: Browser) -> None:
    """Nobody can hand a session to somebody else and wait for the login."""
    browser.client.get("/login")
    before = browser.client.cookies[COOKIE]
    answer = browser.log_in()
    assert answer.cookies[COOKIE] != before
    ours = Sessions(SECRET, PASSWORD)
    sessions = [ours.read(cookie) for cookie in (before, answer.cookies[COOKIE])]
    assert sessions[0] is not None
    assert sessions[1] is not None
    assert sessions[0].id != sessions[1].id
    assert [session.known for session in sessions if session] == [False, True]


def test_the_cookie_is_for_the_browser_alone(browser: Browser) -> None:
    """And travels encrypted where the page does."""
    plain = browser.client.get("/login").headers["set-cookie"]
    assert all(word in plain for word in ("HttpOnly", "SameSite=Lax", "Path=/", "Max-Age=43200"))
    assert "Secure" not in plain
    browser.client.cookies.clear()
    assert "; Secure" in browser.client.get("/login", headers={"x-forwarded-proto": "https"}).headers["set-cookie"]


# --- forms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", ["", "0" * 64, None])
def test_a_form_without_its_token_does_nothing(browser: Browser, engine: Engine, token: str | None) -> None:
    browser.log_in()
    fields = {"choose": "filter", "state": "parked", **({} if token is None else {"token": token})}
    answer = browser.client.post("/deliveries/retry", data=fields, headers={"origin": browser.origin})
    assert answer.status_code == 403
    assert "too old" in answer.text
    assert lines(engine) == [("login", "done")]


def test_a_token_of_another_session_is_none(browser: Browser) -> None:
    token = Sessions(SECRET, PASSWORD).token(Sessions(SECRET, PASSWORD).fresh(known=True))
    browser.log_in()
    fields = {"choose": "filter", "state": "parked", "token": token}
    assert browser.client.post("/deliveries/retry", data=fields, headers={"origin": browser.origin}).status_code == 403


@pytest.mark.parametrize("origin", ["https://elsewhere.example", "null", ""])
def test_a_form_from_elsewhere_does_nothing(browser: Browser, engine: Engine, origin: str) -> None:
    """Also with the right token, and also where it does not say where it comes from."""
    browser.log_in()
    answer = browser.send("/deliveries/retry", {"choose": "filter", "state": "parked"}, origin=origin)
    assert answer.status_code == 403
    assert "does not come from a page of the console" in answer.text
    assert lines(engine) == [("login", "done")]


@pytest.mark.parametrize(
    ("origin", "host", "own"),
    [
        ("http://localhost:8001", "localhost:8001", True),
        ("https://console.example", "Console.Example", True),
        ("http://localhost:8002", "localhost:8001", False),
        ("null", "localhost:8001", False),
        (None, "localhost:8001", False),
        ("", "", False),
        ("http://[", "[", False),
    ],
)
def test_where_a_form_comes_from(origin: str | None, host: str, own: bool) -> None:
    assert is_own(origin, host) is own


def test_a_form_that_is_too_large_is_not_read(browser: Browser) -> None:
    browser.log_in()
    answer = browser.send("/deliveries/retry", {"id": "x" * 400_000})
    assert answer.status_code == 413


def test_a_form_can_be_nonsense(browser: Browser) -> None:
    browser.log_in()
    headers = {"origin": browser.origin, "content-type": "application/x-www-form-urlencoded"}
    for content in (b"\xff\xfe", b"&".join([b"id=1"] * 3000), b""):
        assert browser.client.post("/deliveries/retry", content=content, headers=headers).status_code in (400, 403)


def test_what_changes_something_is_no_link(browser: Browser) -> None:
    """A GET does nothing: to the one there is no page, and `retry` is no delivery's id."""
    browser.log_in()
    assert browser.client.get("/logout").status_code == 405
    assert browser.client.get("/deliveries/retry").status_code == 404


def test_a_page_that_refreshes_itself_is_told_when_the_session_is_over(browser: Browser) -> None:
    """It loads itself anew, and so comes to the login."""
    answer = browser.client.get("/", headers={"hx-request": "true"})
    assert (answer.status_code, answer.headers["hx-refresh"], answer.text) == (401, "true", "")


# --- without a password --------------------------------------------------------------------------------------------


def asked(app: Any, *, client: str, headers: dict[str, str], server: str = "127.0.0.1") -> httpx.Response:
    """What the app answers to somebody at that address."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 50000))
        async with httpx.AsyncClient(transport=transport, base_url=f"http://{server}:8001") as browser:
            return await browser.get("/", headers=headers)

    return asyncio.run(ask())


def test_without_a_password_this_machine_needs_none(database_url: str) -> None:
    with console(settings_of(database_url, password=None)) as browser:
        page = browser.open("/")
        assert page.all("form", action="/logout") == []
        assert browser.client.get("/login").headers["location"] == "/"


@pytest.mark.parametrize(
    ("client", "server", "headers"),
    [
        ("203.0.113.9", "127.0.0.1", {}),
        ("127.0.0.1", "203.0.113.1", {"host": "localhost:8001"}),
        ("127.0.0.1", "127.0.0.1", {"host": "rebound.example"}),
        ("127.0.0.1", "127.0.0.1", {"host": ""}),
        ("127.0.0.1", "127.0.0.1", {"x-forwarded-for": "203.0.113.9"}),
        ("127.0.0.1", "127.0.0.1", {"forwarded": "for=203.0.113.9"}),
    ],
)
def test_without_a_password_nobody_else_is_answered(
    database_url: str, client: str, server: str, headers: dict[str, str]
) -> None:
    """From elsewhere, to elsewhere, by another name, through a proxy. The answer says what to set."""
    app = build(settings_of(database_url, password=None))
    answer = asked(app, client=client, headers=headers, server=server)
    assert answer.status_code == 403
    assert VARIABLE in answer.text
    assert "set-cookie" not in answer.headers


def test_with_a_password_others_are_asked_for_it(database_url: str) -> None:
    app = build(settings_of(database_url))
    answer = asked(app, client="203.0.113.9", headers={"host": "console.example"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.parametrize(
    ("client", "server", "host"),
    [
        ("127.0.0.1", "127.0.0.1", "localhost:8001"),
        ("127.8.8.8", "127.0.0.1", "127.0.0.1"),
        ("::1", "::1", "[::1]:8001"),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.1", "LOCALHOST"),
    ],
)
def test_this_machine_is_known_by_all_its_names(client: str, server: str, host: str) -> None:
    assert refusal(client, server, host, ()) is None


# --- the environment -----------------------------------------------------------------------------------------------

ENVIRONMENT = {"DATABASE_URL": "postgresql://localhost/x", "RESERVOIR_SECRET": SECRET}


def test_a_short_password_is_none(tmp_path: Any) -> None:
    file = tmp_path / "reservoir.toml"
    file.write_text('[endpoints.arcade]\nprovider = "synthesisvr"\ntimezone = "Europe/Vienna"\n')
    given = {**ENVIRONMENT, "RESERVOIR_CONFIG": str(file)}
    assert read(given).password is None
    assert read({**given, VARIABLE: PASSWORD}).password == PASSWORD
    with pytest.raises(ConfigError, match=f"{VARIABLE}: is too short"):
        read({**given, VARIABLE: "short"})
    with pytest.raises(ConfigError, match="DATABASE_URL"):
        read({**given, "DATABASE_URL": ""})


def test_settings_show_no_secret(database_url: str) -> None:
    shown = repr(replace(settings_of(database_url), redis_url="redis://:hidden@host"))
    assert not any(secret in shown for secret in (SECRET, PASSWORD, "hidden", database_url))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of this process is pytest's."""
    monkeypatch.setattr("console.web.app.configure", lambda process: None)


@pytest.mark.usefixtures("in_this_process")
def test_the_console_is_made_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """As uvicorn does it."""
    file = tmp_path / "reservoir.toml"
    file.write_text('[endpoints.arcade]\nprovider = "synthesisvr"\ntimezone = "Europe/Vienna"\n')
    for name, value in {**ENVIRONMENT, "RESERVOIR_CONFIG": str(file), VARIABLE: PASSWORD}.items():
        monkeypatch.setenv(name, value)
    assert asked(create(), client="203.0.113.9", headers={}).headers["location"] == "/login"


@pytest.mark.usefixtures("in_this_process")
def test_a_bad_configuration_ends_the_process_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("RESERVOIR_CONFIG", str(tmp_path / "none.toml"))
    with pytest.raises(SystemExit, match=r"reservoir: .*none\.toml: no such file"):
        create()
