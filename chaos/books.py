"""The ledger of a run: what was sent under which fault, what is kept of it, and what is not. Pure.

A request is owed when its sender got a 2xx, or, where the provider sends only once, when it was sent at all while a
receiver was up. An owed request is *lost* when no row of `deliveries` holds it, when that row never settled, or when
its booking has no row; it is *wrong* when it was parked, or when its booking differs from what the venue knows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from schemas.delivery import door_of
from simulators.ledger import Key, Outcome, Sent, Verdict

FAIR: Final = "fair weather"
KILLED: Final = "receiver killed"
SETTLED: Final = frozenset({"applied", "duplicate", "stale", "ignored"})
SAME: Final = frozenset({"duplicate", "stale"})


@dataclass(frozen=True, kw_only=True)
class Span:
    """One fault as it really was, from the first harm until everything was back (Unix seconds)."""

    name: str
    began: float
    ended: float
    trouble: str | None = None
    """What did not come back in time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """One row of `deliveries`."""

    id: str
    request: str
    state: str
    reason: str | None
    attempts: int
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Something that is not as it should be, in words."""

    kind: str
    """`lost`, `wrong` or `late`."""
    text: str


@dataclass(kw_only=True)
class Line:
    """One line of the table: a provider, a fault, or everything."""

    name: str
    times: int = 0
    sent: int = 0
    acked: int = 0
    late: int = 0
    stored: int = 0
    applied: int = 0
    same: int = 0
    lost: int = 0
    wrong: int = 0
    acks: list[float] = field(default_factory=list)
    """Seconds of every answer."""

    def ack(self, share: float) -> float:
        """A quantile of the ack times, in milliseconds; 1.0 is the largest."""
        if not self.acks:
            return 0.0
        self.acks.sort()
        return 1000 * self.acks[min(len(self.acks) - 1, int(share * len(self.acks)))]


@dataclass(kw_only=True)
class Account:
    """How the run ended."""

    total: Line
    providers: list[Line]
    faults: list[Line]
    differences: list[Difference]
    excused: int
    """Requests that met no receiver, or waited for one that had been killed, where there was no balancer."""
    given_up: int
    attempts: float
    """How often a delivery was processed, on average."""

    @property
    def good(self) -> bool:
        return not self.differences

    def lose(self, text: str) -> None:
        """Something is lost that is no single request."""
        self.total.lost += 1
        self.differences.append(Difference(kind="lost", text=text))


class Weather:
    """Which faults were under way at a moment."""

    def __init__(self, spans: Iterable[Span]) -> None:
        edges = sorted({edge for span in spans for edge in (span.began, span.ended)})
        self._edges = edges
        self._under_way: list[tuple[str, ...]] = [()]
        for edge in edges:
            names = {span.name for span in spans if span.began <= edge < span.ended}
            self._under_way.append(tuple(sorted(names)))

    def at(self, moment: float) -> tuple[str, ...]:
        return self._under_way[bisect_right(self._edges, moment)]

    def during(self, sent: Sent) -> frozenset[str]:
        """The faults that a request met from the moment it was sent until it was answered."""
        first, last = bisect_right(self._edges, sent.at), bisect_right(self._edges, sent.at + sent.seconds)
        return frozenset(name for place in range(first, last + 1) for name in self._under_way[place])


def owed(sent: Sent, *, balanced: bool) -> bool:
    """Whether we have promised to keep it. Without a balancer a request may die in a receiver that is killed, and a
    killed receiver refuses: nothing of ours was up for it then."""
    if sent.acked:
        return True
    if door_of(sent.provider).sends_again:
        return False
    return balanced or sent.outcome not in (Outcome.REFUSED, Outcome.CUT)


def account(
    sent: Sequence[Sent],
    kept: Iterable[Kept],
    verdict: Verdict,
    spans: Sequence[Span],
    *,
    balanced: bool,
    forgiven: set[Key],
) -> Account:
    """Puts everything together. `forgiven` are the bookings that nobody can know rightly."""
    return _Bookkeeper(sent, kept, verdict, spans, balanced=balanced, forgiven=forgiven).account()


class _Bookkeeper:
    def __init__(
        self,
        sent: Sequence[Sent],
        kept: Iterable[Kept],
        verdict: Verdict,
        spans: Sequence[Span],
        *,
        balanced: bool,
        forgiven: set[Key],
    ) -> None:
        self.sent, self.verdict, self.spans, self.balanced, self.forgiven = sent, verdict, spans, balanced, forgiven
        self.rows: defaultdict[str, list[Kept]] = defaultdict(list)
        self.attempts = self.deliveries = 0
        for row in kept:
            self.rows[row.request].append(row)
            self.attempts += row.attempts
            self.deliveries += 1
        self.weather = Weather(spans)
        self.missing = set(verdict.lost)
        self.differing = {(wrong.endpoint, wrong.external_id) for wrong in verdict.wrong} | set(verdict.invented)
        self.total = Line(name="all")
        self.providers: dict[str, Line] = {}
        self.faults: dict[str, Line] = {}
        self.blamed: set[Key] = set()
        """Missing bookings that a lost request already stands for."""
        self.differences: list[Difference] = []
        self.excused = 0

    def account(self) -> Account:
        for one in self.sent:
            self._enter(one)
        self._bookings()
        for span in self.spans:
            self._line(span.name).times += 1
            if span.trouble:
                self._tell("late", f"after {span.name}: {span.trouble}")
                self.total.late += 1
        return Account(
            total=self.total,
            providers=sorted(self.providers.values(), key=lambda line: line.name),
            faults=sorted(self.faults.values(), key=lambda line: (line.name == FAIR, line.name)),
            differences=self.differences,
            excused=self.excused,
            given_up=self.verdict.given_up,
            attempts=self.attempts / self.deliveries if self.deliveries else 0.0,
        )

    def _line(self, fault: str) -> Line:
        return self.faults.setdefault(fault, Line(name=fault))

    def _lines(self, sent: Sent) -> Iterator[Line]:
        yield self.total
        yield self.providers.setdefault(sent.provider, Line(name=sent.provider))
        for fault in self.weather.during(sent) or (FAIR,):
            yield self._line(fault)

    def _enter(self, sent: Sent) -> None:
        rows = self.rows.get(sent.request, [])
        lost = self._lost(sent, rows)
        parked = [row for row in rows if row.state == "parked" and not self._forgiven(sent)]
        unowed = not rows and not door_of(sent.provider).sends_again and not owed(sent, balanced=self.balanced)
        self.excused += unowed or (sent.late and not self._late(sent))
        for line in self._lines(sent):
            line.sent += 1
            line.acked += sent.acked
            line.late += self._late(sent)
            line.stored += len(rows)
            line.applied += sum(row.state == "applied" for row in rows)
            line.same += sum(row.state in SAME for row in rows)
            line.lost += lost is not None
            line.wrong += len(parked)
            if sent.acked:
                line.acks.append(sent.seconds)
        if lost:
            self.blamed.update((sent.endpoint, booking) for booking in sent.bookings)
            self._tell("lost", f"{_what(sent)}: {lost}")
        for row in parked:
            self._tell("wrong", f"{_what(sent)}: parked as {row.reason}: {row.error} (delivery {row.id})")
        if self._late(sent):
            self._tell("late", f"{_what(sent)}: {sent.seconds * 1000:.0f} ms")

    def _late(self, sent: Sent) -> bool:
        """Without a balancer a request waits until the only receiver is back, and nobody can help that."""
        return sent.late and (self.balanced or KILLED not in self.weather.during(sent))

    def _lost(self, sent: Sent, rows: Sequence[Kept]) -> str | None:
        """Why an owed request is lost; None where it is not."""
        if not owed(sent, balanced=self.balanced):
            return None
        if not rows:
            return "no delivery holds it"
        if not any(row.state in SETTLED or row.state == "parked" for row in rows):
            row = rows[0]
            return f"never settled: {row.state} {row.reason or ''} after {row.attempts} attempts (delivery {row.id})"
        return None

    def _forgiven(self, sent: Sent) -> bool:
        return bool(sent.bookings) and all((sent.endpoint, booking) in self.forgiven for booking in sent.bookings)

    def _bookings(self) -> None:
        """Bookings that are missing or differ count once, and once more for each fault that a request of theirs met."""
        requests: defaultdict[Key, list[Sent]] = defaultdict(list)
        for one in self.sent:
            for booking in one.bookings:
                requests[one.endpoint, booking].append(one)
        for key in self.missing - self.blamed:
            self._blame(requests.get(key, []), "lost")
            self._tell("lost", f"{key[0]} booking {key[1]}: no row")
        for key in self.differing:
            self._blame(requests.get(key, []), "wrong")
        for wrong in self.verdict.wrong:
            words = f"expected {wrong.expected!r}, the row shows {wrong.found!r}"
            self._tell("wrong", f"{wrong.endpoint} booking {wrong.external_id} {wrong.column}: {words}")
        for endpoint, booking in self.verdict.invented:
            self._tell("wrong", f"{endpoint} booking {booking}: nobody made it")

    def _blame(self, requests: Sequence[Sent], column: str) -> None:
        providers = {one.provider for one in requests}
        faults = {name for one in requests for name in self.weather.during(one)} or {FAIR}
        lines = [self.total, *(self.providers[name] for name in providers), *(self._line(name) for name in faults)]
        for line in lines:
            setattr(line, column, getattr(line, column) + 1)

    def _tell(self, kind: str, text: str) -> None:
        self.differences.append(Difference(kind=kind, text=text))


def _what(sent: Sent) -> str:
    return f"{sent.endpoint} {sent.about} ({sent.outcome} {sent.status or ''}, request {sent.request})"


def slowest(sent: Iterable[Sent], spans: Sequence[Span], most: int) -> list[str]:
    """The answers that took longest, in words, with what was under way."""
    weather = Weather(spans)
    acked = sorted((one for one in sent if one.acked), key=lambda one: one.seconds, reverse=True)[:most]
    return [
        f"{one.seconds * 1000:.0f} ms, {one.endpoint} {one.about}; {', '.join(sorted(weather.during(one)))}"
        for one in acked
    ]


def away(sent: Iterable[Sent], spans: Iterable[Span], names: frozenset[str], settling: float) -> list[float]:
    """Ack times, in seconds, of what was sent while one of these faults had been under way for so long."""
    chosen = [(span.began + settling, span.ended) for span in spans if span.name in names]
    return sorted(one.seconds for one in sent if one.acked and any(began <= one.at < ended for began, ended in chosen))
