"""What jobs write down while they run: one line in one write at each start and end, in a file that survives everybody.

Times are CLOCK_BOOTTIME seconds of the one host on which everything runs.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.lease_clock import boottime

Job = tuple[str, int]
"""Type's name and id."""
LOOK = 0.01


@dataclass
class Execution:
    """One run of perform in one process. ended None: no end was written, so it lasted until its process died.

    completed: perform came to its end, and was not stopped. clashed: at its start the kernel still held another execution's
    lock on the same job. slot: which of its type's places it got; -1: all were taken; None: the type has no limit.
    """

    job: Job
    attempt: int
    pid: int
    begun: float
    clashed: bool = False
    slot: int | None = None
    ended: float | None = None
    completed: bool = False


def parse(lines: Iterable[str]) -> list[Execution]:
    """Executions in the order of their starts. Line: what, type, id, attempt, pid, time, clash, slot ("-": no limit)."""
    executions: list[Execution] = []
    open_ones: dict[tuple[int, Job], Execution] = {}
    for line in lines:
        what, name, number, attempt, pid, time, clash, slot = line.split()
        job = name, int(number)
        if what == "start":
            execution = Execution(
                job, int(attempt), int(pid), float(time), clash == "1", None if slot == "-" else int(slot)
            )
            executions.append(execution)
            open_ones[int(pid), job] = execution
        else:
            execution = open_ones.pop((int(pid), job))
            execution.ended, execution.completed = float(time), what == "end"
    return executions


@dataclass
class Coroner:
    """Notes when each process that performs jobs dies. Finds them in the journal; a thread of its own."""

    path: Path
    deaths: dict[int, float] = field(default_factory=dict)
    """Pid to time, a little after the death."""

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="coroner", daemon=True)
        self._offset = 0
        self._watched: dict[int, int] = {}
        self._poll = select.poll()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for handle in self._watched:
            os.close(handle)

    def _run(self) -> None:
        while not self._stop.wait(LOOK):
            for pid in self._new_pids():
                self._watch(pid)
            for handle, _ in self._poll.poll(0):
                self.deaths[self._watched.pop(handle)] = boottime()
                self._poll.unregister(handle)
                os.close(handle)

    def _watch(self, pid: int) -> None:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            self.deaths[pid] = boottime()
            return
        self._watched[handle] = pid
        self._poll.register(handle, select.POLLIN)

    def _new_pids(self) -> set[int]:
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        complete = text[: text.rfind(b"\n") + 1]
        self._offset += len(complete)
        pids = {int(line.split()[4]) for line in complete.splitlines() if line.startswith(b"start")}
        return pids - set(self._watched.values()) - set(self.deaths)
