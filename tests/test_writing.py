"""What is written as JSON reads back as what it was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.booking import Status
from workers.writing import as_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(value=VALUES)
def test_it_reads_back_as_what_it_was(value: Any) -> None:
    """Also numbers of any length, and half of a surrogate pair."""
    assert json.loads(as_json(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"status": Status.HOLD, "headers": (("a", "b"),)}, '{"status":"hold","headers":[["a","b"]]}'),
        (2**70, str(2**70)),
        ("\ud800", '"\\ud800"'),
        ({1: "by number"}, '{"1": "by number"}'),
    ],
)
def test_what_rows_are_made_of(value: Any, text: str) -> None:
    assert as_json(value) == text


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(TypeError):
        as_json(object())
