"""The command line, as the processes that users start: what it prints, where, and how it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from typer.testing import CliRunner

import cluster
from cluster.cli import demo, status
from cluster.cli.app import app
from cluster.cli.generated_code import job_from
from cluster.embedded import free_port, project_server, running_project_url
from cluster.errors import ClusterError
from tests.support import as_init
from tests.support.nodes import wait_for
from tests.support.postgres import RunServer

ROOT = Path(__file__).parents[2]
Result = subprocess.CompletedProcess[str]
Call = Callable[..., Result]

EMAIL = '''
"""Jobs of the tests."""

from typing import Annotated, Literal

from pydantic import Field

from cluster import Job

print("imported")


class EmailCustomersJob(Job):
    """Has a column of most kinds."""

    customer_id: Annotated[int, Field(ge=1)]
    subject: str = "news"
    tags: list[str] = []
    note: str | None = None
    level: Literal[1, 2] = 1

    async def perform(self) -> None:
        """Does nothing."""
'''


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """An application with one job class."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/__init__.py").touch()
    (tmp_path / "jobs/email.py").write_text(EMAIL)
    return tmp_path


@pytest.fixture
def migrated(project: Path, database_url: str) -> Call:
    """Calls commands in the project, on a database that has its table."""
    assert call("migrate", cwd=project, url=database_url).returncode == 0

    def run(*arguments: str, **variables: str) -> Result:
        return call(*arguments, cwd=project, url=database_url, **variables)

    return run


