"""Who may look, and who may act. Closed by default: whoever is not let in by name sees nothing."""

from __future__ import annotations

import base64
import binascii
import hmac
import inspect
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from starlette.requests import Request

from cluster.dashboard.addresses import address_of
from cluster.errors import SettingsError
from cluster.settings import dashboard_settings

Role = Literal["viewer", "operator", "admin"]
"""A viewer looks; an operator does all but deleting; an admin does everything."""

FAILURES, WINDOW = 10, 60.0
"""So many wrong passwords from one address within these seconds; then nobody gets in from there until they are over."""
MOST_ADDRESSES = 10_000
OF_PROXIES = frozenset({"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-prefix", "x-real-ip"})
"""Headers that no browser sends."""


@dataclass(frozen=True)
class User:
    """name: as the audit shows it."""

    name: str
    role: Role = "viewer"

    @property
    def may_act(self) -> bool:
        return self.role in ("operator", "admin")

    @property
    def may_delete(self) -> bool:
        return self.role == "admin"

    @property
    def may_see_secrets(self) -> bool:
        return self.role == "admin"


Authenticate = Callable[[Request], User | Awaitable[User | None] | None]
"""Who asks; None: nobody whom we know."""


class TooManyFailures(Exception):  # noqa: N818 - a state, not a fault of ours
    """seconds: until this address may try again."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"too many wrong passwords: try again in {seconds:.0f} s")
        self.seconds = seconds


class NoAuth:
    """Everybody is an admin. Only for requests from this machine; open: for all, since something before it asks who they are.

    What a proxy on this machine passes on is not from here.
    """

    def __init__(self, *, open: bool = False) -> None:  # noqa: A002 - the word for it
        self._open = open

    def __call__(self, request: Request) -> User | None:
        client = request.client.host if request.client else ""
        is_local = client in ("127.0.0.1", "::1") and _host(request) in ("127.0.0.1", "::1", "localhost")
        is_local = is_local and OF_PROXIES.isdisjoint(request.headers.keys())
        return User("anybody", "admin") if self._open or is_local else None


def _host(request: Request) -> str:
    """By which name we were called: that of a page elsewhere whose name was made to point here is none of ours."""
    host = request.headers.get("host", "")
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


class BasicAuthStatic:
    """One user with a password, in HTTP's basic scheme."""

    challenge = 'Basic realm="jobs", charset="UTF-8"'
    """What a stranger is asked for."""

    def __init__(self, user: str, password: str, *, role: Role = "admin") -> None:
        if not user or not password:
            raise SettingsError("the dashboard needs a user and a password")
        self._expected = f"{user}:{password}".encode()
        self._user = User(user, role)
        self._failures = _Failures()

    def __call__(self, request: Request) -> User | None:
        given = _basic(request.headers.get("authorization", ""))
        if given is None:
            return None
        address = address_of(request)
        self._failures.check(address)
        if hmac.compare_digest(given, self._expected):
            return self._user
        self._failures.add(address)
        return None


class BasicAuth(BasicAuthStatic):
    """User and password from CLUSTER_DASHBOARD_USER and CLUSTER_DASHBOARD_PASSWORD. SettingsError: one of them is not set."""

    def __init__(self, *, role: Role = "admin") -> None:
        settings = dashboard_settings()
        if not settings.dashboard_user or not settings.dashboard_password:
            raise SettingsError("set CLUSTER_DASHBOARD_USER and CLUSTER_DASHBOARD_PASSWORD: nobody gets in without")
        super().__init__(settings.dashboard_user, settings.dashboard_password, role=role)


async def user_of(authenticate: Authenticate, request: Request) -> User | None:
    found = authenticate(request)
    return await found if inspect.isawaitable(found) else found


def _basic(header: str) -> bytes | None:
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b""


class _Failures:
    """Of each address, when the first of its failures was, and how many. The oldest are forgotten first."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def check(self, address: str) -> None:
        since, count = self._of.get(address, (0.0, 0))
        left = since + WINDOW - time.monotonic()
        if count >= FAILURES and left > 0:
            raise TooManyFailures(left)

    def add(self, address: str) -> None:
        since, count = self._of.pop(address, (0.0, 0))
        now = time.monotonic()
        self._of[address] = (since, count + 1) if now - since < WINDOW else (now, 1)
        if len(self._of) > MOST_ADDRESSES:
            self._of.popitem(last=False)
