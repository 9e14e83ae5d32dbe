"""The group commit by itself, over a real Redis: who shares a MULTI, who is told what, what survives a failure."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import UUID

import pytest
import redis as redis_py
from hypothesis import given
from hypothesis import strategies as st

from ingest.inbox import FLUSHERS, GROUP, Inbox, NotDurable, connect
from ingest.nudge import Nudge
from schemas.delivery import EPOCH, INBOX, RawDelivery, new_id, now

QUEUE = "queue-of-a-test"


@pytest.fixture(scope="module")
def nudge() -> Nudge:
    return Nudge()


def request(body: bytes = b"{}") -> RawDelivery:
    return RawDelivery(id=new_id(), endpoint="studio", method="POST", received_at=now(), body=body)


def with_inbox(redis_url: str, nudge: Nudge, work: Callable[[Inbox], Awaitable[None]], patience: float = 5.0) -> None:
    """Runs the work with an inbox that is open meanwhile; the flushers wait for Redis longer than anybody waits."""

    async def run() -> None:
        async with Inbox(connect(redis_url, 20.0), nudge, patience) as inbox:
            await work(inbox)

    asyncio.run(run())


def bodies(redis: redis_py.Redis) -> list[bytes]:
    entries: dict[bytes, bytes] = redis.hgetall(INBOX)
    raws = [RawDelivery.unpack(UUID(identity.decode()), packed) for identity, packed in entries.items()]
    return sorted(raw.body for raw in raws)


def groups(redis: redis_py.Redis) -> int:
    """How many MULTIs were executed since `config_resetstat`."""
    return int(redis.info("commandstats").get("cmdstat_exec", {"calls": 0})["calls"])


def test_a_group_is_one_request_when_it_is_quiet(redis: redis_py.Redis, redis_url: str, nudge: Nudge) -> None:
    """Nobody waits for company."""
    redis.config_resetstat()

    async def work(inbox: Inbox) -> None:
        for number in range(5):
            await inbox.commit(request(b"%d" % number), QUEUE)
            assert groups(redis) == number + 1

    with_inbox(redis_url, nudge, work)
    assert redis.llen(QUEUE) == len(bodies(redis)) == 5


def test_arrivals_share_a_group(redis: redis_py.Redis, redis_url: str, nudge: Nudge) -> None:
    """As many as there are, up to the limit."""
    redis.config_resetstat()
    count = 3 * GROUP + 8

    async def work(inbox: Inbox) -> None:
        await asyncio.gather(*(inbox.commit(request(b"%03d" % number), QUEUE) for number in range(count)))

    with_inbox(redis_url, nudge, work)
    assert groups(redis) == 4
    assert bodies(redis) == [b"%03d" % number for number in range(count)]
    assert redis.llen(QUEUE) == count


def test_a_waiter_that_goes_away_does_not_undo_its_commit(redis: redis_py.Redis, redis_url: str, nudge: Nudge) -> None:
    """The commit is the flusher's affair."""

    async def work(inbox: Inbox) -> None:
        leaving = asyncio.create_task(inbox.commit(request(b"left"), QUEUE))
        await asyncio.sleep(0)
        leaving.cancel()
        await inbox.commit(request(b"stayed"), QUEUE)

    with_inbox(redis_url, nudge, work)
    assert bodies(redis) == [b"left", b"stayed"]


def test_what_no_group_has_taken_is_taken_back(redis: redis_py.Redis, redis_url: str, nudge: Nudge) -> None:
    """Whoever waits behind hung groups is told so in time, and is not kept later all the same."""

    async def work(inbox: Inbox) -> None:
        await inbox.commit(request(b"before"), QUEUE)
        redis.client_pause(60_000, all=False)
        under_way = []
        for _ in range(FLUSHERS):
            under_way.append(asyncio.create_task(inbox.commit(request(b"under way"), QUEUE)))
            await asyncio.sleep(0.01)
        with pytest.raises(NotDurable):
            await inbox.commit(request(b"waiting"), QUEUE)
        assert {type(told) for told in await asyncio.gather(*under_way, return_exceptions=True)} == {NotDurable}
        redis.client_unpause()
        await inbox.commit(request(b"afterwards"), QUEUE)

    with_inbox(redis_url, nudge, work, patience=0.1)
    assert set(bodies(redis)) == {b"before", b"under way", b"afterwards"}


class Stumbling(Nudge):
    """Cannot render the message of one delivery."""

    def __init__(self, over: UUID) -> None:
        super().__init__()
        self.over = over

    def message(self, delivery_id: UUID, queue: str) -> bytes:
        if delivery_id == self.over:
            raise RuntimeError("a mistake of our own")
        return super().message(delivery_id, queue)


def test_a_mistake_of_our_own_does_not_stop_the_inbox(
    redis: redis_py.Redis, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its group is refused, more often than there are flushers; every other group is kept."""
    bad = request(b"bad")

    async def work(inbox: Inbox) -> None:
        for number in range(FLUSHERS + 1):
            with pytest.raises(NotDurable):
                await inbox.commit(bad, QUEUE)
            await inbox.commit(request(b"good %d" % number), QUEUE)

    with_inbox(redis_url, Stumbling(bad.id), work, patience=2.0)
    assert bodies(redis) == [b"good 0", b"good 1", b"good 2"]
    assert "a mistake of our own" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_a_redis_that_hides_its_settings_is_taken_at_its_word(
    redis: redis_py.Redis, redis_url: str, nudge: Nudge
) -> None:
    """Some hosted ones allow no CONFIG."""
    redis.acl_setuser(
        "shy", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"], commands=["-config"]
    )

    async def work(inbox: Inbox) -> None:
        assert await inbox.undurable() == {}
        assert await inbox.ready()

    try:
        with_inbox(f"unix://shy:secret@{urlsplit(redis_url).path}", nudge, work)
    finally:
        redis.acl_deluser("shy")


# --- the form of an entry ------------------------------------------------------------------------------------

HEADER_NAMES = st.text(st.sampled_from("abcxyz-0123"), min_size=1, max_size=8)
HEADER_VALUES = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\x00"), max_size=12).map(str.strip)


@given(
    headers=st.lists(st.tuples(HEADER_NAMES, HEADER_VALUES), max_size=4).map(tuple),
    body=st.binary() | st.sampled_from([b"\r\n\r\n", b"\r\n", b"reservoir/1 "]),
    microseconds=st.integers(0, 2**52),
)
def test_an_entry_gives_back_what_was_put_in(
    headers: tuple[tuple[str, str], ...], body: bytes, microseconds: int
) -> None:
    """Every byte and every microsecond."""
    raw = RawDelivery(
        id=UUID(int=7),
        endpoint="arcade-vienna",
        method="PATCH",
        received_at=EPOCH + timedelta(microseconds=microseconds),
        headers=headers,
        body=body,
    )
    assert RawDelivery.unpack(raw.id, raw.pack()) == raw


def test_ids_grow() -> None:
    """Also within a microsecond, so that they can be the order of receipt among equals."""
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert {identity.version for identity in ids} == {7}
