"""Every fault of the suite, a short function each, and the table of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

import psycopg

from tests.fault import combined
from tests.fault.disk import SmallDiskStage
from tests.fault.harness import Stage
from tests.fault.load import HEARTBEAT, TABLES
from tests.fault.network import SERVER, NetworkStage
from tests.fault.nodes import children, stopped
from tests.fault.obstacles import OBSTACLES
from tests.fault.obstructed import ObstacleStage, beside, drain_beside, prune_beside
from tests.fault.proxy import HalfClaim, Loss, ProxyStage
from tests.fault.servers import ClockStage, FailoverStage, PoolerStage
from tests.fault.strangers import (
    HeldLocksStage,
    ProbedStage,
    ReadStage,
    held_locks,
    hostile_notifies,
    slow_probes,
    stopped_log_reader,
)
from tests.fault.switch import LossyStage
from tests.fault.targets import busy_node, busy_worker
from tests.support.nodes import wait_until


@dataclass(frozen=True)
class Scenario:
    """fault: in words, for the table. afterwards: seconds of load after the fault. busy_with: types in progress when it comes."""

    name: str
    fault: str
    inject: Callable[[Stage], None]
    stage: type[Stage] = Stage
    nodes: int = 2
    afterwards: float = 2.0
    busy_with: frozenset[str] = frozenset({"LongJob", "SlowJob"})
    in_short: bool = False
    """Part of `make test`."""


# --- processes killed ---


def calm(stage: Stage) -> None:
    stage.wait(5)


def kill_workers(stage: Stage) -> None:
    for _ in stage.rounds(4):
        stage.fault()
        os.kill(busy_worker(stage, busy_node(stage)), signal.SIGKILL)
        stage.wait(1)


def kill_coordinator(stage: Stage) -> None:
    for _ in stage.rounds(2):
        node = busy_node(stage)
        stage.fault()
        node.kill()
        node.wait_gone()
        stage.replace()
        stage.wait(1)


def kill_forkserver(stage: Stage) -> None:
    for _ in stage.rounds(3):
        node = busy_node(stage)
        stage.fault()
        os.kill(node.forkserver, signal.SIGKILL)
        stage.wait(2)
        wait_until(lambda node=node: len(node.workers()) == 2, "its workers are back", 10)  # type: ignore[misc]


def kill_node(stage: Stage) -> None:
    for _ in stage.rounds(2):
        node = busy_node(stage)
        stage.fault()
        node.kill_all()
        stage.wait(3)
        stage.replace()


def kill_all_nodes(stage: Stage) -> None:
    stage.fault()
    living = list(stage.nodes)
    for node in living:
        node.kill_all()
    for _ in living:
        stage.replace()


# --- processes stopped ---


def stop_worker(stage: Stage) -> None:
    worker = busy_worker(stage, busy_node(stage))
    stage.fault()
    with stopped([worker]):
        stage.wait(stage.lease * 1.5)


def stop_idle_worker(stage: Stage) -> None:
    """It performs nothing at that moment, is sent jobs all the same, and is never continued."""
    node = busy_node(stage)
    idle: list[int] = []

    def find_idle() -> bool:
        busy = {execution.pid for execution in stage.running()}
        idle[:] = [pid for pid in node.workers() if pid not in busy]
        return bool(idle)

    wait_until(find_idle, "a worker has nothing to do", 20)
    os.kill(idle[0], signal.SIGSTOP)
    stage.fault()
    wait_until(lambda: idle[0] not in node.workers(), "the stopped worker is replaced", 40)
    stage.wait(2)


def stop_forkserver(stage: Stage) -> None:
    forkserver = busy_node(stage).forkserver
    stage.fault()
    with stopped([forkserver]):
        stage.wait(stage.lease * 1.5)


def stop_coordinator(stage: Stage) -> None:
    node = busy_node(stage)
    stage.fault()
    with stopped([node.pid]):
        stage.wait(stage.lease * 1.5)


def stop_coordinator_briefly(stage: Stage) -> None:
    """As long as the fence takes: the moment at which both might believe that the jobs are theirs."""
    for pause in (stage.lease * 0.7, stage.lease * 0.8, stage.lease * 0.9):
        node = busy_node(stage)
        stage.fault()
        with stopped([node.pid]):
            stage.wait(pause)
        stage.wait(1.5)


def stop_node(stage: Stage) -> None:
    node = busy_node(stage)
    stage.fault()
    with stopped(node.processes()):
        stage.wait(stage.lease * 1.5)


def rolling_restart(stage: Stage) -> None:
    for node in list(stage.nodes):
        stage.fault()
        node.terminate()
        stage.replace()
        assert node.wait_exit(30) == 0


# --- the network ---


def cut_both(stage: Stage) -> None:
    _cut(stage, "from", "to")


def cut_requests(stage: Stage) -> None:
    _cut(stage, "from")


def cut_answers(stage: Stage) -> None:
    _cut(stage, "to")


def _cut(stage: Stage, *directions: str) -> None:
    assert isinstance(stage, NetworkStage)
    node = busy_node(stage)
    stage.fault()
    stage.network.cut(node.number, *directions)
    stage.wait(stage.lease * 1.5 + 3)
    stage.network.heal(node.number, *directions)
    stage.wait(2)


def cut_again_and_again(stage: Stage) -> None:
    """Shorter than the lease: nobody may lose anything but time."""
    assert isinstance(stage, NetworkStage)
    for round_ in range(6):
        number = round_ % len(stage.nodes)
        stage.fault()
        stage.network.cut(number, "from", "to")
        stage.wait(1.5)
        stage.network.heal(number, "from", "to")
        stage.wait(1.5)


def cut_server(stage: Stage) -> None:
    """Everybody at once: when it is over, nobody is rescued."""
    assert isinstance(stage, NetworkStage)
    stage.fault()
    stage.network.cut(SERVER, "from", "to")
    stage.wait(stage.lease * 1.5)
    stage.network.heal(SERVER, "from", "to")
    stage.wait(4)


def slow_network(stage: Stage) -> None:
    assert isinstance(stage, ProxyStage)
    stage.fault()
    for delay in (0.05, 0.2, 0.0):
        for proxy in stage.proxies:
            proxy.delay = delay
        stage.wait(5)


def lossy_network(stage: Stage) -> None:
    """Real packets, so that TCP has to send them again, and waits longer each time. delay: of each direction."""
    assert isinstance(stage, LossyStage)
    switch, before = stage.network.switch, stage.network.retransmitted()
    stage.fault()
    switch.loss = 0.05
    for delay in (0.15, 0.3):
        switch.delay = delay
        stage.wait(10)
    assert switch.lost > 0, "no packet was lost"
    assert stage.network.retransmitted() > before, "nothing was sent again"
    switch.loss = switch.delay = 0.0
    stage.wait(2)


def lose_claims(stage: Stage) -> None:
    _lose_answers(stage, "claim", hang=False)


def lose_claims_silently(stage: Stage) -> None:
    _lose_answers(stage, "claim", hang=True, rounds=1)


def lose_outcomes(stage: Stage) -> None:
    _lose_answers(stage, "finish", hang=False)


def lose_outcomes_silently(stage: Stage) -> None:
    _lose_answers(stage, "finish", hang=True, rounds=1)


def lose_renewals(stage: Stage) -> None:
    _lose_answers(stage, "heartbeat", hang=False)


def _lose_answers(stage: Stage, session: str, *, hang: bool, rounds: int = 5) -> None:
    """Committed, and nobody is told."""
    assert isinstance(stage, ProxyStage)
    for round_ in range(rounds):
        for proxy in stage.proxies:
            loss = proxy.answered = Loss(session, hang=hang)
            stage.fault()
            assert loss.lost.wait(10), f"no answer on session {session} in round {round_}"
        stage.wait(12 if hang else 0.5)


def lose_half_a_claim(stage: Stage) -> None:
    """The COMMIT never arrives, nor does anything else on that connection: the server keeps an open transaction."""
    assert isinstance(stage, ProxyStage)
    half = stage.proxies[0].asked = HalfClaim()
    stage.fault()
    assert half.done.wait(10), "no claim of a limited type"
    stage.wait(15)


# --- Postgres ---


def restart_immediate(stage: Stage) -> None:
    for _ in stage.rounds(2):
        stage.fault()
        stage.server.restart("immediate")
        stage.wait(3)


def restart_fast(stage: Stage) -> None:
    for _ in stage.rounds(2):
        stage.fault()
        stage.server.restart("fast")
        stage.wait(3)


def restart_smart(stage: Stage) -> None:
    """It takes no new sessions and waits for the old ones, which nodes never end: so after a while it is told to be fast."""
    postmaster = stage.server.pid
    assert postmaster is not None
    stage.fault()
    os.kill(postmaster, signal.SIGTERM)
    wait_until(lambda: _refused(stage), "new sessions are refused", 5)
    before = len(stage.executions())
    stage.wait(stage.lease * 1.5)
    assert stage.server.pid == postmaster, "the sessions of the nodes ended by themselves"
    assert len(stage.executions()) > before, "nothing began in the sessions that are open"
    stage.fault()
    stage.server.restart("fast")
    stage.wait(3)


def _refused(stage: Stage) -> bool:
    try:
        stage.connect().close()
    except psycopg.OperationalError as error:
        return "shutting down" in str(error)
    return False


def fill_disk(stage: Stage) -> None:
    """No table can grow: claims and outcomes fail that need room, for longer than the lease."""
    assert isinstance(stage, SmallDiskStage)
    stage.enqueue("SlowJob", 60)
    stage.enqueue("FastJob", 1000)
    stage.fault()
    stage.fill()
    stage.wait(stage.lease * 1.5)
    assert any("No space left" in line["detail"] for node in stage.nodes for line in node.log("trouble_began"))
    stage.free()
    stage.server.start()
    stage.wait(3)


def fill_disk_of_log(stage: Stage) -> None:
    """Nor can the write-ahead log: Postgres panics, and cannot recover until there is room."""
    assert isinstance(stage, SmallDiskStage)
    postmaster = stage.server.pid
    stage.fault()
    stage.fill()
    stage.use_up_log()
    wait_until(lambda: stage.server.pid != postmaster, "Postgres gives up", 20)
    stage.wait(stage.lease * 1.5)
    stage.free()
    stage.server.start()
    stage.wait(3)


def away_past_the_lease(stage: Stage) -> None:
    stage.fault()
    stage.server.stop("fast")
    stage.wait(stage.lease * 1.5)
    stage.server.start()
    stage.wait(3)


def terminate_backends(stage: Stage) -> None:
    with stage.connect() as connection:
        for _ in range(30):
            stage.fault()
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'jobcluster%'"
            )
            stage.wait(0.3)


def stop_server(stage: Stage) -> None:
    """All of Postgres stopped: no setting of the network notices."""
    postmaster = stage.server.pid
    assert postmaster is not None
    stage.fault()
    with stopped([postmaster, *children(postmaster)]):
        stage.wait(stage.lease * 1.5)
    stage.wait(3)


def fail_over(stage: Stage) -> None:
    assert isinstance(stage, FailoverStage)
    stage.fault()
    stage.fail_over()
    stage.wait(5)


def pooler(stage: Stage) -> None:
    stage.wait(5)


def restart_pooler(stage: Stage) -> None:
    assert isinstance(stage, PoolerStage)
    for _ in stage.rounds(2):
        stage.fault()
        stage.pooler.stop()
        stage.wait(2)
        stage.pooler.start()
        stage.wait(3)


def pooler_kill_node(stage: Stage) -> None:
    kill_node(stage)


# --- clocks ---


def clock_jumps(stage: Stage) -> None:
    assert isinstance(stage, ClockStage)
    for offset in ("+3600", "-3600", "+0"):
        stage.fault()
        stage.set_clock(0, offset)
        stage.wait(4)


# --- people ---


def hold_table_lock(stage: Stage) -> None:
    """Everything else goes on: jobs of other types start all the time."""
    with stage.connect() as connection, connection.transaction():
        stage.fault()
        connection.execute("LOCK TABLE slow_jobs IN ACCESS EXCLUSIVE MODE")
        before = len(stage.executions())
        for _ in range(10):
            stage.wait(2)
            starts = len(stage.executions())
            assert starts > before, "nothing began for 2 s while one table was locked"
            before = starts


def hold_row_lock(stage: Stage) -> None:
    """A psql that has forgotten to commit holds rows that run and rows that wait; the others go on."""
    with stage.connect() as connection, connection.transaction():
        stage.fault()
        for table in ("slow_jobs", "fast_jobs", "long_jobs"):
            connection.execute(f"SELECT FROM {table} WHERE status = 'running' FOR UPDATE")
        before = len(stage.executions())
        for _ in range(10):
            stage.wait(2)
            starts = len(stage.executions())
            assert starts > before, "nothing began for 2 s while rows were locked"
            before = starts


def delete_running(stage: Stage) -> None:
    _remove(stage, "DELETE FROM {table} WHERE status = 'running' RETURNING id")


def truncate(stage: Stage) -> None:
    _remove(stage, "TRUNCATE {table}")


def drop_table(stage: Stage) -> None:
    _remove(stage, "DROP TABLE {table}")


def _remove(stage: Stage, statement: str) -> None:
    """Their jobs are stopped within a heartbeat, and those of other types know nothing of it."""
    assert stage.producer is not None
    if statement.startswith("DROP"):
        stage.producer.left_out |= {"LongJob", "StrictJob"}
    removed = set()
    with stage.connect() as connection:
        stage.fault()
        for name in ("LongJob", "StrictJob"):
            with connection.transaction():
                connection.execute(f"LOCK TABLE {TABLES[name]} IN ACCESS EXCLUSIVE MODE")
                where = "WHERE status = 'running'" if statement.startswith("DELETE") else ""
                ids = connection.execute(f"SELECT id FROM {TABLES[name]} {where}").fetchall()
                connection.execute(statement.format(table=TABLES[name]))
            removed |= {(name, job_id) for (job_id,) in ids}
    stage.deleted |= removed
    still = {"LongJob", "StrictJob"}
    wait_until(
        lambda: not any(e.job in removed and e.job[0] in still for e in stage.running()),
        "jobs whose rows are gone are stopped", HEARTBEAT * 2 + 0.5,
    )  # fmt: skip


def refusing_trigger(stage: Stage) -> None:
    """A trigger of the user's refuses every update of some rows for a while; the others go on."""
    with stage.connect() as connection:
        connection.execute(REFUSE)
        stage.fault()
        stage.wait(6)
        connection.execute("DROP TRIGGER refuse ON fast_jobs")
        ids = connection.execute("SELECT id FROM fast_jobs WHERE id % 7 = 0").fetchall()
    stage.may_fail |= {("FastJob", job_id) for (job_id,) in ids}


REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON fast_jobs
FOR EACH ROW WHEN (NEW.id % 7 = 0 AND NEW.status <> 'failed') EXECUTE FUNCTION refuse()
"""


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("calm", "none", calm),
        Scenario("kill_workers", "kill -9 of worker processes", kill_workers, in_short=True),
        Scenario("kill_coordinator", "kill -9 of a coordinator", kill_coordinator),
        Scenario("kill_forkserver", "kill -9 of a forkserver, which holds the death timer", kill_forkserver),
        Scenario("kill_node", "kill -9 of a whole node", kill_node, nodes=3, in_short=True),
        Scenario("kill_all_nodes", "kill -9 of all nodes at once", kill_all_nodes),
        Scenario("stop_worker", "a worker process stopped past the lease", stop_worker),
        Scenario("stop_idle_worker", "an idle worker process stopped for good", stop_idle_worker),
        Scenario("stop_forkserver", "a forkserver stopped past the lease", stop_forkserver),
        Scenario("stop_coordinator", "a coordinator stopped past the lease", stop_coordinator, in_short=True),
        Scenario(
            "stop_coordinator_briefly", "a coordinator stopped about as long as the lease", stop_coordinator_briefly
        ),
        Scenario("stop_node", "a whole node stopped past the lease", stop_node),
        Scenario("rolling_restart", "all nodes restarted one by one", rolling_restart),
        Scenario("cut_both", "a node cut off from Postgres, silently", cut_both, NetworkStage),
        Scenario("cut_requests", "a one-way cut: nothing reaches Postgres", cut_requests, NetworkStage),
        Scenario("cut_answers", "a one-way cut: nothing comes back from Postgres", cut_answers, NetworkStage),
        Scenario("cut_again_and_again", "cuts shorter than the lease, in turn", cut_again_and_again, NetworkStage),
        Scenario("cut_server", "Postgres cut off from all nodes past the lease", cut_server, NetworkStage),
        Scenario("slow_network", "round trips of 100 to 400 ms", slow_network, ProxyStage),
        Scenario("lossy_network", "300 to 600 ms and 5 % of all packets lost", lossy_network, LossyStage),
        Scenario("lose_claims", "the answer to a committed claim is lost", lose_claims, ProxyStage),
        Scenario(
            "lose_claims_silently", "… to a committed claim, and the connection hangs", lose_claims_silently, ProxyStage
        ),
        Scenario("lose_outcomes", "the answer to committed outcomes is lost", lose_outcomes, ProxyStage),
        Scenario(
            "lose_outcomes_silently",
            "… to committed outcomes, and the connection hangs",
            lose_outcomes_silently,
            ProxyStage,
        ),
        Scenario("lose_renewals", "the answer to a renewed lease is lost", lose_renewals, ProxyStage),
        Scenario(
            "lose_half_a_claim", "a claim arrives without its COMMIT, then silence", lose_half_a_claim, ProxyStage
        ),
        Scenario("restart_immediate", "Postgres restarted, mode immediate (a crash)", restart_immediate, in_short=True),
        Scenario("restart_fast", "Postgres restarted, mode fast", restart_fast),
        Scenario("restart_smart", "Postgres restarted, mode smart, in the end fast", restart_smart),
        Scenario("fill_disk", "Postgres's disk full past the lease", fill_disk, SmallDiskStage),
        Scenario("fill_disk_of_log", "… until Postgres panics, for want of log", fill_disk_of_log, SmallDiskStage),
        Scenario("away_past_the_lease", "Postgres away for longer than the lease", away_past_the_lease),
        Scenario("terminate_backends", "all sessions ended every 300 ms", terminate_backends),
        Scenario("stop_server", "all of Postgres stopped past the lease", stop_server),
        Scenario("fail_over", "primary killed, synchronous standby promoted", fail_over, FailoverStage),
        Scenario("pooler", "none, behind PgBouncer in transaction mode", pooler, PoolerStage),
        Scenario("restart_pooler", "PgBouncer killed and started again", restart_pooler, PoolerStage),
        Scenario("pooler_kill_node", "kill -9 of a node behind PgBouncer", pooler_kill_node, PoolerStage),
        Scenario("clock_jumps", "a node's wall clock jumps by an hour and back", clock_jumps, ClockStage),
        Scenario("hold_table_lock", "a session holds a whole job table locked for 20 s", hold_table_lock),
        Scenario("hold_row_lock", "a session holds running rows locked for 20 s", hold_row_lock),
        Scenario("delete_running", "DELETE of running rows", delete_running),
        Scenario("truncate", "TRUNCATE of job tables in use", truncate),
        Scenario("drop_table", "DROP TABLE of job tables in use", drop_table),
        Scenario("refusing_trigger", "a trigger refuses updates of some rows", refusing_trigger),
        Scenario("upgrade", "a column added, new nodes beside old ones, old ones drained", combined.upgrade),
        Scenario("kill_node_while_away", "a node killed while Postgres is away", combined.kill_node_while_away),
        Scenario(
            "die_while_firing",
            "200 schedules of a second; nodes killed, then Postgres",
            combined.die_while_firing,
            nodes=3,
        ),
        Scenario("kill_rescuer", "a node killed, then the one that rescues", combined.kill_rescuer, nodes=3),
        Scenario(
            "restart_while_stopped", "Postgres restarted while a coordinator is stopped", combined.restart_while_stopped
        ),
        Scenario(
            "cut_while_draining",
            "a node cut off while another drains",
            combined.cut_while_draining,
            NetworkStage,
            nodes=3,
        ),
        Scenario("cut_the_draining", "a node cut off while it drains", combined.cut_the_draining, NetworkStage),
        *(
            Scenario(name, f"{OBSTACLES[name].words}; a node killed", inject(name), ObstacleStage, nodes=3)
            for name, inject in (
                ("odd_rows", beside),
                ("refuse_claims", beside),
                ("refuse_all_claims", beside),
                ("one_runs", beside),
                ("refuse_outcomes", beside),
                ("refuse_all_outcomes", beside),
                ("refuse_promotions", beside),
                ("refuse_releases", drain_beside),
                ("refuse_pruning", prune_beside),
                ("slow_claims", beside),
                ("slow_outcomes", beside),
                ("revoked_update", beside),
                ("revoked_select", beside),
                ("row_security", beside),
            )
        ),
        Scenario(
            "hostile_notifies",
            "a login without rights rings and cancels; a node killed",
            hostile_notifies,
            ObstacleStage,
            3,
        ),
        Scenario(
            "held_locks",
            "a login without rights holds all advisory locks; a node killed",
            held_locks,
            HeldLocksStage,
            3,
        ),
        Scenario(
            "slow_probes", "200 slow clients a second at each probe port; a node killed", slow_probes, ProbedStage, 3
        ),
        Scenario(
            "stopped_log_reader", "whoever reads the nodes' logs stops; a node killed", stopped_log_reader, ReadStage, 3
        ),
    )
}
