"""What a job class may be called and hold: checked when the class is defined, before pydantic speaks.

A misspelt option would otherwise be a column or be ignored; every refusal says what was probably meant.
"""

from __future__ import annotations

import difflib
import inspect
import re
import typing
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, ClassVar

from cluster.errors import JobDefinitionError

OPTIONS = (
    "table", "queue", "priority", "max_attempts", "max_crashes", "timeout", "backoff", "max_concurrency",
    "concurrency_key", "unique", "unique_while_running", "isolation", "retention", "retention_failed", "schedule", "strict_outcome",
)  # fmt: skip
HOOKS = ("before_perform", "after_perform", "after_success", "after_failure")
PERFORM = ("perform", "perform_now", "aperform_now", "perform_later", "perform_many", "insert")
HANDLE = ("status", "wait", "cancel", "retry")
ATTRIBUTES = ("id", "attempt", "is_new", "row", "now", "log", "scheduled_for", "OK", "SLEEP", "STOP", "EXIT")
STANDARD_COLUMNS = (
    "id", "queue", "priority", "run_at", "status", "attempts_count", "crashes_count", "last_error", "locked_at", "locked_by",
    "started_at", "finished_at", "cancel_requested_at", "created_at", "updated_at", "schedule", "scheduled_for",
)  # fmt: skip
RESERVED = frozenset(OPTIONS + HOOKS + PERFORM + HANDLE + ATTRIBUTES + STANDARD_COLUMNS + ("traceparent", "parked"))


def check_names(cls: type) -> None:
    annotations = inspect.get_annotations(cls)
    for name, annotation in annotations.items():
        if is_class_variable(annotation):
            _refuse_near_miss(cls, name)
        elif name in OPTIONS:
            raise JobDefinitionError(
                f"{cls.__qualname__}.{name} is an option, but its annotation makes it a column: write `{name} = …` without one"
            )
        elif name in RESERVED:
            raise JobDefinitionError(
                f"{cls.__qualname__}.{name}: every job has an attribute or a standard column of that name; rename the field"
            )
        elif name.startswith("_") or len(name.encode()) > 63:
            raise JobDefinitionError(
                f"{cls.__qualname__}.{name}: a column's name has 1 to 63 bytes and no underscore in front"
            )
        elif name in vars(cls):
            # `max_attempt: int = 3` is a valid column, but hardly ever what was meant.
            _refuse_near_miss(cls, name, [option for option in OPTIONS if "_" in option])
    for name, value in vars(cls).items():
        if name in PERFORM + HANDLE and not callable(value) and not hasattr(value, "__get__"):
            raise JobDefinitionError(
                f"{cls.__qualname__}.{name}: every job has a method of that name; the options are: {', '.join(OPTIONS)}"
            )
        if name in annotations or name.startswith("_") or name in RESERVED:
            continue
        _refuse_near_miss(cls, name)
        if (
            not name.isupper()
            and not callable(value)
            and not hasattr(value, "__get__")
            and not _is_pydantic_decorator(value)
        ):
            raise JobDefinitionError(
                f"{cls.__qualname__}.{name} is neither an option nor a column: annotate a column, write a constant in capitals"
                f" or as ClassVar; the options are: {', '.join(OPTIONS)}"
            )


def _refuse_near_miss(cls: type, name: str, known: Iterable[str] = OPTIONS + HOOKS + ("perform",)) -> None:
    hint = "" if name in RESERVED or name.isupper() else did_you_mean(name, known)
    if hint:
        raise JobDefinitionError(f"{cls.__qualname__} has no option or hook {name!r}{hint}")


def is_class_variable(annotation: Any) -> bool:
    if isinstance(annotation, str):
        return re.match(r"(typing\.|t\.)?ClassVar\b", annotation) is not None
    return annotation is ClassVar or typing.get_origin(annotation) is ClassVar


