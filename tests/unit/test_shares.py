"""How much of a limit one node takes while there are others."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from cluster.coordinator import shares
from cluster.coordinator.shares import LONGEST_ALONE, PATIENCE, SHORTEST_ALONE, Share
from tests.support.clocks import stop_clock

LIMIT = 10


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return stop_clock(monkeypatch, shares)


def of(nodes: int) -> Share:
    return Share(lambda: nodes)


def take_what_nobody_wants(node: Share, clock: SimpleNamespace) -> None:
    assert node.places(LIMIT, held=lambda: LIMIT) == 0
    clock.now += PATIENCE
    assert node.places(LIMIT, held=lambda: LIMIT) == math.inf


def test_a_lone_node_takes_all() -> None:
    assert of(1).places(LIMIT, held=lambda: LIMIT) == math.inf
    assert not of(1).exceeded(LIMIT, held=lambda: LIMIT)


def test_a_node_takes_its_share_at_once_rounded_up() -> None:
    node = of(3)
    assert node.places(LIMIT, held=lambda: 0) == 4
    assert node.places(LIMIT, held=lambda: 3) == 1
    assert not node.exceeded(LIMIT, held=lambda: 4)
    assert node.exceeded(LIMIT, held=lambda: 5)
    assert node.wait() == math.inf


def test_more_nodes_than_places_leave_each_one() -> None:
    assert of(16).places(LIMIT, held=lambda: 0) == 1


def test_more_than_its_share_is_left_to_others_for_a_moment_only(clock: SimpleNamespace) -> None:
    node = of(2)
    assert node.places(LIMIT, held=lambda: 5) == 0
    assert node.wait() == pytest.approx(PATIENCE)
    clock.now += PATIENCE * 0.9
    assert node.places(LIMIT, held=lambda: 5) == 0
    clock.now += PATIENCE * 0.2
    assert node.wait() == 0
    assert node.places(LIMIT, held=lambda: 5) == math.inf


def test_what_nobody_has_wanted_is_not_left_again_for_a_while(clock: SimpleNamespace) -> None:
    node = of(2)
    take_what_nobody_wants(node, clock)
    clock.now += SHORTEST_ALONE * 0.9
    assert node.places(LIMIT, held=lambda: 9) == math.inf
    assert not node.exceeded(LIMIT, held=lambda: 9)
    clock.now += SHORTEST_ALONE * 0.2
    assert node.exceeded(LIMIT, held=lambda: 9)
    assert node.places(LIMIT, held=lambda: 9) == 0


def test_it_asks_ever_less_often_while_nobody_wants_any(clock: SimpleNamespace) -> None:
    node = of(2)
    length = SHORTEST_ALONE
    for _ in range(6):
        take_what_nobody_wants(node, clock)
        clock.now += length * 0.99
        assert not node.exceeded(LIMIT, held=lambda: LIMIT)
        clock.now += length * 0.02
        assert node.exceeded(LIMIT, held=lambda: LIMIT)
        length = min(LONGEST_ALONE, length * 2)


def test_what_others_have_taken_starts_it_over(clock: SimpleNamespace) -> None:
    node = of(2)
    for _ in range(3):
        take_what_nobody_wants(node, clock)
        clock.now += LONGEST_ALONE
    assert node.places(LIMIT, held=lambda: 5) == 0
    node.taken()
    assert node.wait() == math.inf
    take_what_nobody_wants(node, clock)
    clock.now += SHORTEST_ALONE * 1.01
    assert node.exceeded(LIMIT, held=lambda: LIMIT)
