"""What real databases put in the way of a queue: constraints and triggers added by hand, missing grants, odd values.

Each appears while everything runs, and goes again. It may cost the rows or the type that it is about, and nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg

SOME = "NEW.id % 7 = 0"
"""Rows that most obstacles are about."""


@dataclass(frozen=True)
class Obstacle:
    """begin, end: SQL, in which {table} is a job table and {role} the nodes' role.

    reason: the trouble that nodes tell of; empty: they settle it row by row. fails: rows that it is about may fail for it.
    """

    words: str
    begin: str
    end: str
    reason: str = ""
    fails: bool = False
    stall: float = 2.0
    """Seconds that the others may have to wait for it, when nodes meet it."""

    @contextlib.contextmanager
    def stand(self, connection: psycopg.Connection[Any], *tables: str, role: str) -> Iterator[None]:
        """It is there as long as the block runs."""
        self._run(connection, self.begin, tables, role)
        try:
            yield
        finally:
            self._run(connection, self.end, tables, role)

    def _run(self, connection: psycopg.Connection[Any], text: str, tables: tuple[str, ...], role: str) -> None:
        for table in tables:
            connection.execute(text.replace("{table}", table).replace("{role}", role).encode())


def _trigger(condition: str, code: str = "P0001", event: str = "UPDATE") -> tuple[str, str]:
    """Refuses rows for which the condition holds."""
    return (
        f"""
            CREATE FUNCTION refuse_{{table}}() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}'; END$$;
            CREATE TRIGGER refuse BEFORE {event} ON {{table}} FOR EACH ROW
                WHEN ({condition}) EXECUTE FUNCTION refuse_{{table}}()
        """,
        "DROP FUNCTION refuse_{table} CASCADE",
    )


def _check(condition: str) -> tuple[str, str]:
    return (
        f"ALTER TABLE {{table}} ADD CONSTRAINT refuse CHECK ({condition}) NOT VALID",
        "ALTER TABLE {table} DROP CONSTRAINT refuse",
    )


def _take_long(status: str) -> tuple[str, str]:
    """For each row that becomes so, longer than a statement may take."""
    return (
        f"""
            CREATE FUNCTION take_long_{{table}}() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN PERFORM pg_sleep(20); RETURN NEW; END$$;
            CREATE TRIGGER take_long BEFORE UPDATE ON {{table}} FOR EACH ROW
                WHEN (NEW.status = '{status}') EXECUTE FUNCTION take_long_{{table}}()
        """,
        "DROP FUNCTION take_long_{table} CASCADE",
    )


OBSTACLES = {
    "odd_rows": Obstacle(
        "rows with the first and the last dates, and of 100 queues with long names",
        """
            INSERT INTO {table} (run_at) VALUES ('0001-01-02'), ('9999-12-30');
            INSERT INTO {table} (queue) SELECT rpad('odd ' || n, 128, 'ü') FROM generate_series(1, 100) AS n
        """,
        "DELETE FROM {table} WHERE run_at > now() + interval '1 year'",
    ),
    "refuse_claims": Obstacle(
        "a trigger refuses the claim of some rows", *_trigger(f"NEW.status = 'running' AND {SOME}"), fails=True
    ),
    "refuse_all_claims": Obstacle(
        "a trigger refuses all claims of two types",
        *_trigger("NEW.status = 'running'", code="55000"),
        reason="table_refuses_claims",
        fails=True,
    ),
    "one_runs": Obstacle(
        "a unique index over running rows",
        """
            DO $$BEGIN
                LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE;
                EXECUTE 'CREATE UNIQUE INDEX {table}_one_runs ON {table} ((id % 2)) WHERE status = ''running'' AND id > '
                    || (SELECT coalesce(max(id), 0) FROM {table});
            END$$
        """,
        "DROP INDEX {table}_one_runs",
        reason="claim_refused",
    ),
    "refuse_outcomes": Obstacle(
        "a trigger refuses the outcome of some rows",
        *_trigger(f"OLD.status = 'running' AND NEW.status = 'succeeded' AND {SOME}", code="57014"),
        reason="outcome_refused",
    ),
    "refuse_all_outcomes": Obstacle(
        "the table is gone that an audit trigger writes to",
        """
            CREATE FUNCTION audit_{table}() RETURNS trigger LANGUAGE plpgsql AS
                $$BEGIN INSERT INTO audit_of_{table} (id) VALUES (NEW.id); RETURN NULL; END$$;
            CREATE TRIGGER audit AFTER UPDATE ON {table} FOR EACH ROW
                WHEN (NEW.status = 'succeeded') EXECUTE FUNCTION audit_{table}()
        """,
        "DROP FUNCTION audit_{table} CASCADE",
        reason="table_refuses_outcomes",
    ),
    "refuse_promotions": Obstacle(
        "a constraint refuses the promotion of some rows",
        *_check("status <> 'not_started' OR attempts_count > 0 OR run_at <= created_at OR id % 7 <> 0"),
        reason="promotion_refused",
    ),
    "refuse_releases": Obstacle(
        "a trigger refuses that some running rows go back",
        *_trigger(f"OLD.status = 'running' AND NEW.status IN ('not_started', 'retry') AND {SOME}", code="08006"),
    ),
    "refuse_pruning": Obstacle(
        "a trigger refuses that some rows are deleted",
        *_trigger("OLD.id % 7 = 0", event="DELETE"),
        reason="prune_refused",
    ),
    "slow_claims": Obstacle(
        "a trigger takes 20 s for each claim of two types",
        *_take_long("running"),
        reason="too_slow",
        stall=8.0,
    ),
    "slow_outcomes": Obstacle(
        "a trigger takes 20 s for each outcome of two types",
        *_take_long("succeeded"),
        reason="too_slow",
        stall=8.0,
    ),
    "revoked_update": Obstacle(
        "the nodes' role may not update two tables any more",
        "REVOKE UPDATE ON {table} FROM {role}",
        "GRANT UPDATE ON {table} TO {role}",
        reason="no_privilege",
    ),
    "revoked_select": Obstacle(
        "the nodes' role may not read two tables any more",
        "REVOKE SELECT ON {table} FROM {role}",
        "GRANT SELECT ON {table} TO {role}",
        reason="no_privilege",
    ),
    "row_security": Obstacle(
        "row-level security of two tables hides all rows",
        "ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
        reason="no_privilege",
    ),
}
