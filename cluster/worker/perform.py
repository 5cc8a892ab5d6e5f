"""One attempt of one job: hooks, `perform`, and the verdict on how it went. No SQL; a failed job is data here.

before_perform -> perform -> after_success | after_failure -> after_perform
"""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import inspect
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import pydantic
import structlog

from cluster.backoff import LONGEST_DELAY, seconds_after
from cluster.configuration import failure_handler
from cluster.error_text import describe, shorten
from cluster.frames import LONGEST_SAID
from cluster.job import Definition, Job, definition, explain, validate_fields
from cluster.outcomes import Cancel, Fail, Next, Snooze
from cluster.secret import mask
from cluster.tracing import begin_span, end_span, is_used, trace_id

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger("cluster.worker")

_JOB_TYPE, _JOB_ID, _ATTEMPT = (
    token.var
    for token in contextvars.Context()
    .run(structlog.contextvars.bind_contextvars, job_type="", job_id=0, attempt=0)
    .values()
)
"""What `bind_contextvars` sets, at a quarter of the time."""
_THREADS = threading.Lock()
"""Guards the thread of every attempt: outside of it no StopRequested may be sent, or it would hit the runner's own code."""


class StopRequested(BaseException):
    """Raised inside a plain job when its time is up, or it was cancelled or released."""


class Verdict(NamedTuple):
    """How an attempt ended. status: for the row. outcome: for the metrics. delay: seconds until the next attempt, None: none
    or at once. error: for last_error, None: stays. attempts: change of attempts_count. said: of its schedule, None: nothing."""

    status: str
    outcome: str
    delay: float | None = None
    error: str | None = None
    attempts: int = 0
    said: str | None = None

    def of_report(self) -> tuple[Any, ...]:
        """The fields of a report between its ticket and its times: no verdict changes crashes_count."""
        return (*self[:5], 0)


SUCCEEDED = Verdict("succeeded", "succeeded")
RELEASED = Verdict("not_started", "released", attempts=-1)
CANCELLED = Verdict("cancelled", "cancelled", error="cancelled on request")


@dataclass(frozen=True)
class Performer:
    """A job class as a worker uses it."""

    job_class: type[Job]
    definition: Definition
    timeout: float | None
    max_attempts: int
    is_in_main: bool
    """Its jobs have a process to themselves, and are performed in its main thread."""

    @classmethod
    def of(cls, job_class: type[Job]) -> Performer:
        timeout = job_class.timeout.total_seconds() if job_class.timeout is not None else None
        made = definition(job_class)
        is_in_main = not made.is_async and job_class.isolation == "process"
        return cls(job_class, made, timeout, max(1, job_class.max_attempts), is_in_main)

    def build(self, values: Sequence[Any]) -> Job:
        """The job of a row, from the values of the class's columns. Its constructor is not called, its validators are:
        pydantic.ValidationError if they refuse."""
        job = self.job_class.__new__(self.job_class)
        validate_fields(job, dict(zip(self.definition.column_names, values, strict=True)))
        return job

    def secrets_of(self, values: Sequence[Any]) -> dict[str, Any]:
        """Columns that nobody is to see, and what is in them. values: as of `build`; empty: they can't be had."""
        found = dict(zip(self.definition.column_names, values, strict=False))
        return {name: found.get(name) for name in self.definition.secrets}


