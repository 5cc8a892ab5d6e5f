"""Everything that happens in a node, a function each: its log line and its metric. One line per event, none per no-op.

What happens to every job is counted; what an operator would want to know is logged, an attempt that fails included.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping

from cluster import metrics
from cluster.error_text import last_line, place
from cluster.logs import get_logger

log = get_logger("cluster")


def node_started(node: str, version: str, jobs: list[str], queues: list[str], processes: int) -> None:
    metrics.build.info({"version": version})
    log.info("node_started", node=node, version=version, jobs=jobs, queues=queues, processes=processes)


def unknown_variables(names: list[str]) -> None:
    """They begin with CLUSTER_, and are neither settings nor misspelt ones."""
    log.warning("unknown_variables", names=names, hint="no setting has such a name: `cluster settings` shows them all")


def node_draining(node: str, running: int, timeout: float) -> None:
    hint = "a second SIGTERM or Ctrl-C stops what runs and gives it back" if running else "nothing runs"
    log.info("node_draining", node=node, running=running, timeout=timeout, hint=hint)


def told_to_drain(node: str, running: int, *, told: bool) -> None:
    if told:
        hint = "it claims nothing until `cluster undrain`, or its end"
        log.info("drain_requested", node=node, running=running, hint=hint)
    else:
        log.info("drain_over", node=node, running=running)


def node_stopped(node: str, finished: int, released: int) -> None:
    log.info("node_stopped", node=node, finished=finished, released=released)


def supervisor_started(nodes: int) -> None:
    log.info("supervisor_started", nodes=nodes)


def supervised_node_ended(pid: int, code: int, seconds: float | None) -> None:
    """By itself. seconds: until another takes its place; None: somebody must change something first."""
    if seconds is None:
        log.error("supervised_node_ended", pid=pid, code=code,
                  hint="the line above says why; then `cluster restart`: no other is started before")  # fmt: skip
    else:
        log.warning("supervised_node_ended", pid=pid, code=code, next_in=seconds)


def node_not_started(error: str, seconds: float) -> None:
    """seconds: until it is tried again."""
    log.error("node_not_started", error=error, next_in=seconds)


def nodes_restarted(renewed: int, code: int) -> None:
    """code: of a node that did not become ready; 0: all did."""
    if code:
        log.error("restart_failed", renewed=renewed, code=code, hint="the nodes that were not replaced go on")
    else:
        log.info("nodes_restarted", renewed=renewed)


def state_not_written(error: str) -> None:
    log.error("state_not_written", error=error, hint="`cluster stop` finds the nodes by it: free some space")


def supervisor_stopped(code: int) -> None:
    log.info("supervisor_stopped", code=code)


def unroutable_tables(tables: list[str]) -> None:
    log.warning(
        "unroutable_tables",
        tables=tables,
        hint="no class for these job tables on this node: it leaves them alone",
    )


def table_differs(job_type: str, table: str, what: str, remedy: str) -> None:
    log.warning("table_differs", job_type=job_type, table=table, what=what, hint=remedy)


def concurrency_key_differs(job_type: str, of_class: str | None, of_table: str | None) -> None:
    log.warning("concurrency_key_differs", job_type=job_type, of_class=of_class, of_table=of_table,
                hint="the node leaves this table alone: run `cluster migrate`, or deploy the newer class")  # fmt: skip


def job_metric_refused(name: str, why: str) -> None:
    log.error("job_metric_refused", metric=name, why=why, hint="it is not on /metrics; the jobs go on")


def reloaded(new: list[str]) -> None:
    """Job code. new: classes that the node did not have when it started."""
    metrics.reloads.labels("done").inc()
    more = {"not_served": new, "hint": "restart the node to perform these"} if new else {}
    log.info("reloaded", **more)


def reload_failed(why: str) -> None:
    metrics.reloads.labels("failed").inc()
    log.error("reload_failed", why=why, hint="the node goes on with the code that it has")


def table_missing(job_type: str, table: str) -> None:
    log.error("table_missing", job_type=job_type, table=table, hint="the node goes on with its other job types")


def table_found(job_type: str, table: str) -> None:
    log.info("table_found", job_type=job_type, table=table)


def trouble_began(job_type: str, reason: str, detail: str, rows: int, *, named: bool) -> None:
    """named: in the log, a moment ago."""
    metrics.trouble.labels(job_type, reason).set(1)
    level = log.debug if named else log.error
    level("trouble_began", job_type=job_type, reason=reason, detail=detail, rows=rows,
              hint="set aside, and tried again at growing intervals; the others go on")  # fmt: skip


def trouble_over(job_type: str, reason: str, seconds: float) -> None:
    metrics.trouble.remove(job_type, reason)
    log.info("trouble_over", job_type=job_type, reason=reason, seconds=round(seconds, 1))


def database_away(loop: str, error: Exception) -> None:
    log.warning("database_away", loop=loop, error=str(error))


def database_back(loop: str) -> None:
    log.info("database_back", loop=loop)


def listener_reconnected() -> None:
    metrics.listener_reconnects.inc()


def without_direct_connection(reason: str) -> None:
    log.warning("polling_only", reason=reason, hint="set CLUSTER_DIRECT_DATABASE_URL to a connection without a pooler")


def unsuitable_setting(name: str, value: str, remedy: str) -> None:
    log.warning("unsuitable_setting", setting=name, value=value, hint=f"behind a pooler a node can't set it: {remedy}")


def commits_not_durable() -> None:
    log.warning(
        "commits_not_durable",
        hint="synchronous_commit is off behind the pooler, so a crash of Postgres may run jobs twice:"
        " ALTER ROLE … SET synchronous_commit = on",
    )


def statistics_hidden() -> None:
    log.info(
        "statistics_hidden",
        hint="cluster_oldest_transaction_seconds leaves out other roles' transactions: GRANT pg_read_all_stats TO the node's role",
    )


def deletion_cost_failed(pod: str, error: Exception) -> None:
    log.warning(
        "deletion_cost_failed",
        pod=pod,
        error=str(error),
        hint="Kubernetes does not know what this node runs when it takes pods away; the node tries again now and then",
    )


def rang() -> None:
    metrics.rings.inc()


def claimed(job_type: str, queues: Mapping[bytes | None, int], seconds: float) -> None:
    """queues: how many jobs of each."""
    metrics.claim_seconds.observe(seconds)
    if queues:
        for queue, count in queues.items():
            metrics.count_claimed(job_type, queue, count)
        metrics.claim_batch.observe(sum(queues.values()))


def claims_lost(job_type: str, ids: list[int]) -> None:
    metrics.claims_lost.labels(job_type).inc(len(ids))
    log.warning(
        "claims_lost",
        job_type=job_type,
        ids=ids[:20],
        count=len(ids),
        hint="their rows were changed by somebody else",
    )


def job_set_aside(job_type: str, job_id: int, error: Exception) -> None:
    """Every one is counted; a line comes once a minute for each type, with the number of those before it."""
    metrics.set_aside.labels(job_type).inc()
    now = time.monotonic()
    named_at, others = _set_aside.get(job_type, (-SET_ASIDE_INTERVAL, 0))
    if now < named_at + SET_ASIDE_INTERVAL:
        _set_aside[job_type] = named_at, others + 1
        return
    _set_aside[job_type] = now, 0
    log.error("job_set_aside", job_type=job_type, job_id=job_id, error=str(error).partition("\n")[0], others=others,
              hint="a trigger or constraint refuses the cluster's update of this row")  # fmt: skip


SET_ASIDE_INTERVAL = 60.0
_set_aside: dict[str, tuple[float, int]] = {}
"""By type: CLOCK_MONOTONIC seconds of the last line, and how many came since."""


def job_retry(job_type: str, job_id: int, attempt: int, error: str, seconds: float) -> None:
    """An attempt has failed, and is written. error: as in last_error. seconds: until the next."""
    line = last_line(error)
    if _failures.may_be_told(job_type, "job_retry", _kind(error, line)):
        log.warning(
            "job_retry", job_type=job_type, job_id=job_id, attempt=attempt, error=line, next_in=round(seconds, 3)
        )


def job_failed(job_type: str, job_id: int, attempt: int, status: str, error: str) -> None:
    """The same, and it was the last one."""
    line = last_line(error)
    if _failures.may_be_told(job_type, "job_failed", _kind(error, line)):
        more = {"exception": error} if "\n" in error else {}
        log.error("job_failed", job_type=job_type, job_id=job_id, attempt=attempt, status=status, error=line, **more)


def job_finished(job_type: str, job_id: int, attempt: int, outcome: str, seconds: float) -> None:
    """Of every job, where CLUSTER_LOG_JOBS asks for it."""
    if _failures.may_be_told(job_type, "job_finished", outcome):
        log.info("job_finished", job_type=job_type, job_id=job_id, attempt=attempt, outcome=outcome,
                 seconds=round(seconds, 3))  # fmt: skip


def tell_left_out(*, all_of_them: bool = False) -> None:
    """How many lines about jobs were left out, once their minute is over. Called twice a second, and at the end of a node."""
    for (job_type, event, error), count in _failures.over(all_of_them=all_of_them):
        log.warning("job_lines_left_out", job_type=job_type, left_out=event, error=error, count=count)


class Seldom:
    """Lets some lines of a kind pass in each minute, and counts the others."""

    MOST, SECONDS, MOST_KINDS = 5, 60.0, 1000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kinds: dict[tuple[str, str, str], tuple[float, int]] = {}
        """Since when each is counted, and how many there were."""

    def may_be_told(self, job_type: str, event: str, error: str) -> bool:
        """Whether this one is among the first."""
        kind = (job_type, event, error)
        if kind not in self._kinds and len(self._kinds) >= self.MOST_KINDS:
            kind = (job_type, event, "others")
        began, count = self._kinds.get(kind, (self._clock(), 0))
        self._kinds[kind] = began, count + 1
        return count < self.MOST

    def over(self, *, all_of_them: bool = False) -> list[tuple[tuple[str, str, str], int]]:
        """The kinds whose minute is over, as far as some were left out, and how many; they begin anew."""
        if not self._kinds:
            return []
        before = self._clock() - self.SECONDS
        over = [kind for kind, (began, _) in self._kinds.items() if all_of_them or began <= before]
        counted = [(kind, self._kinds.pop(kind)[1] - self.MOST) for kind in over]
        return [(kind, count) for kind, count in counted if count > 0]


_failures = Seldom()


def _kind(error: str, line: str) -> str:
    """The same for errors that differ in what they name only: the class and the place; or the first words."""
    at = place(error)
    return f"{line.partition(':')[0]} at {at}" if at else re.sub(r"\d+", "#", line)[:100]


def schedule_fired(name: str, result: str, lag: float | None, error: str | None) -> None:
    """One occurrence, or several that are made up for together. lag: seconds, of one that has a job. error: why it has none."""
    metrics.schedule_fires.labels(result).inc()
    if result == "fired" and lag is not None:
        metrics.schedule_lag.observe(max(0.0, lag))
    if result == "failed":
        schedule_failed(name, error or "")
    elif result == "postponed":
        log.warning("schedule_postponed", schedule=name, error=error, hint="it is tried again in a few seconds")


def schedule_failed(name: str, error: str) -> None:
    """It could not be fired, or has no times."""
    log.error("schedule_failed", schedule=name, error=error, hint="deactivated, unless its on_error is keep")


def schedule_overdue(name: str) -> None:
    log.error("schedule_overdue", schedule=name, hint="no job of it has succeeded within its expect_within")


def worker_started(pid: int, seconds: float) -> None:
    log.debug("worker_started", pid=pid, seconds=round(seconds, 3))


def worker_ended(pid: int, reason: str, cause: str, jobs: list[str], held: int) -> None:
    """jobs: that it was performing. held: those and what it had been given beyond them."""
    metrics.worker_exits.labels(reason).inc()
    level = log.debug if reason in ("stopped", "replaced", "recycled") else log.warning
    level("worker_ended", pid=pid, reason=reason, cause=cause, jobs=jobs[:20], held=held)


def worker_memory_too_small(allowed: int, used: int, least: int) -> None:
    """In bytes."""
    allowed, used, least = (number // 2**20 for number in (allowed, used, least))
    log.warning(
        "worker_memory_too_small",
        allowed_mib=allowed,
        used_mib=used,
        raised_to_mib=least,
        hint="imports of job modules take nearly all of it: have CLUSTER_WORKER_MEMORY higher, or CLUSTER_PROCESSES lower",
    )


def worker_recycled(pid: int, why: str) -> None:
    """It ends once the jobs that it performs have."""
    log.info("worker_recycled", pid=pid, why=why)


def job_holds_loop(job_type: str, job_id: int, seconds: float, neighbours: int, stacks: str) -> None:
    """neighbours: jobs of the same worker, which wait. stacks: of its threads, as faulthandler writes them."""
    log.warning("job_holds_loop", job_type=job_type, job_id=job_id, seconds=round(seconds, 1), neighbours=neighbours,
                hint="an async job must not block: await, or make it a plain `def perform`", stack=stacks)  # fmt: skip


def worker_boot_failed(count: int, module: str, why: str, *, hung: bool) -> None:
    """module: that was being imported; empty: none. why: the system's answer; empty: none."""
    log.error("worker_boot_failed", count=count, module=module, why=why, hung=hung)


