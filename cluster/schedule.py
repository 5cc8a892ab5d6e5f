"""Schedules that a job class declares: `schedule = Cron("0 5 * * *")`, `Every(minutes=2)`, or a dict of named ones.

Values, checked when the class is defined; `migrate` makes rows of them, see `schedule_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from cluster.errors import JobDefinitionError, RecurrenceError
from cluster.recurrence import NEVER, Recurrence

Overlap = Literal["skip", "queue_one", "allow", "cancel_running"]
Misfire = Literal["skip", "one", "all"]
OnError = Literal["deactivate", "keep"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What Cron and Every have in common: the columns of cluster.schedules of the same names. values: of the job's fields."""

    values: Mapping[str, Any] = field(default_factory=dict)
    time_zone: str = "UTC"
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    jitter: timedelta = NEVER
    overlap: Overlap = "skip"
    misfire: Misfire = "one"
    expect_within: timedelta | None = None
    on_error: OnError = "deactivate"
    run_once: bool = False

    @property
    def times(self) -> tuple[str | None, timedelta | None]:
        """cron and every: one of them."""
        raise NotImplementedError

    def recurrence(self, name: str) -> Recurrence:
        """RecurrenceError: it makes no sense."""
        for moment in (self.starts_at, self.ends_at):
            if moment is not None and moment.tzinfo is None:
                raise RecurrenceError("starts_at and ends_at need a time zone, as in datetime(2030, 1, 31, tzinfo=UTC)")
        return Recurrence(name, *self.times, self.time_zone, self.starts_at, self.ends_at, self.jitter)


@dataclass(frozen=True)
class Cron(Schedule):
    """By cron: five fields, or an alias such as @daily; see docs/schedules.md."""

    cron: str

    @property
    def times(self) -> tuple[str | None, timedelta | None]:
        return self.cron, None


@dataclass(frozen=True, init=False)
class Every(Schedule):
    """At an interval, from a second up: Every(minutes=2)."""

    every: timedelta

    def __init__(
        self, *, days: float = 0, hours: float = 0, minutes: float = 0, seconds: float = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        object.__setattr__(self, "every", timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds))

    @property
    def times(self) -> tuple[str | None, timedelta | None]:
        return None, self.every


Declared = Schedule | Mapping[str, Schedule] | None
"""What the option `schedule` of a class may be."""


def named(class_name: str, declared: Declared) -> dict[str, Schedule]:
    """By the name of its row: the class's, or `Class.key` for each of several."""
    if declared is None:
        return {}
    if isinstance(declared, Schedule):
        return {class_name: declared}
    return {f"{class_name}.{key}": schedule for key, schedule in declared.items()}


def check_declared(class_name: str, declared: Any) -> None:
    """JobDefinitionError: names the schedule and what is wrong with it."""
    is_mapping = isinstance(declared, Mapping) and all(
        isinstance(key, str) and key and isinstance(value, Schedule) for key, value in declared.items()
    )
    if not (declared is None or isinstance(declared, Schedule) or is_mapping):
        raise JobDefinitionError(
            f"{class_name}.schedule must be Cron(…), Every(…), or a dict of names and these, not {declared!r}"
        )
    for name, schedule in named(class_name, declared).items():
        try:
            schedule.recurrence(name)
        except (RecurrenceError, TypeError) as error:
            raise JobDefinitionError(f"{class_name}.schedule: {error}") from error
        for option, allowed in _WORDS.items():
            if getattr(schedule, option) not in allowed:
                raise JobDefinitionError(
                    f"{class_name}.schedule: {option} is one of {', '.join(allowed)}, not {getattr(schedule, option)!r}"
                )


_WORDS = {"overlap": get_args(Overlap), "misfire": get_args(Misfire), "on_error": get_args(OnError)}
