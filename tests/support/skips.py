"""Skipped tests are named at the end of a run; `--no-unexpected-skips` fails the run on one nobody has agreed to.

`tests/expected_skips.txt` holds the agreed reasons, one a line, with `*` for any text.
"""

from __future__ import annotations

from collections import Counter
from fnmatch import fnmatch
from pathlib import Path
from typing import Protocol

import pytest

EXPECTED_SKIPS = Path(__file__).parents[1] / "expected_skips.txt"


class WorkerNode(Protocol):
    """The part of pytest-xdist's WorkerController that is read here."""

    workeroutput: dict[str, object]


class SkipReport:
    """Owned by the process that prints the results. Workers hand over what they skipped while collecting."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._tests: Counter[str] = Counter()
        self._modules: set[tuple[str, str]] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            self._tests[_reason(report)] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self._modules.add((report.nodeid, _reason(report)))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: WorkerNode) -> None:
        # pytest-xdist tells the controller nothing about modules that were skipped as a whole.
        skipped = getattr(node, "workeroutput", {}).get("skipped_modules", [])
        self._modules.update((module, reason) for module, reason in skipped)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self._config, "workeroutput"):
            self._config.workeroutput["skipped_modules"] = sorted(self._modules)
        elif self._unexpected() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for reason, count in sorted(self._reasons().items()):
            terminalreporter.write_line(f"skipped: {count} ({reason})", yellow=True)
        for reason in sorted(self._unexpected()):
            terminalreporter.write_line(f"unexpected skip: {reason}", red=True)

    def _reasons(self) -> Counter[str]:
        return self._tests + Counter(reason for _, reason in self._modules)

    def _unexpected(self) -> set[str]:
        if not self._config.getoption("--no-unexpected-skips"):
            return set()
        agreed = [line.strip() for line in EXPECTED_SKIPS.read_text().splitlines() if line.strip()]
        return {reason for reason in self._reasons() if not any(fnmatch(reason, line) for line in agreed)}


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)
