"""How long a node believes in its claims, and when others stop believing in the node: pure, times are given."""

from __future__ import annotations

import math
from uuid import UUID

import pytest

from cluster.coordinator.lease import FENCE, GRACE, Lease
from cluster.coordinator.rescue import (
    LONGEST_SWEEP_INTERVAL,
    MARGIN,
    SWEEP_INTERVAL,
    Observer,
    Sighting,
    look_interval,
    sweep_pause,
)
from cluster.lease_clock import boottime

NODE = UUID(int=1)
LEASE = 30.0


def seen(heartbeat: int, *, held: bool = True, session: int | None = 7) -> list[Sighting]:
    return [Sighting(NODE, heartbeat, LEASE, session, held)]


def test_a_node_whose_heartbeat_moves_is_never_lost() -> None:
    observer = Observer()
    for second in range(0, 300, 5):
        assert observer.lost(seen(second, held=False), float(second)) == []


def test_a_silent_node_is_lost_only_after_a_whole_lease() -> None:
    observer = Observer()
    assert observer.lost(seen(1), 100.0) == []
    assert observer.lost(seen(1), 100.0 + LEASE + MARGIN) == []
    assert observer.lost(seen(1), 100.0 + LEASE + MARGIN + 0.1) == [NODE]


def test_a_node_whose_session_was_seen_to_end_is_lost_after_the_grace() -> None:
    observer = Observer()
    assert observer.lost(seen(1, held=True), 100.0) == []
    assert observer.lost(seen(1, held=False), 101.0) == []
    assert observer.lost(seen(1, held=False), 101.0 + GRACE - 0.1) == []
    assert observer.lost(seen(1, held=False), 101.0 + GRACE) == [NODE]


def test_a_node_that_dies_right_after_a_heartbeat_is_still_found_by_its_session() -> None:
    observer = Observer()
    observer.lost(seen(1, held=True), 100.0)
    assert observer.lost(seen(2, held=False), 101.0) == []  # renewed and died between two looks
    observer.lost(seen(2, held=False), 102.0)
    assert observer.lost(seen(2, held=False), 102.0 + GRACE) == [NODE]


def test_a_node_that_never_held_its_lock_is_lost_by_its_lease_only() -> None:
    observer = Observer()
    for second in range(int(LEASE)):
        assert observer.lost(seen(1, held=False, session=None), 100.0 + second) == []


def test_the_end_of_a_session_that_the_node_has_replaced_says_nothing() -> None:
    observer = Observer()
    observer.lost(seen(1, held=True, session=7), 100.0)
    for second in range(1, int(LEASE)):
        assert observer.lost(seen(2, held=False, session=8), 100.0 + second) == []


def test_a_sign_of_life_within_the_grace_begins_the_count_anew() -> None:
    observer = Observer()
    observer.lost(seen(1, held=True), 100.0)
    observer.lost(seen(1, held=False), 101.0)
    assert observer.lost(seen(2, held=True, session=8), 101.0 + GRACE) == []
    assert observer.lost(seen(2, held=True, session=8), 101.0 + 2 * GRACE) == []


def test_after_a_reconnection_everybody_is_counted_anew() -> None:
    observer = Observer()
    observer.lost(seen(1, held=True), 100.0)
    observer.forget()
    assert observer.lost(seen(1, held=False), 100.0 + LEASE) == []
    assert observer.lost(seen(1, held=False), 100.0 + LEASE + GRACE + 1) == []


def test_who_looks_rarely_looks_again_when_a_node_may_be_taken_for_lost() -> None:
    observer = Observer()
    observer.lost(seen(1, held=True), 100.0)
    assert observer.next_end(100.0) == 100.0 + LEASE + MARGIN
    observer.lost(seen(1, held=False), 110.0)
    assert observer.next_end(110.0) == 110.0 + GRACE
    observer.lost(seen(2, held=True), 111.0)  # it lives
    assert observer.next_end(111.0) == 111.0 + LEASE + MARGIN
    assert observer.next_end(111.0 + LEASE + MARGIN) == math.inf  # it could not be closed: tried again at the next look


@pytest.mark.parametrize("nodes", [1, 2, 4, 8, 16, 40])
def test_few_nodes_look_often_enough_that_a_death_is_seen_within_a_second(nodes: int) -> None:
    assert look_interval(nodes) / nodes <= 1


def test_a_thousand_nodes_do_not_look_a_thousand_times_as_often_as_one() -> None:
    assert 1000 / look_interval(1000) <= 100


def test_a_node_fences_itself_well_before_anybody_may_rescue_its_jobs() -> None:
    lease = Lease(NODE, boottime(), LEASE)
    assert lease.valid
    assert lease.fence_at == pytest.approx(boottime() + LEASE * FENCE, abs=1)
    assert LEASE * FENCE < LEASE


def test_a_lease_counts_from_before_its_renewal_was_sent() -> None:
    lease = Lease(NODE, boottime() - LEASE, LEASE)
    assert not lease.valid
    lease.renewed(boottime() - LEASE * FENCE - 0.1)
    assert not lease.valid
    lease.renewed(boottime())
    assert lease.valid


def test_a_node_whose_session_was_closed_fences_itself_within_half_the_grace() -> None:
    lease = Lease(NODE, boottime(), LEASE)
    lease.session_lost()
    assert lease.fence_at == pytest.approx(boottime() + GRACE / 2, abs=0.5)
    lease.renewed(boottime())
    assert lease.fence_at == pytest.approx(boottime() + LEASE * FENCE, abs=0.5)


def test_a_server_that_is_down_has_no_rescuers() -> None:
    lease = Lease(NODE, boottime(), LEASE)
    lease.session_lost()
    lease.server_down()
    assert lease.fence_at == pytest.approx(boottime() + LEASE * FENCE, abs=0.5)


def test_a_lease_that_has_ended_is_never_valid_again() -> None:
    lease = Lease(NODE, boottime(), LEASE)
    lease.ended = True
    lease.renewed(boottime())
    assert not lease.valid


def test_slow_sweeps_are_rare_and_all_nodes_together_sweep_as_often_as_one() -> None:
    assert sweep_pause(0.01, nodes=1) == SWEEP_INTERVAL
    assert sweep_pause(0.01, nodes=4) == 4 * SWEEP_INTERVAL
    assert sweep_pause(1.0, nodes=2) == pytest.approx(40)
    assert sweep_pause(100.0, nodes=2) == 2 * LONGEST_SWEEP_INTERVAL, "jobs must not wait for long, however slow it is"
