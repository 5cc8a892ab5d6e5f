"""Before every request: who is it, and does a form come from a page of ours? After it: the headers of security."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.dashboard.addresses import Addresses, believe
from cluster.dashboard.auth import Authenticate, BasicAuthStatic, TooManyFailures, User, user_of

TOKEN_LIFE = 12 * 3600
"""Seconds for which a form that was opened may be sent."""
MESSAGE_LIFE = 30
"""Seconds for which a page says what was done: a reload later on says it no more."""
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
    """What a form carries, so that only our pages can have made it: its user and the time, signed.

    secret: what the key is made of, the same in all processes that serve the same pages. Empty: the key is this process's own.
    """

    def __init__(self, secret: str = "") -> None:
        self._key = hashlib.sha256(secret.encode()).digest() if secret else secrets.token_bytes(32)

    def new(self, user: User) -> str:
        now = str(int(time.time()))
        return f"{now}.{self._sign(user, now)}"

    def check(self, user: User, token: str) -> None:
        """HTTPException 403: it is none, another's, or too old."""
        made, _, signature = token.partition(".")
        is_ours = hmac.compare_digest(signature.encode(), self._sign(user, made).encode())
        if not is_ours or int(made) < time.time() - TOKEN_LIFE:
            raise HTTPException(403, "This form is too old, or not from here. Go back, reload the page and try again.")

    def seal(self, message: str) -> str:
        """What the next page says first, in its address: another process may show it."""
        text = urlsafe_b64encode(f"{time.time():.0f}\n{message}".encode()).decode()
        return f"{text}.{self._hash('said', text)}"

    def opened(self, sealed: str) -> str:
        """What was said; empty: nothing by us, or a while ago."""
        text, _, signature = sealed.partition(".")
        if not hmac.compare_digest(signature.encode(), self._hash("said", text).encode()):
            return ""
        made, _, message = urlsafe_b64decode(text).decode().partition("\n")
        return message if int(made) > time.time() - MESSAGE_LIFE else ""

    def _sign(self, user: User, made: str) -> str:
        return self._hash("form", user.name, made)

    def _hash(self, *parts: str) -> str:
        return hmac.new(self._key, "\n".join(parts).encode(), hashlib.sha256).hexdigest()


class Guard:
    """ASGI middleware; `request.state.user` is who asks."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate, proxies: Addresses) -> None:
        self._app = app
        self._authenticate = authenticate
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = HEADERS | {"cache-control": "no-store"}
                message["headers"] += [(k.encode(), v.encode()) for k, v in added.items() if k.encode() not in present]
                has_begun = True
            await send(message)

        scope = believe(scope, self._proxies)
        request = Request(scope)
        try:
            user = await user_of(self._authenticate, request)
        except TooManyFailures as error:
            refusal = PlainTextResponse(str(error), 429, {"retry-after": f"{error.seconds:.0f}"})
            return await refusal(scope, receive, send_with_headers)
        if user is None:
            return await self._stranger()(scope, receive, send_with_headers)
        if request.method not in READING and not _is_from_here(request):
            refusal = PlainTextResponse("A page of another site sent this: refused.", 403)
            return await refusal(scope, receive, send_with_headers)
        scope.setdefault("state", {})["user"] = user
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:  # a fault of ours, which the server logs: nothing of it is shown, and the headers are there
            if not has_begun:
                await PlainTextResponse("That went wrong; the server's log says why.", 500)(
                    scope, receive, send_with_headers
                )
            raise

    def _stranger(self) -> PlainTextResponse:
        challenge = getattr(self._authenticate, "challenge", BasicAuthStatic.challenge)
        return PlainTextResponse("Who are you?", 401, {"www-authenticate": challenge} if challenge else {})


def _is_from_here(request: Request) -> bool:
    """Browsers of today say where a form comes from; older ones, and programs, are asked for a token alone."""
    site = request.headers.get("sec-fetch-site")
    return site in (None, "same-origin")
