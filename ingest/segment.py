"""One file of the spool: a SQLite database with a lock beside it, written by one process and read once.

Whoever holds the lock (`flock`, so it ends with its process) owns the segment: `create` makes one to write, `adopt`
takes over one that was left behind. It is emptied by being removed as a whole, never by DELETE, so that a full disk can
always be emptied. Knows nothing of Redis, and nothing of who waits.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import UUID

from ingest.waiting import GROUP, GROUP_BYTES, Row
from schemas.delivery import new_id

SUFFIX: Final = ".sqlite"
CORRUPT: Final = ".corrupt"
PAGE: Final = 4096
LEAST: Final = 16
"""Pages: with fewer there is not even room for one ordinary request."""
ROOM: Final = 2 * PAGE
"""Bytes: an ordinary request with all that belongs to it."""

SETTINGS: Final = {
    # No other process has any business here, so the index of the log is kept in memory: no file that is mapped into
    # memory, which a full disk would turn into a bus error, and reading needs no room on the disk.
    "locking_mode": "EXCLUSIVE",
    "synchronous": "FULL",
    "cell_size_check": "ON",
    # KiB, instead of 2,000. All is written once, and read once and in order: a larger one would only cost memory.
    "cache_size": "-256",
    "trusted_schema": "OFF",
}
FIRST: Final = {"page_size": str(PAGE), "journal_mode": "WAL"}
"""Settings that stay with the file."""
TABLE: Final = "CREATE TABLE spooled (id TEXT NOT NULL, queue TEXT NOT NULL, packed BLOB NOT NULL)"
INSERT: Final = "INSERT INTO spooled (id, queue, packed) VALUES (?, ?, ?)"
SELECT: Final = "SELECT rowid, id, queue, packed FROM spooled WHERE rowid > ? ORDER BY rowid"
"""In order of arrival; with DESC at its end it is what `_salvaged` reads."""


class Segment:
    """See the module. Not for two threads at once, but it may be handed from one to another."""

    def __init__(self, path: Path, lock: int) -> None:
        self.path = path
        self.rows = 0
        """Written or read by this process."""
        self.torn = False
        """Something in it could not be read."""
        self.removed = False
        self._lock = lock
        self._connection: sqlite3.Connection | None = None
        self._unread: Iterator[Row] | None = None
        self._group: list[Row] = []

    @classmethod
    def create(cls, directory: Path, limit: int) -> Segment:
        """An empty one of at most `limit` bytes, whose name is on the disk. Raises OSError or sqlite3.Error."""
        path = directory / f"{new_id().hex}{SUFFIX}"
        lock = _locked(path, wait=True)
        assert lock is not None
        segment = cls(path, lock)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))  # the other files are like this one
            connection = segment._open()
            for name, value in FIRST.items():
                connection.execute(f"PRAGMA {name} = {value}")
            connection.execute(f"PRAGMA max_page_count = {max(limit // PAGE, LEAST)}")
            connection.execute(TABLE)
            sync_directory(directory)
        except BaseException:
            segment.remove()
            raise
        return segment

    @classmethod
    def adopt(cls, path: Path) -> Segment | None:
        """The one of that name where nobody owns it; None where somebody does, or it is gone."""
        lock = _locked(path, wait=False)
        if lock is None:
            return None
        if path.exists():
            return cls(path, lock)
        with suppress(FileNotFoundError):
            _lock_file(path).unlink()
        os.close(lock)
        return None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            # Waits for nobody: the lock has been taken already.
            connection = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            self._connection = connection
            for name, value in SETTINGS.items():
                connection.execute(f"PRAGMA {name} = {value}")
        return self._connection

    # --- writing ---------------------------------------------------------------------------------------------

    def append(self, rows: list[Row]) -> None:
        """Returns when all of them are on the disk. Raises sqlite3.Error, and keeps none of them."""
        self._transaction(lambda connection: connection.executemany(INSERT, rows))
        self.rows += len(rows)

    def try_room(self) -> None:
        """Writes as much as an ordinary request to the disk, and gives the room back. Raises sqlite3.Error."""

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(INSERT, ("", "", bytes(ROOM)))
            connection.execute("DELETE FROM spooled WHERE rowid = last_insert_rowid()")

        self._transaction(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], object]) -> None:
        connection = self._open()
        try:
            connection.execute("BEGIN IMMEDIATE")
            work(connection)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                with suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            raise

    # --- reading, when nothing is written any more -----------------------------------------------------------

    def group(self) -> list[Row]:
        """The next rows, in order; the same ones until `landed`; none at the end. Raises sqlite3.Error, OSError."""
        if not self._group:
            if self._unread is None:
                self._unread = self._readable()
            try:
                self._group = _first(self._unread)
            except BaseException:
                self._unread = None  # from the beginning: what has landed lands again, and nothing is passed over
                raise
        return self._group

    def landed(self) -> None:
        """The group is in the inbox."""
        self._group = []

    def _readable(self) -> Iterator[Row]:
        """All that can be read, from both ends where the middle is corrupt. Whatever else fails is raised."""
        last = 0
        self.rows = 0
        for order in ("", " DESC"):
            try:
                connection = self._open()
                if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                    return  # its process ended while it was made
                for rowid, *values in connection.execute(SELECT + order, (last,)):
                    last = rowid if not order else last
                    row = _checked(values)
                    self.torn |= row is None
                    if row is not None:
                        self.rows += 1
                        yield row
                return
            except sqlite3.DatabaseError as error:
                if not _is_corrupt(error):
                    raise
                self.torn = True

    # --- the end ---------------------------------------------------------------------------------------------

    def remove(self) -> None:
        """With all that belongs to it; the lock goes last. Raises OSError."""
        for path in (self.path, _beside(self.path, "-wal"), _beside(self.path, "-shm"), _lock_file(self.path)):
            path.unlink(missing_ok=True)
        self.close()
        self.removed = True

    def set_aside(self) -> None:
        """Out of the way of the next start, for a person to look at: SQLite opens it as it is. Raises OSError."""
        for ending in ("-wal", ""):
            with suppress(FileNotFoundError):
                _beside(self.path, ending).rename(_beside(self.path, CORRUPT + ending))
        self.remove()

    def close(self) -> None:
        """Gives it back: whoever wants it may adopt it."""
        connection, self._connection = self._connection, None
        self._unread = None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    @property
    def size(self) -> int:
        """Bytes on the disk; another thread may be removing it."""
        size = 0
        for path in (self.path, _beside(self.path, "-wal")):
            with suppress(FileNotFoundError):
                size += path.stat().st_size
        return size


def found(directory: Path) -> list[Path]:
    """The segments of all processes, the oldest first. Locks without a segment are removed by the way."""
    names = sorted(directory.iterdir())
    for name in names:
        if name.suffix == ".lock" and not name.with_suffix(SUFFIX).exists():
            Segment.adopt(name.with_suffix(SUFFIX))
    return [name for name in names if name.suffix == SUFFIX]


def sync_directory(directory: Path) -> None:
    """A file's name is on the disk only when its directory is. Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_full(error: Exception) -> bool:
    """The limit is reached, or the disk is full: the file itself is as good as before."""
    return _code(error) == sqlite3.SQLITE_FULL


