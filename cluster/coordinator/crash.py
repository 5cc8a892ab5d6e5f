"""What becomes of the jobs of a worker process that ended. Pure: from what it held and was doing to reports.

One attempt in progress: it is to blame, and its attempt counts. Several: nobody knows whose fault it was, so all are handed
back and performed alone from then on. Deaths that the node caused itself cost only the job on whose account it acted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.coordinator.claims import Claim
from cluster.coordinator.job_types import JobType
from cluster.coordinator.process import Key, Kill
from cluster.frames import ATTEMPTS, CRASHES, Report, integer
from cluster.notes import Note


@dataclass(frozen=True)
class Death:
    """A worker's end. begun: attempts in progress at that moment. kill: the node's own reason, None: it was not the node."""

    claims: Mapping[Key, Claim]
    begun: Sequence[Note]
    cause: str
    kill: Kill | None


def reports_after(death: Death, types: Sequence[JobType]) -> list[Report]:
    """One report for every job that the process held."""
    begun = {(note.type, note.id): note.begun for note in death.begun if (note.type, note.id) in death.claims}
    reports = []
    for key, claim in death.claims.items():
        started = begun.get(key, claim.claimed_at)
        if death.kill is not None and not (death.kill.reason == "blocked" and death.kill.key is None):
            verdict = _killed(death, key, claim, types[key[0]])
        elif key not in begun:
            verdict = _RELEASED
        elif len(begun) == 1:
            verdict = _crashed(death.cause, claim, types[key[0]])
        else:
            text = (
                f"its worker process died with {len(begun)} jobs in progress: {death.cause}; handed back, to run alone"
            )
            verdict = ("not_started", "released", None, text, -1, 1)
        reports.append((*key, *verdict, started, time.monotonic()))
    return reports


_Verdict = tuple[str, str, float | None, str | None, int, int]
_RELEASED: _Verdict = ("not_started", "released", None, None, -1, 0)


def _killed(death: Death, key: Key, claim: Claim, job_type: JobType) -> _Verdict:
    assert death.kill is not None
    if key != death.kill.key or death.kill.reason == "released":
        return _RELEASED
    if death.kill.reason == "cancelled":
        return (
            "cancelled",
            "cancelled",
            None,
            "cancelled on request; it did not stop, so its process was killed",
            0,
            0,
        )
    if death.kill.reason == "blocked":
        return _crashed("it held its process's event loop for too long, so the process was killed", claim, job_type)
    text = f"timed out after {job_type.timeout:g} s; it did not stop, so its process was killed"
    attempt = integer(claim.head[ATTEMPTS])
    if attempt >= job_type.max_attempts:
        return ("timed_out", "timed_out", None, text, 0, 0)
    return ("retry", "timed_out", job_type.delay(attempt), text, 0, 0)


def _crashed(cause: str, claim: Claim, job_type: JobType) -> _Verdict:
    crashes, attempt = integer(claim.head[CRASHES]) + 1, integer(claim.head[ATTEMPTS])
    text = f"the worker process died under this job: {cause}"
    if crashes >= job_type.job_class.max_crashes:
        return ("failed", "crashed", None, f"{text}; {crashes} crashes, so it is not tried again", 0, 1)
    if attempt >= job_type.max_attempts:
        return ("failed", "crashed", None, text, 0, 1)
    return ("retry", "crashed", 0.0 if crashes == 1 else job_type.delay(attempt), text, 0, 1)
