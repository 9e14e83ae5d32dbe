"""The Celery tasks, thin: the one place where the parts are put together, and where a fate becomes Celery's RETRY."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property, wraps
from random import Random
from typing import Any, Final, ParamSpec, TypeVar
from uuid import UUID

import psycopg
from celery import Task
from celery.exceptions import Retry, SoftTimeLimitExceeded
from celery.signals import worker_init, worker_process_init
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry as Retries
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from schemas.delivery import PROCESS, now
from schemas.endpoints import ConfigError, Endpoint
from schemas.garbage import collect_less
from schemas.logs import log
from workers import calls, circuit, observed, pipeline, registry, settings, sweep
from workers.app import SWEEP, app
from workers.bucket import Buckets
from workers.circuit import Circuits
from workers.database import engine, trouble, workers_engine
from workers.errors import DatabaseTrouble, DeliveryError, ProviderUnavailable, Throttled
from workers.flower import Outcome, tell
from workers.greed import MOST, MOST_ASKING, filled_up, ids_of
from workers.inbox import Inbox
from workers.job import ComesBack, Fate, Job, Landing, fresh_job
from workers.land import are_new, are_whole, arrivals, pick_up, take
from workers.provider import Provider
from workers.seal import Seal
from workers.slots import Slots
from workers.store import LEASE, Store
from workers.tokens import Tokens

P = ParamSpec("P")
R = TypeVar("R")

SOON: Final = timedelta(seconds=10)
"""When the sweeper looks for what could not be taken."""
HAND: Final = timedelta(seconds=1)
"""How long a batch waits for its turn to ask. While all is well, another one is through before that; while an
API hangs, this is what it costs the queues of the others."""


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What one worker process holds open."""

    settings: settings.Settings
    store: Store
    inbox: Inbox
    parts: pipeline.Parts
    redis: Redis
    circuits: Circuits

    @cached_property
    def asking(self) -> frozenset[str]:
        """The providers whose API this installation may have to ask for a delivery."""
        named = {name for name, provider in self.parts.providers.items() if provider.needs_secrets}
        return frozenset(named | {endpoint.provider for endpoint in self.parts.config if endpoint.secrets})


@cache
def workshop() -> Workshop:
    """Made at the first task of a process, so that no connection is shared across a fork."""
    read = settings.read()
    database = workers_engine(read.database_url)
    redis = _patient_redis(read.redis_url)
    inbox = Inbox(redis)
    store, http, answers = observed.Store(database), calls.client(), calls.Cache()
    impatient, providers = circuit.client(read.redis_url), observed.marked(registry.discover())
    circuits = observed.Circuits(impatient, on_close=lambda endpoint: _api_is_back(store, endpoint))
    buckets, limits = Buckets(impatient), calls.limits(read.config, providers, read.secrets_of, read.secret)
    tokens = Tokens(database, Seal(read.secret), now)

    def asks_for(provider: Provider, endpoint: Endpoint) -> calls.Caller:
        return calls.Caller(
            http=http,
            provider=provider,
            endpoint=endpoint,
            secrets=read.secrets_of(endpoint),
            tokens=tokens,
            cache=answers,
            clock=now,
            circuits=circuits,
            buckets=buckets,
            limit=limits.get(endpoint.name),
        )

    parts = pipeline.Parts(
        store=store,
        providers=providers,
        config=read.config,
        secrets_of=read.secrets_of,
        asks_for=observed.traced(asks_for),
        clock=now,
        meaning=meaning,
        chance=Random(),  # noqa: S311  jitter, not a secret
        hold=holding(inbox),
    )
    return Workshop(settings=read, store=store, inbox=inbox, parts=parts, redis=redis, circuits=circuits)


def _patient_redis(url: str) -> Redis:
    """Once more where a connection has died; with the library's own patience a Redis that hangs takes a minute."""
    return Redis.from_url(url, socket_timeout=3, socket_connect_timeout=1, retry=Retries(NoBackoff(), 1))


