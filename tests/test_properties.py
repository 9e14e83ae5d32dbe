"""What holds for any body, any order, any repetition: sentences that Hypothesis tries to break.

The examples are derived from the tests themselves (`derandomize`), so every machine tries the same ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from itertools import permutations
from typing import Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID

import pytest
from cases import Case, cases
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from world import NOON, SEVERAL, VENUES, Script, Step, World, answer, database, request, said, tell

from console.services import Embedded
from schemas.booking import COLUMNS
from schemas.delivery import RawDelivery, State
from workers.bookings import Sheet, Telling, _Page, booking_id, refold
from workers.errors import AwaitingBooking, BadSignature, ProviderUnavailable, Refused, Throttled
from workers.fold import Row, Said, fold
from workers.pipeline import look_up, understand
from workers.provider import Answer, Call, Event, Failed, Ignored, Incoming, Recall
from workers.registry import discover
from workers.statements import Plain

PROVIDERS = sorted(discover())
by_provider = pytest.mark.parametrize("provider", PROVIDERS)


def tried(examples: int) -> settings:
    """So many examples, the same ones everywhere, however slow the machine."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )


@pytest.fixture(scope="module")
def shared(services: Embedded, template: str) -> Iterator[Engine]:
    """One database for all examples; each begins by emptying it."""
    with database(services, template) as engine:
        yield engine


# --- any body --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Vocabulary:
    """The names and values that a provider's fixtures hold, bodies and answers alike."""

    names: tuple[str, ...]
    values: tuple[Any, ...]
    documents: tuple[Any, ...]


@cache
def vocabulary(provider: str) -> Vocabulary:
    mine = [case for case in cases() if case.provider == provider]
    documents = [document for case in mine for document in _documents(case)]
    parts = [part for document in documents for _, part in _parts(document)]
    names = sorted({name for part in parts if isinstance(part, dict) for name in part if len(name) < 50})
    values = {repr(part): part for part in parts if not isinstance(part, dict | list) and len(repr(part)) < 300}
    return Vocabulary(tuple(names), tuple(values.values()), tuple(documents))


def _documents(case: Case) -> Iterator[Any]:
    try:
        document = json.loads(case.delivery.body)
    except (ValueError, RecursionError):
        document = None
    yield from (found for found in (document, *(answer.body for answer in case.answers.values())) if _shallow(found))


def _shallow(value: Any, levels: int = 20) -> bool:
    if not levels:
        return False
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(_shallow(one, levels - 1) for one in inner)


