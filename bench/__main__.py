"""`python -m bench`: every contender side by side. `make bench` runs it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from bench.contenders import contenders
from bench.figures import Results
from bench.ground import Ground, GroundFailed
from bench.latency import at_rate
from bench.machine import facts, facts_of
from bench.plot import NoPlot, draw, panels
from bench.receiver import Refused, Say, inbox_memory, rounds, soak
from bench.report import as_json, as_markdown
from bench.worker import burst
from console.services import ServiceError


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How much of everything."""

    turns: int = 11
    """Rounds of each contender on the receiver's side. Many and short ones: a machine's speed comes and goes, and what
    stands next to each other in time is compared."""
    seconds: float = 2.0
    """Of one of them, after its warm-up."""
    rounds: int = 5
    """Of each contender on the workers' side, and from end to end."""
    soak: int = 1_000_000
    """Requests."""
    deliveries: int = 50_000
    """Of one burst."""
    rate: float = 100.0
    """Requests a second, end to end."""
    rate_seconds: float = 30.0


QUICK: Final = Size(turns=2, seconds=1.5, rounds=2, soak=100_000, deliveries=5_000, rate_seconds=10.0)
"""To see that everything runs; its numbers are not worth keeping."""
HELP: Final[Mapping[str, str]] = {
    "turns": "rounds of each contender on the receiver's side",
    "seconds": "of one of them",
    "rounds": "of each contender on the workers' side, and from end to end",
    "soak": "requests while the receiver's memory is watched",
    "deliveries": "of one burst",
    "rate": "requests a second, end to end",
    "rate_seconds": "how long at that rate",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part of the run, on a ground of its own."""

    run: Callable[[Ground, Size, Say], Results]
    with_postgres: bool = True


def _receiver(ground: Ground, size: Size, say: Say) -> Results:
    figures = rounds(ground, contenders(ground), size.turns, size.seconds, say)
    return Results(figures=figures, inbox=inbox_memory(ground, say))


def _soak(ground: Ground, size: Size, say: Say) -> Results:
    return Results(soak=soak(ground, size.soak, say))


def _worker(ground: Ground, size: Size, say: Say) -> Results:
    return Results(figures=burst(ground, size.deliveries, size.rounds, say))


def _latency(ground: Ground, size: Size, say: Say) -> Results:
    return Results(
        figures=[at_rate(ground, size.rate, size.rate_seconds, say, number) for number in range(size.rounds)]
    )


PARTS: Final[Mapping[str, Part]] = {
    "receiver": Part(run=_receiver, with_postgres=False),
    "soak": Part(run=_soak, with_postgres=False),
    "worker": Part(run=_worker),
    "latency": Part(run=_latency),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where an acknowledged request was not found, or a part failed; a missed target is only told."""
    words = _parser().parse_args(arguments)
    results, told, failed = measured(words.only or list(PARTS), _size(words), words.folder)
    if "servers" not in told:
        return 1  # the servers did not come up, so there is nothing to tell
    report = as_json(results, told)
    _write(report, results, words.report)
    say(as_markdown(report))
    for line in report["missed"]:
        say(line)
    if results.lost:
        say(f"{results.lost} acknowledged requests were not found")
    sys.stdout.write(f"{report['last_line']}\n")
    return 1 if failed or results.lost or (words.strict and report["missed"]) else 0


def measured(names: Sequence[str], size: Size, folder: Path | None) -> tuple[Results, dict[str, Any], bool]:
    """What came of these parts, what there is to know of where they ran, and whether one of them failed."""
    results, told, failed = Results(), facts(), False
    for name in names:
        part = PARTS[name]
        try:
            with (
                tempfile.TemporaryDirectory(prefix="reservoir-bench-", dir=folder, ignore_cleanup_errors=True) as place,
                Ground(Path(place), with_postgres=part.with_postgres) as ground,
            ):
                told |= facts_of(ground)
                results += part.run(ground, size, say)
        except (GroundFailed, Refused, ServiceError) as error:
            say(f"{name}: {error}")
            failed = True
    return results, told, failed


def say(line: str) -> None:
    """For whoever watches; stdout is for the last line."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Every contender side by side, with ratios.")
    parser.add_argument("--only", action="append", choices=PARTS, help="this part; can be repeated")
    parser.add_argument("--quick", action="store_true", help="a look in two minutes; its numbers are not worth keeping")
    for name, usual in asdict(Size()).items():
        told = f"{HELP[name]} (default: {usual:,})"
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(usual), help=told)
    parser.add_argument("--strict", action="store_true", help="a missed target is a failure")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be measured (default: the temporary one)")
    parser.add_argument("--report", type=Path, default=Path("bench-report"), help="path without its ending")
    return parser


def _size(words: argparse.Namespace) -> Size:
    given = {name: getattr(words, name) for name in HELP}
    return replace(QUICK if words.quick else Size(), **{name: one for name, one in given.items() if one is not None})


def _write(report: Mapping[str, Any], results: Results, path: Path) -> None:
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    path.with_suffix(".md").write_text(as_markdown(report), encoding="utf-8")
    try:
        draw(panels(results), path.with_suffix(".png"))
    except NoPlot as error:
        say(f"no picture: {error}")


if __name__ == "__main__":
    sys.exit(main())
