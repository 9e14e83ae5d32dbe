"""The manners of the simulated SynthesisVR, Timekit and Checkfront, over real HTTP.

What they send is looked at byte by byte; how Reservoir reads it is not asked here.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from random import Random
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

import httpx
import pytest
import uvicorn
from defusedxml import ElementTree
from starlette.routing import Router

from simulators.checkfront import Checkfront
from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.synthesisvr import SynthesisVR
from simulators.timekit import Hook, Timekit
from simulators.venue import Post, Venue, Weather

START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
THREE = [SynthesisVR, Timekit, Checkfront]


# --- a tiny receiver -----------------------------------------------------------------------------------------


@dataclass
class Got:
    """One request as it came in; `cut` is set when the sender closed before it was answered."""

    method: str
    headers: dict[str, str]
    body: bytes
    at: float
    cut: float | None = None
    done: float | None = None


Answer = Callable[[int], int | None]
"""From the number of the request (0 is the first) to a status; None never answers."""


@dataclass
class Receiver:
    answer: Answer = lambda number: 200
    slow: float = 0.0
    got: list[Got] = field(default_factory=list)
    url: str = ""
    under_way: int = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.under_way += 1
        await self.take(scope, receive, send)
        self.under_way -= 1

    async def take(self, scope: Any, receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        got = Got(method=scope["method"], headers=headers, body=b"", at=time.monotonic())
        more = True
        while more:
            message = await receive()
            got.body, more = got.body + message.get("body", b""), message.get("more_body", False)
        self.got.append(got)
        status = self.answer(len(self.got) - 1)
        if status is None:
            while (await receive())["type"] != "http.disconnect":
                pass
            got.cut = time.monotonic()
            return
        await asyncio.sleep(self.slow)
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        got.done = time.monotonic()
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def listening(receiver: Receiver) -> AsyncIterator[Receiver]:
    """Started and stopped by hand: uvicorn's own way waits a tenth of a second here and there."""
    config = uvicorn.Config(receiver, log_config=None, lifespan="off", ws="none")
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        receiver.url = f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
        await server.startup(sockets=[listener])
        try:
            yield receiver
            async with asyncio.timeout(5):
                while receiver.under_way:
                    await asyncio.sleep(0.005)
        finally:
            for connection in list(server.server_state.connections):
                connection.shutdown()
            for listening_on in server.servers:
                listening_on.close()


def venue_of(kind: type[Venue], *, seed: int = 7, speed: float = 100_000.0, url: str = "", **more: Any) -> Any:
    return kind(endpoint="a-venue", hook_url=url, ledger=Ledger(), clock=Clock(START, speed), rng=Random(seed), **more)


async def day_of(kind: type[Venue], bookings: int, receiver: Receiver | None = None, **more: Any) -> tuple[Any, Any]:
    async with listening(receiver or Receiver()) as heard, venue_of(kind, url=heard.url, **more) as venue:
        await venue.busy_day(bookings)
    return venue, heard


@cache
def whole_day(kind: type[Venue]) -> tuple[Any, Receiver]:
    """A day in which every story happens; Checkfront writes JSON, so that it can be read here."""
    more = {"syntax": "json"} if kind is Checkfront else {}
    return asyncio.run(day_of(kind, 26, **more))


def with_api(
    kind: type[Venue], use: Callable[[Any, httpx.AsyncClient], Coroutine[Any, Any, None]], **more: Any
) -> None:
    """Runs `use(venue, client)`, with a few bookings in the venue and the client in front of its API."""

    async def run() -> None:
        async with listening(Receiver()) as heard, venue_of(kind, url=heard.url, **more) as venue:
            await venue.busy_day(6)
            transport = httpx.ASGITransport(Router(venue.routes()))
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                await use(venue, client)
            await venue.settled()

    asyncio.run(run())


