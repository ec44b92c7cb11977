"""The live page, driven in Debian's Chromium: what an operator sees, and that a page that hears nothing never looks green."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from conftest import WATCH_POLICY, Mosquitto, encode, free_port, spot_picture, wait_until
from linegate_edge.settings import StationSettings
from linegate_edge.station import Station

GOOD, BAD = encode(spot_picture(defect=False)), encode(spot_picture(defect=True))
NOTE = "Photographs: CC0"


def start_station(folder: Path, package: Path, http_port: int = 0, mqtt_port: int | None = None) -> Station:
    settings = {
        "station": {"topic": "acme/plant/area/line/station7", "store": str(folder / "store")},
        "model": {"package": str(package), "workers": 1},
        "mqtt": {"port": mqtt_port or free_port()},
        "evidence": {"min_free_mib": 0},
        "http": {"port": http_port},
    }
    station = Station(StationSettings.model_validate(settings), note=NOTE)
    station.start()
    return station


@pytest.fixture
def station(tmp_path: Path, spot_package: Path) -> Iterator[Station]:
    """A station that runs, without a broker."""
    running = start_station(tmp_path, spot_package)
    yield running
    running.stop()


@pytest.fixture
def page(browser: Browser, station: Station, complaints: list[str]) -> Iterator[Page]:
    """The live page, connected."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, locale="en-GB")
    opened = context.new_page()

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    opened.on("console", on_console)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.add_init_script(WATCH_POLICY)
    opened.goto(station.address)
    expect(opened.locator("html")).to_have_attribute("data-link", "live")
    yield opened
    context.close()


def send(station: Station, picture: bytes, serial: str) -> None:
    response = httpx.post(
        f"{station.address}frames", params={"serial": serial}, content=picture, headers={"Content-Type": "image/png"}
    )
    assert response.status_code == 200


def picture_width(page: Page) -> int:
    return int(page.evaluate("document.querySelector('#overlay')?.naturalWidth ?? 0"))


def test_page_without_a_part_waits(page: Page, complaints: list[str]) -> None:
    expect(page.locator("#word")).to_have_text("Waiting")
    expect(page.locator("#parts")).to_have_text("0")
    expect(page.locator("#station-name")).to_have_text("station7")
    expect(page.locator("#note")).to_have_text(NOTE)
    expect(page.locator("#package")).to_contain_text("spots 1.0.0")
    expect(page.locator("#provider")).to_have_text("cpu")
    expect(page.locator("#link-text")).to_have_text("live")
    assert complaints == []


def test_verdicts_arrive_and_change_word_shape_and_picture(page: Page, station: Station, complaints: list[str]) -> None:
    send(station, GOOD, "S-1")
    expect(page.locator("#word")).to_have_text("Pass")
    expect(page.locator("#serial")).to_have_text("S-1")
    expect(page.locator("#sign-icon")).to_have_attribute("href", "#icon-pass")
    expect(page.locator("#caption")).to_contain_text("Part S-1")
    wait_until(lambda: picture_width(page) == 480)

    send(station, BAD, "S-2")
    expect(page.locator("#word")).to_have_text("Fail")
    expect(page.locator("#serial")).to_have_text("S-2")
    expect(page.locator("#sign-icon")).to_have_attribute("href", "#icon-fail")
    expect(page.locator("#reason")).to_contain_text("at or above the threshold")
    expect(page.locator("#caption")).to_contain_text("Part S-2")
    expect(page.locator("#announcement")).to_contain_text("Fail: part S-2")
    expect(page).to_have_title("Fail · S-2 · Linegate")

    expect(page.locator("#parts")).to_have_text("2")
    expect(page.locator("#yield")).to_have_text("50.0 %")
    expect(page.locator("#p50")).to_contain_text(" ms")
    assert page.locator("#recent li").evaluate_all("items => items.map(item => item.dataset.decision)") == ["fail", "pass"]
    assert complaints == []
    assert page.evaluate("window.violations") == []


def test_part_without_a_picture_does_not_keep_the_picture_before(page: Page, station: Station, complaints: list[str]) -> None:
    send(station, GOOD, "S-1")
    wait_until(lambda: picture_width(page) > 0)
    send(station, b"", "S-2")
    expect(page.locator("#word")).to_have_text("Undecided")
    expect(page.locator("#reason")).to_contain_text("has no bytes")
    expect(page.locator("#no-picture")).to_be_visible()
    expect(page.locator("#overlay")).to_have_count(0)
    assert complaints == []


