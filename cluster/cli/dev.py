"""`cluster dev`: everything a developer needs in one terminal. Chooses database and port; `dev_session` does the rest."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from cluster.cli.dev_session import DevSession
    from cluster.embedded import EmbeddedPostgres
    from cluster.settings import Settings

# Where a developer waits for a reload, and nobody else should reach the probes; the environment may say otherwise.
DEFAULTS = {
    "CLUSTER_SHUTDOWN_TIMEOUT": "5s", "CLUSTER_HTTP_HOST": "127.0.0.1", "CLUSTER_LOG_JOBS": "all",
    "CLUSTER_DASHBOARD_AUTH": "none",
}  # fmt: skip
DASHBOARD_PORT = 8484
"""Not 8080, which the app's own server may want."""
OF_THE_DASHBOARD = ("jinja2", "starlette", "uvicorn")


def dev(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- COMMAND",
            help="Your app's server, run beside the node with DATABASE_URL set.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run a node that reloads, the dashboard, and a Postgres if none is set.

    cluster dev -- uvicorn app:app --reload
    """
    from cluster.cli.dev_session import DevSession
    from cluster.settings import load_settings

    _require_watchfiles()
    environment = DEFAULTS | dict(os.environ)
    settings = load_settings(environment)
    session = DevSession(command or [], Path.cwd(), has_dashboard=all(map(find_spec, OF_THE_DASHBOARD)))
    server = None if settings.database_configured else _project_server()
    with session.signals_noted(), _running(server, session):
        environment |= _addresses(settings, server, session.has_dashboard)
        if server is not None:
            session.say(f"database: psql '{server.url()}'")
        if environment["CLUSTER_HTTP_PORT"] != "0":
            session.say(f"metrics:  http://127.0.0.1:{environment['CLUSTER_HTTP_PORT']}/metrics")
        if not session.has_dashboard:
            session.say("no dashboard, which is not installed: pip install 'jobcluster[dashboard]'")
        code = asyncio.run(session.run(environment))
    raise typer.Exit(code)


def _project_server() -> EmbeddedPostgres:
    from cluster.embedded import project_server

    return project_server(Path.cwd())


@contextmanager
def _running(server: EmbeddedPostgres | None, session: DevSession) -> Iterator[None]:
    """With the server up. The last session of a folder stops it."""
    with ExitStack() as use:
        try:
            if server is not None:
                use.enter_context(server.used())
        except ClusterError:
            if session.interrupted:  # a Ctrl-C reaches initdb and pg_ctl as well
                raise typer.Exit(130) from None
            raise
        yield


def _addresses(settings: Settings, server: EmbeddedPostgres | None, has_dashboard: bool) -> dict[str, str]:
    """What the node, the dashboard and the app's server find in their environment."""
    url = settings.database_url if server is None else server.url()
    # Empty: only libpq's own variables are set, and children read them as well.
    found = {"DATABASE_URL": url, "CLUSTER_DATABASE_URL": url} if url else {}
    found["CLUSTER_HTTP_PORT"] = str(_port(settings, "http", settings.http_port))
    if has_dashboard:
        found["CLUSTER_DASHBOARD_PORT"] = str(_port(settings, "dashboard", DASHBOARD_PORT))
    return found


def _port(settings: Settings, server: Literal["http", "dashboard"], default: int) -> int:
    """The default, or a free one where that is taken. A port that somebody asked for is not replaced."""
    from cluster.embedded import free_port

    name = f"{server}_port"
    source = {variable: source for variable, _, source, _ in settings.describe()}[f"CLUSTER_{name.upper()}"]
    if source != "default":
        return int(getattr(settings, name))
    return default if _is_free(getattr(settings, f"{server}_host"), default) else free_port()


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def _require_watchfiles() -> None:
    try:
        import watchfiles  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ClusterError("cluster dev watches files: pip install 'jobcluster[embedded]'") from error
