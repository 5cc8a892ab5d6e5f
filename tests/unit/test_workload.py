"""What a node remembers of a job type: a mean that follows, and an average that does not jump."""

from __future__ import annotations

from collections import Counter

import pytest

from cluster.coordinator.workload import REMEMBERED, TypeWork


def test_nothing_is_known_before_a_job_has_ended() -> None:
    assert TypeWork("MailJob", 4).told() == {"job_type": "MailJob", "slots": 4, "seconds": 0, "attempts": 0, "busy": {}}


def test_the_mean_is_that_of_all_attempts_and_later_of_the_last_ones() -> None:
    work = TypeWork("MailJob", 1)
    work.ended(10, 20.0)
    work.ended(10, 20.0)
    work.ended(40, 110.0)
    assert (work.told()["seconds"], work.told()["attempts"]) == (110 / 40, 40)
    work.ended(1000, 110.0 + 960)
    assert work.told()["attempts"] == REMEMBERED
    for number in range(1, 11):
        work.ended(1000 + 100 * number, 1070.0 + 700 * number)
    assert work.told()["seconds"] == pytest.approx(7, rel=0.01)


def test_what_runs_is_averaged_by_queue_and_forgotten_when_it_has_long_ended() -> None:
    work = TypeWork("MailJob", 1)
    work.ran(Counter({"mail": 8}), 0.0)
    work.ran(Counter({"mail": 4, "bulk": 2}), 0.5)
    assert work.told()["busy"] == {"mail": 6, "bulk": 1}
    for _ in range(4):
        work.ran(Counter({"bulk": 1}), 0.25)
    assert work.told()["busy"] == {"bulk": 1}