def _parts(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value inside, with the way to it."""
    yield path, value
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield from _parts(value[key], (*path, key))


HOSTILE = [
    None,
    True,
    "",
    " ",
    0,
    -1,
    1e23,
    -0.0,
    1e308,
    10**40,
    float("inf"),
    float("nan"),
    [],
    {},
    "\x00",
    "a\ud800b",
    "9" * 250,
    "9" * 5000,
    "0000-00-00",
    "2026-02-30T25:61:00",
    "9999-12-31T23:59:59+00:00",
    "0001-01-01T00:00:00+14:00",
    "2026-03-29T02:30:00",
    "1e999999",
    "NaN",
    "٣",
    "../../etc/passwd",
]


@cache
def scalars(provider: str) -> st.SearchStrategy[Any]:
    known = st.sampled_from(vocabulary(provider).values)
    return known | st.sampled_from(HOSTILE) | st.integers() | st.floats() | st.text(max_size=20)


@cache
def trees(provider: str) -> st.SearchStrategy[Any]:
    names = st.sampled_from(vocabulary(provider).names) | st.text(max_size=5)
    return st.recursive(
        scalars(provider),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6),
        max_leaves=12,
    )


@st.composite
def damaged(draw: st.DrawFn, provider: str) -> Any:
    """A document of the fixtures with some of its values replaced."""
    document = json.loads(json.dumps(draw(st.sampled_from(vocabulary(provider).documents))))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from([path for path, _ in _parts(document)]))
        document = _put(document, path, draw(trees(provider)))
    return document


def _put(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    inner = _put(document[path[0]], path[1:], value)
    if isinstance(document, list):
        return [inner if place == path[0] else old for place, old in enumerate(document)]
    return {**document, path[0]: inner}


@cache
def forms(provider: str) -> st.SearchStrategy[bytes]:
    """Bracketed form fields."""
    names = st.lists(st.sampled_from(vocabulary(provider).names) | st.sampled_from(["", "0", "1"]), max_size=4)
    keys = names.map(lambda inner: "booking" + "".join(f"[{name}]" for name in inner))
    values = scalars(provider).map(str)
    fields = st.lists(st.tuples(keys, values), max_size=6)
    return fields.map(lambda pairs: urlencode(pairs, errors="surrogatepass").encode())


@cache
def bodies(provider: str) -> st.SearchStrategy[bytes]:
    written = (damaged(provider) | damaged(provider) | trees(provider)).map(lambda one: json.dumps(one).encode())
    whole = st.sampled_from([case.delivery.body for case in cases() if case.provider == provider])
    cut = st.tuples(whole, st.integers(0, 400), st.binary(max_size=8)).map(lambda t: t[0][: t[1]] + t[2] + t[0][t[1] :])
    return written | written | cut | forms(provider) | st.binary(max_size=200)


@cache
def odd_headers() -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    text = st.text(st.characters(max_codepoint=0xFF, exclude_characters="\r\n\x00"), max_size=30)
    names = st.sampled_from(["content-type", "x-messageid", "x-timekit-signature", "X-Odd"])
    return st.lists(st.tuples(names, text | st.sampled_from(["90412277", "²", "9" * 20])), max_size=3).map(tuple)


def headers(case: Case) -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    return st.just(case.delivery.headers) | st.just(case.delivery.headers) | odd_headers()


ERRORS = (ProviderUnavailable(), Throttled(after=timedelta(days=400)), Refused())


@cache
def outcomes(provider: str) -> st.SearchStrategy[Any]:
    """What an API may do when it is asked."""
    body = damaged(provider) | trees(provider)
    answers = st.builds(answer, body, status=st.sampled_from([200, 200, 200, 201, 404]))
    return answers | answers | st.sampled_from(ERRORS)


@cache
def several_outcomes(provider: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(outcomes(provider), min_size=1, max_size=3)


@cache
def of_some_fixture(provider: str) -> st.SearchStrategy[Case]:
    return st.sampled_from([case for case in cases() if case.provider == provider])


@dataclass(frozen=True)
class Anything:
    """Some request to an endpoint of some fixture, and what the API does at each question."""

    case: Case
    body: bytes
    headers: tuple[tuple[str, str], ...]
    outcomes: Sequence[Any]

    def script(self) -> Script:
        told = iter(range(10**9))
        return Script(otherwise=lambda call: self.outcomes[next(told) % len(self.outcomes)])


@cache
@st.composite
def anything(draw: st.DrawFn, provider: str) -> Anything:
    case = draw(of_some_fixture(provider))
    return Anything(
        case=case,
        body=draw(bodies(provider)),
        headers=draw(headers(case)),
        outcomes=draw(several_outcomes(provider)),
    )


@by_provider
@tried(50)
@given(data=st.data())
def test_anything_becomes_elements_with_a_reason_where_they_are_none(provider: str, data: st.DataObject) -> None:
    """Never an exception; an element is an event, or ignored or failed for a reason."""
    some = data.draw(anything(provider))
    file, script = discover()[provider], some.script()
    raw = request("somewhere", some.body, headers=some.headers)
    incoming = Incoming(delivery=raw, endpoint=some.case.endpoint)
    with suppress(BadSignature):
        file.verify(incoming, {"webhook_secret": "one, two"})

    def ask(question: Call | Recall) -> Answer:
        if isinstance(question, Call):
            return script(question)
        return answer([{"external_id": one, "provider_status": "delete"} for one in question.external_ids])

    answers, trouble, _ = look_up(file, incoming, ask)
    assert trouble is None or trouble in ERRORS or trouble.reason != "internal-error", trouble
    elements = understand(file, replace(incoming, answers=answers))
    assert elements
    for element in elements:
        if isinstance(element, Failed):
            assert element.error.reason != "internal-error", element.error
        assert isinstance(element, Event) or reason_of(element)


def reason_of(element: Failed | Ignored) -> str:
    return element.error.reason if isinstance(element, Failed) else element.reason


@by_provider
@tried(20)
@given(data=st.data())
def test_anything_ends_in_rows_or_parked_and_a_second_time_changes_nothing(
    shared: Engine, provider: str, data: st.DataObject
) -> None:
    some = data.draw(anything(provider))
    script = some.script()
    endpoint = replace(some.case.endpoint, name=f"any-{provider}")
    world = World(shared, [endpoint], script=script, secrets={endpoint.name: some.case.secrets})
    world.forget()
    raw = request(endpoint.name, some.body, headers=some.headers)
    world.deliver(raw)
    world.settle(rounds=1)
    state, reason = world.verdict(raw.id)
    assert state in set(State)
    assert bool(reason) == (state not in (State.APPLIED, State.DUPLICATE, State.STALE))
    assert reason != "internal-error", world.delivery(raw.id).error

    before = (world.rows(), world.events(), world.changes())
    script.otherwise = None  # whatever is not kept is not there any more
    if state != State.RETRYING:
        world.once_more(raw.id)
        assert (world.rows(), world.events(), world.changes()) == before


# --- any order -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Story:
    """Requests in the order of their receipt, and the order in which workers happen to take them."""

    requests: Sequence[RawDelivery]
    taken: Sequence[int]
    lines: Mapping[str, Answer]

    @property
    def ids(self) -> list[UUID]:
        return [self.requests[place].id for place in self.taken]


WORDS = {"checkfront": ["create", "change", "cancel", "pay"], "synthesisvr": ["create", "cancel"]}
ORDINARY = ["create", "change", "cancel"]
SPACES = (1, 40, 300)
"""Seconds between two receipts: some are so close that they may have overtaken each other."""


@st.composite
def steps(draw: st.DrawFn, provider: str, version: int) -> Step:
    return Step(
        word=draw(st.sampled_from(WORDS.get(provider, ORDINARY))),
        version=version,
        booking=draw(st.sampled_from([1, 1, 2])),
        name=draw(st.sampled_from([None, "Ewa", "Jan"])),
        size=draw(st.sampled_from([None, 2, 5])),
    )


@cache
@st.composite
def stories(draw: st.DrawFn, provider: str) -> Story:
    """Some requests, some of them more than once, received in any order of the provider's versions."""
    count = draw(st.integers(2, 4))
    tellings = []
    for number in range(count):
        # Lockme's ids are its own for each message; elsewhere two changes may fall into one second.
        version = number if provider == "lockme" else draw(st.integers(0, count - 1))
        several = draw(st.integers(1, 2)) if provider in SEVERAL else 1
        tellings.append(tell(provider, *(draw(steps(provider, version)) for _ in range(several))))
    repeated = draw(st.lists(st.integers(0, count - 1), max_size=2))
    received = draw(st.permutations([*range(count), *repeated]))
    space = draw(st.sampled_from(SPACES))
    requests = [
        request(
            VENUES[provider].name,
            tellings[number].body,
            headers=tellings[number].headers,
            at=NOON + timedelta(seconds=space * place),
        )
        for place, number in enumerate(received)
    ]
    lines = {name: line for telling in tellings for name, line in telling.answers.items()}
    return Story(requests, draw(st.permutations(range(len(requests)))), lines)


def world_of(story: Story, engine: Engine, provider: str, *, landed: bool = True) -> World:
    """An empty installation in which everything has just been received."""
    world = World(engine, [VENUES[provider]], script=Script(dict(story.lines)))
    world.clock.now = max(raw.received_at for raw in story.requests)
    world.forget()
    if landed:
        world.land(*story.requests)
    return world


@by_provider
@tried(12)
@given(data=st.data())
def test_any_order_any_repetition_and_several_workers_give_the_row_of_the_receipt(
    shared: Engine, provider: str, data: st.DataObject
) -> None:
    """Every column, ours too: ids, times, the delivery that wrote it. And it is what the pure fold says."""
    story = data.draw(stories(provider))
    world = world_of(story, shared, provider)
    for raw in story.requests:
        world.work(raw.id)
    world.settle()
    in_order = world.rows()
    assert in_order == folded(story, provider)

    changes = world.changes()
    for raw in story.requests:
        world.once_more(raw.id)
    world.settle()
    assert (world.rows(), world.changes()) == (in_order, changes)

    world = world_of(story, shared, provider)
    world.at_once(story.ids)
    world.settle()
    assert world.rows() == in_order


def folded(story: Story, provider: str) -> list[dict[str, Any]]:
    """The rows of a story without workers and without a database: sameness, then the fold."""
    told: dict[str, list[Said]] = {}
    known: set[tuple[str, str]] = set()
    codes: dict[str | None, str] = {}
    elements = [(raw, place, event) for raw in story.requests for place, event in _events(raw, story, provider)]
    for _, _, event in elements:
        if event.external_id is not None and event.said.get("reference"):
            codes.setdefault(event.said["reference"], event.external_id)
    for raw, place, event in elements:
        name = event.external_id or codes.get(event.reference)
        if name is None or (name, event.same_as) in known:
            continue
        if event.same_as is not None:
            known.add((name, event.same_as))
        told.setdefault(name, []).append(said(raw, place, event))
    return [_row(provider, name, fold(events)) for name, events in sorted(told.items())]


def _events(raw: RawDelivery, story: Story, provider: str) -> Iterator[tuple[int, Event]]:
    """What one request says when all the others are known."""

    def ask(question: Call | Recall) -> Answer:
        if isinstance(question, Call):
            return story.lines[question.path]
        return answer([near for other in story.requests if other != raw for near in _near(other, raw, question)])

    incoming = Incoming(delivery=raw, endpoint=VENUES[provider])
    answers, _, _ = look_up(discover()[provider], incoming, ask)
    elements = understand(discover()[provider], replace(incoming, answers=answers))
    return ((place, element) for place, element in enumerate(elements) if isinstance(element, Event))


def _near(other: RawDelivery, raw: RawDelivery, question: Recall) -> list[dict[str, Any]]:
    if abs(other.received_at - raw.received_at) > question.within:
        return []
    events = discover()["synthesisvr"].normalize(Incoming(delivery=other, endpoint=VENUES["synthesisvr"]))
    return [
        {
            "external_id": event.external_id,
            "provider_status": event.said["provider_status"],
            "delivery_id": str(other.id),
        }
        for event in events
        if isinstance(event, Event) and event.external_id in question.external_ids
    ]


def _row(provider: str, name: str, row: Row | None) -> dict[str, Any]:
    assert row is not None
    endpoint = VENUES[provider].name
    return {
        "id": booking_id(endpoint, name),
        "provider": provider,
        "endpoint": endpoint,
        "external_id": name,
        **{column: row.columns[column] for column in COLUMNS},
        "first_seen_at": row.first_seen_at,
        "changed_at": row.changed_at,
        "delivery_id": row.delivery_id,
    }


@by_provider
@tried(8)
@given(data=st.data())
def test_thin_events_add_up_to_one_row_in_any_order(shared: Engine, provider: str, data: st.DataObject) -> None:
    """Each request speaks of one thing only; what a newer one is silent about stays."""
    told = [Step(word="create", version=1), Step(word="create", version=2), Step(word="create", version=3)]
    thin = [replace(step, **part) for step, part in zip(told, ({"name": "Ewa"}, {"size": 4}, {}), strict=True)]
    order = data.draw(st.permutations(thin))
    requests = [_at(provider, step, place) for place, step in enumerate(order)]
    lines = {name: line for step in thin for name, line in tell(provider, step).answers.items()}
    story = Story(requests, data.draw(st.permutations(range(3))), lines)
    world = world_of(story, shared, provider)
    world.at_once(story.ids)
    world.settle()
    (row,) = world.rows()
    assert "Ewa" in (row["customer_name"], row["customer_id"])
    sized = (row["party_size"], row["quantity"], row["note"], row["starts_at"], row["paid"])
    assert any(value is not None for value in sized)
    assert [row] == folded(story, provider)


def _at(provider: str, step: Step, minute: float) -> RawDelivery:
    telling = tell(provider, step)
    moment = NOON + timedelta(minutes=minute)
    return request(VENUES[provider].name, telling.body, headers=telling.headers, at=moment)


# --- there and back again --------------------------------------------------------------------------------------

BACK_AGAIN = {
    "checkfront": (("change", "cancel", "change"), "PAID"),
    "synthesisvr": (("create", "cancel", "create"), "create"),
}


@pytest.mark.parametrize("taken", list(permutations(range(3))))
@pytest.mark.parametrize("provider", sorted(BACK_AGAIN))
@pytest.mark.parametrize("space", [1, 60])
def test_a_body_that_was_seen_before_still_counts(
    shared: Engine, provider: str, taken: tuple[int, ...], space: int
) -> None:
    """PAID, VOID, PAID sends the same bytes twice, and the third request is the truth: whoever takes it when."""
    words, last = BACK_AGAIN[provider]
    requests = [_at(provider, Step(word=word, name="Ewa"), place * space) for place, word in enumerate(words)]
    assert requests[0].body == requests[2].body
    world = world_of(Story(requests, taken, {}), shared, provider)
    for place in taken:
        world.work(requests[place].id)
    (row,) = world.rows()
    assert (row["status"], row["provider_status"]) == ("confirmed", last)
    assert (row["delivery_id"], row["changed_at"]) == (requests[2].id, requests[2].received_at)
    assert [row] == folded(Story(requests, taken, {}), provider)
    assert len(world.events()) == 3


# --- batches ---------------------------------------------------------------------------------------------------


@by_provider
@tried(12)
@given(data=st.data())
def test_a_batch_leaves_what_the_same_deliveries_leave_one_by_one(
    shared: Engine, provider: str, data: st.DataObject
) -> None:
    """The same rows, events, changes and states, whatever order they are taken in, and with bad ones among them; and
    the same when they land with what they say."""
    story = data.draw(stories(provider))
    bad = [request(VENUES[provider].name, b"{", at=NOON + timedelta(seconds=n), headers=BAD) for n in range(2)]
    story = replace(
        story, requests=[*story.requests, *bad], taken=data.draw(st.permutations(range(len(story.taken) + 2)))
    )
    size = data.draw(st.integers(2, len(story.taken)))

    world = world_of(story, shared, provider)
    for delivery_id in story.ids:
        world.work(delivery_id)
    one_by_one = left(world, story)
    world.settle()
    settled = left(world, story)

    world = world_of(story, shared, provider)
    for start in range(0, len(story.ids), size):
        world.batch(*story.ids[start : start + size])
    assert left(world, story) == one_by_one
    world.settle()
    assert left(world, story) == settled

    for in_turns in (False, True):
        world = world_of(story, shared, provider, landed=False)
        requests = {raw.id: raw for raw in story.requests}
        for start in range(0, len(story.ids), size):
            ids = story.ids[start : start + size]
            done = world.arrive(*(requests[one] for one in ids), in_turns=in_turns) or {}
            if rest := [one for one in ids if one not in done]:
                world.land(*(requests[one] for one in rest))
                world.batch(*rest)
        assert left(world, story) == one_by_one
        world.settle()
        assert left(world, story) == settled


BAD = (("x-messageid", "no-number"),)
OWN = frozenset({"id", "at"})
"""Columns of a change that differ from run to run."""
KEPT = ("state", "reason", "error", "lookup", "parser", "applied_at", "message_id", "acknowledged_at")


def left(world: World, story: Story) -> tuple[Any, ...]:
    """All that stands in the tables afterwards."""
    found = [world.delivery(raw.id) for raw in story.requests]
    states = [[getattr(row, column) for column in KEPT] for row in found]
    return world.rows(), world.events(), recorded(world), states


def recorded(world: World) -> list[dict[str, Any]]:
    """The changes booking by booking, for a batch may turn to them in another order."""
    changes = [{name: value for name, value in row.items() if name not in OWN} for row in world.changes()]
    return sorted(changes, key=lambda change: change["booking_id"])


# --- onto the row ----------------------------------------------------------------------------------------------

T = TypeVar("T")


def both_ways(live: Callable[[], T]) -> tuple[T, T]:
    """What comes of it when only a few events are read, and when all are read for every save."""
    fewest = live()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Page, "lacks", lambda *_: True)
        return fewest, live()


