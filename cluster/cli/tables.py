"""Tables for the terminal, 80 columns wide where nothing else is known, and ages in few characters."""

from __future__ import annotations

import json

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def new_table(title: str) -> Table:
    """Without columns."""
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )


def add_name(table: Table, header: str, width: int) -> None:
    """A column whose cells are cut where they are wider than this, or than what a wider terminal has room for."""
    room = max(0, Console().width - 80)
    table.add_column(header, no_wrap=True, overflow="ellipsis", max_width=width + room)


def add_numbers(table: Table, *headers: str) -> None:
    """Columns whose cells are short, on the right."""
    for header in headers:
        table.add_column(header, justify="right", no_wrap=True)


def print_table(table: Table) -> None:
    """To stdout."""
    Console(highlight=False).print(table)


def print_paragraph(text: str) -> None:
    """To stdout, broken into lines; what rich would take for markup stays as it is."""
    Console(highlight=False).print(Text(text, overflow="fold"))


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
