"""What becomes of the jobs of a worker process that ended. Pure: from what it had and was doing to outcomes.

One attempt in progress: it is to blame, and its attempt counts. Several: nobody knows whose fault it was, so all are handed
back and performed alone from then on. Deaths that the node caused itself cost only the job on whose account it acted.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.coordinator.claims import Claim, Outcome
from cluster.coordinator.process import Kill
from cluster.error_text import shorten
from cluster.frames import ATTEMPTS, CRASHES, integer
from cluster.notes import Note


@dataclass(frozen=True)
class Death:
    """A worker's end. claims: by ticket. begun: attempts in progress at that moment. kill: the node's own reason, None: it was not
    the node."""

    claims: Mapping[int, Claim]
    begun: Sequence[Note]
    cause: str
    kill: Kill | None


def outcomes_after(death: Death) -> list[Outcome]:
    """One outcome for every claim that the process had."""
    begun = {note.ticket: note.begun for note in death.begun if note.ticket in death.claims}
    outcomes = []
    for ticket, claim in death.claims.items():
        if death.kill is not None and not (death.kill.reason in {"blocked", "memory"} and death.kill.ticket is None):
            verdict = _killed(death, ticket, claim)
        elif ticket not in begun:
            verdict = _RELEASED
        elif len(begun) == 1:
            verdict = _crashed(death.cause, claim)
        else:
            text = (
                f"its worker process died with {len(begun)} jobs in progress: {death.cause}; handed back, to run alone"
            )
            verdict = ("not_started", "released", None, text, -1, 1)
        outcomes.append(Outcome(claim, *verdict, begun.get(ticket, claim.claimed_at), time.monotonic()))
    return outcomes


def released(claim: Claim) -> Outcome:
    """Of a claim that never began."""
    now = time.monotonic()
    return Outcome(claim, *_RELEASED, now, now)


def cancelled(claim: Claim) -> Outcome:
    """The same, when its end was asked for."""
    now = time.monotonic()
    return Outcome(claim, "cancelled", "cancelled", None, "cancelled on request", -1, 0, now, now)


_Verdict = tuple[str, str, float | None, str | None, int, int]
_RELEASED: _Verdict = ("not_started", "released", None, None, -1, 0)


def _killed(death: Death, ticket: int, claim: Claim) -> _Verdict:
    assert death.kill is not None
    job_type = claim.job_type
    if ticket != death.kill.ticket or death.kill.reason == "released":
        return _RELEASED
    where = f"; it was here:\n{death.kill.detail}" if death.kill.detail else ""
    match death.kill.reason:
        case "cancelled":
            text = f"cancelled on request; it did not stop, so its process was killed{where}"
            return ("cancelled", "cancelled", None, shorten(text), 0, 0)
        case "blocked":
            text = f"it held its process's event loop for too long, so the process was killed{where}"
            return _crashed(text, claim)
        case "memory":
            return _crashed(death.kill.detail, claim)
    text = shorten(f"timed out after {job_type.timeout:g} s; it did not stop, so its process was killed{where}")
    attempt = integer(claim.head[ATTEMPTS])
    if attempt >= job_type.max_attempts:
        return ("timed_out", "timed_out", None, text, 0, 0)
    return ("retry", "timed_out", job_type.delay(attempt), text, 0, 0)


def _crashed(cause: str, claim: Claim) -> _Verdict:
    job_type = claim.job_type
    crashes, attempt = integer(claim.head[CRASHES]) + 1, integer(claim.head[ATTEMPTS])
    text = shorten(f"the worker process died under this job: {cause}")
    if crashes >= job_type.job_class.max_crashes:
        return ("failed", "crashed", None, f"{text}; {crashes} crashes, so it is not tried again", 0, 1)
    if attempt >= job_type.max_attempts:
        return ("failed", "crashed", None, text, 0, 1)
    return ("retry", "crashed", 0.0 if crashes == 1 else job_type.delay(attempt), text, 0, 1)
