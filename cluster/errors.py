"""Every exception of the package, and the exit codes that the command line ends with.

Messages say what to do next; data sits in attributes.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a `cluster` command ends."""

    DONE = 0
    ERROR = 1
    USAGE = 2
    DATABASE_UNREACHABLE = 3
    JOBS_NOT_IMPORTABLE = 4
    SCHEMA_MISFIT = 5


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing has begun yet that would have to end first. What catches every Exception lets it pass."""


class ClusterError(Exception):
    """Root of all errors raised by this package; the command line prints it as one line."""

    exit_code: ExitCode = ExitCode.ERROR


class SettingsError(ClusterError):
    """The environment holds a value, or a combination of values, that no node can run with."""

    exit_code = ExitCode.USAGE


class DatabaseUnreachableError(ClusterError):
    """No connection to Postgres could be made."""

    exit_code = ExitCode.DATABASE_UNREACHABLE


class JobDefinitionError(ClusterError, TypeError):
    """A job class is not one that the cluster can run; raised when the class is defined."""

    exit_code = ExitCode.JOBS_NOT_IMPORTABLE


class JobImportError(ClusterError):
    """A job module can't be imported, or two job classes claim one name or one table."""

    exit_code = ExitCode.JOBS_NOT_IMPORTABLE


class SchemaMisfitError(ClusterError):
    """Schema `cluster` or a job table is not what this version of the code needs."""

    exit_code = ExitCode.SCHEMA_MISFIT


class JobArgumentError(ClusterError, TypeError):
    """A job was built with an argument that its class does not have, lacks, or refuses."""


class WaitTimeoutError(ClusterError, TimeoutError):
    """A job has not finished within the time that somebody waited for it. It goes on."""


class RecurrenceError(ClusterError, ValueError):
    """A schedule's times make no sense: a wrong cron, an unknown zone, bounds that leave nothing."""


class EnqueueError(ClusterError):
    """A job can't be enqueued this way: wrong connection, both delay and run_at, a naive datetime …"""
