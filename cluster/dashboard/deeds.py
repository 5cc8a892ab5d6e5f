"""What people do: forms, their confirmation, and where they lead. Every POST carries the token of a page of ours."""

from __future__ import annotations

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from cluster.dashboard import actions, bulk, error_groups, forms, lists, nodes, related, saved
from cluster.dashboard.auth import User
from cluster.dashboard.bulk import Run
from cluster.dashboard.database import Connection, Database
from cluster.dashboard.job_tables import JobTable, columns_of
from cluster.dashboard.job_views import JobViews, Scene
from cluster.dashboard.lists import Filter, job_id
from cluster.dashboard.pages import table_of
from cluster.dashboard.views import Views, base_of, user_of, wants_json

LONGEST_FORM = 2**20
"""Bytes."""


class Deeds:
    """A method for each form. Owns the runs of actions in bulk."""

    def __init__(self, database: Database, views: Views, job_views: JobViews) -> None:
        self._database = database
        self._views = views
        self._job_views = job_views
        self.runs = bulk.Runs(database)

    async def job(self, request: Request) -> Response:
        """One action on one job."""
        action, number = request.path_params["action"], job_id(request.path_params["id"])
        if (action not in actions.POSSIBLE and action != "move") or number is None:
            raise HTTPException(404, "Not Found")
        user, form = await self.sent(request, deletes=action == "delete")
        async with self._database.writing() as connection:
            table = await table_of(connection, request)
            columns = await columns_of(connection, table)
            if action == "move":
                queue, priority = form.get("queue", ""), form.get("priority", "")
                said = await actions.move(connection, user, table, number, queue, priority)
            else:
                said = await actions.act(connection, user, action, table, columns, number)
        return self._views.say(request, table.path if action == "delete" else f"{table.path}/{number}", said)

    async def secret(self, request: Request) -> Response:
        """What a masked column has, for those who may know; the audit has that they do."""
        number = job_id(request.path_params["id"])
        user, form = await self.sent(request)
        if not user.may_see_secrets:
            raise HTTPException(403, f"You are {user.name}, {user.role}: that needs an admin.")
        async with self._database.writing() as connection:
            table = await table_of(connection, request)
            columns = await columns_of(connection, table)
            column = next((each for each in columns if each.name == form.get("column")), None)
            if number is None or column is None or not column.is_secret:
                raise HTTPException(404, "Not Found")
            value = await actions.show_secret(connection, user, table, column, number)
        return self._views.show(request, "secret.html", table=table, number=number, column=column.name, value=value)

    async def job_type(self, request: Request) -> Response:
        """Pause, resume, or another limit."""
        user, form = await self.sent(request)
        async with self._database.writing() as connection:
            table = await table_of(connection, request)
            match form.get("do"):
                case "pause":
                    said = await actions.pause_type(connection, user, table, reason_of(form))
                case "resume":
                    said = await actions.resume_type(connection, user, table)
                case "limit":
                    said = await actions.set_limit(connection, user, table, form.get("limit", ""))
                case _:
                    raise HTTPException(404, "Not Found")
        return self._views.say(request, table.path, said)

    async def queue(self, request: Request) -> Response:
        """Pause or resume one."""
        user, form = await self.sent(request)
        queue = form.get("queue", "").strip()
        async with self._database.writing() as connection:
            if form.get("do") == "resume":
                said = await actions.resume_queue(connection, user, queue)
            else:
                said = await actions.pause_queue(connection, user, queue, reason_of(form))
        return self._views.say(request, "queues", said)

    async def views(self, request: Request) -> Response:
        """Saves a filter under a name, or deletes one."""
        user, form = await self.sent(request)
        name, query = form.get("name", ""), ""
        async with self._database.writing() as connection:
            table = await table_of(connection, request)
            if form.get("do") == "delete":
                said = await saved.delete(connection, user, table, name)
            else:
                chosen = await _usable(connection, table, Filter.of(form))
                said = await saved.save(connection, user, table, name, chosen)
                query = f"?{chosen.query(before=None)}"
        return self._views.say(request, f"{table.path}{query}", said)

    async def node(self, request: Request) -> Response:
        """Drain one, or let it claim again."""
        user, form = await self.sent(request)
        node = request.path_params["node"]
        async with self._database.writing() as connection:
            match form.get("do"):
                case "drain":
                    said = await nodes.drain(connection, user, node, reason_of(form))
                case "undrain":
                    said = await nodes.undrain(connection, user, node)
                case _:
                    raise HTTPException(404, "Not Found")
        return self._views.say(request, f"nodes/{node}", said)

    # --- in bulk ---

    async def preview(self, request: Request) -> Response:
        """How many they are, before anything is done."""
        action, chosen = _bulk_of(request, request.query_params)
        async with self._database.counting() as connection:
            table = await table_of(connection, request)
            chosen = await _usable(connection, table, chosen)
            counts = await bulk.count(connection, table, chosen.selection(table, bulk.POSSIBLE[action]))
            groups = await error_groups.error_groups(connection, [], "1h", chosen.group) if chosen.group else []
        return self._views.show(
            request,
            "confirm.html",
            table=table,
            action=action,
            chosen=chosen,
            counts=dict(counts),
            total=counts.total(),
            group=groups[0] if groups else None,
        )

    async def begin(self, request: Request) -> Response:
        """Begins it."""
        user, form = await self.sent(request, deletes=request.path_params["action"] == "delete")
        action, chosen = _bulk_of(request, form)
        async with self._database.reading() as connection:
            table = await table_of(connection, request)
            chosen = await _usable(connection, table, chosen)
            columns = await columns_of(connection, table)
        total = form.get("total", "")
        run = await self.runs.start(
            user, table, columns, action, chosen, int(total) if total.isascii() and total.isdecimal() else 0,
            _destination(form) if action == "move" else {},
        )  # fmt: skip
        if wants_json(request):
            return self._views.show(request, "run.html", run=run)
        return RedirectResponse(f"{base_of(request)}/bulk/{run.number}", 303)

    async def show_run(self, request: Request) -> Response:
        """How far it is. The page comes back by itself until it is over."""
        run = self._run(request)
        response = self._views.show(request, "run.html", run=run)
        if not run.is_over:
            response.headers["refresh"] = "1"
        return response

    async def stop_run(self, request: Request) -> Response:
        await self.sent(request)
        run = self._run(request)
        run.is_stopped = True
        return self._views.say(request, f"bulk/{run.number}", "It ends after the batch that is under way.")

    def _run(self, request: Request) -> Run:
        run = self.runs.get(request.path_params["run"])
        if run is None:
            raise HTTPException(404, "This run is forgotten: the audit says how many jobs it changed.")
        return run

    # --- a new job ---

    async def new_form(self, request: Request) -> Response:
        """Empty, or with the values of another job."""
        source = job_id(request.query_params.get("from", ""))
        async with self._database.reading() as connection:
            table = await table_of(connection, request)
            view = self._job_views.of(table)
            columns = view.with_labels(await columns_of(connection, table))
            found = await lists.job(connection, table, columns, source) if source is not None else None
            values = found or {}
            long = {name for name, value in values.items() if isinstance(value, str) and len(value) > lists.VALUE}
            hidden = {"run_at", *long, *(column.name for column in columns if column.is_secret)}
            values = {name: value for name, value in values.items() if name not in hidden}
            values |= {each[2:]: value for each, value in request.query_params.items() if each.startswith("c.")}
            fields = forms.fields(columns, values, view.job_class, source if found else None, kept=long)
            return await self._form(request, connection, table, fields)

    async def new(self, request: Request) -> Response:
        """Inserts it, or says what is wrong with which value."""
        user, form = await self.sent(request)
        async with self._database.writing() as connection:
            table = await table_of(connection, request)
            view = self._job_views.of(table)
            columns = view.with_labels(await columns_of(connection, table))
            values = _values(form, "c.")
            source, zones = job_id(form.get("from", "")), _values(form, "z.")
            if source is not None and await lists.job(connection, table, columns, source) is None:
                raise HTTPException(409, f"Job {source}, whose values these are, is gone. Nothing was inserted.")
            fields = forms.fields(columns, values, view.job_class, source, zones, form.getlist("keep"))
            problem = ""
            if view.create is None:
                number = await forms.insert(connection, user, table, fields, view.job_class)
            else:
                number, problem = await forms.create(connection, user, table, view.create, values)
            if number is None:
                return await self._form(request, connection, table, fields, problem, 422)
        return self._views.say(request, f"{table.path}/{number}", f"Job {number} is new.")

    async def _form(
        self, request: Request, connection: Connection, table: JobTable, fields: list[forms.Field], problem: str = "",
        status: int = 200,
    ) -> Response:  # fmt: skip
        view = self._job_views.of(table)
        for each in fields:
            each.options = await related.options(connection, each.column)
        values = {each.column.name: each.value for each in fields}
        labels = await related.labels(connection, [each.column for each in fields], [values])
        part = None
        if view.form is not None:
            scene = Scene(connection, table, base_of(request), user_of(request), [values], fields)
            part = await self._job_views.render(view, view.form, scene)
        for each in fields:
            each.value = "" if each.column.is_secret else each.value
        source = next((each.kept for each in fields if each.kept is not None), None)
        return self._views.show(
            request, "new.html", status, table=table, fields=fields, labels=labels, part=part, problem=problem, source=source,
            title=view.title or table.name, headings=dict(view.headings),
        )  # fmt: skip

    async def sent(self, request: Request, *, deletes: bool = False) -> tuple[User, QueryParams]:
        """Who sent the form, and the form. HTTPException: who did may not, or no page of ours did."""
        user = user_of(request)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > LONGEST_FORM:
                raise HTTPException(413, f"A form may have {LONGEST_FORM >> 20} MB at most.")
        form = QueryParams(body.decode("utf-8", "replace"))
        self._views.tokens.check(user, form.get("token", ""))
        if not user.may_act or (deletes and not user.may_delete):
            raise HTTPException(
                403, f"You are {user.name}, {user.role}: that needs an {'admin' if deletes else 'operator'}."
            )
        return user, form


