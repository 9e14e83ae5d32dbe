"""What is wrong with a world as it was seen: pure functions from `World` to findings, one for each kind of alarm.

A check that cannot tell, because a part of the world was not to be seen, returns None: what was an incident stays one,
and nothing new becomes one. Knows no incident, no notice and no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from console.alarms.rhythm import in_hours, instant_of
from console.alarms.world import AtRedis, Heard, World
from schemas.acks import Acks
from schemas.delivery import door_of
from schemas.endpoints import Endpoint

SWITCHED_OFF: Final[Mapping[str, int]] = {"checkfront": 5}
"""Provider → failures in a row after which it switches a webhook off."""
QUIET: Final = timedelta(minutes=15)
"""After so many failures: a provider that still sends has sent by then."""
LANDED: Final = timedelta(minutes=1)
"""What waits in the inbox for longer says that PostgreSQL does not know yet what came."""
WAITING: Final[Mapping[str, timedelta]] = {"received": timedelta(minutes=5), "retrying": timedelta(hours=2)}
"""State → how long a delivery may be in it."""
BUSY: Final = timedelta(seconds=120)
"""For so long a worker may hear nothing: a full one does not, and by then a deaf one has ended itself."""
FRESH: Final = timedelta(minutes=2)
"""What receivers told longer ago is not about now."""
SHARE: Final = 0.5
"""Of the deadline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Something that a person should know."""

    kind: str
    subject: str = ""
    """What of its kind: an endpoint, a provider, a worker, a machine."""
    title: str
    detail: str
    amount: int = 0
    """Where more of the same is news: how much."""
    latest: datetime | None = None
    """... and when the newest of it came."""


# --- the checks --------------------------------------------------------------------------------------------------

Found = Iterable[Finding] | None


def silence(world: World) -> Found:
    """An endpoint has been silent for longer than its rhythm, or `silence` in the configuration, lets it be."""
    if world.postgres is None or world.redis is None or _behind(world.redis, world.now):
        return None
    return filter(None, (_silent(heard, world.now) for heard in world.postgres.heard.values()))


def _behind(redis: AtRedis, now: datetime) -> bool:
    """Whether webhooks have come that PostgreSQL does not know."""
    return redis.inbox_oldest is not None and now - redis.inbox_oldest > LANDED


def _silent(heard: Heard, now: datetime) -> Finding | None:
    endpoint = heard.endpoint
    if heard.last is None or now < silent_until(heard):
        return None
    told = "set by `silence`"
    if endpoint.silence is None:
        told = "while its rhythm is still being learned"
        if heard.rhythm.week is not None:
            missing = heard.rhythm.swallowed(in_hours(heard.last), in_hours(now))
            told = f"by its rhythm about {missing:.0f} spells of five minutes with webhooks should have come since"
    return Finding(
        kind="silence",
        subject=endpoint.name,
        title=f"{endpoint.name} is silent",
        detail=f"the last webhook came {_when(heard.last)}, {_span(now - heard.last)} ago; "
        f"{_span(silent_until(heard) - heard.last)} of silence is an alarm ({told})",
    )


def silent_until(heard: Heard) -> datetime:
    """Until when its silence is nothing to worry about."""
    allowed = heard.endpoint.silence
    if heard.last is None or allowed == "off":
        return NEVER
    if allowed is not None:
        return heard.last + allowed
    return instant_of(heard.rhythm.too_long_at(in_hours(heard.last)))


NEVER: Final = datetime.max.replace(tzinfo=instant_of(0).tzinfo)


def hook_off(world: World) -> Found:
    """We failed so often in a row that the provider has probably switched the webhook off, and nothing came since."""
    if world.redis is None:
        return None
    return filter(None, (_switched_off(world, endpoint) for endpoint in world.endpoints.values()))


def _switched_off(world: World, endpoint: Endpoint) -> Finding | None:
    assert world.redis is not None
    acks, enough = world.redis.acks.get(endpoint.name), SWITCHED_OFF.get(endpoint.provider)
    if acks is None or enough is None or acks.failures_in_a_row < enough or world.now - acks.at < QUIET:
        return None
    return Finding(
        kind="hook-off",
        subject=endpoint.name,
        title=f"{endpoint.provider} has probably switched off the webhook of {endpoint.name}",
        detail=f"its last {acks.failures_in_a_row} requests failed at our side; none has come since {_when(acks.at)}",
    )


def parked(world: World) -> Found:
    """Deliveries that need a person."""
    if world.postgres is None:
        return None
    return [
        Finding(
            kind="parked",
            subject=endpoint,
            title=f"{found.count} parked at {endpoint}",
            detail=f"the newest came {_when(found.latest)}; reasons: {', '.join(found.reasons)}",
            amount=found.count,
            latest=found.latest,
        )
        for endpoint, found in world.postgres.parked.items()
    ]


def unapplied(world: World) -> Found:
    """Deliveries in PostgreSQL that nobody gets done."""
    if world.postgres is None:
        return None
    return [
        Finding(
            kind="unapplied",
            subject=f"{provider}, {state}",
            title=f"{found.count} of {provider} are {state} for long",
            detail=f"the oldest came {_when(found.oldest)}, {_span(world.now - found.oldest)} ago"
            + (f"; reasons: {', '.join(found.reasons)}" if found.reasons else ""),
        )
        for (provider, state), found in world.postgres.unsettled.items()
        if world.now - found.oldest > WAITING[state]
    ]


def inbox(world: World) -> Found:
    """Requests that no worker fetches."""
    if world.redis is None:
        return None
    oldest = world.redis.inbox_oldest
    if oldest is None or world.now - oldest <= WAITING["received"]:
        return []
    waits = _span(world.now - oldest)
    detail = f"the oldest request came {_when(oldest)}, {waits} ago; {world.redis.inbox} wait"
    return [Finding(kind="inbox", title="the inbox is not emptied", detail=detail)]


def no_worker(world: World) -> Found:
    """Nobody works."""
    if world.redis is None:
        return None
    if any(world.now - worker.heard_at <= BUSY for worker in world.redis.workers.values()):
        return []
    detail = f"no worker has heard anything for {_span(BUSY)}"
    return [Finding(kind="no-worker", title="no worker takes tasks", detail=detail)]


def deaf_worker(world: World) -> Found:
    """A worker that sends heartbeats, hears none of them, and has not ended itself as it should."""
    if world.redis is None:
        return None
    return [
        Finding(
            kind="deaf-worker",
            subject=name,
            title=f"the worker {name} is deaf",
            detail=f"it sends heartbeats and has heard none since {_when(worker.heard_at)}",
        )
        for name, worker in world.redis.workers.items()
        if worker.beats and world.now - worker.heard_at > BUSY
    ]


def spool(world: World) -> Found:
    """Requests lie on this machine's disk, because Redis did not take them, or a segment is broken."""
    if world.spool is None:
        return None
    found = world.spool
    wrong = []
    if found.since is not None:
        wrong.append(f"{found.files} segments with {found.bytes} bytes wait, the oldest since {_when(found.since)}")
    if found.corrupt:
        wrong.append(f"{found.corrupt} broken segments are kept for you")
    if not wrong:
        return []
    return [
        Finding(
            kind="spool",
            subject=world.host,
            title=f"the spool of {world.host} is in use",
            detail="; ".join(wrong),
            amount=found.corrupt,
        )
    ]


