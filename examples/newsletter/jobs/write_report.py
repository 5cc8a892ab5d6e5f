"""Counts what has been sent. A plain `def perform` that only waits for Postgres: a thread is enough."""

from __future__ import annotations

from functools import cache

from cluster import Client, Job


class WriteReportJob(Job):
    """Table write_report_jobs. The result is a row in `reports`: a job's own row is not written back."""

    issue: str

    isolation = "thread"

    def perform(self) -> None:
        with database().connection() as connection:
            connection.execute(
                """
                INSERT INTO reports (issue, mails_sent)
                SELECT %s, count(*) FROM email_customers_jobs WHERE status = 'succeeded'
                ON CONFLICT (issue) DO UPDATE SET mails_sent = excluded.mails_sent, written_at = now()
                """,
                [self.issue],
            )


@cache
def database() -> Client:
    """A pool of connections to CLUSTER_DATABASE_URL, one for each worker process."""
    return Client(max_size=2)