# --- all three -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", THREE)
def test_the_same_seed_makes_the_same_day(kind: type[Venue]) -> None:
    truths = [asyncio.run(day_of(kind, 5, seed=seed))[0].ledger.truth for seed in (3, 3, 4)]
    assert truths[0] == truths[1]
    assert truths[0] != truths[2]


@pytest.mark.parametrize("kind", THREE)
def test_a_day_ends_when_all_is_sent_and_everything_was_taken(kind: type[Venue]) -> None:
    venue, heard = whole_day(kind)
    assert len(heard.got) == len(venue.ledger.sent) >= 25
    assert all(sent.acked for sent in venue.ledger.sent)
    assert len(venue.ledger.truth) >= 25
    assert {row["status"] for row in venue.ledger.truth.values()} >= {"confirmed", "cancelled"}


@pytest.mark.parametrize("kind", THREE)
def test_settings_name_the_provider_and_hold_no_secret(kind: type[Venue]) -> None:
    venue = venue_of(kind)
    settings = venue.settings("http://127.0.0.1:1/base")
    assert settings["provider"] == kind.provider
    assert settings["api_url"].startswith("http://127.0.0.1:1/base")
    assert not any(secret in json.dumps(settings) for secret in venue.secrets().values())


@pytest.mark.parametrize("kind", [SynthesisVR, Checkfront])
def test_without_the_api_nothing_is_known_but_what_the_webhook_says(kind: type[Venue]) -> None:
    venue, _ = asyncio.run(day_of(kind, 3, api=False))
    assert venue.secrets() == {}
    if kind is SynthesisVR:
        columns = {"status", "quantity", "resource_name", "customer_id"}
        assert {column for row in venue.ledger.truth.values() for column in row} == columns


# --- SynthesisVR ---------------------------------------------------------------------------------------------


def test_synthesisvr_hangs_up_after_two_seconds_and_never_sends_again() -> None:
    venue, heard = asyncio.run(day_of(SynthesisVR, 1, Receiver(answer=lambda number: None)))
    (only,), (sent,) = heard.got, venue.ledger.sent
    assert only.cut is not None
    assert 1.9 < only.cut - only.at < 2.6
    assert (sent.status, sent.late) == (None, True)
    assert [row["status"] for row in venue.ledger.truth.values()] == ["confirmed"], "lost, and true all the same"


def test_synthesisvr_sends_arrays_bare_objects_and_walk_ins() -> None:
    _, heard = whole_day(SynthesisVR)
    bodies = [json.loads(got.body) for got in heard.got]
    assert {type(body) for body in bodies} == {list, dict}
    assert any(len(body) > 1 for body in bodies if isinstance(body, list))
    elements = [element for body in bodies for element in (body if isinstance(body, list) else [body])]
    assert {element["action"] for element in elements} == {"create", "delete"}
    assert {element.get("customerid", "missing") for element in elements} >= {"missing", None, 0}


@pytest.mark.parametrize(
    ("moves", "actions", "uuids"),
    [
        ("same-uuid", [["delete", "create"]], 1),
        ("same-uuid-two-posts", [["delete"], ["create"]], 1),
        ("new-uuid", [["delete", "create"]], 2),
        ("new-uuid-two-posts", [["delete"], ["create"]], 2),
        ("silent", [], 1),
    ],
)
def test_synthesisvr_moves_as_it_was_switched(moves: str, actions: list[list[str]], uuids: int) -> None:
    async def run() -> None:
        async with listening(Receiver()) as heard, venue_of(SynthesisVR, url=heard.url, moves=moves, bare=0) as venue:
            await venue.busy_day(1)
            assert len(venue.calendar) == 1, "the seed's first party stays"
            before, known = len(heard.got), len(venue.ledger.truth)
            transport = httpx.ASGITransport(Router(venue.routes()))
            async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
                path = f"/data/sessions/{venue.key}/update/{next(iter(venue.calendar))}"
                answer = await client.post(path, data={"date": "2026-12-24", "time": "18:30", "people": "2"})
            assert answer.status_code == 200
            await venue.settled()
            said = [[element["action"] for element in json.loads(got.body)] for got in heard.got[before:]]
            assert said == actions
            assert len(venue.ledger.truth) == known - 1 + uuids
            (session,) = venue.calendar.values()
            moved = venue.ledger.truth[venue.endpoint, session.uuid]
            assert moved["starts_at"].isoformat() == "2026-12-24T18:30:00+01:00"
            assert moved["quantity"] == 2

    asyncio.run(run())


