"""The calls out, against real HTTP servers: how keys travel, which answer means what, and what is never shown."""

from __future__ import annotations

import base64
import gzip
import logging
import socket
import struct
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from serving import free_port, listening, serving, silence, silent_server
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from schemas.endpoints import Endpoint
from workers import calls, wire
from workers.calls import Cache, Caller, api_base, oauth_client, pause
from workers.database import engine as make_engine
from workers.errors import (
    Again,
    CredentialsMissing,
    CredentialsRefused,
    DatabaseTrouble,
    DeliveryError,
    NotYet,
    ProviderUnavailable,
    Refused,
    Throttled,
)
from workers.provider import Auth, Call, Limit, OAuth, Provider, Rate
from workers.registry import discover
from workers.seal import Seal
from workers.tokens import Token, Tokens
from workers.wire import Reply, retry_after

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
KEY = "k3y/of the venue"
KEY_FORMS = ("k3y/of the venue", "k3y%2Fof%20the%20venue", base64.b64encode(b":k3y/of the venue").decode())
ALL = frozenset({"api_key", "api_secret"})
SECRETS = {"api_key": KEY, "api_secret": "s3cret of the venue"}
READ = Call(name="session", path="/data/session/7", auth=Auth.BEARER_KEY)
KEYED = Call(name="session", path="/data/{key}/session", auth=Auth.KEY_IN_PATH, params={"search": "uuid:7"})


def clock() -> datetime:
    return NOW


@dataclass
class Api:
    """A provider's API that answers what a test has put in, in turn, and remembers what it was asked."""

    url: str = ""
    answers: list[Response] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request)
        return self.answers.pop(0)

    def will(self, *answers: Response) -> None:
        self.answers[:] = answers
        self.asked.clear()


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    found = Api()
    methods = ["GET", "POST"]
    with serving(Starlette(routes=[Route("/{rest:path}", found.__call__, methods=methods)])) as found.url:
        yield found


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """The client of a worker."""
    with calls.client() as client:
        yield client


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    """For calls that need none: nobody listens at its database."""
    return Tokens(make_engine("postgresql://nobody@127.0.0.1:1/none"), Seal("0123456789abcdef"), clock)


PROVIDER = Provider(
    name="someone",
    title="Someone",
    docs="https://example.org",
    normalize=lambda incoming: [],
    oauth=OAuth(authorize="/authorize", token="/access_token", scope="rooms_manage"),
)


@pytest.fixture
def caller(api: Api, http: httpx.Client, tokens: Tokens) -> Caller:
    return Caller(
        http=http,
        provider=PROVIDER,
        endpoint=Endpoint(name="venue", provider="someone", api_url=f"{api.url}/base", secrets=ALL),
        secrets=SECRETS,
        tokens=tokens,
        cache=Cache(),
        clock=clock,
    )


def towards(caller: Caller, url: str, **changes: Any) -> Caller:
    """The same for another address."""
    endpoint = Endpoint(name="venue", provider="someone", api_url=url, secrets=ALL)
    return Caller(**{**vars(caller), "endpoint": endpoint, **changes})


# --- how a key travels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "path", "authorization"),
    [
        (READ, "/base/data/session/7", f"Bearer {KEY}"),
        (KEYED, "/base/data/k3y%2Fof%20the%20venue/session?search=uuid%3A7", None),
        (
            Call(name="booking", path="/bookings/7", auth=Auth.BASIC_EMPTY_USER),
            "/base/bookings/7",
            "Basic " + base64.b64encode(f":{KEY}".encode()).decode(),
        ),
        (
            Call(name="booking", path="/bookings/7", auth=Auth.BASIC_KEY_SECRET),
            "/base/bookings/7",
            "Basic " + base64.b64encode(f"{KEY}:s3cret of the venue".encode()).decode(),
        ),
    ],
    ids=["bearer", "in the path", "basic with empty user", "basic"],
)
def test_the_forms_on_the_wire(call: Call, path: str, authorization: str | None, caller: Caller, api: Api) -> None:
    """Each provider's way to show who we are."""
    api.will(JSONResponse({"id": 7}))
    answer = caller(call)
    (asked,) = api.asked
    target = asked.scope["raw_path"].decode() + (f"?{asked.url.query}" if asked.url.query else "")
    assert (asked.method, target, asked.headers.get("authorization")) == ("GET", path, authorization)
    assert asked.headers["user-agent"] == "reservoir"
    assert (answer.status, answer.body, answer.at) == (200, {"id": 7}, NOW)


def test_a_key_with_a_letter_that_no_header_holds(caller: Caller, api: Api) -> None:
    """A slip in the pasting is refused by the provider, and is no error of ours."""
    api.will(JSONResponse({"message": "who are you?"}, 401))
    with pytest.raises(CredentialsRefused):
        towards(caller, api.url, secrets={"api_key": "żółć"})(READ)
    assert api.asked[0].headers["authorization"].encode("latin-1") == "Bearer żółć".encode()


@pytest.mark.parametrize(
    ("auth", "variable"),
    [
        (Auth.BEARER_KEY, "RESERVOIR_VENUE_API_KEY"),
        (Auth.KEY_IN_PATH, "RESERVOIR_VENUE_API_KEY"),
        (Auth.BASIC_EMPTY_USER, "RESERVOIR_VENUE_API_KEY"),
    ],
)
def test_a_key_that_is_missing_is_named(auth: Auth, variable: str, caller: Caller, api: Api) -> None:
    """Nothing is sent; set the variable, and it goes on by itself."""
    api.will()
    with pytest.raises(CredentialsMissing, match=f"{variable} is not set"):
        towards(caller, api.url, secrets={})(Call(name="session", path="/x", auth=auth))
    assert api.asked == []


