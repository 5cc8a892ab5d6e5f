"""Limits per key: claims that park and open rows, sweeps, and all that ends jobs or changes them, in random order.

What a row is, a small model knows. Which rows are parked is judged by what each claim promises, from the table before it and after.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from psycopg import sql

from cluster import statements
from tests.support.postgres import RunServer

LIMIT, NODES, QUEUES, KEYS = 2, 2, ("a", "b"), (1, 2)
KEY = statements.Key("customer", "bigint")
FAR = 1000
"""Rows: more than there are."""
SOME_NODE, SOME_QUEUE, SOME_JOB = st.integers(0, NODES - 1), st.sampled_from(QUEUES), st.integers(0, 50)
SOME_KEY = st.sampled_from([*KEYS, *KEYS, None])
DEMAND, REACH = st.integers(1, 4), st.sampled_from([0, 2, FAR])


class Row(NamedTuple):
    """A row as the database has it."""

    id: int
    key: int | None
    queue: str
    status: str
    parked: bool
    priority: int
    run_at: datetime
    locked_by: UUID | None
    locked_at: datetime | None

    @property
    def order(self) -> tuple[int, datetime, int]:
        return self.priority, self.run_at, self.id

    @property
    def waits(self) -> bool:
        return self.status == "not_started"

    @property
    def runs(self) -> bool:
        return self.status == "running"


class KeyedJobs(RuleBasedStateMachine):
    """url: set by the test; a database with schema `cluster`."""

    url: str

    @initialize()
    def begin(self) -> None:
        self.connections = [psycopg.connect(self.url, autocommit=True) for _ in range(NODES + 1)]
        self.control = self.connections[-1]
        self.table = f"keyed_{uuid4().hex[:8]}"
        self.limit, self.paused = LIMIT, False
        self.model: dict[int, tuple[int | None, str]] = {}
        """Key and status of every row."""
        self.most_running: Counter[int | None] = Counter()
        for name in ("job_types", "nodes", "queues"):
            self.control.execute(sql.SQL("DELETE FROM cluster.{}").format(sql.Identifier(name)))
        self.control.execute("SELECT cluster.create_job_table(%s)", [self.table])
        self._run("ALTER TABLE {} ADD COLUMN customer bigint")
        self.control.execute("SELECT cluster.create_job_table(%s, 'customer')", [self.table])
        self.control.execute("UPDATE cluster.job_types SET max_concurrency = %s", [LIMIT])
        self.nodes = [self._register() for _ in range(NODES)]
        self.live = [True] * NODES
        self.insert("a", 1, 3, 50)

    def teardown(self) -> None:
        if hasattr(self, "table"):
            if sys.exc_info()[0] is None:  # one failure is not to hide another
                self.everything_ends()
            self._run("DROP TABLE {}")
        for connection in getattr(self, "connections", []):
            connection.close()

    def _register(self) -> UUID:
        node = uuid4()
        self.control.execute(
            statements.statement("register_node"),
            {"id": node, "hostname": "h", "pid": 1, "version": "0", "queues": ["*"], "jobs": [], "lease": "30 s",
             "slots": 1, "session_pid": None, "listen_pid": None, "before": None, "code": ""},
        )  # fmt: skip
        return node

    def _run(self, query: str, *values: Any) -> psycopg.Cursor[Any]:
        return self.control.execute(sql.SQL(query).format(sql.Identifier(self.table)), values)

    def _statement(self, name: str) -> bytes:
        return statements.for_table(name, (self.table,), (), KEY, "named")

    def _rows(self) -> list[Row]:
        query = "SELECT id, customer, queue, status::text, parked, priority, run_at, locked_by, locked_at FROM {}"
        return sorted((Row(*row) for row in self._run(query)), key=lambda row: row.order)

    def _oid(self) -> int:
        row = self.control.execute("SELECT %s::regclass::oid", [self.table]).fetchone()
        assert row is not None
        oid: int = row[0]
        return oid

    # --- what producers and people do ---

    @rule(queue=SOME_QUEUE, key=SOME_KEY, count=st.integers(1, 4), priority=st.sampled_from([10, 50]))
    def insert(self, queue: str, key: int | None, count: int, priority: int) -> None:
        for _ in range(count):
            query = "INSERT INTO {} (queue, customer, priority, parked) VALUES (%s, %s, %s, true) RETURNING id, parked"
            row = self._run(query, queue, key, priority).fetchone()
            assert row is not None
            assert not row[1]
            self.model[row[0]] = key, "not_started"

    @precondition(lambda self: self.model)
    @rule(job=SOME_JOB, key=SOME_KEY)
    def change_key(self, job: int, key: int | None) -> None:
        """Of a waiting row: whether its new key has room, the next claim finds out."""
        row = self._pick(job)
        if row.waits:
            changed = self._run("UPDATE {} SET customer = %s WHERE id = %s RETURNING parked", key, row.id).fetchone()
            assert changed == (False,)
            self.model[row.id] = key, row.status

    @precondition(lambda self: self.model)
    @rule(job=SOME_JOB)
    def cancel(self, job: int) -> None:
        row = self._pick(job)
        if row.waits:
            self.control.execute("SELECT cluster.cancel(%s::regclass, %s)", [self.table, row.id])
            self.model[row.id] = row.key, "cancelled"

    @precondition(lambda self: self.model)
    @rule(job=SOME_JOB)
    def delete(self, job: int) -> None:
        row = self._pick(job)
        self._run("DELETE FROM {} WHERE id = %s", row.id)
        del self.model[row.id]

    @rule(limit=st.sampled_from([0, 1, LIMIT, LIMIT + 1, None]))
    def change_limit(self, limit: int | None) -> None:
        self.control.execute("UPDATE cluster.job_types SET max_concurrency_override = %s", [limit])
        self.limit = LIMIT if limit is None else limit

    @rule(node=SOME_NODE, queue=SOME_QUEUE, whole_queue=st.booleans())
    def pause(self, node: int, queue: str, whole_queue: bool) -> None:
        """Until it goes on, nobody gets anything, and nothing is parked."""
        if whole_queue:
            self.control.execute("INSERT INTO cluster.queues (name, paused_at) VALUES (%s, now())", [queue])
        else:
            self.control.execute("UPDATE cluster.job_types SET paused_at = now()")
        self.paused = True
        self.claim(node, queue, 4, FAR, True)
        self.paused = False
        self.control.execute("UPDATE cluster.job_types SET paused_at = NULL")
        self.control.execute("DELETE FROM cluster.queues")

    def _pick(self, number: int) -> Row:
        rows = self._rows()
        return rows[number % len(rows)]

    # --- claims ---

    @rule(node=SOME_NODE, queue=SOME_QUEUE, demand=DEMAND, further=REACH, knows=st.booleans())
    def claim(self, node: int, queue: str, demand: int, further: int, knows: bool) -> None:
        """knows: that these keys may have room."""
        self._claim_and_check(node, queue, demand, demand + further, KEYS if knows else ())

    def _claim_and_check(self, node: int, queue: str, demand: int, reach: int, keys: tuple[int, ...]) -> list[int]:
        before = self._rows()
        with self.connections[node].transaction():
            claimed = self._claim(node, queue, demand, reach, keys)
        self._check(before, claimed, node, queue, demand, reach, keys)
        return claimed

    def _claim(self, node: int, queue: str, demand: int, reach: int, keys: tuple[int, ...]) -> list[int]:
        """In the transaction that is open."""
        connection, table = self.connections[node], self._oid()
        connection.execute(statements.statement("take_turn"), {"table": table})
        parameters = {
            "node": self.nodes[node], "table": table, "queue": queue, "priority": 100, "slots": demand, "demand": demand,
            "max_attempts": FAR, "set_aside": [], "key": KEY.column, "keys": [str(key) for key in keys], "reach": reach,
            "only": None, "whole": demand,
        }  # fmt: skip
        return [row[0] for row in connection.execute(self._statement("claim_keyed_jobs"), parameters)]

    def _check(
        self, before: list[Row], claimed: list[int], node: int, queue: str, demand: int, reach: int, keys: tuple[int, ...]
    ) -> None:  # fmt: skip
        """The claim had the lock; before: the table, best rows first."""
        after = {row.id: row for row in self._rows()}
        waiting = [row for row in before if row.waits and row.queue == queue]
        near = [row for row in waiting if not row.parked][:reach]
        if not self.live[node] or self.paused or self.limit == 0:
            assert not claimed
            assert all(row.parked == after[row.id].parked for row in waiting)
            return
        running = Counter(row.key for row in before if row.runs)
        no_key = sum(row.key is None for row in near)
        fit = 0
        for key in {*keys, *(row.key for row in near)} - {None}:
            room = max(0, self.limit - running[key])
            parked = [row for row in waiting if row.parked and row.key == key]
            seen = [row for row in near if row.key == key] + parked
            fits = min(room, len(seen) - len(parked) + min(len(parked), reach))
            fit += fits
            taken = [row for row in seen if row.id in claimed]
            assert len(taken) <= fits, "more than the key has room for"
            still_open = sum(row.id not in claimed and not after[row.id].parked for row in seen)
            assert still_open == fits - len(taken), "what has room is open, what has none is parked"
        for key in KEYS:
            its_own = [row.id for row in waiting if row.key == key]
            taken_ids = [job_id for job_id in its_own if job_id in claimed]
            assert taken_ids == its_own[: len(taken_ids)], "not the best of its key"
        assert len(claimed) == min(demand, fit + no_key)
        for job_id in claimed:
            assert self.model[job_id][1] == "not_started"
            self.model[job_id] = self.model[job_id][0], "running"

    @rule(node=SOME_NODE, queue=SOME_QUEUE, key=st.sampled_from(KEYS), demand=DEMAND, further=REACH)
    def room_for_more_than_is_wanted(self, node: int, queue: str, key: int, demand: int, further: int) -> None:
        """What has room then, but is left to others, is open to them."""
        self.change_limit(1)
        self.insert(queue, key, LIMIT + 1, 50)
        self.claim(node, queue, 4, FAR, True)
        self._sweep(2)
        self.change_limit(LIMIT + 1)
        self.claim(node, queue, demand, further, True)

    @rule(first=SOME_NODE, queue=SOME_QUEUE, job=SOME_JOB, demand=DEMAND)
    def claim_at_once(self, first: int, queue: str, job: int, demand: int) -> None:
        """A job ends while a claim is open that may have parked rows of its key: its node gets the lock later, and finds them."""
        second = (first + 1) % NODES
        before = self._rows()
        running = [row for row in before if row.runs]
        with self.connections[first].transaction():
            claimed = self._claim(first, queue, demand, FAR, ())
            ended = running[job % len(running)] if running else None
            if ended is not None:
                self._finish(ended, second)
            self.insert(queue, None, 1, 50)
            with self.connections[second].transaction():
                assert not self._claim(second, queue, 4, FAR, KEYS), "claimed while another held the lock"
        open_now = [row.id for row in self._rows() if row.waits and not row.parked]
        assert max(self.model) in open_now
        self._check([row for row in before if row.id in self.model], claimed, first, queue, demand, FAR, ())
        if ended is not None and ended.key is not None:
            self._claim_and_check(second, queue, 4, FAR, (ended.key,))

    # --- what ends jobs, and who looks after the room ---

    @precondition(lambda self: any(status == "running" for _, status in self.model.values()))
    @rule(job=SOME_JOB, node=SOME_NODE, back=st.booleans(), goes_on=st.booleans())
    def finish(self, job: int, node: int, back: bool, goes_on: bool) -> None:
        """back: it is handed back instead. goes_on: the claim that looks after its key comes at once."""
        running = [row for row in self._rows() if row.runs]
        row = running[job % len(running)]
        if back:
            parameters = {
                "id": row.id, "locked_at": row.locked_at, "node": row.locked_by, "how": "now", "reason": None, "fingerprint": "",
            }  # fmt: skip
            assert self.connections[node].execute(self._statement("release_claim"), parameters).rowcount == 1
            self.model[row.id] = row.key, "not_started"
        else:
            self._finish(row, node)
        if goes_on and row.key is not None:
            self._claim_and_check(node, row.queue, 1, 1, (row.key,))

    def _finish(self, row: Row, node: int) -> None:
        parameters = {"node": row.locked_by, "id": [row.id], "locked_at": [row.locked_at], "begun": [0.0]}
        hit = self.connections[node].execute(self._statement("finish_succeeded_jobs"), parameters).fetchall()
        assert hit == [(1, None if row.key is None else str(row.key))]
        self.model[row.id] = row.key, "succeeded"

    @rule(victim=SOME_NODE)
    def lose_node(self, victim: int) -> None:
        """Its jobs wait again; it tries to claim, and comes back under another id."""
        self.control.execute("UPDATE cluster.nodes SET state = 'lost' WHERE id = %s", [self.nodes[victim]])
        self.live[victim] = False
        self.claim(victim, "a", 4, FAR, True)
        orphans = self.control.execute(self._statement("list_orphans"), {"limit": 100, "set_aside": []}).fetchall()
        parameters = {
            "id": [row[0] for row in orphans], "dead": [self.nodes[victim]], "crashed": [], "how": "now", "reason": None,
            "max_attempts": FAR, "max_crashes": 3,
        }  # fmt: skip
        self.control.execute(self._statement("rescue_jobs"), parameters)
        for row in self._rows():
            if self.model[row.id][1] == "running" and row.locked_by == self.nodes[victim]:
                self.model[row.id] = row.key, "not_started"
        self.nodes[victim], self.live[victim] = self._register(), True

    @rule(node=SOME_NODE, batch=st.sampled_from([1, 2, FAR]))
    def sweep(self, node: int, batch: int) -> None:
        """Finds every key with parked rows, and what has room; claims use it, and none is left."""
        for key in self._sweep(batch):
            for queue in QUEUES:
                self._claim_and_check(node, queue, FAR, FAR, (key,))
        running = Counter(row.key for row in self._rows() if row.runs)
        left = [row for row in self._rows() if row.parked and running[row.key] < self.limit]
        assert not left, "parked, although its key has room"

    def _sweep(self, batch: int) -> list[int]:
        """Keys that have room."""
        rows = self._rows()
        running = Counter(row.key for row in rows if row.runs)
        found: list[tuple[str, bool]] = []
        while True:
            after = found[-1][0] if found else None
            parameters = {"table": self._oid(), "key": KEY.column, "after": after, "limit": batch}
            some = self.control.execute(self._statement("find_parked_keys"), parameters).fetchall()
            found += some
            if len(some) < batch:
                break
        keys = sorted({row.key for row in rows if row.parked and row.key is not None})
        assert found == [(str(key), running[key] < self.limit) for key in keys]
        return [int(key) for key, has_room in found if has_room]

    @rule()
    def everything_ends(self) -> None:
        """Jobs end without a word to anybody: sweeps alone find what is parked, and nothing is left behind."""
        self.change_limit(None)
        for _ in range(len(self.model) + 1):
            for row in self._rows():
                if row.runs:
                    self._finish(row, 0)
            self.sweep(0, FAR)
            for queue in QUEUES:
                self._claim_and_check(0, queue, FAR, FAR, ())
            self.every_row_is_as_the_model_says()
        assert not [row for row in self._rows() if row.waits or row.parked or row.runs]

    # --- both agree ---

    @invariant()
    def every_row_is_as_the_model_says(self) -> None:
        if not hasattr(self, "table"):
            return
        rows = self._rows()
        assert {row.id: (row.key, row.status) for row in rows} == self.model
        assert not [row for row in rows if row.parked and (row.key is None or not row.waits)]
        running = Counter(row.key for row in rows if row.runs)
        for key in KEYS:
            assert running[key] <= max(self.limit, self.most_running[key])
        self.most_running = running


@pytest.fixture
def model_url(run_server: RunServer) -> Iterator[str]:
    with run_server.database(run_server.template()) as url:
        yield url


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_limits_per_key_hold_and_nothing_stays_parked(model_url: str) -> None:
    machine = type("KeyedJobsHere", (KeyedJobs,), {"url": model_url})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
