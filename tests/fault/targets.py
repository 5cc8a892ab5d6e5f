"""Where a fault hurts most."""

from __future__ import annotations

from tests.fault.harness import Stage
from tests.fault.nodes import FaultNode


def busy_node(stage: Stage, *others: FaultNode) -> FaultNode:
    """The node with most executions in progress, of those that run; not one of the others."""
    pids = [execution.pid for execution in stage.running()]
    return max(
        (node for node in stage.nodes if node.exit_code is None and node not in others),
        key=lambda n: sum(p in n.workers() for p in pids),
    )


def busy_worker(stage: Stage, node: FaultNode) -> int:
    """The worker of a node with most executions in progress."""
    pids = [execution.pid for execution in stage.running()]
    return max(node.workers(), key=pids.count)
