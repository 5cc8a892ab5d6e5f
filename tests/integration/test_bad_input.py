"""What users do to rows and tables under a running node, and what keeps a node from starting.

Most tests share one node; each has job types of its own, and `others_go_on` shows that the rest of the node does not mind.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import namedtuple_row

from cluster.migrate import migrate_jobs
from tests.support.nodes import NodeProcess, job_classes, running_node, wait_for, wait_until, write_jobs
from tests.support.postgres import RunServer

GATE = 7
"""Advisory lock that jobs wait for while a test holds it."""
TYPES = (
    "Deleted", "Updated", "Truncated", "Dropped", "Renamed", "Refused", "RefusedWhole", "FinishRefused", "FinishRefusedWhole",
    "Checked", "Touched", "LockedWaiting", "LockedRunning", "Widened", "Narrowed", "Other",
)  # fmt: skip
SOURCE = f"""
import os
import psycopg
from cluster import Job

class Base(Job):
    label: str = ""
    size: int = 0

    async def perform(self):
        if self.label == "gated":
            async with await psycopg.AsyncConnection.connect(os.environ["CLUSTER_DATABASE_URL"]) as connection:
                await connection.execute("SELECT pg_advisory_xact_lock_shared({GATE})")
""" + "".join(
    f"class {name}Job(Base):\n    max_concurrency = None\n"
    f"class {name}LimitedJob(Base):\n    pass\n"
    for name in TYPES
).replace("(Base)", "(Job)").replace("class BaseJob(Job)", "class Base(Job)")
