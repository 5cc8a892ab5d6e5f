"""What becomes of a row: real nodes perform jobs that succeed, fail, hang, crash and misbehave.

Most tests share one node, and tell it by rows and advisory locks when to go on. Jobs leave a row in `notes` of what they see.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, timedelta
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.rows import namedtuple_row

from cluster.migration import migrate_schema
from tests.integration.conftest import RunNode
from tests.support.nodes import NodeProcess, running_node, wait_for, wait_until
from tests.support.postgres import RunServer

NOTES = """
CREATE TABLE notes (
    number bigint GENERATED ALWAYS AS IDENTITY, job text, job_id bigint, attempt integer, pid integer, what text, value text,
    at timestamptz DEFAULT clock_timestamp()
)
"""
FINISHED = ("succeeded", "failed", "timed_out", "cancelled")
GATE = 7
"""Advisory lock that jobs wait for while a test holds it."""

TOOLS = f"""
import asyncio, ctypes, enum, hashlib, json, multiprocessing, os, signal, sys, threading, time
from datetime import date, datetime, time as clock_time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Literal, Optional
from uuid import UUID

import psycopg, pydantic
from cluster import Cancel, ConstantBackoff, ExponentialBackoff, Fail, Job, References, Snooze

SOON = ConstantBackoff(timedelta(milliseconds=1))
LIBC = ctypes.PyDLL(None)  # calls that keep the interpreter's lock

def connect():
    return psycopg.connect(os.environ["CLUSTER_DATABASE_URL"], autocommit=True)

def note(job, what, value=None):
    with connect() as connection:
        connection.execute(
            "INSERT INTO notes (job, job_id, attempt, pid, what, value) VALUES (%s, %s, %s, %s, %s, %s)",
            [type(job).__name__, job.id, job.attempt, os.getpid(), what, value],
        )

def count_notes(job):
    with connect() as connection:
        row = connection.execute("SELECT count(*) FROM notes WHERE (job, job_id) = (%s, %s)", [type(job).__name__, job.id])
        return row.fetchone()[0]

async def pass_gate():
    async with await psycopg.AsyncConnection.connect(os.environ["CLUSTER_DATABASE_URL"], autocommit=True) as connection:
        await connection.execute("SELECT pg_advisory_lock_shared({GATE})")

def pass_gate_sync():
    with connect() as connection:
        connection.execute("SELECT pg_advisory_lock_shared({GATE})")
"""

MODULES: dict[str, str] = {"tools": TOOLS}
"""The job modules of the shared node; each section below adds its own."""


def module(name: str, text: str) -> None:
    MODULES[name] = f"from jobs.tools import *\n{text}"


@pytest.fixture(scope="module")
def node(run_server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """The node that tests share: 2 processes."""
    with run_server.database(run_server.template()) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(NOTES)
            connection.execute("CREATE SCHEMA billing")
            connection.execute("CREATE TABLE parcels (id bigint PRIMARY KEY)")
        with running_node(url, tmp_path_factory.mktemp("app"), MODULES) as shared:
            yield shared
            # Whatever the tests' jobs have left behind must not hold the node.
            assert shared.stop() == 0


@pytest.fixture
def db(node: NodeProcess) -> Iterator[psycopg.Connection]:
    """A connection to the shared node's database. Its end opens the gate."""
    with psycopg.connect(node.database_url, autocommit=True) as connection:
        yield connection


class Gate:
    """Jobs that call pass_gate wait while it is shut."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection

    def shut(self) -> None:
        self._connection.execute("SELECT pg_advisory_lock(%s)", [GATE])

    def open(self) -> None:
        self._connection.execute("SELECT pg_advisory_unlock(%s)", [GATE])


@pytest.fixture
def gate(db: psycopg.Connection) -> Gate:
    """Shut."""
    made = Gate(db)
    made.shut()
    return made


def insert(connection: psycopg.Connection, table: str, **values: Any) -> int:
    """INSERTs a job. Text that begins with `sql:` is an expression."""
    expressions = [
        sql.SQL(value[4:]) if isinstance(value, str) and value.startswith("sql:") else sql.Literal(value)
        for value in values.values()
    ]
    named = sql.SQL("({}) VALUES ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, values)), sql.SQL(", ").join(expressions)
    )
    statement = sql.SQL("INSERT INTO {} {} RETURNING id").format(
        sql.Identifier(*table.split(".")), named if values else sql.SQL("DEFAULT VALUES")
    )
    row = connection.execute(statement).fetchone()
    assert row is not None
    return int(row[0])


def job(connection: psycopg.Connection, table: str, job_id: int) -> Any:  # Any: its attributes are the table's columns
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        query = sql.SQL("SELECT * FROM {} WHERE id = {}").format(sql.Identifier(*table.split(".")), job_id)
        row = cursor.execute(query).fetchone()
    assert row is not None, f"{table} has no row {job_id}"
    return row


def wait_status(connection: psycopg.Connection, table: str, job_id: int, *statuses: str, timeout: float = 20) -> Any:
    """The row, as soon as it has one of these statuses."""
    name = sql.Identifier(*table.split(".")).as_string().replace("%", "%%")
    wait_for(
        connection,
        f"SELECT status = ANY (%s::cluster.job_status[]), status, last_error FROM {name} WHERE id = %s",
        [list(statuses), job_id],
        timeout,
    )
    return job(connection, table, job_id)


def ended(connection: psycopg.Connection, table: str, job_id: int, timeout: float = 20) -> Any:
    return wait_status(connection, table, job_id, *FINISHED, timeout=timeout)


def perform(connection: psycopg.Connection, table: str, **values: Any) -> Any:
    """Inserts a job; returns its row once it has ended."""
    return ended(connection, table, insert(connection, table, **values))


def notes(connection: psycopg.Connection, job_type: str, job_id: int | None = None) -> list[Any]:
    with connection.cursor(row_factory=namedtuple_row) as cursor:
        cursor.execute(
            "SELECT * FROM notes WHERE job = %s AND (%s::bigint IS NULL OR job_id = %s) ORDER BY number",
            [job_type, job_id, job_id],
        )
        return cursor.fetchall()


def wait_notes(connection: psycopg.Connection, job_type: str, count: int = 1, job_id: int | None = None) -> list[Any]:
    wait_for(
        connection,
        "SELECT count(*) >= %s, count(*) FROM notes WHERE job = %s AND (%s::bigint IS NULL OR job_id = %s)",
        [count, job_type, job_id, job_id],
    )
    return notes(connection, job_type, job_id)


def whats(connection: psycopg.Connection, job_type: str, job_id: int) -> list[str]:
    return [note.what for note in notes(connection, job_type, job_id)]


# --- a row becomes a job ---

module(
    "arguments",
    """
class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"

class Address(pydantic.BaseModel):
    street: str
    number: int = 1

class EverythingJob(Job):
    text: str
    whole: int
    flag: bool
    ratio: float
    amount: Decimal
    moment: datetime
    day: date
    clock: clock_time
    span: timedelta
    key: UUID
    raw: bytes
    colour: Colour
    size: Literal["s", "m"]
    level: Literal[1, 2]
    tags: list[str]
    options: dict[str, int]
    address: Address
    missing: Optional[str] = None
    given: Optional[int] = None

    async def perform(self):
        moment = self.moment.astimezone(timezone.utc)
        seen = {name: repr(getattr(self, name)) for name in type(self).__pydantic_fields__ if name != "moment"}
        note(self, "seen", json.dumps(seen | {"moment": moment.isoformat()}))

class IdentityJob(Job):
    def perform(self):
        self.log.info("identity", extra="yes")
        note(self, "row", json.dumps([self.id, self.attempt, *self.row], default=str))

