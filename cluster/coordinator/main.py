"""One node from start to stop: builds the coordinator's parts, wires them, and ends them in the right order.

The order of a stop: stop claiming, drain to the deadline, write outcomes, release the rest, end the heartbeat, deregister.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import signal
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg
import uvloop
from psycopg import AsyncConnection

from cluster import events, metrics, migration, statements
from cluster.coordinator.backlog import Backlog
from cluster.coordinator.census import Census
from cluster.coordinator.claim import DEADLINE, Claimer
from cluster.coordinator.code_hash import code_hash
from cluster.coordinator.deletion_cost import deletion_cost
from cluster.coordinator.doorbell import Doorbell
from cluster.coordinator.failures import FailureSweeper
from cluster.coordinator.finish import Finisher
from cluster.coordinator.heartbeat import Heartbeat, Load
from cluster.coordinator.held_locks import HeldLocks
from cluster.coordinator.http import Health, serve
from cluster.coordinator.job_types import JobType, job_types
from cluster.coordinator.lease import Lease
from cluster.coordinator.loop import Wakeup, repeat
from cluster.coordinator.minutes import Minutes
from cluster.coordinator.placement import STOP_GRACE
from cluster.coordinator.pool import Pool
from cluster.coordinator.prune import Pruner
from cluster.coordinator.reconcile import Reconciler
from cluster.coordinator.recycle import Recycling
from cluster.coordinator.rescue import Rescuer
from cluster.coordinator.schedules import Scheduler
from cluster.coordinator.service_manager import ServiceManager
from cluster.coordinator.session import SETTINGS, Session, TransientDatabaseError, notice_silence
from cluster.coordinator.system_limits import reserve_files
from cluster.coordinator.trouble import Troubles
from cluster.coordinator.workload import Workload
from cluster.coordinator.workoff import Progress, WorkOff
from cluster.differences import differences
from cluster.errors import ClusterError, DatabaseUnreachableError, SchemaMisfitError
from cluster.identity import check_identity
from cluster.job import Job, definition
from cluster.job_shape import shape
from cluster.neighbours import check_neighbours
from cluster.privileges import check_privileges, quoted_table
from cluster.settings import Settings
from cluster.spawn import WorkerOptions

_VERSION = version("jobcluster")
LONGEST_CLAIM = DEADLINE + 1
"""Seconds from the stop of claiming until no claim can be under way."""
GARBAGE_THRESHOLD = 20_000
"""Objects that come before the garbage collector looks for cycles among them: a claim's worth of jobs have mostly gone by then, and
need no look."""
SHORTEST_TIMEOUT = 15_000
"""Milliseconds: a shorter timeout of the server's would end round trips that are only slow."""


def run_node(
    settings: Settings,
    job_classes: list[type[Job]],
    app_dir: Path,
    import_seconds: float,
    service_manager: ServiceManager,
    tell: Callable[[Progress], None] | None = None,
    *,
    attached: bool = False,
) -> int:
    """Runs one node until it is told to stop; returns the signal that told it. ClusterError: it can't start, or can't go on.

    import_seconds: that the import of the classes took: workers may take longer, but not for ever.
    tell: the node ends by itself once nothing is due, with signal 0, and tells how far it is; None: it goes on.
    attached: to a terminal, with which it ends.
    """
    with contextlib.suppress(AttributeError, OSError, RuntimeError):  # nobody reads stderr
        faulthandler.enable(
            all_threads=False
        )  # SIGABRT, from a watchdog, leaves the stack; others' may change meanwhile
    gc.freeze()  # what the imports have made stays
    gc.set_threshold(GARBAGE_THRESHOLD, 10, 10)
    reserve_files(settings.processes)
    check_database(settings, job_classes)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # what it warns of ends as an event of ours
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            node = Node(settings, job_classes, app_dir, import_seconds, service_manager, tell)
            return runner.run(node.run(attached=attached))
    except ExceptionGroup as group:
        known = group.subgroup(ClusterError)
        if known is None:
            raise
        raise _first(known) from group


