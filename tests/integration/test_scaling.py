"""A day, bursts, a type under a limit and a recorded load, simulated with the SQL of cluster.autoscaling, the code by which nodes
measure their work, and the rules of the manifest: jobs start in time, and nodes do not come and go for nothing.
"""

from __future__ import annotations

from pathlib import Path

import psycopg

from bench.scaling.__main__ import draw
from bench.scaling.autoscaler import Autoscaler, Rules
from bench.scaling.loads import LOADS, Load
from bench.scaling.simulation import BOOT, START_WITHIN, Seen, simulate
from cluster.migration import migrate_schema

# KEDA's look, and the autoscaler's first one, which makes more than one node of it; then the pods come up.
FROM_ZERO = Rules.of_component().polling + 15 + BOOT


def run(conn: psycopg.Connection, name: str) -> tuple[Load, Seen]:
    migrate_schema(conn)
    load = LOADS[name]()
    return load, simulate(conn, Rules.of_component(), load)


def test_over_a_day_jobs_start_in_time_and_nodes_come_once_and_go_once(conn: psycopg.Connection) -> None:
    load, seen = run(conn, "day")
    assert seen.within("DayJob", START_WITHIN) > 0.999
    assert seen.turns == 1
    assert max(seen.replicas) > 4 * min(seen.replicas[600:])
    occupied = sum(seen.running) / sum(nodes * load.slots for nodes in seen.nodes)
    assert occupied > 0.6, "no more nodes than it takes"


def test_a_steady_stream_of_short_jobs_has_steady_nodes(conn: psycopg.Connection) -> None:
    _, seen = run(conn, "steady")
    assert seen.within("SteadyJob", START_WITHIN) > 0.99
    assert seen.turns == 1, "what has gathered until the first nodes were there"


def test_long_jobs_find_a_slot_although_those_that_run_leave_none_soon(conn: psycopg.Connection) -> None:
    load, seen = run(conn, "long")
    assert seen.within("LongJob", START_WITHIN / 2) > 0.995
    assert seen.turns <= load.until / 1200


def test_a_burst_wakes_a_cluster_without_nodes_which_sleeps_again_after_it(conn: psycopg.Connection) -> None:
    _, seen = run(conn, "bursts")
    assert seen.within("BurstJob", START_WITHIN + FROM_ZERO) == 1
    assert seen.turns == 2 * 4 - 1, "up and down for each of the four"
    assert seen.replicas[590] == seen.replicas[-1] == 0


def test_a_huge_type_under_a_limit_gets_no_nodes_that_it_can_not_use(conn: psycopg.Connection) -> None:
    _, seen = run(conn, "limited")
    assert max(seen.waiting) > 4900
    assert max(seen.replicas) == 1
    assert seen.turns == 0
    assert seen.within("SteadyJob", START_WITHIN) > 0.999


def test_over_a_recorded_load_jobs_start_in_time_and_no_more_than_one_turn_comes_in_five_minutes(
    conn: psycopg.Connection,
) -> None:
    load, seen = run(conn, "recorded")
    for job_type in seen.delays:
        assert seen.within(job_type, START_WITHIN) > 0.99
    assert seen.turns <= load.until / 300


def test_the_picture_can_be_drawn(tmp_path: Path) -> None:
    load = Load([], 60, 4, {})
    seen = Seen([0.0] * 60, [1] * 60, [1] * 60, [0] * 59 + [1], [0] * 60)
    draw(dict.fromkeys(LOADS, load), dict.fromkeys(LOADS, seen), tmp_path / "scaling.svg")
    assert (tmp_path / "scaling.svg").read_text().startswith("<?xml")


# --- the model itself ---

TRIED = Rules(2, 10, 1, 10, 0, (("Pods", 4, 15),), 30, (("Percent", 50, 15),))


def test_the_model_takes_the_steps_that_a_real_autoscaler_took() -> None:
    """Of two replicas, while 5, then 50 and then none were wanted."""
    autoscaler, taken = Autoscaler(TRIED, 2), []
    for second, metric in ((0, 5), (10, 50), (16, 50), (26, 50), (41, 0), (57, 0)):
        autoscaler.scale(second, metric)
        taken.append(autoscaler.replicas)
    assert taken == [5, 6, 9, 10, 10, 5]


def test_the_model_lets_a_tenth_pass() -> None:
    autoscaler, taken = Autoscaler(TRIED, 8), []
    for second, metric in ((0, 8.7), (60, 7.3), (120, 9)):
        autoscaler.scale(second, metric)
        taken.append(autoscaler.replicas)
    assert taken == [8, 8, 9]


def test_the_model_leaves_none_and_one_to_keda() -> None:
    autoscaler, taken = Autoscaler(TRIED._replace(least=0), 0), []
    for second, metric in ((0, 0.0), (2, 3.0), (3, 0.0), (10, 0.0), (12, 0.0)):
        autoscaler.step(second, metric)
        taken.append(autoscaler.replicas)
    assert taken == [0, 1, 1, 1, 0]
