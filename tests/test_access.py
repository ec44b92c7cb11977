"""The one table of permissions: every route, every role, and that what is not in the table is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.routing import Match, Route

from conftest import MakeStation, free_port, signed_in
from linegate.errors import SettingsError
from linegate_edge.access_settings import AccessSection
from linegate_edge.review.access.access import Access
from linegate_edge.review.access.policy import ROUTES, find
from linegate_edge.review.access.roles import LOOPBACK, NOBODY, ROLES, Permission
from linegate_edge.review.audit import SYSTEM, AuditTrail
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.static import PAGES, served_pages
from linegate_edge.station import Station

NETWORK = {"X-Forwarded-For": "10.0.0.9"}
"""Makes a request one from the network: whatever comes through a proxy does."""


@pytest.fixture(scope="module")
def station(tmp_path_factory: pytest.TempPathFactory, spot_package: Any) -> Iterator[Station]:
    folder = tmp_path_factory.mktemp("access")
    path = folder / "STATION.toml"
    path.write_text(
        f'[station]\ntopic = "acme/graz/press/line-1/tiles"\n[model]\npackage = "{spot_package}"\n[http]\nport = 0\n'
        f"[mqtt]\nport = {free_port()}\n[evidence]\nmin_free_mib = 0\n"
    )
    from linegate_edge.settings import load_station

    made = Station(load_station(path))
    made.start()
    yield made
    made.stop()


def application(station: Station) -> FastAPI:
    return station._http._app


def app_routes(station: Station) -> set[tuple[str, str]]:
    found = set()
    for route in application(station).routes:
        assert isinstance(route, Route), f"{route} is of a kind that this test does not know: take app.get and the like"
        found |= {(method, route.path) for method in (route.methods or set()) - {"HEAD"}}
    return found


def there() -> list[tuple[str, str]]:
    """Return the table's routes, without pages that no file is there for."""
    served = {address for address, _ in served_pages()} | {"/login"}
    return [(method, path) for method, path in ROUTES if path not in PAGES or path in served]


def some_address(path: str) -> str:
    return re.sub(r"{\w+}", "0", path)


def test_the_table_has_every_route_of_the_application_and_no_other(station: Station) -> None:
    assert app_routes(station) == set(there())


def test_an_address_has_one_permission_whatever_other_addresses_look_like(station: Station) -> None:
    """What the table finds for an address is the very route that the application would call."""
    for method, path in app_routes(station):
        asked = find(method, some_address(path))
        assert asked is not None
        assert (asked.address, asked.permission) == (path, ROUTES[method, path])
        scope = {"type": "http", "method": method, "path": some_address(path)}
        called = next(route for route in application(station).routes if route.matches(scope)[0] is Match.FULL)
        assert isinstance(called, Route)
        assert called.path == path


def test_a_route_that_is_not_in_the_table_is_refused(station: Station) -> None:
    app = application(station)

    @app.get("/api/v1/forgotten")
    def get_forgotten() -> str:
        return "should not be seen"

    try:
        with signed_in(station, "root", "admin") as admin:
            response = admin.get("/api/v1/forgotten")
    finally:
        app.router.routes.pop()
    assert response.status_code == 404
    assert "nothing here" in response.json()["error"]


def ask(client: httpx.Client, method: str, path: str) -> int:
    headers = NETWORK | ({"Accept": "application/json"})
    if path == "/live/events":
        with client.stream(method, path, headers=headers) as response:
            return response.status_code
    return client.request(
        method, some_address(path), headers=headers, json={} if method in ("POST", "PATCH") else None
    ).status_code


def is_let_in(status: int, permission: Permission) -> bool:
    """Say whether an answer is the route's own; a body of nothing gives 422, a part of nowhere 404, and so on."""
    return status not in (401, 403) and not (status == 303 and permission is not Permission.PUBLIC)


@pytest.mark.parametrize("role", [role for role in ROLES if role != "machine"])
def test_a_role_may_what_the_table_says_and_nothing_else(station: Station, role: str) -> None:
    for method, path in there():
        if path == "/api/v1/logout":
            continue
        permission = ROUTES[method, path]
        with signed_in(station, f"one-{role}", role) as client:
            assert is_let_in(ask(client, method, path), permission) == (permission in ROLES[role]), (role, method, path)


@pytest.mark.parametrize("role", ROLES)
def test_a_token_may_what_its_role_may_but_has_no_session(station: Station, role: str) -> None:
    secret, _ = station.access.tokens.add(SYSTEM, f"token-{role}", role, 1)
    with httpx.Client(base_url=station.address, headers={"Authorization": f"Bearer {secret}"}, timeout=30) as client:
        for method, path in there():
            permission = ROUTES[method, path]
            allowed = permission in ROLES[role] and permission is not Permission.SELF
            assert is_let_in(ask(client, method, path), permission) == allowed, (role, method, path)


def test_from_the_network_nothing_but_the_public_is_open_without_a_login(station: Station) -> None:
    with httpx.Client(base_url=station.address, timeout=30) as client:
        for method, path in there():
            permission = ROUTES[method, path]
            if path.startswith("/api/v1/oidc"):
                continue  # without a provider, 404
            assert (ask(client, method, path) not in (401, 303)) == (permission in NOBODY), (method, path)


