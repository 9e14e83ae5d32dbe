"""The manners of the simulated providers, over real HTTP: what the demo and the fault runs rely on."""

from __future__ import annotations

import asyncio
import io
import json
import tomllib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from simulators.__main__ import _parser, _play
from simulators.clock import Clock, plan_day
from simulators.ledger import Ledger
from simulators.lockme import Lockme
from simulators.reservekit import SERVICES, ReserveKit
from simulators.server import Server, build, discover, mount_path, serve
from simulators.venue import Venue, Weather

START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
FAST = 40_000.0


# --- a receiver, and a venue that is connected to it ---------------------------------------------------------


@dataclass
class Receiver:
    """Takes what a venue sends, and answers with the given statuses in turn; the last one serves for the rest."""

    statuses: list[int] = field(default_factory=lambda: [200])
    slow: float = 0.0
    then: Callable[[Request], Awaitable[None]] | None = None
    """What the receiver does about a request before it answers."""
    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    async def take(self, request: Request) -> Response:
        self.times.append(asyncio.get_running_loop().time())
        self.requests.append((request.method, dict(request.headers), await request.body()))
        status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
        await asyncio.sleep(self.slow)
        if self.then:
            await self.then(request)
        return Response(status_code=status)

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, _, body in self.requests]

    @property
    def message_ids(self) -> list[str]:
        return [headers["x-messageid"] for _, headers, _ in self.requests]


@dataclass
class Play:
    """A venue, its API as a client sees it, and the receiver of its webhooks."""

    venue: Any
    api: httpx.AsyncClient
    receiver: Receiver
    ledger: Ledger
    base_url: str

    async def take(self, request: Request) -> None:
        """Acknowledges a Lockme message, as somebody does who is done with it."""
        await self.api.post(f"/message/{request.headers['x-messageid']}")


def make(cls: type[Venue], *, seed: int = 7, speed: float = FAST, weather: Weather | None = None, **more: Any) -> Any:
    endpoint = more.pop("endpoint", f"{cls.provider}-venue")
    clock = Clock(START, speed)
    return cls(endpoint=endpoint, hook_url="", ledger=Ledger(), clock=clock, rng=Random(seed), weather=weather, **more)


@asynccontextmanager
async def playing(cls: type[Venue], receiver: Receiver | None = None, **more: Any) -> AsyncIterator[Play]:
    venue, receiver = make(cls, **more), receiver or Receiver()
    app = build([venue])
    app.router.routes.append(Route("/hook", receiver.take, methods=["GET", "POST"]))
    async with AsyncExitStack() as stack:
        base_url = f"http://127.0.0.1:{await stack.enter_async_context(serve(app))}"
        venue.hook_url = f"{base_url}/hook"
        await stack.enter_async_context(venue)
        api = await stack.enter_async_context(client(venue, base_url + mount_path(venue)))
        yield Play(venue=venue, api=api, receiver=receiver, ledger=venue.ledger, base_url=base_url)


def client(venue: Venue, api_url: str) -> httpx.AsyncClient:
    version = "/v2.4" if isinstance(venue, Lockme) else "/v1"
    secret = next(iter(venue.secrets().values()))
    headers = {"Authorization": f"Bearer {secret}"}
    return httpx.AsyncClient(base_url=api_url + version, headers=headers, trust_env=False, verify=False)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 20))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.005)


# --- the day -------------------------------------------------------------------------------------------------


def test_a_day_tells_each_story_in_order_and_some_of_it_late_or_twice() -> None:
    steps = plan_day(Random(1), [3] * 20)
    assert [step.after for step in steps] == sorted(step.after for step in steps)
    for story in range(20):
        assert [step.place for step in steps if step.story == story] == [0, 1, 2]
    assert any(step.late for step in steps)
    assert any(step.twice for step in steps)


def test_a_request_that_is_held_back_is_overtaken_by_the_next_of_its_story() -> None:
    steps = {(step.story, step.place): step for step in plan_day(Random(1), [2] * 20, reorder=1.0)}
    for story in range(20):
        first, second = steps[story, 0], steps[story, 1]
        assert first.after + first.late > second.after + second.late