def environment(url: str | None = None, **variables: str) -> dict[str, str]:
    """That of this process, without what would choose a database, a setting or a plugin."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CLUSTER_", "DATABASE_URL", "PG", "PYTEST_"))
    }
    chosen = {"CLUSTER_DATABASE_URL": url} if url else {}
    return kept | {"COLUMNS": "80", "NO_COLOR": "1"} | chosen | variables


def call(*arguments: str, cwd: Path, url: str | None = None, **variables: str) -> Result:
    return subprocess.run(
        [sys.executable, "-m", "cluster", *arguments],
        cwd=cwd,
        env=environment(url, **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def error_of(result: Result, code: int) -> str:
    """The one line on stderr; nothing may be on stdout."""
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("cluster: ")
    return lines[0]


def fits(text: str) -> bool:
    return max(map(len, text.splitlines())) <= 80


# --- the whole ---


def test_importing_the_console_scripts_module_loads_no_command() -> None:
    code = "import sys, cluster.cli; sys.exit('typer' in sys.modules or 'cluster.cli.app' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_help_lists_all_commands_within_80_columns(tmp_path: Path) -> None:
    shown = call("--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert fits(shown.stdout)
    for name in [
        "init",
        "generate",
        "migrate",
        "dev",
        "demo",
        "run",
        "work",
        "workoff",
        "start",
        "stop",
        "restart",
        "enqueue",
        "status",
        "why",
        "drain",
        "undrain",
        "errors",
        "cancel",
        "retry",
        "settings",
    ]:
        assert re.search(rf"│ {name} ", shown.stdout), name
    assert "Start a project" in shown.stdout
    assert call(cwd=tmp_path).stdout.strip() == shown.stdout.strip()


@pytest.mark.parametrize("command", ["generate job", "dev", "enqueue", "run", "start", "status", "retry", "settings"])
def test_help_of_a_command_fits_80_columns(command: str, tmp_path: Path) -> None:
    shown = call(*command.split(), "--help", cwd=tmp_path)
    assert (shown.returncode, fits(shown.stdout)) == (0, True)


def test_version(tmp_path: Path) -> None:
    assert call("--version", cwd=tmp_path).stdout == f"jobcluster {cluster.__version__}\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["status", "--nonsense"], ["--app-dir", "nowhere", "status"]])
def test_wrong_usage_exits_2(arguments: list[str], tmp_path: Path) -> None:
    result = call(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")


def test_wrong_settings_exit_2_in_one_line(tmp_path: Path) -> None:
    error = error_of(call("status", cwd=tmp_path, CLUSTER_LEASE="1s", CLUSTER_QUEUE="a"), 2)
    assert "CLUSTER_LEASE=1s" in error
    assert "did you mean CLUSTER_QUEUES?" in error


def test_ctrl_c_exits_130_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cluster.cli.database.settings_with_database", interrupted)
    result = CliRunner().invoke(app, ["status"])
    assert (result.exit_code, result.output) == (130, "")


# --- the database ---


def test_without_a_database_commands_exit_3_and_say_what_to_do(project: Path) -> None:
    error = error_of(call("status", cwd=project), 3)
    assert "set CLUSTER_DATABASE_URL, or run `cluster dev`" in error


@pytest.mark.parametrize(
    "command", ["status", "migrate", "cancel EmailCustomersJob 1", "enqueue EmailCustomersJob customer_id=1"]
)
def test_an_unreachable_database_exits_3_and_is_named_without_its_password(command: str, project: Path) -> None:
    url = f"postgresql://me:secret-word@127.0.0.1:{free_port()}/shop"
    result = call(*command.split(), cwd=project, url=url)
    line = result.stderr.splitlines()[-1]
    assert (result.returncode, result.stdout) == (3, "")
    assert "database shop on 127.0.0.1:" in line
    assert "start Postgres, or correct CLUSTER_DATABASE_URL" in line
    assert "secret-word" not in result.stderr


def test_a_node_without_its_database_exits_3(project: Path) -> None:
    url = f"postgresql://me:secret-word@127.0.0.1:{free_port()}/shop"
    result = call("run", "--http-port", "0", cwd=project, url=url)
    assert result.returncode == 3
    assert "secret-word" not in result.stdout + result.stderr


def test_a_missing_database_exits_3(database_url: str, tmp_path: Path) -> None:
    name = str(conninfo_to_dict(database_url)["dbname"])
    error = error_of(call("status", cwd=tmp_path, url=database_url.replace(name, "nowhere")), 3)
    assert "create it" in error


def test_libpq_variables_choose_the_database(database_url: str, tmp_path: Path) -> None:
    parts = conninfo_to_dict(database_url)
    variables = {"PGHOST": str(parts["host"]), "PGDATABASE": str(parts["dbname"]), "PGUSER": str(parts["user"])}
    result = call("status", cwd=tmp_path, PGPORT=str(parts["port"]), **variables)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_database_without_the_schema_exits_5(empty_database_url: str, project: Path) -> None:
    assert "run `cluster migrate`" in error_of(call("status", cwd=project, url=empty_database_url), 5)
    assert "run `cluster migrate`" in error_of(call("cancel", "x", "1", cwd=project, url=empty_database_url), 5)
    result = call("run", "--http-port", "0", cwd=project, url=empty_database_url)
    assert result.returncode == 5
    assert "run `cluster migrate`" in result.stderr


def test_app_dir_stands_for_the_working_directory(database_url: str, project: Path) -> None:
    result = call("--app-dir", str(project), "migrate", cwd=ROOT, url=database_url)
    assert result.stdout == "table email_customers_jobs: created\n"


# --- job modules ---


@pytest.mark.parametrize("command", ["migrate", "run --http-port 0", "enqueue EmailCustomersJob"])
def test_jobs_that_cant_be_imported_exit_4(command: str, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/__init__.py").write_text("import no_such_module\n")
    error = error_of(call(*command.split(), cwd=tmp_path, url=database_url), 4)
    assert "no_such_module" in error
    assert "jobs/__init__.py:1" in error


def test_a_node_without_jobs_exits_4(database_url: str, tmp_path: Path) -> None:
    assert "set CLUSTER_JOBS" in error_of(call("run", cwd=tmp_path, url=database_url), 4)


# --- init and generate ---


def test_init_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / ".env.example").write_text("mine\n")
    first = call("init", cwd=tmp_path)
    assert ".env.example: exists, left alone" in first.stdout
    assert "jobs/hello.py: written" in first.stdout
    assert "cluster dev" in first.stdout
    assert fits(first.stdout)
    (tmp_path / "jobs/hello.py").write_text("mine\n")
    assert "jobs/hello.py: exists, left alone" in call("init", cwd=tmp_path).stdout
    assert (tmp_path / "jobs/hello.py").read_text() == (tmp_path / ".env.example").read_text() == "mine\n"


def test_the_example_environment_is_all_comments_and_names_every_setting(tmp_path: Path) -> None:
    call("init", cwd=tmp_path, CLUSTER_DATABASE_URL="postgresql://me:secret-word@db/app")
    text = (tmp_path / ".env.example").read_text()
    assert all(line.startswith("# ") for line in text.splitlines() if line)
    assert "# CLUSTER_LEASE=30s" in text
    assert "secret-word" not in text
    # Uncommented as it is, it changes nothing.
    variables = dict(re.findall(r"^# (CLUSTER_\w+)=(.*)$", text, re.MULTILINE))
    shown = call("settings", "--json", cwd=tmp_path, **variables)
    bare = call("settings", "--json", cwd=tmp_path)
    assert [(row["variable"], row["value"]) for row in json.loads(shown.stdout)] == [
        (row["variable"], row["value"]) for row in json.loads(bare.stdout)
    ]


ALL_TYPES = (
    "count:int note:str? on:bool share:float price:decimal at:datetime day:date every:timedelta key:uuid raw:bytes"
    " payload:json more:json? customer_id:customers.id shop_id:shop.shops.id?"
)


MIGRATIONS = """
        import psycopg
        with psycopg.connect(url) as connection:
            connection.execute("CREATE SCHEMA shop; CREATE TABLE shop.shops (id bigint PRIMARY KEY)")
            connection.execute("CREATE TABLE customers (id bigint PRIMARY KEY)")
