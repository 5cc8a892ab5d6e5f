"""Values that nobody is to see: the mark of their column, and how they are left out of errors. Pure.

The mark in the database is a comment on the column, so that what has no job code, such as the dashboard, knows it too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MARK = "cluster:secret"
"""In the comment of a column, among other words or alone."""
MASK = "••••••"
SHORTEST = 3
"""Characters. What is shorter is guessed at once, and stands everywhere."""
_SHORT = 6
"""Characters from which on a value is taken out of other words, too."""


@dataclass(frozen=True)
class Secret:
    """`Annotated[str, Secret()]`: the column's values are masked in the dashboard and in errors of their job."""


def mask(text: str, values: Iterable[object]) -> str:
    """The text without these values, as they are or as Python and JSON write them."""
    found = {form for value in values for leaf in _leaves(value) for form in _forms(leaf) if len(form) >= SHORTEST}
    for form in sorted(found, key=len, reverse=True):
        if form in text:
            is_part = len(form) >= _SHORT and not form.isdecimal()
            text = text.replace(form, MASK) if is_part else re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", MASK, text)
    return text


def _leaves(value: object) -> Iterator[object]:
    match value:
        case None | bool():
            return
        case dict():
            for each in value.values():
                yield from _leaves(each)
        case list() | tuple() | set() | frozenset():
            for each in value:
                yield from _leaves(each)
        case _ if hasattr(value, "__dict__") and not isinstance(value, str):  # a model of the user's, or a dataclass
            yield from _leaves(vars(value))
        case _:
            yield value


def _forms(leaf: object) -> Iterator[str]:
    if isinstance(leaf, bytes | bytearray | memoryview):
        raw = bytes(leaf)
        yield from (repr(raw)[2:-1], raw.hex(), raw.decode("utf-8", "backslashreplace"))
        return
    text = str(leaf)
    yield from (text, repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    if "\n" in text:  # an exception group writes a margin before each
        yield from (line for line in text.splitlines() if len(line) >= _SHORT)
