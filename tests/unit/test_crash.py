"""What becomes of the jobs of a worker process that has ended."""

from __future__ import annotations

import struct
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

import pytest

from cluster import ConstantBackoff, Job
from cluster.coordinator.claims import Claim
from cluster.coordinator.crash import Death, outcomes_after
from cluster.coordinator.job_types import JobType, job_types
from cluster.coordinator.lease import Lease
from cluster.coordinator.process import Kill
from cluster.frames import ATTEMPTS, COLUMNS, CRASHES
from cluster.notes import Note


class CrashJob(Job):
    max_attempts = 3
    max_crashes = 3
    timeout = timedelta(seconds=2)
    backoff = ConstantBackoff(timedelta(seconds=7))

    def perform(self) -> None: ...


class OtherJob(Job):
    async def perform(self) -> None: ...


TYPES: list[JobType] = job_types([CrashJob, OtherJob])
CAUSE = "SIGSEGV (a fault in native code)"
RELEASED = ("not_started", "released", None, -1, 0)
DIED = f"the worker process died under this job: {CAUSE}"


class Held(NamedTuple):
    """A claim that the process had. begun: it was in progress."""

    ticket: int
    attempts: int = 1
    crashes: int = 0
    begun: bool = True


def claim(held: Held) -> Claim:
    row: list[bytes | None] = [None] * COLUMNS
    row[ATTEMPTS], row[CRASHES] = struct.pack(">i", held.attempts), struct.pack(">i", held.crashes)
    return Claim(TYPES[held.ticket % 2], held.ticket, row, claimed_at=100.0, lease=Lease(UUID(int=1), 0.0, 30.0))


def verdicts(*jobs: Held, kill: Kill | None = None) -> dict[int, tuple[tuple[object, ...], str | None]]:
    """By ticket: status, outcome, delay, change of attempts, change of crashes; and the error."""
    claims = {held.ticket: claim(held) for held in jobs}
    begun = [Note(held.ticket, begun=101.0) for held in jobs if held.begun]
    outcomes = outcomes_after(Death(claims, begun, CAUSE, kill))
    assert [outcome.claim for outcome in outcomes] == list(claims.values()), "one outcome for every claim"
    return {o.claim.id: ((o.status, o.outcome, o.delay, o.attempts, o.crashes), o.error) for o in outcomes}


JOB, NEIGHBOUR, WAITING = 2, 1, 4
"""Tickets; even ones are of CrashJob."""

ALONE = [
    pytest.param(Held(JOB), ("retry", "crashed", 0.0, 0, 1), DIED, id="first crash: again at once"),
    pytest.param(
        Held(JOB, attempts=2, crashes=1), ("retry", "crashed", 7.0, 0, 1), DIED, id="later: after its backoff"
    ),
    pytest.param(Held(JOB, attempts=3), ("failed", "crashed", None, 0, 1), DIED, id="last attempt"),
    pytest.param(
        Held(JOB, attempts=2, crashes=2),
        ("failed", "crashed", None, 0, 1),
        f"{DIED}; 3 crashes, so it is not tried again",
        id="quarantined",
    ),
]


@pytest.mark.parametrize(("held", "verdict", "error"), ALONE)
def test_the_only_job_in_progress_is_to_blame(held: Held, verdict: tuple[object, ...], error: str) -> None:
    assert verdicts(held) == {JOB: (verdict, error)}


def test_jobs_that_had_not_begun_are_handed_back_as_they_were() -> None:
    found = verdicts(Held(JOB), Held(WAITING, begun=False), Held(NEIGHBOUR, begun=False))
    assert found[WAITING] == found[NEIGHBOUR] == (RELEASED, None)
    assert found[JOB][0] == ("retry", "crashed", 0.0, 0, 1)


def test_of_several_in_progress_nobody_loses_an_attempt_but_all_run_alone_from_then_on() -> None:
    found = verdicts(Held(JOB, attempts=3, crashes=2), Held(NEIGHBOUR), Held(WAITING, begun=False))
    for key in (JOB, NEIGHBOUR):
        verdict, error = found[key]
        assert verdict == ("not_started", "released", None, -1, 1)
        assert error == f"its worker process died with 2 jobs in progress: {CAUSE}; handed back, to run alone"
    assert found[WAITING] == (RELEASED, None)


def test_a_death_with_nothing_in_progress_costs_nobody_anything() -> None:
    assert verdicts(Held(JOB, begun=False), Held(WAITING, begun=False)) == dict.fromkeys(
        (JOB, WAITING), (RELEASED, None)
    )
    assert verdicts() == {}


def test_a_note_of_a_job_that_has_been_reported_is_ignored() -> None:
    claims = {JOB: claim(Held(JOB))}
    stale = [Note(NEIGHBOUR, begun=90.0), Note(JOB, begun=101.0)]
    (outcome,) = outcomes_after(Death(claims, stale, CAUSE, None))
    assert (outcome.status, outcome.outcome) == ("retry", "crashed")


KILLS = [
    pytest.param("timed_out", 1, ("retry", "timed_out", 7.0, 0, 0), "timed out after 2 s", id="timed out"),
    pytest.param("timed_out", 3, ("timed_out", "timed_out", None, 0, 0), "timed out after 2 s", id="timed out, last"),
    pytest.param("cancelled", 1, ("cancelled", "cancelled", None, 0, 0), "cancelled on request", id="cancelled"),
    pytest.param("blocked", 1, ("retry", "crashed", 0.0, 0, 1), "held its process's event loop", id="blocked"),
    pytest.param("blocked", 3, ("failed", "crashed", None, 0, 1), "held its process's event loop", id="blocked, last"),
]


@pytest.mark.parametrize(("reason", "attempts", "verdict", "error"), KILLS)
def test_a_kill_costs_only_the_job_on_whose_account_it_was(
    reason: str, attempts: int, verdict: tuple[object, ...], error: str
) -> None:
    found = verdicts(Held(JOB, attempts=attempts), Held(NEIGHBOUR), Held(WAITING, begun=False), kill=Kill(reason, JOB))
    assert found[JOB][0] == verdict
    assert error in (found[JOB][1] or "")
    assert found[NEIGHBOUR] == found[WAITING] == (RELEASED, None)


@pytest.mark.parametrize("kill", [Kill("released", None), Kill("released", JOB), Kill("forkserver_died", None)])
def test_a_process_that_the_node_ends_releases_everything(kill: Kill) -> None:
    found = verdicts(Held(JOB), Held(NEIGHBOUR), Held(WAITING, begun=False), kill=kill)
    assert set(found.values()) == {(RELEASED, None)}


def test_an_attempt_begins_when_its_note_says_so_and_else_with_its_claim() -> None:
    claims = {held.ticket: claim(held) for held in (Held(JOB), Held(WAITING))}
    outcomes = outcomes_after(Death(claims, [Note(JOB, begun=101.5)], CAUSE, None))
    assert [outcome.begun for outcome in outcomes] == [101.5, 100.0]
