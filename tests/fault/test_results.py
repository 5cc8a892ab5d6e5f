"""The table of docs/guarantees.md is made of what was played, and of what it had before."""

from __future__ import annotations

from typing import Any

from tests.fault.results import table
from tests.fault.scenarios import SCENARIOS


def played(name: str, **figures: Any) -> dict[str, Any]:
    violations = {"lost": figures.pop("lost", 0)}
    return {"scenario": name, "violations": violations, "jobs": 1000, "interrupted": 3, "recovery": 1.26} | figures


def test_a_line_for_each_fault_and_their_sum() -> None:
    lines = table([played("calm"), played("calm", lost=2), played("kill_node", recovery=4.0)]).splitlines()
    assert lines[2] == "| none | 2 | 2,000 | 6 | 2 | 0 | 0 | 0 | 0 | 1.3 s |"
    assert lines[3] == f"| {SCENARIOS['kill_node'].fault} | 1 | 1,000 | 3 | 0 | 0 | 0 | 0 | 0 | 4.0 s |"
    assert lines[4] == "| **all** | **3** | **3,000** | **9** | **2** | **0** | **0** | **0** | **0** | **4.0 s** |"


def test_faults_that_were_not_played_again_keep_their_line() -> None:
    old = table([played("calm"), played("kill_node", recovery=4.0)])
    assert table([], old) == old
    lines = table([played("calm", jobs=5)], old).splitlines()
    assert lines[2] == "| none | 1 | 5 | 3 | 0 | 0 | 0 | 0 | 0 | 1.3 s |"
    assert lines[3] == old.splitlines()[3]
    assert lines[4].startswith("| **all** | **2** | **1,005** |")
