"""`cluster drain` and `cluster undrain`: the SQL functions of the same names, for a node or all of a host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cluster.errors import ClusterError

if TYPE_CHECKING:
    from psycopg import Connection

Node = Annotated[
    str, typer.Argument(metavar="NODE", help="Its host:pid, its id, or a host: all nodes there.", show_default=False)
]


def drain(
    node: Node, reason: Annotated[str | None, typer.Option(metavar="TEXT", help="Shown wherever one looks.")] = None
) -> None:
    """Let a node claim nothing more. What runs goes on, and the node stays, until undrain or its end."""
    _change("drain", node, reason)


def undrain(node: Node) -> None:
    """Let a node claim again."""
    _change("undrain", node, None)


def _change(function: Literal["drain", "undrain"], node: str, reason: str | None) -> None:
    import psycopg

    from cluster.cli.audit import note
    from cluster.cli.database import connected, settings_with_database
    from cluster.migration import check_schema

    with connected(settings_with_database().database_url) as connection:
        check_schema(connection, [])
        try:
            with connection.transaction():
                before = _drains(connection)
                arguments = [node, reason] if function == "drain" else [node]
                query = f"SELECT cluster.{function}({', '.join(['%s::text'] * len(arguments))})"
                found = [row[0] for row in connection.execute(query.encode(), arguments).fetchall()]
                for name, running in _named(connection, found):
                    if (name in before) != (function == "drain"):
                        note(connection, function, f"node {name}", {"reason": reason} if reason else None)
                    typer.echo(f"{name}: {_words(function, running, was_draining=name in before)}")
        except psycopg.errors.UndefinedObject as error:
            raise ClusterError(f"{error.diag.message_primary}: see `cluster status`") from error


def _drains(connection: Connection[Any]) -> set[str]:
    query = "SELECT hostname || ':' || pid FROM cluster.nodes JOIN cluster.drains ON node = id"
    return {row[0] for row in connection.execute(query).fetchall()}


def _named(connection: Connection[Any], nodes: list[Any]) -> list[tuple[str, int]]:
    query = "SELECT hostname || ':' || pid, running FROM cluster.nodes WHERE id = ANY (%s) ORDER BY 1"
    return connection.execute(query, [nodes]).fetchall()


def _words(function: str, running: int, *, was_draining: bool) -> str:
    if function == "undrain":
        return "claims again" if was_draining else "was not told to drain"
    return "drains already" if was_draining else f"claims nothing more; {running} jobs ran with its last heartbeat"
