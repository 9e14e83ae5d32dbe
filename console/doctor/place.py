"""What lies on this machine's disk: the configuration, the installation's secret, the spool."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import psutil

from console import context
from console.doctor.finding import Finding, by_age, fail, ok, size, span, warn
from schemas.delivery import EPOCH
from schemas.endpoints import SECRET, WHATS, Config, ConfigError, installation_secret

SPOOL_LIMIT: Final = 1024**3
"""What a receiver may spool where nothing else is said."""
LEAST: Final = 16 * 1024 * 1024
"""Bytes: with less the spool cannot even take what comes in a few seconds."""
FORGETFUL: Final = frozenset({"tmpfs", "ramfs", "devtmpfs"})
"""File systems that a restart empties."""
SEGMENT: Final = "*.sqlite"
CORRUPT: Final = "*.corrupt"
EMPTY: Final = 64 * 1024
"""Bytes of a segment, with its log, in which nothing but its form is."""
OURS: Final = frozenset({"RESERVOIR_ALARMS_WEBHOOK_SECRET"})
"""Named like an endpoint's secret, and of the installation itself."""
LATE: Final = timedelta(minutes=2)
"""So long a segment may be written to, or wait for Redis, before somebody should look."""
LOST: Final = timedelta(hours=1)


# --- the configuration -------------------------------------------------------------------------------------------


def configuration(file: Path) -> tuple[Finding, Config | None]:
    """Whether it can be read, and says what the providers can take."""
    name = "configuration"
    try:
        config = context.read_config(file)
    except ConfigError as error:
        return fail(name, str(error), "mend that, then `reservoir restart`"), None
    loose = file.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if loose:
        return warn(name, f"{file} can be changed by others than its owner", f"chmod go-w {file}"), config
    return ok(name, f"{file}: {len(config.endpoints)} endpoints"), config


def variables(config: Config, environment: Mapping[str, str]) -> Finding:
    """Whether every secret in the environment belongs to an endpoint: a mistyped name is read by nobody."""
    name = "secrets' names"
    known = OURS | {endpoint.variable(what) for endpoint in config for what in WHATS}
    ends = tuple(f"_{what.upper()}" for what in WHATS)
    lost = sorted(each for each in environment if each.startswith("RESERVOIR_") and each.endswith(ends))
    lost = [each for each in lost if each not in known]
    if lost:
        return warn(
            name, f"{', '.join(lost)}: of no endpoint in {config.file}", "name it after an endpoint, or unset it"
        )
    return ok(name, "every secret in the environment belongs to an endpoint")


def secret(state_dir: Path, environment: Mapping[str, str]) -> Finding:
    """Whether the installation's secret is there, and nobody else's. It is not made here."""
    name = "secret"
    if environment.get(SECRET):
        try:
            installation_secret(environment)
        except ConfigError as error:
            return fail(name, str(error), "set a longer one; every URL changes with it")
        return ok(name, f"{SECRET} is set")
    if context.running(state_dir).get("secret") == "environment":
        return warn(name, f"the running `reservoir up` has {SECRET} from its environment", "set the same one here")
    file = state_dir / "secret"
    try:
        mode = file.stat().st_mode
    except OSError:
        return warn(
            name, f"none yet: {SECRET} is not set, and {file} is not there", f"set {SECRET}; `up` makes one else"
        )
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return fail(name, f"{file} can be read by others than its owner", f"chmod 600 {file}")
    return ok(name, f"kept in {file}; it belongs with your backups")


# --- the spool ---------------------------------------------------------------------------------------------------


def spool_dir(state_dir: Path, environment: Mapping[str, str]) -> Path | None:
    """Where a receiver of this environment spools; None where it does not."""
    named = environment.get("RESERVOIR_SPOOL_DIR", "")
    return None if named == "off" else Path(named or state_dir / "spool").absolute()


def spool(folder: Path | None, limit: int, now: datetime) -> list[Finding]:
    """All about the spool."""
    if folder is None:
        mend = "set RESERVOIR_SPOOL_DIR to a folder on a disk"
        return [warn("spool", "off: while Redis is away, senders get a 503", mend)]
    return [spool_writable(folder), spool_disk(folder), spool_room(folder, limit), spool_content(folder, now)]


def spool_writable(folder: Path) -> Finding:
    """Whether a file can be made there, and synced."""
    name = "spool"
    place = _nearest(folder)
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".doctor-") as tried:
            tried.write(b"?")
            tried.flush()
            os.fsync(tried.fileno())
    except OSError as error:
        mend = "give the folder to the receiver's user, or set RESERVOIR_SPOOL_DIR to another one"
        return fail(name, f"{folder} cannot be written ({error.strerror})", mend)
    return ok(name, f"{folder} takes files" if place == folder else f"{folder} can be made")


def spool_disk(folder: Path) -> Finding:
    """Whether a restart of the machine keeps what is there."""
    name = "spool's disk"
    kind = file_system(_nearest(folder))
    if kind in FORGETFUL:
        return fail(name, f"{folder} is on a {kind}, which a restart empties", "set RESERVOIR_SPOOL_DIR to a real disk")
    return ok(name, f"on {kind}, which outlives a restart")


def spool_room(folder: Path, limit: int) -> Finding:
    """Whether the disk has the room that the spool may take."""
    name = "spool's room"
    free = shutil.disk_usage(_nearest(folder)).free
    text = f"{size(free)} are free, and a receiver may spool {size(limit)}"
    mend = "free the disk, or lower RESERVOIR_SPOOL_LIMIT"
    if free < LEAST:
        return fail(name, text, mend)
    return warn(name, text, mend) if free < limit else ok(name, text)


def spool_content(folder: Path, now: datetime) -> Finding:
    """What waits there for Redis."""
    name = "spool's content"
    if any(folder.glob(CORRUPT)):
        kept = ", ".join(sorted(each.name for each in folder.glob(CORRUPT)))
        mend = "the readable part was handed over; keep the file and tell us, then move it away"
        return warn(name, f"could not be read wholly: {kept}", mend)
    full = {segment: count for segment in folder.glob(SEGMENT) if (count := _bytes(segment)) > EMPTY}
    if not full:
        return ok(name, "nothing waits")
    age = max(now - _made(segment, now) for segment in full)
    text = f"{size(sum(full.values()))} wait in {len(full)} segments, the oldest for {span(age)}"
    mend = "see that Redis takes writes and a receiver runs over this folder: it hands them over by itself"
    return by_age(name, text, max(age, LATE), late=LATE, lost=LOST, mend=mend)


def file_system(place: Path) -> str:
    """The kind of file system that a place is on."""
    real = os.path.realpath(place)
    mounts: list[Any] = [
        each for each in psutil.disk_partitions(all=True) if Path(real).is_relative_to(each.mountpoint)
    ]
    best = max(mounts, key=lambda each: len(each.mountpoint), default=None)
    return str(best.fstype) if best and best.fstype else "a disk of unknown kind"


def _nearest(folder: Path) -> Path:
    """The folder, or the first one above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def _bytes(segment: Path) -> int:
    """With the log beside it; 0 where it has just been handed over."""
    total = 0
    for each in (segment, segment.with_name(f"{segment.name}-wal")):
        try:
            total += each.stat().st_size
        except FileNotFoundError:
            continue
    return total


def _made(segment: Path, now: datetime) -> datetime:
    """When it was begun: its name is a time-ordered id."""
    try:
        return EPOCH + timedelta(milliseconds=int(segment.stem, 16) >> 80)
    except (ValueError, OverflowError):
        return now
