"""The pages about schedules, and what people do there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import available_timezones

from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.dashboard import schedule_forms, schedule_rows
from cluster.dashboard.actions import Refused, note
from cluster.dashboard.database import Connection, Database
from cluster.dashboard.deeds import Deeds, reason_of
from cluster.dashboard.job_tables import Column, JobTable, all_tables, columns_of, named
from cluster.dashboard.schedule_forms import ScheduleForm
from cluster.dashboard.views import Views, user_of, wants_json
from cluster.dashboard.words import schedule_path
from cluster.schedule_words import Row
from cluster.secret import MASK, mask

WHICH = {"missing": "have no job", "failed": "have a job that failed", "all": "have no job, or one that failed"}


class Schedules:
    """A method for each page and form."""

    def __init__(self, database: Database, views: Views, deeds: Deeds) -> None:
        self._database = database
        self._views = views
        self._deeds = deeds

    async def index(self, request: Request) -> Response:
        given = request.query_params
        state, text, after = (given.get(name, "").replace("\x00", "")[:200] for name in ("state", "q", "after"))
        state = state if state in schedule_rows.STATES else ""
        async with self._database.reading() as connection:
            rows = await schedule_rows.page(connection, state, text, after)
            service = await schedule_rows.service(connection)
            may = await self._may(request, connection)
            tables = {table.oid: table for table in await all_tables(connection)}
        there_are_more = len(rows) > schedule_rows.PAGE
        rows = [row | {"table": tables.get(row["oid"])} for row in rows[: schedule_rows.PAGE]]
        response = self._views.show(
            request, "schedules.html", rows=rows, service=service, may=may, state=state, text=text,
            next_after=rows[-1]["name"] if there_are_more else None, is_narrowed=bool(state or text or after),
            states=schedule_rows.STATES,
        )  # fmt: skip
        if service["reloading_since"] is not None:
            response.headers["refresh"] = "1"
        return response

    async def schedule(self, request: Request) -> Response:
        before = _moment(request.query_params.get("before", ""), "UTC")
        async with self._database.reading() as connection:
            row = await _found(connection, request.query_params)
            runs = await schedule_rows.history(connection, row["name"], before)
            may = await self._may(request, connection)
            tables = {table.oid: table for table in await all_tables(connection)}
            columns = await columns_of(connection, tables[row["oid"]]) if row["oid"] in tables else []
        row = _masked(row, columns)
        there_are_more, runs = len(runs) > schedule_rows.RUNS, runs[: schedule_rows.RUNS]
        table = tables.get(row["oid"])
        can_insert = table is not None and table.may_insert
        return self._views.show(
            request, "schedule.html", row=row, table=table, runs=[run | {"table": tables.get(run["oid"])} for run in runs],
            next_before=runs[-1]["due_at"].isoformat() if there_are_more else None, next_runs=schedule_rows.next_runs(row),
            may={name: is_so and (name not in ("run", "backfill") or can_insert) for name, is_so in may.items()},
        )  # fmt: skip

    async def do(self, request: Request) -> Response:
        """Activate, deactivate, pause, resume, run or delete one; or reload."""
        user, form = await self._deeds.sent(request)
        deed = form.get("do", "")
        if deed == "reload":
            return await self._reload(request)
        if deed not in schedule_rows.DEEDS:
            raise HTTPException(404, "Not Found")
        if deed == "delete" and not user.may_delete:
            raise HTTPException(403, f"You are {user.name}, {user.role}: that needs an admin.")
        async with self._database.writing() as connection:
            row = await _found(connection, form, locked=True)
            said = await schedule_rows.do(connection, user, row, deed, reason_of(form))
        return self._views.say(request, "schedules" if deed == "delete" else schedule_path(row["name"]), said)

    async def _reload(self, request: Request) -> Response:
        """In two transactions: the first says to everybody that one is under way."""
        async with self._database.writing() as connection:
            if not await schedule_rows.begin_reload(connection):
                raise HTTPException(409, "Another reload is running: wait for its end.")
        async with self._database.writing() as connection:
            going_on = await schedule_rows.reload(connection, user_of(request))
        return self._views.say(request, "schedules", f"Reloaded: {going_on} go on that had stopped.")

    # --- the form ---

    async def new_form(self, request: Request) -> Response:
        """First of which job; then the form."""
        async with self._database.reading() as connection:
            tables = await all_tables(connection)
            table = named(tables, request.query_params.get("table", ""))
            if table is None:
                return self._views.show(
                    request, "schedule_type.html", tables=[each for each in tables if each.may_insert]
                )
            form = schedule_forms.opened(table, await columns_of(connection, table), None)
            await schedule_forms.offer(connection, form)
        return self._show_form(request, form)

    async def edit_form(self, request: Request) -> Response:
        async with self._database.reading() as connection:
            row = await _found(connection, request.query_params)
            _refuse_code(row)
            table = await _table_of(connection, row)
            form = schedule_forms.opened(table, await columns_of(connection, table), row)
            await schedule_forms.offer(connection, form)
        return self._show_form(request, form)

    async def save(self, request: Request) -> Response:
        """Saves a new one or an edited one, or says what is wrong with which field; with `do` check it only says so."""
        user, given = await self._deeds.sent(request)
        is_check = given.get("do") == "check"
        async with self._database.writing() as connection:
            form, found = await self._sent_form(connection, given, locked=True)
            await schedule_forms.offer(connection, form)
            if form.row is not None and form.version != form.row["version"] and not is_check:
                form.problem = await _who_was_it(connection, form.row["name"])
                schedule_forms.say_what_differs(form)
                return self._show_form(request, form, 409)
            if form.is_right:
                await schedule_forms.save(connection, user, form, found, dry_run=is_check)
        if not form.is_right:
            return self._show_form(request, form, 422)
        if is_check:
            return self._show_form(request, form, is_checked=True)
        name = form.row["name"] if form.row else found["name"]
        said = f"{name} is {'saved' if form.row else 'new'}: {form.words}."
        return self._views.say(request, schedule_path(name), said)

    async def check(self, request: Request) -> Response:
        """For the script, while somebody types: the times as HTML, and what is wrong with which field. Inserts nothing."""
        _, given = await self._deeds.sent(request)
        async with self._database.reading() as connection:
            form, found = await self._sent_form(connection, given)
            await schedule_forms.check_values(connection, form, found)
        html = self._views.part("_times.html", form=form)
        return JSONResponse(
            {
                "html": html,
                "words": form.words,
                "runs": [due.isoformat() for due in form.runs],
                "problems": form.problems,
            }
        )

    async def _sent_form(
        self, connection: Connection, given: QueryParams, *, locked: bool = False
    ) -> tuple[ScheduleForm, dict[str, Any]]:
        """`schedule` is the one that is edited; else `table` is the job's."""
        row = None
        if "schedule" in given:
            row = await _found(connection, {"name": given["schedule"]}, locked=locked)
            _refuse_code(row)
            table = await _table_of(connection, row)
        else:
            found = named(await all_tables(connection), given.get("table", ""))
            if found is None:
                raise HTTPException(404, "There is no such job table. It may have been dropped.")
            table = found
        return schedule_forms.sent(table, await columns_of(connection, table), row, given)

    def _show_form(
        self, request: Request, form: ScheduleForm, status: int = 200, *, is_checked: bool = False
    ) -> Response:
        for each in form.fields:
            each.value = "" if each.column.is_secret else each.value
        if wants_json(request):
            fields = [asdict(each) for each in form.inputs.values()]
            return self._views.show(
                request, "", status, problem=form.problem, problems={k: v for k, v in form.problems.items() if v}, fields=fields,
                version=form.version, words=form.words, runs=form.runs,
            )  # fmt: skip
        return self._views.show(request, "schedule_form.html", status, form=form, is_checked=is_checked, zones=_zones())

    # --- backfill ---

    async def backfill_form(self, request: Request) -> Response:
        """Which occurrences they would be; nothing is inserted."""
        given = request.query_params
        async with self._database.writing() as connection:
            row = await _found(connection, given)
            first, last, which = _span(given, row)
            found: list[Row] | None = None
            problem = ""
            if "from" in given and user_of(request).may_act:
                try:
                    found = await schedule_rows.backfill(connection, row, first, last, which, dry_run=True)
                except Refused as error:
                    problem = error.detail
        return self._views.show(
            request, "schedule_backfill.html", 422 if problem else 200, row=row, found=found, problem=problem, which=which,
            choices=WHICH, first=_wall(first, row), last=_wall(last, row),
        )  # fmt: skip

    async def backfill(self, request: Request) -> Response:
        user, form = await self._deeds.sent(request)
        async with self._database.writing() as connection:
            row = await _found(connection, form, locked=True)
            first, last, which = _span(form, row)
            found = await schedule_rows.backfill(connection, row, first, last, which, dry_run=False)
            chosen = {"from": first.isoformat(), "to": last.isoformat(), "which": which}
            await note(connection, user, "backfill", f"schedule {row['name']}", chosen, len(found))
        return self._views.say(request, schedule_path(row["name"]), f"{len(found):,} jobs are new.")

    async def _may(self, request: Request, connection: Connection) -> Mapping[str, bool]:
        """What this user and the dashboard's role in Postgres may do."""
        user = user_of(request)
        granted = await schedule_rows.privileges(connection)
        return {
            name: is_so and (user.may_delete if name == "delete" else user.may_act) for name, is_so in granted.items()
        }


