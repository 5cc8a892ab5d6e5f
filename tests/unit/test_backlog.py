"""What a node knows of the waiting jobs of one type, and what it does about it."""

from __future__ import annotations

from types import SimpleNamespace

import psycopg
import pytest

from cluster import Job
from cluster.coordinator import backlog, bounds, job_types, shares, trouble
from cluster.coordinator.arrays import Instant
from cluster.coordinator.backlog import (
    FRESH_FOR,
    LOCKED_FOR,
    LOWEST_PRIORITY,
    OTHERS_FOR,
    OVERDUE,
    RETRY_INTERVAL,
    Backlog,
)
from cluster.coordinator.causes import Cause
from cluster.coordinator.job_types import JobType
from cluster.coordinator.look import MOST_FOREIGN, Head, Look, Seen
from cluster.coordinator.trouble import FIRST_PAUSE, Troubles

NOON = Instant(820_497_600 * 1_000_000)
ERROR = psycopg.errors.InsufficientPrivilege("permission denied for table plain_jobs")


class PlainJob(Job):
    async def perform(self) -> None: ...


def found(table: JobType, oid: int = 4711) -> None:
    """It is in the database."""
    table.oid, table.table = oid, ("public", "plain_jobs")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    stopped = SimpleNamespace(now=1000.0)
    stopped.monotonic = stopped.time = lambda: stopped.now
    for module in (backlog, bounds, shares, trouble):
        monkeypatch.setattr(module, "time", stopped)
    return stopped


@pytest.fixture
def troubles() -> Troubles:
    return Troubles()


@pytest.fixture
def jobs(clock: SimpleNamespace, troubles: Troubles) -> Backlog:
    """A backlog of which nothing is known yet."""
    del clock
    (job_type,) = job_types.job_types([PlainJob])
    found(job_type)
    return Backlog(job_type, ["default", "other"], troubles, lambda: 1)


def head(priority: int = 50, job_id: int = 1, queue: str = "default", run_at: int = 0) -> Head:
    return Head(queue, priority, Instant(NOON + run_at), job_id)


def answer(
    *heads: Head,
    foreign: dict[str, str] | None = None,
    due_in: float | None = None,
    limit: int | None = None,
    running: int | None = None,
) -> Seen:
    due_at = None if due_in is None else Instant(NOON + int(due_in * 1_000_000))
    return Seen(list(heads), foreign or {}, due_at, due_in, limit, running, NOON, took=0.001)


def look(jobs: Backlog, *heads: Head, **seen: object) -> bool:
    """A look is sent, and answered. Whether there is news for others."""
    return jobs.seen(jobs.next_look(), answer(*heads, **seen))  # type: ignore[arg-type]


def is_present(jobs: Backlog) -> bool:
    return jobs.is_present


def is_relied_on(jobs: Backlog) -> bool:
    return jobs.is_relied_on


def claimable(jobs: Backlog, *, swappable: bool = False) -> list[int | None]:
    return [head.id for head in jobs.claimable(swappable=swappable)]


# --- when to look ---


def test_nobody_sleeps_before_a_whole_look_on_watch_has_found_nothing(jobs: Backlog) -> None:
    assert jobs.wants_look()
    look(jobs)
    assert jobs.wants_look(), "nobody is on watch"
    jobs.go_on_watch()
    assert jobs.wants_look(), "something may have come before the watch"
    look(jobs)
    assert not jobs.wants_look()


def test_what_comes_while_a_look_is_under_way_is_looked_for(jobs: Backlog) -> None:
    jobs.go_on_watch()
    sent = jobs.next_look()
    jobs.rung()
    jobs.seen(sent, answer())
    assert jobs.wants_look()
    look(jobs)
    assert not jobs.wants_look()


def test_another_node_on_watch_is_relied_on_for_a_second_only(jobs: Backlog, clock: SimpleNamespace) -> None:
    look(jobs)
    jobs.watched_elsewhere_at = clock.now
    assert not jobs.wants_look()
    clock.now += OTHERS_FOR
    assert jobs.wants_look()


def test_an_empty_table_is_looked_at_again_after_a_while_and_when_a_row_is_due(
    jobs: Backlog, clock: SimpleNamespace
) -> None:
    jobs.go_on_watch()
    look(jobs, due_in=FRESH_FOR / 2)
    assert not jobs.wants_look()
    clock.now += FRESH_FOR / 2
    assert jobs.wants_look()
    look(jobs)
    assert not jobs.wants_look()
    clock.now += FRESH_FOR
    assert jobs.wants_look()