def preloading_stopped(threads: int) -> None:
    log.warning("preloading_stopped", threads=threads,
                hint="job modules start threads when imported, so workers are spawned one by one instead of forked")  # fmt: skip


def pruned(job_type: str, count: int) -> None:
    log.debug("pruned", job_type=job_type, count=count)


def prune_skipped(job_type: str, ids: list[int], error: Exception) -> None:
    log.warning("prune_skipped", job_type=job_type, ids=ids[:20], count=len(ids), error=str(error).partition("\n")[0])


def cancel_requested(job_type: str, job_id: int) -> None:
    log.info("cancel_requested", job_type=job_type, job_id=job_id)


def lease_lost(node: str, reason: str) -> None:
    log.error("lease_lost", node=node, reason=reason, hint="its jobs are stopped; it registers again under a new id")


def node_lost(node: str, hostname: str) -> None:
    log.warning("node_lost", node=node, hostname=hostname, hint="its jobs go to other nodes")


def node_not_closed(node: str, error: Exception) -> None:
    log.warning("node_not_closed", node=node, error=str(error).partition("\n")[0],
                hint="it is lost, but a claim of its is still open, or somebody holds its row: tried again")  # fmt: skip


def rescued(job_type: str, count: int) -> None:
    metrics.rescued.labels(job_type).inc(count)
    log.warning("rescued", job_type=job_type, count=count)


def claims_gone(job_type: str, ids: list[int]) -> None:
    log.warning(
        "claims_gone", job_type=job_type, ids=ids[:20], count=len(ids), hint="their rows are gone: they are stopped"
    )


def claim_given_back(job_type: str, job_id: int) -> None:
    log.warning("claim_given_back", job_type=job_type, job_id=job_id, hint="the answer to its claim was lost")
