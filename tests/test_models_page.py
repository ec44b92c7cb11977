"""The models page, driven in Debian's Chromium: what people see of candidates, and that each change asks first."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect

from conftest import AGENT, COOKIE, WATCH_POLICY, MakeStation, encode, signed_in, spot_picture, submit, wait_until
from linegate.dataset_version import Conflict, Counts
from linegate_edge.station import Station
from models_world import ANNA, BEN, MIA, NO_BROKER, write_run, write_version
from test_training_runs import SCRIPT

LIMITS = "[evidence]\nmin_free_mib = 0\n[review]\nshadow_share = 1.0\n"
OpenPage = Callable[..., Page]


@pytest.fixture
def station(make_station: MakeStation) -> Station:
    return make_station(NO_BROKER, more=LIMITS)


def bring(station: Station, folder: Path, *, threshold: float, go: bool = True, name: str = "spots") -> str:
    champion = station.book.recipes["default"].views["main"].inspector.package
    write_run(folder, champion, threshold=threshold, go=go, name=name)
    picture = spot_picture(defect=True, size_wh=(320, 240))
    (folder / "differences" / "0001-crack.jpg").write_bytes(encode(picture, "JPEG"))
    return station.models.register.bring(MIA, folder, trained_by="mia").digest


@pytest.fixture
def open_page(browser: Browser, station: Station, complaints: list[str]) -> Iterator[OpenPage]:
    """Open the page as somebody of a role."""
    contexts = []

    def open_it(role: str = "ml", **options: object) -> Page:
        context = browser.new_context(
            **{"viewport": {"width": 1440, "height": 1000}, "locale": "en-GB", "user_agent": AGENT, **options}
        )  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        with signed_in(station, f"a-{role}", role) as client:
            secret = client.cookies[COOKIE]
        context.add_cookies([{"name": COOKIE, "value": secret, "url": station.address, "httpOnly": True, "sameSite": "Strict"}])

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and "409" not in message.text:
                complaints.append(message.text)

        page.on("console", on_console)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script(WATCH_POLICY)
        page.goto(f"{station.address}models")
        expect(page.locator("html")).to_have_attribute("data-ready", "true")
        return page

    yield open_it
    for context in contexts:
        context.close()


def test_a_station_without_candidates_says_what_judges_and_what_to_do(open_page: OpenPage, complaints: list[str]) -> None:
    page = open_page()
    expect(page.locator(".view")).to_contain_text("default / main")
    expect(page.locator(".view")).to_contain_text("spots 1.0.0")
    expect(page.locator("#candidates")).to_contain_text("No candidates yet")
    expect(page.locator("#runs")).to_contain_text("Nothing was trained here yet")
    expect(page.locator("#promotions")).to_contain_text("Nothing was promoted here yet")
    assert page.evaluate("window.violations") == []
    assert complaints == []


def test_a_candidate_is_shown_beside_the_champion(station: Station, tmp_path: Path, open_page: OpenPage) -> None:
    digest = bring(station, tmp_path / "run", threshold=0.5)
    page = open_page()
    card = page.locator(f"#model-{digest[:12]}")
    expect(card.locator(".gate")).to_have_text("Gate: go")
    escapes = card.locator("tbody tr").filter(has_text="Escapes")
    expect(escapes.locator("td").nth(0)).to_contain_text("4 of 40")
    expect(escapes.locator("td").nth(1)).to_contain_text("2 of 40")
    expect(escapes.locator(".p")).to_have_text("0.625")
    expect(card.locator("tbody tr").filter(has_text="Speed")).to_contain_text("12.4 ms")
    card.get_by_role("button", name="Reviewed last").click()
    expect(escapes.locator("td").nth(0)).to_contain_text("8 of 40")
    card.get_by_text("Parts on which they differ").click()
    card.locator(".difference").click()
    expect(page.locator("#look")).to_be_visible()
    expect(page.locator("#look-caption")).to_contain_text("escape caught")
    assert page.locator("#look-picture").evaluate("image => image.decode().then(() => image.naturalWidth)") == 320
    page.keyboard.press("Escape")
    expect(page.locator("#look")).to_be_hidden()


def test_approve_promote_and_roll_back_each_ask_first(station: Station, tmp_path: Path, open_page: OpenPage) -> None:
    digest = bring(station, tmp_path / "run", threshold=0.5)
    page = open_page()
    card = page.locator(f"#model-{digest[:12]}")
    card.get_by_role("button", name="Promote").click()
    page.locator("#ask-yes").click()
    expect(page.locator("#ask-refused")).to_contain_text("needs one person to approve it, and has 0")
    page.keyboard.press("Escape")
    card.get_by_role("button", name="Approve").click()
    page.locator("#ask-reason").fill("all differences looked at")
    page.locator("#ask-yes").click()
    expect(card.locator(".approvals")).to_contain_text("all differences looked at")
    card.get_by_role("button", name="Promote").click()
    expect(page.locator("#ask-text")).to_contain_text("from the next part on")
    page.locator("#ask-yes").click()
    expect(page.locator(".view")).to_contain_text(digest[:12])
    expect(page.locator("#promotions")).to_contain_text("in force")
    assert submit(station, 1)[0].result(20).message["provenance"]["package_digest"] == digest
    page.get_by_role("button", name="Roll back").click()
    page.locator("#ask-yes").click()
    expect(page.locator(".view")).not_to_contain_text(digest[:12])
    expect(card).to_have_attribute("data-state", "retired")


def test_a_no_go_cannot_be_promoted_without_a_reason(station: Station, tmp_path: Path, open_page: OpenPage) -> None:
    digest = bring(station, tmp_path / "run", threshold=0.5, go=False)
    station.models.register.approve(BEN, digest, "")
    page = open_page()
    card = page.locator(f"#model-{digest[:12]}")
    expect(card.locator(".gate")).to_have_text("Gate: no-go")
    card.get_by_role("button", name="Promote").click()
    expect(page.locator("#ask-text")).to_contain_text("The gate said no-go.")
    page.locator("#ask-yes").click()
    expect(page.locator("#ask")).to_be_visible()
    assert station.models.promotions.listed() == []
    page.locator("#ask-reason").fill("the new batch")
    page.locator("#ask-yes").click()
    expect(page.locator("#promotions")).to_contain_text("“the new batch”")


def test_whoever_may_only_read_finds_no_buttons(station: Station, tmp_path: Path, open_page: OpenPage) -> None:
    bring(station, tmp_path / "run", threshold=0.5)
    page = open_page("auditor")
    expect(page.locator(".candidate")).to_have_count(2)
    for name in ("Promote", "Approve", "Shadow", "Roll back", "Train a candidate"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    expect(page.locator("#upload")).to_be_hidden()


def test_a_shadow_is_shown_beside_the_champion(station: Station, tmp_path: Path, open_page: OpenPage) -> None:
    digest = bring(station, tmp_path / "run", threshold=0.1)
    page = open_page()
    card = page.locator(f"#model-{digest[:12]}")
    card.get_by_role("button", name="Shadow …").click()
    page.locator("#ask-yes").click()
    expect(card.get_by_role("button", name="Shadow off")).to_be_visible()
    number = 0

    def differs() -> bool:
        nonlocal number
        submit(station, 1, start=(number := number + 1))[0].result(20)
        return card.locator(".agreement .other").count() > 0

    card.get_by_text("In the shadow:").click()
    wait_until(differs, what="a part on which they differ")
    expect(card.locator(".parts a").first).to_have_attribute("href", "/part?id=" + _first_differing(station))


def _first_differing(station: Station) -> str:
    with station.reviews.database.look() as db:
        row = db.execute(
            "SELECT verdict_id FROM shadow WHERE decision <> champion_decision ORDER BY number DESC LIMIT 1"
        ).fetchone()
    assert row is not None
    return str(row[0])


def train(station: Station, tmp_path: Path, **behaviour: object) -> Path:
    script = tmp_path / "training.py"
    script.write_text(SCRIPT)
    station.models.runs._command = (sys.executable, str(script))
    version = write_version(tmp_path / "datasets", 3, Counts(train={"good": 640, "crack": 61}, test={"good": 160}, left_out=4))
    (version / "behaviour.json").write_text(json.dumps({"result": str(tmp_path / "result"), **behaviour}))
    return version


def test_a_training_is_started_followed_cancelled_and_brought(station: Station, tmp_path: Path, open_page: OpenPage) -> None:
    champion = station.book.recipes["default"].views["main"].inspector.package
    write_run(tmp_path / "result", champion, threshold=0.5)
    version = train(station, tmp_path, waits=True)
    page = open_page()
    expect(page.locator("#datasets")).to_contain_text("Learn: good 640, crack 61. Test: good 160.")
    page.get_by_role("button", name="Train a candidate").click()
    page.locator("#ask-yes").click()
    run = page.locator(".run").first
    expect(run.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "25")
    expect(page.locator("#start")).to_be_hidden()
    run.get_by_text("Log").click()
    expect(run.locator(".log")).to_contain_text("waiting")
    run.get_by_role("button", name="Cancel").click()
    page.locator("#ask-yes").click()
    expect(run).to_contain_text("Cancelled")
    (version / "go").touch()
    page.get_by_role("button", name="Train a candidate").click()
    page.locator("#ask-yes").click()
    page.get_by_role("button", name="Put the candidate on the shelf").click()
    expect(page.locator(".candidate").first.locator(".gate")).to_have_text("Gate: go")
    expect(page.get_by_role("button", name="Put the candidate on the shelf")).to_have_count(0)


def test_conflicts_of_a_version_lead_to_their_parts_and_reviews_are_frozen(
    station: Station, tmp_path: Path, open_page: OpenPage
) -> None:
    conflict = Conflict(
        kind="people",
        images=("a" * 64,),
        labels=("good", "crack"),
        groups=("A-17",),
        verdict_ids=("v-17",),
        text="two people differ",
    )
    counts = Counts(train={"good": 5}, test={"good": 2}, left_out=1)
    write_version(tmp_path / "datasets", 1, counts, (conflict,))
    page = open_page()
    datasets = page.locator("#datasets")
    expect(datasets).to_contain_text("1 conflict to settle, 1 left out")
    datasets.get_by_text("Conflicts", exact=True).click()
    expect(datasets.get_by_role("link", name="A-17")).to_have_attribute("href", "/part?id=v-17")
    page.get_by_role("button", name="Freeze reviews").click()
    page.locator("#ask-yes").click()
    expect(page.locator("#ask-refused")).to_contain_text("review")


def test_a_station_that_is_gone_is_told_and_the_page_does_not_look_alive(station: Station, open_page: OpenPage) -> None:
    page = open_page()
    station.stop()
    expect(page.locator("html")).to_have_attribute("data-link", "lost", timeout=10_000)
    expect(page.locator(".toast")).to_contain_text("the station does not answer")


def test_the_page_fits_a_phone_and_the_dark(
    station: Station, tmp_path: Path, open_page: OpenPage, complaints: list[str]
) -> None:
    bring(station, tmp_path / "run", threshold=0.5)
    page = open_page(viewport={"width": 390, "height": 800}, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert complaints == []
    assert page.evaluate("window.violations") == []


def test_a_focused_button_keeps_the_focus_while_the_page_follows_the_station(
    station: Station, tmp_path: Path, open_page: OpenPage
) -> None:
    digest = bring(station, tmp_path / "run", threshold=0.5)
    page = open_page()
    button = page.locator(f"#promote-{digest[:12]}")
    button.focus()
    station.models.register.approve(ANNA, digest, "")
    expect(page.locator(f"#model-{digest[:12]} .approvals")).to_contain_text("anna", timeout=10_000)
    expect(button).to_be_focused()
