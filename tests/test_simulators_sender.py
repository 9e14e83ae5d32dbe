"""How the simulated providers send, against servers that a test holds by the wire; and what the ledger makes of it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import httpx
import pytest
import uvloop

from simulators.checkfront import Checkfront
from simulators.clock import Clock
from simulators.ledger import Ledger, Outcome, Sent
from simulators.lockme import Lockme
from simulators.reservekit import ReserveKit
from simulators.sender import Manner, Request, Sender
from simulators.server import Server, discover
from simulators.synthesisvr import SynthesisVR
from simulators.timekit import Timekit
from simulators.venue import Post, Venue, Weather

START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
BODY = b'{"id": 40118}'


# --- a server that does as it is told --------------------------------------------------------------------------


@dataclass
class Heard:
    """One request as it stood on the wire, and how its connection ended where it did."""

    head: str
    body: bytes
    end: str = ""

    @property
    def request_id(self) -> str:
        lines = dict(line.split(": ", 1) for line in self.head.split("\r\n")[1:])
        return lines["x-request-id"]


Act = Callable[[int, asyncio.StreamWriter], Awaitable[None]]
"""What is done about the so-manyth request (0 is the first)."""


async def answer(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(OK)


@dataclass
class Wire:
    act: Act = answer
    heard: list[Heard] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    most_open: int = 0
    url: str = ""

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.open, self.most_open)
        try:
            while not writer.is_closing():
                heard = await read(reader)
                self.heard.append(heard)
                await self.act(len(self.heard) - 1, writer)
        except asyncio.IncompleteReadError:
            self._ended("FIN")
        except ConnectionResetError:
            self._ended("RST")
        finally:
            self.open -= 1
            writer.close()

    def _ended(self, how: str) -> None:
        if self.heard:
            self.heard[-1].end = how


async def read(reader: asyncio.StreamReader) -> Heard:
    head = (await reader.readuntil(b"\r\n\r\n"))[:-4].decode()
    if "transfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
        return Heard(head, body)
    length = next((int(line[16:]) for line in head.split("\r\n") if line.startswith("content-length: ")), 0)
    return Heard(head, await reader.readexactly(length))


@asynccontextmanager
async def wire(act: Act = answer) -> AsyncIterator[Wire]:
    heard = Wire(act)
    server = await asyncio.start_server(heard.take, "127.0.0.1", 0)
    heard.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?a=b"
    async with server:
        yield heard


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """On the loop that the demo and the fault runs use."""
    uvloop.run(asyncio.wait_for(scene(), 30))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.002)


def post(url: str, **more: Any) -> Request:
    return Request("POST", url, {"content-type": "application/json"}, BODY, **more)


def with_sender(act: Act, use: Callable[[Sender, Wire], Coroutine[Any, Any, None]], at_once: int = 10) -> None:
    async def scene() -> None:
        async with wire(act) as heard:
            sender = Sender(at_once)
            await use(sender, heard)
            await sender.close()

    run(scene)


# --- the sender ------------------------------------------------------------------------------------------------


def test_a_request_arrives_as_it_was_given_and_its_answer_is_told() -> None:
    async def use(sender: Sender, heard: Wire) -> None:
        reply = await sender.send(post(heard.url), deadline=5)
        assert (reply.outcome, reply.status) == (Outcome.ANSWERED, 200)
        (got,) = heard.heard
        assert got.head.split("\r\n")[0] == "POST /hook?a=b HTTP/1.1"
        assert f"host: {heard.url[7:-9]}" in got.head.split("\r\n")
        assert "content-type: application/json" in got.head
        assert got.body == BODY

    with_sender(answer, use)


def test_a_connection_is_kept_and_used_again() -> None:
    async def use(sender: Sender, heard: Wire) -> None:
        for _ in range(5):
            await sender.send(post(heard.url), deadline=5)
        assert (len(heard.heard), heard.connections) == (5, 1)

    with_sender(answer, use)


def test_no_more_connections_are_open_than_are_allowed() -> None:
    async def slowly(number: int, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.005)
        writer.write(OK)

    async def use(sender: Sender, heard: Wire) -> None:
        replies = await asyncio.gather(*(sender.send(post(heard.url), deadline=5) for _ in range(20)))
        assert {reply.status for reply in replies} == {200}
        assert heard.most_open == 3

    with_sender(slowly, use, at_once=3)


def test_a_slow_body_comes_whole_and_in_pieces() -> None:
    async def use(sender: Sender, heard: Wire) -> None:
        reply = await sender.send(post(heard.url), deadline=5, manner=Manner.DRIPPING)
        assert (reply.status, heard.heard[0].body) == (200, BODY)
        assert reply.seconds > 0.05

    with_sender(answer, use)


@pytest.mark.parametrize(("manner", "end"), [(Manner.CLOSING, "FIN"), (Manner.RESETTING, "RST")])
def test_who_hangs_up_has_written_everything_and_reads_nothing(manner: Manner, end: str) -> None:
    async def silent(number: int, writer: asyncio.StreamWriter) -> None:
        """Says nothing, and goes on reading."""

    async def use(sender: Sender, heard: Wire) -> None:
        reply = await sender.send(post(heard.url), deadline=5, manner=manner)
        assert (reply.outcome, reply.status) == (Outcome.HUNG_UP, None)
        await until(lambda: bool(heard.heard and heard.heard[0].end))
        assert (heard.heard[0].body, heard.heard[0].end) == (BODY, end)

    with_sender(silent, use)


async def cut(number: int, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def cut_the_second(number: int, writer: asyncio.StreamWriter) -> None:
    await (cut if number else answer)(number, writer)


async def never(number: int, writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def head_only(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 202 Accepted\r\ncontent-length: 10\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(60)


async def without_length(number: int, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.0 204 No Content\r\n\r\n")
    writer.close()


@pytest.mark.parametrize(
    ("act", "outcomes"),
    [
        (cut, [(Outcome.CUT, None)]),
        # A request that was written on a kept connection is not sent again behind our back.
        (cut_the_second, [(Outcome.ANSWERED, 200), (Outcome.CUT, None)]),
        (never, [(Outcome.TIMED_OUT, None)]),
        (head_only, [(Outcome.ANSWERED, 202)]),
        (without_length, [(Outcome.ANSWERED, 204)]),
    ],
    ids=["cut", "cut-on-a-kept-connection", "timed-out", "head-only", "without-length"],
)
def test_what_became_of_a_request_is_told_apart(act: Act, outcomes: list[tuple[Outcome, int | None]]) -> None:
    async def use(sender: Sender, heard: Wire) -> None:
        replies = [await sender.send(post(heard.url), deadline=0.2) for _ in outcomes]
        assert [(reply.outcome, reply.status) for reply in replies] == outcomes
        assert len(heard.heard) == len(outcomes)
        timed = [reply.seconds for reply in replies if reply.outcome is Outcome.TIMED_OUT]
        assert all(0.19 < seconds < 0.4 for seconds in timed)
        answered = [reply.seconds for reply in replies if reply.outcome is Outcome.ANSWERED]
        assert all(seconds < 0.1 for seconds in answered), "measured to the head, not to the end of the body"

    with_sender(act, use)


def test_where_nobody_listens_a_request_is_refused() -> None:
    async def use(sender: Sender, heard: Wire) -> None:
        reply = await sender.send(post(f"http://127.0.0.1:{free_port()}/hook"), deadline=5)
        assert (reply.outcome, reply.status) == (Outcome.REFUSED, None)

    with_sender(answer, use)


def test_a_kept_connection_that_was_closed_in_the_meantime_is_replaced_in_silence() -> None:
    """Also where the event loop could not yet notice: the server closes while our thread stands still."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)
    closed = threading.Event()

    def serve() -> None:
        with suppress(OSError):  # nobody came a second time
            for _ in range(2):
                connection, _ = listener.accept()
                connection.recv(65536)
                connection.sendall(OK)
                go_on.wait(5)
                connection.close()
                closed.set()

    go_on, server = threading.Event(), threading.Thread(target=serve, daemon=True)
    server.start()

    async def scene() -> None:
        sender, url = Sender(), f"http://127.0.0.1:{listener.getsockname()[1]}/"
        replies = [await sender.send(post(url), deadline=5)]
        go_on.set()
        assert closed.wait(5)
        replies.append(await sender.send(post(url), deadline=5))
        assert [reply.status for reply in replies] == [200, 200]
        await sender.close()

    with listener:
        run(scene)
        server.join()