class InvoiceJob(Job):
    table = "billing.invoices"
    async def perform(self):
        note(self, "performed")

class QuotedJob(Job):
    table = 'Überweisungen "neu" 100%s {jobs}'
    amount: int
    async def perform(self):
        note(self, "performed", str(self.amount))

class TextJob(Job):
    body: str
    data: dict[str, int] = {}
    async def perform(self):
        body = hashlib.md5(self.body.encode()).hexdigest()
        note(self, "size", json.dumps([len(self.body), body, len(self.data)]))

class RefusedJob(Job):
    code: str

    @pydantic.field_validator("code")
    @classmethod
    def check(cls, value):
        if value != "good":
            raise ValueError("the code is not good")
        return value

    def perform(self):
        note(self, "performed")

class MomentJob(Job):
    moment: datetime
    async def perform(self):
        note(self, "performed")
""",
)


def test_a_plain_insert_is_performed_once(db: psycopg.Connection) -> None:
    row = perform(db, "identity_jobs")
    assert (row.status, row.attempts_count, row.crashes_count, row.last_error) == ("succeeded", 1, 0, None)
    assert row.locked_at is None
    assert row.locked_by is not None
    assert row.created_at <= row.started_at <= row.finished_at
    assert len(notes(db, "IdentityJob", row.id)) == 1


def test_a_row_that_is_rolled_back_never_runs_and_one_that_is_open_waits_for_its_commit(
    node: NodeProcess, db: psycopg.Connection
) -> None:
    with psycopg.connect(node.database_url) as other:
        gone = insert(other, "identity_jobs")
        other.rollback()
        late = insert(other, "identity_jobs")
        assert perform(db, "identity_jobs").status == "succeeded"
        assert notes(db, "IdentityJob", late) == []
        other.commit()
    assert ended(db, "identity_jobs", late).status == "succeeded"
    assert notes(db, "IdentityJob", gone) == []


def test_every_column_type_arrives_as_its_python_type(db: psycopg.Connection) -> None:
    row = perform(
        db, "everything_jobs",
        text="Größe 🐘 'x'\n", whole=2**62, flag=True, ratio=0.1, amount="1.50", moment="2026-02-03 04:05:06.789+02",
        day="2026-02-03", clock="04:05:06.789", span="sql:interval '1 day 2 hours'",
        key="5b3f3a0e-8f0e-4a3c-9d2e-0123456789ab", raw=b"\0\xff", colour="blue", size="m", level=2,
        tags='["a", "b"]', options='{"x": 1}', address='{"street": "Weg"}', given=5,
    )  # fmt: skip
    assert row.status == "succeeded", row.last_error
    (seen,) = notes(db, "EverythingJob", row.id)
    assert json.loads(seen.value) == {
        "text": repr("Größe 🐘 'x'\n"),
        "whole": str(2**62),
        "flag": "True",
        "ratio": "0.1",
        "amount": "Decimal('1.50')",
        "moment": "2026-02-03T02:05:06.789000+00:00",
        "day": "datetime.date(2026, 2, 3)",
        "clock": "datetime.time(4, 5, 6, 789000)",
        "span": repr(timedelta(days=1, hours=2)),
        "key": "UUID('5b3f3a0e-8f0e-4a3c-9d2e-0123456789ab')",
        "raw": repr(b"\0\xff"),
        "colour": "<Colour.BLUE: 'blue'>",
        "size": "'m'",
        "level": "2",
        "tags": "['a', 'b']",
        "options": "{'x': 1}",
        "address": "Address(street='Weg', number=1)",
        "missing": "None",
        "given": "5",
    }


def test_a_job_knows_its_id_attempt_row_and_logger(node: NodeProcess, db: psycopg.Connection) -> None:
    row = perform(db, "identity_jobs", queue="somewhere", priority=7, run_at="2026-01-01 00:00:00+00")
    (seen,) = notes(db, "IdentityJob", row.id)
    assert json.loads(seen.value) == [
        row.id, 1, "somewhere", 7, "2026-01-01 00:00:00+00:00", 1, str(row.created_at.astimezone(UTC)),
    ]  # fmt: skip
    (line,) = [line for line in node.log("identity") if line["job_id"] == row.id]
    assert (line["job_type"], line["attempt"], line["extra"]) == ("IdentityJob", 1, "yes")


def test_a_table_may_live_in_another_schema(db: psycopg.Connection) -> None:
    assert perform(db, "billing.invoices").status == "succeeded"


def test_a_tables_name_may_need_quotes(db: psycopg.Connection) -> None:
    row = perform(db, 'Überweisungen "neu" 100%s {jobs}', amount=3)
    assert (row.status, row.last_error) == ("succeeded", None)


def test_large_values_arrive_whole(db: psycopg.Connection) -> None:
    row = perform(
        db, "text_jobs", body="sql:repeat('🐘', 250000)",
        data="sql:(SELECT jsonb_object_agg('key' || n, n) FROM generate_series(1, 10000) n)",
    )  # fmt: skip
    assert row.status == "succeeded", row.last_error
    (seen,) = notes(db, "TextJob", row.id)
    digest = db.execute("SELECT md5(body) FROM text_jobs WHERE id = %s", [row.id]).fetchone()
    assert digest is not None
    assert json.loads(seen.value) == [250_000, digest[0], 10_000]


@pytest.mark.slow
def test_a_text_of_100_mb_arrives_whole(db: psycopg.Connection) -> None:
    row = ended(db, "text_jobs", insert(db, "text_jobs", body="sql:repeat('0123456789', 10000000)"), timeout=60)
    assert row.status == "succeeded", row.last_error
    assert row.attempts_count == 1
    (seen,) = notes(db, "TextJob", row.id)
    assert json.loads(seen.value)[0] == 100_000_000
    db.execute("DELETE FROM text_jobs WHERE id = %s", [row.id])


def test_no_value_can_hold_a_nul(db: psycopg.Connection) -> None:
    with pytest.raises(errors.ProgramLimitExceeded):
        insert(db, "text_jobs", body="sql:chr(0)")


def test_a_row_that_a_validator_refuses_is_failed_at_once(db: psycopg.Connection) -> None:
    row = perform(db, "refused_jobs", code="bad")
    assert (row.status, row.attempts_count) == ("failed", 1)
    assert "does not fit its class" in row.last_error
    assert "the code is not good" in row.last_error
    assert notes(db, "RefusedJob", row.id) == []
    assert perform(db, "refused_jobs", code="good").status == "succeeded"


def test_a_value_that_cannot_be_decoded_fails_its_job_only(db: psycopg.Connection) -> None:
    with db.transaction():
        moments = ["2026-01-01", "infinity", "2026-01-02"]
        ids = [insert(db, "moment_jobs", moment=moment) for moment in moments]
    wait_for(db, "SELECT count(*) = 3 FROM moment_jobs WHERE id = ANY (%s) AND finished_at IS NOT NULL", [ids])
    assert [row[0] for row in _columns(db, "moment_jobs", "status::text", ids)] == ["succeeded", "failed", "succeeded"]
    assert "does not fit its class" in _columns(db, "moment_jobs", "last_error", ids)[1][0]


def _columns(connection: psycopg.Connection, table: str, columns: str, ids: list[int]) -> list[tuple[Any, ...]]:
    """For rows that psycopg can't read as a whole, and for several at once; in the order of ids."""
    query = f"SELECT {columns} FROM {table} WHERE id = ANY (%s) ORDER BY array_position(%s::bigint[], id)"
    return connection.execute(query.encode(), [ids, ids]).fetchall()


# --- attempts, and what perform returns ---

