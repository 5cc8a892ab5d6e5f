"""What a line about a failed attempt says of its error, how often it comes, and whom else the application tells."""

from __future__ import annotations

import pytest

from cluster import configure
from cluster.error_text import describe, last_line
from cluster.errors import ClusterError
from cluster.events import Seldom, _kind


def text_of(error: BaseException) -> str:
    try:
        raise error
    except BaseException as raised:  # noqa: BLE001 - any kind is described
        return describe(raised)


def chained() -> BaseException:
    try:
        raise KeyError("first")
    except KeyError as first:
        error = ValueError("second")
        error.__cause__ = first
        return error


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (text_of(ValueError("no such customer")), "ValueError: no such customer"),
        (text_of(ValueError("first\n  second")), "ValueError: first"),
        (text_of(ValueError()), "ValueError"),
        (text_of(chained()), "ValueError: second"),
        (text_of(ExceptionGroup("both", [ValueError("a")])), "ExceptionGroup: both (1 sub-exception)"),
        ("timed out after 3 s; it was stopped here:\n" + text_of(TimeoutError()), "timed out after 3 s; it was stopped here:"),
        ("the worker process died under this job: SIGSEGV", "the worker process died under this job: SIGSEGV"),
        ("", ""),
        ('  File "', ""),
    ],
)  # fmt: skip
def test_the_last_line_says_what_the_error_was(text: str, line: str) -> None:
    assert last_line(text) == line


def test_errors_of_one_class_and_place_are_one_kind() -> None:
    def kind(text: str) -> str:
        return _kind(text, last_line(text))

    texts = [text_of(ValueError(f"no customer {number}")) for number in (1, 2)]
    assert kind(texts[0]) == kind(texts[1])
    assert kind("no customer 17") == kind("no customer 4") != kind(texts[0])


def test_of_one_kind_some_lines_a_minute_are_told_and_the_others_are_counted() -> None:
    now = [100.0]
    seldom = Seldom(lambda: now[0])
    told = [seldom.may_be_told("AJob", "job_failed", "ValueError") for _ in range(12)]
    assert told == [True] * 5 + [False] * 7
    assert seldom.may_be_told("AJob", "job_failed", "KeyError"), "another error is told"
    assert seldom.over() == []
    now[0] += 60
    assert seldom.over() == [(("AJob", "job_failed", "ValueError"), 7)]
    assert seldom.may_be_told("AJob", "job_failed", "ValueError"), "a new minute begins"
    assert seldom.over(all_of_them=True) == []


def test_there_are_only_so_many_kinds() -> None:
    seldom = Seldom(lambda: 0.0)
    for number in range(3 * Seldom.MOST_KINDS):
        seldom.may_be_told("AJob", "job_failed", str(number))
    assert seldom.over(all_of_them=True) == [(("AJob", "job_failed", "others"), 2 * Seldom.MOST_KINDS - Seldom.MOST)]


async def _async_handler(*_: object) -> None: ...


@pytest.mark.parametrize("handler", ["print", _async_handler])
def test_on_failure_has_to_be_a_plain_function(handler: object) -> None:
    with pytest.raises(ClusterError, match="on_failure is a plain function"):
        configure(on_failure=handler)  # type: ignore[arg-type]  # that is the point