# --- what all share ------------------------------------------------------------------------------------------


def test_the_simulators_are_found_by_listing_their_folder() -> None:
    assert {"lockme", "reservekit"} <= set(discover())
    assert all(found.provider == name for name, found in discover().items())


def test_the_command_prints_what_reservoir_must_know_of_each_venue(capsys: pytest.CaptureFixture[str]) -> None:
    said = io.StringIO()

    def is_told() -> bool:
        said.write(capsys.readouterr().out)
        return "RESERVOIR_LOCKME_VENUE_ACCESS_TOKEN=" in said.getvalue()

    async def scene() -> None:
        played = asyncio.create_task(_play(_parser().parse_args(list(discover()))))
        await until(is_told)
        played.cancel()
        await asyncio.gather(played, return_exceptions=True)

    run(scene)
    panel, tables = said.getvalue().split("\n", 1)
    assert panel.startswith("panel: http://127.0.0.1:")
    endpoints = tomllib.loads(tables)["endpoints"]
    assert {table["provider"] for table in endpoints.values()} == set(discover())
    assert "RESERVOIR_LOCKME_VENUE_ACCESS_TOKEN=" in tables


def test_two_venues_of_one_provider_live_side_by_side_and_the_panel_shows_both() -> None:
    async def scene() -> None:
        venues = [make(Lockme, endpoint="north"), make(Lockme, endpoint="south", seed=8)]
        async with Server(venues) as server, client(venues[0], server.api_url(venues[0])) as api:
            assert (await api.get("/test")).json() == "OK"
            assert (await api.get(server.api_url(venues[1]) + "/v2.4/test")).status_code == 401
            panel = (await api.get(server.base_url)).json()
        assert [(venue["endpoint"], venue["hook"]) for venue in panel["venues"]] == [("north", "on"), ("south", "on")]

    run(scene)


def test_the_panel_logs_each_delivery_with_its_status_and_how_long_it_took() -> None:
    async def scene() -> None:
        async with playing(ReserveKit, Receiver(statuses=[503, 200])) as play:
            play.venue.send_test()
            await play.venue.settled()
            panel = (await play.api.get(play.base_url)).json()
        assert panel["venues"][0]["requests"] == 2
        assert [delivery["status"] for delivery in panel["deliveries"]] == [200, 503]
        assert all(delivery["seconds"] > 0 for delivery in panel["deliveries"])

    run(scene)


@pytest.mark.parametrize(
    ("weather", "right"),
    [
        (Weather(api_down=1.0), lambda answer: answer.status_code == 503),
        (Weather(api_garbage=1.0), lambda answer: answer.status_code == 200 and b'"OK"' not in answer.content),
        (Weather(api_slow=1.0, slow_seconds=0.2), lambda answer: answer.elapsed > timedelta(seconds=0.2)),
    ],
    ids=["down", "garbage", "slow"],
)
def test_bad_weather_comes_over_every_api(weather: Weather, right: Callable[[httpx.Response], bool]) -> None:
    async def scene() -> None:
        async with playing(Lockme, weather=weather) as play:
            assert right(await play.api.get("/test"))

    run(scene)


@dataclass
class Day:
    """What a busy day left behind."""

    truth: dict[tuple[str, str], dict[str, Any]]
    receiver: Receiver


def live(cls: type[Venue], seed: int) -> Day:
    receiver, days = Receiver(), []

    async def scene() -> None:
        async with playing(cls, receiver, seed=seed) as play:
            receiver.then = play.take if cls is Lockme else None
            await play.venue.busy_day(16)
            days.append(Day(play.ledger.truth, receiver))

    run(scene)
    return days[0]


live_once = cache(live)


@pytest.mark.parametrize("cls", [Lockme, ReserveKit])
def test_the_same_seed_gives_the_same_day(cls: type[Venue]) -> None:
    assert len(live_once(cls, 7).truth) >= 16
    assert live_once(cls, 7).truth == live(cls, 7).truth
    assert live_once(cls, 7).truth != live_once(cls, 8).truth