# --- the venue's requests --------------------------------------------------------------------------------------


def venue_of(kind: Callable[..., Any], *, url: str = "", speed: float = 100_000.0, **more: Any) -> Any:
    more = {"ledger": Ledger(), "clock": Clock(START, speed), "rng": Random(7), **more}
    return kind(endpoint="a-venue", hook_url=url, **more)


def with_venue(
    kind: type[Venue], use: Callable[[Any, Wire], Coroutine[Any, Any, None]], *, act: Act = answer, **more: Any
) -> None:
    async def scene() -> None:
        async with wire(act) as heard, venue_of(kind, url=heard.url, **more) as venue:
            await use(venue, heard)

    run(scene)


def a_post(**more: Any) -> Post:
    return Post("a booking", body=BODY, **more)


def test_every_request_has_an_id_of_its_own_that_the_ledger_knows() -> None:
    async def use(venue: Timekit, heard: Wire) -> None:
        one = a_post(bookings=("a", "b"), events=5)
        for _ in range(3):
            await venue.post(one)
        noted = [(sent.request, sent.bookings, sent.events) for sent in venue.ledger.sent]
        assert noted == [(heard.request_id, ("a", "b"), 5) for heard in heard.heard]
        assert len({request for request, _, _ in noted}) == 3
        counted = venue.ledger.counted[venue.endpoint]
        assert (counted.sent, counted.events, counted.acked, counted.outcomes[Outcome.ANSWERED]) == (3, 15, 3, 3)
        assert counted.slowest == max(sent.seconds for sent in venue.ledger.sent)

    with_venue(Timekit, use)