def slow(world: World) -> Found:
    """An answer took more than half of what its sender waits."""
    if world.redis is None:
        return None
    return _slow(world.redis.acks, world)


def _slow(acks: Mapping[str, Acks], world: World) -> Iterator[Finding]:
    for name, endpoint in world.endpoints.items():
        deadline, told = door_of(endpoint.provider).deadline, acks.get(name)
        if deadline is None or told is None or world.now - told.at > FRESH or told.slowest <= SHARE * deadline:
            continue
        share = told.slowest / deadline
        yield Finding(
            kind="slow",
            subject=name,
            title=f"{name} is answered slowly",
            detail=f"the slowest answer of a minute took {told.slowest.total_seconds():.2f} s, {share:.0%} of the "
            f"{deadline.total_seconds():g} s that {endpoint.provider} waits",
        )


def redis_away(world: World) -> Found:
    """Webhooks go to the spool, and nothing is worked on."""
    if world.redis is not None:
        return []
    return [Finding(kind="redis", title="Redis is away", detail=world.why.get("redis", "it does not answer"))]


def postgres_away(world: World) -> Found:
    """Webhooks wait in the inbox."""
    if world.postgres is not None:
        return []
    also = f"; Redis is away too: {world.why['redis']}" if "redis" in world.why else ""
    detail = f"{world.why.get('postgres', 'it does not answer')}{also}"
    return [Finding(kind="postgres", title="PostgreSQL is away", detail=detail)]


