"""Login by the plant's identity provider: a real one on loopback, with every fault of its ID tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from conftest import BROWSER_OPTIONS, MakeStation, add_user, free_port, require
from linegate.errors import SettingsError
from linegate_edge.access_settings import AccessSection
from linegate_edge.doctor_station import login_findings
from linegate_edge.review.access.client import COOKIE
from linegate_edge.review.access.oidc import Provider
from linegate_edge.station import Station
from simulators.oidc_provider import CLIENT_ID, CLIENT_SECRET, OidcProvider, running_provider

HTML = {"Accept": "text/html"}


@pytest.fixture
def provider() -> Iterator[OidcProvider]:
    with running_provider() as running:
        yield running


@pytest.fixture
def station(make_station: MakeStation, provider: OidcProvider, tmp_path: Path) -> Station:
    (tmp_path / "secret").write_text(f"{CLIENT_SECRET}\n")
    access = (
        f'[evidence]\nmin_free_mib = 0\n[access]\noidc_issuer = "{provider.issuer}"\noidc_client_id = "{CLIENT_ID}"\n'
        'oidc_client_secret_file = "secret"\n[access.oidc_roles]\n"plant-quality" = "quality"\n"plant-it" = "admin"\n'
    )
    return make_station(free_port(), more=access)


@pytest.fixture
def browser(station: Station) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=station.address, timeout=30) as client:
        yield client


def begin(browser: httpx.Client, provider: OidcProvider, wanted: str = "/queue") -> str:
    """Go away to the provider, and return the address of the way back."""
    response = browser.get("/api/v1/oidc/start", params={"next": wanted})
    assert response.status_code == 303, response.text
    assert response.headers["location"].startswith(f"{provider.issuer}/authorize?")
    return provider.authorize(response.headers["location"])


def test_somebody_of_the_plant_comes_in_with_the_role_of_the_claim(
    browser: httpx.Client, provider: OidcProvider, station: Station
) -> None:
    assert browser.get("/api/v1/session").json()["oidc"] is True
    response = browser.get(begin(browser, provider), headers=HTML)
    assert response.status_code == 200
    assert '<meta http-equiv="refresh" content="0; url=/queue">' in response.text
    cookie = next(line for line in response.headers.get_list("set-cookie") if line.startswith(f"{COOKIE}="))
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    session = browser.get("/api/v1/session").json()
    assert (session["name"], session["role"], session["must_change"]) == ("anna.berg", "quality", False)
    user = station.access.users.find("anna.berg")
    assert user is not None
    assert (user.issuer, user.subject, user.password) == (provider.issuer, "u-1", None)
    actions = [line.action for line in station.reviews.trail.lines(subject="anna.berg")]
    assert actions == ["login", "user.add"]


def test_the_doctor_asks_the_provider_and_logs_nobody_in(provider: OidcProvider) -> None:
    def found(**changes: object) -> list[tuple[str, str]]:
        section = {"oidc_issuer": provider.issuer, "oidc_client_id": CLIENT_ID, "oidc_roles": {"plant-it": "admin"}, **changes}
        return [(finding.level, finding.what) for finding in login_findings(AccessSection.model_validate(section))]

    ((level, what),) = found()
    assert (level, what.partition(" answers")[0]) == ("ok", provider.issuer)
    assert "/authorize" not in provider.asked
    ((level, what),) = found(oidc_issuer=f"http://127.0.0.1:{free_port()}")
    assert (level, "cannot be asked" in what) == ("fail", True)
    (own,) = login_findings(AccessSection())
    assert (own.level, own.what.startswith("users are the station's own")) == ("ok", True)


def test_identity_is_the_subject_and_the_role_follows_the_claim(
    browser: httpx.Client, provider: OidcProvider, station: Station
) -> None:
    browser.get(begin(browser, provider))
    provider.claims |= {"preferred_username": "anna.huber", "roles": ["others", "plant-it"]}
    with httpx.Client(base_url=station.address) as second:
        second.get(begin(second, provider))
        assert second.get("/api/v1/session").json()["role"] == "admin"
    assert [user.name for user, _ in station.access.users.list()] == ["admin", "anna.berg"]
    assert browser.get("/api/v1/session").json()["name"] is None, "another role ends the sessions with the role before"


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
def test_both_kinds_of_keys_count_and_new_keys_are_asked_for(
    browser: httpx.Client, provider: OidcProvider, station: Station, algorithm: str
) -> None:
    provider.algorithm = algorithm
    assert browser.get(begin(browser, provider)).status_code == 200
    provider.change_keys()
    assert station.access.provider is not None
    station.access.provider._keys_at -= 3600
    assert browser.get(begin(browser, provider)).status_code == 200
    assert provider.asked.count("/keys") == 2


FAULTS = {
    "wrong audience": "Audience",
    "two audiences without azp": "azp",
    "wrong nonce": "nonce",
    "without nonce": "nonce",
    "expired": "expired",
    "without exp": "exp",
    "without sub": "sub",
    "wrong issuer": "issuer",
    "from the future": "not yet valid",
    "not signed": "'none'",
    "signed by the secret": "'HS256'",
    "unknown key": "a key that the provider does not name",
    "forged": "Signature verification failed",
    "redirects": "jwks_uri answers 302",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_id_token_that_does_not_hold_lets_nobody_in(
    browser: httpx.Client, provider: OidcProvider, station: Station, fault: str
) -> None:
    provider.fault = fault
    response = browser.get(begin(browser, provider))
    assert response.status_code in (401, 502)
    assert list(response.json()) == ["error"]
    assert FAULTS[fault].lower() in response.json()["error"].lower()
    assert "\n" not in response.json()["error"]
    assert browser.get("/api/v1/session").json()["name"] is None
    assert [user.name for user, _ in station.access.users.list()] == ["admin"]
    line = station.reviews.trail.lines(limit=1)[0]
    assert (line.action, line.subject) == ("login.failed", "identity provider")
    assert "/elsewhere" not in provider.asked


def test_a_way_back_works_once_and_in_the_browser_that_went_away(
    browser: httpx.Client, provider: OidcProvider, station: Station
) -> None:
    back = begin(browser, provider)
    with httpx.Client(base_url=station.address) as other:
        response = other.get(back)
        assert (response.status_code, "another browser" in response.text) == (401, True)
    response = browser.get(back)
    assert (response.status_code, "used already" in response.text) == (401, True), "a state that was tried is used up"
    back = begin(browser, provider)
    assert browser.get(back).status_code == 200
    assert browser.get(back).status_code == 401
    response = browser.get("/api/v1/oidc/callback", params={"state": "made-up", "code": "x"}, headers=HTML)
    assert response.status_code == 401
    assert response.headers["content-type"].startswith("text/html")
    assert "script-src 'self'" in response.headers["content-security-policy"]


def test_what_the_provider_says_is_never_markup(browser: httpx.Client, station: Station) -> None:
    response = browser.get("/api/v1/oidc/callback", params={"error": "<script>alert(1)</script>"}, headers=HTML)
    assert response.status_code == 403
    assert "<script>" not in response.text
    assert browser.get("/api/v1/oidc/callback").status_code == 422


@pytest.mark.parametrize("wanted", ["//evil.example", "https://evil.example", "/\\evil.example", "/%2f/evil.example", "queue"])
def test_the_way_back_leads_to_this_station_alone(browser: httpx.Client, provider: OidcProvider, wanted: str) -> None:
    response = browser.get("/api/v1/oidc/start", params={"next": wanted})
    assert response.status_code == 422
    assert "must be a path of this station" in response.json()["error"]
    assert provider.asked == []


@pytest.mark.parametrize("roles", [["others"], [], None, "nothing", {"plant-it": True}, [{"plant-it": 1}], 7])
def test_who_has_no_role_here_stays_outside(
    browser: httpx.Client, provider: OidcProvider, station: Station, roles: object
) -> None:
    provider.claims["roles"] = roles
    response = browser.get(begin(browser, provider))
    assert (response.status_code, "names no role of this station" in response.text) == (403, True)
    assert station.access.users.find("anna.berg") is None


def test_a_local_user_of_that_name_is_not_taken_over(browser: httpx.Client, provider: OidcProvider, station: Station) -> None:
    add_user(station, "anna.berg", "admin")
    response = browser.get(begin(browser, provider))
    assert (response.status_code, "another user is called 'anna.berg'" in response.text) == (403, True)
    assert browser.get("/api/v1/session").json()["name"] is None


def test_who_is_disabled_here_stays_outside(browser: httpx.Client, provider: OidcProvider, station: Station) -> None:
    from linegate_edge.review.audit import SYSTEM

    browser.get(begin(browser, provider))
    station.access.users.disable(SYSTEM, "anna.berg")
    assert browser.get("/api/v1/session").json()["name"] is None
    assert browser.get(begin(browser, provider)).status_code == 403


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"issuer": "https://evil.example"}, "calls itself"),
        ({"token_endpoint": "http://127.0.0.2:1/token"}, "is on another host"),
        ({"jwks_uri": "http://evil.example/keys"}, "no https address"),
        ({"authorization_endpoint": 7}, "no https address"),
    ],
)
def test_a_provider_that_points_elsewhere_is_not_followed(
    browser: httpx.Client, provider: OidcProvider, changes: dict[str, object], text: str
) -> None:
    provider.metadata_changes = changes
    response = browser.get("/api/v1/oidc/start")
    assert (response.status_code, text in response.json()["error"]) == (502, True)


def test_a_provider_that_is_away_is_one_line_and_the_rest_goes_on(
    browser: httpx.Client, provider: OidcProvider, station: Station
) -> None:
    provider.close()
    response = browser.get("/api/v1/oidc/start")
    assert (response.status_code, "cannot be asked" in response.json()["error"]) == (502, True)
    assert browser.get("/healthz").status_code == 200


def test_logins_in_hand_are_bounded_and_end() -> None:
    now = [0.0]
    with running_provider() as provider:
        settings = AccessSection(oidc_issuer=provider.issuer, oidc_client_id=CLIENT_ID, oidc_roles={"g": "operator"})
        made = Provider(settings, clock=lambda: now[0])
        for _ in range(300):
            made.begin("http://localhost/api/v1/oidc/callback", "/")
        assert len(made._begun) == 256
        now[0] = 3000.0
        made.begin("http://localhost/api/v1/oidc/callback", "/")
        assert len(made._begun) == 1


def test_a_secret_that_is_not_there_is_told_before_the_start(tmp_path: Path) -> None:
    settings = AccessSection(
        oidc_issuer="https://id.example",
        oidc_client_id="x",
        oidc_client_secret_file=tmp_path / "missing",
        oidc_roles={"g": "operator"},
    )
    with pytest.raises(SettingsError, match=r"oidc_client_secret_file .* cannot be read"):
        Provider(settings)


def test_in_a_real_browser_the_cookie_comes_along_after_the_way_back(station: Station) -> None:
    from playwright.sync_api import expect, sync_playwright

    address = f"http://localhost:{station.http_port}/"  # another site than the provider's 127.0.0.1
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=require("chromium"), args=BROWSER_OPTIONS)
        page = chromium.new_page()
        page.goto(f"{address}parts")
        page.get_by_role("link", name="Log in with the plant's account").click()
        expect(page).to_have_url(f"{address}parts")
        expect(page.locator("#shell .account")).to_contain_text("anna.berg")
        chromium.close()