@pytest.mark.parametrize("cls", [Lockme, ReserveKit])
def test_a_busy_day_sees_bookings_through_every_status(cls: type[Venue]) -> None:
    assert {row["status"] for row in live_once(cls, 7).truth.values()} >= {"pending", "confirmed", "cancelled"}


def test_a_busy_lockme_day_sends_duplicates_and_sends_out_of_order() -> None:
    sent = live_once(Lockme, 7).receiver.message_ids
    firsts = list(dict.fromkeys(sent))
    assert max(Counter(sent).values()) >= 2
    assert firsts != sorted(firsts, key=int)


def test_a_busy_reservekit_day_sends_duplicates_and_sends_out_of_order() -> None:
    sent = [body for _, _, body in live_once(ReserveKit, 7).receiver.requests]
    firsts = list(dict.fromkeys(sent))
    assert max(Counter(sent).values()) >= 2
    assert firsts != sorted(firsts, key=order_of)


def order_of(body: bytes) -> str:
    return str(json.loads(body)["timestamp"])


# --- Lockme --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "seen"), [("post", {"POST"}), ("get", {"GET"}), ("mixed", {"GET", "POST"})])
def test_lockme_sends_an_empty_body_and_its_two_headers(method: str, seen: set[str]) -> None:
    async def scene() -> None:
        async with playing(Lockme, method=method, least_gap=0.0, speed=1e6) as play:
            message = play.venue.send_test()
            await play.venue.settled()
            assert {method for method, _, _ in play.receiver.requests} == seen
            for _, headers, body in play.receiver.requests:
                assert (body, headers["user-agent"], headers["x-messageid"]) == (b"", "LockMe/1.0", str(message.id))

    run(scene)


@pytest.mark.parametrize("status", [200, 404, 503])
def test_lockme_repeats_until_the_message_is_acknowledged_whatever_status_it_gets(status: int) -> None:
    async def scene() -> None:
        async with playing(Lockme, Receiver(statuses=[status]), least_gap=0.01) as play:
            message = play.venue.send_test()
            await until(lambda: message.sends >= 3)
            assert (await play.api.post(f"/message/{message.id}")).json() is True
            await play.venue.settled()
            assert not play.venue.given_up
            assert len(play.receiver.requests) == message.sends

    run(scene)


def test_lockme_gives_up_after_24_hours_of_growing_gaps() -> None:
    async def scene() -> None:
        async with playing(Lockme, speed=100_000.0, least_gap=0.0) as play:
            message = play.venue.send_test()
            began = play.venue.clock.now()
            await play.venue.settled()
            assert timedelta(hours=24) <= play.venue.clock.now() - began < timedelta(hours=30)
            gaps = [later - earlier for earlier, later in pairwise(play.receiver.times)]
            assert len(gaps) > 5
            assert gaps[-2] > 5 * gaps[0]
            assert play.venue.given_up == [message]

    run(scene)


def test_lockme_sends_again_when_the_acknowledgement_fails() -> None:
    async def scene() -> None:
        async with playing(Lockme, least_gap=0.02) as play:
            play.receiver.then = play.take
            play.venue.fail_acknowledgements(1)
            message = play.venue.send_test()
            await play.venue.settled()
            assert (message.sends, message.acks, message.acknowledged.is_set()) == (2, 2, True)

    run(scene)


def test_lockme_counts_readings_and_fails_those_that_it_is_told_to() -> None:
    async def scene() -> None:
        async with playing(Lockme) as play:
            message = play.venue.send_test()
            play.venue.fail_reads(1)
            answers = [await play.api.get(f"/message/{message.id}") for _ in range(2)]
            assert [answer.status_code for answer in answers] == [503, 200]
            assert message.reads == 2
            assert answers[1].json()["action"] == "test"

    run(scene)


