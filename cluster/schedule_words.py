"""What a row of cluster.schedules says: its state and its times, in words. For the command line and the dashboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from cluster.errors import ClusterError, RecurrenceError

if TYPE_CHECKING:
    from cluster.recurrence import Recurrence

Row = dict[str, Any]
"""Columns of cluster.schedules, by name."""

ICONS = {
    "active": "✔", "sleeping": "⌛", "stopped": "⟳", "deactivated": "⊘", "run_once_waiting": "⏳", "run_once_done": "☕",
    "paused": "‖", "ended": "∎",
}  # fmt: skip
MEANINGS: Mapping[str, str] = {
    "active": "It runs at its times.",
    "sleeping": "Its job said SLEEP: it runs again 24 hours after the start of that run.",
    "stopped": "Its job said STOP: it runs again after a reload, or when the whole cluster starts.",
    "deactivated": "It does not run until somebody activates it: its job said EXIT or failed, or somebody switched it off.",
    "run_once_waiting": "It runs once after this start of the cluster, at its first time.",
    "run_once_done": "It has run once since the cluster started, and does so again after the next start.",
    "paused": "Somebody paused it: what comes due meanwhile is left out.",
    "ended": "Nothing is to come: its end is over, or its times never match again.",
}
"""Of the states that `state_of` returns."""
MOST_OCCURRENCES = 10_000
"""Of one backfill."""


def state_of(row: Row) -> str:
    """Its state, or what else keeps it from running."""
    if row["paused_at"] is not None and row["active"]:
        return "paused"
    if row["state"] == "active" and row["next_run_at"] is None and row["plan_from"] is None:
        return "ended"
    state: str = row["state"]
    return state


def recurrence(row: Row) -> Recurrence:
    """RecurrenceError: a wrong cron."""
    from cluster.recurrence import Recurrence  # so that commands about other things begin without it

    names = ("name", "cron", "every", "time_zone", "starts_at", "ends_at", "jitter")
    return Recurrence(*(row[name] for name in names))


def upcoming(row: Row) -> Iterator[datetime]:
    """Its occurrences from now on, as far as it is to run at all."""
    if state_of(row) not in {"active", "sleeping", "run_once_waiting"}:
        return
    times = recurrence(row)
    due = row["next_due_at"]
    if due is None and row["plan_from"] is None:  # runs once, and its job is there
        return
    if due is None:
        yield from times.following(row["plan_from"] or datetime.now(UTC))
    else:
        yield due
        yield from times.following(due, due)


def between(row: Row, first: datetime, last: datetime) -> list[datetime]:
    """Its occurrences from one moment to another. ClusterError: they are too many."""
    following = recurrence(row).following(first - timedelta(microseconds=1), row["next_due_at"])
    dues = list(islice(takewhile(lambda due: due <= last, following), MOST_OCCURRENCES + 1))
    if len(dues) > MOST_OCCURRENCES:
        raise ClusterError(f"these are more than {MOST_OCCURRENCES} occurrences: backfill them in parts")
    return dues


def when(row: Row) -> str:
    """Its times in words."""
    try:
        return recurrence(row).words()
    except RecurrenceError:
        return row["cron"] or ""
