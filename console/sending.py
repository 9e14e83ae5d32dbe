"""`reservoir send`: posts a sample as a provider would, and tells what became of it.

The samples are in `console.samples`. A sample is known among the deliveries by a header of its own.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import httpx
import typer
from sqlalchemy import Engine, select

from console import context, show
from console.context import CommandError
from console.samples import SAMPLES, Sample
from schemas.delivery import State, now
from schemas.endpoints import Config, ConfigError, Endpoint, did_you_mean, path
from workers.database import engine
from workers.tables import bookings, deliveries, events

LISTED: Final = ("provider", "situation", "meaning")
HEADER: Final = "x-reservoir-sample"
SIGNATURE: Final = "x-timekit-signature"
PATIENCE: Final = 30.0
"""Seconds for the answer: longer than any receiver takes."""
SETTLED_WITHIN: Final = 15.0
"""Seconds in which a worker that has nothing else to do has long been there."""
STEP: Final = 0.1
EARLY: Final = timedelta(minutes=5)
"""How far the receiver's clock may be behind ours."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Became:
    """What became of a sample."""

    delivery_id: UUID
    state: str
    reason: str | None
    error: str | None
    bookings: Sequence[tuple[str, str]]
    """External id and status of what it spoke of, as the table shows it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """What came of sending."""

    url: str
    status: int
    milliseconds: float
    became: Became | None = None
    unseen: str | None = None
    """Why it is not known what became of it."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for on the command line."""

    config_file: Path
    state_dir: Path
    provider: str
    situation: str
    to: str | None = None
    endpoint: str | None = None


def listed() -> list[dict[str, str]]:
    """Provider and situation of every sample, with what it tells."""
    return [{name: getattr(sample, name) for name in LISTED} for sample in SAMPLES]


def sample_of(provider: str, situation: str) -> Sample:
    """Raises CommandError, with what was probably meant."""
    providers = list(dict.fromkeys(sample.provider for sample in SAMPLES))
    if provider not in providers:
        mend = did_you_mean(provider, providers)
        raise CommandError(f"there is no provider {provider!r}{mend}; `reservoir send --list` shows all")
    known = {sample.situation: sample for sample in SAMPLES if sample.provider == provider}
    if situation not in known:
        mend = did_you_mean(situation, known)
        raise CommandError(f"{provider} has no situation {situation!r}{mend}; it has {', '.join(known)}")
    return known[situation]


def run(wish: Wish, *, as_json: bool) -> None:
    """The command; exit code 1 where the sample was not taken."""
    sent = send(wish)
    typer.echo(show.as_json(document(sent), indent=2) if as_json else told(sent))
    if not 200 <= sent.status < 300:
        raise SystemExit(1)


def send(wish: Wish) -> Sent:
    """Posts it, and waits for what becomes of it where the database is in sight. Raises CommandError."""
    sample = sample_of(wish.provider, wish.situation)
    target = _target(wish)
    mark, began = uuid4().hex, now()
    content = sample.content(began)
    headers = {**sample.headers, **_signature(sample, target.endpoint, content), HEADER: mark}
    status, milliseconds = _post(target.url, sample.method, headers, content)
    sent = Sent(url=_without_token(target.url), status=status, milliseconds=milliseconds)
    if not 200 <= status < 300:
        return replace(sent, unseen="it was not taken")
    if sample.method == "GET" and "x-messageid" not in sample.headers:
        return replace(sent, unseen="nothing is kept of it")
    with ExitStack() as resources:
        database = _database(wish.state_dir, resources)
        if database is None:
            return replace(sent, unseen="the database is not in sight from here; set DATABASE_URL")
        became = _watched(database, target.name, mark, began)
    if became is None:
        return replace(sent, unseen=f"it is not in the database after {SETTLED_WITHIN:g} s; is a worker running?")
    return replace(sent, became=became)


# --- where to ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    url: str = field(repr=False)
    """Its end is the endpoint's secret."""
    name: str
    endpoint: Endpoint | None
    """None: it is none of this installation's, as far as the configuration tells."""


def _target(wish: Wish) -> _Target:
    if wish.to is not None:
        return _told_target(wish)
    config = context.read_config(wish.config_file)
    endpoint = _endpoint(config, wish)
    base = context.running(wish.state_dir).get("url") or os.environ.get("RESERVOIR_PUBLIC_URL")
    if not base:
        raise CommandError("no `reservoir up` is running here; start it, set RESERVOIR_PUBLIC_URL, or give --to")
    url = str(base).rstrip("/") + path(context.secret(wish.state_dir), endpoint)
    return _Target(url=url, name=endpoint.name, endpoint=endpoint)


