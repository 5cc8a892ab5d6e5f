"""The text of a generated job and of its test. The names are checked by defining the class, so the refusals are job.py's."""

from __future__ import annotations

import keyword
import re
import types
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

from cluster.columns import References
from cluster.errors import ClusterError, JobDefinitionError
from cluster.job import Job, table_name


class _Type(NamedTuple):
    """annotation, module: what the class says and where that comes from. example: a value for the test.

    example_needs: further names that the example uses, from the same module.
    """

    python: Any
    annotation: str
    example: str
    module: str = ""
    example_needs: tuple[str, ...] = ()


_TYPES = {
    "int": _Type(int, "int", "1"),
    "str": _Type(str, "str", '"text"'),
    "bool": _Type(bool, "bool", "True"),
    "float": _Type(float, "float", "1.5"),
    "decimal": _Type(Decimal, "Decimal", 'Decimal("9.99")', "decimal", ("Decimal",)),
    "datetime": _Type(datetime, "datetime", "datetime(2030, 1, 31, 12, tzinfo=UTC)", "datetime", ("UTC", "datetime")),
    "date": _Type(date, "date", "date(2030, 1, 31)", "datetime", ("date",)),
    "timedelta": _Type(timedelta, "timedelta", "timedelta(minutes=5)", "datetime", ("timedelta",)),
    "uuid": _Type(UUID, "UUID", "UUID(int=1)", "uuid", ("UUID",)),
    "bytes": _Type(bytes, "bytes", 'b"bytes"'),
    "json": _Type(dict[str, Any], "dict[str, Any]", '{"key": "value"}'),
}


_TEST_WITH_ROW = """

def test_{module}_performs(cluster_database: str) -> None:
    with psycopg.connect(cluster_database) as connection:
        new_job().perform_later(connection)
    (performed,) = drain(cluster_database)
    assert performed.status == "succeeded", performed.error


def test_{module}_may_be_run_twice(cluster_database: str) -> None:
    assert_repeatable(new_job(), cluster_database)
"""
_TEST_WITHOUT_ROW = """

def test_{module}_performs() -> None:
    # Without a row of its own, which needs one of {tables}:
    # see cluster_prepare in conftest.py, then cluster_database and drain.
    perform_job(new_job())
"""


@dataclass(frozen=True)
class _Column:
    """references: the table's column, as References takes it; empty: no foreign key."""

    name: str
    type: _Type
    nullable: bool
    references: str

    @property
    def python(self) -> Any:
        return self.type.python | None if self.nullable else self.type.python

    def line(self, clashing: set[str]) -> str:
        """The field in the class. clashing: types that a column's name hides, so they need their module's."""
        annotation = self.type.annotation
        if annotation in clashing:
            annotation = f"dt.{annotation}"
        if self.references:
            annotation = f'Annotated[{annotation}, References("{self.references}")]'
        return f"    {self.name}: {annotation}{' | None = None' if self.nullable else ''}\n"


