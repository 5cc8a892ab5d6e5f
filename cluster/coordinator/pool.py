"""The worker processes of a node: starts and replaces them, places claimed jobs, collects how they end.

Owns every claimed job from the claim's answer until its report is handed to the finisher.
"""

from __future__ import annotations

import asyncio
import collections
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from cluster import events
from cluster.coordinator.claims import Claim, Outcome, RawRow
from cluster.coordinator.crash import Death, reports_after
from cluster.coordinator.forkserver import Forkserver
from cluster.coordinator.job_types import JobType
from cluster.coordinator.lease import Lease
from cluster.coordinator.process import Key, Kill, WorkerProcess
from cluster.errors import ClusterError
from cluster.frames import CRASHES, ID, Report, integer
from cluster.spawn import WorkerOptions

STOP_GRACE = 3.0
"""Seconds from asking a job to stop to killing its process."""
BLOCKED = 30.0
"""Seconds without a turn of a worker's loop after which the job that holds it is taken for hung."""
CHECK_INTERVAL, IDLE_CHECK_INTERVAL = 0.25, 1.0
PREFETCH = 0.05
"""Seconds of work to hold beyond the slots, at the rate measured: a few round trips."""
LONGEST_PREFETCH = 1000
RATE_INTERVAL = 0.05
BOOT_FAILURES = 3


class Demand(NamedTuple):
    """Shim."""

    slots: int
    jobs: int
    whole: int


_NO_CRASHES = (b"\0\0\0\0", b"\0\0")


class WorkerBootError(ClusterError):
    """Worker processes die before they can perform anything."""