def test_an_endpoint_without_an_address(caller: Caller) -> None:
    """Checkfront's host is the account's, so nobody can guess it."""
    with pytest.raises(CredentialsMissing, match="names no api_url"):
        towards(caller, None)(READ)  # type: ignore[arg-type]


# --- which answer means what ---------------------------------------------------------------------------------

FATES = {
    301: ProviderUnavailable,
    302: ProviderUnavailable,
    307: ProviderUnavailable,
    400: Refused,
    401: CredentialsRefused,
    403: CredentialsRefused,
    404: Refused,
    408: ProviderUnavailable,
    410: Refused,
    422: Refused,
    421: ProviderUnavailable,
    423: ProviderUnavailable,
    425: ProviderUnavailable,
    429: Throttled,
    500: ProviderUnavailable,
    502: ProviderUnavailable,
    503: ProviderUnavailable,
    504: ProviderUnavailable,
}


@pytest.mark.parametrize("status", FATES)
@pytest.mark.parametrize(
    "body", [b'{"message": "Ewa Lis"}', b"<html>Ewa Lis</html>", b""], ids=["json", "html", "none"]
)
def test_a_status_has_a_fate(status: int, body: bytes, caller: Caller, api: Api) -> None:
    """Whatever stands in the body, but for a page where the API would refuse: that is a proxy's word, and passes.

    The error names the call and the status, and nothing that was said.
    """
    api.will(Response(body, status))
    with pytest.raises(DeliveryError) as error:
        caller(READ)
    page = FATES[status] is Refused and b"html" in body
    assert type(error.value) is (ProviderUnavailable if page else FATES[status])
    assert str(error.value) == f"session: answered {status}" + (" with a page" if page else "")


def test_a_status_that_the_call_accepts_is_an_answer(caller: Caller, api: Api) -> None:
    """For it the status is enough: what a 404 says in words interests nobody."""
    call = Call(name="slot", path="/slots/7", auth=Auth.BEARER_KEY, accepts=frozenset({404}))
    for body in (b'{"error": "not found"}', b"not found", b""):
        api.will(Response(body, 404))
        answer = caller(call)
        assert (answer.status, answer.body, answer.ok) == (404, None, False)
    for page in (b"<html>not found</html>", b"\n <!DOCTYPE html><title>nginx</title>"):
        api.will(Response(page, 404))
        with pytest.raises(ProviderUnavailable, match="slot: answered 404 with a page"):
            caller(call)
    api.will(Response(b"", 410))
    with pytest.raises(Refused):
        caller(call)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("wish", "after"),
    [
        ("37", timedelta(seconds=37)),
        (" 0 ", timedelta()),
        ("Fri, 20 Nov 2026 12:01:30 GMT", timedelta(seconds=90)),
        ("Fri, 20 Nov 2026 11:00:00 GMT", timedelta()),
        (None, None),
    ],
)
def test_a_provider_says_when_to_come_back(
    status: int, wish: str | None, after: timedelta | None, caller: Caller, api: Api
) -> None:
    """In seconds or as a date; a 503 that names no time is a server in trouble like any other."""
    api.will(Response(b"slow down", status, headers={"Retry-After": wish} if wish is not None else {}))
    with pytest.raises(Again) as error:
        caller(READ)
    assert error.value.after == after
    assert type(error.value) is (ProviderUnavailable if (status, wish) == (503, None) else Throttled)


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b'{"error": "Rate limit exceeded"}', {}),
        (b'{"message": "rate_limit_exceeded"}', {}),
        (b"<html><h1>Too Many Requests</h1></html>", {}),
        (b"", {"X-RateLimit-Remaining": "0"}),
    ],
)
def test_a_503_that_speaks_of_a_limit_is_a_throttle(
    body: bytes, headers: dict[str, str], caller: Caller, api: Api
) -> None:
    """Timekit refuses so what is above its limit; nobody says in which words."""
    heard = Heard()
    api.will(Response(body, 503, headers=headers))
    with pytest.raises(Throttled, match="session: answered 503") as error:
        replace(caller, circuits=heard)(READ)
    assert error.value.after is None
    assert heard.told == ["asked"]


@pytest.mark.parametrize(
    "wish", ["", "soon", "-5", "1.5", "²", "9" * 40, "Fri, 99 Nov 2026 12:00:00 GMT", "Fri, 20 Nov 999999 12:00:00 GMT"]
)
def test_a_wish_that_makes_no_sense_is_none(wish: str) -> None:
    """Our own backoff does then."""
    assert retry_after(wish, NOW) is None


def test_a_date_without_a_zone_is_utc() -> None:
    assert retry_after("Fri, 20 Nov 2026 12:00:05 -0000", NOW) == timedelta(seconds=5)


def test_a_redirect_is_not_followed(caller: Caller, api: Api) -> None:
    """Our key is for the address that the configuration names, and for no other."""
    api.will(RedirectResponse(f"{api.url}/elsewhere"), JSONResponse({"id": 7}))
    with pytest.raises(ProviderUnavailable, match="answered 307"):
        caller(READ)
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"<!doctype html><title>Down for maintenance</title>",
        b'{"data": {"id": 40',
        b"",
        b"\xff\xfe",
        b"[" * 100_000,
    ],
    ids=["html", "cut short", "nothing", "no text", "bottomless"],
)
def test_a_200_without_json_is_no_answer(body: bytes, caller: Caller, api: Api) -> None:
    """A proxy in front of the provider says so too; later it may be better."""
    api.will(Response(body, 200, media_type="application/json"))
    with pytest.raises(ProviderUnavailable, match="session: answered 200 without JSON"):
        caller(READ)