def _told_target(wish: Wish) -> _Target:
    """A URL as it stands in a provider's dashboard; the endpoint is in it, or `--endpoint` names it."""
    parts = urlsplit(str(wish.to))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CommandError("--to takes a URL, such as `reservoir urls` prints")
    found = re.match(r"/hooks/([^/]+)/", parts.path)
    name = wish.endpoint or (found[1] if found else "")
    try:
        known = context.read_config(wish.config_file).endpoints.get(name)
    except ConfigError:  # a URL needs no configuration, and what is wrong with it is another command's affair
        known = None
    return _Target(url=str(wish.to), name=name, endpoint=known)


def _endpoint(config: Config, wish: Wish) -> Endpoint:
    """The endpoint of that name, else the provider's first one. Raises CommandError."""
    if wish.endpoint is not None:
        named = context.endpoint_of(config, wish.endpoint)
        if named.provider != wish.provider:
            raise CommandError(f"{named.name} is an endpoint of {named.provider}, not of {wish.provider}")
        return named
    found = next((endpoint for endpoint in config if endpoint.provider == wish.provider), None)
    if found is None:
        raise CommandError(f"{config.file}: there is no endpoint of {wish.provider}; add one, or give --to")
    return found


def _without_token(url: str) -> str:
    """The URL as it can be shown: its last part is the endpoint's secret."""
    return re.sub(r"(/hooks/[^/]+/)[^/?#]+", r"\1…", url)


# --- the request -------------------------------------------------------------------------------------------------


def _signature(sample: Sample, endpoint: Endpoint | None, content: bytes) -> dict[str, str]:
    """As Timekit signs: with the newest of the endpoint's webhook secrets."""
    if not sample.signed or endpoint is None or not endpoint.has("webhook_secret"):
        return {}
    secret = re.split(r"[\s,]+", endpoint.secrets_in(os.environ)["webhook_secret"])[0]
    return {SIGNATURE: hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()}


def _post(url: str, method: str, headers: Mapping[str, str], content: bytes) -> tuple[int, float]:
    """Status, and milliseconds until the answer was there. Raises CommandError."""
    began = time.perf_counter()
    try:
        with httpx.Client(timeout=PATIENCE, follow_redirects=False) as client:
            answer = client.request(method, url, headers=dict(headers), content=content)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CommandError(f"{_without_token(url)}: no answer ({type(error).__name__}); is it running?") from None
    return answer.status_code, (time.perf_counter() - began) * 1000


# --- what became of it -------------------------------------------------------------------------------------------


def _database(state_dir: Path, resources: ExitStack) -> Engine | None:
    """None where there is none in sight; nothing is started for it."""
    url = context.url_of_environment() or context.running(state_dir).get("database_url")
    if not url:
        return None
    opened = engine(str(url))
    resources.callback(opened.dispose)
    return opened


def _watched(database: Engine, endpoint: str, mark: str, began: datetime) -> Became | None:
    """What became of the sample; the last that was seen where it is not settled in time. None: it never came."""
    deadline = time.monotonic() + SETTLED_WITHIN
    became: Became | None = None
    while time.monotonic() < deadline:
        became = _found(database, endpoint, mark, began)
        if became is not None and became.state != State.RECEIVED:
            return became
        time.sleep(STEP)
    return became


def _found(database: Engine, endpoint: str, mark: str, began: datetime) -> Became | None:
    columns = deliveries.c
    ours = select(deliveries).where(
        columns.endpoint == endpoint, columns.received_at >= began - EARLY, columns.headers.contains([[HEADER, mark]])
    )
    with database.connect() as connection:
        row = connection.execute(ours).one_or_none()
        if row is None:
            return None
        spoken = (
            select(bookings.c.external_id, bookings.c.status)
            .join(events, events.c.booking_id == bookings.c.id)
            .where(events.c.delivery_id == row.id)
            .distinct()
            .order_by(bookings.c.external_id)
        )
        told = [(each.external_id, each.status) for each in connection.execute(spoken)]
    return Became(delivery_id=row.id, state=row.state, reason=row.reason, error=row.error, bookings=told)


# --- how it is told ----------------------------------------------------------------------------------------------


def told(sent: Sent) -> str:
    """For a person."""
    lines = [f"{sent.url} answered {sent.status} in {sent.milliseconds:.0f} ms"]
    if sent.became is None:
        return "\n".join([*lines, f"what became of it: {sent.unseen}"])
    became = sent.became
    reason = f" ({became.reason})" if became.reason else ""
    lines.append(f"delivery {became.delivery_id}: {became.state}{reason}")
    lines += [f"  {line}" for line in (became.error or "").splitlines()]
    lines += [f"booking {name}: {status}" for name, status in became.bookings]
    return "\n".join(lines)


def document(sent: Sent) -> dict[str, Any]:
    """For a program."""
    became = sent.became
    return {
        "url": sent.url,
        "status": sent.status,
        "milliseconds": round(sent.milliseconds, 1),
        "delivery": became
        and {
            "id": str(became.delivery_id),
            "state": became.state,
            "reason": became.reason,
            "error": became.error,
            "bookings": [{"external_id": name, "status": status} for name, status in became.bookings],
        },
        "unseen": sent.unseen,
    }
