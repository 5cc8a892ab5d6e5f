"""Performing a job here and now, without a row: for tests, consoles and scripts. Writes nothing.

Hooks run in the order in which a worker runs them; the attempt counts as the last one.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

from cluster.errors import ClusterError
from cluster.job import Job, definition


def perform_now(job: Job) -> Any:
    """What `perform` returns. Its error is raised here, after the hooks. An async job gets an event loop of its own."""
    job.attempt = 1
    if not definition(type(job)).is_async:
        return _perform(job)
    if _loop_is_running():
        raise ClusterError(
            f"perform_now of {type(job).__name__} was called inside a running event loop: "
            "write `await job.aperform_now()`"
        )
    return asyncio.run(_perform_async(job))


async def aperform_now(job: Job) -> Any:
    """As perform_now; a plain job runs in a thread, so that the event loop goes on."""
    job.attempt = 1
    if definition(type(job)).is_async:
        return await _perform_async(job)
    return await asyncio.to_thread(_perform, job)


def _perform(job: Any) -> Any:  # Any: perform is defined by the subclasses
    try:
        job.before_perform()
        value = job.perform()
    except BaseException as error:
        _call_logged(job, job.after_failure, error, True)
        raise
    else:
        _call_logged(job, job.after_success)
        return value
    finally:
        _call_logged(job, job.after_perform)


async def _perform_async(job: Any) -> Any:  # Any: perform is defined by the subclasses
    try:
        await _call(job.before_perform)
        value = await job.perform()
    except BaseException as error:
        await _call_logged_async(job, job.after_failure, error, True)
        raise
    else:
        await _call_logged_async(job, job.after_success)
        return value
    finally:
        await _call_logged_async(job, job.after_perform)


def _call_logged(job: Job, hook: Callable[..., Any], *arguments: Any) -> None:
    try:
        hook(*arguments)
    except Exception:  # the outcome of perform stands, whatever a hook does afterwards
        job.log.exception("hook failed", hook=hook.__name__)


async def _call_logged_async(job: Job, hook: Callable[..., Any], *arguments: Any) -> None:
    try:
        await _call(hook, *arguments)
    except Exception:  # the outcome of perform stands, whatever a hook does afterwards
        job.log.exception("hook failed", hook=hook.__name__)


async def _call(hook: Callable[..., Any], *arguments: Any) -> None:
    """An async job may have plain hooks."""
    result = hook(*arguments)
    if inspect.isawaitable(result):
        await result


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