module(
    "attempts",
    """
class Flaky(Job):
    good: int
    table = "flaky_jobs"
    backoff = ConstantBackoff(timedelta(milliseconds=100))

    async def perform(self):
        note(self, "performed")
        if self.attempt < self.good:
            raise RuntimeError(f"not yet: {self.attempt}")

class ExponentialJob(Flaky):
    table = ""
    backoff = ExponentialBackoff(timedelta(milliseconds=50), factor=3)

def quick(attempt):
    return timedelta(milliseconds=20 * attempt)

class FunctionJob(Flaky):
    table = ""
    backoff = quick

class LambdaJob(Flaky):
    table = ""
    backoff = lambda attempt: timedelta(milliseconds=20 * attempt)

class StaticJob(Flaky):
    table = ""
    @staticmethod
    def backoff(attempt):
        return timedelta(milliseconds=20 * attempt)

class BrokenBackoffJob(Flaky):
    table = ""
    backoff = lambda attempt: 1 / 0

class FailingJob(Job):
    max_attempts = 3
    backoff = SOON
    def perform(self):
        raise RuntimeError(f"attempt {self.attempt}")

class OnceJob(FailingJob):
    max_attempts = 1

class NeverJob(FailingJob):
    max_attempts = 0

class OutcomeJob(Job):
    kind: str
    async def perform(self):
        note(self, self.kind)
        if count_notes(self) > 1:
            return None
        return {"snooze": Snooze(timedelta(milliseconds=50)), "cancel": Cancel("why not"), "fail": Fail("no use")}[self.kind]

class SyncOutcomeJob(Job):
    kind: str
    def perform(self):
        note(self, self.kind)
        if count_notes(self) > 1:
            return None
        return {"snooze": Snooze(timedelta(milliseconds=50)), "cancel": Cancel("why not"), "fail": Fail("no use")}[self.kind]

class AsyncHooksJob(Job):
    mode: str
    max_attempts = 2
    backoff = SOON

    async def before_perform(self):
        note(self, "before")
        if self.mode == "before":
            raise ValueError("before")

    async def perform(self):
        note(self, "perform")
        if self.mode == "fail":
            raise ValueError("perform")

    async def after_success(self):
        note(self, "success")
        if self.mode == "hooks":
            raise SystemExit(1)

    def after_failure(self, error, final):
        note(self, f"failure {error!r} {final}")

    async def after_perform(self):
        note(self, "after")
        if self.mode == "hooks":
            raise ValueError("hook")

class SyncHooksJob(Job):
    mode: str
    max_attempts = 2
    backoff = SOON

    def before_perform(self):
        note(self, "before")
        if self.mode == "before":
            raise ValueError("before")

    def perform(self):
        note(self, "perform")
        if self.mode == "fail":
            raise ValueError("perform")

    def after_success(self):
        note(self, "success")
        if self.mode == "hooks":
            raise SystemExit(1)

    def after_failure(self, error, final):
        note(self, f"failure {error!r} {final}")

    def after_perform(self):
        note(self, "after")
        if self.mode == "hooks":
            raise ValueError("hook")
""",
)


def _waits(connection: psycopg.Connection, job_type: str, job_id: int) -> list[float]:
    """Seconds between the attempts of a job."""
    times = [note.at for note in notes(connection, job_type, job_id)]
    return [(later - earlier).total_seconds() for earlier, later in pairwise(times)]


def test_a_failed_attempt_is_retried_after_its_constant_backoff(db: psycopg.Connection) -> None:
    row = perform(db, "flaky_jobs", good=3)
    assert (row.status, row.attempts_count, row.crashes_count) == ("succeeded", 3, 0)
    assert [note.attempt for note in notes(db, "Flaky", row.id)] == [1, 2, 3]
    waits = _waits(db, "Flaky", row.id)
    assert all(0.1 <= wait < 1 for wait in waits), waits
    assert "not yet: 2" in row.last_error


def test_an_exponential_backoff_grows(db: psycopg.Connection) -> None:
    row = perform(db, "exponential_jobs", good=3)
    first, second = _waits(db, "ExponentialJob", row.id)
    assert (first >= 0.05, second >= 0.15) == (True, True)
    assert first < second < 1.5


@pytest.mark.parametrize("kind", ["function", "lambda", "static"])
def test_any_callable_is_a_backoff_and_is_not_bound_to_the_job(db: psycopg.Connection, kind: str) -> None:
    row = perform(db, f"{kind}_jobs", good=3)
    assert row.status == "succeeded"
    first, second = _waits(db, f"{kind.title()}Job", row.id)
    assert (first >= 0.02, second >= 0.04) == (True, True)
    assert second < 1


def test_a_backoff_that_raises_gives_way_to_the_default_of_30_seconds(
    node: NodeProcess, db: psycopg.Connection
) -> None:
    job_id = insert(db, "broken_backoff_jobs", good=2)
    row = wait_status(db, "broken_backoff_jobs", job_id, "retry")
    assert 29 < (row.run_at - row.started_at).total_seconds() < 32
    assert any("ZeroDivisionError" in line.get("exception", "") for line in node.log()), "the log says why"
    db.execute("UPDATE broken_backoff_jobs SET run_at = now() WHERE id = %s", [job_id])
    assert ended(db, "broken_backoff_jobs", job_id).status == "succeeded"


@pytest.mark.parametrize(("table", "attempts"), [("failing_jobs", 3), ("once_jobs", 1), ("never_jobs", 1)])
def test_the_last_attempt_fails_the_job(db: psycopg.Connection, table: str, attempts: int) -> None:
    row = perform(db, table)
    assert (row.status, row.attempts_count) == ("failed", attempts)
    assert f"attempt {attempts}" in row.last_error


@pytest.mark.parametrize("kind", ["OutcomeJob", "SyncOutcomeJob"])
def test_a_snoozed_attempt_is_not_counted(db: psycopg.Connection, kind: str) -> None:
    table = {"OutcomeJob": "outcome_jobs", "SyncOutcomeJob": "sync_outcome_jobs"}[kind]
    row = perform(db, table, kind="snooze")
    assert (row.status, row.attempts_count, row.last_error) == ("succeeded", 1, None)
    assert [note.attempt for note in notes(db, kind, row.id)] == [1, 1]
    (wait,) = _waits(db, kind, row.id)
    assert wait >= 0.05


@pytest.mark.parametrize("table", ["outcome_jobs", "sync_outcome_jobs"])
def test_cancel_and_fail_end_the_job_without_retry(db: psycopg.Connection, table: str) -> None:
    row = perform(db, table, kind="cancel")
    assert (row.status, row.attempts_count, row.last_error) == ("cancelled", 1, "why not")
    row = perform(db, table, kind="fail")
    assert (row.status, row.attempts_count, row.last_error) == ("failed", 1, "no use")


HOOKS = [
    ("ok", "succeeded", ["before", "perform", "success", "after"]),
    ("fail", "failed", [
        "before", "perform", "failure ValueError('perform') False", "after",
        "before", "perform", "failure ValueError('perform') True", "after",
    ]),
    ("before", "failed", [
        "before", "failure ValueError('before') False", "after", "before", "failure ValueError('before') True", "after",
    ]),
    ("hooks", "succeeded", ["before", "perform", "success", "after"]),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["Async", "Sync"])
@pytest.mark.parametrize(("mode", "status", "expected"), HOOKS, ids=[mode for mode, _, _ in HOOKS])
def test_hooks_are_called_in_order(
    db: psycopg.Connection, kind: str, mode: str, status: str, expected: list[str]
) -> None:
    row = perform(db, f"{kind.lower()}_hooks_jobs", mode=mode)
    assert whats(db, f"{kind}HooksJob", row.id) == expected
    assert row.status == status