def test_weather_makes_a_sender_hang_up_and_its_attempt_has_failed() -> None:
    async def use(venue: Checkfront, heard: Wire) -> None:
        for _ in range(12):
            assert not (await venue.post(a_post())).acked
        assert {sent.outcome for sent in venue.ledger.sent} == {Outcome.HUNG_UP}
        assert not any(sent.late for sent in venue.ledger.sent)
        assert not await venue.deliver(a_post())
        assert venue.failures_in_a_row == 0, "its own fault is not held against the receiver"
        await until(lambda: len(heard.heard) == 13 and heard.open == 0)
        assert {heard.body for heard in heard.heard} == {BODY}

    with_venue(Checkfront, use, weather=Weather(hang_up_early=1.0))


def test_what_a_day_sends_says_which_bookings_it_is_about_and_how_many_events_it_carries() -> None:
    async def use(venue: SynthesisVR, heard: Wire) -> None:
        await venue.busy_day(20)
        known = {external_id for _, external_id in venue.ledger.truth}
        assert {one for sent in venue.ledger.sent for one in sent.bookings} == known
        assert max(sent.events for sent in venue.ledger.sent) > 1
        assert all(sent.events >= len(sent.bookings) for sent in venue.ledger.sent)

    with_venue(SynthesisVR, use)


# --- what nobody can know ----------------------------------------------------------------------------------------


def rows_of(ledger: Ledger) -> list[dict[str, Any]]:
    """The table as it should be; instants as text, as the command prints them."""
    return [
        {"endpoint": endpoint, "external_id": external_id}
        | {name: value.isoformat() if isinstance(value, datetime) else value for name, value in columns.items()}
        for (endpoint, external_id), columns in ledger.truth.items()
    ]


def test_a_synthesisvr_request_that_met_no_listener_excuses_its_bookings_until_they_are_told_anew() -> None:
    async def use(venue: SynthesisVR, heard: Wire) -> None:
        venue.hook_url, there = f"http://127.0.0.1:{free_port()}/", venue.hook_url
        sessions = [venue._session(Random(1)) for _ in range(2)]
        await venue._tell(Random(1), venue._entered(sessions))
        assert [sent.outcome for sent in venue.ledger.sent] == [Outcome.REFUSED]
        verdict = venue.ledger.compare([])
        assert (verdict.good, verdict.excused, verdict.lost) == (True, 2, [])
        venue.hook_url = there
        await venue._tell(Random(1), venue._removed(sessions[:1]))
        verdict = venue.ledger.compare([])
        assert (verdict.excused, verdict.lost) == (1, [(venue.endpoint, sessions[0].uuid)])

    with_venue(SynthesisVR, use)


