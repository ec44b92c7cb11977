"""The page of quality in Debian's Chromium, over the real API: what it draws, says, and does by keyboard."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException, Response
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

import linegate_edge.review
from conftest import WATCH_POLICY, signed_in, wait_until
from linegate_edge.review.app import _add_error_handlers
from linegate_edge.review.database import ReviewDatabase
from linegate_edge.review.guard import Guard
from linegate_edge.review.quality.routes import add_quality
from linegate_edge.settings import StationSettings
from test_live_page import GOOD, send, start_station

PAGES = Path(linegate_edge.review.__file__).parent / "pages"
TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SESSION = {
    "name": "quinn",
    "role": "quality",
    "csrf": "x",
    "must_change": False,
    "permissions": ["read"],
    "pages": ["live", "queue", "parts", "quality"],
}
OLD, NEW = "tiles@1.0.0", "tiles@1.1.0"


def fill(database: ReviewDatabase, now: datetime) -> None:
    """A fortnight of two packages: one bad shift, one drifting package, and some hundred reviews."""
    random = np.random.default_rng(3)
    tally: list[tuple[Any, ...]] = []
    begin = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=14)
    for quarter in range(int((now - begin).total_seconds() // 900) + 1):
        at = begin + timedelta(minutes=15 * quarter)
        package = OLD if at < now - timedelta(days=5) else NEW
        bad_shift = at.date() == (now - timedelta(days=3)).date() and 14 <= at.hour < 22
        for cause, share in (("crack", 0.012), ("scratch", 0.006), ("pore", 0.003), ("dent", 0.0015), ("stain", 0.0008)):
            count = int(random.poisson(160 * share * (4 if bad_shift and cause == "crack" else 1)))
            if count:
                row = (f"B{quarter // 90}", f"L-{quarter // 300}", "production", 1, "fail", cause, count)
                tally.append((f"{at:%Y-%m-%dT%H:%M}", "tiles", package, *row))
        if random.random() < 0.15:
            row = (f"B{quarter // 90}", f"L-{quarter // 300}", "production", 1, "undecided", "frame_saturated", 2)
            tally.append((f"{at:%Y-%m-%dT%H:%M}", "tiles", package, *row))
        row = (f"B{quarter // 90}", f"L-{quarter // 300}", "production", 1, "pass", "", int(random.integers(140, 170)))
        tally.append((f"{at:%Y-%m-%dT%H:%M}", "tiles", package, *row))
    parts: list[tuple[Any, ...]] = []

    def part(at: datetime, package: str, score: float, queued: str | None, disposition: str | None, cause: str | None) -> None:
        number = len(parts) + 1
        decision = "fail" if score >= 0.5 else "pass"
        moment = f"{at:%Y-%m-%dT%H:%M:%S.000000Z}"
        head = (number, str(number), "S", decision, moment, "production", "tiles", package, "0" * 64)
        parts.append(
            (
                *head,
                None,
                None,
                None,
                cause,
                "above_threshold" if score >= 0.5 else "below_threshold",
                "main",
                score,
                0.5,
                queued,
                disposition,
                None,
                number,
            )
        )

    for package, first, shift in ((OLD, begin, 0.0), (NEW, now - timedelta(days=4), 0.12)):
        for number in range(1000):
            late = number >= 500
            at = first + timedelta(minutes=number) if not late else now - timedelta(minutes=3 * (1000 - number))
            part(at, package, float(random.beta(2, 8) * 0.45 + (shift if late else 0)), None, None, None)
    for number in range(420):
        at, bad = now - timedelta(minutes=20 * (420 - number)), random.random() < 0.75
        score = float(random.normal(0.85, 0.2) if bad else random.normal(0.52, 0.06))
        rejected = score >= 0.5
        disposition = ("confirmed" if bad else "false_reject") if rejected else ("escape" if bad else "confirmed")
        cause = str(random.choice(["crack", "scratch", "pore"])) if rejected or bad else None
        part(at, NEW, score, "fail" if rejected else "close", disposition, cause)
    for number in range(300):
        at = now - timedelta(minutes=15 * number + 5)
        part(
            at,
            NEW,
            float(random.beta(2, 8) * 0.45),
            "audit",
            None if number < 12 else "escape" if number in (40, 90) else "confirmed",
            None,
        )
    with database.change() as db:
        db.executemany(f"INSERT OR REPLACE INTO tally VALUES ({', '.join('?' * 10)})", tally)
        db.executemany(f"INSERT INTO part VALUES ({', '.join('?' * 21)})", parts)


def serve(database: ReviewDatabase) -> tuple[uvicorn.Server, threading.Thread, str]:
    """Serve page and API as a station does, with its policy, for somebody who is logged in."""
    settings = StationSettings.model_validate(
        {
            "station": {"topic": "acme/graz/press/line-1/tiles"},
            "model": {"package": "unused"},
            "review": {"time_zone": "Europe/Berlin", "audit_share": 0.01},
        }
    )
    app = FastAPI()
    app.add_middleware(Guard, host_names=())
    _add_error_handlers(app)
    add_quality(app, database, settings)

    @app.get("/api/v1/session")
    def get_session() -> dict[str, Any]:
        return SESSION

    @app.get("/quality")
    def get_page() -> Response:
        return Response((PAGES / "quality.html").read_bytes(), media_type="text/html")

    @app.get("/assets/{name}")
    def get_asset(name: str) -> Response:
        path = PAGES / name
        if not path.is_file():
            raise HTTPException(404, f"no asset '{name}'")
        return Response(path.read_bytes(), media_type=TYPES[path.suffix])

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    return server, thread, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/quality"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    database = ReviewDatabase(tmp_path_factory.mktemp("filled"))
    fill(database, datetime.now(UTC))
    server, thread, address = serve(database)
    yield address
    server.should_exit = True
    thread.join()
    database.close()


def open_page(browser: Browser, address: str, complaints: list[str], width: int = 1440) -> Page:
    page = browser.new_context(viewport={"width": width, "height": 1000}, locale="en-GB").new_page()

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    page.on("console", on_console)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.add_init_script(WATCH_POLICY)
    page.goto(address)
    expect(page.locator("html")).to_have_attribute("data-ready", "true")
    return page


@pytest.fixture
def page(browser: Browser, address: str, complaints: list[str]) -> Iterator[Page]:
    opened = open_page(browser, address, complaints)
    yield opened
    opened.context.close()


def test_a_station_without_parts_says_so_in_every_block(browser: Browser, tmp_path: Path, complaints: list[str]) -> None:
    database = ReviewDatabase(tmp_path)
    server, thread, address = serve(database)
    page = open_page(browser, address, complaints)
    expect(page.locator("#yield")).to_have_text("–")
    expect(page.locator("#chart .nothing")).to_have_text("No parts in this time.")
    expect(page.locator("#pareto .nothing")).to_have_text("No rejects in this time.")
    expect(page.locator("#threshold .nothing")).to_have_text("No part of this package was reviewed yet.")
    expect(page.locator("#slider")).to_be_disabled()
    expect(page.locator("#drift-table")).to_have_text("No package has judged parts yet.")
    assert complaints == []
    page.context.close()
    server.should_exit = True
    thread.join()
    database.close()


def test_the_numbers_on_top_and_every_drawing_are_there(page: Page, complaints: list[str]) -> None:
    expect(page.locator("#yield")).to_have_text(re.compile(r"^9\d\.\d\s%$"))
    expect(page.locator("#false-rejects-more")).to_contain_text("reviewed;")
    expect(page.locator("#escapes")).to_have_text("0.69\u00a0%")
    expect(page.locator("#escapes-more")).to_contain_text("of 288 audited; 0.08\u00a0% to 2.5\u00a0%")
    assert page.locator("#chart .point").count() >= 18
    assert page.locator("#chart .point[data-signal=outside]").count() >= 1
    assert page.locator("#pareto .point").count() == 6
    assert page.locator("#reviews .point").count() == 3
    levels = page.locator("#drift .level").all_text_contents()
    assert levels == ["drift", "stable"]
    assert "Kolmogorov–Smirnov" in str(page.locator("#drift caption").text_content())
    assert complaints == []
    assert page.evaluate("window.violations") == []


def test_bars_and_points_are_walked_by_keyboard_and_say_what_they_are(page: Page) -> None:
    for block in ("chart", "pareto", "reviews"):
        marks = page.locator(f"#{block} .point")
        assert page.locator(f'#{block} .point[tabindex="0"]').count() == 1, "one stop of Tab"
        marks.first.focus()
        page.keyboard.press("ArrowRight")
        expect(marks.nth(1)).to_be_focused()
        page.keyboard.press("End")
        expect(marks.last).to_be_focused()
        assert all(label for label in marks.evaluate_all("marks => marks.map((mark) => mark.getAttribute('aria-label'))"))
    page.locator("#pareto .point").first.focus()
    expect(page.locator("#pareto-readout")).to_contain_text("crack: ")


def test_the_slider_counts_without_asking_the_station(page: Page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    expect(page.locator("#at-words")).to_have_text("At the present threshold, 0.5")
    before = int(str(page.locator("#at-escapes").text_content()))
    slider = page.locator("#slider")
    slider.focus()
    page.keyboard.press("End")
    expect(page.locator("#at-false-rejects")).to_have_text("0")
    everything = int(str(page.locator("#at-escapes").text_content()))
    assert everything > before
    expect(page.locator("#at-escapes-more")).to_have_text(f"+{everything - before}")
    page.keyboard.press("Home")
    expect(page.locator("#at-escapes")).to_have_text("0")
    assert "0 escapes" in str(slider.get_attribute("aria-valuetext"))
    page.locator("#reset").click()
    expect(page.locator("#at-escapes")).to_have_text(str(before))
    assert asked == []


def test_what_is_chosen_is_asked_for_and_stands_in_the_address(page: Page, browser: Browser, complaints: list[str]) -> None:
    page.locator("#by").select_option("shift")
    expect(page.locator("#pareto .point")).to_have_count(3)
    page.locator("#days").select_option("1")
    page.locator("#package").select_option(NEW)
    page.wait_for_url(re.compile(r"days=1.*package=tiles%401\.1\.0.*by=shift"))
    again = open_page(browser, page.url, complaints)
    assert again.locator("#by").input_value() == "shift"
    assert again.locator("#package").input_value() == NEW
    again.context.close()
    assert complaints == []


def test_every_drawing_is_there_as_a_table_too(page: Page) -> None:
    for block in ("chart", "pareto", "threshold"):
        page.locator(f"#{block} summary").click()
        rows = page.locator(f"#{block}-table tbody tr")
        assert rows.count() >= 3
        assert page.locator(f"#{block}-table caption").count() == 1
        assert page.locator(f"#{block}-table th[scope=col]").count() >= 5
    assert page.locator("#chart-table tbody tr").count() == page.locator("#chart .point").count()


def test_an_error_of_the_station_is_shown_in_its_block_and_the_others_go_on(page: Page) -> None:
    answer = {"status": 503, "json": {"error": "the reviews cannot be read: look at the disk"}}
    page.route("**/quality/pareto?*", lambda route: route.fulfill(**answer))
    page.get_by_role("button", name="Refresh").click()
    expect(page.locator("#pareto .error")).to_have_text("the reviews cannot be read: look at the disk")
    assert page.locator("#chart .point").count() >= 18


def test_names_roles_and_contrast_hold_for_those_who_do_not_see_it(page: Page) -> None:
    assert page.locator("main").count() == page.locator("h1").count() == 1
    for field in page.locator("select, input, button").all():
        name = field.evaluate(
            "field => field.labels?.[0]?.textContent || field.getAttribute('aria-label') || field.textContent"
        )
        assert str(name).strip()
    for block in page.locator("section").all():
        title = block.get_attribute("aria-labelledby")
        assert page.locator(f"#{title}").text_content()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((item) => item.id)")
    assert len(ids) == len(set(ids))
    for svg in page.locator("main svg").all():
        assert svg.get_attribute("role") in ("list", "img")
        assert svg.get_attribute("aria-label")
    assert page.locator("main [style]").count() == 0


@pytest.mark.parametrize("width", [1920, 1180, 820, 390])
def test_nothing_is_wider_than_the_screen(browser: Browser, address: str, complaints: list[str], width: int) -> None:
    page = open_page(browser, address, complaints, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert complaints == []
    page.context.close()


def test_a_station_serves_its_own_quality(tmp_path: Path, spot_package: Path) -> None:
    station = start_station(tmp_path, spot_package)
    try:
        send(station, GOOD, "S-1")
        client = signed_in(station)
        wait_until(lambda: client.get("/api/v1/quality/yield").json()["now"]["parts"] == 1)
        assert "Quality" in client.get("/quality").text
        assert client.get("/api/v1/quality/threshold").json()["packages"] == ["spots@1.0.0"]
        assert "/api/v1/quality/chart" in client.get("/openapi.json").json()["paths"]
    finally:
        station.stop()