@dataclass(frozen=True)
class NewJob:
    """A job class to be written. module: its file's name; words: what it is called in sentences."""

    class_name: str
    module: str
    columns: tuple[_Column, ...]

    @property
    def _words(self) -> str:
        return self.module.replace("_", " ")

    def code(self) -> str:
        """jobs/{module}.py."""
        hidden = {column.name for column in self.columns} & {"date", "datetime", "timedelta"}
        fields = "".join(column.line(hidden) for column in self.columns)
        return (
            f'"""{self._words.capitalize()}."""\n\n{self._imports(hidden)}\n\n'
            f"class {self.class_name}(Job):\n"
            f'    """One row of table {table_name(self.class_name)} is one of these."""\n\n'
            f"{fields}{chr(10) if fields else ''}"
            f"    async def perform(self) -> None:\n"
            f'        """Runs once for each row, and again after an error."""\n'
            f'        self.log.info("{self._words}")\n'
        )

    def test(self) -> str:
        """tests/jobs/test_{module}.py. Rows that a foreign key needs are the application's, so such a job has no row there."""
        tables = sorted({column.references.rpartition(".")[0] for column in self.columns if column.references})
        given = [column for column in self.columns if not column.nullable]
        names = _by_module([(column.type.module, column.type.example_needs) for column in given])
        imports = "".join(f"from {module} import {', '.join(used)}\n" for module, used in names.items())
        arguments = "".join(f"        {column.name}={column.type.example},\n" for column in given)
        words = {"class": self.class_name, "module": self.module, "tables": " and ".join(tables)}
        return (
            f'"""{self.class_name} performs{"" if tables else ", and may be run twice"}."""\n\n'
            f"{imports}{chr(10) if imports else ''}"
            f"{'' if tables else 'import psycopg' + chr(10)}"
            f"from cluster.testing import {'perform_job' if tables else 'assert_repeatable, drain'}\n\n"
            f"from jobs.{self.module} import {self.class_name}\n\n\n"
            f"def new_job() -> {self.class_name}:\n"
            f"    return {self.class_name}({chr(10) + arguments + '    ' if arguments else ''})\n"
            f"{(_TEST_WITHOUT_ROW if tables else _TEST_WITH_ROW).format_map(words)}"
        )

    def _imports(self, hidden: set[str]) -> str:
        used = [
            (column.type.module, (column.type.annotation,))
            for column in self.columns
            if column.type.module and column.type.annotation not in hidden
        ]
        typing_names = (
            *(["Annotated"] if any(column.references for column in self.columns) else []),
            *(["Any"] if any("Any" in column.type.annotation for column in self.columns) else []),
        )
        names = _by_module([*used, *([("typing", typing_names)] if typing_names else [])])
        aliased = any(column.type.annotation in hidden for column in self.columns)
        lines = (["import datetime as dt"] if aliased else []) + [
            f"from {module} import {', '.join(found)}" for module, found in names.items()
        ]
        ours = "from cluster import Job" + (", References" if "Annotated" in typing_names else "")
        return "\n".join([*lines, *([""] if lines else []), ours, ""])


def job_from(name: str, words: list[str]) -> NewJob:
    """ClusterError: the class could not be defined, with the message that it would have."""
    class_name = _class_name(name)
    new = NewJob(class_name, table_name(class_name).removesuffix("_jobs"), tuple(map(_column, words)))
    names = [column.name for column in new.columns]
    if twice := [column for column in names if names.count(column) > 1]:
        raise ClusterError(f"column {twice[0]} is named twice")
    try:
        _define(new)
    except JobDefinitionError as error:
        raise ClusterError(str(error)) from error
    return new


def _define(new: NewJob) -> None:
    async def perform(self: Job) -> None:
        """A class without it would not be a job type."""

    body: dict[str, Any] = {
        "__module__": f"jobs.{new.module}",
        "__annotations__": {column.name: column.python for column in new.columns},
        "perform": perform,
    }
    body |= {column.name: None for column in new.columns if column.nullable}
    for column in new.columns:
        if column.references:
            References(column.references)
    types.new_class(new.class_name, (Job,), {}, lambda namespace: namespace.update(body))


def _class_name(name: str) -> str:
    """email_customers, email-customers, EmailCustomers or EmailCustomersJob: EmailCustomersJob."""
    parts = re.split(r"[_\-\s]+", name)
    stem = "".join(part[:1].upper() + part[1:] for part in parts).removesuffix("Job")
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", stem) or keyword.iskeyword(stem.lower()):
        raise ClusterError(f"{name!r} can't be a job's name: write it as EmailCustomers or email_customers")
    return f"{stem}Job"


def _column(word: str) -> _Column:
    name, _, kind = word.partition(":")
    nullable = kind.endswith("?")
    kind = kind.removesuffix("?")
    if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name):
        raise ClusterError(f"{word!r}: a column is written as name:type, such as customer_id:int")
    if name in {"int", "str", "bool", "float", "bytes", "dict"}:
        raise ClusterError(f"{word!r}: a column named like a Python type reads badly: choose another name")
    if "." in kind:
        if not all(part.isidentifier() for part in kind.split(".")):
            raise ClusterError(f"{word!r}: a foreign key is written as customer_id:customers.id")
        return _Column(name, _TYPES["int"], nullable, kind)
    if kind not in _TYPES:
        from cluster.cli.job_classes import did_you_mean

        raise ClusterError(f"{word!r}: there is no type {kind!r}{did_you_mean(kind, _TYPES, _TYPES)}")
    return _Column(name, _TYPES[kind], nullable, "")


def _by_module(names: list[tuple[str, tuple[str, ...]]]) -> dict[str, list[str]]:
    """The names of each module, in the order in which isort wants them: constants, classes, functions."""
    found: dict[str, set[str]] = {}
    for module, used in names:
        if module:
            found.setdefault(module, set()).update(used)
    return {module: sorted(found[module], key=_import_order) for module in sorted(found)}


def _import_order(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)
