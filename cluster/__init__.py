"""A multi-process distributed worker cluster over Postgres: a job type is a table, a job is a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cluster.backoff import ConstantBackoff, ExponentialBackoff, LinearBackoff, PolynomialBackoff
from cluster.columns import References
from cluster.configuration import configure
from cluster.errors import ClusterError
from cluster.job import Job
from cluster.outcomes import Cancel, Fail, Next, Snooze
from cluster.schedule import Cron, Every
from cluster.secret import Secret

if TYPE_CHECKING:
    from cluster.client import AsyncClient, Client

    __version__: str

__all__ = [
    "AsyncClient",
    "Cancel",
    "Client",
    "ClusterError",
    "ConstantBackoff",
    "Cron",
    "Every",
    "ExponentialBackoff",
    "Fail",
    "Job",
    "LinearBackoff",
    "Next",
    "PolynomialBackoff",
    "References",
    "Secret",
    "Snooze",
    "__version__",
    "configure",
]


def __getattr__(name: str) -> Any:
    """The pool and the package's metadata are imported when they are asked for."""
    if name in {"AsyncClient", "Client"}:
        from cluster import client

        return getattr(client, name)
    if name == "__version__":
        from importlib.metadata import version

        return version("jobcluster")
    raise AttributeError(f"module 'cluster' has no attribute {name!r}")
