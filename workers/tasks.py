"""The Celery tasks, thin: the one place where the parts are put together, and where a fate becomes Celery's RETRY."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any
from uuid import UUID

from celery.exceptions import Retry, SoftTimeLimitExceeded
from celery.signals import worker_init
from redis import Redis
from sqlalchemy.exc import DBAPIError

from schemas.delivery import PROCESS, now
from schemas.endpoints import ConfigError, Endpoint
from workers import calls, pipeline, registry, settings, sweep
from workers.app import SWEEP, app
from workers.database import engine, trouble
from workers.errors import DeliveryError, ProviderUnavailable
from workers.inbox import Inbox
from workers.job import ComesBack, Fate, Job
from workers.land import land
from workers.provider import Provider
from workers.seal import Seal
from workers.store import Store
from workers.tokens import Tokens

log = logging.getLogger("reservoir")


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What one worker process holds open."""

    settings: settings.Settings
    store: Store
    inbox: Inbox
    parts: pipeline.Parts
    redis: Redis


@cache
def workshop() -> Workshop:
    """Made at the first task of a process, so that no connection is shared across a fork."""
    read = settings.read()
    database = engine(read.database_url)
    redis = Redis.from_url(read.redis_url, socket_timeout=5, socket_connect_timeout=2)
    store, http, answers = Store(database), calls.client(), calls.Cache()
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
        )

    parts = pipeline.Parts(
        store=store,
        providers=registry.discover(),
        config=read.config,
        secrets_of=read.secrets_of,
        asks_for=asks_for,
        clock=now,
        chance=Random(),  # noqa: S311  jitter, not a secret
    )
    return Workshop(settings=read, store=store, inbox=Inbox(redis), parts=parts, redis=redis)


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


@app.task(name=PROCESS)
def process(delivery_id: str) -> str | None:
    """Takes one delivery as far as it goes; the state that it reached. Running it twice does no harm."""
    shop, identity = workshop(), UUID(delivery_id)
    with _discreet():
        land(identity, shop.inbox, shop.store, shop.parts.config, shop.parts.providers, now())
        job = shop.store.claim(identity, now())
        if job is None:
            return None
        fate = _worked_on(job, shop.parts)
    where = f"delivery={identity} endpoint={job.raw.endpoint} provider={job.provider}"
    if isinstance(fate, ComesBack):
        log.info("action=retry %s reason=%s at=%s", where, fate.error.reason, fate.at.isoformat())
        raise _retry(fate)
    log.info("action=process %s state=%s reason=%s", where, fate.state, fate.reason)
    return fate.state


def _worked_on(job: Job, parts: pipeline.Parts) -> Fate:
    """Whatever happens outside of the delivery's own content stands in its row too, as far as that can be written."""
    try:
        return pipeline.process(job, parts)
    except DBAPIError as error:
        found: DeliveryError = trouble(error)
    except SoftTimeLimitExceeded:
        found = ProviderUnavailable("it took longer than a task may take")
    except Exception as error:  # noqa: BLE001  a mistake of ours parks the delivery, or it would come back for ever
        found = pipeline.our_fault(error)
    return pipeline.set_aside(job, parts, found)


@contextmanager
def _discreet() -> Iterator[None]:
    """What Celery logs and Flower shows is the class of a database's error: its text quotes the values of the row."""
    try:
        yield
    except DBAPIError as error:
        raise trouble(error) from None


def _retry(fate: ComesBack) -> Retry:
    """Celery's RETRY state, and nothing in Redis: the schedule is the row's, and the sweeper sends the task again."""
    return Retry(exc=type(fate.error)(f"{fate.error.reason}: {fate.error}"), when=fate.at)


@app.task(name=SWEEP)
def sweep_up() -> int:
    """Nudges what was left behind; how many."""
    shop = workshop()
    return sweep.sweep(shop.inbox, shop.store, shop.parts.config, shop.redis, now())
