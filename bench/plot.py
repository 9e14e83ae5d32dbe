"""The picture of a run: bars of what each contender does a second, as a share of another's, and of its p99.

What is drawn is a value; matplotlib is needed only to draw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.figures import BURST, CONNECTIONS, P99, RESERVOIR, Figure, Results, contenders, kind_of, loads, middle, ratio
from bench.report import AGAINST
from bench.targets import shown

OURS: Final = "#2f81f7"
THEIRS: Final = "#8b949e"
WORDS: Final = "#7d8590"
"""Blue, and greys that stand out on white and on black: the picture itself has no background."""
BAR: Final = 0.34
"""Inches from one bar to the next."""


class NoPlot(Exception):
    """There is no picture: why, and the mend."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One contender under one load."""

    label: str
    value: float
    ours: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One diagram."""

    title: str
    bars: Sequence[Bar]


def panels(results: Results) -> list[Panel]:
    """Those for which there is something to show."""
    figures = results.figures
    made = [
        Panel(title=f"acknowledged a second, {AGAINST[CONNECTIONS]} = 1", bars=_shares(figures, CONNECTIONS)),
        Panel(title="p99 of the answer, ms", bars=_p99s(figures, CONNECTIONS)),
        Panel(title=f"applied a second, {AGAINST[BURST]} = 1", bars=_shares(figures, BURST)),
    ]
    return [panel for panel in made if panel.bars]


def _shares(figures: Sequence[Figure], kind: str) -> list[Bar]:
    return [
        _bar(load, contender, share)
        for load, contender in _lines(figures, kind)
        if (share := ratio(figures, load, contender, AGAINST[kind])) is not None
    ]


def _p99s(figures: Sequence[Figure], kind: str) -> list[Bar]:
    return [
        _bar(load, contender, found)
        for load, contender in _lines(figures, kind)
        if (found := middle(figures, load, contender, P99)) is not None
    ]


def _lines(figures: Sequence[Figure], kind: str) -> list[tuple[str, str]]:
    return [(load, one) for load in loads(figures) if kind_of(load) == kind for one in contenders(figures, load)]


def _bar(load: str, contender: str, value: float) -> Bar:
    return Bar(label=f"{contender}, {load}", value=value, ours=contender == RESERVOIR)


def draw(shown_panels: Sequence[Panel], file: Path) -> None:
    """Writes the picture. Raises NoPlot where nothing was measured, or matplotlib is not installed."""
    if not shown_panels:
        raise NoPlot("nothing was measured that has bars")
    try:
        from matplotlib.figure import Figure as Drawing
    except ImportError:
        raise NoPlot("matplotlib is not installed; run `make setup`") from None
    heights = [len(panel.bars) + 1.6 for panel in shown_panels]
    drawing = Drawing(figsize=(8.0, BAR * sum(heights)), layout="constrained")
    axes = drawing.subplots(len(shown_panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, panel in zip(axes, shown_panels, strict=True):
        _draw(axis, panel)
    drawing.savefig(file, dpi=150, transparent=True)


def _draw(axis: Any, panel: Panel) -> None:
    """From the top down, from zero on, each with its value behind it, so that no scale is needed."""
    values = [bar.value for bar in panel.bars]
    colours = [OURS if bar.ours else THEIRS for bar in panel.bars]
    drawn = axis.barh([bar.label for bar in panel.bars], values, color=colours, height=0.7)
    axis.bar_label(drawn, labels=[shown(value) for value in values], padding=4, color=WORDS)
    axis.set_title(panel.title, loc="left", color=WORDS)
    axis.set_xlim(0, max(values) * 1.1)
    axis.set_xticks([])
    axis.invert_yaxis()
    axis.tick_params(colors=WORDS, length=0)
    for name, side in axis.spines.items():
        side.set_visible(name == "left")
        side.set_color(WORDS)
