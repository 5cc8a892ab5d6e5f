"""`cluster run`: one node in the foreground, what pods and units run. `work` and `workoff` are the same node, by hand."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cluster.coordinator.workoff import Progress
    from cluster.settings import Settings

Jobs = Annotated[str | None, typer.Option("--jobs", metavar="MODULES", help="As CLUSTER_JOBS.")]
Queues = Annotated[str | None, typer.Option("--queues", metavar="NAMES", help="As CLUSTER_QUEUES.")]
Processes = Annotated[int | None, typer.Option("--processes", metavar="N", help="As CLUSTER_PROCESSES.")]
Concurrency = Annotated[int | None, typer.Option("--concurrency", metavar="N", help="As CLUSTER_CONCURRENCY.")]
HttpPort = Annotated[int | None, typer.Option("--http-port", metavar="PORT", help="As CLUSTER_HTTP_PORT.")]
LogFormat = Annotated[str | None, typer.Option("--log-format", metavar="FORMAT", help="console or json.")]
LogLevel = Annotated[str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning …")]

BY_HAND = {"CLUSTER_HTTP_PORT": "0"}
"""Of nodes that people start by hand, perhaps several on a machine; the environment may say otherwise."""


def run(
    jobs: Jobs = None,
    queues: Queues = None,
    processes: Processes = None,
    concurrency: Concurrency = None,
    http_port: HttpPort = None,
    log_format: LogFormat = None,
    log_level: LogLevel = None,
) -> None:
    """Run one node in the foreground.

    SIGTERM or Ctrl-C: finish what runs, then exit; a second time: stop the jobs and give them back.
    """
    from cluster.cli.database import settings_with_database

    settings = settings_with_database(
        jobs=jobs,
        queues=queues,
        processes=processes,
        concurrency=concurrency,
        http_port=http_port,
        log_format=log_format,
        log_level=log_level,
    )
    run_here(settings)


def run_here(settings: Settings, tell: Callable[[Progress], None] | None = None, *, attached: bool = False) -> int:
    """Runs a node in this process; tell, attached and what it returns are as in `run_node`."""
    from cluster import events
    from cluster.cli.database import explained
    from cluster.coordinator.service_manager import ServiceManager
    from cluster.discovery import import_jobs
    from cluster.logs import configure_logs

    service_manager = ServiceManager.of(os.environ)  # before the imports of jobs, which may start programs
    configure_logs(settings.log_format, settings.log_level)
    if settings.strangers:
        events.unknown_variables(list(settings.strangers))
    app_dir = Path.cwd()
    began = time.monotonic()
    job_classes = import_jobs(settings.jobs, app_dir)
    import_seconds = time.monotonic() - began
    from cluster.coordinator.main import run_node

    with explained(settings.database_url):
        return run_node(settings, job_classes, app_dir, import_seconds, service_manager, tell, attached=attached)
