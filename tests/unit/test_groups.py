"""What lands at process 1 is waited for."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cluster.groups import Orphans, children
from tests.support import as_init

LEAVES_AN_ORPHAN = """
import os, time
from cluster.groups import Orphans, children
orphans = Orphans()
child = os.fork()
if child == 0:
    if os.fork() == 0:
        os._exit(7)
    os._exit(0)
os.waitpid(child, 0)
end = time.monotonic() + 20
while children(1):
    orphans.reap(set())
    assert time.monotonic() < end
"""


@pytest.mark.skipif(not as_init.POSSIBLE, reason="needs the program unshare, and the right to use it")
def test_process_1_waits_for_orphans() -> None:
    subprocess.run([*as_init.AS_INIT, sys.executable, "-c", LEAVES_AN_ORPHAN], check=True, timeout=60)


def test_another_process_leaves_its_children_to_those_who_wait_for_them() -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as program:
        orphans = Orphans()
        assert program.pid in children(os.getpid())
        for _ in range(3):
            orphans.reap(set())
        assert program.wait(20) == 7
