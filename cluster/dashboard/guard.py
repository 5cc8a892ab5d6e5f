"""Before every request: who is it, and does a form come from a page of ours? After it: the headers of security."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.dashboard.auth import Authenticate, TooManyFailures, User, user_of

TOKEN_LIFE = 12 * 3600
"""Seconds for which a form that was opened may be sent."""
READING = ("GET", "HEAD")

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class Tokens:
    """What a form carries, so that only our pages can have made it: its user and the time, signed with a key of this process."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)

    def new(self, user: User) -> str:
        now = str(int(time.time()))
        return f"{now}.{self._sign(user, now)}"

    def check(self, user: User, token: str) -> None:
        """HTTPException 403: it is none, another's, or too old."""
        made, _, signature = token.partition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._sign(user, made).encode())
        if not is_ours or int(made) < time.time() - TOKEN_LIFE:
            raise HTTPException(403, "This form is too old, or not from here. Go back, reload the page and try again.")

    def _sign(self, user: User, made: str) -> str:
        return hmac.new(self._key, f"{user.name}\n{made}".encode(), hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware; `request.state.user` is who asks."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = HEADERS | {"cache-control": "no-store"}
                message["headers"] += [(k.encode(), v.encode()) for k, v in added.items() if k.encode() not in present]
            await send(message)

        request = Request(scope)
        try:
            user = await user_of(self._authenticate, request)
        except TooManyFailures as error:
            refusal = PlainTextResponse(str(error), 429, {"retry-after": f"{error.seconds:.0f}"})
            return await refusal(scope, receive, send_with_headers)
        if user is None:
            return await _stranger()(scope, receive, send_with_headers)
        if request.method not in READING and not _is_from_here(request):
            refusal = PlainTextResponse("A page of another site sent this: refused.", 403)
            return await refusal(scope, receive, send_with_headers)
        scope.setdefault("state", {})["user"] = user
        return await self._app(scope, receive, send_with_headers)


def _stranger() -> PlainTextResponse:
    return PlainTextResponse("Who are you?", 401, {"www-authenticate": 'Basic realm="jobs", charset="UTF-8"'})


def _is_from_here(request: Request) -> bool:
    """Browsers of today say where a form comes from; older ones, and programs, are asked for a token alone."""
    site = request.headers.get("sec-fetch-site")
    return site in (None, "same-origin")
