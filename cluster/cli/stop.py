"""`cluster stop` and `cluster restart`: to the supervisor of this folder, known by its lock, its pid and its start time."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from cluster.supervisor.run_folder import Process, RunFolder, State

PAUSE = 0.1
"""Seconds between two looks at the folder."""
SECONDS_TO_APPEAR = 10.0
"""In which a supervisor that was just started writes who it is."""


def stop() -> None:
    """End the nodes of `cluster start`.

    They finish what runs. Called a second time meanwhile: they stop it and give it back.
    """
    from cluster.supervisor.run_folder import RunFolder

    folder = RunFolder(Path.cwd())
    state = _running(folder)
    if state is None:
        _stop_orphans(folder)
        return
    state.supervisor.send(signal.SIGTERM)
    _await_end(folder, state.timeout)
    typer.echo(f"{_nodes(state.places)} ended")


def restart() -> None:
    """Replace the nodes of `cluster start` one by one.

    Each is drained once its successor is ready, which runs the code and the job modules of now.
    """
    from cluster.cli.waiting import failure_of, waiting
    from cluster.supervisor.run_folder import RunFolder

    folder = RunFolder(Path.cwd())
    before = _running(folder)
    if before is None:
        folder.check_no_orphans()
        raise ClusterError("no nodes run here: `cluster start` starts them")
    if before.renewed is not None:
        raise ClusterError("a restart is under way: wait for its end")
    log_begin = folder.log_size
    before.supervisor.send(signal.SIGHUP)
    with waiting("restarting") as show:
        while (state := folder.read()) is None or state.restarts == before.restarts:
            if not before.supervisor.lives:
                raise ClusterError("the nodes were stopped meanwhile")
            if state is not None and state.renewed is not None:
                show(f"{state.renewed} of {state.places} nodes are replaced")
            time.sleep(PAUSE)
    if state.restart_code:
        raise failure_of(state.restart_code, folder, log_begin)
    typer.echo(f"{_nodes(state.places)} been replaced")


def _running(folder: RunFolder) -> State | None:
    """What the living supervisor says. None: there is none. ClusterError: somebody has its lock who can't be it."""
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while folder.is_locked:
        state = folder.read()
        if state is not None and state.supervisor.lives:
            return state
        if time.monotonic() > deadline:
            raise ClusterError(
                "the lock .cluster/run/lock is held by a process that can't be seen from here: another container?"
            )
        time.sleep(PAUSE)
    return None


def _await_end(folder: RunFolder, timeout: float) -> None:
    """Until the supervisor has let go of its lock."""
    from cluster.cli.waiting import waiting

    deadline = time.monotonic() + timeout
    with waiting("stopping") as show:
        while folder.is_locked:
            left = max(0.0, deadline - time.monotonic())
            show(f"what runs is finished; {left:.0f} s left at most")
            time.sleep(PAUSE)


# --- nodes whose supervisor was killed ---


def _stop_orphans(folder: RunFolder) -> None:
    """Only what is a node by start time and by its row."""
    state, orphans = folder.read(), folder.orphans()
    if state is None or not orphans:
        typer.echo("no nodes run here")
        return
    registered = _registered(orphans)
    for process in registered:
        process.send(signal.SIGTERM)
    deadline = time.monotonic() + state.timeout
    while any(process.lives for process in registered) and time.monotonic() < deadline:
        time.sleep(PAUSE)
    left = [process.pid for process in orphans if process.lives]
    if left:
        raise ClusterError(f"processes {left} have not ended, or are no nodes by cluster.nodes: end them by hand")
    folder.clear()
    typer.echo(f"{_nodes(len(registered))} ended, whose supervisor was killed before")


def _registered(processes: Sequence[Process]) -> list[Process]:
    """Those that have a row of a living node."""
    import socket

    from cluster.cli.database import connected, settings_with_database

    query = "SELECT pid FROM cluster.nodes WHERE hostname = %s AND pid = ANY (%s) AND state IN ('live', 'draining')"
    with connected(settings_with_database().database_url) as connection:
        pids = [process.pid for process in processes]
        rows = connection.execute(query, [socket.gethostname(), pids]).fetchall()
    known = {pid for (pid,) in rows}
    return [process for process in processes if process.pid in known]


def _nodes(count: int) -> str:
    return "1 node has" if count == 1 else f"{count} nodes have"
