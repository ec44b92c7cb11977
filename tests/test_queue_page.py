"""The review queue and the pages of parts in Chromium: by keyboard, with drawing, in a grid, two people at once."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect

from conftest import SIZE, WATCH_POLICY, MakeStation, encode, free_port, open_session, signed_in, submit, wait_until
from linegate_edge.review.access.client import COOKIE
from linegate_edge.review.audit import verify
from linegate_edge.station import Station

SETTINGS = '[evidence]\nmin_free_mib = 0\npassed_share = 1.0\n[review]\nclasses = ["scratch", "dent", "stain"]\n'
OpenPage = Callable[..., Page]


@pytest.fixture
def station(make_station: MakeStation) -> Station:
    """A station that judged 60 parts, six of which fail."""
    made = make_station(free_port(), more=SETTINGS)
    for number in range(60):  # one after the other: the queue goes by the order of the verdicts
        submit(made, 1, start=number)[0].result(30)
    made.reviews.index.catch_up()
    return made


@pytest.fixture
def open_page(browser: Browser, station: Station, complaints: list[str]) -> Iterator[OpenPage]:
    """Open a page as somebody who is logged in."""
    contexts = []

    def open_it(path: str, name: str = "anna", role: str = "quality", refusals: bool = False) -> Page:
        context = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-GB")
        contexts.append(context)
        page = context.new_page()
        secret = open_session(station, name, role, page.evaluate("navigator.userAgent")).secret
        cookie = {"name": COOKIE, "value": secret, "url": station.address}
        context.add_cookies([{**cookie, "httpOnly": True, "sameSite": "Strict"}])  # type: ignore[list-item]

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and not (refusals and "409" in message.text):
                complaints.append(message.text)

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(WATCH_POLICY)
        page.goto(station.address.rstrip("/") + path)
        return page

    yield open_it
    for context in contexts:
        context.close()


def shown(page: Page, serial: str) -> None:
    """Wait until the part of this serial is drawn."""
    expect(page.locator("#serial")).to_have_text(serial)
    expect(page.locator("#desk")).not_to_have_attribute("aria-busy", "true")


def dispositions(station: Station) -> dict[str, tuple[str | None, str | None]]:
    with station.reviews.database.look() as db:
        rows = db.execute("SELECT serial, disposition, decided_class FROM part WHERE decision_number IS NOT NULL").fetchall()
    return {str(serial): (disposition, decided) for serial, disposition, decided in rows}  # type: ignore[misc]


def decided(station: Station, count: int) -> None:
    wait_until(lambda: len(dispositions(station)) == count, what=f"{count} decisions")


def test_a_queue_is_cleared_by_keyboard(open_page: OpenPage, station: Station, complaints: list[str]) -> None:
    page = open_page("/queue")
    shown(page, "part-00000")
    for key, following in (
        ("c", "part-00010"),
        ("f", "part-00020"),
        ("2", "part-00030"),
        ("l", "part-00040"),
        ("c", "part-00050"),
    ):
        page.keyboard.press(key)
        shown(page, following)
    page.keyboard.press("1")
    expect(page.locator("#empty-title")).to_have_text("Nothing waits.")
    expect(page.locator("#waiting")).to_have_text("0")
    decided(station, 6)
    assert dispositions(station) == {
        "part-00000": ("confirmed", None),
        "part-00010": ("false_reject", None),
        "part-00020": ("confirmed", "dent"),
        "part-00030": ("limit_sample", None),
        "part-00040": ("confirmed", None),
        "part-00050": ("confirmed", "scratch"),
    }
    assert {line.actor for line in station.reviews.trail.lines() if line.action == "decide"} == {"anna"}
    assert verify(station.settings.station.store).problem is None
    assert complaints == []
    assert page.evaluate("window.violations") == []


def test_undo_brings_the_part_back(open_page: OpenPage, station: Station) -> None:
    page = open_page("/queue")
    shown(page, "part-00000")
    page.keyboard.press("f")
    shown(page, "part-00010")
    page.keyboard.press("u")
    shown(page, "part-00000")
    decided(station, 1)
    assert dispositions(station) == {"part-00000": (None, None)}
    page.keyboard.press("c")
    shown(page, "part-00010")
    wait_until(lambda: dispositions(station)["part-00000"] == ("confirmed", None))


def test_next_and_previous_decide_nothing(open_page: OpenPage, station: Station) -> None:
    page = open_page("/queue")
    shown(page, "part-00000")
    page.keyboard.press("ArrowRight")
    shown(page, "part-00010")
    page.keyboard.press("p")
    shown(page, "part-00000")
    assert dispositions(station) == {}


def test_the_next_parts_are_there_before_they_are_asked_for(open_page: OpenPage) -> None:
    page = open_page("/queue")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    shown(page, "part-00000")
    fetched = "performance.getEntriesByType('resource').filter((one) => one.name.includes('/evidence/')).length"
    wait_until(lambda: page.evaluate(fetched) >= 5, what="the pictures of the parts ahead")
    asked.clear()
    page.keyboard.press("ArrowRight")
    shown(page, "part-00010")
    pictures = [url for url in asked if "/evidence/" in url]
    drawn = page.evaluate("document.querySelector('#picture').dataset.verdictId")
    assert drawn
    assert len(pictures) <= 2, "only parts further on are fetched, and the reference"


def drag(page: Page, begin: tuple[float, float], end: tuple[float, float]) -> None:
    box = page.locator("#picture").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + begin[0] * box["width"], box["y"] + begin[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=6)
    page.mouse.up()


def on_picture(page: Page, share: float) -> float:
    """Return where a share of the canvas' height lies on the picture, which is enlarged eight times and in the middle."""
    box = page.locator("#picture").bounding_box()
    assert box is not None
    enlarged = 8 * SIZE
    return (share * box["height"] - (box["height"] - enlarged) / 2) / enlarged


