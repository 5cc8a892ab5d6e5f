"""The worker processes of a node: starts and replaces them, watches over them, and passes on what they say.

Which of them gets a job is the placement's matter.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from cluster import events, metrics
from cluster.coordinator.claims import Outcome
from cluster.coordinator.crash import Death, outcomes_after
from cluster.coordinator.forkserver import Forkserver
from cluster.coordinator.job_metrics import JobMetrics
from cluster.coordinator.lease import Lease
from cluster.coordinator.placement import STOP_GRACE, Placement
from cluster.coordinator.process import Kill, WorkerProcess
from cluster.coordinator.recycle import Recycling
from cluster.coordinator.system_limits import explained
from cluster.error_text import LONGEST_LINE, shorten
from cluster.errors import ClusterError, ExitCode
from cluster.frames import (
    FrameError,
    read_changes,
    read_examples,
    read_reports,
    read_series,
    read_successes,
    read_tickets,
)
from cluster.groups import Orphans
from cluster.spawn import WorkerOptions

BLOCKED = 30.0
"""Seconds without a turn of a worker's loop after which the job that holds it is taken for hung."""
HOLDS_LOOP = 1.5
"""Seconds without a turn, of which there is one each second, after which the log names the job that holds the loop."""
CHECK_INTERVAL, IDLE_CHECK_INTERVAL = 0.25, 1.0
LAST_STACKS = 1.0
"""Seconds that a process which is to be killed has to write down where its threads are."""
FORGOTTEN = 2 * LAST_STACKS
"""Seconds after which it was not killed after all: there was no reason any more."""
ROOM_FOR_JOBS = 64 * 2**20
"""Bytes that a worker may at least grow by, if the imports alone take as much memory as it is allowed."""
BOOT_DEADLINE = 30.0
"""Seconds that a worker has to come up, or five times what the coordinator's own imports took."""
BOOT_FAILURES = 3
FIRST_BOOT_PAUSE, LONGEST_BOOT_PAUSE = 0.5, 60.0


class WorkerBootError(ClusterError):
    """Worker processes die, or hang, before they can perform anything."""


class WorkerImportError(WorkerBootError):
    """They do so while they import a job module."""

    exit_code = ExitCode.JOBS_NOT_IMPORTABLE


