"""Whatever others send is read or refused, and never an error of another kind. Frames and notes have such tests of their own."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from cluster.coordinator.doorbell import _text, parse_numbers
from cluster.errors import ClusterError
from cluster.settings import load_settings

VARIABLES = ("CLUSTER_QUEUES", "CLUSTER_PROCESSES", "CLUSTER_LEASE", "CLUSTER_HTTP_PORT", "CLUSTER_DATABASE_URL")


@given(st.binary() | st.from_regex(rb"[0-9 +-]{0,40}", fullmatch=True))
def test_any_notification_is_one_or_two_numbers_or_nothing(raw: bytes) -> None:
    numbers = parse_numbers(_text(raw))
    assert len(numbers) <= 2
    assert all(0 <= number < 2**63 for number in numbers)


@given(st.dictionaries(st.sampled_from(VARIABLES), st.text()))
def test_any_environment_is_taken_or_refused(environ: dict[str, str]) -> None:
    with contextlib.suppress(ClusterError):
        load_settings(environ).describe()
