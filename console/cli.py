"""The `reservoir` command. Each command is thin: it finds its place, asks `queries` or a worker's part, and shows.

Whatever can be expected to go wrong is one line on stderr: exit code 2 for the configuration, 1 for the rest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version as installed_version
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn
from uuid import UUID

import typer
from sqlalchemy import exc

from console import context, queries, show
from console.alarms.commands import app as alarms
from console.context import CommandError
from console.services import ServiceError
from schemas import logs
from schemas.delivery import State, now
from schemas.endpoints import DEFAULT_FILE, ConfigError, path

STATE_DIR: Final = ".reservoir"
PAGE: Final = 50
"""Rows that a table shows when nothing else is asked for."""
MANY: Final = 20
"""So many deliveries are run again without a question."""

ConfigFile = Annotated[Path, typer.Option("--config", envvar="RESERVOIR_CONFIG", help="The configuration file.")]
StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="RESERVOIR_STATE_DIR", help="Where the embedded servers keep their data.")
]
Json = Annotated[bool, typer.Option("--json", help="For a program: JSON, and all rows.")]
OfEndpoint = Annotated[str | None, typer.Option("--endpoint", help="Only this endpoint.")]
Limit = Annotated[int | None, typer.Option("--limit", min=1, help=f"At most so many; a table shows {PAGE}.")]
Name = Annotated[str, typer.Argument(metavar="ENDPOINT", help="An endpoint's name in the configuration.")]

CONFIG_FILE: Final = Path(DEFAULT_FILE)
STATE: Final = Path(STATE_DIR)

_SETTINGS: Final[Mapping[str, Any]] = {
    "no_args_is_help": True,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(help="Booking webhooks of five providers, in one table that is right.", **_SETTINGS)
bookings = typer.Typer(help="What is booked.", **_SETTINGS)
deliveries = typer.Typer(help="What came in, and what became of it.", **_SETTINGS)
lockme = typer.Typer(help="The login at Lockme, without which its webhooks have no content.", **_SETTINGS)
app.add_typer(bookings, name="bookings")
app.add_typer(deliveries, name="deliveries")
app.add_typer(lockme, name="lockme")
app.add_typer(alarms, name="alarms")


def main() -> None:
    """The entry point."""
    try:
        app(prog_name="reservoir")
    except ConfigError as error:
        _fail(str(error), code=2)
    except (CommandError, ServiceError) as error:
        _fail(str(error))
    except exc.ProgrammingError as error:
        _fail(f"the database lacks our tables or columns ({_said(error)}); run `reservoir migrate`")
    except exc.OperationalError as error:
        _fail(f"PostgreSQL cannot be used: {_said(error)}")


def _fail(line: str, code: int = 1) -> NoReturn:
    typer.echo(f"reservoir: {line}", err=True)
    raise SystemExit(code)


def _said(error: exc.DBAPIError) -> str:
    """The first line of what the driver says; it names hosts and tables, never a password or a row."""
    return str(error.orig).strip().split("\n", 1)[0]


@app.callback()
def everywhere(
    config: Annotated[Path | None, typer.Option("--config", help="The configuration file.")] = None,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="The state directory.")] = None,
) -> None:
    """Every command takes both; in front of it they count for it as the environment does."""
    for name, value in (("RESERVOIR_CONFIG", config), ("RESERVOIR_STATE_DIR", state_dir)):
        if value is not None:
            os.environ[name] = str(value)
    # What a command has to say itself is for people, and is printed. A process that stays sets up its log anew.
    logs.configure("cli", "WARNING", crashes=False)


@app.command()
def up(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The receiver's port; 0 takes a free one.")] = 8000,
    host: Annotated[str, typer.Option(help="The address that the receiver listens on.")] = "127.0.0.1",
    scale: Annotated[
        list[str] | None,
        typer.Option("--scale", metavar="NAME=N", help="How often a process runs: --scale web=2 --scale beat=0."),
    ] = None,
) -> None:
    """Start everything: embedded servers where no URL is set, migrations, receivers, workers, beat, Flower."""
    from console.up import Wish, scale_of
    from console.up import up as run

    run(Wish(config_file=config, state_dir=state_dir, host=host, port=port, scale=scale_of(scale or ())))


@app.command()
def restart(config: ConfigFile = CONFIG_FILE, state_dir: StateDir = STATE) -> None:
    """Replace the processes of the running `up` one by one, receivers first, without a gap."""
    from console.up import restart as run

    typer.echo(f"replaced: {' '.join(run(state_dir))}")


@app.command()
def urls(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Json = False,
    base_url: Annotated[
        str | None,
        typer.Option(envvar="RESERVOIR_PUBLIC_URL", help="The public address, such as https://hooks.example.org."),
    ] = None,
) -> None:
    """What to paste into each provider's dashboard."""
    endpoints = context.read_config(config)
    secret = context.secret(state_dir)
    base = (base_url or context.running(state_dir).get("url", "http://127.0.0.1:8000")).rstrip("/")
    rows = [
        {"endpoint": endpoint.name, "provider": endpoint.provider, "url": base + path(secret, endpoint)}
        for endpoint in endpoints
    ]
    _show(rows, show.URLS, as_json, None)