def _api_is_back(store: Store, endpoint: str) -> None:
    """What waits for it need not sit out its backoff."""
    store.wake(endpoint, [ProviderUnavailable.reason, Throttled.reason], now())


@worker_init.connect
def open_slots(sender: Any, **_: Any) -> None:
    """Before the children are forked, who share them."""
    _slots["all"] = Slots(sender.concurrency, patience=HAND)


_slots: dict[str, Slots] = {}


def holding(inbox: Inbox) -> Callable[[str], AbstractContextManager[bool]]:
    """Whether this child may ask a provider now; outside of a worker everybody may. What has landed is taken out of the
    inbox before that: while an API takes its time it would look as if nobody had it in hand."""

    def hold(provider: str) -> AbstractContextManager[bool]:
        inbox.tidy()
        return _slots["all"].hold(provider) if _slots else nullcontext(True)

    return hold


@worker_process_init.connect
def spare_the_collector(**_: Any) -> None:
    """Of what a child has inherited nothing becomes garbage, and the objects of a batch all go when it is done."""
    collect_less()


@worker_init.connect
def refuse_bad_configuration(**_: Any) -> None:
    """A worker that cannot work says why in one line, before it takes the first message."""
    try:
        read = settings.read()
        with suppress(DBAPIError):  # PostgreSQL may come later than we do
            registry.check_access(read.config, _kept_tokens(read))
    except ConfigError as error:
        sys.exit(f"reservoir: {error}")


def _kept_tokens(read: settings.Settings) -> set[str]:
    database = engine(read.database_url)
    try:
        return Tokens(database, Seal(read.secret), now).endpoints()
    finally:
        database.dispose()