def test_synthesisvr_answers_for_its_sessions_and_customers() -> None:
    async def use(venue: SynthesisVR, client: httpx.AsyncClient) -> None:
        uuid, session = next((uuid, s) for uuid, s in venue.calendar.items() if s.customer)
        base = f"/data/sessions/{venue.key}/json"

        async def found(search: str, span: str = "1 year") -> Any:
            answer = (await client.get(f"{base}/{span}/{search}")).json()["sessions"]
            assert isinstance(answer, dict)
            return {row["uuid"]: row for row in answer.values()}

        day, customer = session.starts.date(), session.customer
        assert customer is not None
        row = (await found(f"uuid:{uuid}"))[uuid]
        assert row["start_time"] == f"{session.starts:%Y-%m-%dT%H:%M:%S}"
        assert row["stations"] == session.stations
        assert uuid in await found(f"date={day} uuid:{uuid}", "1 day")
        assert uuid in await found(f"date>{day} date<{day}", "1 month 5 days")
        assert uuid in await found("crdate=2026-11-20 upcoming")
        assert uuid in await found(f"date=2026-11-20 {customer.fullname.split()[0]} customer:{customer.id}")
        assert uuid not in await found("date=2000-01-01", "2 days")
        assert not await found("today nobody-of-that-name")
        assert "phone" in (await found(f"uuid:{uuid} phone"))[uuid]
        assert (await client.get(f"{base}/1 year/{uuid}")).status_code == 400
        wrong = await client.get("/data/sessions/another-key/json/1 day/today")
        assert (wrong.status_code, "error" in wrong.json()) == (403, True)

        people = f"/data/customers/{venue.key}"
        hits = (await client.get(f"{people}/search/{customer.id}")).json()["customers"].values()
        assert len(hits) > 1, "the id is also found in somebody's phone"
        assert customer.email in {hit["email"] for hit in hits}
        assert len((await client.get(f"{people}/json")).json()["customers"]) == len(venue.customers)

        assert (await client.post(f"/data/sessions/{venue.key}/delete/{uuid}")).status_code == 200
        assert uuid not in await found(f"uuid:{uuid}")
        assert venue.ledger.truth[venue.endpoint, uuid]["status"] == "cancelled"

    with_api(SynthesisVR, use)


# --- Timekit -------------------------------------------------------------------------------------------------


def deliver_one(receiver: Receiver, **more: Any) -> tuple[Any, Receiver, bool]:
    async def run() -> tuple[Any, Receiver, bool]:
        async with listening(receiver) as heard, venue_of(Timekit, url=heard.url, least_gap=0.01, **more) as venue:
            post = Post(about="a booking", headers={"content-type": "application/json"}, body=b"{}")
            return venue, heard, await venue.deliver(post)

    return asyncio.run(run())


@pytest.mark.parametrize("status", [500, 404, 202, 302])
def test_timekit_tries_three_times_more_and_gives_up(status: int) -> None:
    venue, heard, taken = deliver_one(Receiver(answer=lambda number: status))
    assert not taken
    assert len(heard.got) == 4
    assert venue.failed == ["a booking"]


@pytest.mark.parametrize("status", [200, 201, 204])
def test_timekit_is_content_with_three_statuses(status: int) -> None:
    venue, heard, taken = deliver_one(Receiver(answer=lambda number: 500 if number < 2 else status))
    assert taken
    assert len(heard.got) == 3
    assert venue.failed == []


