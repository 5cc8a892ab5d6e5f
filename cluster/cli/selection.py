"""Options that say which rows a command means, and the question before it changes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from cluster.errors import ClusterError
from cluster.selection import STATUSES

Statuses = Annotated[
    list[str] | None, typer.Option("--status", metavar="STATUS", help="Of this status; may be repeated.")
]
Queue = Annotated[str | None, typer.Option("--queue", metavar="NAME", help="Of this queue.")]
Error = Annotated[str | None, typer.Option("--error", metavar="TEXT", help="With this text in last_error.")]
Since = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="Finished or inserted at most so long ago: 90s, 5m, 1h.")
]
Older = Annotated[
    str | None, typer.Option("--older", metavar="TIME", help="Finished or inserted longer ago: 12h, 30d.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def chosen_statuses(given: list[str] | None, possible: Iterable[str], verb: str) -> tuple[str, ...]:
    """Those of the option, or all that are possible. Usage error: there is no such status, or the verb makes no sense there."""
    possible = tuple(possible)
    for name in given or []:
        if name not in STATUSES:
            raise typer.BadParameter(f"there is no status {name!r}: {', '.join(STATUSES)}", param_hint="--status")
        if name not in possible:
            raise typer.BadParameter(f"a job that is {name} can't be {verb}", param_hint="--status")
    return tuple(given or possible)


def ask(question: str, *, yes: bool) -> None:
    """Goes on if the answer is yes. ClusterError: there is nobody to ask, or it is no; KeyboardInterrupt; nothing was changed."""
    if yes:
        return
    try:
        agreed = typer.confirm(question)
    except typer.Abort as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            typer.echo("\ncluster: nothing was changed", err=True)
            raise KeyboardInterrupt from None
        raise ClusterError("nothing was changed: nobody answered; --yes does not ask") from None
    if not agreed:
        raise ClusterError("nothing was changed")
