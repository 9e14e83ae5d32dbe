"""The door: which name and token lead in, and that every wrong way looks like any other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest
from serving import PLAIN, SHORT, free_port, serving

from ingest.app import build
from ingest.door import Doors
from ingest.settings import Settings
from schemas.delivery import DOORS, ORDINARY, door_of
from schemas.endpoints import parse, token

SECRET = "the secret of this installation"
NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
CONFIG = parse(
    {
        "endpoints": {
            "vault": {"provider": "lockme"},
            "studio": {"provider": "reservekit", "generation": 4, "previous_until": NOW},
            "fresh": {"provider": "timekit", "generation": 2},
        }
    },
    "reservoir.toml",
    {},
)
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def doors() -> Doors:
    return Doors(CONFIG, SECRET)


def test_the_right_token_leads_to_its_endpoint(doors: Doors) -> None:
    """With the facts of its provider."""
    entrance = doors.find("vault", token(SECRET, "vault", 1), NOW)
    assert entrance is not None
    assert entrance.endpoint is CONFIG.endpoints["vault"]
    assert entrance.door is DOORS["lockme"]


def test_a_provider_without_a_line_of_its_own_has_an_ordinary_door() -> None:
    """A new provider needs nothing in the receiver."""
    assert door_of("someone-new") is ORDINARY


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("vault", token(SECRET, "studio", 4)),  # another endpoint's
        ("vault", token(SECRET, "vault", 2)),  # of a generation to come
        ("vault", token(SECRET, "vault", 0)),  # of the generation before the first
        ("vault", token("another installation", "vault", 1)),
        ("vault", token(SECRET, "vault", 1)[:-1]),
        ("vault", token(SECRET, "vault", 1) + "0"),
        ("vault", token(SECRET, "vault", 1).upper()),
        ("vault", ""),
        ("vault", "żółć\udcff"),  # compared as bytes, so that no letter is an error
        ("Vault", token(SECRET, "vault", 1)),
        ("nowhere", token(SECRET, "nowhere", 1)),
        ("", token(SECRET, "", -1)),
    ],
)
def test_everything_else_leads_nowhere(doors: Doors, name: str, key: str) -> None:
    assert doors.find(name, key, NOW - MINUTE) is None


def test_the_generation_before_is_good_until_its_date(doors: Doors) -> None:
    """And the new one from the start, so that the dashboard can be changed at leisure."""
    new, old, older = (token(SECRET, "studio", generation) for generation in (4, 3, 2))
    assert doors.find("studio", old, NOW - MINUTE)
    assert doors.find("studio", new, NOW - MINUTE)
    assert doors.find("studio", new, NOW + MINUTE)
    assert doors.find("studio", old, NOW) is None
    assert doors.find("studio", older, NOW - MINUTE) is None


def test_without_a_date_the_generation_before_ends_at_once(doors: Doors) -> None:
    """For a URL that has become known."""
    assert doors.find("fresh", token(SECRET, "fresh", 2), NOW)
    assert doors.find("fresh", token(SECRET, "fresh", 1), NOW) is None


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "GET", "HEAD", "DELETE", "OPTIONS"])
def test_a_wrong_token_and_an_unknown_endpoint_cannot_be_told_apart(method: str) -> None:
    """By nothing in the answer; Redis is away meanwhile, and even that does not show from outside."""
    settings = Settings(redis_url=f"redis://127.0.0.1:{free_port()}", secret=SECRET, config=CONFIG)
    wrong = token(SECRET, "vault", 7)
    with serving(build(settings), SHORT) as url, httpx.Client(**PLAIN) as client:
        answers = [
            client.request(method, f"{url}/hooks/{name}/{key}", content=b"x" * 2_000_000, headers={"x-messageid": "1"})
            for name, key in (("vault", wrong), ("nowhere", wrong), ("studio", "x"), ("nowhere", "x"))
        ]
    seen = {
        (answer.status_code, answer.content, tuple(pair for pair in answer.headers.raw if pair[0] != b"date"))
        for answer in answers
    }
    assert len(seen) == 1
    assert answers[0].status_code == 404
    assert answers[0].content == b""