@pytest.mark.parametrize(("gone", "status"), [(False, 200), (True, 404)])
def test_lockme_may_or_may_not_know_an_acknowledged_message(gone: bool, status: int) -> None:
    async def scene() -> None:
        async with playing(Lockme, gone_after_ack=gone) as play:
            path = f"/message/{play.venue.send_test().id}"
            await play.api.post(path)
            assert (await play.api.get(path)).status_code == status
            assert (await play.api.post(path)).status_code == status

    run(scene)


NEW = {"date": "2026-12-01", "hour": "18:30", "people": 4, "price": "240.00", "name": "Ewa", "extid": "our-1"}


async def last_message(play: Play) -> Any:
    return (await play.api.get(f"/message/{max(play.venue.messages)}")).json()


def test_lockme_echoes_what_is_written_through_its_api() -> None:
    async def scene() -> None:
        async with playing(Lockme, ids="text") as play:
            number = (await play.api.put("/room/1188/reservation", json=NEW)).json()
            message = await last_message(play)
            assert (message["action"], message["reservationid"], message["roomid"]) == ("add", number, "1188")
            assert message["data"]["source"] == "api"
            row = play.ledger.truth["lockme-venue", number]
            assert (row["status"], row["source"], row["party_size"]) == ("confirmed", "api", 4)
            assert row["starts_at"] == datetime(2026, 12, 1, 17, 30, tzinfo=UTC)

            moved = {"roomid": 1189, "date": "2026-12-02", "hour": "20:00:00"}
            assert (await play.api.post("/room/1188/reservation/ext/our-1/move", json=moved)).json() is True
            message = await last_message(play)
            assert (message["action"], message["data"]["date"]) == ("edit", "2026-12-02")
            day = await play.api.get("/room/1189/reservations/2026-12-02")
            assert [booking["reservationid"] for booking in day.json()] == [number]

            assert (await play.api.delete("/room/1189/reservation/ext/our-1")).json() is True
            assert (await last_message(play))["action"] == "delete"
            assert play.ledger.truth["lockme-venue", number]["status"] == "cancelled"
            gone = await play.api.get(f"/room/1189/reservation/{number}")
            assert (gone.status_code, gone.json()) == (404, {"message": "Reservation not found"})

    run(scene)


@pytest.mark.parametrize(("shows", "people"), [("then", 4), ("now", 5)])
def test_a_lockme_message_shows_the_booking_as_it_was_or_as_it_is(shows: str, people: int) -> None:
    async def scene() -> None:
        async with playing(Lockme, shows=shows) as play:
            number = (await play.api.put("/room/1188/reservation", json=NEW)).json()
            await play.api.post(f"/room/1188/reservation/{number}", json={"people": 5})
            message = (await play.api.get(f"/message/{min(play.venue.messages)}")).json()
            assert (message["action"], int(message["data"]["people"])) == ("add", people)

    run(scene)


def test_lockme_refuses_to_delete_what_was_paid_on_its_portal() -> None:
    async def scene() -> None:
        async with playing(Lockme) as play:
            play.receiver.then = play.take
            await play.venue.busy_day(1)
            (paid,) = play.venue.bookings.values()
            assert paid.source == "web"
            refused = await play.api.delete(f"/room/{paid.room}/reservation/{paid.id}")
            assert (refused.status_code, set(refused.json())) == (400, {"message"})
            assert not paid.deleted

    run(scene)


async def consent(play: Play) -> dict[str, str]:
    """Through /authorize as a person who clicks yes, and with the code to the first pair of tokens."""
    venue, asked = play.venue, {"response_type": "code", "scope": "rooms_manage", "state": "s-1"}
    asked |= {"client_id": venue.client_id, "redirect_uri": "http://127.0.0.1/back"}
    answer = await play.api.get(oauth(play, "authorize"), params=asked)
    assert answer.status_code == 302
    back = parse_qs(urlsplit(answer.headers["location"]).query)
    assert back["state"] == ["s-1"]
    form = {"grant_type": "authorization_code", "code": back["code"][0], "redirect_uri": asked["redirect_uri"]}
    tokens: dict[str, str] = (await token(play, **form)).json()
    return tokens


def oauth(play: Play, what: str) -> str:
    return f"{play.base_url}/lockme/{play.venue.endpoint}/{what}"