class Attempt:
    """One attempt in progress. Owned by the runner's loop; `stop` may be called at any time from there.

    A job of the main thread is stopped by a signal instead, see `interrupt`: the loop stands still meanwhile.
    """

    def __init__(
        self, performer: Performer, job: Job, number: int, queue: bytes = b"default", traceparent: str = ""
    ) -> None:
        self.performer = performer
        self.job = job
        self.number = number
        self.queue = queue
        self.trace_id = trace_id(traceparent) if traceparent else ""
        """Of the trace that it belongs to; empty: none."""
        self._traceparent = traceparent
        self._span: Span | None = None
        self.stopped: str | None = None
        """Why it was told to stop: timed_out, cancelled, released. None: it was not."""
        self._task: asyncio.Task[Any] | None = None
        self._thread: int | None = None
        self._is_in_main = False

    def stop(self, reason: str) -> None:
        """Asks the job to stop: asyncio's cancellation, or an exception in its thread. The first reason stands."""
        if self.stopped is not None:
            return
        self.stopped = reason
        if self._task is not None:
            self._task.cancel()
        with _THREADS:
            if self._thread is not None:
                _raise_in_thread(self._thread, StopRequested)

    def interrupt(self, reason: str) -> None:
        """In a signal handler of the main thread, which performs this job: StopRequested goes up from wherever it is."""
        if self.stopped is None:
            self.stopped = reason
            if self._is_in_main:
                raise StopRequested

    def _name_in_context(self) -> None:
        """On every line that is logged in this context, whoever logs it, and in its trace. The runner has made the context for this
        attempt."""
        _JOB_TYPE.set(self.performer.definition.name)
        _JOB_ID.set(self.job.id)
        _ATTEMPT.set(self.number)
        if is_used():
            self._begin_span()

    def _begin_span(self) -> None:
        made = self.performer.definition
        self._span = begin_span(
            f"process {made.table}",
            self._traceparent,
            {
                "messaging.system": "jobcluster",
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": made.table,
                "messaging.message.id": str(self.job.id),
                "jobcluster.job_type": made.name,
                "jobcluster.queue": self.queue.decode(errors="replace"),
                "jobcluster.attempt": self.number,
            },
        )
        if self._span.get_span_context().is_valid:
            self.trace_id = f"{self._span.get_span_context().trace_id:032x}"

    def _end_span(self, verdict: Verdict, cause: BaseException | None) -> None:
        if self._span is not None:
            secrets = self._secrets()
            text = describe(cause, 1, secrets) if secrets and cause is not None else None
            end_span(self._span, verdict.outcome, cause, text)

    def _secrets(self) -> list[Any]:
        """Values that its errors may not show. Empty for all but few classes."""
        return [getattr(self.job, name, None) for name in self.performer.definition.secrets]

    # --- async jobs ---

    async def perform(self, task: asyncio.Task[Any]) -> Verdict:
        """Performs an async job in the current task, which is given."""
        self._task = task
        self._name_in_context()
        cause: BaseException | None = None
        try:
            if self.stopped is not None:
                raise asyncio.CancelledError
            if "before_perform" in self.performer.definition.hooks:
                await _finished(self.job.before_perform())
            result = await cast("Any", self.job).perform()
        except BaseException as error:  # noqa: BLE001 - the job boundary: SystemExit and KeyboardInterrupt are failures too
            _leave_forked_child()
            verdict, cause = self._failed(error), error
        else:
            _leave_forked_child()
            verdict = self._returned(result)
        self._task = None
        if cause is not None:
            self._tell_of_failure(verdict, cause)
        if self.performer.definition.hooks and verdict is not RELEASED:
            for name, arguments in self._hooks_after(verdict, cause):
                try:
                    await _finished(getattr(self.job, name)(*arguments))
                except BaseException:  # noqa: BLE001 - the outcome stands
                    self._hook_failed(name)
        self._end_span(verdict, cause)
        return verdict

    # --- plain jobs ---

    def perform_plain(self) -> Verdict:
        """Performs a plain job in the current thread."""
        self._name_in_context()
        cause: BaseException | None = None
        try:
            try:
                self._open()
                if self.stopped is not None:
                    raise StopRequested
                if "before_perform" in self.performer.definition.hooks:
                    self.job.before_perform()
                result = cast("Any", self.job).perform()
            finally:
                self._close()
            _refuse_awaitable(result)
        except BaseException as error:  # noqa: BLE001 - the job boundary: SystemExit and KeyboardInterrupt are failures too
            cause = error
        # A stop is raised once at most, and not any more from here on.
        _leave_forked_child()
        verdict = self._returned(result) if cause is None else self._failed(cause)
        if cause is not None:
            self._tell_of_failure(verdict, cause)
        if self.performer.definition.hooks and verdict is not RELEASED:
            for name, arguments in self._hooks_after(verdict, cause):
                try:
                    getattr(self.job, name)(*arguments)
                except BaseException:  # noqa: BLE001 - the outcome stands
                    self._hook_failed(name)
        self._end_span(verdict, cause)
        return verdict

    def _open(self) -> None:
        """From here on StopRequested may reach this thread."""
        if self.performer.is_in_main:
            self._is_in_main = True
        else:
            with _THREADS:
                self._thread = threading.get_ident()

    def _close(self) -> None:
        """From here on none does; one that is on its way is taken back."""
        self._is_in_main = False
        while True:
            try:
                with _THREADS:
                    if self._thread is not None:
                        _raise_in_thread(self._thread, None)
                        self._thread = None
                    return
            except StopRequested:
                continue

    # --- verdicts ---

    def _returned(self, result: Any) -> Verdict:
        match result:
            case Snooze(delay):
                return Verdict("scheduled", "snoozed", min(LONGEST_DELAY, delay.total_seconds()), attempts=-1)
            case Cancel(reason):
                return Verdict("cancelled", "cancelled", error=self._masked(reason))
            case Fail(reason):
                return Verdict("failed", "failed", error=self._masked(reason))
            case _:
                return SUCCEEDED if self.job.scheduled_for is None else self._said(result)

    def _said(self, result: Any) -> Verdict:
        """Of a job of a schedule. What that does not know deactivates it; the job has succeeded all the same."""
        if result is Next.OK or (result is None and not self.performer.job_class.strict_outcome):
            return SUCCEEDED
        said = result.value if isinstance(result, Next) else "!" + shorten(self._masked(_shown(result)), LONGEST_SAID)
        return SUCCEEDED._replace(said=said)

    def _failed(self, error: BaseException) -> Verdict:
        """The verdict on an attempt that raised. Once it was told to stop, whatever it raises is the answer to that."""
        match self.stopped:
            case "released":
                return RELEASED
            case "cancelled":
                return CANCELLED
            case "timed_out":
                where = describe(error, 1, self._secrets())
                text = f"timed out after {self.performer.timeout:g} s; it was stopped here:\n{where}"
                return self._next("timed_out", text)
            case _:
                return self._next("failed", describe(error, 1, self._secrets()))

    def _masked(self, text: str) -> str:
        secrets = self._secrets()
        return mask(text, secrets) if secrets else text

    def _next(self, final: str, text: str) -> Verdict:
        if self.number >= self.performer.max_attempts:
            return Verdict(final, final, error=text)
        outcome = "retry" if final == "failed" else final
        return Verdict("retry", outcome, seconds_after(self.performer.job_class.backoff, self.number), text)

    def _hooks_after(self, verdict: Verdict, error: BaseException | None) -> list[tuple[str, tuple[Any, ...]]]:
        """The hooks to call now, in order, with their arguments."""
        calls: list[tuple[str, tuple[Any, ...]]] = [("after_perform", ())]
        if error is not None:
            calls.insert(0, ("after_failure", (self._cause(verdict, error), verdict.status != "retry")))
        elif verdict.status == "succeeded":
            calls.insert(0, ("after_success", ()))
        return [call for call in calls if call[0] in self.performer.definition.hooks]

    def _tell_of_failure(self, verdict: Verdict, error: BaseException) -> None:
        """Tells the application's on_failure. To be cancelled or released is no failure."""
        handler = failure_handler()
        if handler is None or verdict is RELEASED or verdict is CANCELLED:
            return
        try:
            handler(self.job, self._cause(verdict, error), verdict.status != "retry")
        except BaseException:  # noqa: BLE001 - the outcome stands
            self._hook_failed("on_failure")

    def _cause(self, verdict: Verdict, error: BaseException) -> BaseException:
        return TimeoutError(verdict.error) if self.stopped == "timed_out" else error

    def _hook_failed(self, name: str) -> None:
        _leave_forked_child()
        named = {"job_type": self.performer.definition.name, "job_id": self.job.id, "hook": name}
        secrets, error = self._secrets(), sys.exception()
        if secrets and error is not None:
            log.error("hook_failed", **named, exception=describe(error, 0, secrets))
        else:
            log.exception("hook_failed", **named)


