"""What other roles of the same server can and cannot do to a node, and what is refused for their sake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from cluster import locks
from cluster.coordinator.held_locks import INTERVAL, LONGEST_INTERVAL, HeldLocks
from cluster.coordinator.job_types import job_types, resolve
from cluster.coordinator.session import Session
from cluster.coordinator.trouble import Troubles
from cluster.errors import ExitCode, SchemaMisfitError
from cluster.migration import migrate_jobs, migrate_schema, planned_changes
from cluster.neighbours import check_neighbours
from cluster.privileges import OWN_TABLES
from tests.integration.conftest import RunNode
from tests.integration.test_start_privileges import GrantedJob, exit_of
from tests.support.nodes import wait_for, wait_until

SOURCE = """
import asyncio
from cluster import Job

class GrantedJob(Job):
    number: int = 0
    async def perform(self):
        await asyncio.sleep(self.number)
"""
EVIL = """
CREATE FUNCTION public.evil(cluster.job_status, cluster.job_status) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'code of somebody else';
END $$;
CREATE OPERATOR public.= (LEFTARG = cluster.job_status, RIGHTARG = cluster.job_status, FUNCTION = public.evil);
CREATE OPERATOR public.<> (LEFTARG = cluster.job_status, RIGHTARG = cluster.job_status, FUNCTION = public.evil);
CREATE FUNCTION public.evil_regclass(regclass, regclass) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'code of somebody else';
END $$;
CREATE OPERATOR public.= (LEFTARG = regclass, RIGHTARG = regclass, FUNCTION = public.evil_regclass);
"""

MakeRole = Callable[..., str]


@pytest.fixture
def make_role(conn: psycopg.Connection) -> Iterator[MakeRole]:
    """Makes roles that may log in; {role} in the grants is the role. Gone after the test."""
    migrate_jobs(conn, [GrantedJob])
    roles = list[str]()

    def make(grants: str = "", options: str = "LOGIN") -> str:
        name = f"neighbour_{uuid4().hex[:8]}"
        conn.execute(f"CREATE ROLE {name} {options}".encode())
        roles.append(name)
        if grants:
            conn.execute(grants.replace("{role}", name).encode())
        return name

    yield make
    conn.execute("ALTER SCHEMA cluster OWNER TO postgres; ALTER TABLE public.granted_jobs OWNER TO postgres")
    for name in roles:
        conn.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}".encode())


@pytest.fixture
def as_role(database_url: str) -> Callable[[str], psycopg.Connection]:
    return lambda role: psycopg.connect(make_conninfo(database_url, user=role), autocommit=True)


def node_grants() -> str:
    own = "".join(f"GRANT {', '.join(what)} ON cluster.{table} TO {{role}};" for table, what in OWN_TABLES.items())
    return f"{own} GRANT SELECT, UPDATE, DELETE ON granted_jobs TO {{role}}"


# --- the search path ---


def test_a_search_path_in_which_others_may_create_is_refused_with_the_remedy(
    conn: psycopg.Connection, database_url: str, make_role: MakeRole, tmp_path: Path
) -> None:
    mallory = make_role("GRANT CREATE ON SCHEMA public TO {role}")
    code, lines = exit_of(database_url, tmp_path)
    assert (code, len(lines)) == (ExitCode.SCHEMA_MISFIT, 1)
    assert f'role "{mallory}" may create in schema "public" of the search path' in lines[0]
    remedy = f'REVOKE CREATE ON SCHEMA "public" FROM "{mallory}"'
    assert remedy in lines[0]
    for migrate in (migrate_schema, lambda connection: planned_changes(connection, [GrantedJob])):
        with pytest.raises(SchemaMisfitError, match="may create in schema"):
            migrate(conn)
    conn.execute(remedy.encode())
    check_neighbours(conn)


def test_members_of_a_group_that_may_create_are_others_too(conn: psycopg.Connection, make_role: MakeRole) -> None:
    group = make_role("GRANT CREATE ON SCHEMA public TO {role}", "NOLOGIN")
    check_neighbours(conn)
    member = make_role(f"GRANT {group} TO {{role}}", "LOGIN NOINHERIT")
    with pytest.raises(SchemaMisfitError, match=f'"{member}" may create .* FROM "{group}"'):
        check_neighbours(conn)


def test_what_is_granted_to_everybody_is_revoked_from_public(conn: psycopg.Connection, make_role: MakeRole) -> None:
    make_role("GRANT CREATE ON SCHEMA public TO PUBLIC")
    with pytest.raises(SchemaMisfitError, match='REVOKE CREATE ON SCHEMA "public" FROM PUBLIC'):
        check_neighbours(conn)
    conn.execute("SET search_path = pg_catalog")
    check_neighbours(conn)


def test_owners_of_job_tables_may_create_since_their_triggers_run_as_the_node_anyhow(
    conn: psycopg.Connection, make_role: MakeRole
) -> None:
    owner = make_role("GRANT CREATE ON SCHEMA public TO {role}")
    conn.execute(f"ALTER TABLE granted_jobs OWNER TO {owner}".encode())
    check_neighbours(conn)


def test_a_schema_cluster_that_somebody_else_owns_is_refused(
    conn: psycopg.Connection, database_url: str, make_role: MakeRole, tmp_path: Path
) -> None:
    mallory = make_role("ALTER SCHEMA cluster OWNER TO {role}")
    code, lines = exit_of(database_url, tmp_path)
    assert (code, len(lines)) == (ExitCode.SCHEMA_MISFIT, 1)
    assert f'schema cluster belongs to role "{mallory}"' in lines[0]
    with pytest.raises(SchemaMisfitError, match="schema cluster belongs to"):
        migrate_schema(conn)
    conn.execute(f"ALTER TABLE granted_jobs OWNER TO {mallory}".encode())  # whoever migrates, say
    check_neighbours(conn, ["granted_jobs"])


def test_functions_of_the_cluster_take_no_operator_from_the_callers_search_path(conn: psycopg.Connection) -> None:
    migrate_jobs(conn, [GrantedJob])
    conn.execute(EVIL)
    try:
        conn.execute("INSERT INTO granted_jobs (run_at) VALUES (now() + interval '1 hour')")
        conn.execute("UPDATE granted_jobs SET run_at = now()")
        (job_id,) = conn.execute("SELECT id FROM granted_jobs").fetchone() or (None,)
        assert conn.execute("SELECT cluster.cancel('granted_jobs', %s)", [job_id]).fetchone() == ("cancelled",)
        assert conn.execute("SELECT cluster.retry('granted_jobs', %s)", [job_id]).fetchone() == ("not_started",)
    finally:
        conn.execute("DROP FUNCTION public.evil, public.evil_regclass CASCADE")


# --- the role's and the database's settings ---


def test_settings_of_the_role_do_not_reach_a_node(
    conn: psycopg.Connection, make_role: MakeRole, run_node: RunNode
) -> None:
    role = make_role(node_grants())
    for name, value in (
        ("default_transaction_read_only", "on"),
        ("default_transaction_isolation", "serializable"),
        ("statement_timeout", "500ms"),
        ("idle_in_transaction_session_timeout", "1ms"),
        ("idle_session_timeout", "100ms"),
    ):
        conn.execute(f"ALTER ROLE {role} SET {name} = '{value}'".encode())
    node = run_node(SOURCE, role=role)
    conn.execute("INSERT INTO granted_jobs (number) VALUES (1)")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM granted_jobs")
    assert not [line for line in node.log() if line.get("level") in {"warning", "error"}]


def test_row_security_that_hides_jobs_from_a_node_is_refused_with_the_remedy(
    conn: psycopg.Connection, database_url: str, make_role: MakeRole, tmp_path: Path
) -> None:
    role = make_role(node_grants())
    conn.execute("ALTER TABLE granted_jobs ENABLE ROW LEVEL SECURITY")
    code, lines = exit_of(make_conninfo(database_url, user=role), tmp_path)
    assert (code, len(lines)) == (ExitCode.SCHEMA_MISFIT, 1)
    assert f'row-level security of table "granted_jobs" hides rows from role {role}' in lines[0]
    assert f"ALTER ROLE {role} BYPASSRLS" in lines[0]


def test_row_security_that_is_switched_on_later_is_a_trouble_with_a_name(
    conn: psycopg.Connection, make_role: MakeRole, run_node: RunNode
) -> None:
    role = make_role(node_grants())
    node = run_node(SOURCE, role=role)
    conn.execute("ALTER TABLE granted_jobs ENABLE ROW LEVEL SECURITY")
    conn.execute("INSERT INTO granted_jobs DEFAULT VALUES")
    wait_until(lambda: "no_privilege" in {line["reason"] for line in node.log("trouble_began")}, "the trouble is named")
    conn.execute(f"ALTER ROLE {role} BYPASSRLS".encode())
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM granted_jobs")


# --- notifications ---


def test_a_cancel_that_the_row_does_not_confirm_stops_nothing(
    conn: psycopg.Connection,
    make_role: MakeRole,
    run_node: RunNode,
    as_role: Callable[[str], psycopg.Connection],
) -> None:
    run_node(SOURCE)
    conn.execute("INSERT INTO granted_jobs (number) VALUES (2)")
    wait_for(conn, "SELECT bool_and(status = 'running') FROM granted_jobs")
    (table, job_id) = (
        conn.execute("SELECT 'granted_jobs'::regclass::oid::bigint, id FROM granted_jobs").fetchone() or ()
    )
    with as_role(make_role()) as mallory:
        for payload in (f"{table} {job_id}", f"{table} {job_id}" * 2, "", "\t", "\N{ELEPHANT}", "9" * 7000, "-1 1"):
            for channel in ("cluster_cancel", "cluster_doorbell"):
                for _ in range(50):
                    mallory.execute("SELECT pg_notify(%s, %s)", [channel, payload])
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM granted_jobs")
    assert conn.execute("SELECT attempts_count FROM granted_jobs").fetchone() == (1,)


# --- locks ---


TAKE_DOORBELL = f"SELECT pg_advisory_lock({locks.DOORBELL}, 'granted_jobs'::regclass::oid::integer)"
TAKE_TURN = "BEGIN; SELECT FROM cluster.turns FOR UPDATE"


def test_advisory_locks_of_others_do_not_stop_a_type_with_a_limit(
    conn: psycopg.Connection,
    make_role: MakeRole,
    run_node: RunNode,
    as_role: Callable[[str], psycopg.Connection],
) -> None:
    with as_role(make_role()) as mallory:
        for key in range(1740, 1760):
            mallory.execute("SELECT pg_advisory_lock(%s, 'granted_jobs'::regclass::oid::integer)", [key])
            mallory.execute("SELECT pg_advisory_lock('granted_jobs'::regclass::oid::bigint)")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            mallory.execute("SELECT FROM cluster.turns FOR UPDATE")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            mallory.execute("DO $$BEGIN LOCK TABLE cluster.turns IN ACCESS SHARE MODE; END$$")
        run_node(SOURCE)
        conn.execute("INSERT INTO granted_jobs DEFAULT VALUES")
        wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM granted_jobs")


@pytest.mark.parametrize(
    ("take", "grant", "job_type"),
    [(TAKE_DOORBELL, "", "GrantedJob"), (TAKE_TURN, "GRANT SELECT, UPDATE ON cluster.turns TO {role}", "(node)")],
)
def test_who_holds_a_lock_of_the_nodes_is_named_until_it_is_free(
    conn: psycopg.Connection,
    make_role: MakeRole,
    run_node: RunNode,
    as_role: Callable[[str], psycopg.Connection],
    take: str,
    grant: str,
    job_type: str,
) -> None:
    role = make_role()
    conn.execute(grant.replace("{role}", role).encode())
    with as_role(role) as mallory:
        mallory.execute(take.encode())
        node = run_node(SOURCE)
        took = wait_until(lambda: bool(node.log("trouble_began")), "the holder is named", timeout=10)
        [trouble] = node.log("trouble_began")
        assert (trouble["job_type"], trouble["reason"]) == (job_type, "table_lock_held")
        assert f"role {role}, server process {mallory.info.backend_pid}, holds" in trouble["detail"]
        assert took < 5
    conn.execute("INSERT INTO granted_jobs DEFAULT VALUES")
    wait_for(conn, "SELECT bool_and(status = 'succeeded') FROM granted_jobs")
    wait_until(lambda: bool(node.log("trouble_over")), "the trouble is over")


async def test_many_nodes_look_for_held_locks_rarely_until_one_sees_something_new(
    conn: psycopg.Connection,
    database_url: str,
    make_role: MakeRole,
    as_role: Callable[[str], psycopg.Connection],
) -> None:
    role, troubles = make_role(), Troubles()
    types = job_types([GrantedJob])
    session = Session(lambda: database_url, "heartbeat")
    held_locks = HeldLocks(session, types, troubles, lambda: 1000)
    try:
        async with session.use() as connection:
            await resolve(connection, types)
        assert await held_locks.tick() == LONGEST_INTERVAL
        with as_role(role) as mallory:
            mallory.execute(TAKE_DOORBELL.encode())
            assert await held_locks.tick() == INTERVAL
            assert not troubles.listed()
            assert await held_locks.tick() == LONGEST_INTERVAL
            assert [trouble["reason"] for trouble in troubles.listed()] == ["table_lock_held"]
    finally:
        await session.close()