async def token(play: Play, **form: str) -> httpx.Response:
    client = {"client_id": play.venue.client_id, "client_secret": play.venue.client_secret}
    return await play.api.post(oauth(play, "access_token"), data={**client, **form})


@pytest.mark.parametrize("status", [400, 200])
def test_a_lockme_refresh_token_works_once(status: int) -> None:
    async def scene() -> None:
        async with playing(Lockme, oauth=True, oauth_error_status=status) as play:
            first = await consent(play)
            form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
            answers = await asyncio.gather(token(play, **form), token(play, **form))
            assert sorted("error" in answer.json() for answer in answers) == [False, True]
            refused = next(answer for answer in answers if "error" in answer.json())
            assert (refused.status_code, refused.json()) == (status, {"error": "invalid_grant"})

    run(scene)


def test_without_rotation_a_lockme_refresh_token_stays() -> None:
    async def scene() -> None:
        async with playing(Lockme, oauth=True, rotate=False) as play:
            first = await consent(play)
            form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
            again = [(await token(play, **form)).json() for _ in range(2)]
            assert {tokens["refresh_token"] for tokens in again} == {first["refresh_token"]}

    run(scene)


def test_a_dead_lockme_token_is_401_and_a_refreshed_one_lives() -> None:
    async def scene() -> None:
        async with playing(Lockme, oauth=True) as play:
            tokens = await consent(play)
            play.venue.expire_tokens()
            headers = {"Authorization": f"Bearer {tokens['access_token']}"}
            dead = await play.api.get("/me", headers=headers)
            assert (dead.status_code, set(dead.json())) == (401, {"message"})
            form = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
            headers = {"Authorization": f"Bearer {(await token(play, **form)).json()['access_token']}"}
            assert (await play.api.get("/me", headers=headers)).status_code == 200

    run(scene)


@pytest.mark.parametrize("after", [3, None])
def test_lockme_throttles_with_or_without_retry_after(after: int | None) -> None:
    async def scene() -> None:
        async with playing(Lockme, throttle_every=2, retry_after=after) as play:
            answers = [await play.api.get("/rooms") for _ in range(2)]
            assert [answer.status_code for answer in answers] == [200, 429]
            assert answers[1].headers.get("retry-after") == (str(after) if after else None)

    run(scene)


# --- ReserveKit ----------------------------------------------------------------------------------------------


async def booked(play: Play, **more: Any) -> Any:
    """A booking made through the API, on a Monday at nine."""
    slots = (await play.api.get("/services/61/time-slots")).json()["data"]
    wanted = {"date": "2026-12-07", "time_slot_id": slots[0]["id"], "customer_name": "Ida", **more}
    answer = await play.api.post("/bookings", params={"service_id": 61}, json=wanted)
    assert answer.status_code == 201
    await play.venue.settled()
    return answer.json()["data"]


@pytest.mark.parametrize(
    ("statuses", "attempts", "failed"), [([503, 500, 204], 3, 0), ([302, 299], 2, 0), ([503], 4, 1)]
)
def test_reservekit_retries_until_any_2xx_and_at_most_three_times(
    statuses: list[int], attempts: int, failed: int
) -> None:
    async def scene() -> None:
        async with playing(ReserveKit, Receiver(statuses=statuses), least_gap=0.0) as play:
            play.venue.send_test()
            await play.venue.settled()
            assert len(play.receiver.requests) == attempts
            assert len({body for _, _, body in play.receiver.requests}) == 1
            assert len(play.venue.failed) == failed

    run(scene)


def test_reservekit_hangs_up_at_its_deadline_and_tries_again() -> None:
    async def scene() -> None:
        async with playing(ReserveKit, Receiver(slow=0.3), retries=1, least_gap=0.0) as play:
            play.venue.deadline = 0.1
            play.venue.send_test()
            await play.venue.settled()
            assert [(sent.status, sent.late) for sent in play.ledger.sent] == [(None, True)] * 2

    run(scene)


