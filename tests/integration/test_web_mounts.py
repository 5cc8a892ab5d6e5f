"""The dashboard in applications of the user's: of each framework, below prefixes, behind proxies, without a start or an end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from django.conf import settings
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount

from cluster.dashboard import NoAuth, dashboard
from tests.support.nodes import free_port, wait_for, wait_until
from tests.support.rows import run
from tests.support.session_kinds import configure_django

PAGE = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text(encoding="utf-8")
EXAMPLES: dict[str, str] = dict(re.findall(r"^```python\n# (\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
urlpatterns: list[Any] = []
"""Of Django: this module is its ROOT_URLCONF."""
App = Any  # an ASGI application, of whichever framework


@pytest.fixture
def tables(conn: psycopg.Connection) -> None:
    run(conn, "SELECT cluster.create_job_table('mail_jobs'); INSERT INTO mail_jobs DEFAULT VALUES")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, database_url: str, tables: None) -> App:
    """Makes the application of the documentation, which has a user ann with the password s3cret."""
    monkeypatch.setenv("CLUSTER_DATABASE_URL", database_url)
    monkeypatch.setenv("CLUSTER_DASHBOARD_USER", "ann")
    monkeypatch.setenv("CLUSTER_DASHBOARD_PASSWORD", "s3cret")
    configure_django()
    monkeypatch.setattr(settings, "ROOT_URLCONF", __name__, raising=False)
    monkeypatch.setattr(settings, "ALLOWED_HOSTS", ["*"])

    def make(name: str) -> App:
        found: dict[str, Any] = {}
        exec(compile(EXAMPLES[name], name, "exec"), found)
        return found.get("app") or found["application"]

    return make


@pytest.mark.parametrize("name", ["starlette", "fastapi", "django"])
async def test_it_works_in_the_applications_of_the_documentation(example: App, name: str) -> None:
    app = example(name)
    await see_and_act(app, "/jobs", auth=("ann", "s3cret"))
    async with client_of(app) as web:
        assert (await web.get("/jobs/")).status_code == 401
        assert (await web.get("/elsewhere")).status_code == 404
        assert "x-frame-options" not in (await web.get("/elsewhere")).headers or name == "django"


def client_of(app: App, **options: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, **options), base_url="http://127.0.0.1")


async def see_and_act(app: App, base: str, *, asked: str | None = None, **options: Any) -> None:
    """Every address of the page stands below base, and a form that is sent there comes back to it.

    asked: what the server sees of base.
    """
    asked = base if asked is None else asked
    async with client_of(app) as web:
        page = await web.get(f"{asked}/mail_jobs/1", **options)
        assert page.status_code == 200, page.text
        assert not re.findall(rf'(?:src|href|action)="(?!{base}/|#)[^"]*"', page.text)
        assert f'href="{base}/errors"' in page.text
        assert (await web.get(f"{asked}/static/style.css", **options)).status_code == 200
        overview = await web.get(f"{asked}/", **options)
        assert f'href="{base}/" aria-current' in overview.text or 'class="brand"' in overview.text
        (form,) = set(re.findall(rf'action="{base}(/mail_jobs/1/move)"', page.text))
        found = re.search(r'name="token" value="([^"]+)"', page.text)
        assert found
        data = {"token": found[1], "queue": "mail", "priority": ""}
        done = await web.post(f"{asked}{form}", data=data, **options)
        assert done.status_code == 303
        assert done.headers["location"].startswith(f"{base}/mail_jobs/1?said=")
        shown = await web.get(done.headers["location"].replace(base, asked, 1), **options)
        assert "is in queue mail" in shown.text


@pytest.fixture
def made(database_url: str, tables: None) -> App:
    return dashboard(NoAuth(open=True), database_url=database_url, proxies="127.0.0.0/8")


async def test_below_the_prefix_of_a_server(made: App) -> None:
    """As ASGI says it: the path has the prefix, and root_path names it."""
    for app in (Starlette(routes=[Mount("/jobs", made)]), FastAPI()):
        if isinstance(app, FastAPI):
            app.mount("/jobs", made)

        async def under(scope: Any, receive: Any, send: Any, app: App = app) -> None:
            await app({**scope, "root_path": "/ops", "path": f"/ops{scope['path']}"}, receive, send)

        await see_and_act(under, "/ops/jobs", asked="/jobs")


async def test_below_a_prefix_that_is_missing_in_the_path(made: App) -> None:
    """As some servers say it, whose proxy has taken it away."""
    for app, asked in ((made, ""), (Starlette(routes=[Mount("/jobs", made)]), "/jobs")):

        async def under(scope: Any, receive: Any, send: Any, app: App = app) -> None:
            await app({**scope, "root_path": "/ops"}, receive, send)

        await see_and_act(under, f"/ops{asked}", asked=asked)


async def test_the_prefix_that_a_proxy_names_is_believed_from_its_address_alone(made: App) -> None:
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await made({**scope, "root_path": "/jobs"}, receive, send)

    prefix = {"x-forwarded-prefix": "/ops/team-1/"}
    await see_and_act(mounted, "/ops/team-1/jobs", asked="/jobs", headers=prefix)
    async with client_of(mounted, client=("192.0.2.7", 1)) as web:
        assert 'href="/jobs/errors"' in (await web.get("/jobs/", headers=prefix)).text
    for nonsense in ('/"><script>', "//evil.example", "/../..", "ops", "http://evil.example", "/a b"):
        async with client_of(mounted) as web:
            page = await web.get("/jobs/", headers={"x-forwarded-prefix": nonsense})
            assert 'href="/jobs/errors"' in page.text, nonsense
            assert "evil" not in page.text


def test_one_application_serves_many_event_loops_and_each_closes_its_connections(
    made: App, conn: psycopg.Connection
) -> None:
    """As test clients use it: a loop for each request, and no start."""

    async def ask() -> int:
        async with client_of(made) as web:
            return (await web.get("/mail_jobs")).status_code

    for _ in range(3):
        assert asyncio.run(ask()) == 200
    wait_for(conn, "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'cluster dashboard'")


SERVER = """
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from cluster.dashboard import NoAuth, dashboard

app = Starlette(routes=[Mount("/jobs", dashboard(NoAuth()))])
uvicorn.run(app, port={port}, log_level="warning", timeout_graceful_shutdown=1, lifespan="{lifespan}")
"""


@contextmanager
def serving(url: str, lifespan: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_port()
    environment = os.environ | {"CLUSTER_DATABASE_URL": url}
    command = [sys.executable, "-X", "dev", "-W", "default", "-c", SERVER.format(port=port, lifespan=lifespan)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process, f"http://127.0.0.1:{port}/jobs/"
        finally:
            process.kill()


def test_a_mounted_one_leaves_nothing_behind_when_its_server_ends(tables: None, database_url: str) -> None:
    with serving(database_url, "on") as (process, address):
        wait_until(lambda: bool(_answers(address)), "the server answers")
        with urllib.request.urlopen(f"{address}live", timeout=20) as watching:
            assert watching.readline().startswith(b"retry:")
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=30)
    told = [line for line in errors.splitlines() if "timeout_graceful_shutdown" not in line]
    assert not [line for line in told if re.search(r"Warning|never (awaited|retrieved)|destroyed|psycopg", line)], (
        errors
    )


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=20) as page:
            return bool(page.status == 200)
    except OSError:
        return False
