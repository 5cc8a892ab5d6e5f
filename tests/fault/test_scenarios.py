"""Real processes killed, stopped and cut off, and a real Postgres too: no promise is broken.

`make fault` plays every scenario once; the quickest are part of `make test`. `python -m tests.fault --runs N` plays them often.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault.harness import run
from tests.fault.requirements import missing
from tests.fault.scenarios import SCENARIOS, Scenario

ALL = [pytest.param(scenario, id=scenario.name) for scenario in SCENARIOS.values()]
SHORT = [pytest.param(scenario, id=scenario.name) for scenario in SCENARIOS.values() if scenario.in_short]


@pytest.mark.fault
@pytest.mark.timeout(240)
@pytest.mark.parametrize("scenario", ALL)
def test_no_promise_is_broken(scenario: Scenario, pg_bin: Path) -> None:
    play(scenario, pg_bin, short=False)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SHORT)
def test_no_promise_is_broken_in_short(scenario: Scenario, pg_bin: Path) -> None:
    play(scenario, pg_bin, short=True)


def play(scenario: Scenario, pg_bin: Path, *, short: bool) -> None:
    reason = missing(scenario)
    if reason:
        pytest.skip(reason)
    outcome = run(scenario, pg_bin, short=short)
    assert not any(outcome.violations.values()), "\n".join(outcome.details)
    assert outcome.jobs > 50, "there was hardly any load"
