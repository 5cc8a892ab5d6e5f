"""The arithmetic of the charts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cluster.dashboard.charts import BAR, HEIGHT, bars, brief, line, percentile
from cluster.dashboard.deploys import Deploy, deploys
from cluster.metrics import SECONDS

NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)


def start(minute: int, version: str = "1", code: str = "a") -> Deploy:
    return Deploy(NOON + timedelta(minutes=minute), version, code)


def test_a_deploy_is_a_start_with_another_version_or_code_than_the_start_before() -> None:
    starts = [start(0), start(1), start(5, code="b"), start(6, code="b"), start(9, "2", "b"), start(20)]
    assert deploys(reversed(starts)) == [starts[2], starts[4], starts[5]]
    assert deploys([]) == deploys([start(0)]) == []


def test_a_percentile_lies_within_the_bucket_that_holds_it() -> None:
    assert percentile({1: 100}, 0.95) == 0.95 * SECONDS[0]
    assert SECONDS[3] < percentile({2: 90, 5: 10}, 0.95) < SECONDS[4]
    assert percentile({2: 96, 5: 4}, 0.95) < SECONDS[1]
    assert percentile({len(SECONDS) + 1: 5}, 0.95) == SECONDS[-1]


def test_the_highest_bar_fills_the_chart_and_what_failed_stands_on_what_succeeded() -> None:
    assert (
        bars([0, 0, 0], [0, 4, 2], 4)
        == f"M{BAR:g} {HEIGHT}V0h{BAR - 1:g}V{HEIGHT}zM{2 * BAR:g} {HEIGHT}V22h{BAR - 1:g}V{HEIGHT}z"
    )
    assert bars([2], [2], 4) == f"M0 22V0h{BAR - 1:g}V22z"
    assert bars([], [], 0) == bars([0], [0], 0) == ""


def test_a_line_has_gaps_where_nothing_is_known() -> None:
    assert line([None, 1.0, 2.0, None, 0.0]).count("M") == 2
    assert line([None, None]) == ""
    assert line([0.0]).startswith("M2 ")


def test_seconds_are_said_briefly() -> None:
    assert [brief(each) for each in (0.0351, 2.14, 119.9, 600)] == ["35 ms", "2.1 s", "119.9 s", "10 min"]
