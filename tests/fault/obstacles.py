"""Why a scenario can't be played on this machine."""

from __future__ import annotations

import os
import shutil

from tests.fault.scenarios import Scenario


def obstacle(scenario: Scenario) -> str:
    """The reason; empty: none."""
    if scenario.stage.ROOT and os.geteuid() != 0:
        return "needs root"
    for program in scenario.stage.PROGRAMS:
        if shutil.which(program) is None:
            return f"needs the program {program}"
    return ""