"""


@pytest.mark.slow
def test_generated_code_passes_ruff_mypy_and_its_own_tests(run_server: RunServer, tmp_path: Path) -> None:
    assert call("init", cwd=tmp_path).returncode == 0
    jobs = {"EmailCustomers": ALL_TYPES, "Nothing": "", "Times": "date:date datetime:datetime? start:datetime"}
    for name, columns in jobs.items():
        made = call("generate", "job", name, *columns.split(), cwd=tmp_path)
        assert "tests/jobs/test_" in made.stdout, made.stderr
    config = str(ROOT / "pyproject.toml")
    python = [sys.executable, "-m"]
    conftest = tmp_path / "conftest.py"
    text = conftest.read_text()
    conftest.write_text(text.replace('"""Your migrations, on the database at this URL."""', MIGRATIONS))
    plain = [str(Path(sys.executable).parent / "pytest"), "-p", "no:cacheprovider", "-W", "ignore"]
    passes([*plain, "--cluster-database-url", run_server.postgres.url()], tmp_path)
    conftest.write_text(text)
    for options in (["--isolated", "--extend-select=I,UP,B,RUF"], ["--config", config]):
        passes([*python, "ruff", "check", "--no-cache", *options, "."], tmp_path)
    for options in (["--isolated"], ["--config", config]):
        passes([*python, "ruff", "format", "--no-cache", "--check", *options, "."], tmp_path)
    passes([*python, "mypy", "--strict", "--cache-dir", os.devnull, "jobs", "tests", "conftest.py"], tmp_path)


def passes(command: Sequence[str], folder: Path) -> None:
    result = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False, timeout=100
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_what_is_generated_can_be_migrated_and_enqueued(
    database_url: str, conn: psycopg.Connection, tmp_path: Path
) -> None:
    conn.execute("CREATE TABLE customers (id bigint PRIMARY KEY)")
    conn.execute("INSERT INTO customers VALUES (7)")
    call("generate", "job", "email-customers", "customer_id:customers.id", "note:str?", cwd=tmp_path)
    assert call("migrate", cwd=tmp_path, url=database_url).stdout == "table email_customers_jobs: created\n"
    made = call("enqueue", "EmailCustomersJob", "customer_id=7", cwd=tmp_path, url=database_url)
    assert made.stdout == "email_customers_jobs 1\n"
    refused = error_of(call("enqueue", "email_customers", "customer_id=8", cwd=tmp_path, url=database_url), 1)
    assert "(customer_id)=(8) is not present" in refused


def test_enqueueing_a_unique_job_that_waits_already_says_so(database_url: str, tmp_path: Path) -> None:
    source = "from cluster import Job\nclass OnceJob(Job):\n    key: int\n    unique = ('key',)\n    def perform(self): ...\n"
    (tmp_path / "shop.py").write_text(source, encoding="utf-8")
    call("migrate", cwd=tmp_path, url=database_url, CLUSTER_JOBS="shop")
    words = ("enqueue", "OnceJob", "key=1")
    first, again = (call(*words, cwd=tmp_path, url=database_url, CLUSTER_JOBS="shop") for _ in range(2))
    assert (first.stdout, first.stderr) == (again.stdout, "") == ("once_jobs 1\n", "")
    assert again.stderr == "it waits already, and is unique: nothing was inserted\n"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["X", "status:str"],
            "XJob.status: every job has an attribute or a standard column of that name; rename the field",
        ),
        (["X", "queue:str"], "XJob.queue is an option, but its annotation makes it a column"),
        (["X", "max_atempts:int?"], "did you mean 'max_attempts'?"),
        (["X", "_a:int"], "no underscore in front"),
        (["X", "a:strr"], "there is no type 'strr': did you mean 'str'?"),
        (["X", "a"], "there is no type ''"),
        (["X", "1a:int"], "a column is written as name:type"),
        (["X", "class:int"], "a column is written as name:type"),
        (["X", "int:int"], "choose another name"),
        (["X", "a:b."], "a foreign key is written as"),
        (["X", "a:int", "a:str"], "column a is named twice"),
        (["9lives"], "'9lives' can't be a job's name"),
        (["../x"], "can't be a job's name"),
        (["Job"], "can't be a job's name"),
        (["class"], "can't be a job's name"),
    ],
)
def test_generate_refuses_what_could_not_be_a_job(words: list[str], reason: str) -> None:
    with pytest.raises(ClusterError, match=re.escape(reason)):
        job_from(words[0], words[1:])


@pytest.mark.parametrize("name", ["EmailCustomers", "EmailCustomersJob", "email_customers", "email-customers"])
def test_generate_takes_a_name_in_any_spelling(name: str) -> None:
    made = job_from(name, [])
    assert (made.class_name, made.module) == ("EmailCustomersJob", "email_customers")


def test_generate_never_overwrites(project: Path) -> None:
    error = error_of(call("generate", "job", "email", cwd=project), 1)
    assert "jobs/email.py: there already" in error
    assert not (project / "tests").exists()
    assert (project / "jobs/email.py").read_text() == EMAIL


# --- migrate ---


def test_migrate_says_what_it_did_and_then_has_nothing_to_do(empty_database_url: str, project: Path) -> None:
    first = call("migrate", cwd=project, url=empty_database_url)
    assert first.stdout == "schema cluster: 0001_job_tables\ntable email_customers_jobs: created\n"
    assert call("migrate", cwd=project, url=empty_database_url).stdout == "nothing to do\n"
    changed = EMAIL.replace('= "news"', '= "old"').replace("    level:", "    more: int = 0\n    level:")
    (project / "jobs/email.py").write_text(changed)
    assert call("migrate", cwd=project, url=empty_database_url).stdout == (
        "table email_customers_jobs: column more: added\n"
        "table email_customers_jobs: column subject: default is now 'old'\n"
    )
    (project / "jobs/email.py").write_text(changed.replace("    more:", "    max_attempts = 3\n    more:"))
    assert (
        call("migrate", cwd=project, url=empty_database_url).stdout == "table email_customers_jobs: options updated\n"
    )


def test_migrate_without_jobs_makes_the_schema_and_says_so(empty_database_url: str, tmp_path: Path) -> None:
    result = call("migrate", cwd=tmp_path, url=empty_database_url)
    assert (result.returncode, result.stdout) == (0, "schema cluster: 0001_job_tables\n")
    assert "schema cluster only" in result.stderr


def test_a_dry_run_prints_sql_that_does_what_migrate_would(empty_database_url: str, project: Path) -> None:
    planned = call("migrate", "--dry-run", cwd=project, url=empty_database_url)
    assert planned.returncode == 0
    assert "imported" in planned.stderr  # what job modules print is no SQL
    with psycopg.connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regnamespace('cluster')").fetchone() == (None,)
        connection.execute(planned.stdout.encode())
    assert call("migrate", cwd=project, url=empty_database_url).stdout == "nothing to do\n"
    again = call("migrate", "--dry-run", cwd=project, url=empty_database_url)
    assert (again.stdout, again.stderr) == ("", "imported\nnothing to do\n")


def test_a_table_that_does_not_fit_exits_5(migrated: Call, project: Path, conn: psycopg.Connection) -> None:
    conn.execute("ALTER TABLE email_customers_jobs ALTER COLUMN note TYPE uuid USING NULL")
    result = migrated("migrate")
    assert (result.returncode, result.stdout) == (5, "")
    assert "column note of table email_customers_jobs is uuid" in result.stderr.splitlines()[-1]


# --- enqueue ---


def test_enqueue_takes_text_json_and_options(migrated: Call, conn: psycopg.Connection) -> None:
    words = ["customer_id=42", "subject=a=b", 'tags=["x", "y"]', "note:=null", "level=2"]
    result = migrated("enqueue", "EmailCustomers", *words, "--delay", "5m", "--queue", "mail", "--priority", "9")
    assert result.stdout == "email_customers_jobs 1\n"
    row = conn.execute(
        "SELECT customer_id, subject, tags, note, level, queue, priority, run_at - created_at FROM email_customers_jobs"
    ).fetchone()
    assert row == (42, "a=b", ["x", "y"], None, 2, "mail", 9, timedelta(minutes=5))


def test_enqueue_at_a_time(migrated: Call, conn: psycopg.Connection) -> None:
    assert (
        migrated("enqueue", "email_customers_jobs", "customer_id=1", "--run-at", "2090-01-31T12:00+02:00").returncode
        == 0
    )
    row = conn.execute("SELECT extract(epoch FROM run_at)::bigint, status FROM email_customers_jobs").fetchone()
    assert row == (3789540000, "scheduled")


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (["EmailCustomersJob", "customer_id=x"], 1, "customer_id: Input should be a valid integer"),
        (["EmailCustomersJob", "customer_id=0"], 1, "customer_id: Input should be greater than or equal to 1"),
        (["EmailCustomersJob"], 1, "customer_id: Field required"),
        (["EmailCustomersJob", "customer_id=1", "subjet=x"], 1, "did you mean 'subject'?"),
        (["EmailCustomerJob", "customer_id=1"], 1, "did you mean 'EmailCustomersJob'?"),
        (["Nothing", "customer_id=1"], 1, "there is no job 'Nothing': there is EmailCustomersJob"),
        (["EmailCustomersJob", "customer_id"], 2, "is not column=value"),
        (["EmailCustomersJob", "customer_id=1", "tags=x"], 2, "tags is not JSON"),
        (["EmailCustomersJob", "customer_id=1", "--delay", "soon"], 2, "a duration looks like"),
        (["EmailCustomersJob", "customer_id=1", "--run-at", "soon"], 2, "a time looks like"),
        (["EmailCustomersJob", "customer_id=1", "--run-at", "2090-01-01T12:00"], 2, "a time needs its time zone"),
        (["EmailCustomersJob", "customer_id=1", "--priority", "0"], 2, "--priority"),
        (["EmailCustomersJob", "customer_id=1", "--delay", "1s", "--run-at", "2090-01-01T12:00Z"], 2, "not both"),
    ],
)
def test_enqueue_refuses(words: list[str], code: int, reason: str, migrated: Call, conn: psycopg.Connection) -> None:
    result = migrated("enqueue", *words, COLUMNS="300")
    assert (result.returncode, result.stdout) == (code, "")
    assert reason in result.stderr
    assert conn.execute("SELECT count(*) FROM email_customers_jobs").fetchone() == (0,)


def test_enqueue_before_migrate_says_so(database_url: str, project: Path) -> None:
    result = call("enqueue", "EmailCustomersJob", "customer_id=1", cwd=project, url=database_url)
    assert result.returncode == 1
    assert "table email_customers_jobs does not exist: run `cluster migrate`, or" in result.stderr


# --- status ---


TROUBLED = """
INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, slots, state, lease_until, trouble)
SELECT gen_random_uuid(), 'h', 1, '0', '{*}', '{}', 1, node.state, now() + node.lease::interval, node.trouble::jsonb
FROM (VALUES ('live', '30 s', %(early)s), ('draining', '30 s', %(late)s), ('live', '-1 s', %(early)s), ('lost', '30 s', %(early)s))
    AS node (state, lease, trouble)
