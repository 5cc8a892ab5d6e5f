"""What is wrong now, in words, worst first, each with its way out. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlencode

from cluster.dashboard.overview import Node, Situation, Summary
from cluster.dashboard.words import age, number, schedule_path, short
from cluster.error_text import last_line

Severity = Literal["bad", "warning", "note"]
_ORDER: tuple[Severity, ...] = ("bad", "warning", "note")

LATE = 300.0
"""Seconds that a job may be ready without being performed before that is worth a word; twelve times as long is bad."""
LONG_TRANSACTION = 600.0
FAILING = 0.2
"""The share of jobs that fail from which a type is named; five have to have failed."""

MOST_SCHEDULES = 5
"""Schedules that are named one by one."""


@dataclass(frozen=True)
class Finding:
    """path: of the page that helps, below the dashboard's own."""

    severity: Severity
    text: str
    path: str = ""
    link: str = ""


def findings(situation: Situation) -> list[Finding]:
    """Empty: all is well."""
    found = [
        *_of_nodes(situation),
        *(finding for summary in situation.types for finding in _of_type(summary, situation)),
        *_of_growing_errors(situation),
        *_of_trouble(situation),
        *_of_pauses(situation),
        *_of_transactions(situation),
        *_of_schedules(situation),
    ]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def _of_nodes(situation: Situation) -> Iterator[Finding]:
    waiting = sum(summary.waiting for summary in situation.types)
    if not situation.living and waiting:
        yield Finding(
            "bad", f"No node is running, and {number(waiting)} jobs wait. Start one: cluster run.", "nodes", "Nodes"
        )
    for node in situation.nodes:
        if node.state == "silent":
            silent = age(node.heartbeat_age_seconds)
            yield Finding(
                "bad", f"Node {_name(node)} has been silent for {silent}. Others take its jobs back.", "nodes", "Nodes"
            )
        elif node.state == "lost":
            lost = age(node.heartbeat_age_seconds)
            yield Finding(
                "warning", f"Node {_name(node)} was lost {lost} ago. Its jobs went to others.", "nodes", "Nodes"
            )
        elif node.drain_age_seconds is not None:
            told = (
                f"Node {_name(node)} was told to drain {age(node.drain_age_seconds)} ago{_because(node.drain_reason)}"
            )
            yield Finding("note", told, f"nodes/{node.id}", "Node")


def _of_type(summary: Summary, situation: Situation) -> Iterator[Finding]:
    table, name = summary.table, summary.table.name
    if summary.problem is not None:
        yield Finding("bad", f"{name} can't be shown: {summary.problem}.", table.path, "Look")
        return
    if summary.failed >= 5 and summary.failed >= FAILING * summary.finished:
        yield _failing(summary)
    if table.paused_at is not None:
        return
    stranded = {queue: jobs for queue, jobs in summary.ready.items() if not _served(name, queue, situation)}
    if stranded and situation.living:
        queues = ", ".join(sorted(stranded)[:3])
        yield Finding(
            "bad", f"{name}: {number(sum(stranded.values()))} jobs wait in queue {queues}, and no node that runs performs"
            " this class there. Deploy the class, or start a node for the queue.",
            f"{table.path}?status=not_started", "Which jobs",
        )  # fmt: skip
    elif summary.is_full and summary.waiting and (summary.oldest or 0) > LATE / 5:
        yield Finding(
            "warning", f"{name}: its limit of {table.limit} is reached, {number(summary.waiting)} wait, the oldest for"
            f" {age(summary.oldest)}.", table.path, "Limit",
        )  # fmt: skip
    elif (summary.oldest or 0) > LATE and situation.living:
        severity: Severity = "bad" if (summary.oldest or 0) > 12 * LATE else "warning"
        yield Finding(
            severity, f"{name}: the oldest job has waited for {age(summary.oldest)}.", f"{table.path}/oldest", "Why",
        )  # fmt: skip


