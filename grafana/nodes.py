"""Nodes: slots, heartbeats, memory, worker exits, clocks."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders.dashboard import Row
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import Dashboard, Panel

from grafana.frame import NODES, TO_NODE, fill, on_prometheus
from grafana.panels import AMBER, GREEN, RED, Column, Query, Words, lines, number, row, rows
from grafana.promql import OF_NODE, UNEXPECTED_EXITS, of_cluster, rate, whole

STATES = {
    "live": ((None, RED), (1, GREEN)),
    "draining": ((1, AMBER), (100, RED)),
    "silent": ((1, RED),),
    "lost": ((1, AMBER), (5, RED)),
    "stopped": ((1000, RED),),
}


def dashboard() -> Dashboard:
    """jobcluster-nodes."""
    frame = on_prometheus(
        "nodes", "Nodes", "Which nodes there are, what they have room for, and how well they are.", [NODES]
    )
    parts = (*_states(), _list(), row("Slots and heartbeats"), *_slots(), row("Processes"), *_processes())
    return fill(frame, *parts)


def _states() -> Iterator[Builder[Panel] | Row]:
    meanings = {
        "live": ("Nodes that hold a lease.", "no node is live: start some; if they run, Prometheus can't reach them."),
        "draining": ("Nodes that stop: they finish what runs.", "so many at once? A deploy rolls nodes one by one."),
        "silent": (
            "Nodes whose lease is over; they may soon be lost.",
            "look at their hosts: out of memory, frozen, cut off?",
        ),
        "lost": (
            "Nodes that were lost within a day; others have taken their jobs.",
            "find out why they die: memory, evictions.",
        ),
        "stopped": (
            "Nodes that have ended as they should, within a day.",
            "nodes start and stop all the time: read their logs.",
        ),
    }
    for state, (shows, red) in meanings.items():
        query = Query("sum(" + whole("cluster_nodes", f'state="{state}"') + ")")
        yield number(Words(state.capitalize(), shows, red), query, "none", STATES[state])
    yield number(
        Words(
            "Versions",
            "How many versions of jobcluster run. Two neighbouring ones go together, for the time of a deploy.",
            "more than two: a deploy has stopped half-way; finish it.",
        ),
        Query(f"count(count by (version) ({of_cluster('cluster_build_info')}))"),
        "none",
        ((2, AMBER), (3, RED)),
    )


def _list() -> Builder[Panel]:
    here = of_cluster("cluster_build_info", OF_NODE)
    busy, free = (of_cluster("cluster_slots", OF_NODE, f'state="{state}"') for state in ("busy", "free"))
    started = f"time() - max by (instance) ({of_cluster('process_start_time_seconds', OF_NODE)} and on (job, instance) {here})"
    return rows(
        Words(
            "Nodes",
            "As Prometheus sees them now.",
            "heartbeat: the node does not reach Postgres. Clock: synchronise it; only times that people read depend on it.",
        ),
        [
            Query(f"sum by (instance, version) ({here})", ""),
            Query(f"sum by (instance) ({busy})", "busy"),
            Query(f"sum by (instance) ({free})", "free"),
            Query(f"max by (instance) ({of_cluster('cluster_heartbeat_age_seconds', OF_NODE)})", "heartbeat"),
            Query(f"max by (instance) ({of_cluster('cluster_worker_memory_bytes', OF_NODE)})", "workers' memory"),
            Query(f"max by (instance) ({of_cluster('cluster_clock_offset_seconds', OF_NODE)})", "clock behind"),
            Query(started, "up for"),
        ],
        {
            "instance": Column(link=TO_NODE),
            "version": Column(),
            "busy": Column(),
            "free": Column(steps=((None, AMBER), (1, GREEN))),
            "heartbeat": Column(unit="s", steps=((10, AMBER), (15, RED))),
            "workers' memory": Column(unit="bytes"),
            "clock behind": Column(unit="s", steps=((None, RED), (-1, GREEN), (1, RED))),
            "up for": Column(unit="s"),
        },
    )


def _slots() -> Iterator[Builder[Panel] | Row]:
    busy = "sum by (instance) (" + of_cluster("cluster_slots", OF_NODE, 'state="busy"') + ")"
    yield lines(
        Words(
            "Busy slots",
            "Share of the slots that perform jobs.",
            "the node is full. If jobs wait, add nodes or CLUSTER_CONCURRENCY.",
        ),
        [Query(f"{busy} / (sum by (instance) ({of_cluster('cluster_slots', OF_NODE)}) > 0)", "{{instance}}")],
        "percentunit",
        ((0.9, AMBER), (1, RED)),
        highest=1,
    )
    yield lines(
        Words(
            "Heartbeat age",
            "Seconds since the lease was renewed: up to 5 as a rule.",
            "the node can't renew its lease; at 24 s it stops its jobs, at 30 s others take them. Repair its way to Postgres.",
        ),
        [Query(f"max by (instance) ({of_cluster('cluster_heartbeat_age_seconds', OF_NODE)})", "{{instance}}")],
        "s",
        ((10, AMBER), (15, RED)),
    )
    yield lines(
        Words(
            "Attempts a second",
            "That end on each node.",
            "more than 10,000 a second on one node: its coordinator is near its limit; add nodes.",
        ),
        [Query(f"sum by (instance) ({rate('cluster_jobs_finished_total', OF_NODE)})", "{{instance}}")],
        "ops",
        ((10_000, RED),),
    )
    yield lines(
        Words(
            "Clock",
            "By how much the database's clock is ahead of the node's. Nothing depends on it but the times that people read.",
            "synchronise the clock of the host: chrony, systemd-timesyncd.",
        ),
        [Query(f"max by (instance) (abs({of_cluster('cluster_clock_offset_seconds', OF_NODE)}))", "{{instance}}")],
        "s",
        ((0.5, AMBER), (1, RED)),
    )


def _processes() -> Iterator[Builder[Panel] | Row]:
    yield lines(
        Words(
            "Worker processes that ended",
            "In five minutes, by reason. stopped, replaced and recycled are meant; the others are not.",
            "read the lines worker_ended of the log: reason, cause and jobs. One type behind all of them: pause it.",
        ),
        [Query(f"sum by (reason) (increase({of_cluster('cluster_worker_exits_total', OF_NODE)}[5m]))", "{{reason}}")],
        "none",
        ((5, RED),),
        colors={"stopped": "green", "replaced": "blue", "recycled": "light-blue"},
    )
    yield lines(
        Words(
            "Worker processes that should not have ended",
            "In 15 minutes, by node.",
            "native code that faults, memory, or jobs that block their loop: worker_ended in that node's log.",
        ),
        [
            Query(
                f"sum by (instance) (increase({of_cluster('cluster_worker_exits_total', OF_NODE, UNEXPECTED_EXITS)}[15m]))",
                "{{instance}}",
            )
        ],
        "none",
        ((1, AMBER), (5, RED)),
    )
    node = of_cluster("cluster_build_info", OF_NODE)
    coordinator = f"{of_cluster('process_resident_memory_bytes', OF_NODE)} and on (job, instance) {node}"
    yield lines(
        Words(
            "Memory",
            "Resident: of the coordinator, of all workers (what they share is counted in each), and of the largest one.",
            "more than 4 GiB: if it grows slowly, CLUSTER_RECYCLE_MEMORY replaces workers; else fewer jobs at once.",
        ),
        [
            Query(f"max by (instance) ({of_cluster('cluster_worker_memory_bytes', OF_NODE)})", "{{instance}} workers"),
            Query(
                f"max by (instance) ({of_cluster('cluster_largest_worker_memory_bytes', OF_NODE)})",
                "{{instance}} largest worker",
            ),
            Query(f"max by (instance) ({coordinator})", "{{instance}} coordinator"),
        ],
        "bytes",
        ((4 * 2**30, RED),),
    )
    cpu = f"{rate('process_cpu_seconds_total', OF_NODE)} and on (job, instance) {node}"
    yield lines(
        Words(
            "CPU of coordinators",
            "Share of one CPU that the coordinator itself takes.",
            "it is near the one CPU that it can use: add nodes.",
        ),
        [Query(f"max by (instance) ({cpu})", "{{instance}}")],
        "percentunit",
        ((0.7, AMBER), (0.9, RED)),
    )
    yield lines(
        Words(
            "Given back and rescued",
            "Jobs a second that this node handed back unfinished, and that it took back from lost nodes.",
            "nodes drain or die often: see the table above, and the marks of node starts.",
        ),
        [
            Query(f"sum by (instance) ({rate('cluster_jobs_released_total', OF_NODE)})", "{{instance}} released"),
            Query(f"sum by (instance) ({rate('cluster_jobs_rescued_total', OF_NODE)})", "{{instance}} rescued"),
        ],
        "ops",
        ((10, RED),),
    )
    yield lines(
        Words(
            "Listening connections made anew",
            "In 15 minutes: the connection on which Postgres rings a node was lost.",
            "the network, a failover, or somebody ends idle connections: a firewall, idle_session_timeout.",
        ),
        [
            Query(
                f"sum by (instance) (increase({of_cluster('cluster_listener_reconnects_total', OF_NODE)}[15m]))",
                "{{instance}}",
            )
        ],
        "none",
        ((1, AMBER), (5, RED)),
    )
