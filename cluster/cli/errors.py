"""`cluster errors`: failed attempts of all job types, by what they have in common. Reads only; needs no job classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from datetime import timedelta

    from psycopg import Connection

MOST = 5_000
"""Failed attempts of a group that are counted."""
GROUPS, PARTS = 50, 8
"""Groups that are listed, and bars of a trend."""
_BARS = "▁▂▃▄▅▆▇█"

Row = dict[str, Any]
"""A group, as `--json` shows it."""


def errors(
    fingerprint: Annotated[
        str | None,
        typer.Argument(metavar="FINGERPRINT", help="One of them, with its newest traceback.", show_default=False),
    ] = None,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Failed at most so long ago: 90s, 1h, 7d.")
    ] = "24h",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show what failed attempts have in common, the most frequent first."""
    from cluster.cli.database import connected, settings_with_database
    from cluster.cli.enqueue import duration
    from cluster.cli.tables import print_json
    from cluster.migration import check_schema

    span = duration(since, "--since")
    with connected(settings_with_database().database_url) as connection:
        check_schema(connection, [])
        groups = _groups(connection, span, fingerprint)
        if fingerprint is not None and groups:
            groups[0]["jobs"] = _jobs(connection, fingerprint)
    if fingerprint is not None and not groups:
        raise ClusterError(
            f"no attempt has failed with {fingerprint} in the last {since}: `cluster errors` lists all, --since looks further"
        )
    if as_json:
        print_json(groups)
    elif fingerprint is not None:
        _print_one(groups[0], since)
    else:
        _print(groups, since)


def _groups(connection: Connection[Any], span: timedelta | None, fingerprint: str | None) -> list[Row]:
    from psycopg.rows import dict_row

    from cluster import statements
    from cluster.error_text import title

    values = {"only": fingerprint, "since": span, "most": MOST, "buckets": PARTS, "groups": GROUPS}
    with connection.transaction():
        connection.execute(
            "SET LOCAL enable_seqscan = off; SET LOCAL jit = off"
        )  # as in the dashboard: bounded on any table
        rows = (
            connection.cursor(row_factory=dict_row)
            .execute(statements.statement("list_error_groups"), values)
            .fetchall()
        )
        names = {
            str(oid): name for oid, name in connection.execute("SELECT job_table::oid, name FROM cluster.job_types")
        }
    for row in rows:
        row["title"] = title(row["outcome"], row["error"] or "")
        row["types"] = {names[oid]: jobs for oid, jobs in row.pop("tables").items() if oid in names}
        for name in ("first_at", "last_at"):
            row[name] = row[name].isoformat()
    return rows


def _jobs(connection: Connection[Any], fingerprint: str) -> list[Row]:
    """The last ones that failed so."""
    from psycopg.rows import dict_row

    return connection.cursor(row_factory=dict_row).execute(_JOBS, {"fingerprint": fingerprint}).fetchall()


_JOBS = """
SELECT f.job_table::text AS table, f.job_id AS id, f.attempt, f.at::text AS at, f.node::text AS node
FROM cluster.failures AS f WHERE (f.fingerprint, f.at) <= (%(fingerprint)s, 'infinity') AND f.fingerprint >= %(fingerprint)s
ORDER BY f.fingerprint DESC, f.at DESC LIMIT 10
"""


def _print(groups: list[Row], since: str) -> None:
    from cluster.cli.tables import add_name, add_numbers, new_table, print_table

    if not groups:
        typer.echo(f"no attempt has failed in the last {since}", err=True)
        return
    table = new_table(f"Failed attempts of the last {since}")
    table.add_column("fingerprint", no_wrap=True)
    add_numbers(table, "attempts", "last")
    table.add_column("trend", no_wrap=True)
    add_name(table, "types", 14)
    add_name(table, "error", 23)
    for row in groups:
        table.add_row(
            row["fingerprint"],
            _attempts(row),
            _ago(row["last_at"]),
            bars(row["trend"]),
            ", ".join(row["types"]),
            row["title"],
        )
    print_table(table)


def _print_one(row: Row, since: str) -> None:
    from cluster.cli.tables import print_paragraph

    types = ", ".join(f"{name} {jobs:,}" for name, jobs in row["types"].items())
    print_paragraph(row["title"])
    typer.echo(
        f"{_attempts(row)} failed attempts in the last {since}, {row['recent']:,} of them in the last 5m  {bars(row['trend'])}"
    )
    typer.echo(f"first seen {_ago(row['first_at'])} ago, last seen {_ago(row['last_at'])} ago; {types}")
    for job in row["jobs"]:
        typer.echo(f"  {job['table']} {job['id']}, attempt {job['attempt']}")
    typer.echo("")
    typer.echo(row["error"] or "")


def bars(counts: Sequence[int]) -> str:
    """As letters, the highest for the most; a dot: nothing."""
    most = max([*counts, 1])
    return "".join("·" if not count else _BARS[(count * (len(_BARS) - 1)) // most] for count in counts)


def _attempts(row: Row) -> str:
    return f"{row['attempts']:,}{'+' if row['attempts'] >= MOST else ''}"


def _ago(moment: str) -> str:
    from datetime import UTC, datetime

    from cluster.cli.tables import age

    return age((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())
