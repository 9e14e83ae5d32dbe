"""The command: finds what there is to look at, has every check look, and shows what they found.

Nothing is started and nothing is changed, so that it can be asked at any time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import typer
from redis import Redis
from redis.exceptions import RedisError
from rich.console import Console
from rich.markup import escape
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from console import context, show
from console.doctor import access, place, servers, work
from console.doctor.finding import Finding, Verdict, fail, warn
from console.services import redis_url
from schemas.delivery import now
from schemas.endpoints import SECRET, Config, ConfigError, path
from workers.database import engine
from workers.registry import discover

COLOURS: Final[Mapping[Verdict, str]] = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """Where to look."""

    config_file: Path
    state_dir: Path
    online: bool = False
    """Also at what lies outside: our public address, the providers' APIs."""


def run(wish: Wish, *, as_json: bool) -> None:
    """The command; exit code 1 where something is broken."""
    findings = list(examined(wish, os.environ))
    if as_json:
        typer.echo(show.as_json({"findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        told(findings)
    if any(finding.verdict is Verdict.FAIL for finding in findings):
        raise SystemExit(1)


def examined(wish: Wish, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Every finding, in the order of a reader's interest."""
    found, config = place.configuration(wish.config_file)
    yield found
    if config is not None:
        yield place.variables(config, environment)
    yield place.secret(wish.state_dir, environment)
    yield from _redis(wish, environment)
    with _database(wish) as (found_there, database):
        yield from found_there
        yield from _spool(wish, environment)
        if config is not None:
            yield from _access(wish, config, environment, database)
    if wish.online:
        yield access.public_url(environment.get("RESERVOIR_PUBLIC_URL"), _hook(wish, config, environment))


def told(findings: Iterable[Finding]) -> None:
    """A line each."""
    console = Console(soft_wrap=True, highlight=False)
    for finding in findings:
        mend = f" [dim]→[/] {escape(finding.mend)}" if finding.mend else ""
        verdict = f"[{COLOURS[finding.verdict]}]{finding.verdict:<4}[/]"
        console.print(f"{verdict}  {escape(finding.name)}: {escape(finding.text)}{mend}")


# --- Redis -------------------------------------------------------------------------------------------------------


def _redis(wish: Wish, environment: Mapping[str, str]) -> Iterator[Finding]:
    url = environment.get("REDIS_URL") or _embedded_redis(wish.state_dir)
    if url is None:
        yield fail("Redis", "none is in sight", "start `reservoir up`, or set REDIS_URL")
        return
    try:
        client = servers.redis_client(url)
    except ValueError:
        yield fail("Redis", "REDIS_URL is no URL of a Redis", "write it as redis://host:6379/0")
        return
    with client:
        found = servers.redis(client)
        yield from found
        if len(found) > 1:
            yield from _work_in_redis(client)


def _work_in_redis(client: Redis) -> Iterator[Finding]:
    try:
        moment = now()
        yield work.inbox(client, moment)
        yield work.workers(client, moment)
        yield work.beat(client, moment)
    except (RedisError, OSError) as error:
        yield fail("Redis", f"stopped answering ({type(error).__name__})", "look at its log")


def _embedded_redis(state_dir: Path) -> str | None:
    """Of the `up` that runs over this state directory."""
    try:
        sockets = (state_dir / "sockets").readlink()
    except OSError:
        return None
    return redis_url(sockets) if (sockets / "redis.sock").exists() else None


# --- PostgreSQL --------------------------------------------------------------------------------------------------


@contextmanager
def _database(wish: Wish) -> Iterator[tuple[list[Finding], Engine | None]]:
    """What was found of it, and the way to it where it answers."""
    try:
        url = context.url_of_environment() or context.running(wish.state_dir).get("database_url")
    except ConfigError as error:
        yield [fail("PostgreSQL", str(error), "mend that")], None
        return
    if not url:
        yield [fail("PostgreSQL", "none is in sight", "start `reservoir up`, or set DATABASE_URL")], None
        return
    opened = engine(str(url))
    try:
        findings, answers = _postgres(opened)
        yield findings, opened if answers else None
    finally:
        opened.dispose()


def _postgres(opened: Engine) -> tuple[list[Finding], bool]:
    try:
        with opened.connect() as connection:
            findings = servers.postgres(connection)
    except OperationalError as error:
        said = str(error.orig).strip().split("\n", 1)[0]
        mend = "start it, look at its log, or mend DATABASE_URL; until then requests wait in the inbox"
        return [fail("PostgreSQL", f"cannot be used: {said}", mend)], False
    try:
        with opened.connect() as connection:
            findings += [work.overdue(connection, now()), work.parked(connection)]
    except DBAPIError:
        findings.append(warn("overdue", "could not be asked for", "see the migrations above"))
        return findings, False
    return findings, True


# --- the rest ----------------------------------------------------------------------------------------------------


def _spool(wish: Wish, environment: Mapping[str, str]) -> list[Finding]:
    text = environment.get("RESERVOIR_SPOOL_LIMIT", "")
    limit = int(text) if text.isdecimal() else place.SPOOL_LIMIT
    return place.spool(place.spool_dir(wish.state_dir, environment), limit, now())


def _access(wish: Wish, config: Config, environment: Mapping[str, str], database: Engine | None) -> Iterator[Finding]:
    secret = _secret(wish.state_dir, environment)
    for endpoint in config:
        provider = discover()[endpoint.provider]
        token = None
        if provider.oauth is not None and not endpoint.has("access_token"):
            if database is None or secret is None:
                yield warn(f"credentials of {endpoint.name}", "its token cannot be looked at", "see the database above")
                continue
            token, wrong = access.token_of(endpoint, database, secret)
            if wrong is not None:
                yield wrong
                continue
        yield access.credentials(endpoint, provider, token, now())
        if wish.online:
            asked = access.api(endpoint, provider, endpoint.secrets_in(environment), token)
            if asked is not None:
                yield asked


def _hook(wish: Wish, config: Config | None, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """The first endpoint's name and path, as far as both are known here."""
    secret = _secret(wish.state_dir, environment)
    if config is None or secret is None:
        return None
    first = next(iter(config))
    return first.name, path(secret, first)


def _secret(state_dir: Path, environment: Mapping[str, str]) -> str | None:
    """The installation's, where it is in sight; it is not made here."""
    try:
        return environment.get(SECRET) or (state_dir / "secret").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
