"""The numbers to reach: which figure each is about, what it must be, and what Postgres itself did in the same run.

`OTHERS` are the best figures of nineteen Postgres queues that were measured on the same kind of machine, each in its
free version with the settings that its documentation recommends for the case.
"""

from __future__ import annotations

from typing import NamedTuple

from bench.figures import Figures, shown
from bench.scenarios.idle import WORKERS

LISTEN = "LISTEN/NOTIFY client"
OTHERS = {"drain": 40_000, "p50": 3.7, "p99": 6.0, "steady CPU": 2000}
"""jobs/s; ms; ms; ms of CPU for 1,000 jobs. The floors of that run are in the note."""


class Goal(NamedTuple):
    """One line of the table: one figure. It is met when all bounds hold."""

    what: str
    scenario: str
    variant: str
    measure: str
    unit: str
    bounds: tuple[Bound, ...]
    floor: str = ""
    """The variant of the floor; empty: there is none."""
    floor_measure: str = ""
    """Where it has another name."""

    def value(self, figures: Figures) -> float | None:
        return figures.median(self.scenario, self.variant, self.measure)


class Bound(NamedTuple):
    """at_least False: at most. by_ratio: what counts is the ratio to the floor, or to the same without."""

    limit: float
    at_least: bool
    by_ratio: bool = False
    why: str = ""

    def text(self, unit: str) -> str:
        sign = "≥" if self.at_least else "≤"
        amount = f"{self.limit:g} × floor" if self.by_ratio else f"{round(self.limit, 2):,g}{unit}"
        return f"{sign} {amount}{f' ({self.why})' if self.why else ''}"

    def holds(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


def least(limit: float, why: str = "") -> Bound:
    return Bound(limit, at_least=True, why=why)


def most(limit: float, why: str = "") -> Bound:
    return Bound(limit, at_least=False, why=why)


def least_of_floor(limit: float) -> Bound:
    return Bound(limit, at_least=True, by_ratio=True)


def most_of_floor(limit: float) -> Bound:
    return Bound(limit, at_least=False, by_ratio=True)


def _others(factor: float, name: str, unit: str) -> str:
    return f"{factor:g} × the best of the others, {OTHERS[name]:,g}{unit}"


MS, RATE = " ms", "/s"
GOALS = (
    Goal("no-op jobs drained by one node, no limit, rows kept", "drain", "one node", "drained", RATE,
         (least_of_floor(0.7), least(1.5 * OTHERS["drain"], _others(1.5, "drain", RATE))), "bare SQL"),
    Goal("the same with the default limit of 16", "limited", "limit of 16", "drained", RATE, (least(8000),), "bare SQL"),
    Goal("start of a single job on an idle node, p50", "latency", "no limit", "p50", MS,
         (most_of_floor(1.3), most(0.75 * OTHERS["p50"], _others(0.75, "p50", MS))), LISTEN),
    Goal("the same, p99", "latency", "no limit", "p99", MS,
         (most(0.9 * OTHERS["p99"], _others(0.9, "p99", MS)),), LISTEN),
    Goal("the same with the default limit of 16, p50", "latency", "limit of 16", "p50", MS, (most_of_floor(1.3),), LISTEN),
    Goal("start at a steady 500 jobs/s, p50", "steady", "one node", "p50", MS, (most_of_floor(1.3),), LISTEN),
    Goal("the same, p99", "steady", "one node", "p99", MS, (most_of_floor(1.3),), LISTEN),
    Goal("CPU of 1,000 jobs at 500 jobs/s, node and Postgres", "steady", "one node", "CPU in all", MS,
         (most(0.7 * OTHERS["steady CPU"], _others(0.7, "steady CPU", MS)),), LISTEN),
    Goal("bulk enqueueing from Python (`perform_many` of a list)", "enqueue", "COPY of all rows", "perform_many", " rows/s",
         (least_of_floor(0.8),), "COPY of all rows", "no triggers"),
    Goal("the same of a generator: the jobs are made meanwhile", "enqueue", "COPY of all rows", "perform_many, a generator",
         " rows/s", (least_of_floor(0.8),), "COPY of all rows", "no triggers"),
    Goal("single-row INSERTs by 32 clients, no node", "enqueue", "INSERT, no node", "32 clients", RATE,
         (least_of_floor(0.7),), "INSERT, no triggers"),
    Goal("the same, with a node that performs them", "enqueue", "INSERT, node at work", "32 clients", RATE,
         (least_of_floor(0.7),), "INSERT, no triggers"),
    Goal("the same, with a node that may not", "enqueue", "INSERT, type paused", "32 clients", RATE,
         (least_of_floor(0.7),), "INSERT, no triggers"),
    Goal("start after `run_at`, p99", "scheduled", "run_at in 1-3 s", "p99", MS, (most(25),)),
    Goal("start of a job of a schedule after it was due, p99", "schedules", "10 a second", "p99", MS, (most(25),)),
    Goal("the same, of 1,000 that are due at once", "schedules", "1,000 at once", "p99", MS, (most(100),)),
    Goal("the same, by cron", "schedules", "1,000 at once, by cron", "p99", MS, (most(100),)),
    Goal("finding what is due among 100,000 schedules", "schedules", "100,000 not due", "list_due_schedules", MS, (most(5),)),
    Goal("throughput while a snapshot is held, no limit", "snapshot", "no limit, snapshot held", "performed", RATE,
         (least_of_floor(0.8),), "no limit, without"),
    Goal("the same, last tenth of the time", "snapshot", "no limit, snapshot held", "last slice", RATE,
         (least_of_floor(0.8),), "no limit, without"),
    Goal("throughput while a snapshot is held, limit of 16", "snapshot", "limit of 16, snapshot held", "performed", RATE,
         (least_of_floor(0.8),), "limit of 16, without"),
    Goal("the same, last tenth of the time", "snapshot", "limit of 16, snapshot held", "last slice", RATE,
         (least_of_floor(0.8),), "limit of 16, without"),
    Goal("jobs of 5 s, limit of 40, beside 40 slots", "long", "64 slots, limit of 40", "performed", RATE,
         (least_of_floor(0.98),), "40 slots, no limit"),
    Goal("connections of a node", "idle", f"{WORKERS} workers", "connections", "", (most(4),)),
    Goal("memory (PSS) of an idle node with 4 workers", "idle", f"{WORKERS} workers", "memory (PSS)", " MiB",
         (most(143, "150 MB"),)),
    Goal("CPU of Postgres under 8 idle nodes", "many", "8 idle nodes", "CPU postgres", " ms/s", (most(10, "1 % of a core"),)),
)  # fmt: skip
NOTE = (
    "*Others* are nineteen Postgres queues in their free versions, measured on the same kind of machine in a run of their own: "
    "its bare SQL floor was 86,000 jobs/s, its LISTEN/NOTIFY client started single jobs in 2.1 ms (p99 3.7 ms) "
    "and took 1,400 ms of CPU for 1,000 jobs at 500 jobs/s. Where these floors differ, the ratio to the floor says more. "
    "*Floor*, in the lines about snapshots and long jobs, is the same load without the snapshot, or without the limit."
)


def table(figures: Figures) -> list[list[str]]:
    """The rows of what was measured: what, reached, to reach, floor, and whether all bounds hold."""
    return [_row(goal, figures) for goal in GOALS if goal.value(figures) is not None]


def _row(goal: Goal, figures: Figures) -> list[str]:
    value = goal.value(figures)
    ratio = figures.ratio(goal.scenario, goal.variant, goal.measure)
    judged = [_holds(bound, value, ratio) for bound in goal.bounds]
    reached = shown(value, goal.unit) + (f" = {ratio:.2f} × floor" if ratio is not None else "")
    floor = figures.median(goal.scenario, goal.floor, goal.floor_measure or goal.measure) if goal.floor else None
    return [
        goal.what,
        reached,
        "; ".join(bound.text(goal.unit) for bound in goal.bounds),
        shown(floor, goal.unit) if goal.floor else "",
        "yes" if all(judged) else "**no**" if not any(judged) else "**in part**",
    ]


def _holds(bound: Bound, value: float | None, ratio: float | None) -> bool:
    judged = ratio if bound.by_ratio else value
    return judged is not None and bound.holds(judged)
