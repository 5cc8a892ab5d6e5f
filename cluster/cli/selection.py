"""Rows that a person names by what they have in common: counted and shown first, then changed in batches, each a transaction.

Rows that somebody else holds are left alone and counted. Broken off in the middle, the same command does the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any, LiteralString

import typer

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from psycopg import Connection

BATCH = 1000
"""Rows of one transaction: what a node or a user waits for at most is a moment."""
WAITING = ("not_started", "scheduled", "retry")
FINISHED = ("succeeded", "failed", "timed_out", "cancelled")
STATUSES = (*WAITING, "running", *FINISHED)

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


@dataclass(frozen=True)
class Selection:
    """statuses: none but these. None, of the others: whatever it is."""

    statuses: tuple[str, ...]
    queue: str | None = None
    error: str | None = None
    since: timedelta | None = None
    older: timedelta | None = None

    def where(self) -> LiteralString:
        """As a condition on a row, with `values` as its parameters."""
        parts: list[LiteralString] = ["status::text = ANY (%(statuses)s)"]
        if self.queue is not None:
            parts.append("queue = %(queue)s")
        if self.error is not None:
            parts.append("strpos(last_error, %(error)s) > 0")
        if self.since is not None:
            parts.append("coalesce(finished_at, created_at) >= now() - %(since)s")
        if self.older is not None:
            parts.append("coalesce(finished_at, created_at) < now() - %(older)s")
        return " AND ".join(parts)

    def values(self) -> dict[str, Any]:
        return asdict(self) | {"statuses": list(self.statuses)}


def chosen_statuses(given: list[str] | None, possible: Iterable[str], verb: str) -> tuple[str, ...]:
    """Those of the option, or all that are possible. Usage error: there is no such status, or the verb makes no sense there."""
    possible = tuple(possible)
    for name in given or []:
        if name not in STATUSES:
            raise typer.BadParameter(f"there is no status {name!r}: {', '.join(STATUSES)}", param_hint="--status")
        if name not in possible:
            raise typer.BadParameter(f"a job that is {name} can't be {verb}", param_hint="--status")
    return tuple(given or possible)


@dataclass(frozen=True)
class JobTable:
    """name: as SQL has it."""

    oid: int
    name: str

    def counts(self, connection: Connection[Any], selection: Selection) -> Counter[str]:
        """Rows by status."""
        query = self._sql("SELECT status::text, count(*) FROM {table} WHERE {where} GROUP BY status", selection)
        return Counter(dict(connection.execute(query, selection.values()).fetchall()))

    def change(self, connection: Connection[Any], selection: Selection, each: LiteralString) -> Counter[str]:
        """Runs `each`, SQL over the rows `picked (id)` that returns a word for each row, for a batch after the other.

        Rows that come meanwhile are not among them. "busy": somebody held the row.
        """
        values = selection.values() | {"reached": -(2**63), "limit": BATCH, "oid": self.oid}
        last = connection.execute(self._sql("SELECT coalesce(max(id), 0) FROM {table}", selection), values).fetchone()
        values["end"] = 0 if last is None else last[0]
        candidates = self._sql(_CANDIDATES, selection)
        work = self._sql(_PICKED, selection) + each.replace("{table}", self._quoted).encode()
        done = Counter[str]()
        while ids := [row[0] for row in connection.execute(candidates, values).fetchall()]:
            words = connection.execute(work, values | {"ids": ids}).fetchall()
            done += Counter(word for (word,) in words)
            done["busy"] += len(ids) - len(words)
            values["reached"] = ids[-1]
        return +done

    def _sql(self, text: LiteralString, selection: Selection) -> bytes:
        return text.replace("{table}", self._quoted).replace("{where}", selection.where()).encode()

    @property
    def _quoted(self) -> str:
        """In a statement that has parameters."""
        return self.name.replace("%", "%%")


_CANDIDATES = "SELECT id FROM {table} WHERE id > %(reached)s AND id <= %(end)s AND {where} ORDER BY id LIMIT %(limit)s"
_PICKED = """
WITH picked AS MATERIALIZED (
    SELECT id FROM {table} WHERE id = ANY (%(ids)s) AND {where} ORDER BY id FOR UPDATE SKIP LOCKED
)
"""


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


def in_words(counts: Counter[str]) -> str:
    """3 failed, 1,200 succeeded."""
    return ", ".join(f"{count:,} {word.replace('_', ' ')}" for word, count in sorted(counts.items()))