def stands(world: World) -> None:
    """Every row is the fold of its events: folding it again writes nothing, into no column and no table."""
    with world.engine.begin() as connection:
        before = connection.execute(WRITTEN).scalar_one()
        for identity in connection.execute(ROWS).scalars().all():
            assert not refold(connection, identity)
        assert connection.execute(WRITTEN).scalar_one() == before


ROWS = text("SELECT id FROM bookings")
WRITTEN = text("SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_xact_user_tables")
"""What this connection has written, this transaction included."""


@by_provider
@tried(8)
@given(data=st.data())
def test_folding_onto_the_row_leaves_what_reading_every_event_leaves(
    shared: Engine, provider: str, data: st.DataObject
) -> None:
    """The same rows, events, changes and states, whatever comes late, together, or once more."""
    story = data.draw(stories(provider))
    size = data.draw(st.integers(1, 3))
    turns = [story.ids[start : start + size] for start in range(0, len(story.ids), size)]
    turns += [[again] for again in data.draw(st.lists(st.sampled_from(story.ids), max_size=2))]

    def live() -> tuple[Any, ...]:
        world = world_of(story, shared, provider)
        for turn in turns:
            for delivery_id in turn:
                world.change(delivery_id, state=State.RECEIVED, next_attempt_at=world.clock())
            world.batch(*turn)
            stands(world)
        return left(world, story)

    fewest, all_of_them = both_ways(live)
    assert fewest == all_of_them


