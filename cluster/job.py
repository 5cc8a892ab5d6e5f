"""The base class of jobs: a subclass is a job type, its fields are columns, an instance is one row.

Defines and checks classes; enqueueing is in `client`, performing in `worker`. No I/O.
"""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self, dataclass_transform

import pydantic
import pydantic.dataclasses
import structlog
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs

from cluster.backoff import Backoff, ConstantBackoff
from cluster.columns import Column, CopyOf, column_of
from cluster.errors import JobArgumentError, JobDefinitionError
from cluster.job_checks import (
    HOOKS,
    OPTIONS,
    check_names,
    check_option,
    check_options,
    did_you_mean,
    first_line,
    is_class_variable,
    is_table_name,
    no_column_for,
    set_option,
)
from cluster.now import Now
from cluster.outcomes import Next
from cluster.schedule import Declared, check_declared
from cluster.secret import MASK

if TYPE_CHECKING:
    from cluster.sessions import AsyncSession, Awaited, SyncSession

_CONFIG = pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=False)


class Row(NamedTuple):
    """The standard columns of the row that is being performed."""

    queue: str
    priority: int
    run_at: datetime
    attempts_count: int
    created_at: datetime


@dataclass(frozen=True)
class Definition:
    """What the rest of the system needs to know of a job class; made once, when the class is defined."""

    name: str
    table: str
    columns: tuple[Column, ...]
    is_async: bool
    hooks: frozenset[str]
    """Names of the hooks that the class really has: the others are not called."""

    @cached_property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    @cached_property
    def secrets(self) -> tuple[str, ...]:
        """Names of the columns whose values nobody is to see."""
        return tuple(column.name for column in self.columns if column.is_secret)