class Pool:
    """Worker processes.

    finished: called with the outcomes of one frame; room: when a slot is free; resized: when there are more slots, or fewer.
    import_seconds: that the coordinator's own import of the job modules took. memory: bytes that a worker may have; None: any.
    """

    def __init__(
        self,
        options: WorkerOptions,
        processes: int,
        recycling: Recycling,
        memory: int | None,
        import_seconds: float,
        finished: Callable[[list[Outcome]], None],
        room: Callable[[], None],
        resized: Callable[[], None],
    ) -> None:
        self._options = options
        self._processes = processes
        self._recycling = recycling
        self._memory = memory
        self._resized = resized
        self._boot_deadline = max(BOOT_DEADLINE, 5 * import_seconds)
        self._workers: list[WorkerProcess] = []
        self._forkserver = Forkserver(options, processes)
        self._older: list[Forkserver] = []
        """Of code that was loaded before, as long as they have workers."""
        self._lease: Lease | None = None
        self.reload_error = ""
        """Why the newest code can't be used; empty: it is."""
        self.placement = Placement(self._workers, finished, room)
        self._job_metrics = JobMetrics(metrics.registry)
        self._orphans = Orphans()
        self._boot_failures = 0
        """Since a worker last came up."""
        self._is_stopping = False

    # --- life ---

    async def run(self) -> None:
        """Keeps the processes running and watches over them. Lives until cancelled."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self._processes):
                group.create_task(self._keep_worker())
            while True:
                await asyncio.sleep(CHECK_INTERVAL if self.placement.running else IDLE_CHECK_INTERVAL)
                self._check(time.monotonic())

    async def _keep_worker(self) -> None:
        """One place in the pool: a worker, and its successor when it ends."""
        failures = 0
        while not self._is_stopping:
            try:
                worker = WorkerProcess(self._options, self._forkserver, self._receive)
                async with asyncio.timeout(self._boot_deadline):
                    await worker.start()
            except (OSError, EOFError) as error:
                failures += 1
                why = explained(error) if isinstance(error, OSError) else ""
                await self._boot_failed("", failures, hung=isinstance(error, TimeoutError), why=why)
                continue
            self._workers.append(worker)
            await worker.ended
            self._workers.remove(worker)
            self._bury(worker)
            if worker.is_up:
                failures = 0
            elif not self._is_stopping:
                failures += 1
                await self._boot_failed(worker.importing, failures, hung=worker.kill_reason == HUNG, why=worker.unfit)

    async def _boot_failed(self, importing: str, failures: int, *, hung: bool, why: str = "") -> None:
        """failures: of this place in the pool, in a row. why: what the system, or the worker, has said; empty: nothing.

        One that hangs has taken its time: if all do, none gets another try.
        """
        self._boot_failures += 1
        module = importing or ("" if why else self._forkserver.importing)
        events.worker_boot_failed(self._boot_failures, module, why, hung=hung)
        if not self.is_ready and self._boot_failures >= (1 if hung or why else BOOT_FAILURES) * self._processes:
            raise self._boot_error(module, why, hung=hung)
        await asyncio.sleep(min(LONGEST_BOOT_PAUSE, FIRST_BOOT_PAUSE * 2.0 ** (failures - 1)))

    def _boot_error(self, module: str, why: str, *, hung: bool) -> WorkerBootError:
        if why:
            return (WorkerImportError if module else WorkerBootError)(f"can't start worker processes: {why}")
        if hung and module:
            return WorkerImportError(
                f"can't import {module} in a worker process: it has not come back for {self._boot_deadline:g} s;"
                " an import must not wait for anything"
            )
        if module:
            return WorkerImportError(f"can't import {module}: it ends its worker process; see the lines above")
        return WorkerBootError("worker processes end before they can perform anything: see the lines above")

    def kill_all(self) -> None:
        """Ends the processes; what they still had is released."""
        self._is_stopping = True
        for worker in self._workers:
            worker.kill(Kill("released", None))

    def _bury(self, worker: WorkerProcess) -> None:
        if worker.kill_reason is None and worker.is_orphaned:
            worker.kill_reason = Kill("forkserver_died", None)
        cause, kill = worker.cause_of_death(), worker.kill_reason
        reason = "crashed" if kill is None else kill.reason
        begun = worker.notes.in_progress()
        performing = [worker.claims[note.ticket] for note in begun if note.ticket in worker.claims]
        jobs = [f"{claim.job_type.name} {claim.id}" for claim in performing]
        told = "stopped" if kill == Kill("released", None) else reason
        events.worker_ended(worker.pid, told, cause, jobs, len(worker.claims))
        outcomes = outcomes_after(Death(worker.claims, begun, cause, kill))
        worker.claims.clear()
        self._job_metrics.forget(worker)
        self.placement.lost(outcomes)
        self._resized()

    @property
    def slots(self) -> int:
        """Jobs that the workers which are up can perform at once."""
        return sum(worker.is_up for worker in self._workers) * self._options.slots

    @property
    def is_ready(self) -> bool:
        """A worker is up."""
        return any(worker.is_up for worker in self._workers)

    def renewed(self, lease: Lease) -> None:
        """The kernel is to end the workers when this lease is over."""
        self._lease = lease
        for found in (self._forkserver, *self._older):
            found.fence(lease)

    @property
    def memory(self) -> list[int]:
        """Resident bytes of each worker, when last seen."""
        return [worker.memory for worker in self._workers]

    def fence(self, lease: Lease) -> None:
        """The lease is over: kills whatever runs under it, at once. Others may have the jobs; nothing is told of them."""
        self.renewed(lease)
        self.placement.forget(lease)
        for worker in self._workers:
            if any(claim.lease is lease for claim in worker.claims.values()):
                worker.kill(Kill("fenced", None))
                worker.claims.clear()

    # --- new code ---

    async def reload(self) -> None:
        """Imports the job modules anew, in a forkserver of their own. If that works, workers are replaced after their jobs, one by
        one; else all goes on as it was."""
        made = Forkserver(self._options, self._processes)
        if self._lease is not None:
            made.fence(self._lease)
        classes, self.reload_error = await self._try(made)
        if self.reload_error:
            events.reload_failed(self.reload_error)
            self._older.append(made)
        else:
            events.reloaded(sorted({*classes}.difference(job["name"] for job in self._options.jobs)))
            self._older.append(self._forkserver)
            self._forkserver = made

    async def _try(self, forkserver: Forkserver) -> tuple[list[str], str]:
        """The job classes that a worker of it finds, and why it can't be used; empty: it can."""
        worker = WorkerProcess(self._options, forkserver, self._receive)
        try:
            async with asyncio.timeout(self._boot_deadline):
                await worker.start()
                while not (worker.is_up or worker.ended.done()):
                    await asyncio.wait([worker.ended], timeout=0.05)
            if worker.is_up:
                worker.kill(RECYCLED)
                await worker.ended
                return worker.classes, ""
        except TimeoutError:
            if worker.pid:
                worker.kill(HUNG)
            module = worker.importing or forkserver.importing or "an import"
            return [], f"{module} has not come back for {self._boot_deadline:g} s"
        except (OSError, EOFError) as error:
            ended = f"importing {forkserver.importing or 'the job modules'} ended the process"
            return [], (explained(error) if isinstance(error, OSError) else "") or ended
        finally:
            self._job_metrics.forget(worker)
        return [], worker.unfit or f"importing {worker.importing} ended the process: {worker.cause_of_death()}"

    def _retire(self) -> None:
        """Ends forkservers without workers."""
        for found in [old for old in self._older if all(worker.forkserver is not old for worker in self._workers)]:
            self._older.remove(found)
            asyncio.get_running_loop().run_in_executor(None, found.stop)

    # --- what workers say ---

    def _receive(self, worker: WorkerProcess, frame: Sequence[Any]) -> None:
        match frame:
            case ("succeeded", floats):
                self.placement.succeeded(worker, read_successes(floats))
            case ("done", reports):
                self.placement.took(worker, read_reports(reports))
            case ("returned", tickets):
                self.placement.returned(worker, read_tickets(tickets))
            case ("exemplars", examples):
                for example in read_examples(examples):
                    metrics.exemplify(*example)
            case ("metrics", series, changes):
                self._job_metrics.take(worker, read_series(series), read_changes(changes))
            case ("importing", str(module)) if not worker.is_up:
                worker.importing = module[:200]
            case ("unfit", str(why)) if not worker.is_up:
                worker.unfit = shorten(why, LONGEST_LINE)
            case ("ready", int(threads), list(classes)) if not worker.is_up:
                worker.classes = [shorten(str(name), LONGEST_LINE) for name in classes]
                self._greet(worker, threads)
            case _:
                raise FrameError("an unknown frame")

    def _greet(self, worker: WorkerProcess, forkserver_threads: int) -> None:
        worker.is_up = True
        self._resized()
        worker.sample(time.monotonic())  # a job may end the process before the next check
        self._make_room(worker)
        self._boot_failures = 0
        events.worker_started(worker.pid, time.monotonic() - worker.started_at)
        if forkserver_threads > 1 and worker.forkserver.preloads:
            events.preloading_stopped(forkserver_threads)
            worker.forkserver.stop_preloading()
        self.placement.came_up()

    # --- watching over them ---

    def _check(self, now: float) -> None:
        self.placement.give_back_stale(now)
        self._orphans.reap({found.pid for found in (self._forkserver, *self._older)})
        self._retire()
        self._recycle(now)
        for worker in self._workers:
            worker.sample(now)
            if not worker.is_up and now - worker.started_at > self._boot_deadline:
                worker.kill(HUNG)
            if worker.is_leaving and not worker.claims:
                worker.kill(RECYCLED)
            self._check_memory(worker)
            self._check_stops(worker, now)
            self._check_timeouts(worker, now)
            self._tell_of_blocked(worker, now)

    def _recycle(self, now: float) -> None:
        """One at a time, once all others are up: they take what this one does not."""
        all_up = len(self._workers) == self._processes and all(worker.is_up for worker in self._workers)
        found = self._recycling.due(self._workers, self._forkserver, now) if all_up else None
        if found is not None:
            worker, reason = found
            worker.is_leaving, worker.leaving_since = True, now
            worker.send(("return", None))  # others may begin it at once
            events.worker_recycled(worker.pid, reason)

    def _tell_of_blocked(self, worker: WorkerProcess, now: float) -> None:
        """Names a job that holds the loop of its worker, with its stack: its neighbours wait."""
        if worker.doomed is not None and now < worker.doomed[1] + FORGOTTEN:
            return  # the stacks are for the row
        holder, blocked = worker.notes.on_stack(), now - worker.notes.last_beat
        claim = worker.claims.get(holder.ticket) if holder is not None and blocked > HOLDS_LOOP else None
        if claim is None or holder is None:
            return
        if worker.blocked_ticket != holder.ticket:
            worker.blocked_ticket = holder.ticket
            worker.stacks.ask(worker.pid)
        elif stacks := worker.stacks.read():
            worker.stacks.forget()
            events.job_holds_loop(claim.job_type.name, claim.id, blocked, len(worker.claims) - 1, stacks)

    def _make_room(self, worker: WorkerProcess) -> None:
        """If the imports alone take what a worker may have, none could perform anything."""
        least = worker.memory + ROOM_FOR_JOBS
        if self._memory is not None and self._memory < least:
            events.worker_memory_too_small(self._memory, worker.memory, least)
            self._memory = least

    def _check_memory(self, worker: WorkerProcess) -> None:
        """Kills a worker that has too much. One job in progress: it is to blame. Several: each runs alone. None: it is replaced."""
        if self._memory is None or worker.memory <= self._memory:
            return
        begun = [note.ticket for note in worker.notes.in_progress() if note.ticket in worker.claims]
        had, allowed = (f"{number / 2**20:,.0f} MiB" for number in (worker.memory, self._memory))
        detail = f"it had {had} of memory, and CLUSTER_WORKER_MEMORY allows {allowed}"
        worker.kill(Kill("memory", begun[0] if len(begun) == 1 else None, detail) if begun else RECYCLED)

    def _end(self, worker: WorkerProcess, kill: Kill, now: float) -> None:
        """Kills it once it has written down where its threads are, as long as there is still reason to. The first reason stands."""
        first, since = worker.doomed or (kill, -FORGOTTEN)
        if not _has_a_thread(worker, kill.ticket):
            worker.kill(kill)
        elif now > since + FORGOTTEN or first.ticket not in worker.claims:
            worker.doomed = kill, now
            worker.stacks.ask(worker.pid)
        elif (stacks := worker.stacks.read()) or now > since + LAST_STACKS:
            worker.kill(first._replace(detail=stacks))

    def _check_stops(self, worker: WorkerProcess, now: float) -> None:
        """Kills a worker whose job was told to stop and did not. One that has not begun goes back when the worker gets to it."""
        if not worker.stops:
            return
        begun = {note.ticket for note in worker.notes.in_progress()}
        for ticket, (deadline, reason) in list(worker.stops.items()):
            if ticket not in worker.claims:
                del worker.stops[ticket]
            elif now > deadline and ticket in begun:
                self._end(worker, Kill(reason, ticket), now)

    def _check_timeouts(self, worker: WorkerProcess, now: float) -> None:
        """Kills a worker whose job overran its timeout and did not stop, or holds the loop for good."""
        holder = worker.notes.on_stack()
        turned = worker.last_sign
        if turned and now - turned > BLOCKED and worker.claims:
            # Without a holder it is something that a job left on the loop, or the process is stopped: no job is to blame.
            self._end(worker, Kill("blocked", holder.ticket if holder is not None else None), now)
        for note in worker.notes.in_progress():
            claim = worker.claims.get(note.ticket)
            timeout = claim.job_type.timeout if claim is not None else None
            if timeout is not None and now > note.begun + timeout + STOP_GRACE:
                # Its neighbour may be to blame: one that holds the loop keeps everybody's timers from firing.
                if holder is not None and holder.ticket != note.ticket and now - turned > STOP_GRACE:
                    self._end(worker, Kill("blocked", holder.ticket), now)
                self._end(worker, Kill("timed_out", note.ticket), now)


def _has_a_thread(worker: WorkerProcess, ticket: int | None) -> bool:
    """An async job that waits has none: stacks would not show it."""
    claim, holder = worker.claims.get(ticket or 0), worker.notes.on_stack()
    return claim is not None and (
        not claim.job_type.definition.is_async or (holder is not None and holder.ticket == ticket)
    )


HUNG = Kill("hung", None)
RECYCLED = Kill("recycled", None)
