"""The pictures in the documentation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .bench import OURS
from .results import Table

OURS_COLOUR, COLOUR, INK = "#0b6e99", "#b9c4cc", "#333333"
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # Text as text, and the same figures as the same bytes.
    "svg.fonttype": "none",
    "svg.hashsalt": "benchmarks",
}

Plot = tuple[str, str, str, bool, Callable[[float], str]]

#: File: table, figure, heading, whether the scale is logarithmic, how to write it.
PLOTS: dict[str, Plot] = {
    "longest-cycle": (
        "statement",
        "longest_ms",
        "Longest cycle of 16 threads on 8 connections (ms, logarithmic)",
        True,
        lambda value: f"{value:,.0f} ms",
    ),
    "query-cost": (
        "statement",
        "ratio",
        "Take, SELECT 1, return: cost relative to bare PyMySQL (logarithmic)",
        True,
        lambda value: f"{value:,.2f}",
    ),
    "rows": (
        "rows",
        "1000_share",
        "1,000 rows of 5 columns: cost relative to bare PyMySQL",
        False,
        lambda value: f"{value:,.2f}",
    ),
    "spike": (
        "sharing",
        "spike_ms",
        "50 requests at once, 5 ready: until all are served (ms, logarithmic)",
        True,
        lambda value: f"{value:,.0f} ms",
    ),
}


def draw(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Draw what was measured; return the files that were written."""
    if find_spec("matplotlib") is None:
        return []
    written = []
    for name in PLOTS:
        if found := _bars(tables, name):
            written.append(folder / f"{name}.svg")
            _draw(found, PLOTS[name], written[-1])
    return written


def bars(tables: Mapping[str, Table], name: str) -> list[tuple[str, str]]:
    """Return the labels in a plot, each with its figure as text."""
    show = PLOTS[name][-1]
    return [(label, show(value)) for label, value, _ in _bars(tables, name)]


def _bars(tables: Mapping[str, Table], name: str) -> list[tuple[str, float, str]]:
    """Label, value and colour, the longest first, as it is drawn from below."""
    table, key, *_ = PLOTS[name]
    if table not in tables:
        return []
    labels = tables[table].labels
    found = [
        (labels[row], figures[key], OURS_COLOUR if row == OURS else COLOUR)
        for row, figures in tables[table].rows.items()
        if key in figures
    ]
    return sorted(found, key=lambda bar: -bar[1])


def _draw(bars: list[tuple[str, float, str]], plot: Plot, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        size = (7.5, 0.9 + 0.32 * len(bars))
        figure, axes = pyplot.subplots(figsize=size, layout="constrained")
        _fill(axes, bars, plot)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _fill(axes: Any, bars: list[tuple[str, float, str]], plot: Plot) -> None:
    _, _, heading, logarithmic, show = plot
    labels, values, colours = zip(*bars, strict=True)
    drawn = axes.barh(labels, values, color=colours, height=0.7)
    axes.bar_label(drawn, labels=[show(value) for value in values], padding=4)
    axes.set_title(heading, loc="left", fontsize=10)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 2, max(values) * 4)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.tick_params(left=False, bottom=False, labelbottom=False, which="both")
