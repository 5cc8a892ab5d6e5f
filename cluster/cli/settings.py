"""`cluster settings`: every setting with its value, where that came from, and what it means."""

from __future__ import annotations

from typing import Annotated

import typer


def settings(
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    as_file: Annotated[bool, typer.Option("--env-file", help="An environment file, all of it commented out.")] = False,
) -> None:
    """Show every setting; passwords are masked."""
    from cluster.cli.environment_file import environment_file
    from cluster.cli.tables import print_json
    from cluster.settings import load_settings

    if as_file:
        typer.echo(environment_file(), nl=False)
        return
    rows = load_settings().describe()
    if as_json:
        print_json([dict(zip(("variable", "value", "source", "meaning"), row, strict=True)) for row in rows])
    else:
        _print(rows)


def _print(rows: list[tuple[str, str, str, str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from cluster.cli.tables import print_table

    table = Table.grid(padding=(0, 2), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for variable, value, source, meaning in rows:
        shown = Text(value or "not set", style="bold" if value else "dim")
        shown.append(f"  ({source})" if source != "default" else "", style="cyan")
        table.add_row(Text(variable), shown)
        table.add_row("", Text(meaning + "\n", style="dim"))
    print_table(table)
