"""`cluster generate job`: a job class and its test, from a name and `column:type` words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import ClusterError

app = typer.Typer(no_args_is_help=True, help="Write a new job and its test.")


@app.callback()
def _group() -> None:
    """Write a new job and its test."""


@app.command()
def job(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Such as EmailCustomers; the suffix Job is added.", show_default=False)
    ],
    columns: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="COLUMN:TYPE",
            help="Type: int, str, bool, float, decimal, datetime, date, timedelta, uuid, bytes, json; or a "
            "table's column, for a foreign key. ? allows NULL.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write jobs/NAME.py and tests/jobs/test_NAME.py.

    cluster generate job EmailCustomers customer_id:customers.id note:str?
    """
    from cluster.cli.files import write_new
    from cluster.cli.generated_code import job_from
    from cluster.cli.init import JOBS_PACKAGE

    new = job_from(name, columns or [])
    files = {f"jobs/{new.module}.py": new.code(), f"tests/jobs/test_{new.module}.py": new.test()}
    there = [path for path in files if Path(path).exists()]
    if there:
        raise ClusterError(f"{' and '.join(there)}: there already; remove it, or choose another name")
    if not Path("jobs/__init__.py").exists():
        write_new("jobs/__init__.py", JOBS_PACKAGE)
    for path, text in files.items():
        write_new(path, text)
    typer.echo(f"\nNext: write {new.class_name}.perform, then `cluster migrate`")