@dataclass_transform(kw_only_default=True, field_specifiers=(pydantic.Field,))
class Job:
    """One job. Subclass it: annotated names are columns, plain ones options, and `perform` does the work."""

    table: ClassVar[str] = ""
    """Table of this job type, optionally with its schema. Empty: from the class name (EmailCustomersJob: email_customers_jobs)."""
    queue: ClassVar[str] = "default"
    priority: ClassVar[int] = 50
    """1 to 100; lower runs first."""
    max_attempts: ClassVar[int] = 10
    """Executions in all; 0 and 1 both mean one."""
    max_crashes: ClassVar[int] = 3
    """Worker processes that a job may take down before it is `failed` for good."""
    timeout: ClassVar[timedelta | None] = None
    """Of one attempt, from the start of `perform`. None: no limit."""
    backoff: ClassVar[Backoff] = ConstantBackoff(timedelta(seconds=30))
    max_concurrency: ClassVar[int | None] = 16
    """Jobs of this type that run at once in the whole cluster. None: no limit."""
    concurrency_key: ClassVar[str | None] = None
    """Column for whose every value the limit holds separately. None: one limit for the type."""
    unique: ClassVar[tuple[str, ...]] = ()
    """Columns of whose values together one job may wait. Empty: any number."""
    unique_while_running: ClassVar[bool] = False
    """Whether one that runs, or waits to be tried again, is in the way of another, too."""
    isolation: ClassVar[Literal["process", "thread"]] = "process"
    """Where a plain `def perform` runs: a worker process of its own, or a thread beside other jobs."""
    retention: ClassVar[timedelta | None] = None
    """How long succeeded rows are kept. None: for ever; zero: deleted on success."""
    retention_failed: ClassVar[timedelta | None] = None
    """The same for failed, timed out and cancelled rows. None: for ever."""

    schedule: ClassVar[Declared] = None
    """When `migrate` has jobs of this class inserted: Cron(…), Every(…), or a dict of named ones. None: a program inserts them."""
    strict_outcome: ClassVar[bool] = False
    """A job of a schedule must return OK, SLEEP, STOP or EXIT; None, which a method without a return gives, is not enough."""

    OK: ClassVar[Next] = Next.OK
    SLEEP: ClassVar[Next] = Next.SLEEP
    STOP: ClassVar[Next] = Next.STOP
    EXIT: ClassVar[Next] = Next.EXIT

    __definition__: ClassVar[Definition | None] = None
    __logger__: ClassVar[Any] = structlog.get_logger("job")
    """What `log` binds to; set by `cluster.configure`. Any: structlog's loggers share no class."""

    # Set by the worker and by perform_later; None before. is_new: False, perform_later has found the job that waits already.
    id: int | None = None
    attempt: int | None = None
    is_new: bool | None = None
    scheduled_for: datetime | None = None
    """When the occurrence of the schedule was due that this job belongs to, in UTC; the same at every attempt. None: to none."""
    _row: Callable[[], Row] | None = None
    _zone: str = "UTC"
    """Of its schedule."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        check_names(cls)
        check_options(cls)
        _copy_mutable_defaults(cls)
        try:
            pydantic.dataclasses.dataclass(cls, kw_only=True, config=_CONFIG)
        except pydantic.errors.PydanticSchemaGenerationError as error:
            raise JobDefinitionError(f"{cls.__qualname__}: {no_column_for(error)}") from error
        except (pydantic.errors.PydanticUserError, TypeError) as error:
            raise JobDefinitionError(f"{cls.__qualname__}: {first_line(error)}") from error
        # pydantic put its own __init__ into the class; ours explains unknown arguments.
        cls.__init__ = Job.__init__  # type: ignore[method-assign]
        cls.__definition__ = _define(cls) if hasattr(cls, "perform") else None
        if cls.__definition__ is not None and cls.__definition__.secrets:
            cls.__repr__ = _repr_without_secrets  # type: ignore[method-assign, assignment]

    def __init__(self, *positional: Any, **arguments: Any) -> None:
        secrets = definition(type(self)).secrets
        fields: Mapping[str, FieldInfo] = type(self).__pydantic_fields__  # type: ignore[attr-defined]
        if positional:
            name = type(self).__name__
            raise JobArgumentError(f"{name} takes its fields by name: {name}({', '.join(f'{f}=…' for f in fields)})")
        unknown = [name for name in arguments if name not in fields]
        if unknown:
            raise JobArgumentError(
                f"{type(self).__name__} has no field {unknown[0]!r}{did_you_mean(unknown[0], fields)}"
                f"; its fields are: {', '.join(fields) or 'none'}"
            )
        try:
            validate_fields(self, arguments)
        except pydantic.ValidationError as error:
            # The cause of it would show the values.
            raise JobArgumentError(f"{type(self).__name__}: {explain(error, secrets)}") from (
                None if secrets else error
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in type(self).__pydantic_fields__:  # type: ignore[attr-defined]
            raise AttributeError(
                f"{type(self).__name__}.{name} is read-only: a job's row is not written back. Keep results in a table of yours."
            )
        object.__setattr__(self, name, value)

    # --- hooks ---

    def before_perform(self) -> Awaitable[None] | None:
        """Called before each attempt; an error here fails the attempt."""

    def after_perform(self) -> Awaitable[None] | None:
        """Called last after each attempt, however it went; an error here is logged and changes nothing."""

    def after_success(self) -> Awaitable[None] | None:
        """Called when `perform` returned; an error here is logged and changes nothing."""

    def after_failure(self, error: BaseException, final: bool) -> Awaitable[None] | None:
        """Called when the attempt failed. final: there is no further attempt. An error here is logged and changes nothing."""

    # --- running and enqueueing ---

    @property
    def row(self) -> Row | None:
        """The row's standard columns. None: the job is not being performed. Most jobs never ask, so it is decoded when they do."""
        return None if self._row is None else self._row()

    @property
    def now(self) -> Now:
        """The time, in parts: `self.now.day() == "Fri"`."""
        return Now(self._zone)

    @property
    def log(self) -> structlog.stdlib.BoundLogger:
        """A logger that carries the job's type, id and attempt."""
        logger = self.__logger__.bind(job_type=type(self).__name__, job_id=self.id, attempt=self.attempt)
        return typing.cast("structlog.stdlib.BoundLogger", logger)

    def perform_now(self) -> Any:
        """Runs `perform` and its hooks here, without a row; returns what it returns, raises what it raises."""
        from cluster.inline import perform_now

        return perform_now(self)

    async def aperform_now(self) -> Any:
        """As `perform_now`, for async callers."""
        from cluster.inline import aperform_now

        return await aperform_now(self)

    @typing.overload
    def perform_later(
        self, session: SyncSession, *, delay: timedelta | None = ..., run_at: datetime | None = ...,
        queue: str | None = ..., priority: int | None = ...,
    ) -> Self: ...  # fmt: skip
    @typing.overload
    def perform_later(
        self, session: AsyncSession, *, delay: timedelta | None = ..., run_at: datetime | None = ...,
        queue: str | None = ..., priority: int | None = ...,
    ) -> Awaited[Self]: ...  # fmt: skip
    def perform_later(
        self,
        session: SyncSession | AsyncSession,
        *,
        delay: timedelta | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> Self | Awaited[Self]:
        """Inserts this job in the session's current transaction; awaited on an async one.

        session: a connection of psycopg, SQLAlchemy, Django or asyncpg, or a Session of SQLAlchemy or SQLModel.
        Returns a copy of the job that knows its `id` and `row`. delay, run_at (with a time zone): not before then;
        give one at most. queue, priority: None takes the column's default.
        """
        from cluster.enqueueing import enqueue

        return enqueue(self, session, delay=delay, run_at=run_at, queue=queue, priority=priority)

    def insert(
        self,
        placeholder: Literal["%s", "$1"] = "%s",
        *,
        delay: timedelta | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> tuple[str, list[Any]]:
        """For drivers that `perform_later` does not take: the INSERT that it would run, which returns the id, and its values.

        placeholder: how the driver writes the first value. The rest is as in `perform_later`.
        """
        from cluster.enqueueing import statement

        return statement(self, placeholder, delay=delay, run_at=run_at, queue=queue, priority=priority)

    @typing.overload
    @classmethod
    def perform_many(
        cls, session: SyncSession, jobs: Iterable[Self], *, delay: timedelta | None = ..., run_at: datetime | None = ...,
        queue: str | None = ..., priority: int | None = ...,
    ) -> int: ...  # fmt: skip
    @typing.overload
    @classmethod
    def perform_many(
        cls, session: AsyncSession, jobs: Iterable[Self], *, delay: timedelta | None = ...,
        run_at: datetime | None = ..., queue: str | None = ..., priority: int | None = ...,
    ) -> Awaited[int]: ...  # fmt: skip
    @classmethod
    def perform_many(
        cls,
        session: SyncSession | AsyncSession,
        jobs: Iterable[Self],
        *,
        delay: timedelta | None = None,
        run_at: datetime | None = None,
        queue: str | None = None,
        priority: int | None = None,
    ) -> int | Awaited[int]:
        """Inserts many jobs of this class in the session's current transaction, by COPY on psycopg's own. Returns how many."""
        from cluster.enqueueing import enqueue_many

        return enqueue_many(cls, session, jobs, delay=delay, run_at=run_at, queue=queue, priority=priority)

    # --- of a job that perform_later returned ---

    @typing.overload
    def status(self, session: SyncSession) -> str | None: ...
    @typing.overload
    def status(self, session: AsyncSession) -> Awaited[str | None]: ...
    def status(self, session: SyncSession | AsyncSession) -> str | Awaited[str | None] | None:
        """Of the row, as the session's transaction sees it. None: there is no such row."""
        from cluster import handle

        return handle.status(self, session)

    @typing.overload
    def wait(self, session: SyncSession, timeout: timedelta) -> str | None: ...
    @typing.overload
    def wait(self, session: AsyncSession, timeout: timedelta) -> Awaited[str | None]: ...
    def wait(self, session: SyncSession | AsyncSession, timeout: timedelta) -> str | Awaited[str | None] | None:
        """The status in which it has finished; None: its row is gone. WaitTimeoutError: it has not finished by then.

        Looks from time to time, outside of any transaction: EnqueueError in an open one.
        """
        from cluster import handle

        return handle.wait(self, session, timeout)

    @typing.overload
    def cancel(self, session: SyncSession) -> str | None: ...
    @typing.overload
    def cancel(self, session: AsyncSession) -> Awaited[str | None]: ...
    def cancel(self, session: SyncSession | AsyncSession) -> str | Awaited[str | None] | None:
        """As cluster.cancel in SQL, in the session's transaction: the status then."""
        from cluster import handle

        return handle.cancel(self, session)

    @typing.overload
    def retry(self, session: SyncSession) -> str | None: ...
    @typing.overload
    def retry(self, session: AsyncSession) -> Awaited[str | None]: ...
    def retry(self, session: SyncSession | AsyncSession) -> str | Awaited[str | None] | None:
        """As cluster.retry in SQL, in the session's transaction: the status then."""
        from cluster import handle

        return handle.retry(self, session)


def definition(job_class: type[Job]) -> Definition:
    """The definition of a job class. JobDefinitionError: the class has no `perform`, so it is only a base of others."""
    found = job_class.__definition__
    if found is None:
        raise JobDefinitionError(f"{job_class.__qualname__} has no perform method, so it is not a job type")
    return found


def validate_fields(job: Job, values: dict[str, Any]) -> None:
    """Fills the job's fields. pydantic.ValidationError: a value does not fit."""
    validator = type(job).__pydantic_validator__  # type: ignore[attr-defined]
    validator.validate_python(ArgsKwargs((), values), self_instance=job)


def explain(error: pydantic.ValidationError, secrets: Collection[str] = ()) -> str:
    """A validation error in one line: `customer_id: Input should be a valid integer (got 'x')`.

    secrets: fields of which it is not said what was got.
    """
    return "; ".join(
        f"{'.'.join(map(str, detail['loc'])) or 'job'}: {detail['msg']}"
        + (f" (got {detail['input']!r:.80})" if detail["type"] != "missing" and not _is_secret(detail, secrets) else "")
        for detail in error.errors(include_url=False)
    )


def _is_secret(detail: Any, secrets: Collection[str]) -> bool:
    """What is said of the whole job has all its values."""
    return bool(secrets) and (not detail["loc"] or detail["loc"][0] in secrets)


def _repr_without_secrets(job: Job) -> str:
    made = definition(type(job))
    shown = (f"{name}={MASK if name in made.secrets else repr(getattr(job, name))}" for name in made.column_names)
    return f"{made.name}({', '.join(shown)})"


def set_defaults(defaults: Mapping[str, Any]) -> None:
    """Sets options of every job class that does not set them itself. JobDefinitionError: nothing was set."""
    allowed = [
        name
        for name in OPTIONS
        if name not in {"table", "concurrency_key", "unique", "unique_while_running", "schedule"}
    ]
    for name, value in defaults.items():
        if name not in allowed:
            raise JobDefinitionError(
                f"there is no default {name!r}{did_you_mean(name, allowed)}; the defaults are: {', '.join(allowed)}"
            )
        check_option("the default " + name, name, value)
    for name, value in defaults.items():
        set_option(Job, name, value)


def table_name(class_name: str) -> str:
    """EmailCustomersJob: email_customers_jobs; HTTPPing: http_ping_jobs."""
    stem = class_name.removesuffix("Job") or class_name
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", stem).lower()
    return f"{snake}_jobs"


def _define(cls: type[Job]) -> Definition:
    perform = cls.perform  # type: ignore[attr-defined]
    hooks = frozenset(name for name in HOOKS if getattr(cls, name) is not getattr(Job, name))
    is_async = inspect.iscoroutinefunction(perform)
    if inspect.isgeneratorfunction(perform) or inspect.isasyncgenfunction(perform):
        raise JobDefinitionError(
            f"{cls.__qualname__}.perform has a yield in it, so calling it would do nothing: return instead"
        )
    for name, parameter in [*inspect.signature(perform).parameters.items()][1:]:
        if parameter.default is parameter.empty and parameter.kind not in {
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        }:
            raise JobDefinitionError(
                f"{cls.__qualname__}.perform takes {name!r}, which nobody gives it: make it a field, `{name}: int` in the class,"
                f" and read self.{name}"
            )
    for name in hooks:
        if not is_async and inspect.iscoroutinefunction(getattr(cls, name)):
            raise JobDefinitionError(
                f"{cls.__qualname__}.{name} is async, but perform is not: make both async, or neither"
            )
    fields: Mapping[str, FieldInfo] = cls.__pydantic_fields__  # type: ignore[attr-defined]
    try:
        columns = tuple(column_of(name, field) for name, field in fields.items())
    except JobDefinitionError as error:
        raise JobDefinitionError(f"{cls.__qualname__}: {error}") from error
    if cls.concurrency_key is not None and cls.concurrency_key not in fields:
        raise JobDefinitionError(
            f"{cls.__qualname__}.concurrency_key names no field of the class: {cls.concurrency_key!r}"
            f"{did_you_mean(cls.concurrency_key, fields)}"
        )
    if cls.concurrency_key is not None and cls.max_concurrency is None:
        raise JobDefinitionError(
            f"{cls.__qualname__}.concurrency_key needs a limit: set max_concurrency to how many jobs of one key may run"
        )
    for name in cls.unique:
        if name not in fields:
            raise JobDefinitionError(
                f"{cls.__qualname__}.unique names no field of the class: {name!r}{did_you_mean(name, fields)}"
            )
    if cls.unique_while_running and not cls.unique:
        raise JobDefinitionError(
            f'{cls.__qualname__}.unique_while_running needs to know what is unique: set unique = ("a_field",)'
        )
    check_declared(cls.__name__, cls.schedule)
    table = cls.table or table_name(cls.__name__)
    if not is_table_name(table):
        raise JobDefinitionError(f"{cls.__qualname__}: a table's name has at most 63 bytes: set `table`")
    return Definition(cls.__name__, table, columns, is_async, hooks)


def _copy_mutable_defaults(cls: type[Job]) -> None:
    """`tags: list[str] = []` means a new list for each job; dataclasses would refuse it."""
    for name, annotation in inspect.get_annotations(cls).items():
        value = vars(cls).get(name)
        if value is not None and type(value).__hash__ is None and not is_class_variable(annotation):
            setattr(cls, name, pydantic.Field(default_factory=CopyOf(value)))
