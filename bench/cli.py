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

from bench.harness import Bench, Options, open_bench, postgres_facts
from bench.results import FOLDER, Results, Run
from bench.scenarios import drain, enqueue, floor, idle, latency, limited, nodes, scheduled, steady

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
}


def main(arguments: list[str] | None = None) -> Path:
    """Measures, prints a table for each scenario, and returns the JSON file that it has written."""
    given = _parser().parse_args(arguments)
    output: Path = given.output
    options = Options(**{name: getattr(given, name) for name in asdict(Options())})
    console = Console()
    started_at = datetime.now(UTC)
    finished: list[Results] = []
    # Nodes and server are to be stopped whatever ends the benchmark.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with open_bench(options, console) as bench:
        facts = postgres_facts(bench.connection)
        for name in given.scenarios or SCENARIOS:
            results = Results(name)
            SCENARIOS[name](bench, results)
            results.show(console)
            finished.append(results)
    shown_options = {name: str(value) for name, value in asdict(options).items() if name != "database_url"}
    path = Run(shown_options, facts, finished, started_at).write(output)
    console.print(f"written to {path}", highlight=False, soft_wrap=True)
    return path


def _parser() -> argparse.ArgumentParser:
    defaults = Options()
    described = "\n".join(f"  {name:<10} {_first_line(function)}" for name, function in SCENARIOS.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"Measures the cluster. Scenarios:\n{described}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="SCENARIO", choices=[*SCENARIOS, []], help="default: all of them")
    add("--repeats", type=int, default=defaults.repeats, metavar="R", help="rounds (%(default)s)")
    add("--jobs", type=int, default=defaults.jobs, metavar="N", help="jobs of a drain (%(default)s)")
    add("--probes", type=int, default=defaults.probes, metavar="N", help="jobs whose start is timed (%(default)s)")
    add("--seconds", type=float, default=defaults.seconds, metavar="D", help="length of idle (%(default)s)")
    add("--processes", type=int, metavar="N", help="CLUSTER_PROCESSES of the nodes")
    add("--concurrency", type=int, metavar="N", help="CLUSTER_CONCURRENCY of the nodes")
    add("--pg-bin", type=Path, metavar="DIR", help="programs of another Postgres than the embedded one")
    add("--database-url", metavar="URL", help="a running server; needs the right to create a database")
    add("--output", type=Path, default=FOLDER, metavar="DIR", help="where the JSON goes (bench/results)")
    return parser


def _first_line(function: Callable[[Bench, Results], None]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