def last_decision(station: Station, serial: str) -> dict[str, Any]:
    with signed_in(station) as client:
        verdict_id = client.get("/api/v1/parts", params={"serial": serial}).json()["items"][0]["verdict_id"]
        part = client.get(f"/api/v1/parts/{verdict_id}").json()
        decision: dict[str, Any] = part["decisions"][-1]
        if decision["masks"]:
            params = {"view": decision["masks"][0], "decision": decision["number"]}
            png = client.get(f"/api/v1/parts/{verdict_id}/mask.png", params=params).content
            decision["pixels"] = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
        decision["size_wh"] = part["looks"][0]["size_wh"]
    return decision


def test_a_box_and_a_mask_are_drawn_and_kept(open_page: OpenPage, station: Station) -> None:
    page = open_page("/queue")
    shown(page, "part-00000")
    page.keyboard.press("b")
    page.keyboard.press("3")  # while drawing a digit names what is drawn
    drag(page, (0.45, 0.45), (0.55, 0.6))
    expect(page.locator("#picture")).to_have_attribute("data-drawn", "1")
    page.keyboard.press("m")
    drag(page, (0.4, 0.3), (0.6, 0.3))
    expect(page.locator("#picture")).to_have_attribute("data-drawn", "2")
    page.keyboard.press("c")
    shown(page, "part-00010")
    decided(station, 1)
    decision = last_decision(station, "part-00000")
    width, height = decision["size_wh"]
    (region,) = decision["regions"]
    assert region["defect_class"] == "stain"
    left, top, right, bottom = region["box_xyxy"]
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert (top / height, bottom / height) == pytest.approx((on_picture(page, 0.45), on_picture(page, 0.6)), abs=0.03)
    assert decision["pixels"].shape == (height, width)
    rows = np.flatnonzero(decision["pixels"].any(axis=1))
    assert rows.mean() / height == pytest.approx(on_picture(page, 0.3), abs=0.03)


def test_drawing_is_undone_stroke_by_stroke(open_page: OpenPage, station: Station) -> None:
    page = open_page("/queue")
    shown(page, "part-00000")
    page.keyboard.press("b")
    drag(page, (0.45, 0.45), (0.5, 0.5))
    page.keyboard.press("m")
    drag(page, (0.45, 0.55), (0.55, 0.55))
    expect(page.locator("#picture")).to_have_attribute("data-drawn", "2")
    page.keyboard.press("u")
    expect(page.locator("#picture")).to_have_attribute("data-drawn", "1")
    page.keyboard.press("u")
    expect(page.locator("#picture")).to_have_attribute("data-drawn", "0")
    assert dispositions(station) == {}


