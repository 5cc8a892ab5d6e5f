"""Who really asks, and below which path, behind proxies: from the addresses that are believed, and from no other."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from starlette.requests import HTTPConnection
from starlette.types import Scope

from cluster.errors import SettingsError

LONGEST_NAME = 200
_PREFIX = re.compile(r"(/[\w.~-]+)+", re.ASCII)


class Addresses:
    """Of proxies: addresses and networks, comma-separated. Empty: nobody's word is believed.

    SettingsError: one is none, or stands for everybody.
    """

    def __init__(self, text: str) -> None:
        self._networks = [_network(part.strip()) for part in text.split(",") if part.strip()]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def __contains__(self, host: str) -> bool:
        try:
            address = ip_address(host)
        except ValueError:  # a Unix socket has none
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._networks)


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise SettingsError(f"{text!r} is no address of a proxy, such as 10.0.0.7 or 10.0.0.0/8: {error}") from error
    if network.prefixlen == 0:
        raise SettingsError(f"{text} is everybody: name the addresses of the proxy")
    return network


def believe(scope: Scope, proxies: Addresses) -> Scope:
    """The request as the browser sent it: below the proxy's prefix, and from an address of its own, by which failures count."""
    request = HTTPConnection(scope)
    scope = _below_its_mount(scope)
    if peer(request) not in proxies:
        return scope
    state = dict(scope.get("state") or {})
    named = [part.strip() for part in ",".join(request.headers.getlist("x-forwarded-for")).split(",")]
    strangers = [host for host in named if host and host not in proxies]
    if strangers:
        state["address"] = strangers[-1][:LONGEST_NAME]
    scope = {**scope, "state": state}
    prefix = only(request, "x-forwarded-prefix").rstrip("/")
    if not _PREFIX.fullmatch(prefix) or ".." in prefix:
        return scope
    return {**scope, "root_path": prefix + scope.get("root_path", ""), "path": prefix + scope["path"]}


def _below_its_mount(scope: Scope) -> Scope:
    """Some servers and frameworks put a proxy's prefix before root_path alone, where ASGI wants it in the path as well."""
    root, path = scope.get("root_path", "").rstrip("/"), scope["path"]
    if not root or path == root or path.startswith(f"{root}/"):
        return scope
    parts = root.split("/")[1:]
    for cut in range(1, len(parts) + 1):
        mount = "".join(f"/{part}" for part in parts[cut:])
        if path == mount or path.startswith(f"{mount}/"):
            return {**scope, "path": root + path[len(mount) :]}
    return scope


def address_of(connection: HTTPConnection) -> str:
    """Of whoever asks, behind the proxies that are believed. IPv6: its network, since a household has 2^64 addresses."""
    host = str(connection.scope.get("state", {}).get("address") or peer(connection))
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((int(address), 64), strict=False))


def peer(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else ""


def only(connection: HTTPConnection, header: str) -> str:
    """Its value; empty if it was sent twice: one of them is not the proxy's."""
    values = connection.headers.getlist(header)
    return values[0].encode("latin-1").decode("utf-8", "replace").strip() if len(values) == 1 else ""
