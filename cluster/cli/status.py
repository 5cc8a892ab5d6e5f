"""`cluster status`: what waits, runs and has finished, by job type, and who works. Reads only; needs no job classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.selection import FINISHED, WAITING

if TYPE_CHECKING:
    from psycopg import Connection

    from cluster.settings import Settings

Row = dict[str, Any]
"""One job type, or one node, as `--json` shows it."""

NOT_FINISHED = (*WAITING, "running")


def status(as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """Show jobs by type and status, and the nodes."""
    from cluster.cli.database import connected, settings_with_database
    from cluster.cli.tables import print_json
    from cluster.migration import check_schema

    settings = settings_with_database()
    with connected(settings.database_url) as connection:
        check_schema(connection, [])
        job_types = _job_types(connection)
        nodes = _nodes(connection)
        trouble = _trouble(connection)
        queues = _paused_queues(connection)
    unroutable = _unroutable(settings, job_types)
    if as_json:
        print_json(
            {
                "job_types": job_types,
                "paused_queues": queues,
                "unroutable": unroutable,
                "nodes": nodes,
                "trouble": trouble,
            }
        )
    else:
        _print(job_types, unroutable, nodes)
        _print_pauses(job_types, queues)
        _print_drains(nodes)
        _print_trouble(trouble)


_JOB_TYPES = """
SELECT t.name, c.oid::regclass::text AS table, n.nspname::text AS schema, c.relname::text AS relation,
       coalesce(t.max_concurrency_override, t.max_concurrency) AS limit, t.paused_at IS NOT NULL AS paused,
       t.paused_at::text, t.paused_reason
FROM cluster.job_types AS t JOIN pg_class AS c ON c.oid = t.job_table JOIN pg_namespace AS n ON n.oid = c.relnamespace
ORDER BY t.name
"""

_COUNTS = """
SELECT status::text AS status, count(*) AS count,
       extract(epoch FROM now() - min(run_at) FILTER (
           WHERE status IN ('not_started', 'scheduled', 'retry') AND run_at <= now()))::float AS oldest
