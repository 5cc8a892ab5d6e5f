"""What `migrate` does to a database that is in use: what it looks at, locks and waits for, and what it leaves and names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from typing import Annotated, Any, Literal

import psycopg
import pytest
from psycopg import sql
from pydantic import Field

from cluster import Job, References
from cluster.differences import differences
from cluster.errors import ClusterError, ExitCode, SchemaMisfitError
from cluster.migration import check_complete, check_server, migrate_jobs, migrate_schema, planned_changes
from cluster.plan import LARGE


def made(name: str = "StockJob", annotations: dict[str, Any] | None = None, /, **body: Any) -> type[Job]:
    return type(name, (Job,), {"__annotations__": annotations or {}, "perform": lambda self: None} | body)


@pytest.fixture
def other(database_url: str) -> Iterator[psycopg.Connection]:
    """A second session; not in autocommit."""
    with psycopg.connect(database_url) as connection:
        yield connection


def fill(conn: psycopg.Connection, table: str = "stock_jobs") -> None:
    """Makes the table large."""
    conn.execute(
        sql.SQL("INSERT INTO {} (last_error) SELECT repeat('x', 1500) FROM generate_series(1, %s)").format(
            sql.Identifier(table)
        ),
        [LARGE // 1400],
    )


def value(conn: psycopg.Connection, query: str) -> Any:
    row = conn.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


INDEXES = """
SELECT array_agg(indexrelid::regclass::text ORDER BY indexrelid::regclass::text)
FROM pg_index WHERE indrelid = 'stock_jobs'::regclass AND indisvalid
"""


# --- a dry run ---


def test_a_dry_run_waits_for_no_lock_and_takes_none_that_others_wait_for(
    conn: psycopg.Connection, other: psycopg.Connection
) -> None:
    migrate_jobs(conn, [made()])
    other.execute("LOCK TABLE stock_jobs, cluster.job_types IN ROW EXCLUSIVE MODE; SELECT pg_advisory_lock(1755, 0)")
    conn.execute("SET statement_timeout = '3s'")
    planned = planned_changes(conn, [made("StockJob", {"size": Annotated[int, Field(ge=1)]}, size=1, max_attempts=3)])
    assert [line.split(" (")[0] for line in planned] == [
        'ALTER TABLE "stock_jobs" ADD COLUMN "size" bigint NOT NULL DEFAULT 1 CHECK',
        "INSERT INTO cluster.job_types",
    ]


def test_a_role_that_may_only_read_can_make_a_dry_run(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("SET default_transaction_read_only = on")
    assert len(planned_changes(conn, [made("StockJob", {"size": int}, size=1)])) == 1


@pytest.mark.parametrize(
    ("job_class", "said"),
    [
        (made("StockJob", {"item_id": int}), 'column "item_id" would be NULL in the rows that are there'),
        (
            made("StockJob", {"item_id": Annotated[int | None, References("gone.id")]}),
            "run your own migrations first: table gone, which column item_id refers to",
        ),
        (
            made("StockJob", {"note": bytes | None}),
            "column note of table stock_jobs is text, but the class needs bytea",
        ),
    ],
)
def test_a_dry_run_refuses_what_migrate_would(conn: psycopg.Connection, job_class: type[Job], said: str) -> None:
    migrate_jobs(conn, [made("StockJob", {"note": str | None})])
    conn.execute("INSERT INTO stock_jobs DEFAULT VALUES")
    for run in (planned_changes, migrate_jobs):
        with pytest.raises(SchemaMisfitError) as caught:
            run(conn, [job_class])
        assert said in str(caught.value)


def test_a_dry_run_knows_the_tables_that_it_plans(conn: psycopg.Connection) -> None:
    first = made("FirstJob", {})
    second = made("SecondJob", {"first_id": Annotated[int, References("first_jobs.id")]})
    for statement in planned_changes(conn, [first, second]):
        conn.execute(statement.encode())
    check_complete(conn, [first, second])


# --- a large table ---


def test_a_large_table_gets_its_indexes_and_checks_beside_the_jobs(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    before = value(conn, INDEXES)
    fill(conn)
    conn.execute(
        "DROP INDEX stock_jobs_due, stock_jobs_others; ALTER TABLE stock_jobs DROP CONSTRAINT cluster_queue_named"
    )
    job_class = made("StockJob", {"size": Annotated[int, Field(ge=1)]}, size=1)
    planned = planned_changes(conn, [job_class])
    assert len(migrate_jobs(conn, [job_class])) == len(planned)
    text = "\n".join(planned)
    assert text.count("CREATE INDEX CONCURRENTLY") == 2
    assert text.count(" NOT VALID") == text.count("VALIDATE CONSTRAINT") == 2
    assert value(conn, INDEXES) == before
    assert value(conn, "SELECT bool_and(convalidated) FROM pg_constraint WHERE conrelid = 'stock_jobs'::regclass")
    assert planned_changes(conn, [job_class]) == []
    assert differences(conn, [job_class]) == []
    check_complete(conn, [job_class])


def test_every_check_of_a_column_with_a_long_name_has_a_name_of_its_own(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    fill(conn)
    column = "c" * 63
    job_class = made("StockJob", {column: Annotated[int, Field(ge=1, le=9)]}, **{column: 1})
    migrate_jobs(conn, [job_class])
    assert differences(conn, [job_class]) == []
    assert planned_changes(conn, [job_class]) == []


def test_jobs_can_be_inserted_while_a_large_table_waits_for_its_index(
    conn: psycopg.Connection, other: psycopg.Connection, database_url: str
) -> None:
    """An open transaction that has written holds up the index, and nobody else; whose it is, is said."""
    migrate_jobs(conn, [made()])
    fill(conn)
    conn.execute("DROP INDEX stock_jobs_due")
    other.execute("INSERT INTO stock_jobs DEFAULT VALUES")
    said: list[str] = []
    named = threading.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        if sentence.startswith("waiting for"):
            named.set()

    with ThreadPoolExecutor(1) as pool, psycopg.connect(database_url, autocommit=True) as third:
        try:
            migrating = pool.submit(migrate_jobs, conn, [made()], say)
            assert named.wait(30)
            third.execute("SET lock_timeout = '1s'; INSERT INTO stock_jobs DEFAULT VALUES")
        finally:
            other.commit()
        migrating.result(30)
    assert f"waiting for server process {other.info.backend_pid} of role postgres (idle in transaction" in said[-1]
    check_complete(conn, [made()])


def test_half_an_index_is_made_anew(conn: psycopg.Connection, other: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    fill(conn)
    conn.execute("DROP INDEX stock_jobs_due")
    other.execute("INSERT INTO stock_jobs DEFAULT VALUES")
    conn.execute("SET statement_timeout = '500ms'")
    with pytest.raises(psycopg.errors.QueryCanceled):
        migrate_jobs(conn, [made()])
    other.commit()
    conn.execute("RESET statement_timeout")
    assert value(conn, "SELECT count(*) FROM pg_index WHERE indrelid = 'stock_jobs'::regclass AND NOT indisvalid") == 1
    with pytest.raises(SchemaMisfitError, match="lacks what this would bring back"):
        check_complete(conn, [made()])
    migrate_jobs(conn, [made()])
    check_complete(conn, [made()])


def test_many_deploys_may_build_the_indexes_of_a_large_table_at_once(
    conn: psycopg.Connection, database_url: str
) -> None:
    migrate_jobs(conn, [made()])
    fill(conn)
    conn.execute("DROP INDEX stock_jobs_due, stock_jobs_others")

    def deploy(_: int) -> int:
        with psycopg.connect(database_url, autocommit=True) as connection:
            return sum("CREATE INDEX" in line for line in migrate_jobs(connection, [made()]))

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(deploy, range(8))) == 2
    check_complete(conn, [made()])


# --- locks of others ---


def test_who_holds_the_table_is_named_when_migrate_gives_up(
    conn: psycopg.Connection, other: psycopg.Connection
) -> None:
    migrate_jobs(conn, [made()])
    other.execute("LOCK TABLE stock_jobs IN ROW EXCLUSIVE MODE")
    said: list[str] = []
    with pytest.raises(ClusterError) as caught:
        migrate_jobs(conn, [made("StockJob", {"size": int}, size=1)], said.append)
    assert f"table stock_jobs of StockJob was locked for 5s by server process {other.info.backend_pid}" in str(
        caught.value
    )
    assert caught.value.exit_code is ExitCode.ERROR
    assert [line.split(" of ")[0] for line in said] == [f"waiting for server process {other.info.backend_pid}"]
    other.rollback()
    assert migrate_jobs(conn, [made("StockJob", {"size": int}, size=1)])


def test_who_migrates_at_the_same_time_is_named(conn: psycopg.Connection, other: psycopg.Connection) -> None:
    other.execute("SELECT pg_advisory_xact_lock(1755, 0)")
    said: list[str] = []

    def say(sentence: str) -> None:
        said.append(sentence)
        other.rollback()

    migrate_schema(conn, say)
    assert said[0].startswith(
        f"waiting for another migration: server process {other.info.backend_pid} of role postgres"
    )


# --- what is dropped or can't be ---


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ("DROP INDEX stock_jobs_claim", "CREATE INDEX stock_jobs_claim ON stock_jobs"),
        ("DROP TRIGGER cluster_ring_doorbell ON stock_jobs", "CREATE TRIGGER cluster_ring_doorbell"),
        ("ALTER TABLE stock_jobs DROP CONSTRAINT cluster_run_at_range", "ADD CONSTRAINT cluster_run_at_range"),
        ("ALTER TABLE stock_jobs ALTER run_at DROP DEFAULT", "ALTER COLUMN run_at SET DEFAULT now()"),
    ],
)
def test_what_a_table_has_lost_is_named_at_the_start_and_brought_back_by_migrate(
    conn: psycopg.Connection, dropped: str, said: str
) -> None:
    migrate_jobs(conn, [made()])
    conn.execute(dropped.encode())
    with pytest.raises(SchemaMisfitError) as caught:
        check_complete(conn, [made()])
    message = str(caught.value)
    assert said in message
    assert message.startswith("table stock_jobs lacks what this would bring back: ")
    assert message.endswith(": run `cluster migrate`")
    migrate_jobs(conn, [made()])
    check_complete(conn, [made()])


def test_storage_options_are_the_users(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("ALTER TABLE stock_jobs RESET (autovacuum_vacuum_scale_factor)")
    check_complete(conn, [made()])


def test_a_server_that_is_too_old_is_refused(conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.migration.OLDEST_SERVER", 99)
    with pytest.raises(SchemaMisfitError, match=r"the server is Postgres \d+.*, and the cluster needs 99 or newer"):
        check_server(conn)


@pytest.mark.parametrize(
    ("setup", "said"),
    [
        ("", r"schema cluster: permission denied for database test_\w+: GRANT CREATE ON DATABASE \"test_\w+\" TO "),
        (
            "CREATE SCHEMA cluster",
            r"schema cluster: permission denied for schema cluster: role .* may not do that; let the owner",
        ),
    ],
)
def test_a_role_that_may_not_migrate_is_told_what_it_lacks(empty_database_url: str, setup: str, said: str) -> None:
    role = f"weak_{threading.get_native_id()}"
    with psycopg.connect(empty_database_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN; {setup}".encode())
        try:
            url = empty_database_url.replace("//postgres@", f"//{role}@")
            with (
                psycopg.connect(url, autocommit=True) as connection,
                pytest.raises(SchemaMisfitError, match=said) as caught,
            ):
                migrate_schema(connection)
            assert caught.value.exit_code is ExitCode.SCHEMA_MISFIT
        finally:
            admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())


# --- what migrate leaves, and names ---


class Level(StrEnum):
    LOW = "low"
    HIGH = "high"


BEFORE: dict[str, Any] = {
    "level": Level,
    "size": Annotated[int, Field(ge=1, le=9)],
    "word": Annotated[str, Field(pattern="^[a-z]+$", max_length=8)],
    "kind": Literal["a", "b"],
    "note": str,
    "maybe": str | None,
}


def after(**changed: Any) -> type[Job]:
    annotations = {name: changed.get(name, annotation) for name, annotation in BEFORE.items()}
    return made("StockJob", annotations, kind="a", note=changed.get("note_default", "n"))


def named(conn: psycopg.Connection, job_class: type[Job]) -> list[str]:
    return [str(difference) for difference in differences(conn, [job_class])]


def test_a_table_that_the_class_made_has_no_differences(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [after()])
    assert named(conn, after()) == []


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"kind": Literal["a", "b", "c"]}, "column kind has a check that StockJob.kind has not"),
        ({"kind": Literal["a"]}, "column kind has a check that StockJob.kind has not"),
        (
            {"size": Annotated[int, Field(ge=1, le=10)]},
            "column size has a check that StockJob.size has not, (size <= 9)",
        ),
        ({"size": int}, "column size has a check that StockJob.size has not, (size >= 1)"),
        ({"word": Annotated[str, Field(max_length=9)]}, "column word has a check that StockJob.word has not"),
        ({"note": Annotated[str, Field(min_length=1)]}, "column note lacks a check of StockJob.note"),
        ({"maybe": str}, "column maybe may be NULL, which StockJob.maybe may not"),
        ({"note_default": "other"}, "a default is not that of StockJob"),
    ],
)
def test_each_difference_is_named_with_the_sql_that_ends_it(
    conn: psycopg.Connection, changed: dict[str, Any], what: str
) -> None:
    migrate_jobs(conn, [after()])
    found = differences(conn, [after(**changed)])
    assert str(found[0]).startswith(f"table stock_jobs: {what}")
    for difference in found:
        conn.execute(difference.remedy.encode())
    assert named(conn, after(**changed)) == []


def test_a_check_that_is_written_in_another_way_is_no_difference(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("ALTER TABLE stock_jobs ADD kind text NOT NULL CHECK (kind = ANY ('{a,b}') AND true)")
    conn.execute("ALTER TABLE stock_jobs ALTER kind TYPE varchar(9)")
    assert named(conn, made("StockJob", {"kind": Literal["a", "b"]})) == []


def test_a_default_that_numbers_rows_is_named_and_not_called(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute(
        "CREATE SEQUENCE numbers; ALTER TABLE stock_jobs ADD number bigint NOT NULL DEFAULT nextval('numbers')"
    )
    assert "column number has the default nextval" in named(conn, made("StockJob", {"number": int}))[0]
    assert "a default is not that of StockJob" in named(conn, made("StockJob", {"number": int}, number=3))[0]
    assert value(conn, "SELECT nextval('numbers')") == 1


def test_a_default_that_python_makes_may_be_made_by_postgres_too(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("ALTER TABLE stock_jobs ADD token text NOT NULL DEFAULT md5(random()::text)")
    token = Field(default_factory=lambda: "t")
    assert named(conn, made("StockJob", {"token": str}, token=token)) == []


def test_a_check_that_can_not_be_compared_harms_nothing(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [made()])
    conn.execute("ALTER TABLE stock_jobs ADD words json NOT NULL CHECK (json_array_length(words) > 0)")
    named(conn, made("StockJob", {"words": Annotated[list[str], Field(min_length=1)]}))
