"""A row of bars, drawn by the server: nothing inline that the page's policy forbids, and no script. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

BAR, GAP, HEIGHT = 4, 1, 24
"""In units of the picture."""


def sparkline(counts: Sequence[int], label: str) -> Markup:
    """label: what it shows, in words, for those who don't see it."""
    most = max([*counts, 1])
    bars = Markup("").join(
        Markup('<rect x="{}" y="{}" width="{}" height="{}"/>').format(place * (BAR + GAP), HEIGHT - height, BAR, height)
        for place, count in enumerate(counts)
        if (height := max(2, round(HEIGHT * count / most)) if count else 0)
    )
    width = max(1, len(counts) * (BAR + GAP) - GAP)
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" width="{}" height="{}" role="img" aria-label="{}">{}</svg>'
    ).format(width, HEIGHT, width, HEIGHT, label, bars)
