"""The operator's page tells of every reason that a delivery can have."""

from __future__ import annotations

import re
from pathlib import Path

from schemas.delivery import State
from workers import errors

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")


def reasons() -> set[str]:
    """Of the classes that are raised as they are, and of the provider files, where they stand in quotes."""
    raised = {kind for kind in vars(errors).values() if isinstance(kind, type) and not kind.__subclasses__()}
    named = {kind.reason for kind in raised if issubclass(kind, errors.DeliveryError)}
    spoken = re.compile(r'(?:Ignored|Unsupported|Malformed)\([^)]*?reason="([a-z-]+)"', re.DOTALL)
    for file in (ROOT / "workers" / "providers").glob("*.py"):
        named |= set(spoken.findall(file.read_text(encoding="utf-8")))
    # Always given another reason where it is raised: by the provider's file, or by what was tried for 24 hours.
    return named - {errors.Unsupported.reason, errors.GaveUp.reason}


def test_every_reason_and_every_state_is_explained_to_operators() -> None:
    known = reasons()
    assert len(known) > 15
    assert {reason for reason in known if f"`{reason}`" not in PAGE} == set()
    assert {state for state in State if f"`{state}`" not in PAGE} == set()