def test_rows_that_are_set_aside_are_not_looked_for_until_their_pause_is_over(
    jobs: Backlog, clock: SimpleNamespace
) -> None:
    def aside() -> list[list[int]]:
        parameters = jobs.next_look().command.parameters
        return [parameters[name].values for name in ("set_aside", "due_aside")]

    jobs.aside.add(7, "no")
    jobs.due_aside.add(8, "no")
    assert aside() == [[7], [8]]
    assert jobs.try_again_in() == FIRST_PAUSE
    clock.now += FIRST_PAUSE
    assert aside() == [[], []]


# --- what to claim ---


def test_the_best_rows_come_first_whatever_their_queue(jobs: Backlog) -> None:
    look(jobs, head(50, 1, run_at=5), head(50, 2, "other", run_at=3), head(10, 3, "other", run_at=9))
    assert claimable(jobs) == [3, 1], "one for each queue"


def test_nothing_is_claimable_while_the_limit_is_reached_but_in_exchange(jobs: Backlog) -> None:
    look(jobs, head(), limit=2, running=2)
    reached = jobs.reached_limit
    assert (reached, claimable(jobs)) == (2, [])
    assert claimable(jobs, swappable=True) == [1]
    look(jobs, head(), limit=2, running=1)
    assert (jobs.reached_limit, claimable(jobs)) == (None, [1])


def test_a_limit_that_is_changed_counts_at_once(jobs: Backlog) -> None:
    look(jobs, head(), limit=2, running=2)
    look(jobs, head(), limit=3)
    assert claimable(jobs) == [], "nobody has counted since"
    look(jobs, head(), limit=3, running=2)
    assert claimable(jobs) == [1]
    look(jobs, head(), limit=1, running=2)
    assert claimable(jobs) == []
    look(jobs, head())
    assert claimable(jobs) == [1]


def test_a_place_that_is_freed_while_a_claim_counts_is_not_forgotten(jobs: Backlog) -> None:
    look(jobs, head(), limit=2, running=1)
    jobs.claiming()
    jobs.counted(more=False)
    assert claimable(jobs) == []
    jobs.claiming()
    jobs.free()
    jobs.counted(more=False)
    assert claimable(jobs) == [1]


def test_a_claim_that_could_not_count_proves_nothing(jobs: Backlog) -> None:
    look(jobs, head(), limit=2, running=2)
    jobs.free()
    jobs.claiming()
    jobs.not_counted()
    assert claimable(jobs) == [1]


def test_a_head_that_could_not_be_had_is_tried_later_each_time(jobs: Backlog, clock: SimpleNamespace) -> None:
    look(jobs, head())
    longest = 0.0
    for _ in range(12):
        jobs.missed(head(), None)
        assert claimable(jobs) == []
        (pause,) = jobs.retries()
        longest = max(longest, pause)
        clock.now += pause
        assert claimable(jobs) == [1]
    assert 32 * RETRY_INTERVAL <= longest <= 64 * RETRY_INTERVAL
    jobs.claimed(head())
    jobs.missed(head(), None)
    assert jobs.retries()[0] <= RETRY_INTERVAL


def test_another_row_in_its_place_may_be_tried_at_once(jobs: Backlog) -> None:
    look(jobs, head(job_id=1))
    jobs.missed(head(job_id=1), 1)
    look(jobs, head(job_id=1))
    assert claimable(jobs) == []
    look(jobs, head(job_id=2))
    assert claimable(jobs) == [2]


def test_a_ring_is_tried_where_something_was_last_found(jobs: Backlog) -> None:
    jobs.rung()
    assert jobs.take_rung(due=False) is None, "nothing was ever found"
    look(jobs, head(10, queue="other"))
    jobs.rung()
    assert jobs.take_rung(due=False) == Head("other", LOWEST_PRIORITY, None, None)
    assert jobs.take_rung(due=False) is None, "once for each ring"
    assert jobs.take_rung(due=True) is not None


# --- what is due ---


def test_a_row_is_promoted_when_it_is_due_and_not_before(jobs: Backlog, clock: SimpleNamespace) -> None:
    look(jobs, due_in=5.0)
    assert (jobs.is_due(), jobs.due_in()) == (False, 5.0)
    clock.now += 5
    assert (jobs.is_due(), jobs.due_in()) == (True, 0.0)


