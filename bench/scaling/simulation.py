"""One load through the model: jobs, nodes, and the wanted number of nodes as the database works it out."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import psycopg

from bench.scaling.autoscaler import Autoscaler, Rules
from bench.scaling.loads import Load
from cluster.coordinator.workload import TypeWork

BOOT = 20
"""Seconds from asking for a pod until its node may claim, its image being there."""
HEARTBEAT = 5
START_WITHIN = 30.0


@dataclass
class Seen:
    """One value a second, and of each job type the seconds from arrival to start, in order of the starts."""

    wanted: list[float] = field(default_factory=list)
    replicas: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    delays: dict[str, list[float]] = field(default_factory=dict)

    @property
    def turns(self) -> int:
        """How often the number of replicas changed its direction."""
        steps = [after - before for before, after in itertools.pairwise(self.replicas)]
        signs = [step > 0 for step in steps if step]
        return sum(before != after for before, after in itertools.pairwise(signs))

    def within(self, job_type: str, seconds: float) -> float:
        """The part of the jobs that started so soon."""
        delays = self.delays[job_type]
        return sum(delay <= seconds for delay in delays) / len(delays)


class _Jobs:
    """All nodes as one: jobs begin in the order of arrival while there are slots and their type is below its limit. A node that
    goes claims nothing more, and its jobs go on."""

    def __init__(self, load: Load) -> None:
        self.waiting: dict[str, deque[tuple[float, float]]] = {a.job_type: deque() for a in load.arrivals}
        self.running = Counter[str]()
        self.delays: dict[str, list[float]] = {name: [] for name in self.waiting}
        self.ended: dict[str, tuple[int, float]] = dict.fromkeys(self.waiting, (0, 0.0))
        self._limits = load.limits
        self._ends: list[tuple[float, str, float]] = []
        self._to_come = deque(load.arrivals)

    def pass_until(self, second: float, slots: int) -> None:
        """Everything that happens up to then."""
        self._begin(second - 1, slots)
        while True:
            arrival = self._to_come[0].at if self._to_come else math.inf
            end = self._ends[0][0] if self._ends else math.inf
            now = min(arrival, end)
            if now >= second:
                return
            if arrival <= end:
                job = self._to_come.popleft()
                self.waiting[job.job_type].append((job.at, job.seconds))
            else:
                _, job_type, seconds = heapq.heappop(self._ends)
                self.running[job_type] -= 1
                count, total = self.ended[job_type]
                self.ended[job_type] = count + 1, total + seconds
            self._begin(now, slots)

    def _begin(self, now: float, slots: int) -> None:
        while self.running.total() < slots:
            open_types = [
                name for name, queue in self.waiting.items()
                if queue and self.running[name] < self._limits.get(name, math.inf)
            ]  # fmt: skip
            if not open_types:
                return
            job_type = min(open_types, key=lambda name: self.waiting[name][0])
            arrived, seconds = self.waiting[job_type].popleft()
            self.delays[job_type].append(now - arrived)
            self.running[job_type] += 1
            heapq.heappush(self._ends, (now + seconds, job_type, seconds))


class _Nodes:
    """Those that the Deployment has asked for: each takes a while to come, and none to go. least: that there are at the start."""

    def __init__(self, least: int) -> None:
        self.ready = least
        self._coming: deque[int] = deque()

    def follow(self, second: int, replicas: int) -> None:
        while self._coming and self._coming[0] <= second:
            self._coming.popleft()
            self.ready += 1
        while self.ready + len(self._coming) < replicas:
            self._coming.append(second + BOOT)
        while self.ready + len(self._coming) > replicas:
            if self._coming:
                self._coming.pop()
            else:
                self.ready -= 1


def simulate(connection: psycopg.Connection[Any], rules: Rules, load: Load) -> Seen:
    """connection: to a database with schema cluster."""
    seen, jobs, nodes = Seen(), _Jobs(load), _Nodes(rules.least)
    autoscaler = Autoscaler(rules, rules.least)
    told = {name: TypeWork(name, 1) for name in jobs.waiting}
    wanted = 0.0
    for second in range(load.until):
        jobs.pass_until(second, nodes.ready * load.slots)
        if second % HEARTBEAT == 0:
            for name, work in told.items():
                work.ended(*jobs.ended[name])
            wanted = _wanted(connection, load, jobs, told)
        autoscaler.step(second, wanted)
        nodes.follow(second, autoscaler.replicas)
        seen.wanted.append(wanted)
        seen.replicas.append(autoscaler.replicas)
        seen.nodes.append(nodes.ready)
        seen.waiting.append(sum(map(len, jobs.waiting.values())))
        seen.running.append(jobs.running.total())
    seen.delays = jobs.delays
    return seen


_WANTED = """
SELECT cluster.wanted_replicas(sum(cluster.wanted_slots(waiting, running, seconds, 1, places, %(start_within)s)), %(slots)s)
FROM unnest(%(waiting)s::float8[], %(running)s::float8[], %(seconds)s::float8[], %(places)s::float8[])
     AS job_type (waiting, running, seconds, places)
"""


def _wanted(connection: psycopg.Connection[Any], load: Load, jobs: _Jobs, told: dict[str, TypeWork]) -> float:
    """As cluster.autoscaling has it."""
    says = {name: work.told() for name, work in told.items()}
    row = connection.execute(
        _WANTED,
        {
            "waiting": [float(len(queue)) for queue in jobs.waiting.values()],
            "running": [float(jobs.running[name]) for name in told],
            "seconds": [float(says[name]["seconds"]) or 1.0 for name in told],
            "places": [float(load.limits[name]) if name in load.limits else None for name in told],
            "start_within": START_WITHIN,
            "slots": float(load.slots),
        },
    ).fetchone()
    assert row is not None
    return float(row[0])
