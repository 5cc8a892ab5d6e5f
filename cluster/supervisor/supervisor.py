"""Keeps the nodes of `cluster start` running, replaces them one by one when asked, and ends them together.

SIGTERM: stop; a second one: without waiting for jobs. SIGHUP: restart. Writes state.json of the run folder.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from itertools import count

from cluster import events
from cluster.container import worker_processes
from cluster.settings import Settings
from cluster.supervisor.node import Node
from cluster.supervisor.place import Place
from cluster.supervisor.run_folder import Process, RunFolder, State

GRACE = 10.0
"""Seconds beyond its drain after which a node is killed."""


class Supervisor:
    """layout: the queues of each place, empty: those of the settings. ready: called for each node that is, at the start."""

    def __init__(self, folder: RunFolder, layout: Sequence[str], settings: Settings, ready: Callable[[], None]) -> None:
        self._folder = folder
        self._settings = settings
        self._ready = ready
        self._timeout = settings.shutdown_timeout.total_seconds() + GRACE
        self._state = State(Process.of(os.getpid()), len(layout), self._timeout)
        self._places = [Place(queues, self._start, self._tell, self._timeout) for queues in layout]
        self._nodes: list[Node] = []
        """All that have not ended, those included that are to take a place, or have left it."""
        self._stop, self._stop_now, self._restart = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._code = 0

    async def run(self) -> int:
        """Until a signal, or the end of all its nodes for good. The exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop_signal)
        loop.add_signal_handler(signal.SIGHUP, self._restart.set)
        try:
            self._tell()
            await self._work()
        finally:
            await self._end_all()
            self._folder.clear()
        return self._code

    async def _work(self) -> None:
        starting = asyncio.create_task(self._start_all())
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return
        if not starting.result():
            return
        events.supervisor_started(len(self._places))
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(place.keep()) for place in self._places]
            loops.append(group.create_task(self._restart_when_asked()))
            await stopping
            for loop in loops:
                loop.cancel()

    def _stop_signal(self) -> None:
        (self._stop_now if self._stop.is_set() else self._stop).set()

    # --- the start ---

    async def _start_all(self) -> bool:
        """Whether all are ready. The first that can't start ends the others."""
        nodes = [await place.fill() for place in self._places]
        for failing in asyncio.as_completed([node.failure() for node in nodes]):
            self._code = await failing
            if self._code:
                return False
            self._ready()
        return True

    async def _start(self, place: Place) -> Node:
        port = self._free_port()
        environment = dict(os.environ) | self._address(port) | self._share()
        if place.queues:
            environment["CLUSTER_QUEUES"] = place.queues
        node = await Node.start(environment, place.queues, port)
        self._nodes.append(node)
        self._tell()
        return node

    def _free_port(self) -> int:
        """The first that no node of ours has, from the configured one on. A restart needs one more than there are nodes."""
        first = self._settings.http_port
        taken = {node.entry.http_port for node in self._nodes if not node.has_ended}
        return next(port for port in count(first) if port not in taken) if first else 0

    def _address(self, port: int) -> dict[str, str]:
        """A Unix socket gets a number as well."""
        host, offset = self._settings.http_host, port - self._settings.http_port
        numbered = f"{host}.{offset}" if host.startswith("/") and offset else host
        return {"CLUSTER_HTTP_HOST": numbered, "CLUSTER_HTTP_PORT": str(port)}

    def _share(self) -> dict[str, str]:
        """The nodes share the CPUs, unless somebody has said how many processes a node is to have."""
        sources = {variable: source for variable, _, source, _ in self._settings.describe()}
        if sources["CLUSTER_PROCESSES"] != "default":
            return {}
        return {"CLUSTER_PROCESSES": str(max(1, worker_processes() // len(self._places)))}

    # --- what is told ---

    def _tell(self) -> None:
        """Who is there now. With the last place that is given up, all ends: nobody should take it for running."""
        self._nodes = [node for node in self._nodes if not node.has_ended]
        self._state.nodes = [node.entry for node in self._nodes]
        try:
            self._folder.write(self._state)
        except OSError as error:  # a full disk must not end nodes
            events.state_not_written(str(error))
        codes = [place.code for place in self._places]
        if all(codes):
            self._code = codes[0]
            self._stop.set()

    # --- the restart ---

    async def _restart_when_asked(self) -> None:
        """Lives until cancelled."""
        while True:
            await self._restart.wait()
            self._restart.clear()
            self._state.renewed, self._state.restart_code = 0, 0
            self._tell()
            for place in self._places:
                self._state.restart_code = await place.renew()
                if self._state.restart_code:
                    break
                self._state.renewed += 1
                self._tell()
            events.nodes_restarted(self._state.renewed, self._state.restart_code)
            self._state.restarts += 1
            self._state.renewed = None
            self._tell()

    # --- the end ---

    async def _end_all(self) -> None:
        """All at once; a second signal makes them give back what runs."""
        left = [node for node in self._nodes if not node.has_ended]
        hurrying = asyncio.create_task(self._hurry())
        await asyncio.gather(*(node.drain(self._timeout) for node in left))
        hurrying.cancel()
        events.supervisor_stopped(self._code)

    async def _hurry(self) -> None:
        await self._stop_now.wait()
        for node in self._nodes:
            node.signal(signal.SIGTERM)