@pytest.mark.parametrize(("act", "outcome"), [(cut, Outcome.CUT), (never, Outcome.TIMED_OUT)])
def test_a_synthesisvr_request_that_met_a_listener_excuses_nothing(act: Act, outcome: Outcome) -> None:
    async def use(venue: Any, heard: Wire) -> None:
        venue.deadline = 0.1
        await venue._tell(Random(1), venue._entered([venue._session(Random(1))]))
        assert [sent.outcome for sent in venue.ledger.sent] == [outcome]
        assert len(venue.ledger.compare([]).lost) == 1

    with_venue(SynthesisVR, use, act=act)


@pytest.mark.parametrize(
    ("kind", "switches", "least"),
    [
        (Timekit, {"least_gap": 0.01, "doubled": ()}, 4),
        (ReserveKit, {"least_gap": 0.01}, 4),
        (Checkfront, {}, 1),
        (Lockme, {"least_gap": 0.01, "patience": 3600.0}, 2),
    ],
    ids=lambda value: getattr(value, "provider", ""),
)
def test_senders_whose_repeats_are_used_up_have_given_up_their_bookings(
    kind: type[Venue], switches: dict[str, Any], least: int
) -> None:
    async def use(venue: Any, heard: Wire) -> None:
        await venue.busy_day(1)
        assert len(heard.heard) >= least
        verdict = venue.ledger.compare([])
        assert (verdict.given_up, verdict.lost, verdict.good) == (1, [], True)
        assert venue.ledger.compare(rows_of(venue.ledger)).invented == []

    async def fail(number: int, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")

    with_venue(kind, use, act=fail, **switches)


def test_nothing_is_given_up_of_which_a_copy_was_taken() -> None:
    async def use(venue: Timekit, heard: Wire) -> None:
        shared = a_post(bookings=("a",))
        venue.ledger.expect(venue.endpoint, "a", status="confirmed")
        assert await venue.deliver(shared)
        venue.hook_url = f"http://127.0.0.1:{free_port()}/"
        assert not await venue.deliver(shared)
        assert venue.ledger.compare([]).lost == [(venue.endpoint, "a")]

    with_venue(Timekit, use, least_gap=0.01)


def test_checkfront_knows_which_payments_it_never_told() -> None:
    async def use(venue: Checkfront, heard: Wire) -> None:
        await venue.busy_day(13)
        paid = {one for ids in venue.payments.values() for one in ids}
        assert venue.hook_off
        assert venue.untold_payments == paid

    with_venue(Checkfront, use, act=cut)


def test_a_verdict_over_many_bookings_is_linear() -> None:
    def seconds(bookings: int) -> float:
        ledger = Ledger()
        for number in range(bookings):
            ledger.expect("e", str(number), **{f"column_{place}": place for place in range(15)})
        rows, began = rows_of(ledger), time.process_time()
        verdict = ledger.compare(rows)
        assert (verdict.checked, verdict.good) == (bookings, True)
        return time.process_time() - began

    seconds(500)
    assert seconds(10_000) < 10 * 3 * max(seconds(1_000), 0.001)


# --- the clock -------------------------------------------------------------------------------------------------


def test_a_leap_moves_the_time_of_day_and_not_the_schedule() -> None:
    clock = Clock(START, 1.0)
    clock.leap(7200)
    assert ahead(clock) == 7200
    assert clock.scheduled() - START < timedelta(seconds=5)
    assert clock.date() == "Fri, 20 Nov 2026 10:00:00 GMT"
    clock.leap(-3600)
    assert ahead(clock) == 7200, "versions never run backward"
    assert clock.date() == "Fri, 20 Nov 2026 09:00:00 GMT"


def test_nothing_is_due_the_earlier_for_a_leap() -> None:
    async def scene() -> None:
        clock = Clock(START, 3600.0)
        clock.leap(86400)
        await clock.until(START + timedelta(minutes=6))
        assert clock.scheduled() >= START + timedelta(minutes=6)

    run(scene)


def ahead(clock: Clock) -> int:
    """Whole seconds by which the time of day is ahead of the schedule."""
    return round((clock.now() - clock.scheduled()).total_seconds())


def test_another_pace_moves_no_hand() -> None:
    clock = Clock(START, 50_000.0)
    time.sleep(0.02)
    before = clock.scheduled()
    clock.pace(1.0)
    assert timedelta() <= clock.scheduled() - before < timedelta(minutes=10)


@pytest.mark.parametrize("kind", [Timekit, ReserveKit])
def test_a_leap_in_the_middle_of_a_day_shows_in_the_bodies_and_leaves_their_order_true(kind: type[Venue]) -> None:
    async def use(venue: Any, heard: Wire) -> None:
        day = asyncio.create_task(venue.busy_day(40))
        await until(lambda: len(heard.heard) > 20)
        venue.clock.leap(30 * 86400)
        await day
        told = [row.get("provider_updated_at") or venue.bookings[key[1]].updated for key, row in rows(venue)]
        assert min(told) < START + timedelta(days=1)
        assert max(told) > START + timedelta(days=30)

    def rows(venue: Any) -> Any:
        return venue.ledger.truth.items()

    with_venue(kind, use, speed=50_000.0)


# --- the weather of the API --------------------------------------------------------------------------------------


def with_api(use: Callable[[Any, httpx.AsyncClient], Coroutine[Any, Any, None]], weather: Weather) -> None:
    async def scene() -> None:
        venue = venue_of(Lockme, weather=weather)
        async with Server([venue]) as server:
            headers = {"authorization": f"Bearer {venue.secrets()['access_token']}"}
            base = f"{server.api_url(venue)}/v2.4"
            async with httpx.AsyncClient(base_url=base, headers=headers, trust_env=False, verify=False) as api:
                await use(venue, api)

    run(scene)


def test_a_call_hangs_until_the_weather_is_over() -> None:
    async def use(venue: Lockme, api: httpx.AsyncClient) -> None:
        calls = [asyncio.create_task(api.get("/test")), asyncio.create_task(api.put("/room/1188/reservation", json={}))]
        done, _ = await asyncio.wait(calls, timeout=0.3)
        assert not done
        venue.weather.api_hang = 0.0
        assert (await calls[0]).json() == "OK"
        assert (await calls[1]).json() == {"message": "No date or hour"}, "the body was not lost meanwhile"

    with_api(use, Weather(api_hang=1.0))


def test_a_call_that_hangs_ends_when_the_client_leaves() -> None:
    async def use(venue: Lockme, api: httpx.AsyncClient) -> None:
        before = len(asyncio.all_tasks())
        with pytest.raises(httpx.ReadTimeout):
            await api.get("/test", timeout=0.1)
        await until(lambda: len(asyncio.all_tasks()) <= before)

    with_api(use, Weather(api_hang=1.0))


def test_an_answer_is_cut_in_the_middle_of_its_body() -> None:
    async def use(venue: Lockme, api: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.RemoteProtocolError, match="without sending complete message body"):
            await api.get("/test")
        venue.weather.api_cut = 0.0
        assert (await api.get("/test")).json() == "OK"

    with_api(use, Weather(api_cut=1.0))


# --- many events -------------------------------------------------------------------------------------------------


def lived(events: int, seconds: float) -> tuple[float, list[Sent]]:
    """CPU seconds for a stream of that many events, all providers together, and what was sent."""
    ledger, clock = Ledger(), Clock(START, 1.0)
    spent: list[float] = []

    async def scene() -> None:
        async with wire() as heard:
            venues = [venue_of(kind, url=heard.url, ledger=ledger, clock=clock) for kind in discover().values()]
            lockme = next(venue for venue in venues if isinstance(venue, Lockme))

            async def done_with(number: int, writer: asyncio.StreamWriter) -> None:
                for line in heard.heard[-1].head.split("\r\n"):
                    if line.startswith("X-MessageId: "):
                        lockme.messages[int(line[13:])].acknowledged.set()
                writer.write(OK)

            heard.act = done_with
            for venue in venues:
                await venue.__aenter__()
            began = time.process_time()
            await asyncio.gather(*(venue.live(events // len(venues), seconds) for venue in venues))
            spent.append(time.process_time() - began)
            for venue in venues:
                await venue.__aexit__(None, None, None)

    run(scene)
    return spent[0], ledger.sent


def test_a_stream_has_about_as_many_events_as_asked_and_costs_the_same_for_each() -> None:
    lived(100, 0.5)
    few, many = lived(500, 1.0), lived(2000, 4.0)
    told = sum(sent.events for sent in many[1])
    assert 1500 < told < 2700
    assert Counter(sent.outcome for sent in many[1]) == {Outcome.ANSWERED: len(many[1])}
    each = [cpu / len(sent) for cpu, sent in (few, many)]
    assert each[1] < 1.7 * each[0], f"{each} seconds for one request of a short stream and of a long one"
