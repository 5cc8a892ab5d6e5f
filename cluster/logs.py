"""How log lines look: one event, one line, as text for people or as JSON for machines.

Every process configures it once, after it was forked or spawned. structlog events and stdlib records, of this
package, of libraries and of job code, pass through one handler on the root logger, so lines never mix. A reader that stops costs
lines, see `log_stream`.
"""

from __future__ import annotations

import logging
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

from cluster.log_stream import DroppingHandler

_FIRST_KEYS = ("time", "level", "event", "logger")


def configure_logs(format: Literal["console", "json"], level: str, stream: TextIO | None = None) -> None:  # noqa: A002 - as users would
    """Replace whatever logging was set up before; `stream` is stderr if None.

    A child process calls it again. A lower level is not seen by the loggers that were used before.
    """
    stream = stream or sys.stderr
    least = logging.getLevelNamesMapping()[level.upper()]
    json = format == "json"
    clock = structlog.processors.TimeStamper("iso" if json else "%H:%M:%S", utc=json, key="time")
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.StackInfoRenderer(),
    ]
    handler = DroppingHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                clock,
                *(_json_lines() if json else _console_lines(coloured=stream.isatty())),
            ],
        )
    )
    logging.basicConfig(handlers=[handler], level=least, force=True)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(least),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,  # three times faster where the level filters the event out
    )


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger whose lines carry `logger=name`; one for each module."""
    logger: FilteringBoundLogger = structlog.get_logger(name)
    return logger


def _json_lines() -> list[Processor]:
    return [structlog.processors.format_exc_info, _ordered, structlog.processors.JSONRenderer(default=str)]


def _console_lines(*, coloured: bool) -> list[Processor]:
    plain = structlog.dev.plain_traceback
    renderer = structlog.dev.ConsoleRenderer(colors=coloured, timestamp_key="time", exception_formatter=plain)
    return [_printable, renderer]


def _ordered(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    return {key: event[key] for key in _FIRST_KEYS if key in event} | dict(event)


def _printable(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape line breaks and terminal codes, which a job's data may hold; tracebacks keep their lines."""
    kept = ("exc_info", "exception", "stack")
    return {key: value if key in kept else _one_line(value) for key, value in event.items()}


def _one_line(value: object) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))
