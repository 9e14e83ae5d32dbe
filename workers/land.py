"""From the inbox to `deliveries`, byte for byte. Knows nothing of what happens to a delivery afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from schemas.delivery import RawDelivery, first_id_after
from schemas.endpoints import Config
from schemas.logs import about, log
from workers.errors import DeliveryError, Park
from workers.inbox import SETTLED, Inbox, unpacked
from workers.job import Job, Landing
from workers.pipeline import guarded
from workers.provider import Provider
from workers.store import PIECE, Store

NOBODY: Final = "unknown"
"""In place of a provider, where no endpoint of that name is configured."""


def land(
    delivery_id: UUID,
    inbox: Inbox,
    store: Store,
    config: Config,
    providers: Mapping[str, Provider],
    now: datetime,
) -> None:
    """Puts a request into Postgres and only then out of the inbox; one that has landed already is left alone."""
    packed = inbox.get(delivery_id)
    if packed is None:
        return
    store.land([landing(delivery_id, packed, config, providers, now)], now)
    inbox.forget(delivery_id)


def arrivals(
    delivery_ids: Sequence[UUID], inbox: Inbox, config: Config, providers: Mapping[str, Provider], now: datetime
) -> list[Landing]:
    """Those of these requests that are still in the inbox."""
    packed = inbox.get_all(delivery_ids)
    return [landing(one, packed[one], config, providers, now) for one in delivery_ids if one in packed]


def are_new(delivery_ids: Sequence[UUID], landings: Sequence[Landing], now: datetime) -> bool:
    """Whether nobody should have tried one of them before, and one statement takes them all: each is in the inbox, and
    younger than what the sweeper looks for."""
    first = first_id_after(now - SETTLED)
    return are_whole(delivery_ids, landings) and all(one >= first and one.version == 7 for one in delivery_ids)


def are_whole(delivery_ids: Sequence[UUID], landings: Sequence[Landing]) -> bool:
    """Whether each of them is in the inbox, and one statement takes them all."""
    return len(landings) == len(delivery_ids) and sum(len(one.raw.body) for one in landings) <= PIECE


def take(
    delivery_ids: Sequence[UUID], landings: Sequence[Landing], inbox: Inbox, store: Store, now: datetime
) -> list[Job]:
    """Lands what is still in the inbox, and takes hold of all that is due; what has landed is left to be tidied up. One
    that cannot land stays in the inbox, and keeps nobody else from it."""
    try:
        jobs = store.take(landings, delivery_ids, now)
    except Park as error:
        if len(delivery_ids) == 1:
            raise
        log.warning("one-by-one", step="land", deliveries=len(delivery_ids), first=delivery_ids[0], error=str(error))
        own = {one.raw.id: [one] for one in landings}
        return [job for one in delivery_ids for job in _alone(one, own.get(one, []), inbox, store, now)]
    inbox.landed(*(one.raw.id for one in landings))
    return jobs


def _alone(delivery_id: UUID, landings: Sequence[Landing], inbox: Inbox, store: Store, now: datetime) -> list[Job]:
    with about(delivery=delivery_id, endpoint=landings[0].raw.endpoint if landings else None):
        try:
            return take([delivery_id], landings, inbox, store, now)
        except Park as error:
            log.error("not-landed", error=str(error))
            return []


def pick_up(inbox: Inbox, store: Store, config: Config, providers: Mapping[str, Provider], now: datetime) -> int:
    """Lands what a worker had in hand that has died of it, or of something else: as begun once, and due; how many.

    Raises RedisError. What PostgreSQL does not take now is looked at another time.
    """
    dropped = inbox.dropped(now)
    if not dropped or not store.reachable():
        return 0
    count = 0
    for hand, ids in dropped.items():
        landings = arrivals(ids, inbox, config, providers, now)
        try:
            landed, new = _picked_up(landings, store, now)
        except DeliveryError as error:
            log.warning("not-taken", deliveries=len(ids), first=ids[0], reason=error.reason, error=str(error))
            continue
        inbox.pick_up(hand, landed)
        if new:
            log.warning("picked-up", deliveries=new, first=ids[0])
        count += new
    return count


def _picked_up(landings: Sequence[Landing], store: Store, now: datetime) -> tuple[list[UUID], int]:
    """Which of them have a row now, and how many had none before."""
    try:
        return [one.raw.id for one in landings], len(store.land(landings, now, attempts=1))
    except Park as error:
        if len(landings) == 1:
            log.error("not-landed", delivery=landings[0].raw.id, endpoint=landings[0].raw.endpoint, error=str(error))
            return [], 0
    each = [_picked_up([one], store, now) for one in landings]
    return [one for landed, _ in each for one in landed], sum(new for _, new in each)


def landing(
    delivery_id: UUID, packed: bytes, config: Config, providers: Mapping[str, Provider], now: datetime
) -> Landing:
    """A request with what its row must know. An entry that cannot be read is kept as the body of a delivery that
    belongs to nobody, and so ends up parked."""
    raw = unpacked(delivery_id, packed)
    if raw is None:
        return Landing(
            raw=RawDelivery(id=delivery_id, endpoint="?", method="?", received_at=now, body=packed), provider=NOBODY
        )
    endpoint = config.endpoints.get(raw.endpoint)
    provider = providers.get(endpoint.provider) if endpoint else None
    if provider is None:
        return Landing(raw=raw, provider=NOBODY)
    return Landing(raw=raw, provider=provider.name, message_id=_message_id(provider, raw))


def _message_id(provider: Provider, raw: RawDelivery) -> str | None:
    """A mistake in a provider's file keeps no request out of Postgres."""
    try:
        return guarded(lambda: provider.message_id(raw))
    except DeliveryError:
        return None
