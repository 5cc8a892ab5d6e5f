"""What a node makes of a schedule that is due: which occurrences, and what comes next."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from cluster.coordinator.schedules import MOST_MISSED, Due, Scheduler, _computed, fire, plan
from cluster.coordinator.session import Session

NOW = datetime(2026, 6, 1, 12, 0, 0, tzinfo=UTC)


def due(**columns: Any) -> Due:
    at = columns.pop("at", NOW)
    row: dict[str, Any] = {
        "name": "a", "revision": 1, "cron": None, "every": None, "time_zone": "UTC", "starts_at": None, "ends_at": None,
        "jitter": timedelta(0), "overlap": "allow", "misfire": "one", "plan_from": None, "due_at": at, "run_at": at,
        "state": "active", "now": NOW,
    }  # fmt: skip
    return Due(**row | columns)


def fired(row: Due) -> list[str]:
    return [occurrence["due_at"] for occurrence in fire(row)["fire"]]


def test_an_occurrence_on_time_is_fired_and_the_next_is_on_the_grid() -> None:
    answer = fire(due(every=timedelta(minutes=2), now=NOW + timedelta(milliseconds=3)))
    assert answer == {
        "name": "a", "revision": 1, "due_at": NOW.isoformat(), "missed": 0, "holds": False,
        "fire": [{"due_at": NOW.isoformat(), "run_at": NOW.isoformat()}],
        "next_due_at": (NOW + timedelta(minutes=2)).isoformat(), "next_run_at": (NOW + timedelta(minutes=2)).isoformat(),
    }  # fmt: skip


def test_the_last_occurrence_has_none_behind_it() -> None:
    assert "next_due_at" not in fire(due(every=timedelta(hours=1), ends_at=NOW + timedelta(minutes=59)))


@pytest.mark.parametrize(("misfire", "fires"), [("one", 1), ("all", MOST_MISSED), ("skip", 1)])
def test_many_that_were_missed_take_no_time(misfire: str, fires: int) -> None:
    begun = time.monotonic()
    answer = fire(due(every=timedelta(seconds=1), at=NOW - timedelta(days=365), misfire=misfire))
    assert len(answer["fire"]) == fires
    assert answer["missed"] == 365 * 86_400 + 1 - fires
    assert answer["next_due_at"] == (NOW + timedelta(seconds=1)).isoformat()
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("misfire", ["one", "all", "skip"])
def test_very_many_of_a_cron_are_counted_in_parts(misfire: str) -> None:
    row = due(cron="* * * * *", at=NOW - timedelta(days=3), misfire=misfire)
    fires, missed, looks, following = 0, 0, 0, NOW
    while following <= NOW:
        answer = fire(row)
        fires, missed, looks = fires + len(answer["fire"]), missed + answer["missed"], looks + 1
        following = datetime.fromisoformat(answer["next_due_at"])
        row = row._replace(due_at=following, run_at=following)
    assert looks > 1
    assert fires == (MOST_MISSED if misfire == "all" else 1)
    assert fires + missed == 3 * 1440 + 1
    assert following == NOW + timedelta(minutes=1)


def test_a_node_computes_only_for_a_moment_at_a_time() -> None:
    rows = [due(name=str(number), cron="* * * * *", at=NOW - timedelta(days=3)) for number in range(200)]
    begun = time.monotonic()
    plans, fires = _computed(rows)
    assert plans == []
    assert 0 < len(fires) < 200
    assert time.monotonic() - begun < 3


def test_what_is_made_up_for_without_overlap_goes_one_after_the_other() -> None:
    row = due(every=timedelta(hours=1), at=NOW - timedelta(hours=3), misfire="all", overlap="skip")
    answer = fire(row)
    assert fired(row) == [(NOW - timedelta(hours=3)).isoformat()]
    assert answer["holds"]
    assert answer["next_due_at"] == (NOW - timedelta(hours=2)).isoformat()
    assert not fire(due(every=timedelta(hours=1), misfire="all", overlap="skip"))["holds"]


def test_one_that_skips_what_it_missed_fires_what_is_a_little_late() -> None:
    assert fired(due(every=timedelta(hours=1), at=NOW - timedelta(seconds=50), misfire="skip")) != []
    assert fired(due(every=timedelta(hours=1), at=NOW - timedelta(seconds=70), misfire="skip")) == []


def test_jitter_moves_the_run_and_not_the_occurrence() -> None:
    row = due(every=timedelta(hours=1), jitter=timedelta(minutes=30), now=NOW + timedelta(minutes=30))
    (occurrence,) = fire(row)["fire"]
    assert occurrence["due_at"] == NOW.isoformat()
    assert NOW.isoformat() < occurrence["run_at"] < (NOW + timedelta(minutes=30)).isoformat()


def test_an_occurrence_that_a_new_time_zone_database_has_moved_follows_it() -> None:
    """As if Berlin had been at UTC+1 in summer when 05:00 was computed: 04:00 UTC, which is 03:00 now; or the other way round."""
    daily = {"cron": "0 5 * * *", "time_zone": "Europe/Berlin"}
    late = due(**daily, at=datetime(2026, 6, 1, 4, tzinfo=UTC), now=datetime(2026, 6, 1, 4, tzinfo=UTC))
    assert fired(late) == ["2026-06-01T03:00:00+00:00"]
    early = due(**daily, at=datetime(2026, 6, 1, 2, tzinfo=UTC), now=datetime(2026, 6, 1, 2, tzinfo=UTC))
    assert fired(early) == []
    assert fire(early)["next_due_at"] == "2026-06-01T03:00:00+00:00"


def test_one_that_slept_is_due_off_its_grid() -> None:
    at = NOW - timedelta(seconds=1)
    assert fired(due(cron="0 5 * * *", at=at, state="sleeping")) == [at.isoformat()]


def test_a_zone_that_this_node_does_not_have_is_the_schedules_own_matter() -> None:
    assert "no time zone" in fire(due(cron="0 5 * * *", time_zone="Mars/Olympus"))["error"]
    assert "no time zone" in plan(due(cron="0 5 * * *", time_zone="Mars/Olympus", plan_from=NOW))["error"]


def test_a_plan_keeps_the_grid_that_there_is() -> None:
    row = due(every=timedelta(hours=1), at=NOW - timedelta(minutes=190), plan_from=NOW)
    assert plan(row)["next_due_at"] == (NOW + timedelta(minutes=50)).isoformat()
    assert plan(row._replace(due_at=None))["next_due_at"] == (NOW + timedelta(hours=1)).isoformat()


async def test_a_node_that_is_not_registered_fires_nothing() -> None:
    without_a_session = cast("Session", None)  # which would be an error to use
    scheduler = Scheduler(without_a_session, 60.0, lambda: False, lambda: None)
    assert await scheduler.tick() == 60.0, "registering wakes it"
