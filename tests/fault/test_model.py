"""The statements that change a job's state, in random order from several connections, against a small model in Python.

The model knows what each of them may do to a row. Whatever the order, both must agree on every row after every step: on its
state, its attempts, who holds it, and on what a node was told.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import errors, sql

from cluster import statements
from tests.support.gate import GatedSession
from tests.support.postgres import RunServer

LIMIT, MAX_ATTEMPTS, NODES = 2, 3, 3
TABLES = {"Free": None, "Limited": LIMIT}
"""Types by name, with their limits."""
FINAL = ("succeeded", "failed", "timed_out", "cancelled")
OUTCOMES = ("succeeded", "failed", "timed_out", "cancelled", "retry", "scheduled", "not_started", "deleted")
LATER = 3600.0
"""Seconds: not due within this test."""
RECENT = st.integers(0, 7)
"""Which claim, counted from the last."""
DEMAND = st.integers(1, 4)
FROM_THE_BEST = {"from_priority": 0, "from_run_at": None, "from_id": 0}
PROMOTE: dict[str, Any] = {"limit": 100, "due_from": None, "set_aside": [], "only": None}
PAUSES = {
    "type paused": "UPDATE cluster.job_types SET paused_at = now() WHERE job_table = {}::regclass",
    "queue paused": "INSERT INTO cluster.queues (name, paused_at) VALUES ('default', now())",
}
HALF_WAY = ("rescue", "finish", "give back", "claim")
MEANWHILE = ("rescue", "claim", "pass on", "finish", "give back", "close", "renew")
SWAP_EVENTS = ("nothing", "worn out", "limit changed", "node lost", "node drains", "ended locked", *PAUSES)
SOME_NODE, SOME_JOB, SOME_TYPE = st.integers(0, NODES - 1), st.integers(0, 30), st.sampled_from(sorted(TABLES))


def _given_back(status: str) -> int:
    """What an outcome adds to the attempts."""
    return -1 if status in {"scheduled", "not_started"} else 0


@dataclass
class Row:
    """What the model knows of a row. claim: which node holds it, and the time that the claim was given."""

    status: str = "not_started"
    attempts: int = 0
    claim: tuple[UUID, datetime] | None = None
    cancelled: bool = False


@dataclass(frozen=True)
class Held:
    """A claim as its node remembers it, whether or not it still holds."""

    name: str
    id: int
    node: UUID
    locked_at: datetime


def _to_rescue(orphans: list[tuple[int, UUID]]) -> dict[str, Any]:
    dead = list({node for _, node in orphans})
    return {
        "id": [job_id for job_id, _ in orphans], "dead": dead, "crashed": [], "how": "now", "reason": None,
        "max_attempts": MAX_ATTEMPTS, "max_crashes": 3,
    }  # fmt: skip


class Jobs(RuleBasedStateMachine):
    """url: set by the test; a database with schema `cluster`."""

    url: str
    ROWS = 3
    """Of each type, at the beginning."""

    @initialize()
    def begin(self) -> None:
        self.connections = [psycopg.connect(self.url, autocommit=True) for _ in range(NODES)]
        for connection in self.connections:
            connection.execute("SET lock_timeout = '1s'")
        self.tables = {name: f"model_{name.lower()}_{uuid4().hex[:8]}" for name in TABLES}
        self.nodes = [uuid4() for _ in range(NODES)]
        self.live = [True] * NODES
        self.draining = [False] * NODES
        self.limits = dict(TABLES)
        self.most_running = dict.fromkeys(TABLES, 0)
        self.rows: dict[tuple[str, int], Row] = {}
        self.remembered: list[Held] = []
        control = self.connections[0]
        control.execute("DELETE FROM cluster.job_types")
        control.execute("DELETE FROM cluster.nodes")
        control.execute("DELETE FROM cluster.queues")
        for name, limit in TABLES.items():
            control.execute("SELECT cluster.create_job_table(%s)", [self.tables[name]])
            control.execute(
                "UPDATE cluster.job_types SET max_concurrency = %s, max_attempts = %s WHERE job_table = %s::regclass",
                [limit, MAX_ATTEMPTS, self.tables[name]],
            )
        self.gated = GatedSession(self.url, list(self.tables.values()))
        for node in self.nodes:
            self._register(control, node)
        for name in [*TABLES] * self.ROWS:
            self.insert(name, later=False, node=0)

    def teardown(self) -> None:
        if hasattr(self, "gated"):
            self.gated.close()
        for table in getattr(self, "tables", {}).values():
            self.connections[0].execute(sql.SQL("DROP TABLE {}").format(sql.Identifier(table)))
        for connection in getattr(self, "connections", []):
            connection.close()

    def _register(self, connection: psycopg.Connection, node: UUID) -> None:
        connection.execute(
            statements.statement("register_node"),
            {"id": node, "hostname": "h", "pid": 1, "version": "0", "queues": ["*"], "jobs": [], "lease": "30 s",
             "slots": 1, "session_pid": None, "listen_pid": None, "before": None, "code": ""},
        )  # fmt: skip

    def _table(self, name: str, statement: str) -> bytes:
        return statements.for_table(statement, (self.tables[name],))

    def _pick(self, number: int) -> tuple[str, int]:
        """Some row there is."""
        return sorted(self.rows)[number % len(self.rows)]

    # --- what producers and people do ---

    @rule(name=SOME_TYPE, later=st.booleans(), node=SOME_NODE)
    def insert(self, name: str, later: bool, node: int) -> None:
        query = sql.SQL(
            "INSERT INTO {} (run_at) VALUES (now() + make_interval(secs => %s)) RETURNING id, status::text"
        ).format(sql.Identifier(self.tables[name]))
        row = self.connections[node].execute(query, [LATER if later else 0.0]).fetchone()
        assert row is not None
        assert row[1] == ("scheduled" if later else "not_started")
        self.rows[name, row[0]] = Row(row[1])

    @precondition(lambda self: self.rows)
    @rule(job=SOME_JOB, node=SOME_NODE)
    def run_now(self, job: int, node: int) -> None:
        """A user's UPDATE of run_at, of rows that are not running."""
        name, job_id = self._pick(job)
        row = self.rows[name, job_id]
        query = sql.SQL("UPDATE {} SET run_at = now() WHERE id = %s AND status IN ('scheduled', 'retry')").format(
            sql.Identifier(self.tables[name])
        )
        self.connections[node].execute(query, [job_id])
        if row.status in {"scheduled", "retry"}:
            row.status = "not_started"

    @precondition(lambda self: self.rows)
    @rule(job=SOME_JOB, node=SOME_NODE)
    def cancel(self, job: int, node: int) -> None:
        name, job_id = self._pick(job)
        row = self.rows[name, job_id]
        answer = self.connections[node].execute(
            "SELECT cluster.cancel(%s::regclass, %s)::text", [self.tables[name], job_id]
        ).fetchone()  # fmt: skip
        if row.status in {"scheduled", "not_started", "retry"}:
            row.status = "cancelled"
        elif row.status == "running":
            row.cancelled = True
        assert answer == (row.status,)

    @precondition(lambda self: self.rows)
    @rule(job=SOME_JOB, node=SOME_NODE)
    def retry(self, job: int, node: int) -> None:
        name, job_id = self._pick(job)
        row = self.rows[name, job_id]
        refused = (
            contextlib.nullcontext() if row.status in FINAL else pytest.raises(errors.ObjectNotInPrerequisiteState)
        )
        with refused:
            self.connections[node].execute("SELECT cluster.retry(%s::regclass, %s)", [self.tables[name], job_id])
        if row.status in FINAL:
            self.rows[name, job_id] = Row()

    @rule(name=SOME_TYPE, node=SOME_NODE, whole_queue=st.booleans())
    def pause(self, name: str, node: int, whole_queue: bool) -> None:
        """One type, or all that waits in the queue: until it goes on, nobody gets anything."""
        table = self.tables[name]
        with self.connections[node].transaction(force_rollback=True):
            if whole_queue:
                self.connections[node].execute("INSERT INTO cluster.queues (name, paused_at) VALUES ('default', now())")
            else:
                self.connections[node].execute(
                    "UPDATE cluster.job_types SET paused_at = now() WHERE job_table = %s::regclass", [table]
                )
            assert not self._claim_in_transaction(name, node, 4, 4)

    @rule(limit=st.sampled_from([0, 1, LIMIT, LIMIT + 1, None]), node=SOME_NODE)
    def limit(self, limit: int | None, node: int) -> None:
        """An operator's, or again the type's own. What runs beyond it goes on, but nothing takes its place."""
        self.connections[node].execute(
            "UPDATE cluster.job_types SET max_concurrency_override = %s WHERE job_table = %s::regclass",
            [limit, self.tables["Limited"]],
        )
        self.limits["Limited"] = LIMIT if limit is None else limit

    # --- what nodes do ---

    @rule(name=SOME_TYPE, node=SOME_NODE, demand=DEMAND, slots=DEMAND)
    def claim(self, name: str, node: int, demand: int, slots: int) -> None:
        claimed = self._claim(name, node, demand, slots)
        waiting = sum(row.status == "not_started" for (type_name, _), row in self.rows.items() if type_name == name)
        running, limit = self._running(name), self.limits[name]
        room = demand if limit is None else max(0, min(demand, limit - running))
        most = min(waiting, room) if self._may_claim(node) else 0
        self._assert_as_many(claimed, most, slots)
        self._take(name, node, claimed)

    def _assert_as_many(self, claimed: list[tuple[Any, ...]], most: int, slots: int) -> None:
        assert len(claimed) <= most
        assert len(claimed) >= min(most, slots)  # beyond its slots a node takes no row that is on its last attempt
        assert sum(attempts >= MAX_ATTEMPTS for _, attempts, _ in claimed) <= slots

    def _running(self, name: str) -> int:
        return sum(row.status == "running" for (type_name, _), row in self.rows.items() if type_name == name)

    @rule(name=SOME_TYPE, first=SOME_NODE, second=SOME_NODE, demand=DEMAND)
    def claim_at_once(self, name: str, first: int, second: int, demand: int) -> None:
        """The second claim comes while the first one's transaction is open: between them they never take too much."""
        if first == second:
            return
        self.insert(name, later=False, node=first)
        with self.connections[first].transaction():
            before = self._claim_in_transaction(name, first, demand, 4)
            after = self._claim(name, second, demand, 4)
        assert TABLES[name] is None or not after, "a limited type was claimed while another held the mutex"
        self._take(name, first, before)
        self._take(name, second, after)

    def _may_claim(self, node: int) -> bool:
        return self.live[node] and not self.draining[node]

    def _take(self, name: str, node: int, claimed: list[tuple[Any, ...]]) -> None:
        assert not claimed or self._may_claim(node)
        for job_id, attempts, locked_at in claimed:
            row = self.rows[name, job_id]
            assert row.status == "not_started"
            assert attempts == row.attempts + 1
            row.status, row.attempts, row.claim = "running", attempts, (self.nodes[node], locked_at)
            self.remembered.append(Held(name, job_id, self.nodes[node], locked_at))

    def _claim(self, name: str, node: int, demand: int, slots: int) -> list[tuple[Any, ...]]:
        with self.connections[node].transaction():
            return self._claim_in_transaction(name, node, demand, slots)

    def _claim_in_transaction(self, name: str, node: int, demand: int, slots: int) -> list[tuple[Any, ...]]:
        connection, parameters = self.connections[node], self._claim_of(name, node, demand, slots)
        form = "claim_jobs"
        if TABLES[name] is not None:
            connection.execute(statements.statement("take_turn"), {"table": parameters["table"]})
            form = "claim_limited_jobs"
        claimed = connection.execute(self._table(name, form), parameters).fetchall()
        return [(job_id, attempts, locked_at) for job_id, attempts, _, locked_at, *_ in claimed]

    def _claim_of(self, name: str, node: int, demand: int, slots: int) -> dict[str, Any]:
        row = self.connections[node].execute("SELECT %s::regclass::oid", [self.tables[name]]).fetchone()
        assert row is not None
        return {
            "node": self.nodes[node], "table": row[0], "queue": "default", "priority": 100, "set_aside": [],
            "demand": demand, "slots": slots, "max_attempts": MAX_ATTEMPTS, "only": None, "whole": demand, **FROM_THE_BEST,
        }  # fmt: skip

    @precondition(lambda self: self.remembered)
    @rule(number=RECENT, count=st.integers(1, 4), node=SOME_NODE, own=st.booleans(), demand=DEMAND, slots=DEMAND)
    def swap(self, number: int, count: int, node: int, own: bool, demand: int, slots: int) -> None:
        """Of some claims, whether they still hold or not, and of a node that may be lost by now."""
        held = self._remembered(number, own, node)
        batch = [other for other in self.remembered if other.name == "Limited"][-count:]
        batch = [replace(other, node=held.node) for other in batch]
        self._swap_and_check(batch, held.node, node, demand, slots)

    @rule(
        node=SOME_NODE, event=st.sampled_from(SWAP_EVENTS), limit=st.integers(0, LIMIT + 1), demand=DEMAND, slots=DEMAND
    )
    def swap_under_a_full_limit(self, node: int, event: str, limit: int, demand: int, slots: int) -> None:
        """More wait than the limit has places, the node holds some, and something happens before they end."""
        self.limit(None, node)
        self.renew(None)
        for _ in range(LIMIT + 1):
            self.insert("Limited", later=False, node=node)
        self.claim("Limited", node=node, demand=LIMIT, slots=LIMIT)
        batch = self._holds(node)
        other = self.connections[(node + 1) % NODES]
        if event == "limit changed":
            self.limit(limit, node)
        elif event == "worn out":
            slots = 1
            for name, job_id in [key for key, row in self.rows.items() if row.status == "not_started"]:
                self._wear_out(name, job_id)
        elif event == "node lost":
            self.close_node(node, (node + 1) % NODES, at_once=False)
        elif event == "node drains":
            self.renew(node)
        if event in PAUSES:
            other.execute(sql.SQL(PAUSES[event]).format(sql.Literal(self.tables["Limited"])))
        if event == "ended locked":
            locked = batch[:1]
            with other.transaction(force_rollback=True):
                query = sql.SQL("SELECT FROM {} WHERE id = ANY (%s) FOR UPDATE")
                other.execute(query.format(sql.Identifier(self.tables["Limited"])), [[held.id for held in locked]])
                self._swap_and_check(batch, self.nodes[node], node, demand, slots, locked=locked)
        self._swap_and_check(batch, self.nodes[node], node, demand, slots, paused=event in PAUSES)
        self._swap_and_check(batch, self.nodes[node], node, demand, slots, paused=event in PAUSES)
        other.execute("UPDATE cluster.job_types SET paused_at = NULL")
        other.execute("DELETE FROM cluster.queues")

    @rule(first=SOME_NODE, second=SOME_NODE, claims=st.booleans())
    def swap_at_once(self, first: int, second: int, claims: bool) -> None:
        """While a swap is not committed, another node claims under the lock, or the same outcomes are written once more."""
        if first == second:
            return
        self.renew(None)
        for _ in range(LIMIT + 1):
            self.insert("Limited", later=False, node=first)
        self.claim("Limited", node=first, demand=1, slots=1)
        batch, running = self._holds(first), self._running("Limited")
        with self.connections[first].transaction():
            before, ended = self._swap(batch, self.nodes[first], first, 4, 4)
            if claims:
                after = self._claim("Limited", second, 4, 4)
            else:
                after, twice = self._swap(batch, self.nodes[first], second, 4, 4)
                assert (after, twice) == ([], 0)
        self._ended(batch, ended)
        assert len(before) <= ended
        assert len(after) <= max(0, (self.limits["Limited"] or 0) - running)
        self._take("Limited", first, before)
        self._take("Limited", second, after)

    def _holds(self, node: int) -> list[Held]:
        """The claims of the limited type that are this node's now."""
        return [
            Held(name, job_id, *row.claim)
            for (name, job_id), row in self.rows.items()
            if name == "Limited" and row.claim is not None and row.claim[0] == self.nodes[node]
        ]

    def _swap_and_check(
        self, batch: list[Held], node_id: UUID, connection: int, demand: int, slots: int,
        *, locked: Sequence[Held] = (), paused: bool = False,
    ) -> None:  # fmt: skip
        waiting = sum(name == "Limited" and row.status == "not_started" for (name, _), row in self.rows.items())
        running, limit = self._running("Limited"), self.limits["Limited"]
        hits = [held for held in batch if held not in locked and self._holds_still(held)]
        claimed, ended = self._swap(batch, node_id, connection, demand, slots)
        assert ended == len(hits), "a claim was guarded wrongly"
        self._ended(hits, ended)
        node = self.nodes.index(node_id) if node_id in self.nodes else None
        allowed = node is not None and self._may_claim(node) and not paused and limit is not None and limit >= running
        self._assert_as_many(claimed, min(demand, ended, waiting) if allowed else 0, slots)
        if node is not None:
            self._take("Limited", node, claimed)

    def _holds_still(self, held: Held) -> bool:
        return self.rows.get((held.name, held.id), Row()).claim == (held.node, held.locked_at)

    def _ended(self, batch: list[Held], count: int) -> None:
        """All that still held have succeeded, and nothing else."""
        hits = [held for held in batch if self._holds_still(held)]
        assert len(hits) == count
        for held in hits:
            self._leave(held, hit=True, status="succeeded", attempts=0)

    def _swap(
        self, batch: list[Held], node_id: UUID, connection: int, demand: int, slots: int
    ) -> tuple[list[tuple[Any, ...]], int]:
        """What was claimed, and how many were finished."""
        found = self.connections[connection].execute("SELECT %s::regclass::oid", [self.tables["Limited"]]).fetchone()
        assert found is not None
        parameters = {
            "node": node_id, "table": found[0], "queue": "default", "priority": 100, "set_aside": [], "demand": demand,
            "slots": slots, "max_attempts": MAX_ATTEMPTS, "id": [held.id for held in batch],
            "locked_at": [held.locked_at for held in batch], "begun": [0.0] * len(batch),
            "limit": self._running("Limited"), "only": None, "whole": demand, **FROM_THE_BEST,
        }  # fmt: skip
        rows = self.connections[connection].execute(self._table("Limited", "swap_limited_jobs"), parameters).fetchall()
        claimed = [(job_id, attempts, locked_at) for job_id, attempts, _, locked_at, *_ in rows if job_id is not None]
        assert {row[-1] for row in rows} == {rows[0][-1]}
        return claimed, rows[0][-1]

    @precondition(lambda self: self.remembered)
    @rule(number=RECENT, status=st.sampled_from(OUTCOMES), node=SOME_NODE, own=st.booleans())
    def finish(self, number: int, status: str, node: int, own: bool) -> None:
        """By whoever remembers the claim, however long ago it was lost, or by another node: then it hits nothing."""
        held = self._remembered(number, own, node)
        self._leave(held, self._finish(held, status, node), status, _given_back(status))

    def _finish(self, held: Held, status: str, node: int) -> bool:
        """Whether it hit the row."""
        return bool(self.connections[node].execute(*self._finish_of(held, status)).fetchall())

    def _finish_of(self, held: Held, status: str) -> tuple[bytes, dict[str, Any]]:
        parameters = {
            "node": held.node, "id": [held.id], "locked_at": [held.locked_at], "status": [status], "error": [None],
            "delay": [LATER if status in {"retry", "scheduled"} else None], "attempts": [_given_back(status)],
            "crashes": [0], "begun": [0.0], "failure": [status if status == "failed" else None], "fingerprint": ["model"],
        }  # fmt: skip
        forms = {"succeeded": "finish_succeeded_jobs", "deleted": "delete_finished_jobs"}
        return self._table(held.name, forms.get(status, "finish_jobs")), parameters

    @precondition(lambda self: self.remembered)
    @rule(number=RECENT, node=SOME_NODE, own=st.booleans())
    def give_back(self, number: int, node: int, own: bool) -> None:
        """As reconciliation does with a claim whose answer was lost."""
        held = self._remembered(number, own, node)
        self._leave(held, self._release(held, node), "not_started", -1)

    def _release(self, held: Held, node: int) -> bool:
        return self.connections[node].execute(*self._release_of(held)).rowcount == 1

    def _release_of(self, held: Held) -> tuple[bytes, dict[str, Any]]:
        parameters = {
            "id": held.id, "locked_at": held.locked_at, "node": held.node, "how": "now", "reason": None, "fingerprint": "",
        }  # fmt: skip
        return self._table(held.name, "release_claim"), parameters

    @precondition(lambda self: self.remembered)
    @rule(number=RECENT, node=SOME_NODE)
    def claim_again(self, number: int, node: int) -> None:
        """A job is handed back and claimed anew: whoever remembers the first claim, or only its time, hits nothing."""
        held = self._remembered(number, own=True, node=node)
        row = self.rows.get((held.name, held.id), Row())
        if row.claim != (held.node, held.locked_at):
            return
        others = [replace(held, node=other) for other in self.nodes if other != held.node]
        self._assert_refused(others, node)
        self._leave(held, self._release(held, node), "not_started", -1)
        self._assert_refused([held], node)
        # Mostly by the same node, which tells a claim from the one before by its time alone.
        claimant = self.nodes.index(held.node) if held.node in self.nodes else node
        self.claim(held.name, node=claimant, demand=4, slots=4)
        self._assert_refused([held], node)

    def _assert_refused(self, stale: list[Held], node: int) -> None:
        for held in stale:
            hit = [status for status in OUTCOMES if self._finish(held, status, node)]
            if held.name == "Limited":
                hit += ["swapped"] * self._swap([held], held.node, node, 4, 4)[1]
            assert not hit, "a claim was guarded wrongly"
            assert not self._release(held, node), "a claim was guarded wrongly"

    def _remembered(self, number: int, own: bool, node: int) -> Held:
        """A claim that some node has or had; own False: as some node would remember it, whose claim it may not be."""
        held = self.remembered[-1 - number % len(self.remembered)]
        return held if own else replace(held, node=self.nodes[node])

    def _leave(self, held: Held, hit: bool, status: str, attempts: int) -> None:
        row = self.rows.get((held.name, held.id), Row())
        assert hit == (row.claim == (held.node, held.locked_at)), "a claim was guarded wrongly"
        if hit and status == "deleted":
            del self.rows[held.name, held.id]
        elif hit:
            again = status not in FINAL
            row.status = "cancelled" if again and row.cancelled else status
            row.claim, row.attempts = None, row.attempts + attempts

    @precondition(lambda self: self.rows)
    @rule(job=SOME_JOB, node=SOME_NODE)
    def refuse(self, job: int, node: int) -> None:
        """A row that nobody could claim, unless somebody has claimed it after all."""
        name, job_id = self._pick(job)
        row = self.rows[name, job_id]
        parameters = {"id": job_id, "error": "refused", "fingerprint": "refused"}
        self.connections[node].execute(self._table(name, "refuse_job"), parameters)
        if row.status == "not_started":
            row.status = "failed"

    @rule(name=SOME_TYPE, node=SOME_NODE)
    def promote(self, name: str, node: int) -> None:
        """Nothing is due: what waits for its time stays."""
        cursor = self.connections[node].execute(self._table(name, "promote_jobs"), PROMOTE)
        assert cursor.rowcount == 0

    @precondition(lambda self: self.rows)
    @rule(job=SOME_JOB, node=SOME_NODE)
    def promote_what_is_due(self, job: int, node: int) -> None:
        """Time is made to pass for one row; its own trigger must not notice."""
        name, job_id = self._pick(job)
        row = self.rows[name, job_id]
        if row.status not in {"scheduled", "retry"}:
            return
        self._set(name, job_id, "run_at = now() - interval '1 s'")
        self.connections[node].execute(self._table(name, "promote_jobs"), PROMOTE)
        row.status = "not_started"

    @rule(name=SOME_TYPE, node=SOME_NODE)
    def wear_out(self, name: str, node: int) -> None:
        """Two more rows wait, on their last attempt: a node takes no more of them than it can begin at once."""
        for _ in range(2):
            self.insert(name, later=False, node=node)
            self._wear_out(name, max(job_id for type_name, job_id in self.rows if type_name == name))
        self.claim(name, node=node, demand=4, slots=1)

    def _wear_out(self, name: str, job_id: int) -> None:
        self._set(name, job_id, f"attempts_count = {MAX_ATTEMPTS - 1}")
        self.rows[name, job_id].attempts = MAX_ATTEMPTS - 1

    def _set(self, name: str, job_id: int, what: str) -> None:
        """As if it had come to be so; the row's own triggers do not notice."""
        with self.connections[0].transaction():
            self.connections[0].execute("SET LOCAL session_replication_role = replica")
            query = sql.SQL("UPDATE {} SET {} WHERE id = {}")
            table = sql.Identifier(self.tables[name])
            self.connections[0].execute(query.format(table, sql.SQL(what), sql.Literal(job_id)))

    # --- rescue ---

    @rule(victim=SOME_NODE, node=SOME_NODE, at_once=st.booleans())
    def close_node(self, victim: int, node: int, at_once: bool) -> None:
        """at_once: its jobs are rescued before anything else happens."""
        assert self._close(victim, node) == self.live[victim]
        self.live[victim] = False
        for name in TABLES if at_once else ():
            self.rescue(name, node=node)

    @rule(name=SOME_TYPE, victim=SOME_NODE, node=SOME_NODE)
    def close_while_it_claims(self, name: str, victim: int, node: int) -> None:
        """It waits for claims that are not committed yet, which nobody could see and rescue."""
        if victim == node:
            return
        self.insert(name, later=False, node=victim)
        with self.connections[victim].transaction():
            claimed = self._claim_in_transaction(name, victim, 1, 1)
            if claimed:
                with pytest.raises(errors.LockNotAvailable):
                    self._close(victim, node, patience="20ms")
        self._take(name, victim, claimed)

    @rule(victim=SOME_NODE, node=SOME_NODE)
    def close_one_that_has_renewed(self, victim: int, node: int) -> None:
        """Between the look and the deed."""
        closed = self._close(victim, node, earlier="1 us")
        assert not closed

    def _close(self, victim: int, node: int, *, patience: str = "1s", earlier: str = "0") -> bool:
        """earlier: by how much an older heartbeat was seen."""
        with self.connections[node].transaction():
            connection = self.connections[node]
            connection.execute(sql.SQL("SET LOCAL lock_timeout = {}").format(sql.Literal(patience)))
            found = connection.execute(
                "SELECT heartbeat_at - %s::interval FROM cluster.nodes WHERE id = %s", [earlier, self.nodes[victim]]
            ).fetchone()
            assert found is not None
            parameters = {"id": self.nodes[victim], "heartbeat_at": found[0]}
            return connection.execute(statements.statement("close_node"), parameters).fetchone() is not None

    @rule(victim=SOME_NODE)
    def deregister(self, victim: int) -> None:
        """A clean end; what a node has left behind all the same is rescued."""
        self.connections[victim].execute(statements.statement("deregister_node"), {"id": self.nodes[victim]})
        self.live[victim] = False

    @rule(draining=st.sampled_from([None, None, None, *range(NODES)]))
    def renew(self, draining: int | None) -> None:
        """All nodes, one of them maybe on its way out. One that was declared lost is told so, and comes back under a new id."""
        values = {
            "lease": "30 s",
            "running": 0,
            "slots": 1,
            "session_pid": None,
            "listen_pid": None,
            "trouble": "[]",
            "work": "[]",
        }
        for node, connection in enumerate(self.connections):
            renewed = connection.execute(
                statements.statement("renew_lease"), {**values, "id": self.nodes[node], "draining": node == draining}
            ).fetchone()
            assert (renewed is not None) == self.live[node]
            self.draining[node] = node == draining and self.live[node]
            if not self.live[node]:
                self.nodes[node], self.live[node] = uuid4(), True
                self._register(connection, self.nodes[node])
        for name in TABLES if draining is not None else ():
            self.rescue(name, node=0)

    @rule(name=SOME_TYPE, node=SOME_NODE)
    def rescue(self, name: str, node: int) -> None:
        alive = {self.nodes[number] for number in range(NODES) if self.live[number]}
        lost = [
            row for (type_name, _), row in self.rows.items()
            if type_name == name and row.claim is not None and row.claim[0] not in alive
        ]  # fmt: skip
        assert self._rescue(name, node, self._orphans(name, node)) == len(lost)
        for row in lost:
            self._give_back(row)

    def _give_back(self, row: Row) -> None:
        used_up = row.attempts >= MAX_ATTEMPTS
        row.status = "cancelled" if row.cancelled else "failed" if used_up else "not_started"
        row.claim = None

    def _orphans(self, name: str, node: int) -> list[tuple[int, UUID]]:
        """As a sweep lists them: rows with the nodes that are gone."""
        parameters = {"limit": 100, "set_aside": []}
        return [row[:2] for row in self.connections[node].execute(self._table(name, "list_orphans"), parameters)]

    def _rescue(self, name: str, node: int, orphans: list[tuple[int, UUID]]) -> int:
        """How many it took."""
        return len(self.connections[node].execute(self._table(name, "rescue_jobs"), _to_rescue(orphans)).fetchall())

    # --- statements that stop between their snapshot and their locks ---

    @rule(
        name=SOME_TYPE, what=st.sampled_from(HALF_WAY), number=RECENT, node=SOME_NODE,
        meanwhile=st.lists(st.tuples(st.sampled_from(MEANWHILE), SOME_NODE), min_size=1, max_size=4),
        status=st.sampled_from(OUTCOMES),
    )  # fmt: skip
    def stop_half_way(
        self, name: str, what: str, number: int, node: int, meanwhile: list[tuple[str, int]], status: str
    ) -> None:
        """A backend has its snapshot, and is not scheduled for a while. What others do by then, it must find done."""
        self._prepare_to_stop(name, node)
        held = self._remembered(number, own=True, node=node)
        orphans = self._orphans(held.name, node)
        if what == "rescue":
            statement, parameters = self._table(held.name, "rescue_jobs"), _to_rescue(orphans)
        elif what == "finish":
            statement, parameters = self._finish_of(held, status)
        elif what == "give back":
            statement, parameters = self._release_of(held)
        else:
            statement, parameters = self._table("Free", "claim_jobs"), self._claim_of("Free", node, 4, 4)
        gated = self.gated.start(statement, parameters)
        for event, other in meanwhile:
            self._do_meanwhile(event, other, name, spare=node if what == "claim" else None)
        hits = gated.end()
        if what == "rescue":
            self._has_rescued(held.name, orphans, hits)
        elif what == "claim":
            self._take("Free", node, [(job_id, attempts, at) for job_id, attempts, _, at, *_ in hits])
        else:
            back = what == "give back"
            self._leave(held, bool(hits), "not_started" if back else status, -1 if back else _given_back(status))

    def _prepare_to_stop(self, name: str, node: int) -> None:
        """A node has claimed, and is lost: so there is something to be wrong about."""
        self.renew(None)
        self.insert(name, later=False, node=node)
        self.claim(name, node=node, demand=4, slots=4)
        victim = (node + 1) % NODES
        self.insert(name, later=False, node=node)
        self.claim(name, node=victim, demand=4, slots=4)
        if not self.remembered:  # a limit of none
            self.insert("Free", later=False, node=node)
            self.claim("Free", node=victim, demand=4, slots=4)
        self.close_node(victim, node, at_once=False)

    def _do_meanwhile(self, event: str, other: int, name: str, spare: int | None) -> None:
        """spare: a node that is claiming, so nobody can close it."""
        if event in {"rescue", "pass on"}:
            for each in TABLES:
                self.rescue(each, node=other)
        if event in {"claim", "pass on"}:
            self.claim(name, node=other, demand=4, slots=4)
        elif event == "finish":
            self.finish(0, "succeeded", other, own=True)
        elif event == "give back":
            self.give_back(0, other, own=True)
        elif event == "close" and other != spare:
            self.close_node(other, (other + 1) % NODES, at_once=False)
        elif event == "renew":
            self.renew(None)

    def _has_rescued(self, name: str, orphans: list[tuple[int, UUID]], hits: list[tuple[Any, ...]]) -> None:
        """All that still run under the nodes that it took for dead, and no other."""
        dead = {gone for _, gone in orphans}
        rows = {job_id: self.rows.get((name, job_id)) for job_id, _ in orphans}
        due = {
            job_id for job_id, row in rows.items() if row is not None and row.claim is not None and row.claim[0] in dead
        }
        assert {job_id for job_id, *_ in hits} == due
        for job_id in due:
            self._give_back(self.rows[name, job_id])

    # --- both agree ---

    @invariant()
    def every_row_is_as_the_model_says(self) -> None:
        for name in getattr(self, "tables", {}):
            query = sql.SQL(
                "SELECT id, status::text, attempts_count, locked_at, locked_by, cancel_requested_at IS NOT NULL FROM {}"
            ).format(sql.Identifier(self.tables[name]))
            found = {job_id: rest for job_id, *rest in self.connections[0].execute(query)}
            assert found.keys() == {job_id for type_name, job_id in self.rows if type_name == name}
            for job_id, (status, attempts, locked_at, locked_by, cancelled) in found.items():
                row = self.rows[name, job_id]
                claim = None if locked_at is None else (locked_by, locked_at)
                assert (status, attempts, claim) == (row.status, row.attempts, row.claim), (name, job_id)
                assert cancelled == row.cancelled
            held = [claim for claim in (row.claim for row in self.rows.values()) if claim is not None]
            assert len(held) == sum(row.status == "running" for row in self.rows.values())
            running, limit = sum(rest[0] == "running" for rest in found.values()), self.limits[name]
            assert limit is None or running <= max(limit, self.most_running[name])
            self.most_running[name] = running


