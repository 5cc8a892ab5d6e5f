"""`python -m tests.fault --runs N [scenario…]`: plays scenarios and writes a line of JSON for each run."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fault.harness import run
from tests.fault.obstacles import obstacle
from tests.fault.results import append, write_guarantees
from tests.fault.scenarios import SCENARIOS, Scenario


def main(arguments: list[str]) -> int:
    """0: no promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="of each scenario")
    parser.add_argument("--pg-bin", type=Path, help="bin directory of the Postgres to test with")
    parser.add_argument("--keep", action="store_true", help="leave the folder of each run behind")
    parser.add_argument(
        "--results", type=Path, help="file to which the lines are appended; default: standard output only"
    )
    parser.add_argument(
        "--guarantees", action="store_true", help="only write the table of docs/guarantees.md from --results"
    )
    parser.add_argument("scenario", nargs="*", help=", ".join(SCENARIOS))
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # nothing may be left behind, however it ends
    if options.guarantees:
        write_guarantees(options.results)
        return 0
    unknown = set(options.scenario) - SCENARIOS.keys()
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    chosen = [SCENARIOS[name] for name in options.scenario] or list(SCENARIOS.values())
    rows = [_play(scenario, options) for _ in range(options.runs) for scenario in _possible(chosen)]
    return int(any(sum(row["violations"].values()) or row.get("error") for row in rows))


def _possible(scenarios: list[Scenario]) -> Iterator[Scenario]:
    for scenario in scenarios:
        reason = obstacle(scenario)
        if reason:
            print(f"{scenario.name}: left out, {reason}", file=sys.stderr)
        else:
            yield scenario


def _play(scenario: Scenario, options: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    try:
        row = run(scenario, options.pg_bin, keep=options.keep).as_row()
    except Exception as error:  # noqa: BLE001 - a run that breaks is a result too
        row = {"scenario": scenario.name, "fault": scenario.fault, "seconds": round(time.monotonic() - begun, 1),
               "violations": {"other": 1}, "error": f"{type(error).__name__}: {error}"}  # fmt: skip
    print(json.dumps(row), flush=True)
    if options.results:
        append(options.results, row)
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
