"""The application's job classes, for commands: imported without a word on stdout, and found by any of their names."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path

from cluster.errors import ClusterError
from cluster.job import Job, definition
from cluster.settings import Settings


def imported_jobs(settings: Settings) -> list[type[Job]]:
    """The job classes of `CLUSTER_JOBS`. What their modules print goes to stderr: stdout is the command's answer."""
    from cluster.discovery import import_jobs

    with redirect_stdout(sys.stderr):
        return import_jobs(settings.jobs, Path.cwd())


def find_job(name: str, job_classes: Iterable[type[Job]]) -> type[Job]:
    """By class name, with or without `Job`, or by table. ClusterError: there is none."""
    found = {key: job_class for job_class in job_classes for key in _keys(job_class)}
    if name not in found:
        names = sorted({job_class.__name__ for job_class in found.values()})
        raise ClusterError(f"there is no job {name!r}{did_you_mean(name, found, names)}")
    return found[name]


def did_you_mean(name: str, known: Iterable[str], listed: Iterable[str]) -> str:
    """`: did you mean 'EmailJob'?`, else the names that there are."""
    close = difflib.get_close_matches(name, list(known), n=1)
    if close:
        return f": did you mean {close[0]!r}?"
    return f": there is {', '.join(listed)}" if listed else ""


def _keys(job_class: type[Job]) -> set[str]:
    table = definition(job_class).table
    name = job_class.__name__
    return {name, name.removesuffix("Job"), table, table.removesuffix("_jobs")}