Plot = Sequence[Sequence[Telling]]
"""Tellings, set by set; a delivery may come again, and then says something else."""
NAMES = ("one", "two")
CODES = ("AB", "CD")
VERSIONS = (None, None, "", "2", "10", "é", "z", "\ue000", "\U0001f600")
"""Not every language sorts them alike; UTF-16 would not keep the order of the last two."""


@cache
@st.composite
def strange(draw: st.DrawFn, provider: str) -> Event:
    """What that provider makes of some document."""
    some = draw(anything(provider))
    script = some.script()
    incoming = Incoming(delivery=request("somewhere", some.body, headers=some.headers), endpoint=some.case.endpoint)
    answers, _, _ = look_up(
        discover()[provider], incoming, lambda one: script(one) if isinstance(one, Call) else answer([])
    )
    elements = understand(discover()[provider], replace(incoming, answers=answers))
    return next((one for one in elements if isinstance(one, Event)), Event(external_id="nothing"))


@st.composite
def told(draw: st.DrawFn, found: Sequence[Event]) -> Event:
    """One of these events, for one of a few bookings, in any place of their order."""
    one = draw(st.sampled_from(found))
    code = draw(st.sampled_from([None, None, None, *CODES]))
    by_code = code is not None and draw(st.booleans())
    paid = draw(st.sampled_from([(), (), ({"id": "TX-1"},), ({"id": "TX-2"}, {"id": "TX-1"})]))
    return replace(
        one,
        external_id=None if by_code else draw(st.sampled_from(NAMES)),
        reference=code if by_code else None,
        said={**one.said, **({} if by_code or code is None else {"reference": code})},
        payments=[*one.payments, *paid],
        version=draw(st.sampled_from(VERSIONS)),
        same_as=draw(st.sampled_from([None, None, "this", "that"])),
        as_of=draw(st.sampled_from([None, None, NOON + timedelta(minutes=3, seconds=30)])),
    )


