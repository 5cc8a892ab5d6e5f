"""Where looks begin while whole ones are slow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.coordinator import bounds
from cluster.coordinator.arrays import Instant
from cluster.coordinator.bounds import INTERVAL, LONGEST_INTERVAL, NOTHING_KNOWN, Bound, Bounds, Found, Place
from tests.support.clocks import stop_clock

NOON = 820_497_600 * 1_000_000
"""Of the first of January 2026, in microseconds since 2000."""
URGENT, ORDINARY, OTHER = Place("default", 10), Place("default", 50), Place("other", 50)
SLOW, FAST = 0.1, 0.001


def at(seconds: float) -> Instant:
    return Instant(NOON + int(seconds * 1_000_000))


def found(
    heads: dict[Place, Bound] | None = None, *, settled: float = 0, due_at: Instant | None = None, took: float = SLOW
) -> Found:
    return Found(heads or {}, due_at, at(settled), took)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return stop_clock(monkeypatch, bounds)


def after_slow_look(*places: tuple[Place, Bound], settled: float = 0) -> Bounds:
    table = Bounds()
    table.seen(found(dict(places), settled=settled), whole=True)
    return table


def test_the_first_look_is_whole_and_so_are_all_while_they_are_fast() -> None:
    table = Bounds()
    assert table.whole_in() <= 0
    table.seen(found({ORDINARY: Bound(at(-60), 7)}, took=FAST), whole=True)
    assert not table.used
    assert table.whole_in() <= 0
    assert table.places == {}


def test_after_a_slow_look_the_next_begins_at_the_row_that_it_found() -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)), (OTHER, Bound(at(-30), 9)))
    assert table.used
    assert table.whole_in() > 0
    assert table.places == {ORDINARY: Bound(at(-60), 7), OTHER: Bound(at(-30), 9)}


def test_a_bound_never_passes_what_a_young_transaction_may_still_commit() -> None:
    table = after_slow_look((ORDINARY, Bound(at(0.5), 7)))
    assert table.places == {ORDINARY: Bound(at(0), 0)}


def test_a_place_without_rows_begins_where_all_transactions_have_ended() -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)))
    table.seen(found({}, settled=5), whole=False)
    assert table.places == {ORDINARY: Bound(at(5), 0)}


def test_what_is_behind_the_best_row_of_a_queue_is_looked_at_anew() -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)))
    table.seen(found({URGENT: Bound(at(-10), 8)}), whole=True)
    assert table.places == {URGENT: Bound(at(-10), 8), ORDINARY: NOTHING_KNOWN}
    table.seen(found({ORDINARY: Bound(at(-50), 3)}, settled=1), whole=False)
    assert table.places == {URGENT: Bound(at(1), 0), ORDINARY: Bound(at(-50), 3)}


def test_what_is_before_the_best_row_of_a_queue_is_known_to_be_empty() -> None:
    table = after_slow_look((URGENT, Bound(at(-60), 7)))
    table.seen(found({ORDINARY: Bound(at(-10), 8)}, settled=2), whole=True)
    assert table.places == {URGENT: Bound(at(2), 0), ORDINARY: Bound(at(-10), 8)}


def test_bounds_are_dropped_when_whole_looks_are_fast_again() -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)))
    table.seen(found({ORDINARY: Bound(at(-60), 7)}, took=FAST), whole=True)
    assert (table.used, table.places, table.due_from) == (False, {}, None)


def test_more_places_than_can_be_looked_at_are_forgotten() -> None:
    table = Bounds()
    for number in range(2 * bounds.MOST_BOUNDS):
        table.seen(found({Place(f"queue {number}", 50): Bound(at(-1), number)}), whole=True)
    assert len(table.places) <= bounds.MOST_BOUNDS + 1


def test_nothing_is_due_before_what_a_look_found_due() -> None:
    table = after_slow_look()
    assert table.due_from == at(0)
    table.seen(found(due_at=at(60), settled=5), whole=False)
    assert table.due_from == at(5)
    table.seen(found(due_at=at(-60), settled=6), whole=False)
    assert table.due_from == at(-60)


def test_rows_that_were_overdue_are_seen_once_they_are_promoted() -> None:
    table = after_slow_look((ORDINARY, Bound(at(-10), 7)), (OTHER, Bound(at(-90), 9)))
    table.seen(found({ORDINARY: Bound(at(-10), 7), OTHER: Bound(at(-90), 9)}, due_at=at(-60)), whole=False)
    table.promoted()
    assert table.places == {ORDINARY: Bound(at(-60), 0), OTHER: Bound(at(-90), 9)}


def test_whole_looks_take_a_tenth_of_the_time(clock: SimpleNamespace) -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)))
    assert table.whole_in() == pytest.approx(10 * SLOW)
    clock.now += 10 * SLOW
    assert table.whole_in() <= 1e-9


def test_whole_looks_are_neither_too_rare_nor_too_often(clock: SimpleNamespace) -> None:
    table = Bounds()
    table.seen(found(took=0.01), whole=True)
    assert table.whole_in() == pytest.approx(INTERVAL)
    table.seen(found(took=3), whole=True)
    assert table.whole_in() == pytest.approx(LONGEST_INTERVAL)


def test_a_ring_brings_the_next_whole_look_nearer(clock: SimpleNamespace) -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)))
    table.rung()
    assert table.is_rung
    assert table.whole_in() == pytest.approx(2 * SLOW)


def test_a_whole_look_answers_all_rings(clock: SimpleNamespace) -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)))
    table.rung()
    table.seen(found({ORDINARY: Bound(at(-60), 7)}), whole=True)
    assert not table.is_rung


def test_finding_nothing_brings_the_next_whole_look_nearer(clock: SimpleNamespace) -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)))
    table.seen(found({}), whole=False)
    assert table.whole_in() == pytest.approx(2 * SLOW)


def test_who_must_see_everything_does(clock: SimpleNamespace) -> None:
    table = after_slow_look((ORDINARY, Bound(at(-60), 7)))
    table.look_whole()
    table.rung()
    assert table.whole_in() <= 0