def _failing(summary: Summary) -> Finding:
    share = round(100 * summary.failed / max(1, summary.finished))
    text = f"{summary.table.name}: {share} % of its newest jobs fail ({number(summary.failed)} of {number(summary.finished)})."
    chosen = {"status": "failed"}
    if summary.error:
        same = round(100 * summary.error.jobs / summary.compared)
        text = f"{text[:-1]}, {same} % of these with: {short(summary.error.shown, 160)}"
        chosen["error"] = summary.error.pattern
    return Finding("bad", text, f"{summary.table.path}?{urlencode(chosen)}", "These jobs")


def _of_growing_errors(situation: Situation) -> Iterator[Finding]:
    for error in situation.growing:
        before = f"{number(error.before)} in the hour before" if error.before else "none in the hour before"
        yield Finding(
            "warning", f"An error comes more often: {number(error.attempts)} attempts failed in the last 10 min, {before}, with:"
            f" {error.title[:160]}", f"errors/{error.fingerprint}", "This error",
        )  # fmt: skip


def _of_trouble(situation: Situation) -> Iterator[Finding]:
    paths = {summary.table.name: summary.table.path for summary in situation.types}
    for item in situation.trouble:
        yield Finding(
            "warning", f"{item['job_type']}: {item['reason'].replace('_', ' ')} for {age(item['age_seconds'])}: {item['detail']}",
            paths.get(item["job_type"], "nodes"), "Look",
        )  # fmt: skip


def _of_pauses(situation: Situation) -> Iterator[Finding]:
    everything = next((queue["paused_at"] for queue in situation.paused if queue["name"] == "*"), None)
    for queue in situation.paused:
        what = "Everything" if queue["name"] == "*" else f"Queue {queue['name']}"
        yield Finding("note", f"{what} is paused{_because(queue['paused_reason'])}", "queues", "Resume")
    for summary in situation.types:
        table = summary.table
        if table.paused_at is not None and table.paused_at != everything:
            yield Finding("note", f"{table.name} is paused{_because(table.paused_reason)}", table.path, "Resume")


def _because(reason: str | None) -> str:
    return f": {reason}" if reason else "."


def _of_transactions(situation: Situation) -> Iterator[Finding]:
    if (situation.oldest_transaction or 0) > LONG_TRANSACTION:
        yield Finding(
            "warning", f"A transaction is open for {age(situation.oldest_transaction)}: Postgres can't clean up, and claims"
            " become slow. See pg_stat_activity.",
        )  # fmt: skip


def _of_schedules(situation: Situation) -> Iterator[Finding]:
    """Overdue ones, and those that their job or an error has deactivated; one that somebody switched off is no news."""
    overdue = [each for each in situation.schedules if each["overdue_seconds"] is not None]
    off = [each for each in situation.schedules if each["overdue_seconds"] is None and each["last_error"]]
    for each in overdue[:MOST_SCHEDULES]:
        since = (
            f"Schedule {each['name']} is overdue: no success for {age(each['overdue_seconds'])} longer than expected"
        )
        why = " It is deactivated." if each["state"] == "deactivated" else ""
        yield Finding("bad", f"{since}.{why}", schedule_path(each["name"]), "Schedule")
    for each in off[:MOST_SCHEDULES]:
        text = f"Schedule {each['name']} is deactivated: {last_line(each['last_error'])[:160]}"
        yield Finding("warning", text, schedule_path(each["name"]), "Schedule")
    for kind, found in (("overdue", overdue), ("deactivated", off)):
        if len(found) > MOST_SCHEDULES:
            text = f"{number(len(found) - MOST_SCHEDULES)} more schedules are {kind}."
            yield Finding("warning", text, f"schedules?state={kind}", "Schedules")


def _served(name: str, queue: str, situation: Situation) -> bool:
    return any(node.serves(name, queue) for node in situation.living)


def _name(node: Node) -> str:
    return f"{node.hostname}:{node.pid}"