def test_a_picture_of_twenty_megapixels_is_zoomed_and_drawn_upon(
    browser: Browser, station: Station, open_page: OpenPage, complaints: list[str]
) -> None:
    generator = np.random.default_rng(0)
    picture = cv2.resize(generator.integers(90, 140, (456, 609), np.uint8), (5472, 3648), interpolation=cv2.INTER_LINEAR)
    picture[1000:1400, 2000:2600] = 250
    with signed_in(station) as client:
        headers = {"Content-Type": "image/png"}
        answer = client.post("/frames", params={"serial": "large"}, content=encode(picture), headers=headers)
        assert answer.status_code == 200, answer.text
        assert answer.json()["decision"] == "fail", answer.text
    station.reviews.index.catch_up()
    page = open_page("/queue?order=newest")
    shown(page, "large")
    for _ in range(4):
        page.keyboard.press("+")
    page.keyboard.press("b")
    drag(page, (0.4, 0.4), (0.6, 0.6))
    page.keyboard.press("m")
    drag(page, (0.45, 0.5), (0.55, 0.5))
    page.keyboard.press("c")
    wait_until(lambda: "large" in dispositions(station), 30, "the decision on the large picture")
    decision = last_decision(station, "large")
    assert decision["size_wh"] == [5472, 3648]
    assert decision["pixels"].shape == (3648, 5472)
    left, _, right, _ = decision["regions"][0]["box_xyxy"]
    assert 200 < right - left < 2000, "zoomed in five times, a fifth of the canvas is a small part of the picture"
    assert complaints == []


def test_many_are_decided_together_in_the_grid(open_page: OpenPage, station: Station) -> None:
    page = open_page("/queue")
    shown(page, "part-00000")
    page.keyboard.press("g")
    expect(page.locator("#tiles li")).to_have_count(6)
    page.keyboard.press(" ")
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    expect(page.locator('#tiles li[aria-selected="true"]')).to_have_count(2)
    page.keyboard.press("f")
    expect(page.locator("#tiles li")).to_have_count(4)
    page.keyboard.press("a")
    page.keyboard.press("c")
    expect(page.locator("#empty")).to_be_visible()
    decided(station, 6)
    assert sorted(str(what) for what, _ in dispositions(station).values()) == ["confirmed"] * 4 + ["false_reject"] * 2


def test_two_people_work_one_queue_without_meeting(open_page: OpenPage, station: Station) -> None:
    """The second one sees only what the first has not borrowed, and takes over when the first goes."""
    anna = open_page("/queue")
    shown(anna, "part-00000")
    bert = open_page("/queue", "bert")
    expect(bert.locator("#empty-title")).to_have_text("Others are at it.")
    anna.keyboard.press("c")
    decided(station, 1)
    anna.goto(f"{station.address}parts")
    shown(bert, "part-00010")


def test_a_part_that_somebody_else_decided_is_told(open_page: OpenPage, station: Station) -> None:
    page = open_page("/queue", refusals=True)
    shown(page, "part-00000")
    with signed_in(station, "bert") as client:
        verdict_id = client.get("/api/v1/parts", params={"serial": "part-00000"}).json()["items"][0]["verdict_id"]
        client.post(f"/api/v1/parts/{verdict_id}/decision", json={"disposition": "false_reject"})
    page.keyboard.press("c")
    expect(page.get_by_role("alert")).to_contain_text("bert has decided this part already")
    assert dispositions(station) == {"part-00000": ("false_reject", None)}


def test_a_picture_that_cannot_be_drawn_is_said_and_can_be_decided(open_page: OpenPage, station: Station) -> None:
    for file in (station.settings.station.store / "evidence").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])
    page = open_page("/queue")
    shown(page, "part-00000")
    page.keyboard.press("c")
    shown(page, "part-00010")
    decided(station, 1)


def test_a_disk_that_is_full_brings_the_part_back(open_page: OpenPage, station: Station) -> None:
    page = open_page("/queue")
    shown(page, "part-00000")
    page.route("**/decision", lambda route: route.fulfill(status=503, json={"error": "database or disk is full: free some"}))
    page.keyboard.press("c")
    expect(page.get_by_role("alert")).to_contain_text("disk is full")
    shown(page, "part-00000")
    page.unroute("**/decision")
    page.keyboard.press("c")
    decided(station, 1)


