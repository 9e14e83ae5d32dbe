"""Calls stay below the providers' limits: the arithmetic alone, the same in Redis, and real calls to real servers."""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations, count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from serving import free_port, serving, silent_server
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from world import NOON, VENUES, Step, World, request, tell

from console.services import Embedded
from schemas.delivery import State
from schemas.endpoints import Config, Endpoint
from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.reservekit import SERVICES, ReserveKit
from simulators.server import build, mount_path
from tests.lines import logged
from workers import bucket, calls, circuit, tasks
from workers.bucket import FAR, LONGEST, SECOND, Buckets, Pace, Seen, Turn, hold, pace, turn
from workers.calls import Cache, Caller, limits
from workers.circuit import Circuits
from workers.database import engine as make_engine
from workers.errors import NotYet, Throttled
from workers.provider import Auth, Call, Limit, Provider, Rate
from workers.registry import discover
from workers.seal import Seal
from workers.tokens import Tokens

SECRET = "0123456789abcdef"
TEN = Pace(interval=SECOND // 10, slack=0)
"""Ten a second, one at a time."""
FEW = Pace(interval=SECOND // 10, slack=2 * SECOND // 10)
"""Ten a second, three at once."""
NOW = 1_800_000_000 * SECOND


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def ms(count: int) -> int:
    return count * 1000


# --- what decides ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "then"),
    [
        (Rate(per_second=5, burst=10), Pace(222_223, 4 * 222_223)),
        (Rate(per_second=10, burst=10), Pace(111_112, 4 * 111_112)),
        (Rate(per_second=10, burst=1), Pace(111_112, 0)),
        (Rate(per_second=0.01, burst=1), Pace(111_111_112, 0)),
    ],
)
def test_how_far_we_stay_below(rate: Rate, then: Pace) -> None:
    """Nine tenths of the rate, half of the burst, and one call always."""
    assert pace(rate) == then


@pytest.mark.parametrize(
    ("seen", "pace", "then", "after"),
    [
        (Seen(), TEN, Turn(True, 0), Seen(NOW + ms(100))),
        (Seen(NOW - ms(1)), TEN, Turn(True, 0), Seen(NOW + ms(100))),
        # The third one waits for what the first two have reserved.
        (Seen(NOW + ms(200)), TEN, Turn(True, ms(200)), Seen(NOW + ms(300))),
        # A burst of three, and the fourth.
        (Seen(NOW + ms(200)), FEW, Turn(True, 0), Seen(NOW + ms(300))),
        (Seen(NOW + ms(300)), FEW, Turn(True, ms(100)), Seen(NOW + ms(400))),
        # The patience is half a second: what takes longer takes nothing.
        (Seen(NOW + ms(500)), TEN, Turn(True, ms(500)), Seen(NOW + ms(600))),
        (Seen(NOW + ms(501)), TEN, Turn(False, ms(501)), Seen(NOW + ms(501))),
        # Held: nobody goes before, and then a whole burst may.
        (Seen(0, NOW + ms(400)), FEW, Turn(True, ms(400)), Seen(NOW + ms(500), NOW + ms(400))),
        (Seen(NOW + ms(600), NOW + ms(400)), FEW, Turn(True, ms(400)), Seen(NOW + ms(700), NOW + ms(400))),
        (Seen(NOW + ms(650), NOW + ms(400)), FEW, Turn(True, ms(450)), Seen(NOW + ms(750), NOW + ms(400))),
        (Seen(0, NOW + ms(900)), FEW, Turn(False, ms(900)), Seen(0, NOW + ms(900))),
        (Seen(0, NOW - ms(1)), TEN, Turn(True, 0), Seen(NOW + ms(100), NOW - ms(1))),
        # Written before the clock was set back.
        (Seen(NOW + FAR + 1, NOW + FAR + 1), TEN, Turn(True, 0), Seen(NOW + ms(100), NOW + FAR + 1)),
    ],
)
def test_whose_turn_it_is(seen: Seen, pace: Pace, then: Turn, after: Seen) -> None:
    assert turn(seen, pace, NOW, ms(500)) == (then, after)


@pytest.mark.parametrize(
    ("seen", "then", "after"),
    [
        (Seen(NOW + ms(300)), Turn(True, 0), Seen(NOW + ms(300))),
        (Seen(NOW + ms(300), NOW), Turn(True, 0), Seen(NOW + ms(300), NOW)),
        (Seen(NOW + ms(300), NOW + ms(50)), Turn(True, ms(300)), Seen(NOW + ms(400), NOW + ms(50))),
        (Seen(NOW + ms(300), NOW + ms(900)), Turn(False, ms(900)), Seen(NOW + ms(300), NOW + ms(900))),
    ],
)
def test_who_has_waited_goes_unless_it_is_held_meanwhile(seen: Seen, then: Turn, after: Seen) -> None:
    """Then the token that it took is gone, and it takes another one."""
    assert turn(seen, TEN, NOW, ms(500), has_waited=True) == (then, after)


@pytest.mark.parametrize(
    ("seen", "wait", "after"),
    [
        (Seen(7), ms(100), Seen(7, NOW + ms(100))),
        (Seen(7, NOW + ms(50)), ms(100), Seen(7, NOW + ms(100))),
        (Seen(7, NOW + ms(200)), ms(100), Seen(7, NOW + ms(200))),
        (Seen(7, NOW + FAR + 1), ms(100), Seen(7, NOW + ms(100))),
    ],
)
def test_no_hold_shortens_another(seen: Seen, wait: int, after: Seen) -> None:
    assert hold(seen, NOW, wait) == after


RATES = st.builds(Rate, per_second=st.floats(0.01, 1000), burst=st.integers(1, 2000))
WHEN = st.integers(0, 20 * SECOND)
LENGTH = st.integers(0, 6 * SECOND)


def played(pace: Pace, comings: Sequence[tuple[int, int]], holds: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """When each that got its turn went out, and when it came; from (when, patience) and (when, for how long)."""
    numbers, seen, gone = count(), Seen(), list[tuple[int, int]]()
    todo = [(NOW + at, next(numbers), "comes", NOW + at, NOW + at + patience) for at, patience in comings]
    todo += [(NOW + at, next(numbers), "hold", wait, 0) for at, wait in holds]
    heapq.heapify(todo)
    while todo:
        now, _, what, came, until = heapq.heappop(todo)
        if what == "hold":
            seen = hold(seen, now, came)
            continue
        said, seen = turn(seen, pace, now, until - now, has_waited=what == "has waited")
        if said.ours and not said.wait:
            assert seen.held <= now <= until
            gone.append((now, came))
        elif said.ours:
            heapq.heappush(todo, (now + said.wait, next(numbers), "has waited", came, until))
    return gone


@given(
    RATES,
    st.lists(st.tuples(WHEN, LENGTH), min_size=1, max_size=40),
    st.lists(st.tuples(WHEN, LENGTH), max_size=3),
)
def test_no_window_of_time_holds_more_than_the_provider_allows(
    rate: Rate, comings: list[tuple[int, int]], holds: list[tuple[int, int]]
) -> None:
    """Whatever comes, waits, gives up and is held; in any t seconds at most rate * t + burst. Nobody goes while it is
    held, or after its patience."""
    times = sorted(now for now, _ in played(pace(rate), comings, holds))
    for (first, begin), (last, end) in combinations(enumerate(times), 2):
        assert last - first + 1 <= rate.per_second * (end - begin) / SECOND + rate.burst + 1e-6


QUICK_RATES = st.builds(Rate, per_second=st.floats(1, 1000), burst=st.integers(1, 2000))


@given(QUICK_RATES, st.lists(WHEN, min_size=1, max_size=40))
def test_those_who_wait_go_in_the_order_in_which_they_came(rate: Rate, comings: list[int]) -> None:
    """And each as soon as its token has fallen: of those who come together, the n-th with the n-th token."""
    ours, patience = pace(rate), 100 * SECOND
    gone = played(ours, [(at, patience) for at in comings], [])
    assert [came for _, came in gone] == sorted(NOW + at for at in comings)
    together = played(ours, [(0, patience) for _ in comings], [])
    falls = [max(0, place * ours.interval - ours.slack) for place in range(len(comings))]
    assert [now - NOW for now, _ in together] == falls


# --- the same in Redis -----------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("turn"), LENGTH, st.booleans()),
    st.tuples(st.just("hold"), LENGTH, st.just(False)),
)
CLOCK = st.one_of(st.integers(0, 2 * SECOND), st.just(0), st.sampled_from([-SECOND, -2 * FAR]))
GIVEN_CLOCK = "local now = tonumber(ARGV[#ARGV])\n"


@pytest.fixture(scope="module")
def lasting(services: Embedded) -> Iterator[Redis]:
    """One connection for many examples."""
    with Redis.from_url(services.redis_url) as client:
        yield client


@given(rate=RATES, steps=st.lists(st.tuples(CLOCK, STEPS), max_size=20))
def test_redis_answers_what_the_arithmetic_says(
    lasting: Redis, rate: Rate, steps: list[tuple[int, tuple[str, int, bool]]]
) -> None:
    """The same sequence, the same answers, the same bucket; also when the clock is set back in between."""
    scripts = {name: lasting.register_script(GIVEN_CLOCK + getattr(bucket, name.upper())) for name in ("turn", "hold")}
    lasting.delete("bucket")
    seen, now, ours = Seen(), NOW, pace(rate)
    for later, (what, length, has_waited) in steps:
        now += later
        if what == "hold":
            seen = hold(seen, now, length)
            scripts["hold"](["bucket"], [length, now])
        else:
            said, seen = turn(seen, ours, now, length, has_waited=has_waited)
            words = [ours.interval, ours.slack, length, int(has_waited), now]
            assert scripts["turn"](["bucket"], words) == [int(said.ours), said.wait]
        kept: Any = lasting.hgetall("bucket")
        assert Seen(int(kept.get(b"arrival", 0)), int(kept.get(b"held", 0))) == seen


SLOW = Limit(account="someone-slow", rate=Rate(per_second=10 / 9, burst=4))
"""By our reckoning one a second, two at once."""
FAST = Limit(account="someone-fast", rate=Rate(per_second=1000 / 9, burst=2))
"""A hundred a second, one at a time."""
NO_TIME = timedelta()


@pytest.fixture
def buckets(redis: Redis) -> Buckets:
    return Buckets(redis)


@pytest.fixture
def neighbours(redis_url: str) -> Iterator[Buckets]:
    """Another worker process, as far as Redis can tell."""
    with Redis.from_url(redis_url) as own:
        yield Buckets(own)


def test_workers_share_a_bucket_and_accounts_do_not(buckets: Buckets, neighbours: Buckets) -> None:
    """Two may go at once, whoever they are; the third is told when."""
    assert buckets.take(SLOW, NO_TIME) == neighbours.take(SLOW, NO_TIME) == NO_TIME
    for each in (buckets, neighbours, buckets):
        assert seconds(0.5) < each.take(SLOW, NO_TIME) <= seconds(1)
    other = replace(SLOW, account="someone-else")
    assert neighbours.take(other, NO_TIME) == NO_TIME


def test_a_short_wait_is_slept(buckets: Buckets, neighbours: Buckets) -> None:
    """Ten of two workers, a hundred a second: nobody is sent away, and the last one goes after a tenth of a second."""
    begin = time.monotonic()
    with ThreadPoolExecutor(10) as pool:
        waits = list(pool.map(lambda each: each.take(FAST, seconds(20)), [buckets, neighbours] * 5))
    assert waits == [NO_TIME] * 10
    assert time.monotonic() - begin >= 0.09


def test_a_reservation_that_is_not_used_costs_one_token(buckets: Buckets, neighbours: Buckets) -> None:
    """Whoever was killed while it slept has held up the others for one interval, and no longer."""
    for _ in range(2):
        assert buckets.take(SLOW, NO_TIME) == NO_TIME
    killed = buckets._asked(SLOW, 5, has_waited=False)
    assert killed.ours
    left = neighbours.take(SLOW, NO_TIME)
    assert killed.wait < left / timedelta(microseconds=1) <= killed.wait + pace(SLOW.rate).interval


def test_a_bucket_is_forgotten_by_itself(redis: Redis, buckets: Buckets) -> None:
    """Long after it could say anything."""
    buckets.take(SLOW, NO_TIME)
    buckets.hold(FAST, seconds(3))
    keys: Any = redis.keys("*")
    assert sorted(keys) == [b"reservoir:bucket:someone-fast", b"reservoir:bucket:someone-slow"]
    for key in keys:
        assert FAR // 1000 < int(redis.pttl(key)) <= bucket.KEPT // 1000  # type: ignore[arg-type]


def test_who_is_sent_away_writes_nothing(redis: Redis, buckets: Buckets) -> None:
    """Each write of this Redis is an fsync."""
    for _ in range(2):
        buckets.take(SLOW, NO_TIME)
    before = redis.dump("reservoir:bucket:someone-slow")
    for _ in range(10):
        assert buckets.take(SLOW, NO_TIME) > NO_TIME
    assert redis.dump("reservoir:bucket:someone-slow") == before


@pytest.mark.parametrize(("wish", "held"), [(7, 7), (3600, 60), (-5, 0)])
def test_a_hold_is_everybodys_and_ends_after_a_minute(
    wish: int, held: int, buckets: Buckets, neighbours: Buckets
) -> None:
    """Whatever a provider wishes for: then one call asks whether it still holds."""
    buckets.hold(SLOW, seconds(wish))
    wait = neighbours.take(SLOW, NO_TIME)
    assert max(NO_TIME, seconds(held - 1)) <= wait <= seconds(held) <= LONGEST


def test_a_hold_reaches_those_who_sleep_already(buckets: Buckets, neighbours: Buckets) -> None:
    """They have their token, and go neither before the hold ends nor all together then."""
    limit = Limit(account="someone", rate=Rate(per_second=100 / 9, burst=2))  # ten a second, one at a time
    gone = list[float]()

    def one(_: int) -> None:
        assert buckets.take(limit, seconds(20)) == NO_TIME
        gone.append(time.monotonic())

    with ThreadPoolExecutor(5) as pool:
        done = [pool.submit(one, number) for number in range(5)]
        while not gone:
            time.sleep(0.001)
        before = time.monotonic()
        neighbours.hold(limit, seconds(1))
        held = time.monotonic()
        for each in done:
            each.result(30)
    behind = sorted(moment for moment in gone if moment >= held)
    assert len(behind) >= 2
    assert behind[0] - held >= 0.9
    # From the hold on, each: one that wakes late seems closer to the next.
    since = [moment - before for moment in behind]
    assert all(waited >= 1.0 + 0.1 * number - 0.05 for number, waited in enumerate(since)), since


# --- Redis away ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["refuses", "silent"])
def no_redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """Nobody there, or somebody who says nothing."""
    if request.param == "refuses":
        yield circuit.client(f"redis://127.0.0.1:{free_port()}/0")
        return
    with silent_server() as port, circuit.client(f"redis://127.0.0.1:{port}/0") as client:
        yield client


def test_without_redis_calls_go_on(no_redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Sixteen threads for a while: nobody is refused, a silent Redis is waited for once a second, and so it is said."""
    caplog.set_level(logging.WARNING)
    buckets, begin = Buckets(no_redis), time.monotonic()

    def one(_: int) -> None:
        while time.monotonic() - begin < 0.9:
            assert buckets.take(SLOW, seconds(5)) == NO_TIME
            buckets.hold(SLOW, seconds(5))
            time.sleep(0.01)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, range(16)))
    took = time.monotonic() - begin
    assert 1 <= len(caplog.records) <= 1 + took
    assert len(logged(caplog, "calls-not-counted")) == len(caplog.records)


def test_redis_that_comes_back_counts_again(redis: Redis, tmp_path: Path) -> None:
    """Within a second, without a restart."""
    there, socket_path = redis.connection_pool.connection_kwargs["path"], tmp_path / "redis.sock"
    with circuit.client(f"unix://{socket_path}") as client:
        buckets = Buckets(client, memory=seconds(0.05))
        assert [buckets.take(SLOW, NO_TIME) for _ in range(5)] == [NO_TIME] * 5
        socket_path.symlink_to(there)
        time.sleep(0.06)
        assert [bool(buckets.take(SLOW, NO_TIME)) for _ in range(4)] == [False, False, True, True]


# --- whose calls count together --------------------------------------------------------------------------------

KEYED = frozenset({"api_key"})


def limits_of(*endpoints: Endpoint, secrets: Mapping[str, Mapping[str, str]]) -> dict[str, Limit]:
    config = Config(file="test", endpoints={endpoint.name: endpoint for endpoint in endpoints})
    return limits(config, discover(), lambda endpoint: secrets.get(endpoint.name, {}), SECRET)


def salon(name: str, **more: Any) -> Endpoint:
    return Endpoint(name=name, provider="reservekit", secrets=KEYED, **more)


def test_endpoints_with_one_key_are_one_account() -> None:
    """Another key is another account, and so is another address: a test server, a proxy with limits of its own."""
    key, other = {"api_key": "k-1"}, {"api_key": "k-2"}
    names = ("north", "south", "other", "away")
    endpoints = [salon("north"), salon("south"), salon("other"), salon("away", api_url="https://test.example.org")]
    found = limits_of(*endpoints, secrets=dict(zip(names, [key, key, other, key], strict=True)))
    assert {limit.rate for limit in found.values()} == {Rate(per_second=5, burst=10)}
    assert found["north"] == found["south"]
    assert len({limit.account for limit in found.values()}) == 3


def test_an_accounts_name_tells_no_key() -> None:
    """It stands in Redis and in the log, and another installation gives another name."""
    endpoint, secrets = salon("north"), {"api_key": "k-1"}
    config = Config(file="test", endpoints={"north": endpoint})
    one, two = (limits(config, discover(), lambda _: secrets, secret)["north"].account for secret in (SECRET, "other"))
    assert one != two
    assert one.startswith("reservekit-")
    assert "k-1" not in one


def test_without_a_known_limit_nothing_is_counted() -> None:
    """Lockme, SynthesisVR and Checkfront publish none; whoever knows one may name it."""
    endpoints = [
        Endpoint(name="vault", provider="lockme"),
        Endpoint(name="arcade", provider="synthesisvr"),
        Endpoint(name="harbour", provider="checkfront", options={"account": "harbour"}),
        Endpoint(name="named", provider="lockme", calls_per_second=4),
    ]
    found = limits_of(*endpoints, secrets={})
    assert {name: limit.rate for name, limit in found.items()} == {"named": Rate(per_second=4, burst=4)}


def test_a_plan_that_allows_more() -> None:
    """The burst grows along, as it does in the provider's own plans."""
    found = limits_of(salon("north", calls_per_second=20), secrets={})
    assert found["north"].rate == Rate(per_second=20, burst=40)


def test_the_lowest_of_an_accounts_limits_holds() -> None:
    """Also for the endpoint that names none; a webhook's secret makes no other account."""
    key = {"api_key": "k-1"}
    endpoints = [salon("north", calls_per_second=8), salon("south", calls_per_second=6.5), salon("east")]
    secrets = {"north": key, "south": key, "east": {**key, "webhook_secret": "w"}}
    found = limits_of(*endpoints, secrets=secrets)
    assert found["north"] == found["south"] == found["east"]
    assert found["north"].rate == Rate(per_second=6.5, burst=13)


def test_logins_of_one_application_are_one_account_and_what_has_no_secret_is_alone() -> None:
    """Whether an OAuth provider counts by application or by login is not known."""
    application = {"client_id": "partner", "client_secret": "s"}
    rooms = [Endpoint(name=name, provider="lockme", calls_per_second=1) for name in ("one", "two", "kept", "pasted")]
    found = limits_of(*rooms, secrets={"one": application, "two": application})
    assert found["one"].account == found["two"].account
    assert len({limit.account for limit in found.values()}) == 3


def test_a_worker_counts_what_its_configuration_names(
    redis_url: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Put together as in production, down to the caller of an endpoint."""
    (tmp_path / "reservoir.toml").write_text('[endpoints.north]\nprovider = "reservekit"\ncalls_per_second = 10\n')
    monkeypatch.setenv("RESERVOIR_CONFIG", str(tmp_path / "reservoir.toml"))
    monkeypatch.setenv("RESERVOIR_SECRET", SECRET)
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    shop = tasks.workshop.__wrapped__()
    endpoint = shop.parts.config.endpoints["north"]
    caller: Any = shop.parts.asks_for(shop.parts.providers["reservekit"], endpoint)
    assert caller.limit.rate == Rate(per_second=10, burst=20)
    assert caller.buckets.take(caller.limit, NO_TIME) == NO_TIME
    shop.redis.close()


# --- around a call ---------------------------------------------------------------------------------------------

READ = Call(name="service", path="/services/1", auth=Auth.BEARER_KEY)
SOMEONE = Provider(name="someone", title="Someone", docs="", normalize=lambda incoming: [])


def now() -> datetime:
    return datetime.now(UTC)


def nobody_is_due(moment: float) -> float:
    return 0.0


@dataclass
class Api:
    """An API that answers 429 above its limit, by a token bucket of its own, and counts."""

    rate: Rate
    due: Callable[[float], float] = nobody_is_due
    """How many have left our bucket by then. Where not as many have come, they are late: that is the machine's doing,
    and what has fallen for them meanwhile is kept, however full the bucket is."""
    tokens: float = 0.0
    seen: float = field(default_factory=time.monotonic)
    answered: int = 0
    refused: int = 0

    def __post_init__(self) -> None:
        self.tokens = self.rate.burst

    async def __call__(self, request: Request) -> Response:
        if request.url.path.endswith("/warm"):
            return JSONResponse([])
        moment = time.monotonic()
        late = min(max(0.0, self.due(moment) - self.answered), self.rate.per_second)  # a second's, not more
        self.tokens = min(self.rate.burst + late, self.tokens + (moment - self.seen) * self.rate.per_second)
        self.seen = moment
        if self.tokens < 1:
            self.refused += 1
            return Response(b"slow down", 429)
        self.tokens -= 1
        self.answered += 1
        return JSONResponse({"id": 1})


@contextmanager
def answering(api: Api) -> Iterator[str]:
    """Its base URL."""
    with serving(Starlette(routes=[Route("/{rest:path}", api.__call__)])) as url:
        yield url


@contextmanager
def callers(url: str, rate: Rate, redis_url: str, *, workers: int = 1, key: str = "a key") -> Iterator[list[Caller]]:
    """One for each worker process, with connections of its own."""
    with ExitStack() as stack:
        made = []
        for _ in range(workers):
            own = stack.enter_context(Redis.from_url(redis_url))
            made.append(
                Caller(
                    http=stack.enter_context(calls.client()),
                    provider=SOMEONE,
                    endpoint=Endpoint(name="venue", provider="someone", api_url=url, secrets=KEYED),
                    secrets={"api_key": key},
                    tokens=Tokens(make_engine("postgresql://nobody@127.0.0.1:1/none"), Seal(SECRET), now),
                    cache=Cache(),
                    clock=now,
                    circuits=Circuits(own),
                    buckets=Buckets(own),
                    limit=Limit(account="someone", rate=rate),
                )
            )
        yield made


def test_sixteen_threads_of_three_workers_stay_just_below_the_limit(redis_url: str) -> None:
    """The server refuses nobody, and four fifths of what it would allow are used. There are always some who wait, so
    our bucket is never full again, and a machine that stands still for a moment makes calls late and loses none."""
    api = Api(Rate(per_second=20, burst=10))
    rate, lasts, ours = api.rate, 6.0, pace(api.rate)
    begins = list[float]()

    def due(moment: float) -> float:
        return 1 + (ours.slack + (moment - begins[0]) * SECOND) / ours.interval

    def begin() -> None:
        begins.append(time.monotonic())
        api.seen, api.due = begins[0], due

    together = threading.Barrier(48, action=begin)
    with answering(api) as url, callers(url, rate, redis_url, workers=3) as three:

        def ask(caller: Caller) -> None:
            replace(caller, limit=None)(replace(READ, path="/warm"))  # a connection of its own
            together.wait(30)
            until = begins[0] + lasts
            while time.monotonic() < until:
                caller(READ)

        with ThreadPoolExecutor(48) as pool:
            list(pool.map(ask, three * 16))
        allowed = rate.burst + rate.per_second * (time.monotonic() - begins[0])
    assert api.refused == 0
    assert api.answered >= 0.8 * allowed, f"{api.answered} of {allowed:.0f}"


def test_without_the_bucket_such_a_server_refuses(redis_url: str) -> None:
    """So the test above can fail."""
    rate = Rate(per_second=1, burst=20)
    api = Api(rate)
    with answering(api) as url, callers(url, rate, redis_url) as (one,):
        for _ in range(40):
            with suppress(Throttled):
                replace(one, buckets=None)(READ)
    assert api.refused > 0


@pytest.fixture
def venue() -> ReserveKit:
    """The simulated ReserveKit on its smallest plan: 5 a second, 10 at once."""
    return ReserveKit(
        endpoint="salon",
        hook_url="",
        ledger=Ledger(),
        clock=Clock(now(), 1.0),
        rng=Random("salon"),
        plan="starter",
    )


@contextmanager
def at_reservekit(venue: ReserveKit, redis_url: str) -> Iterator[Caller]:
    """A worker's caller with what ReserveKit publishes."""
    published = discover()["reservekit"].rate
    assert published is not None
    with (
        serving(build([venue])) as base,
        callers(f"{base}{mount_path(venue)}/v1", published, redis_url, key=venue.api_key) as (one,),
    ):
        yield one


def service(number: int) -> Call:
    (first, *_) = SERVICES
    return Call(name=f"service:{number}", path=f"/services/{first}", auth=Auth.BEARER_KEY)


def test_the_published_limit_of_reservekit_is_kept(venue: ReserveKit, redis_url: str) -> None:
    """Sixteen questions at once, of which ten would be answered and six refused."""
    with at_reservekit(venue, redis_url) as asks, ThreadPoolExecutor(16) as pool:
        assert [answer.status for answer in pool.map(lambda number: asks(service(number)), range(16))] == [200] * 16
    assert venue.limit.used == 16


def test_the_last_answer_before_a_refusal_holds_everybody(venue: ReserveKit, redis_url: str) -> None:
    """Somebody else uses the account too; `X-RateLimit-Remaining: 0` says so before the 429 does."""

    def asked_last(asks: Caller) -> timedelta:
        """How long the next one would have to wait."""
        while venue.limit.headers()["X-RateLimit-Remaining"] != "1":
            venue.limit.take()
        asks(service(1))
        return asks.buckets.take(asks.limit, NO_TIME)  # type: ignore[union-attr, arg-type]

    with at_reservekit(venue, redis_url) as asks:
        # Where it takes a fifth of a second there is another token already, and it was not the last answer.
        wait = next(wait for _ in range(20) if (wait := asked_last(asks)))
        assert seconds(0.5) < wait <= seconds(4)
        assert asks(service(2)).status == 200


# --- a delivery that waits for its turn --------------------------------------------------------------------------


@pytest.fixture
def salon_at(engine: Engine, redis_url: str) -> Iterator[Callable[[str], World]]:
    """A world whose salon asks a real API, through the real caller."""
    with ExitStack() as stack:

        def at(url: str) -> World:
            published = discover()["reservekit"].rate
            assert published is not None
            (caller,) = stack.enter_context(callers(url, published, redis_url))
            world = World(engine, [replace(VENUES["reservekit"], secrets=KEYED)])

            def asks_for(provider: Provider, endpoint: Endpoint) -> Caller:
                return replace(caller, provider=provider, endpoint=replace(endpoint, api_url=url), clock=world.clock)

            world.parts = replace(world.parts, asks_for=asks_for)
            return world

        yield at


def test_a_long_wait_is_a_delivery_that_comes_back_in_time(salon_at: Callable[[str], World], redis: Redis) -> None:
    """What the webhook says stands in the table at once, nobody is asked, and no circuit opens. When the time has come,
    it is asked."""
    api = Api(Rate(per_second=1000, burst=1000))
    with answering(api) as url:
        world = salon_at(url)
        limit = Limit(account="someone", rate=Rate(per_second=5, burst=10))
        Buckets(redis).hold(limit, seconds(40))
        raw = request(VENUES["reservekit"].name, tell("reservekit", Step(name="Ewa")).body)
        world.deliver(raw)
        row = world.delivery(raw.id)
        assert world.verdict(raw.id) == (State.RETRYING, "throttled")
        assert row.error == "service:140: not asked yet: we stay below the provider's limit"
        assert seconds(38) < row.next_attempt_at - NOON <= seconds(40)
        assert row.attempts == 0
        assert [booking["customer_name"] for booking in world.rows()] == ["Ewa"]
        assert api.answered == 0
        assert redis.keys("reservoir:circuit*") == []
        redis.delete("reservoir:bucket:someone")
        world.settle()
        assert world.verdict(raw.id) == (State.APPLIED, None)
        assert api.answered == 1


def test_two_endpoints_of_one_account_share_its_limit(redis_url: str) -> None:
    """What one of them uses up is gone for the other; a third one with another key has all of its own."""
    api = Api(Rate(per_second=1000, burst=1000))
    with answering(api) as url, callers(url, SLOW.rate, redis_url) as (one,):
        keys = {"north": "k-1", "south": "k-1", "other": "k-2"}
        endpoints = [salon(name, api_url=url, calls_per_second=10 / 9) for name in keys]
        found = limits_of(*endpoints, secrets={name: {"api_key": key} for name, key in keys.items()})
        north, south, other = (
            replace(one, endpoint=endpoint, limit=found[endpoint.name], longest=NO_WAIT) for endpoint in endpoints
        )
        north(READ)
        with pytest.raises(NotYet) as error:
            south(READ)
        assert error.value.after is not None
        assert seconds(0.5) < error.value.after <= seconds(1)
        other(READ)
    assert api.answered == 2


NO_WAIT = seconds(0.4)
"""For a call as a whole; half of it is less than a token takes."""
