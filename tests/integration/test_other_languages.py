"""The programs of examples/enqueue-from do what they say, each as the enqueuer of docs/production.md."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.fault.proxy import Proxy
from tests.support.roles import Shop, shop_of_the_guide
from tests.support.session_kinds import socket_file

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "examples" / "enqueue-from"
JDBC_DRIVER = Path("/usr/share/java/postgresql.jar")


class Language(NamedTuple):
    """probe: succeeds where the language's driver for Postgres is installed. run: takes the program's path as its last word."""

    probe: list[str]
    run: list[str]


LANGUAGES = {
    "enqueue.sql": Language(["psql", "--version"], ["psql", "-v", "ON_ERROR_STOP=1", "-qAt", "-f"]),
    "enqueue.js": Language(["node", "-e", "require('pg')"], ["node"]),
    "enqueue.php": Language(["php", "-r", "exit((int) !extension_loaded('pgsql'));"], ["php"]),
    "enqueue.rb": Language(["ruby", "-rpg", "-e", "1"], ["ruby"]),
    "enqueue.pl": Language(["perl", "-MDBD::Pg", "-e", "1"], ["perl"]),
    "Enqueue.java": Language(
        ["sh", "-c", f"command -v javac && test -f {JDBC_DRIVER}"], ["java", "-cp", str(JDBC_DRIVER)]
    ),
    "enqueue.go": Language(["go", "list", "github.com/lib/pq"], ["go", "run"]),
}


PARAMETERS = [pytest.param(name, marks=pytest.mark.needs(of.run[0]), id=name) for name, of in LANGUAGES.items()]


@pytest.fixture
def shop(empty_database_url: str) -> Iterator[Shop]:
    with shop_of_the_guide(empty_database_url) as made:
        yield made


@pytest.fixture
def environment(shop: Shop) -> Iterator[dict[str, str]]:
    """Of the enqueuer. By TCP: JDBC knows no Unix sockets."""
    proxy = Proxy(Path(socket_file(shop.url)))
    proxy.start()
    given = conninfo_to_dict(shop.url_of("app"))
    debian = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}  # where Debian's packages of Go have their source
    yield {name: value for name, value in os.environ.items() if not name.startswith("PG")} | debian | {
        "PGHOST": "127.0.0.1", "PGPORT": str(proxy.port), "PGUSER": str(given["user"]), "PGDATABASE": str(given["dbname"]),
        "PGPASSWORD": "not asked for",
    }  # fmt: skip
    proxy.stop()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_program_enqueues_now_later_and_many_and_takes_back_what_it_rolls_back(
    name: str, shop: Shop, environment: dict[str, str]
) -> None:
    language = LANGUAGES[name]
    if subprocess.run(language.probe, env=environment, capture_output=True, timeout=60, check=False).returncode != 0:
        pytest.skip(f"needs the driver for Postgres of {language.run[0]}")
    with shop.connect("migrator") as connection:
        connection.execute("DELETE FROM email_customers_jobs")
    with shop.connect_as_superuser() as connection:
        connection.execute("INSERT INTO customers VALUES (3)")
        connection.execute(f"GRANT INSERT ON customers TO {shop.prefix}app".encode())
    command = [*language.run, str(PROGRAMS / name)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert ran.returncode == 0, ran.stderr
    with shop.connect_as_superuser() as connection:
        found = connection.execute(
            "SELECT id, customer_id, queue, priority, status::text,"
            " run_at BETWEEN now() + interval '23 hours' AND now() + interval '1 day' FROM email_customers_jobs ORDER BY id"
        ).fetchall()
        (new,) = connection.execute("SELECT count(*) FROM customers WHERE id > 3").fetchone() or ()
    assert [row[1:] for row in found] == [
        (1, "default", 50, "not_started", False),
        (2, "bulk", 90, "scheduled", True),
        *((customer, "default", 50, "not_started", False) for customer in (1, 2, 3)),
    ]
    assert ran.stdout == f"enqueued {found[0][0]}\n"
    assert new == 0


def test_the_page_shows_lines_of_the_programs_and_names_them_all() -> None:
    page = (ROOT / "docs/enqueueing.md").read_text(encoding="utf-8")
    section = page.split("\n## From other languages\n")[1].split("\n## ")[0]
    assert set(re.findall(r"examples/enqueue-from/([\w.]+)\)", section)) == set(LANGUAGES)
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", section, re.MULTILINE | re.DOTALL):
        program = (PROGRAMS / f"enqueue.{language}").read_text(encoding="utf-8")
        lines = {line.strip() for line in program.splitlines()}
        assert {line.strip() for line in block.splitlines()} <= lines
