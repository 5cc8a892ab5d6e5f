"""Wires the dashboard: routes, the guard before them, and what is shown when the database refuses or is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import psycopg
from psycopg import errors
from psycopg_pool import PoolTimeout
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from cluster.configuration import default_database_url
from cluster.dashboard.addresses import Addresses
from cluster.dashboard.auth import Authenticate, BasicAuth
from cluster.dashboard.database import SECONDS, SECONDS_TO_COUNT, Database
from cluster.dashboard.deeds import Deeds
from cluster.dashboard.guard import Guard
from cluster.dashboard.job_views import JobView, JobViews
from cluster.dashboard.pages import Pages
from cluster.dashboard.schedules import Schedules
from cluster.dashboard.views import FOLDER, Views
from cluster.job import Job
from cluster.settings import dashboard_settings


def dashboard(
    auth: Authenticate | None = None,
    *,
    jobs: Sequence[JobView | type[Job] | str] | None = None,
    database_url: str | Callable[[], str] | None = None,
    proxies: str | None = None,
    secret: str | None = None,
) -> Starlette:
    """An ASGI application, to be mounted below any path.

    auth: who may look and act; None: BasicAuth. jobs: the types that it shows, each a class, the name of its table or a
    JobView; None or empty: all that there are. database_url: None: that of `cluster.configure`, or of the environment.
    proxies: addresses whose X-Forwarded-Prefix and X-Forwarded-For are believed; None: CLUSTER_DASHBOARD_PROXIES.
    secret: with which forms are signed, so that other processes take them; None: CLUSTER_DASHBOARD_SECRET.
    """
    settings = dashboard_settings()
    given = default_database_url() if database_url is None else database_url
    views = Views(settings.dashboard_secret if secret is None else secret)
    job_views = JobViews(jobs, views.templates)
    database = Database(given if callable(given) else lambda: given, job_views.shown)
    pages = Pages(database, views, job_views)
    deeds = Deeds(database, views, job_views)
    schedules = Schedules(database, views, deeds)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        """Only of a dashboard that runs alone: one that is mounted ends with its process."""
        yield
        await pages.live.stop()
        await deeds.runs.stop()
        await database.close()

    failed = _Failed(views)
    routes = [
        Mount("/static", StaticFiles(directory=FOLDER / "static"), name="static"),
        Route("/", pages.overview),
        Route("/live", pages.watch),
        Route("/charts", pages.charts),
        Route("/errors", pages.errors),
        Route("/errors/{fingerprint}", pages.error_group),
        Route("/nodes", pages.nodes),
        Route("/nodes/{node:uuid}", pages.node),
        Route("/nodes/{node:uuid}", deeds.node, methods=["POST"]),
        Route("/queues", pages.queues),
        Route("/queues", deeds.queue, methods=["POST"]),
        Route("/schedules", schedules.index),
        Route("/schedules", schedules.do, methods=["POST"]),
        Route("/schedules/show", schedules.schedule),
        Route("/schedules/new", schedules.new_form),
        Route("/schedules/edit", schedules.edit_form),
        Route("/schedules/save", schedules.save, methods=["POST"]),
        Route("/schedules/check", schedules.check, methods=["POST"]),
        Route("/schedules/backfill", schedules.backfill_form),
        Route("/schedules/backfill", schedules.backfill, methods=["POST"]),
        Route("/palette", pages.palette),
        Route("/audit", pages.audit),
        Route("/bulk/{run}", deeds.show_run),
        Route("/bulk/{run}", deeds.stop_run, methods=["POST"]),
        Route("/{table}", pages.jobs),
        Route("/{table}/oldest", pages.oldest),
        Route("/{table}/new", deeds.new_form),
        Route("/{table}/new", deeds.new, methods=["POST"]),
        Route("/{table}/options", pages.options),
        Route("/{table}/views", deeds.views, methods=["POST"]),
        Route("/{table}/type", deeds.job_type, methods=["POST"]),
        Route("/{table}/bulk/{action}", deeds.preview),
        Route("/{table}/bulk/{action}", deeds.begin, methods=["POST"]),
        Route("/{table}/{id}", pages.job),
        Route("/{table}/{id}/value", pages.value),
        Route("/{table}/{id}/secret", deeds.secret, methods=["POST"]),
        Route("/{table}/{id}/{action}", deeds.job, methods=["POST"]),
    ]
    return Starlette(
        routes=routes,
        lifespan=lifespan,
        middleware=[
            Middleware(
                Guard,
                authenticate=BasicAuth() if auth is None else auth,
                proxies=Addresses(settings.dashboard_proxies if proxies is None else proxies),
            )
        ],
        exception_handlers={psycopg.Error: failed.of_database, HTTPException: failed.of_request},
    )


class _Failed:
    """Pages that say what went wrong, and what to do."""

    def __init__(self, views: Views) -> None:
        self._views = views

    async def of_request(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        titles = {403: "Not allowed", 404: "Not here", 405: "Not that way", 409: "Not any more", 413: "Too much"}
        detail = error.detail if error.detail and error.status_code != 404 else ""
        text = detail or ("There is no such page." if error.detail == "Not Found" else error.detail)
        return self._views.problem(request, error.status_code, titles.get(error.status_code, "That went wrong"), text)

    async def of_database(self, request: Request, error: Exception) -> Response:
        """An error that is none of those is a bug, and shows in the log of the server."""
        for kinds, status, title, text in _DATABASE:
            if isinstance(error, kinds):
                return self._views.problem(request, status, title, text, again=status == 503)
        if isinstance(
            error, errors.IntegrityError | errors.DataError | errors.RaiseException
        ):  # an index or trigger of the user's
            said = error.diag.message_primary or str(error)
            return self._views.problem(request, 409, "Postgres refused it", f"{said}. Nothing was changed.")
        if isinstance(error, psycopg.OperationalError):
            return self._views.problem(request, 503, *_AWAY, again=True)
        raise error


_AWAY = (
    "Postgres can't be reached",
    "This page tries again by itself every few seconds. Jobs that run go on for as long as their node holds its lease.",
)
_DATABASE: tuple[tuple[tuple[type[psycopg.Error], ...], int, str, str], ...] = (
    ((PoolTimeout,), 503, *_AWAY),
    (
        (errors.QueryCanceled,), 504, "That took too long",
        f"Postgres was stopped, after {SECONDS} s of looking or {SECONDS_TO_COUNT} s of counting. Narrow it down.",
    ),
    (
        (errors.LockNotAvailable,), 409, "Somebody holds it",
        "A row or table is locked at the moment. Nothing was changed: try again.",
    ),
    (
        (errors.InsufficientPrivilege,), 403, "The dashboard's role may not do that",
        "Its role in Postgres lacks a privilege. Nothing was changed.",
    ),
    ((errors.InvalidSchemaName,), 503, "There is no schema cluster yet", "Run: cluster migrate"),
    (
        (errors.UndefinedTable, errors.UndefinedColumn, errors.UndefinedFunction), 404, "It was there a moment ago",
        "A table or column was dropped or changed meanwhile. If schema cluster is older than this dashboard: run cluster migrate.",
    ),
    ((errors.ReadOnlySqlTransaction,), 409, "Postgres takes no writes", "It is a standby, or read-only. Nothing was changed."),
)  # fmt: skip
