"""The login page and the admin page in Chromium: first login, forced change of the password, users, tokens, logout."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from conftest import PASSWORD, WATCH_POLICY, MakeStation, add_user, free_port
from linegate_edge.review.access.users import FIRST_PASSWORD_FILE
from linegate_edge.station import Station

NEW = "three ships on a quiet sea"


@pytest.fixture
def station(make_station: MakeStation) -> Station:
    return make_station(free_port())


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-GB")
    opened = context.new_page()

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    opened.on("console", on_console)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.add_init_script(WATCH_POLICY)
    yield opened
    context.close()


def log_in(page: Page, name: str, password: str) -> None:
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password", exact=True).fill(password)
    page.keyboard.press("Enter")


def test_first_admin_logs_in_chooses_a_password_adds_somebody_and_logs_out(
    page: Page, station: Station, complaints: list[str]
) -> None:
    first = station.settings.station.store / FIRST_PASSWORD_FILE
    assert first.stat().st_mode & 0o777 == 0o600
    page.goto(f"{station.address}admin")
    expect(page).to_have_url(f"{station.address}login?next=/admin")
    log_in(page, "admin", first.read_text().strip())

    expect(page.get_by_role("heading", name="Choose a new password")).to_be_visible()
    page.get_by_label("New password", exact=True).fill(NEW)
    page.get_by_label("New password again").fill(NEW + "!")
    page.keyboard.press("Enter")
    expect(page.locator("#change-problem")).to_contain_text("not the same both times")
    page.get_by_label("New password again").fill(NEW)
    page.keyboard.press("Enter")

    expect(page).to_have_url(f"{station.address}admin")
    assert not first.exists()
    expect(page.locator("#shell .account")).to_contain_text("admin")
    users = page.locator("#users")
    users.get_by_label("Name").fill("<b>eve")
    users.get_by_role("button", name="Add user").click()
    expect(page.locator(".toast")).to_contain_text("is no name for a user")
    users.get_by_label("Name").fill("Jürgen")
    users.locator("#user-role").select_option("quality")
    users.get_by_role("button", name="Add user").click()
    expect(page.locator("#secret-text")).to_have_text(re.compile(r"^[a-z0-9]{6}(-[a-z0-9]{6}){3}$"))
    page.get_by_role("button", name="Noted").click()
    expect(page.locator("#user-rows")).to_contain_text("jürgen")

    page.locator("#tokens").get_by_label("Name").fill("camera-1")
    page.get_by_role("button", name="Make token").click()
    expect(page.locator("#secret-text")).to_contain_text("linegate_")
    page.get_by_role("button", name="Noted").click()
    expect(page.locator("#token-rows")).to_contain_text("camera-1")

    page.get_by_role("button", name="Verify the trail").click()
    expect(page.locator("#verified")).to_contain_text("The trail holds")
    expect(page.locator("#audit-rows")).to_contain_text("user.add")

    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{station.address}login")
    page.goto(f"{station.address}admin")
    expect(page).to_have_url(f"{station.address}login?next=/admin")
    assert [text for text in complaints if "422" not in text] == []
    assert page.evaluate("window.violations") == []


def test_a_wrong_password_is_one_line_and_the_link_out_of_the_station_is_refused(page: Page, station: Station) -> None:
    add_user(station, "anna", "quality")
    page.goto(f"{station.address}login?next=//evil.example/")
    log_in(page, "anna", PASSWORD)
    expect(page.locator("#login-problem")).to_contain_text("must be a path of this station")
    page.goto(f"{station.address}login?next=/queue")
    log_in(page, "anna", "wrong " + PASSWORD)
    expect(page.locator("#login-problem")).to_have_text("Name or password is wrong.")
    log_in(page, "anna", PASSWORD)
    expect(page).to_have_url(f"{station.address}queue")
    expect(page.locator("#shell nav a").first).to_be_visible()
    links = page.locator("#shell nav a").all_inner_texts()
    assert "Queue" in links
    assert "Admin" not in links


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_login_fits_its_screen_and_begins_in_its_first_field(
    browser: Browser, station: Station, scheme: str, width: int
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    page.goto(f"{station.address}login")
    expect(page.get_by_label("Name")).to_be_focused()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