def _is_pydantic_decorator(value: Any) -> bool:
    return type(value).__module__.startswith("pydantic.")


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def no_column_for(error: Exception) -> str:
    """pydantic knows no way to check values of a field's type: most often it is a class of an ORM."""
    found = re.search(r"schema for (?:<class '(?:.*\.)?([\w<>]+)'>|(.+?))\. ", str(error))
    name = (found[1] or found[2]) if found else "that"
    return f"a column can't hold a {name}: keep its id or its values, and load it in perform"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.8)
    return f": did you mean {close[0]!r}?" if close else ""


_OPTION_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "table": (
        lambda value: value == "" or is_table_name(value),
        "table or schema.table, each of 1 to 63 bytes",
    ),
    "queue": (lambda value: isinstance(value, str) and value != "", "a name that is not empty"),
    "priority": (lambda value: _is_int(value, 1, 100), "a whole number from 1 (first) to 100"),
    "max_attempts": (lambda value: _is_int(value, 0), "a whole number of executions"),
    "max_crashes": (lambda value: _is_int(value, 1), "a whole number from 1"),
    "timeout": (
        lambda value: value is None or _is_duration(value, above_zero=True),
        "a timedelta above zero, or None",
    ),
    "backoff": (
        lambda value: _is_backoff(value),  # noqa: PLW0108 - defined below
        "a callable from the attempt's number to a timedelta, such as ConstantBackoff(timedelta(seconds=30))",
    ),
    "max_concurrency": (
        lambda value: value is None or _is_int(value, 1),
        "a whole number from 1, or None for no limit",
    ),
    "concurrency_key": (lambda value: value is None or isinstance(value, str), "a field's name, or None"),
    "unique": (
        lambda value: (
            isinstance(value, tuple) and all(isinstance(name, str) for name in value) and len(set(value)) == len(value)
        ),
        'a tuple of different fields, such as ("customer_id",)',
    ),
    "unique_while_running": (lambda value: isinstance(value, bool), "True or False"),
    "isolation": (lambda value: value in ("process", "thread"), '"process" or "thread"'),
    "retention": (
        lambda value: value is None or _is_duration(value),
        "a timedelta, or None to keep rows for ever",
    ),
    "retention_failed": (
        lambda value: value is None or _is_duration(value),
        "a timedelta, or None to keep rows for ever",
    ),
    "schedule": (lambda _: True, "Cron(…), Every(…), or a dict of names and these"),  # see schedule.check_declared
    "strict_outcome": (lambda value: isinstance(value, bool), "True or False"),
}


def check_options(cls: type) -> None:
    for name in OPTIONS:
        if name in vars(cls):
            fits, wanted = _OPTION_CHECKS[name]
            value = inspect.getattr_static(cls, name)
            if not fits(getattr(cls, name)) or isinstance(value, property):
                raise JobDefinitionError(f"{cls.__qualname__}.{name} must be {wanted}, not {value!r}")
            set_option(cls, name, getattr(cls, name))


def check_option(shown: str, name: str, value: Any) -> None:
    """JobDefinitionError: the value is none that this option takes. shown: what the message calls it."""
    fits, wanted = _OPTION_CHECKS[name]
    if not fits(value):
        raise JobDefinitionError(f"{shown} must be {wanted}, not {value!r}")


def set_option(cls: type, name: str, value: Any) -> None:
    """A plain function, such as a backoff, would become a method of the job."""
    setattr(cls, name, staticmethod(value) if inspect.isfunction(value) else value)


def is_table_name(value: Any) -> bool:
    parts = value.split(".") if isinstance(value, str) else []
    return len(parts) in (1, 2) and all(0 < len(part.encode()) <= 63 and "\0" not in part for part in parts)


def _is_backoff(value: Any) -> bool:
    if not callable(value) or isinstance(value, type):
        return False
    try:
        inspect.signature(value).bind(1)
    except (TypeError, ValueError):  # it takes something else, or it is built in and has no signature
        return not inspect.isfunction(value)
    return True


def _is_int(value: Any, low: int, high: int | None = None) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high)


def _is_duration(value: Any, *, above_zero: bool = False) -> bool:
    return isinstance(value, timedelta) and (value > timedelta(0) if above_zero else value >= timedelta(0))
