"""Errors as text for `last_error`: the whole traceback, cut in the middle when long, and storable in any database."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from types import TracebackType

from cluster.secret import mask

LONGEST = 20_000
"""Characters of last_error. The beginning says where it started, the end what it was; the middle repeats."""
LONGEST_LINE = 300
_MARGIN = re.compile(r" *\| ")
"""Before the lines of an exception group."""


def describe(error: BaseException, skip: int = 0, secrets: Sequence[object] = ()) -> str:
    """The traceback of an error, without its outermost `skip` frames and these values. Never raises, whatever the error's own code
    does."""
    try:
        lines = traceback.format_exception(type(error), error, _inner(error.__traceback__, skip))
        text = _without_rows("".join(lines).rstrip(), error)
        return shorten(mask(text, secrets) if secrets else text)
    except BaseException as second:  # noqa: BLE001 - an error whose __str__ raises, or no memory: still say what is known
        return f"{type(error).__name__} (its text can't be had: {type(second).__name__})"


def without_row(error: BaseException) -> str:
    """What an error of a database says, but for the row that it was about: that may hold what is nobody else's business."""
    return _without_rows(str(error), error)


def _without_rows(text: str, error: BaseException) -> str:
    for found in _with_causes(error):
        diagnosis = getattr(found, "diag", found)  # of psycopg; asyncpg has it at the error itself
        detail = getattr(diagnosis, "message_detail", None) or getattr(diagnosis, "detail", None)
        if getattr(found, "sqlstate", None) in _ROW_IN_DETAIL and isinstance(detail, str) and detail:
            text = text.replace(detail, "The row is left out here.")
    return text


_ROW_IN_DETAIL = {"23502", "23514", "44000"}
"""SQLSTATEs whose detail repeats the whole row: NOT NULL, CHECK (of a partition too), and WITH CHECK OPTION."""


def _with_causes(error: BaseException) -> Iterator[BaseException]:
    """All that a traceback shows: causes, contexts, and the members of groups."""
    seen, waiting = set[int](), [error]
    while waiting:
        found = waiting.pop()
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            members = found.exceptions if isinstance(found, BaseExceptionGroup) else ()
            waiting += (other for other in (found.__cause__, found.__context__, *members) if other is not None)


def _inner(trace: TracebackType | None, skip: int) -> TracebackType | None:
    while skip and trace is not None and trace.tb_next is not None:
        trace, skip = trace.tb_next, skip - 1
    return trace


def last_line(text: str) -> str:
    """What the error was, of a text for `last_error`: `ValueError: no such customer`. The first line, if it is no traceback."""
    frame = text.rfind('File "')
    if frame < 0 or text.startswith("timed out"):
        return text.partition("\n")[0][:LONGEST_LINE]
    # Behind its last frame, the first line that is not indented; those of an exception group stand behind a margin.
    margin = _MARGIN.match(text[text.rfind("\n", 0, frame) + 1 : frame])
    width = len(margin[0]) if margin else 0
    lines = [line[width:] for line in text[frame:].split("\n")[1:]]
    return next((line for line in lines if line and not line[0].isspace()), "")[:LONGEST_LINE]


def title(outcome: str, text: str) -> str:
    """A failed attempt in one line. outcome: as in cluster.failures."""
    return last_line(text).rstrip(":") or f"({outcome.replace('_', ' ')}, without a text)"


def place(text: str) -> str:
    """Where it was raised, of a traceback: `File "jobs.py", line 7`; empty: it is none."""
    frame = text.rfind('File "')
    return "" if frame < 0 else text[frame : text.find("\n", frame)].rpartition(", in ")[0]


def shorten(text: str, longest: int = LONGEST) -> str:
    """Cuts the middle out of a long text and says how much."""
    if len(text) <= longest:
        return text
    half = longest // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


def storable(text: str, encoding: str) -> str:
    """The text with what this database encoding can't hold (NUL, surrogates, foreign letters) written as escapes."""
    clean = text.replace("\x00", "\\x00")
    return clean.encode(encoding, "backslashreplace").decode(encoding)
