"""Which worker process gets a claimed job, and how many more the node has room for.

Owns every claim from its answer until its outcome is handed to the finisher. The processes themselves are the pool's.
"""

from __future__ import annotations

import asyncio
import collections
import operator
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import compress, count
from typing import NamedTuple

from cluster.coordinator.claims import Claim, Outcome
from cluster.coordinator.crash import cancelled, released
from cluster.coordinator.job_types import JobType
from cluster.coordinator.lease import Lease
from cluster.coordinator.process import Kill, WorkerProcess
from cluster.frames import COLUMNS, CRASHES, ID, RawRow, Report, integer

STOP_GRACE = 3.0
"""Seconds from asking a job to stop to killing its process."""
PREFETCH = 0.05
"""Seconds of work to have beyond the slots, at the rate measured: a few round trips."""
LONGEST_PREFETCH = 2000
RATE_INTERVAL = 0.05
REPLACED = Kill("replaced", None)
"""After a plain job was stopped half-way: locks that it had taken, and what it had started, go with the process."""
BEGIN_WITHIN = 0.25
"""Seconds after which a claim that has not begun goes back: others may have room for it."""
_NO_CRASHES = {b"\0\0\0\0", b"\0\0"}


class Demand(NamedTuple):
    """What the node has room for. slots: jobs that can begin at once; jobs: that are wanted, those claimed ahead included.

    whole: of those that must have no neighbour, having crashed before, for each of which a worker must become empty.
    """

    slots: int
    jobs: int
    whole: int

    def at_most(self, jobs: int) -> Demand:
        return self if self.jobs <= jobs else Demand(min(self.slots, jobs), jobs, min(self.whole, jobs))


class _Whole(NamedTuple):
    """A claim that waits for a worker to itself."""

    claim: Claim
    oids: tuple[int, ...]
    row: RawRow


