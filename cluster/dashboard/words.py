"""Numbers, ages and times as people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

LONGEST = 2_000
"""Characters of a value that a page shows."""


def number(value: int | None) -> str:
    """1,234; an em dash: None."""
    return "—" if value is None else f"{value:,}"


def age(seconds: float | None) -> str:
    """4 s, 12 min, 3 h, 9 d; an em dash: None."""
    if seconds is None:
        return "—"
    whole = int(max(0, seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if whole >= size * 2:
            return f"{whole // size} {unit}"
    return f"{whole} s"


def moment(value: datetime | None) -> Markup:
    """How long ago or until when, with the exact time on hover; the script adds the viewer's own zone."""
    if value is None:
        return Markup("—")
    seconds = (datetime.now(UTC) - value).total_seconds()
    shown = f"{age(seconds)} ago" if seconds >= 0 else f"in {age(-seconds)}"
    exact = value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(value.isoformat(), exact, shown)


def short(value: Any, longest: int = 80) -> str:
    """A value in a cell: one line, cut."""
    text = "" if value is None else " ".join(str(value)[: longest * 4].split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def status_mark(status: str) -> Markup:
    """A shape and a word, so that no colour is needed."""
    marks = {
        "not_started": "○", "scheduled": "◷", "retry": "↻", "running": "▶", "succeeded": "✓", "failed": "✕",
        "timed_out": "✕", "cancelled": "⊘", "live": "●", "draining": "◐", "silent": "✕", "lost": "✕", "stopped": "○",
    }  # fmt: skip
    return Markup('<span class="status {}"><span aria-hidden="true">{}</span> {}</span>').format(
        escape(status), marks.get(status, "·"), status.replace("_", " ")
    )