def test_telling_needs_no_answer(caller: Caller, api: Api) -> None:
    """A POST that is answered 204, or with nothing, is done."""
    call = Call(name="acknowledge", method="POST", path="/message/7", auth=Auth.BEARER_KEY)
    for status in (200, 204):
        api.will(Response(b"", status))
        assert (caller(call).status, api.asked[0].method) == (status, "POST")


def test_what_postgres_cannot_hold_is_taken_out(caller: Caller, api: Api) -> None:
    """An answer is kept as jsonb."""
    api.will(Response(b'{"name": "a\\u0000b\\ud800", "cost": NaN}', 200))
    assert "\x00" not in str(caller(READ).body)
    api.will(Response(b'{"cost": NaN}', 200))
    assert caller(READ).body == {"cost": None}


# --- weather -------------------------------------------------------------------------------------------------


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: application/json", *lines, "", ""]).encode()


def cut_short(connection: socket.socket) -> None:
    """Less than was announced."""
    connection.recv(65536)
    connection.sendall(head("Content-Length: 1000") + b'{"id": ')


def reset(connection: socket.socket) -> None:
    """RST in the middle of the body."""
    connection.recv(65536)
    connection.sendall(head("Content-Length: 1000") + b'{"id": ')
    time.sleep(0.05)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def no_http(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")


def nothing(connection: socket.socket) -> None:
    """Closes without a word."""
    connection.recv(65536)


def not_gzip(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(head("Content-Encoding: gzip", "Content-Length: 9") + b"not gzip!")


def drip(connection: socket.socket) -> None:
    """A byte now and then, for ever: no single read ever waits for long."""
    connection.recv(65536)
    connection.sendall(head("Transfer-Encoding: chunked"))
    while True:
        connection.sendall(b"1\r\n[\r\n")
        time.sleep(0.02)


def drip_head(connection: socket.socket) -> None:
    """The same before the body: a header line now and then, for ever."""
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"x-more: 1\r\n")
        time.sleep(0.02)


def drip_promises(connection: socket.socket) -> None:
    """The answer is always about to come."""
    connection.recv(65536)
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.02)


