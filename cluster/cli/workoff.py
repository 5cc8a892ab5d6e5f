"""`cluster workoff`: a node that performs what is due, shows how far it is, says what is left, and exits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cluster.cli.run import BY_HAND, Concurrency, HttpPort, Jobs, LogLevel, Processes, Queues, run_here

if TYPE_CHECKING:
    from cluster.coordinator.workoff import Left, Progress

FAILED = ("failed", "timed_out")
_ENDS = {
    "succeeded": "succeeded",
    "failed": "failed for good",
    "retry": "to be tried again",
    "snoozed": "snoozed",
    "cancelled": "cancelled",
    "released": "given back",
}


def workoff(
    jobs: Jobs = None,
    queues: Queues = None,
    processes: Processes = None,
    concurrency: Concurrency = None,
    http_port: HttpPort = None,
    log_level: LogLevel = None,
) -> None:
    """Perform all jobs that are due, then exit.

    What is scheduled, or waits for another attempt, stays, unless it becomes due meanwhile.
    Exit code 1: some jobs failed for good.
    """
    from cluster.cli.database import settings_with_database
    from cluster.cli.progress_display import ProgressDisplay

    settings = settings_with_database(
        BY_HAND,
        jobs=jobs,
        queues=queues,
        processes=processes,
        concurrency=concurrency,
        http_port=http_port,
        log_level=log_level,
    )
    with ProgressDisplay() as display:
        ended_by = run_here(settings, display.tell, attached=True)
    progress = display.progress
    if progress is not None:
        _sum_up(progress)
    if ended_by:
        raise typer.Exit(128 + ended_by)
    if progress is not None and failed(progress):
        raise typer.Exit(1)


def failed(progress: Progress) -> int:
    """Jobs that failed for good."""
    return progress.given_up + sum(progress.ended[status] for status in FAILED)


def _sum_up(progress: Progress) -> None:
    from cluster.cli.tables import print_paragraph

    counts = {**progress.ended, "failed": failed(progress)}
    ends = [f"{counts[name]:,} {words}" for name, words in _ENDS.items() if counts.get(name)]
    print_paragraph(", ".join(ends) if ends else "nothing was due" if progress.is_over else "nothing has ended")
    for left in progress.left:
        words = _words(left, is_over=progress.is_over)
        if words:
            print_paragraph(f"left of {left.job_type}: {words}")


def _words(left: Left, *, is_over: bool) -> str:
    """Empty: nothing is left that this command could have performed."""
    why = f" ({left.why})" if is_over else ""
    parts = {
        f"{left.due:,} that could not be had{why}" if is_over else f"{left.due:,} due": left.due,
        f"{left.paused:,} paused": left.paused,
        f"{left.scheduled:,} scheduled": left.scheduled,
        f"{left.retry:,} to be tried again": left.retry,
        f"{left.running:,} that run on other nodes": left.running,
        f"unknown: {left.why}": left.why and not left.due,
    }
    return ", ".join(text for text, is_there in parts.items() if is_there)
