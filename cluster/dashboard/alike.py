"""Errors that are the same but for numbers, ids and quoted values, by the text of `last_error` alone. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from cluster.error_text import last_line
from cluster.fingerprint import constant_part, without_values


class Alike(NamedTuple):
    """Jobs with the same error. shown: it, with … for what differs. pattern: the longest part that all have, for a filter."""

    shown: str
    pattern: str
    jobs: int


def alike(texts: Iterable[str | None], most: int) -> list[Alike]:
    """The most frequent first. texts: an error each."""
    groups, examples = Counter[str](), dict[str, str]()
    for text in texts:
        line = last_line(text or "")
        kind = without_values(line)
        groups[kind] += 1
        examples.setdefault(kind, line)
    return [
        Alike(kind.replace("#", "…") or "(no error text)", constant_part(examples[kind])[:160], jobs)
        for kind, jobs in groups.most_common(most)
    ]
