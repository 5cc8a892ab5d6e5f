"""One attempt of one job without a worker around it, and the text of errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import Cancel, ConstantBackoff, Fail, Job, Snooze
from cluster.error_text import LONGEST, describe, shorten, storable
from cluster.errors import JobDefinitionError
from cluster.worker.perform import RELEASED, SUCCEEDED, Attempt, Performer, StopRequested, Verdict, refuse_row

Behaviour = Callable[[], Any]


def nothing() -> None:
    """Succeeds."""


class UnitJob(Job):
    """Does what the test says; `calls` are the hooks that ran."""

    behaviour: ClassVar[Behaviour] = staticmethod(nothing)
    calls: ClassVar[list[str]] = []

    isolation = "thread"
    max_attempts = 3
    timeout = timedelta(milliseconds=1500)
    backoff = ConstantBackoff(timedelta(seconds=7))

    def perform(self) -> Any:
        return type(self).behaviour()

    def after_success(self) -> None:
        self.calls.append("success")

    def after_failure(self, error: BaseException, final: bool) -> None:
        self.calls.append(f"{type(error).__name__} {final}")

    def after_perform(self) -> None:
        self.calls.append("after")


class AsyncUnitJob(UnitJob):
    async def perform(self) -> Any:
        return await type(self).behaviour()


@pytest.fixture(autouse=True)
def calls() -> list[str]:
    UnitJob.calls.clear()
    return UnitJob.calls


def attempt(behaviour: Behaviour, number: int = 1, job_class: type[UnitJob] = UnitJob) -> Attempt:
    job_class.behaviour = staticmethod(behaviour)
    performer = Performer.of(job_class)
    return Attempt(performer, performer.build(()), number)


def in_thread(made: Attempt) -> Verdict:
    """As the runner does it: in a thread of its own."""
    verdicts: list[Verdict] = []
    thread = threading.Thread(target=lambda: verdicts.append(made.perform_plain()))
    thread.start()
    thread.join()
    return verdicts[0]


async def performing(made: Attempt) -> Verdict:
    """As the runner does it: in a task of its own."""
    task = asyncio.current_task()
    assert task is not None
    return await made.perform(task)


def stop_when(begun: threading.Event, made: Attempt, *reasons: str) -> None:
    begun.wait()
    for reason in reasons:
        made.stop(reason)


def raising(error: BaseException) -> Behaviour:
    def raise_it() -> None:
        raise error

    return raise_it


@pytest.mark.parametrize("result", [None, 0, False, "text", object, [Snooze]])
def test_whatever_perform_returns_is_a_success_but_for_the_outcomes(result: object, calls: list[str]) -> None:
    assert in_thread(attempt(lambda: result)) is SUCCEEDED
    assert calls == ["success", "after"]


OUTCOMES = [
    (Snooze(timedelta(seconds=1.5)), Verdict("scheduled", "snoozed", 1.5, attempts=-1)),
    (Cancel("why"), Verdict("cancelled", "cancelled", error="why")),
    (Fail("no"), Verdict("failed", "failed", error="no")),
]


@pytest.mark.parametrize(("result", "verdict"), OUTCOMES)
def test_a_returned_outcome_is_the_verdict(result: object, verdict: Verdict, calls: list[str]) -> None:
    assert in_thread(attempt(lambda: result)) == verdict
    assert calls == ["after"]


def test_an_error_is_retried_until_the_last_attempt(calls: list[str]) -> None:
    retried = in_thread(attempt(raising(ValueError("x")), number=2))
    assert (retried.status, retried.outcome, retried.delay, retried.attempts) == ("retry", "retry", 7.0, 0)
    final = in_thread(attempt(raising(ValueError("x")), number=3))
    assert (final.status, final.outcome, final.delay, final.attempts) == ("failed", "failed", None, 0)
    assert calls == ["ValueError False", "after", "ValueError True", "after"]


STOPS = [
    ("released", 1, RELEASED, []),
    ("cancelled", 1, Verdict("cancelled", "cancelled", error="cancelled on request"), ["StopRequested True", "after"]),
]


@pytest.mark.parametrize(("reason", "number", "verdict", "hooks"), STOPS)
def test_an_attempt_stopped_before_its_thread_ran_does_not_perform(
    reason: str, number: int, verdict: Verdict, hooks: list[str], calls: list[str]
) -> None:
    performed: list[int] = []
    made = attempt(lambda: performed.append(1), number)
    made.stop(reason)
    assert in_thread(made) == verdict
    assert (performed, calls) == ([], hooks)


def test_a_stop_ends_python_code_in_a_thread_and_the_first_reason_stands(calls: list[str]) -> None:
    begun = threading.Event()

    def spin() -> None:
        begun.set()
        while True:
            pass

    made = attempt(spin)
    stopper = threading.Thread(target=stop_when, args=(begun, made, "timed_out", "cancelled"))
    stopper.start()
    verdict = in_thread(made)
    stopper.join()
    assert (verdict.status, verdict.outcome, verdict.delay) == ("retry", "timed_out", 7.0)
    assert verdict.error is not None
    assert verdict.error.startswith("timed out after 1.5 s; it was stopped here:\nTraceback")
    assert calls == ["TimeoutError False", "after"]


def test_a_stop_that_comes_after_the_end_reaches_nobody() -> None:
    made = attempt(nothing)
    assert in_thread(made) is SUCCEEDED
    made.stop("cancelled")


def test_a_job_that_answers_a_stop_with_a_result_keeps_it() -> None:
    begun = threading.Event()

    def catch() -> object:
        try:
            begun.set()
            while True:
                pass
        except StopRequested:
            return Fail("stopped in time")

    made = attempt(catch)
    stopper = threading.Thread(target=stop_when, args=(begun, made, "cancelled"))
    stopper.start()
    assert in_thread(made).error == "stopped in time"
    stopper.join()


@pytest.mark.parametrize(
    ("reason", "status", "hooks"),
    [
        ("released", "not_started", []),
        ("cancelled", "cancelled", ["CancelledError True", "after"]),
        ("timed_out", "retry", ["TimeoutError False", "after"]),
    ],
)
async def test_a_stop_cancels_an_async_job(reason: str, status: str, hooks: list[str], calls: list[str]) -> None:
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    made = attempt(wait, job_class=AsyncUnitJob)
    task = asyncio.create_task(performing(made))
    await begun.wait()
    made.stop(reason)
    assert (await task).status == status
    assert calls == hooks


async def test_a_cancellation_that_nobody_asked_for_is_a_failure() -> None:
    async def cancelled() -> None:
        raise asyncio.CancelledError

    verdict = await performing(attempt(cancelled, job_class=AsyncUnitJob))
    assert (verdict.status, verdict.outcome) == ("retry", "retry")


def test_a_coroutine_that_nobody_awaits_is_a_failure() -> None:
    async def never() -> None: ...

    verdict = in_thread(attempt(never))
    assert verdict.status == "retry"
    assert "`async def`" in (verdict.error or "")


def test_max_attempts_of_zero_means_one() -> None:
    class ZeroJob(UnitJob):
        max_attempts = 0

    assert Performer.of(ZeroJob).max_attempts == 1


@pytest.mark.parametrize("reason", [None, 5, ValueError("an object"), b"x"])
def test_reasons_become_text(reason: Any) -> None:
    assert Fail(reason).reason == Cancel(reason).reason == str(reason)


def test_a_long_reason_is_cut() -> None:
    assert len(Fail("x" * 10**6).reason) < LONGEST + 100


# --- the text of errors ---


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_whose_text_cannot_be_had_is_still_named() -> None:
    assert "Mute" in describe(MuteError())
    assert "Mute" in (refuse_row(MuteError()).error or "")


def test_a_row_that_does_not_fit_is_failed_for_good() -> None:
    verdict = refuse_row(ValueError("too odd"))
    assert (verdict.status, verdict.outcome, verdict.delay, verdict.attempts) == ("failed", "failed", None, 0)
    assert verdict.error is not None
    assert verdict.error.startswith("the row does not fit its class: ")
    assert verdict.error.endswith("ValueError: too odd")


def test_the_outermost_frames_can_be_left_out() -> None:
    def inner() -> None:
        raise ValueError("x")

    with pytest.raises(ValueError, match="x") as caught:
        inner()
    assert "in test_the_outermost" in describe(caught.value)
    assert "in test_the_outermost" not in describe(caught.value, skip=1)
    assert "in inner" in describe(caught.value, skip=1)
    assert "in inner" in describe(caught.value, skip=100), "the place where it was raised always stays"


TEXTS = st.text(st.characters(exclude_categories=()))
ENCODINGS = st.sampled_from(["utf-8", "latin-1", "ascii", "koi8-r", "euc-jp", "cp1252"])


@given(TEXTS, st.integers(min_value=2, max_value=100))
def test_shorten_keeps_both_ends_and_short_texts_whole(text: str, longest: int) -> None:
    short = shorten(text, longest)
    half = longest // 2
    if len(text) <= longest:
        assert short == text
    else:
        assert short.startswith(text[:half])
        assert short.endswith(text[-half:])
        assert f"{len(text) - 2 * half:,} characters left out" in short
        assert len(short) < longest + 60


@given(TEXTS, ENCODINGS)
def test_storable_text_has_no_nul_and_fits_the_encoding(text: str, encoding: str) -> None:
    stored = storable(text, encoding)
    assert "\0" not in stored
    assert stored.encode(encoding).decode(encoding) == stored
    stored.encode()  # no lone surrogates
    assert storable(stored, encoding) == stored


@given(st.text(st.characters(exclude_categories=("Cs", "Cc"))))
def test_storable_leaves_ordinary_text_alone(text: str) -> None:
    assert storable(text, "utf-8") == text


def test_a_backoff_must_be_callable() -> None:
    with pytest.raises(JobDefinitionError):
        type("BadJob", (UnitJob,), {"backoff": 5, "__module__": __name__, "__qualname__": "BadJob"})
