"""`make outage`: Redis away for minutes while the venues go on; then, how long until everything is applied.

It hangs, which is worse than being gone: whoever asks it hears nothing. Nobody restarts anything afterwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Final

from chaos.__main__ import played
from chaos.run import Asked, Run
from chaos.schedule import LEAD, Planned

WITHIN: Final = 60.0
"""Seconds after the return of Redis in which everything must be applied."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 only where nothing was lost, wrong or late, and all of it applied in time."""
    parser = argparse.ArgumentParser(prog="python -m chaos.outage", description="Redis away for minutes.")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long it is away (default: 5)")
    parser.add_argument("--rate", type=float, default=50.0, help="events at the venues per second (default: 50)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="path without its ending; none: no report is written")
    words = parser.parse_args(arguments)
    run = played(_asked(words.seed, words.minutes, words.rate), report=words.report)
    if run is None:
        return 1
    sys.stdout.write(f"{last_line(run, words.minutes, words.rate)}\n")
    return 0 if run.good and (run.caught_up_after or inf) <= WITHIN else 1


def _asked(seed: int, minutes: float, rate: float) -> Asked:
    away = minutes * 60
    return Asked(
        seed=seed,
        minutes=(LEAD + away) / 60,
        events=round(rate * (LEAD + away)),
        plan=[Planned(at=LEAD, name="redis stopped", lane="durability", lasts=away)],
        patience=4 * WITHIN,
    )


def last_line(run: Run, minutes: float, rate: float) -> str:
    """The numbers that the proof is about."""
    total, away = run.account.total, run.told["redis_away"]
    return (
        f"outage: minutes={minutes:g} rate={rate:g} sent={total.sent} acked={total.acked} lost={total.lost} "
        f"wrong={total.wrong} late={total.late} max_ack_ms={total.ack(1.0):.0f} p99_ack_ms={away['p99']:.0f} "
        f"applied_after_s={run.caught_up_after or inf:.1f} (limit {WITHIN:g})"
    )


if __name__ == "__main__":
    sys.exit(main())
