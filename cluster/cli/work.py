"""`cluster work`: the node of `cluster run`, for a person who watches it."""

from __future__ import annotations

import typer

from cluster.cli.run import BY_HAND, Concurrency, HttpPort, Jobs, LogLevel, Processes, Queues, run_here

DEFAULTS = BY_HAND | {"CLUSTER_LOG_FORMAT": "console", "CLUSTER_LOG_JOBS": "all"}


def work(
    jobs: Jobs = None,
    queues: Queues = None,
    processes: Processes = None,
    concurrency: Concurrency = None,
    http_port: HttpPort = None,
    log_level: LogLevel = None,
) -> None:
    """Run one node here, which shows what it does.

    Ctrl-C: finish what runs, then exit; a second time: stop the jobs and give them back.
    """
    from cluster.cli.database import settings_with_database

    settings = settings_with_database(
        DEFAULTS,
        jobs=jobs,
        queues=queues,
        processes=processes,
        concurrency=concurrency,
        http_port=http_port,
        log_level=log_level,
    )
    which = "all queues" if "*" in settings.queues else ", ".join(settings.queues)
    typer.echo(f"cluster: a node on {which}. Ctrl-C: finish what runs, then exit;", err=True)
    typer.echo("         a second Ctrl-C: stop that, and give it back", err=True)
    run_here(settings, attached=True)
