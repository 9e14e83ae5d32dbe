"""A delivery in a worker's hands, as values: what is held, and what becomes of it. Knows no SQL and no HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from schemas.delivery import RawDelivery, State
from workers.errors import DeliveryError, Park
from workers.provider import Answer, Element, Event, Failed, Recall


@dataclass(frozen=True, kw_only=True, slots=True)
class Landing:
    """A raw request on its way into `deliveries`."""

    raw: RawDelivery
    provider: str
    message_id: str | None = None
    origin: str = "webhook"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A delivery that this worker holds now."""

    raw: RawDelivery
    provider: str
    state: State
    attempt: int
    """Counts this one, from 1."""
    fresh: bool = False
    """It has just landed, by this worker: nothing of what it says was saved before."""
    message_id: str | None = None
    answers: Mapping[str, Answer] = field(default_factory=dict)
    applied: bool = False
    """An earlier attempt already changed a row."""
    replayed: bool = False
    """An operator has had it run again: a replay is never stopped by sameness."""
    acknowledged: bool = False
    """The provider already knows that it is safe."""
    acknowledge_attempt: int = 1


def fresh_job(landing: Landing) -> Job:
    """What has just landed, or is about to, as its worker holds it."""
    return Job(
        raw=landing.raw,
        provider=landing.provider,
        state=State.RECEIVED,
        attempt=1,
        fresh=True,
        message_id=landing.message_id,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a delivery was found to say, and what kept us from finding more."""

    elements: Sequence[Element] | None = None
    """None: it was not read at all."""
    answers: Mapping[str, Answer]
    trouble: DeliveryError | None = None
    recalled: Sequence[Recall] = ()
    """What was asked of our own memory, and must still be answered the same when it is saved."""
    safe: bool = True
    """Its whole content is in our hands, so the provider may forget it once this is committed."""
    repeats: bool = False
    """Another delivery brought the same message."""

    @property
    def failures(self) -> list[Park]:
        """The errors of the elements that cannot be read."""
        return [element.error for element in self.elements or () if isinstance(element, Failed)]

    @property
    def fell_short(self) -> bool:
        """Whether something kept us from reading all of it."""
        return self.trouble is not None or bool(self.failures)

    @property
    def said(self) -> list[tuple[int, Event]] | None:
        """The events with their place in the body."""
        if self.elements is None:
            return None
        return [(place, element) for place, element in enumerate(self.elements) if isinstance(element, Event)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What becomes of a delivery, as far as it is known before the save."""

    state: State | None
    """None: it follows from what the events do to their rows."""
    reason: str | None = None
    error: str | None = None
    next_attempt_at: datetime | None = None
    is_attempt: bool = True
    """Whether this time counts towards the 24 hours."""
    acknowledge: bool = False
    """The provider must be told, once this is committed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A delivery as it is to be saved."""

    job: Job
    found: Findings
    verdict: Verdict
    parser: int
    waiting: Entry | None = None
    """How it is saved instead where an event names, by its code, a booking that is not there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a save made of an entry."""

    entry: Entry
    """As it was written, which may be how it waits."""
    state: State | None
    """None: somebody else settled it meanwhile, and nothing was written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """Nothing more to do today."""

    state: State | None
    """None: somebody else settled it meanwhile."""
    reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ComesBack:
    """It is looked at again at that time; Flower shows it as a retry, with the error."""

    at: datetime
    error: DeliveryError


Fate = Done | ComesBack
