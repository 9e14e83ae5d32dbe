"""The contract that every provider inherits: each fixture that is found becomes the rows beside it."""

from __future__ import annotations

from collections import Counter

import pytest
from cases import FIXTURES, Case, cases

from schemas.booking import COLUMNS, from_json, to_json
from schemas.delivery import State
from workers.errors import Park
from workers.fold import Said, fold
from workers.provider import Element, Event, Failed, Ignored
from workers.registry import discover

by_name = pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)


def elements_of(case: Case) -> list[Element]:
    provider = discover()[case.provider]
    try:
        provider.verify(case.incoming, case.secrets)
        return list(provider.normalize(case.incoming))
    except Park as error:
        return [Failed(error=error)]


def state_of(elements: list[Element]) -> tuple[State, str | None]:
    failed = next((element for element in elements if isinstance(element, Failed)), None)
    if failed:
        return State.PARKED, failed.error.reason
    if any(isinstance(element, Event) for element in elements):
        return State.APPLIED, None
    return State.IGNORED, next(element.reason for element in elements if isinstance(element, Ignored))


def rows_of(case: Case, elements: list[Element]) -> list[dict[str, object]]:
    events: dict[str, list[Said]] = {}
    for position, element in enumerate(elements):
        if isinstance(element, Event):
            said = from_json(to_json(element.said))
            events.setdefault(element.external_id or f"code:{element.reference}", []).append(
                Said(
                    delivery_id=case.delivery.id,
                    position=position,
                    received_at=element.as_of or case.delivery.received_at,
                    version=element.version,
                    said=said,
                    payments=tuple(element.payments),
                )
            )
    return [shown(external_id, fold(group).columns) for external_id, group in sorted(events.items())]


def shown(external_id: str, columns: dict[str, object]) -> dict[str, object]:
    plain = to_json(columns)
    full = {name: plain[name] for name in COLUMNS if plain[name] not in (None, [], {})}
    return {"external_id": external_id, **full}


@by_name
def test_a_fixture_becomes_its_expected_rows(case: Case) -> None:
    elements = elements_of(case)
    assert rows_of(case, elements) == case.expected["bookings"]


@by_name
def test_a_fixture_ends_in_its_expected_state(case: Case) -> None:
    elements = elements_of(case)
    state, reason = state_of(elements)
    assert (state, reason) == (case.expected["state"], case.expected.get("reason"))
    if "error" in case.expected:
        errors = [str(element.error) for element in elements if isinstance(element, Failed)]
        assert any(case.expected["error"] in error for error in errors), errors


@by_name
def test_an_element_that_is_read_twice_says_the_same(case: Case) -> None:
    assert repr(elements_of(case)) == repr(elements_of(case))


def test_every_provider_has_fixtures_and_every_folder_a_provider() -> None:
    folders = {path.name for path in FIXTURES.iterdir() if path.is_dir()}
    assert folders == set(discover())
    counts = Counter(case.provider for case in cases())
    assert all(counts[name] >= 5 for name in discover()), counts
