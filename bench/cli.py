"""The command line of the benchmark: which scenarios, how often, on which Postgres."""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from bench.harness import JOBS, Bench, Options, open_bench, postgres_facts
from bench.results import DOCS, FOLDER, Results, Run
from bench.scenarios import (
    crowd,
    dashboard,
    drain,
    enqueue,
    floor,
    idle,
    large,
    latency,
    limited,
    long,
    many,
    memory,
    nodes,
    offered,
    scheduled,
    schedules,
    sessions,
    snapshot,
    steady,
    types,
)  # fmt: skip

SCENARIOS: dict[str, Callable[[Bench, Results], None]] = {
    "floor": floor.run,
    "drain": drain.run,
    "limited": limited.run,
    "latency": latency.run,
    "steady": steady.run,
    "scheduled": scheduled.run,
    "enqueue": enqueue.run,
    "idle": idle.run,
    "nodes": nodes.run,
    "offered": offered.run,
    "types": types.run,
    "many": many.run,
    "long": long.run,
    "large": large.run,
    "memory": memory.run,
    "snapshot": snapshot.run,
    "crowd": crowd.run,
    "schedules": schedules.run,
    "sessions": sessions.run,
    "dashboard": dashboard.run,
}
ONLY_WHEN_NAMED = {"long", "large", "memory", "snapshot", "crowd", "schedules", "sessions", "dashboard"}
"""These take minutes each."""


def main(arguments: list[str] | None = None) -> Path:
    """Measures, prints a table for each scenario, and returns the JSON file that it has written; or the page, of such files."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.page:
        missing = [path for path in given.page if not path.is_file()]
        if missing:
            parser.error(f"there is no file {missing[0]}; each run of a scenario writes one to {FOLDER}")
        return _write_page(given.page)
    unknown = [name for name in given.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {unknown[0]}; there are {', '.join(SCENARIOS)}")
    names = given.scenarios or [name for name in SCENARIOS if name not in ONLY_WHEN_NAMED]
    return _measure(Options(**{name: getattr(given, name) for name in asdict(Options())}), names, given.output)


def _measure(options: Options, names: list[str], output: Path) -> Path:
    console = Console()
    started_at = datetime.now(UTC)
    finished: list[Results] = []
    # Nodes and server are to be stopped whatever ends the benchmark.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with open_bench(options, console) as bench:
        shown_options = {name: str(value) for name, value in asdict(options).items() if name != "database_url"}
        run = Run(
            shown_options,
            postgres_facts(bench.connection),
            finished,
            started_at,
            names[0] if len(names) == 1 else "several",
        )
        for name in names:
            results = Results(name)
            SCENARIOS[name](bench, results)
            results.show(console)
            finished.append(results)
            path = run.write(output)  # again after each, so that a failure costs one scenario only
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    return path


def _write_page(files: list[Path]) -> Path:
    from bench.page import write_page  # measuring needs no plotting library

    path = write_page(files, DOCS)
    Console().print(f"written to {path}", highlight=False, soft_wrap=True)
    return path


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    described = "\n".join(
        f"  {name + '*' * (name in ONLY_WHEN_NAMED):<10} {_first_line(function)}"
        for name, function in SCENARIOS.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Measures the cluster. Scenarios:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", help="default: all but those marked with *")
    add("--repeats", type=int, metavar="R", help="rounds (each scenario has its own number)")
    add("--jobs", type=int, metavar="N", help=f"jobs of a drain ({JOBS}; memory {memory.JOBS}, large {large.FRESH})")
    add("--probes", type=int, default=defaults.probes, metavar="N", help="jobs whose start is timed (%(default)s)")
    add(
        "--seconds",
        type=float,
        metavar="D",
        help="length of idle, many, offered, long, snapshot, schedules, dashboard (each has its own)",
    )
    add("--rows", type=int, metavar="N", help=f"rows in the table ({dashboard.ROWS}; large {large.ROWS})")
    add("--processes", type=int, metavar="N", help="CLUSTER_PROCESSES of the nodes")
    add("--concurrency", type=int, metavar="N", help="CLUSTER_CONCURRENCY of the nodes")
    add("--pg-bin", type=Path, metavar="DIR", help="programs of another Postgres than the embedded one")
    add("--database-url", metavar="URL", help="a running server; needs the right to create a database")
    add("--output", type=Path, default=FOLDER, metavar="DIR", help="where the JSON goes (bench/results)")
    add(
        "--page", nargs="+", type=Path, metavar="FILE", help="measure nothing: write docs/performance.md from such JSON"
    )
    return parser


def _first_line(function: Callable[[Bench, Results], None]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