@pytest.mark.parametrize(
    ("signing", "matches"),
    [("right", True), ("wrong", False), ("reserialised", False), ("missing", None), ("off", None)],
)
def test_timekit_signs_the_bytes_that_it_sends(signing: str, matches: bool | None) -> None:
    venue, heard = asyncio.run(day_of(Timekit, 3, signing=signing))
    for got in heard.got:
        given = got.headers.get("x-timekit-signature")
        right = hmac.new(venue.webhook_secret.encode(), got.body, hashlib.sha256).hexdigest()
        assert (None if given is None else given == right) is matches
    assert bool(venue.ledger.truth) is (signing in ("right", "off"))
    assert ("webhook_secret" in venue.secrets()) is (signing != "off")


def test_timekit_writes_json_as_php_does() -> None:
    _, heard = whole_day(Timekit)
    bodies = [got.body for got in heard.got if b'"event"' in got.body]
    assert all(b"\\/" in body and b": " not in body.replace(b": \\", b"") for body in bodies)
    assert all(body.isascii() for body in bodies)
    stamps = {json.loads(body)["updated_at"][19:] for body in bodies}
    assert stamps == {"+0000", "+0100", "+01:00"}
    assert json.loads(bodies[0])["customers"] == [] or json.loads(bodies[0])["customers"][0]["meta"] == "{}"


def test_timekit_walks_its_graphs_and_repeats_itself() -> None:
    venue, heard = whole_day(Timekit)
    bodies = [json.loads(got.body) for got in heard.got]
    walked = {(body["graph"], body["state"]) for body in bodies}
    assert {graph for graph, _ in walked} == {
        "instant",
        "instant_payment",
        "confirm_decline",
        "group_owner",
        "group_customer",
        "group_customer_payment",
        "reservation",
    }
    assert {"unpaid", "expired", "declined", "completed", "cancelled_by_owner"} <= {state for _, state in walked}
    seconds = Counter((body["id"], datetime.fromisoformat(body["updated_at"])) for body in map(dict, bodies))
    assert max(Counter(got.body for got in heard.got).values()) > 1, "some requests come twice"
    assert max(seconds.values()) > 1, "some transitions share a second"
    owners = {body["id"] for body in bodies if body["graph"] == "group_owner"}
    assert not owners & {external_id for _, external_id in venue.ledger.truth}


def test_timekit_calls_only_the_hooks_that_are_set_by_their_method() -> None:
    hooks = [Hook(graph="instant", state="confirmed", method="PUT")]
    venue, heard = asyncio.run(day_of(Timekit, 23, hooks=hooks, doubled=()))
    assert {got.method for got in heard.got} == {"PUT"}
    assert {json.loads(got.body)["state"] for got in heard.got} == {"confirmed"}
    assert {row["provider_status"] for row in venue.ledger.truth.values()} == {"confirmed"}


