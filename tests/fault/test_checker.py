"""The checker of the fault suite finds every kind of broken promise: it is fed with forged accounts of what happened."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fault.checker import Change, Final, History, Kind, check, recovery
from tests.fault.journal import Execution, Job, parse

JOB: Job = ("SlowJob", 1)
OTHER: Job = ("SlowJob", 2)
PID = 100


def execution(
    job: Job = JOB, attempt: int = 1, begun: float = 10.1, ended: float | None = 11.0, pid: int = PID
) -> Execution:
    return Execution(job, attempt, pid, begun, ended=ended, completed=ended is not None)


def claim(
    job: Job = JOB, attempt: int = 1, since: float = 10.0, until: float = 11.1, new: str = "succeeded"
) -> list[Change]:
    given_back = attempt - 1 if new == "released" else attempt
    outcome = "not_started" if new in {"released", "rescued"} else new
    return [
        Change(job, since, "not_started", "running", attempt - 1, attempt),
        Change(job, until, "running", outcome, attempt, given_back),
    ]


def history(*executions: Execution, changes: list[Change] | None = None, **others: object) -> History:
    good = History(
        executions=executions or (execution(),),
        deaths={},
        changes=claim() if changes is None else changes,
        rows={JOB: Final("succeeded", 1)},
        acknowledged=frozenset({JOB}),
        limits={"SlowJob": 1},
        ended_at=100.0,
    )
    return replace(good, **others)  # type: ignore[arg-type]  # names and types as in the class


def kinds(account: History) -> set[Kind]:
    return {violation.kind for violation in check(account)}


def test_an_occurrence_without_a_job_or_with_two_is_a_misfire() -> None:
    assert kinds(history(occurrences={("tick", "12:00"): 1})) == set()
    assert kinds(history(occurrences={("tick", "12:00"): 0})) == {Kind.MISFIRE}
    assert kinds(history(occurrences={("tick", "12:00"): 2})) == {Kind.MISFIRE}


def test_a_good_account_has_no_violation() -> None:
    assert check(history()) == []


@pytest.mark.parametrize(
    ("account", "kind"),
    [
        pytest.param(history(rows={}), Kind.LOST, id="a row that is gone"),
        pytest.param(history(rows={JOB: Final("not_started", 1)}), Kind.LOST, id="a job that still waits"),
        pytest.param(history(rows={JOB: Final("failed", 1)}), Kind.LOST, id="a job that may not fail"),
        pytest.param(
            history(execution(ended=None), deaths={PID: 10.5}), Kind.LOST, id="a success that nobody performed"
        ),
        pytest.param(history(rows={JOB: Final("running", 1)}), Kind.STUCK, id="a row left running"),
        pytest.param(history(rows={JOB: Final("succeeded", 2)}), Kind.MISCOUNT, id="attempts that do not add up"),
        pytest.param(
            history(changes=[*claim(new="rescued"), Change(JOB, 12.0, "not_started", "running", 1, 1)]),
            Kind.MISCOUNT,
            id="a claim that was not counted",
        ),
        pytest.param(history(execution(begun=12.0, ended=13.0)), Kind.UNCLAIMED, id="an execution after its claim"),
        pytest.param(history(execution(attempt=2)), Kind.UNCLAIMED, id="an attempt that was not claimed"),
        pytest.param(history(execution(ended=11.5)), Kind.UNCLAIMED, id="an execution that outlives its claim"),
        pytest.param(
            history(execution(ended=None), deaths={PID: 12.0}),
            Kind.UNCLAIMED,
            id="a killed execution that outlived its claim",
        ),
        pytest.param(
            history(replace(execution(), completed=False)), Kind.LATE, id="an outcome of an execution that was stopped"
        ),
    ],
)
def test_a_bad_account_is_found(account: History, kind: Kind) -> None:
    assert kind in kinds(account)


def test_two_executions_of_a_job_at_once_are_found() -> None:
    both = execution(ended=10.8), execution(begun=10.5, pid=101)
    assert Kind.OVERLAP in kinds(history(*both))


def test_an_execution_without_an_end_counts_until_its_process_died() -> None:
    again = execution(attempt=2, begun=20.1, ended=20.5, pid=101)
    changes = [*claim(until=19.0, new="rescued"), *claim(attempt=2, since=20.0, until=20.6)]
    rows = {JOB: Final("succeeded", 2)}
    died_in_time = history(execution(ended=None), again, changes=changes, rows=rows, deaths={PID: 18.0})
    assert kinds(died_in_time) == set()
    died_late = history(execution(ended=None), again, changes=changes, rows=rows, deaths={PID: 20.4})
    assert {Kind.OVERLAP, Kind.OVERSHOOT, Kind.UNCLAIMED} <= kinds(died_late)
    never_died = history(execution(ended=None), again, changes=changes, rows=rows)
    assert Kind.OVERLAP in kinds(never_died)


def test_a_lock_that_the_kernel_still_held_is_an_overlap() -> None:
    assert kinds(history(replace(execution(), clashed=True))) == {Kind.OVERLAP}


def test_too_many_at_once_are_found() -> None:
    account = history(
        execution(),
        execution(OTHER, pid=101),
        changes=[*claim(), *claim(OTHER)],
        rows={JOB: Final("succeeded", 1), OTHER: Final("succeeded", 1)},
    )
    assert kinds(account) == {Kind.OVERSHOOT}
    assert kinds(replace(account, limits={"SlowJob": 2})) == set()
    assert kinds(history(replace(execution(), slot=-1))) == {Kind.OVERSHOOT}


def test_a_released_attempt_may_begin_again() -> None:
    stopped = replace(execution(ended=10.5), completed=False)
    changes = [*claim(until=10.6, new="released"), *claim(since=10.7, until=11.6)]
    assert check(history(stopped, execution(begun=10.8, ended=11.5, pid=101), changes=changes)) == []


def test_nothing_is_promised_for_rows_that_were_deleted() -> None:
    assert check(history(rows={}, changes=claim()[:1], deleted=frozenset({JOB}))) == []


def test_the_slowest_recovery_is_that_of_the_interrupted_job_or_of_the_cluster() -> None:
    changes = [*claim(until=19.0, new="rescued"), *claim(attempt=2, since=20.0, until=20.6)]
    account = history(
        execution(ended=None),
        execution(OTHER, begun=12.0, ended=12.1, pid=102),
        execution(attempt=2, begun=20.0, ended=20.5, pid=101),
        changes=changes,
        deaths={PID: 18.0},
    )
    assert recovery(account, [11.0]) == (9.0, "SlowJob 1")
    assert recovery(account, [15.0]) == (8.0, "all")


def test_a_claim_that_got_lost_is_a_recovery_too() -> None:
    changes = [*claim(until=19.0, new="released"), *claim(since=20.0, until=20.6)]
    account = history(execution(begun=20.1, ended=20.5), changes=changes)
    assert check(account) == []
    assert recovery(account, []) == (20.1 - 10.0, "SlowJob 1, claimed but not begun")


def test_the_journal_is_read_as_it_was_written() -> None:
    lines = ["start SlowJob 1 1 100 10.5 0 2", "start FastJob 7 3 100 10.6 1 -", "end SlowJob 1 1 100 11.0 0 -",
             "stopped FastJob 7 3 100 11.5 0 -"]  # fmt: skip
    slow, fast = parse(lines)
    assert slow == Execution(("SlowJob", 1), 1, 100, 10.5, False, 2, 11.0, True)
    assert fast == Execution(("FastJob", 7), 3, 100, 10.6, True, None, 11.5, False)
