"""`cluster dashboard`: the web page on which people watch and steer jobs, alone in a process. Needs no job classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import ClusterError, SettingsError

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from cluster.dashboard.auth import Authenticate
    from cluster.settings import Settings

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SECONDS_TO_STOP = 3
"""For what is under way when a signal comes; a live page has no end of its own."""


def dashboard(
    host: Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="As CLUSTER_DASHBOARD_HOST.")] = None,
    port: Annotated[int | None, typer.Option("--port", metavar="PORT", help="As CLUSTER_DASHBOARD_PORT.")] = None,
    auth: Annotated[
        str | None,
        typer.Option("--auth", metavar="AUTH", help="As CLUSTER_DASHBOARD_AUTH: basic, header, none or a function."),
    ] = None,
) -> None:
    """Serve the dashboard: what waits, runs and fails, and what to do about it."""
    try:
        import jinja2  # noqa: F401 - here for the message alone
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ClusterError("the dashboard is not installed: pip install 'jobcluster[dashboard]'") from error
    from cluster.cli.database import settings_with_database

    settings = settings_with_database(dashboard_host=host, dashboard_port=port, dashboard_auth=auth)
    config = uvicorn.Config(
        application(settings),
        host=settings.dashboard_host,
        port=settings.dashboard_port,
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=SECONDS_TO_STOP,
    )
    with config.bind_socket() as socket:
        socket.listen()  # whoever reads the line may come
        name = f"[{settings.dashboard_host}]" if ":" in settings.dashboard_host else settings.dashboard_host
        typer.echo(f"dashboard: http://{name}:{socket.getsockname()[1]}{settings.dashboard_prefix}/", err=True)
        uvicorn.Server(config).run([socket])


def application(settings: Settings) -> ASGIApp:
    """Below the prefix; the root leads there. /livez says that it lives, to anybody: it is for probes."""
    from starlette.applications import Starlette
    from starlette.responses import PlainTextResponse, RedirectResponse
    from starlette.routing import BaseRoute, Mount, Route

    from cluster.dashboard import dashboard as made

    inner = made(
        _auth(settings),
        database_url=settings.read_database_url,
        proxies=settings.dashboard_proxies,
        secret=settings.dashboard_secret,
    )
    prefix = settings.dashboard_prefix
    routes: list[BaseRoute] = [Route("/livez", lambda _: PlainTextResponse("ok\n"))]
    if prefix:  # relative, so that they hold behind any proxy
        routes += [
            Route("/", lambda _: RedirectResponse(f"{prefix[1:]}/")),
            Route(prefix, lambda _: RedirectResponse(f"{prefix.rpartition('/')[2]}/")),
        ]
    return Starlette(routes=[*routes, Mount(prefix, inner)], lifespan=inner.router.lifespan_context)


def _auth(settings: Settings) -> Authenticate:
    """SettingsError: nobody could be kept out."""
    from cluster.dashboard import BasicAuthStatic, NoAuth, ProxyHeader
    from cluster.dashboard.proxy import roles_of

    match settings.dashboard_auth:
        case "none":
            if settings.dashboard_host not in LOOPBACK:
                raise SettingsError(
                    f"CLUSTER_DASHBOARD_AUTH=none is for loopback only, and CLUSTER_DASHBOARD_HOST={settings.dashboard_host}"
                    " is not: set CLUSTER_DASHBOARD_USER and CLUSTER_DASHBOARD_PASSWORD"
                )
            return NoAuth()
        case "basic":
            if not settings.dashboard_user or not settings.dashboard_password:
                raise SettingsError(
                    "the dashboard asks for a password: set CLUSTER_DASHBOARD_USER and CLUSTER_DASHBOARD_PASSWORD,"
                    " or CLUSTER_DASHBOARD_AUTH=none on this machine alone"
                )
            return BasicAuthStatic(settings.dashboard_user, settings.dashboard_password)
        case "header":
            if not settings.dashboard_proxies:
                raise SettingsError(
                    f"CLUSTER_DASHBOARD_AUTH=header believes {settings.dashboard_user_header} of a proxy: name its addresses with"
                    " CLUSTER_DASHBOARD_PROXIES, such as 10.0.0.0/8"
                )
            return ProxyHeader(
                settings.dashboard_proxies,
                header=settings.dashboard_user_header,
                roles=roles_of(settings.dashboard_roles),
                groups_header=settings.dashboard_groups_header or None,
            )
        case own:
            return _own(own)


def _own(name: str) -> Authenticate:
    """A function of the application's: `app.auth:authenticate`."""
    import sys
    from importlib import import_module
    from pathlib import Path

    module, _, attribute = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Authenticate = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"CLUSTER_DASHBOARD_AUTH={name}: {error}") from error
    return found
