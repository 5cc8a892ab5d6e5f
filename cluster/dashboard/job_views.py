"""How the application wants its job types shown: which of them, and what stands in the list, on a job's page and in the form.

Functions return text, which is escaped, or `markupsafe.Markup`, which is not; templates of Jinja escape by themselves. What fails
is told of in its place and in the log, and takes nothing else with it.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader
from markupsafe import Markup, escape

from cluster.dashboard.auth import User
from cluster.dashboard.database import Connection
from cluster.dashboard.job_tables import Column, JobTable, named
from cluster.job import Job, definition

log = logging.getLogger("cluster.dashboard")

LISTED = 5
"""Columns of the user's that a list shows."""
Row = dict[str, Any]
"""A job: its columns by name, a user's as text and cut, None for NULL."""


@dataclass(frozen=True)
class Scene:
    """What a part of a page is made of.

    base: the path of the dashboard. jobs: the newest ten, those of the page, or the one. fields: of the form, those of the table.
    """

    connection: Connection
    table: JobTable
    base: str
    user: User
    jobs: list[Row]
    fields: list[Any] = field(default_factory=list)

    @property
    def job(self) -> Row:
        """The one, of a page about one."""
        return self.jobs[0]


Part = str | Callable[[Scene], str | Awaitable[str]]
"""A template's name, which gets the fields of a Scene as variables, and `job`, or a function."""


@dataclass(frozen=True)
class JobView:
    """One job type: its class, or the name of its table. What is left out is as for all types.

    title: its heading. headings: of columns. columns: of a job's page, in this order; list_columns: of the list; both may name
    what `cells` makes. labels: for a column, SQL of two columns, its values and what they stand for; lists, pages, filters and
    the form have them. include: adds to the rows what belongs to them, for all rows at once. cells: for a name, what stands there
    of each row. templates: a folder. section: on the overview. page: in place of the list. row: in place of the cells of a job,
    but for the first. detail: in place of a job's values. form: in place of the inputs, which are named c.COLUMN. create: inserts
    the job from what was sent, and returns its id; a ValueError is shown above the form.
    """

    job: type[Job] | str
    title: str = ""
    headings: Mapping[str, str] = field(default_factory=dict)
    columns: Sequence[str] | None = None
    list_columns: Sequence[str] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    include: Callable[[Connection, list[Row]], Awaitable[None]] | None = None
    cells: Mapping[str, Callable[[list[Row]], Sequence[object]]] = field(default_factory=dict)
    templates: Path | None = None
    section: Part | None = None
    page: Part | None = None
    row: Callable[[Row], str] | None = None
    detail: Part | None = None
    form: Part | None = None
    create: Callable[[Connection, User, Mapping[str, str]], Awaitable[int]] | None = None

    @property
    def job_class(self) -> type[Job] | None:
        return None if isinstance(self.job, str) else self.job

    def is_of(self, table: JobTable) -> bool:
        name = self.job if isinstance(self.job, str) else definition(self.job).table
        return named([table], name) is not None or (table.is_visible and name == table.relation)

    def with_labels(self, columns: list[Column]) -> list[Column]:
        """The table's columns, with the sources that this view has for them."""
        return [
            replace(each, source=self.labels[each.name], has_index=False) if each.name in self.labels else each
            for each in columns
        ]


class JobViews:
    """Those of an application. None given: all types, as they are."""

    def __init__(self, given: Sequence[JobView | type[Job] | str] | None, templates: Environment) -> None:
        self.given = [each if isinstance(each, JobView) else JobView(each) for each in given or ()]
        self._templates = templates
        self._environments: dict[Path, Environment] = {}

    def shown(self, tables: list[JobTable]) -> list[JobTable]:
        """In the order in which they were given."""
        if not self.given:
            return tables
        return list(dict.fromkeys(table for view in self.given for table in tables if view.is_of(table)))

    def of(self, table: JobTable) -> JobView:
        return next((view for view in self.given if view.is_of(table)), JobView(table.name))

    async def prepared(self, view: JobView, connection: Connection, jobs: list[Row]) -> list[Row]:
        """The rows with what `include` and `cells` add: both are asked once."""
        try:
            async with connection.transaction():
                if view.include is not None:
                    await view.include(connection, jobs)
            for name, make in view.cells.items():
                for job, cell in zip(jobs, make(jobs), strict=True):
                    job[name] = escape(cell)
        except Exception as error:
            log.exception("the view of %s fails", view.job)
            for job in jobs:
                job.update({name: _failed(view, error) for name in view.cells})
        return jobs

    async def render(self, view: JobView, part: Part, scene: Scene) -> Markup:
        """What the part has to say."""
        try:
            async with scene.connection.transaction():
                if isinstance(part, str):
                    values = vars(scene) | {"scene": scene, "job": scene.jobs[0] if scene.jobs else None}
                    return Markup(self._environment(view).get_template(part).render(values))  # noqa: S704 - it escapes
                made = part(scene)
                return escape(await made if inspect.isawaitable(made) else made)
        except Exception as error:
            log.exception("the view of %s fails", view.job)
            return _failed(view, error)

    def rows(self, view: JobView, jobs: list[Row]) -> list[Markup] | None:
        """The cells of each. None: as they always are."""
        if view.row is None:
            return None
        try:
            return [escape(view.row(job)) for job in jobs]
        except Exception as error:
            log.exception("the view of %s fails", view.job)
            return [_failed(view, error)] * len(jobs)

    def _environment(self, view: JobView) -> Environment:
        """Where the view's own folder comes first. Kept, since it keeps what it has compiled."""
        if view.templates is None:
            return self._templates
        if view.templates not in self._environments:
            own = [self._templates.loader] if self._templates.loader else []
            loader = ChoiceLoader([FileSystemLoader(view.templates), *own])
            self._environments[view.templates] = self._templates.overlay(loader=loader)
        return self._environments[view.templates]


@dataclass(frozen=True)
class Listed:
    """A column of a list or a job's page. column: None, a function makes it."""

    name: str
    heading: str
    column: Column | None


_USUAL = {
    "status": "Status",
    "queue": "Queue",
    "attempts_count": "Attempts",
    "run_at": "Run at",
    "last_error": "Last error",
}


def listed(view: JobView, columns: list[Column]) -> list[Listed]:
    """Beside the id."""
    own = [column.name for column in columns if not column.is_standard]
    usual = [*list(_USUAL)[:-1], *own[:LISTED], "last_error"]
    return _named(view, columns, usual if view.list_columns is None else view.list_columns)


def detailed(view: JobView, columns: list[Column]) -> list[Listed]:
    own = [column.name for column in columns if not column.is_standard]
    return _named(view, columns, own if view.columns is None else view.columns)


def _named(view: JobView, columns: list[Column], names: Sequence[str]) -> list[Listed]:
    """What is neither a column nor made by the view is left out: a column may be dropped at any time."""
    by_name = {column.name: column for column in columns}
    headings = _USUAL | dict(view.headings)
    return [
        Listed(name, headings.get(name, name), None if name in view.cells else by_name[name])
        for name in names
        if name in by_name or name in view.cells
    ]


def _failed(view: JobView, error: Exception) -> Markup:
    name = view.job if isinstance(view.job, str) else view.job.__name__
    return Markup('<span class="problem-text">The view of {} fails here: {}</span>').format(name, type(error).__name__)