class Pool:
    """Worker processes and the jobs in them. finished: called with the ended attempts of one frame; room: when a slot is free."""

    def __init__(
        self,
        types: list[JobType],
        options: WorkerOptions,
        processes: int,
        finished: Callable[[list[Outcome]], None],
        room: Callable[[], None],
    ) -> None:
        self._types = types
        self._options = options
        self._processes = processes
        self._finished = lambda items: finished([Outcome(claim, *report[2:]) for claim, report in items])
        self._room = room
        self._workers: list[WorkerProcess] = []
        self._alone: collections.deque[tuple[Key, Claim, tuple[int, ...]]] = collections.deque()
        """Claimed jobs that wait for a worker to themselves."""
        self._ended: collections.Counter[int] = collections.Counter()
        self._rates: dict[int, float] = {}
        self._rated_at = time.monotonic()
        self.forkserver = Forkserver(options)
        self._boot_failures = 0
        self.prefetches = True
        """Whether jobs are wanted beyond the slots. The claimer says no while something waits that needs a slot."""
        self._draining = False
        self._stopping = False

    # --- life ---

    async def run(self) -> None:
        """Keeps the processes running and watches over them. Lives until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._processes):
                group.create_task(self._keep_worker())
            while True:
                await asyncio.sleep(CHECK_INTERVAL if self.running else IDLE_CHECK_INTERVAL)
                self._check()

    async def _keep_worker(self) -> None:
        """One place in the pool: a worker, and its successor when it ends."""
        while not self._stopping:
            worker = WorkerProcess(self._options, self.forkserver, self._receive)
            try:
                await worker.start()
            except (OSError, EOFError):
                await self._boot_failed()
                continue
            self._workers.append(worker)
            await worker.ended
            self._workers.remove(worker)
            self._bury(worker)
            if not worker.ready and not self._stopping:
                await self._boot_failed()

    async def _boot_failed(self) -> None:
        self._boot_failures += 1
        events.worker_boot_failed(self._boot_failures)
        if self._boot_failures >= BOOT_FAILURES * self._processes:
            raise WorkerBootError("worker processes end before they can perform anything: see the lines above")
        await asyncio.sleep(0.5)

    def kill_all(self) -> None:
        """Ends the processes; what they still held is reported as released."""
        self._stopping = True
        for worker in self._workers:
            worker.kill(Kill("released", None))

    def _bury(self, worker: WorkerProcess) -> None:
        if worker.kill_reason is None and worker.orphaned:
            worker.kill_reason = Kill("forkserver_died", None)
        cause = worker.cause_of_death()
        reason = worker.kill_reason.reason if worker.kill_reason else "crashed"
        if (
            worker.kill_reason is not None
            and worker.kill_reason.reason == "released"
            and worker.kill_reason.key is None
        ):
            reason = "stopped"
        events.worker_ended(worker.pid, reason, cause, len(worker.claims))
        death = Death(worker.claims, worker.notes.in_progress(), cause, worker.kill_reason)
        reports = reports_after(death, self._types)
        if reports:
            self._finished([(worker.claims[report[0], report[1]], report) for report in reports])
        worker.claims.clear()
        self._room()

    # --- room ---

    @property
    def running(self) -> int:
        """Jobs that this node has claimed and not reported."""
        return len(self._alone) + sum(len(worker.claims) for worker in self._workers)

    def claimed(self, job_type: JobType) -> int:
        """Jobs of a type that this node has claimed and not reported."""
        keys = [*(key for key, _, _ in self._alone), *(key for worker in self._workers for key in worker.claims)]
        return sum(index == job_type.index for index, _ in keys)

    @property
    def slots(self) -> int:
        return self._processes * self._options.slots

    @property
    def ready(self) -> bool:
        return any(worker.ready for worker in self._workers)

    def demand(self, job_type: JobType) -> Demand:
        """How many jobs of this type can begin at once, and how many are wanted, prefetch included."""
        if self._draining or self._stopping:
            return Demand(0, 0, 0)
        if job_type.exclusive:
            idle = max(0, sum(worker.idle for worker in self._workers) - len(self._alone))
            return Demand(idle, idle, idle)
        free = held = open_workers = 0
        for worker in self._workers:
            free += max(0, worker.free_slots)
            held += max(0, -worker.free_slots)
            open_workers += worker.ready and not worker.alone and not worker.reserved
        self._measure_rates(time.monotonic())
        ahead = min(LONGEST_PREFETCH, int(sum(self._rates.values()) * PREFETCH)) if self.prefetches else 0
        if not open_workers or (not free and held > ahead / 2):
            return Demand(
                0, 0, 0
            )  # half of what is to be ahead: claims come in batches, and workers do not run dry meanwhile
        # Of a type that is slow or new a few only, but some: the others must not keep it out.
        own = max(open_workers, int(self._rates.get(job_type.index, 0.0) * PREFETCH))
        return Demand(free, free + max(0, min(own, ahead - held)), 1)

    def reserve(self) -> None:
        """A job that must be alone waits, and every worker is busy: the emptiest one takes nothing more until it is empty."""
        shared = [worker for worker in self._workers if worker.ready and not worker.alone]
        if shared and not any(worker.idle or worker.reserved for worker in shared):
            min(shared, key=lambda worker: len(worker.claims)).reserved = True

    def unreserve(self) -> None:
        """Nothing waits to be alone any more."""
        if not self._alone and any(worker.reserved for worker in self._workers):
            for worker in self._workers:
                worker.reserved = False
            self._room()

    # --- placing ---

    def place(
        self, job_type: JobType, oids: tuple[int, ...], rows: list[RawRow], claimed_at: float, lease: Lease
    ) -> None:
        """Sends claimed rows, best first, to the workers with most room."""
        if self._draining or self._stopping:
            self._finished(
                [
                    (
                        Claim(job_type, integer(row[ID]), row, claimed_at, lease),
                        _release((job_type.index, integer(row[ID]))),
                    )
                    for row in rows
                ]
            )
            return
        shared: list[RawRow] = []
        for row in rows:
            if job_type.exclusive or row[CRASHES] not in _NO_CRASHES:
                self._alone.append(
                    (
                        (job_type.index, integer(row[ID])),
                        Claim(job_type, integer(row[ID]), row, claimed_at, lease),
                        oids,
                    )
                )
            else:
                shared.append(row)
        self._place_alone()
        open_workers = [worker for worker in self._workers if worker.ready and not worker.alone and not worker.reserved]
        if shared and not open_workers:  # it went alone, was reserved or died since the claim
            self._alone.extend(
                ((job_type.index, integer(row[ID])), Claim(job_type, integer(row[ID]), row, claimed_at, lease), oids)
                for row in shared
            )
            self._place_alone()
            return
        open_workers.sort(key=lambda worker: len(worker.claims))
        for share, worker in zip(
            _shares(shared, [worker.free_slots for worker in open_workers]), open_workers, strict=True
        ):
            self._send(
                worker,
                job_type.index,
                oids,
                [Claim(job_type, integer(row[ID]), row, claimed_at, lease) for row in share],
            )

    def _place_alone(self) -> None:
        while self._alone:
            worker = min(
                (worker for worker in self._workers if worker.idle),
                key=lambda w: not w.reserved,
                default=None,
            )
            if worker is None:
                self.reserve()
                return
            (index, _), claim, oids = self._alone.popleft()
            worker.alone, worker.reserved = True, False
            self._send(worker, index, oids, [claim])

    def _send(self, worker: WorkerProcess, index: int, oids: tuple[int, ...], claims: list[Claim]) -> None:
        """All claims are of one lease. Once that is over, the rows are somebody else's."""
        if claims and claims[0].lease.valid:
            for claim in claims:
                worker.claims[index, integer(claim.head[ID])] = claim
            worker.send(("perform", index, claims[0].lease.fence_at, oids, [claim.head for claim in claims]))

    # --- what workers say ---

    def _receive(self, worker: WorkerProcess, frame: tuple[Any, ...]) -> None:
        match frame:
            case ("done", reports):
                self._take(worker, reports)
            case ("returned", keys):
                self._take(worker, [_release(key) for key in keys])
            case ("ready", facts):
                self._greet(worker, facts)
            case _:
                raise AssertionError(f"unknown frame {frame[0]!r}")

    def _greet(self, worker: WorkerProcess, facts: dict[str, Any]) -> None:
        worker.ready = True
        worker.sample_memory()  # a job may end the process before the next check
        self.forkserver.forked(worker.forked_from)
        self._boot_failures = 0
        events.worker_started(worker.pid, time.monotonic() - worker.started_at)
        if facts["forkserver_threads"] > 1 and self.forkserver.preloads:
            events.preloading_stopped(facts["forkserver_threads"])
            self.forkserver.stop_preloading()
        self._place_alone()
        self._room()

    def _take(self, worker: WorkerProcess, reports: Iterable[Report]) -> None:
        claims = worker.claims
        # A report may be of a job that was handed back when its process was killed: then the claim is gone.
        finished = [
            (claims.pop((report[0], report[1])), report) for report in reports if (report[0], report[1]) in claims
        ]
        for _, report in finished:
            self._ended[report[0]] += 1
            if worker.stops:
                worker.stops.pop((report[0], report[1]), None)
        if not claims:
            worker.alone = False
            self._place_alone()
        self._finished(finished)
        self._room()

    # --- stopping jobs ---

    def cancel(self, job_type: JobType, job_id: int) -> bool:
        """Stops one job if this node has it."""
        return self._stop({(job_type.index, job_id)}, "cancelled")

    def stop_all(self) -> None:
        """Asks every attempt to stop, to be released."""
        for worker in self._workers:
            self._stop(set(worker.claims), "released")

    def return_waiting(self) -> None:
        """Hands back everything that has not begun, and from now on what a claim on its way still brings."""
        self._draining = True
        waiting, self._alone = self._alone, collections.deque()
        self._finished([(claim, _release(key)) for key, claim, _ in waiting])
        for worker in self._workers:
            worker.send(("return",))

    def _stop(self, keys: set[Key], reason: str) -> bool:
        found = False
        for worker in self._workers:
            mine = [key for key in keys if key in worker.claims]
            if mine:
                found = True
                deadline = time.monotonic() + STOP_GRACE
                for key in mine:
                    worker.stops.setdefault(key, (deadline, reason))
                worker.send(("stop", mine, reason))
        return found

    def fence(self, lease: Lease) -> None:
        """The lease is over: kills whatever runs under it, at once. Others may have the jobs; nothing is reported."""
        self._alone = collections.deque(entry for entry in self._alone if entry[1].lease is not lease)
        for worker in self._workers:
            if any(claim.lease is lease for claim in worker.claims.values()):
                worker.kill(Kill("fenced", None))
                worker.claims.clear()

    def held(self, lease: Lease) -> dict[Key, Claim]:
        """What workers hold under this lease."""
        return {
            key: claim for worker in self._workers for key, claim in worker.claims.items() if claim.lease is lease
        } | {key: claim for key, claim, _ in self._alone if claim.lease is lease}

    def stop_lost(self, keys: set[Key]) -> None:
        """Stops jobs whose rows are gone or belong to somebody else."""
        self._stop(keys, "released")

    # --- watching over them ---

    def _check(self) -> None:
        now = time.monotonic()
        self._measure_rates(now)
        for worker in self._workers:
            worker.sample_memory()
            for key, (deadline, reason) in worker.stops.items():
                if now > deadline and key in worker.claims:
                    worker.kill(Kill(reason, key))
            self._check_timeouts(worker, now)

    def _check_timeouts(self, worker: WorkerProcess, now: float) -> None:
        """Kills a worker whose job overran its timeout and did not stop, or holds the loop for good."""
        holder = worker.notes.on_stack()
        turned = worker.notes.last_beat
        if turned and now - turned > BLOCKED and worker.claims:
            # Without a holder it is something that a job left on the loop, or the process is stopped: no job is to blame.
            worker.kill(Kill("blocked", (holder.type, holder.id) if holder is not None else None))
        for note in worker.notes.in_progress():
            timeout = self._types[note.type].timeout
            if timeout is not None and now > note.begun + timeout + STOP_GRACE:
                # Its neighbour may be to blame: one that holds the loop keeps everybody's timers from firing.
                blocked_by = holder is not None and (holder.type, holder.id) != (note.type, note.id)
                if blocked_by and now - turned > STOP_GRACE and holder is not None:
                    worker.kill(Kill("blocked", (holder.type, holder.id)))
                worker.kill(Kill("timed_out", (note.type, note.id)))

    def _measure_rates(self, now: float) -> None:
        """Jobs of each type begun and ended a second: up at once, down slowly."""
        elapsed = now - self._rated_at
        if elapsed < RATE_INTERVAL:
            return
        self._rated_at = now
        for index in self._rates.keys() | self._ended.keys():
            latest = self._ended.get(index, 0) / max(elapsed, 0.001)
            self._rates[index] = max(latest, self._rates.get(index, 0.0) * 0.8)
        self._ended.clear()


def _shares(rows: list[RawRow], free: list[int]) -> list[list[RawRow]]:
    """Deals rows out, best first: one to each worker in turn while it has a free slot, then evenly."""
    shares: list[list[RawRow]] = [[] for _ in free]
    room = [max(0, slots) for slots in free]
    position = 0
    while position < len(rows):
        open_places = [place for place, slots in enumerate(room) if slots] or list(range(len(free)))
        for place in open_places:
            if position == len(rows):
                break
            shares[place].append(rows[position])
            room[place] -= 1 if room[place] else 0
            position += 1
    return shares


def _release(key: Key) -> Report:
    """The report on a job that never began."""
    now = time.monotonic()
    return (*key, "not_started", "released", None, None, -1, 0, now, now)
