"""What a run leaves behind: `bench-report.json`, `bench-report.md`, `bench-report.png`.

    python -m bench.report bench-report.json --docs docs/performance.md

writes the tables of a report between the marks of the document.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.figures import (
    BARE,
    BURST,
    CONNECTIONS,
    CPU,
    DISK,
    NO_OP,
    OTHERS,
    P50,
    P99,
    PER_SECOND,
    RSS,
    Figure,
    InboxMemory,
    Results,
    Soak,
    Value,
    contenders,
    kind_of,
    loads,
    middle,
    ratio,
)
from bench.targets import TARGETS, Target, last_line, missed, numbers, shown
from chaos.report import write_into

BEGIN: Final = "<!-- bench: begin -->"
END: Final = "<!-- bench: end -->"
AGAINST: Final[Mapping[str, str]] = {CONNECTIONS: BARE, BURST: NO_OP}
"""Kind of load → the contender that the others are compared with."""
HEADINGS: Final = (
    "load",
    "contender",
    "a second",
    "of it",
    "p50 ms",
    "p99 ms",
    "of it",
    "CPU ms each",
    "RSS MiB",
    "found of acknowledged",
)


def as_json(results: Results, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a program may want to know of a run."""
    found = numbers(results)
    return {
        **facts,
        "last_line": last_line(found),
        "numbers": found,
        "missed": missed(found),
        "lost": results.lost,
        "figures": [asdict(figure) for figure in results.figures],
        "soak": asdict(results.soak) if results.soak else None,
        "inbox": asdict(results.inbox) if results.inbox else None,
    }


def results_of(told: Mapping[str, Any]) -> Results:
    """The same values again. Raises KeyError, TypeError where it is no report of ours."""
    return Results(
        figures=[Figure(**figure) for figure in told["figures"]],
        soak=Soak(**told["soak"]) if told["soak"] else None,
        inbox=InboxMemory(**told["inbox"]) if told["inbox"] else None,
    )


# --- the tables ------------------------------------------------------------------------------------------------


def as_markdown(told: Mapping[str, Any]) -> str:
    """Where it ran, what was measured, what should be reached."""
    results = results_of(told)
    parts = [
        _about(told),
        _quiet(results),
        _measured(results),
        _refused(results),
        _disk(results),
        _memory(results),
        _targets(numbers(results)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(told: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {one}" for name, one in {**told["servers"], **told["libraries"]}.items())
    return (
        f"{told['date']}: {told['machine']}, {told['processor']}, kernel {told['kernel']}; {told['file_system']}, "
        f"where a small write is synced in {told['sync_ms']:g} ms; {_cores(told)}. {versions}.\n\n"
        "Medians over the rounds; ratios are taken within a round. "
        f"“Of it” is the share of the {BARE}'s, in a burst of the {NO_OP}'s."
    )


def _cores(told: Mapping[str, Any]) -> str:
    theirs, ours = told["client_core"], told["server_core"]
    if theirs is None:
        return "cores shared"
    return f"client, Redis and the disk's interrupts on core {theirs}, what is measured on core {ours}"


def _quiet(results: Results) -> str:
    """Whether the figures are worth something: others on the machine hit whoever has the turn."""
    shares = [share for figure in results.figures if (share := OTHERS(figure)) is not None]
    if not shares:
        return ""
    return f"Others used {median(shares):.0%} of a core meanwhile (median over the rounds; at most {max(shares):.0%})."


def _disk(results: Results) -> str:
    """What the slowest of a hundred waited for, where the disk itself stands still now and then."""
    rounds = [(figure.p99_ms, disk) for figure in results.figures if (disk := DISK(figure)) is not None]
    if not rounds:
        return ""
    told = "; ".join(f"{_cell(p99)} and {_cell(disk)}" for p99, disk in rounds)
    return (
        "The p99 from POST to row, and the slowest of a bystander's small writes that were synced on the same disk "
        f"ten times a second, in ms, round by round: {told}."
    )


def _refused(results: Results) -> str:
    rounds = [figure for figure in results.figures if figure.refused]
    if not rounds:
        return ""
    told = "; ".join(f"{one.refused:,} at {one.load} in round {one.round + 1} ({one.contender})" for one in rounds)
    return f"Answered 503, because neither Redis nor the spool could keep them in time: {told}."


def _measured(results: Results) -> str:
    figures = results.figures
    rows = [_row(figures, load, contender) for load in loads(figures) for contender in contenders(figures, load)]
    return _table(HEADINGS, rows, left=2) if rows else ""


def _row(figures: Sequence[Figure], load: str, contender: str) -> list[str]:
    def of_it(value: Value) -> float | None:
        return ratio(figures, load, contender, AGAINST.get(kind_of(load), ""), value)

    def usual(value: Value) -> float | None:
        return middle(figures, load, contender, value)

    numbers_ = [
        *(usual(PER_SECOND), of_it(PER_SECOND)),
        *(usual(P50), usual(P99), of_it(P99)),
        *(usual(CPU), usual(RSS)),
    ]
    return [load, contender, *map(_cell, numbers_), _found(figures, load, contender)]


def _found(figures: Sequence[Figure], load: str, contender: str) -> str:
    """Over all rounds."""
    counted = [
        (one.kept, one.acked)
        for one in figures
        if one.load == load and one.contender == contender and one.kept is not None and one.acked is not None
    ]
    return f"{sum(kept for kept, _ in counted):,} of {sum(acked for _, acked in counted):,}" if counted else ""


def _memory(results: Results) -> str:
    lines = []
    if soak := results.soak:
        lines.append(
            f"The receiver's RSS over {soak.requests:,} requests: {soak.first:.1f} MiB after a tenth, "
            f"{soak.largest:.1f} at most, {soak.last:.1f} at the end; {soak.kept:,} of {soak.acked:,} found."
        )
    if inbox := results.inbox:
        lines.append(
            f"A waiting delivery of {inbox.raw} bytes takes {inbox.of_the_hash:.0f} bytes in the inbox, and "
            f"{inbox.of_redis:.0f} of Redis's memory in all."
        )
    return " ".join(lines)


def _targets(found: Mapping[str, float]) -> str:
    rows = [
        [target.name, target.means, shown(found[target.name]), target.wanted, _reached(target, found[target.name])]
        for target in TARGETS
        if target.name in found
    ]
    return _table(("number", "what it is", "measured", "wanted", "reached"), rows, left=2) if rows else ""


def _reached(target: Target, number: float) -> str:
    return "yes" if target.reached(number) else "no"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    """The first so many columns hold words, and the others numbers."""
    rule = ["---" if place < left else "---:" for place in range(len(headings))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headings, rule, *rows))


def _cell(number: float | None) -> str:
    return "" if number is None else f"{number:,.0f}" if number >= 1000 else shown(number)


# --- the document ----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables, or writes them into a document."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description="The tables of a report.")
    parser.add_argument("report", type=Path, help="bench-report.json")
    parser.add_argument("--docs", type=Path, help="a document with the marks; without it the tables are printed")
    words = parser.parse_args(arguments)
    tables = as_markdown(json.loads(words.report.read_text(encoding="utf-8")))
    if words.docs is None:
        sys.stdout.write(tables)
    else:
        words.docs.write_text(write_into(words.docs.read_text(encoding="utf-8"), tables, BEGIN, END), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
