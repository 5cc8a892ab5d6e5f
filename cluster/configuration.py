"""What `cluster.configure` sets for a whole application: the database of its clients, its logger, option defaults, and
whom to tell of failures.

Call it where nodes see it too, such as in the package that holds the jobs.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog

from cluster.errors import SettingsError
from cluster.job import Job, set_defaults

_database_url: str | None = None


OnFailure = Callable[[Job, BaseException, bool], None]
_on_failure: OnFailure | None = None


def configure(
    *,
    database_url: str | None = None,
    logger: Any = None,
    defaults: Mapping[str, Any] | None = None,
    on_failure: OnFailure | None = None,
) -> None:
    """Sets what is given and leaves the rest as it is.

    database_url: for every Client and AsyncClient made afterwards without one. logger: of structlog or of `logging`;
    `Job.log` binds to it. defaults: options, such as {"max_attempts": 5}, of all job classes that do not set them
    themselves. on_failure: a plain function, called as on_failure(job, error, final) after every attempt that fails, where the job
    ran; an error of its own is logged and changes nothing. SettingsError, JobDefinitionError: nothing was set.
    """
    global _database_url, _on_failure
    given: object = on_failure
    if given is not None and (not callable(given) or inspect.iscoroutinefunction(given)):
        raise SettingsError(f"on_failure is a plain function, on_failure(job, error, final), not {given!r:.80}")
    bindable = None if logger is None else _bindable(logger)
    set_defaults(defaults or {})
    if bindable is not None:
        Job.__logger__ = bindable
    if database_url is not None:
        _database_url = database_url
    if on_failure is not None:
        _on_failure = on_failure


def failure_handler() -> OnFailure | None:
    """That of `configure`."""
    return _on_failure


def default_database_url() -> str:
    """That of `configure`, else that of the environment; empty: libpq's own variables and defaults."""
    if _database_url is not None:
        return _database_url
    from cluster.settings import database_url  # slow to import, and a URL is mostly given

    return database_url()


def _bindable(logger: Any) -> Any:  # Any: structlog's loggers share no class
    if isinstance(logger, logging.Logger | logging.LoggerAdapter):
        return structlog.wrap_logger(
            logger,
            processors=[_without_clash, structlog.stdlib.render_to_log_args_and_kwargs],
            wrapper_class=structlog.stdlib.BoundLogger,
        )
    if not callable(getattr(logger, "bind", None)):
        raise SettingsError(f"logger is one of structlog or of logging, not {logger!r:.80}")
    return logger


_RECORD_KEYS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
_LOG_ARGUMENTS = {"exc_info", "stack_info", "stackLevel", "stacklevel"}


def _without_clash(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """`logging` refuses extra keys that its records have themselves, such as name: they get an underscore."""
    clashing = _RECORD_KEYS - _LOG_ARGUMENTS
    return {f"{key}_" if key in clashing else key: value for key, value in event.items()}
