"""`python -m bench.scaling`: simulates every load and draws the plot of docs/kubernetes.md, on a Postgres made for it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import psycopg
from matplotlib.figure import Figure

from bench.plots import BLUE, GREEN, GREY, ORANGE, STYLE
from bench.results import REPOSITORY
from bench.scaling.autoscaler import Rules
from bench.scaling.loads import LOADS, Load
from bench.scaling.simulation import START_WITHIN, Seen, simulate
from cluster.embedded import disposable_server
from cluster.migration import migrate_schema

PLOT = REPOSITORY / "docs" / "kubernetes" / "scaling.svg"
POINTS = 300
"""Of a line."""
TITLES = {
    "day": "a day in four hours, 1 to 20 jobs a second",
    "bursts": "2,000 jobs at once, four times",
    "steady": "50 jobs a second, of a second each",
    "long": "12 jobs a minute, of five minutes each",
    "limited": "5,000 jobs with a limit of 4, beside a stream",
    "recorded": "recorded: a stream, and reports in batches",
}


def main() -> None:
    with disposable_server(fast=True) as server, psycopg.connect(server.url(), autocommit=True) as connection:
        migrate_schema(connection)
        loads = {name: made() for name, made in LOADS.items()}
        seen = {name: simulate(connection, Rules.of_component(), load) for name, load in loads.items()}
    for name, result in seen.items():
        parts = [f"{job_type} {result.within(job_type, START_WITHIN):.2%}" for job_type in result.delays]
        print(f"{name}: {', '.join(parts)} within {START_WITHIN:g} s; {result.turns} turns")
    draw(loads, seen, PLOT)


def draw(loads: Mapping[str, Load], seen: Mapping[str, Seen], path: Path) -> None:
    """One picture of all of them, as SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        picture = Figure(figsize=(9, 8), layout="constrained")
        for axes, (name, result) in zip(picture.subplots(3, 2).flat, seen.items(), strict=True):
            every = math.ceil(loads[name].until / POINTS)
            minutes = [second / 60 for second in range(0, loads[name].until, every)]
            slots = loads[name].slots
            longest = max(result.waiting)
            axes.plot(minutes, result.nodes[::every], drawstyle="steps-post", color=BLUE, label="nodes")
            axes.plot(minutes, [jobs / slots for jobs in result.running[::every]], color=ORANGE, lw=0.8, label="busy")
            axes.plot(minutes, result.wanted[::every], drawstyle="steps-post", color=GREY, lw=0.8, label="wanted")
            axes.set_ylim(0, 1.5 * max(result.nodes) + 0.5)
            axes.set_title(f"{TITLES[name]}; nodes of {slots} slots", fontsize=9)
            axes.set_xlabel("minutes")
            beside = axes.twinx()
            beside.plot(minutes, result.waiting[::every], color=GREEN, lw=0.8, label=f"waiting, up to {longest:,}")
            beside.set_ylim(0, 1.3 * longest)
            beside.set_yticks([])
            lines = [*axes.get_lines(), *beside.get_lines()]
            axes.legend(lines, [str(line.get_label()) for line in lines], fontsize=7, ncols=4, loc="upper left")
        picture.savefig(path, facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
