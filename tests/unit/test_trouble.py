"""What is set aside: named once, tried again at growing intervals, and over as soon as a try has worked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from cluster import events, metrics
from cluster.coordinator import trouble
from cluster.coordinator.trouble import (
    CAREFUL_FOR,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    LONGEST_PAUSE_LOCKED,
    MOST_LISTED,
    NAMED_FOR,
    PAUSE_SLOW,
    Hold,
    Pace,
    Pause,
    RowsAside,
    Troubles,
)


class Log:
    """In place of the log: what was named, and what was said to be over."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def error(self, event: str, **values: object) -> None:
        self.lines.append((event, str(values["reason"])))

    info = error

    def debug(self, event: str, **values: object) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    stopped = SimpleNamespace(now=1000.0)
    stopped.monotonic = stopped.time = lambda: stopped.now
    monkeypatch.setattr(trouble, "time", stopped)
    return stopped


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    made = Log()
    monkeypatch.setattr(events, "log", made)
    yield made
    metrics.trouble.clear()


def gauge(job_type: str, reason: str) -> float | None:
    return metrics.registry.get_sample_value("cluster_trouble", {"job_type": job_type, "reason": reason})


def test_a_trouble_is_named_once_and_shown_until_it_is_over(clock: SimpleNamespace, log: Log) -> None:
    troubles = Troubles()
    for rows in (1, 2, 3):
        troubles.begin(1, "AJob", "claim_refused", "row 1: no", rows)
    assert log.lines == [("trouble_began", "claim_refused")]
    assert gauge("AJob", "claim_refused") == 1
    assert [(item["rows"], item["since"]) for item in troubles.listed()] == [(3, 1000.0)]
    troubles.end(1, "AJob", "claim_refused")
    troubles.end(1, "AJob", "claim_refused")
    assert log.lines == [("trouble_began", "claim_refused"), ("trouble_over", "claim_refused")]
    assert gauge("AJob", "claim_refused") is None
    assert troubles.listed() == []


def test_a_trouble_that_comes_and_goes_is_not_named_each_time(clock: SimpleNamespace, log: Log) -> None:
    troubles = Troubles()
    for _ in range(10):
        troubles.begin(1, "AJob", "query_failed", "no")
        troubles.end(1, "AJob", "query_failed")
        clock.now += 1
    assert log.lines.count(("trouble_began", "query_failed")) == 1
    clock.now += NAMED_FOR
    troubles.begin(1, "AJob", "query_failed", "no")
    assert log.lines.count(("trouble_began", "query_failed")) == 2


def test_what_a_heartbeat_carries_is_small_and_can_be_stored_anywhere(clock: SimpleNamespace, log: Log) -> None:
    troubles = Troubles()
    for number in range(MOST_LISTED * 2):
        troubles.begin(1, f"Jöb{number}", "claim_refused", "\x00\ud800ü" * 500)
    text = json.dumps(troubles.listed(), ensure_ascii=False)
    assert text.isascii()
    assert "\\u0000" not in text
    assert len(troubles.listed()) == MOST_LISTED


def test_pauses_grow_until_something_has_worked(clock: SimpleNamespace) -> None:
    pause, lengths, over = Pause(), list[float](), list[bool]()
    for _ in range(8):
        over.append(pause.is_over)
        pause.failed()
        lengths.append(pause.until - clock.now)
        over.append(pause.is_over)
        clock.now = pause.until
    assert over == [True, False] * 8
    assert lengths[:3] == [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE]
    assert lengths[-1] == LONGEST_PAUSE
    pause.worked()
    pause.failed()
    assert pause.until - clock.now == FIRST_PAUSE


def test_where_many_rows_were_too_slow_one_is_tried_and_then_as_many_as_work(clock: SimpleNamespace) -> None:
    pace = Pace(1000)
    pace.worked()
    assert pace.rows == 1000
    assert pace.too_slow()
    sizes = []
    for _ in range(12):
        sizes.append(pace.rows)
        pace.worked()
    assert sizes == [1, 2, 4, 8, 16, 32, 64, 128, *[250] * 4]
    clock.now += CAREFUL_FOR
    for _ in range(3):
        pace.worked()
    assert pace.rows == 1000


def test_what_is_too_slow_for_one_row_is_tried_again_only_after_a_minute(clock: SimpleNamespace, log: Log) -> None:
    pace, hold = Pace(1000), Hold(Troubles(), "AJob")
    assert pace.too_slow()
    assert not pace.too_slow()
    hold.begin("too_slow", "canceled")
    assert hold.until - clock.now == PAUSE_SLOW


def test_a_hold_has_one_reason_at_a_time(clock: SimpleNamespace, log: Log) -> None:
    troubles = Troubles()
    hold = Hold(troubles, "AJob")
    hold.begin("table_locked", "held")
    hold.begin("no_privilege", "denied")
    assert [item["reason"] for item in troubles.listed()] == ["no_privilege"]
    hold.end()
    hold.end()
    assert troubles.listed() == []


def test_what_is_wrong_for_two_reasons_that_share_a_word_is_over_with_the_last(
    clock: SimpleNamespace, log: Log
) -> None:
    """A table that may not be read may not be claimed from either."""
    troubles = Troubles()
    looks, claims = Hold(troubles, "AJob"), Hold(troubles, "AJob")
    looks.begin("no_privilege", "denied")
    claims.begin("no_privilege", "denied")
    looks.end()
    assert gauge("AJob", "no_privilege") == 1
    assert [item["reason"] for item in troubles.listed()] == ["no_privilege"]
    claims.end()
    assert gauge("AJob", "no_privilege") is None
    assert troubles.listed() == []


def test_a_locked_table_is_tried_again_soon_however_long_it_lasts(clock: SimpleNamespace, log: Log) -> None:
    hold = Hold(Troubles(), "AJob")
    for _ in range(10):
        hold.begin("table_locked", "held")
    assert hold.until - clock.now <= LONGEST_PAUSE_LOCKED


def test_a_row_that_refuses_is_left_out_for_longer_each_time(clock: SimpleNamespace, log: Log) -> None:
    aside = RowsAside(Troubles(), "AJob", "claim_refused")
    aside.add(1, "no")
    assert aside.ids() == [1]
    assert aside.next_at() == clock.now + FIRST_PAUSE
    clock.now += FIRST_PAUSE
    assert aside.ids() == []
    assert aside.next_at() == float("inf"), "nothing is to be waited for: it may be tried"
    aside.add(1, "no")
    assert aside.next_at() == clock.now + 2 * FIRST_PAUSE


def test_rows_that_refuse_no_more_end_the_trouble(clock: SimpleNamespace, log: Log) -> None:
    troubles = Troubles()
    aside = RowsAside(troubles, "AJob", "claim_refused")
    for job_id in (1, 2):
        aside.add(job_id, "no")
    aside.accepted([1])
    assert troubles.listed()
    aside.accepted([2])
    assert troubles.listed() == []
    aside.add(3, "no")
    clock.now += 4 * FIRST_PAUSE
    assert aside.ids() == []
    assert troubles.listed() == [], "it was tried long ago, and has not refused again"
