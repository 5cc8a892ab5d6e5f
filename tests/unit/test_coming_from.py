"""What somebody who comes from another system writes first is refused with what to do, in the words of that system's page."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from cluster import Job, LinearBackoff
from cluster.job_checks import OPTIONS
from cluster.settings import load_settings

DOCS = Path(__file__).parents[2] / "docs"


class SendJob(Job):
    customer_id: int

    def perform(self) -> None: ...


send = cast("Any", SendJob)


class User:
    """As of an ORM, or pickled."""


class Customer:
    """As of another ORM."""


class Redis:
    """As of its library."""


Redis.__module__ = "redis.client"


def defined(annotations: dict[str, Any] | None = None, **body: Any) -> type[Job]:
    return type("AJob", (Job,), {"__annotations__": annotations or {}, "perform": lambda self: None} | body)


MISTAKES: dict[str, Callable[[], object]] = {
    "def perform(self, context)": lambda: defined(perform=lambda self, context: None),
    "def perform(self, user_id)": lambda: defined(perform=lambda self, user_id: None),
    'lock = "customer-1"': lambda: defined(lock="customer-1"),
    "retry = 3": lambda: defined(retry=3),
    'schedule = "0 5 * * *"': lambda: defined(schedule="0 5 * * *"),
    "perform_later(None)": lambda: send(customer_id=1).perform_later(None),
    "priority = 0": lambda: defined(priority=0),
    "SendJob(1)": lambda: send(1),
    "perform_later(Redis())": lambda: send(customer_id=1).perform_later(Redis()),
    "timeout = 180": lambda: defined(timeout=180),
    "retention = 500": lambda: defined(retention=500),
    "backoff = [10, 30]": lambda: defined(backoff=[10, 30]),
    "perform_later(connection, delay=60)": lambda: send(customer_id=1).insert(delay=60),
    "user: User": lambda: defined({"user": User}),
    "customer: Customer": lambda: defined({"customer": Customer}),
    "CLUSTER_DATABASE_URL=redis://…": lambda: load_settings({"CLUSTER_DATABASE_URL": "redis://localhost/0"}),
    "maxAttempts = 3": lambda: defined(maxAttempts=3),
    "timeoutInMicroseconds = 60_000_000": lambda: defined(timeoutInMicroseconds=60_000_000),
    "LinearBackoff(30)": lambda: LinearBackoff(cast("Any", 30)),
    "status: str": lambda: defined({"status": str}),
    "max_concurrency = 0": lambda: defined(max_concurrency=0),
    "delete_failed_jobs = True": lambda: defined(delete_failed_jobs=True),
    "run_at=datetime.now()": lambda: send(customer_id=1).insert(run_at=datetime.now()),  # noqa: DTZ005 - the mistake
}


def promises() -> list[tuple[str, str, str]]:
    """The page, what somebody writes, and what they see, of each row of a page's last table."""
    found = []
    for system in ("procrastinate", "rq", "ihp", "redwood"):
        text = (DOCS / f"from-{system}.md").read_text(encoding="utf-8")
        rows = re.findall(
            r"^\| `(.+?)`.*? \| `(.+)`.*? \|$", text.split("## What goes wrong at first\n", 1)[1], re.MULTILINE
        )
        assert len(rows) == len(re.findall(r"^\|", text.split("## What goes wrong at first\n", 1)[1], re.MULTILINE)) - 2
        found += [(system, written, said) for written, said in rows]
    return found


@pytest.mark.parametrize(("system", "written", "said"), promises())
def test_the_first_mistakes_are_refused_as_the_page_says(system: str, written: str, said: str) -> None:
    with pytest.raises(Exception, match=re.escape(said.split("`", maxsplit=1)[0].removeprefix("AJob: "))):
        MISTAKES[written]()


@pytest.mark.parametrize("system", ["procrastinate", "rq", "ihp", "redwood"])
def test_every_option_that_a_page_names_is_one(system: str) -> None:
    table = (DOCS / f"from-{system}.md").read_text(encoding="utf-8").split("## What goes wrong", 1)[0]
    right = " ".join(row.rsplit(" | ", 1)[-1] for row in table.splitlines() if row.startswith("| "))
    named = set(re.findall(r"`([a-z_]+) = ", right))
    assert named <= set(OPTIONS)
    assert named
