"""`reservoir alarms`: watch, list, test, rhythm. Thin: it finds its place, asks, and shows."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from console import context, show
from console.context import CommandError
from schemas import logs
from schemas.delivery import now
from schemas.endpoints import DEFAULT_FILE

app = typer.Typer(
    help="Be told when it goes quiet, or when a part of it needs you.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigFile = Annotated[Path, typer.Option("--config", envvar="RESERVOIR_CONFIG", help="The configuration file.")]
StateDir = Annotated[
    Path, typer.Option("--state-dir", envvar="RESERVOIR_STATE_DIR", help="Where the embedded servers keep their data.")
]
Json = Annotated[bool, typer.Option("--json", help="For a program: JSON.")]
CONFIG_FILE: Final = Path(DEFAULT_FILE)
STATE: Final = Path(".reservoir")
LISTED: Final = ("opened_at", "closed_at", "kind", "subject", "title", "detail", "times", "told", "error")
DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")


@app.command("watch")
def watch(config: ConfigFile = CONFIG_FILE, state_dir: StateDir = STATE) -> None:
    """Look every 15 seconds, and tell people once for each incident; a line of the Procfile."""
    from console.alarms.watch import watch as run

    logs.configure("alarms")
    run(context.read_config(config), state_dir)


@app.command("list")
def list_incidents(
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Json = False,
    since: Annotated[str, typer.Option(help="Also those that were seen since then: 24h, 7d, 2026-11-20.")] = "7d",
) -> None:
    """The incidents, the open ones first."""
    from console.alarms.ledger import listed

    first = context.instant(since, now())
    with context.database(state_dir) as engine:
        rows = [{**row, "told": _told(row)} for row in listed(engine, first)]
    if as_json:
        show.json_list(rows, sys.stdout)
    elif rows:
        show.table(rows, LISTED)
    else:
        typer.echo("no incident is open, and there was none lately")


def _told(row: dict[str, Any]) -> str:
    if row["notified_at"] is None:
        return "no"
    return f"{row['sent']} sent, {row['waiting']} waiting" if row["sent"] or row["waiting"] else "no channel"


@app.command("test")
def send_test(config: ConfigFile = CONFIG_FILE, state_dir: StateDir = STATE) -> None:
    """Send a test notice through every channel, and say what each answered."""
    from console.alarms.channels import NotSent, host, send
    from console.alarms.notice import for_trial
    from console.alarms.settings import targets

    read = context.read_config(config)
    told = targets(read)
    if not told:
        raise CommandError(
            f"{read.file}: there is no channel; add [alarms] with webhook, smtp and email_to, or command"
        )
    notice, failed = for_trial(now(), host()), False
    for channel, target in told.items():
        try:
            typer.echo(f"{channel}: sent ({send(target, notice)})")
        except NotSent as error:
            typer.echo(f"{channel}: NOT sent ({error})")
            failed = True
    if failed:
        raise SystemExit(1)


@app.command("rhythm")
def rhythm(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="An endpoint's name in the configuration.")],
    config: ConfigFile = CONFIG_FILE,
    state_dir: StateDir = STATE,
    as_json: Json = False,
) -> None:
    """What was learned of an endpoint, and how long it may be silent now."""
    from console.alarms.diary import Diary

    ours = context.endpoint_of(context.read_config(config), endpoint)
    at = now()
    with context.database(state_dir) as engine, engine.connect() as connection:
        heard = Diary({ours.name: ours}).heard(connection, at)[ours.name]
    facts = _facts(heard, at)
    if as_json:
        typer.echo(show.as_json({**facts, "week": heard.rhythm.week}, indent=2))
        return
    if heard.rhythm.week is not None:
        _show_week(heard.rhythm.week)
    for name, value in facts.items():
        typer.echo(f"{name:>20}  {value}")


def _facts(heard: Any, at: Any) -> dict[str, Any]:
    from console.alarms.findings import NEVER, silent_until
    from console.alarms.rhythm import in_hours

    learned, until, last = heard.rhythm, silent_until(heard), heard.last
    facts: dict[str, Any] = {
        "endpoint": heard.endpoint.name,
        "time zone": str(learned.zone),
        "signs of life": f"{len(learned.signs)} spells of five minutes with a webhook, in twelve weeks",
        "last webhook": last or "never",
    }
    if heard.endpoint.silence is not None:
        facts["limit"] = f"silence = {heard.endpoint.silence}, from the configuration"
    elif learned.week is None:
        facts["limit"] = f"{learned.wide:.0f} h of silence; three weeks and twenty signs of life are too few yet"
    else:
        facts["limit"] = f"{learned.limit:.1f} signs of life that do not come"
        facts["forgiven"] = f"{learned.forgiven} closed days"
        if last is not None:
            facts["level"] = f"{learned.level(in_hours(last)):.0%} of the usual"
            facts["missing now"] = f"{learned.swallowed(in_hours(last), in_hours(at)):.1f} signs of life"
    if last is not None and until != NEVER:
        facts["allowed gap"] = _in_hours(until - last)
        facts["alarm"] = until if until > at else f"since {until}"
    return facts


def _in_hours(gap: timedelta) -> str:
    return f"{gap.total_seconds() / 3600:.1f} h"


def _show_week(week: tuple[float, ...]) -> None:
    shown = Table(
        "hour", *DAYS, box=None, header_style="bold", pad_edge=False, title="signs of life in an hour, 12 at most"
    )
    for hour in range(24):
        shown.add_row(f"{hour:02}", *(f"{week[day * 24 + hour]:.1f}" for day in range(7)))
    Console().print(shown)