FROM {} GROUP BY status
"""


def _job_types(connection: Connection[Any]) -> list[Row]:
    from psycopg import sql
    from psycopg.rows import dict_row

    found = connection.cursor(row_factory=dict_row).execute(_JOB_TYPES).fetchall()
    for row in found:
        table = sql.Identifier(row.pop("schema"), row.pop("relation"))
        counts = connection.execute(sql.SQL(_COUNTS).format(table)).fetchall()
        row["jobs"] = dict.fromkeys(NOT_FINISHED + FINISHED, 0) | {name: count for name, count, _ in counts}
        row["oldest_waiting_seconds"] = max((age for *_, age in counts if age is not None), default=None)
    return found


def _paused_queues(connection: Connection[Any]) -> list[Row]:
    """The queue * stands for everything."""
    from psycopg.rows import dict_row

    query = "SELECT name, paused_at::text, paused_reason FROM cluster.queues WHERE paused_at IS NOT NULL ORDER BY name"
    return connection.cursor(row_factory=dict_row).execute(query).fetchall()


def _nodes(connection: Connection[Any]) -> list[Row]:
    from psycopg.rows import dict_row

    from cluster.statements import statement

    return connection.cursor(row_factory=dict_row).execute(statement("show_nodes")).fetchall()


def _trouble(connection: Connection[Any]) -> list[Row]:
    """What nodes have set aside, as they said with their last heartbeats."""
    from psycopg.rows import dict_row

    from cluster.statements import statement

    return connection.cursor(row_factory=dict_row).execute(statement("show_trouble")).fetchall()


def _unroutable(settings: Settings, job_types: list[Row]) -> list[str] | None:
    """Job tables that no class here is for. None: there are no classes to tell by."""
    from cluster.cli.job_classes import imported_jobs
    from cluster.errors import JobDefinitionError, JobImportError

    try:
        names = {job_class.__name__ for job_class in imported_jobs(settings)} if settings.jobs else None
    except (JobImportError, JobDefinitionError):
        return None
    return None if names is None else [row["table"] for row in job_types if row["name"] not in names]


# --- for people ---


def _print(job_types: list[Row], unroutable: list[str] | None, nodes: list[Row]) -> None:
    from cluster.cli.tables import print_table

    if not job_types:
        typer.echo("no job tables yet: write a job, then run `cluster migrate`")
    else:
        print_table(_waiting_table(job_types))
        print_table(_finished_table(job_types))
    for table in unroutable or []:
        typer.echo(f"no class here performs the jobs of table {table}")
    working = [node for node in nodes if node["state"] != "stopped"]
    if working:
        print_table(_nodes_table(working))
    else:
        typer.echo("no node is running: start one with `cluster run` or `cluster dev`")


def _print_pauses(job_types: list[Row], queues: list[Row]) -> None:
    """What people forget. Types that were paused with everything are not named one by one."""
    from cluster.cli.tables import print_paragraph

    all_since = next((queue["paused_at"] for queue in queues if queue["name"] == "*"), None)
    paused = [("everything" if queue["name"] == "*" else f"queue {queue['name']}", queue) for queue in queues]
    paused += [(row["name"], row) for row in job_types if row["paused"] and row["paused_at"] != all_since]
    for name, row in paused:
        reason = f": {row['paused_reason']}" if row["paused_reason"] else ""
        print_paragraph(f"{name} is paused since {row['paused_at'][:19]}{reason}")


def _print_drains(nodes: list[Row]) -> None:
    from cluster.cli.tables import age, print_paragraph

    for node in nodes:
        if node["drain_age_seconds"] is not None:
            reason = f": {node['drain_reason']}" if node["drain_reason"] else ""
            since = age(node["drain_age_seconds"])
            print_paragraph(f"{node['hostname']}:{node['pid']} was told to drain, {since} ago{reason}")


def _print_trouble(trouble: list[Row]) -> None:
    """What the database said is too long for a cell, and the first thing that one wants to know."""
    from cluster.cli.tables import print_paragraph, print_table

    if trouble:
        print_table(_trouble_table(trouble))
    for item in trouble:
        print_paragraph(f"{item['job_type']}, {item['reason']}: {item['detail']}")


def _waiting_table(job_types: list[Row]) -> Any:  # Any: rich is imported only where a table is shown
    from cluster.cli.tables import add_name, add_numbers, age, new_table

    table = new_table("Waiting and running")
    add_name(table, "job type", 23)
    add_numbers(table, "not\nstarted", "scheduled", "retry", "running", "oldest", "limit")
    for row in job_types:
        counts = [_short(row["jobs"][name]) for name in NOT_FINISHED]
        table.add_row(_name(row), *counts, age(row["oldest_waiting_seconds"]), _limit(row))
    return table


def _finished_table(job_types: list[Row]) -> Any:  # Any: as above
    from cluster.cli.tables import add_name, add_numbers, new_table

    table = new_table("Finished")
    add_name(table, "job type", 23)
    add_numbers(table, *(name.replace("_", " ") for name in FINISHED))
    for row in job_types:
        table.add_row(_name(row), *(_short(row["jobs"][name]) for name in FINISHED))
    return table


def _nodes_table(nodes: list[Row]) -> Any:  # Any: as above
    from cluster.cli.tables import add_name, add_numbers, age, new_table

    table = new_table("Nodes")
    add_name(table, "host", 20)
    add_numbers(table, "pid", "state", "running", "heartbeat")
    add_name(table, "queues", 14)
    for node in nodes:
        table.add_row(
            _text(node["hostname"]),
            str(node["pid"]),
            _text(node["state"], "" if node["state"] in {"live", "draining"} else "red"),
            f"{node['running']}/{node['slots']}",
            age(node["heartbeat_age_seconds"]),
            _text(",".join(node["queues"])),
        )
    return table


def _trouble_table(trouble: list[Row]) -> Any:  # Any: as above
    from cluster.cli.tables import add_name, add_numbers, age, new_table

    table = new_table("Trouble")
    add_name(table, "job type", 30)
    add_name(table, "reason", 24)
    add_numbers(table, "rows", "nodes", "since")
    for item in trouble:
        table.add_row(
            _text(item["job_type"]), _text(item["reason"], "red"), _short(item["rows"]), str(item["nodes"]),
            age(item["age_seconds"]),
        )  # fmt: skip
    return table


def _name(row: Row) -> Any:  # Any: as above
    return _text(row["name"])


def _text(text: str, style: str = "") -> Any:  # Any: as above
    """As it is: a name may hold what rich would take for markup."""
    from rich.text import Text

    return Text(text, style)


def _limit(row: Row) -> str:
    if row["paused"]:
        return "paused"
    return "none" if row["limit"] is None else str(row["limit"])


def _short(count: int) -> str:
    """1234, 123k, 45M: what fits seven places."""
    if count < 1_000_000:
        return str(count) if count else "·"
    return f"{count // 1000}k" if count < 100_000_000 else f"{count // 1_000_000}M"