def test_on_loopback_programs_need_no_login_for_what_they_did_before_there_was_one(station: Station) -> None:
    with httpx.Client(base_url=station.address, timeout=30) as client:
        for method, path in there():
            if path == "/live/events":
                continue
            response = client.request(method, some_address(path), json={} if method in ("POST", "PATCH") else None)
            assert (response.status_code not in (401, 303)) == (ROUTES[method, path] in LOOPBACK), (method, path)


@pytest.mark.parametrize("sign", ["Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Real-IP", "Via", "X-Forwarded-Host"])
def test_any_sign_of_a_proxy_ends_the_trust_in_loopback(station: Station, sign: str) -> None:
    assert httpx.get(f"{station.address}live/state").status_code == 200
    response = httpx.get(f"{station.address}live/state", headers={sign: "127.0.0.1"})
    assert response.status_code == 401
    assert "log in first" in response.json()["error"]


def test_pages_lead_to_the_login_and_back_and_the_api_says_one_line(station: Station) -> None:
    response = httpx.get(f"{station.address}queue?kind=fail&class=a%26b")
    assert (response.status_code, response.headers["location"]) == (303, "/login?next=/queue%3Fkind%3Dfail%26class%3Da%2526b")
    assert httpx.get(station.address, headers=NETWORK).headers["location"] == "/login"
    response = httpx.get(f"{station.address}api/v1/users")
    assert response.status_code == 401
    assert list(response.json()) == ["error"]


def test_a_page_that_a_role_may_not_see_says_so_as_a_page(station: Station) -> None:
    with signed_in(station, "oskar", "operator") as oskar:
        response = oskar.get("/queue", headers=NETWORK)
    assert (response.status_code, response.headers["content-type"]) == (403, "text/html; charset=utf-8")
    assert "needs &#x27;review&#x27;" in response.text


def test_what_a_role_may_not_is_one_line_and_one_line_of_the_trail(station: Station) -> None:
    before = station.reviews.trail.head()[0]
    with signed_in(station, "olga", "operator") as olga:
        for _ in range(5):
            response = olga.post("/api/v1/users", json={"name": "eve", "role": "admin"}, headers=NETWORK)
            assert response.status_code == 403
    assert response.json() == {"error": "the role 'operator' may not POST /api/v1/users: it needs 'users'"}
    assert station.access.users.find("eve") is None
    lines = [line for line in station.reviews.trail.lines() if line.number > before and line.action == "refused"]
    assert [(line.actor, line.subject) for line in lines] == [("olga", "POST /api/v1/users")]


def test_openapi_tells_of_permissions_and_refusals(station: Station) -> None:
    document = httpx.get(f"{station.address}openapi.json").json()
    for address, item in document["paths"].items():
        for method, operation in item.items():
            permission = ROUTES[method.upper(), address]
            assert operation["x-permission"] == permission
            assert "421" in operation["responses"]
            if permission is not Permission.PUBLIC:
                assert {"401", "403"} <= set(operation["responses"])
                assert operation["security"]


def test_the_address_behind_a_trusted_proxy_is_the_last_one_that_no_proxy_wrote(tmp_path: Any) -> None:
    from starlette.datastructures import Headers

    from linegate_edge.review.access.client import read_client

    database = ReviewDatabase(tmp_path)
    access = Access(database, AuditTrail(database), AccessSection(trusted_proxies=("127.0.0.1", "10.1.0.0/16")))
    scope = {"type": "http", "client": ("127.0.0.1", 1), "scheme": "http"}

    def read(forwarded: str, peer: str = "127.0.0.1") -> tuple[str, bool, bool]:
        headers = Headers({"x-forwarded-for": forwarded, "x-forwarded-proto": "https"})
        client = read_client({**scope, "client": (peer, 1)}, headers, access.trusted)
        return client.address, client.local, client.https

    assert read("1.2.3.4, 192.168.7.7, 10.1.2.3") == ("192.168.7.7", False, True)
    assert read("127.0.0.1") == ("127.0.0.1", False, True)
    assert read("nonsense") == ("unknown", False, True)
    assert read("1.2.3.4", peer="192.168.7.8") == ("192.168.7.8", False, False)
    assert read("1.2.3.4", peer="::ffff:192.168.7.8") == ("192.168.7.8", False, False)
    database.close()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"trusted_proxies": ["10.0.0.1/8"]}, "no address or network"),
        ({"oidc_issuer": "http://id.example"}, "https://"),
        ({"oidc_issuer": "https://user@id.example"}, "https://"),
        ({"oidc_issuer": "https://id.example"}, "oidc_client_id"),
        ({"oidc_client_id": "x"}, "need oidc_issuer"),
        ({"oidc_issuer": "https://id.example", "oidc_client_id": "x", "oidc_roles": {"g": "king"}}, "oidc_roles"),
        ({"session_hours": 0.0}, "session_hours"),
    ],
)
def test_settings_that_cannot_be_are_one_line(settings: dict[str, Any], text: str) -> None:
    from linegate.settings import parse

    with pytest.raises(SettingsError, match=re.escape(text)):
        parse(settings, AccessSection, "[access]")


def test_the_session_of_nobody_tells_what_the_address_may_see(make_station: MakeStation) -> None:
    station = make_station(free_port())
    answer = httpx.get(f"{station.address}api/v1/session", headers=NETWORK).json()
    assert (answer["name"], answer["permissions"], answer["pages"], answer["csrf"]) == (None, ["public"], [], None)
    answer = httpx.get(f"{station.address}api/v1/session").json()
    assert (answer["name"], answer["pages"]) == (None, ["live"])
