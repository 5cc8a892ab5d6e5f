"""The example applications, started as their READMEs say: a server, a node, and requests in between."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psycopg
import pytest

from tests.support.nodes import NodeProcess, wait_for, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]  # seven programs each, one after the other

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Application:
    """url: of its empty database. name: of the package in examples."""

    def __init__(self, url: str, name: str, folder: Path) -> None:
        self._folder = folder
        self._package = f"examples.{name}"
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("CLUSTER_", "DJANGO_", "PG"))}
        self.environment = bare | {
            "CLUSTER_DATABASE_URL": url,
            "CLUSTER_JOBS": f"{self._package}.jobs",
            "DJANGO_SETTINGS_MODULE": f"{self._package}.settings",
        }
        self._node = NodeProcess(url, folder, jobs=f"{self._package}.jobs")

    def run(self, program: str, *words: str, **more: str) -> str:
        """What it prints. AssertionError: it failed."""
        command = [str(BIN / program), *words]
        environment = self.environment | more
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    @contextmanager
    def node(self) -> Iterator[None]:
        try:
            self._node.start()
            self._node.wait_ready()
            yield
        finally:
            self._node.clean_up()

    @contextmanager
    def served(self, module: str) -> Iterator[httpx.Client]:
        """By uvicorn, on a socket."""
        socket = self._folder / "socket"
        command = [str(BIN / "uvicorn"), f"{self._package}.{module}", "--uds", str(socket)]
        with (self._folder / "server.log").open("wb") as log:
            server = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)
        try:
            wait_until(socket.exists, f"{module} is served", timeout=60)
            with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://localhost") as client:
                yield client
            server.terminate()
            server.wait(30)
            said = (self._folder / "server.log").read_text()
            assert "Finished server process" in said
            assert "Traceback" not in said
        finally:
            server.kill()
            server.wait()


def test_fastapi_and_sqlalchemy(empty_database_url: str, tmp_path: Path) -> None:
    application = Application(empty_database_url, "orders_fastapi", tmp_path)
    application.run("python", "-m", "examples.orders_fastapi.database")
    application.run("cluster", "migrate")
    with psycopg.connect(empty_database_url, autocommit=True) as conn, application.served("app:app") as client:
        placed = client.post("/orders", json={"article": "bike", "quantity": 1})
        assert (placed.status_code, placed.json()) == (201, {"id": 1})
        assert client.get("/orders/1").json() == {"confirmed": False}
        assert client.post("/orders", json={"article": "bike", "quantity": 99}).status_code == 409
        assert client.post("/subscriptions", json={"email": "ada@example.org"}).json() == {"job": 1}
        assert conn.execute("SELECT count(*) FROM orders").fetchone() == (1,)
        assert conn.execute("SELECT count(*) FROM confirm_order_jobs").fetchone() == (1,)
        with application.node():
            wait_for(conn, "SELECT status = 'succeeded' FROM confirm_order_jobs")
            wait_for(conn, "SELECT status = 'succeeded' FROM subscribe_jobs")
        assert client.get("/orders/1").json() == {"confirmed": True}


AFTER_BOTH = """
import django
django.setup()
from django.core.management import call_command
call_command("makemigrations", check=True, dry_run=True)  # SystemExit: there is something to do
call_command("migrate")
call_command("createsuperuser", "--noinput", username="ada", email="ada@example.org")
"""


def test_django(empty_database_url: str, tmp_path: Path) -> None:
    application = Application(empty_database_url, "orders_django", tmp_path)
    application.run("python", "-m", "django", "migrate")
    application.run("cluster", "migrate")
    application.run("python", "-c", AFTER_BOTH, DJANGO_SUPERUSER_PASSWORD="p")
    with psycopg.connect(empty_database_url, autocommit=True) as conn, application.served("asgi:application") as client:
        placed = client.post("/orders", data={"article": "bike", "quantity": "1"})
        assert (placed.status_code, placed.json()) == (201, {"id": 1})
        assert client.get("/orders/1").json() == {"confirmed": False, "jobs": ["not_started"]}
        assert client.post("/orders", data={"article": "bike", "quantity": "99"}).status_code == 409
        assert conn.execute("SELECT count(*) FROM orders").fetchone() == (1,)
        assert conn.execute("SELECT count(*) FROM confirm_order_jobs").fetchone() == (1,)
        with application.node():
            wait_for(conn, "SELECT status = 'succeeded' FROM confirm_order_jobs")
        assert client.get("/orders/1").json() == {"confirmed": True, "jobs": ["succeeded"]}
        page = admin_page(client, "/admin/orders_django/confirmorderrow/?status=succeeded")
        assert "1 × bike" in page
        assert "1 confirmation" in page


def admin_page(client: httpx.Client, path: str) -> str:
    """Logged in."""
    form = client.get("/admin/login/").text
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
    assert token is not None
    words = {"username": "ada", "password": "p", "csrfmiddlewaretoken": token[1], "next": path}
    page = client.post("/admin/login/", data=words, follow_redirects=True)
    assert page.status_code == 200
    return page.text
