"""Entry of a worker process: cuts what ties it to others, then runs the loop that performs jobs."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import uvloop

from cluster.discovery import import_jobs
from cluster.errors import ExitCode, JobImportError
from cluster.frames import for_coordinator
from cluster.groups import lead_group
from cluster.job import Job, definition
from cluster.job_shape import check_shapes
from cluster.logs import configure_logs
from cluster.notes import Notes
from cluster.spawn import STACK_SIGNAL, WorkerOptions
from cluster.worker import preload
from cluster.worker.fence import end_with_parent
from cluster.worker.job_metrics import report_values
from cluster.worker.perform import Performer, ignore_signals, watch_forks
from cluster.worker.runner import Runner

log = structlog.get_logger("cluster.worker")


def main(options: WorkerOptions, connection: socket.socket, array: Any) -> None:
    """Target of the process. Returns when the coordinator is gone."""
    _end_with_parent(options.parent)
    lead_group()
    ignore_signals()
    watch_forks()
    _write_stacks_to(options.stacks)
    configure_logs(options.log_format, options.log_level)
    report_values()
    classes = _import(options, lambda *frame: connection.sendall(for_coordinator(frame)))
    _reseed()
    performers = [Performer.of(classes[job["name"]]) for job in options.jobs]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as loop:
        try:
            runner = loop.run(_connect(performers, connection, Notes(array, options.slots), options.slots))
            runner.channel.send(("ready", preload.threads, list(classes)))
            while loop.run(runner.run()):
                runner.perform_in_main()  # while no loop runs: a plain job may have one of its own
        except BaseException:  # a task of a job's own may end the loop, by SystemExit
            # Leaving the block would cancel the other jobs and report them as failed: they are released instead.
            log.critical("worker_loop_ended", exc_info=True)
            os._exit(1)
    os._exit(0)  # threads of jobs, and what they left behind, must not hold the process


def _import(options: WorkerOptions, tell: Callable[..., None]) -> dict[str, type[Job]]:
    """The job classes by name. Ends the process if they are not what its coordinator needs, which may have other code."""
    try:
        found = import_jobs(options.modules, options.app_dir, lambda name: tell("importing", name))
        check_shapes(found, options.jobs)
    except JobImportError as error:
        tell("unfit", str(error))
        os._exit(ExitCode.JOBS_NOT_IMPORTABLE)
    return {definition(job_class).name: job_class for job_class in found}


async def _connect(performers: list[Performer], connection: socket.socket, notes: Notes, slots: int) -> Runner:
    runner = Runner(performers, notes, slots)
    connection.setblocking(False)
    await asyncio.get_running_loop().create_unix_connection(lambda: runner.channel, sock=connection)
    return runner


def _write_stacks_to(file: str) -> None:
    """At STACK_SIGNAL. The handler is C: it works while a job holds the interpreter."""
    with contextlib.suppress(OSError):
        if file:
            # faulthandler keeps it open.
            faulthandler.register(STACK_SIGNAL, file=Path(file).open("ab", buffering=0), all_threads=True)  # noqa: SIM115


def _reseed() -> None:
    """Workers are forks of one process: they must not draw the same numbers. Python's own generator sees to that itself."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()


def _end_with_parent(coordinator: int) -> None:
    """A worker must not outlive its coordinator, whatever it is doing.

    It inherits the write end of the pipe by whose closing the forkserver notices that the coordinator is gone; while any
    worker holds that, the forkserver lives on. Once it ends, so do its children, by their parent-death signal.
    """
    if "multiprocess.forkserver" in sys.modules:
        forkserver = sys.modules["multiprocess.forkserver"]._forkserver
        if forkserver._forkserver_alive_fd is not None:
            os.close(forkserver._forkserver_alive_fd)
            forkserver._forkserver_alive_fd = None
    end_with_parent()
    try:
        os.kill(coordinator, 0)
    except ProcessLookupError:
        os._exit(0)
