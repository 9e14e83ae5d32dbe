"""OAuth tokens: sealed at rest, refreshed in time, and by one process at a time, against the simulated Lockme."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from random import Random
from threading import Barrier as ThreadBarrier
from threading import Event
from typing import Any

import httpx
import pytest
from serving import PLAIN, free_port, serving
from sqlalchemy import Engine, create_engine, text
from starlette.types import ASGIApp, Receive, Scope, Send

from schemas.delivery import now
from schemas.endpoints import Endpoint
from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.lockme import Lockme
from simulators.server import build, mount_path
from workers.calls import client, oauth_client
from workers.database import engine as make_engine
from workers.database import sqlalchemy_url
from workers.errors import (
    CredentialsMissing,
    CredentialsRefused,
    DatabaseTrouble,
    DeliveryError,
    ProviderUnavailable,
)
from workers.registry import discover
from workers.seal import Seal, Unsealable
from workers.tokens import EARLY, PATIENCE, BadToken, OAuthClient, Token, Tokens, read_token

SECRET = "the secret of this installation"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOKEN = Token(access_token="the-access-t0ken", refresh_token="the-refresh-t0ken", expires_at=NOW + HOUR)


def tokens_of(engine: Engine, at: datetime = NOW, secret: str = SECRET) -> Tokens:
    return Tokens(engine, Seal(secret), lambda: at)


def never(refresh_token: str) -> Token:
    raise AssertionError("nothing had to be renewed")


# --- at rest -------------------------------------------------------------------------------------------------


def test_a_token_comes_back_as_it_was_kept(engine: Engine) -> None:
    """To the second, which is more than a provider says; and only the latest is kept."""
    tokens = tokens_of(engine)
    assert tokens.get("vault") is None
    tokens.keep("vault", Token(access_token="first"))
    tokens.keep("vault", TOKEN)
    tokens.keep("other", Token(access_token="no refresh, no end"))
    assert tokens.get("vault") == TOKEN
    assert tokens.get("other") == Token(access_token="no refresh, no end")
    assert tokens.endpoints() == {"vault", "other"}


def test_a_token_is_sealed_in_postgres(engine: Engine) -> None:
    """Whoever reads the table, or a backup of it, has nothing in hand; sealing it again looks different."""
    tokens = tokens_of(engine)
    rows = []
    for _ in range(2):
        tokens.keep("vault", TOKEN)
        with engine.connect() as connection:
            rows.append(connection.execute(text("SELECT endpoint, sealed, tokens::text FROM tokens")).one())
    assert rows[0].sealed != rows[1].sealed
    for row in rows:
        assert row.endpoint == "vault"
        assert not [word for word in (b"t0ken", b"access", b"refresh") if word in bytes(row.sealed)]
        assert "t0ken" not in row[2]


def test_another_secret_opens_nothing(engine: Engine) -> None:
    """The delivery waits, and the reason says what to do."""
    tokens_of(engine).keep("vault", TOKEN)
    stranger = tokens_of(engine, secret="the secret of another installation")
    for attempt in (lambda: stranger.get("vault"), lambda: stranger.fresh("vault", None, never)):
        with pytest.raises(CredentialsRefused, match="sealed with another RESERVOIR_SECRET; log in again"):
            attempt()


def test_a_damaged_seal_is_noticed() -> None:
    """No byte of it can be changed."""
    seal = Seal(SECRET)
    sealed = seal.close(b"plain")
    assert seal.open(sealed) == b"plain"
    damaged = sealed[:-10] + bytes([sealed[-10] ^ 1]) + sealed[-9:]
    for bad in (damaged, sealed[:-1], b"", b"plain"):
        with pytest.raises(Unsealable):
            seal.open(bad)


def test_a_token_does_not_show_itself() -> None:
    assert "t0ken" not in repr(TOKEN) + str(TOKEN)


# --- when it is renewed --------------------------------------------------------------------------------------


def renewed(at: datetime = NOW) -> Token:
    return Token(access_token="new", refresh_token="next", expires_at=at + HOUR)


@pytest.mark.parametrize(
    ("expires_at", "refused", "used"),
    [
        (None, None, "the-access-t0ken"),
        (NOW + HOUR, None, "the-access-t0ken"),
        (NOW + HOUR, "an older one", "the-access-t0ken"),  # somebody else has renewed it since
        (NOW + EARLY + timedelta(seconds=1), None, "the-access-t0ken"),
        (NOW + EARLY, None, "new"),  # it would end on the way
        (NOW - HOUR, None, "new"),
        (NOW + HOUR, "the-access-t0ken", "new"),
        (None, "the-access-t0ken", "new"),
    ],
)
def test_when_a_token_is_renewed(expires_at: datetime | None, refused: str | None, used: str, engine: Engine) -> None:
    """A minute before its end, or when the provider has refused just this one."""
    tokens = tokens_of(engine)
    tokens.keep("vault", Token(access_token="the-access-t0ken", refresh_token="once", expires_at=expires_at))
    traded: list[str] = []

    def renew(refresh_token: str) -> Token:
        traded.append(refresh_token)
        return renewed()

    found = tokens.fresh("vault", refused, renew)
    assert found.access_token == used
    assert traded == (["once"] if used == "new" else [])
    assert tokens.get("vault") == found


def test_a_renewal_without_a_new_refresh_token_keeps_the_old_one(engine: Engine) -> None:
    """Rotation is the provider's choice (RFC 6749, section 6)."""
    tokens = tokens_of(engine)
    tokens.keep("vault", Token(access_token="old", refresh_token="for ever", expires_at=NOW))
    tokens.fresh("vault", None, lambda refresh_token: Token(access_token="new"))
    assert tokens.get("vault") == Token(access_token="new", refresh_token="for ever")


