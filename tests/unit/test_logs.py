"""One event, one line, in both formats, whoever wrote it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from cluster.logs import configure_logs, get_logger


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A logger of each test's own."""
    return f"app.{request.node.name}"


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_time_level_event_and_the_keys(name: str) -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    get_logger(name).info("claimed", jobs=3, node=object)
    (line,) = objects(stream)
    assert list(line)[:4] == ["time", "level", "event", "logger"]
    assert (line["level"], line["event"], line["logger"], line["jobs"]) == ("info", "claimed", name, 3)
    time = datetime.fromisoformat(line["time"])
    assert line["time"].endswith("Z")
    assert abs((datetime.now(UTC) - time).total_seconds()) < 60


def test_stdlib_records_take_the_same_form(name: str) -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    logging.getLogger(name).warning("lost %s", "it", extra={"table": "jobs", "level": "mine"})
    (line,) = objects(stream)
    assert (line["level"], line["event"], line["logger"]) == ("warning", "lost it", name)
    assert line["table"] == "jobs"


@pytest.mark.parametrize("writer", ["structlog", "stdlib"])
def test_an_exception_stays_on_its_json_line(name: str, writer: str) -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    log = get_logger(name) if writer == "structlog" else logging.getLogger(name)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("failed")
    (line,) = objects(stream)
    assert line["level"] == "error"
    assert line["exception"].endswith("ValueError: first\nsecond")


def test_a_console_line_is_plain_text_off_a_terminal(name: str) -> None:
    stream = io.StringIO()
    configure_logs("console", "info", stream)
    get_logger(name).info("claimed", jobs=3)
    (line,) = stream.getvalue().splitlines()
    assert "claimed" in line
    assert "jobs=3" in line
    assert line.isprintable()
    assert line[2] == line[5] == ":"


def test_a_console_line_is_coloured_on_a_terminal(name: str) -> None:
    stream = Terminal()
    configure_logs("console", "info", stream)
    get_logger(name).info("claimed")
    assert "\x1b[" in stream.getvalue()


def test_data_cannot_break_a_console_line_or_send_terminal_codes(name: str) -> None:
    stream = io.StringIO()
    configure_logs("console", "info", stream)
    get_logger(name).info("one\ntwo", error=ValueError("a\nb"), title="\x1b[31mred é")
    (line,) = stream.getvalue().splitlines()
    assert line.isprintable()
    assert "é" in line


def test_a_console_traceback_follows_its_line(name: str) -> None:
    stream = io.StringIO()
    configure_logs("console", "info", stream)
    try:
        raise ValueError("bad")
    except ValueError:
        get_logger(name).exception("failed")
    assert stream.getvalue().splitlines()[-1] == "ValueError: bad"


@pytest.mark.parametrize("format", ["console", "json"])
def test_events_below_the_level_are_dropped(name: str, format: Any) -> None:  # noqa: A002 - the name of the fixture it replaces
    stream = io.StringIO()
    configure_logs(format, "warning", stream)
    get_logger(name).info("quiet")
    logging.getLogger(name).info("quiet too")
    assert stream.getvalue() == ""


def test_configuring_again_moves_every_logger_to_the_new_stream_and_format(name: str) -> None:
    before, after = io.StringIO(), io.StringIO()
    log = get_logger(name)
    configure_logs("console", "info", before)
    log.info("first")
    configure_logs("json", "info", after)
    log.info("second")
    logging.getLogger(name).info("third")
    assert len(before.getvalue().splitlines()) == 1
    assert [line["event"] for line in objects(after)] == ["second", "third"]
    assert objects(after)[0]["time"].endswith("Z")


def test_context_variables_are_on_every_line(name: str) -> None:
    stream = io.StringIO()
    configure_logs("json", "info", stream)
    with structlog.contextvars.bound_contextvars(job_id=7):
        get_logger(name).info("a")
        logging.getLogger(name).info("b")
    assert [line["job_id"] for line in objects(stream)] == [7, 7]


def test_an_unknown_level_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        configure_logs("json", "loud")
