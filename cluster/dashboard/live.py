"""The overview, pushed: one look a second in this process, whatever the number of viewers, and none when nobody looks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

INTERVAL = 1.0
MOST_WAITING = 2
"""Events that a viewer may be behind; then it is sent away, and its browser comes back by itself."""


class Live:
    """look: makes the parts of one event, by what `watch` was given; raises nothing. One task, while there are viewers."""

    def __init__(self, look: Callable[[set[str]], Awaitable[dict[str, str]]]) -> None:
        self._look = look
        self._viewers: dict[asyncio.Queue[str | None], str] = {}
        self._task: asyncio.Task[None] | None = None

    @property
    def viewers(self) -> int:
        return len(self._viewers)

    async def watch(self, base: str) -> AsyncIterator[str]:
        """Server-sent events until the viewer goes, or is too slow."""
        queue: asyncio.Queue[str | None] = asyncio.Queue(MOST_WAITING)
        self._viewers[queue] = base
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._go())
        try:
            yield "retry: 3000\n\n"
            while (text := await queue.get()) is not None:
                yield _event(text)
        finally:
            self._viewers.pop(queue, None)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        for queue in list(self._viewers):
            self._drop(queue)

    async def _go(self) -> None:
        while self._viewers:
            parts = await self._look(set(self._viewers.values()))
            for queue, base in list(self._viewers.items()):
                if base not in parts:
                    continue
                if queue.full():
                    self._drop(queue)
                else:
                    queue.put_nowait(parts[base])
            await asyncio.sleep(INTERVAL)

    def _drop(self, queue: asyncio.Queue[str | None]) -> None:
        self._viewers.pop(queue, None)
        while not queue.empty():
            queue.get_nowait()
        queue.put_nowait(None)


def _event(text: str) -> str:
    return "".join(f"data: {line}\n" for line in text.splitlines()) + "\n"
