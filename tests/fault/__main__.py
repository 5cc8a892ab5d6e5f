"""`python -m tests.fault --runs N [scenario…]`: plays scenarios and writes a line of JSON for each run."""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.fault.firing import MINUTES, fire_for_long
from tests.fault.harness import run
from tests.fault.limits import prove_limits
from tests.fault.requirements import missing
from tests.fault.results import append, write_guarantees
from tests.fault.scenarios import SCENARIOS, Scenario
from tests.fault.soak import ALL, soak


def main(arguments: list[str]) -> int:
    """0: no promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault", description=__doc__)
    parser.add_argument("--runs", type=int, default=1, help="of each scenario")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="so many runs at the same time")
    parser.add_argument(
        "--limits", type=int, nargs="?", const=100_000, metavar="CLAIMS",
        help="instead: prove that limits hold while 8 nodes make so many claims; default: %(const)s",
    )  # fmt: skip
    parser.add_argument(
        "--soak", type=int, nargs="?", const=2 * len(ALL), metavar="MINUTES",
        help="instead: the long run, in which something else is wrong every other minute; default: %(const)s",
    )  # fmt: skip
    parser.add_argument(
        "--schedules", type=float, nargs="?", const=MINUTES, metavar="MINUTES",
        help="instead: the long run of schedules, with a node killed every ten seconds; default: %(const)s",
    )  # fmt: skip
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
    if options.limits:
        proof = prove_limits(options.limits, options.pg_bin)
        print(proof)
        return int(proof.broken)
    if options.soak:
        came = soak(options.soak, options.pg_bin, lambda line: print(line, flush=True))
        print(came)
        return int(came.broken)
    if options.schedules:
        account = fire_for_long(options.schedules, options.pg_bin, lambda line: print(line, flush=True))
        print(account)
        return int(account.broken)
    unknown = set(options.scenario) - SCENARIOS.keys()
    if unknown:
        parser.error(f"no such scenario: {', '.join(sorted(unknown))}")
    chosen = [SCENARIOS[name] for name in options.scenario] or list(SCENARIOS.values())
    wanted = [scenario for _ in range(options.runs) for scenario in _possible(chosen)]
    alone = options.parallel == 1
    rows = (_play(scenario, options) for scenario in wanted) if alone else _play_side_by_side(wanted, options)
    broken = sum(bool(sum(row["violations"].values()) or row.get("error")) for row in rows)
    return int(broken > 0)


def _possible(scenarios: list[Scenario]) -> Iterator[Scenario]:
    for scenario in scenarios:
        reason = missing(scenario)
        if reason:
            print(f"{scenario.name}: left out, {reason}", file=sys.stderr)
        else:
            yield scenario


def _play_side_by_side(wanted: list[Scenario], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Each run is a process of its own, as this one is without --parallel."""
    waiting, running = deque(wanted), list[Child]()
    try:
        while waiting or running:
            while waiting and len(running) < options.parallel:
                running.append(Child(waiting.popleft(), options))
            for child in [child for child in running if child.process.poll() is not None]:
                running.remove(child)
                yield child.row()
            time.sleep(0.05)
    finally:
        for child in running:
            child.process.terminate()
        for child in running:
            child.process.wait()


class Child:
    """A process that plays one run."""

    def __init__(self, scenario: Scenario, options: argparse.Namespace) -> None:
        self._scenario, self._results = scenario, options.results
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the last look at it
        command = [sys.executable, "-m", "tests.fault", scenario.name, *(["--keep"] if options.keep else [])]
        for name, value in (("--pg-bin", options.pg_bin), ("--results", options.results)):
            command += [name, str(value)] if value else []
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self._output)

    def row(self) -> dict[str, Any]:
        """What it printed, and has written down; if it was killed, this is done for it."""
        with self._output as output:
            output.seek(0)
            text = output.read().decode()
        print(text, end="", flush=True)
        lines = text.splitlines()
        row: dict[str, Any]
        if lines:
            row = json.loads(lines[-1])
        else:
            row = _broken(self._scenario, 0, f"exit code {self.process.returncode}")
            if self._results:
                append(self._results, row)
        return row


def _broken(scenario: Scenario, seconds: float, error: str) -> dict[str, Any]:
    """A run that breaks is a result too."""
    return {
        "scenario": scenario.name, "fault": scenario.fault, "seconds": round(seconds, 1), "violations": {"other": 1},
        "error": error,
    }  # fmt: skip


def _play(scenario: Scenario, options: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    try:
        row = run(scenario, options.pg_bin, keep=options.keep).as_row()
    except Exception as error:  # noqa: BLE001 - see _broken
        row = _broken(scenario, time.monotonic() - begun, f"{type(error).__name__}: {error}")
    print(json.dumps(row), flush=True)
    if options.results:
        append(options.results, row)
    return row


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
