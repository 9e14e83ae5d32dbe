"""The fixtures: whole HTTP requests with what they must become, found by listing `tests/fixtures/`.

`<provider>/<situation>.http`           request line, headers, blank line, raw body (CRLF in the head, bytes kept)
`<provider>/<situation>.lookup.json`    answers of the provider's API by call name: {"status": 200, "body": …, "at": …}
`<provider>/<situation>.expected.json`  see `Case`
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from schemas.delivery import RawDelivery
from schemas.endpoints import Endpoint, parse
from workers.provider import Answer, Incoming

FIXTURES = Path(__file__).parent / "fixtures"
RECEIVED_AT = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
DELIVERY_ID = UUID("019a9f00-0000-7000-8000-000000000001")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One situation. In `expected.json`:

    `about`     one sentence: what this is, where it is from
    `endpoint`  the endpoint's settings (without provider)
    `secrets`   secret WHAT → value, as the environment holds them
    `state`, `reason`, `error`   of the delivery when it is the first of its bookings (error: a part of the text)
    `bookings`  one object per row, ordered by external_id: the columns that are not null (details and items whole)
    """

    provider: str
    situation: str
    expected: dict[str, Any]
    delivery: RawDelivery
    answers: dict[str, Answer]

    @property
    def name(self) -> str:
        return f"{self.provider}/{self.situation}"

    @property
    def secrets(self) -> dict[str, str]:
        return dict(self.expected.get("secrets", {}))

    @property
    def endpoint(self) -> Endpoint:
        name = self.delivery.endpoint
        variable = Endpoint(name=name, provider=self.provider).variable
        environment = {variable(what): value for what, value in self.secrets.items()}
        table = {"provider": self.provider, **self.expected.get("endpoint", {})}
        return parse({"endpoints": {name: table}}, "fixture", environment).endpoints[name]

    @property
    def incoming(self) -> Incoming:
        return Incoming(delivery=self.delivery, endpoint=self.endpoint, answers=self.answers)


def read_http(
    raw: bytes, *, endpoint: str, delivery_id: UUID = DELIVERY_ID, received_at: datetime = RECEIVED_AT
) -> RawDelivery:
    """A whole HTTP request as the receiver would hand it on."""
    head, _, body = raw.partition(b"\r\n\r\n")
    request_line, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(":", 1) for line in lines]
    headers = tuple((name.strip().lower(), value.strip()) for name, value in pairs)
    return RawDelivery(
        id=delivery_id,
        endpoint=endpoint,
        method=request_line.split(" ")[0],
        received_at=received_at,
        headers=headers,
        body=body,
    )


def _read(path: Path) -> Case:
    provider, situation = path.parent.name, path.name.removesuffix(".http")
    lookup = path.with_name(f"{situation}.lookup.json")
    answers = json.loads(lookup.read_text()) if lookup.exists() else {}
    return Case(
        provider=provider,
        situation=situation,
        expected=json.loads(path.with_name(f"{situation}.expected.json").read_text()),
        delivery=read_http(path.read_bytes(), endpoint=f"{provider}-venue"),
        answers={
            name: Answer(
                status=answer.get("status", 200),
                body=answer["body"],
                at=datetime.fromisoformat(answer["at"]) if "at" in answer else RECEIVED_AT,
            )
            for name, answer in answers.items()
        },
    )


@cache
def cases() -> tuple[Case, ...]:
    """Every fixture that is there."""
    return tuple(_read(path) for path in sorted(FIXTURES.glob("*/*.http")))
