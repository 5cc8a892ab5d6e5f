"""Holds what happened against what was promised. Pure: from the journal, the trail of states and the final rows to violations.

The kinds of violation are the invariants of ARCHITECTURE.md as an outsider can see them; the fault suite wants none of any.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from tests.fault.journal import Execution, Job

CLOCKS = 0.002
"""Seconds by which the database's clock, turned into the journal's, may be off."""
NOTICED = 0.15
"""Seconds after which a death is noticed at the latest. What happens within, the locks of the journal's jobs tell."""
FINAL = frozenset({"succeeded", "failed", "timed_out", "cancelled"})


class Kind(StrEnum):
    """What can be wrong."""

    LOST = "lost"
    """A committed job that is gone, not at its end, or has succeeded without having been performed."""
    STUCK = "stuck"
    """A row that is still running when no node is."""
    OVERLAP = "overlap"
    """Two executions of one job at the same time."""
    OVERSHOOT = "overshoot"
    """More executions of a type at the same time than its limit allows."""
    UNCLAIMED = "unclaimed"
    """An execution that began, or went on, while its row was not claimed for it."""
    LATE = "late write"
    """An outcome written under a claim in which perform had not come to its end."""
    MISFIRE = "misfire"
    """An occurrence of a schedule without a job, or with several."""
    MISCOUNT = "miscount"
    """attempts_count does not add up."""


@dataclass(frozen=True)
class Violation:
    """One broken promise, in words."""

    kind: Kind
    text: str


@dataclass(frozen=True)
class Change:
    """A row's change of state, in the order in which they were made. at: on the journal's clock."""

    job: Job
    at: float
    old: str
    new: str
    attempts_before: int
    attempts: int


@dataclass(frozen=True)
class Final:
    """A row when all is over."""

    status: str
    attempts: int