def said(error: Exception) -> str:
    """What went wrong, without the values that it went wrong with."""
    return getattr(error, "sqlite_errorname", None) or getattr(error, "strerror", None) or str(error)


def _is_corrupt(error: Exception) -> bool:
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _code(error: Exception) -> int:
    """SQLite's primary code: the lower eight bits of what it says."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _checked(values: list[object]) -> Row | None:
    """The row; None where a corrupt file says something else."""
    identity, queue, packed = values
    if not (isinstance(identity, str) and isinstance(queue, str) and isinstance(packed, bytes)):
        return None
    try:
        UUID(identity)
    except ValueError:
        return None
    return Row(identity, queue, packed)


def _first(rows: Iterator[Row]) -> list[Row]:
    group: list[Row] = []
    size = 0
    while len(group) < GROUP and size < GROUP_BYTES:
        row = next(rows, None)
        if row is None:
            break
        group.append(row)
        size += len(row.packed)
    return group


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _lock_file(path: Path) -> Path:
    return path.with_suffix(".lock")


def _locked(path: Path, *, wait: bool) -> int | None:
    """A descriptor that holds the lock of a segment; None where somebody else holds it."""
    name = _lock_file(path)
    while True:
        descriptor = os.open(name, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if name.exists() and os.path.samestat(name.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed between the two steps, with its segment
