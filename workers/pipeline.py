"""A delivery's life after landing: verify, look up, normalize, save, acknowledge; for a batch of them at a time.

Reads as the way that it describes. Each delivery is found to say something on its own, those that ask somebody in
threads; all are saved in one transaction; the providers are told after it. The store and whoever performs calls come
as arguments; knows no SQL, no HTTP client, no Celery, and no provider's words.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from random import Random
from typing import Any, Final, Protocol, TypeVar
from uuid import UUID

from schemas.booking import COLUMNS
from schemas.delivery import OPEN, State
from schemas.endpoints import Config, Endpoint
from schemas.logs import about, log
from workers.errors import (
    Again,
    AwaitingBooking,
    DatabaseTrouble,
    DeliveryError,
    Malformed,
    NeverEnded,
    OurFault,
    Overtaken,
    Park,
    ProviderUnavailable,
    UnknownEndpoint,
)
from workers.job import ComesBack, Done, Entry, Fate, Findings, Job, Saved, Verdict
from workers.provider import Answer, Call, Element, Event, Failed, Ignored, Incoming, Provider, Recall
from workers.reading import clean, storable
from workers.retry import RetryAt, decide

T = TypeVar("T")
R = TypeVar("R")

LONGEST_KEY: Final = 200
MOST_LOOKUPS: Final = 500
MOST_OVERTAKINGS: Final = 5
ASKING: Final = timedelta(seconds=12)
"""How long a batch may go on asking: with the last answer and the save it stays within a worker's lease."""
TELLING: Final = timedelta(seconds=3)
"""How long a batch may go on telling providers that deliveries are safe; the rest is told another time."""
LEFT_ALONE: Final = timedelta(seconds=25)
"""When somebody looks again at what could not even be written: when the lease ends."""
AT_ONCE: Final = 16
"""So many questions of one batch are asked at a time."""
BEGUN: Final = 2
"""A delivery that was begun more often and never came to a verdict may kill whoever works on it: it goes alone."""
MOST_BEGUN: Final = 10
"""So often one is begun that never comes to a verdict."""
_INT4: Final = range(-(2**31), 2**31)

Asks = Callable[[Call], Answer]
"""Performs a call of one endpoint. Raises Park or Again."""


