"""What people look at. Reads only."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import psycopg
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from cluster.dashboard import copied, error_groups, job_views, lists, nodes, overview, related, saved, tracebacks
from cluster.dashboard.actions import POSSIBLE, audit_page
from cluster.dashboard.alike import Alike
from cluster.dashboard.bulk import POSSIBLE as IN_BULK
from cluster.dashboard.charts import Charts
from cluster.dashboard.database import Connection, Database
from cluster.dashboard.filters import OPERATORS, Condition, operators_of
from cluster.dashboard.findings import findings
from cluster.dashboard.job_tables import Column, JobTable, all_tables, columns_of, named
from cluster.dashboard.job_views import JobViews, Scene
from cluster.dashboard.lists import Filter, job_id
from cluster.dashboard.live import Live
from cluster.dashboard.schedule_rows import names as schedule_names
from cluster.dashboard.views import Views, base_of, user_of
from cluster.dashboard.why import oldest_waiting, why
from cluster.dashboard.words import schedule_path
from cluster.selection import STATUSES, WAITING

MOST_CHARTS = 6
"""Job types with a chart on the overview."""
LONGEST_TRACE = 3_000
"""Characters of the error of each failed attempt, from its end, on the page of a job."""


class Pages:
    """A method for each."""

    def __init__(self, database: Database, views: Views, job_views: JobViews) -> None:
        self._database = database
        self._views = views
        self._job_views = job_views
        self.live = Live(self._look)
        self._charts = Charts(database)

    async def overview(self, request: Request) -> Response:
        async with self._database.reading() as connection:
            situation = await overview.look(connection)
            sections = await self._sections(request, connection)
        hour = await self._charts.hour()
        return self._views.show(
            request, "overview.html", findings=findings(situation), situation=situation, sections=sections, hour=hour,
            charts=hour.charts[:MOST_CHARTS] if hour else [],
        )  # fmt: skip

    async def charts(self, request: Request) -> Response:
        """Of all types. The overview's script asks for them once a minute."""
        hour = await self._charts.hour()
        most = MOST_CHARTS if request.query_params.get("most") else None
        return self._views.show(request, "charts.html", hour=hour, charts=hour.charts[:most] if hour else [])

    async def _sections(self, request: Request, connection: Connection) -> list[dict[str, object]]:
        """What the application has to say of its types, of the newest ten jobs of each."""
        found = []
        tables = await all_tables(connection) if any(view.section for view in self._job_views.given) else []
        for table in tables:
            view = self._job_views.of(table)
            if view.section is not None:
                columns = view.with_labels(await columns_of(connection, table))
                page = await lists.page(connection, table, columns, Filter(size=10))
                jobs = await self._job_views.prepared(view, connection, page.jobs)
                scene = Scene(connection, table, base_of(request), user_of(request), jobs)
                part = await self._job_views.render(view, view.section, scene)
                found.append({"table": table, "title": view.title or table.name, "part": part})
        return found

    async def watch(self, request: Request) -> Response:
        """Server-sent events with the overview's part that changes."""
        base = str(request.scope.get("root_path", "")).rstrip("/")
        return StreamingResponse(
            self.live.watch(base), media_type="text/event-stream", headers={"x-accel-buffering": "no"}
        )

    async def _look(self, bases: set[str]) -> dict[str, str]:
        """Empty while Postgres is away: the page keeps what it has, and its script says how old that is."""
        try:
            async with self._database.reading() as connection:
                situation = await overview.look(connection)
        except psycopg.Error:
            return {}
        found = findings(situation)
        return {
            base: self._views.part("_overview.html", base=base, findings=found, situation=situation) for base in bases
        }

    async def errors(self, request: Request) -> Response:
        """Failed attempts of all types, by what they have in common."""
        since = _span(request)
        async with self._database.reading() as connection:
            groups = await error_groups.error_groups(connection, await all_tables(connection), since)
        return self._views.show(
            request, "errors.html", groups=groups, since=since, spans=list(error_groups.SPANS), most=error_groups.GROUPS
        )

    async def error_group(self, request: Request) -> Response:
        """One of them: how often, since when, in which types, the newest error, and what can be done."""
        since, fingerprint = _span(request), request.path_params["fingerprint"].replace("\x00", "")
        async with self._database.reading() as connection:
            tables = await all_tables(connection)
            groups = await error_groups.error_groups(connection, tables, since, fingerprint)
            failed: dict[int, int | None] = {}
            for table, _ in groups[0].tables if groups else []:
                try:
                    async with connection.transaction():
                        await connection.execute("SET LOCAL lock_timeout = '200ms'")
                        failed[table.oid] = await error_groups.count_failed(connection, table, groups[0].fingerprint)
                except overview.UNREADABLE:
                    failed[table.oid] = None
        if not groups:
            raise HTTPException(
                404,
                f"No attempt has failed like that in the last {since}, or those jobs are gone. A longer time may show more.",
            )
        may_retry = [table.oid for table, _ in groups[0].tables if "retry" in _may(request, table)]
        return self._views.show(
            request, "error.html", group=groups[0], since=since, spans=list(error_groups.SPANS), failed=failed, may_retry=may_retry,
            most=error_groups.MOST, trace=tracebacks.parts(groups[0].error),
        )  # fmt: skip

    async def nodes(self, request: Request) -> Response:
        async with self._database.reading() as connection:
            found = await overview.look_at_nodes(connection)
            running = await nodes.running(connection)
        return self._views.show(request, "nodes.html", nodes=found, running=running, shown=nodes.SHOWN)

    async def node(self, request: Request) -> Response:
        wanted = request.path_params["node"]
        async with self._database.reading() as connection:
            found = [node for node in await overview.look_at_nodes(connection) if node.id == str(wanted)]
            if not found:
                raise HTTPException(404, "There is no such node any more: they stay for a day after their end.")
            running = await nodes.running(connection, wanted)
            trouble = await nodes.trouble(connection, wanted)
            may = user_of(request).may_act and await nodes.may_drain(connection)
        return self._views.show(
            request, "node.html", node=found[0], running=running.get(str(wanted), []), trouble=trouble,
            may=may and found[0].state in ("live", "draining", "silent"), shown=nodes.SHOWN_ALL, most=nodes.MOST,
        )  # fmt: skip

    async def queues(self, request: Request) -> Response:
        async with self._database.reading() as connection:
            situation = await overview.look(connection)
        ready = sum((summary.ready for summary in situation.types), Counter[str]())
        return self._views.show(request, "queues.html", paused=situation.paused, ready=dict(sorted(ready.items())))

    async def palette(self, request: Request) -> Response:
        """For the script: where one can go, beyond the pages that every page names."""
        async with self._database.reading() as connection:
            tables = await all_tables(connection)
            names = await schedule_names(connection)
        entries = [{"kind": "job type", "title": table.name, "path": table.path} for table in tables]
        entries += [{"kind": "schedule", "title": name, "path": schedule_path(name)} for name in names]
        return JSONResponse({"entries": entries})

    async def audit(self, request: Request) -> Response:
        before = job_id(request.query_params.get("before", ""))
        async with self._database.reading() as connection:
            rows = await audit_page(connection, before, 50)
        return self._views.show(
            request, "audit.html", rows=rows[:50], next_before=rows[49]["id"] if len(rows) > 50 else None
        )

    async def jobs(self, request: Request) -> Response:
        chosen = Filter.of(request.query_params)
        wanted = request.query_params.get("id", "").strip()
        if wanted:
            return await self._find(request, wanted)
        if "column" in request.query_params:  # of the form: the address of what it asks for
            added = urlencode({"add": name}) if (name := request.query_params.get("add")) else ""
            here = f"{base_of(request)}/{quote(request.path_params['table'])}"
            return RedirectResponse(f"{here}?{'&'.join(filter(None, (chosen.query(), added)))}", 303)
        async with self._database.reading() as connection:
            table = await table_of(connection, request)
            view = self._job_views.of(table)
            columns = view.with_labels(await columns_of(connection, table))
            chosen = await lists.checked(connection, columns, chosen)
            page = await lists.page(connection, table, columns, chosen)
            groups: list[Alike] = []
            compared = 0
            if set(lists.WITH_ERROR) & set(chosen.status):
                groups, compared = await lists.last_errors(connection, table, chosen)
            listed = job_views.listed(view, columns)
            shown = [each.column for each in listed if each.column]
            labels = await related.labels(connection, shown, page.jobs)
            jobs = await self._job_views.prepared(view, connection, page.jobs)
            scene = Scene(connection, table, base_of(request), user_of(request), jobs)
            part = None if view.page is None else await self._job_views.render(view, view.page, scene)
            asked = filter_rows(columns, chosen, request.query_params.get("add", ""))
            options = await related.all_options(connection, [row.column for row in asked if row.column])
            tabs = await saved.of_table(connection, table)
        may = _may(request, table)
        offered = [name for name in IN_BULK if name in may and _makes_sense(name, chosen)]
        return self._views.show(
            request, "jobs.html", 422 if chosen.problems else 200, table=table, columns=columns, page=page, chosen=chosen,
            groups=groups, compared=compared, statuses=STATUSES, span=lists.SPAN, actions=offered, may=may, labels=labels,
            filters=asked, options=options, offered=[column.name for column in columns if operators_of(column)],
            sql=copied.of_list(table, columns, chosen), listed=listed, rows=self._job_views.rows(view, jobs), part=part,
            title=view.title or table.name, tabs=tabs,
        )  # fmt: skip

    async def options(self, request: Request) -> Response:
        """For the script: values of a column that stand for something, by a part of that."""
        wanted = request.query_params.get("column", "")
        async with self._database.reading() as connection:
            table = await table_of(connection, request)
            columns = self._job_views.of(table).with_labels(await columns_of(connection, table))
            column = next((column for column in columns if column.name == wanted), None)
            found = await related.options(connection, column, request.query_params.get("q", "")) if column else {}
        return JSONResponse([{"value": value, "label": label} for value, label in found.items()])

    async def value(self, request: Request) -> Response:
        """All of a value that a page shows cut."""
        number, wanted = job_id(request.path_params["id"]), request.query_params.get("column", "")
        async with self._database.reading() as connection:
            table = await table_of(connection, request)
            column = next((each for each in await columns_of(connection, table) if each.name == wanted), None)
            if number is None or column is None:
                raise HTTPException(404, "Not Found")
            if column.is_secret:
                raise HTTPException(403, "The values of this column are secret.")
            text = await lists.whole(connection, table, column, number)
        if text is None:
            raise HTTPException(
                404, f"Job {number} has no such value, or it is over {lists.LONGEST_DOWNLOAD >> 20} MB."
            )
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{table.relation}-{number}-{wanted}")
        return Response(
            text, media_type="text/plain", headers={"content-disposition": f'attachment; filename="{name}.txt"'}
        )

    async def _find(self, request: Request, wanted: str) -> Response:
        number = job_id(wanted)
        if number is None:
            raise HTTPException(404, "An id is a whole number.")
        request.path_params["id"] = str(number)
        return await self.job(request)

    async def oldest(self, request: Request) -> Response:
        """The page of the job that has waited for longest, which says for what."""
        async with self._database.reading() as connection:
            table = await table_of(connection, request)
            number = await oldest_waiting(connection, table)
        if number is None:
            raise HTTPException(404, f"No job of {table.name} waits any more.")
        return RedirectResponse(f"{base_of(request)}/{table.path}/{number}", 303)

    async def job(self, request: Request) -> Response:
        number = job_id(request.path_params["id"])
        if number is None:
            raise HTTPException(404, "There is no such page: an id is a whole number.")
        async with self._database.reading() as connection:
            table = await table_of(connection, request)
            view = self._job_views.of(table)
            columns = view.with_labels(await columns_of(connection, table))
            job = await lists.job(connection, table, columns, number)
            failures = await _failures(connection, table, job) if job else []
            known = await overview.look_at_nodes(connection) if job and (job["locked_by"] or failures) else []
            reasons = await why(connection, table, number) if job and job["status"] in WAITING else []
            labels = await related.labels(connection, columns, [job] if job else [])
            statement = copied.of_job(table, columns, job, number) if job else ""
            jobs = await self._job_views.prepared(view, connection, [job] if job else [])
            part = None
            if jobs and view.detail is not None:
                scene = Scene(connection, table, base_of(request), user_of(request), jobs)
                part = await self._job_views.render(view, view.detail, scene)
        if job is None:
            raise HTTPException(404, f"Table {table.sql_name} has no job {number}. It may have been deleted.")
        node = next((node for node in known if node.id == str(job["locked_by"])), None)
        may = _may(request, table)
        offered = [name for name, statuses in POSSIBLE.items() if job["status"] in statuses and name in may]
        return self._views.show(
            request,
            "job.html",
            table=table,
            columns=columns,
            job=job,
            node=node,
            actions=offered,
            longest=lists.VALUE,
            may=may,
            labels=labels,
            sql=statement,
            part=part,
            detailed=job_views.detailed(view, columns),
            title=view.title or table.name,
            reasons=reasons,
            failures=failures,
            names={each.id: f"{each.hostname}:{each.pid}" for each in known},
            trace=tracebacks.parts(job["last_error"] or ""),
        )