def _shown(result: Any) -> str:
    try:
        return repr(result)
    except Exception:  # noqa: BLE001 - a user's __repr__
        return f"a {type(result).__name__}"


def refuse_row(error: BaseException, secrets: Mapping[str, Any] | None = None) -> Verdict:
    """The verdict on a row that its class does not accept: no attempt can change that. secrets: as of `Performer.secrets_of`."""
    hidden = secrets or {}
    values = list(hidden.values())
    if isinstance(error, pydantic.ValidationError):  # noqa: SIM108 - too long for one line
        reason = mask(explain(error, hidden), values)
    else:
        reason = describe(error, 1, values)
    return Verdict("failed", "failed", error=shorten(f"the row does not fit its class: {reason}"))


def _refuse_awaitable(result: object) -> None:
    """A decorator may hide that perform is async: the class looked like a plain one, and nothing has run yet."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()
        raise TypeError(
            "perform returned a coroutine that nobody awaits: its outermost function must be an `async def`"
        )


async def _finished(result: Awaitable[None] | None) -> None:
    """Hooks of an async job may be plain functions."""
    if result is not None:
        await result


_in_forked_child = False
_forking = threading.local()
"""Its signal mask before the fork."""
_OF_THE_COORDINATOR: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}


def _note_fork() -> None:
    global _in_forked_child
    _in_forked_child = True
    for number, default in _OF_THE_COORDINATOR.items():
        if signal.getsignal(number) is _ignore:
            signal.signal(number, default)
    _let_signals_come()


def _hold_signals_back() -> None:
    """One that is meant for the child may come before that has its own handlers."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_THE_COORDINATOR.keys())


def _let_signals_come() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def watch_forks() -> None:
    """From here on a child of this process is a job's; called once a worker has started, itself a fork of the forkserver.

    It is an ordinary process again: signals that only the coordinator may act on end it.
    """
    os.register_at_fork(before=_hold_signals_back, after_in_parent=_let_signals_come, after_in_child=_note_fork)


def ignore_signals() -> None:
    """The coordinator decides when a worker ends. Handlers instead of SIG_IGN: programs that jobs start must not inherit it."""
    for number in _OF_THE_COORDINATOR:
        signal.signal(number, _ignore)


def _ignore(number: int, frame: object) -> None:
    """Of signals that mean the node, not a worker."""


def _leave_forked_child() -> None:
    """A job that forked and let the child return: the child must not report an outcome, nor run the parent's loop."""
    if _in_forked_child:
        os._exit(0)


def _raise_in_thread(thread: int, error: type[BaseException] | None) -> None:
    """Sets, or with None takes back, an exception that the thread raises at its next bytecode."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(error) if error is not None else None
    )
