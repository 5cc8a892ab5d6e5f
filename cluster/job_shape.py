"""What a coordinator and its workers must agree on about a job class: each imports it for itself, perhaps at other times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from cluster.errors import JobImportError
from cluster.job import Job, definition

Shape: TypeAlias = Mapping[str, str]
"""By what people call it."""


def shape(job_class: type[Job]) -> Shape:
    made = definition(job_class)
    return {
        "name": made.name,
        "table": made.table,
        "columns": ", ".join(f"{column.name} {column.type.name}" for column in made.columns),
        "kind of perform": "async" if made.is_async else job_class.isolation,
        "timeout": str(job_class.timeout),
        "max_attempts": str(job_class.max_attempts),
        "max_crashes": str(job_class.max_crashes),
        "max_concurrency": str(job_class.max_concurrency),
        "concurrency_key": str(job_class.concurrency_key),
        "retention": f"{job_class.retention} {job_class.retention_failed}",
    }


def check_shapes(found: Sequence[type[Job]], expected: Sequence[Shape]) -> None:
    """JobImportError: a class is gone, or is another one. More of them do no harm."""
    shapes = {definition(job_class).name: shape(job_class) for job_class in found}
    for before in expected:
        now = shapes.get(before["name"])
        if now is None:
            raise JobImportError(f"{before['name']} is gone, and the node performs it: restart the node")
        changed = [what for what, value in before.items() if now[what] != value]
        if changed:
            raise JobImportError(
                f"{before['name']} has changed its {' and '.join(changed)}: that takes a restart of the node"
            )
