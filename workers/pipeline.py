"""One delivery's life after landing: verify, look up, normalize, save, acknowledge.

Reads as the way that it describes. The store and whoever performs calls come as arguments; knows no SQL, no HTTP
client, no Celery, and no provider's words.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, Final, Protocol, TypeVar

from schemas.booking import COLUMNS
from schemas.delivery import OPEN, State
from schemas.endpoints import Config, Endpoint
from workers.errors import (
    AwaitingBooking,
    DeliveryError,
    Malformed,
    OurFault,
    Overtaken,
    Park,
    ProviderUnavailable,
    UnknownEndpoint,
)
from workers.job import ComesBack, Done, Fate, Findings, Job, Verdict
from workers.provider import Answer, Call, Element, Event, Failed, Ignored, Incoming, Provider, Recall
from workers.reading import clean, storable
from workers.retry import RetryAt, decide

log = logging.getLogger("reservoir")

T = TypeVar("T")

LONGEST_KEY: Final = 200
MOST_LOOKUPS: Final = 500
MOST_OVERTAKINGS: Final = 5
ASKING: Final = timedelta(seconds=25)
"""How long one delivery may go on asking: with the last answer and the save it stays within a task's limit of 45 s."""
_INT4: Final = range(-(2**31), 2**31)

Asks = Callable[[Call], Answer]
"""Performs a call of one endpoint. Raises Park or Again."""


class Keeps(Protocol):
    """What the pipeline wants of the store; `workers.store.Store` says what each does."""

    def told_before(self, job: Job) -> Mapping[str, Answer] | None: ...
    def recall(self, job: Job, recall: Recall) -> list[dict[str, Any]]: ...
    def save(self, job: Job, found: Findings, verdict: Verdict, *, parser: int, now: datetime) -> State | None: ...
    def acknowledged(self, job: Job, now: datetime) -> None: ...
    def acknowledge_again(self, job: Job, at: datetime | None) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the way of a delivery is put together from."""

    store: Keeps
    providers: Mapping[str, Provider]
    config: Config
    secrets_of: Callable[[Endpoint], Mapping[str, str]]
    asks_for: Callable[[Provider, Endpoint], Asks]
    clock: Callable[[], datetime]
    chance: Random


def process(job: Job, parts: Parts) -> Fate:
    """Takes a delivery that this worker holds as far as it goes today."""
    endpoint = parts.config.endpoints.get(job.raw.endpoint)
    provider = parts.providers.get(endpoint.provider) if endpoint else None
    if endpoint is None or provider is None:
        parts.store.acknowledge_again(job, None)  # without the endpoint there is no way to tell anybody
        return set_aside(job, parts, UnknownEndpoint())
    passage = _Passage(replace(job, provider=provider.name), parts, provider, endpoint)
    return passage.through() if job.state in OPEN else passage.acknowledge(Done(state=job.state))


def set_aside(job: Job, parts: Parts, trouble: DeliveryError) -> Fate:
    """Ends today's work on a delivery that trouble outside of its own content stopped."""
    return _save(job, parts, Findings(answers=job.answers, trouble=trouble, safe=False), parser=0, acknowledge=False)