@app.command()
def migrate(config: ConfigFile = CONFIG_FILE, state_dir: StateDir = STATE) -> None:
    """Bring the database to the newest schema; safe to run again."""
    from workers.migrate import upgrade

    with context.database_url(state_dir) as url:
        upgrade(url)
    typer.echo("the database is at the newest schema")


@app.command()
def metrics(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    host: Annotated[str, typer.Option(envvar="METRICS_HOST", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="METRICS_PORT", min=0, max=65535, help="0 takes a free one.")] = 9464,
) -> None:
    """Tell Prometheus what the processes of this machine count, and what waits where."""
    from console.metrics import serve

    serve(config, state_dir, host, port)


@app.command()
def flower(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    host: Annotated[str, typer.Option("--address", envvar="FLOWER_HOST", help="The address.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="FLOWER_PORT", min=0, max=65535, help="The port.")] = 5555,
) -> None:
    """Run Flower, which shows tasks and retries; FLOWER_BASIC_AUTH has its name:password."""
    from console.flower import serve

    serve(host, port)


@app.command()
def version(config: ConfigFile = CONFIG_FILE, state_dir: StateDir = STATE) -> None:
    """Print the version."""
    typer.echo(f"reservoir {installed_version('reservoir')}")


@app.command()
def doctor(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Annotated[bool, typer.Option("--json", help="For a program: all findings, as JSON.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Ask the public URL and the providers' APIs too; changes nothing there.")
    ] = False,
) -> None:
    """Look at everything that this installation stands on; each line that is not ok has its mend."""
    from console.doctor.command import Wish, run

    run(Wish(config_file=config, state_dir=state_dir, online=online), as_json=as_json)


@app.command()
def send(
    provider: Annotated[str | None, typer.Argument(help="Who is said to send it: lockme, reservekit …")] = None,
    situation: Annotated[str | None, typer.Argument(help="What happens: create, cancel …")] = None,
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Annotated[bool, typer.Option("--json", help="For a program: JSON.")] = False,
    to: Annotated[str | None, typer.Option("--to", metavar="URL", help="Another URL than this installation's.")] = None,
    endpoint: Annotated[str | None, typer.Option("--endpoint", help="Not the provider's first one.")] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show what can be sent.")] = False,
) -> None:
    """Post a sample as a provider would, and tell what became of it."""
    from console import sending

    if listing:
        _show(sending.listed(), sending.LISTED, as_json, None)
        return
    if provider is None or situation is None:
        raise CommandError("say what: a provider and a situation; `reservoir send --list` shows all")
    wish = sending.Wish(
        config_file=config, state_dir=state_dir, provider=provider, situation=situation, to=to, endpoint=endpoint
    )
    sending.run(wish, as_json=as_json)


@app.command()
def replay(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Annotated[bool, typer.Option("--json", help="For a program: all that would change, as JSON.")] = False,
    since: Annotated[
        str | None, typer.Option(help="What came since then: 90m, 24h, 7d, 2026-11-20 or 2026-11-20T18:30 (UTC).")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Of that, only what came before then.")] = None,
    endpoint: OfEndpoint = None,
    state: Annotated[State | None, typer.Option(help="Only deliveries in this state.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only deliveries with this reason.")] = None,
    parser_before: Annotated[
        int | None, typer.Option("--parser-before", metavar="N", help="Only what a parser older than N has read.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")] = False,
    in_earnest: Annotated[bool, typer.Option("--apply", help="Do it.")] = False,
    limit: Limit = None,
) -> None:
    """Read stored deliveries again with today's code, and show, field by field, what that changes."""
    from console import replaying

    moment, endpoints = now(), context.read_config(config)
    if endpoint is not None:
        context.endpoint_of(endpoints, endpoint)
    choice = replaying.choice_of(
        dry_run=dry_run,
        in_earnest=in_earnest,
        since=context.instant(since, moment) if since is not None else None,
        until=context.instant(until, moment) if until is not None else None,
        endpoint=endpoint,
        state=state,
        reason=reason,
        parser_before=parser_before,
    )
    with context.database(state_dir) as engine:
        replaying.run(engine, endpoints, choice, in_earnest=in_earnest, as_json=as_json, limit=limit or PAGE)


# --- bookings --------------------------------------------------------------------------------------------------


@bookings.command("list")
def list_bookings(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Json = False,
    endpoint: OfEndpoint = None,
    limit: Limit = None,
) -> None:
    """What is booked, in the order of the visits."""
    with context.database(state_dir) as engine:
        rows = queries.bookings(engine, endpoint=endpoint, limit=_asked(limit, as_json))
        _show(_known(rows, endpoint, config), show.BOOKINGS, as_json, limit)


@bookings.command()
def rebuild(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    endpoint: OfEndpoint = None,
    from_raw: Annotated[bool, typer.Option(help="Read the raw deliveries again, with today's parsers.")] = False,
) -> None:
    """Compute the bookings again from their events."""
    from workers.rebuild import Rebuild
    from workers.registry import discover

    endpoints = context.read_config(config)
    if endpoint is not None:
        context.endpoint_of(endpoints, endpoint)
    with context.database(state_dir) as engine:
        again = Rebuild(
            engine=engine,
            config=endpoints,
            providers=discover(),
            endpoint=endpoint,
        )
        report = again.run(from_raw=from_raw)
    for identity, reason in report.unread.items():
        typer.echo(f"delivery {identity} could not be read: {reason}", err=True)
    typer.echo(f"rebuild: deliveries={report.deliveries} bookings={report.bookings} changed={report.changed}")


# --- deliveries ------------------------------------------------------------------------------------------------


@deliveries.command("list")
def list_deliveries(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Json = False,
    state: Annotated[State | None, typer.Option(help="Only deliveries in this state.")] = None,
    endpoint: OfEndpoint = None,
    reason: Annotated[str | None, typer.Option(help="Only deliveries with this reason.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only what came since then: 90m, 24h, 7d, 2026-11-20 or 2026-11-20T18:30 (UTC).")
    ] = None,
    limit: Limit = None,
) -> None:
    """What came in, the newest first."""
    first = context.instant(since, now()) if since is not None else None
    columns = show.PARKED if state == State.PARKED else show.DELIVERIES
    with context.database(state_dir) as engine:
        found = queries.deliveries(
            engine, endpoint=endpoint, state=state, reason=reason, since=first, limit=_asked(limit, as_json)
        )
        _show(_known(found, endpoint, config), columns, as_json, limit)


@deliveries.command("show")
def show_delivery(
    identity: Annotated[str, typer.Argument(metavar="ID", help="The delivery's id.")],
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Json = False,
) -> None:
    """One delivery: the request as it came, and what became of it."""
    wanted = _identity(identity)
    with context.database(state_dir) as engine:
        row = queries.delivery(engine, wanted)
    if row is None:
        raise CommandError(f"there is no delivery {wanted}; `reservoir deliveries list` shows them")
    if as_json:
        typer.echo(show.as_json(show.delivery(row), indent=2))
    else:
        show.delivery_page(row)


@deliveries.command("retry")
def retry_deliveries(
    ids: Annotated[list[str] | None, typer.Argument(metavar="ID…", help="Deliveries by their ids.")] = None,
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Annotated[bool, typer.Option("--json", help="For a program: the ids, as JSON.")] = False,
    state: Annotated[State | None, typer.Option(help="All deliveries in this state.")] = None,
    reason: Annotated[str | None, typer.Option(help="All deliveries with this reason.")] = None,
    endpoint: Annotated[str | None, typer.Option(help="Of those, only this endpoint's.")] = None,
    ask_again: Annotated[
        bool, typer.Option("--ask-again", help="Forget what the provider's API answered, and ask it anew.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help=f"Do not ask, also where it is more than {MANY}.")] = False,
) -> None:
    """Run deliveries again: dead letters whose cause is gone, or what was read wrongly."""
    from workers.replay import Choice, chosen, replay

    if bool(ids) == bool(state or reason) or (ids and endpoint):
        _fail("say which: either ids, or --state or --reason, with --endpoint if you like; such as --state parked", 2)
    choice = Choice(ids=[_identity(each) for each in ids or ()], state=state, reason=reason, endpoint=endpoint)
    with context.database(state_dir) as engine:
        found = chosen(engine, choice)
        missing = [str(each) for each in sorted({*choice.ids} - {*found})]
        if missing:
            raise CommandError(f"there is no delivery {', '.join(missing)}; nothing was done")
        if not found and endpoint is not None:
            context.endpoint_of(context.read_config(config), endpoint)
        if len(found) > MANY and not ids and not yes:
            _ask(len(found))
        done = replay(engine, found, now(), ask_again=ask_again)
    for identity in done.held:
        typer.echo(
            f"delivery {identity} is in a worker's hands, or will be within seconds; it is left as it is", err=True
        )
    if as_json:
        typer.echo(show.as_json({"again": done.again, "held": done.held}, indent=2))
    else:
        typer.echo(f"retry: again={len(done.again)} held={len(done.held)}")
    if done.held and not done.again:
        raise SystemExit(1)


def _ask(count: int) -> None:
    """Raises CommandError where there is nobody to be asked."""
    if not sys.stdin.isatty():
        raise CommandError(f"{count} deliveries would be run again; say --yes if that is what you want")
    typer.confirm(f"Run {count} deliveries again?", abort=True, err=True)


def _identity(text: str) -> UUID:
    """Raises CommandError."""
    try:
        return UUID(text)
    except ValueError:
        raise CommandError(f"{text!r} is no delivery's id; `reservoir deliveries list` shows them") from None


def _asked(limit: int | None, as_json: bool) -> int | None:
    """How many rows the database must give: one more than a table shows tells whether there are more."""
    return limit if limit is not None or as_json else PAGE + 1


def _known(rows: Iterator[queries.Row], endpoint: str | None, config: Path) -> Iterator[queries.Row]:
    """The rows; where there are none, the endpoint's name may be wrong. Raises CommandError."""
    first = next(rows, None)
    if first is not None:
        return chain([first], rows)
    if endpoint is not None:
        context.endpoint_of(context.read_config(config), endpoint)
    return iter(())


def _show(rows: Any, columns: tuple[str, ...], as_json: bool, limit: int | None) -> None:
    if as_json:
        show.json_list(rows, sys.stdout)
    else:
        show.table(rows, columns, limit or PAGE)


# --- Lockme ----------------------------------------------------------------------------------------------------


@lockme.command("login")
def lockme_login(
    endpoint: Name,
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where we listen for the way back.")] = 8976,
    redirect_uri: Annotated[
        str | None, typer.Option(help="The redirect URI as it is registered at Lockme, where it is another one.")
    ] = None,
    paste: Annotated[bool, typer.Option("--paste", help="Paste the address that the browser ends at.")] = False,
) -> None:
    """Log in at Lockme in a browser, and keep the token."""
    from console import login

    ours = context.endpoint_of(context.read_config(config), endpoint)
    wanted = login.Wish(port=port, redirect_uri=redirect_uri, paste=paste)
    with context.database(state_dir) as engine:
        login.log_in(ours, wanted, login.keeper(engine, context.secret(state_dir)))
    typer.echo(f"the token of {endpoint} is kept")


@lockme.command("token")
def lockme_token(
    endpoint: Name,
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    file: Annotated[Path | None, typer.Option("--file", help="The token JSON; else it is read from stdin.")] = None,
) -> None:
    """Keep the token JSON that Lockme's panel shows."""
    from console import login

    ours = context.endpoint_of(context.read_config(config), endpoint)
    try:
        text = sys.stdin.read() if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise CommandError(f"{file or 'the input'} cannot be read") from None
    with context.database(state_dir) as engine:
        login.paste(ours, text, login.keeper(engine, context.secret(state_dir)))
    typer.echo(f"the token of {endpoint} is kept")