def test_a_renewal_that_fails_leaves_the_token(engine: Engine) -> None:
    """The refresh token may be good yet."""
    tokens = tokens_of(engine)
    ended = Token(access_token="old", refresh_token="once", expires_at=NOW)
    tokens.keep("vault", ended)

    def fails(refresh_token: str) -> Token:
        raise ProviderUnavailable

    with pytest.raises(ProviderUnavailable):
        tokens.fresh("vault", None, fails)
    assert tokens.get("vault") == ended


def test_what_cannot_be_renewed_says_so(engine: Engine) -> None:
    tokens = tokens_of(engine)
    with pytest.raises(CredentialsMissing, match="run `reservoir lockme login vault`"):
        tokens.fresh("vault", None, never)
    tokens.keep("vault", Token(access_token="old", expires_at=NOW))
    with pytest.raises(CredentialsRefused, match="nothing renews it; log in again"):
        tokens.fresh("vault", None, never)


# --- trouble of the database ---------------------------------------------------------------------------------


def test_a_database_that_is_away_parks_nothing() -> None:
    """What waits for a token comes back."""
    away = tokens_of(make_engine("postgresql://nobody@127.0.0.1:1/none"))
    with pytest.raises(DatabaseTrouble, match=r"^postgres: OperationalError$"):
        away.fresh("vault", None, never)


def test_a_database_that_is_not_ready_parks_nothing(engine: Engine) -> None:
    """Nor does one that has not been migrated yet."""
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE tokens"))
    with pytest.raises(DatabaseTrouble, match=r"^postgres: UndefinedTable$"):
        tokens_of(engine).fresh("vault", None, never)


def hang_up(engine: Engine) -> None:
    """PostgreSQL drops everybody else."""
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )


def test_a_token_that_could_not_be_kept_is_not_lost(engine: Engine, database_url: str) -> None:
    """The old refresh token is spent by then: the new one is kept as soon as PostgreSQL is back."""
    tokens, other = tokens_of(engine), make_engine(database_url)
    tokens.keep("vault", Token(access_token="old", refresh_token="once", expires_at=NOW))
    traded: list[str] = []

    def renew(refresh_token: str) -> Token:
        traded.append(refresh_token)
        hang_up(other)
        return renewed()

    with pytest.raises(DatabaseTrouble):
        tokens.fresh("vault", None, renew)
    other.dispose()
    assert tokens_of(engine).get("vault") == Token(access_token="old", refresh_token="once", expires_at=NOW)
    assert tokens.fresh("vault", None, renew) == renewed()
    assert traded == ["once"]
    assert tokens_of(engine).get("vault") == renewed()