"""


def troubled(conn: psycopg.Connection, detail: str) -> None:
    """Two nodes that say so, one that is silent, and one that is lost."""
    entry = {"job_type": "EmailCustomersJob", "reason": "table_refuses_promotions", "rows": 3, "detail": detail}
    entries = {
        name: json.dumps([entry | {"since": time.time() - ago}]) for name, ago in (("early", 7200), ("late", 60))
    }
    conn.execute(TROUBLED, entries)


def test_status_shows_what_nodes_have_set_aside(migrated: Call, conn: psycopg.Connection) -> None:
    assert "Trouble" not in migrated("status").stdout
    assert json.loads(migrated("status", "--json").stdout)["trouble"] == []
    troubled(conn, "relation nowhere does not exist")
    (found,) = json.loads(migrated("status", "--json").stdout)["trouble"]
    assert found.pop("age_seconds") == pytest.approx(7200, abs=60)
    assert found == {
        "job_type": "EmailCustomersJob", "reason": "table_refuses_promotions", "rows": 3, "nodes": 2,
        "detail": "relation nowhere does not exist",
    }  # fmt: skip


@pytest.mark.parametrize(
    "detail",
    ["", "word " * 40, "W" * 200, "[bold]x[/]", "\u2603" * 100],
    ids=["empty", "words", "one word", "markup", "not ascii"],
)
def test_trouble_fits_80_columns(migrated: Call, conn: psycopg.Connection, detail: str) -> None:
    troubled(conn, detail)
    shown = migrated("status").stdout
    assert fits(shown), shown
    assert "table_refuses_promotions" in shown, shown
    assert "2h" in shown
    assert "".join(detail.split()) in "".join(shown.split()), "all of it can be read"


def test_status_counts_by_type_and_names_tables_without_a_class(migrated: Call, conn: psycopg.Connection) -> None:
    conn.execute("SELECT cluster.create_job_table('orphan_jobs')")
    conn.execute("INSERT INTO email_customers_jobs (customer_id) SELECT generate_series(1, 3)")
    conn.execute("INSERT INTO email_customers_jobs (customer_id, run_at) VALUES (1, now() + interval '1 day')")
    conn.execute("INSERT INTO email_customers_jobs (customer_id, run_at) VALUES (1, now() - interval '3 hours')")
    conn.execute("UPDATE cluster.job_types SET max_concurrency_override = 4 WHERE name = 'EmailCustomersJob'")
    conn.execute("SELECT cluster.cancel('email_customers_jobs', 1)")
    found = json.loads(migrated("status", "--json").stdout)
    row = next(row for row in found["job_types"] if row["name"] == "EmailCustomersJob")
    assert {name: count for name, count in row["jobs"].items() if count} == {
        "not_started": 3,
        "scheduled": 1,
        "cancelled": 1,
    }
    assert (row["limit"], round(row["oldest_waiting_seconds"] / 3600)) == (4, 3)
    assert found["unroutable"] == ["orphan_jobs"]
    shown = migrated("status")
    assert re.search(r"EmailCustomersJob +3 +1 +· +· +3h +4", shown.stdout)
    assert "no class here performs the jobs of table orphan_jobs" in shown.stdout
    assert "no node is running" in shown.stdout


def test_status_fits_80_columns_without_wrapping(migrated: Call, conn: psycopg.Connection) -> None:
    conn.execute("UPDATE cluster.job_types SET name = 'AJobWithAVeryLongNameThatNobodyWouldTypeTwiceButPeopleDoJob'")
    conn.execute(
        "INSERT INTO cluster.nodes (id, hostname, pid, version, queues, jobs, lease_until, slots, running, state, heartbeat_at)"
        " SELECT gen_random_uuid(), 'worker-deployment-7d9f8b6c5-x2x[red]' || n, 4194304, '1', '{default,mail,a-long-queue-name}',"
        " '{X}', now() - interval '1 day', 1024, 1024, s, now() - interval '2 days'"
        " FROM unnest('{live,draining,lost,stopped}'::text[]) WITH ORDINALITY AS u (s, n)"
    )
    shown = migrated("status").stdout
    assert fits(shown)
    nodes = [line for line in shown.splitlines() if "worker-" in line]
    assert [line.split()[2] for line in nodes] == ["silent", "silent", "lost"]
    assert all("1024/1024" in line and "2d" in line for line in nodes)
    assert sum("AJobWithAVery" in line for line in shown.splitlines()) == 2


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "·"), (999_999, "999999"), (1_000_000, "1000k"), (123_456_789, "123M")]
)
def test_large_counts_stay_short(count: int, shown: str) -> None:
    assert status._short(count) == shown


def test_status_works_without_job_modules_and_with_broken_ones(migrated: Call, project: Path) -> None:
    (project / "jobs/email.py").write_text("broken (")
    assert json.loads(migrated("status", "--json").stdout)["unroutable"] is None
    shutil.rmtree(project / "jobs")
    shown = migrated("status")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "EmailCustomersJob" in shown.stdout


def test_status_survives_a_table_that_was_dropped(migrated: Call, conn: psycopg.Connection) -> None:
    conn.execute("DROP TABLE email_customers_jobs")
    assert "no job tables yet" in migrated("status").stdout


# --- cancel and retry ---


def test_cancel_and_retry_print_the_new_status(migrated: Call, conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO email_customers_jobs (customer_id) SELECT 1 FROM generate_series(1, 2)")
    cancelled = migrated("cancel", "EmailCustomersJob", "1", "2")
    assert cancelled.stdout == "email_customers_jobs 1: cancelled\nemail_customers_jobs 2: cancelled\n"
    retried = migrated("retry", "public.email_customers_jobs", "2")
    assert (retried.returncode, retried.stdout) == (0, "email_customers_jobs 2: not_started\n")
    conn.execute("UPDATE email_customers_jobs SET status = 'running', locked_at = now() WHERE id = 2")
    assert migrated("cancel", "email_customers_jobs", "2").stdout == "email_customers_jobs 2: running, asked to stop\n"


def test_an_unknown_id_exits_1_after_the_others_are_done(migrated: Call, conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO email_customers_jobs (customer_id) VALUES (1)")
    result = migrated("cancel", "EmailCustomersJob", "7", "1")
    assert (result.returncode, result.stdout) == (1, "email_customers_jobs 1: cancelled\n")
    assert result.stderr == "cluster: table email_customers_jobs has no job 7\n"


def test_retry_refuses_a_job_that_has_not_finished(migrated: Call, conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO email_customers_jobs (customer_id) VALUES (1)")
    assert "is not_started, not finished" in error_of(migrated("retry", "EmailCustomersJob", "1"), 1)


def test_cancel_of_an_unknown_table_says_what_was_meant(migrated: Call) -> None:
    error = error_of(migrated("cancel", "email_customer_jobs", "1"), 1)
    assert "did you mean 'email_customers_jobs'?" in error


# --- settings and demo ---


def test_settings_fit_80_columns_and_never_show_a_password(tmp_path: Path) -> None:
    secrets = {
        "CLUSTER_DATABASE_URL": "postgresql://me:secret-word@a-database-host.example.com:5432/app?sslpassword=secret-word",
        "CLUSTER_DIRECT_DATABASE_URL": "host=db password=secret-word dbname=app",
        "CLUSTER_DASHBOARD_PASSWORD": "secret-word",
    }
    shown = call("settings", cwd=tmp_path, **secrets)
    as_json = call("settings", "--json", cwd=tmp_path, **secrets)
    for result in (shown, as_json):
        assert result.returncode == 0
        assert "secret-word" not in result.stdout + result.stderr
        assert "***" in result.stdout
    assert fits(shown.stdout)
    rows = {row["variable"]: row for row in json.loads(as_json.stdout)}
    assert rows["CLUSTER_LEASE"]["value"] == "30s"
    assert rows["CLUSTER_DASHBOARD_PASSWORD"]["source"] == "environment"


def test_demo_outside_a_checkout_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cluster, "__file__", str(tmp_path / "cluster/__init__.py"))
    with pytest.raises(ClusterError, match="run it in a checkout"):
        demo.demo()


# --- run and dev ---


def test_sigterm_ends_a_node_with_0(migrated: Call, project: Path, database_url: str, conn: psycopg.Connection) -> None:
    watch(conn, "email_customers_jobs")
    with started(
        "run", "--http-port", "0", "--processes", "1", "--log-format", "json", cwd=project, url=database_url
    ) as node:
        wait_for_line(node, "node_started")
        made = migrated("enqueue", "EmailCustomersJob", "customer_id=1")
        wait_for_success(conn, made.stdout)
        wait_for(conn, "SELECT slots = 16 FROM cluster.nodes")
        assert re.search(r"live +0/16", migrated("status").stdout)
        node.send_signal(signal.SIGTERM)
        assert node.wait() == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("init", [False, True] if as_init.POSSIBLE else [False])
def test_a_signal_while_jobs_are_imported_ends_the_start(
    number: signal.Signals, code: int, init: bool, tmp_path: Path, database_url: str
) -> None:
    (tmp_path / "jobs.py").write_text("import time; print('importing', flush=True); time.sleep(1000)")
    command = [sys.executable, "-m", "cluster", "run", "--jobs", "jobs", "--http-port", "0"]
    with subprocess.Popen(
        [*(as_init.AS_INIT if init else ()), *command],
        cwd=tmp_path, env=environment(database_url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        wait_for_line(process, "importing")
        node = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()) if init else process.pid
        os.kill(node, number)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in errors) == (code, False)


@pytest.mark.slow
def test_of_two_devs_in_one_folder_the_last_one_out_stops_the_database(dev_project: Path) -> None:
    with (
        started("dev", cwd=dev_project, CLUSTER_PROCESSES="1", CLUSTER_LOG_FORMAT="json") as first,
        started("dev", cwd=dev_project, CLUSTER_PROCESSES="1", CLUSTER_LOG_FORMAT="json") as second,
    ):
        wait_for_line(first, "node_started")
        wait_for_line(second, "node_started")
        first.send_signal(signal.SIGINT)
        assert first.wait() == 0
        assert running_project_url(dev_project) is not None
        second.send_signal(signal.SIGINT)
        assert second.wait() == 0
    assert running_project_url(dev_project) is None


@pytest.fixture
def dev_project(tmp_path: Path) -> Iterator[Path]:
    """A folder for `cluster dev`, whose Postgres and data are gone in the end, root's included."""
    assert call("init", cwd=tmp_path).returncode == 0
    yield tmp_path
    server = project_server(tmp_path)
    server.stop("immediate")
    shutil.rmtree(server.data_dir, ignore_errors=True)
    for kind in ("lock", "users"):
        server.data_dir.with_name(f"{server.data_dir.name}.{kind}").unlink(missing_ok=True)