RECALLS = st.builds(
    lambda name, minutes: (Recall(name="recent", external_ids=(name,), within=timedelta(minutes=minutes)), None),
    st.sampled_from(NAMES),
    st.integers(0, 2),
)


@cache
@st.composite
def plots(draw: st.DrawFn, provider: str) -> Plot:
    found = draw(st.lists(strange(provider), min_size=1, max_size=3))
    requests = [request("somewhere", at=NOON + timedelta(minutes=minute)) for minute in range(6)]
    tellings = st.builds(
        lambda raw, events, asked: Telling(
            raw=raw, provider=provider, said=list(enumerate(events)), parser=1, recalled=asked
        ),
        st.sampled_from(requests),
        st.lists(told(found), min_size=1, max_size=2),
        st.lists(RECALLS, max_size=1),
    )
    sets = st.lists(tellings, min_size=1, max_size=3, unique_by=lambda telling: telling.raw.id)
    return draw(st.lists(sets, min_size=2, max_size=5))


@by_provider
@tried(25)
@given(data=st.data())
def test_whatever_is_told_in_whatever_order_a_row_is_the_fold_of_its_events(
    shared: Engine, provider: str, data: st.DataObject
) -> None:
    """And whoever reads only a few of them finds and notes what somebody who reads them all does."""
    plot = data.draw(plots(provider))

    def live() -> tuple[Any, ...]:
        world = World(shared, [replace(VENUES[provider], name="somewhere")])
        world.forget()
        world.land(*{telling.raw.id: telling.raw for together in plot for telling in together}.values())
        found: list[Any] = []
        for together in plot:
            with shared.begin() as connection:
                sheet = Sheet(Plain(connection), together)
                for telling in together:
                    found += [sheet.near(telling.raw, asked) for asked, _ in telling.recalled]
                    with suppress(AwaitingBooking):
                        found += [sheet.tell(replace(telling, recalled=()))]
                sheet.write()
            stands(world)
        return found, world.rows(), world.events(), recorded(world)

    fewest, all_of_them = both_ways(live)
    assert fewest == all_of_them
