"""Migrations of schema cluster, and of job tables of every origin."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Annotated, Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import errors, sql

from cluster import Job, References
from cluster.errors import ExitCode, SchemaMisfitError
from cluster.migration import check_schema, known_migrations, migrate_jobs, migrate_schema, planned_changes


class StockJob(Job):
    item_id: int
    note: str = "none"

    queue = "stock"
    priority = 20
    max_attempts = 4
    retention = timedelta(days=30)

    def perform(self) -> None: ...


def made(name: str = "StockJob", annotations: dict[str, Any] | None = None, /, **body: Any) -> type[Job]:
    return type(name, (Job,), {"__annotations__": annotations or {}, "perform": lambda self: None} | body)


@pytest.fixture
def empty(empty_database_url: str) -> Iterator[psycopg.Connection]:
    """A connection in autocommit to a database without schema cluster."""
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        yield connection


def value(conn: psycopg.Connection, query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


def misfit(run: Callable[[], object]) -> str:
    with pytest.raises(SchemaMisfitError) as caught:
        run()
    message = str(caught.value)
    assert caught.value.exit_code is ExitCode.SCHEMA_MISFIT
    assert "\n" not in message
    return message


SHAPE = """
SELECT 'column', c.oid::regclass::text, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
       coalesce(pg_get_expr(d.adbin, d.adrelid), a.attidentity::text)
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relkind = 'r' AND c.relnamespace::regnamespace::text IN ('public', 'cluster')
UNION ALL SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid), '', ''
FROM pg_constraint WHERE connamespace::regnamespace::text IN ('public', 'cluster') AND conrelid <> 0
UNION ALL SELECT 'index', indrelid::regclass::text, indexrelid::regclass::text, pg_get_indexdef(indexrelid), '', ''
FROM pg_index JOIN pg_class c ON c.oid = indrelid WHERE c.relnamespace::regnamespace::text IN ('public', 'cluster')
UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), '', '' FROM pg_trigger WHERE NOT tgisinternal
UNION ALL SELECT 'function', oid::regprocedure::text, prosrc, '', '', '' FROM pg_proc WHERE pronamespace::regnamespace::text = 'cluster'
UNION ALL SELECT 'options', oid::regclass::text, reloptions::text, '', '', '' FROM pg_class WHERE relnamespace::regnamespace::text = 'public'
UNION ALL SELECT 'job type', to_jsonb(t)::text, '', '', '', '' FROM cluster.job_types t
UNION ALL SELECT 'migration', version::text, name, kind, checksum, '' FROM cluster.migrations
ORDER BY 1, 2, 3, 4
"""  # noqa: E501 - a query a line


def shape(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Everything that migrations make."""
    return conn.execute(SHAPE).fetchall()


# --- schema cluster ---


def test_an_empty_database_gets_every_migration(empty: psycopg.Connection) -> None:
    applied = migrate_schema(empty)
    assert applied == [f"{migration.version:04}_{migration.name}" for migration in known_migrations()]
    check_schema(empty, [])


def test_every_migration_says_what_it_is() -> None:
    versions = [migration.version for migration in known_migrations()]
    assert versions == list(range(1, len(versions) + 1))
    assert {migration.kind for migration in known_migrations()} <= {"expand", "contract"}


def test_migrating_twice_changes_nothing(empty: psycopg.Connection) -> None:
    migrate_schema(empty)
    migrate_jobs(empty, [StockJob])
    before = shape(empty)
    assert migrate_schema(empty) == []
    assert migrate_jobs(empty, [StockJob]) == []
    assert shape(empty) == before


def test_twenty_deploys_may_migrate_at_once(empty_database_url: str) -> None:
    def deploy(_: int) -> list[str]:
        with psycopg.connect(empty_database_url, autocommit=True) as connection:
            applied = migrate_schema(connection)
            return applied + migrate_jobs(connection, [StockJob])

    with ThreadPoolExecutor(20) as pool:
        done = list(pool.map(deploy, range(20)))
    assert (
        len([statements for statements in done if any("CREATE" in line or "create" in line for line in statements)])
        == 1
    )
    with psycopg.connect(empty_database_url, autocommit=True) as connection:
        check_schema(connection, [StockJob])


def test_a_migration_that_was_changed_afterwards_is_refused(conn: psycopg.Connection) -> None:
    conn.execute("UPDATE cluster.migrations SET checksum = 'other' WHERE version = 1")
    assert "0001_job_tables was applied with another text" in misfit(lambda: migrate_schema(conn))
    assert "0001_job_tables was applied with another text" in misfit(lambda: check_schema(conn, []))