@pytest.mark.slow
def test_dev_runs_jobs_reloads_their_code_and_stops_cleanly(dev_project: Path) -> None:
    hello = dev_project / "jobs/hello.py"
    with started("dev", cwd=dev_project, CLUSTER_PROCESSES="1", CLUSTER_LOG_FORMAT="json") as dev:
        wait_for_line(dev, "node_started")
        url = running_project_url(dev_project)
        assert url is not None
        with psycopg.connect(url, autocommit=True) as conn:
            watch(conn, "hello_jobs")
            made = call("enqueue", "HelloJob", "name=World", cwd=dev_project)
            assert made.stderr == "using the database of ./.cluster\n"
            wait_for_success(conn, made.stdout)
            wait_for_line(dev, "Hello, World!")

            hello.write_text(hello.read_text().replace("Hello, {", "Goodbye, {"))
            wait_for_line(dev, "jobs/hello.py changed")
            wait_for_line(dev, "node_started")
            wait_for_success(conn, call("enqueue", "HelloJob", "name=World", cwd=dev_project).stdout)
            wait_for_line(dev, "Goodbye, World!")

            good = hello.read_text()
            hello.write_text(good + "\nbroken (\n")
            assert "SyntaxError" in wait_for_line(dev, "cluster: can't import jobs.hello")
            wait_for_line(dev, "waiting for a change")
            # The node of the code before goes on.
            row = conn.execute(
                "INSERT INTO hello_jobs (name) VALUES ('World') RETURNING 'hello_jobs ' || id"
            ).fetchone()
            assert row is not None
            wait_for_success(conn, row[0])
            hello.write_text(good.replace("name: str", "name: str\n    more: int = 0"))
            wait_for_line(dev, "table hello_jobs: column more: added")
            wait_for_line(dev, "node_started")
        dev.send_signal(signal.SIGINT)
        assert dev.wait() == 0
    assert running_project_url(dev_project) is None


