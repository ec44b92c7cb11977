"""The whole story on real photographs, in Chromium: from a cleared queue to a promoted model, and back.

Photographs are solar cells of the package elpv-dataset, judged by the package that ships. One thing is changed on its way: the
training is told to show fewer images than it would, for nobody waits for a good model here.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect

from conftest import PASSWORD, WATCH_POLICY, add_user, free_port, wait_until
from linegate.images import read_image
from linegate.package import ModelPackage
from linegate.stages import Frame, Part
from linegate_edge.demo import Photograph, demo_package, find_photographs
from linegate_edge.records import Capture
from linegate_edge.review.audit import verify
from linegate_edge.settings import load_station
from linegate_edge.station import Station

ALONG_THE_LINE = 70
IMAGES_SHOWN = 240


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    """Cells that the shipped package never saw, good and defective in turn."""
    return find_photographs(ModelPackage.load(demo_package()))


@pytest.fixture
def station(tmp_path: Path, photographs: list[Photograph]) -> Iterator[Station]:
    """A station of solar cells, with the photographs that its first package is taken to be made of."""
    for number, photo in enumerate(photographs[ALONG_THE_LINE : ALONG_THE_LINE + 180]):
        subset = "train" if number % 3 else "test"
        if photo.is_defective and subset == "train":
            continue
        folder = tmp_path / "base" / subset / ("defect" if photo.is_defective else "good")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo.path, folder)
    settings = tmp_path / "STATION.toml"
    settings.write_text(
        f'[station]\ntopic = "acme/plant/area/line/cells"\n[model]\npackage = "{demo_package()}"\n'
        f"[mqtt]\nport = {free_port()}\n[http]\nport = 0\n[evidence]\nmin_free_mib = 0\npassed_share = 1.0\n"
        '[review]\nbase = "base"\nclasses = ["crack", "dark area", "finger"]\nshadow_share = 1.0\n'
    )
    made = Station(load_station(settings))
    made.start()
    for name, role in (("anna", "quality"), ("max", "ml")):
        add_user(made, name, role)
    yield made
    made.stop()


def judge(station: Station, photographs: list[Photograph], start: int, count: int) -> list[str]:
    """Have photographs judged, and return the digests of the packages that judged them."""
    digests = []
    for number in range(start, start + count):
        photo = photographs[number]
        image, pixel_format, media_type, data = read_image(photo.path)
        frame = Frame(image, pixel_format, photo.serial, "cam", "main", number, datetime.now(UTC), data, media_type)
        recorded = station.line.submit(Capture(Part(f"cell-{number:04d}", "test", batch="B-7"), frame)).result(30)
        digests.append(recorded.message["provenance"]["package_digest"])
    station.reviews.index.catch_up()
    return digests


@pytest.fixture
def log_in(browser: Browser, station: Station, complaints: list[str]) -> Iterator[Callable[..., Page]]:
    """Open a page and log in there, as a person does."""
    contexts = []

    def open_it(name: str, path: str) -> Page:
        context = browser.new_context(viewport={"width": 1440, "height": 900}, locale="en-GB")
        contexts.append(context)
        page = context.new_page()

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                complaints.append(message.text)

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(WATCH_POLICY)
        page.set_default_timeout(20_000)
        page.goto(station.address.rstrip("/") + path)
        page.wait_for_url(re.compile(r"/login\?next="))
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password", exact=True).fill(PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"**{path}")
        expect(page.locator("#logout")).to_be_visible()
        return page

    yield open_it
    for context in contexts:
        context.close()


def clear_queue(page: Page, truth: dict[str, bool]) -> int:
    """Decide all that waits as somebody who knows the cells, by keyboard, and draw a box on the first defect."""
    decided, drawn = 0, False
    while True:
        wait_until(lambda: page.locator("#serial").inner_text() != "" or page.locator("#empty").is_visible())
        if page.locator("#empty").is_visible():
            return decided
        expect(page.locator("#desk")).not_to_have_attribute("aria-busy", "true")
        serial = page.locator("#serial").inner_text()
        defective = truth[serial]
        if defective and not drawn:
            page.keyboard.press("b")
            box = page.locator("#picture").bounding_box()
            assert box is not None
            page.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.4)
            page.mouse.down()
            page.mouse.move(box["x"] + box["width"] * 0.55, box["y"] + box["height"] * 0.6, steps=4)
            page.mouse.up()
            page.keyboard.press("b")
            drawn = True
        failed = page.locator("#verdict").get_attribute("data-decision") != "pass"
        page.keyboard.press("1" if defective else ("f" if failed else "c"))
        decided += 1
        wait_until(lambda before=serial: page.locator("#empty").is_visible() or page.locator("#serial").inner_text() != before)


@pytest.mark.timeout(900)
def test_from_the_queue_to_a_promoted_model_and_back(
    station: Station, photographs: list[Photograph], log_in: Callable[..., Page], tmp_path: Path, complaints: list[str]
) -> None:
    champion = station.book.inspectors[0].package.digest
    assert set(judge(station, photographs, 0, ALONG_THE_LINE)) == {champion}
    truth = {f"cell-{number:04d}": photo.is_defective for number, photo in enumerate(photographs)}

    # The quality engineer logs in, clears the queue by keyboard, and draws a region.
    anna = log_in("anna", "/queue")
    decided = clear_queue(anna, truth)
    wait_until(lambda: station.reviews.trail.head()[0] >= decided, 30)
    assert decided >= 30
    with station.reviews.database.look() as db:
        regions = [json.loads(str(row[0])) for row in db.execute("SELECT regions FROM decision WHERE regions <> '[]'")]
    assert len(regions) == 1

    # She finds a serial, and takes its evidence away.
    anna.goto(f"{station.address}parts?serial=cell-0001")
    anna.get_by_role("link", name="cell-0001").click()
    expect(anna.locator("h1")).to_have_text("cell-0001")
    with anna.expect_download() as begun:
        anna.get_by_role("link", name="Evidence").click()
    begun.value.save_as(tmp_path / "evidence.zip")
    archive = zipfile.ZipFile(io.BytesIO((tmp_path / "evidence.zip").read_bytes()))
    assert json.loads(archive.read("message.json"))["part"]["serial"] == "cell-0001"

    # She reads the Pareto.
    anna.goto(f"{station.address}quality")
    expect(anna.get_by_role("heading", name="Where rejects come from")).to_be_visible()
    expect(anna.locator("#pareto")).to_contain_text("rejects")

    # The ML engineer freezes the reviews, trains, and looks at the comparison.
    maximilian = log_in("max", "/models")
    maximilian.get_by_role("button", name="Freeze reviews").click()
    maximilian.locator("#ask-yes").click()
    expect(maximilian.locator("#datasets")).to_contain_text("reviews v1")

    def fewer(route: Route) -> None:
        body = {**(route.request.post_data_json or {}), "options": {"images_shown": IMAGES_SHOWN, "seed": 1}}
        route.continue_(post_data=json.dumps(body))

    maximilian.route("**/api/v1/training", lambda route: fewer(route) if route.request.method == "POST" else route.continue_())
    maximilian.get_by_role("button", name="Train a candidate").click()
    maximilian.locator("#ask-yes").click()
    expect(maximilian.locator(".run").first).to_contain_text("Done", timeout=600_000)
    maximilian.get_by_role("button", name="Put the candidate on the shelf").click()
    wait_until(lambda: set(station.models.register.registered()) - {champion}, 60, "the candidate on the shelf")
    (digest,) = set(station.models.register.registered()) - {champion}
    card = maximilian.locator(f"#model-{digest[:12]}")
    expect(card.locator("tbody tr").filter(has_text="Escapes").first).to_contain_text("of")
    go = card.locator(".gate").first.inner_text() == "Gate: go"

    # It judges in the shadow first, and nothing of it reaches a verdict.
    card.get_by_role("button", name="Shadow …").click()
    maximilian.locator("#ask-yes").click()
    expect(card.get_by_role("button", name="Shadow off")).to_be_visible()
    assert set(judge(station, photographs, ALONG_THE_LINE, 6)) == {champion}
    with station.reviews.database.look() as db:
        wait_until(lambda: (db.execute("SELECT count(*) FROM shadow").fetchone() or (0,))[0], 180, "verdicts in the shadow")

    # The quality engineer approves and promotes; the next part is judged by it.
    anna.goto(f"{station.address}models")
    card = anna.locator(f"#model-{digest[:12]}")
    card.get_by_role("button", name="Approve").click()
    anna.locator("#ask-yes").click()
    expect(card.locator(".approvals")).to_contain_text("anna")
    card.get_by_role("button", name="Promote").click()
    if not go:
        anna.locator("#ask-reason").fill("a short training, to see the way through")
    anna.locator("#ask-yes").click()
    expect(anna.locator(".view")).to_contain_text(digest[:12])
    assert set(judge(station, photographs, ALONG_THE_LINE + 6, 3)) == {digest}

    # And back.
    anna.get_by_role("button", name="Roll back").click()
    anna.locator("#ask-yes").click()
    expect(anna.locator(".view")).to_contain_text(champion[:12])
    assert set(judge(station, photographs, ALONG_THE_LINE + 9, 3)) == {champion}

    # The trail tells all of it, and holds.
    trail = {(line.actor, line.action) for line in station.reviews.trail.lines(limit=1000)}
    assert {("anna", "login"), ("anna", "decide"), ("anna", "download evidence"), ("max", "dataset.make")} <= trail
    assert {("anna", "model.promote"), ("anna", "model.roll_back")} <= trail
    assert verify(station.settings.station.store).problem is None
    assert complaints == []
    for page in (anna, maximilian):
        assert page.evaluate("window.violations") == []
