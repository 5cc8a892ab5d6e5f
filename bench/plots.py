"""The plots of the page: SVG with an opaque background, so that they can be read on a light page and on a dark one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from bench.figures import Figures
from bench.scenarios import offered, snapshot

# Told apart by people who do not see colours alike too (Okabe and Ito).
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"
STYLE: dict[Any, Any] = {  # matplotlib wants its own literals as keys
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "bench",  # the same figures give the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


def draw_all(figures: Figures, folder: Path) -> dict[str, Path]:
    """The files that could be drawn, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {}
    with mpl.rc_context(STYLE):
        for name, draw in PLOTS.items():
            picture = draw(figures)
            if picture is not None:
                drawn[name] = folder / f"{name}.svg"
                picture.savefig(drawn[name], facecolor="white", metadata={"Date": None})
    return drawn


# --- drain ---


def _drain(figures: Figures) -> Figure | None:
    bars = [
        (label, value, colour)
        for label, scenario, variant, colour in (
            ("bare SQL (floor)", "drain", "bare SQL", GREY),
            ("product's statements, bare loop", "floor", "product's statements", GREY),
            ("one node", "drain", "one node", BLUE),
            ("2 nodes", "nodes", "nodes: 2", BLUE),
            ("4 nodes", "nodes", "nodes: 4", BLUE),
            ("16 nodes of one worker", "many", "16 nodes, no limit", BLUE),
            ("one node, limit of 16", "limited", "limit of 16", ORANGE),
            ("16 nodes, limit of 16", "many", "16 nodes, limit of 16", ORANGE),
        )
        if (value := figures.median(scenario, variant, "drained")) is not None
    ]
    if not bars:
        return None
    picture = Figure(figsize=(7.5, 0.8 + 0.34 * len(bars)), layout="constrained")
    axes = picture.subplots()
    drawn = axes.barh([label for label, _, _ in bars], [value for _, value, _ in bars], color=[bar[2] for bar in bars])
    axes.bar_label(drawn, labels=[f" {value:,.0f}" for _, value, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.12)
    axes.set_xlabel("no-op jobs drained per second")
    axes.xaxis.set_major_formatter(_plain())
    return picture


# --- offered ---


def _offered(figures: Figures) -> Figure | None:
    if not figures.has("offered"):
        return None
    picture = Figure(figsize=(7.5, 3.6), layout="constrained")
    latency, cpu = picture.subplots(1, 2)
    for measure, colour in (("p50", BLUE), ("p99", ORANGE)):
        _line(latency, *_against_rate(figures, measure), label=f"node, {measure}", color=colour)
        floor = figures.median("offered", offered.FLOOR_VARIANT, measure)
        if floor is not None:
            latency.plot([offered.FLOOR.rate], [floor], "x", color=colour, label=f"LISTEN/NOTIFY client, {measure}")
    latency.set_ylabel("from INSERT to start, ms")
    for kind, colour in (("coordinators", BLUE), ("workers", GREEN), ("postgres", ORANGE)):
        rates, values = _against_rate(figures, f"CPU {kind}")
        per_second = [rate * value for rate, value in zip(rates, values, strict=True)]
        _line(cpu, rates, per_second, label={"postgres": "Postgres"}.get(kind, kind), color=colour)
    cpu.set_ylabel("CPU, ms per second")
    for axes in (latency, cpu):
        _use_log_scales(axes)
        axes.set_xlabel("jobs offered per second")
        axes.legend(fontsize=8)
    return picture


def _against_rate(figures: Figures, measure: str) -> tuple[list[int], list[float]]:
    """A log axis has no place for zero."""
    found = [(load.rate, figures.median("offered", load.variant, measure)) for load in offered.LOADS]
    known = [(rate, value) for rate, value in found if value]
    return [rate for rate, _ in known], [value for _, value in known]


# --- snapshot ---


def _snapshot(figures: Figures) -> Figure | None:
    if not figures.has("snapshot"):
        return None
    picture = Figure(figsize=(7.5, 3.4), layout="constrained")
    for axes, (limit, _, _) in zip(picture.subplots(1, len(snapshot.TYPES)), snapshot.TYPES, strict=True):
        for state, colour in ((snapshot.WITHOUT, BLUE), (snapshot.HELD, ORANGE)):
            for number, points in enumerate(figures.rounds("snapshot", f"{limit}, {state}", "performed")):
                xs, ys = [x for x, _ in points], [y for _, y in points]
                _line(axes, xs, ys, label="" if number else state, color=colour)
        axes.set_title(limit, fontsize=10)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_plain())
        axes.set_xlabel("seconds since the snapshot was taken")
        axes.set_ylabel("jobs per second")
        axes.legend(fontsize=8)
    return picture


def _line(axes: Axes, xs: list[int] | list[float], ys: list[float], *, label: str, color: str) -> None:
    axes.plot(xs, ys, marker="o", markersize=4, label=label, color=color)


def _use_log_scales(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(_plain())
        axis.set_minor_formatter(NullFormatter())


def _plain() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{value:,g}")


PLOTS: dict[str, Callable[[Figures], Figure | None]] = {"drain": _drain, "offered": _offered, "snapshot": _snapshot}
