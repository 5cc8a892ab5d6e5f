"""A database with the roles of docs/production.md, made from the SQL of that page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, NamedTuple
from uuid import uuid4

import psycopg
from psycopg.conninfo import make_conninfo
from typer.testing import CliRunner

from cluster import Job, References
from cluster.cli.app import app
from cluster.migration import migrate_jobs, migrate_schema

PAGE = Path(__file__).parents[2] / "docs" / "production.md"


class EmailCustomersJob(Job):
    customer_id: Annotated[int, References("customers.id", on_delete="cascade")]

    retention_failed = timedelta(days=1)

    async def perform(self) -> None: ...


class Shop(NamedTuple):
    """A database of the page, and what its roles are called here: roles are the server's, and other tests run beside."""

    url: str
    prefix: str

    def url_of(self, role: str) -> str:
        return make_conninfo(self.url, user=f"{self.prefix}{role}")

    def connect(self, role: str) -> psycopg.Connection:
        return psycopg.connect(self.url_of(role), autocommit=True)

    def connect_as_superuser(self) -> psycopg.Connection:
        return psycopg.connect(self.url, autocommit=True)

    def command(self, role: str, *words: str) -> str:
        """Its output. AssertionError: it failed."""
        done = CliRunner(env={"CLUSTER_DATABASE_URL": self.url_of(role)}).invoke(app, words)
        assert done.exit_code == 0, done.output
        return done.output


def blocks(heading: str) -> list[str]:
    """The SQL below a heading of the page."""
    text = PAGE.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1]
    section = re.split(r"^#+ ", text, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"^```sql\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


@contextmanager
def shop_of_the_guide(empty_database_url: str) -> Iterator[Shop]:
    """One job waits."""
    first, *grants = blocks("Roles")
    made = Shop(empty_database_url, f"r{uuid4().hex[:8]}_")
    roles = [made.prefix + name for name in re.findall(r"CREATE ROLE shop_(\w+)", first)] + [f"{made.prefix}neighbour"]
    with psycopg.connect(made.url, autocommit=True) as admin:
        first = first.replace("DATABASE shop ", f"DATABASE {admin.info.dbname} ").replace("shop_", made.prefix)
        admin.execute("CREATE TABLE customers (id bigint PRIMARY KEY); INSERT INTO customers VALUES (1), (2)")
        admin.execute(f"{first}; CREATE ROLE {made.prefix}neighbour LOGIN".encode())
        try:
            with made.connect("migrator") as migrator:
                migrate_schema(migrator)
                migrate_jobs(migrator, [EmailCustomersJob])
                for block in grants:
                    migrator.execute(block.replace("shop_", made.prefix).encode())
            admin.execute("INSERT INTO email_customers_jobs (customer_id) VALUES (1)")
            yield made
        finally:
            for role in roles:  # the migrator first: its default privileges name the others
                admin.execute(f"DROP OWNED BY {role} CASCADE".encode())
            admin.execute(f"DROP ROLE {', '.join(roles)}".encode())
