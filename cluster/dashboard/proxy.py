"""Lets in whom a proxy names that has asked who it is: single sign-on."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.requests import Request

from cluster.dashboard.addresses import LONGEST_NAME, Addresses, only, peer
from cluster.dashboard.auth import Role, User
from cluster.errors import SettingsError

_RANKS: tuple[Role, ...] = ("viewer", "operator", "admin")


class ProxyHeader:
    """Whom a proxy names that has asked who it is. From any other address, and without the header, nobody gets in.

    from_: the proxy's addresses. roles: by user, by `@group`, and `*` for everybody else, who is kept out without it; the
    highest holds; None: all are viewers. groups_header: comma-separated groups; None: none are read. The proxy has to set or
    remove both headers in every request: what a browser sends under their names must not pass.
    """

    challenge = ""
    """Nobody is asked for a password here."""

    def __init__(
        self,
        from_: str,
        *,
        header: str = "X-Forwarded-User",
        roles: Mapping[str, Role] | None = None,
        groups_header: str | None = None,
    ) -> None:
        self._from = Addresses(from_)
        if not self._from:
            raise SettingsError("whose header is believed? Name the addresses of the proxy, such as 10.0.0.0/8")
        self._header = header
        self._groups_header = groups_header
        self._roles: Mapping[str, Role] = {"*": "viewer"} if roles is None else roles
        if unknown := set(self._roles.values()) - set(_RANKS):
            raise SettingsError(f"no such role: {', '.join(sorted(unknown))}; there are {', '.join(_RANKS)}")

    def __call__(self, request: Request) -> User | None:
        if peer(request) not in self._from:
            return None
        name = only(request, self._header)
        if not name or len(name) > LONGEST_NAME or not name.isprintable():
            return None
        groups = only(request, self._groups_header) if self._groups_header else ""
        asked = [name, *(f"@{group.strip()}" for group in groups.split(","))]
        roles = [self._roles[each] for each in asked if each in self._roles and each != "*"]
        found = roles or [role for each, role in self._roles.items() if each == "*"]
        return User(name, max(found, key=_RANKS.index)) if found else None


def roles_of(parts: tuple[str, ...]) -> dict[str, Role] | None:
    """From `ann=admin`, `@ops=operator`, `*=viewer`; None: there are none. SettingsError: one has no role."""
    found: dict[str, Role] = {}
    for part in parts:
        name, _, role = part.rpartition("=")
        known = next((each for each in _RANKS if each == role.strip()), None)
        if not name.strip() or known is None:
            raise SettingsError(f"{part!r} gives nobody a role: write ann=admin, @ops=operator or *=viewer")
        found[name.strip()] = known
    return found or None