# --- timeouts ---

module(
    "timeouts",
    """
class SlowAsyncJob(Job):
    timeout = timedelta(milliseconds=200)
    max_attempts = 2
    backoff = SOON
    async def perform(self):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note(self, "cancelled")
            raise
    async def after_failure(self, error, final):
        note(self, f"{type(error).__name__} {final}")

class SpinningJob(Job):
    timeout = timedelta(milliseconds=200)
    max_attempts = 1
    def perform(self):
        note(self, "started")
        while True:
            pass

class SpinningThreadJob(SpinningJob):
    isolation = "thread"

class InTimeJob(Job):
    timeout = timedelta(seconds=20)
    def perform(self):
        note(self, "performed")

class LateAnswerJob(Job):
    timeout = timedelta(milliseconds=200)
    async def perform(self):
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            return None

class DeafJob(Job):
    timeout = timedelta(milliseconds=200)
    max_attempts = 1
    async def perform(self):
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                note(self, "ignored")

class StuckJob(Job):
    timeout = timedelta(milliseconds=200)
    max_attempts = 1
    def perform(self):
        note(self, "started")
        LIBC.sleep(1000)

class StuckAsyncJob(Job):
    timeout = timedelta(milliseconds=200)
    max_attempts = 1
    async def perform(self):
        note(self, "started")
        while True:
            LIBC.sleep(1000)

class GateJob(Job):
    async def perform(self):
        note(self, "started")
        await pass_gate()
        note(self, "passed")
""",
)


def test_a_soft_timeout_cancels_an_async_job(db: psycopg.Connection) -> None:
    row = perform(db, "slow_async_jobs")
    assert (row.status, row.attempts_count, row.crashes_count) == ("timed_out", 2, 0)
    assert whats(db, "SlowAsyncJob", row.id) == ["cancelled", "TimeoutError False", "cancelled", "TimeoutError True"]
    assert row.last_error.startswith("timed out after 0.2 s; it was stopped here:\nTraceback")
    assert "await asyncio.sleep(60)" in row.last_error


@pytest.mark.parametrize("kind", ["Spinning", "SpinningThread"])
def test_a_soft_timeout_ends_python_code_that_never_stops(node: NodeProcess, db: psycopg.Connection, kind: str) -> None:
    before = node.workers()
    table = {"Spinning": "spinning_jobs", "SpinningThread": "spinning_thread_jobs"}[kind]
    row = perform(db, table)
    assert (row.status, row.attempts_count, row.crashes_count) == ("timed_out", 1, 0)
    assert "while True:" in row.last_error or "pass" in row.last_error
    (seen,) = notes(db, f"{kind}Job", row.id)
    assert seen.pid in before
    if kind == "Spinning":
        wait_until(lambda: seen.pid not in node.workers(), "its process, which it had to itself, is replaced")
    else:
        assert seen.pid in node.workers(), "its process goes on"


def test_a_job_that_ends_in_time_is_left_alone(db: psycopg.Connection) -> None:
    assert perform(db, "in_time_jobs").status == "succeeded"


def test_a_job_that_answers_the_timeout_by_returning_has_succeeded(db: psycopg.Connection) -> None:
    assert perform(db, "late_answer_jobs").status == "succeeded"


def test_a_job_that_swallows_its_cancellation_is_killed(db: psycopg.Connection) -> None:
    row = perform(db, "deaf_jobs")
    assert (row.status, row.attempts_count, row.crashes_count) == ("timed_out", 1, 0)
    assert row.last_error == "timed out after 0.2 s; it did not stop, so its process was killed"
    assert whats(db, "DeafJob", row.id) == ["ignored"]


def test_a_sync_job_stuck_in_native_code_is_killed_and_its_process_replaced(
    node: NodeProcess, db: psycopg.Connection
) -> None:
    row = perform(db, "stuck_jobs")
    assert (row.status, row.attempts_count, row.crashes_count) == ("timed_out", 1, 0)
    (seen,) = notes(db, "StuckJob", row.id)
    wait_until(lambda: len(node.workers()) == 2 and seen.pid not in node.workers(), "the process is replaced")


def test_neighbours_of_a_job_stuck_in_native_code_lose_no_attempt(
    node: NodeProcess, db: psycopg.Connection, gate: Gate
) -> None:
    # A job of another test may have ended a process just now, and all four would go to the other.
    wait_for(db, "SELECT slots = 2 * 16 FROM cluster.nodes WHERE state = 'live'")
    neighbours = [insert(db, "gate_jobs") for _ in range(4)]
    for job_id in neighbours:
        wait_notes(db, "GateJob", job_id=job_id)
    stuck = ended(db, "stuck_async_jobs", insert(db, "stuck_async_jobs"))
    gate.open()
    assert (stuck.status, stuck.crashes_count) == ("timed_out", 0)
    first, *stacks = stuck.last_error.splitlines()
    assert first == "timed out after 0.2 s; it did not stop, so its process was killed; it was here:"
    assert any("in perform" in line for line in stacks)
    (seen,) = notes(db, "StuckAsyncJob", stuck.id)
    rows = [ended(db, "gate_jobs", job_id) for job_id in neighbours]
    assert [(row.status, row.attempts_count, row.crashes_count) for row in rows] == [("succeeded", 1, 0)] * 4
    hit = [job_id for job_id in neighbours if notes(db, "GateJob", job_id)[0].pid == seen.pid]
    assert hit, "the stuck job had neighbours"
    for job_id in hit:
        begun = [note for note in notes(db, "GateJob", job_id) if note.what == "started"]
        assert len(begun) == 2
        assert begun[1].pid != seen.pid
    assert any(line["pid"] == seen.pid and line["reason"] == "timed_out" for line in node.log("worker_ended"))


# --- crashes ---

module(
    "crashes",
    """
class ExitJob(Job):
    max_attempts = 1
    def perform(self):
        time.sleep(0.6)  # the coordinator has looked at the process's memory meanwhile
        os._exit(7)

class KilledJob(Job):
    max_attempts = 1
    def perform(self):
        os.kill(os.getpid(), signal.SIGKILL)

class FaultJob(Job):
    max_attempts = 1
    def perform(self):
        ctypes.string_at(0)

class CrashOnceJob(Job):
    async def perform(self):
        note(self, "performed")
        if self.attempt == 1:
            os._exit(1)

class PoisonJob(Job):
    max_crashes = 2
    backoff = SOON
    def perform(self):
        note(self, "performed")
        os._exit(1)

class CrashAsyncJob(Job):
    max_attempts = 1
    async def perform(self):
        note(self, "performed")
        os._exit(3)
""",
)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("exit_jobs", ["exit code 7", "peak memory"]),
        ("killed_jobs", ["SIGKILL", "killed from outside, or out of memory"]),
        ("fault_jobs", ["SIGSEGV", "a fault in native code"]),
    ],
)
def test_a_crash_counts_as_an_attempt_and_says_what_killed_the_process(
    db: psycopg.Connection, table: str, words: list[str]
) -> None:
    row = perform(db, table)
    assert (row.status, row.attempts_count, row.crashes_count) == ("failed", 1, 1)
    for word in ["the worker process died under this job", *words]:
        assert word in row.last_error


def test_a_first_crash_is_retried_at_once(db: psycopg.Connection) -> None:
    row = perform(db, "crash_once_jobs")
    assert (row.status, row.attempts_count, row.crashes_count) == ("succeeded", 2, 1)
    assert len({note.pid for note in notes(db, "CrashOnceJob", row.id)}) == 2
    (wait,) = _waits(db, "CrashOnceJob", row.id)
    assert wait < 5


