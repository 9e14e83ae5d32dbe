"""`python -m simulators`: plays venues against webhook URLs, with their APIs and a panel on one port.

    python -m simulators --port 9000 lockme=http://127.0.0.1:8000/hooks/lockme-venue/… reservekit

A venue with a URL lives through a busy day; one without only holds its API ready. What Reservoir has to know of the
venues (the tables for reservoir.toml and the environment, all of it invented) is printed at the start.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from random import Random
from typing import Any

import uvloop

from schemas.endpoints import Endpoint
from simulators.clock import Clock
from simulators.ledger import Ledger
from simulators.server import Server, discover
from simulators.venue import Venue


def main(arguments: list[str] | None = None) -> int:
    """Runs until the days are over; with `--stay`, or without any URL, until Ctrl-C. Returns the exit code."""
    try:
        uvloop.run(_play(_parser().parse_args(arguments)))
    except KeyboardInterrupt:
        _say("stopped")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m simulators", description="Plays providers against webhook URLs.")
    names = ", ".join(discover())
    parser.add_argument(
        "venues", nargs="+", metavar="PROVIDER[/ENDPOINT][=URL]", help=f"providers: {names}; ENDPOINT: <provider>-venue"
    )
    parser.add_argument("--port", type=int, default=0, help="of the APIs and the panel; default: a free one")
    parser.add_argument("--bookings", type=int, default=25, help="per venue (default: 25)")
    parser.add_argument("--speed", type=float, default=2000.0, help="simulated seconds per second (default: 2000)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same day (default: 1)")
    parser.add_argument("--stay", action="store_true", help="keep the APIs and the panel after the day")
    return parser


async def _play(asked: argparse.Namespace) -> None:
    ledger, clock = Ledger(), Clock(datetime.now(UTC).replace(microsecond=0), asked.speed)
    venues = [_venue(text, ledger, clock, Random(f"{asked.seed} {text.partition('=')[0]}")) for text in asked.venues]
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(Server(venues, port=asked.port))
        for venue in venues:
            await stack.enter_async_context(venue)
        _say(f"panel: {server.base_url}/")
        for venue in venues:
            _introduce(venue, server.api_url(venue))
        connected = [venue for venue in venues if venue.hook_url]
        await asyncio.gather(*(venue.busy_day(asked.bookings) for venue in connected))
        if connected:
            taken = sum(counted.acked for counted in ledger.counted.values())
            _say(f"sent={len(ledger.sent)} taken={taken} bookings={len(ledger.truth)}")
        if asked.stay or not connected:
            await asyncio.Event().wait()


def _venue(text: str, ledger: Ledger, clock: Clock, rng: Random) -> Venue:
    name, _, url = text.partition("=")
    provider, _, endpoint = name.partition("/")
    if provider not in discover():
        raise SystemExit(f"{provider!r} is no provider here; use one of {', '.join(discover())}")
    return discover()[provider](
        endpoint=endpoint or f"{provider}-venue", hook_url=url, ledger=ledger, clock=clock, rng=rng
    )


def _introduce(venue: Venue, api_url: str) -> None:
    """The endpoint's table as TOML, and its secrets as the environment."""
    _say(f"\n[endpoints.{venue.endpoint}]")
    for key, value in venue.settings(api_url).items():
        _say(f"{key} = {_toml(value)}")
    variable = Endpoint(name=venue.endpoint, provider=venue.provider).variable
    for what, secret in venue.secrets().items():
        _say(f"# {variable(what)}={secret}")


def _toml(value: Any) -> str:
    """Scalars are spelled as in JSON, tables are not."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + " }"
    return json.dumps(value)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
