"""No wake-up is lost, in any order of events; and without any one rule of the doorbell one is. See tests/support/doorbell_model.py.

What holds each rule: LOCK_UNTIL_COMMIT, `pg_try_advisory_xact_lock_shared` in the triggers of migration 0001. LISTEN_FIRST
and A_CUT_WAKES, `Doorbell._listen` and `_arrived`. PRODUCERS_KEEP_AWAKE, watch_doorbell.sql and `Claimer._watch`; SECOND_LOOK,
`_watch` too: a whole one, see bounds.py. LOCKED_ROWS_KEEP_AWAKE, the plain look of look_for_jobs.sql and `Miss`.
RINGS_ARE_KEPT, `Wakeup`.
HAND_OVER_WHEN_FULL and LEAVE_BEFORE_CALL, `Doorbell.hand_over`. ROOM_WAKES, `Claimer.room`. FREED_LIMIT_WAKES_ITSELF,
`Claimer.limit_freed`. SILENT_LEAVER_CALLS, what `Doorbell` owes. STOPPING_CALLS, `Claimer.stop`. FOREIGN_ROWS_ARE_CALLED,
`Claimer._next`. FULL_FOR_ONE_TABLE_WATCHES_ON, the `passed` of `Claimer._next`. SILENCE_COMES_AFTER_THE_WATCH,
`Doorbell.looking` and `looked`; A_RING_ENDS_SILENCE, `_received`.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.support.doorbell_model import Model, Rule, Setup

ONE, TWO = (1,), (2,)

WHOLE = {
    "three inserts": Setup((0, 0, 0), (ONE, ONE), deaths=False),
    "a node with more room": Setup((0, 0), (TWO, ONE), deaths=False),
    "three nodes": Setup((0,), (ONE, ONE, ONE)),
    "everything goes wrong": Setup((0,), (ONE, ONE), cuts=True, stops=True, often=True),
    "often rung": Setup((0, 0), (ONE, ONE), deaths=False, often=True),
    "a limit": Setup((0, 0), (TWO, TWO), limit=1, deaths=False),
    "a queue that one node does not serve": Setup((0,), ((1, 0), (0, 1))),
    "two queues, each with a node of its own": Setup((0, 1), ((1, 0), (0, 1)), deaths=False),
    "two types": Setup((0, 1), ((1, 1), (1, 1)), tables=(0, 1), deaths=False),
    "two types, one with a limit": Setup((0, 1), ((1, 1), (1, 1)), tables=(0, 1), limit=1, deaths=False),
    "two types, cut off": Setup((0,), ((1, 1), (1, 1)), tables=(0, 1), cuts=True, deaths=False),
    "two types, often rung": Setup((0,), ((1, 1), (1, 1)), tables=(0, 1), often=True, deaths=False),
}

WITHOUT = {
    Rule.LOCK_UNTIL_COMMIT: Setup((0,), (ONE,), deaths=False),
    Rule.LISTEN_FIRST: Setup((0,), (ONE,), deaths=False),
    Rule.SECOND_LOOK: Setup((0,), (ONE,), deaths=False),
    Rule.PRODUCERS_KEEP_AWAKE: Setup((0,), (ONE,), deaths=False),
    Rule.LOCKED_ROWS_KEEP_AWAKE: Setup((0,), (ONE, ONE)),
    Rule.RINGS_ARE_KEPT: Setup((0,), (ONE,), deaths=False),
    Rule.HAND_OVER_WHEN_FULL: Setup((0, 0), (ONE, ONE), deaths=False),
    Rule.LEAVE_BEFORE_CALL: WHOLE["three inserts"],
    Rule.ROOM_WAKES: Setup((0, 0), (ONE,), deaths=False),
    Rule.A_CUT_WAKES: Setup((0,), (ONE,), deaths=False, cuts=True),
    Rule.FREED_LIMIT_WAKES_ITSELF: Setup((0, 0), (TWO,), limit=1, deaths=False),
    Rule.SILENT_LEAVER_CALLS: WHOLE["often rung"],
    Rule.STOPPING_CALLS: Setup((0,), (ONE, ONE), deaths=False, stops=True),
    Rule.FOREIGN_ROWS_ARE_CALLED: Setup((0,), ((1, 0), (0, 1)), deaths=False),
    Rule.FULL_FOR_ONE_TABLE_WATCHES_ON: Setup((0, 0, 1), ((1, 1),), tables=(0, 1), deaths=False),
    Rule.SILENCE_COMES_AFTER_THE_WATCH: Setup((0,), (ONE,), deaths=False),
    Rule.A_RING_ENDS_SILENCE: Setup((0,), (ONE,), deaths=False),
}


@cache
def search(setup: Setup, without: Rule | None = None) -> str | None:
    """The steps to a lost wake-up."""
    lost = Model(setup, without=[without] if without else []).search().lost
    return None if lost is None else "\n".join(lost)


@pytest.mark.parametrize("setup", WHOLE.values(), ids=WHOLE.keys())
def test_no_wake_up_is_lost(setup: Setup) -> None:
    assert search(setup) is None


@pytest.mark.parametrize("rule", Rule, ids=lambda rule: rule.name.lower())
def test_without_any_one_rule_a_wake_up_is_lost(rule: Rule) -> None:
    assert search(WITHOUT[rule]) is None
    assert search(WITHOUT[rule], rule) is not None, rule.value