def test_a_job_that_keeps_crashing_is_quarantined(db: psycopg.Connection) -> None:
    row = perform(db, "poison_jobs")
    assert (row.status, row.attempts_count, row.crashes_count) == ("failed", 2, 2)
    assert "2 crashes, so it is not tried again" in row.last_error
    assert len(notes(db, "PoisonJob", row.id)) == 2


def test_neighbours_of_a_crash_lose_no_attempt(db: psycopg.Connection, gate: Gate) -> None:
    neighbours: list[int] = []

    def each_process_has_one() -> bool:
        """The process that an earlier crash has ended may not be replaced yet."""
        neighbours.append(insert(db, "gate_jobs"))
        wait_notes(db, "GateJob", job_id=neighbours[-1])
        return len({note.pid for note in notes(db, "GateJob") if note.job_id in neighbours}) == 2

    wait_until(each_process_has_one, "both processes have a neighbour for the culprit")
    culprit = insert(db, "crash_async_jobs")
    wait_for(db, "SELECT crashes_count > 0 FROM crash_async_jobs WHERE id = %s", [culprit])
    gate.open()
    row = ended(db, "crash_async_jobs", culprit)
    assert (row.status, row.attempts_count, row.crashes_count) == ("failed", 1, 2), "alone, it is to blame"
    assert "exit code 3" in row.last_error
    rows = [ended(db, "gate_jobs", job_id) for job_id in neighbours]
    assert [(row.status, row.attempts_count) for row in rows] == [("succeeded", 1)] * len(neighbours)
    assert sorted({row.crashes_count for row in rows}) == [0, 1]


LAST_WORDS = """
from jobs.tools import *

done = asyncio.Event()

class QuickJob(Job):
    async def perform(self):
        note(self, "performed")
        done.set()

class LeavingJob(Job):
    max_attempts = 1
    async def perform(self):
        note(self, "started")
        await done.wait()
        for _ in range(4):
            await asyncio.sleep(0)
        os._exit(1)
"""


def test_what_a_process_reported_before_it_crashed_counts(conn: psycopg.Connection, run_node: RunNode) -> None:
    conn.execute(NOTES)
    run_node({"tools": TOOLS, "words": LAST_WORDS}, processes=1)
    for _ in range(10):
        leaving = insert(conn, "leaving_jobs")
        wait_notes(conn, "LeavingJob", job_id=leaving)
        quick = perform(conn, "quick_jobs")
        assert (quick.status, len(notes(conn, "QuickJob", quick.id))) == ("succeeded", 1)
        assert ended(conn, "leaving_jobs", leaving).crashes_count == 1


# --- job code that misbehaves ---

module(
    "hostile",
    """
class Unpicklable(Exception):
    def __init__(self, number):
        super().__init__("unpicklable")
        self.lock = threading.Lock()
    def __reduce__(self):
        raise TypeError("no")

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no text")

class Rude(BaseException):
    pass

def descend():
    descend()

def misbehave(kind):
    match kind:
        case "recursion":
            descend()
        case "memory":
            bytearray(2**62)
    raise {
        "exit": SystemExit(3), "interrupt": KeyboardInterrupt(), "unpicklable": Unpicklable(1), "mute": Mute(),
        "cancelled": asyncio.CancelledError(), "rude": Rude("rude"), "stop": StopIteration(1), "async stop": StopAsyncIteration(),
        "generator": GeneratorExit(), "group": BaseExceptionGroup("many", [Rude("one"), ValueError("two")]),
    }[kind]

class MisbehavingAsyncJob(Job):
    kind: str
    max_attempts = 1
    async def perform(self):
        misbehave(self.kind)

class MisbehavingThreadJob(Job):
    kind: str
    max_attempts = 1
    isolation = "thread"
    def perform(self):
        misbehave(self.kind)

class MisbehavingJob(Job):
    kind: str
    max_attempts = 1
    def perform(self):
        misbehave(self.kind)

class ForkJob(Job):
    isolation = "thread"
    def perform(self):
        child = os.fork()
        note(self, "parent" if child else "child")
        if child:
            os.waitpid(child, 0)

class ForkAsyncJob(Job):
    async def perform(self):
        child = os.fork()
        note(self, "parent" if child else "child")
        if child:
            os.waitpid(child, 0)

class ForkRaisingJob(Job):
    max_attempts = 1
    def perform(self):
        child = os.fork()
        if child == 0:
            raise RuntimeError("from the child")
        os.waitpid(child, 0)
        note(self, "parent")

def in_child(queue):
    queue.put(os.getpid())

class MultiprocessingJob(Job):
    method: str
    def perform(self):
        context = multiprocessing.get_context(self.method)
        queue = context.Queue()
        child = context.Process(target=in_child, args=(queue,))
        child.start()
        note(self, str(queue.get() == child.pid))
        child.join()

class LoudJob(Job):
    def perform(self):
        for _ in range(1000):
            print("x" * 9_999)
            print("y" * 9, file=sys.stderr)
        os.write(1, b"z" * 100)

class LeakyJob(Job):
    def perform(self):
        threading.Thread(target=threading.Event().wait).start()
        open("/proc/self/status")

class LongErrorJob(Job):
    max_attempts = 1
    async def perform(self):
        raise ValueError("begin" + "x" * 100_000 + "end")

class StrangeErrorJob(Job):
    max_attempts = 1
    async def perform(self):
        raise ValueError("a\\0b \\ud800 🐘 é \\u0394")

class ReasonJob(Job):
    kind: str
    async def perform(self):
        outcomes = {
            "object": Fail(ValueError("an object")), "number": Cancel(5), "enum": Fail(Colour.RED), "long": Fail("x" * 10**6),
        }
        return outcomes[self.kind]

class Colour(str, enum.Enum):
    RED = "red"

class ForeverJob(Job):
    max_attempts = 1
    async def perform(self):
        return Snooze(timedelta.max)

class MuteValidatorJob(Job):
    kind: str
    @pydantic.field_validator("kind")
    @classmethod
    def check(cls, value):
        misbehave(value)
    def perform(self):
        pass

class ExitInTaskJob(Job):
    max_attempts = 1
    async def perform(self):
        note(self, "performed")
        await asyncio.gather(self.leave())
    async def leave(self):
        sys.exit(1)

def undecorated(function):
    return lambda *arguments: function(*arguments)

class DisguisedJob(Job):
    max_attempts = 1
    @undecorated
    async def perform(self):
        note(self, "performed")

class StrangeReasonJob(Job):
    async def perform(self):
        return Fail("a\\0b \\ud800 🐘")
""",
)

KINDS = {
    "exit": "SystemExit: 3",
    "interrupt": "KeyboardInterrupt",
    "unpicklable": "Unpicklable: unpicklable",
    "mute": "Mute",
    "cancelled": "CancelledError",
    "rude": "Rude: rude",
    "recursion": "RecursionError",
    "memory": "MemoryError",
    "stop": "StopIteration",
    "async stop": "StopAsyncIteration",
    "generator": "GeneratorExit",
    "group": "two",
}


@pytest.mark.parametrize("where", ["async", "thread", "process"])
def test_whatever_perform_raises_fails_the_job_and_nothing_else(
    node: NodeProcess, db: psycopg.Connection, where: str
) -> None:
    table = {
        "async": "misbehaving_async_jobs",
        "thread": "misbehaving_thread_jobs",
        "process": "misbehaving_jobs",
    }[where]
    before = sorted(node.workers())
    ids = {kind: insert(db, table, kind=kind) for kind in KINDS}
    rows = {kind: ended(db, table, job_id) for kind, job_id in ids.items()}
    assert {kind: (row.status, row.attempts_count, row.crashes_count) for kind, row in rows.items()} == dict.fromkeys(
        KINDS, ("failed", 1, 0)
    )
    assert [kind for kind, row in rows.items() if KINDS[kind] not in row.last_error] == []
    assert sorted(node.workers()) == before, "no process has ended"