def endless_head(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nx-more: ")
    while True:
        connection.sendall(b"x" * 65536)


def chunk_cut(connection: socket.socket) -> None:
    """What came of it would even be JSON."""
    connection.recv(65536)
    connection.sendall(head("Transfer-Encoding: chunked") + b"9\r\n" + b'{"id": 7}\r\n')


def length_cut(connection: socket.socket) -> None:
    connection.recv(65536)
    connection.sendall(head("Content-Length: 10") + b'{"id": 7}')


def half_gzip(connection: socket.socket) -> None:
    """A packed body without its second half, and nothing that says how long it was."""
    connection.recv(65536)
    connection.sendall(head("Content-Encoding: gzip", "Connection: close") + gzip.compress(b'{"id": 7}')[:-12])


def no_length(connection: socket.socket) -> None:
    """The end of the connection is the end of the body, so only the JSON shows that it was cut."""
    connection.recv(65536)
    connection.sendall(head("Connection: close") + b'{"id": 7')


MANNERS = [
    *(cut_short, reset, no_http, nothing, not_gzip, half_gzip, chunk_cut, length_cut, no_length),
    *(drip, drip_head, drip_promises, endless_head),
]


@pytest.mark.parametrize("manner", MANNERS, ids=lambda one: one.__name__)
def test_a_connection_that_fails(manner: Callable[[socket.socket], None], caller: Caller) -> None:
    """Whatever the network does, the call comes back later, and soon enough."""
    begin = time.monotonic()
    with listening(manner) as port, pytest.raises(ProviderUnavailable) as error:
        towards(caller, f"http://127.0.0.1:{port}", longest=timedelta(seconds=0.3))(READ)
    assert str(error.value).startswith("session: ")
    assert time.monotonic() - begin < 3
    if manner.__name__.startswith("drip"):
        assert str(error.value) == "session: the answer took longer than 0.3 s"


@pytest.mark.parametrize("manner", [no_http, silence, nothing], ids=lambda one: one.__name__)
def test_tls_that_fails(manner: Callable[[socket.socket], None], caller: Caller) -> None:
    """Also when the handshake never ends."""
    begin = time.monotonic()
    with listening(manner) as port, pytest.raises(ProviderUnavailable):
        towards(caller, f"https://127.0.0.1:{port}", longest=timedelta(seconds=0.3))(READ)
    assert time.monotonic() - begin < 3


def test_a_name_that_nobody_answers_for(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver takes up to half a minute; we do not."""
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(20) and [])
    begin = time.monotonic()
    try:
        with pytest.raises(ProviderUnavailable, match=r"session: the answer took longer than 0\.2 s"):
            towards(caller, "http://api.example.org", longest=timedelta(seconds=0.2))(READ)
    finally:
        answered.set()
    assert time.monotonic() - begin < 3


def test_the_time_for_an_answer_is_that_of_all_its_parts(caller: Caller, api: Api, http: httpx.Client) -> None:
    """An outer limit holds for whatever is asked inside of it."""
    begin = time.monotonic()
    with (
        silent_server() as port,
        wire.within(timedelta(seconds=0.3)),
        pytest.raises(ProviderUnavailable, match=r"longer than 0\.3 s"),
    ):
        towards(caller, f"http://127.0.0.1:{port}")(READ)
    assert time.monotonic() - begin < 3


# --- kept connections ----------------------------------------------------------------------------------------

OK = head("Content-Length: 2") + b"[]"


@dataclass
class Keeps:
    """A server that keeps each connection for one answer, and closes it when the next request is on its way."""

    requests: list[bytes] = field(default_factory=list)

    def __call__(self, connection: socket.socket) -> None:
        for answer in (OK, b""):
            self.requests.append(connection.recv(65536))
            connection.sendall(answer)


def test_a_connection_that_the_server_just_closed_is_no_failure(caller: Caller) -> None:
    """A GET goes out again, on a connection of its own."""
    server = Keeps()
    with listening(server) as port, calls.client() as own:
        asks = towards(caller, f"http://127.0.0.1:{port}", http=own)
        assert [asks(READ).body, asks(READ).body] == [[], []]
    assert len([request for request in server.requests if request]) == 3


def test_what_may_have_been_done_is_not_sent_twice(caller: Caller) -> None:
    """Nobody knows whether a POST arrived; it comes back with the next attempt."""
    server = Keeps()
    tell = Call(name="acknowledge", method="POST", path="/message/7", auth=Auth.BEARER_KEY)
    with listening(server) as port, calls.client() as own:
        asks = towards(caller, f"http://127.0.0.1:{port}", http=own)
        asks(READ)
        with pytest.raises(ProviderUnavailable, match="acknowledge: RemoteProtocolError"):
            asks(tell)
    assert len([request for request in server.requests if request.startswith(b"POST")]) == 1


def test_a_new_connection_that_is_closed_is_a_failure(caller: Caller) -> None:
    """Asked once, not twice."""
    requests = list[bytes]()
    with listening(lambda one: requests.append(one.recv(65536))) as port, pytest.raises(ProviderUnavailable):
        towards(caller, f"http://127.0.0.1:{port}")(READ)
    assert len(requests) == 1


def test_an_endpoints_cookies_are_not_anothers(caller: Caller, api: Api) -> None:
    """Two venues share a provider's host, and one client."""
    api.will(JSONResponse([], headers={"set-cookie": "session=s3ss10n; Path=/"}), JSONResponse([]))
    caller(READ)
    caller(READ)
    assert [request.headers.get("cookie") for request in api.asked] == [None, None]


def test_sixteen_threads_ask_at_the_same_time(caller: Caller) -> None:
    """With one client: the server answers nobody before all have asked."""
    together = threading.Barrier(16)

    def answer(connection: socket.socket) -> None:
        connection.recv(65536)
        together.wait(10)
        connection.sendall(OK)

    with listening(answer) as port, ThreadPoolExecutor(16) as pool, calls.client() as own:
        asks = towards(caller, f"http://127.0.0.1:{port}", http=own)
        assert list(pool.map(lambda _: asks(READ).status, range(16))) == [200] * 16


def test_a_server_that_never_answers(caller: Caller) -> None:
    """The wait ends with the client's timeout."""
    begin = time.monotonic()
    with silent_server() as port, httpx.Client(timeout=0.2) as impatient, pytest.raises(ProviderUnavailable) as error:
        towards(caller, f"http://127.0.0.1:{port}", http=impatient)(READ)
    assert str(error.value) == "session: ReadTimeout"
    assert time.monotonic() - begin < 5


def test_the_clients_own_patience(http: httpx.Client) -> None:
    """Well inside of the 12 seconds that a delivery may go on asking."""
    assert http.timeout == httpx.Timeout(5.0, connect=2.0)
    assert wire.LONGEST.total_seconds() == 10
    assert not http.follow_redirects


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{free}", "http://127.0.0.1:notaport", "http://[::1", "http://.", "http://\N{SNOWMAN}.invalid."],
)
def test_an_address_that_leads_nowhere(url: str, caller: Caller) -> None:
    """Refused, or no address at all: the delivery waits for the mend."""
    with pytest.raises(ProviderUnavailable):
        towards(caller, url.format(free=free_port()))(READ)


def huge() -> Iterator[bytes]:
    for _ in range(1000):
        yield b"[" * 65536


@pytest.mark.parametrize(
    "answer",
    [
        lambda: StreamingResponse(huge()),
        lambda: Response(gzip.compress(b"[" * 16 * 1024 * 1024), headers={"content-encoding": "gzip"}),
    ],
    ids=["streamed", "packed"],
)
def test_a_huge_answer_is_not_read_to_its_end(answer: Callable[[], Response], caller: Caller, api: Api) -> None:
    """It would fill the worker's memory."""
    api.will(answer())
    with pytest.raises(ProviderUnavailable, match="answered more than 8388608 bytes"):
        caller(READ)


# --- what a circuit learns of it -------------------------------------------------------------------------------


@dataclass
class Heard:
    """What a circuit is told."""

    told: list[Any] = field(default_factory=list)

    def check(self, endpoint: str) -> None:
        self.told.append("asked")

    def succeeded(self, endpoint: str) -> None:
        self.told.append("there")

    def failed(self, endpoint: str, wish: timedelta | None = None) -> None:
        self.told.append("away" if wish is None else wish)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (JSONResponse({"id": 7}), "there"),
        (Response(b"", 404), "there"),
        (Response(b"", 400), "there"),
        (Response(b"", 401), "there"),
        (Response(b"", 500), "away"),
        (Response(b"", 502), "away"),
        (Response(b"", 503), "away"),
        (Response(b"", 503, headers={"retry-after": "7"}), timedelta(seconds=7)),
        (Response(b"", 429, headers={"retry-after": "7"}), timedelta(seconds=7)),
        (Response(b"", 429), None),
        (Response(b"<html>", 200), "away"),
        (Response(b"", 200), "away"),
        (Response(b"<html>", 404), "away"),
    ],
)
def test_what_a_circuit_learns(answer: Response, told: Any, caller: Caller, api: Api) -> None:
    """Whether the API is there, which is another question than whether it likes what we ask."""
    heard = Heard()
    api.will(answer)
    with suppress(DeliveryError):
        replace(caller, circuits=heard)(READ)
    assert heard.told == ["asked", *([told] if told is not None else [])]