def test_a_busy_reservekit_day_has_bodies_with_one_and_with_many_bookings() -> None:
    bodies = live_once(ReserveKit, 7).receiver.bodies
    sizes = {len(body["bookings"]) for body in bodies}
    assert min(sizes) == 1
    assert max(sizes) >= 3
    assert {body["event_type"].partition(".")[2] for body in bodies} == {"create", "update", "delete"}


def test_the_older_reservekit_body_is_the_booking_with_its_slot() -> None:
    async def scene() -> None:
        async with playing(ReserveKit, shape="bare", dates="timestamp", with_key=True) as play:
            await booked(play)
            (body,) = play.receiver.bodies
            assert not {"event_type", "bookings", "timestamp", "status"} & set(body)
            assert (body["date"], body["version"]) == ("2026-12-07T00:00:00Z", 1)
            assert body["time_slot"]["start_time"] == "2006-01-02 09:00:00"
            row = play.ledger.truth["reservekit-venue", str(body["id"])]
            assert (row["status"], row["provider_status"]) == ("unknown", None)

    run(scene)


def test_a_reservekit_edit_of_the_customer_alone_keeps_updated_at() -> None:
    async def scene() -> None:
        async with playing(ReserveKit) as play:
            made = await booked(play)
            await play.api.patch(f"/bookings/{made['id']}/customer", json={"email": "new@example.org"})
            await play.api.delete(f"/bookings/{made['id']}")
            await play.venue.settled()
            bodies = sorted(play.receiver.bodies, key=lambda body: body["timestamp"])
            assert [body["event_type"].partition(".")[2] for body in bodies] == ["create", "update", "delete"]
            assert {body["bookings"][0]["updated_at"] for body in bodies} == {made["updated_at"]}
            assert len({body["timestamp"] for body in bodies}) == 3
            row = play.ledger.truth["reservekit-venue", str(made["id"])]
            assert (row["status"], row["provider_status"]) == ("cancelled", "pending")
            assert row["customer_email"] == "new@example.org"

    run(scene)


@pytest.mark.parametrize("event", ["bookings.update", "bookings.delete"])
def test_reservekit_tells_a_patch_to_cancelled_as_update_or_as_delete(event: str) -> None:
    async def scene() -> None:
        async with playing(ReserveKit, cancel_event=event) as play:
            made = await booked(play)
            path = f"/bookings/{made['id']}"
            without = await play.api.patch(path, json={"status": "cancelled"})
            assert without.json()["error"]["code"] == "missing_required_field"
            await play.api.patch(path, json={"status": "cancelled", "cancel_reason": "ill"})
            await play.venue.settled()
            body = play.receiver.bodies[-1]
            assert (body["event_type"], body["bookings"][0]["cancel_reason"]) == (event, "ill")
            again = await play.api.patch(path, json={"status": "confirmed"})
            assert (again.status_code, again.json()["error"]["code"]) == (422, "invalid_status_transition")

    run(scene)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("guide", {"error": {"code": "booking_not_found", "message": "booking not found"}}),
        ("swagger", {"data": None, "error": "booking not found"}),
        ("sdk", {"status": 404, "message": "booking not found", "code": "booking_not_found"}),
    ],
)
def test_reservekit_errors_have_the_three_documented_shapes(shape: str, expected: Any) -> None:
    async def scene() -> None:
        async with playing(ReserveKit, errors=shape) as play:
            answer = await play.api.get("/bookings/1")
            assert (answer.status_code, answer.json()) == (404, expected)

    run(scene)


@pytest.mark.parametrize(
    ("authorization", "code"),
    [(None, "authentication_required"), ("Basic x", "authorization_header_malformed"), ("Bearer x", "invalid_api_key")],
)
def test_reservekit_wants_its_key_as_bearer(authorization: str | None, code: str) -> None:
    async def scene() -> None:
        async with playing(ReserveKit) as play:
            play.api.headers["Authorization"] = authorization or ""
            answer = await play.api.get("/services")
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, code)

    run(scene)


