"""The one loop that every service of a coordinator runs in: tick, wait for the delay or a wake-up, again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import psycopg

from cluster import events
from cluster.coordinator.session import TransientDatabaseError

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


class Wakeup:
    """Ends a loop's wait early. Setting it while the loop works makes its next wait return at once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, timeout: float | None) -> None:
        """Until set, or for `timeout` seconds; None: until set."""
        if timeout is None:
            await self._event.wait()
        elif timeout > 0:
            timer = asyncio.get_running_loop().call_later(timeout, self._event.set)
            try:
                await self._event.wait()
            finally:
                timer.cancel()
        else:
            await asyncio.sleep(0)
        self._event.clear()


async def repeat(name: str, tick: Callable[[], Awaitable[float | None]], wakeup: Wakeup) -> None:
    """Lives until cancelled. tick returns the seconds to wait (None: until woken).

    While Postgres is away, ticks are retried with full jitter, so that many nodes do not come back in step. What is wrong with a
    statement belongs to its owner in `tick`; if none has taken it, it must not end the node either. Other errors do: they are ours.
    """
    pause = 0.0
    while True:
        try:
            delay = await tick()
        except (TransientDatabaseError, psycopg.Error) as error:
            if not pause:
                events.database_away(name, error)
            pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, pause * 2))
            await asyncio.sleep(random.uniform(0, pause))
        else:
            if pause:
                events.database_back(name)
                pause = 0.0
            await wakeup.wait(delay)
