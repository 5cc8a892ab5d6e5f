"""Which database a command works on, and a connection to it.

The one of the settings, else the running one of `./.cluster`. Everything that can go wrong on the way is said in one
line that names host and database, and never a password.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import typer
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from cluster.errors import DatabaseUnreachableError
from cluster.settings import Settings, load_settings

SECONDS_TO_CONNECT = 10


def settings_with_database(defaults: Mapping[str, str] | None = None, **flags: object) -> Settings:
    """The settings, with the URL of `./.cluster` where none is set. DatabaseUnreachableError: there is neither.

    defaults: of the command, for variables that are not set.
    """
    environment = dict(defaults or {}) | {name: value for name, value in os.environ.items() if value.strip()}
    settings = load_settings(environment, **flags)
    if settings.database_configured:
        return settings
    from cluster.embedded import running_project_url

    url = running_project_url(Path.cwd())
    if url is None:
        raise DatabaseUnreachableError("there is no database: set CLUSTER_DATABASE_URL, or run `cluster dev`")
    typer.echo("using the database of ./.cluster", err=True)
    return load_settings(environment, **flags | {"database_url": url})


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """A connection in autocommit. DatabaseUnreachableError: there is none to be had."""
    # A command makes few statements, so nothing is lost by what a pooler can't do.
    waiting: dict[str, Any] = {} if "connect_timeout" in url else {"connect_timeout": SECONDS_TO_CONNECT}
    with explained(url):
        connection = psycopg.connect(
            url, autocommit=True, prepare_threshold=None, client_encoding="utf-8", application_name="cluster", **waiting
        )
    with connection:
        yield connection


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Turns psycopg's errors about connections into DatabaseUnreachableError."""
    try:
        yield
    except psycopg.OperationalError as error:
        if not is_unreachable(error):
            raise
        raise DatabaseUnreachableError(_explanation(url, str(error))) from error


def is_unreachable(error: psycopg.Error) -> bool:
    """Whether it is about the connection; a lock or a query that took too long is an OperationalError as well."""
    return isinstance(error, psycopg.OperationalError) and (error.sqlstate or "08")[:2] in {"08", "28", "3D"}


def _explanation(url: str, message: str) -> str:
    first_line = message.strip().partition("\n")[0]
    reason = first_line.rpartition("failed: ")[2].removeprefix("FATAL:").strip()
    if "authentication" in reason or reason.startswith(("role ", "no password")):
        advice = "check user and password in CLUSTER_DATABASE_URL"
    elif reason.startswith("database ") and reason.endswith("does not exist"):
        advice = "create it, or correct CLUSTER_DATABASE_URL"
    else:
        advice = "start Postgres, or correct CLUSTER_DATABASE_URL"
    return f"can't reach {_place(url)} ({reason}): {advice}"


def _place(url: str) -> str:
    """Host, port and database, as libpq takes them from the URL, the environment and its own defaults."""
    defaults = {option.keyword.decode(): option.val.decode() for option in pq.Conninfo.get_defaults() if option.val}
    given: dict[str, Any] = defaults | conninfo_to_dict(url)
    host = given.get("host") or given.get("hostaddr") or "the local socket"
    database = given.get("dbname") or given.get("user") or ""
    return f"database {database} on {host}:{given.get('port', '5432')}"
