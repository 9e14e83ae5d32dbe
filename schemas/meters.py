"""What a process counts, and the files in which `reservoir metrics` finds it.

Counting is plain memory. Every so often the counts are written into two files of the process's own, in the form that
prometheus-client's multi-process mode reads. That library would write each count at once, through a file mapped into
memory: four times the cost of an answer's whole accounting, and on a full disk a bus error, which ends the process.
Here a full disk means that the counts are written later.

`PROMETHEUS_MULTIPROC_DIR` names the directory; without it nothing is counted. Beside its files a process keeps a lock
(`flock`), which ends with it: so whoever reads knows which files nobody writes any more. Standard library only.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from bisect import bisect_left
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Final, Protocol
from uuid import uuid4

from schemas.logs import log
from schemas.metrics import Kind, Metric

DIRECTORY: Final = "PROMETHEUS_MULTIPROC_DIR"

_HEAD: Final = struct.Struct("ii")
"""How many bytes are used, and padding."""
_LENGTH: Final = struct.Struct("i")
_VALUE: Final = struct.Struct("dd")
"""The value, and a time that is only for gauges."""

Labels = tuple[str, ...]
"""In the order in which the metric names them."""
Numbers = list[float]
"""Of a counter the count; of a histogram how many fell into each bucket, and the sum. Who counts often may hold them
and add to them by itself, from one thread only: no look-up, no lock."""


class Meters(Protocol):
    """Counts; `write` makes them known."""

    def numbers(self, metric: Metric, labels: Labels) -> Numbers: ...
    def add(self, metric: Metric, labels: Labels, by: float = 1.0) -> None: ...
    def observe(self, metric: Metric, labels: Labels, value: float) -> None: ...
    def write(self) -> None: ...


class Off:
    """Nobody wants to know."""

    def numbers(self, metric: Metric, labels: Labels) -> Numbers:
        return _zeros(metric)

    def add(self, metric: Metric, labels: Labels, by: float = 1.0) -> None:
        pass

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        pass

    def write(self) -> None:
        pass


class InFiles:
    """See the module. For all threads of one process; a child that was forked makes its own."""

    def __init__(self, kind: str, directory: Path) -> None:
        """Raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = f"{kind}-{os.getpid()}-{uuid4().hex[:8]}"
        self._alive = _locked(directory / f"{name}.lock")
        self._numbers: dict[tuple[Metric, Labels], Numbers] = {}
        self._counters = Sheet(directory / f"{Kind.COUNTER}_{name}.db")
        self._histograms = Sheet(directory / f"{Kind.HISTOGRAM}_{name}.db")
        self._lock = Lock()
        self._writing = Lock()

    def numbers(self, metric: Metric, labels: Labels) -> Numbers:
        with self._lock:
            return self._of(metric, labels)

    def add(self, metric: Metric, labels: Labels, by: float = 1.0) -> None:
        with self._lock:
            self._of(metric, labels)[0] += by

    def observe(self, metric: Metric, labels: Labels, value: float) -> None:
        with self._lock:
            observed(metric, self._of(metric, labels), value)

    def _of(self, metric: Metric, labels: Labels) -> Numbers:
        """For who holds the lock."""
        numbers = self._numbers.get((metric, labels))
        if numbers is None:
            numbers = self._numbers[metric, labels] = _zeros(metric)
        return numbers

    def write(self) -> None:
        """Never raises: what cannot be written now is written the next time. It takes as long as the disk does, and
        whoever counts does not wait for it."""
        with self._writing:
            with self._lock:
                seen = {key: list(numbers) for key, numbers in self._numbers.items()}
            for (metric, labels), numbers in seen.items():
                sheet = self._histograms if metric.kind is Kind.HISTOGRAM else self._counters
                for name, number in zip(_names(metric, labels), numbers, strict=True):
                    sheet.set(name, number)
            with suppress(OSError):
                self._counters.write()
                self._histograms.write()


def observed(metric: Metric, numbers: Numbers, value: float) -> None:
    """One more value of a histogram."""
    numbers[bisect_left(metric.buckets, value)] += 1.0
    numbers[-1] += value


def _zeros(metric: Metric) -> Numbers:
    return [0.0] * (len(metric.buckets) + 2 if metric.kind is Kind.HISTOGRAM else 1)


def meters(kind: str, environment: Mapping[str, str] = os.environ) -> Meters:
    """Those of this process, where somebody wants them. A directory that cannot be used stops nobody from working."""
    directory = environment.get(DIRECTORY, "")
    if not directory:
        return Off()
    try:
        return InFiles(kind, Path(directory))
    except OSError as error:
        log.warning("not-counted", directory=directory, error=error.strerror)
        return Off()


def is_alive(lock: Path) -> bool:
    """Whether the process of this lock lives."""
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _locked(path: Path) -> int:
    """A descriptor that holds the lock for as long as the process lives; nobody finds the file before it is held."""
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    draft.rename(path)
    return descriptor


class Sheet:
    """One file: a head that says how much is used, then names and values, each at a place where it stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._data = bytearray(_HEAD.size)
        self._places: dict[str, int] = {}

    def set(self, name: str, value: float) -> None:
        place = self._places.get(name)
        if place is None:
            self._data += _entry(name.encode())
            place = self._places[name] = len(self._data) - _VALUE.size
        _VALUE.pack_into(self._data, place, value, 0.0)

    def write(self) -> None:
        """Into the page cache, where a reader finds it; a count is not worth a sync. Raises OSError."""
        if not self._places:
            return
        if self._file >= 0:
            self._write(self._file)
            return
        draft = self._path.with_suffix(".new")
        file = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._write(file)
            draft.rename(self._path)
        except BaseException:
            os.close(file)
            raise
        self._file = file

    def _write(self, file: int) -> None:
        """The head last: whoever reads meanwhile reads no further than what was there before."""
        _HEAD.pack_into(self._data, 0, len(self._data), 0)
        for start, end in ((_HEAD.size, len(self._data)), (0, _HEAD.size)):
            while start < end:
                start += os.pwrite(file, memoryview(self._data)[start:end], start)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _entry(name: bytes) -> bytes:
    """Length, name, padding, value: as `prometheus_client.mmap_dict` has it."""
    padding = b" " * (8 - (len(name) + _LENGTH.size) % 8)
    return b"".join((_LENGTH.pack(len(name)), name, padding, _VALUE.pack(0.0, 0.0)))


@cache
def _names(metric: Metric, labels: Labels) -> list[str]:
    """Of its numbers: of a histogram the buckets, then the sum."""
    told = dict(zip(metric.labels, labels, strict=True))
    if metric.kind is not Kind.HISTOGRAM:
        return [_name(metric.name.removesuffix("_total"), metric.name, metric, told)]
    bounds = [*map(str, metric.buckets), "+Inf"]
    buckets = [_name(metric.name, f"{metric.name}_bucket", metric, {**told, "le": bound}) for bound in bounds]
    return [*buckets, _name(metric.name, f"{metric.name}_sum", metric, told)]


def _name(family: str, sample: str, metric: Metric, labels: Mapping[str, str]) -> str:
    return json.dumps([family, sample, labels, metric.help], sort_keys=True)
