"""`python -m chaos`: the fault ledger. `make chaos EVENTS=… SEED=… MINUTES=…` runs it."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from rich.console import Console

from chaos import sabotage
from chaos.balancer import NoBalancer, program
from chaos.faults import BY_NAME
from chaos.report import as_markdown
from chaos.run import Asked, Run, play
from chaos.screen import Screen
from console.trial import TrialFailed

LISTED: Final = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only where nothing was lost, wrong or late."""
    words = _parser().parse_args(arguments)
    asked = Asked(
        seed=words.seed,
        minutes=words.minutes,
        events=words.events,
        without=words.without,
        faults=words.fault or (),
        patience=words.patience,
        keep_log=words.log,
        balanced=program() is not None and not words.direct,
    )
    run = played(asked, report=words.report)
    if run is None:
        return 1
    sys.stdout.write(f"{run.last_line}\n")
    return 0 if run.good else 1


def played(asked: Asked, *, report: Path | None) -> Run | None:
    """The run, watched and reported; None where it could not begin."""
    console = Console(stderr=True)
    try:
        with Screen(console) as screen:
            run = asyncio.run(play(asked, screen))
    except (TrialFailed, NoBalancer) as error:
        console.print(str(error), style="red", markup=False)
        return None
    if report is not None:
        _write(run, report)
    _tell(run, console)
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m chaos", description="Counts what is lost under faults.")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same faults (default: 1)")
    parser.add_argument("--minutes", type=float, default=3.0, help="how long things go wrong (default: 3)")
    parser.add_argument("--events", type=int, default=20_000, help="that happen at the venues, about (default: 20000)")
    parser.add_argument("--fault", action="append", choices=sorted(BY_NAME), help="only this one; can be repeated")
    parser.add_argument("--without", choices=sorted(sabotage.WITHOUT), help="with a part taken out: must end in losses")
    parser.add_argument("--patience", type=float, default=180.0, help="seconds to settle afterwards (default: 180)")
    parser.add_argument("--direct", action="store_true", help="one receiver, and no haproxy where there is one")
    parser.add_argument("--report", type=Path, default=Path("chaos-report"), help="path without its ending")
    parser.add_argument("--log", type=Path, help="keeps what the processes printed, in this file")
    return parser


def _write(run: Run, path: Path) -> None:
    path.with_suffix(".json").write_text(json.dumps(run.told, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(as_markdown(run.told), encoding="utf-8")


def _tell(run: Run, console: Console) -> None:
    console.print(as_markdown(run.told), markup=False, highlight=False, soft_wrap=True)
    for one in run.account.differences[:LISTED]:
        console.print(f"{one.kind}: {one.text}", style="red", markup=False, highlight=False, soft_wrap=True)
    more = len(run.account.differences) - LISTED
    if more > 0:
        console.print(f"… and {more} more", style="red", markup=False)


if __name__ == "__main__":
    sys.exit(main())