def _bulk_of(request: Request, given: QueryParams) -> tuple[str, Filter]:
    action, chosen = request.path_params["action"], Filter.of(given)
    if action not in bulk.POSSIBLE:
        raise HTTPException(404, "Not Found")
    if lists.is_widened(given):
        raise HTTPException(
            409, "Nothing was done: a part of this filter can't be meant, and without it it would be others."
        )
    if chosen.is_empty:
        raise HTTPException(409, "Say which jobs: a status, a queue, an error or a time.")
    return action, chosen


async def _usable(connection: Connection, table: JobTable, chosen: Filter) -> Filter:
    """HTTPException 409: a condition can't be meant. Without it, it would be all jobs."""
    found = await lists.checked(connection, await columns_of(connection, table), chosen)
    if found.problems:
        raise HTTPException(409, f"Nothing was done. {'; '.join(found.problems)}.")
    return found


def _destination(form: QueryParams) -> dict[str, str | None]:
    """Of jobs that are moved. HTTPException 409: it is none."""
    queue, priority = form.get("to_queue", "").strip().replace("\x00", ""), form.get("to_priority", "").strip()
    is_number = priority.isascii() and priority.isdecimal() and 1 <= int(priority[:9]) <= 100
    if not (queue or priority) or len(queue) > 128 or (priority and not is_number):
        raise HTTPException(
            409, "Say where to: a queue has 1 to 128 characters, a priority is 1 to 100, lower runs first."
        )
    return {"to_queue": queue or None, "to_priority": priority or None}


def reason_of(form: QueryParams) -> str | None:
    return form.get("reason", "").replace("\x00", "").strip()[:500] or None


def _values(form: QueryParams, prefix: str) -> dict[str, str]:
    """Of the columns, which carry a prefix so that none is taken for the token."""
    return {name[2:]: value.replace("\r\n", "\n") for name, value in form.items() if name.startswith(prefix)}
