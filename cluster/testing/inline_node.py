"""A node within the test's own process: it performs one job at a time, with mocks, debugger and coverage in place.

Claims, promotes, fires and finishes by the statements of real nodes, on one connection, and makes attempts as workers do. It has
no lease to keep and no process to lose.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self
from uuid import uuid4

from psycopg import Connection, Cursor
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb
from psycopg.types.numeric import Int8

from cluster import statements, tables
from cluster.coordinator.job_types import _FIND, JobType
from cluster.coordinator.job_types import job_types as types_of
from cluster.coordinator.schedules import BATCH, Due, fire, plan
from cluster.error_text import storable
from cluster.errors import ClusterError
from cluster.fingerprint import FAILURES, fingerprint
from cluster.frames import ATTEMPTS, COLUMNS, CREATED_AT, ID, LOCKED_AT, PRIORITY, QUEUE, RUN_AT, SCHEDULED_FOR, ZONE
from cluster.job import Job, Row, definition
from cluster.testing.attempt import attempted
from cluster.testing.travel import job_tables, travelled
from cluster.worker.perform import Attempt, Performer, Verdict, refuse_row

_LEASE = timedelta(hours=1)
_QUEUES = (statements.DEFAULT_QUEUE, None)
_MOST_PROMOTED = 1000


class Performed(NamedTuple):
    """One attempt. status: of the row afterwards. error: as in last_error, None: there was none."""

    job: Job
    attempt: int
    status: str
    error: str | None


class _Values(dict[str, Any]):
    """Of a statement's parameters. What only a real node has to say is NULL."""

    def __missing__(self, name: str) -> None:
        return None


