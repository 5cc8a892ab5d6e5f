"""Everything that a node knows of the waiting jobs of one type, and what follows from that: when to look, what may be claimed or
promoted now, whether to stay on watch, what is set aside. One object per job type; an error of a type or a row ends here.

Pure: filled by looks and by the answers to claims; called by the claimer, the doorbell and the finisher, all on the node's loop.
Did something arrive between sending and answering? One number answers that: each ring, freed place and new watch raises the epoch,
and a look or a claim carries the one under which it was sent.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import NamedTuple

import psycopg

from cluster.coordinator import look
from cluster.coordinator.bounds import Bounds, Found, Place
from cluster.coordinator.causes import WHY_HELD, Cause, brief
from cluster.coordinator.job_types import JobType
from cluster.coordinator.look import MOST_FOREIGN, Aside, Head, Look, Seen
from cluster.coordinator.parked import ParkedKeys
from cluster.coordinator.shares import Share
from cluster.coordinator.trouble import Hold, Pace, RowsAside, Troubles
from cluster.statements import Queue

FRESH_FOR = 1.0
"""Seconds after which a table is looked at again, whatever the doorbell says: less than any sleep."""
OTHERS_FOR = 1.0
"""Seconds for which another node is taken to be still on watch: less than any sleep, after which all is tried anew."""
RINGING = 0.25
"""Seconds after which rings no longer count as of lately."""
RETRY_INTERVAL = 0.01
"""Seconds until rows that could not be had are tried again; doubled each time, up to 64 times."""
LOCKED_FOR = 0.05
"""Seconds until rows that are due, and that could not be promoted, are tried again."""
OVERDUE = 0.005
"""Seconds after which a row that is due, and that nobody could promote, must be locked."""
APART_FOR = 1.0
"""Seconds after a refusal for which outcomes and claims are not written together: each finds out for itself what is wrong."""
LOWEST_PRIORITY = 100

MOST_CLAIMED, MOST_PROMOTED = 10_000, 1000
"""Rows in one statement."""


class Miss(NamedTuple):
    """A head that could not be had. until: CLOCK_MONOTONIC seconds before which it is not tried again.

    id: of the row at the head, if another one in its place may be tried at once; None: whatever is there.
    """

    times: int
    until: float
    id: int | None


class Backlog:
    """Of one job type. queues: those of this node, None: all."""

    def __init__(
        self, job_type: JobType, queues: list[str] | None, troubles: Troubles, live_nodes: Callable[[], int]
    ) -> None:
        self.job_type = job_type
        self.bounds = Bounds()
        self.share = Share(live_nodes)
        self.parked = ParkedKeys(look.streams(queues))
        self._queues = queues
        self._forget()
        self.aside = RowsAside(troubles, job_type.name, "claim_refused")
        """Rows that refuse to be claimed."""
        self.due_aside = RowsAside(troubles, job_type.name, "promotion_refused")
        """Rows that refuse to be promoted."""
        self.looks_held = Hold(troubles, job_type.name)
        self.claims_held = Hold(troubles, job_type.name)
        self.promotions_held = Hold(troubles, job_type.name)
        self.claims_pace = Pace(MOST_CLAIMED)
        self.promotions_pace = Pace(MOST_PROMOTED)
        self.failures = 0
        """Claims in a row that failed for what may pass."""
        self.given_up = 0
        """Rows that this node has made `failed`, since they will never be let run."""
        self._apart_until = 0.0

    def _forget(self) -> None:
        """Nothing is known: so it begins, and again when the table is another."""
        self._table = self.job_type.oid
        self._epoch = 1
        self._seen_epoch = 0
        """Of the last look that was answered."""
        self._seen_at, self._seen_whole = -math.inf, False
        self._busy_at = 0.0
        """CLOCK_MONOTONIC seconds when a look last found something."""
        self._heads: list[Head] = []
        """The best rows of each queue when last looked, best first."""
        self._best: Head | None = None
        """The first of them when there was one: what to claim first when the doorbell rings."""
        self._foreign: dict[str, str] = {}
        self._due_at = math.inf
        """CLOCK_MONOTONIC seconds when the next row is due."""
        self.limit: int | None = None
        """The type's, when last seen. None: it has none, or one for each key."""
        self.room: int | None = None
        """Under the limit, when last counted; less than 0: it was lowered. None: there is no limit."""
        self._freed_epoch = 0
        """When room was last freed."""
        self._counted_epoch = 0
        """Of the last look or claim that counted what runs."""
        self._claim_epoch = 0
        """Of a claim under way that counts; 0: there is none."""
        self.claimed_at = 0.0
        """CLOCK_MONOTONIC seconds when something was last had: at equal priority types take turns."""
        self._missed: dict[Queue, Miss] = {}
        self.watched = False
        """This node is on watch. Written by the doorbell, as the next three are."""
        self.watched_elsewhere_at = -math.inf
        """CLOCK_MONOTONIC seconds when another node was seen on watch."""
        self.left = False
        """This node left the watch without a word, and nobody is known to have it: others sleep because of this one."""
        self.rung_at = -math.inf
        """CLOCK_MONOTONIC seconds of the last ring."""
        self._rung = False
        self._freed_untold = False

    @property
    def is_present(self) -> bool:
        """The table is there, and can be looked at."""
        if self._table != self.job_type.oid:
            self._forget()
        return bool(self.job_type.oid) and self.looks_held.is_over

    def searched(self, before: int) -> None:
        """The table was searched for; before: what it was."""
        if not self.table:
            self.looks_held.begin("table_missing", f"{self.job_type.definition.table} is not there, or lacks a column")
        elif self.table != before:
            for hold in (self.looks_held, self.claims_held, self.promotions_held):
                hold.end()

    @property
    def table(self) -> int:
        """Its oid."""
        return self.job_type.oid

    # --- what has come ---

    def ring(self) -> None:
        """Something may have come."""
        self._epoch += 1
        self.bounds.rung()

    def rung(self) -> None:
        """Its own doorbell has rung: something has come."""
        self.rung_at = time.monotonic()
        self._rung = True
        self.ring()

    def free(self) -> None:
        """Its limit has room, whatever the last look found; rows of foreign queues are news again."""
        self._epoch += 1
        self._freed_epoch = self._epoch
        self._foreign = {}
        self.free_untold()

    def free_untold(self) -> None:
        """This node has freed room: it must look there, and call others for what it does not use."""
        self._epoch += 1
        self._freed_untold = True
        self.watched_elsewhere_at = -math.inf

    def take_rung(self, *, due: bool) -> Head | None:
        """Nothing is known to wait, but its doorbell rang, or a row is due: what to try, likely where it last had something."""
        rung, self._rung = self._rung, False
        best = self._best
        return None if best is None or not (rung or due) else Head(best.queue, LOWEST_PRIORITY, None, None)

    # --- the watch ---

    def is_watched(self) -> bool:
        """By this node, or by another when last tried."""
        return self.watched or self._is_watched_elsewhere()

    def _is_watched_elsewhere(self) -> bool:
        return time.monotonic() < self.watched_elsewhere_at + OTHERS_FOR

    @property
    def is_ringing(self) -> bool:
        return time.monotonic() < self.rung_at + RINGING

    def go_on_watch(self) -> None:
        """The doorbell is this node's: from now on nothing comes unheard, so a whole look must follow before any sleep."""
        self._epoch += 1
        self.watched, self.left = True, False
        self.bounds.look_whole()

    def leave_watch(self) -> None:
        """It is not any more, and nobody has been told."""
        self.left = self.left or self.watched
        self.watched = False

    @property
    def is_relied_on(self) -> bool:
        """Others may sleep because of this node."""
        return self.watched or self.left or self._freed_untold

    def told(self) -> None:
        """The others have been called."""
        self.left = self._freed_untold = False

    # --- looks ---

    def wants_look(self) -> bool:
        """Whether something may be there that the last look did not find, or something was there."""
        silent = self._is_watched_elsewhere() or (self.watched and self._seen_epoch == self._epoch)
        now = time.monotonic()
        empty = self._seen_whole and not self._heads and now < self._seen_at + FRESH_FOR and now < self._due_at
        return not (silent and empty)

    def next_look(self) -> Look:
        """To be sent now."""
        whole = self.bounds.whole_in() <= 0
        aside = Aside(self.aside.ids(), self.due_aside.ids())
        command = look.command(self.job_type, self._queues, None if whole else self.bounds, aside)
        return Look(command, whole, self._epoch)

    def seen(self, sent: Look, seen: Seen) -> bool:
        """A look has been answered. Whether there is something new in queues that are not this node's."""
        self.looks_held.end()
        now = time.monotonic()
        self._seen_at, self._seen_whole, self._seen_epoch = now, sent.whole, sent.epoch
        self._due_at = math.inf if seen.due_in is None else now + seen.due_in
        self._count(sent, seen)
        if self.job_type.key is None:
            places = {Place(head.queue, head.priority): look.bound_of(head) for head in seen.heads}
            self.bounds.seen(Found(places, seen.due_at, seen.settled, seen.took), whole=sent.whole)
        best: dict[Queue, Head] = {}
        for head in seen.heads:
            if head.queue not in best or head[1:] < best[head.queue][1:]:
                best[head.queue] = head
        self._heads = sorted(best.values(), key=lambda head: head[1:])
        if self._heads:
            self._busy_at, self._best = now, self._heads[0]
        there = {head.queue: head.id for head in self.candidates()}
        self._missed = {
            queue: miss for queue, miss in self._missed.items() if queue in there and miss.id in {None, there[queue]}
        }
        return self._is_news(seen.foreign)

    def _count(self, sent: Look, seen: Seen) -> None:
        """What the limit has left. Where nobody has counted, what was full still is."""
        if seen.limit is None:
            self.room = None
        elif seen.running is not None:
            self.room = seen.limit - seen.running
            self._counted_epoch = sent.epoch
        elif self.room is None or self.room > 0:
            self.room = seen.limit
        elif seen.limit != self.limit:
            self.room = -1  # for the next count
        self.limit = seen.limit

    def _is_news(self, foreign: dict[str, str]) -> bool:
        """Rows of queues that are not this node's, which it has not met: whoever has those queues must hear of them."""
        if self.limit is not None and (self.room or 0) <= 0:
            return False  # nobody can have them
        if len(foreign) >= MOST_FOREIGN:
            foreign["(more)"] = str(self._epoch)  # beyond them anything may have come
        news = foreign.items() - self._foreign.items()
        self._foreign = foreign
        return bool(news)

    def look_failed(self, cause: Cause, error: psycopg.Error) -> None:
        """The table is left out for a while."""
        self.looks_held.begin(WHY_HELD.get(cause, "query_failed"), brief(error))
        self._heads, self._due_at = [], math.inf

    def is_resting(self, seconds: float) -> bool:
        """Nothing has been found for so long."""
        return self._busy_at < time.monotonic() - seconds

    # --- promotion ---

    def is_due(self) -> bool:
        """A row is due that may be promoted."""
        return time.monotonic() >= self._due_at and self.promotions_held.is_over

    def due_in(self) -> float:
        """Seconds until a row is to be promoted; infinite: none is known."""
        at = min(max(self._due_at, self.promotions_held.until), self.due_aside.next_at())
        return max(0.0, at - time.monotonic())

    def promoted(self, rows: int, due_in: float | None) -> None:
        """A promotion has worked. due_in: of the look behind it. A row that stays due must be locked."""
        self.promotions_held.end()
        self.promotions_pace.worked()
        if not rows and due_in is not None and due_in < -OVERDUE:
            self._due_at = time.monotonic() + LOCKED_FOR

    # --- claims ---

    @property
    def is_empty(self) -> bool:
        """The last look has found nothing, and nothing is parked that may have room."""
        return not self._heads and (self.job_type.key is None or not self.parked.waiting())

    def candidates(self) -> list[Head]:
        """What the last look found, best first, behind what is parked and may have room."""
        found = {head.queue for head in self._heads}
        parked = [Head(queue, LOWEST_PRIORITY, None, None) for queue in self.parked.waiting() if queue not in found]
        return parked + self._heads

    def claimable(self, *, swappable: bool) -> list[Head]:
        """What may be claimed now. swappable: jobs of the type have ended that still count as running."""
        if not self.is_present or not self.claims_held.is_over or not (swappable or self.has_room):
            return []
        now = time.monotonic()
        return [head for head in self.candidates() if not self._is_missed(head, now)]

    @property
    def has_room(self) -> bool:
        """No limit, or some of it is left, as far as is known."""
        return self.room is None or self.room > 0 or self._is_freed

    @property
    def has_rows(self) -> bool:
        """Rows wait that no limit keeps back."""
        return self.has_room and bool(self.candidates())

    @property
    def _is_freed(self) -> bool:
        return self._freed_epoch > max(self._counted_epoch, self._claim_epoch)

    @property
    def reached_limit(self) -> int | None:
        """Its limit, if that was reached when last counted, rows waited, and no room is known to have come since; else None."""
        return self.limit if self.room == 0 and self._heads and not self._is_freed else None

    @property
    def is_apart(self) -> bool:
        """Claims and outcomes are not to be written together: something was refused just now."""
        return time.monotonic() < self._apart_until

    def claiming(self) -> None:
        """A claim goes out that may count; what is freed from now on, it may not see."""
        self._claim_epoch = self._epoch

    def counted(self, *, more: bool) -> None:
        """A claim knows what its limit has left. more: room."""
        self._counted_epoch, self._claim_epoch = self._claim_epoch, 0
        if self.room is not None:
            self.room = max(1, self.room) if more else min(0, self.room)

    def not_counted(self) -> None:
        """A claim has not found out what its limit has left. Unless the next look does, another claim must."""
        self._claim_epoch = 0

    def claimed(self, head: Head) -> None:
        """Something of it was had."""
        self._missed.pop(head.queue, None)
        self.claimed_at = time.monotonic()
        self.claims_held.end()
        self.claims_pace.worked()
        self.failures = 0

    def missed(self, head: Head, row: int | None) -> None:
        """It could not be had. Tried later each time, jittered, so that nodes which compete for a limit do not stay in step.

        row: see Miss.id.
        """
        times = min(self._missed[head.queue].times + 1, 7) if head.queue in self._missed else 1
        pause = RETRY_INTERVAL * 2.0 ** (times - 1) * random.uniform(0.5, 1)
        self._missed[head.queue] = Miss(times, time.monotonic() + pause, row)

    def _is_missed(self, head: Head, now: float) -> bool:
        miss = self._missed.get(head.queue)
        return miss is not None and now < miss.until

    def claim_failed(self, cause: Cause, error: psycopg.Error) -> None:
        """Claims of the type are refused as a whole, for a while."""
        self.claims_held.begin(WHY_HELD.get(cause, "table_refuses_claims"), brief(error))

    def keep_apart(self) -> None:
        """A claim was refused."""
        self._apart_until = time.monotonic() + APART_FOR

    def retries(self) -> list[float]:
        """In how many seconds heads that have room, but could not be had, are to be tried again."""
        now = time.monotonic()
        if not self.is_present or not self.has_room:
            return []
        found = [self._missed[head.queue].until - now for head in self.candidates() if self._is_missed(head, now)]
        held = [self.claims_held.until - now] if self._heads and not self.claims_held.is_over else []
        return found + held

    def try_again_in(self) -> float:
        """Seconds until something that was set aside is to be tried again; infinite: nothing is."""
        at = min(self.aside.next_at(), self.looks_held.until or math.inf)
        return max(0.0, at - time.monotonic())