def test_a_token_that_could_not_be_kept_gives_way_to_a_newer_one(engine: Engine, database_url: str) -> None:
    """A person has logged in meanwhile."""
    tokens, other = tokens_of(engine), make_engine(database_url)
    tokens.keep("vault", Token(access_token="old", refresh_token="once", expires_at=NOW))
    with pytest.raises(DatabaseTrouble):
        tokens.fresh("vault", None, lambda refresh_token: hang_up(other) or renewed())  # type: ignore[func-returns-value]
    other.dispose()
    tokens.keep("vault", Token(access_token="a person's", refresh_token="a person's", expires_at=NOW))
    again = Token(access_token="newest", refresh_token="newest", expires_at=NOW + HOUR)
    assert tokens.fresh("vault", None, {"a person's": again}.__getitem__) == again


def test_another_workers_renewal_is_not_waited_for_without_end(engine: Engine) -> None:
    """The token endpoint hangs, and it is the other worker that finds out."""
    tokens = tokens_of(engine)
    tokens.keep("vault", Token(access_token="old", refresh_token="once", expires_at=NOW))
    begin = time.monotonic()
    with engine.begin() as connection:
        connection.execute(text("SELECT 1 FROM tokens FOR UPDATE"))
        with pytest.raises(ProviderUnavailable, match="another worker is renewing the token"):
            tokens.fresh("vault", None, never)
    assert PATIENCE.total_seconds() <= time.monotonic() - begin < 8


# --- threads of one process ----------------------------------------------------------------------------------


@pytest.fixture
def narrow(database_url: str) -> Iterator[Engine]:
    """A pool of two, where a thread that finds none does not wait for long."""
    made = create_engine(sqlalchemy_url(database_url), pool_size=2, max_overflow=0, pool_timeout=2)
    yield made
    made.dispose()


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_sixteen_threads_share_one_renewal(ends: str, narrow: Engine) -> None:
    """One connection and one question; what came of it is for all, also when it is an error."""
    tokens = tokens_of(narrow)
    tokens.keep("vault", Token(access_token="old", refresh_token="once", expires_at=NOW))
    traded: list[str] = []
    gate, asked = ThreadBarrier(16), Event()

    def renew(refresh_token: str) -> Token:
        traded.append(refresh_token)
        asked.wait(3)  # longer than the pool has patience
        if ends == "badly":
            raise ProviderUnavailable("token endpoint: ReadTimeout")
        return renewed()

    def one() -> Token | DeliveryError:
        gate.wait(10)
        try:
            return tokens.fresh("vault", None, renew)
        except DeliveryError as error:
            return error

    with ThreadPoolExecutor(16) as pool:
        found = [future.result(20) for future in [pool.submit(one) for _ in range(16)]]
    assert traded == ["once"]
    if ends == "well":
        assert found == [renewed()] * 16
    else:
        assert [str(one) for one in found] == ["token endpoint: ReadTimeout"] * 16


# --- what is pasted ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("document", "token"),
    [
        (
            {"token_type": "Bearer", "access_token": "a", "refresh_token": "r", "expires": 1795000000},
            Token(access_token="a", refresh_token="r", expires_at=datetime.fromtimestamp(1795000000, UTC)),
        ),
        (
            {"access_token": "a", "refresh_token": "r", "expires_in": 3600},
            Token(access_token="a", refresh_token="r", expires_at=NOW + HOUR),
        ),
        (
            {"access_token": "a", "refresh_token": "", "expires": "1795000000"},
            Token(access_token="a", expires_at=datetime.fromtimestamp(1795000000, UTC)),
        ),
        ({"access_token": "a", "refresh_token": None, "expires": None}, Token(access_token="a")),
    ],
    ids=["panel", "token endpoint", "as text", "bare"],
)
def test_the_forms_of_a_token(document: Any, token: Token, engine: Engine) -> None:
    """A panel says when it ends, a token endpoint how long it lasts."""
    assert read_token(document, NOW) == token
    tokens = tokens_of(engine)
    assert tokens.paste("vault", json.dumps(document, indent=2)) == token
    assert tokens.get("vault") == token