@pytest.mark.parametrize("path", ["/bookings", "/time-slots"])
def test_reservekit_lists_need_all_their_query_parameters(path: str) -> None:
    async def scene() -> None:
        async with playing(ReserveKit) as play:
            right = {"service_id": "61", "page": "1", "page_size": "10"}
            assert (await play.api.get(path, params=right)).status_code == 200
            for name in right:
                less = {key: value for key, value in right.items() if key != name}
                answer = await play.api.get(path, params=less)
                assert (answer.status_code, answer.json()["error"]["code"]) == (400, "missing_required_field")

    run(scene)


@pytest.mark.parametrize(
    ("shape", "rows", "numbers"),
    [
        ("guide", ("data", "time_slots"), ("data", "pagination", "total_count")),
        ("swagger", ("data", "time_slots"), ("data", "pagination", "total_items")),
        ("metadata", ("data",), ("metadata", "totalRecords")),
    ],
)
def test_reservekit_pages_have_the_three_documented_shapes(
    shape: str, rows: tuple[str, ...], numbers: tuple[str, ...]
) -> None:
    def at(document: Any, keys: tuple[str, ...]) -> Any:
        for key in keys:
            document = document[key]
        return document

    async def scene() -> None:
        async with playing(ReserveKit, pages=shape) as play:
            seen: list[Any] = []
            for page in (1, 2, 3):
                query = {"service_id": 62, "page": page, "page_size": 12}
                document = (await play.api.get("/time-slots", params=query)).json()
                seen += at(document, rows)
                assert at(document, numbers) == 28
            assert len({slot["id"] for slot in seen}) == 28

    run(scene)


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("naive", "2006-01-02 09:00:00"),
        ("instant", "2006-01-02T08:00:00Z"),
        ("offset", "2006-01-02T09:00:00+01:00"),
    ],
)
def test_reservekit_writes_slot_times_in_three_ways_and_means_the_same(form: str, written: str) -> None:
    async def scene() -> None:
        async with playing(ReserveKit, slot_times=form) as play:
            made = await booked(play, date="2026-07-06")
            (slot, *_) = (await play.api.get("/services/61/time-slots")).json()["data"]
            assert slot["start_time"] == written
            service = (await play.api.get("/services/61")).json()["data"]
            row = play.ledger.truth["reservekit-venue", str(made["id"])]
            assert (service["timezone"], service["name"]) == ("Europe/Berlin", row["resource_name"])
            # Nine o'clock in summer, although the placeholder date lies in winter.
            assert row["starts_at"] == datetime(2026, 7, 6, 7, 0, tzinfo=UTC)

    run(scene)


def test_without_a_key_nobody_can_know_reservekit_times_and_names() -> None:
    async def scene() -> None:
        async with playing(ReserveKit, with_key=True) as play:
            play.venue.switches = type(play.venue.switches)(with_key=False)
            made = await booked(play)
            row = play.ledger.truth["reservekit-venue", str(made["id"])]
            assert (play.venue.secrets(), row["starts_at"], row["resource_name"]) == ({}, None, None)
            assert row["resource_id"] in map(str, SERVICES)

    run(scene)


def test_reservekit_limits_by_plan_and_says_so_in_four_headers() -> None:
    async def scene() -> None:
        async with playing(ReserveKit, plan="starter") as play:
            first = await play.api.get("/services")
            assert [first.headers[f"x-ratelimit-{name}"] for name in ("limit", "remaining")] == ["10", "9"]
            assert "retry-after" not in first.headers
            answers = await asyncio.gather(*(play.api.get("/services") for _ in range(30)))
            limited = next(answer for answer in answers if answer.status_code != 200)
            assert (limited.status_code, limited.json()["error"]["code"]) == (429, "rate_limit_exceeded")
            headers = {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "retry-after"}
            assert headers <= set(limited.headers)

    run(scene)


def test_reservekit_counts_the_month() -> None:
    async def scene() -> None:
        async with playing(ReserveKit, plan="starter", used_this_month=10_000) as play:
            answer = await play.api.get("/services")
            assert (answer.status_code, answer.json()["error"]["code"]) == (429, "api_limit_exceeded")

    run(scene)
