"""For tests of applications: what is enqueued, what jobs do, and whether they may be run twice. On a real database, always."""

from cluster.testing.drain import drain, perform_job
from cluster.testing.enqueued import assert_enqueued, refute_enqueued
from cluster.testing.inline_node import Performed
from cluster.testing.repeatable import assert_repeatable
from cluster.testing.session_adapter import check_async_session_adapter, check_session_adapter
from cluster.testing.travel import travel

__all__ = [
    "Performed",
    "assert_enqueued",
    "assert_repeatable",
    "check_async_session_adapter",
    "check_session_adapter",
    "drain",
    "perform_job",
    "refute_enqueued",
    "travel",
]
