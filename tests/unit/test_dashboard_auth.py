"""Who gets into the dashboard, from where, and what that is worth. Asked without a database: style sheets need none, but a user."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
import pytest
from starlette.requests import Request

from cluster.dashboard import BasicAuthStatic, NoAuth, ProxyHeader, User, dashboard
from cluster.dashboard import auth as auth_module
from cluster.dashboard.addresses import Addresses, address_of, believe
from cluster.dashboard.guard import MESSAGE_LIFE, Tokens
from cluster.dashboard.proxy import roles_of
from cluster.errors import SettingsError

STYLE = "/static/style.css"
PROXY, STRANGER = "10.1.2.3", "192.0.2.7"


def client(auth: Any, address: str = "127.0.0.1", **options: Any) -> httpx.AsyncClient:
    app = dashboard(auth, database_url="postgresql://nowhere.invalid/x", **options)
    transport = httpx.ASGITransport(app, client=(address, 1), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1")


def asked(address: str | None, *headers: tuple[str, str]) -> Request:
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers]
    return Request(
        {"type": "http", "client": (address, 1) if address else None, "headers": encoded, "path": "/", "state": {}}
    )


# --- a header of a proxy ---


async def test_a_user_that_the_proxy_names_gets_in_and_one_that_anybody_else_names_does_not() -> None:
    auth = ProxyHeader("10.0.0.0/8, ::1")
    for address, headers, status in [
        (PROXY, {"x-forwarded-user": "ann"}, 200),
        ("::ffff:10.1.2.3", {"x-forwarded-user": "ann"}, 200),
        ("::1", {"x-forwarded-user": "ann"}, 200),
        (PROXY, {}, 401),
        (PROXY, {"x-forwarded-user": " "}, 401),
        (STRANGER, {"x-forwarded-user": "ann"}, 401),
        (STRANGER, {"x-forwarded-user": "ann", "x-forwarded-for": PROXY}, 401),
        ("127.0.0.1", {"x-forwarded-user": "ann"}, 401),
    ]:
        async with client(auth, address) as web:
            answer = await web.get(STYLE, headers=headers)
            assert answer.status_code == status, (address, headers)
            assert "www-authenticate" not in answer.headers, "a browser would ask for a password"


def test_a_header_that_came_twice_or_is_no_name_lets_nobody_in() -> None:
    auth = ProxyHeader("10.0.0.0/8")
    assert auth(asked(PROXY, ("X-Forwarded-User", "ann"))) == User("ann", "viewer")
    assert auth(asked(PROXY, ("X-Forwarded-User", "eve"), ("X-Forwarded-User", "ann"))) is None
    assert auth(asked(PROXY, ("X-Forwarded-User", "a\x00b"))) is None
    assert auth(asked(PROXY, ("X-Forwarded-User", "a" * 1000))) is None
    assert auth(asked(None, ("X-Forwarded-User", "ann"))) is None
    assert auth(asked(PROXY, ("X-Forwarded-User", "Jörg"))) == User("Jörg", "viewer")


def test_roles_are_given_by_user_group_and_to_all_others_and_the_highest_holds() -> None:
    roles = roles_of(("ann=admin", "@ops=operator", "*=viewer", "odd=name=viewer"))
    auth = ProxyHeader("10.0.0.0/8", roles=roles, groups_header="X-Forwarded-Groups", header="X-Auth-Request-Email")

    def role(user: str, groups: str = "") -> str | None:
        found = auth(asked(PROXY, ("X-Auth-Request-Email", user), ("X-Forwarded-Groups", groups)))
        return found.role if isinstance(found, User) else None

    assert role("ann") == "admin"
    assert role("ann", "ops") == "admin"
    assert role("bob", "sales, ops") == "operator"
    assert role("eve", "sales") == "viewer"
    assert role("*") == "viewer"
    assert role("odd=name") == "viewer"
    strict = ProxyHeader("10.0.0.0/8", roles={"ann": "admin"})
    assert strict(asked(PROXY, ("X-Forwarded-User", "bob"))) is None
    assert strict(asked(PROXY, ("X-Forwarded-User", "@ann"), ("X-Forwarded-Groups", "ann"))) is None


def test_groups_are_not_read_unless_their_header_is_named() -> None:
    auth = ProxyHeader("10.0.0.0/8", roles={"@ops": "admin", "*": "viewer"})
    assert auth(asked(PROXY, ("X-Forwarded-User", "eve"), ("X-Forwarded-Groups", "ops"))) == User("eve", "viewer")


@pytest.mark.parametrize("addresses", ["", " , ", "proxy.example", "10.0.0.1/8", "0.0.0.0/0", "::/0"])
def test_it_is_not_made_without_addresses_or_with_everybodys(addresses: str) -> None:
    with pytest.raises(SettingsError):
        ProxyHeader(addresses)


@pytest.mark.parametrize("part", ["ann", "ann=owner", "=admin", "ann="])
def test_a_role_that_there_is_not_is_refused(part: str) -> None:
    with pytest.raises(SettingsError, match="gives nobody a role"):
        roles_of((part,))


# --- passwords ---


def basic(password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()}


async def test_behind_a_proxy_that_is_believed_each_address_has_its_own_tries() -> None:
    async with client(BasicAuthStatic("ann", "s3cret"), PROXY, proxies="10.0.0.0/8") as web:
        for _ in range(auth_module.FAILURES):
            await web.get(STYLE, headers=basic("wrong") | {"x-forwarded-for": f"198.51.100.1, {STRANGER}, {PROXY}"})

        async def tried(source: str) -> int:
            return (await web.get(STYLE, headers=basic("s3cret") | {"x-forwarded-for": source})).status_code

        assert await tried(STRANGER) == 429
        assert await tried(f"203.0.113.9, {STRANGER}") == 429, "what a browser says itself stands before the proxy's"
        assert await tried("198.51.100.1") == 200
        both = [("x-forwarded-for", "198.51.100.1"), ("x-forwarded-for", STRANGER), *basic("s3cret").items()]
        assert (await web.get(STYLE, headers=both)).status_code == 429, "the last one is the proxy's"


async def test_what_anybody_else_says_of_its_address_changes_nothing() -> None:
    async with client(BasicAuthStatic("ann", "s3cret"), STRANGER, proxies="10.0.0.0/8") as web:
        for number in range(auth_module.FAILURES):
            await web.get(STYLE, headers=basic("wrong") | {"x-forwarded-for": f"198.51.100.{number}"})
        assert (await web.get(STYLE, headers=basic("s3cret") | {"x-forwarded-for": "203.0.113.9"})).status_code == 429


def test_all_of_an_ipv6_network_counts_as_one_address() -> None:
    assert address_of(asked("2001:db8::1")) == address_of(asked("2001:db8::ffff:1"))
    assert address_of(asked("2001:db8::1")) != address_of(asked("2001:db8:0:1::1"))
    assert address_of(asked(None)) == ""


async def test_what_a_proxy_on_this_machine_passes_on_does_not_get_in_without_a_password() -> None:
    async with client(NoAuth()) as web:
        assert (await web.get(STYLE)).status_code == 200
        for header in ("x-forwarded-for", "forwarded", "via", "x-real-ip"):
            assert (await web.get(STYLE, headers={header: "127.0.0.1"})).status_code == 401


# --- tokens and messages ---


def test_processes_with_one_secret_take_each_others_forms_and_others_do_not() -> None:
    one, same, other, own = Tokens("x" * 32), Tokens("x" * 32), Tokens("y" * 32), Tokens()
    ann = User("ann", "admin")
    same.check(ann, one.new(ann))
    assert same.opened(one.seal("Job 1 is cancelled.")) == "Job 1 is cancelled."
    for stranger in (other, own, Tokens()):
        with pytest.raises(Exception, match="not from here"):
            stranger.check(ann, one.new(ann))
        assert stranger.opened(one.seal("Send ann your password.")) == ""


def test_a_message_is_no_token_and_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = Tokens()
    sealed = tokens.seal("Done: Grüße.")
    assert tokens.opened(sealed) == "Done: Grüße."
    for forged in ("", ".", "x.y", sealed[:-1], sealed.replace(".", "x.", 1), "ä.ö"):
        assert tokens.opened(forged) == ""
    with pytest.raises(Exception, match="not from here"):
        tokens.check(User("said", "admin"), sealed)
    later = time.time() + MESSAGE_LIFE + 2
    monkeypatch.setattr("cluster.dashboard.guard.time.time", lambda: later)
    assert tokens.opened(sealed) == ""


# --- the rest ---


async def test_a_fault_of_ours_shows_nothing_but_has_all_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the program")

    monkeypatch.setattr("cluster.dashboard.pages.Pages.nodes", broken)
    async with client(NoAuth()) as web:
        answer = await web.get("/nodes")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.headers["cache-control"] == "no-store"


def test_a_prefix_is_taken_only_if_it_is_one() -> None:
    proxies = Addresses("10.0.0.0/8")
    scope = {**asked(PROXY, ("x-forwarded-prefix", "/ops")).scope, "root_path": "/jobs", "path": "/jobs/nodes"}
    believed = believe(scope, proxies)
    assert (believed["root_path"], believed["path"]) == ("/ops/jobs", "/ops/jobs/nodes")
    assert (scope["root_path"], scope["path"]) == ("/jobs", "/jobs/nodes")
    assert believe({**scope, "client": (STRANGER, 1)}, proxies)["root_path"] == "/jobs"
