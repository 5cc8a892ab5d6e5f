"""Whether all of it is true: compares the job tables with what the mail server and the disk have."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString, NamedTuple

from psycopg import Connection, sql

from examples.newsletter.photos import wrong_thumbnails
from examples.newsletter.progress import JOBS, Counts

MAX_SESSIONS = 16
"""`max_concurrency` of EmailCustomersJob."""


class Check(NamedTuple):
    """One promise. said: what was found."""

    promise: str
    kept: bool
    said: str


@dataclass
class Mails:
    """What the mail server has noted."""

    accepted: Counter[str] = field(default_factory=Counter)
    refusals: int = 0
    sessions: int = 0

    @classmethod
    def read(cls, file: Path) -> Mails:
        mails = cls()
        for note in map(json.loads, file.read_text().splitlines()):
            mails.accepted.update([note["to"]] if "to" in note else [])
            mails.refusals += "refused" in note
            mails.sessions = max(mails.sessions, note.get("sessions", 0))
        return mails


def check_jobs(counts: Counts, expected: Mapping[str, int]) -> Check:
    """Every job of every class has succeeded."""
    wanted = sum(expected.values())
    done = sum(job.statuses.get("succeeded", 0) for job in counts.values())
    return Check("every job succeeded", done == wanted, f"{done} of {wanted}")


def check_mails(mails: Mails, addresses: Iterable[str], rolled_back: Iterable[str]) -> list[Check]:
    """rolled_back: whom nobody may have written to."""
    expected = set(addresses)
    missing = len(expected - mails.accepted.keys())
    twice = sum(count - 1 for count in mails.accepted.values())
    leaked = len(mails.accepted.keys() & set(rolled_back))
    return [
        Check(
            "every mail arrived, once",
            missing == 0 and twice == 0 and mails.accepted.keys() <= expected | set(rolled_back),
            f"{len(expected)} expected, {mails.accepted.total()} received, {missing} missing, {twice} twice",
        ),
        Check("what was rolled back was never sent", leaked == 0, f"{leaked} sent"),
        Check(
            "both nodes together kept to the limit of the mail server",
            0 < mails.sessions <= MAX_SESSIONS,
            f"at most {mails.sessions} mails at once, {MAX_SESSIONS} allowed",
        ),
    ]


def check_retries(counts: Counts, mails: Mails) -> Check:
    """One retry for each refusal, and no other."""
    retries = sum(job.retries for job in counts.values())
    return Check(
        "every refused mail was tried again", retries == mails.refusals, f"{mails.refusals} refused, {retries} retries"
    )


def check_thumbnails(media: Path, count: int) -> Check:
    """Each is decoded and measured."""
    wrong = wrong_thumbnails(media, count)
    return Check("every photo has its thumbnail", not wrong, f"{count - len(wrong)} of {count}")


def check_stop(connection: Connection[Any], exit_codes: list[int | None]) -> Check:
    """SIGTERM: exit code 0, and no row that says running."""
    running = sum(
        row[0]
        for table in JOBS.values()
        for row in connection.execute(
            sql.SQL("SELECT count(*) FROM {} WHERE status = 'running'").format(sql.Identifier(table))
        )
    )
    said = f"exit codes {', '.join(map(str, exit_codes))}; {running} jobs left running"
    return Check("SIGTERM ended both nodes and left nothing behind", set(exit_codes) == {0} and running == 0, said)


class Latency(NamedTuple):
    """Seconds from due (inserted, or run_at) to the start of the first attempt, of jobs that needed no second one."""

    median: float
    p99: float


def latency_of(connection: Connection[Any], job: str, only: LiteralString = "true") -> Latency | None:
    """only: a condition in SQL. None: no such job."""
    row = connection.execute(
        sql.SQL(
            """
            SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (
                ORDER BY extract(epoch FROM started_at - greatest(created_at, run_at)))
            FROM {} WHERE attempts_count = 1 AND started_at IS NOT NULL AND {}
            """
        ).format(sql.Identifier(JOBS[job]), sql.SQL(only))
    ).fetchone()
    return Latency(*row[0]) if row and row[0] else None


def jobs_by_node(connection: Connection[Any]) -> list[int]:
    """How many rows each node has had last, the oldest node first."""
    tables = sql.SQL(" UNION ALL ").join(
        sql.SQL("SELECT locked_by FROM {}").format(sql.Identifier(table)) for table in JOBS.values()
    )
    statement = sql.SQL(
        "SELECT count(job.locked_by) FROM cluster.nodes AS node LEFT JOIN ({}) AS job ON job.locked_by = node.id"
        " GROUP BY node.id ORDER BY node.started_at"
    )
    return [count for (count,) in connection.execute(statement.format(tables))]