@dataclass(frozen=True)
class _Passage:
    """One delivery with its endpoint and provider found."""

    job: Job
    parts: Parts
    provider: Provider
    endpoint: Endpoint

    def through(self) -> Fate:
        """Everything up to the provider's being told."""
        repeated = self._repeated()
        if repeated is not None:
            return self._finish(repeated)
        for _ in range(MOST_OVERTAKINGS):
            found = self._find()
            # Another worker may have read a repeat of the same message meanwhile, and made the provider forget it.
            again = self._repeated() if found.fell_short else None
            with suppress(Overtaken):
                return self._finish(again or found)
        return set_aside(self.job, self.parts, Overtaken())

    def _finish(self, found: Findings) -> Fate:
        """Save, acknowledge. Raises Overtaken where what we remembered is not all that there is any more."""
        owed = found.safe and not self.job.acknowledged and self._farewell() is not None
        fate = _save(self.job, self.parts, found, parser=self.provider.parser, acknowledge=owed)
        unwritten = isinstance(fate, Done) and fate.state is None  # telling is up to whoever settled it meanwhile
        return self.acknowledge(fate) if owed and not unwritten else fate

    def _repeated(self) -> Findings | None:
        """A message that another delivery brought is not read again. Its events are written all the same: the first
        receipt counts, and that may be this one, because a retry can come after a repeat."""
        answers = self.parts.store.told_before(self.job)
        if answers is None:
            return None
        incoming = Incoming(delivery=self.job.raw, endpoint=self.endpoint, answers=answers)
        return Findings(elements=understand(self.provider, incoming), answers=answers, repeats=True)

    def _find(self) -> Findings:
        """Verify, look up, normalize."""
        incoming = Incoming(delivery=self.job.raw, endpoint=self.endpoint, answers=_still_good(self.job.answers))
        try:
            guarded(lambda: self.provider.verify(incoming, self.parts.secrets_of(self.endpoint)))
        except Park as error:
            return Findings(answers=self.job.answers, trouble=error, safe=False)
        began, recalled = self.parts.clock(), list[Recall]()
        earlier = dict(self.job.answers)  # good for as long as we remember the same

        def ask(question: Call | Recall) -> Answer:
            known = earlier.get(question.name)
            if isinstance(question, Call):
                return known or self._ask_in_time(question, began)
            recalled.append(question)
            near = self.parts.store.recall(self.job, question)
            if known is None or known.body != near:
                earlier.clear()
            return Answer(status=200, body=near, at=self.parts.clock(), recalled=True)

        answers, trouble, enough = look_up(self.provider, incoming, ask)
        if not enough:
            return Findings(answers=answers, trouble=trouble, safe=False)
        elements = understand(self.provider, replace(incoming, answers=answers))
        return Findings(elements=elements, answers=answers, trouble=trouble, recalled=recalled)

    def _ask_in_time(self, call: Call, began: datetime) -> Answer:
        """What was answered in time is kept, and the next attempt goes on from there."""
        if self.parts.clock() - began > ASKING:
            raise ProviderUnavailable(f"{call.name}: there was no time left to ask; the rest follows")
        return self._ask(call)

    def _ask(self, call: Call) -> Answer:
        return self.parts.asks_for(self.provider, self.endpoint)(call)

    # --- telling the provider ---

    def _farewell(self) -> Call | None:
        """The call that lets the provider forget the delivery, where it has one."""
        try:
            return guarded(lambda: self.provider.acknowledge(Incoming(delivery=self.job.raw, endpoint=self.endpoint)))
        except Park:
            return None

    def acknowledge(self, fate: Fate) -> Fate:
        """Tells the provider that the delivery is safe, after the commit. A failure is tried again on its own."""
        call = self._farewell()
        if call is None:
            self.parts.store.acknowledge_again(self.job, None)
            return fate
        try:
            self._ask(call)
        except DeliveryError as error:
            return self._acknowledge_later(error, fate)
        self.parts.store.acknowledged(self.job, self.parts.clock())
        return fate

    def _acknowledge_later(self, error: DeliveryError, fate: Fate) -> Fate:
        decision = decide(error, self.job.acknowledge_attempt, self.parts.clock(), self.parts.chance)
        at = decision.at if isinstance(decision, RetryAt) else None
        self.parts.store.acknowledge_again(self.job, at)
        if at is None:
            log.warning("action=acknowledge delivery=%s reason=%s given-up: %s", self.job.raw.id, error.reason, error)
        return ComesBack(at=at, error=error) if at is not None and isinstance(fate, Done) else fate


def _still_good(answers: Mapping[str, Answer]) -> Mapping[str, Answer]:
    """The answers of an earlier attempt, if none is from our own memory: we may remember more now, and then what
    followed from it is asked anew as well."""
    return {} if any(answer.recalled for answer in answers.values()) else answers


def look_up(
    provider: Provider, incoming: Incoming, ask: Callable[[Call | Recall], Answer]
) -> tuple[dict[str, Answer], DeliveryError | None, bool]:
    """The answers, the trouble that ended the asking, and whether there is enough to normalize.

    Without a call that is not required there is enough: what the webhook itself says is applied at once.
    """
    answers = dict(incoming.answers)
    for _ in range(MOST_LOOKUPS):
        try:
            question = guarded(lambda: provider.lookup(replace(incoming, answers=answers)))
        except DeliveryError as error:
            return answers, error, False
        if question is None:
            return answers, None, True
        try:
            answers[question.name] = _kept(question, ask(question))
        except DeliveryError as error:
            return answers, error, isinstance(question, Call) and not question.required
    return answers, OurFault("the provider's file asks without end"), False


