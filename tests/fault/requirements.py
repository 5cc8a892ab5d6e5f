"""What a scenario needs that this machine has not."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.fault.scenarios import Scenario

_CAP_SYS_ADMIN = 21


def missing(scenario: Scenario) -> str:
    """In words; empty: nothing."""
    if scenario.stage.ROOT and os.geteuid() != 0:
        return "needs root"
    if scenario.stage.ROOT and not _may_administrate():
        return "needs CAP_SYS_ADMIN"
    for program in scenario.stage.PROGRAMS:
        if shutil.which(program) is None:
            return f"needs the program {program}"
    for device in scenario.stage.DEVICES:
        if not Path(device).exists():
            return f"needs the device {device}"
    return ""


def _may_administrate() -> bool:
    """Whether root may make namespaces and mount, which a container's root may not."""
    (line,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