def test_a_row_that_is_due_and_locked_keeps_nobody_busy(jobs: Backlog, clock: SimpleNamespace) -> None:
    look(jobs, due_in=-1.0)
    assert jobs.is_due()
    jobs.promoted(0, -2 * OVERDUE)
    assert not jobs.is_due()
    assert jobs.due_in() == pytest.approx(LOCKED_FOR)
    clock.now += LOCKED_FOR
    assert jobs.is_due()


def test_promotions_that_a_table_refuses_are_tried_again_after_a_pause(jobs: Backlog, clock: SimpleNamespace) -> None:
    look(jobs, due_in=0.0)
    jobs.promotions_held.begin("table_refuses_promotions", "no")
    assert not jobs.is_due()
    assert jobs.due_in() == pytest.approx(FIRST_PAUSE)
    clock.now += FIRST_PAUSE
    assert jobs.is_due()
    jobs.promoted(1, None)
    assert jobs.promotions_held.until == 0


# --- what is wrong ---


def test_a_table_whose_claims_are_refused_is_looked_at_and_not_claimed_from(
    jobs: Backlog, clock: SimpleNamespace, troubles: Troubles
) -> None:
    look(jobs, head())
    jobs.claim_failed(Cause.DENIED, ERROR)
    assert is_present(jobs)
    assert claimable(jobs) == []
    assert jobs.retries() == [FIRST_PAUSE]
    assert [(item["job_type"], item["reason"]) for item in troubles.listed()] == [("PlainJob", "no_privilege")]
    clock.now += FIRST_PAUSE
    assert claimable(jobs) == [1]
    jobs.claimed(head())
    assert troubles.listed() == []


def test_a_table_that_cannot_be_looked_at_is_left_out_for_a_while(
    jobs: Backlog, clock: SimpleNamespace, troubles: Troubles
) -> None:
    look(jobs, head(), due_in=0.0)
    jobs.look_failed(Cause.PASSING, psycopg.errors.QueryCanceled("canceling statement"))
    assert not is_present(jobs)
    assert (claimable(jobs), jobs.is_due(), jobs.retries()) == ([], False, [])
    assert jobs.try_again_in() == FIRST_PAUSE
    clock.now += FIRST_PAUSE
    assert is_present(jobs)
    look(jobs, head())
    assert (claimable(jobs), troubles.listed()) == ([1], [])


def test_a_table_that_is_made_anew_begins_with_nothing_known_and_nothing_wrong(
    jobs: Backlog, troubles: Troubles
) -> None:
    look(jobs, head(), limit=1, running=1)
    before = jobs.table
    found(jobs.job_type, 0)
    jobs.searched(before)
    assert [item["reason"] for item in troubles.listed()] == ["table_missing"]
    assert not is_present(jobs)
    found(jobs.job_type, 4712)
    jobs.searched(0)
    assert troubles.listed() == []
    assert is_present(jobs)
    assert (claimable(jobs), jobs.limit, jobs.wants_look()) == ([], None, True)


# --- other nodes ---


def test_rows_of_foreign_queues_are_news_once(jobs: Backlog) -> None:
    assert not look(jobs)
    assert look(jobs, foreign={"theirs": "1"})
    assert not look(jobs, foreign={"theirs": "1"})
    assert look(jobs, foreign={"theirs": "2"})


def test_rows_that_nobody_can_have_are_no_news(jobs: Backlog) -> None:
    assert not look(jobs, foreign={"theirs": "1"}, limit=1, running=1)
    jobs.free()
    assert look(jobs, foreign={"theirs": "1"}, limit=1, running=0)


def test_beyond_the_queues_that_a_look_tells_apart_every_ring_is_news(jobs: Backlog) -> None:
    many = {f"queue {number}": "1" for number in range(MOST_FOREIGN)}
    assert look(jobs, foreign=dict(many))
    assert not look(jobs, foreign=dict(many))
    jobs.rung()
    assert look(jobs, foreign=dict(many))


def test_a_node_that_others_sleep_because_of_is_relied_on_until_they_are_told(jobs: Backlog) -> None:
    assert not is_relied_on(jobs)
    jobs.go_on_watch()
    jobs.leave_watch()
    assert is_relied_on(jobs), "nobody knows that it has left"
    jobs.told()
    assert not is_relied_on(jobs)
    jobs.free_untold()
    assert is_relied_on(jobs), "it has room that others may want"


def test_a_look_that_was_sent_before_the_watch_is_not_enough(jobs: Backlog) -> None:
    sent: Look = jobs.next_look()
    jobs.go_on_watch()
    jobs.seen(sent, answer())
    assert jobs.wants_look()