class Placement:
    """Of the claims of one node.

    workers: the pool's, which it keeps up to date. finished: called with the outcomes of one frame; room: when a slot is free.
    """

    def __init__(
        self, workers: Sequence[WorkerProcess], finished: Callable[[list[Outcome]], None], room: Callable[[], None]
    ) -> None:
        self._workers = workers
        self._finished = finished
        self._room = room
        self._for_whole: collections.deque[_Whole] = collections.deque()
        self._ended: collections.Counter[JobType] = collections.Counter()
        self._rates: dict[JobType, float] = {}
        """Jobs of each type begun and ended a second."""
        self._rated_at = time.monotonic()
        self._next_ticket = 1
        self.prefetches = True
        """Whether jobs are wanted beyond the slots. The claimer says no while something waits that needs a slot."""
        self._is_closed = False

    # --- room ---

    @property
    def running(self) -> int:
        """Jobs that this node has claimed, and whose outcome it does not know."""
        return len(self._for_whole) + sum(len(worker.claims) for worker in self._workers)

    def has(self, job_type: JobType, job_id: int) -> bool:
        """This job."""
        return any(claim.id == job_id and claim.job_type is job_type for claim in self._claims())

    def claimed(self, job_type: JobType) -> int:
        """Those of one type."""
        return sum(claim.job_type is job_type for claim in self._claims())

    def held(self, lease: Lease) -> list[Claim]:
        """Those under one lease."""
        return [claim for claim in self._claims() if claim.lease is lease]

    def _claims(self) -> Iterable[Claim]:
        yield from (waiting.claim for waiting in self._for_whole)
        for worker in self._workers:
            yield from worker.claims.values()

    def demand(self, job_type: JobType) -> Demand:
        """For jobs of this type."""
        if self._is_closed:
            return Demand(0, 0, 0)
        idle = max(0, sum(worker.idle for worker in self._workers) - len(self._for_whole))
        if job_type.exclusive:
            return Demand(idle, idle, idle)
        self._measure_rates(time.monotonic())
        slots = ahead = beyond = open_workers = 0
        for worker in self._workers:
            if worker.is_open:
                open_workers += 1
                slots += max(0, worker.free_slots)
                beyond += max(0, -worker.free_slots)
                ahead += int(worker.rate * PREFETCH)
        ahead = min(LONGEST_PREFETCH, ahead) if self.prefetches else 0
        whole = idle or int(not self._for_whole)  # one more: a worker is kept free for it
        if not open_workers or (not slots and beyond > ahead / 2):
            return Demand(
                0, 0, 0
            )  # half of what is to be ahead: claims come in batches, and workers do not run dry meanwhile
        # Of a type that is slow or new a few only, but some: the others must not keep it out.
        own = max(open_workers, int(self._rates.get(job_type, 0.0) * PREFETCH))
        return Demand(slots, slots + max(0, min(own, ahead - beyond)), whole)

    def reserve(self) -> None:
        """A job that must have no neighbour waits, and no worker is empty: the emptiest takes nothing more until it is."""
        shared = [worker for worker in self._workers if worker.is_up and not worker.is_whole and not worker.is_leaving]
        if shared and not any(worker.idle or worker.is_reserved for worker in shared):
            min(shared, key=lambda worker: len(worker.claims)).is_reserved = True

    def unreserve(self) -> None:
        """None of them waits any more."""
        if not self._for_whole and any(worker.is_reserved for worker in self._workers):
            for worker in self._workers:
                worker.is_reserved = False
            self._room()

    # --- placing ---

    def place(
        self, job_type: JobType, oids: tuple[int, ...], rows: list[RawRow], claimed_at: float, lease: Lease
    ) -> None:
        """Sends claimed rows, best first, to the workers with most room."""
        claims = [Claim(job_type, integer(row[ID]), row[:COLUMNS], claimed_at, lease) for row in rows]
        if self._is_closed:
            self._finished([released(claim) for claim in claims])
            return
        shared = list(zip(claims, rows, strict=True))
        if job_type.exclusive or not {row[CRASHES] for row in rows} <= _NO_CRASHES:
            alone = [job_type.exclusive or row[CRASHES] not in _NO_CRASHES for row in rows]
            self._for_whole += (_Whole(claim, oids, row) for (claim, row) in compress(shared, alone))
            shared = list(compress(shared, map(operator.not_, alone)))
        self._place_whole()
        open_workers = [worker for worker in self._workers if worker.is_open]
        if shared and not open_workers:  # it took a whole job, was reserved or died since the claim
            self._finished([released(claim) for claim, _ in shared])
            return
        for worker, share in _deal(shared, open_workers):
            self._send(worker, job_type, oids, share)

    def _place_whole(self) -> None:
        while self._for_whole:
            idle = [worker for worker in self._workers if worker.idle]
            if not idle:
                self.reserve()
                return
            worker = min(idle, key=lambda worker: not worker.is_reserved)
            claim, oids, row = self._for_whole.popleft()
            worker.is_whole, worker.is_reserved = True, False
            self._send(worker, claim.job_type, oids, [(claim, row)])

    def _send(
        self, worker: WorkerProcess, job_type: JobType, oids: tuple[int, ...], share: list[tuple[Claim, RawRow]]
    ) -> None:
        """All claims are of one lease. Once that is over, the rows are somebody else's."""
        if not share or not share[0][0].lease.valid:
            return
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + len(share)
        claims, rows = zip(*share, strict=True)
        worker.claims.update(zip(count(ticket), claims))
        worker.send(("perform", job_type.index, claims[0].lease.fence_at, oids, ticket, rows))
        if job_type.exclusive and job_type.timeout is not None:
            worker.overrun = asyncio.get_running_loop().call_later(job_type.timeout, self._overran, worker, ticket)

    def _overran(self, worker: WorkerProcess, ticket: int) -> None:
        """The time of a job is up that has a worker's main thread: the worker itself does not look at the clock meanwhile."""
        self._interrupt(worker, ticket, time.monotonic() + STOP_GRACE, "timed_out")

    def _interrupt(self, worker: WorkerProcess, ticket: int, deadline: float, reason: str) -> None:
        if ticket in worker.claims and ticket not in worker.stops:
            worker.stops[ticket] = (deadline, reason)
            worker.interrupt(ticket, reason)

    # --- what becomes of them ---

    def came_up(self) -> None:
        """A worker can perform jobs."""
        self._place_whole()
        self._room()

    def succeeded(self, worker: WorkerProcess, successes: list[tuple[int, float, float]]) -> None:
        """A worker has ended attempts: their tickets, begun, ended. A job may have been taken from it: then its claim is gone."""
        claims = worker.claims
        outcomes = [
            Outcome(claim, "succeeded", "succeeded", None, None, 0, 0, begun, ended)
            for ticket, begun, ended in successes
            if (claim := claims.pop(ticket, None)) is not None
        ]
        self._took(worker, outcomes, [ticket for ticket, _, _ in successes] if worker.stops else [])

    def took(self, worker: WorkerProcess, reports: list[Report]) -> None:
        """The same, of other ends."""
        claims = worker.claims
        outcomes = [
            Outcome(claim, *report[1:]) for report in reports if (claim := claims.pop(report.ticket, None)) is not None
        ]
        self._took(worker, outcomes, [report.ticket for report in reports])

    def _took(self, worker: WorkerProcess, outcomes: list[Outcome], tickets: list[int]) -> None:
        worker.ended_jobs += len(outcomes)
        worker.performed += len(outcomes)
        self._ended.update([outcome.claim.job_type for outcome in outcomes])
        stopped = [ticket for ticket in tickets if worker.stops.pop(ticket, None) is not None]
        if stopped and outcomes and outcomes[0].claim.job_type.exclusive and not self._is_closed:
            worker.kill(REPLACED)
        self._emptied(worker)
        self._finished(outcomes)
        self._room()

    def returned(self, worker: WorkerProcess, tickets: list[int]) -> None:
        """A worker has given back what it had not begun."""
        claims = [claim for ticket in tickets if (claim := worker.claims.pop(ticket, None)) is not None]
        for ticket in tickets:
            worker.stops.pop(ticket, None)
        self._emptied(worker)
        self._finished([released(claim) for claim in claims])
        self._room()

    def _emptied(self, worker: WorkerProcess) -> None:
        if not worker.claims:
            worker.is_whole = False
            if worker.overrun is not None:
                worker.overrun.cancel()
                worker.overrun = None
            self._place_whole()

    def lost(self, outcomes: list[Outcome]) -> None:
        """A worker has ended, with these."""
        self._finished(outcomes)
        self._room()

    def forget(self, lease: Lease) -> None:
        """The lease is over: others may have the jobs, so nothing is told of them. Workers that have some are the pool's to end."""
        self._for_whole = collections.deque(entry for entry in self._for_whole if entry.claim.lease is not lease)

    # --- stopping, and giving back ---

    def close(self) -> None:
        """Gives back everything that has not begun, and from now on what a claim on its way still brings."""
        self._is_closed = True
        waiting, self._for_whole = self._for_whole, collections.deque()
        self._finished([released(claim) for claim, _, _ in waiting])
        for worker in self._workers:
            worker.send(("return", None))

    def cancel(self, job_type: JobType, job_id: int) -> bool:
        """Stops one job if this node has it. What has not begun never will."""
        mine = [entry for entry in self._for_whole if (entry.claim.job_type, entry.claim.id) == (job_type, job_id)]
        if mine:
            self._for_whole = collections.deque(entry for entry in self._for_whole if entry not in mine)
            self._finished([cancelled(entry.claim) for entry in mine])
        return self._stop(lambda claim: (claim.job_type, claim.id) == (job_type, job_id), "cancelled") or bool(mine)

    def stop_lost(self, claims: Iterable[Claim]) -> None:
        """Stops jobs whose rows are gone or belong to somebody else."""
        gone = {(claim.job_type, claim.id, claim.locked_at) for claim in claims}
        self._for_whole = collections.deque(
            entry
            for entry in self._for_whole
            if (entry.claim.job_type, entry.claim.id, entry.claim.locked_at) not in gone
        )
        self._stop(lambda claim: (claim.job_type, claim.id, claim.locked_at) in gone, "released")

    def stop_all(self) -> None:
        """Asks every attempt to stop, to be released."""
        self._stop(lambda _: True, "released")

    def _stop(self, chosen: Callable[[Claim], bool], reason: str) -> bool:
        found = False
        deadline = time.monotonic() + STOP_GRACE
        for worker in self._workers:
            tickets = [ticket for ticket, claim in worker.claims.items() if chosen(claim)]
            if tickets:
                found = True
                for ticket in tickets:
                    if worker.claims[ticket].job_type.exclusive:
                        self._interrupt(worker, ticket, deadline, reason)
                    else:
                        worker.stops.setdefault(ticket, (deadline, reason))
                worker.send(("stop", tickets, reason))
        return found

    def give_back_stale(self, now: float) -> None:
        """What was claimed a while ago and has not begun stands behind something long: others may have room for it."""
        for worker in self._workers:
            claims = worker.claims
            if not claims or (worker.free_slots >= 0 and not worker.is_whole and not worker.is_reserved):
                continue
            begun = {note.ticket for note in worker.notes.in_progress()}
            stale = [t for t, claim in claims.items() if t not in begun and now - claim.claimed_at > BEGIN_WITHIN]
            if stale and len(begun) > 0:
                worker.send(("return", stale))
        stale_whole = []
        while len(self._for_whole) > 1 and now - self._for_whole[-1].claim.claimed_at > BEGIN_WITHIN:
            stale_whole.append(released(self._for_whole.pop().claim))  # a worker is kept free for the first
        if stale_whole:
            self._finished(stale_whole)

    # --- rates ---

    def _measure_rates(self, now: float) -> None:
        """Of types and workers: up at once, down slowly."""
        elapsed = now - self._rated_at
        if elapsed < RATE_INTERVAL:
            return
        self._rated_at = now
        kept = 0.8 ** (elapsed / RATE_INTERVAL)
        for job_type in self._rates.keys() | self._ended.keys():
            latest = self._ended.get(job_type, 0) / elapsed
            self._rates[job_type] = max(latest, self._rates.get(job_type, 0.0) * kept)
        self._ended.clear()
        for worker in self._workers:
            worker.rate = max(worker.ended_jobs / elapsed, worker.rate * kept)
            worker.ended_jobs = 0


def _deal(
    rows: list[tuple[Claim, RawRow]], workers: list[WorkerProcess]
) -> list[tuple[WorkerProcess, list[tuple[Claim, RawRow]]]]:
    """Deals rows out, best first: one to each worker in turn while it has a free slot, then to those that get on."""
    workers = sorted(workers, key=lambda worker: len(worker.claims))
    shares: list[list[tuple[Claim, RawRow]]] = [[] for _ in workers]
    room = [max(0, worker.free_slots) for worker in workers]
    position = 0
    while position < len(rows) and any(room):
        for place in [place for place, slots in enumerate(room) if slots][: len(rows) - position]:
            shares[place].append(rows[position])
            room[place] -= 1
            position += 1
    rest = rows[position:]
    if rest:
        fastest = max(worker.rate for worker in workers)
        places = [place for place, worker in enumerate(workers) if worker.rate >= fastest / 4]
        for number, place in enumerate(places):
            shares[place] += rest[number :: len(places)]
    return list(zip(workers, shares, strict=True))