async def _found(connection: Connection, given: Mapping[str, str], *, locked: bool = False) -> Row:
    """HTTPException 404: there is none of this name."""
    name = given.get("name", "")
    row = await schedule_rows.find(connection, name, locked=locked)
    if row is None:
        raise HTTPException(404, f"There is no schedule {name[:128]}. It may have been deleted.")
    return row


def _masked(row: Row, columns: list[Column]) -> Row:
    """Without what is secret in its values, and in its error."""
    values = row["job_values"]
    secret = {column.name for column in columns if column.is_secret and values.get(column.name) is not None}
    if not secret:
        return row
    error = row["last_error"] and mask(row["last_error"], [values[name] for name in secret])
    return row | {"job_values": values | dict.fromkeys(secret, MASK), "last_error": error}


async def _table_of(connection: Connection, row: Row) -> JobTable:
    for table in await all_tables(connection):
        if table.oid == row["oid"]:
            return table
    raise HTTPException(409, f"The job table of {row['name']} is gone: delete the schedule.")


def _refuse_code(row: Row) -> None:
    if row["source"] == "code":
        raise HTTPException(
            409, f"{row['name']} belongs to its job class, and would be written back: change the class and migrate. Here it can be"
            " paused and deactivated.",
        )  # fmt: skip


async def _who_was_it(connection: Connection, name: str) -> str:
    query = """
    SELECT who FROM (SELECT id, who, action, target FROM cluster.audit ORDER BY id DESC LIMIT 1000) AS newest
    WHERE target = %s AND action = 'edit' ORDER BY id DESC LIMIT 1
    """
    row = await (await connection.execute(query, [f"schedule {name}"])).fetchone()
    who = f"Somebody, by the audit {row['who']}," if row else "Somebody"
    return f"{who} changed this schedule after you opened it. Nothing was saved. See what differs, and save again to have yours."


def _span(given: Mapping[str, str], row: Row) -> tuple[datetime, datetime, str]:
    """From when to when, and which; the last week, unless something else is given."""
    last = _moment(given.get("to", ""), row["time_zone"]) or datetime.now(UTC)
    first = _moment(given.get("from", ""), row["time_zone"]) or last - timedelta(days=7)
    which = given.get("which", "")
    return first, last, which if which in WHICH else "missing"


def _moment(text: str, zone: str) -> datetime | None:
    """By the clock of a zone, unless it names one. None: it is none, or of another age."""
    try:
        moment = datetime.fromisoformat(text)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=schedule_forms._zone(zone))).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment if 1970 <= moment.year < 9000 else None


def _wall(moment: datetime, row: Row) -> str:
    """As an input for a time has it."""
    return moment.astimezone(schedule_forms._zone(row["time_zone"])).replace(tzinfo=None).isoformat(timespec="minutes")


@cache
def _zones() -> list[str]:
    """That people mean: those of regions."""
    return sorted(
        zone
        for zone in available_timezones()
        if "/" in zone and not zone.startswith(("Etc/", "posix/", "right/", "US/"))
    )
