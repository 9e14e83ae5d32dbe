"""What a run leaves behind: `chaos-report.json`, `chaos-report.md`, and the table in `docs/reliability.md`.

    python -m chaos.report chaos-report-*.json

adds several runs up and writes their table between the marks of the document.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import psutil

from chaos.books import FAIR, Account, Line, Span

DOCUMENT: Final = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
BEGIN: Final = "<!-- chaos: begin -->"
END: Final = "<!-- chaos: end -->"
SHOWN: Final = 200
"""Differences that a report holds at most; one fault of ours can make thousands."""
HEADINGS: Final = (
    ("", "name"),
    ("times", "times"),
    ("sent", "sent"),
    ("acked", "acked"),
    ("late", "late"),
    ("stored", "stored"),
    ("applied", "applied"),
    ("same again", "same"),
    ("lost", "lost"),
    ("wrong", "wrong"),
    ("p50 ms", "p50"),
    ("p99 ms", "p99"),
    ("max ms", "max"),
)


def row(line: Line) -> dict[str, Any]:
    """A line without its thousands of ack times, and with what they come to."""
    told = {name: value for name, value in asdict(line).items() if name != "acks"}
    times = {"p50": line.ack(0.5), "p99": line.ack(0.99), "max": line.ack(1.0)}
    return told | {name: round(value, 1) for name, value in times.items()}


def machine() -> str:
    """Where it ran."""
    memory = psutil.virtual_memory().total / 2**30
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{os.cpu_count()} cores, {memory:.0f} GiB, {system}"


def as_json(account: Account, spans: Sequence[Span], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that a program may want to know of a run."""
    return {
        **facts,
        "machine": machine(),
        "good": account.good,
        "total": row(account.total),
        "providers": [row(line) for line in account.providers],
        "faults": [row(line) for line in account.faults],
        "attempts_per_delivery": round(account.attempts, 3),
        "excused": account.excused,
        "given_up": account.given_up,
        "differences": [asdict(one) for one in account.differences[:SHOWN]],
        "differences_in_all": len(account.differences),
        "timeline": [asdict(span) for span in spans],
    }


def as_markdown(told: Mapping[str, Any]) -> str:
    """Two tables, and how they came about."""
    total = told["total"]
    return "\n".join(
        [
            _about(told),
            "",
            *_table("provider", [*told["providers"], total], without=("times",)),
            "",
            *_table("under way when it was sent", told["faults"]),
            "",
            f"A delivery was processed {told['attempts_per_delivery']} times on average. "
            f"While Redis was away: p99 {told['redis_away']['p99']} ms, largest {told['redis_away']['max']} ms; "
            f"half a second after it went, p99 {told['breaker_open']['p99']} ms.",
            "",
        ]
    )


def _about(told: Mapping[str, Any]) -> str:
    seeds = ", ".join(str(seed) for seed in told["seeds"])
    front = "haproxy in front of two receivers" if told["balanced"] else "one receiver, without a load balancer"
    words = [
        f"Seed {seeds}: {told['faults_in_all']} faults, {told['events']:,} events at the venues, ",
        f"{told['total']['sent']:,} requests, {told['minutes']:g} minutes; {front}. {told['machine']}.",
    ]
    if not told["balanced"]:
        words.append(f" Excused because the only receiver had been killed: {told['excused']} requests.")
    return "".join(words)


def _table(first: str, rows: Sequence[Mapping[str, Any]], without: Sequence[str] = ()) -> list[str]:
    columns = [(heading or first, name) for heading, name in HEADINGS if name not in without]
    lines = [
        "| " + " | ".join(heading for heading, _ in columns) + " |",
        "| " + " | ".join("---" if name == "name" else "---:" for _, name in columns) + " |",
    ]
    return lines + ["| " + " | ".join(_cell(name, one) for _, name in columns) + " |" for one in rows]


def _cell(name: str, one: Mapping[str, Any]) -> str:
    value = one[name]
    if name == "times" and one["name"] == FAIR:
        return ""
    return f"{value:,.0f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


# --- several runs ----------------------------------------------------------------------------------------------


def together(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Reports of several runs as one. Of quantiles the worst run's is told."""
    if len(runs) == 1:
        return dict(runs[0])
    first = runs[0]
    worst = {"p50", "p99", "max"}

    def merged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        numbers = [name for name in rows[0] if name != "name"]
        return {"name": rows[0]["name"]} | {
            name: max(one[name] for one in rows) if name in worst else sum(one[name] for one in rows)
            for name in numbers
        }

    def by_name(part: str) -> list[dict[str, Any]]:
        names: dict[str, list[Mapping[str, Any]]] = {}
        for run in runs:
            for one in run[part]:
                names.setdefault(one["name"], []).append(one)
        return [merged(names[name]) for name in sorted(names, key=lambda name: (name == FAIR, name))]

    deliveries = sum(run["total"]["stored"] for run in runs) or 1
    return {
        **first,
        "seeds": sorted(seed for run in runs for seed in run["seeds"]),
        "events": sum(run["events"] for run in runs),
        "minutes": sum(run["minutes"] for run in runs),
        "faults_in_all": sum(run["faults_in_all"] for run in runs),
        "excused": sum(run["excused"] for run in runs),
        "total": merged([run["total"] for run in runs]),
        "providers": by_name("providers"),
        "faults": by_name("faults"),
        "attempts_per_delivery": round(
            sum(run["attempts_per_delivery"] * run["total"]["stored"] for run in runs) / deliveries, 3
        ),
        **{
            part: {name: max(run[part][name] for run in runs) for name in ("p50", "p99", "max")}
            for part in ("redis_away", "breaker_open")
        },
    }


def write_into(document: str, tables: str, begin: str = BEGIN, end: str = END) -> str:
    """The document with these tables between its marks. Raises ValueError where it has none."""
    before, first, rest = document.partition(begin)
    _, last, after = rest.partition(end)
    if not (first and last):
        raise ValueError(f"the document needs the marks {begin} and {end}")
    return f"{before}{begin}\n\n{tables.strip()}\n\n{end}{after}"


def main(files: Sequence[str]) -> int:
    """Writes the table of these reports into the document."""
    runs = [json.loads(Path(file).read_text(encoding="utf-8")) for file in files]
    if not runs:
        sys.stderr.write("usage: python -m chaos.report REPORT.json …\n")
        return 2
    written = write_into(DOCUMENT.read_text(encoding="utf-8"), as_markdown(together(runs)))
    DOCUMENT.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