@pytest.mark.parametrize(("kind", "table"), [("ForkJob", "fork_jobs"), ("ForkAsyncJob", "fork_async_jobs")])
def test_a_forked_child_that_returns_from_perform_reports_nothing(
    node: NodeProcess, db: psycopg.Connection, kind: str, table: str
) -> None:
    row = perform(db, table)
    assert (row.status, row.attempts_count, row.crashes_count) == ("succeeded", 1, 0)
    assert sorted(whats(db, kind, row.id)) == ["child", "parent"]
    assert len(node.workers()) == 2


def test_a_forked_child_that_raises_reports_nothing(db: psycopg.Connection) -> None:
    row = perform(db, "fork_raising_jobs")
    assert (row.status, row.attempts_count) == ("succeeded", 1)
    assert whats(db, "ForkRaisingJob", row.id) == ["parent"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_job_may_use_multiprocessing(db: psycopg.Connection, method: str) -> None:
    row = perform(db, "multiprocessing_jobs", method=method)
    assert (row.status, row.last_error) == ("succeeded", None)
    assert whats(db, "MultiprocessingJob", row.id) == ["True"]


def test_a_job_may_print_megabytes(node: NodeProcess, db: psycopg.Connection) -> None:
    assert perform(db, "loud_jobs").status == "succeeded"
    wait_until(lambda: len(node.output()) >= 10_000_000, "everything is printed")


def test_a_job_may_leak_threads_and_files(db: psycopg.Connection) -> None:
    assert perform(db, "leaky_jobs").status == "succeeded"
    assert perform(db, "leaky_jobs").status == "succeeded"


@pytest.mark.parametrize(
    ("kind", "status", "text"),
    [
        ("object", "failed", "an object"),
        ("number", "cancelled", "5"),
        ("enum", "failed", "RED"),
        ("long", "failed", "left out"),
    ],
)
def test_a_reason_may_be_anything(db: psycopg.Connection, kind: str, status: str, text: str) -> None:
    row = perform(db, "reason_jobs", kind=kind)
    assert row.status == status
    assert text in row.last_error
    assert len(row.last_error) < 21_000


def test_a_job_that_snoozes_for_ever_waits_for_a_hundred_years(db: psycopg.Connection) -> None:
    job_id = insert(db, "forever_jobs")
    wait_for(db, "SELECT status = 'scheduled' AND run_at BETWEEN now() + interval '99 years' AND now() + interval '101 years' "
             "FROM forever_jobs WHERE id = %s", [job_id])  # fmt: skip


@pytest.mark.parametrize("kind", ["mute", "cancelled", "exit", "recursion"])
def test_whatever_a_validator_raises_fails_the_job(node: NodeProcess, db: psycopg.Connection, kind: str) -> None:
    before = sorted(node.workers())
    row = perform(db, "mute_validator_jobs", kind=kind)
    assert (row.status, row.attempts_count) == ("failed", 1)
    assert "does not fit its class" in row.last_error
    assert sorted(node.workers()) == before


def test_a_coroutine_that_nobody_awaits_is_no_success(db: psycopg.Connection) -> None:
    row = perform(db, "disguised_jobs")
    assert row.status == "failed"
    assert "async def" in row.last_error


def test_neighbours_of_a_job_that_exits_in_a_task_of_its_own_lose_no_attempt(
    db: psycopg.Connection, gate: Gate
) -> None:
    neighbours = [insert(db, "gate_jobs") for _ in range(4)]
    for job_id in neighbours:
        wait_notes(db, "GateJob", job_id=job_id)
    culprit = insert(db, "exit_in_task_jobs")
    wait_for(db, "SELECT crashes_count > 0 OR status = 'failed' FROM exit_in_task_jobs WHERE id = %s", [culprit])
    gate.open()
    rows = [ended(db, "gate_jobs", job_id) for job_id in neighbours]
    assert [(row.status, row.attempts_count) for row in rows] == [("succeeded", 1)] * 4
    assert ended(db, "exit_in_task_jobs", culprit).status == "failed"


# --- errors ---


def test_last_error_is_the_whole_traceback(db: psycopg.Connection) -> None:
    row = perform(db, "once_jobs")
    assert row.last_error.splitlines()[0] == "Traceback (most recent call last):"
    assert "attempts.py" in row.last_error.splitlines()[1], "the engine's own frames are left out"
    assert 'raise RuntimeError(f"attempt {self.attempt}")' in row.last_error
    assert row.last_error.splitlines()[-1] == "RuntimeError: attempt 1"


def test_a_long_error_is_cut_in_the_middle(db: psycopg.Connection) -> None:
    row = perform(db, "long_error_jobs")
    assert len(row.last_error) < 21_000
    assert "characters left out" in row.last_error
    assert "ValueError: beginxxx" in row.last_error
    assert row.last_error.endswith("xxxend")


def test_an_error_with_strange_characters_is_stored(db: psycopg.Connection) -> None:
    row = perform(db, "strange_error_jobs")
    assert row.last_error.endswith(r"ValueError: a\x00b \ud800 🐘 é Δ")
    assert perform(db, "strange_reason_jobs").last_error == r"a\x00b \ud800 🐘"


@pytest.mark.parametrize(
    ("encoding", "text"), [("LATIN1", r"a\x00b \ud800 \U0001f418 é \u0394"), ("SQL_ASCII", r"a\x00b \ud800")]
)
def test_errors_are_stored_in_a_database_of_another_encoding(
    node: NodeProcess, db: psycopg.Connection, tmp_path_factory: pytest.TempPathFactory, encoding: str, text: str
) -> None:
    name = f"{db.info.dbname}_{encoding.lower()}"
    db.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'".encode())
    url = node.database_url.replace(db.info.dbname, name)
    try:
        with psycopg.connect(url, autocommit=True, client_encoding="utf-8") as connection:
            migrate_schema(connection)
            connection.execute(NOTES)
            source = {"tools": TOOLS, "hostile": MODULES["hostile"]}
            with running_node(url, tmp_path_factory.mktemp("app"), source) as other:
                row = perform(connection, "strange_error_jobs")
                assert row.status == "failed"
                assert f"ValueError: {text}" in row.last_error
                assert other.stop() == 0
    finally:
        db.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


# --- when a job runs ---

module(
    "times",
    """
class TimedJob(Job):
    def perform(self):
        pass

class PlainJob(Job):
    async def perform(self):
        note(self, "start")
        await asyncio.sleep(0.02)
        note(self, "end")

class LonelyJob(Job):
    def perform(self):
        note(self, "start")
        time.sleep(0.02)
        note(self, "end")

class ThreadedJob(Job):
    isolation = "thread"
    def perform(self):
        note(self, "start")
        pass_gate_sync()
        note(self, "end")
""",
)

ORDER = """
from jobs.tools import *

class FirstJob(Job):
    async def perform(self):
        note(self, "performed")

class SecondJob(Job):
    def perform(self):
        note(self, "performed")
"""


def test_a_job_runs_at_its_time_and_not_before(db: psycopg.Connection) -> None:
    ids = [insert(db, "timed_jobs", run_at=f"sql:now() + interval '{delay} ms'") for delay in (300, 600)]
    assert {job(db, "timed_jobs", job_id).status for job_id in ids} == {"scheduled"}
    for job_id in ids:
        row = ended(db, "timed_jobs", job_id)
        assert 0 <= (row.started_at - row.run_at).total_seconds() < 0.3


def test_a_job_that_is_rescheduled_to_now_starts_at_once(db: psycopg.Connection) -> None:
    job_id = insert(db, "timed_jobs", run_at="sql:now() + interval '1 day'")
    assert job(db, "timed_jobs", job_id).status == "scheduled"
    db.execute("UPDATE timed_jobs SET run_at = now() WHERE id = %s AND status = 'scheduled'", [job_id])
    row = ended(db, "timed_jobs", job_id)
    assert 0 <= (row.started_at - row.run_at).total_seconds() < 0.3


def test_jobs_run_by_priority_then_time_then_id_and_only_of_the_nodes_queues(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    conn.execute(NOTES)
    setup = """
        INSERT INTO first_jobs (id, queue, priority, run_at) VALUES
            (11, 'a', 50, '2026-01-01 00:00:02+00'), (12, 'a', 50, '2026-01-01 00:00:01+00'),
            (13, 'a', 50, '2026-01-01 00:00:01+00'), (14, 'a', 10, '2026-01-01 00:00:09+00'),
            (15, 'b', 5, now()), (16, 'c', 1, now());
        INSERT INTO second_jobs (id, queue, priority, run_at) VALUES
            (21, 'b', 40, '2026-01-01+00'), (22, 'b', 2, now()), (23, 'a', 60, '2025-01-01+00'), (24, 'c', 1, now());
    """
    run_node({"tools": TOOLS, "order": ORDER}, setup=setup, queues="a,b", processes=1, concurrency=1)
    wait_for(conn, "SELECT count(*) >= 8 FROM notes")
    performed = conn.execute("SELECT job_id FROM notes ORDER BY number").fetchall()
    assert [job_id for (job_id,) in performed] == [22, 15, 14, 21, 12, 13, 11, 23]
    for table, job_id in (("first_jobs", 16), ("second_jobs", 24)):
        row = job(conn, table, job_id)
        assert (row.status, row.attempts_count) == ("not_started", 0)


def test_sync_jobs_have_their_process_to_themselves(db: psycopg.Connection) -> None:
    with db.transaction():
        lonely = [insert(db, "lonely_jobs") for _ in range(6)]
        plain = [insert(db, "plain_jobs") for _ in range(30)]
        lonely += [insert(db, "lonely_jobs") for _ in range(2)]
    for table, ids in (("lonely_jobs", lonely), ("plain_jobs", plain)):
        assert {ended(db, table, job_id).status for job_id in ids} == {"succeeded"}
    overlaps = db.execute(
        """
        WITH runs AS (
            SELECT job, job_id, pid, tstzrange(min(at), max(at)) AS during FROM notes
            WHERE job IN ('LonelyJob', 'PlainJob') GROUP BY 1, 2, 3
        )
        SELECT a.job_id, b.job, b.job_id FROM runs a JOIN runs b ON a.pid = b.pid AND a.during && b.during
        WHERE a.job = 'LonelyJob' AND (a.job, a.job_id) <> (b.job, b.job_id)
        """
    ).fetchall()
    assert overlaps == []


def test_thread_jobs_share_a_process(db: psycopg.Connection, gate: Gate) -> None:
    ids = [insert(db, "threaded_jobs") for _ in range(5)]
    for job_id in ids:
        wait_notes(db, "ThreadedJob", job_id=job_id)
    assert len({note.pid for job_id in ids for note in notes(db, "ThreadedJob", job_id)}) <= 2
    gate.open()
    assert {ended(db, "threaded_jobs", job_id).status for job_id in ids} == {"succeeded"}


# --- cancel and retry ---

module(
    "cancels",
    """
class PatientJob(Job):
    async def perform(self):
        note(self, "started")
        try:
            await asyncio.Event().wait()
        finally:
            note(self, "stopped")

class PatientSyncJob(Job):
    def perform(self):
        note(self, "started")
        try:
            while True:
                time.sleep(0.01)
        finally:
            note(self, "stopped")

class PatientThreadJob(PatientSyncJob):
    isolation = "thread"

class StubbornJob(Job):
    async def perform(self):
        note(self, "started")
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                note(self, "ignored")
""",
)


def cancel(connection: psycopg.Connection, table: str, job_id: int) -> Any:
    row = connection.execute("SELECT cluster.cancel(%s, %s)", [table, job_id]).fetchone()
    return row[0] if row else None


def test_a_queued_job_is_cancelled_at_once(db: psycopg.Connection) -> None:
    job_id = insert(db, "patient_jobs", run_at="sql:now() + interval '200 ms'")
    assert cancel(db, "patient_jobs", job_id) == "cancelled"
    wait_for(db, "SELECT run_at < now() FROM patient_jobs WHERE id = %s", [job_id])
    perform(db, "timed_jobs")  # the node has looked since
    row = job(db, "patient_jobs", job_id)
    assert (row.status, row.attempts_count) == ("cancelled", 0)


@pytest.mark.parametrize("kind", ["Patient", "PatientSync", "PatientThread"])
def test_a_running_job_that_is_cancelled_stops(node: NodeProcess, db: psycopg.Connection, kind: str) -> None:
    table = {"Patient": "patient_jobs", "PatientSync": "patient_sync_jobs", "PatientThread": "patient_thread_jobs"}[
        kind
    ]
    job_id = insert(db, table)
    (started,) = wait_notes(db, f"{kind}Job", job_id=job_id)
    assert cancel(db, table, job_id) == "running"
    row = ended(db, table, job_id)
    assert (row.status, row.attempts_count, row.last_error) == ("cancelled", 1, "cancelled on request")
    assert whats(db, f"{kind}Job", job_id) == ["started", "stopped"]
    if kind == "PatientSync":
        wait_until(lambda: started.pid not in node.workers(), "its process, which it had to itself, is replaced")
    else:
        assert started.pid in node.workers(), "its process goes on"


def test_a_job_that_ignores_being_cancelled_is_killed(node: NodeProcess, db: psycopg.Connection) -> None:
    job_id = insert(db, "stubborn_jobs")
    (started,) = wait_notes(db, "StubbornJob", job_id=job_id)
    cancel(db, "stubborn_jobs", job_id)
    row = ended(db, "stubborn_jobs", job_id)
    assert (row.status, row.attempts_count, row.crashes_count) == ("cancelled", 1, 0)
    assert row.last_error == "cancelled on request; it did not stop, so its process was killed"
    assert started.pid not in node.workers()


def test_a_finished_job_can_be_run_again(db: psycopg.Connection) -> None:
    row = perform(db, "failing_jobs")
    assert db.execute("SELECT cluster.retry('failing_jobs', %s)", [row.id]).fetchone() == ("not_started",)
    wait_for(db, "SELECT finished_at > %s FROM failing_jobs WHERE id = %s", [row.finished_at, row.id])
    again = job(db, "failing_jobs", row.id)
    assert (again.status, again.attempts_count) == ("failed", 3)


# --- the end of a node ---

STOPS = """
from jobs.tools import *

class GateJob(Job):
    async def perform(self):
        note(self, "started")
        await pass_gate()

class SyncGateJob(Job):
    def perform(self):
        note(self, "started")
        pass_gate_sync()

class StuckJob(Job):
    def perform(self):
        note(self, "started")
        LIBC.sleep(1000)

class ChildJob(Job):
    isolation = "thread"
    def perform(self):
        note(self, "started")
        while True:
            pass
"""
STOP_MODULES = {"tools": TOOLS, "stops": STOPS}


@pytest.fixture
def shut(conn: psycopg.Connection) -> Gate:
    """The gate of this test's own database, shut; with the table of notes."""
    conn.execute(NOTES)
    made = Gate(conn)
    made.shut()
    return made


def test_sigterm_lets_running_jobs_finish_and_takes_no_new_ones(
    conn: psycopg.Connection, run_node: RunNode, shut: Gate
) -> None:
    node = run_node(STOP_MODULES)
    running = [("gate_jobs", insert(conn, "gate_jobs")), ("sync_gate_jobs", insert(conn, "sync_gate_jobs"))]
    wait_notes(conn, "GateJob")
    wait_notes(conn, "SyncGateJob")
    node.terminate()
    wait_for(conn, "SELECT state = 'draining' FROM cluster.nodes")
    assert node.get("/readyz") == 503
    late = insert(conn, "gate_jobs")
    shut.open()
    assert node.wait_exit() == 0
    for table, job_id in running:
        row = job(conn, table, job_id)
        assert (row.status, row.attempts_count) == ("succeeded", 1)
    row = job(conn, "gate_jobs", late)
    assert (row.status, row.attempts_count, row.locked_by) == ("not_started", 0, None)
    assert conn.execute("SELECT state, running FROM cluster.nodes").fetchall() == [("stopped", 0)]
    wait_until(lambda: not node.processes(), "no process is left", timeout=5)


def test_a_job_longer_than_the_shutdown_timeout_is_released(
    conn: psycopg.Connection, run_node: RunNode, shut: Gate
) -> None:
    node = run_node(STOP_MODULES, shutdown_timeout="4500ms")
    ids = {"gate_jobs": insert(conn, "gate_jobs"), "stuck_jobs": insert(conn, "stuck_jobs")}
    wait_notes(conn, "GateJob")
    wait_notes(conn, "StuckJob")
    assert node.stop() == 0
    _assert_released(conn, ids)


def test_a_second_sigterm_releases_what_runs_at_once(conn: psycopg.Connection, run_node: RunNode, shut: Gate) -> None:
    node = run_node(STOP_MODULES, shutdown_timeout="60s")
    ids = {"gate_jobs": insert(conn, "gate_jobs"), "sync_gate_jobs": insert(conn, "sync_gate_jobs")}
    wait_notes(conn, "GateJob")
    wait_notes(conn, "SyncGateJob")
    node.terminate()
    wait_until(lambda: bool(node.log("node_draining")), "the node drains")
    node.terminate()
    assert node.wait_exit(10) == 0
    _assert_released(conn, ids)


def _assert_released(connection: psycopg.Connection, ids: dict[str, int]) -> None:
    for table, job_id in ids.items():
        row = job(connection, table, job_id)
        assert (row.status, row.attempts_count, row.crashes_count) == ("not_started", 0, 0)
        assert row.locked_at is None
    assert connection.execute("SELECT state FROM cluster.nodes").fetchall() == [("stopped",)]


def test_nothing_outlives_a_coordinator_that_is_killed(conn: psycopg.Connection, run_node: RunNode, shut: Gate) -> None:
    node = run_node(STOP_MODULES, processes=3)
    for table, kind in (("gate_jobs", "GateJob"), ("child_jobs", "ChildJob"), ("stuck_jobs", "StuckJob")):
        insert(conn, table)
        wait_notes(conn, kind)
    assert len(node.workers()) == 3
    node.kill()
    assert wait_until(lambda: not node.processes(), "every process of the node is gone") < 2


# --- retention ---

module(
    "retentions",
    """
class FleetingJob(Job):
    good: bool = True
    retention = timedelta(0)
    max_attempts = 1
    async def perform(self):
        note(self, "performed")
        if not self.good:
            raise ValueError("bad")
""",
)

PRUNED = """
from jobs.tools import *

class KeptJob(Job):
    retention = timedelta(days=30)
    retention_failed = timedelta(days=60)
    async def perform(self):
        pass
"""


def test_retention_zero_deletes_a_row_on_success_only(db: psycopg.Connection) -> None:
    job_id = insert(db, "fleeting_jobs")
    wait_notes(db, "FleetingJob", job_id=job_id)
    wait_for(db, "SELECT NOT EXISTS (SELECT FROM fleeting_jobs WHERE id = %s)", [job_id])
    assert perform(db, "fleeting_jobs", good=False).status == "failed"


def test_retention_zero_keeps_a_row_that_another_table_references(db: psycopg.Connection) -> None:
    db.execute("CREATE TABLE receipts (job_id bigint REFERENCES fleeting_jobs)")
    try:
        with db.transaction():
            job_id = insert(db, "fleeting_jobs")
            db.execute("INSERT INTO receipts VALUES (%s)", [job_id])
        assert ended(db, "fleeting_jobs", job_id).status == "succeeded"
    finally:
        db.execute("DROP TABLE receipts")


def test_old_rows_are_pruned_but_for_those_that_another_table_references(
    conn: psycopg.Connection, run_node: RunNode
) -> None:
    setup = """
        CREATE TABLE receipts (job_id bigint REFERENCES kept_jobs);
        INSERT INTO kept_jobs (id) SELECT generate_series(1, 40);
        SET session_replication_role = replica;
        UPDATE kept_jobs SET finished_at = now() - interval '45 days', attempts_count = 1,
            status = CASE WHEN id > 30 THEN 'failed' ELSE 'succeeded' END::cluster.job_status;
        UPDATE kept_jobs SET finished_at = now() - interval '61 days' WHERE id IN (39, 40);
        UPDATE kept_jobs SET finished_at = now() - interval '29 days' WHERE id IN (1, 2);
        RESET session_replication_role;
        INSERT INTO receipts VALUES (10), (20);
    """
    node = run_node({"tools": TOOLS, "pruned": PRUNED}, setup=setup, poll_interval="1s", log_level="debug")
    wait_for(conn, "SELECT count(*) = 12 FROM kept_jobs")
    kept = [job_id for (job_id,) in conn.execute("SELECT id FROM kept_jobs ORDER BY id").fetchall()]
    assert kept == [1, 2, 10, 20, *range(31, 39)]
    wait_until(lambda: sum(line["count"] for line in node.log("pruned")) == 28, "the node says what it has pruned")
    wait_until(
        lambda: {job_id for line in node.log("prune_skipped") for job_id in line["ids"]} == {10, 20}, "both are named"
    )


CONTEXTS = """
import contextvars, decimal
from cluster import Fail, Job

TENANT = contextvars.ContextVar("tenant", default="nobody")
LEVEL = contextvars.ContextVar("level")
LEVEL.set("of the imports")

class LeavingJob(Job):
    max_concurrency = None
    async def perform(self):
        TENANT.set("somebody")
        LEVEL.set("another")
        decimal.getcontext().prec = 3

class FindingJob(Job):
    max_concurrency = None
    async def perform(self):
        return Fail(f"{TENANT.get()}, {LEVEL.get()}, {decimal.getcontext().prec} digits")
"""


def test_an_attempt_finds_no_context_of_another(conn: psycopg.Connection, run_node: RunNode) -> None:
    run_node(CONTEXTS, processes=1, concurrency=1)
    for _ in range(5):
        conn.execute("INSERT INTO leaving_jobs DEFAULT VALUES")
        conn.execute("INSERT INTO finding_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT count(*) = 5 FROM finding_jobs WHERE status = 'failed'")
    wait_for(conn, "SELECT count(*) = 5 FROM leaving_jobs WHERE status = 'succeeded'")
    found = conn.execute("SELECT DISTINCT last_error FROM finding_jobs").fetchall()
    assert found == [("nobody, of the imports, 28 digits",)]
