"""Where a supervisor keeps one node: it is replaced when it ends, at growing intervals, and when that is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cluster import events
from cluster.errors import ExitCode
from cluster.supervisor.node import Node

NOT_TRIED_AGAIN = {ExitCode.USAGE, ExitCode.JOBS_NOT_IMPORTABLE, ExitCode.SCHEMA_MISFIT}
"""Somebody must change something first."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
"""Seconds until a node that has ended is replaced; doubled each time."""
STEADY = 60.0
"""Seconds for which a node must have been ready if its end is to count as the first."""


class Place:
    """Owns the node that is there. start: makes one for it. changed: called when there is another node, or none.

    timeout: seconds after which a node that drains is killed.
    """

    def __init__(
        self, queues: str, start: Callable[[Place], Awaitable[Node]], changed: Callable[[], None], timeout: float
    ) -> None:
        self.queues = queues
        self.node: Node | None = None
        self.code = 0
        """The exit code for which no other node was started; 0: there is one, or will be."""
        self._start = start
        self._changed = changed
        self._timeout = timeout
        self._turn = asyncio.Lock()
        """Of those who put a node there."""
        self._filled = asyncio.Event()

    async def fill(self) -> Node:
        """Starts a node if there is none."""
        async with self._turn:
            if self.node is None:
                self._put(await self._start(self))
            assert self.node is not None
            return self.node

    async def renew(self) -> int:
        """Puts another node there, and drains the one before once that is ready.

        Returns 0, or the exit code of one that did not become ready: then the one before stays.
        """
        async with self._turn:
            node = await self._start(self)
            code = await node.failure()
            if code:
                return code
            before = self.node
            self._put(node)
        if before is not None:
            await before.drain(self._timeout)
        return 0

    async def keep(self) -> None:
        """Lives until cancelled."""
        pause = FIRST_PAUSE
        while True:
            await self._filled.wait()
            node = self.node
            assert node is not None
            code = await node.ended()
            if node is not self.node:
                continue  # it was renewed
            if node.ready_for >= STEADY:
                pause = FIRST_PAUSE
            self._leave(code if code in NOT_TRIED_AGAIN else 0)
            events.supervised_node_ended(node.entry.process.pid, code, None if self.code else pause)
            if not self.code:
                pause = await self._fill_after(pause)

    async def _fill_after(self, pause: float) -> float:
        """Returns the seconds until the next time."""
        while True:
            await asyncio.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)
            try:
                await self.fill()
            except OSError as error:
                events.node_not_started(str(error), pause)
            else:
                return pause

    def _put(self, node: Node) -> None:
        self.node, self.code = node, 0
        self._filled.set()
        self._changed()

    def _leave(self, code: int) -> None:
        self.node, self.code = None, code
        self._filled.clear()
        self._changed()