@pytest.mark.slow
def test_dev_runs_the_apps_server_and_ends_with_its_code(dev_project: Path) -> None:
    code = (
        "import os, sys, psycopg; psycopg.connect(os.environ['DATABASE_URL']).execute('SELECT FROM hello_jobs').close();"
        " print('tables are there'); sys.exit(7)"
    )
    result = call("dev", "--", sys.executable, "-W", "ignore", "-c", code, cwd=dev_project)
    assert result.returncode == 7, result.stderr
    assert "tables are there" in result.stdout
    assert re.search(r"psql 'postgresql://.*'", result.stdout)
    assert re.search(r"http://127.0.0.1:\d+/metrics", result.stdout)
    assert running_project_url(dev_project) is None


def test_dev_uses_the_database_that_is_set(database_url: str, tmp_path: Path) -> None:
    code = "import os; print(os.environ['DATABASE_URL'] == os.environ['CLUSTER_DATABASE_URL'])"
    result = call("dev", "--", sys.executable, "-c", code, cwd=tmp_path, DATABASE_URL=database_url)
    assert result.returncode == 0, result.stderr
    assert "True" in result.stdout
    assert "psql" not in result.stdout
    assert not (tmp_path / ".cluster").exists()


def test_dev_starts_a_node_as_soon_as_there_is_a_job(database_url: str, tmp_path: Path) -> None:
    with started("dev", cwd=tmp_path, url=database_url, CLUSTER_PROCESSES="1", CLUSTER_LOG_FORMAT="json") as dev:
        lines = "dashboard: http://127.0.0.1:", "the node ended with exit code 4: waiting for a change"
        address = wait_for_lines(dev, *lines)[0].split()[1]
        with urllib.request.urlopen(address, timeout=20) as page:
            assert "There are no job tables yet" in page.read().decode()
        assert call("generate", "job", "First", cwd=tmp_path).returncode == 0
        wait_for_line(dev, "jobs/first.py changed")
        wait_for_line(dev, "table first_jobs: created")
        wait_for_line(dev, "node_started")
        with urllib.request.urlopen(address, timeout=20) as page:
            assert "FirstJob" in page.read().decode()
        dev.send_signal(signal.SIGTERM)
        assert dev.wait() == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=20)