def test_a_newer_contract_migration_is_refused(conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO cluster.migrations VALUES (9999, 'no_more_old_nodes', 'contract', 'x')")
    assert "newer than this version (no_more_old_nodes)" in misfit(lambda: check_schema(conn, []))
    assert "upgrade jobcluster here" in misfit(lambda: migrate_schema(conn))


def test_a_newer_expand_migration_is_accepted(conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO cluster.migrations VALUES (9999, 'more_columns', 'expand', 'x')")
    check_schema(conn, [])
    assert migrate_schema(conn) == []


def test_a_database_without_the_schema_is_told_to_migrate(empty: psycopg.Connection) -> None:
    assert "no schema cluster yet: run `cluster migrate`" in misfit(lambda: check_schema(empty, []))


def test_a_missing_migration_is_told(conn: psycopg.Connection) -> None:
    conn.execute("DELETE FROM cluster.migrations")
    assert "lacks migration job_tables: run `cluster migrate`" in misfit(lambda: check_schema(conn, []))


# --- dry run ---


def test_a_dry_run_changes_nothing_and_its_sql_yields_the_same_schema(empty: psycopg.Connection) -> None:
    planned = planned_changes(empty, [StockJob])
    assert value(empty, "SELECT to_regnamespace('cluster') IS NULL")
    with empty.transaction():
        for statement in planned:
            empty.execute(statement.encode())
    by_hand = shape(empty)
    empty.execute("DROP SCHEMA cluster CASCADE; DROP TABLE stock_jobs")
    migrate_schema(empty)
    migrate_jobs(empty, [StockJob])
    assert shape(empty) == by_hand


@pytest.mark.needs("psql")
def test_the_sql_of_a_dry_run_can_be_piped_into_psql(empty: psycopg.Connection, empty_database_url: str) -> None:
    script = "".join(f"{statement};\n" for statement in planned_changes(empty, [StockJob]))
    command = ["psql", "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", empty_database_url]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    check_schema(empty, [StockJob])
    assert planned_changes(empty, [StockJob]) == []


def test_a_dry_run_with_nothing_to_do_prints_nothing(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [StockJob])
    assert planned_changes(conn, [StockJob]) == []


def test_a_dry_run_says_what_migrate_would_refuse(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [StockJob])
    conn.execute("ALTER TABLE stock_jobs ALTER COLUMN item_id TYPE text")
    before = shape(conn)
    assert "column item_id of table stock_jobs is text, but the class needs bigint" in misfit(
        lambda: planned_changes(conn, [StockJob])
    )
    assert shape(conn) == before


def test_a_role_that_owns_the_schema_needs_no_right_to_create_in_the_database(empty: psycopg.Connection) -> None:
    role = f"migrator_{uuid4().hex[:8]}"
    empty.execute(f"CREATE ROLE {role}; CREATE SCHEMA cluster AUTHORIZATION {role}".encode())
    try:
        empty.execute(f"SET ROLE {role}".encode())
        assert migrate_schema(empty)
    finally:
        empty.execute(f"RESET ROLE; DROP OWNED BY {role} CASCADE; DROP ROLE {role}".encode())


# --- tables and columns ---


def test_a_missing_table_is_created_with_the_classs_columns(conn: psycopg.Connection) -> None:
    assert "table stock_jobs of StockJob is missing" in misfit(lambda: check_schema(conn, [StockJob]))
    migrate_jobs(conn, [StockJob])
    check_schema(conn, [StockJob])
    conn.execute("INSERT INTO stock_jobs (item_id) VALUES (1)")
    assert conn.execute("SELECT item_id, note, queue, priority FROM stock_jobs").fetchone() == (
        1,
        "none",
        "stock",
        20,
    )


def test_the_job_type_is_written_and_operators_columns_are_kept(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [StockJob])
    conn.execute("UPDATE cluster.job_types SET max_concurrency_override = 2, paused_at = now()")
    migrate_jobs(conn, [made("StockJob", {"item_id": int}, max_attempts=9)])
    row = conn.execute(
        "SELECT name, job_table::text, max_attempts, max_concurrency, retention, max_concurrency_override,"
        " paused_at IS NOT NULL FROM cluster.job_types"
    ).fetchall()
    assert row == [("StockJob", "stock_jobs", 9, 16, None, 2, True)]


def test_queue_and_priority_defaults_follow_the_class(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made(queue="first", priority=10)])
    migrate_jobs(conn, [made(queue="it's", priority=90)])
    conn.execute("INSERT INTO stock_jobs DEFAULT VALUES")
    assert conn.execute("SELECT queue, priority FROM stock_jobs").fetchone() == ("it's", 90)
    assert migrate_jobs(conn, [made(queue="it's", priority=90)]) == []


def test_a_changed_default_of_a_field_reaches_the_column(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made("StockJob", {"note": str}, note="old")])
    migrate_jobs(conn, [made("StockJob", {"note": str}, note="new")])
    assert value(conn, "INSERT INTO stock_jobs DEFAULT VALUES RETURNING note") == "new"