def _span(request: Request) -> str:
    """Of time, that a page of errors looks at."""
    since = request.query_params.get("since", "")
    return since if since in error_groups.SPANS else error_groups.USUAL


async def _failures(connection: Connection, table: JobTable, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The failed attempts of a job with their tracebacks; none, where the dashboard's role may not read them."""
    try:
        async with connection.transaction():
            found = await error_groups.attempts(connection, table, job)
    except overview.UNREADABLE:
        return []
    return [row | {"parts": tracebacks.parts((row["error"] or "")[-LONGEST_TRACE:])} for row in found]


@dataclass(frozen=True)
class FilterRow:
    """A condition in the form. column: None, there is no such one. without: the address without it."""

    condition: Condition
    column: Column | None
    operators: dict[str, str]
    without: str


def filter_rows(columns: list[Column], chosen: Filter, added: str) -> list[FilterRow]:
    """Those of the filter, and an empty one for the column that somebody wants to add."""
    by_name = {column.name: column for column in columns}
    conditions = list(chosen.where)
    if added in by_name and operators_of(by_name[added]):
        conditions.append(Condition(added, operators_of(by_name[added])[0]))
    rows = []
    for condition in conditions:
        column = by_name.get(condition.column)
        words = {name: OPERATORS[name] for name in (operators_of(column) if column else ())}
        rest = tuple(each for each in chosen.where if each != condition)
        rows.append(FilterRow(condition, column, words, chosen.query(where=rest, before=None)))
    return rows


def _may(request: Request, table: JobTable) -> set[str]:
    """What this user and the dashboard's role in Postgres may do."""
    user = user_of(request)
    if not user.may_act:
        return set()
    found = {"retry", "now", "move", "cancel"} if table.may_update else set()
    found |= {"again", "new"} if table.may_insert else set()
    found |= {"delete"} if table.may_delete and user.may_delete else set()
    return found | {"type"} | ({"secret"} if user.may_see_secrets else set())


def _makes_sense(action: str, chosen: Filter) -> bool:
    return (
        not chosen.is_empty
        and not chosen.problems
        and (not chosen.status or bool(set(chosen.status) & set(IN_BULK[action])))
    )


async def table_of(connection: Connection, request: Request) -> JobTable:
    """That of the address. HTTPException 404: there is none."""
    name = request.path_params["table"]
    table = named(await all_tables(connection), name)
    if table is None:
        raise HTTPException(404, f"There is no job table {name[:100]}. It may have been dropped.")
    return table
