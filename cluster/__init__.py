"""A multi-process distributed worker cluster over Postgres: a job type is a table, a job is a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.backoff import ConstantBackoff, ExponentialBackoff, LinearBackoff, PolynomialBackoff
    from cluster.client import AsyncClient, Client
    from cluster.columns import References
    from cluster.configuration import configure
    from cluster.errors import ClusterError
    from cluster.job import Job
    from cluster.migrating import migrate
    from cluster.outcomes import Cancel, Fail, Next, Snooze
    from cluster.schedule import Cron, Every
    from cluster.secret import Secret

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
    "migrate",
]

_NAMES = {
    "backoff": ("ConstantBackoff", "ExponentialBackoff", "LinearBackoff", "PolynomialBackoff"),
    "client": ("AsyncClient", "Client"),
    "columns": ("References",),
    "configuration": ("configure",),
    "errors": ("ClusterError",),
    "job": ("Job",),
    "migrating": ("migrate",),
    "outcomes": ("Cancel", "Fail", "Next", "Snooze"),
    "schedule": ("Cron", "Every"),
    "secret": ("Secret",),
}
"""By module. Imported when they are asked for: pytest imports this package for its plugin, in runs that have no jobs at all."""
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        value: Any = metadata.version("jobcluster")
    elif name in _MODULES:
        value = getattr(import_module(f"cluster.{_MODULES[name]}"), name)
    else:
        raise AttributeError(f"module 'cluster' has no attribute {name!r}")
    globals()[name] = value
    return value
