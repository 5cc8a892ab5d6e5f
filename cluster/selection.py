"""Rows that a person names by what they have in common: counted and shown first, then changed in batches, each a transaction.

Rows that somebody else holds are left alone and counted. Broken off in the middle, the same command does the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, LiteralString

if TYPE_CHECKING:
    from psycopg import Connection

BATCH = 1000
"""Rows of one transaction: what a node or a user waits for at most is a moment."""
WAITING = ("not_started", "scheduled", "retry")
FINISHED = ("succeeded", "failed", "timed_out", "cancelled")
STATUSES = (*WAITING, "running", *FINISHED)

EACH: Mapping[str, LiteralString] = {
    "cancel": "SELECT cluster.cancel(%(oid)s::oid, id)::text FROM picked",
    "retry": "SELECT cluster.retry(%(oid)s::oid, id)::text FROM picked",
    "delete": "DELETE FROM {table} WHERE id IN (SELECT id FROM picked) RETURNING 'deleted'",
}
"""For `change`: what is done to each row."""


@dataclass(frozen=True)
class Selection:
    """statuses: none but these. None, of the others: whatever it is."""

    statuses: tuple[str, ...]
    queue: str | None = None
    error: str | None = None
    since: timedelta | None = None
    older: timedelta | None = None
    group: tuple[int, str] | None = None
    """Oid of the table and a fingerprint: their last failed attempt has this one."""
    more: LiteralString = ""
    """A further condition, in SQL, of someone who has quoted its names; its values are in more_values. Empty: none."""
    more_values: Mapping[str, Any] = field(default_factory=dict)

    def where(self) -> LiteralString:
        """As a condition on a row, with `values` as its parameters."""
        parts: list[LiteralString] = ["status = ANY (%(statuses)s::cluster.job_status[])"]
        if self.queue is not None:
            parts.append("queue = %(queue)s")
        if self.error is not None:
            parts.append("strpos(last_error, %(error)s) > 0")
        if self.since is not None:
            parts.append("coalesce(finished_at, created_at) >= now() - %(since)s")
        if self.older is not None:
            parts.append("coalesce(finished_at, created_at) < now() - %(older)s")
        if self.group is not None:
            parts.append(_IN_GROUP)
        if self.more:
            parts.append(self.more)
        return " AND ".join(parts)

    def values(self) -> dict[str, Any]:
        group = {"group_table": self.group[0], "group": self.group[1]} if self.group is not None else {}
        return asdict(self) | {"statuses": list(self.statuses)} | group | dict(self.more_values)


_IN_GROUP: LiteralString = """
id IN (SELECT f.job_id FROM cluster.failures AS f WHERE f.job_table = %(group_table)s::oid AND f.fingerprint = %(group)s)
AND (SELECT f.fingerprint FROM cluster.failures AS f WHERE f.job_table = %(group_table)s::oid AND f.job_id = id
     ORDER BY f.at DESC, f.attempt DESC LIMIT 1) = %(group)s"""
"""The first is for speed: it finds the few among many."""


@dataclass(frozen=True)
class JobTable:
    """name: as SQL has it."""

    oid: int
    name: str

    def counts(self, connection: Connection[Any], selection: Selection) -> Counter[str]:
        """Rows by status."""
        query = self._sql("SELECT status::text, count(*) FROM {table} WHERE {where} GROUP BY status", selection)
        return Counter(dict(connection.execute(query, selection.values()).fetchall()))

    def change(
        self,
        connection: Connection[Any],
        selection: Selection,
        each: LiteralString,
        tell: Callable[[Counter[str]], bool] = lambda _: True,
    ) -> Counter[str]:
        """Runs `each`, SQL over the rows `picked (id)` that returns a word for each row, for a batch after the other.

        Rows that come meanwhile are not among them. "busy": somebody held the row. tell: is told after each batch what is done
        so far, and says whether to go on.
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
            if not tell(done):
                break
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


def in_words(counts: Counter[str]) -> str:
    """3 failed, 1,200 succeeded."""
    return ", ".join(f"{count:,} {word.replace('_', ' ')}" for word, count in sorted(counts.items()))