@pytest.mark.parametrize("manner", [nothing, drip, cut_short], ids=lambda one: one.__name__)
def test_a_circuit_learns_of_what_is_no_answer(manner: Callable[[socket.socket], None], caller: Caller) -> None:
    heard = Heard()
    with listening(manner) as port:
        asks = towards(caller, f"http://127.0.0.1:{port}", longest=timedelta(seconds=0.2), circuits=heard)
        with pytest.raises(ProviderUnavailable):
            asks(READ)
    assert heard.told == ["asked", "away"]


def test_what_is_not_the_apis_fault_says_nothing(caller: Caller, api: Api) -> None:
    """Credentials that are not set, and a database that does not tell the token."""
    heard = Heard()
    api.will()
    with pytest.raises(CredentialsMissing):
        towards(caller, api.url, secrets={}, circuits=heard)(READ)
    with pytest.raises(DatabaseTrouble, match="postgres: OperationalError"):
        replace(caller, circuits=heard)(OAUTH)
    assert heard.told == ["asked", "asked"]
    assert api.asked == []


def test_a_cached_answer_asks_no_circuit(caller: Caller, api: Api) -> None:
    heard = Heard()
    api.will(JSONResponse([1]))
    caller(ROOMS)
    assert replace(caller, circuits=heard)(ROOMS).body == [1]
    assert heard.told == []


# --- its turn ------------------------------------------------------------------------------------------------

LIMIT = Limit(account="someone", rate=Rate(per_second=5, burst=10))


@dataclass
class Turns:
    """A bucket that says what a test has put in, and remembers what it was asked and told."""

    waits: list[timedelta] = field(default_factory=list)
    patience: list[timedelta] = field(default_factory=list)
    held: list[timedelta] = field(default_factory=list)

    def take(self, limit: Limit, patience: timedelta) -> timedelta:
        assert limit == LIMIT
        self.patience.append(patience)
        return self.waits.pop(0) if self.waits else timedelta()

    def hold(self, limit: Limit, wait: timedelta) -> None:
        assert limit == LIMIT
        self.held.append(wait)


def counted(caller: Caller, turns: Turns) -> Caller:
    return replace(caller, buckets=turns, limit=LIMIT)


def test_what_would_wait_too_long_is_not_asked(caller: Caller, api: Api) -> None:
    """It comes back when there is a token; that says nothing about the API, and no circuit hears of it."""
    heard, turns = Heard(), Turns(waits=[timedelta(seconds=17)])
    api.will()
    with pytest.raises(NotYet) as error:
        replace(counted(caller, turns), circuits=heard)(READ)
    assert str(error.value) == "session: not asked yet: we stay below the provider's limit"
    assert (error.value.after, error.value.reason) == (timedelta(seconds=17), "throttled")
    assert isinstance(error.value, Throttled)
    assert heard.told == ["asked"]
    assert api.asked == []


def test_the_answer_has_half_of_the_time(caller: Caller, api: Api) -> None:
    """A call waits for its turn for five of its ten seconds, or for half of what an outer limit leaves."""
    turns = Turns()
    api.will(JSONResponse([]), JSONResponse([]))
    counted(caller, turns)(READ)
    with wire.within(timedelta(seconds=2)):
        counted(caller, turns)(READ)
    first, second = turns.patience
    assert timedelta(seconds=4) < first <= timedelta(seconds=5)
    assert timedelta(seconds=0.5) < second <= timedelta(seconds=1)


def test_every_request_takes_a_turn(logged_in: Caller, api: Api) -> None:
    """A lookup, the asking again with a renewed token, an acknowledgement; the renewal itself takes none."""
    turns = Turns()
    api.will(JSONResponse({}, 401), JSONResponse(FRESH), JSONResponse({"id": 7}), Response(b"", 204))
    counted(logged_in, turns)(OAUTH)
    assert (len(turns.patience), len(api.asked)) == (2, 3)
    counted(logged_in, turns)(Call(name="acknowledge", method="POST", path="/message/7", auth=Auth.OAUTH))
    assert (len(turns.patience), len(api.asked)) == (3, 4)


def test_no_turn_for_the_asking_again(logged_in: Caller, api: Api) -> None:
    """The renewed token is kept, and the circuit learns nothing."""
    heard, turns = Heard(), Turns(waits=[timedelta(), timedelta(seconds=9)])
    api.will(JSONResponse({}, 401), JSONResponse(FRESH))
    with pytest.raises(NotYet):
        replace(counted(logged_in, turns), circuits=heard)(OAUTH)
    kept = logged_in.tokens.get("venue")
    assert kept is not None
    assert kept.access_token == "fresh-t0ken"
    assert heard.told == ["asked"]


def test_what_asks_nobody_takes_no_turn(caller: Caller, api: Api) -> None:
    """A cached answer, and a call without a key."""
    turns = Turns()
    api.will(JSONResponse([1]))
    caller(ROOMS)
    assert counted(caller, turns)(ROOMS).body == [1]
    with pytest.raises(CredentialsMissing):
        counted(towards(caller, api.url, secrets={}), turns)(READ)
    assert turns.patience == []


SENT = {"date": "Fri, 20 Nov 2026 11:58:00 GMT"}
"""By a server whose clock is two minutes behind ours."""
RESET = str(int(NOW.timestamp()) - 113)
"""Seven seconds later."""