# --- the kinds of alarm ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """One kind of alarm."""

    check: Callable[[World], Found]
    mend: str
    """What to do, in one line; the runbook in docs/alarms.md has a section of the kind's name."""
    patience: timedelta = timedelta()
    """For so long it must last before anybody is told."""
    own: bool = False
    """Whether each machine judges its own only."""


MINUTE: Final = timedelta(minutes=1)
POSTGRES: Final = "postgres"

ALARMS: Final[Mapping[str, Alarm]] = {
    "silence": Alarm(
        check=silence, mend="send a test webhook from the provider's dashboard, and look at its log there"
    ),
    "hook-off": Alarm(
        check=hook_off, mend="switch the webhook on again in the provider's dashboard, then look for gaps"
    ),
    "parked": Alarm(check=parked, mend="`reservoir deliveries list --state parked` says why; mend it, then retry"),
    "unapplied": Alarm(check=unapplied, mend="look at the workers, and at the provider's API", patience=MINUTE),
    "inbox": Alarm(check=inbox, mend="look at the workers and at PostgreSQL", patience=MINUTE),
    "no-worker": Alarm(check=no_worker, mend="start a worker; its log says why it ended", patience=MINUTE),
    "deaf-worker": Alarm(check=deaf_worker, mend="restart it; nothing is lost by that", patience=MINUTE / 2),
    "spool": Alarm(
        check=spool, mend="look at Redis; receivers hand the spool over by themselves", patience=MINUTE, own=True
    ),
    "slow": Alarm(check=slow, mend="look at the receiver's machine: its disk, its load, Redis", patience=MINUTE),
    "redis": Alarm(check=redis_away, mend="bring Redis back: its log, its memory, its disk", patience=MINUTE / 2),
    POSTGRES: Alarm(check=postgres_away, mend="bring PostgreSQL back: its log, its disk", patience=MINUTE / 2),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgement:
    """What was found, and about what there is a word at all."""

    findings: tuple[Finding, ...]
    kinds: frozenset[str]
    host: str

    def covers(self, kind: str, subject: str) -> bool:
        """Whether there would be a finding if it were so."""
        return kind in self.kinds and (not ALARMS[kind].own or subject == self.host)


def judge(world: World) -> Judgement:
    """All checks."""
    found = {kind: alarm.check(world) for kind, alarm in ALARMS.items()}
    told = {kind: tuple(findings) for kind, findings in found.items() if findings is not None}
    return Judgement(
        findings=tuple(finding for findings in told.values() for finding in findings),
        kinds=frozenset(told),
        host=world.host,
    )


def _when(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _span(time: timedelta) -> str:
    """About how long, in one or two units."""
    minutes = round(time.total_seconds() / 60)
    days, hours, rest = minutes // 1440, minutes % 1440 // 60, minutes % 60
    if days:
        return f"{days} d {hours} h" if hours else f"{days} d"
    if hours:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    return f"{rest} min"
