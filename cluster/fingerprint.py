"""What failed attempts have in common: the same error has the same fingerprint on every node and in every release.

Made of the type of the exception, the place, and the message without what differs from job to job. The place is the last function
of the user's own code, without its line: that moves with every release. Reads the text for `last_error`, so that nothing has to be
passed on besides. Pure.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from cluster.error_text import last_line

FAILURES = frozenset({"retry", "failed", "timed_out", "crashed"})
"""Outcomes of attempts that failed: each has a row in cluster.failures, and a line in the log."""
FIXED: Mapping[str, str] = {
    "timed_out": "timeout", "crashed": "crash", "lost": "lost_node", "too_large": "too_large",
}  # fmt: skip
"""By outcome: of failures without an exception, or whose exception depends on where it was stopped. SQL writes the last two."""
LENGTH = 12
"""Of the others, in hexadecimal digits."""
KEPT = 64
"""Texts whose fingerprint is remembered: in a storm of failures they are mostly the same."""

FRAME = re.compile(r'^[ |+]*File "(.+?)", line (\d+), in (.+)$', re.MULTILINE)
"""Of a traceback: where, and in which function. Behind a margin in a group of exceptions."""
_HEADER = "Traceback (most recent call last):"
_INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
_LIBRARY = re.compile(r"[/\\]lib(?:64)?[/\\]python3[^/\\]*[/\\]|^<")
_OWN = str(Path(__file__).parent) + "/"
_TYPE = re.compile(r"([^\W\d][\w.<>]*)(?:: |$)")

_PARTS = re.compile(
    r"""
    (?<!\w)[bru]{0,2}'(?:[^']|'(?=\w))*(?:'|$)        # quoted: the apostrophe of "can't" neither opens nor closes
    | (?<!\w)[bru]{0,2}"[^"]*(?:"|$) | `[^`]*(?:`|$) | «[^»]*(?:»|$) | “[^”]*(?:”|$) | „[^“”]*(?:[“”]|$)
    | \b\w+://[^\s'">)]+                              # address
    | [\w.+-]+@[\w-]+\.[\w.-]+                        # e-mail
    | (?<![\w/])~?\.{0,2}/[^\s'"),;:]+                # path
    | \b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b | \b[0-9a-f]{16,}\b
    | (?:(?<!\w)[+-])?\w*\d\w*                         # number, or an id that has one
    """,
    re.VERBOSE | re.IGNORECASE,
)
_LISTED = re.compile(r"[\[({](?:#|None|True|False|[\s,:;.=+-])*[\])}]")
_REPEATED = re.compile(r"#(?:[\s,.:;/+-]*#)+")


class Frame(NamedTuple):
    """A line of a traceback. users: it is the user's code, not a library's."""

    path: str
    line: int
    function: str
    users: bool


def fingerprint(outcome: str, error: str | None) -> str:
    """outcome: how the attempt failed, a word of cluster.failures. error: as in last_error; None: there is no text."""
    return FIXED[outcome] if outcome in FIXED else of_text(error or "")


@lru_cache(KEPT)
def of_text(error: str) -> str:
    """Of a traceback, or of a reason in words."""
    kind, message = kind_and_message(error)
    parts = (kind, place(error, sys.path), without_values(message))
    return hashlib.blake2b("\n".join(parts).encode("utf-8", "replace"), digest_size=LENGTH // 2).hexdigest()


def kind_and_message(error: str) -> tuple[str, str]:
    """ValueError, no such customer. The kind is empty if it is no traceback."""
    line = last_line(error)
    found = _TYPE.match(line) if _HEADER in error else None
    return (found[1], line[found.end() :]) if found else ("", line)


def without_values(message: str) -> str:
    """The message with # for numbers, ids, quoted values, addresses and paths, and for lists of them."""
    text = _PARTS.sub("#", message)
    before = ""
    while before != text:  # lists in lists
        before, text = text, _LISTED.sub("#", _REPEATED.sub("#", text))
    return " ".join(text.split())


def constant_part(message: str) -> str:
    """Of what `without_values` keeps, the longest piece."""
    return max(_PARTS.split(message), key=len).strip()


def place(error: str, roots: Sequence[str]) -> str:
    """The last function of the user's code: shop.orders:charge; empty: there is none. roots: what modules are imported from."""
    found = frames(error[max(0, error.rfind(_HEADER)) :])
    own = [frame for frame in found if frame.users] or found
    return f"{_module(own[-1].path, roots)}:{own[-1].function}" if own else ""


def frames(trace: str) -> list[Frame]:
    """Of a traceback, outermost first. The first is the job's own: if it is installed, all of its package is the user's code."""
    found = [(match[1], int(match[2]), match[3]) for match in FRAME.finditer(trace)]
    application = _package(found[0][0]) if found else ""
    return [
        Frame(path, line, function, not is_library(path) or (application != "" and _package(path) == application))
        for path, line, function in found
    ]


def is_library(path: str) -> bool:
    """It is installed, of Python itself, or of this project."""
    return bool(_INSTALLED.search(path) or _LIBRARY.search(path)) or path.startswith(_OWN)


def _package(path: str) -> str:
    """Of an installed file; empty: it is none."""
    parts = _INSTALLED.split(path)
    return re.split(r"[/\\]", parts[-1])[0].removesuffix(".py") if len(parts) > 1 else ""


def _module(path: str, roots: Sequence[str]) -> str:
    """As it is imported, so that it matters not where it lies; of a file outside of the roots, its last name."""
    installed = _INSTALLED.split(path)
    within = [
        path[len(root) + 1 :] for root in (each.rstrip("/") for each in roots) if root and path.startswith(f"{root}/")
    ]
    known = len(installed) > 1 or bool(within)
    inner = installed[-1] if len(installed) > 1 else min(within, key=len, default=path)
    names = [name for name in re.split(r"[/\\]", inner.removesuffix(".py")) if name]
    if names and names[-1] == "__init__":
        names.pop()
    return ".".join(names if known else names[-1:])
