"""Alembic's autogenerate and Django's makemigrations leave job tables alone, as docs/migrations.md says."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import psycopg
import pytest
import sqlalchemy
import sqlmodel
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.orm import Session

from cluster import Job, References
from cluster.errors import SchemaMisfitError
from cluster.migration import migrate_jobs
from tests.support.session_kinds import KINDS

PAGE = Path(__file__).parents[2] / "docs/migrations.md"


class WelcomeJob(Job):
    customer_id: Annotated[int, References("customers.id")]

    unique = ("customer_id",)

    def perform(self) -> None: ...


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of all blocks of the page. Any: of their names."""
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), vars(module))
    return module


@pytest.fixture
def engine(conn: psycopg.Connection, database_url: str) -> sqlalchemy.Engine:
    """Of a database with a table of the application's and a job table that refers to it."""
    conn.execute("CREATE TABLE customers (id integer PRIMARY KEY)")
    migrate_jobs(conn, [WelcomeJob])
    return sqlalchemy.create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(database_url), poolclass=sqlalchemy.NullPool
    )


def metadata() -> sqlalchemy.MetaData:
    made = sqlalchemy.MetaData()
    sqlalchemy.Table("customers", made, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))
    return made


class Context:
    """As alembic.context in env.py: keeps what it is configured with."""

    def configure(self, connection: sqlalchemy.Connection, target_metadata: Any, **options: Any) -> None:
        self.options = {"include_schemas": True, **options}
        self.connection = connection


@pytest.mark.parametrize("filtered", [True, False])
def test_autogenerate_finds_nothing_to_do_with_the_filter_and_drops_job_tables_without(
    page: Any, engine: sqlalchemy.Engine, filtered: bool
) -> None:
    context = Context()
    with engine.connect() as connection:
        page.configure_alembic(context, connection, metadata())
        options = context.options if filtered else {}
        changes = compare_metadata(MigrationContext.configure(connection, opts=options), metadata())
    dropped = {change[1].name for change in changes if change[0] == "remove_table"}
    assert dropped == (set() if filtered else {"welcome_jobs"})
    assert not (filtered and changes)


def test_autogenerate_still_sees_the_applications_own_tables(page: Any, engine: sqlalchemy.Engine) -> None:
    context = Context()
    mine = metadata()
    sqlalchemy.Table("orders", mine, sqlalchemy.Column("id", sqlalchemy.Integer, primary_key=True))
    with engine.connect() as connection:
        page.configure_alembic(context, connection, mine)
        changes = compare_metadata(MigrationContext.configure(connection, opts=context.options), mine)
    assert [(change[0], change[1].name) for change in changes] == [("add_table", "orders")]


def test_a_model_reflected_from_a_job_table_is_read_and_left_alone(page: Any, engine: sqlalchemy.Engine) -> None:
    model: Any = page.models_of_jobs(engine)
    with Session(engine) as session:
        session.execute(sqlalchemy.text("INSERT INTO customers VALUES (7)"))
        queued = WelcomeJob(customer_id=7).perform_later(session)
        row: Any = session.get(model, queued.id)
        assert (row.customer_id, row.status, row.queue) == (7, "not_started", "default")
        context = Context()
        page.configure_alembic(context, session.connection(), model.metadata)
        mapped = MigrationContext.configure(context.connection, opts=context.options)
        assert compare_metadata(mapped, metadata()) == []


def test_sqlmodel_reads_a_job_table_and_autogenerate_leaves_it_alone(page: Any, engine: sqlalchemy.Engine) -> None:
    class Customer(sqlmodel.SQLModel, table=True):
        __tablename__ = "customers"
        id: int = sqlmodel.Field(primary_key=True)

    model = page.sqlmodel_of_jobs()
    with sqlmodel.Session(engine) as session:
        session.add(Customer(id=7))
        queued = WelcomeJob(customer_id=7).perform_later(session)
        row: Any = session.exec(sqlmodel.select(model).where(model.customer_id == 7)).one()
        assert (row.id, row.status) == (queued.id, "not_started")
        context = Context()
        page.configure_alembic(context, session.connection(), sqlmodel.SQLModel.metadata)
        mapped = MigrationContext.configure(context.connection, opts=context.options)
        assert compare_metadata(mapped, sqlmodel.SQLModel.metadata) == []


async def test_makemigrations_has_nothing_to_do_and_a_model_reads_a_job_table(
    page: Any, engine: sqlalchemy.Engine, database_url: str
) -> None:
    async with KINDS["django"](database_url) as opened:
        from django.core.management import call_command

        opened.execute("INSERT INTO customers VALUES (7)")
        WelcomeJob(customer_id=7).perform_later(opened.session)
        row = page.define_django_model().objects.get()
        assert (row.customer_id, row.status, row.last_error) == (7, "not_started", None)
        call_command("makemigrations", check=True, dry_run=True)  # SystemExit: there is something to do


def test_a_table_that_is_not_there_yet_is_named_and_what_came_before_stays(conn: psycopg.Connection) -> None:
    first: Any = type("FirstJob", (Job,), {"perform": lambda self: None})
    with pytest.raises(SchemaMisfitError, match="run your own migrations first: table customers"):
        migrate_jobs(conn, [first, WelcomeJob])
    there = conn.execute(
        "SELECT to_regclass('first_jobs') IS NOT NULL, to_regclass('welcome_jobs') IS NOT NULL"
    ).fetchone()
    assert there == (True, False)
