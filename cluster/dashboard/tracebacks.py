"""A traceback for people: the lines of their own code stand out, those of libraries are folded. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cluster.fingerprint import FRAME, frames

_MARGIN = re.compile(r"[ |+-]*")


@dataclass
class Part:
    """kind: text, users or library. lines: as they stand; frames: how many of them name a place."""

    kind: str
    lines: list[str] = field(default_factory=list)
    frames: int = 0

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def parts(error: str) -> list[Part]:
    """Neighbours of one kind together, in order. A text that is no traceback is one part."""
    found: list[Part] = []
    known = iter(frames(error))
    kind, indent = "text", 0
    for line in error.split("\n"):
        margin = _MARGIN.match(line)
        width = len(margin[0]) if margin else 0
        is_frame = FRAME.match(line) is not None
        if is_frame:
            kind, indent = "users" if next(known).users else "library", width
        elif width <= indent and not line.lstrip(" |").startswith("[Previous line repeated"):
            kind, indent = "text", -1
        if not found or found[-1].kind != kind:
            found.append(Part(kind))
        found[-1].lines.append(line)
        found[-1].frames += is_frame
    return found
