"""Two faults at once, and a change of version while everything runs."""

from __future__ import annotations

from tests.fault.harness import Stage
from tests.fault.load import NOTE, next_version
from tests.fault.network import NetworkStage
from tests.fault.nodes import FaultNode, stopped
from tests.fault.targets import busy_node
from tests.support.nodes import wait_until


def kill_node_while_away(stage: Stage) -> None:
    """Postgres crashes, and a node dies before it is back: nobody has seen the node live."""
    for _ in stage.rounds(2):
        node = busy_node(stage)
        stage.fault()
        stage.server.stop("immediate")
        node.kill_all()
        stage.wait(1)
        stage.server.start()
        stage.wait(3)
        stage.replace()


def die_while_firing(stage: Stage) -> None:
    """Two hundred schedules of a second each, so there is hardly a moment at which none is being fired."""
    with stage.connect() as connection:
        connection.execute(
            "INSERT INTO cluster.schedules (name, job_table, every, misfire, overlap, on_error)"
            " SELECT 'often ' || n, 'tick_jobs', '1 second', 'all', 'allow', 'keep' FROM generate_series(1, 200) AS n"
        )
    for _ in stage.rounds(3):
        stage.wait(3)
        node = busy_node(stage)
        stage.fault()
        node.kill_all()
        stage.replace()
    stage.fault()
    stage.server.restart("immediate")
    stage.wait(4)


def kill_rescuer(stage: Stage) -> None:
    """A node dies, and so does the one that has just declared it lost."""
    victim = busy_node(stage)
    stage.fault()
    victim.kill_all()
    others = [node for node in stage.nodes if node is not victim]
    wait_until(lambda: any(node.log("node_lost") for node in others), "the dead node is declared lost", 15)
    rescuer = next(node for node in others if node.log("node_lost"))
    stage.fault()
    rescuer.kill_all()
    stage.wait(3)
    stage.replace()
    stage.replace()


def restart_while_stopped(stage: Stage) -> None:
    """A coordinator is stopped, and its sessions end behind its back."""
    node = busy_node(stage)
    stage.fault()
    with stopped([node.pid]):
        stage.wait(1)
        stage.fault()
        stage.server.restart("immediate")
        stage.wait(stage.lease * 1.5)
    stage.wait(3)


def cut_while_draining(stage: Stage) -> None:
    """One node drains, another is cut off past its lease; a third goes on."""
    assert isinstance(stage, NetworkStage)
    draining = busy_node(stage)
    draining.terminate()
    cut = busy_node(stage, draining)
    stage.fault()
    stage.network.cut(cut.number, "from", "to")
    stage.wait(stage.lease * 1.5 + 3)
    stage.network.heal(cut.number, "from", "to")
    assert draining.wait_exit(30) == 0
    stage.replace()


def cut_the_draining(stage: Stage) -> None:
    """A node is cut off for a while as soon as it begins to drain: its outcomes must wait, or be lost with it."""
    assert isinstance(stage, NetworkStage)
    for seconds in (2.0, stage.lease * 1.5):
        node = busy_node(stage)
        node.terminate()
        stage.fault()
        stage.network.cut(node.number, "from", "to")
        stage.wait(seconds)
        stage.network.heal(node.number, "from", "to")
        assert node.wait_exit(30) == 0
        stage.replace()


def upgrade(stage: Stage) -> None:
    """The column is added under load; old nodes go on beside new ones, and another old one starts, before the old ones drain."""
    old = list(stage.nodes)
    stage.fault()
    newer = next_version(stage.source)
    stage.migrate(newer)
    old.append(stage.replace())
    _work(stage, len(stage.executions()), old, "FastJob", "SlowJob")
    stage.source = newer
    new = [stage.add_node(), stage.add_node()]
    for node in new:
        node.wait_ready()
    with stage.connect() as connection:
        values = connection.execute("SELECT DISTINCT note FROM fast_jobs").fetchall()
    assert values == [(NOTE,)], values
    since = len(stage.executions())
    stage.enqueue("FastJob", 2000)  # more than one node has room for
    _work(stage, since, old, "FastJob")
    _work(stage, since, new, "FastJob")
    stage.fault()
    for node in old:
        node.terminate()
    assert [node.wait_exit(30) for node in old] == [0] * len(old)
    _work(stage, since, new, "FastJob", "SlowJob")


def _work(stage: Stage, since: int, nodes: list[FaultNode], *names: str) -> None:
    """Until these nodes have begun a job of each of these types, not counting so many executions at first."""
    pids = {pid for node in nodes for pid in node.workers()}

    def work() -> bool:
        return {execution.job[0] for execution in stage.executions()[since:] if execution.pid in pids} >= set(names)

    wait_until(work, f"{', '.join(names)} performed by one of {len(nodes)} nodes", 30)
