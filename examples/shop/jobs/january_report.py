"""Stop: runs daily in January, and not at all until the next reload."""

from __future__ import annotations

import os

import psycopg

from cluster import Every, Job, Next

DATABASE = os.environ.get("CLUSTER_DATABASE_URL", "")


class JanuaryReportJob(Job):
    """Tells the boss what was sold."""

    schedule = Every(minutes=1, time_zone="Europe/Berlin")

    def perform(self) -> Next:
        if self.now.month(local=True) != "Jan":
            return self.STOP
        with psycopg.connect(DATABASE) as connection:
            connection.execute(
                "INSERT INTO mails (recipient, subject, body)"
                " SELECT 'boss@work.example', 'January Daily', 'Sales today were: ' || sales_total FROM shop_status"
            )
        return self.SLEEP