@dataclass
class History:
    """All that is known of one run. deleted: jobs whose rows user SQL has removed, which nothing is promised for."""

    executions: Sequence[Execution]
    deaths: Mapping[int, float]
    changes: Sequence[Change]
    rows: Mapping[Job, Final]
    acknowledged: frozenset[Job]
    limits: Mapping[str, int]
    deleted: frozenset[Job] = frozenset()
    ended_at: float = float("inf")
    """When the harness had ended every process."""
    loaded_until: float = float("inf")
    """When the producer ended."""
    may_fail: frozenset[Job] = frozenset()
    """Jobs that may end otherwise than succeeded."""
    occurrences: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Of each occurrence that every schedule should have had, and of those that it had: schedule, time, and how many jobs."""

    def end_of(self, execution: Execution) -> float:
        """When it was over for certain."""
        if execution.ended is not None:
            return execution.ended
        return self.deaths.get(execution.pid, self.ended_at)

    def slack_of(self, execution: Execution) -> float:
        """Seconds by which that may be too late."""
        return CLOCKS if execution.ended is not None else NOTICED


@dataclass
class Claim:
    """One stay of a row in `running`. until None: it never left."""

    attempt: int
    since: float
    until: float | None = None
    outcome: str = "running"
    executions: list[Execution] = field(default_factory=list)


def check(history: History) -> list[Violation]:
    """Everything that is wrong, the worst first."""
    claims = claims_of(history.changes)
    checks = (
        _lost(history), _overlaps(history), _overshoot(history), _unclaimed(history, claims), _late(claims, history),
        _counts(history), _misfires(history),
    )  # fmt: skip
    return [violation for found in checks for violation in found]


def claims_of(changes: Sequence[Change]) -> dict[Job, list[Claim]]:
    """The claims of every job, in order."""
    claims: dict[Job, list[Claim]] = defaultdict(list)
    for change in changes:
        if change.new == "running":
            claims[change.job].append(Claim(change.attempts, change.at))
        elif change.old == "running" and claims[change.job]:
            claims[change.job][-1].until = change.at
            claims[change.job][-1].outcome = change.new
    return claims


def _misfires(history: History) -> Iterator[Violation]:
    for (schedule, due_at), jobs in sorted(history.occurrences.items()):
        if jobs != 1:
            yield Violation(Kind.MISFIRE, f"schedule {schedule}: {jobs} jobs for its occurrence at {due_at}")


def _lost(history: History) -> Iterator[Violation]:
    completed = {execution.job for execution in history.executions if execution.completed}
    for job in sorted(history.acknowledged - history.rows.keys() - history.deleted):
        yield Violation(Kind.LOST, f"{_name(job)} was committed and its row is gone")
    for job, row in sorted(history.rows.items()):
        if row.status == "running":
            yield Violation(Kind.STUCK, f"{_name(job)} is still running")
        elif row.status not in FINAL or (row.status != "succeeded" and job not in history.may_fail):
            yield Violation(Kind.LOST, f"{_name(job)} is {row.status}")
        elif row.status == "succeeded" and job not in completed:
            yield Violation(Kind.LOST, f"{_name(job)} has succeeded, but nobody has performed it")


def _overlaps(history: History) -> Iterator[Violation]:
    by_job: dict[Job, list[Execution]] = defaultdict(list)
    for execution in history.executions:
        by_job[execution.job].append(execution)
        if execution.clashed:
            text = f"{_name(execution.job)}: attempt {execution.attempt} began at {execution.begun:.3f} beside another"
            yield Violation(Kind.OVERLAP, text)
    for job, executions in by_job.items():
        for earlier, later in pairwise(sorted(executions, key=lambda e: e.begun)):
            over = history.end_of(earlier) - later.begun
            if over > history.slack_of(earlier):
                yield Violation(
                    Kind.OVERLAP,
                    f"{_name(job)}: attempt {later.attempt} in process {later.pid} began at {later.begun:.3f}, while "
                    f"attempt {earlier.attempt} ran in process {earlier.pid} for another {over:.3f} s",
                )


def _overshoot(history: History) -> Iterator[Violation]:
    for name, limit in history.limits.items():
        counted = [e for e in history.executions if e.job[0] == name and e.job not in history.deleted]
        steps = [(e.begun, 1, e) for e in counted]
        steps += [(history.end_of(e) - history.slack_of(e) + CLOCKS, -1, e) for e in counted]
        running = 0
        for at, step, execution in sorted(steps, key=lambda entry: (entry[0], entry[1])):
            running += step
            # Rows that user SQL has removed count no more, but hold their places until they are stopped.
            displaced = any(job[0] == name for job in history.deleted)
            if step > 0 and (running > limit or (execution.slot == -1 and not displaced)):
                yield Violation(
                    Kind.OVERSHOOT, f"{name}: {max(running, limit + 1)} of {limit} at {at:.3f}, {_name(execution.job)}"
                )


def _unclaimed(history: History, claims: Mapping[Job, Sequence[Claim]]) -> Iterator[Violation]:
    for execution in history.executions:
        if execution.job in history.deleted:
            continue
        claim = _claim_of(execution, claims.get(execution.job, ()))
        if claim is None:
            yield Violation(
                Kind.UNCLAIMED,
                f"{_name(execution.job)}: attempt {execution.attempt} began at {execution.begun:.3f} without a claim",
            )
            continue
        claim.executions.append(execution)
        over = history.end_of(execution) - (claim.until if claim.until is not None else float("inf"))
        if over > history.slack_of(execution):
            yield Violation(
                Kind.UNCLAIMED,
                f"{_name(execution.job)}: attempt {execution.attempt} in process {execution.pid} went on for {over:.3f} s "
                f"after its claim had ended as {claim.outcome}",
            )


def _claim_of(execution: Execution, claims: Sequence[Claim]) -> Claim | None:
    for claim in reversed(claims):
        begun = claim.since - CLOCKS <= execution.begun
        open_then = claim.until is None or execution.begun <= claim.until + CLOCKS
        if claim.attempt == execution.attempt and begun and open_then:
            return claim
    return None


def _late(claims: Mapping[Job, Sequence[Claim]], history: History) -> Iterator[Violation]:
    for job, all_claims in claims.items():
        for claim in all_claims:
            if (
                claim.outcome == "succeeded"
                and not any(e.completed for e in claim.executions)
                and job not in history.deleted
            ):
                yield Violation(
                    Kind.LATE,
                    f"{_name(job)}: attempt {claim.attempt} was written as succeeded, but had not come to its end",
                )


def _counts(history: History) -> Iterator[Violation]:
    last: dict[Job, int] = Counter()
    for change in history.changes:
        step = change.attempts - change.attempts_before
        allowed = {1} if change.new == "running" else {0, -1} if change.old == "running" else {0}
        if step not in allowed or change.attempts_before != last[change.job]:
            yield Violation(
                Kind.MISCOUNT,
                f"{_name(change.job)}: {change.attempts_before} to {change.attempts} attempts on {change.old} to {change.new}",
            )
        last[change.job] = change.attempts
    for job, row in history.rows.items():
        if row.attempts != last[job]:
            yield Violation(Kind.MISCOUNT, f"{_name(job)} has {row.attempts} attempts, its trail says {last[job]}")


def recovery(history: History, faults: Sequence[float]) -> tuple[float, str]:
    """Seconds of the slowest recovery, and whose: of an interrupted job until it began again, of a claim that got
    lost until its job began, or the longest time in which nothing began."""
    starts: dict[Job, list[float]] = defaultdict(list)
    for execution in history.executions:
        starts[execution.job].append(execution.begun)
    waits = [(0.0, "")]
    for execution in history.executions:
        before = [fault for fault in faults if execution.begun <= fault <= history.end_of(execution) + NOTICED]
        again = [begun for begun in starts[execution.job] if begun > execution.begun]
        if not execution.completed and before and again:
            waits.append((min(again) - max(before), _name(execution.job)))
    waits += _never_begun(history, starts)
    begun = sorted(execution.begun for execution in history.executions if execution.begun < history.loaded_until)
    waits += [(later - earlier, "all") for earlier, later in pairwise(begun) if faults and later > faults[0]]
    return max(waits)


def _never_begun(history: History, starts: Mapping[Job, Sequence[float]]) -> Iterator[tuple[float, str]]:
    """Claims that were lost before anybody performed them: from the claim until the job began at last."""
    claims = claims_of(history.changes)
    for execution in history.executions:
        claim = _claim_of(execution, claims.get(execution.job, ()))
        if claim is not None:
            claim.executions.append(execution)
    for job, all_claims in claims.items():
        for claim in all_claims:
            again = [begun for begun in starts[job] if begun > claim.since]
            if not claim.executions and again:
                yield min(again) - claim.since, f"{_name(job)}, claimed but not begun"


def _name(job: Job) -> str:
    return f"{job[0]} {job[1]}"