@pytest.mark.parametrize(
    ("status", "headers", "wait"),
    [
        (200, {}, None),
        (200, {"x-ratelimit-remaining": "1", "x-ratelimit-reset": RESET}, None),
        (200, {"retry-after": "7"}, None),
        (500, {"retry-after": "7"}, None),
        (503, {}, None),
        # The last one for now, of whatever status.
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": RESET}, 7),
        (404, {"x-ratelimit-remaining": " 0 ", "x-ratelimit-reset": RESET}, 7),
        (200, {"x-ratelimit-remaining": "0", "retry-after": "3", "x-ratelimit-reset": RESET}, 3),
        (200, {"x-ratelimit-remaining": "0"}, None),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "30"}, 0),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "soon"}, None),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "9" * 400}, None),
        (200, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": RESET, "date": "today"}, 0),
        # A refusal; one that names no time means a moment.
        (429, {"retry-after": "7", "x-ratelimit-reset": "1"}, 7),
        (429, {"x-ratelimit-reset": RESET}, 7),
        (429, {}, 1),
        (429, {"retry-after": "0"}, 0),
        (503, {"retry-after": "7"}, 7),
        (503, {"x-ratelimit-remaining": "0"}, 1),
    ],
)
def test_what_an_answer_says_about_the_calls_to_come(status: int, headers: dict[str, str], wait: int | None) -> None:
    """`X-RateLimit-Reset` is read by the clock of who sends it."""
    reply = Reply(status, httpx.Headers(SENT | headers), b"")
    assert pause(reply, NOW) == (None if wait is None else timedelta(seconds=wait))


@pytest.mark.parametrize(
    ("answer", "held"),
    [
        (JSONResponse([]), []),
        (JSONResponse([], headers={"x-ratelimit-remaining": "0", "retry-after": "4"}), [timedelta(seconds=4)]),
        (Response(b"", 429, headers={"retry-after": "7"}), [timedelta(seconds=7)]),
        (Response(b"", 429, headers={"retry-after": "0"}), []),
        (Response(b"rate limit", 503), [timedelta(seconds=1)]),
        (Response(b"", 503), []),
    ],
)
def test_an_answer_holds_the_bucket(answer: Response, held: list[timedelta], caller: Caller, api: Api) -> None:
    turns = Turns()
    api.will(answer)
    with suppress(DeliveryError):
        counted(caller, turns)(READ)
    assert turns.held == held


# --- what is never shown -------------------------------------------------------------------------------------


def shown(error: BaseException) -> str:
    """All that a log, Flower or the column `error` could show of it."""
    return "".join([str(error), repr(error), repr(error.args), *traceback.format_exception(error)])


TROUBLE: Sequence[tuple[str, Any]] = (
    ("unauthorized", 401),
    ("not found", 404),
    ("throttled", 429),
    ("broken", 500),
    ("redirect", 302),
    ("garbage", 200),
    ("reset", reset),
    ("cut short", cut_short),
    ("no http", no_http),
    ("silent", None),
)