class InlineNode:
    """Registered while it is used. job_classes: None: all that are defined and have a table here, but where two have the same."""

    def __init__(self, connection: Connection[Any], job_classes: Sequence[type[Job]] | None) -> None:
        self._connection = connection
        self._id = uuid4()
        self._travelled = travelled(connection)
        self._twins: dict[str, list[str]] = {}
        """Names of classes that have one table, by that."""
        self._types = _found(connection, self._defined_jobs() if job_classes is None else job_classes)
        self._looked_at = datetime.min.replace(tzinfo=UTC)
        """The database's time before it was last looked for what is due."""
        self._freed: dict[JobType, set[str]] = {job_type: set() for job_type in self._types}
        """Keys that have room again, of types whose limit holds per key: claims look after rows that wait for it."""

    def __enter__(self) -> Self:
        self._execute(
            statements.text("register_node").encode(),
            {
                "id": self._id, "hostname": "inline", "pid": os.getpid(), "version": "test", "code": "", "queues": ["*"],
                "jobs": [job_type.name for job_type in self._types], "lease": _LEASE, "slots": 1,
            },
        )  # fmt: skip
        return self

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if not self._connection.broken and not (error and not self._connection.autocommit):
            self._execute(statements.text("deregister_node").encode(), {"id": self._id})

    def work_off(self) -> Iterator[Performed]:
        """Performs what is due until nothing is, schedules included."""
        has_worked = True
        while has_worked:
            has_worked = False
            ((self._looked_at,),) = self._rows("SELECT now()")
            self._fire_schedules()
            for job_type in self._types:
                self._promote(job_type)
                while (row := self._claim(job_type)) is not None:
                    has_worked = True
                    yield self._perform(job_type, row)

    def perform(self, job: Job) -> Performed:
        """This job, whose row must be due. ClusterError: it can't be claimed."""
        if not self._types:
            raise ClusterError(f"table {definition(type(job)).table} does not exist: run `cluster migrate`")
        (job_type,) = self._types
        row = self._claim(job_type, only=job.id)
        if row is None:
            raise ClusterError(self._why_not(job_type, job))
        return self._perform(job_type, row)

    def due_in(self) -> timedelta | None:
        """Until the next job or schedule is due, of those that were not at the last look. None: nothing ever will be by itself.
        Below zero: it has become due since."""
        since = [self._looked_at]
        waits = [
            self._rows(
                f"SELECT min(run_at) - now() FROM {self._quoted(job_type)}"  # noqa: S608 - the name is quoted
                " WHERE status IN ('scheduled', 'retry') AND run_at > %s",
                since,
            )
            for job_type in self._types
        ]
        waits.append(self._rows("SELECT min(wake_at) - now() FROM cluster.schedules WHERE wake_at > %s", since))
        return min((wait for ((wait,),) in waits if wait is not None), default=None)

    def _defined_jobs(self) -> list[type[Job]]:
        """Of this process; of a module that was loaded again the newest."""
        newest = {(job_class.__module__, job_class.__qualname__): job_class for job_class in _subclasses(Job)}
        by_table: dict[str, list[type[Job]]] = {}
        for job_class in newest.values():
            by_table.setdefault(definition(job_class).table, []).append(job_class)
        self._twins = {
            table: [f"{job_class.__module__}.{job_class.__qualname__}" for job_class in found]
            for table, found in by_table.items()
            if len(found) > 1
        }
        return [found[0] for table, found in by_table.items() if table not in self._twins]

    def refuse_strangers(self) -> None:
        """ClusterError: rows are due of which no class is known."""
        known = {job_type.oid for job_type in self._types}
        for table in job_tables(self._connection):
            ((oid,),) = self._rows("SELECT %s::regclass::oid::bigint", [table.as_string()])
            due = f"SELECT count(*) FROM {table.as_string()} WHERE status = 'not_started'"  # noqa: S608 - quoted
            if oid not in known and self._rows(due) != [(0,)]:
                name = table.as_string()
                twins = " and ".join(self._twins.get(name, ()))
                why = (
                    f"{twins} have that table: say which, by jobs=[…]"
                    if twins
                    else "no class of it is imported: import it first"
                )
                raise ClusterError(f"jobs are due in {name}, and {why}")

    # --- the statements of nodes ---

    def _fire_schedules(self) -> None:
        """As many times as something fires: what is made up for may come one by one."""
        while True:
            due = [Due(*row) for row in self._rows(statements.text("list_due_schedules"), {"limit": BATCH})]
            plans = [self._shifted(plan(self._now(row)), -1) for row in due if row.plan_from is not None]
            fires = [
                self._shifted(fire(self._now(row)), -1)
                for row in due
                if row.plan_from is None and row.run_at is not None and row.run_at <= row.now
            ]
            plans += [answer for answer in fires if "error" in answer]
            fires = [answer for answer in fires if "error" not in answer]
            done = self._rows(statements.text("plan_schedules"), {"plans": Jsonb(plans)}) if plans else []
            fired = self._rows(statements.text("fire_schedules"), {"plans": Jsonb(fires)}) if fires else []
            held = [row[0] for row in fired if row[1] == "held"]
            if held:
                names = [row.name for row in due if row.name in held and row.overlap == "cancel_running"]
                self._execute(statements.text("cancel_for_schedules").encode(), {"names": names})
            if len(done) + len(fired) == len(held):
                return

    def _now(self, row: Due) -> Due:
        """On the clock of those who travel: cron goes by that."""
        later = {
            name: value + self._travelled
            for name in ("plan_from", "due_at", "run_at", "now")
            if (value := getattr(row, name)) is not None
        }
        return row._replace(**later)

    def _shifted(self, answer: dict[str, Any], sign: int) -> dict[str, Any]:
        """The times of an answer, as they stand in rows."""

        def moved(key: str, value: Any) -> Any:
            if key == "fire":
                return [self._shifted(occurrence, sign) for occurrence in value]
            return (
                (datetime.fromisoformat(value) + sign * self._travelled).isoformat() if key.endswith("_at") else value
            )

        return {key: moved(key, value) for key, value in answer.items()}

    def travelled_by(self, by: timedelta) -> None:
        """Rows have been moved meanwhile."""
        self._travelled += by

    def _promote(self, job_type: JobType) -> None:
        parameters: dict[str, Any] = {"limit": _MOST_PROMOTED, "due_from": None, "set_aside": [], "only": None}
        while self._execute(job_type.statement("promote_jobs"), parameters).rowcount == _MOST_PROMOTED:
            pass

    def _claim(self, job_type: JobType, only: int | None = None) -> tuple[Any, ...] | None:
        for queue in _QUEUES:
            with self._connection.transaction():
                rows = self._claim_from(job_type, queue, None if only is None else [only])
            if rows:
                return rows[0]
        return None

    def _claim_from(self, job_type: JobType, queue: statements.Queue, only: list[int] | None) -> list[tuple[Any, ...]]:
        parameters: dict[str, Any] = {
            "node": self._id, "table": job_type.oid, "queue": queue, "priority": 100,
            "from_priority": 0, "from_run_at": None, "from_id": Int8(0), "slots": 1, "demand": 1, "whole": 1,
            "max_attempts": job_type.max_attempts, "set_aside": [], "only": only,
        }  # fmt: skip
        unlimited = self._rows(job_type.statement("claim_jobs", queue), parameters) if job_type.key is None else []
        if unlimited:
            return unlimited
        name = "claim_limited_jobs" if job_type.key is None else "claim_keyed_jobs"
        if job_type.key is not None:
            parameters |= {"key": job_type.key.column, "keys": sorted(self._freed[job_type]), "reach": 1000}
        self._execute(statements.text("take_turn").encode(), {"table": job_type.oid})
        return self._rows(job_type.statement(name, queue), parameters)

    def _finish(self, job_type: JobType, row: tuple[Any, ...], verdict: Verdict) -> str:
        """Returns the status of the row then."""
        parameters: dict[str, Any] = {"node": self._id, "id": [row[ID]], "locked_at": [row[LOCKED_AT]]}
        if verdict.status == "succeeded" and verdict.said is None and job_type.job_class.retention == timedelta(0):
            self._free(job_type, self._rows(job_type.statement("delete_finished_jobs"), parameters))
            return verdict.status
        has_failed = verdict.outcome in FAILURES
        parameters |= {
            "status": [verdict.status], "delay": [verdict.delay], "attempts": [verdict.attempts], "crashes": [0],
            "begun": [0.0], "error": [None if verdict.error is None else storable(verdict.error, "utf-8")],
            "failure": [verdict.outcome if has_failed else None],
            "fingerprint": [fingerprint(verdict.outcome, verdict.error) if has_failed else None],
        }  # fmt: skip
        with self._connection.transaction():
            if verdict.said is not None:
                said = json.dumps({row[ID]: storable(verdict.said, "ascii")})
                self._execute(statements.text("say_next").encode(), {"said": said})
            self._free(job_type, self._rows(job_type.statement("finish_jobs"), parameters))
        found = self._rows(f"SELECT status::text FROM {self._quoted(job_type)} WHERE id = %s", [row[ID]])  # noqa: S608
        return found[0][0] if found else verdict.status

    def _free(self, job_type: JobType, finished: list[tuple[Any, ...]]) -> None:
        if job_type.key is not None:
            self._freed[job_type] |= {row[1] for row in finished if row[1] is not None}

    def _why_not(self, job_type: JobType, job: Job) -> str:
        name, table = type(job).__name__, definition(type(job)).table
        found = self._rows(f"SELECT status::text FROM {self._quoted(job_type)} WHERE id = %s", [job.id])  # noqa: S608
        if not found:
            return f"{name} {job.id} is not in {table}: commit first, or pass the connection that has enqueued it"
        why = {
            "scheduled": "travel first",
            "retry": "travel first",
            "not_started": "its type or its queue is paused, or locked",
        }
        return f"{name} {job.id} can't be performed, it is {found[0][0]}" + (
            f": {why[found[0][0]]}" if found[0][0] in why else ""
        )

    # --- an attempt ---

    def _perform(self, job_type: JobType, row: tuple[Any, ...]) -> Performed:
        # Its stop, when its time is up, is an exception in this thread: the signal of a real worker is not ours to take.
        performer = replace(Performer.of(job_type.job_class), is_in_main=False)
        own = row[COLUMNS : COLUMNS + len(job_type.definition.columns)]
        job: Job
        try:
            job = performer.build(own)
        except Exception as error:  # noqa: BLE001 - a value or a user's validator: this job's failure
            job = job_type.job_class.__new__(job_type.job_class)
            verdict = refuse_row(error, performer.secrets_of(own))
        else:
            self._tell(job, row)
            verdict = attempted(Attempt(performer, job, row[ATTEMPTS], row[QUEUE].encode()))
        job.id = row[ID]
        status = self._finish(job_type, row, verdict)
        return Performed(job, row[ATTEMPTS], status, verdict.error)

    def _tell(self, job: Job, row: tuple[Any, ...]) -> None:
        standard = partial(Row, row[QUEUE], row[PRIORITY], row[RUN_AT], row[ATTEMPTS], row[CREATED_AT])
        vars(job).update(id=row[ID], attempt=row[ATTEMPTS], _row=standard)
        if row[SCHEDULED_FOR] is not None:
            vars(job).update(scheduled_for=row[SCHEDULED_FOR] + self._travelled, _zone=row[ZONE] or "UTC")

    # --- the connection ---

    def _execute(self, statement: bytes, parameters: Any) -> Cursor[Any]:
        # A cursor of ours: the connection's own may take other placeholders or return other rows.
        given = _Values(parameters) if isinstance(parameters, dict) else parameters
        return Cursor(self._connection, row_factory=tuple_row).execute(statement, given)

    def _rows(self, statement: str | bytes, parameters: Any = None) -> list[tuple[Any, ...]]:
        text = statement.encode() if isinstance(statement, str) else statement
        return self._execute(text, parameters).fetchall()

    def _quoted(self, job_type: JobType) -> str:
        return tables.identifier(".".join(job_type.table)).as_string(self._connection)


def _subclasses(job_class: type[Job]) -> Iterator[type[Job]]:
    for one in job_class.__subclasses__():
        if one.__definition__ is not None:
            yield one
        yield from _subclasses(one)


def _found(connection: Connection[Any], job_classes: Sequence[type[Job]]) -> list[JobType]:
    """Those that have a table in this database."""
    found = []
    types = types_of(list(job_classes))
    names = [tables.identifier(job_type.definition.table).as_string(connection) for job_type in types]
    cursor = Cursor(connection, row_factory=tuple_row)
    for place, oid, schema, table, key, key_type, *_ in cursor.execute(
        _FIND, [names, [job_type.job_class.concurrency_key for job_type in types]]
    ):
        job_type = types[place - 1]
        job_type.oid, job_type.table = oid, (schema, table)
        job_type.key = None if key is None else statements.Key(key, key_type)
        found.append(job_type)
    return found