@pytest.fixture
def model_url(run_server: RunServer) -> Iterator[str]:
    with run_server.database(run_server.template()) as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_statements_do_what_the_model_says(model_url: str) -> None:
    machine = type("JobsHere", (Jobs,), {"url": model_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize("status", ["retry", "scheduled", "not_started"])
def test_a_job_whose_cancellation_was_asked_for_does_not_run_again(model_url: str, status: str) -> None:
    """It failed, snoozed or was released before it heard of it."""
    machine: Jobs = type("JobsHere", (Jobs,), {"url": model_url, "ROWS": 0})()
    machine.begin()
    try:
        machine.insert("Free", later=False, node=0)
        machine.claim("Free", node=0, demand=1, slots=1)
        machine.cancel(job=0, node=1)
        machine.finish(number=0, status=status, node=0, own=True)
        machine.every_row_is_as_the_model_says()
        assert [row.status for row in machine.rows.values()] == ["cancelled"]
    finally:
        machine.teardown()


STOPS = st.tuples(
    SOME_TYPE, st.sampled_from(HALF_WAY), RECENT, SOME_NODE, st.lists(st.tuples(st.sampled_from(MEANWHILE), SOME_NODE), max_size=4),
    st.sampled_from(OUTCOMES),
)  # fmt: skip


@pytest.mark.timeout(120)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(stops=st.lists(STOPS, min_size=1, max_size=3))
@example([("Free", "rescue", 0, 0, [("pass on", 0)], "succeeded")])
@example([("Limited", "rescue", 0, 0, [("pass on", 2)], "succeeded")])
def test_a_statement_that_stops_before_its_locks_finds_what_others_have_done(
    model_url: str, stops: list[tuple[Any, ...]]
) -> None:
    machine: Jobs = type("JobsHere", (Jobs,), {"url": model_url, "ROWS": 1})()
    machine.begin()
    try:
        for stop in stops:
            machine.stop_half_way(*stop)
            machine.every_row_is_as_the_model_says()
    finally:
        machine.teardown()