class Keeps(Protocol):
    """What the pipeline wants of the store; `workers.store.Store` says what each does."""

    def told_before(self, jobs: Sequence[Job]) -> Mapping[UUID, Mapping[str, Answer]]: ...
    def recall(self, asked: Sequence[tuple[Job, Recall]]) -> list[list[dict[str, Any]]]: ...
    def save(self, entries: Sequence[Entry], now: datetime) -> list[Saved | None]: ...
    def arrive(self, entries: Sequence[Entry], now: datetime) -> list[Saved]: ...
    def let_go(self, jobs: Collection[Job], error: DeliveryError, now: datetime) -> None: ...
    def give_back(self, jobs: Collection[Job], now: datetime) -> None: ...
    def claim(self, delivery_id: UUID, now: datetime) -> Job | None: ...
    def acknowledged(self, jobs: Collection[Job], now: datetime) -> None: ...
    def acknowledge_again(self, when: Mapping[UUID, datetime | None]) -> None: ...
    def reachable(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What the way of a delivery is put together from."""

    store: Keeps
    providers: Mapping[str, Provider]
    config: Config
    secrets_of: Callable[[Endpoint], Mapping[str, str]]
    asks_for: Callable[[Provider, Endpoint], Asks]
    meaning: Callable[[Exception], DeliveryError]
    """What an exception that is none of our tree means for a delivery."""
    clock: Callable[[], datetime]
    chance: Random
    hold: Callable[[str], AbstractContextManager[bool]] = lambda provider: nullcontext(True)
    """Whether this worker may ask a provider's API now, and not all of its hands do so already."""


def process(jobs: Sequence[Job], parts: Parts) -> dict[UUID, Fate]:
    """Takes the deliveries that this worker holds as far as they go today; what becomes of each."""
    batch = _Batch(parts, until=parts.clock() + ASKING)
    try:
        batch.through(jobs)
        return batch.fates
    except Exception as error:  # noqa: BLE001  whatever stops us, each delivery says what became of it
        found = parts.meaning(error)
    log.warning("batch-stopped", reason=found.reason, error=str(found), **_named(jobs))
    left = [job for job in jobs if job.raw.id not in batch.fates]
    try:
        if parts.store.reachable():
            return batch.fates | _stopped(left, parts, found, alone=len(jobs) == 1)
    except Exception as error:  # noqa: BLE001  as above
        found = parts.meaning(error)
    away = ComesBack(at=parts.clock() + LEFT_ALONE, error=found)  # nothing can be written now, and the lease ends
    return {job.raw.id: away for job in left} | batch.fates


@dataclass(frozen=True, slots=True)
class Straight:
    """How far deliveries came that land together with what they say."""

    fates: Mapping[UUID, Fate]
    """Of those that were written; nothing was written of the others."""
    trouble: DeliveryError | None = None
    """Why the others need not be tried another way now: PostgreSQL is away, or the task's time is over."""


def straight(jobs: Sequence[Job], parts: Parts, *, in_turns: bool = False) -> Straight:
    """Deliveries that have not landed yet, and ask nobody, land together with what they say.

    `in_turns`: those that must see what another left go after it, in a transaction of their own; otherwise there must
    be none. From the first turn on that has something out of the ordinary, nothing is written: it lands first then, one
    step after the other, and each has a fate of its own (docs/decisions/0011-landed-with-what-it-says.md).
    """
    batch = _Batch(parts, until=parts.clock())
    try:
        batch.straight(jobs, in_turns=in_turns)
        return Straight(batch.fates)
    except Exception as error:  # noqa: BLE001  whatever it is, it shows again on the other way, and is told there
        found = parts.meaning(error)
    out_of_time = isinstance(found, ProviderUnavailable)  # nobody was asked
    if out_of_time or (isinstance(found, DatabaseTrouble) and not parts.store.reachable()):
        return Straight(batch.fates, trouble=found)
    left = [job for job in jobs if job.raw.id not in batch.fates]
    log.info("not-straight", reason=found.reason, error=str(found), **_named(left))
    return Straight(batch.fates)


def _stopped(jobs: Sequence[Job], parts: Parts, trouble: DeliveryError, *, alone: bool) -> dict[UUID, Fate]:
    """After trouble that ended a batch. What passes is waited for; a mistake of ours is the mistake of one delivery,
    which shows when each goes alone."""
    if isinstance(trouble, Park) and not alone:
        return {delivery_id: fate for job in jobs for delivery_id, fate in process([job], parts).items()}
    return set_aside(jobs, parts, trouble)


def set_aside(jobs: Sequence[Job], parts: Parts, trouble: DeliveryError) -> dict[UUID, Fate]:
    """Ends today's work on deliveries that trouble outside of their own content stopped."""
    batch = _Batch(parts, until=parts.clock())
    batch.save([_aside(job, parts, trouble) for job in jobs])
    return batch.fates


@dataclass(frozen=True)
class _Passage:
    """One delivery with its endpoint and provider found."""

    job: Job
    parts: Parts
    provider: Provider
    endpoint: Endpoint

    @cached_property
    def question(self) -> Call | Recall | None:
        """What it asks first; None where that is nothing, or cannot be said."""
        try:
            return _question(self.provider, self.incoming(_still_good(self.job.answers)))
        except DeliveryError:
            return None

    @property
    def may_ask(self) -> bool:
        """Whether it may have to wait for somebody."""
        return isinstance(self.question, Call) or (self.question is not None and bool(self.endpoint.secrets))

    @property
    def meets(self) -> set[tuple[str, str]]:
        """What it shares with others in a way that it must see what they left: a message, bookings that it recalls."""
        shared = {(self.endpoint.name, name) for name in getattr(self.question, "external_ids", ())}
        return shared | ({(self.endpoint.name, f"message {self.job.message_id}")} if self.job.message_id else set())

    def incoming(self, answers: Mapping[str, Answer]) -> Incoming:
        return Incoming(delivery=self.job.raw, endpoint=self.endpoint, answers=answers)

    def repeated(self, answers: Mapping[str, Answer]) -> Findings:
        """A message that another delivery brought is not read again. Its events are written all the same: the first
        receipt counts, and that may be this one, because a retry can come after a repeat."""
        return Findings(elements=understand(self.provider, self.incoming(answers)), answers=answers, repeats=True)

    def found(self, until: datetime, near: Answer | None) -> Findings:
        """Verify, look up, normalize. `near`: what our own memory says to the first question, where it is asked."""
        incoming = self.incoming(_still_good(self.job.answers))
        try:
            guarded(lambda: self.provider.verify(incoming, self.parts.secrets_of(self.endpoint)))
        except Park as error:
            return Findings(answers=self.job.answers, trouble=error, safe=False)
        recalled = list[Recall]()
        earlier = dict(self.job.answers)  # good for as long as we remember the same

        def ask(question: Call | Recall) -> Answer:
            known = earlier.get(question.name)
            if isinstance(question, Call):
                return known or self._ask_in_time(question, until)
            recalled.append(question)
            remembered = near if near is not None and question == self.question else self._recall(question)
            if known is None or known.body != remembered.body:
                earlier.clear()
            return remembered

        answers, trouble, enough = look_up(self.provider, incoming, ask)
        if not enough:
            return Findings(answers=answers, trouble=trouble, safe=False)
        elements = understand(self.provider, self.incoming(answers))
        return Findings(elements=elements, answers=answers, trouble=trouble, recalled=recalled)

    def _recall(self, question: Recall) -> Answer:
        (near,) = self.parts.store.recall([(self.job, question)])
        return _recalled(near, self.parts)

    def _ask_in_time(self, call: Call, until: datetime) -> Answer:
        """What was answered in time is kept, and the next attempt goes on from there."""
        if self.parts.clock() > until:
            raise ProviderUnavailable(f"{call.name}: there was no time left to ask; the rest follows")
        return self.ask(call)

    def ask(self, call: Call) -> Answer:
        with about(**_named([self.job])):
            return self.parts.asks_for(self.provider, self.endpoint)(call)

    @cached_property
    def farewell(self) -> Call | None:
        """The call that lets the provider forget the delivery, where it has one."""
        try:
            return guarded(lambda: self.provider.acknowledge(self.incoming({})))
        except Park:
            return None


@dataclass
class _Batch:
    """Deliveries that are taken the way together. Each has a fate of its own, and none spoils another's."""

    parts: Parts
    until: datetime
    """What is not asked by then is not asked today."""
    fates: dict[UUID, Fate] = field(default_factory=dict)
    free: bool = True
    """Whether anybody may be asked now."""

    def through(self, jobs: Sequence[Job]) -> None:
        """The whole way. What may kill us goes last, alone, and one in a task: nobody else counts what it does, and it
        does not count what others do. Of several the one that was begun least goes first, the least likely to do so."""
        suspects = [job for job in jobs if job.state is State.RECEIVED and job.attempt > BEGUN]
        suspects.sort(key=lambda job: job.attempt)
        suspected = {job.raw.id for job in suspects}
        self._give_back(suspects)
        if sound := [job for job in jobs if job.raw.id not in suspected]:
            self._together(sound)
        for job in suspects[:1]:
            self._alone(job.raw.id)

    def _alone(self, delivery_id: UUID) -> None:
        """Taken anew, so that its row counts what was begun; not at all where somebody else has it, or time is over."""
        now = self.parts.clock()
        job = self.parts.store.claim(delivery_id, now) if now < self.until else None
        if job is None:
            return
        del self.fates[delivery_id]  # it is ours again: what stops us now is written into its row
        if job.attempt > MOST_BEGUN:
            self.save([_aside(job, self.parts, NeverEnded(f"begun {MOST_BEGUN} times"))])
        else:
            log.warning("begun-again", times=job.attempt - 1, **_named([job]))
            self._together([job])

    def _together(self, jobs: Sequence[Job]) -> None:
        known, strangers = self._introduced(jobs)
        if strangers:  # without the endpoint there is no way to tell anybody
            self.parts.store.acknowledge_again({job.raw.id: None for job in strangers})
            self.save([_aside(job, self.parts, UnknownEndpoint()) for job in strangers])
        with ExitStack() as held:
            asked = sorted({passage.provider.name for passage in known if passage.may_ask or passage.farewell})
            hands = [held.enter_context(self.parts.hold(provider)) for provider in asked]
            self.free = all(hands)
            told = [passage for passage in known if passage.job.state not in OPEN]
            self.fates |= {passage.job.raw.id: Done(state=passage.job.state) for passage in told}
            for wave in _waves([passage for passage in known if passage.job.state in OPEN]):
                told += self._settle(wave)
            self._acknowledge(told)

    def straight(self, jobs: Sequence[Job], *, in_turns: bool) -> None:
        """See the function of that name."""
        known, strangers = self._introduced(jobs)
        if strangers or any(one.may_ask or one.farewell for one in known):
            return
        waves = _waves(known)
        if len(waves) > 1 and not in_turns:
            return
        for wave in waves:
            entries = self._found(wave, self.parts.store.told_before([one.job for one in wave]))
            if any(entry.found.trouble for entry in entries):
                return
            arrived = self.parts.store.arrive(entries, self.parts.clock())
            self.fates |= {one.entry.job.raw.id: _fate(one) for one in arrived}

    def _introduced(self, jobs: Sequence[Job]) -> tuple[list[_Passage], list[Job]]:
        known, strangers = [], []
        for job in jobs:
            endpoint = self.parts.config.endpoints.get(job.raw.endpoint)
            provider = self.parts.providers.get(endpoint.provider) if endpoint else None
            if endpoint is None or provider is None:
                strangers.append(job)
            else:
                named = job if job.provider == provider.name else replace(job, provider=provider.name)
                known.append(_Passage(named, self.parts, provider, endpoint))
        return known, strangers

    # --- finding and saving ---

    def _settle(self, wave: Sequence[_Passage]) -> list[_Passage]:
        """Everything up to the providers' being told; whom there is something to tell."""
        before = self.parts.store.told_before([passage.job for passage in wave])
        owed: list[_Passage] = []
        left = {passage.job.raw.id: passage for passage in wave}
        for _ in range(MOST_OVERTAKINGS):
            entries = self._found(list(left.values()), before)
            saved = self.save(entries)
            owed += [left[one.entry.job.raw.id] for one in saved if one and one.state and one.entry.verdict.acknowledge]
            overtaken = [entry.job.raw.id for entry, one in zip(entries, saved, strict=True) if one is None]
            left = {delivery_id: left[delivery_id] for delivery_id in overtaken}
            if not left:
                return owed
            before = {}
        self.save([_aside(passage.job, self.parts, Overtaken()) for passage in left.values()])
        return owed

    def _found(self, passages: Sequence[_Passage], before: Mapping[UUID, Mapping[str, Answer]]) -> list[Entry]:
        """What each was found to say, ready to be saved; what could not be begun in time is let go."""
        again = [_entry(one, one.repeated(before[one.job.raw.id])) for one in passages if one.job.raw.id in before]
        news = [one for one in passages if one.job.raw.id not in before]
        recalls = [(one.job, one.question) for one in news if isinstance(one.question, Recall)]
        nears = {
            job.raw.id: _recalled(near, self.parts)
            for (job, _), near in zip(recalls, self.parts.store.recall(recalls), strict=True)
        }

        def find(passage: _Passage) -> Entry | None:
            if passage.may_ask and not (self.free and self.parts.clock() <= self.until):
                return None
            try:
                return _entry(passage, passage.found(self.until, nears.get(passage.job.raw.id)))
            except Exception as error:  # noqa: BLE001  one that stumbles keeps nobody else from going on
                return _aside(passage.job, self.parts, self.parts.meaning(error))

        asking = [one for one in news if one.may_ask]
        found = [(one, find(one)) for one in news if not one.may_ask]
        found += zip(asking, at_once(find, asking), strict=True)
        self._let_go([one.job for one, entry in found if entry is None])
        entries = again + self._read_meanwhile([(one, entry) for one, entry in found if entry is not None])
        order = {one.job.raw.id: place for place, one in enumerate(passages)}
        return sorted(entries, key=lambda entry: order[entry.job.raw.id])

    def _read_meanwhile(self, found: Sequence[tuple[_Passage, Entry]]) -> list[Entry]:
        """Another worker may have read a repeat of the same message meanwhile, and made the provider forget it."""
        before = self.parts.store.told_before([one.job for one, entry in found if entry.found.fell_short])
        return [
            _entry(one, one.repeated(before[one.job.raw.id])) if one.job.raw.id in before else entry
            for one, entry in found
        ]

    def _give_back(self, jobs: Sequence[Job]) -> None:
        if jobs:
            now, error = self.parts.clock(), Again("another one like it goes first", reason="begun-again")
            self.parts.store.give_back(jobs, now)
            self.fates |= {job.raw.id: ComesBack(at=now, error=error) for job in jobs}

    def _let_go(self, jobs: Sequence[Job]) -> None:
        if jobs:
            now, error = self.parts.clock(), ProviderUnavailable("there was no time left to begin")
            self.parts.store.let_go(jobs, error, now)
            self.fates |= {job.raw.id: ComesBack(at=now, error=error) for job in jobs}

    def save(self, entries: Sequence[Entry]) -> list[Saved | None]:
        """Writes what was found, all of it together; where that fails, each on its own."""
        saved = self._saved(entries) if entries else []
        self.fates |= {one.entry.job.raw.id: _fate(one) for one in saved if one is not None}
        return saved

    def _saved(self, entries: Sequence[Entry]) -> list[Saved | None]:
        try:
            return self.parts.store.save(entries, self.parts.clock())
        except Exception as error:
            if not self.parts.store.reachable():
                raise
            found = self.parts.meaning(error)
        if len(entries) > 1:
            log.warning("one-by-one", step="save", error=str(found), **_named([entry.job for entry in entries]))
            return [saved for entry in entries for saved in self._saved([entry])]
        return self.parts.store.save([_aside(entries[0].job, self.parts, found)], self.parts.clock())

    # --- telling the providers ---

    def _acknowledge(self, passages: Sequence[_Passage]) -> None:
        """Tells the providers that the deliveries are safe, after the commit. A failure is tried again on its own;
        what is not begun in time stays owed."""
        until = self.parts.clock() + TELLING

        def tell(passage: _Passage) -> DeliveryError | bool:
            if passage.farewell is None or not self.free or self.parts.clock() > until:
                return False
            try:
                passage.ask(passage.farewell)
            except Exception as error:  # noqa: BLE001  as above
                return self.parts.meaning(error)
            return True

        told = list(zip(passages, at_once(tell, passages), strict=True))
        later: dict[UUID, datetime | None] = {one.job.raw.id: None for one in passages if one.farewell is None}
        later |= {one.job.raw.id: self._later(one, said) for one, said in told if isinstance(said, DeliveryError)}
        if later:
            self.parts.store.acknowledge_again(later)
        done = [one.job for one, said in told if said is True]
        if done:
            self.parts.store.acknowledged(done, self.parts.clock())

    def _later(self, passage: _Passage, error: DeliveryError) -> datetime | None:
        """When the provider is told again."""
        job = passage.job
        decision = decide(error, job.acknowledge_attempt, self.parts.clock(), self.parts.chance)
        at = decision.at if isinstance(decision, RetryAt) else None
        if at is None:
            log.warning("not-acknowledged", reason=error.reason, error=str(error), **_named([job]))
        elif isinstance(self.fates[job.raw.id], Done):
            self.fates[job.raw.id] = ComesBack(at=at, error=error)
        return at


def _named(jobs: Sequence[Job]) -> dict[str, Any]:
    """What a line of the log says of whom it is about: the one delivery, or how many and the first."""
    if len(jobs) == 1:
        return {"delivery": jobs[0].raw.id, "endpoint": jobs[0].raw.endpoint}
    return {"deliveries": len(jobs), "first": jobs[0].raw.id}


def _waves(passages: Sequence[_Passage]) -> list[list[_Passage]]:
    """Those that meet, one after the other; all others together."""
    waves: list[list[_Passage]] = []
    last: dict[tuple[str, str], int] = {}
    for passage in passages:
        number = 1 + max((last[shared] for shared in passage.meets if shared in last), default=-1)
        last |= dict.fromkeys(passage.meets, number)
        if number == len(waves):
            waves.append([])
        waves[number].append(passage)
    return waves


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """Does it for all of them, several at a time where there are several."""
    if len(items) < 2:
        return [work(item) for item in items]
    pool = ThreadPoolExecutor(min(AT_ONCE, len(items)))
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # nobody waits for a thread that hangs


def _recalled(near: list[dict[str, Any]], parts: Parts) -> Answer:
    return Answer(status=200, body=near, at=parts.clock(), recalled=True)


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
    answers, known = dict(incoming.answers), incoming
    for _ in range(MOST_LOOKUPS):
        try:
            question = _question(provider, known)
        except DeliveryError as error:
            return answers, error, False
        if question is None:
            return answers, None, True
        try:
            answers[question.name] = _kept(question, ask(question))
        except DeliveryError as error:
            return answers, error, isinstance(question, Call) and not question.required
        known = replace(incoming, answers=answers)
    return answers, OurFault("the provider's file asks without end"), False


def _question(provider: Provider, incoming: Incoming) -> Call | Recall | None:
    return guarded(lambda: provider.lookup(incoming))


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


def _entry(passage: _Passage, found: Findings) -> Entry:
    """What was found, with the verdict on the delivery."""
    owed = found.safe and not passage.job.acknowledged and passage.farewell is not None
    return _judged(passage.job, passage.parts, found, parser=passage.provider.parser, acknowledge=owed)


def _aside(job: Job, parts: Parts, trouble: DeliveryError) -> Entry:
    """A delivery that trouble outside of its own content stopped."""
    return _judged(job, parts, Findings(answers=job.answers, trouble=trouble, safe=False), parser=0, acknowledge=False)


def _judged(job: Job, parts: Parts, found: Findings, *, parser: int, acknowledge: bool) -> Entry:
    verdict = _verdict(job, parts, found)
    if acknowledge:
        verdict = replace(verdict, acknowledge=True)
    return Entry(
        job=job,
        found=found,
        verdict=verdict,
        parser=parser,
        waiting=_waiting(job, parts, found, parser=parser, acknowledge=acknowledge),
    )


def _waiting(job: Job, parts: Parts, found: Findings, *, parser: int, acknowledge: bool) -> Entry | None:
    """How it waits, if a booking that it names only by the code is not there."""
    elements = found.elements or ()
    if not any(_waits(element) for element in elements):
        return None
    error = AwaitingBooking()
    here = [Ignored(reason=error.reason) if _waits(element) else element for element in elements]
    waiting = replace(found, elements=here, trouble=error)
    return _judged(job, parts, waiting, parser=parser, acknowledge=acknowledge)


def _fate(saved: Saved) -> Fate:
    verdict, trouble = saved.entry.verdict, saved.entry.found.trouble
    if saved.state is not None and verdict.next_attempt_at is not None and trouble is not None:
        return ComesBack(at=verdict.next_attempt_at, error=trouble)
    return Done(state=saved.state, reason=verdict.reason)


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
            counts = decision.error.is_attempt
            return Verdict(
                state=State.RETRYING, reason=reason, error=told, next_attempt_at=decision.at, is_attempt=counts
            )
        errors.append(decision.error)
    if errors:
        return Verdict(state=State.PARKED, reason=errors[0].reason, error=_told(errors))
    elements = found.elements or ()
    reasons = [element.reason for element in elements if isinstance(element, Ignored)]
    if reasons and len(reasons) == len(elements):
        return Verdict(state=State.IGNORED, reason=reasons[0])
    return Verdict(state=None)
