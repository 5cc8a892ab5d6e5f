"""What a node remembers of a job type: a mean that follows."""

from __future__ import annotations

import pytest

from cluster.coordinator.workload import REMEMBERED, TypeWork


def test_nothing_is_known_before_a_job_has_ended() -> None:
    assert TypeWork("MailJob", 4).told() == {"job_type": "MailJob", "slots": 4, "seconds": 0, "attempts": 0}


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
