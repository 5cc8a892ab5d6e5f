"""`cluster start`: nodes in the background, with a supervisor that replaces those that end. Waits until all are ready."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.cli.run import BY_HAND
from cluster.errors import ClusterError

if TYPE_CHECKING:
    from cluster.supervisor.run_folder import RunFolder

SECONDS_FOR_A_LOOK = 0.2


def start(
    nodes: Annotated[
        str,
        typer.Option("--nodes", "-n", metavar="NODES", help="How many, or how many on which queue: default:2,email:1."),
    ] = "1",
) -> None:
    """Run nodes in the background.

    A node that ends is replaced. Their log is .cluster/run/log.
    """
    from cluster.cli.database import settings_with_database
    from cluster.supervisor.run_folder import RunFolder

    layout = read_layout(nodes)
    settings_with_database(BY_HAND)  # what is wrong with them is said here
    folder = RunFolder(Path.cwd())
    folder.make()
    lock = _lock(folder)
    try:
        folder.check_no_orphans()
        folder.clear()
        log_begin = folder.log_size
        supervisor = _started(folder, lock, layout)
    finally:
        os.close(lock)  # the supervisor has it
    _await_ready(supervisor, len(layout), folder, log_begin)
    typer.echo(f"{len(layout)} {'node runs' if len(layout) == 1 else 'nodes run'}; their log: .cluster/run/log")
    typer.echo("`cluster stop` ends them, `cluster restart` replaces them one by one")


def _lock(folder: RunFolder) -> int:
    """ClusterError: a supervisor has it. Who only looks whether one has it has it for a moment."""
    deadline = time.monotonic() + SECONDS_FOR_A_LOOK
    while (lock := folder.take_lock()) is None:
        if time.monotonic() > deadline:
            raise ClusterError("nodes run here already: `cluster restart` replaces them, `cluster stop` ends them")
        time.sleep(0.01)
    return lock


def read_layout(nodes: str) -> list[str]:
    """The queue of each node; empty: those of the settings. Usage error: it is neither a number nor queues with numbers."""
    parts = [part.rpartition(":") for part in nodes.split(",")]
    is_number = len(parts) == 1 and not parts[0][1]
    if not all(count.strip().isdecimal() and int(count) and (is_number or queue.strip()) for queue, _, count in parts):
        raise typer.BadParameter("give a number such as 4, or queues with numbers: default:2,email:1", param_hint="-n")
    return [queue.strip() for queue, _, count in parts for _ in range(int(count))]


def _started(folder: RunFolder, lock: int, layout: list[str]) -> subprocess.Popen[str]:
    """A session of its own: neither Ctrl-C nor the end of the terminal reaches it."""
    environment = BY_HAND | {name: value for name, value in os.environ.items() if value.strip()}
    with os.fdopen(os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.supervisor", str(lock), json.dumps(layout)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[lock],
            start_new_session=True,
            text=True,
        )


def _await_ready(supervisor: subprocess.Popen[str], nodes: int, folder: RunFolder, log_begin: int) -> None:
    """ClusterError: a node could not start, so none runs. Ctrl-C: nor does any."""
    from cluster.cli.waiting import failure_of, waiting

    assert supervisor.stdout is not None
    try:
        with waiting("starting") as show:
            for ready, _ in enumerate(supervisor.stdout, 1):
                show(f"{ready} of {nodes} nodes are ready")
                if ready == nodes:
                    return
        code = supervisor.wait()
    except KeyboardInterrupt:  # SIGTERM is one
        supervisor.terminate()
        supervisor.wait()
        raise
    if not code:
        raise ClusterError("the nodes were stopped meanwhile")
    raise failure_of(code, folder, log_begin)