def test_new_fields_are_added_to_a_table_with_rows(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("INSERT INTO stock_jobs DEFAULT VALUES")
    migrate_jobs(conn, [made("StockJob", {"note": str, "size": int | None}, note="old")])
    assert conn.execute("SELECT note, size FROM stock_jobs").fetchone() == ("old", None)


def test_a_new_field_without_default_on_rows_is_explained(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("INSERT INTO stock_jobs DEFAULT VALUES")
    message = misfit(lambda: migrate_jobs(conn, [made("StockJob", {"item_id": int})]))
    assert 'column "item_id" would be NULL in the rows that are there' in message
    assert "give the new field a default, or make it Optional" in message


def test_a_table_of_ones_own_becomes_a_job_table(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE stock_jobs (item_id integer NOT NULL, note text NOT NULL)")
    conn.execute("INSERT INTO stock_jobs VALUES (1, 'kept')")
    migrate_jobs(conn, [StockJob])
    assert conn.execute("SELECT id, item_id, note, status::text FROM stock_jobs").fetchone() == (
        1,
        1,
        "kept",
        "not_started",
    )
    assert value(conn, "INSERT INTO stock_jobs (item_id) VALUES (2) RETURNING note") == "none"


def test_a_table_made_by_the_sql_function_gets_the_classs_columns(conn: psycopg.Connection) -> None:
    conn.execute("SELECT cluster.create_job_table('stock_jobs')")
    migrate_jobs(conn, [StockJob])
    check_schema(conn, [StockJob])
    assert value(conn, "SELECT array_agg(name) FROM cluster.job_types") == ["StockJob"]


# --- what fits and what does not ---


@pytest.mark.parametrize("column_type", ["smallint", "integer", "bigint"])
def test_every_width_of_integer_is_accepted(conn: psycopg.Connection, column_type: str) -> None:
    conn.execute(f"CREATE TABLE stock_jobs (item_id {column_type} NOT NULL)".encode())
    migrate_jobs(conn, [made("StockJob", {"item_id": int})])


def test_a_domain_counts_as_its_base_type(conn: psycopg.Connection) -> None:
    conn.execute("CREATE DOMAIN item AS integer CHECK (value > 0)")
    conn.execute("CREATE TABLE stock_jobs (item_id item NOT NULL)")
    migrate_jobs(conn, [made("StockJob", {"item_id": int})])


def test_a_column_of_another_type_is_named(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE stock_jobs (item_id text NOT NULL)")
    message = misfit(lambda: migrate_jobs(conn, [made("StockJob", {"item_id": int})]))
    assert "column item_id of table stock_jobs is text, but the class needs bigint (StockJob.item_id)" in message


def test_a_standard_column_of_another_type_is_named(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE stock_jobs (id bigint PRIMARY KEY, status text)")
    message = misfit(lambda: migrate_jobs(conn, [made()]))
    assert "column status of table stock_jobs is text, but a job table needs cluster.job_status" in message


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("id bigint", "column id of table stock_jobs is not its primary key"),
        ("id uuid PRIMARY KEY", "is uuid"),
    ],
)
def test_an_id_that_is_none_is_explained(conn: psycopg.Connection, columns: str, said: str) -> None:
    conn.execute(f"CREATE TABLE stock_jobs ({columns})".encode())
    assert said in misfit(lambda: migrate_jobs(conn, [made()]))


@pytest.mark.parametrize("kind", ["integer GENERATED ALWAYS AS IDENTITY", "bigserial", "smallserial"])
def test_other_integer_keys_are_accepted(conn: psycopg.Connection, kind: str) -> None:
    conn.execute(f"CREATE TABLE stock_jobs (id {kind} PRIMARY KEY)".encode())
    migrate_jobs(conn, [made()])
    assert value(conn, "INSERT INTO stock_jobs DEFAULT VALUES RETURNING id") == 1


def test_a_key_that_fills_itself_with_nothing_is_explained(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE stock_jobs (id bigint PRIMARY KEY)")
    message = misfit(lambda: migrate_jobs(conn, [made()]))
    assert "column id of table stock_jobs does not number new rows: Make it GENERATED" in message


def test_a_column_of_another_tool_gets_the_default_that_inserts_rely_on(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE stock_jobs (run_at timestamptz, created_at timestamptz, queue text, priority smallint)")
    migrate_jobs(conn, [StockJob])
    conn.execute("INSERT INTO stock_jobs (item_id) VALUES (1)")
    row = conn.execute("SELECT queue, priority, num_nulls(run_at, created_at) FROM stock_jobs").fetchone()
    assert row == ("stock", 20, 0)
    with pytest.raises(errors.NotNullViolation):
        conn.execute("INSERT INTO stock_jobs (item_id, run_at) VALUES (1, NULL)")
    assert migrate_jobs(conn, [StockJob]) == []


def test_a_nullable_field_needs_a_nullable_column(conn: psycopg.Connection) -> None:
    conn.execute("CREATE TABLE stock_jobs (item_id bigint NOT NULL)")
    message = misfit(lambda: migrate_jobs(conn, [made("StockJob", {"item_id": int | None}, item_id=None)]))
    assert "column item_id of table stock_jobs is NOT NULL, but the class allows None" in message


@pytest.mark.parametrize("column", ["extra text", "extra text NOT NULL DEFAULT ''"])
def test_an_extra_column_that_fills_itself_is_accepted(conn: psycopg.Connection, column: str) -> None:
    migrate_jobs(conn, [made()])
    conn.execute(f"ALTER TABLE stock_jobs ADD COLUMN {column}".encode())
    assert migrate_jobs(conn, [made()]) == []
    check_schema(conn, [made()])


def test_an_extra_generated_column_is_accepted(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("ALTER TABLE stock_jobs ADD COLUMN twice bigint NOT NULL GENERATED ALWAYS AS (id * 2) STORED")
    check_schema(conn, [made()])


def test_an_extra_column_that_every_insert_must_fill_is_refused(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("ALTER TABLE stock_jobs ADD COLUMN extra text NOT NULL")
    message = misfit(lambda: check_schema(conn, [made()]))
    assert "column extra of table stock_jobs is NOT NULL without a default" in message
    assert "StockJob has no such field" in message


def test_a_reference_to_a_missing_table_is_explained(conn: psycopg.Connection) -> None:
    linked = made("StockJob", {"item_id": Annotated[int, References("items.id")]})
    assert "run your own migrations first: table items, which column item_id refers to, is not there" in misfit(
        lambda: migrate_jobs(conn, [linked])
    )
    assert value(conn, "SELECT to_regclass('stock_jobs') IS NULL")


def test_a_table_in_another_schema_is_a_job_table(conn: psycopg.Connection) -> None:
    conn.execute("CREATE SCHEMA shop")
    shop = made("StockJob", {"item_id": int}, table="shop.stock_jobs")
    migrate_jobs(conn, [shop])
    check_schema(conn, [shop])
    assert migrate_jobs(conn, [shop]) == []
    assert value(conn, "SELECT job_table::text FROM cluster.job_types") == "shop.stock_jobs"
    assert value(conn, "SELECT to_regclass('public.stock_jobs') IS NULL")


def test_a_missing_schema_is_explained(conn: psycopg.Connection) -> None:
    message = misfit(lambda: migrate_jobs(conn, [made(table="shop.stock_jobs")]))
    assert 'schema "shop" does not exist' in message


@pytest.mark.parametrize(
    "table", ["StockJobs", "stock jobs", 'stock"jobs', "select", "stock%jobs", "lager-aufträge", "x" * 63]
)
def test_names_are_quoted_and_may_have_63_bytes(conn: psycopg.Connection, table: str) -> None:
    stock: Any = made("StockJob", {"item_id": int, "Größe": int, "order": int}, table=table, item_id=1)
    migrate_jobs(conn, [stock])
    check_schema(conn, [stock])
    assert migrate_jobs(conn, [stock]) == []
    stock(Größe=1, order=2).perform_later(conn)
    assert value(conn, "SELECT relname FROM pg_class JOIN cluster.job_types ON oid = job_table") == table


def test_two_long_names_with_one_beginning_get_indexes_of_their_own(conn: psycopg.Connection) -> None:
    long = [made(f"Job{i}", table="x" * 60 + str(i)) for i in range(2)]
    migrate_jobs(conn, long)
    assert value(
        conn, "SELECT count(*) FROM pg_indexes WHERE schemaname = 'public' AND indexdef LIKE '%WHERE%'"
    ) == 2 * value(conn, "SELECT count(*) FROM cluster.standard_indexes('')")


def test_a_renamed_table_gets_no_second_index(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made(table="old_jobs")])
    before = value(conn, "SELECT count(*) FROM pg_indexes WHERE tablename = 'old_jobs'")
    conn.execute("ALTER TABLE old_jobs RENAME TO new_jobs")
    migrate_jobs(conn, [made(table="new_jobs")])
    assert value(conn, "SELECT count(*) FROM pg_indexes WHERE tablename = 'new_jobs'") == before
    assert value(conn, "SELECT array_agg(job_table::text) FROM cluster.job_types") == ["new_jobs"]


def test_two_classes_of_one_name_are_refused_and_both_tables_named(conn: psycopg.Connection) -> None:
    """Two services in one database would rename each other's row, and a pause would hit the wrong one."""
    migrate_jobs(conn, [made(table="old_jobs")])
    for refusal in (migrate_jobs, planned_changes):
        text = misfit(lambda refusal=refusal: refusal(conn, [made(table="new_jobs")]))  # type: ignore[misc]
        assert "table new_jobs: StockJob is the class of table old_jobs already" in text
    assert value(conn, "SELECT to_regclass('new_jobs') IS NULL")
    conn.execute(text.rpartition(": ")[2].encode())
    migrate_jobs(conn, [made(table="new_jobs")])
    assert conn.execute("SELECT name, job_table::text FROM cluster.job_types ORDER BY name").fetchall() == [
        ("StockJob", "new_jobs"),
        ("old_jobs", "old_jobs"),
    ]


def test_a_dropped_table_leaves_the_list_when_another_is_made(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("DROP TABLE stock_jobs")
    migrate_jobs(conn, [made()])
    assert value(conn, "SELECT array_agg(job_table::text) FROM cluster.job_types") == ["stock_jobs"]


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TABLE stock_jobs (id bigint) PARTITION BY HASH (id)",
        "CREATE TABLE parent (id bigint PRIMARY KEY); CREATE TABLE stock_jobs () INHERITS (parent)",
        "CREATE TABLE stock_jobs (id bigint PRIMARY KEY); CREATE TABLE child () INHERITS (stock_jobs)",
        (
            "CREATE TABLE p (id bigint) PARTITION BY HASH (id);"
            " CREATE TABLE stock_jobs PARTITION OF p FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        ),
    ],
)
def test_partitioned_and_inherited_tables_are_refused(conn: psycopg.Connection, statements: str) -> None:
    conn.execute(statements.encode())
    with pytest.raises(errors.FeatureNotSupported, match="may not be partitioned or inherited"):
        conn.execute("SELECT cluster.create_job_table('stock_jobs')")
    assert "may not be partitioned or inherited" in misfit(lambda: migrate_jobs(conn, [made()]))


@pytest.mark.parametrize(
    "statement", ["CREATE VIEW stock_jobs AS SELECT 1 AS id", "CREATE TEMP TABLE stock_jobs (id bigint)"]
)
def test_what_is_no_ordinary_table_is_refused(conn: psycopg.Connection, statement: str) -> None:
    conn.execute(statement.encode())
    with pytest.raises(errors.WrongObjectType, match="not an ordinary table"):
        conn.execute("SELECT cluster.create_job_table('stock_jobs')")
    assert "not an ordinary table" in misfit(lambda: migrate_jobs(conn, [made()]))


def test_making_a_job_table_again_takes_no_lock(conn: psycopg.Connection, database_url: str) -> None:
    migrate_jobs(conn, [made()])
    with psycopg.connect(database_url) as reader:
        reader.execute("LOCK TABLE stock_jobs IN ROW EXCLUSIVE MODE")
        conn.execute("SET lock_timeout = '100ms'")
        conn.execute("SELECT cluster.create_job_table('stock_jobs')")
        assert migrate_jobs(conn, [made()]) == []


def test_statements_of_the_schema_run_with_any_search_path(conn: psycopg.Connection) -> None:
    conn.execute("CREATE SCHEMA app")
    conn.execute("SET search_path = app")
    migrate_jobs(conn, [StockJob])
    assert value(conn, "SELECT job_table::text FROM cluster.job_types") == "stock_jobs"
    assert value(conn, "SELECT to_regclass('app.stock_jobs') IS NOT NULL")
    conn.execute(sql.SQL("INSERT INTO {} (item_id) VALUES (1)").format(sql.Identifier("app", "stock_jobs")))