@pytest.mark.parametrize(
    "pasted",
    [
        "",
        "the-access-t0ken",
        "[]",
        "{}",
        '{"access_token": 5}',
        '{"access_token": "a", "refresh_token": 5}',
        '{"access_token": "a", "expires": "soon"}',
        '{"access_token": "a", "expires": 1e300}',
        '{"access_token": "a", "expires_in": NaN}',
        '{"access_token": "a", "expires_in": 1e300}',
    ],
)
def test_what_is_no_token(pasted: str, engine: Engine) -> None:
    """Is not kept, and what stands in it is not repeated."""
    tokens = tokens_of(engine)
    with pytest.raises(BadToken) as error:
        tokens.paste("vault", pasted)
    assert tokens.get("vault") is None
    assert not pasted or pasted not in str(error.value)


# --- against the simulated Lockme ----------------------------------------------------------------------------


@dataclass
class Counted:
    """In front of the simulator: counts the requests for a token, and takes its time over them."""

    app: ASGIApp
    forms: list[bytes] = field(default_factory=list)
    seconds: float = 0.3

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path", "").endswith("/access_token"):
            message = await receive()
            self.forms.append(message.get("body", b""))
            await asyncio.sleep(self.seconds)

            async def again() -> Any:
                return message

            await self.app(scope, again, send)
        else:
            await self.app(scope, receive, send)


@dataclass(frozen=True)
class Partner:
    """A simulated Lockme account over HTTP."""

    venue: Lockme
    endpoint: Endpoint
    counted: Counted

    @property
    def application(self) -> OAuthClient:
        found = oauth_client(discover()["lockme"], self.endpoint, self.venue.secrets())
        assert found is not None
        return found

    def works(self, token: Token) -> bool:
        """Whether the API takes it."""
        with httpx.Client(**PLAIN) as http:
            headers = {"authorization": f"Bearer {token.access_token}"}
            return http.get(f"{self.endpoint.api_url}/v2.4/me", headers=headers).status_code == 200


@pytest.fixture
def partner() -> Iterator[Partner]:
    clock = Clock(now())
    venue = Lockme(endpoint="vault", hook_url="", ledger=Ledger(), clock=clock, rng=Random(7), oauth=True)
    counted = Counted(build([venue]))
    with serving(counted) as url:
        settings = venue.settings(url + mount_path(venue))
        secrets = frozenset(venue.secrets())
        yield Partner(
            venue, Endpoint(name="vault", provider="lockme", api_url=settings["api_url"], secrets=secrets), counted
        )


@pytest.fixture
def http() -> Iterator[httpx.Client]:
    with client() as opened:
        yield opened


def test_a_login_from_the_address_to_the_token(partner: Partner, http: httpx.Client, engine: Engine) -> None:
    """A person says yes, the code comes back, the code becomes a token that works and can be renewed."""
    application = partner.application
    address = httpx.URL(application.login_url("http://127.0.0.1:9/back?a=1", "state & more"))
    assert dict(address.params) == {
        "response_type": "code",
        "client_id": partner.venue.client_id,
        "redirect_uri": "http://127.0.0.1:9/back?a=1",
        "scope": "rooms_manage",
        "state": "state & more",
    }
    back = httpx.URL(http.get(address).headers["location"])
    assert back.params["state"] == "state & more"
    token = application.exchange(http, back.params["code"], "http://127.0.0.1:9/back?a=1", now())
    assert partner.works(token)
    assert token.expires_at is not None
    assert timedelta(minutes=59) < token.expires_at - now() <= HOUR
    with pytest.raises(CredentialsRefused, match=r"refuses \(400\); log in again"):
        application.exchange(http, back.params["code"], "http://127.0.0.1:9/back?a=1", now())
    tokens = tokens_of(engine, now())
    tokens.keep("vault", token)
    second = tokens.fresh("vault", token.access_token, lambda refresh: application.refresh(http, refresh, now()))
    assert partner.works(second)
    assert not partner.works(token)


def test_a_refresh_token_is_good_once(partner: Partner, http: httpx.Client) -> None:
    """So it is in this simulator; that is what makes the lock worth having."""
    panel = read_token(partner.venue.panel_token(), now())
    assert panel.refresh_token is not None
    assert partner.works(partner.application.refresh(http, panel.refresh_token, now()))
    with pytest.raises(CredentialsRefused):
        partner.application.refresh(http, panel.refresh_token, now())