def test_dev_goes_on_without_a_dashboard_that_is_not_installed(database_url: str, tmp_path: Path) -> None:
    code = "import cluster.cli.dev as d; d.OF_THE_DASHBOARD = ('no_such_module',); from cluster.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code, "dev", "--", sys.executable, "-c", "print('the app')"],
        cwd=tmp_path, env=environment(database_url), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if "dashboard" in line]
    assert line == "cluster: no dashboard, which is not installed: pip install 'jobcluster[dashboard]'"
    assert "the app" in result.stdout


def test_dev_says_which_command_it_cant_run(database_url: str, tmp_path: Path) -> None:
    result = call("dev", "--", "no-such-program", cwd=tmp_path, url=database_url)
    assert result.returncode == 1
    assert "cluster: can't run no-such-program: No such file or directory" in result.stderr


@contextmanager
def started(*arguments: str, cwd: Path, url: str | None = None, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Without /metrics: other tests start nodes at the same time, and the default port is one."""
    variables = {"CLUSTER_HTTP_PORT": "0", "CLUSTER_DASHBOARD_PORT": "0", **variables}
    with subprocess.Popen(
        [sys.executable, "-m", "cluster", *arguments],
        cwd=cwd,
        env=environment(url, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            # SIGTERM, so that dev takes its children with it also when a test has failed.
            process.terminate()
            process.communicate()


def wait_for_line(process: subprocess.Popen[str], text: str) -> str:
    """The next line of its output with this text; what comes before it is read and forgotten."""
    return wait_for_lines(process, text)[0]


def wait_for_lines(process: subprocess.Popen[str], *texts: str) -> list[str]:
    """For each of the texts the next line that has it, whichever comes first; the others are read and forgotten."""
    assert process.stdout is not None
    seen, found = [], dict[str, str]()
    for line in process.stdout:
        seen.append(line)
        print(line, end="")  # for the report, should a line never come
        found = {text: line for text in texts if text in line} | found
        if len(found) == len(texts):
            return [found[text] for text in texts]
    raise AssertionError(f"it ended without {set(texts) - found.keys()}:\n{''.join(seen)}")


def watch(conn: psycopg.Connection, table: str) -> None:
    """Makes the database tell us of every job that succeeds."""
    conn.execute(
        "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_notify('succeeded', TG_TABLE_NAME || ' ' || NEW.id); RETURN NULL; END $$"
    )
    conn.execute(
        sql.SQL(
            "CREATE TRIGGER tell AFTER UPDATE ON {} FOR EACH ROW WHEN (NEW.status = 'succeeded') EXECUTE FUNCTION tell()"
        ).format(sql.Identifier(table))
    )
    conn.execute("LISTEN succeeded")


def wait_for_success(conn: psycopg.Connection, job: str) -> None:
    """job: table and id, as `enqueue` prints them."""
    for told in conn.notifies(timeout=60):
        if told.payload == job.strip():
            return
    raise AssertionError(f"{job.strip()} has not succeeded")
