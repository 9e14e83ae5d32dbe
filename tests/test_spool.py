"""The spool on a real disk: what is kept is there after a kill, leaves whole and in order, belongs to one process."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from ingest.app import build
from ingest.segment import CORRUPT, LEAST, PAGE, Segment, found
from ingest.settings import Settings, read
from ingest.spool import OPEN_AGAIN, OnDisk
from ingest.waiting import GROUP, GROUP_BYTES, NotDurable, Row, Waiting
from schemas.delivery import new_id
from schemas.endpoints import ConfigError, parse
from tests.lines import logged

PROJECT = Path(__file__).resolve().parent.parent
MIB = 1024 * 1024


def row(packed: bytes = b"{}", queue: str = "timekit") -> Row:
    return Row(str(new_id()), queue, packed)


def rows(count: int, size: int = 1000) -> list[Row]:
    return [row(b"%06d" % number + bytes(size)) for number in range(count)]


def all_of(segment: Segment) -> list[Row]:
    """As the drainer reads it."""
    read: list[Row] = []
    while group := segment.group():
        read += group
        segment.landed()
    return read


def names(directory: Path) -> set[str]:
    """The kinds of files that are there."""
    return {path.name.partition(".")[2] for path in directory.iterdir()}


@pytest.fixture
def segment(tmp_path: Path) -> Iterator[Segment]:
    made = Segment.create(tmp_path, 64 * MIB)
    yield made
    made.close()


# --- a segment -----------------------------------------------------------------------------------------------


def test_what_is_appended_is_read_in_order(segment: Segment) -> None:
    """In groups of at most 64, the same one again until it has landed."""
    written = rows(150)
    segment.append(written[:100])
    segment.append(written[100:])
    first = segment.group()
    assert first == written[:GROUP]
    assert segment.group() == first
    segment.landed()
    assert first + all_of(segment) == written
    assert not segment.torn


def test_a_group_of_large_requests_is_smaller(segment: Segment) -> None:
    """Sixty-four mebibytes at once would take Redis longer than it has."""
    segment.append(rows(10, size=MIB))
    assert len(segment.group()) == GROUP_BYTES // MIB


def test_how_it_is_written(segment: Segment) -> None:
    """The promise behind a 2xx: the log is synced at every commit."""
    assert segment._connection is not None
    held = {
        name: segment._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in (
            "journal_mode",
            "synchronous",
            "locking_mode",
            "max_page_count",
            "page_size",
            "cell_size_check",
            "cache_size",
        )
    }
    assert held == {
        "journal_mode": "wal",
        "synchronous": 2,
        "locking_mode": "exclusive",
        "max_page_count": 64 * MIB // PAGE,
        "page_size": PAGE,
        "cell_size_check": 1,
        "cache_size": -256,
    }


def test_its_name_is_on_the_disk_before_anything_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A synced file that no directory names is lost with the power."""
    synced: list[bool] = []
    sync = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(os.path.samestat(os.fstat(descriptor), tmp_path.stat()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", seen)
    Segment.create(tmp_path, MIB).close()
    assert synced == [True]


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    """They are guests' data."""
    directory = tmp_path / "deep" / "spool"
    OnDisk(directory, MIB)
    assert directory.stat().st_mode & 0o777 == 0o700
    segment = Segment.create(directory, MIB)
    segment.append([row()])
    assert {path.stat().st_mode & 0o777 for path in directory.iterdir()} == {0o600}
    assert names(directory) == {"sqlite", "sqlite-wal", "lock"}
    segment.remove()
    assert names(directory) == set()


def test_it_takes_no_more_than_its_limit(segment: Segment, tmp_path: Path) -> None:
    """What is in it stays, and what does not fit leaves nothing."""
    segment.close()
    small = Segment.create(tmp_path, MIB)
    written = rows(64, size=10_000)
    small.append(written)
    small.try_room()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        small.append(rows(64, size=10_000))
    small.append([row(bytes(MIB // 8))])
    with pytest.raises(sqlite3.OperationalError, match="full"):
        fill(small)
    read = all_of(small)
    assert read[:64] == written
    assert all(not packed.strip(b"\0") for _, _, packed in read[64:])
    assert small.size < 1.2 * MIB + 8 * MIB  # the log is besides, and kept short
    small.close()


def fill(segment: Segment) -> None:
    """While it says that there is room."""
    while True:
        segment.try_room()
        segment.append([row(bytes(3 * PAGE))])


def test_room_that_is_tried_leaves_nothing(segment: Segment) -> None:
    """Neither a row nor, the second time, another byte."""
    segment.append([row()])
    segment.try_room()
    pages = segment._open().execute("PRAGMA page_count").fetchone()
    segment.try_room()
    assert segment._open().execute("PRAGMA page_count").fetchone() == pages
    assert len(all_of(segment)) == 1


def test_the_lock_is_its_owner(segment: Segment, tmp_path: Path) -> None:
    """Nobody adopts what somebody has; exactly one adopts what nobody has."""
    segment.append([row(b"kept")])
    assert Segment.adopt(segment.path) is None
    segment.close()
    adopted = Segment.adopt(segment.path)
    assert adopted is not None
    assert Segment.adopt(segment.path) is None
    assert [packed for _, _, packed in all_of(adopted)] == [b"kept"]
    adopted.remove()
    assert Segment.adopt(segment.path) is None
    assert names(tmp_path) == set()


def test_a_lock_without_a_segment_is_removed(tmp_path: Path) -> None:
    """Left by a process that was killed at the last step."""
    (tmp_path / f"{new_id().hex}.lock").touch()
    assert found(tmp_path) == []
    assert names(tmp_path) == set()


@pytest.mark.parametrize("content", [b"", "created"], ids=["empty file", "without its table"])
def test_a_segment_that_was_never_finished(content: bytes | str, tmp_path: Path) -> None:
    """Its process was killed while it was made: nothing was in it, and nothing is wrong."""
    path = tmp_path / f"{new_id().hex}.sqlite"
    path.touch()
    if content:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
    adopted = Segment.adopt(path)
    assert adopted is not None
    assert all_of(adopted) == []
    assert not adopted.torn
    adopted.close()


# --- a corrupt segment ---------------------------------------------------------------------------------------


def written_file(directory: Path, written: list[Row]) -> Path:
    """A segment whose process has gone."""
    segment = Segment.create(directory, 64 * MIB)
    segment.append(written)
    segment.close()
    return segment.path


def overwrite(path: Path, begin: int, length: int) -> None:
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xa5" * length)


def test_a_page_in_the_middle(tmp_path: Path) -> None:
    """What stands before it and behind it is read."""
    written = rows(1000)
    path = written_file(tmp_path, written)
    overwrite(path, path.stat().st_size // 2 // PAGE * PAGE, PAGE)
    segment = Segment.adopt(path)
    assert segment is not None
    read = all_of(segment)
    assert segment.torn
    assert set(read) < set(written)
    assert len(read) > 950
    assert {written[0], written[-1]} < set(read)
    segment.set_aside()
    assert names(tmp_path) == {f"sqlite{CORRUPT}", f"sqlite{CORRUPT}-wal"}
    assert found(tmp_path) == []


@pytest.mark.parametrize("begin", [0, 100], ids=["no database", "no schema"])
def test_nothing_can_be_read(begin: int, tmp_path: Path) -> None:
    """Then nothing is, and nothing is thrown away either."""
    path = written_file(tmp_path, rows(10))
    overwrite(path, begin, PAGE)
    segment = Segment.adopt(path)
    assert segment is not None
    assert all_of(segment) == []
    assert segment.torn
    segment.set_aside()
    assert f"sqlite{CORRUPT}" in names(tmp_path) <= {f"sqlite{CORRUPT}", f"sqlite{CORRUPT}-wal"}


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    written = rows(1000)
    path = written_file(tmp_path, written)
    os.truncate(path, path.stat().st_size // 2 // PAGE * PAGE)
    segment = Segment.adopt(path)
    assert segment is not None
    read = all_of(segment)
    assert segment.torn
    assert set(read) < set(written)
    segment.close()


def test_a_row_that_is_none(segment: Segment) -> None:
    """It is passed over, and said."""
    good = [row(b"one"), row(b"two")]
    segment.append([good[0], Row("no id", "timekit", b""), good[1]])
    assert all_of(segment) == good
    assert segment.torn


def test_a_disk_that_cannot_be_read_now_is_not_a_corrupt_one(segment: Segment) -> None:
    """It is read from the beginning the next time: passing over what could not be read would lose it."""
    written = rows(200)
    segment.append(written)
    segment.group()
    segment.landed()
    connection = segment._open()
    connection.set_progress_handler(lambda: 1, 1)  # SQLITE_INTERRUPT at every step
    with pytest.raises(sqlite3.OperationalError):
        all_of(segment)
    connection.set_progress_handler(None, 0)
    assert all_of(segment) == written
    assert not segment.torn


# --- the group commit ----------------------------------------------------------------------------------------


class Crowd:
    """Who waits for a spool, and what it told."""

    def __init__(self, spool: OnDisk) -> None:
        self.spool = spool
        self.batches: list[list[Row]] = []
        self.everybody: list[Waiting] = []

    def report(self, batch: list[Waiting], failure: str | None) -> None:
        self.batches.append([waiting.row for waiting in batch])
        for waiting in batch:
            waiting.settle(failure)

    async def fill(self) -> None:
        """One by one, until there is no room for another."""
        with suppress(NotDurable):
            while True:
                await self.send(row(bytes(PAGE)))

    def send(self, row: Row) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def tell(fate: str | NotDurable) -> None:
            if isinstance(fate, NotDurable):
                done.set_exception(fate)
            else:
                done.set_result(None)

        waiting = Waiting(row, tell)
        self.everybody.append(waiting)
        self.spool.take(waiting)
        return done


def with_spool(directory: Path, work: Callable[[Crowd], Awaitable[None]], limit: int = 64 * MIB) -> None:
    async def run() -> None:
        spool = OnDisk(directory, limit)
        crowd = Crowd(spool)
        await spool.start(crowd.report)
        try:
            await work(crowd)
        finally:
            await spool.stop()

    asyncio.run(run())


def test_everything_that_waits_shares_a_transaction(tmp_path: Path) -> None:
    """And nobody waits for company."""

    async def work(crowd: Crowd) -> None:
        await crowd.send(row())
        assert len(crowd.batches) == 1
        busy = asyncio.Event()
        crowd.spool._arrivals.put(lambda: asyncio.run(asyncio.sleep(0.05)))  # the disk is busy
        asyncio.get_running_loop().call_soon(busy.set)
        await asyncio.gather(*(crowd.send(packed) for packed in rows(200)))
        assert len(crowd.batches) == 2

    with_spool(tmp_path, work)
    (path,) = found(tmp_path)
    left = Segment.adopt(path)
    assert left is not None
    assert len(all_of(left)) == 201
    left.close()


def test_who_was_told_meanwhile_is_not_kept(tmp_path: Path) -> None:
    """Redis has it after all, or its sender was told to come again."""

    async def work(crowd: Crowd) -> None:
        waiting = Waiting(row(b"settled"), lambda fate: None)
        waiting.settle()
        crowd.spool.take(waiting)
        await crowd.send(row(b"kept"))
        (closed,) = await crowd.spool.closed()
        assert [packed for _, _, packed in all_of(closed)] == [b"kept"]
        closed.close()

    with_spool(tmp_path, work)


def test_a_closed_segment_has_a_successor_at_once(tmp_path: Path) -> None:
    """So the next request that is spooled pays nothing; an empty one is not closed, and removed at the end."""

    async def work(crowd: Crowd) -> None:
        assert len(found(tmp_path)) == 1
        assert await crowd.spool.closed() == []
        assert len(found(tmp_path)) == 1
        assert not crowd.spool.holds
        await crowd.send(row(b"first"))
        assert crowd.spool.holds
        (closed,) = await crowd.spool.closed()
        assert not crowd.spool.holds
        assert len(found(tmp_path)) == 2
        await crowd.send(row(b"second"))
        assert [packed for _, _, packed in all_of(closed)] == [b"first"]
        closed.remove()

    with_spool(tmp_path, work)
    (left,) = found(tmp_path)
    adopted = Segment.adopt(left)
    assert adopted is not None
    assert [packed for _, _, packed in all_of(adopted)] == [b"second"]
    adopted.remove()
    with_spool(tmp_path, lambda crowd: asyncio.sleep(0))
    assert names(tmp_path) == set()


def test_a_full_spool_says_so_and_takes_again(tmp_path: Path) -> None:
    """The limit counts all that this process has not got rid of."""

    async def work(crowd: Crowd) -> None:
        assert await crowd.spool.ready()
        with pytest.raises(NotDurable, match="SQLITE_FULL"):
            await asyncio.gather(*(crowd.send(row(bytes(PAGE))) for _ in range(2 * MIB // PAGE)))
        await crowd.fill()
        assert not await crowd.spool.ready()
        (closed,) = await crowd.spool.closed()
        with pytest.raises(NotDurable, match="SQLITE_FULL"):
            await crowd.send(row(bytes(2 * LEAST * PAGE)))
        closed.remove()
        await crowd.send(row(b"small"))
        for segment in await crowd.spool.closed():
            segment.remove()
        assert await crowd.spool.ready()
        await crowd.send(row(bytes(2 * LEAST * PAGE)))

    with_spool(tmp_path, work, limit=MIB)


def test_a_disk_that_fails_and_recovers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After a write that failed nobody trusts the file: what is in it is handed out, and a new one begun."""

    async def work(crowd: Crowd) -> None:
        await crowd.send(row(b"before"))
        with disk_full():
            with pytest.raises(NotDurable):
                await crowd.send(row(bytes(PAGE)))
            assert not await crowd.spool.ready()
        await asyncio.sleep(OPEN_AGAIN)
        assert await crowd.spool.ready()
        await crowd.send(row(b"after"))
        kept = [packed for segment in await crowd.spool.closed() for _, _, packed in all_of(segment)]
        assert kept == [b"before", b"after"]

    with_spool(tmp_path, work)
    assert logged(caplog, "spool-failed")


@contextmanager
def disk_full() -> Iterator[None]:
    """Of this process: no file may grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_can_be_emptied(tmp_path: Path) -> None:
    """Reading what was left behind, and removing it, needs no room at all."""
    written = rows(500)
    left_behind(tmp_path, written)
    (path,) = found(tmp_path)
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    with disk_full():
        segment = Segment.adopt(path)
        assert segment is not None
        assert all_of(segment) == written
        segment.remove()
    assert names(tmp_path) == set()


KILLED = """
import os, signal, sys
from pathlib import Path
from ingest.segment import Segment
from ingest.waiting import Row
segment = Segment.create(Path(sys.argv[1]), 64 * 1024 * 1024)
for line in sys.stdin:
    identity, size = line.split()
    segment.append([Row(identity, "timekit", b"x" * int(size))])
os.kill(os.getpid(), signal.SIGKILL)
"""


def left_behind(directory: Path, written: list[Row]) -> None:
    """By a process that was killed: its log is still beside the file, its lock free."""
    lines = "".join(f"{identity} {len(packed)}\n" for identity, _, packed in written)
    ended = subprocess.run([sys.executable, "-c", KILLED, directory], cwd=PROJECT, input=lines, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL
    for number, (identity, queue, packed) in enumerate(written):
        written[number] = Row(identity, queue, b"x" * len(packed))


def test_a_kill_keeps_what_was_synced(tmp_path: Path) -> None:
    """Every row of it, in order; and it is adopted once."""
    written = rows(50)
    left_behind(tmp_path, written)

    async def work(crowd: Crowd) -> None:
        (segment,) = crowd.spool.adoptable()
        assert crowd.spool.adoptable() == []
        assert all_of(segment) == written
        segment.remove()

    with_spool(tmp_path, work)


# --- its place -----------------------------------------------------------------------------------------------

ENVIRONMENT = {"REDIS_URL": "redis://127.0.0.1:1", "RESERVOIR_SECRET": "0123456789abcdef"}
CONFIG = parse({"endpoints": {"studio": {"provider": "reservekit"}}}, "reservoir.toml", {})


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({}, ".reservoir/spool"),
        ({"RESERVOIR_STATE_DIR": "/state"}, "/state/spool"),
        ({"RESERVOIR_STATE_DIR": "/state", "RESERVOIR_SPOOL_DIR": "/spool"}, "/spool"),
        ({"RESERVOIR_SPOOL_DIR": "off"}, None),
    ],
)
def test_where_it_is(variables: dict[str, str], place: str | None) -> None:
    settings = read({**ENVIRONMENT, "RESERVOIR_CONFIG": str(PROJECT / "reservoir.toml"), **variables})
    assert settings.spool_dir == (None if place is None else Path(place).absolute())
    assert settings.spool_limit == 1024**3


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    """One line, with the mend; and the start ends."""
    place = tmp_path / "spool"
    place.write_text("a file")
    with pytest.raises(ConfigError) as refusal:
        build(Settings(redis_url="redis://127.0.0.1:1", secret="x" * 16, config=CONFIG, spool_dir=place))
    said = str(refusal.value)
    assert said.startswith(f"RESERVOIR_SPOOL_DIR: {place} cannot be used (File exists)")
    assert "or `off`" in said


def test_a_limit_is_a_number_of_bytes() -> None:
    config = {"RESERVOIR_CONFIG": str(PROJECT / "reservoir.toml")}
    with pytest.raises(ConfigError, match="RESERVOIR_SPOOL_LIMIT: takes a whole number of bytes above 0"):
        read({**ENVIRONMENT, **config, "RESERVOIR_SPOOL_LIMIT": "1 GiB"})