def test_a_refusal_in_a_200_is_a_refusal(partner: Partner, http: httpx.Client) -> None:
    """The client library of the provider takes a body with `error` for one."""
    partner.venue.switches = type(partner.venue.switches)(oauth=True, oauth_error_status=200)
    with pytest.raises(CredentialsRefused, match=r"refuses \(200\)"):
        partner.application.refresh(http, "unknown", now())


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}", "http://[::1", "http://."])
def test_a_token_endpoint_that_is_away(url: str, http: httpx.Client) -> None:
    """It comes back later, and neither address nor secret is told."""
    address = url.format(port=free_port())
    application = OAuthClient(
        authorize_url="", token_url=f"{address}/access_token", scope="", client_id="i", client_secret="s3cret"
    )
    with pytest.raises(ProviderUnavailable, match=r"^token endpoint: [A-Za-z]+$"):
        application.refresh(http, "the-refresh-t0ken", NOW)


def all_at_once(tokens: Callable[[], Tokens], partner: Partner, refused: str | None, count: int) -> list[Token]:
    """Eight hands that reach for a token in the same moment, each with its own `Tokens`."""
    gate = ThreadBarrier(count)
    application = partner.application

    def one() -> Token:
        own = tokens()
        with client() as http:
            gate.wait(20)
            return own.fresh("vault", refused, lambda refresh: application.refresh(http, refresh, now()))

    with ThreadPoolExecutor(count) as pool:
        futures: list[Future[Token]] = [pool.submit(one) for _ in range(count)]
        return [future.result() for future in futures]


@pytest.mark.parametrize("how", ["ended", "refused"])
@pytest.mark.parametrize("count", [2, 8])
def test_threads_that_meet_the_end_together_refresh_once(
    how: str, count: int, partner: Partner, engine: Engine
) -> None:
    """Whether the clock says so or the provider: one request, and all have the new token."""
    panel = read_token(partner.venue.panel_token(), now())
    ended = Token(
        access_token=panel.access_token,
        refresh_token=panel.refresh_token,
        expires_at=now() if how == "ended" else now() + HOUR,
    )
    Tokens(engine, Seal(SECRET), now).keep("vault", ended)
    found = all_at_once(
        lambda: Tokens(engine, Seal(SECRET), now), partner, ended.access_token if how == "refused" else None, count
    )
    assert len(partner.counted.forms) == 1
    assert len({token.access_token for token in found}) == 1
    assert partner.works(found[0])


def meet_at(gate: Barrier) -> None:
    """Where the processes of a pool wait for each other."""
    globals()["meeting"] = gate


def refresh_in_a_process(database_url: str, application: OAuthClient) -> tuple[str, float]:
    """What a worker process does when a token has ended: the access token that it got, and when it reached for it."""
    engine = make_engine(database_url)
    try:
        with client() as http:
            tokens = Tokens(engine, Seal(SECRET), now)
            globals()["meeting"].wait(60)
            began = time.monotonic()
            token = tokens.fresh("vault", None, lambda refresh: application.refresh(http, refresh, now()))
            return token.access_token, began
    finally:
        engine.dispose()


def test_processes_that_meet_the_end_together_refresh_once(partner: Partner, engine: Engine, database_url: str) -> None:
    """Worker processes share nothing but Postgres, and that is enough: the provider sees one refresh."""
    panel = read_token(partner.venue.panel_token(), now())
    ended = Token(access_token=panel.access_token, refresh_token=panel.refresh_token, expires_at=now())
    Tokens(engine, Seal(SECRET), now).keep("vault", ended)
    partner.counted.seconds = 1.0
    count, spawn = 2, multiprocessing.get_context("spawn")
    gate = spawn.Barrier(count)
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=meet_at, initargs=(gate,)) as pool:
        futures = [pool.submit(refresh_in_a_process, database_url, partner.application) for _ in range(count)]
        found = [future.result(timeout=90) for future in futures]
    assert len(partner.counted.forms) == 1
    assert {access_token for access_token, _ in found} == {found[0][0]}
    reached = [began for _, began in found]
    assert max(reached) - min(reached) < partner.counted.seconds
    assert partner.works(Token(access_token=found[0][0]))
