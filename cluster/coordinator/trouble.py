"""What is wrong with job types and rows, as far as this node is kept from them by it, and when each is tried again.

Pure. Whatever is set aside is named once in the log, counted in a gauge, told with every heartbeat, and tried again at growing
intervals; it is over as soon as a try has worked.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from cluster import events
from cluster.error_text import storable

MOST_LISTED = 50
"""Troubles that a heartbeat tells of: it must stay small."""
NAMED_FOR = 60.0
"""Seconds for which a trouble that comes and goes is not named again."""
MOST_ROWS = 10_000
"""Rows of one type that may be set aside for one reason; more of them, and the type waits as a whole."""
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE_LOCKED = 1.0, 30.0, 2.0
"""Seconds."""
PAUSE_SLOW = 60.0
"""Seconds until what was too slow even for one row is tried again: others wait for it, so it must be a small part of the time."""
CAREFUL_FOR = 60.0
"""Seconds for which a statement that was too slow with some rows is not tried with as many again."""


class _Entry(NamedTuple):
    """since: seconds since the epoch, for people. holders: who began it and has not ended it."""

    detail: str
    rows: int
    since: float
    holders: frozenset[object]


class Troubles:
    """Of one node. A trouble is known by its job type and its reason, which is one of a few words."""

    def __init__(self) -> None:
        self._entries: dict[tuple[str, str], _Entry] = {}
        self._named: dict[tuple[str, str], float] = {}
        """CLOCK_MONOTONIC seconds when each was last named in the log."""

    def begin(self, holder: object, job_type: str, reason: str, detail: str, rows: int = 0) -> None:
        """It is there, or still there, for this holder. rows: set aside for it; 0: the type as a whole."""
        before = self._entries.get((job_type, reason))
        if before is None:
            now = time.monotonic()
            named = now < self._named.get((job_type, reason), -math.inf) + NAMED_FOR
            if not named:
                self._named[job_type, reason] = now
            events.trouble_began(job_type, reason, detail, rows, named=named)
        since = time.time() if before is None else before.since
        holders = frozenset() if before is None else before.holders
        self._entries[job_type, reason] = _Entry(detail, rows, since, holders | {holder})

    def end(self, holder: object, job_type: str, reason: str) -> None:
        """It is over for this holder; with the last one, it is over."""
        entry = self._entries.get((job_type, reason))
        if entry is None:
            return
        left = entry.holders - {holder}
        if left:
            self._entries[job_type, reason] = entry._replace(holders=left)
        else:
            del self._entries[job_type, reason]
            events.trouble_over(job_type, reason, time.time() - entry.since)

    def listed(self) -> list[dict[str, Any]]:
        """For `cluster.nodes`, oldest first; in ASCII, which every database can store."""
        entries = sorted(self._entries.items(), key=lambda item: item[1].since)[:MOST_LISTED]
        return [
            {
                "job_type": storable(job_type, "ascii"), "reason": reason, "detail": storable(entry.detail[:200], "ascii"),
                "rows": entry.rows, "since": round(entry.since, 3),
            }
            for (job_type, reason), entry in entries
        ]  # fmt: skip


class Pause:
    """When to try again something that has failed as a whole: later each time."""

    def __init__(self, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        self._first, self._longest = first, longest
        self._length = 0.0
        self.until = 0.0
        """CLOCK_MONOTONIC seconds; 0: nothing has failed."""

    @property
    def is_over(self) -> bool:
        """It may be tried now."""
        return not self.until or time.monotonic() >= self.until

    def failed(self, shortest: float = 0.0, longest: float = math.inf) -> None:
        """Once more. shortest, longest: this time."""
        self._length = max(shortest, min(self._longest, longest, max(self._first, self._length * 2)))
        self.until = time.monotonic() + self._length

    def worked(self) -> None:
        """The next failure is the first again."""
        self._length = self.until = 0.0


class Pace:
    """How many rows one statement may be about. Where so many took too long, one, and then as many as work."""

    def __init__(self, most: int) -> None:
        self._usual = self._most = self.rows = most
        self._careful_until = 0.0

    def worked(self) -> None:
        """It has ended in time."""
        if self.rows < self._usual:
            if time.monotonic() >= self._careful_until:
                self._most = self._usual
            self.rows = min(self._most, self.rows * 2)

    def too_slow(self) -> bool:
        """It has not. Whether fewer rows can be tried."""
        if self.rows == 1:
            return False
        self._most, self.rows = max(1, self.rows // 4), 1
        self._careful_until = time.monotonic() + CAREFUL_FOR
        return True


class RowsAside:
    """Rows of one job type that refuse something, by id. They must not keep the others from it.

    taken_first, taken_longest: the pauses of rows in whose way another row is, which may end at any moment.
    """

    def __init__(
        self,
        troubles: Troubles,
        job_type: str,
        reason: str,
    ) -> None:
        self._troubles, self._job_type, self._reason = troubles, job_type, reason
        self._rows: dict[int, tuple[float, float]] = {}
        """Until when each is set aside, and for how long."""

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, job_id: int, detail: str, first: float = FIRST_PAUSE, longest: float = LONGEST_PAUSE) -> None:
        """It has refused, perhaps again."""
        _, length = self._rows.pop(job_id, (0.0, 0.0))
        length = min(longest, max(first, length * 2))
        self._rows[job_id] = time.monotonic() + length, length
        self._troubles.begin(self, self._job_type, self._reason, f"row {job_id}: {detail}", len(self._rows))

    def ids(self) -> list[int]:
        """Those that are not to be tried now. A row that has not refused for twice its pause is forgotten."""
        if not self._rows:
            return []
        now = time.monotonic()
        self._keep({job_id: row for job_id, row in self._rows.items() if now < row[0] + 2 * row[1]})
        return [job_id for job_id, (until, _) in self._rows.items() if now < until]

    def due(self) -> list[int]:
        """Those that may be tried again now."""
        now = time.monotonic()
        return [job_id for job_id, (until, _) in self._rows.items() if until <= now]

    @property
    def is_full(self) -> bool:
        """There are too many to leave out."""
        return len(self._rows) >= MOST_ROWS

    def next_at(self) -> float:
        """When the next is to be tried again; infinite: none is set aside."""
        if not self._rows:
            return math.inf
        now = time.monotonic()
        return min((until for until, _ in self._rows.values() if until > now), default=math.inf)

    def accepted(self, ids: Iterable[int]) -> None:
        """These have been changed, or are gone."""
        if self._rows:
            gone = set(ids)
            self._keep({job_id: row for job_id, row in self._rows.items() if job_id not in gone})

    def try_soon(self, most: int) -> None:
        """Something has changed that may have been in the way: the first so many may be tried at once."""
        for job_id in list(self._rows)[:most]:
            self._rows[job_id] = 0.0, self._rows[job_id][1]

    def _keep(self, rows: dict[int, tuple[float, float]]) -> None:
        if len(rows) < len(self._rows) and not rows:
            self._troubles.end(self, self._job_type, self._reason)
        self._rows = rows


_SHORTEST = {"too_slow": PAUSE_SLOW}
_LONGEST = {"table_locked": LONGEST_PAUSE_LOCKED}
"""Pauses of a hold, by its reason."""


class Hold:
    """One thing that is not done to a job type for now, because it failed for the type as a whole."""

    def __init__(self, troubles: Troubles, job_type: str) -> None:
        self._troubles, self._job_type = troubles, job_type
        self._reason = ""
        self._pause = Pause()

    @property
    def is_over(self) -> bool:
        """It may be tried now."""
        return not self._reason or self._pause.is_over

    @property
    def until(self) -> float:
        """CLOCK_MONOTONIC seconds; 0: nothing is wrong."""
        return self._pause.until

    def begin(self, reason: str, detail: str) -> None:
        """It has failed, perhaps again. A lock may end at any moment."""
        if self._reason not in {"", reason}:
            self._troubles.end(self, self._job_type, self._reason)
        self._reason = reason
        self._troubles.begin(self, self._job_type, reason, detail)
        self._pause.failed(_SHORTEST.get(reason, 0.0), _LONGEST.get(reason, math.inf))

    def end(self) -> None:
        """It has worked."""
        if self._reason:
            self._troubles.end(self, self._job_type, self._reason)
            self._reason = ""
            self._pause.worked()