@pytest.mark.parametrize("trouble", [trouble for _, trouble in TROUBLE], ids=[name for name, _ in TROUBLE])
@pytest.mark.parametrize("auth", [Auth.KEY_IN_PATH, Auth.BEARER_KEY, Auth.BASIC_EMPTY_USER])
def test_a_key_is_never_shown(
    trouble: Any, auth: Auth, caller: Caller, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in an error, not in its traceback, and not in a log, however talkative that is set."""
    caplog.set_level(logging.DEBUG)
    call = Call(name="session", path="/data/{key}/session", auth=auth)
    with pytest.raises(DeliveryError) as error:
        _in_trouble(call, trouble, caller, api)
    visible = shown(error.value) + caplog.text
    assert not [form for form in (*KEY_FORMS, "k3y") if form in visible]
    assert error.value.__cause__ is None  # it would hold the request


def _in_trouble(call: Call, trouble: Any, caller: Caller, api: Api) -> None:
    if isinstance(trouble, int):
        api.will(Response(f"you said {KEY}", trouble, headers={"location": f"/data/{KEY_FORMS[1]}"}))
        caller(call)
    elif trouble is None:
        with silent_server() as port, calls.client() as impatient:
            impatient.timeout = httpx.Timeout(0.1)
            towards(caller, f"http://127.0.0.1:{port}", http=impatient)(call)
    else:
        with listening(trouble) as port:
            towards(caller, f"http://127.0.0.1:{port}")(call)


@pytest.mark.parametrize("auth", [Auth.KEY_IN_PATH, Auth.BEARER_KEY, Auth.BASIC_KEY_SECRET])
def test_a_key_is_not_in_what_is_kept(auth: Auth, caller: Caller, api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """An answer goes into `deliveries.lookup`; the caller itself may be printed by a debugger."""
    caplog.set_level(logging.DEBUG)
    api.will(JSONResponse({"id": 7}))
    answer = caller(Call(name="session", path="/data/{key}/session", auth=auth))
    visible = repr(answer) + repr(caller) + caplog.text
    assert "k3y" not in visible
    assert "s3cret" not in visible


# --- the cache -----------------------------------------------------------------------------------------------

ROOMS = Call(name="rooms", path="/rooms", auth=Auth.BEARER_KEY, cache=timedelta(minutes=10))


def test_an_answer_serves_other_deliveries_for_a_while(caller: Caller, api: Api) -> None:
    """The same endpoint's, by the call's name; another endpoint asks for itself."""
    api.will(JSONResponse([1]), JSONResponse([2]))
    assert [caller(ROOMS).body, caller(ROOMS).body] == [[1], [1]]
    neighbour = Endpoint(name="neighbour", provider="someone", api_url=api.url, secrets=ALL)
    assert towards(caller, "", endpoint=neighbour)(ROOMS).body == [2]
    assert len(api.asked) == 2


def test_an_answer_gets_old(caller: Caller, api: Api) -> None:
    call = Call(name="rooms", path="/rooms", auth=Auth.BEARER_KEY, cache=timedelta(milliseconds=20))
    api.will(JSONResponse([1]), JSONResponse([2]))
    assert caller(call).body == [1]
    time.sleep(0.05)
    assert caller(call).body == [2]


def test_a_call_without_a_cache_is_asked_each_time(caller: Caller, api: Api) -> None:
    api.will(JSONResponse([1]), JSONResponse([2]))
    assert [caller(READ).body, caller(READ).body] == [[1], [2]]


def test_a_failure_is_not_cached(caller: Caller, api: Api) -> None:
    """Neither is a status that the call accepts."""
    gone = Call(name="rooms", path="/rooms", auth=Auth.BEARER_KEY, accepts=frozenset({404}), cache=timedelta(hours=1))
    api.will(Response(b"", 500), Response(b"", 404), JSONResponse([1]))
    with pytest.raises(ProviderUnavailable):
        caller(gone)
    assert caller(gone).status == 404
    assert caller(gone).body == [1]


def test_the_cache_does_not_grow_without_end(caller: Caller, api: Api) -> None:
    cache = Cache()
    for number in range(3000):
        call = Call(name=f"slot-{number}", path="/x", auth=Auth.BEARER_KEY, cache=timedelta(hours=1))
        cache.put("venue", call, calls.Answer(status=200, body=number, at=NOW))
    assert cache.get("venue", call) is not None
    assert len(cache._kept) <= 1001


# --- OAuth ---------------------------------------------------------------------------------------------------

OAUTH = Call(name="message", path="/message/7", auth=Auth.OAUTH, accepts=frozenset({404}))
FRESH = {"access_token": "fresh-t0ken", "refresh_token": "renew-2", "expires_in": 3600}


@pytest.fixture
def logged_in(caller: Caller, api: Api, engine: Engine) -> Caller:
    """An endpoint with an application of its own and a token in Postgres."""
    tokens = Tokens(engine, Seal("0123456789abcdef"), clock)
    tokens.keep("venue", Token(access_token="old-t0ken", refresh_token="renew-1"))
    secrets = {"client_id": "partner", "client_secret": "s3cret"}
    endpoint = Endpoint(name="venue", provider="someone", api_url=api.url, secrets=frozenset(secrets))
    return Caller(**{**vars(caller), "endpoint": endpoint, "secrets": secrets, "tokens": tokens})


def bearers(api: Api) -> list[tuple[str, str | None]]:
    return [(asked.url.path, asked.headers.get("authorization")) for asked in api.asked]


def test_a_token_that_works_is_left_alone(logged_in: Caller, api: Api) -> None:
    api.will(JSONResponse({"id": 7}))
    assert logged_in(OAUTH).body == {"id": 7}
    assert bearers(api) == [("/message/7", "Bearer old-t0ken")]


@pytest.mark.parametrize(
    "refusal",
    [(401, {"message": "expired"}), (401, None), (200, {"error": "invalid_token"})],
    ids=["401", "401 without a body", "error in a 200"],
)
def test_a_refused_token_is_refreshed_once(refusal: tuple[int, Any], logged_in: Caller, api: Api) -> None:
    """And the call is made again with the new one, which is kept."""
    status, body = refusal
    api.will(
        JSONResponse(body, status) if body else Response(b"", status), JSONResponse(FRESH), JSONResponse({"id": 7})
    )
    assert logged_in(OAUTH).body == {"id": 7}
    assert bearers(api) == [
        ("/message/7", "Bearer old-t0ken"),
        ("/access_token", None),
        ("/message/7", "Bearer fresh-t0ken"),
    ]
    kept = logged_in.tokens.get("venue")
    assert kept is not None
    assert (kept.access_token, kept.refresh_token) == ("fresh-t0ken", "renew-2")


@pytest.mark.parametrize("again", [JSONResponse({}, 401), JSONResponse({"error": "invalid_token"})], ids=["401", "200"])
def test_a_token_that_is_refused_again_waits_for_a_person(again: Response, logged_in: Caller, api: Api) -> None:
    """One refresh, not one after the other."""
    api.will(JSONResponse({}, 401), JSONResponse(FRESH), again)
    with pytest.raises(CredentialsRefused, match="message: the token is refused, also after a refresh"):
        logged_in(OAUTH)
    assert len(api.asked) == 3


@pytest.mark.parametrize(
    ("status", "fate"), [(403, CredentialsRefused), (422, Refused), (429, Throttled), (500, ProviderUnavailable)]
)
def test_other_refusals_cost_no_refresh(status: int, fate: type[DeliveryError], logged_in: Caller, api: Api) -> None:
    """From 400 on the status says what it is, also where the body has the key `error`."""
    api.will(JSONResponse({"error": "rate_limit"}, status, headers={"retry-after": "3"}))
    with pytest.raises(fate):
        logged_in(OAUTH)
    assert len(api.asked) == 1


def test_a_message_that_is_gone_costs_no_refresh(logged_in: Caller, api: Api) -> None:
    """It is an answer, which the call accepts."""
    api.will(JSONResponse({"error": "Message not found"}, 404))
    assert logged_in(OAUTH).status == 404
    assert len(api.asked) == 1


@pytest.mark.parametrize(
    ("answer", "fate"),
    [
        (JSONResponse({"error": "invalid_grant"}, 400), CredentialsRefused),
        (JSONResponse({"error": "invalid_grant"}, 200), CredentialsRefused),
        (JSONResponse({"message": "no"}, 403), CredentialsRefused),
        (Response(b"<html>", 502), ProviderUnavailable),
        (Response(b"<html>", 200), ProviderUnavailable),
        (Response(b"{}", 503), ProviderUnavailable),
        (Response(b"<html>", 503, headers={"retry-after": "7"}), Throttled),
        (Response(b"{}", 429), Throttled),
        (Response(b"", 302, headers={"location": "/elsewhere"}), ProviderUnavailable),
        (Response(b"{}", 200), ProviderUnavailable),
        (JSONResponse({"access_token": 5}), ProviderUnavailable),
        (JSONResponse(["access_token"]), ProviderUnavailable),
        (Response(b"[" * 100_000, 200), ProviderUnavailable),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else f"{value.status_code} {value.body[:20]!r}",
)
def test_a_refresh_that_fails(
    answer: Response, fate: type[DeliveryError], logged_in: Caller, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """The old token stays; no token and no secret is shown."""
    caplog.set_level(logging.DEBUG)
    api.will(JSONResponse({}, 401), answer)
    with pytest.raises(fate) as error:
        logged_in(OAUTH)
    assert type(error.value) is fate
    kept = logged_in.tokens.get("venue")
    assert kept is not None
    assert (kept.access_token, kept.refresh_token) == ("old-t0ken", "renew-1")
    visible = shown(error.value) + caplog.text + repr(logged_in)
    assert not [secret for secret in ("old-t0ken", "renew-1", "s3cret") if secret in visible]


@pytest.mark.parametrize("status", [429, 503])
def test_the_token_endpoint_says_when_to_come_back(status: int, logged_in: Caller, api: Api) -> None:
    heard = Heard()
    api.will(JSONResponse({}, 401), Response(b"slow down", status, headers={"retry-after": "37"}))
    with pytest.raises(Throttled, match=f"token endpoint: answered {status}") as error:
        replace(logged_in, circuits=heard)(OAUTH)
    assert error.value.after == timedelta(seconds=37)
    assert heard.told == ["asked", timedelta(seconds=37)]


def test_a_token_endpoint_that_is_away_is_an_api_that_is_away(logged_in: Caller, api: Api) -> None:
    """Without a token there is nothing to ask for."""
    heard = Heard()
    api.will(JSONResponse({}, 401), Response(b"", 502))
    with pytest.raises(ProviderUnavailable, match="token endpoint: answered 502"):
        replace(logged_in, circuits=heard)(OAUTH)
    assert heard.told == ["asked", "away"]


def test_a_token_is_not_renewed_in_a_hurry(logged_in: Caller, api: Api) -> None:
    """An answer that is cut off takes the only refresh token with it."""
    api.will(JSONResponse({}, 401))
    with pytest.raises(ProviderUnavailable, match="no time left to renew"):
        replace(logged_in, longest=timedelta(seconds=4))(OAUTH)
    assert len(api.asked) == 1


def test_a_pasted_access_token(caller: Caller, api: Api) -> None:
    """Is used as it is, and when it is refused nothing can renew it."""
    endpoint = Endpoint(name="venue", provider="someone", api_url=api.url, secrets=frozenset({"access_token"}))
    pasted = towards(caller, "", endpoint=endpoint, secrets={"access_token": "pasted"})
    api.will(JSONResponse({"id": 7}), JSONResponse({}, 401))
    assert pasted(OAUTH).body == {"id": 7}
    assert bearers(api) == [("/message/7", "Bearer pasted")]
    with pytest.raises(CredentialsRefused, match="ACCESS_TOKEN is refused; paste a new one"):
        pasted(OAUTH)


def test_without_a_token_the_way_to_one_is_named(logged_in: Caller, api: Api, engine: Engine) -> None:
    api.will()
    empty = Endpoint(name="other", provider="someone", api_url=api.url)
    with pytest.raises(CredentialsMissing, match="run `reservoir lockme login other`"):
        towards(logged_in, "", endpoint=empty)(OAUTH)


def test_a_kept_token_without_an_application_cannot_be_renewed(logged_in: Caller, api: Api) -> None:
    """What was pasted from the panel works until it ends."""
    api.will(JSONResponse({}, 401))
    alone = Endpoint(name="venue", provider="someone", api_url=api.url)
    with pytest.raises(CredentialsMissing, match="renewing it takes CLIENT_ID and CLIENT_SECRET"):
        towards(logged_in, "", endpoint=alone, secrets={})(OAUTH)


def test_the_application_of_an_endpoint() -> None:
    """Its addresses stand on the API's host, in front of any version."""
    secrets = {"client_id": "partner", "client_secret": "s3cret"}
    lockme = discover()["lockme"]
    endpoint = Endpoint(name="vault", provider="lockme", secrets=frozenset(secrets))
    application = oauth_client(lockme, endpoint, secrets)
    assert application is not None
    assert application.authorize_url == "https://api.lock.me/authorize"
    assert application.token_url == "https://api.lock.me/access_token"
    assert application.scope == "rooms_manage"
    assert api_base(lockme, endpoint) == "https://api.lock.me/v2.4"
    assert "s3cret" not in repr(application)
    assert oauth_client(lockme, Endpoint(name="vault", provider="lockme"), {}) is None


def test_an_answer_is_dated_when_it_was_asked_for(caller: Caller, api: Api) -> None:
    """What changes at the provider while the answer is on its way may not be in it."""
    moments = iter([NOW, NOW + timedelta(seconds=20)])
    api.will(JSONResponse({"status": "PAID"}))
    assert replace(caller, clock=lambda: next(moments))(READ).at == NOW