def discreet(work: Callable[P, R]) -> Callable[P, R]:
    """Celery tells Flower an exception's text, which may quote what it stumbled over; ours names places only."""

    @wraps(work)
    def told(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return work(*args, **kwargs)
        except Retry:
            raise
        except Exception as error:  # noqa: BLE001  whatever it is
            raise meaning(error) from None

    return told


@app.task(name=PROCESS, bind=True)
@discreet
def process(self: Task[..., str | None], *delivery_ids: str) -> str | None:
    """Takes deliveries of one queue as far as they go; the state that the first of them reached.

    In a backlog it takes more than its message names. Running it twice does no harm.
    """
    shop, began = workshop(), time.time()
    own = ids_of(delivery_ids)
    queue = (self.request.delivery_info or {}).get("routing_key")
    ids = _filled_up(own, shop, queue)
    try:
        jobs, fates = _worked_on(ids, shop, queue)
    finally:
        shop.inbox.tidy()
    for job in jobs:
        _log(job, fates[job.raw.id])
    attempts = {job.raw.id: job.attempt for job in jobs}
    first, *others = ids
    tell(
        app,
        [_outcome(one, attempts.get(one, 1), fates[one]) for one in others if one in fates],
        hostname=self.request.hostname or "",
        began=began,
    )
    fate = fates.get(first)
    if isinstance(fate, ComesBack):
        raise _retry(fate)
    return fate.state if fate is not None else None


def _filled_up(ids: list[UUID], shop: Workshop, queue: str | None) -> list[UUID]:
    """Only a provider's queue is helped out: it holds nothing but nudges."""
    if queue is None or queue not in shop.parts.providers:
        return ids
    try:
        return filled_up(ids, shop.redis, queue, MOST_ASKING if queue in shop.asking else MOST)
    except RedisError:
        return ids  # the sweeper finds what was named in messages that got lost


def _worked_on(ids: Sequence[UUID], shop: Workshop, queue: str | None = None) -> tuple[list[Job], dict[UUID, Fate]]:
    """The deliveries that were ours to work on, and what became of them.

    What cannot even be taken stays where it is, in the inbox or in its row, and comes back.
    """
    parts, began = shop.parts, time.time_ns()
    jobs, fates, left = list[Job](), dict[UUID, Fate](), list(ids)
    try:
        landings = arrivals(ids, shop.inbox, parts.config, parts.providers, now())
        if queue not in shop.asking and are_whole(ids, landings):
            fresh = [fresh_job(one) for one in landings]
            found = _straight(fresh, landings, shop, queue)
            fates |= found.fates
            shop.inbox.landed(*fates)
            jobs += [job for job in fresh if job.raw.id in fates]
            left = [one for one in ids if one not in fates]
            if found.trouble is not None:
                raise found.trouble
        landings = [one for one in landings if one.raw.id not in fates]
        rest = take(left, landings, shop.inbox, shop.store, now()) if left else []
    except (DeliveryError, RedisError) as error:
        trouble = meaning(error)
        log.warning("not-taken", deliveries=len(left), first=left[0], reason=trouble.reason, error=str(trouble))
        return jobs, fates | dict.fromkeys(left, ComesBack(at=now() + SOON, error=trouble))
    jobs += rest
    observed.landed(jobs, began)
    return jobs, fates | pipeline.process(rest, parts)


def _straight(jobs: Sequence[Job], landings: Sequence[Landing], shop: Workshop, queue: str | None) -> pipeline.Straight:
    """How far they come by landing together with what they say.

    If we died of them, the sweeper would find those that are young and whose queue is idle; and nobody has tried those
    before. All others are noted before we begin: they must be found while their queue is busy, and be counted.
    """
    ids = [job.raw.id for job in jobs]
    idle = len(ids) < MOST and are_new(ids, landings, now()) and (queue is None or not shop.redis.llen(queue))
    if not idle:
        try:
            shop.inbox.take_in_hand(ids, now() + LEASE)
        except RedisError as error:  # full, say: it must be emptied all the same
            log.info("not-noted", deliveries=len(ids), first=ids[0], error=type(error).__name__)
            return pipeline.Straight({})
    return pipeline.straight(jobs, shop.parts, in_turns=not idle)


def meaning(error: Exception) -> DeliveryError:
    """What an exception means for a delivery. Of an error of the database only the class is told: its text quotes the
    values of the row."""
    match error:
        case DeliveryError():
            return error
        case SQLAlchemyError() | psycopg.Error():
            return trouble(error)
        case RedisError():
            return DatabaseTrouble(f"redis: {type(error).__name__}", reason="inbox-trouble")
        case SoftTimeLimitExceeded():
            return ProviderUnavailable("it took longer than a task may take")
    return pipeline.our_fault(error)


def _log(job: Job, fate: Fate) -> None:
    whose = {"delivery": job.raw.id, "endpoint": job.raw.endpoint, "provider": job.provider}
    if isinstance(fate, ComesBack):
        log.info("retry", **whose, reason=fate.error.reason, next=fate.at)
    else:
        log.info("processed", **whose, state=fate.state, reason=fate.reason)


def _outcome(delivery_id: UUID, attempt: int, fate: Fate) -> Outcome:
    """What Flower shows of one that is not the first."""
    if isinstance(fate, ComesBack):
        return Outcome(delivery_id=delivery_id, retries=attempt - 1, trouble=repr(_told(fate.error)))
    return Outcome(delivery_id=delivery_id, retries=attempt - 1, state=fate.state)


def _retry(fate: ComesBack) -> Retry:
    """Celery's RETRY state, and nothing in Redis: the schedule is the row's, and the sweeper sends the task again."""
    return Retry(exc=_told(fate.error), when=fate.at)


def _told(error: DeliveryError) -> DeliveryError:
    return type(error)(f"{error.reason}: {error}")


@app.task(name=SWEEP)
@discreet
def sweep_up() -> int:
    """Nudges what was left behind; how many."""
    shop = workshop()
    shop.circuits.wake_latecomers()
    nudged = sweep.sweep(shop.inbox, shop.store, shop.parts.config, shop.redis, now())
    _pick_up(shop)
    return nudged


def _pick_up(shop: Workshop) -> None:
    """What a worker that died had in hand lands, and the next sweep finds it due."""
    try:
        pick_up(shop.inbox, shop.store, shop.parts.config, shop.parts.providers, now())
    except RedisError as error:
        log.warning("sweep-failed", error=type(error).__name__)
