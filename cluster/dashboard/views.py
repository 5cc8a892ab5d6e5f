"""From what was found to what is sent: HTML from templates that escape everything, or the same as JSON, by Accept."""

from __future__ import annotations

import dataclasses
import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

from cluster.dashboard import words
from cluster.dashboard.auth import User
from cluster.dashboard.guard import Tokens
from cluster.dashboard.sparkline import sparkline

FOLDER = Path(__file__).parent
LONGEST_MESSAGE = 500


class Views:
    """Owns the templates and the tokens of forms."""

    def __init__(self, secret: str = "") -> None:
        self.tokens = Tokens(secret)
        self.templates = Environment(
            loader=FileSystemLoader(FOLDER / "templates"), autoescape=True, undefined=StrictUndefined,
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        self.templates.filters |= {
            "clock": words.clock, "took": words.took, "meaning": words.meaning, "schedule_state": words.schedule_mark,
            "schedule_path": words.schedule_path,
            "age": words.age, "moment": words.moment, "number": words.number, "short": words.short, "status": words.status_mark,
            "sparkline": sparkline,
        }  # fmt: skip

    def show(self, request: Request, template: str, status: int = 200, **context: Any) -> Response:
        """context: what the template shows, and JSON holds; with it goes the token that a form needs."""
        if wants_json(request):
            shown = {"token": self.tokens.new(user_of(request)), **context}
            return JSONResponse(json.loads(json.dumps(shown, default=_plain)), status)
        return HTMLResponse(self.page(request, template, **context), status)

    def page(self, request: Request, template: str, **context: Any) -> str:
        user = user_of(request)
        message = self.tokens.opened(request.query_params.get("said", ""))
        return self.templates.get_template(template).render(
            base=base_of(request),
            user=user,
            token=self.tokens.new(user),
            message=message,
            path=request.url.path,
            **context,
        )

    def part(self, template: str, **context: Any) -> str:
        """Of a page, for everybody who sees it."""
        return self.templates.get_template(template).render(**context)

    def say(self, request: Request, path: str, message: str) -> Response:
        """After something was done: the page at this path, which says so first."""
        if wants_json(request):
            return JSONResponse({"said": message})
        said = self.tokens.seal(message[:LONGEST_MESSAGE])
        return RedirectResponse(f"{base_of(request)}/{path}{'&' if '?' in path else '?'}said={said}", 303)

    def problem(self, request: Request, status: int, title: str, text: str, *, again: bool = False) -> Response:
        """again: the page comes back by itself."""
        headers = {"refresh": "5"} if again and request.method == "GET" else {}
        if wants_json(request):
            return JSONResponse({"error": title, "detail": text}, status, headers)
        return HTMLResponse(self.page(request, "problem.html", title=title, text=text), status, headers)


def wants_json(request: Request) -> bool:
    accepted = request.headers.get("accept", "")
    return "application/json" in accepted and "text/html" not in accepted


def base_of(request: Request) -> str:
    """The path below which the dashboard lives, without a slash at its end."""
    return str(request.scope.get("root_path", "")).rstrip("/")


def user_of(request: Request) -> User:
    user: User = request.state.user
    return user


def _plain(value: object) -> Any:
    """For JSON."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: each for name, each in shown.items() if not name.startswith("may_")}
    if isinstance(value, datetime | date):
        return value.isoformat()
    return str(value)