def test_texts_of_senders_are_never_markup(page: Page, station: Station, complaints: list[str]) -> None:
    serial = "<img src=x onerror=alert(1)>"
    send(station, GOOD, serial)
    expect(page.locator("#serial")).to_have_text(serial)
    expect(page.locator("#recent")).to_contain_text(serial)
    assert page.locator("#serial img, #recent img, #caption img").count() == 0
    assert complaints == []


def test_parts_faster_than_the_page_leave_the_last_one_shown(page: Page, station: Station, complaints: list[str]) -> None:
    for number in range(60):
        send(station, GOOD, f"S-{number}")
    expect(page.locator("#parts")).to_have_text("60")
    expect(page.locator("#serial")).to_have_text("S-59")
    expect(page.locator("#caption")).to_contain_text("Part S-59")
    assert page.locator("#recent li").count() == 12
    assert complaints == []


def test_broker_state_is_shown_in_words(browser: Browser, mosquitto: Mosquitto, tmp_path: Path, spot_package: Path) -> None:
    station = start_station(tmp_path, spot_package, mqtt_port=mosquitto.port)
    page = browser.new_context().new_page()
    try:
        page.goto(station.address)
        expect(page.locator("#broker-text")).to_have_text("MQTT connected")
        expect(page.locator("#broker")).to_have_attribute("data-level", "good")
        send(station, GOOD, "S-1")
        expect(page.locator("#broker-text")).to_have_text("MQTT connected, but nobody subscribes")
        expect(page.locator("#broker")).to_have_attribute("data-level", "warn")
        mosquitto.kill()
        expect(page.locator("#broker-text")).to_contain_text(f"127.0.0.1:{mosquitto.port}")
        expect(page.locator("#broker")).to_have_attribute("data-level", "warn")
    finally:
        page.context.close()
        station.stop()


def test_line_stop_is_loud_and_hides_the_green(page: Page, station: Station) -> None:
    send(station, GOOD, "S-1")
    expect(page.locator("#word")).to_have_text("Pass")
    station.live.set_line_stop("store", "the disk is full")
    expect(page.locator("#alarm-stop")).to_be_visible()
    expect(page.locator("#alarm-stop")).to_contain_text("the disk is full")
    expect(page.locator("#alarm-trouble")).to_be_hidden()
    expect(page.locator("#word")).to_have_text("Line stop")
    expect(page.locator("#serial-label")).to_have_text("Last part: Pass")
    station.live.set_line_stop("store", None)
    expect(page.locator("#alarm-stop")).to_be_hidden()
    expect(page.locator("#word")).to_have_text("Pass")


def test_page_that_hears_nothing_says_so_and_recovers(browser: Browser, tmp_path: Path, spot_package: Path) -> None:
    station = start_station(tmp_path, spot_package)
    page = browser.new_context().new_page()
    page.goto(station.address)
    send(station, GOOD, "S-1")
    expect(page.locator("#word")).to_have_text("Pass")
    port = station.http_port
    station.stop()
    expect(page.locator("#word")).to_have_text("No signal", timeout=8_000)
    expect(page.locator("#alarm-lost")).to_be_visible()
    expect(page.locator("html")).to_have_attribute("data-link", "lost")
    expect(page).to_have_title("No signal · Linegate")

    again = start_station(tmp_path / "again", spot_package, port)
    try:
        expect(page.locator("html")).to_have_attribute("data-link", "live", timeout=20_000)
        expect(page.locator("#alarm-lost")).to_be_hidden()
        # The station is a new one: nothing of the old one may be left on the page.
        expect(page.locator("#word")).to_have_text("Waiting")
        expect(page.locator("#overlay")).to_have_count(0)
        expect(page.locator("#recent li")).to_have_count(0)
        expect(page.locator("#serial")).to_have_text("–")
    finally:
        again.stop()
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size_wh", [(1920, 1080), (1180, 820), (820, 1180)])
def test_page_fits_its_screen(browser: Browser, station: Station, scheme: str, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    send(station, BAD, "a serial of a length that nobody would like to read aloud, 0123456789-0123456789")
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if scheme == "dark" else "light"
    )
    page = context.new_page()
    page.goto(station.address)
    expect(page.locator("#word")).to_have_text("Fail")
    wait_until(lambda: picture_width(page) > 0)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    word = page.locator("#word").bounding_box()
    panel = page.locator(".sign").bounding_box()
    assert word is not None
    assert panel is not None
    # From three metres: letters of at least 4 % of the screen's height, inside their panel.
    assert word["height"] >= 0.08 * height
    assert word["x"] >= panel["x"]
    assert word["x"] + word["width"] <= panel["x"] + panel["width"]
    context.close()