def basic(user: str, password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_timekit_answers_for_its_bookings() -> None:
    async def use(venue: Timekit, client: httpx.AsyncClient) -> None:
        client.headers.update(basic("", venue.api_key))
        page = (await client.get("/v2/bookings")).json()
        assert (page["total"], page["per_page"]) == (len(venue.bookings), 50)
        assert set(page["data"][0]) == {"id", "state", "graph", "completed", "created_at", "updated_at"}
        small = (await client.get("/v2/bookings?limit=2&page=2&include=customers,attributes")).json()
        assert (small["from"], small["to"], small["current_page"]) == (3, 4, 2)
        assert "customers" in small["data"][0]

        asked = {"graph": "instant", "start": "2026-12-01T10:00:00+01:00", "end": "2026-12-01T11:00:00+01:00"}
        made = await client.post("/v2/bookings", json=asked)
        assert made.status_code == 201
        one = made.json()["data"]
        assert (await client.get(f"/v2/bookings/{one['id']}")).json()["data"]["state"] == "confirmed"
        found = (await client.get("/v2/bookings", params={"search": f"state:confirmed;project.id:{PROJECT_ID}"})).json()
        assert one["id"] in {row["id"] for row in found["data"]}
        times = {"start": "2026-12-02T10:00:00+01:00", "end": "2026-12-02T11:00:00+01:00"}
        twin = (await client.post(f"/v2/bookings/{one['id']}/reschedule", json=times)).json()["data"]
        assert twin["id"] != one["id"]
        assert venue.ledger.truth[venue.endpoint, one["id"]]["status"] == "cancelled"
        done = (await client.put(f"/v2/bookings/{twin['id']}/cancel")).json()["data"]
        assert (done["state"], done["completed"]) == ("cancelled", True)

        again = await client.put(f"/v2/bookings/{twin['id']}/cancel")
        assert (again.status_code, set(again.json())) == (422, {"errors", "action"})
        invalid = await client.post("/v2/bookings", json={"graph": "instant"})
        assert (invalid.status_code, set(invalid.json()["errors"])) == (422, {"start", "end"})
        missing = await client.get("/v2/bookings/nothing")
        assert (missing.status_code, set(missing.json())) == (404, {"error", "model"})
        assert (await client.get("/v2/bookings", headers=basic("user", venue.api_key))).status_code == 401

    with_api(Timekit, use)


PROJECT_ID = "5e2f0c11-8a4e-4c5e-9d3f-0a1b2c3d4e5f"


@pytest.mark.parametrize(("test_account", "status"), [(False, 503), (True, 429)])
def test_timekit_throttles_by_the_kind_of_account(test_account: bool, status: int) -> None:
    async def use(venue: Timekit, client: httpx.AsyncClient) -> None:
        venue.clock.speed = 1.0
        client.headers.update(basic("", venue.api_key))
        answers = [await client.get("/v2/bookings") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, status]
        assert ("timekit-testmode" in answers[0].headers) is test_account
        assert venue.api_key.startswith("test_" if test_account else "live_")

    with_api(Timekit, use, test_account=test_account, calls=3)


# --- Checkfront ----------------------------------------------------------------------------------------------


def test_checkfront_switches_the_hook_off_after_five_failures_in_a_row() -> None:
    async def run() -> None:
        receiver = Receiver(answer=lambda number: 500)
        async with listening(receiver) as heard, venue_of(Checkfront, url=heard.url) as venue:
            await venue.busy_day(4)
            assert venue.hook_off
            assert 5 <= len(heard.got) <= 10, "what was under way beside the fifth is sent, and nothing after it"
            before = len(heard.got)
            await venue.busy_day(4)
            assert len(heard.got) == before
            assert len(venue.ledger.truth) == 8, "the bookings go on, untold"

    asyncio.run(run())


def test_checkfront_counts_again_from_zero_after_a_success() -> None:
    async def run() -> None:
        receiver = Receiver(answer=lambda number: 200 if number == 4 else 503)
        async with listening(receiver) as heard, venue_of(Checkfront, url=heard.url) as venue:
            taken = [await venue.deliver(Post(about="a notice", body=b"{}")) for _ in range(12)]
            assert taken.index(True) == 4
            assert len(heard.got) == 10
            assert venue.hook_off
            venue.switch_on()
            await venue.deliver(Post(about="a notice", body=b"{}"))
            assert len(heard.got) == 11

    asyncio.run(run())


def test_checkfront_tries_again_only_where_that_is_switched_on() -> None:
    async def run() -> None:
        receiver = Receiver(answer=lambda number: 500 if number < 2 else 200)
        async with (
            listening(receiver) as heard,
            venue_of(Checkfront, url=heard.url, retries=2, least_gap=0.01) as venue,
        ):
            assert await venue.deliver(Post(about="a notice", body=b"{}"))
            assert len(heard.got) == 3
            assert venue.failures_in_a_row == 0

    asyncio.run(run())


def booking_bodies(heard: Receiver) -> list[Any]:
    return [json.loads(got.body)["booking"] for got in heard.got if b'"booking":' in got.body]


def test_checkfront_tells_a_change_of_status_twice() -> None:
    _, heard = whole_day(Checkfront)
    told = Counter((body["code"], body["status"]) for body in booking_bodies(heard))
    assert min(told.values()) >= 2


def test_checkfront_has_one_item_as_object_several_as_array_and_nothing_as_empty_object() -> None:
    venue, heard = whole_day(Checkfront)
    bodies = booking_bodies(heard)
    items = [body["order"]["items"]["item"] for body in bodies]
    assert {type(item) for item in items} == {dict, list}
    lines = [line for item in items for line in (item if isinstance(item, list) else [item])]
    assert any("." in line["@attributes"]["line_id"] for line in lines)
    assert {type(body["tid"]) for body in bodies} == {dict, str}
    assert all(body["customer"]["address"] == {} for body in bodies)
    assert {name for body in bodies for name in body["customer"] if name.endswith("name")} == {"name", "customer_name"}
    orders = [body["order"] for body in bodies]
    assert any(o["tax_total"] == "0.00" and o["taxes"]["tax"]["amount"] != "0.00" for o in orders)
    assert {body["status"] for body in bodies} >= {"CHKIN", "NOSHW", "VOID", "STOP", "PART", "HOLD", "WAIT"}
    statuses = {row["provider_status"]: row["status"] for row in venue.ledger.truth.values()}
    assert (statuses["CHKIN"], statuses["NOSHW"]) == ("confirmed", "unknown")


def codes(heard: Receiver, read: Callable[[bytes], str | None]) -> set[str | None]:
    return {read(got.body) for got in heard.got} - {None}


def code_in_xml(body: bytes) -> str | None:
    root = ElementTree.fromstring(body)
    assert (root.tag, root.get("host")) == ("checkfront-notify", "harbour-tours.example")
    return root.findtext("booking/code")


def code_in_form(body: bytes) -> str | None:
    fields = dict(parse_qsl(body.decode(), keep_blank_values=True))
    return fields.get("booking[code]")


def code_in_json(body: bytes) -> str | None:
    return json.loads(body).get("booking", {}).get("code")


@pytest.mark.parametrize(("syntax", "read"), [("json", code_in_json), ("xml", code_in_xml), ("form", code_in_form)])
def test_checkfront_says_the_same_in_each_syntax(syntax: str, read: Callable[[bytes], str | None]) -> None:
    venue, heard = asyncio.run(day_of(Checkfront, 4, syntax=syntax))
    assert codes(heard, read) == {row["reference"] for row in venue.ledger.truth.values()}


def test_checkfront_sends_payments_by_code_and_sometimes_before_the_booking() -> None:
    venue, heard = whole_day(Checkfront)
    bodies = [json.loads(got.body) for got in heard.got]
    paid: dict[str, set[str]] = {}
    early = set()
    seen: set[str] = set()
    for body in bodies:
        if body.get("type") == "transaction":
            paid.setdefault(body["transaction"]["booking_id"], set()).add(body["transaction"]["transaction_id"])
            early |= {body["transaction"]["booking_id"]} - seen
        elif "booking" in body:
            seen.add(body["booking"]["code"])
    assert paid == {code: set(ids) for code, ids in venue.payments.items()}
    assert early
    assert {body.get("type") for body in bodies} >= {"item", "rate"}


def test_checkfront_without_keys_never_overtakes_itself_within_a_booking() -> None:
    receiver = Receiver(slow=0.02)
    weather = Weather(reorder=1.0, duplicate=0.5)
    _, heard = asyncio.run(day_of(Checkfront, 13, receiver, syntax="json", api=False, weather=weather))
    last: dict[str, Got] = {}
    for got in sorted(heard.got, key=lambda got: got.at):
        code = code_in_json(got.body)
        before = last.get(code) if code else None
        if before and before.body != got.body:
            assert before.done is not None
            assert before.done <= got.at
        if code:
            last[code] = got


def test_checkfront_speaks_the_shape_of_the_pull_request_when_told_to() -> None:
    venue, heard = asyncio.run(day_of(Checkfront, 13, syntax="pull-request", events=("modified", "status", "payment")))
    bodies = [json.loads(got.body) for got in heard.got]
    assert {body["event"] for body in bodies} == {"booking.create", "booking.update", "booking.cancel"}
    assert {body["booking"]["status"] for body in bodies} >= {"CONFIRMED", "PENDING", "CANCELLED"}
    assert venue.secrets() == {}
    assert all("starts_at" not in row for row in venue.ledger.truth.values())


def test_checkfront_answers_by_other_names() -> None:
    async def use(venue: Checkfront, client: httpx.AsyncClient) -> None:
        client.headers.update(basic(venue.api_key, venue.api_secret))
        assert (await client.get("/api/3.0/ping")).json()["pong"]["timezone"] == "America/Vancouver"
        index = (await client.get("/api/3.0/booking/index", params={"limit": 2, "page": 2})).json()
        assert {name: index["request"][name] for name in ("page", "pages", "total_records")} == {
            "page": 2,
            "pages": 3,
            "total_records": 6,
        }
        number, row = next(iter(index["booking/index"].items()))
        assert "customer_phone" not in row
        for key in (number, row["code"]):
            booking = (await client.get(f"/api/3.0/booking/{key}")).json()["booking"]
            assert (booking["id"], booking["status_id"]) == (row["code"], row["status_id"])
            assert isinstance(booking["items"]["1"], dict)
        since = {"last_modified": f">{int(venue.clock.now().timestamp()) + 60}"}
        assert (await client.get("/api/3.0/booking/index", params=since)).json()["booking/index"] == {}
        venue.bookings[int(number)].visible = False
        hidden = await client.get(f"/api/3.0/booking/{number}")
        assert (hidden.status_code, hidden.json()["request"]["status"]) == (404, "ERROR")
        refused = await client.get("/api/3.0/ping", headers=basic("no", "one"))
        assert (refused.status_code, "request" in refused.json()) == (401, False)

    with_api(Checkfront, use)


def test_checkfront_replaces_the_refresh_token_at_each_use() -> None:
    async def use(venue: Checkfront, client: httpx.AsyncClient) -> None:
        venue.clock.speed = 1.0
        asked = {"client_id": venue.client_id, "redirect_uri": "http://us/back", "state": "s", "response_type": "code"}
        back = await client.get("/oauth/", params=asked)
        returned = parse_qs(urlsplit(back.headers["location"]).query)
        assert returned["state"] == ["s"]

        async def token(**form: str) -> httpx.Response:
            return await client.post("/oauth/token/", data=form, headers=basic(venue.client_id, venue.client_secret))

        first = (await token(grant_type="authorization_code", code=returned["code"][0])).json()
        assert first["expires_in"] == 14000
        second = await token(grant_type="refresh_token", refresh_token=first["refresh_token"])
        bearer = {"authorization": f"Bearer {second.json()['access_token']}"}
        assert (await client.get("/api/3.0/ping", headers=bearer)).status_code == 200
        used = await token(grant_type="refresh_token", refresh_token=first["refresh_token"])
        assert (used.status_code, used.json()) == (400, {"error": "invalid_grant"})

    with_api(Checkfront, use)


def test_checkfront_throttles_with_a_time_to_wait() -> None:
    async def use(venue: Checkfront, client: httpx.AsyncClient) -> None:
        venue.clock.speed = 1.0
        client.headers.update(basic(venue.api_key, venue.api_secret))
        answers: Sequence[httpx.Response] = [await client.get("/api/3.0/ping") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60

    with_api(Checkfront, use, calls_per_minute=2)
