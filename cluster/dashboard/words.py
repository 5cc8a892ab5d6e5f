"""Numbers, ages and times as people read them. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup, escape

from cluster.schedule_words import ICONS, MEANINGS

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
        "OK": "✓", "SLEEP": "☾", "STOP": "■", "EXIT": "⊘", "skipped": "–", "deleted": "–", "refused": "✕", "invalid": "✕",
    }  # fmt: skip
    return Markup('<span class="status {}"><span aria-hidden="true">{}</span> {}</span>').format(
        escape(status), marks.get(status, "·"), status.replace("_", " ")
    )


def clock(value: datetime | None, *, here: bool = False) -> Markup:
    """The exact time. here: in the zone that it comes in, which the page names; else in UTC, and the script shows the viewer's."""
    if value is None:
        return Markup("—")
    exact = value.astimezone(UTC)
    seconds = ":%S" if value.second or not here else ""
    shown = (value if here else exact).strftime(f"%a %d %b %Y, %H:%M{seconds}")
    mark = Markup("") if here else Markup(" data-clock")
    title = exact.strftime("%Y-%m-%d %H:%M:%S UTC")
    return Markup('<time{} datetime="{}" title="{}">{}</time>').format(mark, value.isoformat(), title, shown)


def took(seconds: float | None) -> str:
    """3 ms, 4.2 s, 12 s, 3 min; an em dash: None."""
    if seconds is None or seconds >= 10:
        return age(seconds)
    return f"{max(0.0, seconds) * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def schedule_mark(state: str, explained: bool = True) -> Markup:
    """The sign of the command line and a word, with what it means on hover and for those who hear it."""
    sign = Markup('<span aria-hidden="true">{}</span> {}').format(ICONS[state] + "\ufe0e", state.replace("_", " "))
    if not explained:
        return Markup('<span class="status schedule-{}">{}</span>').format(state, sign)
    said = Markup('<span class="hidden">: {}</span>').format(MEANINGS[state])
    return Markup('<span class="status schedule-{}" title="{}">{}{}</span>').format(state, MEANINGS[state], sign, said)


def meaning(state: str) -> str:
    """Of the state of a schedule."""
    return MEANINGS[state]


def schedule_path(name: str, page: str = "show") -> str:
    """Of a page about one schedule. Its name may hold anything, so it is no part of the path."""
    return f"schedules/{page}?{urlencode({'name': name})}"
