"""For Alembic's autogenerate: job tables and schema `cluster` belong to `cluster migrate`. Alembic itself is not imported."""

from __future__ import annotations

from typing import Any

from cluster.job_checks import STANDARD_COLUMNS


def include_object(
    item: Any, name: str | None, type_: str, reflected: bool, compare_to: Any
) -> bool:  # Any: SQLAlchemy need not be installed
    """False for a job table, whether a model of the application's is mapped on it or not, and for all in schema `cluster`.

    Give it to `context.configure` as it is, or call it from an `include_object` of your own.
    """
    if type_ != "table":
        return True  # what belongs to a table that is left out is not asked about
    return not any(_is_ours(table) for table in (item, compare_to) if table is not None)


def _is_ours(table: Any) -> bool:
    return table.schema == "cluster" or set(STANDARD_COLUMNS) <= set(table.columns.keys())