def _first(group: ExceptionGroup[ClusterError]) -> ClusterError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, ExceptionGroup) else error


def check_database(settings: Settings, job_classes: list[type[Job]]) -> None:
    """Refuses to start on a database that does not fit, and says which job tables nobody here performs."""
    try:
        connection = psycopg.connect(
            settings.database_url, autocommit=True, connect_timeout=10, client_encoding="utf-8"
        )
    except psycopg.OperationalError as error:
        raise DatabaseUnreachableError(
            f"can't connect to Postgres: {str(error).strip().splitlines()[0]}; check CLUSTER_DATABASE_URL"
        ) from error
    with connection:
        try:
            migration.check_server(connection)
            migration.check_schema(connection, job_classes)
            check_neighbours(connection, [quoted_table(job_class) for job_class in job_classes])
            check_privileges(connection, job_classes)
            check_identity(connection)
            migration.check_complete(connection, job_classes)
            _check_pooled_settings(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise SchemaMisfitError(
                f"role {connection.info.user}: {error.diag.message_primary}; a node needs that"
            ) from error
        known = {cls.__name__ for cls in job_classes}
        rows = connection.execute(statements.statement("list_job_types")).fetchall()
        others = [table for name, _, table in rows if name not in known]
        if others:
            events.unroutable_tables(others)
        for found in differences(connection, job_classes):
            of_class = definition(found.job_class)
            events.table_differs(of_class.name, of_class.table, found.what, found.remedy)


def _check_pooled_settings(connection: psycopg.Connection[Any]) -> None:
    """What can't be set behind a pooler. SchemaMisfitError: nothing could be claimed."""
    row = connection.execute("SELECT pg_backend_pid(), quote_ident(current_user)").fetchone()
    assert row is not None
    pid, role = row
    if pid == connection.info.backend_pid:
        return
    rows = connection.execute("SELECT name, setting FROM pg_settings WHERE name = ANY (%s)", [list(SETTINGS)])
    for name, value in rows.fetchall():
        remedy = f"ALTER ROLE {role} SET {name} = '{SETTINGS[name]}'"
        if name == "default_transaction_read_only" and value == "on":
            raise SchemaMisfitError(f"{name} is on behind the pooler, and a node writes: {remedy}")
        if name == "default_transaction_isolation" and value != SETTINGS[name]:
            events.unsuitable_setting(name, value, remedy)
        elif name.endswith("_timeout") and 0 < int(value) < SHORTEST_TIMEOUT:
            events.unsuitable_setting(name, f"{value} ms", remedy)


class Node:
    """The coordinator's parts and how they hang together. Everything runs on one loop."""

    def __init__(
        self,
        settings: Settings,
        job_classes: list[type[Job]],
        app_dir: Path,
        import_seconds: float,
        service_manager: ServiceManager,
        tell: Callable[[Progress], None] | None,
    ) -> None:
        self._settings = settings
        self._types: list[JobType] = job_types(job_classes)
        self._by_name = [job_type.name for job_type in self._types]
        self._health = Health()
        self._service_manager = service_manager
        self._stops: list[int] = []
        """Signals that have asked for it."""
        self._stop = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._hangup = asyncio.Event()
        self._claims = Session(settings.read_database_url, "claim", setup=self._prepare_claims)
        self._finishes = Session(settings.read_database_url, "finish", setup=_prepare_planner)
        self._troubles = Troubles()
        queues = None if "*" in settings.queues else list(settings.queues)
        self._backlogs = [Backlog(job_type, queues, self._troubles, self._count_live_nodes) for job_type in self._types]
        self._doorbell = Doorbell(
            settings.read_direct_database_url, self._backlogs, self._ring, self._cancel, self._schedules,
            self._operators_changed,
        )  # fmt: skip
        self._finisher = Finisher(
            self._finishes, self._types, self._troubles, self._limit_freed, self._waits,
            names_all=settings.log_jobs == "all",
        )  # fmt: skip
        self._pool = Pool(
            self._worker_options(app_dir),
            settings.processes,
            Recycling.of(settings),
            settings.worker_memory,
            import_seconds,
            self._finisher.add,
            self._room,
            self._resized,
        )
        self._placement = self._pool.placement
        self._workload = Workload(self._types, settings.concurrency)
        self._claimer = Claimer(
            self._claims, self._backlogs, self._doorbell, self._placement, self._finisher, self._count_live_nodes,
            settings.poll_interval.total_seconds(),
        )  # fmt: skip
        self._heartbeat = Heartbeat(
            settings, _VERSION, code_hash(job_classes, app_dir), self._by_name, self._load,
            registered=self._registered, renewed=self._pool.renewed, fenced=self._fenced,
            deregistered=self._deregistered, told_to_drain=self._told_to_drain,
        )  # fmt: skip
        self._rescuer = Rescuer(self._heartbeat.session, self._finishes, self._troubles)
        self._held_locks = HeldLocks(self._heartbeat.session, self._types, self._troubles, self._count_live_nodes)
        self._reconciler = Reconciler(
            self._claims, self._types, self._troubles, self._placement, lambda: self._heartbeat.lease,
            self._finisher.claims, settings.heartbeat_interval.total_seconds(),
        )  # fmt: skip
        self._pruner = Pruner(self._finishes, self._troubles, settings.poll_interval.total_seconds())
        self._failure_sweeper = FailureSweeper(self._finishes, self._troubles, lambda: self._heartbeat.lease)
        self._deletion_cost = deletion_cost(settings.pod, lambda: self._placement.running)
        self._scheduler = Scheduler(
            self._finishes, settings.poll_interval.total_seconds(), lambda: self._doorbell.is_deaf,
            lambda: self._heartbeat.lease,
        )  # fmt: skip
        self._census = Census(self._finishes, self._troubles, lambda: self._heartbeat.lease)
        self._minutes = Minutes(self._finishes, lambda: self._heartbeat.lease)
        self._work_off = None if tell is None else WorkOff(
            self._claims, self._backlogs, queues, self._troubles, self._placement, self._finisher,
            lambda: self._health.ready, tell, self._stop.set,
        )  # fmt: skip
        metrics.show_at_zero({job_type.name: job_type.job_class.queue for job_type in self._types})
        metrics.slots.labels("busy").set_function(lambda: self._placement.running)
        metrics.slots.labels("free").set_function(lambda: max(0, self._pool.slots - self._placement.running))
        metrics.worker_memory.set_function(lambda: sum(self._pool.memory))
        metrics.largest_worker_memory.set_function(lambda: max(self._pool.memory, default=0))

    def _worker_options(self, app_dir: Path) -> WorkerOptions:
        return WorkerOptions(
            modules=self._settings.jobs, app_dir=app_dir, jobs=tuple(shape(job_type.job_class) for job_type in self._types),
            slots=self._settings.concurrency,
            log_format=self._settings.log_format, log_level=self._settings.log_level, parent=0, stacks="",
        )  # fmt: skip

    # --- life ---

    async def run(self, *, attached: bool = False) -> int:
        """Until a signal ends it, which it returns, or 0: there was nothing more to do."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_signal, number)
        if attached:
            loop.add_signal_handler(signal.SIGHUP, self._stop_signal, signal.SIGHUP)
        else:
            loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        server = serve(self._settings.http_host, self._settings.http_port, self._health)
        try:
            async with asyncio.TaskGroup() as services:
                beating = services.create_task(self._heartbeat.run())
                others = [
                    services.create_task(self._pool.run()),
                    services.create_task(self._turn()),
                    services.create_task(self._reload()),
                    services.create_task(repeat("finish", self._finisher.tick, self._finisher.wakeup)),
                    services.create_task(repeat("prune", self._pruner.tick, self._pruner.wakeup)),
                    services.create_task(repeat("sweep", self._failure_sweeper.tick, self._failure_sweeper.wakeup)),
                    services.create_task(repeat("claim", self._claimer.tick, self._claimer.wakeup)),
                    services.create_task(repeat("held_locks", self._held_locks.tick, Wakeup())),
                    services.create_task(repeat("doorbell", self._keep_listening, Wakeup())),
                    services.create_task(repeat("rescue", self._rescuer.tick, self._rescuer.wakeup)),
                    services.create_task(repeat("reconcile", self._reconciler.tick, self._reconciler.wakeup)),
                    services.create_task(repeat("schedules", self._scheduler.tick, self._scheduler.wakeup)),
                    services.create_task(repeat("minutes", self._minutes.tick, self._minutes.wakeup)),
                    services.create_task(repeat("census", self._census.tick, self._census.wakeup)),
                ]
                if self._work_off is not None:
                    others.append(services.create_task(repeat("work_off", self._work_off.tick, Wakeup())))
                if self._deletion_cost is not None:
                    others.append(services.create_task(repeat("deletion_cost", self._deletion_cost.tick, Wakeup())))
                await self._stop.wait()
                await self._drain()
                if self._work_off is not None and self._stops:
                    self._work_off.tell(is_over=False)
                for task in (*others, beating):
                    task.cancel()
        finally:
            self._pool.kill_all()
            await self._deregister()
            for session in (self._claims, self._finishes, self._heartbeat.session, self._doorbell):
                await session.close()
            if server is not None:
                server.close()
            self._service_manager.close()
        return self._stops[0] if self._stops else 0

    async def _turn(self) -> None:
        """Shows the probes that the loop turns, and tells of what the log has left out."""
        while True:
            self._health.turned_at = time.monotonic()
            self._health.ready = self._claimer.lease is not None and self._claimer.lease.valid and self._pool.is_ready
            self._service_manager.turned(self._status(), ready=self._health.ready)
            events.tell_left_out()
            await asyncio.sleep(0.5)

    def _status(self) -> str:
        """One line for people."""
        held = "it was told to drain" if self._heartbeat.is_told_to_drain else "it has no lease, or no worker"
        may_claim = "may claim" if self._health.ready else f"may not claim: {held}"
        reload_error = f"; the newest code can't be used: {self._pool.reload_error}" if self._pool.reload_error else ""
        return f"{self._placement.running} jobs on {self._pool.slots} slots; {may_claim}{reload_error}"

    async def _reload(self) -> None:
        """At each SIGHUP; at one more if any has come meanwhile."""
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._service_manager.reloading()
            await self._pool.reload()
            self._service_manager.reloaded()

    async def _drain(self) -> None:
        """Stops claiming, lets jobs end until the deadline or a second signal, then stops and releases the rest."""
        timeout = self._settings.shutdown_timeout.total_seconds()
        stopping = asyncio.create_task(self._claimer.stop())
        self._health.ready = False
        self._heartbeat.draining = True
        self._heartbeat.wakeup.set()
        events.node_draining(self._node, self._placement.running, timeout)
        self._service_manager.stopping(f"draining, {timeout:g} s at most; {self._placement.running} jobs run")
        deadline = time.monotonic() + timeout
        self._placement.close()
        with contextlib.suppress(TimeoutError):  # what a claim under way still brings goes back
            await asyncio.wait_for(asyncio.shield(stopping), min(timeout, LONGEST_CLAIM))
        await self._until_empty(timeout - STOP_GRACE - 1, self._stop_now)
        if self._placement.running:
            self._placement.stop_all()
            await self._until_empty(STOP_GRACE, None)
        self._pool.kill_all()
        await self._until_empty(5, None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(1.0, deadline - time.monotonic())):
                await stopping
                await self._finisher.drained()
                await self._release_unknown()
                with contextlib.suppress(TransientDatabaseError, psycopg.Error):
                    await self._minutes.tick()  # or each deploy would be a gap in the charts

    async def _release_unknown(self) -> None:
        """The answer to a claim may have been lost: nothing may be left running under this node's name."""
        lease = self._heartbeat.lease
        if lease is not None:
            with contextlib.suppress(TransientDatabaseError, psycopg.Error):
                await self._reconciler.release_unknown(lease)

    async def _until_empty(self, timeout: float, cut_short: asyncio.Event | None) -> None:
        deadline = time.monotonic() + timeout
        while self._placement.running and time.monotonic() < deadline and not (cut_short and cut_short.is_set()):
            await asyncio.sleep(0.02)

    async def _deregister(self) -> None:
        if self._finisher.waiting == 0:
            with contextlib.suppress(Exception):  # a row that says live is rescued; nothing depends on this
                await self._heartbeat.deregister()
        events.tell_left_out(all_of_them=True)
        events.node_stopped(self._node, self._finisher.ended.total(), self._finisher.ended["released"])

    @property
    def _node(self) -> str:
        lease = self._heartbeat.lease
        return str(lease.node) if lease is not None else "not registered"

    # --- what the parts tell each other ---

    def _stop_signal(self, number: int) -> None:
        self._stops.append(number)
        (self._stop if len(self._stops) == 1 else self._stop_now).set()

    async def _prepare_claims(self, connection: AsyncConnection[object]) -> None:
        await _prepare_planner(connection)
        self._reconciler.wakeup.set()  # an answer may have been lost with the connection before

    def _room(self) -> None:
        self._claimer.room()

    def _resized(self) -> None:
        self._heartbeat.wakeup.set()  # people see how many slots there are

    def _count_live_nodes(self) -> int:
        return self._rescuer.live_nodes

    def _limit_freed(self, job_type: JobType, keys: set[str]) -> None:
        self._claimer.limit_freed(job_type, keys)

    def _waits(self, job_type: JobType) -> float:
        return self._claimer.waits(job_type)

    def _schedules(self) -> None:
        self._scheduler.wakeup.set()

    def _ring(self) -> None:
        self._claimer.look_soon()

    def _registered(self, lease: Lease) -> None:
        events.node_started(
            str(lease.node), _VERSION, self._by_name, list(self._settings.queues), self._settings.processes
        )
        self._census.wakeup.set()
        self._scheduler.wakeup.set()
        self._may_claim()

    def _fenced(self, lease: Lease) -> None:
        if self._claimer.lease is lease:
            self._claimer.lease = None
        self._pool.fence(lease)

    def _may_claim(self) -> None:
        if not self._stop.is_set() and not self._heartbeat.is_told_to_drain:
            self._claimer.lease = self._heartbeat.lease
            self._claimer.ring()

    def _told_to_drain(self, told: bool) -> None:
        """It claims nothing more, finishes what runs, and stays, until it is told otherwise."""
        events.told_to_drain(self._node, self._placement.running, told=told)
        if told:
            self._claimer.lease = None
            self._claimer.look_soon()  # it leaves the watch to others
        else:
            self._may_claim()

    def _operators_changed(self) -> None:
        self._heartbeat.renew_soon()

    def _deregistered(self) -> None:
        self._rescuer.sweep_soon()

    def _cancel(self, table: int, job_id: int) -> None:
        """Anybody may say so: the row decides."""
        for job_type in self._types:
            if job_type.oid == table and self._placement.has(job_type, job_id):
                self._reconciler.look_at(job_type)

    def _load(self) -> Load:
        return Load(
            self._placement.running, self._pool.slots, self._doorbell.pid, self._troubles.listed(),
            self._workload.measure(),
        )  # fmt: skip

    async def _keep_listening(self) -> float:
        await self._doorbell.connect()
        return 1.0


async def _prepare_planner(connection: AsyncConnection[object]) -> None:
    """One plan for every hot statement, always on its index: they are written for that."""
    if connection.prepare_threshold is None:  # behind a pooler, settings would reach other clients' sessions
        row = await (await connection.execute("SHOW synchronous_commit")).fetchone()
        if row == ("off",):
            events.commits_not_durable()
        return
    await connection.execute("SET plan_cache_mode = force_generic_plan")
    await connection.execute("SET enable_seqscan = off")
    await connection.execute("SET jit = off")  # compiling them takes seconds, running them a millisecond
    await connection.execute("SET lock_timeout = '200ms'")
    await connection.execute("SET statement_timeout = '2s'")  # others wait no longer for a table's slow trigger
    await connection.execute("SET synchronous_commit = on")
    await notice_silence(connection)
