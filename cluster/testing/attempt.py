"""Attempts in the thread of a test, also where a loop runs."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from cluster.worker.perform import Attempt, Verdict

T = TypeVar("T")


def attempted(attempt: Attempt) -> Verdict:
    """In a context of its own, so that nothing of it stays in the test's."""
    context = contextvars.copy_context()
    if attempt.performer.definition.is_async:
        return context.run(complete, partial(_perform_async, attempt))
    timeout = attempt.performer.timeout
    timer = threading.Timer(timeout or 0.0, attempt.stop, ["timed_out"])
    if timeout is not None:
        timer.start()
    try:
        return context.run(attempt.perform_plain)
    finally:
        timer.cancel()


async def _perform_async(attempt: Attempt) -> Verdict:
    loop, task, timeout = asyncio.get_running_loop(), asyncio.current_task(), attempt.performer.timeout
    assert task is not None
    timer = None if timeout is None else loop.call_later(timeout, attempt.stop, "timed_out")
    try:
        return await attempt.perform(task)
    finally:
        if timer is not None:
            timer.cancel()


def complete(make: Callable[[], Awaitable[T]]) -> T:
    """Awaits on a loop of its own; in a thread where this one has a loop that runs."""

    async def awaited() -> T:
        return await make()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(awaited())
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(awaited()))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=[run])
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
