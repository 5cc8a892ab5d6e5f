"""Jobs that use Django's database connections, which it keeps for each thread."""

from __future__ import annotations

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, wait_for

SOURCE = """
import django
from django.conf import settings

if not settings.configured:  # by the process of the test, which imports this to make the tables
    settings.configure(DATABASES={"default": {
        "ENGINE": "django.db.backends.postgresql", "NAME": %(dbname)r, "HOST": %(host)r, "PORT": %(port)r, "USER": %(user)r,
        "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": True, "OPTIONS": {"application_name": "django"},
    }})
django.setup()

from django.db import close_old_connections, connection
from cluster import Job

def note():
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO seen VALUES (pg_backend_pid())")

class AppJob(Job):
    max_attempts = 1

    def before_perform(self):
        close_old_connections()

    def after_perform(self):
        close_old_connections()

class ThreadJob(AppJob):
    isolation = "thread"
    def perform(self):
        note()

class AloneJob(AppJob):
    def perform(self):
        note()
"""


@pytest.fixture
def node(conn: psycopg.Connection, database_url: str, run_node: RunNode) -> NodeProcess:
    conn.execute("CREATE TABLE seen (pid integer)")
    server = conninfo_to_dict(database_url)
    given = {name: server.get(name, "") for name in ("dbname", "host", "port", "user")}
    return run_node(SOURCE % given, processes=1, concurrency=4)


def perform(conn: psycopg.Connection, table: str, count: int) -> None:
    conn.execute(f"INSERT INTO {table} (priority) SELECT 50 FROM generate_series(1, {count})".encode())
    wait_for(conn, f"SELECT bool_and(status = 'succeeded') FROM {table}")


@pytest.mark.parametrize(("table", "most"), [("thread_jobs", 4), ("alone_jobs", 1)])
def test_jobs_share_the_connections_of_their_threads_and_lost_ones_are_made_anew(
    conn: psycopg.Connection, node: NodeProcess, table: str, most: int
) -> None:
    perform(conn, table, 60)
    assert conn.execute("SELECT count(*), count(DISTINCT pid) <= %s FROM seen", [most]).fetchone() == (60, True)
    conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'django'")
    perform(conn, table, 20)
    assert conn.execute(f"SELECT count(*) FROM {table} WHERE attempts_count = 1".encode()).fetchone() == (80,)
