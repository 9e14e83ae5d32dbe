"""The parts of a workshop with somebody looking on: what they do is counted, and told to a delivery's trace.

They do the same as the parts that they stand for. Where nothing is counted and nothing traced, looking on costs next to
nothing; providers and callers are left as they are then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from functools import cache
from typing import Final, TypeVar
from uuid import UUID

from celery.signals import task_postrun, worker_process_shutdown

from schemas.delivery import OPEN, State
from schemas.endpoints import Endpoint
from schemas.spans import ACKNOWLEDGE, LAND, LOOK_UP, SAVE, Attributes, Spans
from schemas.tracing import spans
from workers import metrics
from workers.circuit import Circuits as PlainCircuits
from workers.circuit import Seen
from workers.errors import DeliveryError
from workers.job import Entry, Job, Saved
from workers.provider import Answer, Call, Incoming, Provider, Recall
from workers.store import Store as PlainStore

Asks = Callable[[Call], Answer]
AsksFor = Callable[[Provider, Endpoint], Asks]
Question = TypeVar("Question", bound=Call | Recall | None)

BATCH: Final = "reservoir.batch"
"""With how many others a step was taken, itself included."""


@cache
def traces() -> Spans | None:
    """Of this process."""
    return spans("worker")


@task_postrun.connect
def write(**_: object) -> None:
    """After each task: what a child has counted is known also when it ends."""
    metrics.write()


@worker_process_shutdown.connect
def flush(**_: object) -> None:
    """A child ends without the clean-up of an interpreter."""
    if collected := traces():
        collected.flush()


# --- the store and the circuits ----------------------------------------------------------------------------------


class Store(PlainStore):
    """Counts what becomes of deliveries, once it is committed."""

    def save(self, entries: Sequence[Entry], now: datetime) -> list[Saved | None]:
        began = time.time_ns()
        saved = super().save(entries, now)
        _tell([one for one in saved if one is not None and one.state is not None], len(entries), began, now)
        return saved

    def arrive(self, entries: Sequence[Entry], now: datetime) -> list[Saved]:
        began = time.time_ns()
        saved = super().arrive(entries, now)
        _tell(saved, len(entries), began, now)
        return saved


def _tell(saved: Sequence[Saved], batch: int, began: int, now: datetime) -> None:
    """These were saved, among so many, from that time (nanoseconds) until now."""
    for one in saved:
        _count(one, now)
    if collected := traces():
        ended = time.time_ns()
        for one in saved:
            reason = one.entry.verdict.reason
            about: Attributes = {"reservoir.state": str(one.state), "reservoir.reason": reason or "", BATCH: batch}
            failure = reason if one.state in (State.PARKED, State.RETRYING) else None
            collected.step(SAVE, one.entry.job.raw.id, began, ended, about, failure)


def _count(saved: Saved, now: datetime) -> None:
    job, reason = saved.entry.job, saved.entry.verdict.reason
    if saved.state in OPEN:
        metrics.retried(job.raw.endpoint, reason)
        return
    metrics.settled(job.raw.endpoint, str(saved.state), reason)
    if saved.state is State.APPLIED and not job.replayed:
        metrics.applied(job.raw.endpoint, now - job.raw.received_at)


class Circuits(PlainCircuits):
    """Counts how often one opens."""

    def _change(self, endpoint: str, after: Callable[[Seen], Seen]) -> None:
        opened = False

        def noted(seen: Seen) -> Seen:
            nonlocal opened
            then = after(seen)
            opened = then != seen and then.gate is not None
            return then

        super()._change(endpoint, noted)
        if opened:
            metrics.circuit_opened(endpoint)


# --- traces ------------------------------------------------------------------------------------------------------


def landed(jobs: Iterable[Job], began: int) -> None:
    """These deliveries were taken hold of, from that time (nanoseconds) until now."""
    if collected := traces():
        held, ended = list(jobs), time.time_ns()
        for job in held:
            about: Attributes = {
                "reservoir.endpoint": job.raw.endpoint,
                "reservoir.attempt": job.attempt,
                BATCH: len(held),
            }
            collected.step(LAND, job.raw.id, began, ended, about)


@dataclass(frozen=True, kw_only=True, slots=True)
class Marked(Call):
    """A call that says for which delivery it is made, and as which step."""

    delivery: UUID
    step: str


def marked(providers: Mapping[str, Provider]) -> Mapping[str, Provider]:
    """The providers; where traces are on, their calls are marked."""
    if traces() is None:
        return providers
    return {name: _marking(provider) for name, provider in providers.items()}


def _marking(provider: Provider) -> Provider:
    lookup, acknowledge = provider.lookup, provider.acknowledge
    return replace(
        provider,
        lookup=lambda incoming: _mark(lookup(incoming), incoming, LOOK_UP),
        acknowledge=lambda incoming: _mark(acknowledge(incoming), incoming, ACKNOWLEDGE),
    )


def _mark(question: Question, incoming: Incoming, step: str) -> Question | Marked:
    if not isinstance(question, Call):
        return question
    plain = {field.name: getattr(question, field.name) for field in fields(Call)}
    return Marked(**plain, delivery=incoming.delivery.id, step=step)


def traced(asks_for: AsksFor) -> AsksFor:
    """Whoever performs calls of an endpoint; where traces are on, each call is told."""
    collected = traces()
    if collected is None:
        return asks_for
    return lambda provider, endpoint: Traced(asks_for(provider, endpoint), collected)


@dataclass(frozen=True)
class Traced:
    """Tells of a call its name and what came of it; never its path, which may hold a key."""

    asks: Asks
    collected: Spans

    def __call__(self, call: Call) -> Answer:
        began, about, failure = time.time_ns(), {"reservoir.call": call.name}, None
        try:
            answer = self.asks(call)
            about["http.response.status_code"] = str(answer.status)
            return answer
        except DeliveryError as error:
            failure = error.reason
            raise
        finally:
            if isinstance(call, Marked):
                self.collected.step(call.step, call.delivery, began, time.time_ns(), about, failure)
