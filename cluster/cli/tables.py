"""Tables for the terminal, 80 columns wide where nothing else is known, and ages in few characters."""

from __future__ import annotations

import json
from typing import Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table


def new_table(title: str, name: str, *columns: str) -> Table:
    """The first column is a name and is cut where room is short; the others are numbers, on the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    add_column(table, name, "left", ratio=1)
    for column in columns:
        add_column(table, column)
    return table


def add_column(
    table: Table, header: str, justify: Literal["left", "right"] = "right", *, ratio: int | None = None
) -> None:
    """A column whose cells stay on one line."""
    table.add_column(header, justify=justify, no_wrap=True, overflow="ellipsis", ratio=ratio)


def print_table(table: Table) -> None:
    """To stdout."""
    Console(highlight=False).print(table)


def print_json(value: object) -> None:
    """To stdout, for machines."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def age(seconds: float | None) -> str:
    """4s, 12m, 3h, 9d; empty: None."""
    if seconds is None:
        return ""
    whole = int(max(0, seconds))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if whole >= size * 2:
            return f"{whole // size}{unit}"
    return f"{whole}s"