def _kept(question: Call | Recall, answer: Answer) -> Answer:
    keep = question.keep if isinstance(question, Call) else None
    if keep is None or not answer.ok:
        return answer
    return replace(answer, body=guarded(lambda: keep(answer.body)))


def understand(provider: Provider, incoming: Incoming) -> list[Element]:
    """What a delivery says, element by element; whatever goes wrong becomes an element that failed."""
    try:
        return guarded(lambda: [_bounded(element) for element in provider.normalize(incoming)])
    except Park as error:
        return [Failed(error=error)]


def guarded(work: Callable[[], T]) -> T:
    """A mistake of our own parks the delivery: with its place, without the value that it stumbled over."""
    try:
        return work()
    except DeliveryError:
        raise
    except Exception as error:  # noqa: BLE001  whatever a provider's file does, the delivery is kept and shown
        raise our_fault(error) from None


def our_fault(error: Exception) -> OurFault:
    """A mistake of our own as an error of the tree: its place, and nothing of what it stumbled over."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    file = place.filename.rsplit("/", 1)[-1]
    return OurFault(f"{type(error).__name__} at {file}:{place.lineno}")


def _bounded(element: Element) -> Element:
    """The element if PostgreSQL can hold it: clean text, keys that fit an index, whole numbers of 32 bits."""
    if not isinstance(element, Event):
        return element
    keys = (element.external_id, element.reference, element.version, element.same_as, element.said.get("reference"))
    if any(key is not None and len(key) > LONGEST_KEY for key in keys):
        return Failed(error=Malformed(f"an id, a code or a version is longer than {LONGEST_KEY} characters"))
    for column, value in element.said.items():
        if COLUMNS[column] is int and value is not None and value not in _INT4:
            return Failed(error=Malformed(f"{column}: expected a number of 32 bits"))
    payments = [storable(dict(payment)) for payment in element.payments]
    return replace(element, said={column: _clean(value) for column, value in element.said.items()}, payments=payments)


def _clean(value: Any) -> Any:
    return storable(value) if type(value) in (str, dict, list) else value


# --- the save --------------------------------------------------------------------------------------------------


def _save(job: Job, parts: Parts, found: Findings, *, parser: int, acknowledge: bool) -> Fate:
    """Writes what was found, with the verdict on the delivery."""
    verdict = replace(_verdict(job, parts, found), acknowledge=acknowledge)
    try:
        settled = parts.store.save(job, found, verdict, parser=parser, now=parts.clock())
    except AwaitingBooking as error:
        here = [Ignored(reason=error.reason) if _waits(element) else element for element in found.elements or ()]
        waiting = replace(found, elements=here, trouble=error)
        return _save(job, parts, waiting, parser=parser, acknowledge=acknowledge)
    if settled is not None and verdict.next_attempt_at is not None and found.trouble is not None:
        return ComesBack(at=verdict.next_attempt_at, error=found.trouble)
    return Done(state=settled, reason=verdict.reason)


def _told(errors: Sequence[DeliveryError]) -> str:
    """As it stands in `deliveries.error`, a line each."""
    return "\n".join(clean(str(error)) for error in errors)


def _waits(element: Element) -> bool:
    """Whether an element names its booking only by the code."""
    return isinstance(element, Event) and element.external_id is None


def _verdict(job: Job, parts: Parts, found: Findings) -> Verdict:
    """Trouble that passes is waited for; then an element that failed needs a person; then it is what was said."""
    if found.repeats:
        return Verdict(state=State.DUPLICATE)
    errors: list[DeliveryError] = list(found.failures)
    if found.trouble is not None:
        decision = decide(found.trouble, job.attempt, parts.clock(), parts.chance)
        if isinstance(decision, RetryAt):
            told = _told([decision.error, *errors])
            reason = decision.error.reason
            return Verdict(state=State.RETRYING, reason=reason, error=told, next_attempt_at=decision.at)
        errors.append(decision.error)
    if errors:
        return Verdict(state=State.PARKED, reason=errors[0].reason, error=_told(errors))
    elements = found.elements or ()
    reasons = [element.reason for element in elements if isinstance(element, Ignored)]
    if reasons and len(reasons) == len(elements):
        return Verdict(state=State.IGNORED, reason=reasons[0])
    return Verdict(state=None)
