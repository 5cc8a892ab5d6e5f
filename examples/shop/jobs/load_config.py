"""Run once: after each start of the cluster, and then not again until the next."""

from __future__ import annotations

import json
import os
import urllib.request

import psycopg
from psycopg.types.json import Jsonb

from cluster import Every, Job, Next

DATABASE = os.environ.get("CLUSTER_DATABASE_URL", "")


class LoadConfigJob(Job):
    """Reads the shop's configuration from SHOP_CONFIG, a URL, and keeps it in a table."""

    schedule = Every(seconds=10, run_once=True)

    def perform(self) -> Next:
        with urllib.request.urlopen(os.environ["SHOP_CONFIG"], timeout=10) as answer:  # noqa: S310 - it is our own
            config = json.load(answer)
        with psycopg.connect(DATABASE) as connection:
            connection.execute(
                "INSERT INTO config VALUES ('config', %s) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                [Jsonb(config)],
            )
        return self.OK
