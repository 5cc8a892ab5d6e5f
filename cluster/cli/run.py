"""`cluster run`: one node in the foreground, what pods and units run."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer


def run(
    jobs: Annotated[str | None, typer.Option(metavar="MODULES", help="As CLUSTER_JOBS.")] = None,
    queues: Annotated[str | None, typer.Option(metavar="NAMES", help="As CLUSTER_QUEUES.")] = None,
    processes: Annotated[int | None, typer.Option(metavar="N", help="As CLUSTER_PROCESSES.")] = None,
    concurrency: Annotated[int | None, typer.Option(metavar="N", help="As CLUSTER_CONCURRENCY.")] = None,
    http_port: Annotated[int | None, typer.Option(metavar="PORT", help="As CLUSTER_HTTP_PORT.")] = None,
    log_format: Annotated[str | None, typer.Option(metavar="FORMAT", help="console or json.")] = None,
    log_level: Annotated[str | None, typer.Option(metavar="LEVEL", help="debug, info, warning …")] = None,
) -> None:
    """Run one node in the foreground.

    SIGTERM or Ctrl-C: finish what runs, then exit; a second time: stop the jobs and give them back.
    """
    from cluster import events
    from cluster.cli.database import explained, settings_with_database
    from cluster.coordinator.service_manager import ServiceManager
    from cluster.discovery import import_jobs
    from cluster.logs import configure_logs

    service_manager = ServiceManager.of(os.environ)  # before the imports of jobs, which may start programs
    settings = settings_with_database(
        jobs=jobs,
        queues=queues,
        processes=processes,
        concurrency=concurrency,
        http_port=http_port,
        log_format=log_format,
        log_level=log_level,
    )
    configure_logs(settings.log_format, settings.log_level)
    if settings.strangers:
        events.unknown_variables(list(settings.strangers))
    app_dir = Path.cwd()
    began = time.monotonic()
    job_classes = import_jobs(settings.jobs, app_dir)
    import_seconds = time.monotonic() - began
    from cluster.coordinator.main import run_node

    with explained(settings.database_url):
        run_node(settings, job_classes, app_dir, import_seconds, service_manager)
