"""Real processes killed, stopped and cut off, and a real Postgres too: no promise is broken.

`make fault` plays every scenario once; the quickest are part of `make test`. `python -m tests.fault --runs N` plays them often.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fault.harness import run
from tests.fault.obstacles import obstacle
from tests.fault.scenarios import SCENARIOS, Scenario

SHORT = [scenario for scenario in SCENARIOS.values() if scenario.in_short]
LONG = [scenario for scenario in SCENARIOS.values() if not scenario.in_short]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "scenario",
    [
        *(pytest.param(scenario, id=scenario.name) for scenario in SHORT),
        *(pytest.param(scenario, id=scenario.name, marks=pytest.mark.fault) for scenario in LONG),
    ],
)
def test_no_promise_is_broken(scenario: Scenario, pg_bin: Path) -> None:
    reason = obstacle(scenario)
    if reason:
        pytest.skip(reason)
    outcome = run(scenario, pg_bin)
    assert not any(outcome.violations.values()), "\n".join(outcome.details)
    assert outcome.jobs > 50, "there was hardly any load"