def test_what_was_drawn_for_a_refused_decision_is_there_again(open_page: OpenPage, station: Station) -> None:
    page = open_page("/queue")
    shown(page, "part-00000")
    page.keyboard.press("b")
    drag(page, (0.45, 0.45), (0.55, 0.6))
    page.keyboard.press("m")
    drag(page, (0.4, 0.3), (0.6, 0.3))
    page.keyboard.press("m")
    page.get_by_label("Comment").fill("deep")
    page.keyboard.press("Escape")
    page.route("**/decision", lambda route: route.fulfill(status=503, json={"error": "database or disk is full: free some"}))
    page.keyboard.press("c")
    expect(page.get_by_role("alert")).to_contain_text("disk is full")
    shown(page, "part-00000")
    expect(page.get_by_label("Comment")).to_have_value("deep")
    page.unroute("**/decision")
    page.locator("#picture").focus()
    page.keyboard.press("c")
    decided(station, 1)
    decision = last_decision(station, "part-00000")
    assert (len(decision["regions"]), decision["masks"], decision["comment"]) == (1, ["main"], "deep")


def test_an_operator_sees_parts_and_decides_none(open_page: OpenPage, station: Station) -> None:
    page = open_page("/parts", "olaf", "operator")
    expect(page.locator("#rows tr").first).to_be_visible()
    assert "/queue" not in [link.get_attribute("href") for link in page.locator("#shell a").all()]


def test_a_serial_is_found_and_its_evidence_taken_away(
    open_page: OpenPage, station: Station, tmp_path: Path, complaints: list[str]
) -> None:
    page = open_page("/parts")
    page.get_by_label("Serial").fill("part-00020")
    page.keyboard.press("Enter")
    expect(page.locator("#rows tr")).to_have_count(1)
    page.get_by_role("link", name="part-00020").click()
    expect(page.locator("h1")).to_have_text("part-00020")
    expect(page.locator("#word")).to_have_text("Failed")
    expect(page.locator("#history li")).to_have_count(1)
    with page.expect_download() as begun:
        page.get_by_role("link", name="Evidence").click()
    target = tmp_path / "evidence.zip"
    begun.value.save_as(target)
    archive = zipfile.ZipFile(io.BytesIO(target.read_bytes()))
    manifest = json.loads(archive.read("manifest.json"))
    assert (manifest["serial"], manifest["made_by"], manifest["missing"]) == ("part-00020", "anna", [])
    assert complaints == []
    assert page.evaluate("window.violations") == []


def test_what_was_asked_for_stands_in_the_address(open_page: OpenPage) -> None:
    page = open_page("/parts")
    page.get_by_label("Verdict").select_option("fail")
    expect(page.locator("#rows tr")).to_have_count(6)
    page.reload()
    expect(page.locator("#rows tr")).to_have_count(6)
    expect(page.get_by_label("Verdict")).to_have_value("fail")


def test_an_answer_that_comes_after_a_newer_one_is_dropped(open_page: OpenPage) -> None:
    page = open_page("/parts")
    expect(page.locator("#rows tr")).to_have_count(50)
    late: list[Route] = []
    page.route("**/api/v1/parts?decision=fail", lambda route: late.append(route))
    page.get_by_label("Verdict").select_option("fail")
    wait_until(lambda: page.evaluate("true") and late, what="the first question")
    page.get_by_label("Verdict").select_option("undecided")
    expect(page.locator("#found")).to_have_text("No part is like this.")
    with page.expect_response("**/api/v1/parts?decision=fail") as answered:
        late[0].continue_()
    answered.value.finished()
    page.wait_for_timeout(300)
    expect(page.locator("#rows tr")).to_have_count(0)


def test_the_pages_fit_a_tablet_and_name_their_controls(open_page: OpenPage) -> None:
    for path in ("/queue", "/parts"):
        page = open_page(path)
        page.set_viewport_size({"width": 820, "height": 1180})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), f"{path} scrolls sideways"
        unnamed = page.evaluate(
            """[...document.querySelectorAll("button, select, input, textarea, canvas, a[href]")]
               .filter((node) => node.offsetParent !== null)
               .filter((node) => !(node.innerText?.trim() || node.ariaLabel || node.getAttribute("aria-label") ||
                                   node.labels?.length || node.title || node.querySelector("img[alt]")))
               .map((node) => node.outerHTML.slice(0, 120))"""
        )
        assert unnamed == []
